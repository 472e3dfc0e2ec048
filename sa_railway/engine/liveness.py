"""Is this pooled connection still alive? Asked at checkout, most often without a round trip.

A connection that was just made is not asked. Otherwise its socket is looked at, which costs about a
microsecond: a server that closed the connection has left its FIN there. A socket that shows nothing
is trusted if the connection was used a moment ago; else, or if there is something to read that may
as well be a harmless notification, the server must answer a ping within a deadline. A dead
connection invalidates the whole pool, because what killed it mostly killed the others too. One that
was made in another event loop, or in the parent of this process, is replaced without a question.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError
from sqlalchemy.pool import (
    ConnectionPoolEntry,
    PoolProxiedConnection,
    SingletonThreadPool,
    StaticPool,
)

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine import native, process
from sa_railway.engine.driver import bytes_received, descriptor_of, is_pooled, shut_down
from sa_railway.engine.naming import engine_name
from sa_railway.engine.watchdog import limit
from sa_railway.faults import FaultKind, classify

__all__ = ["Look", "listen", "look"]

logger = logging.getLogger("sa_railway.engine.liveness")

# in the record's info, which SQLAlchemy clears when it reconnects: no entry means a new connection
_IDLE_SINCE = "railway_idle_since"
_POLLER = "railway_poller"
_LOOP = "railway_loop"
_RECEIVED = "railway_received"


class Look(Enum):
    """What a socket tells without a round trip."""

    QUIET = "quiet"  # nothing has arrived since the last answer
    READABLE = "readable"  # a notification, a notice, or the server's farewell
    CLOSED = "closed"
    BLIND = "blind"  # the driver shows no socket


def listen(engine: Engine, profile: Profile) -> None:
    """Check the connections of *engine* at checkout, as far as profile and backend allow it."""
    if not profile.pre_ping or engine.dialect.name == "sqlite":
        if not isinstance(engine.pool, SingletonThreadPool | StaticPool):  # a database in memory
            event.listen(engine, "checkout", _refuse_inherited)
        return
    liveness = _Liveness(engine, profile)
    event.listen(engine, "checkin", _checkin)
    if _is_bound_to_loop(engine):
        event.listen(engine, "connect", _remember_loop)
        event.listen(engine, "checkout", _refuse_foreign)
    if engine.dialect.driver == "asyncpg":
        event.listen(engine, "checkin", _note_received)
    event.listen(engine, "checkout", liveness.checkout)


def _is_bound_to_loop(engine: Engine) -> bool:
    """Return whether a connection works in one event loop only; one of psycopg works in any."""
    return engine.dialect.is_async and engine.dialect.driver not in ("psycopg", "psycopg_async")


# All hooks are on the way of every checkout, where a microsecond is a tenth of the whole; so only
# what seldom runs is guarded, and the rest cannot fail.
def _checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_IDLE_SINCE] = time.monotonic()


def _note_received(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection = record.driver_connection
    record.info[_RECEIVED] = None if connection is None else bytes_received(connection)


def _refuse_inherited(*_: object) -> None:
    if os.getpid() != process.pid and process.renew():
        raise InvalidatePoolError("the connection belongs to the parent of this process")


def _remember_loop(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_LOOP] = _running_loop()


def _refuse_foreign(
    dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection
) -> None:
    loop = record.info.get(_LOOP)
    if loop is None or loop is _running_loop():
        return
    _end_in_its_loop(record.driver_connection, loop)
    # as SQLAlchemy's manual lets go of a connection of another process: a close would be awaited
    record.dbapi_connection = None  # type: ignore[misc]
    proxy.dbapi_connection = None  # type: ignore[misc]
    raise DisconnectionError("the connection belongs to another event loop")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _end_in_its_loop(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """End the connection of another event loop, which alone could close it in good order."""
    descriptor = descriptor_of(connection)
    if descriptor is not None and not loop.is_running():  # nothing would tell the server
        shut_down(descriptor)
    terminate = getattr(connection, "terminate", connection.close)
    with contextlib.suppress(RuntimeError):  # the loop is closed, or is closed in this moment
        if loop.is_closed():
            terminate()
        else:
            loop.call_soon_threadsafe(terminate)


class _Liveness:
    """The check of one engine."""

    def __init__(self, engine: Engine, profile: Profile) -> None:
        self._engine = engine_name(engine)
        self._dialect = engine.dialect
        self._trust_idle = profile.trust_idle
        self._ping_timeout = profile.ping_timeout
        # A pooler lets a statement wait until a server is free, as a pool lets a checkout wait.
        self._pooler_timeout = max(profile.ping_timeout, profile.pool_timeout)
        self._has_pooler = profile.transaction_pooler
        self._is_gevent_judged = False
        self._has_failed = False

    def checkout(
        self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        if os.getpid() != process.pid:
            _refuse_inherited()
        info = record.info
        if _IDLE_SINCE not in info:
            return
        if time.monotonic() - info[_IDLE_SINCE] >= self._trust_idle or not _is_quiet(info, record):
            self._examine(dbapi_connection, record)

    def _examine(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        try:
            is_closed = look(record.driver_connection) is Look.CLOSED
            how = "socket" if is_closed else self._ping(dbapi_connection, record)
        except self._dialect.loaded_dbapi.Error:
            raise
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                logger.exception(
                    "%s: a connection could not be checked and is replaced; further failures are "
                    "not logged",
                    self._engine,
                )
            raise DisconnectionError("the connection could not be checked") from None
        if how is not None:
            events.announce(events.StaleFound(self._engine, how))
            logger.info("%s: discarded a stale connection (seen by: %s)", self._engine, how)
            raise InvalidatePoolError(f"the connection was stale at checkout (seen by: {how})")

    def _ping(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> str | None:
        """Return how the connection was found to be dead, or None: the server has answered."""
        self._warn_if_gevent_is_blocked()
        started = time.monotonic()
        connection = record.driver_connection
        is_queued = self._has_pooler or is_pooled(connection)
        timeout = self._pooler_timeout if is_queued else self._ping_timeout
        with limit(connection, timeout) as expired:
            try:
                # A private method: SQLAlchemy asks the handle_error listeners about a ping nowhere
                # else. tests/integration/test_ping_events.py fails when it moves.
                is_alive = self._dialect._do_ping_w_event(dbapi_connection)
            except self._dialect.loaded_dbapi.Error as error:
                if not (expired() or _is_lost(error, connection)):
                    raise  # an answer, as pool_pre_ping has it; the pool replaces the connection
                is_alive = False
            except Exception:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError as well
                is_alive = False
        if expired():  # also between the answer and the end of the block
            return "deadline"
        if not is_alive:
            return "ping"
        if events.Pinged in events.heard:
            events.announce(events.Pinged(self._engine, time.monotonic() - started))
        return None

    def _warn_if_gevent_is_blocked(self) -> None:
        """Say once that psycopg2 without psycogreen blocks the gevent hub."""
        monkey = sys.modules.get("gevent.monkey")
        if monkey is None or self._is_gevent_judged:
            return
        self._is_gevent_judged = True
        if self._dialect.driver != "psycopg2" or not monkey.is_module_patched("threading"):
            return
        if self._dialect.loaded_dbapi.extensions.get_wait_callback() is None:
            logger.warning(
                "%s: gevent is in use, but psycopg2 does not cooperate with it: a query blocks all "
                "greenlets. Call psycogreen.gevent.patch_psycopg(), or use the psycopg driver.",
                self._engine,
            )


_HUNG_UP = 0
if native.poll is not None:  # Windows has none: every check is a ping there
    # POLLRDHUP, on Linux, shows the peer's FIN even behind unread data, which TLS would hide
    _HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


def _is_quiet(info: dict[Any, Any], record: ConnectionPoolEntry) -> bool:
    """Do what ``look()`` does with what was kept of the last look, and say whether it is QUIET."""
    poll: Callable[[], Look] | None = info.get(_POLLER)
    if poll is None:
        poll = info[_POLLER] = _poller(record.driver_connection)
    if poll() is not Look.QUIET:
        return False
    return _RECEIVED not in info or _has_read_nothing(info[_RECEIVED], record.driver_connection)


def _has_read_nothing(received: int | None, asyncpg_connection: Any) -> bool:
    """Return whether asyncpg is known to have read nothing since it had *received* so much."""
    return received is not None and received == bytes_received(asyncpg_connection)


def _is_lost(error: Exception, driver_connection: Any) -> bool:
    """Return whether a ping that SQLAlchemy takes for answered was not: we know more losses."""
    return look(driver_connection) is Look.CLOSED or classify(error).kind is FaultKind.DISCONNECT


def look(driver_connection: Any) -> Look:
    """Look at the connection's socket without sending or reading anything. Never raises."""
    return _poller(driver_connection)()


