"""TCP keepalives and a limit for unacknowledged data on the sockets of asyncpg.

libpq sets both from parameters of the connection. asyncpg has no such parameters and keeps the
system's settings, by which a call waits a quarter of an hour for a peer that is gone, or longer.
"""

from __future__ import annotations

# the C class, which gevent and eventlet leave alone, as in sa_railway.engine.driver
import _socket
import math
from collections.abc import Iterator

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from sa_railway.config.profile import Profile
from sa_railway.engine.driver import descriptor_of, duplicate
from sa_railway.engine.hooks import never_raises


def listen(engine: Engine, profile: Profile) -> None:
    """Set the profile's options on every new connection of *engine*, if asyncpg makes them."""
    if engine.dialect.driver != "asyncpg":
        return
    options = list(_options(profile))

    @never_raises
    def connect(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        descriptor = descriptor_of(record.driver_connection)
        if descriptor is None:
            return
        with duplicate(descriptor) as peer:
            if peer.family in (_socket.AF_INET, _socket.AF_INET6):
                for level, option, value in options:
                    peer.setsockopt(level, option, value)

    event.listen(engine, "connect", connect)


def _options(profile: Profile) -> Iterator[tuple[int, int, int]]:
    """Yield what the system has of the options, as arguments of ``setsockopt()``."""
    named = {}
    if profile.keepalives:
        yield _socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1
        named = {
            "TCP_KEEPIDLE": profile.keepalives_idle,
            "TCP_KEEPINTVL": profile.keepalives_interval,
            "TCP_KEEPCNT": profile.keepalives_count,
        }
    if profile.tcp_user_timeout:
        named["TCP_USER_TIMEOUT"] = math.ceil(profile.tcp_user_timeout * 1000)
    for name, value in named.items():
        if hasattr(_socket, name):  # each system has some of them
            yield _socket.IPPROTO_TCP, getattr(_socket, name), value
