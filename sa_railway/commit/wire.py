"""Say something to the server on one connection, whichever driver it is of, and read the answer.

What is read is text on every driver, so that no type that an application has registered changes it.
The cursors of the application are left alone, and so is what is known of its work.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from sqlalchemy import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

# Not in SQLAlchemy's documentation, but the only way to wait for a driver within an asyncio engine.
from sqlalchemy.util import await_only

from sa_railway.commit.tracking import has_plain_commit, unseen_cursor, unwrapped
from sa_railway.faults import classify
from sa_railway.faults.origin import severity_of

Pooled = PoolProxiedConnection | ConnectionPoolEntry
"""A connection that is checked out, or about to be."""

SAVEPOINT = "SAVEPOINT sa_railway"
BACK = "ROLLBACK TO SAVEPOINT sa_railway"

DRIVERS = frozenset({"psycopg2", "psycopg", "psycopg_async", "asyncpg"})
"""The drivers by which the server can be asked about a transaction."""

_FAILED = 3  # libpq's PQTRANS_INERROR


class Wire:
    """Talks to the server as the driver of one engine can."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect: Any = dialect

    def row(self, pooled: Pooled, query: str, *, before: str = "") -> list[Any]:
        """Return the one row of *query*; at once with what comes *before*, but for asyncpg."""
        driver: Any = pooled.driver_connection
        if self._dialect.driver != "asyncpg" and before:
            query = f"{before};{query}"
        if self._dialect.driver == "psycopg2":
            with self._psycopg2_cursor(driver) as cursor:
                cursor.execute(query)
                return list(cursor.fetchone() or ())
        if self._dialect.driver != "asyncpg":
            return _psycopg_row(driver, query, is_async=self._dialect.is_async)
        try:
            if before:
                await_only(driver.execute(before))
            return list(await_only(driver.fetchrow(query)) or ())
        except Exception as error:  # noqa: BLE001 - raised again
            _raise_adapted(pooled, error)

    def run(self, pooled: Pooled, script: str) -> None:
        """Execute *script*, which may hold several statements and returns nothing."""
        driver: Any = pooled.driver_connection
        if self._dialect.driver == "psycopg2":
            with self._psycopg2_cursor(driver) as cursor:
                cursor.execute(script)
        elif self._dialect.driver == "asyncpg":
            try:
                await_only(driver.execute(script))
            except Exception as error:  # noqa: BLE001 - raised again
                _raise_adapted(pooled, error)
        elif self._dialect.is_async:
            await_only(_psycopg_run_async(driver, script))
        else:
            with unseen_cursor(driver) as cursor:
                cursor.execute(script, prepare=False)

    def run_together(self, pooled: Pooled, statements: tuple[str, ...]) -> None:
        """Execute *statements* in one round trip, by psycopg's pipeline.

        psycopg's own ``commit()`` would wait for one answer more; it learns from the server whether
        a transaction has ended.
        """
        if self._dialect.is_async:
            await_only(_pipe_async(pooled.driver_connection, statements))
        else:
            _pipe(pooled.driver_connection, statements)

    def can_run_together(self, pooled: Pooled) -> bool:
        """Return whether *pooled* is psycopg's, with a libpq that has pipelines.

        Not if psycopg, or a class of the application's, be it of the connection or of the dialect,
        has something to say to a ``commit()``.
        """
        driver: Any = pooled.driver_connection
        if not hasattr(driver, "pgconn") or not has_plain_commit(driver):
            return False
        if not type(self._dialect).do_commit.__module__.startswith("sqlalchemy."):
            return False
        return bool(sys.modules["psycopg"].capabilities.has_pipeline())

    def rollback(self, pooled: Pooled) -> None:
        """Roll back what was begun for a question."""
        self._dialect.do_rollback(pooled.dbapi_connection)

    def autocommit(self, pooled: Pooled) -> None:
        """Let statements of this connection commit by themselves; it is closed afterwards."""
        self._dialect.set_isolation_level(pooled.dbapi_connection, "AUTOCOMMIT")

    def _psycopg2_cursor(self, driver: Any) -> Any:
        """Return a cursor of psycopg2's own class; the application's might return dicts."""
        extensions = self._dialect.loaded_dbapi.extensions
        driver = unwrapped(driver)
        if not issubclass(type(driver), extensions.connection):  # a proxy of another kind
            return driver.cursor(cursor_factory=extensions.cursor)
        return extensions.connection.cursor(driver, cursor_factory=extensions.cursor)