def _poller(driver_connection: Any) -> Callable[[], Look]:
    """Return a function that looks at this connection, again and again.

    psycopg2 and psycopg show their descriptor. asyncpg knows by itself when the server has hung up,
    but only once its event loop has had a turn, so its socket is looked at as well.
    """
    if hasattr(driver_connection, "fileno"):
        return _socket_poller(driver_connection.fileno)
    if hasattr(driver_connection, "is_closed"):
        return _socket_poller(functools.partial(_asyncpg_descriptor, driver_connection))
    return lambda: Look.BLIND


def _asyncpg_descriptor(connection: Any) -> int:
    descriptor = None if connection.is_closed() else descriptor_of(connection)
    if descriptor is None:
        raise OSError("the connection is closed")
    return descriptor


def _socket_poller(fileno: Callable[[], int]) -> Callable[[], Look]:
    if native.poll is None:
        return lambda: Look.BLIND
    poller = native.poll()
    registered = -1

    def poll() -> Look:
        nonlocal registered
        try:
            # asked each time: a driver that has closed its socket refuses, and its number may
            # be another one's by now
            descriptor = fileno()
            if descriptor != registered:
                poller.register(descriptor, select.POLLIN | _HUNG_UP)
                registered = descriptor
        except Exception:  # noqa: BLE001 - each driver has its own error for a closed connection
            return Look.CLOSED
        ready = poller.poll(0)
        if not ready:
            return Look.QUIET
        return Look.CLOSED if ready[0][1] & _HUNG_UP else Look.READABLE

    return poll
