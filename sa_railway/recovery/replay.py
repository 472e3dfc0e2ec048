"""The attempts at one transaction: what was promised, what has happened, what to do next.

The decisions, without the work, which is done with and without ``await``.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import PendingRollbackError

from sa_railway import events
from sa_railway.commit.ambiguity import commits_by_itself, mark_errors, was_lost
from sa_railway.commit.decision import Outcome
from sa_railway.commit.resolver import CommitState, committing, watch_commit
from sa_railway.commit.sql import Writes, ends_transaction
from sa_railway.commit.work import Work, work_on
from sa_railway.engine.driver import is_idle
from sa_railway.engine.state import engine_name, fault_kinds_of
from sa_railway.engine.stopping import is_stopping
from sa_railway.engine.waiting import backoff_delay
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.origin import is_database_error, members

logger = logging.getLogger("sa_railway.recovery.replay")

_INVALIDATED = "8s2b"  # of SQLAlchemy's errors, by the documentation

mark_errors()  # when this is imported, and not when engines are in use


class TransactionReplay:
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
        self._kinds: dict[str, str] = {}
        self._works: list[Work] = []
        self._is_calling = False
        self._objection: str | None = None
        self._connections: list[Connection] = []

    def watch(self, connection: Connection, *, two_phase: bool = False) -> None:
        """Keep an eye on the COMMIT of *connection*, which has begun a transaction."""
        if commits_by_itself(connection):
            raise ConfigurationError(
                "transactor is in autocommit mode, where a statement that was executed cannot be "
                "rolled back and run again; allowed: an isolation level that has transactions"
            )
        state = CommitState(self._deadline, self._writes)
        self._engine = engine_name(connection.engine)
        self._kinds |= fault_kinds_of(connection.engine)
        if two_phase or not watch_commit(connection, state):
            self._is_unwatched = True
        self._states.append(state)
        self._connections.append(connection)
        work = work_on(connection.connection.driver_connection)
        work.end_transaction()  # nothing of it has run yet
        if not work.is_seen:
            event.listen(connection, "before_cursor_execute", self._refuse_text)
        if self._is_calling:
            work.refuse_end, work.refuse_early = _refuse_end, _refuse_early
        self._works.append(work)

    def _refuse_text(self, _connection: object, _cursor: object, text: str, *_how: object) -> None:
        """Refuse an end of the transaction as text, on a connection that only SQLAlchemy sees."""
        command = ends_transaction(text) if self._is_calling else None
        if command is not None:
            _refuse_end(command)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Refuse commands of the callback, within the block, that would end the transaction."""
        self._is_calling = True
        try:
            yield
        finally:
            self._is_calling = False
            # before the connections go back to a pool, where others may commit
            for work in self._works:
                work.refuse_end = work.refuse_early = None

    @contextmanager
    def committing(self, *, is_active: bool) -> Iterator[None]:
        """Resolve the commits within the block.

        Args:
            is_active: whether the callback, which has returned, has left the transaction open.
        """
        if not is_active or any(map(_has_ended, self._connections)):
            raise ConfigurationError(
                "callback has ended the transaction by itself; run_transaction() does so when it "
                "returns or raises"
            )
        self._committing = True
        with committing(self._states):
            yield

    def refuse_commit(self, *_: object) -> None:
        """Refuse a commit by the callback."""
        if self._is_calling:
            raise ConfigurationError(
                "callback commits by itself; run_transaction() does so when it returns"
            )

    def object_to_replay(self, reason: str) -> None:
        """Say why this attempt must be the last one."""
        self._objection = reason

    def delay_after(self, error: Exception) -> float | None:
        """Return for how many seconds to wait before the next attempt; None if there is none."""
        delay = None
        if self._may_replay(error):
            delay = backoff_delay(self._attempts, base=0.05, cap=1.0)
            delay = max(delay, *(getattr(one, "retry_after", 0.0) for one in members(error)))
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
        events.publish(events.Replayed(self._engine, self._attempts, delay, error))
        self._begin()
        return delay

    def _may_replay(self, error: Exception) -> bool:
        if not is_database_error(error):
            return False
        errors = list(members(error))
        if any(isinstance(one, CommitOutcomeUnknownError) for one in errors):
            return False
        objection = self._objection or self._reason_not_to_retry(errors)
        if objection is not None:
            error.add_note(f"sa_railway: run_transaction() cannot run the work again: {objection}")
            return False
        return all(map(self._passes, errors))

    def _reason_not_to_retry(self, errors: Iterable[BaseException]) -> str | None:
        """Return what speaks against running the work again, although the connection is gone."""
        if not any(map(_is_of_invalidated, errors)) or any(map(was_lost, self._connections)):
            return None
        return "the callback has invalidated its connection, and would do so again"

    def _passes(self, error: BaseException) -> bool:
        """Return whether the work may succeed if it is run again after *error*."""
        fault = classify(error, kinds=self._kinds)
        if fault.kind is FaultKind.READ_ONLY:  # a failover, if the connection was given up for it
            return getattr(error, "connection_invalidated", False) and not self._committing
        is_of_connect = fault.kind is FaultKind.CONNECT_TRANSIENT
        if not (fault.rolled_back or fault.connection_lost or is_of_connect):
            return False
        if is_of_connect and is_stopping():
            return False
        if not self._committing:
            return True
        # of several databases, one may have committed before another one failed
        if any(s.sent and s.writes and s.outcome is not Outcome.ABORTED for s in self._states):
            return False
        return fault.rolled_back or not self._is_unwatched

    def _note(self, error: Exception) -> None:
        if self._attempts > 1:
            seconds = time.monotonic() - self._started
            error.add_note(
                f"sa_railway: run_transaction() gave up after {self._attempts} attempts "
                f"in {seconds:.1f} s"
            )


def _is_of_invalidated(error: BaseException) -> bool:
    """Return whether *error* says that its connection was invalidated within a transaction."""
    return isinstance(error, PendingRollbackError) and error.code == _INVALIDATED


def _refuse_end(command: str) -> None:
    raise ConfigurationError(
        f"callback executes {command} by itself; run_transaction() ends the transaction when "
        "it returns or raises"
    )


def _refuse_early() -> None:
    raise ConfigurationError(
        "callback uses the driver's own connection before SQLAlchemy has begun the transaction on "
        "it: the server would commit at once what it executes, and a replay would execute it "
        "twice; execute something through SQLAlchemy first"
    )


def _has_ended(connection: Connection) -> bool:
    """Return whether the transaction of *connection* is over, although SQLAlchemy does not know."""
    if connection.closed or connection.invalidated:
        return False
    driver = connection.connection.driver_connection
    # one in which nothing was executed has not begun for psycopg2 and psycopg
    return work_on(driver).writes is Writes.YES and is_idle(driver)


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
