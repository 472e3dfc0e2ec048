"""Find out what became of a COMMIT whose answer was lost, and give that answer.

No event can turn a COMMIT that failed into one that succeeded, so this surrounds ``do_commit()`` of
the engine's own dialect. Before a COMMIT that may have something to lose it secures a proof: a
ticket (``status``), or a ``marker``. If the answer is lost, it asks for the
outcome (``asking``), and returns (``parting``), raises the driver's error, or says that the outcome
is unknown.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sa_railway import events
from sa_railway.commit import parting
from sa_railway.commit.ambiguity import mark_not_committed
from sa_railway.commit.asking import Asker
from sa_railway.commit.decision import Outcome, Ticket
from sa_railway.commit.marker import Marker, MarkerTable
from sa_railway.commit.status import Inquiry
from sa_railway.commit.wire import DRIVERS, is_lost, sqlstate_of
from sa_railway.commit.work import Work, work_on
from sa_railway.config.profile import Profile
from sa_railway.engine.driver import is_idle
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.state import engine_name
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.origin import is_database_error, severity_of

logger = logging.getLogger("sa_railway.commit")

# The first PostgreSQL with txid_status().
_FIRST_VERSION = (10,)

# With these the server, or a pooler in its name, reports its own state, not the transaction's.
_NO_ANSWER = ("08", "53", "57P", "58", "MT", "XX")

Proof = Ticket | Marker | Outcome


@dataclass
class CommitState:
    """The COMMIT of one connection, as ``run_transaction()`` sees it.

    Attributes:
        deadline: when to stop asking for a lost outcome, on the clock of ``time.monotonic()``.
        writes: whether the transaction writes; None decides by what was executed.
        is_by_name: whether it is the names of functions by which it is known to only read.
        sent: whether the COMMIT may have reached the server.
        outcome: what became of it; None until it is known.
        connection: SQLAlchemy's, once it is watched.
    """

    deadline: float
    writes: bool | None = None
    is_by_name: bool = False
    sent: bool = False
    outcome: Outcome | None = None
    connection: Connection | None = field(default=None, repr=False)


# Those that are being committed right now, in this thread or task.
_committing: contextvars.ContextVar[Sequence[CommitState]] = contextvars.ContextVar(
    "committing", default=()
)


def listen(engine: Engine, profile: Profile) -> None:
    """Resolve the lost COMMITs of *engine*, as the profile asks for it; to be called at creation.

    Raises:
        ConfigurationError: the database is not PostgreSQL, or its driver is not known.
    """
    setting = "resolve_commit" if profile.resolve_commit else "commit_marker"
    if engine.dialect.name != "postgresql":
        raise ConfigurationError(
            f"{setting} is True, and the database is {engine.dialect.name}; allowed: with "
            "PostgreSQL only"
        )
    if engine.dialect.driver not in DRIVERS:
        raise ConfigurationError(
            f"{setting} is True, and the driver is {engine.dialect.driver}; allowed: with "
            "psycopg2, psycopg and asyncpg only"
        )
    resolver = _resolver(engine)
    event.listen(engine, "connect", functools.partial(resolver.check_version, setting))
    event.listen(engine, "connect", resolver.check_rights, once=True)
    if profile.commit_marker:
        event.listen(engine, "connect", resolver.find_markers)
    if profile.resolve_commit:
        resolver.resolve_all(profile.resolve_timeout)


def watch_commit(connection: Connection, state: CommitState) -> bool:
    """Let *state* be that of the next COMMIT of *connection* within ``committing()``.

    Not for two-phase transactions and savepoints, which do not end with a COMMIT of the connection.

    Returns:
        False if nothing can be found out: from a database that is not PostgreSQL, or by another
        driver.
    """
    if connection.dialect.name != "postgresql" or connection.dialect.driver not in DRIVERS:
        return False
    _resolver(connection.engine)
    state.connection = connection
    return True


@contextmanager
def committing(states: list[CommitState]) -> Iterator[None]:
    """Resolve the commits of *states* within the block, and tell them what became of each."""
    token = _committing.set(states)  # the list itself: a flush within a commit may add to it
    try:
        yield
    finally:
        _committing.reset(token)


_attaching = threading.Lock()


def _resolver(engine: Engine) -> _Resolver:
    """Return the resolver of *engine*, made at the first call.

    Nothing is attached to the pool, which may be in use by other threads.
    """
    with _attaching:
        attached = getattr(engine.dialect.do_commit, "__self__", None)
        if isinstance(attached, _Resolver):
            return attached
        resolver = _Resolver(engine)
        dialect: Any = engine.dialect  # of this engine alone
        dialect.do_commit = resolver.do_commit
        return resolver


class _Resolver:
    """Stands around the ``do_commit()`` of one engine's dialect."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dialect: Any = engine.dialect
        self._name = engine_name(engine)
        self._do_commit = engine.dialect.do_commit
        self._do_rollback = engine.dialect.do_rollback
        self._inquiry = Inquiry(engine.dialect, self._name)
        self._markers = MarkerTable(engine.dialect, self._inquiry)
        self._asker = Asker(engine, self._inquiry, self._markers)
        self._timeout: float | None = None  # for every COMMIT, watched or not

    def resolve_all(self, timeout: float) -> None:
        """Resolve every COMMIT of the engine, which has no connections yet."""
        self._timeout = timeout
        parting.listen(self._engine)

    def check_version(self, setting: str, _connection: object, _record: object) -> None:
        """Refuse a server that is too old to say what became of a transaction.

        Raises:
            ConfigurationError: it is; with the name of the *setting* that asks for it.
        """
        version: tuple[int, ...] = self._dialect.server_version_info or _FIRST_VERSION
        if version < _FIRST_VERSION:
            shown = ".".join(map(str, version))
            raise ConfigurationError(
                f"{setting} is True, and the server is PostgreSQL {shown}; allowed: PostgreSQL 10 "
                "or newer, which remembers what became of a transaction"
            )

    @never_raises
    def check_rights(self, _connection: object, record: ConnectionPoolEntry) -> None:
        """Say at the first connect what the role lacks for a proof."""
        is_free = is_idle(record.driver_connection)  # a creator's may be shared, and in use
        missing = self._inquiry.unreadable(record) if is_free else []
        if missing:
            logger.warning(
                "%s: a COMMIT whose answer is lost will often have an unknown outcome, because the "
                "role lacks: %s; GRANT it, or use commit markers",
                *(self._name, ", ".join(missing)),
            )

    @never_raises
    def find_markers(self, _connection: object, record: ConnectionPoolEntry) -> None:
        """Look for the table of markers, until it was found."""
        if is_idle(record.driver_connection):  # a creator's may be shared, and in use
            self._markers.find(record)

    def do_commit(self, proxied: PoolProxiedConnection) -> None:
        """Commit; if the answer is lost, find out what it was, and give it."""
        state = self._state_of(proxied)
        if state is None:
            self._do_commit(proxied)
            return
        if proxied.driver_connection is None:  # detached: the pool knows it no more
            state.writes = state.sent = True
            self._do_commit(proxied)
            state.outcome = Outcome.COMMITTED
            return
        work = work_on(proxied.driver_connection)
        if state.writes is None:
            # A transaction of which nothing was seen was begun past everything that sees.
            state.writes = bool(work.writes) or not work.is_noted
            state.is_by_name = work.by_name and not state.writes
        try:
            self._commit(proxied, state, work)
        finally:
            work.end_transaction()

    def _state_of(self, proxied: PoolProxiedConnection) -> CommitState | None:
        for state in _committing.get():
            watched = state.connection
            # one that was invalidated would connect again to show its connection
            is_alive = watched is not None and not (watched.closed or watched.invalidated)
            if watched is not None and is_alive and watched.connection is proxied:
                return state
        if self._timeout is None:
            return None
        return CommitState(deadline=time.monotonic() + self._timeout)

    def _commit(self, proxied: PoolProxiedConnection, state: CommitState, work: Work) -> None:
        proof: Proof = Outcome.COMMITTED  # one that has only read has nothing to lose
        try:
            if state.writes and not is_idle(proxied.driver_connection):
                proof = self._secure(proxied, work)
            state.sent = True
            if not (isinstance(proof, Marker) and proof.is_piped):
                self._do_commit(proxied)
            elif not self._markers.insert_and_commit(proxied, proof):
                # The server has skipped the COMMIT together with the row that it refused.
                proof = self._inquiry.read_ticket(proxied, work)
                self._do_commit(proxied)
        except Exception as error:
            if not state.sent:
                if not is_lost(proxied, error):
                    # SQLAlchemy does not end the transaction after a COMMIT that failed.
                    self._do_rollback(proxied)
                raise
            self._judge(proxied, error, proof, state)
            parting.part(self._engine, proxied, state.connection, error)
        else:
            state.outcome = Outcome.COMMITTED
            lost = isinstance(proof, Marker) and self._markers.remove_old(proxied, proof.table)
            if lost:
                parting.part(self._engine, proxied, state.connection, lost)

    def _secure(self, proxied: PoolProxiedConnection, work: Work) -> Proof:
        """Return what the outcome can be proved by, or what is known of it already.

        A transaction that failed earlier shows here (25P02). PostgreSQL would answer its COMMIT
        with a rollback, and the drivers would take that for success.
        """
        marker = self._markers.new(proxied)
        if marker is not None and (marker.is_piped or self._markers.insert(proxied, marker)):
            return marker
        return self._inquiry.read_ticket(proxied, work)

    def _is_of_driver(self, error: Exception) -> bool:
        """Return whether *error* tells of the connection, and not of something else."""
        return isinstance(error, self._dialect.loaded_dbapi.Error) or is_database_error(error)

    def _judge(
        self, proxied: PoolProxiedConnection, error: Exception, proof: Proof, state: CommitState
    ) -> None:
        """Return if the COMMIT that failed with *error* has happened; raise otherwise."""
        if not self._is_of_driver(error):
            raise error  # such as one that a signal handler raised; nothing is known
        is_permanent = classify(error).kind is FaultKind.PERMANENT
        if severity_of(error) is None and is_permanent and not is_lost(proxied, error):
            raise error  # the driver refuses, and has sent nothing
        if _is_answer(error):
            state.outcome = Outcome.ABORTED
            raise error
        started = time.monotonic()
        outcome = proof
        if state.is_by_name:
            outcome = self._asker.resolve(None, state.deadline)
        elif not isinstance(outcome, Outcome):
            outcome = self._asker.resolve(outcome, state.deadline)
        state.outcome = outcome
        seconds = time.monotonic() - started
        logger.log(
            logging.WARNING if outcome is Outcome.UNKNOWN else logging.INFO,
            "%s: the answer to a COMMIT was lost; outcome: %s",
            *(self._name, outcome.value),
        )
        events.publish(events.CommitResolved(self._name, outcome.value, seconds))
        if outcome is Outcome.ABORTED:
            mark_not_committed(error)
            error.add_note(
                "sa_railway: the transaction was rolled back and has changed nothing; "
                "it can safely be run again"
            )
            raise error
        if outcome is Outcome.UNKNOWN:
            # as SQLAlchemy does it after an error that it knows
            (parting.owner_of(proxied, state.connection) or proxied).invalidate(error)
            raise CommitOutcomeUnknownError(
                transaction_id=proof.xid if isinstance(proof, Ticket) else None,
                marker=str(proof.id) if isinstance(proof, Marker) else None,
                orig=error,
            ) from error


def _is_answer(error: Exception) -> bool:
    """Return whether the server refused the COMMIT, lives on, and has so rolled back.

    FATAL and PANIC are its last words: the log may hold the COMMIT all the same.
    """
    sqlstate = sqlstate_of(error) or "XX"
    return severity_of(error) == "ERROR" and not sqlstate.startswith(_NO_ANSWER)
