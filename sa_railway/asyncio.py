"""The asyncio twins of the public functions, under the same names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import sqlalchemy.ext.asyncio
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.pool import NullPool

from sa_railway.config.drivers import choose_driver, naming_extras
from sa_railway.config.options import options_for
from sa_railway.config.profile import Profile
from sa_railway.config.settings import ProfileName, Settings
from sa_railway.config.url import find_url
from sa_railway.exc import ConfigurationError
from sa_railway.recovery.gate import Gate
from sa_railway.recovery.replay import Replay
from sa_railway.recovery.transaction import check_bind, end_reading, listening, session_listeners
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
        callback: a coroutine function.
        timeout: as there.
        isolation_level: as there.
        writes: as there.

    Raises:
        ConfigurationError: as there.
        CommitOutcomeUnknownError: as there.
        Exception: as there.
    """
    replay = Replay(callback, timeout, isolation_level, writes, is_async=True)
    attempt: Callable[[Replay], Awaitable[Result]] = _attempt_for(transactor)
    while True:
        try:
            return await attempt(replay)
        except Exception as error:
            delay = replay.delay_after(error)
            if delay is None:
                raise
        await asyncio.sleep(delay)


def _attempt_for(transactor: object) -> Callable[[Replay], Awaitable[Any]]:
    """Return the coroutine function that makes one attempt with *transactor*."""
    if isinstance(transactor, AsyncEngine):
        return lambda replay: _with_engine(transactor, replay)
    if isinstance(transactor, async_sessionmaker):
        return lambda replay: _with_new_session(transactor, replay)
    if isinstance(transactor, async_scoped_session):
        return lambda replay: _with_open_session(transactor(), replay)
    if isinstance(transactor, AsyncSession):
        return lambda replay: _with_open_session(transactor, replay)
    raise ConfigurationError(
        f"transactor is of type {type(transactor).__name__}; allowed: an AsyncEngine, an "
        "async_sessionmaker, an async_scoped_session, or an AsyncSession"
    )


async def _with_engine(engine: AsyncEngine, replay: Replay) -> Any:
    connection = await engine.connect()
    try:
        if replay.isolation_level:
            await connection.execution_options(isolation_level=replay.isolation_level)
        transaction = await connection.begin()
        with (
            replay.calling(),
            listening(connection.sync_connection, commit=replay.refuse_commit),
        ):
            await connection.run_sync(replay.watch)
            result = await replay.callback(connection)
        with replay.committing(is_active=transaction.is_active):
            await transaction.commit()
        return result
    finally:
        try:
            await connection.close()
        except (DBAPIError, OSError):
            if not connection.closed:
                await connection.invalidate()
                await connection.close()


async def _with_new_session(factory: async_sessionmaker[Any], replay: Replay) -> Any:
    session = factory()
    try:
        return await _with_open_session(session, replay)
    finally:
        await session.close()


async def _with_open_session(session: AsyncSession, replay: Replay) -> Any:
    check_bind(session.sync_session.bind)
    await session.run_sync(end_reading)
    with listening(session.sync_session, **session_listeners(replay)):
        try:
            transaction = session.sync_session.begin()
            with replay.calling():
                if replay.isolation_level:
                    options = {"isolation_level": replay.isolation_level}
                    await session.connection(execution_options=options)
                result = await replay.callback(session)
            is_active = session.sync_session.get_transaction() is transaction
            with replay.committing(is_active=is_active):
                await session.commit()
        except BaseException:
            await _roll_back(session)
            raise
        return result


async def _roll_back(session: AsyncSession) -> None:
    try:
        await session.rollback()
    except (DBAPIError, OSError):
        await session.invalidate()


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
        timeout: as there.
        tables: as there.
        revision: as there.
        alembic_config: as there.
        progress: as there; an ordinary function.

    Raises:
        ConfigurationError: as there.
        NotReadyError: as there.
        Exception: as there.
    """
    gate = Gate(tables, revision, alembic_config)
    async with _engine_for(target) as engine:
        wait = Wait(engine.sync_engine, timeout, gate, progress)
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
