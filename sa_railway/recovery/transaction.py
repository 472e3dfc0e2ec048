"""Run a whole transaction again, until it has been committed exactly once.

A transaction that failed before its COMMIT has changed nothing, so it can be run again if the
failure is one that passes. What became of a COMMIT whose answer was lost is found out by
``sa_railway.engine.commit``. The decisions are here, once; the two ways to do the work, with and
without ``await``, are here and in ``sa_railway.asyncio``.
"""

from __future__ import annotations

import inspect
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_railway import events
from sa_railway.engine.commit import CommitState, Outcome, watch_commit
from sa_railway.engine.naming import engine_name
from sa_railway.engine.waiting import backoff_delay
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError, DatabaseUnavailableError
from sa_railway.faults import FaultKind, classify

__all__ = ["Replay", "run_transaction"]

logger = logging.getLogger("sa_railway.recovery.transaction")

Result = TypeVar("Result")

# The server has said, or it goes without saying, that the transaction has changed nothing.
_PASSING = {
    FaultKind.SERIALIZATION,
    FaultKind.DEADLOCK,
    FaultKind.DISCONNECT,
    FaultKind.CONNECT_TRANSIENT,
}
_ANSWERED = {FaultKind.SERIALIZATION, FaultKind.DEADLOCK}


