"""What counts as a disconnect, beyond what SQLAlchemy recognises by itself.

SQLAlchemy keeps a connection in the pool unless its dialect calls the error a disconnect. The
dialects do not know a server that became a standby (25006), a protocol that lost its
synchronisation, or the bare ``OSError`` of asyncpg: connections that would never work again. And
some go by texts, which may be about another connection, such as that of a dblink.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, QueuePool
from sqlalchemy.util import queue

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.state import engine_name
from sa_railway.exc import RailwayError
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.origin import is_database_error, severity_of

logger = logging.getLogger("sa_railway.engine.disconnect")

_MADE_AT = "railway_made_at"

# How long a server that refuses to write is stayed with once a new connection has said the same.
# After that it is left again: a failover may be slow to show the new primary under the old name.
_STAY = 30.0


def listen(engine: Engine, profile: Profile) -> None:
    """Judge the errors of *engine*; ``profile.fault_kinds`` overrules the judgement either way."""
    judge = _Judge(engine, profile.fault_kinds)
    event.listen(engine, "connect", judge.connect)
    event.listen(engine, "handle_error", judge.handle_error)
    event.listen(engine, "invalidate", judge.invalidate)


class _Judge:
    """The judgement on one engine's errors, and what becomes of a pool that is given up.

    Safe from any thread: a race at worst replaces a connection more.
    """

    def __init__(self, engine: Engine, kinds: Mapping[str, str]) -> None:
        self._engine = engine
        self._name = engine_name(engine)
        self._kinds = kinds
        self._left_at = -math.inf  # a server that refused to write
        self._gave_up_at = -math.inf  # the pool

    def connect(self, _connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_MADE_AT] = time.monotonic()

    @never_raises
    def handle_error(self, context: ExceptionContext) -> None:
        connection, error = context.connection, context.original_exception
        if context.is_pre_ping or connection is None or connection.invalidated:
            return
        if isinstance(error, RailwayError):
            return  # which says itself what has become of the connection
        if not is_database_error(context.sqlalchemy_exception or error):
            return  # the application's own, raised within SQLAlchemy or the driver
        verdict = self._is_disconnect(context, connection)
        if verdict is not None and verdict != context.is_disconnect:
            logger.info("%s: %s is a disconnect: %s", self._name, error, verdict)
            context.is_disconnect = verdict
        if context.is_disconnect:
            events.publish(events.DisconnectSeen(self._name, error))

    def _is_disconnect(self, context: ExceptionContext, connection: Connection) -> bool | None:
        """Return the verdict on the error, or None to leave it to SQLAlchemy."""
        fault = classify(context.original_exception, kinds=self._kinds)
        if fault.sqlstate in self._kinds or (fault.sqlstate or "")[:2] in self._kinds:
            return fault.connection_lost
        if fault.kind is FaultKind.READ_ONLY:
            return self._leaves_standby(context, connection) or None
        if severity_of(context.original_exception) == "ERROR" and not _is_closed(connection):
            # It came over this connection, which goes on. SQLAlchemy's dialects judge by words that
            # may be about another one; a dialect or a listener of an application has its reasons.
            return False if _is_of_sqlalchemy(context, connection) else None
        return fault.connection_lost or None

    def _leaves_standby(self, context: ExceptionContext, connection: Connection) -> bool:
        """Leave a server that refuses to write, unless a new connection has just said the same.

        Then it is meant to be so, or the new primary cannot be reached yet.
        """
        if not _may_be_standby(connection):
            return False
        if connection.info.get(_MADE_AT, -math.inf) <= self._left_at:
            context.invalidate_pool_on_disconnect = False  # which has new connections since
            return True
        now = time.monotonic()
        if now - self._left_at < _STAY:
            return False
        self._left_at = now
        return True

    @never_raises
    def invalidate(
        self,
        _connection: DBAPIConnection,
        record: ConnectionPoolEntry,
        error: BaseException | None,
    ) -> None:
        """Close the rest of a pool that SQLAlchemy has given up.

        SQLAlchemy replaces each of them at its next checkout, which may never come: until then the
        client would keep dead sockets, or living sessions on a server that was left.
        """
        # A private attribute: only the pool knows whether it is given up, which a listener may
        # prevent; for this exception it knows it later. tests/chaos/test_disconnect.py fails when
        # it moves.
        pool: Any = self._engine.pool
        is_given_up = pool._invalidate_time > record.starttime  # type: ignore[attr-defined]
        if not (isinstance(error, InvalidatePoolError) or is_given_up):
            return
        if record.info.get(_MADE_AT, -math.inf) <= self._gave_up_at:
            return  # the pool has new connections since
        self._gave_up_at = time.monotonic()
        _close_idle(pool, error)


def _is_of_sqlalchemy(context: ExceptionContext, connection: Connection) -> bool:
    """Return whether it was SQLAlchemy itself that called the error a disconnect."""
    is_disconnect: Any = connection.dialect.is_disconnect
    if not str(getattr(is_disconnect, "__module__", "")).startswith("sqlalchemy."):
        return False
    driver_connection: Any = connection.connection.dbapi_connection
    return bool(is_disconnect(context.original_exception, driver_connection, None))


def _close_idle(pool: Pool, error: BaseException | None) -> None:
    """Close the connections that *pool* holds; a thread that needs one now opens another.

    By private attributes, because a pool gives its idle connections to a checkout only, which
    would replace them; tests/chaos/test_disconnect.py fails when they move.
    """
    if not isinstance(pool, QueuePool):
        return
    with contextlib.ExitStack() as taken:  # given back also when the caller is cancelled
        records: list[Any] = []
        with contextlib.suppress(queue.Empty):  # a thread that was faster has taken the rest
            for _ in range(pool.checkedin()):
                records.append(pool._pool.get(block=False))
                taken.callback(pool._do_return_conn, records[-1])
        for record in records:
            if record.dbapi_connection is not None:
                # asyncpg's close(), which SQLAlchemy calls, waits for a server that is silent
                getattr(record.driver_connection, "terminate", _nothing)()
                record.invalidate(error)


def _nothing() -> None:
    pass


def _is_closed(connection: Connection) -> bool:
    """Return whether the driver has closed *connection*, or knows that it is broken."""
    driver: Any = connection.connection.driver_connection
    closed = getattr(driver, "is_closed", None) or getattr(driver, "closed", None)
    return bool(closed() if callable(closed) else closed)


def _may_be_standby(connection: Connection) -> bool:
    """Tell a server that became read-only from a transaction or a setting that is read-only.

    PostgreSQL 14 and later report ``in_hot_standby`` whenever it changes (ParameterStatus, in the
    manual's "Asynchronous Operations"), so the answer costs no round trip. An older server, or a
    pooler in between, does not tell; then it may be one unless the application asked for a
    read-only transaction itself.
    """
    if connection.get_execution_options().get("postgresql_readonly"):
        return False
    driver = connection.connection.driver_connection
    if getattr(driver, "readonly", None) or getattr(driver, "read_only", None):
        return False
    return _parameter_status(driver, "in_hot_standby") != "off"


def _parameter_status(driver: Any, name: str) -> str | None:
    """Return what the server has last reported of *name*: psycopg2 and psycopg, then asyncpg."""
    if hasattr(driver, "info"):
        value: str | None = driver.info.parameter_status(name)
        return value
    if hasattr(driver, "get_settings"):
        return getattr(driver.get_settings(), name, None)
    return None
