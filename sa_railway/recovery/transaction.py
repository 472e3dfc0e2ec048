"""Run a whole transaction again, until it has been committed exactly once.

A transaction that failed before its COMMIT has changed nothing, so it can be run again if the
failure is one that passes. What became of a COMMIT whose answer was lost is found out by
``sa_railway.commit.resolver``, and what to do next is decided by ``sa_railway.recovery.replay``.
This does the work; ``sa_railway.asyncio`` runs it in a greenlet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_railway.commit.sql import Writes
from sa_railway.commit.work import work_on
from sa_railway.engine.driver import is_idle
from sa_railway.exc import ConfigurationError
from sa_railway.recovery.objects import NewObjects
from sa_railway.recovery.replay import TransactionReplay

Result = TypeVar("Result")
AnySession = TypeVar("AnySession", bound=Session)


@overload
def run_transaction(
    transactor: Engine,
    callback: Callable[[Connection], Result],
    *,
    timeout: float = ...,
    isolation_level: str | None = ...,
    writes: bool | None = ...,
) -> Result: ...


@overload
def run_transaction(
    transactor: sessionmaker[AnySession] | scoped_session[AnySession] | AnySession,
    callback: Callable[[AnySession], Result],
    *,
    timeout: float = ...,
    isolation_level: str | None = ...,
    writes: bool | None = ...,
) -> Result: ...


def run_transaction(
    transactor: Any,
    callback: Callable[[Any], Result],
    *,
    timeout: float = 30.0,
    isolation_level: str | None = None,
    writes: bool | None = None,
) -> Result:
    """Call *callback* within a transaction, commit, and do both again if the connection is lost.

    The callback may be called several times, so it must do nothing but database work that a
    rollback undoes; sending mail belongs after ``run_transaction()``. It must not commit or roll
    back. Its transaction is committed once, or the exception says that it was not::

        def transfer(session):
            session.add(Entry(account=a, amount=-10))
            session.add(Entry(account=b, amount=10))

        run_transaction(db.session, transfer)

    Run again are transactions that failed by a serialization failure, a deadlock, a prepared plan
    that a migration made stale, or a lost or refused connection. What the callback raises by itself
    is raised at once.

    Args:
        transactor: an Engine, for which the callback gets a Connection; or a sessionmaker, a
            scoped_session such as Flask-SQLAlchemy's ``db.session``, or a Session, for which it
            gets a Session. A session that is open already must have nothing uncommitted.
        callback: takes that one argument; what it returns is returned.
        timeout: seconds for all attempts, their pauses, and asking for a lost outcome. An attempt
            that is under way is not interrupted.
        isolation_level: as in SQLAlchemy, for these transactions only; not ``"AUTOCOMMIT"``.
        writes: whether the callback writes. None decides by what it executes; False declares that
            it only reads.

    Raises:
        ConfigurationError: an argument cannot be used, the transactor is in autocommit mode, or the
            callback ended the transaction.
        CommitOutcomeUnknownError: a COMMIT was sent, and its outcome cannot be proved.
        Exception: that of the last attempt, with a note on how many there were.
    """
    replay = TransactionReplay(callback, timeout, isolation_level, writes)
    attempt: Callable[[TransactionReplay], Result] = _attempt_for(transactor)
    while True:
        try:
            return attempt(replay)
        except Exception as error:
            delay = replay.delay_after(error)
            if delay is None:
                raise
        time.sleep(delay)


def _attempt_for(transactor: object) -> Callable[[TransactionReplay], Any]:
    """Return the function that makes one attempt with *transactor*."""
    if isinstance(transactor, Engine):
        return lambda replay: with_engine(transactor, replay, replay.callback)
    if isinstance(transactor, sessionmaker):
        _check_bind(transactor.kw.get("bind"))
        return lambda replay: _with_new_session(transactor, replay)
    if isinstance(transactor, scoped_session):
        return lambda replay: with_open_session(transactor(), replay, replay.callback)
    if isinstance(transactor, Session):
        return lambda replay: with_open_session(transactor, replay, replay.callback)
    raise ConfigurationError(
        f"transactor is of type {type(transactor).__name__}; allowed: an Engine, a sessionmaker, a "
        "scoped_session such as db.session, or a Session; for asyncio, their asyncio twins with "
        "sa_railway.asyncio.run_transaction()"
    )


def _check_bind(bind: object) -> None:
    """Refuse what could not be connected again."""
    if isinstance(bind, Connection):
        raise ConfigurationError(
            "transactor is bound to a Connection, which cannot be replaced when it is lost; "
            "allowed: one that is bound to an Engine"
        )


def with_engine(engine: Engine, replay: TransactionReplay, callback: Callable[[Any], Any]) -> Any:
    """Make one attempt on a connection of *engine*."""
    with _given_back(engine.connect()) as connection:
        if replay.isolation_level:
            connection = connection.execution_options(isolation_level=replay.isolation_level)
        transaction = connection.begin()
        with replay.calling(), _listening(connection, commit=replay.refuse_commit):
            replay.watch(connection)
            result = callback(connection)
        with replay.committing(is_active=transaction.is_active):
            transaction.commit()
        return result


@contextmanager
def _given_back(connection: Connection) -> Iterator[Connection]:
    """Roll back and close *connection* at the end, whatever has become of it.

    Without a word: the exception that ended the block is what the caller must see, and a server
    that cannot be asked to roll back has done so.
    """
    try:
        yield connection
    finally:
        try:
            connection.close()
        except (DBAPIError, OSError):
            if not connection.closed:
                connection.invalidate()
                connection.close()


@contextmanager
def _listening(target: Any, **listeners: Callable[..., None]) -> Iterator[None]:
    """Have *listeners*, by the names of events, on *target* within the block only."""
    for name, listener in listeners.items():
        event.listen(target, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(target, name, listener)


def _with_new_session(factory: sessionmaker[Any], replay: TransactionReplay) -> Any:
    session = factory()
    try:
        return with_open_session(session, replay, replay.callback)
    finally:
        session.close()


def with_open_session(
    session: Session, replay: TransactionReplay, callback: Callable[[Any], Any]
) -> Any:
    """Make one attempt in *session*."""
    _check_bind(session.bind)
    _end_reading(session)
    with _listening(session, **_session_listeners(replay)):
        try:
            transaction = session.begin()
            with replay.calling():
                if replay.isolation_level:
                    options = {"isolation_level": replay.isolation_level}
                    session.connection(execution_options=options)
                result = callback(session)
            with replay.committing(is_active=session.get_transaction() is transaction):
                session.commit()
        except BaseException:
            _roll_back(session)
            raise
        return result


def _roll_back(session: Session) -> None:
    """Roll back; a server that cannot be asked to has done so."""
    try:
        session.rollback()
    except (DBAPIError, OSError):
        session.invalidate()


def _session_listeners(replay: TransactionReplay) -> dict[str, Callable[..., None]]:
    """Return the listeners that watch a session's connections and refuse the callback's commits."""

    def after_begin(session: Session, transaction: Any, connection: Connection) -> None:
        if not transaction.nested:
            replay.watch(connection, two_phase=session.twophase)

    def before_commit(session: Session) -> None:
        if session.get_nested_transaction() is None:
            replay.refuse_commit()

    return {
        "after_begin": after_begin,
        "before_commit": before_commit,
        **NewObjects(replay.object_to_replay).listeners(),
    }


def _end_reading(session: Session) -> None:
    """End the transaction that *session* has open, which must have read only.

    A session begins one at its first query; in a web request that is mostly the one that loads the
    user.
    """
    if not session.in_transaction():
        return
    try:
        has_changes = session.new or session.dirty or session.deleted or _has_written(session)
    except BaseException:
        _roll_back(session)
        raise
    if has_changes:
        raise ConfigurationError(
            "transactor is a session with uncommitted changes, which could not be run again; "
            "commit them or roll them back before run_transaction()"
        )
    _roll_back(session)


def _has_written(session: Session) -> bool:
    """Return whether the open transaction has written, in any of the databases that it is in.

    PostgreSQL is asked; other databases cannot tell.
    """
    # A private attribute, because a session shows the connections of its transaction nowhere else.
    # tests/chaos/test_transaction.py fails when it moves.
    transaction: Any = session.get_transaction()
    connections = {entry[0] for entry in transaction._connections.values()}
    return any(_has_written_on(c) for c in connections if c.dialect.name == "postgresql")


def _has_written_on(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    writes = work_on(driver).writes
    if is_idle(driver) or writes is not Writes.MAYBE:
        return not is_idle(driver) and writes is Writes.YES  # a NOTIFY has no id before its COMMIT
    return connection.scalar(text("SELECT txid_current_if_assigned()")) is not None
