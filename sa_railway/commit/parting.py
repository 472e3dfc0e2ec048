"""Part with a connection that was lost with a COMMIT that has happened.

The caller goes on as if nothing had been lost. So a Connection gets a new connection from the pool,
if its session had nothing that the new one lacks. Otherwise it stays with the lost one, and its
next use raises what the driver says: what follows must not run as another role, or without a lock.
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sa_railway.commit.work import work_on
from sa_railway.engine.hooks import never_raises

# in the info of the pooled connection
_CONNECTION = "railway_connection"
_LOST = "railway_lost"
_RECORD = "railway_record"

_OF_CONNECTION = {"isolation_level", "postgresql_readonly", "postgresql_deferrable"}


def listen(engine: Engine) -> None:
    """Remember what is needed to part with connections of *engine*, which has none yet."""
    dialect: Any = engine.dialect
    do_rollback = dialect.do_rollback

    def rollback(dbapi_connection: PoolProxiedConnection) -> None:
        if not _is_lost(dbapi_connection):  # or the pool would log an error at its return
            do_rollback(dbapi_connection)

    dialect.do_rollback = rollback
    # Listeners on the dialect: SQLAlchemy would join those on the engine for every Connection.
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(engine, name, _note_owner)
    event.listen(engine, "checkout", _begin_session)
    event.listen(engine, "handle_error", _explain)


def part(
    engine: Engine,
    proxied: PoolProxiedConnection,
    owner: Connection | None,
    error: Exception,
) -> None:
    """Part with *proxied*, which was lost by *error*.

    Args:
        engine: that of the connection.
        proxied: the lost connection.
        owner: the Connection of run_transaction(), which has no more use for its session.
        error: the driver's.
    """
    if owner is None:
        owner = _that_can_go_on(proxied)
    if owner is not None:
        owner.invalidate(error)
        return
    proxied.info[_LOST] = True
    dialect: Any = engine.dialect
    dialect.do_terminate(proxied.dbapi_connection)
    proxied.invalidate(error, soft=True)
    # At its return nothing is to be set back on it, and listeners to "checkin" get None: a return
    # that raises would never give the place in the pool back.
    record = proxied.info[_RECORD]()
    if record is not None:
        record.dbapi_connection = None


def owner_of(proxied: PoolProxiedConnection, known: Connection | None) -> Connection | None:
    """Return the Connection that uses *proxied*: the one that is *known*, or that has executed."""
    remembered: Connection | None = proxied.info.get(_CONNECTION, lambda: None)()
    return known or remembered


def _that_can_go_on(proxied: PoolProxiedConnection) -> Connection | None:
    """Return the Connection of *proxied*, unless its session had what a new one lacks."""
    owner = owner_of(proxied, None)
    work = work_on(proxied.driver_connection)
    if owner is None or not work.is_seen or work.has_session_state:
        return None
    # SQLAlchemy sets these on the connection that it has, and not again on the next one.
    return None if _OF_CONNECTION & owner.get_execution_options().keys() else owner


def _is_lost(proxied: PoolProxiedConnection) -> bool:
    try:
        return bool(proxied.info.get(_LOST))
    except (AttributeError, NotImplementedError):  # a bare connection, while the dialect gets ready
        return False


@never_raises
def _note_owner(cursor: object, statement: str, *others: Any) -> None:
    """Remember which Connection executes, for do_commit() is not told."""
    connection = others[-1].root_connection
    if not connection.in_transaction():
        return  # a question of the dialect itself, at its first connect
    # Weakly: a Connection that is dropped without being closed is left to the garbage collector.
    connection.connection.info[_CONNECTION] = weakref.ref(connection)


@never_raises
def _begin_session(
    dbapi_connection: object, record: ConnectionPoolEntry, proxy: PoolProxiedConnection
) -> None:
    """Let the session begin with a checkout: what is set at connect, a new connection has too."""
    record.info.pop(_CONNECTION, None)
    record.info.pop(_LOST, None)
    record.info[_RECORD] = weakref.ref(record)
    work_on(record.driver_connection).begin_session()


@never_raises
def _explain(context: ExceptionContext) -> None:
    """Say with the error of a lost connection that its last COMMIT has happened.

    What the driver's error says of a COMMIT, SQLAlchemy's says as well, for that is the one caught.
    """
    connection = context.connection
    error = context.original_exception
    if connection is None or connection.invalidated or connection.closed:
        return
    if _is_lost(connection.connection):
        error.add_note(
            "sa_railway: the connection was lost during the last COMMIT, which has happened; its "
            "session had settings or locks that a new connection would lack"
        )
    if context.sqlalchemy_exception is not None:
        for note in getattr(error, "__notes__", ()):
            context.sqlalchemy_exception.add_note(note)