def run_transaction(
    transactor: Engine | sessionmaker[Any] | scoped_session[Any] | Session,
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

    Run again are transactions that failed by a serialization failure, a deadlock, or a lost or
    refused connection. What the callback raises by itself is raised at once.

    Args:
        transactor: an Engine, for which the callback gets a Connection; or a sessionmaker, a
            scoped_session such as Flask-SQLAlchemy's ``db.session``, or a Session, for which it
            gets a Session. A session that is open already must have nothing uncommitted.
        callback: takes that one argument; what it returns is returned.
        timeout: seconds for all attempts, their pauses, and asking for a lost outcome. An attempt
            that is under way is not interrupted.
        isolation_level: as in SQLAlchemy, for these transactions only; not ``"AUTOCOMMIT"``.
        writes: whether the callback writes. None finds out from the statements that SQLAlchemy
            executes; say True if it writes in other ways, such as a COPY by the driver's cursor.

    Raises:
        ConfigurationError: an argument cannot be used, or the callback ended the transaction.
        CommitOutcomeUnknownError: a COMMIT was sent, and nobody can say whether it was executed.
        Exception: that of the last attempt, with a note on how many there were.
    """
    replay = Replay(callback, timeout, isolation_level, writes)
    attempt = _attempt_for(transactor)
    while True:
        try:
            result: Result = attempt(replay)
        except Exception as error:
            delay = replay.delay_after(error)
            if delay is None:
                raise
        else:
            return result
        time.sleep(delay)


class Replay:
    """The attempts at one transaction: what was promised, what has happened, what to do next."""

    def __init__(
        self,
        callback: Callable[[Any], Any],
        timeout: float,
        isolation_level: str | None,
        writes: bool | None,
        *,
        is_async: bool = False,
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ConfigurationError(f"timeout is {timeout!r}; allowed: more than 0 seconds")
        if str(isolation_level).upper() == "AUTOCOMMIT":
            raise ConfigurationError(
                "isolation_level is 'AUTOCOMMIT'; allowed: a level that has transactions"
            )
        _check_callback(callback, is_async=is_async)
        self.callback = callback
        self.isolation_level = isolation_level
        self._writes = writes
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._attempts = 0
        self._begin()

    def _begin(self) -> None:
        self._attempts += 1
        self._states: list[CommitState] = []
        self._committing = False
        self._is_unwatched = False
        self._engine = ""

    def watch(self, connection: Connection, *, two_phase: bool = False) -> None:
        """Keep an eye on the COMMIT of *connection*, which has begun a transaction."""
        state = CommitState(self._deadline, self._writes)
        self._engine = engine_name(connection.engine)
        if two_phase or not watch_commit(connection, state):
            self._is_unwatched = True
        self._states.append(state)

    def refuse_commit(self, *_: object) -> None:
        """Listen to commits: before the callback has returned, they are not its business."""
        if not self._committing:
            raise ConfigurationError(
                "callback commits by itself; run_transaction() does so when it returns"
            )

    def begin_commit(self, *, is_active: bool) -> None:
        """Say that the callback has returned, and whether it has left the transaction open."""
        if not is_active:
            raise ConfigurationError(
                "callback has ended the transaction by itself; run_transaction() does so when it "
                "returns or raises"
            )
        self._committing = True

    def delay_after(self, error: Exception) -> float | None:
        """Return for how many seconds to wait before the next attempt; None if there is none."""
        delay = None
        if self._may_replay(error):
            delay = backoff_delay(self._attempts, base=0.05, cap=1.0)
            if isinstance(error, DatabaseUnavailableError):
                delay = max(delay, error.retry_after)
        if delay is None or time.monotonic() + delay > self._deadline:
            self._note(error)
            return None
        logger.info(
            "%s: attempt %d at a transaction failed, next one in %.2f s: %s",
            self._engine,
            self._attempts,
            delay,
            type(error).__name__,
        )
        events.announce(events.Replayed(self._engine, self._attempts, delay, error))
        self._begin()
        return delay

    def _may_replay(self, error: Exception) -> bool:
        if isinstance(error, CommitOutcomeUnknownError) or not _is_of_database(error):
            return False
        kind = classify(error).kind
        if kind is FaultKind.READ_ONLY:  # a failover, if the connection was given up for it
            return getattr(error, "connection_invalidated", False) and not self._committing
        if kind not in _PASSING:
            return False
        if not self._committing:
            return True
        # of several databases, one may have committed before another one failed
        if any(s.sent and s.writes and s.outcome is not Outcome.ABORTED for s in self._states):
            return False
        return kind in _ANSWERED or not self._is_unwatched

    def _note(self, error: Exception) -> None:
        if self._attempts > 1:
            seconds = time.monotonic() - self._started
            error.add_note(
                f"sa_railway: run_transaction() gave up after {self._attempts} attempts "
                f"in {seconds:.1f} s"
            )


def _attempt_for(transactor: object) -> Callable[[Replay], Any]:
    """Return the function that makes one attempt with *transactor*."""
    if isinstance(transactor, Engine):
        return lambda replay: _with_engine(transactor, replay)
    if isinstance(transactor, sessionmaker):
        check_bind(transactor.kw.get("bind"))
        return lambda replay: _with_new_session(transactor, replay)
    if isinstance(transactor, scoped_session):
        return lambda replay: _with_open_session(transactor(), replay)
    if isinstance(transactor, Session):
        return lambda replay: _with_open_session(transactor, replay)
    raise ConfigurationError(
        f"transactor is of type {type(transactor).__name__}; allowed: an Engine, a sessionmaker, a "
        "scoped_session such as db.session, or a Session; for asyncio, their asyncio twins with "
        "sa_railway.asyncio.run_transaction()"
    )


def check_bind(bind: object) -> None:
    """Refuse what could not be connected again."""
    if isinstance(bind, Connection):
        raise ConfigurationError(
            "transactor is bound to a Connection, which cannot be replaced when it is lost; "
            "allowed: one that is bound to an Engine"
        )


def _with_engine(engine: Engine, replay: Replay) -> Any:
    with _given_back(engine.connect()) as connection:
        if replay.isolation_level:
            connection = connection.execution_options(isolation_level=replay.isolation_level)
        transaction = connection.begin()
        replay.watch(connection)
        with listening(connection, commit=replay.refuse_commit):
            result = replay.callback(connection)
            replay.begin_commit(is_active=transaction.is_active)
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
def listening(target: Any, **listeners: Callable[..., None]) -> Iterator[None]:
    """Have *listeners*, by the names of events, on *target* within the block only."""
    for name, listener in listeners.items():
        event.listen(target, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(target, name, listener)


def _with_new_session(factory: sessionmaker[Any], replay: Replay) -> Any:
    session = factory()
    try:
        return _with_open_session(session, replay)
    finally:
        session.close()


def _with_open_session(session: Session, replay: Replay) -> Any:
    check_bind(session.bind)
    end_reading(session)
    with listening(session, **session_listeners(replay)):
        try:
            transaction = session.begin()
            if replay.isolation_level:
                session.connection(execution_options={"isolation_level": replay.isolation_level})
            result = replay.callback(session)
            replay.begin_commit(is_active=session.get_transaction() is transaction)
            session.commit()
        except BaseException:
            roll_back(session)
            raise
        return result


def roll_back(session: Session) -> None:
    """Roll back; a server that cannot be asked to has done so."""
    try:
        session.rollback()
    except (DBAPIError, OSError):
        session.invalidate()


def session_listeners(replay: Replay) -> dict[str, Callable[..., None]]:
    """Return the listeners that watch a session's connections and refuse the callback's commits."""

    def after_begin(session: Session, transaction: Any, connection: Connection) -> None:
        if not transaction.nested:
            replay.watch(connection, two_phase=session.twophase)

    def before_commit(session: Session) -> None:
        if session.get_nested_transaction() is None:
            replay.refuse_commit()

    return {"after_begin": after_begin, "before_commit": before_commit}


def end_reading(session: Session) -> None:
    """End the transaction that *session* has open, which must have read only.

    A session begins one at its first query; in a web request that is mostly the one that loads the
    user.
    """
    if not session.in_transaction():
        return
    try:
        has_changes = session.new or session.dirty or session.deleted or _has_written(session)
    except BaseException:
        roll_back(session)
        raise
    if has_changes:
        raise ConfigurationError(
            "transactor is a session with uncommitted changes, which could not be run again; "
            "commit them or roll them back before run_transaction()"
        )
    roll_back(session)


def _has_written(session: Session) -> bool:
    """Ask PostgreSQL whether the open transaction has written; other databases cannot tell."""
    try:
        if session.get_bind().dialect.name != "postgresql":
            return False
        return session.scalar(text("SELECT txid_current_if_assigned()")) is not None
    except UnboundExecutionError:  # a session without a default database
        return False


def _is_of_database(error: Exception) -> bool:
    """Return whether *error* comes from the database and not from something else in the callback.

    asyncpg raises ``OSError`` and ``TimeoutError`` as they are, and so do HTTP clients; only the
    former come through SQLAlchemy.
    """
    if isinstance(error, SQLAlchemyError):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("sqlalchemy.") for frame, _ in frames)


def _check_callback(callback: object, *, is_async: bool) -> None:
    """Refuse what could not be called, or would only be called and not run."""
    if not callable(callback):
        raise ConfigurationError(
            f"callback is of type {type(callback).__name__}; allowed: a function of one argument"
        )
    if inspect.isgeneratorfunction(callback) or inspect.isasyncgenfunction(callback):
        raise ConfigurationError(
            "callback is a generator function, whose body would run after the commit; "
            "allowed: a function that does its work and returns"
        )
    if inspect.iscoroutinefunction(callback) and not is_async:
        raise ConfigurationError(
            "callback is a coroutine function; allowed: a function, or "
            "sa_railway.asyncio.run_transaction()"
        )
