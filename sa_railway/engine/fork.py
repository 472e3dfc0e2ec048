"""A forked child can never touch its parent's connections.

A child inherits the descriptors of its parent's connections, and whatever it does with them (close,
roll back, be collected as garbage, exit) is sent to the server in the parent's name. So in the
child each of these descriptors is first replaced by a socket whose other end is closed, and only
then are the pools replaced. SQLAlchemy's ``dispose(close=False)`` alone leaves the connections that
were checked out at the fork, and asyncpg's, which the garbage collector closes.

A child that leaves the block of a connection which was checked out has nothing to end there: its
rollback and its close do nothing, and everything else is refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, Pool, SingletonThreadPool, StaticPool

from sa_railway.engine import process
from sa_railway.engine.driver import Identity, descriptor_of, identity
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.known import Known


class _Opened(NamedTuple):
    """What is known of an open connection of the driver's."""

    socket: Identity
    engine: weakref.ref[Engine]
    record: weakref.ref[ConnectionPoolEntry]

    def is_idle(self, connection: Any) -> bool:
        """Return whether it is in the pool. Takes no lock: a thread of the parent may have it."""
        record = self.record()
        return record is not None and record.driver_connection is connection and not record.in_use


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_opened: Known[_Opened] = Known()
_inherited: Known[_Opened] = Known()
_inherited_pools: list[Pool] = []


def listen(engine: Engine) -> None:
    """Protect the connections of *engine* from the children of this process."""
    _engines.add(engine)
    owner = weakref.ref(engine)

    @never_raises
    def remember(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        process.renew()
        connection = record.driver_connection
        descriptor = descriptor_of(connection)
        found = identity(descriptor) if descriptor is not None else None
        if connection is not None and found is not None:
            with contextlib.suppress(TypeError):  # it allows no weak reference to itself
                _opened.add(connection, _Opened(found, owner, weakref.ref(record)))

    event.listen(engine, "connect", remember)


def engines() -> list[Engine]:
    """Return the living engines of this process that carry the plugin.

    An ``AsyncEngine`` is represented by its ``sync_engine``.
    """
    return list(_engines)


def after_fork_in_child() -> None:
    """Cut the child off from its parent's connections, and give every engine a new pool.

    Runs by itself after every ``os.fork()`` of Python and at a checkout, and may be called as often
    as one likes: only the first call in a process does anything. In the parent it does nothing.
    """
    process.renew()


def _renew() -> None:
    """Run by ``process.renew()`` in a child."""
    opened = list(_opened.living())
    _opened.clear()
    _cut_off(opened)
    in_use = [(connection, one) for connection, one in opened if not one.is_idle(connection)]
    for connection, one in in_use:
        _inherited.add(connection, one)
        record = one.record()
        if record is not None:
            # At its return nothing is to be set back on it, and listeners to "checkin" get None.
            record.dbapi_connection = None  # type: ignore[misc]
    for engine in engines():
        # nothing is replaced in the workers of a server that has just loaded the application
        if any(one.engine() is engine for _, one in in_use):
            _end_in_silence(engine)
        _renew_pool(engine, has_sockets=any(one.engine() is engine for _, one in opened))


@never_raises
def _end_in_silence(engine: Engine) -> None:
    """Roll back nothing that the parent has begun; the blocks that the child leaves just end."""
    dialect: Any = engine.dialect

    def unless_inherited(end: Callable[..., None]) -> Callable[..., None]:
        def end_own(connection: Any, *args: Any, **kwargs: Any) -> None:
            proxied = connection.connection if isinstance(connection, Connection) else connection
            # one that is detached names its DBAPI connection only
            dbapi_connection = getattr(proxied, "dbapi_connection", proxied)
            if id(dialect.get_driver_connection(dbapi_connection)) not in _inherited:
                end(connection, *args, **kwargs)

        return end_own

    for name in ("do_rollback", "do_rollback_to_savepoint", "do_rollback_twophase"):
        setattr(dialect, name, unless_inherited(getattr(dialect, name)))


@never_raises
def _cut_off(opened: list[tuple[Any, _Opened]]) -> None:
    """Replace the descriptors of the parent's connections by the end of a broken socket pair."""
    if not opened:
        return
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        for connection, one in opened:
            descriptor = descriptor_of(connection)
            # A driver names the number that it was given. A program that has closed descriptors
            # behind its back, as daemons do, may have opened something else under it since.
            if descriptor is not None and identity(descriptor) == one.socket:
                os.dup2(ours.fileno(), descriptor, inheritable=False)


@never_raises
def _renew_pool(engine: Engine, *, has_sockets: bool) -> None:
    """Give the child a new pool; the old one is dropped, and its locks with it."""
    if isinstance(engine.pool, SingletonThreadPool | StaticPool) and not has_sockets:
        return  # a database in memory: the child's copy of it is its own, and all that it has
    if engine.dialect.name == "sqlite":
        # "Do not open an SQLite database connection, then fork(2), then try to use that connection
        # in the child" (sqlite.org/howtocorrupt.html), nor close it: it would release locks.
        _inherited_pools.append(engine.pool)
    # What dispose(close=False) does, but for the event engine_disposed: without the plugin a child
    # fires none, and a listener may end there what the parent still needs.
    engine.pool = engine.pool.recreate()


process.at_fork(_renew)
