"""Is this pooled connection still alive? Asked where SQLAlchemy pings, mostly without a round trip.

It takes the place of the dialect's ping, so SQLAlchemy asks before it calls any listener to
"checkout", and never about a new connection. The connection's socket is looked at first, which
costs about a microsecond: a server that closed the connection has left its FIN there. A socket that
shows nothing is trusted if the connection was used a moment ago; else the server must answer a ping
within a deadline. A dead connection invalidates the whole pool, because what killed it mostly
killed the others too. One that was made in another event loop, or in the parent of this process, is
replaced without a question.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import os
import select
import sys
import time
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, SingletonThreadPool, StaticPool

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine import native, process
from sa_railway.engine.driver import (
    bytes_received,
    descriptor_of,
    is_in_transaction,
    is_pooled,
    shut_down,
)
from sa_railway.engine.known import Known
from sa_railway.engine.state import engine_name
from sa_railway.engine.waiting import running_loop
from sa_railway.engine.watchdog import limit
from sa_railway.faults import classify

logger = logging.getLogger("sa_railway.engine.liveness")

_POOLED = "railway_pooled"  # in the record's info, which SQLAlchemy clears when it reconnects


class SocketState(Enum):
    """What a socket tells without a round trip."""

    NOTHING_TO_READ = "nothing to read"  # nothing has arrived since the last answer
    READABLE = "readable"  # a notification, a notice, or the server's farewell
    CLOSED = "closed"
    UNKNOWN = "unknown"  # the driver shows no socket


def listen(engine: Engine, profile: Profile, *, pool_pings: bool) -> None:
    """Check the connections of *engine*, as far as profile and backend allow it.

    *pool_pings* says whether its pool pings at checkout; one that the caller made need not.
    """
    is_sqlite = engine.dialect.name == "sqlite"
    has_one = isinstance(engine.pool, SingletonThreadPool | StaticPool)
    # threads may share the one connection, and a ping of one would disturb the others
    if not profile.pre_ping or is_sqlite or (has_one and not pool_pings):
        if not (is_sqlite and has_one):  # a database in memory
            event.listen(engine, "checkout", _refuse_inherited)
        return
    liveness = _Liveness(engine, profile)
    event.listen(engine, "connect", liveness.connect)
    event.listen(engine, "checkin", liveness.checkin)
    # on this engine's dialect object alone
    engine.dialect.do_ping = liveness.do_ping  # type: ignore[method-assign]
    if not pool_pings:
        event.listen(engine, "checkout", liveness.checkout)


def _refuse_inherited(*_: object) -> None:
    if os.getpid() != process.pid and process.renew():
        raise InvalidatePoolError("the connection belongs to the parent of this process")


def _refuse_foreign(connection: Any, pooled: _Pooled) -> None:
    """Replace a connection that was made in another event loop."""
    loop = pooled.loop() if pooled.loop is not None else None
    if loop is None or loop is running_loop():
        return
    _end_in_its_loop(connection, loop)
    record = pooled.record() if pooled.record is not None else None
    if record is not None:
        # as SQLAlchemy's manual has it for one of another process: a close would be awaited
        record.dbapi_connection = None  # type: ignore[misc]
    raise DisconnectionError("the connection belongs to another event loop")


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


# to get a member of an enumeration takes longer than the look
_NOTHING_TO_READ = SocketState.NOTHING_TO_READ
_HUNG_UP = 0
if native.poll is not None:  # Windows has none: every check is a ping there
    # POLLRDHUP, on Linux, shows the peer's FIN even behind unread data, which TLS would hide
    _HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


class _Pooled:
    """What is known of one connection, which leads to it and must not be kept alive by it.

    Attributes:
        since: when the connection was returned to the pool; None while a caller has it.
        received: how many bytes asyncpg had read by then, if that is known.
        loop: the event loop that it was made in, if it works in that one only. An event loop leads
            to its connections, so it is held weakly; asyncpg's connections hold it.
        record: the pool's record of it.
        is_shared: whether several records have it, and so several threads may use it at once.
    """

    __slots__ = tuple(
        "_descriptor_of _poller _registered is_shared loop received record since".split()
    )

    def __init__(self, connection: Any, record: ConnectionPoolEntry | None = None) -> None:
        self.is_shared = False
        self.since: float | None = None
        self.received: int | None = None
        self.loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self.record = weakref.ref(record) if record is not None else None
        self._descriptor_of = _descriptor_function(connection)
        self._poller = native.poll() if native.poll is not None else None
        self._registered = -1

    def socket_state(self, connection: Any) -> SocketState:
        """Look at the connection's socket without sending or reading anything. Never raises."""
        if self._poller is None or self._descriptor_of is None:
            return SocketState.UNKNOWN
        try:
            # asked each time: a driver that has closed its socket refuses, and its number may
            # be another one's by now
            descriptor = self._descriptor_of(connection)
            if descriptor != self._registered:
                self._poller.register(descriptor, select.POLLIN | _HUNG_UP)
                self._registered = descriptor
        except Exception:  # noqa: BLE001 - each driver has its own error for a closed connection
            return SocketState.CLOSED
        ready = self._poller.poll(0)
        if not ready:
            return _NOTHING_TO_READ
        return SocketState.CLOSED if ready[0][1] & _HUNG_UP else SocketState.READABLE


