"""Is this pooled connection still alive? Asked at checkout, most often without a round trip.

A connection that was just made is not asked. Otherwise its socket is looked at, which costs about a
microsecond: a server that closed the connection has left its FIN there. A socket that shows nothing
is trusted if the connection was used a moment ago; else, or if there is something to read that may
as well be a harmless notification, the server must answer a ping within a deadline. A dead
connection invalidates the whole pool, because what killed it mostly killed the others too.
"""

from __future__ import annotations

import logging
import select
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name
from sa_railway.engine.watchdog import limit

__all__ = ["Look", "listen", "look"]

logger = logging.getLogger("sa_railway.engine.liveness")

# in the record's info, which SQLAlchemy clears when it reconnects: no entry means a new connection
_IDLE_SINCE = "railway_idle_since"
_POLLER = "railway_poller"


class Look(Enum):
    """What a socket tells without a round trip."""

    QUIET = "quiet"  # nothing has arrived since the last answer
    READABLE = "readable"  # a notification, a notice, or the server's farewell
    CLOSED = "closed"
    BLIND = "blind"  # the driver shows no socket


def listen(engine: Engine, profile: Profile) -> None:
    """Check the connections of *engine* at checkout, unless profile or backend rule it out."""
    if not profile.pre_ping or engine.dialect.name == "sqlite":
        return
    liveness = _Liveness(engine, profile)
    event.listen(engine, "checkin", _checkin)
    event.listen(engine, "checkout", liveness.checkout)


# Both hooks are on the way of every checkout, where a microsecond is a tenth of the whole; so only
# what seldom runs is guarded, and the rest cannot fail.
def _checkin(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_IDLE_SINCE] = time.monotonic()


class _Liveness:
    """The check of one engine."""

    def __init__(self, engine: Engine, profile: Profile) -> None:
        self._engine = engine_name(engine)
        self._dialect = engine.dialect
        self._trust_idle = profile.trust_idle
        self._ping_timeout = profile.ping_timeout
        self._is_gevent_judged = False
        self._examine = guarded(self._examine)  # type: ignore[method-assign]

    def checkout(
        self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        info = record.info
        if _IDLE_SINCE not in info:
            return
        if time.monotonic() - info[_IDLE_SINCE] >= self._trust_idle or not _is_quiet(info, record):
            self._examine(dbapi_connection, record)

    def _examine(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        is_closed = look(record.driver_connection) is Look.CLOSED
        how = "socket" if is_closed else self._ping(dbapi_connection, record)
        if how is not None:
            events.announce(events.StaleFound(self._engine, how))
            logger.info("%s: a pooled connection was dead (seen by: %s)", self._engine, how)
            raise InvalidatePoolError(f"the connection was dead at checkout (seen by: {how})")

    def _ping(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> str | None:
        """Return how the connection was found to be dead, or None: the server has answered."""
        self._warn_if_gevent_is_blocked()
        started = time.monotonic()
        with limit(record.driver_connection, self._ping_timeout) as expired:
            try:
                self._dialect.do_ping(dbapi_connection)
            except Exception:  # noqa: BLE001 - drivers raise OSError, TimeoutError and their own
                return "deadline" if expired() else "ping"
        if expired():  # between the answer and the end of the block
            return "deadline"
        if events.Pinged in events.heard:
            events.announce(events.Pinged(self._engine, time.monotonic() - started))
        return None

    def _warn_if_gevent_is_blocked(self) -> None:
        """Say once that a blocked psycopg2 blocks the gevent hub, the watchdog included."""
        monkey = sys.modules.get("gevent.monkey")
        if monkey is None or self._is_gevent_judged:
            return
        self._is_gevent_judged = True
        if self._dialect.driver != "psycopg2" or not monkey.is_module_patched("threading"):
            return
        if self._dialect.loaded_dbapi.extensions.get_wait_callback() is None:
            logger.warning(
                "gevent is in use, but psycopg2 does not cooperate with it: a query blocks all "
                "greenlets, and no ping can be given a deadline. Call "
                "psycogreen.gevent.patch_psycopg(), or use the psycopg driver."
            )


_HUNG_UP = 0
if hasattr(select, "poll"):  # Windows has none: every check is a ping there
    # POLLRDHUP, on Linux, shows the peer's FIN even behind unread data, which TLS would hide
    _HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


def _is_quiet(info: dict[Any, Any], record: ConnectionPoolEntry) -> bool:
    """Do what ``look()`` does with what was kept of the last look, and say whether it is QUIET."""
    poll: Callable[[], Look] | None = info.get(_POLLER)
    if poll is None:
        poll = info[_POLLER] = _poller(record.driver_connection)
    return poll() is Look.QUIET


def look(driver_connection: Any) -> Look:
    """Look at the connection's socket without sending or reading anything. Never raises."""
    return _poller(driver_connection)()


def _poller(driver_connection: Any) -> Callable[[], Look]:
    """Return a function that looks at this connection, again and again.

    psycopg2 and psycopg show their descriptor. asyncpg does not, but it reads its socket whenever
    the event loop runs, so it knows by itself when the server has hung up.
    """
    if hasattr(driver_connection, "fileno"):
        return _socket_poller(driver_connection.fileno) if _HUNG_UP else lambda: Look.BLIND
    if hasattr(driver_connection, "is_closed"):
        is_closed = driver_connection.is_closed
        return lambda: Look.CLOSED if is_closed() else Look.QUIET
    return lambda: Look.BLIND


def _socket_poller(fileno: Callable[[], int]) -> Callable[[], Look]:
    poller = select.poll()
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
