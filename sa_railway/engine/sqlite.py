"""Settings that SQLite takes by statement only, given to every new connection."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["listen"]


def listen(engine: Engine, pragmas: Sequence[str]) -> None:
    """Run *pragmas* on every new connection of *engine*."""

    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        cursor = dbapi_connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    event.listen(engine, "connect", connect)
