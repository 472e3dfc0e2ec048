"""What counts as a disconnect, beyond what SQLAlchemy recognises by itself.

SQLAlchemy keeps a connection in the pool unless its dialect calls the error a disconnect. The
dialects do not know a server that became a standby (25006), a protocol that lost its
synchronisation, or the bare ``OSError`` of asyncpg: connections that would fail for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name
from sa_railway.exc import RailwayError
from sa_railway.faults import FaultKind, classify

__all__ = ["listen"]

logger = logging.getLogger("sa_railway.engine.disconnect")


def listen(engine: Engine, profile: Profile) -> None:
    """Judge the errors of *engine*; ``profile.fault_kinds`` overrules the judgement either way."""
    name = engine_name(engine)

    @guarded
    def handle_error(context: ExceptionContext) -> None:
        if context.is_pre_ping or context.connection is None:
            return
        if isinstance(context.original_exception, RailwayError):
            return  # which says itself what has become of the connection
        verdict = _is_disconnect(context, profile.fault_kinds)
        if verdict is not None and verdict != context.is_disconnect:
            logger.info("%s: %s is a disconnect: %s", name, context.original_exception, verdict)
            context.is_disconnect = verdict
        if context.is_disconnect:
            events.announce(events.DisconnectSeen(name, context.original_exception))

    event.listen(engine, "handle_error", handle_error)


def _is_disconnect(context: ExceptionContext, kinds: Mapping[str, str]) -> bool | None:
    """Return the verdict on the error, or None to leave it to SQLAlchemy."""
    fault = classify(context.original_exception, kinds=kinds)
    if fault.sqlstate in kinds or (fault.sqlstate or "")[:2] in kinds:
        return fault.kind is FaultKind.DISCONNECT
    if fault.kind is FaultKind.DISCONNECT:
        return True
    if fault.kind is FaultKind.READ_ONLY and context.connection is not None:
        return _server_is_read_only(context.connection) or None
    return None


def _server_is_read_only(connection: Connection) -> bool:
    """Tell a server that became read-only from a transaction that its owner declared READ ONLY.

    PostgreSQL 14 and later report ``in_hot_standby`` whenever it changes (ParameterStatus, in the
    manual's "Asynchronous Operations"), so the answer costs no round trip. An older server, or a
    pooler in between, does not tell; then the error is a failover unless the application asked for
    a read-only transaction itself.
    """
    if connection.get_execution_options().get("postgresql_readonly"):
        return False
    driver = connection.connection.driver_connection
    if getattr(driver, "readonly", None) or getattr(driver, "read_only", None):
        return False
    standby = _parameter_status(driver, "in_hot_standby")
    return standby != "off" or _parameter_status(driver, "default_transaction_read_only") == "on"


def _parameter_status(driver: Any, name: str) -> str | None:
    """Return what the server has last reported of *name*: psycopg2 and psycopg, then asyncpg."""
    if hasattr(driver, "info"):
        value: str | None = driver.info.parameter_status(name)
        return value
    if hasattr(driver, "get_settings"):
        return getattr(driver.get_settings(), name, None)
    return None
