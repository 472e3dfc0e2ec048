"""Find out what became of a COMMIT whose answer was lost, and give that answer.

A connection that is cut while a COMMIT is under way leaves it open whether the server has carried
it out. PostgreSQL can tell: the transaction's id is read before the COMMIT, and a new connection
asks for its status (``sa_railway.engine.outcome``). No event can turn a COMMIT that failed into one
that succeeded, so this surrounds ``do_commit()`` of the engine's own dialect.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
import weakref
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.marks import mark_undone
from sa_railway.engine.naming import engine_name
from sa_railway.engine.outcome import LOOKS, Outcome, Ticket, Watch, ask, read_ticket
from sa_railway.engine.statements import may_write
from sa_railway.engine.waiting import backoff_delay, is_impatient, sleeper
from sa_railway.engine.watchdog import limit
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.faults import FaultKind, classify

__all__ = ["CommitState", "Outcome", "listen", "watch_commit"]

logger = logging.getLogger("sa_railway.engine.commit")

# in the info of the pooled connection
_WROTE = "railway_wrote"
_STATE = "railway_commit"
_CONNECTION = "railway_connection"

_ANSWER_TIMEOUT = 5.0  # seconds for an answer about one transaction, from a server that is there

# what the server does not say of a COMMIT that it has received
_UNANSWERED = {FaultKind.DISCONNECT, FaultKind.CONNECT_TRANSIENT}

# the server is away, full, or about to be replaced; anything else will not pass by waiting
_PASSING = {
    FaultKind.CONNECT_TRANSIENT,
    FaultKind.DISCONNECT,
    FaultKind.POOL_EXHAUSTED,
    FaultKind.RESOURCE,
}


@dataclass
class CommitState:
    """The next COMMIT of one connection, as seen by whoever watches it.

    Attributes:
        deadline: when to stop asking for a lost outcome, on the clock of ``time.monotonic()``.
        writes: whether the transaction writes; None decides by the statements that it executes.
        sent: whether the COMMIT may have reached the server.
        outcome: what became of it; None until it is known.
    """

    deadline: float
    writes: bool | None = None
    sent: bool = False
    outcome: Outcome | None = None


def listen(engine: Engine, profile: Profile) -> None:
    """Resolve every lost COMMIT of *engine*, if the profile asks for it."""
    if profile.resolve_commit and engine.dialect.name == "postgresql":
        _resolver(engine).timeout = profile.resolve_timeout


def watch_commit(connection: Connection, state: CommitState) -> bool:
    """Resolve the next COMMIT of *connection*, should its answer be lost, and tell *state*.

    Not for two-phase transactions and savepoints, which do not end with a COMMIT of the connection.

    Returns:
        False if nothing can be found out, because the database is not PostgreSQL.
    """
    if connection.dialect.name != "postgresql":
        return False
    _resolver(connection.engine)
    connection.connection.info[_STATE] = state
    return True


def _resolver(engine: Engine) -> _Resolver:
    """Return the resolver of *engine*, made at the first call.

    Two threads that make one each do no harm: the inner one never has anything to do.
    """
    attached = getattr(engine.dialect.do_commit, "__self__", None)
    return attached if isinstance(attached, _Resolver) else _Resolver(engine)


class _Resolver:
    """Stands around the ``do_commit()`` of one engine's dialect."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._do_commit = engine.dialect.do_commit
        self._sleep = sleeper(is_async=engine.dialect.is_async)
        self.timeout: float | None = None  # for every COMMIT, watched or not
        dialect: Any = engine.dialect
        dialect.do_commit = self.do_commit
        # Events of the dialect: those of the engine would be joined anew for every Connection.
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, name, _note)
        event.listen(engine, "checkin", _forget)

    def do_commit(self, proxied: PoolProxiedConnection) -> None:
        """Commit; if the answer is lost, find out what it was, and give it."""
        wrote = proxied.info.pop(_WROTE, False)
        state = proxied.info.pop(_STATE, None)
        connection = proxied.info.pop(_CONNECTION, lambda: None)()
        if state is None and self.timeout is not None:
            state = CommitState(deadline=time.monotonic() + self.timeout)
        if state is None:
            self._do_commit(proxied)
            return
        if state.writes is None:
            state.writes = wrote
        ticket = self._take_ticket(proxied) if state.writes else None
        state.sent = True
        try:
            self._do_commit(proxied)
        except Exception as error:
            if classify(error).kind not in _UNANSWERED:
                state.outcome = Outcome.ABORTED  # the server has answered
                raise
            self._settle(ticket, state, error)
            # whoever committed goes on, and finds a new connection
            (connection or proxied).invalidate(error)
        else:
            state.outcome = Outcome.COMMITTED

    def _take_ticket(self, proxied: PoolProxiedConnection) -> Ticket | None:
        """Read the ticket, or end the transaction: SQLAlchemy does not do so after a failed COMMIT.

        This is where a transaction shows that has failed before. PostgreSQL would roll it back in
        answer to the COMMIT, and the drivers would take that for success.
        """
        try:
            return read_ticket(proxied)
        except Exception as error:
            if classify(error).kind is not FaultKind.DISCONNECT:
                self._engine.dialect.do_rollback(proxied)
            raise

    def _settle(self, ticket: Ticket | None, state: CommitState, error: Exception) -> None:
        """Return if the lost COMMIT has happened; raise if it has not, or if nobody can know."""
        started = time.monotonic()
        # who has written nothing has lost nothing
        outcome = self._resolve(ticket, state.deadline) if ticket else Outcome.COMMITTED
        state.outcome = outcome
        name = engine_name(self._engine)
        seconds = time.monotonic() - started
        logger.info("%s: the answer to a COMMIT was lost; outcome: %s", name, outcome.value)
        events.announce(events.CommitResolved(name, outcome.value, seconds))
        if outcome is Outcome.ABORTED:
            mark_undone(error)
            error.add_note(
                "sa_railway: the transaction was rolled back and has changed nothing; "
                "it can safely be run again"
            )
            raise error
        if outcome is Outcome.UNKNOWN and ticket:
            raise CommitOutcomeUnknownError(transaction_id=ticket.xid, orig=error) from error

    def _resolve(self, ticket: Ticket, deadline: float) -> Outcome:
        """Ask until there is an answer or the deadline has passed."""
        watch = Watch(ticket.read_at)
        for attempt in itertools.count(1):
            delay = random.uniform(*LOOKS)  # noqa: S311 - spreads load, guards nothing
            try:
                outcome = self._ask(ticket, watch)
            except Exception as error:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError
                if classify(error).kind not in _PASSING:
                    logger.warning("The outcome of a COMMIT cannot be asked for: %s", error)
                    return Outcome.UNKNOWN
                watch.look()
            else:
                if outcome is not None:
                    return outcome
                delay = backoff_delay(attempt, base=0.02, cap=1.0)
            if time.monotonic() + delay > deadline:
                return Outcome.UNKNOWN
            self._sleep(delay)
        raise AssertionError("unreachable: the deadline comes first")

    def _ask(self, ticket: Ticket, watch: Watch) -> Outcome | None:
        """Ask the server on a connection of its own; None if it cannot say yet."""
        # a pool beside the engine's, which may be exhausted by those who wait for an outcome
        pool = self._engine.pool.recreate()
        token = is_impatient.set(True)
        try:
            proxied = pool.connect()
        finally:
            is_impatient.reset(token)
        watch.look()
        try:
            with limit(proxied.driver_connection, _ANSWER_TIMEOUT):
                return ask(proxied, ticket, watch)
        finally:
            proxied.invalidate()  # closes it; a rollback would be one more thing to wait for
            pool.dispose()


@guarded
def _note(cursor: object, statement: str, *others: Any) -> None:
    """Remember who executes on the connection, and whether that may write."""
    connection = others[-1].root_connection
    if not connection.in_transaction():
        return  # a question of the dialect itself, at its first connect
    info = connection.connection.info
    # do_commit() is not told who commits. Weakly, for whoever drops a connection without closing it
    # leaves that to the garbage collector.
    info[_CONNECTION] = weakref.ref(connection)
    if may_write(statement):
        info[_WROTE] = True


@guarded
def _forget(dbapi_connection: object, record: ConnectionPoolEntry) -> None:
    """Leave nothing of a transaction that was rolled back to the next user of the connection."""
    record.info.pop(_WROTE, None)
    record.info.pop(_STATE, None)
    record.info.pop(_CONNECTION, None)
