"""The asyncio twins of the public functions, under the same names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import sqlalchemy.ext.asyncio
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.pool import NullPool

# Not in SQLAlchemy's documentation, but the only way to run its synchronous half with a callback.
# tests/chaos/test_transaction.py fails when they move.
from sqlalchemy.util import await_only, greenlet_spawn

from sa_railway.config.drivers import choose_driver, naming_extras
from sa_railway.config.options import options_for
from sa_railway.config.profile import Profile
from sa_railway.config.settings import ProfileName, Settings
from sa_railway.config.url import find_url
from sa_railway.exc import ConfigurationError
from sa_railway.recovery.replay import TransactionReplay
from sa_railway.recovery.requirements import SchemaRequirements
from sa_railway.recovery.transaction import with_engine, with_open_session
from sa_railway.recovery.wait import Progress, Wait

if TYPE_CHECKING:
    from sa_railway.health import HealthReport

__all__ = ["check_health", "create_async_engine", "run_transaction", "wait_for_database"]

Result = TypeVar("Result")
Session = TypeVar("Session", bound=AsyncSession)


def create_async_engine(
    url: str | URL | None = None,
    *,
    profile: ProfileName | Profile | None = None,
    **overrides: Unpack[Settings],
) -> AsyncEngine:
    """Create an asyncio engine whose connections survive.

    A URL that names no driver, or one that cannot be used with asyncio, gets asyncpg, or psycopg
    where asyncpg is not installed.

    Args:
        url: the database; None looks for it in the environment as ``database_url()`` does.
        profile: as for ``sa_railway.engine_options()``.
        **overrides: fields of the profile, and arguments of
            ``sqlalchemy.ext.asyncio.create_async_engine()``.

    Returns:
        SQLAlchemy's own ``AsyncEngine``. Nothing is connected yet. For one event loop; a forked
        child may use it in its own loop.

    Raises:
        ConfigurationError: the URL, the profile or an override cannot be used.
    """
    target = choose_driver(find_url(url), asyncio=True)
    with naming_extras():
        options = options_for(target, profile, os.environ, overrides)
        return sqlalchemy.ext.asyncio.create_async_engine(target, **options)


@overload
async def run_transaction(
    transactor: AsyncEngine,
    callback: Callable[[AsyncConnection], Awaitable[Result]],
    *,
    timeout: float = ...,
    isolation_level: str | None = ...,
    writes: bool | None = ...,
) -> Result: ...


@overload
async def run_transaction(
    transactor: async_sessionmaker[Session] | async_scoped_session[Session] | Session,
    callback: Callable[[Session], Awaitable[Result]],
    *,
    timeout: float = ...,
    isolation_level: str | None = ...,
    writes: bool | None = ...,
) -> Result: ...


async def run_transaction(
    transactor: Any,
    callback: Callable[[Any], Awaitable[Result]],
    *,
    timeout: float = 30.0,
    isolation_level: str | None = None,
    writes: bool | None = None,
) -> Result:
    """Do what ``sa_railway.run_transaction()`` does, for asyncio.

    Args:
        transactor: an AsyncEngine, for which the callback gets an AsyncConnection; or an
            async_sessionmaker, an async_scoped_session or an AsyncSession, for which it gets an
            AsyncSession.
        callback: a coroutine function, called once for each attempt.
        timeout: seconds for all attempts, their pauses, and asking for a lost outcome.
        isolation_level: as in SQLAlchemy, for these transactions only; not ``"AUTOCOMMIT"``.
        writes: whether the callback writes; None decides by what it executes.

    Raises:
        ConfigurationError: an argument cannot be used, the transactor is in autocommit mode, or the
            callback ended the transaction.
        CommitOutcomeUnknownError: a COMMIT was sent, and its outcome cannot be proved.
        Exception: that of the last attempt, with a note on how many there were.
    """
    replay = TransactionReplay(callback, timeout, isolation_level, writes, is_async=True)
    attempt = _attempt_for(transactor)
    while True:
        try:
            result: Result = await attempt(replay)
        except Exception as error:
            delay = replay.delay_after(error)
            if delay is None:
                raise
        else:
            return result
        await asyncio.sleep(delay)


def _attempt_for(transactor: object) -> Callable[[TransactionReplay], Awaitable[Any]]:
    """Return the coroutine function that makes one attempt with *transactor*."""
    if isinstance(transactor, AsyncEngine):
        return partial(_with_engine, transactor)
    if isinstance(transactor, async_sessionmaker):
        return partial(_with_new_session, transactor)
    if isinstance(transactor, async_scoped_session):
        return lambda replay: _with_open_session(transactor(), replay)
    if isinstance(transactor, AsyncSession):
        return partial(_with_open_session, transactor)
    raise ConfigurationError(
        f"transactor is of type {type(transactor).__name__}; allowed: an AsyncEngine, an "
        "async_sessionmaker, an async_scoped_session, or an AsyncSession"
    )


# Each attempt is that of sa_railway.recovery.transaction, in a greenlet as everything that
# SQLAlchemy does for asyncio; it awaits the callback, which gets the asyncio twin.


async def _with_engine(engine: AsyncEngine, replay: TransactionReplay) -> Any:
    def callback(connection: Connection) -> Any:
        return await_only(replay.callback(AsyncConnection(engine, connection)))

    return await greenlet_spawn(with_engine, engine.sync_engine, replay, callback)


async def _with_new_session(factory: async_sessionmaker[Any], replay: TransactionReplay) -> Any:
    session = factory()
    try:
        return await _with_open_session(session, replay)
    finally:
        await session.close()


async def _with_open_session(session: AsyncSession, replay: TransactionReplay) -> Any:
    def callback(_: object) -> Any:
        return await_only(replay.callback(session))

    return await session.run_sync(with_open_session, replay, callback)


async def wait_for_database(
    target: str | URL | AsyncEngine | None = None,
    *,
    timeout: float = 120.0,
    tables: Sequence[str] = (),
    revision: str | None = None,
    alembic_config: str = "alembic.ini",
    progress: Progress | None = None,
) -> None:
    """Do what ``sa_railway.wait_for_database()`` does, for asyncio.

    Args:
        target: a URL or an AsyncEngine; None looks for a URL in the environment.
        timeout: no attempt begins later than after so many seconds.
        tables: names of tables or views that must be there.
        revision: the Alembic revision that the database must have reached, or ``"head"``.
        alembic_config: path of an ``alembic.ini``; read for ``"head"`` only.
        progress: an ordinary function, called with a line for people; None prints or logs it.

    Raises:
        ConfigurationError: an argument cannot be used.
        NotReadyError: the database answers, but a table or the revision has not come in time.
        Exception: that of the last attempt to connect, with a note on how long it was waited.
    """
    requirements = SchemaRequirements(tables, revision, alembic_config)
    async with _engine_for(target) as engine:
        wait = Wait(engine.sync_engine, timeout, requirements, progress)
        while True:
            try:
                with wait.attempt():
                    async with engine.connect() as connection:
                        missing = await connection.run_sync(wait.look)
            except Exception as error:
                delay = wait.delay_after(error)
                if delay is None:
                    raise
            else:
                if not missing:
                    wait.end()
                    return
                delay = wait.delay_without(missing)
            await asyncio.sleep(delay)


@asynccontextmanager
async def _engine_for(target: str | URL | AsyncEngine | None) -> AsyncIterator[AsyncEngine]:
    """Yield *target*, or a new engine, which is disposed of in the end."""
    if isinstance(target, AsyncEngine):
        yield target
        return
    if target is not None and not isinstance(target, str | URL):
        raise ConfigurationError(
            f"target is of type {type(target).__name__}; allowed: a URL or an AsyncEngine; for an "
            "Engine, sa_railway.wait_for_database()"
        )
    engine = create_async_engine(target, profile="script", poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()


async def check_health(engine: AsyncEngine) -> HealthReport:
    """Do what ``sa_railway.check_health()`` does, for asyncio."""
    from sa_railway.health import check_health_async  # with the page; few programs ask

    return await check_health_async(engine)
