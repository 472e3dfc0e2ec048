"""A forked child can never touch its parent's connections.

A child inherits the descriptors of its parent's connections, and whatever it does with them (close,
roll back, be collected as garbage, exit) is sent to the server in the parent's name. So in the
child each of these descriptors is first replaced by a socket whose other end is closed, and only
then are the pools replaced. SQLAlchemy's ``dispose(close=False)`` alone leaves the connections that
were checked out at the fork, and asyncpg's, which the garbage collector closes.
"""

from __future__ import annotations

import os
import socket
import stat
import weakref
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, Pool, SingletonThreadPool, StaticPool

from sa_railway.engine.guard import guarded

__all__ = ["after_fork_in_child", "engines", "listen"]


# the device and inode of a socket, which no other socket of this boot has
Identity = tuple[int, int]

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_sockets: weakref.WeakKeyDictionary[Any, Identity] = weakref.WeakKeyDictionary()
_inherited_pools: list[Pool] = []
_pid = os.getpid()


def listen(engine: Engine) -> None:
    """Protect the connections of *engine* from the children of this process."""
    _engines.add(engine)
    event.listen(engine, "connect", _remember_socket)


def engines() -> list[Engine]:
    """Return the living engines of this process that carry the plugin.

    An ``AsyncEngine`` is represented by its ``sync_engine``.
    """
    return list(_engines)


def after_fork_in_child() -> None:
    """Cut the child off from its parent's connections, and give every engine a new pool.

    Runs by itself after every ``os.fork()`` of Python, and may be called as often as one likes:
    only the first call in a process does anything. In the parent it does nothing.
    """
    global _pid
    if _pid == os.getpid():
        return
    _pid = os.getpid()
    _cut_off(dict(_sockets))
    _sockets.clear()
    for engine in engines():
        _renew_pool(engine)


@guarded
def _remember_socket(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection = record.driver_connection
    descriptor = _descriptor(connection)
    if connection is not None and descriptor is not None:
        identity = _identity(descriptor)
        if identity is not None:
            _sockets[connection] = identity


def _descriptor(driver_connection: Any) -> int | None:
    """Ask the driver for the descriptor of its socket; None if it has none (any more)."""
    if hasattr(driver_connection, "fileno"):
        try:
            return int(driver_connection.fileno())
        except Exception:  # noqa: BLE001 - each driver has its own error for a connection it has closed
            return None
    # asyncpg shows its socket nowhere in public. tests/chaos/test_fork.py fails when this moves.
    transport = getattr(driver_connection, "_transport", None)
    peer = transport.get_extra_info("socket") if transport is not None else None
    return peer.fileno() if peer is not None else None


def _identity(descriptor: int) -> Identity | None:
    """Return what tells this socket from all others, or None if it is not an open socket."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _cut_off(sockets: dict[Any, Identity]) -> None:
    """Replace the descriptors of the parent's connections by the end of a broken socket pair."""
    if not sockets:
        return
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        for connection, identity in sockets.items():
            descriptor = _descriptor(connection)
            # A driver names the number that it was given. Whoever has closed descriptors behind its
            # back, as daemons do, may have opened something else under that number since.
            if descriptor is not None and _identity(descriptor) == identity:
                os.dup2(ours.fileno(), descriptor, inheritable=False)


@guarded
def _renew_pool(engine: Engine) -> None:
    """Give the child a pool of its own; the old one is dropped, and its locks with it."""
    if engine.dialect.name == "sqlite":
        if isinstance(engine.pool, SingletonThreadPool | StaticPool):
            return  # an in-memory database: the child's copy of it is its own, and all that it has
        # "Do not open an SQLite database connection, then fork(2), then try to use that connection
        # in the child" (sqlite.org/howtocorrupt.html), nor close it: it would release locks.
        _inherited_pools.append(engine.pool)
    engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=after_fork_in_child)
