"""How long a connection lives: recycling that spares the rest of a pool, release of idle ones.

SQLAlchemy's ``pool_recycle`` replaces what is too old, at checkout only, and never closes a
connection that is merely idle.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import weakref
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.native import Lock
from sa_railway.engine.rounds import rounds
from sa_railway.engine.state import engine_name

logger = logging.getLogger("sa_railway.engine.lifetime")

_RECYCLE_AT = "railway_recycle_at"
_IDLENESS = "railway_idleness"


def listen(engine: Engine, profile: Profile) -> None:
    """Attach jittered recycling and, if the profile asks for it, release of idle connections."""
    if engine.dialect.name == "sqlite":
        return
    if profile.recycle_jitter > 0:
        _listen_recycling(engine, profile)
    if profile.idle_release is not None:
        _listen_release(engine, profile.idle_release)


def _listen_recycling(engine: Engine, profile: Profile) -> None:
    """Recycle each connection up to a share of ``pool_recycle`` earlier than the next one."""

    @never_raises
    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        share = random.uniform(0, profile.recycle_jitter)  # noqa: S311 - spreads load, guards nothing
        record.info[_RECYCLE_AT] = time.monotonic() + profile.pool_recycle * (1 - share)

    # unguarded, because it is on the way of every checkin; what seldom runs is not
    def checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if time.monotonic() > record.info.get(_RECYCLE_AT, float("inf")):
            retire(record)

    @never_raises
    def retire(record: ConnectionPoolEntry) -> None:
        # soft: the pool closes it at its next checkout, where it would look for pool_recycle too
        record.invalidate(soft=True)

    event.listen(engine, "connect", connect)
    event.listen(engine, "checkin", checkin)


class _Idleness:
    """Whether one connection is idle, and since when.

    The lock decides between a checkout and a release that come at the same moment: the first to
    take it has the connection. A release closes the DBAPI connection itself and leaves the pool's
    record alone, but for the note that the pool must replace it: the record may be on its way to a
    caller that then finds ``released`` set.
    """

    __slots__ = ("__weakref__", "connection", "lock", "loop", "record", "released", "since")

    def __init__(self, record: ConnectionPoolEntry) -> None:
        self.connection: Any = record.driver_connection
        self.record = weakref.ref(record)
        self.lock = Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.released = False
        self.since: float | None = None


def _listen_release(engine: Engine, idle_release: float) -> None:
    """Close the connections of *engine* that have been idle for *idle_release* seconds."""
    releaser = _Releaser(engine, idle_release)

    @never_raises
    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_IDLENESS] = releaser.track(record)

    @never_raises
    def checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        idleness = record.info.get(_IDLENESS)
        if idleness is not None and dbapi_connection is not None:  # None: it was invalidated
            idleness.loop = asyncio.get_running_loop() if engine.dialect.is_async else None
            idleness.since = time.monotonic()
            rounds.wake()

    @never_raises
    def checkout(
        dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        idleness = record.info.get(_IDLENESS)
        if idleness is None:
            return
        with idleness.lock:
            idleness.since = None
            if idleness.released:
                raise DisconnectionError("the connection was closed after it had been idle")

    event.listen(engine, "connect", connect)
    event.listen(engine, "checkin", checkin)
    event.listen(engine, "checkout", checkout)
    rounds.add(releaser)


class _Releaser:
    """The connections of one engine, weakly held, and how long they may be idle."""

    def __init__(self, engine: Engine, idle_release: float) -> None:
        self.idle_release = idle_release
        # a quarter: an idle connection is closed at most that much later than promised
        self.period = idle_release / 4
        self._engine = engine_name(engine)
        self._lock = Lock()
        self._tracked: weakref.WeakSet[_Idleness] = weakref.WeakSet()

    def forget_parent(self) -> None:
        """Begin afresh in a forked child: another thread may have held the lock."""
        self._lock = Lock()
        self._tracked = weakref.WeakSet()

    def track(self, record: ConnectionPoolEntry) -> _Idleness:
        idleness = _Idleness(record)
        with self._lock:
            self._tracked.add(idleness)
        return idleness

    @never_raises
    def look(self) -> None:
        """Release those that have been idle for too long."""
        with self._lock:
            tracked = list(self._tracked)
        for idleness in tracked:
            seconds = self._claim(idleness)
            if seconds is not None:
                _close(idleness)
                logger.info("%s: closed a connection idle for %.0f s", self._engine, seconds)
                events.publish(events.IdleReleased(self._engine, seconds))

    def _claim(self, idleness: _Idleness) -> float | None:
        """Take the connection if it has been idle for too long; return for how long."""
        with idleness.lock:
            if idleness.since is None or idleness.released:
                return None
            seconds = time.monotonic() - idleness.since
            if seconds < self.idle_release:
                return None
            idleness.released = True
            return seconds


@never_raises
def _close(idleness: _Idleness) -> None:
    """Close the driver's connection without waiting."""
    record, connection = idleness.record(), idleness.connection
    if record is not None:  # so that the pool does not take it for one that the server has closed
        record.invalidate(soft=True)
    if idleness.loop is None:
        connection.close()
        return
    # the close() of psycopg and asyncpg would have to be awaited, and nothing here could do so
    end = connection.pgconn.finish if hasattr(connection, "pgconn") else connection.terminate
    if not idleness.loop.is_closed():
        idleness.loop.call_soon_threadsafe(end)
