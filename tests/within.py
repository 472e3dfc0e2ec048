"""A Connection of SQLAlchemy's on any driver, for a check that is written but once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy
import sqlalchemy.ext.asyncio
from fix_engines import ASYNC
from sqlalchemy import Connection
from sqlalchemy.util import await_only

import sa_railway
from sa_railway.testing import TemporaryPostgres


def using(
    postgres: TemporaryPostgres,
    driver: str,
    check: Callable[[Connection], Any],
    *,
    is_ours: bool = True,
    **arguments: Any,
) -> Any:
    """Return what *check* does with a Connection, which may await by ``done()`` on any driver.

    Args:
        postgres: the server.
        driver: the name of SQLAlchemy's dialect.
        check: called with a Connection of a new engine.
        is_ours: whether the engine resolves every COMMIT; otherwise it is SQLAlchemy's own.
        **arguments: of the engine.
    """
    library: Any = sa_railway if is_ours else sqlalchemy
    asynchronous: Any = sa_railway if is_ours else sqlalchemy.ext.asyncio
    if is_ours:
        arguments.setdefault("resolve_commit", True)
    if driver not in ASYNC:
        engine = library.create_engine(postgres.url_for(driver), **arguments)
        with engine.connect() as connection:
            result = check(connection)
        engine.dispose()
        return result

    async def main() -> Any:
        engine = asynchronous.create_async_engine(postgres.url_for(driver), **arguments)
        async with engine.connect() as connection:
            result = await connection.run_sync(check)
        await engine.dispose()
        return result

    return asyncio.run(main())


def driver_of(connection: Connection) -> Any:
    """Return the driver's own connection."""
    return connection.connection.driver_connection


def done(value: Any) -> Any:
    """Return *value*, or what it is awaited for."""
    return await_only(value) if hasattr(value, "__await__") else value
