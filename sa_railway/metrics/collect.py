"""Count what an engine and its connections do.

This is on the way of every checkout and every query, so it is written for speed: three quarters of
its time would go into the usual comforts. SQLAlchemy's engine events would cost twenty microseconds
by being used at all, because they are joined again for every ``Connection``; so ``connect()`` of
the pool and ``do_execute()`` of the dialect are surrounded instead, and everything else is heard
from events of the pool and from our own.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, IntegrityError, InvalidatePoolError
from sqlalchemy.pool import (
    ConnectionPoolEntry,
    Pool,
    PoolProxiedConnection,
    SingletonThreadPool,
    StaticPool,
)

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.hooks import never_raises
from sa_railway.events import CheckedOut, subscribed_types
from sa_railway.metrics.counters import Counters, counters_for, counters_named, counters_of
from sa_railway.metrics.definitions import BOUNDS, FAILURES, OUTCOMES, index_of

_CHECKOUTS = index_of("checkouts")
_CONNECT = index_of("connect_sum")
_FAILED_CHECKOUTS = index_of("failed_checkouts")
_HOLD = index_of("hold_sum")
_OPEN = index_of("open")
_POOL_RESETS = index_of("pool_resets")
_QUERIES = index_of("queries")
_RECONNECTIONS = index_of("reconnections")
_ROLLBACKS = index_of("rollbacks")
_WAIT = index_of("checkout_wait_sum")

_NO_TIME = BOUNDS[0]  # seconds; a checkout that takes no longer has not waited for anything

_PLACE = "railway_place"


def listen(engine: Engine, profile: Profile) -> None:
    """Count for *engine*; to be attached after what judges its errors, and once only."""
    if counters_of(engine) is not None:
        return
    counters = counters_for(engine)
    counters.add(engine, profile.health_window)
    _surround_dialect(engine.dialect, counters)
    _surround_pool(engine.pool, counters)
    counting = _Counting(profile, counters)
    event.listen(engine, "handle_error", never_raises(counting.handle_error))
    for name in ("connect", "close", "detach", "invalidate"):
        event.listen(engine, name, never_raises(getattr(counting, name)))
    event.listen(engine, "checkin", _checkin(counters))


# --- what happens at every checkout and query ---


def _surround_dialect(dialect: Any, counters: Counters) -> None:
    """Count the statements that *dialect* executes, but not those by which it gets ready."""
    execute, executemany = dialect.do_execute, dialect.do_executemany
    execute_no_params, initialize = dialect.do_execute_no_params, dialect.initialize

    # with names for the arguments, because *args takes thrice the time
    def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        counters.values[_QUERIES] += 1.0
        execute(cursor, statement, parameters, context)

    def do_executemany(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        counters.values[_QUERIES] += 1.0
        executemany(cursor, statement, parameters, context)

    def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> None:
        counters.values[_QUERIES] += 1.0
        execute_no_params(cursor, statement, context)

    def uncounted(connection: Connection) -> None:
        before = counters.values[_QUERIES]
        try:
            initialize(connection)
        finally:
            # nothing else executes: every other connect waits for the first to get ready
            counters.values[_QUERIES] = before

    dialect.do_execute, dialect.do_executemany = do_execute, do_executemany
    dialect.do_execute_no_params, dialect.initialize = do_execute_no_params, uncounted


def _surround_pool(pool: Any, counters: Counters) -> Pool:
    """Measure the checkouts of *pool*, and of every pool that is made after its example."""
    connect, recreate = pool.connect, pool.recreate
    out, monotonic = counters.out, time.monotonic
    # an in-memory database gives a thread the connection that it has out already
    is_shared = isinstance(pool, SingletonThreadPool | StaticPool)

    def measured() -> PoolProxiedConnection:
        started = monotonic()
        if started >= counters.next_sample:
            counters.sample(started)
        values = counters.values
        values[_CHECKOUTS] += 1.0
        try:
            proxied: PoolProxiedConnection = connect()
        except BaseException:
            counters.last = monotonic()
            values[_FAILED_CHECKOUTS] += 1.0
            raise
        if is_shared and id(proxied.dbapi_connection) in out:
            values[_CHECKOUTS] -= 1.0
            return proxied
        now = monotonic()
        out[id(proxied.dbapi_connection)] = now
        seconds = now - started
        if seconds <= _NO_TIME:
            values[_WAIT + 1] += 1.0
        else:
            values[_WAIT] += seconds
            values[_WAIT + 1 + bisect_left(BOUNDS, seconds)] += 1.0
        if CheckedOut in subscribed_types:
            events.publish(CheckedOut(counters.name, seconds))
        return proxied

    pool.connect = measured
    pool.recreate = lambda: _surround_pool(recreate(), counters)
    return pool  # type: ignore[no-any-return]


def _checkin(counters: Counters) -> Callable[[Any, Any], None]:
    """Return what is called when a connection comes back, or can no longer do so."""
    pop, monotonic = counters.out.pop, time.monotonic

    def checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        since = pop(id(dbapi_connection), None)
        if since is not None:
            counters.last = now = monotonic()
            seconds = now - since
            values = counters.values
            values[_HOLD] += seconds
            values[_HOLD + 1 + (0 if seconds <= _NO_TIME else bisect_left(BOUNDS, seconds))] += 1.0

    return checkin


# --- what happens less often ---


class _Place:
    """A place in the pool, which one connection after the other may fill.

    Attributes:
        connected_at: when its connection was made.
        is_open: whether that is open.
        is_lost: whether that was lost, and has not been replaced yet.
    """

    __slots__ = ("connected_at", "is_lost", "is_open")

    def __init__(self) -> None:
        self.connected_at = 0.0
        self.is_open = False
        self.is_lost = False


class _Counting:
    """The hooks of one engine."""

    def __init__(self, profile: Profile, counters: Counters) -> None:
        self._counters = counters
        self._profile = profile
        self._checkin = _checkin(counters)
        self._reset_at = 0.0
        self._failed: weakref.WeakSet[Any] = weakref.WeakSet()  # transactions

    def connect(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        place = _place(record)
        counters = self._counters
        if place.is_lost or 0 < place.connected_at < self._reset_at:
            counters.values[_RECONNECTIONS] += 1
        counters.values[_OPEN] += 1
        place.is_lost, place.is_open = False, True
        place.connected_at = counters.last = time.monotonic()

    def close(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        self._checkin(dbapi_connection, record)
        place = _place(record)
        # a forked child drops connections that it has never opened
        if place.is_open and place.connected_at >= self._counters.began:
            self._counters.values[_OPEN] -= 1
        place.is_open = False

    detach = close  # a connection that leaves the pool is none of its business any more

    def invalidate(
        self,
        dbapi_connection: DBAPIConnection,
        record: ConnectionPoolEntry,
        error: BaseException | None,
    ) -> None:
        place = _place(record)
        # a plain DisconnectionError is routine: the connection had been idle for too long
        place.is_lost = isinstance(error, Exception) and type(error) is not DisconnectionError
        if isinstance(error, InvalidatePoolError):
            self._reset(place)
        events.publish(events.Invalidated(self._counters.name, error))

    def _reset(self, place: _Place) -> None:
        """Count that the pool is given up, once for all of its connections."""
        if place.connected_at > self._reset_at:
            self._reset_at = time.monotonic()
            self._counters.values[_POOL_RESETS] += 1

    def handle_error(self, context: ExceptionContext) -> None:
        connection = context.connection
        # no connection: a ping, or a connect, which makes a failed checkout
        if connection is None or connection.closed or connection.invalidated:
            return
        self._counters.last = time.monotonic()
        if context.is_disconnect and context.invalidate_pool_on_disconnect:
            self._reset(_place(connection.connection))
        if context.execution_context is not None:
            self._count_failure(context)
        self._count_rollback(connection)

    def _count_failure(self, context: ExceptionContext) -> None:
        """Count a statement that failed; a violated constraint is an answer and no failure."""
        if not isinstance(context.sqlalchemy_exception, IntegrityError):
            fault = self._profile.classify(context.original_exception)
            self._counters.values[index_of(FAILURES[fault.kind])] += 1

    def _count_rollback(self, connection: Connection) -> None:
        """Count the transaction that has failed, which can only be rolled back, once."""
        transaction = connection.get_transaction()
        dbapi_connection = connection.connection.dbapi_connection
        # SQLAlchemy speaks of a transaction in autocommit, too
        commits_by_itself = getattr(dbapi_connection, "autocommit", False) is True
        if transaction and transaction not in self._failed and not commits_by_itself:
            self._failed.add(transaction)
            self._counters.values[_ROLLBACKS] += 1


def _place(pooled: ConnectionPoolEntry | PoolProxiedConnection) -> _Place:
    """Return what is kept with *pooled*; it stays when the connection is replaced."""
    info = pooled.record_info
    place: _Place = _Place() if info is None else info.setdefault(_PLACE, _Place())
    return place


# --- what others announce ---

_COUNTED: dict[type[events.Event], Callable[[Any], str | None]] = {
    events.BreakerOpened: lambda happened: "breaker_openings",
    events.CommitResolved: lambda happened: OUTCOMES[happened.outcome],
    events.Leaked: lambda happened: "leaks",
    events.LeftoversRolledBack: lambda happened: None if happened.failed else "rollbacks",
    events.Replayed: lambda happened: "replays",
    events.Retried: lambda happened: "retries",
    events.StaleFound: lambda happened: "stale_connections",
}


def _count(happened: events.Event) -> None:
    counters = counters_named(happened.engine)
    if counters is None:
        return
    counters.last = time.monotonic()
    if isinstance(happened, events.Connected):
        values = counters.values
        values[_CONNECT] += happened.seconds
        values[_CONNECT + 1 + bisect_left(BOUNDS, happened.seconds)] += 1
    elif name := _COUNTED[type(happened)](happened):
        counters.values[index_of(name)] += 1


events.subscribe(_count, events.Connected, *_COUNTED)
