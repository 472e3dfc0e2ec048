"""Where an exception comes from: the database, or something else in the same work."""

from __future__ import annotations

import traceback

from sqlalchemy.exc import SQLAlchemyError

__all__ = ["is_of_database"]

_DRIVERS = frozenset({"psycopg2", "psycopg", "asyncpg"})


def is_of_database(error: BaseException) -> bool:
    """Return whether *error* itself is SQLAlchemy's or a driver's, or has come through SQLAlchemy.

    asyncpg raises ``OSError`` and ``TimeoutError`` as they are, and so do HTTP clients; only the
    former come through SQLAlchemy. What somebody has raised from a database's error is not one: it
    says something else now.
    """
    if isinstance(error, SQLAlchemyError):
        return True
    if any(cls.__module__.partition(".")[0] in _DRIVERS for cls in type(error).__mro__):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("sqlalchemy.") for frame, _ in frames)
