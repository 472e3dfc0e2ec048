"""How long a connection lives: recycling that spares the rest of a pool, release of idle ones.

SQLAlchemy's ``pool_recycle`` replaces what is too old, at checkout only, and never closes a
connection that is merely idle.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
import weakref
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name

__all__ = ["listen"]

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

    @guarded
    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        share = random.uniform(0, profile.recycle_jitter)  # noqa: S311 - spreads load, guards nothing
        record.info[_RECYCLE_AT] = time.monotonic() + profile.pool_recycle * (1 - share)

    # unguarded, because it is on the way of every checkin; what seldom runs is not
    def checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if time.monotonic() > record.info.get(_RECYCLE_AT, float("inf")):
            retire(record)

    @guarded
    def retire(record: ConnectionPoolEntry) -> None:
        # soft: the pool closes it at its next checkout, where it would look for pool_recycle too
        record.invalidate(soft=True)

    event.listen(engine, "connect", connect)
    event.listen(engine, "checkin", checkin)


class _Idleness:
    """Whether one connection is idle, and since when.

    The lock decides between a checkout and the release that come at the same moment: whoever takes
    it first has the connection. A release closes the DBAPI connection itself and leaves the pool's
    record alone, because the record may be on its way to a caller who then finds ``released`` set.
    """

    __slots__ = ("__weakref__", "connection", "lock", "loop", "released", "since")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.released = False
        self.since: float | None = None


def _listen_release(engine: Engine, idle_release: float) -> None:
    """Close the connections of *engine* that have been idle for *idle_release* seconds."""
    releaser = _Releaser(engine, idle_release)

    @guarded
    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_IDLENESS] = releaser.track(record.driver_connection)

    @guarded
    def checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        idleness = record.info.get(_IDLENESS)
        if idleness is not None and dbapi_connection is not None:  # None: it was invalidated
            idleness.loop = asyncio.get_running_loop() if engine.dialect.is_async else None
            idleness.since = time.monotonic()
            _reaper.start()

    @guarded
    def checkout(
        dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        idleness = record.info.get(_IDLENESS)
        if idleness is None:
            return
        with idleness.lock:
            idleness.since = None
            if idleness.released:
                raise DisconnectionError("the connection was closed because nobody used it")

    event.listen(engine, "connect", connect)
    event.listen(engine, "checkin", checkin)
    event.listen(engine, "checkout", checkout)
    _reaper.add(releaser)


class _Releaser:
    """The connections of one engine, weakly held, and how long they may be idle."""

    def __init__(self, engine: Engine, idle_release: float) -> None:
        self.idle_release = idle_release
        self._engine = engine_name(engine)
        self._lock = threading.Lock()
        self._tracked: weakref.WeakSet[_Idleness] = weakref.WeakSet()

    def forget_parent(self) -> None:
        """Begin anew in a forked child: another thread may have held the lock."""
        self._lock = threading.Lock()
        self._tracked = weakref.WeakSet()

    def track(self, connection: Any) -> _Idleness:
        idleness = _Idleness(connection)
        with self._lock:
            self._tracked.add(idleness)
        return idleness

    def release_idle(self) -> None:
        with self._lock:
            tracked = list(self._tracked)
        for idleness in tracked:
            seconds = self._claim(idleness)
            if seconds is not None:
                _close(idleness)
                logger.info("%s: closed a connection idle for %.0f s", self._engine, seconds)
                events.announce(events.IdleReleased(self._engine, seconds))

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


@guarded
def _close(idleness: _Idleness) -> None:
    """Close the driver's connection without waiting for anybody."""
    connection = idleness.connection
    if idleness.loop is None:
        connection.close()
        return
    # the close() of psycopg and asyncpg would have to be awaited, and there is nobody to do so
    end = connection.pgconn.finish if hasattr(connection, "pgconn") else connection.terminate
    if not idleness.loop.is_closed():
        idleness.loop.call_soon_threadsafe(end)


class _Reaper:
    """One daemon thread for all engines of the process, started by the first idle connection."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._releasers: weakref.WeakSet[_Releaser] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, releaser: _Releaser) -> None:
        with self._changed:
            self._releasers.add(releaser)
            self._changed.notify()  # it may be in more of a hurry than the others

    def start(self) -> None:
        if self._thread is None:
            with self._changed:
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._run, name="sa_railway-reaper", daemon=True
                    )
                    thread.start()
                    self._thread = thread  # now that it runs: the next one tries again otherwise

    def _run(self) -> None:
        while True:
            with self._changed:
                releasers = list(self._releasers)
                if not releasers:
                    self._thread = None
                    return
            for releaser in releasers:
                releaser.release_idle()
            del releaser, releasers  # an engine that is gone must not live on in a sleeping thread
            with self._changed:
                # a quarter: an idle connection is closed at most that much later than promised
                self._changed.wait(min((r.idle_release for r in self._releasers), default=0) / 4)

    def forget_parent(self) -> None:
        """Begin anew in a forked child: the thread exists in the parent only."""
        self._changed = threading.Condition()
        self._thread = None
        for releaser in self._releasers:
            releaser.forget_parent()


_reaper = _Reaper()

if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_reaper.forget_parent)
