"""What a database must hold before work can begin: tables, or an Alembic revision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from sa_railway.exc import ConfigurationError

_VERSIONS = "alembic_version"


class SchemaRequirements:
    """The arguments of ``wait_for_database()`` that say what must be there; checked at once.

    Raises:
        ConfigurationError: one of them cannot be used, or the migrations cannot be read.
    """

    def __init__(self, tables: Sequence[str], revision: str | None, alembic_config: str) -> None:
        if isinstance(tables, str) or not all(isinstance(t, str) and t for t in tables):
            raise ConfigurationError(
                f"tables is {tables!r}; allowed: a list of names such as ['orders']"
            )
        if revision is not None and not (isinstance(revision, str) and revision):
            raise ConfigurationError(
                f"revision is {revision!r}; allowed: the id of a revision, or 'head'"
            )
        self._tables = tuple(tables)
        self._revisions = {revision} if revision else set()
        if revision == "head":
            self._revisions = _heads(alembic_config)

    def missing(self, connection: Connection) -> list[str]:
        """Return what is not there, each in a few words."""
        inspector = inspect(connection)
        missing = []
        for table in self._tables:
            schema, _, name = table.rpartition(".")
            if not inspector.has_table(name, schema=schema or None):
                missing.append(f"table {table}")
        if self._revisions:
            found = _revisions_in(connection) if inspector.has_table(_VERSIONS) else set()
            missing += [
                f"revision {revision} (found: {', '.join(sorted(found)) or 'none'})"
                for revision in sorted(self._revisions - found)
            ]
        return missing


def _revisions_in(connection: Connection) -> set[str]:
    return set(connection.scalars(text(f"SELECT version_num FROM {_VERSIONS}")))  # noqa: S608


def _heads(config_path: str) -> set[str]:
    """Return the newest revisions among the migrations that the code brings along."""
    if not Path(config_path).is_file():
        raise ConfigurationError(
            f"alembic_config is {str(config_path)!r}, which is no file; allowed: the path of an "
            "alembic.ini"
        )
    try:
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError
    except ImportError:
        raise ConfigurationError(
            "revision is 'head', which needs Alembic; install alembic, or name a revision"
        ) from None
    config = Config(config_path)
    if not config.get_main_option("script_location"):
        # Flask-Migrate leaves it out; the file lies beside the migrations
        config.set_main_option("script_location", str(Path(config_path).parent))
    try:
        return set(ScriptDirectory.from_config(config).get_heads())
    except CommandError as error:
        raise ConfigurationError(
            f"alembic_config is {str(config_path)!r}, and its migrations cannot be read: {error}"
        ) from error
