"""The table of commit markers: the SQL that creates and drops it, and whether it can be used."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection

TABLE = "sa_railway_commit_marker"

# The row of this id holds the point up to which others may have been removed.
REMOVED = uuid.UUID(int=0)

# The row of this id holds what is different in each database, so that none is taken for another.
HOME = uuid.UUID(int=2**128 - 1)

USABLE = """SELECT (quote_ident(nspname) || '.' || quote_ident(relname))::text, (
        has_table_privilege(pg_class.oid, 'SELECT') AND has_table_privilege(pg_class.oid, 'INSERT')
        AND has_table_privilege(pg_class.oid, 'UPDATE') AND has_table_privilege(pg_class.oid,
        'DELETE') AND has_schema_privilege(pg_namespace.oid, 'USAGE'))::text
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass('{name}')"""


def create_sql(schema: str | None = None, *, grant_to: str | None = None) -> list[str]:
    """Return the statements that create the table; they may be executed twice.

    Args:
        schema: where; None is the first of the search path.
        grant_to: a role that may use the table, besides its owner.
    """
    table = _qualified(schema)
    statements = [
        f"CREATE TABLE IF NOT EXISTS {table} (\n"
        "    id uuid PRIMARY KEY,\n"
        "    committed boolean NOT NULL,\n"
        "    removed_before uuid\n"
        ")",
        _first_rows(table),
    ]
    if grant_to is not None:
        role = _quoted(grant_to)
        statements.append(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    return statements


def repair_sql(schema: str | None = None) -> list[str]:
    """Return the statements that give the table its first rows again, where one of them is missing.

    Both are made, because nothing else is known of a table that has lost a row: to those that ask
    about an earlier marker, it is the table of another database.
    """
    table = _qualified(schema)
    delete = f"DELETE FROM {table} WHERE id IN ('{REMOVED}', '{HOME}')"  # noqa: S608 - quoted
    return [delete, _first_rows(table)]


def drop_sql(schema: str | None = None) -> list[str]:
    """Return the statements that drop the table; they may be executed twice."""
    return [f"DROP TABLE IF EXISTS {_qualified(schema)}"]


def describe(connection: Connection, schema: str | None = None) -> dict[str, Any]:
    """Return what is to be known of the table in *schema*, or in the search path.

    That is its name (None if there is none), whether the role may use it, whether an application
    finds it, which does not name the schema, whether it has its first rows, and how many others.
    """
    name = _qualified(schema).replace("'", "''")
    row = connection.exec_driver_sql(USABLE.format(name=name)).first()
    found = connection.exec_driver_sql(USABLE.format(name=TABLE)).first()
    table, is_usable = (row[0], row[1] == "true") if row else (None, False)
    first = rows = None
    if is_usable:
        count = (
            f"SELECT count(*) FILTER (WHERE id IN ('{REMOVED}', '{HOME}')), "  # noqa: S608 - quoted
            f"count(*) FILTER (WHERE removed_before IS NULL) FROM {table}"
        )
        first, rows = connection.exec_driver_sql(count).one()
    is_found = row is not None and found is not None and found[0] == row[0]
    return {
        "table": table,
        "usable": is_usable,
        "found": is_found,
        "complete": first == 2,
        "rows": rows,
    }


def _first_rows(table: str) -> str:
    return (
        f"INSERT INTO {table} (id, committed, removed_before) "  # noqa: S608 - quoted
        f"VALUES ('{REMOVED}', false, '{REMOVED}'), "
        f"('{HOME}', false, md5(random()::text || clock_timestamp())::uuid) "
        "ON CONFLICT DO NOTHING"
    )


def _qualified(schema: str | None) -> str:
    return TABLE if schema is None else f"{_quoted(schema)}.{TABLE}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
