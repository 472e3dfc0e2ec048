"""Operations for Alembic's migrations: create the table of commit markers, and drop it.

::

    import sa_railway.alembic  # adds the operations


    def upgrade():
        op.create_commit_marker()


    def downgrade():
        op.drop_commit_marker()

The table is no model of the application, so ``alembic revision --autogenerate`` would drop it. In
``env.py``, ``context.configure(..., include_name=sa_railway.alembic.include_name)`` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic.operations import MigrateOperation, Operations

from sa_railway.commit.marker_schema import TABLE, create_sql, drop_sql

__all__ = ["CreateCommitMarker", "DropCommitMarker", "include_name"]


def include_name(name: str | None, type_: str, _parents: Mapping[str, Any]) -> bool:
    """Leave the table of commit markers to this package; for ``context.configure()``."""
    return not (type_ == "table" and name == TABLE)


@Operations.register_operation("create_commit_marker")
class CreateCommitMarker(MigrateOperation):
    """``op.create_commit_marker(schema=None, grant_to=None)``; may be executed twice.

    Args:
        schema: where; None is the first of the search path.
        grant_to: a role that may use the table, besides the one that creates it.
    """

    def __init__(self, schema: str | None = None, grant_to: str | None = None) -> None:
        self.schema = schema
        self.grant_to = grant_to

    @classmethod
    def create_commit_marker(
        cls, operations: Operations, schema: str | None = None, grant_to: str | None = None
    ) -> None:
        """Create the table."""
        operations.invoke(cls(schema, grant_to))

    def reverse(self) -> DropCommitMarker:
        """Return the operation that undoes this one."""
        return DropCommitMarker(self.schema)


@Operations.register_operation("drop_commit_marker")
class DropCommitMarker(MigrateOperation):
    """``op.drop_commit_marker(schema=None)``; may be executed twice."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema

    @classmethod
    def drop_commit_marker(cls, operations: Operations, schema: str | None = None) -> None:
        """Drop the table."""
        operations.invoke(cls(schema))

    def reverse(self) -> CreateCommitMarker:
        """Return the operation that undoes this one."""
        return CreateCommitMarker(self.schema)


@Operations.implementation_for(CreateCommitMarker)
def _create(operations: Operations, operation: CreateCommitMarker) -> None:
    for statement in create_sql(operation.schema, grant_to=operation.grant_to):
        operations.execute(statement)


@Operations.implementation_for(DropCommitMarker)
def _drop(operations: Operations, operation: DropCommitMarker) -> None:
    for statement in drop_sql(operation.schema):
        operations.execute(statement)
