"""What a driver's connection shows of itself, each driver in its own way."""

from __future__ import annotations

# the C class: gevent and eventlet replace the one in socket by one for their own threads
import _socket
import contextlib
import inspect
import os
import stat
import sys
from typing import Any

Identity = tuple[int, int]
"""The device and inode of a socket, which no other socket of this boot has."""

# tcpi_bytes_received in Linux's struct tcp_info, which only ever grows at its end; since Linux 4.1.
_BYTES_RECEIVED = slice(128, 136)
_TCP_INFO = (_socket.IPPROTO_TCP, getattr(_socket, "TCP_INFO", 11), 136)

_IDLE = 0  # libpq's PQTRANS_IDLE
_WITHIN = (1, 2)  # PQTRANS_ACTIVE, PQTRANS_INTRANS

# Linux gives no process a higher id, and no other system does.
_MAX_PID = 2**22


def descriptor_of(driver_connection: Any) -> int | None:
    """Ask the driver for the descriptor of its socket; None if it has none (any more)."""
    if hasattr(driver_connection, "fileno"):
        try:
            return int(driver_connection.fileno())
        except Exception:  # noqa: BLE001 - each driver has its own error for a connection it has closed
            return None
    peer = _socket_of(driver_connection)
    return peer.fileno() if peer is not None else None


def _socket_of(asyncpg_connection: Any) -> Any:
    # asyncpg shows its socket nowhere in public. tests/chaos/test_fork.py fails when this moves.
    transport = getattr(asyncpg_connection, "_transport", None)
    return transport.get_extra_info("socket") if transport is not None else None


def bytes_received(asyncpg_connection: Any) -> int | None:
    """Return how many bytes the server has sent so far; None if the system keeps no count.

    asyncpg reads what arrives on an idle connection, the server's farewell included, and shows
    nothing of it until the end of the stream has come, too.
    """
    if sys.platform != "linux":
        return None
    try:
        found = _socket_of(asyncpg_connection).getsockopt(*_TCP_INFO)
        count = found[_BYTES_RECEIVED]
    except (AttributeError, OSError, TypeError):  # closed; a Unix socket; no socket at all
        return None
    return int.from_bytes(count, sys.byteorder) if len(count) == 8 else None


def identity(descriptor: int) -> Identity | None:
    """Return what tells this socket from all others, or None if it is not an open socket."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def shut_down(descriptor: int) -> None:
    """End both ways of a socket for everything that holds it; the descriptor stays open."""
    # it has been closed, or is no socket any more; or the peer has closed it in this very moment
    with contextlib.suppress(OSError), duplicate(descriptor) as peer:
        peer.shutdown(_socket.SHUT_RDWR)


def duplicate(descriptor: int) -> contextlib.closing[_socket.socket]:
    """Return the socket with this *descriptor*, to be closed without an end of the connection."""
    return contextlib.closing(_socket.socket(fileno=os.dup(descriptor)))


def is_asyncio(driver_connection: Any) -> bool:
    """Return whether the connection works in an event loop: psycopg's and asyncpg's for asyncio."""
    return inspect.iscoroutinefunction(getattr(driver_connection, "close", None))


def is_idle(driver_connection: Any) -> bool:
    """Return whether it is known to be in no transaction, as the server last said."""
    if hasattr(driver_connection, "get_transaction_status"):  # psycopg2
        return bool(driver_connection.get_transaction_status() == _IDLE)
    if hasattr(driver_connection, "pgconn"):  # psycopg
        return bool(driver_connection.pgconn.transaction_status == _IDLE)
    if not hasattr(driver_connection, "is_in_transaction"):
        return False  # a detached one has None, and other drivers say nothing
    # asyncpg, which has forgotten it of one that is closed
    return not driver_connection.is_closed() and not driver_connection.is_in_transaction()


def is_in_transaction(driver_connection: Any) -> bool:
    """Return whether it is known to be in a transaction that has not failed, with any driver."""
    if hasattr(driver_connection, "get_transaction_status"):  # psycopg2
        return driver_connection.get_transaction_status() in _WITHIN
    if hasattr(driver_connection, "pgconn"):  # psycopg
        return driver_connection.pgconn.transaction_status in _WITHIN
    if hasattr(driver_connection, "is_in_transaction"):  # asyncpg
        return not driver_connection.is_closed() and bool(driver_connection.is_in_transaction())
    return bool(getattr(driver_connection, "in_transaction", False))  # sqlite3


def is_pooled(driver_connection: Any) -> bool:
    """Return whether a pooler is known to be in between: it tells its clients an invented pid."""
    if hasattr(driver_connection, "get_server_pid"):  # asyncpg
        pid = driver_connection.get_server_pid()
    else:
        pid = getattr(getattr(driver_connection, "info", None), "backend_pid", 1)
    return isinstance(pid, int) and not 0 < pid <= _MAX_PID