_UNLIMITED = contextlib.nullcontext[Callable[[], bool]](lambda: False)  # never expires

# The ping gets the driver's connection alone, so what is known of it must be found by it. One that
# allows no weak reference is asked at every checkout.
_pooled: Known[_Pooled] = Known()


class _Liveness:
    """The check of one engine.

    All hooks are on the way of every checkout, where a microsecond is a tenth of the whole; so only
    what seldom runs is guarded, and the rest cannot fail.
    """

    def __init__(self, engine: Engine, profile: Profile) -> None:
        self._engine = engine_name(engine)
        self._dialect = engine.dialect
        self._ping: Callable[[DBAPIConnection], bool] = engine.dialect.do_ping
        driver = engine.dialect.driver
        # a connection of psycopg works in any event loop
        self._is_async = engine.dialect.is_async
        self._is_bound_to_loop = self._is_async and not driver.startswith("psycopg")
        self._counts_bytes = driver == "asyncpg"
        self._trust_idle = profile.trust_idle
        self._ping_timeout = profile.ping_timeout
        # A pooler lets a statement wait until a server is free, as a pool lets a checkout wait.
        self._pooler_timeout = max(profile.ping_timeout, profile.pool_timeout)
        self._has_pooler = profile.transaction_pooler
        self._is_gevent_judged = False
        self._has_failed = False

    def connect(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        connection = record.driver_connection
        known = _pooled.get(id(connection))
        if known is not None:  # a creator has handed it out before
            known.is_shared = True
            record.info[_POOLED] = known
            return
        pooled = _Pooled(connection, record)
        with contextlib.suppress(TypeError):
            _pooled.add(connection, pooled)
            record.info[_POOLED] = pooled
        loop = running_loop() if self._is_bound_to_loop else None
        pooled.loop = weakref.ref(loop) if loop is not None else None

    def checkin(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        pooled: _Pooled | None = record.info.get(_POOLED)
        if pooled is None:
            return
        if self._counts_bytes:
            pooled.received = bytes_received(record.driver_connection)
        pooled.since = time.monotonic()

    def checkout(
        self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        """Do what a pool that pings does, for one that does not."""
        if os.getpid() != process.pid:
            _refuse_inherited()
        pooled = record.info.get(_POOLED)
        if pooled is not None and pooled.since is None:  # it is new, or the pool has pinged it
            return
        try:
            self.do_ping(dbapi_connection)
        except self._dialect.loaded_dbapi.Error as error:
            if self._dialect.is_disconnect(error, dbapi_connection, None):
                raise InvalidatePoolError(str(error)) from error
            raise

    def do_ping(self, dbapi_connection: DBAPIConnection) -> bool:
        """Return True for a connection that is alive, and raise for all others.

        SQLAlchemy asks the listeners to "handle_error" about an error of the driver.
        """
        if os.getpid() != process.pid:
            _refuse_inherited()
        connection: Any = dbapi_connection
        if self._is_async:
            connection = self._dialect.get_driver_connection(dbapi_connection)
        pooled = _pooled.get(id(connection))
        if pooled is None:
            return self._examine(dbapi_connection, connection)
        if pooled.is_shared and socket_state(connection) is not SocketState.CLOSED:
            return True  # a ping would disturb the other threads
        since, pooled.since = pooled.since, None
        if since is None and not is_in_transaction(connection):
            # the caller that has it wants a ping, and gets the dialect's own
            return self._ping(dbapi_connection)
        if pooled.loop is not None:
            _refuse_foreign(connection, pooled)
        if (
            since is not None
            and time.monotonic() - since < self._trust_idle
            and pooled.socket_state(connection) is _NOTHING_TO_READ
            and (not self._counts_bytes or _has_read_nothing(connection, pooled))
        ):
            return True
        return self._examine(dbapi_connection, connection)

    def _examine(self, dbapi_connection: DBAPIConnection, connection: Any) -> bool:
        try:
            return self._ask(dbapi_connection, connection)
        except (self._dialect.loaded_dbapi.Error, InvalidatePoolError):
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

    def _ask(self, dbapi_connection: DBAPIConnection, connection: Any) -> bool:
        """Ping within a deadline, also where the socket is closed: listeners learn of the loss."""
        self._warn_if_gevent_is_blocked()
        started = time.monotonic()
        # then nothing has to be waited for
        is_closed = socket_state(connection) is SocketState.CLOSED
        if not is_closed and is_in_transaction(connection):
            # Several share it, or it came back without a reset. A ping would end the transaction.
            return True
        limited = _UNLIMITED if is_closed else limit(connection, self._timeout(connection))
        with contextlib.ExitStack() as block:
            try:
                expired = block.enter_context(limited)
            except (OSError, RuntimeError, ImportError):
                # no descriptor and no thread is left, or Python ends: the dialect's ping has no
                # deadline either
                expired = block.enter_context(_UNLIMITED)
            try:
                is_alive = self._ping(dbapi_connection)
            except self._dialect.loaded_dbapi.Error as error:
                if self._dialect.is_disconnect(error, dbapi_connection, None):
                    self._announce(is_closed=is_closed, is_expired=expired())
                    raise
                if not (expired() or _is_lost(error, connection)):
                    raise  # an answer, as pool_pre_ping has it; the pool replaces the connection
                is_alive = False
            except Exception:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError as well
                is_alive = False
        if not is_alive or expired():  # also between the answer and the end of the block
            how = self._announce(is_closed=is_closed, is_expired=expired())
            raise InvalidatePoolError(f"the connection was stale at checkout (seen by: {how})")
        if events.Pinged in events.subscribed_types:
            events.publish(events.Pinged(self._engine, time.monotonic() - started))
        return True

    def _timeout(self, connection: Any) -> float:
        is_queued = self._has_pooler or is_pooled(connection)
        return self._pooler_timeout if is_queued else self._ping_timeout

    def _announce(self, *, is_closed: bool, is_expired: bool) -> str:
        """Say that the connection is stale; return how this was seen."""
        how = "socket" if is_closed else "deadline" if is_expired else "ping"
        events.publish(events.StaleFound(self._engine, how))
        logger.info("%s: discarded a stale connection (seen by: %s)", self._engine, how)
        return how

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


def _has_read_nothing(asyncpg_connection: Any, pooled: _Pooled) -> bool:
    """Return whether asyncpg is known to have read nothing since the connection was returned."""
    return pooled.received is not None and pooled.received == bytes_received(asyncpg_connection)


def _is_lost(error: Exception, driver_connection: Any) -> bool:
    """Return whether a ping that SQLAlchemy takes for answered was not: we know more losses."""
    return socket_state(driver_connection) is SocketState.CLOSED or classify(error).connection_lost


def socket_state(driver_connection: Any) -> SocketState:
    """Look at the connection's socket without sending or reading anything. Never raises."""
    return _Pooled(driver_connection).socket_state(driver_connection)


def _descriptor_function(driver_connection: Any) -> Callable[[Any], int] | None:
    """Return a function that gets the socket's descriptor from such a connection.

    psycopg2 and psycopg show it. asyncpg knows by itself when the server has hung up, but only once
    its event loop has had a turn, so its socket is looked at as well.
    """
    if hasattr(driver_connection, "fileno"):
        return operator.methodcaller("fileno")
    return _asyncpg_descriptor if hasattr(driver_connection, "is_closed") else None


def _asyncpg_descriptor(connection: Any) -> int:
    descriptor = None if connection.is_closed() else descriptor_of(connection)
    if descriptor is None:
        raise OSError("the connection is closed")
    return descriptor