def _raise_adapted(pooled: Pooled, error: Exception) -> NoReturn:
    """Raise *error* of asyncpg as SQLAlchemy's adapter does, which SQLAlchemy can wrap.

    By a private method, because the adapter has no other;
    tests/chaos/test_commit.py fails when it moves.
    """
    adapter: Any = pooled.dbapi_connection
    adapter._handle_exception(error)
    raise error


def _psycopg_row(driver: Any, query: str, *, is_async: bool) -> list[Any]:
    if is_async:
        return list(await_only(_psycopg_row_async(driver, query)))
    with unseen_cursor(driver, row_factory=_tuples) as cursor:
        cursor.execute(query, prepare=False)
        while cursor.nextset():
            pass
        return list(map(_as_text, cursor.fetchone() or ()))


async def _psycopg_row_async(driver: Any, query: str) -> list[Any]:
    async with unseen_cursor(driver, row_factory=_tuples) as cursor:
        await cursor.execute(query, prepare=False)
        while cursor.nextset():
            pass
        return list(map(_as_text, await cursor.fetchone() or ()))


async def _psycopg_run_async(driver: Any, script: str) -> None:
    async with unseen_cursor(driver) as cursor:
        await cursor.execute(script, prepare=False)


def _tuples(_cursor: object) -> Any:
    return tuple


def _as_text(value: Any) -> Any:
    # in a database without an encoding (SQL_ASCII), psycopg leaves texts as they are
    return value.decode() if isinstance(value, bytes) else value


def _pipe(driver: Any, statements: tuple[str, ...]) -> None:
    first: list[Exception] = []
    with (
        _raising(first),
        driver.pipeline(),
        unseen_cursor(driver) as cursor,
        _keeping(first),
    ):
        for statement in statements:
            cursor.execute(statement, prepare=False)


async def _pipe_async(driver: Any, statements: tuple[str, ...]) -> None:
    first: list[Exception] = []
    with _raising(first):
        async with driver.pipeline(), unseen_cursor(driver) as cursor:
            with _keeping(first):
                for statement in statements:
                    await cursor.execute(statement, prepare=False)


@contextlib.contextmanager
def _keeping(first: list[Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the end of the pipeline raises, or _raising() does
        first.append(error)


@contextlib.contextmanager
def _raising(first: list[Exception]) -> Iterator[None]:
    """Raise what the end of a pipeline raises, with what was kept before as its context.

    The end says no more than "pipeline aborted" where the answer that says why came before it.
    """
    try:
        yield
    except Exception as last:
        if first:
            last.__context__ = first[0]
        raise
    if first:
        raise first[0]


def in_pipeline(pooled: Pooled) -> bool:
    """Return whether *pooled* is in a pipeline of psycopg, which the application has begun."""
    pgconn = getattr(pooled.driver_connection, "pgconn", None)
    return pgconn is not None and bool(pgconn.pipeline_status != 0)


def has_failed(pooled: Pooled) -> bool:
    """Return whether psycopg knows that the transaction has failed before."""
    pgconn = getattr(pooled.driver_connection, "pgconn", None)
    return pgconn is not None and bool(pgconn.transaction_status == _FAILED)


def is_lost(pooled: Pooled, error: BaseException) -> bool:
    """Return whether nothing more can be said on the connection after *error*."""
    driver: Any = pooled.driver_connection
    if driver is None or (driver.is_closed() if hasattr(driver, "is_closed") else driver.closed):
        return True
    # what the server says with severity ERROR came over a connection that works
    return severity_of(error) != "ERROR" and classify(error).connection_lost


def is_refusal(error: Exception) -> bool:
    """Return whether the server refused a statement, in a transaction that was still good."""
    return severity_of(error) == "ERROR" and sqlstate_of(error) != "25P02"


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error, whichever driver it is from."""
    return classify(error).sqlstate


def backend_pid(driver_connection: Any) -> int:
    """Return the backend that the client was told of: psycopg2 and psycopg, then asyncpg."""
    if hasattr(driver_connection, "info"):
        return int(driver_connection.info.backend_pid)
    return int(driver_connection.get_server_pid())
