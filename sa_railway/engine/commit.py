"""What became of a COMMIT whose answer was lost.

A connection that is cut while a COMMIT is under way leaves it open whether the server has carried
it out. PostgreSQL can tell: the transaction's id is read before the COMMIT, and a new connection
asks for its status. Two things make the answer certain:

* While the old backend is still at work, the transaction is "in progress". The backend is
  terminated, so that it cannot commit after somebody has run the work again.
* After a crash, ids that had not reached the write-ahead log are given out a second time, so that
  "committed" may be said of a stranger. The log position that was read with the id tells: if the
  checkpoint that ended the recovery lies at or before it, our COMMIT was lost with the rest. This
  holds for the first recovery only, so whoever waits for the server looks often enough to be sure
  that it has not come up, and crashed again, in between.

No event can turn a COMMIT that failed into one that succeeded, so this surrounds ``do_commit()`` of
the engine's own dialect.
"""

from __future__ import annotations

import enum
import itertools
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name
from sa_railway.engine.statements import may_write
from sa_railway.engine.waiting import backoff_delay, is_impatient, sleeper
from sa_railway.engine.watchdog import limit
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.faults import FaultKind, classify

__all__ = ["CommitState", "Outcome", "listen", "watch_commit"]

logger = logging.getLogger("sa_railway.engine.commit")

# Since PostgreSQL 10; the newer pg_current_xact_id_if_assigned() and pg_xact_status() do the same.
# An incarnation is what changes when the server has crashed: the postmaster's start, or, if it has
# survived its backends, the moment the statistics were reset. As numbers, because the text of a
# time depends on the session's time zone.
_INCARNATION = """
    extract(epoch FROM pg_postmaster_start_time())::text || ' ' || coalesce(
        (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_bgwriter), '')
"""
_TICKET = f"""
    SELECT txid_current_if_assigned(), pg_current_wal_insert_lsn()::text, {_INCARNATION},
        pg_backend_pid()
"""
_SERVER = f"""
    SELECT {_INCARNATION}, pg_is_in_recovery(),
        extract(epoch FROM clock_timestamp() - greatest(
            pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_bgwriter)))::float
"""  # noqa: S608 - of constants
_STATUS = "SELECT txid_status({xid})"
# pg_stat_activity shows the id without its epoch
_FENCE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = {pid} AND backend_xid::text::bigint = {xid} % 4294967296
"""
# The checkpoint that ends a recovery, or a clean shutdown, is its own redo point; no other one is.
_RECOVERY = """
    SELECT redo_lsn = checkpoint_lsn, checkpoint_lsn > '{log_position}'::pg_lsn
    FROM pg_control_checkpoint()
"""

# in the info of the pooled connection
_WROTE = "railway_wrote"
_STATE = "railway_commit"
_CONNECTION = "railway_connection"

_ANSWER_TIMEOUT = 5.0  # seconds for an answer about one transaction, from a server that is there

# Seconds between two looks at a server that is away, as drawn at random, and the longest time
# without a look. A server that comes up, gives an id to somebody who commits, and crashes again
# within the latter would go unnoticed.
_LOOKS = (0.02, 0.06)
_BLIND = 0.15


class Outcome(enum.Enum):
    """What is known of a COMMIT."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


_OUTCOMES = {
    "committed": Outcome.COMMITTED,
    "aborted": Outcome.ABORTED,
    "in progress": None,
    None: Outcome.UNKNOWN,  # so old that the server has forgotten it
}

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


@dataclass(frozen=True)
class _Ticket:
    """What must be known before a COMMIT, so that its outcome can be asked for after it."""

    xid: int
    log_position: str
    incarnation: str
    pid: int | None  # of the backend; None behind a pooler, which may have given it to others since
    read_at: float = field(default_factory=time.monotonic)


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
        event.listen(engine, "before_cursor_execute", _note_writes)
        event.listen(engine, "commit", _note_connection)
        event.listen(engine, "checkin", _forget)

    def do_commit(self, proxied: PoolProxiedConnection) -> None:
        """Commit; if the answer is lost, find out what it was, and give it."""
        wrote = proxied.info.pop(_WROTE, False)
        state = proxied.info.pop(_STATE, None)
        connection = proxied.info.pop(_CONNECTION, None)
        if state is None and self.timeout is not None:
            state = CommitState(deadline=time.monotonic() + self.timeout)
        if state is None:
            self._do_commit(proxied)
            return
        if state.writes is None:
            state.writes = wrote
        ticket = self._ticket(proxied) if state.writes else None
        state.sent = True
        try:
            self._do_commit(proxied)
        except Exception as error:
            if classify(error).kind is not FaultKind.DISCONNECT:
                state.outcome = Outcome.ABORTED  # the server has answered
                raise
            self._settle(ticket, state, error)
            # whoever committed goes on, and finds a new connection
            (connection or proxied).invalidate(error)
        else:
            state.outcome = Outcome.COMMITTED

    def _ticket(self, proxied: PoolProxiedConnection) -> _Ticket | None:
        """Read what identifies the open transaction: one round trip. None if it has not written."""
        cursor = proxied.cursor()
        try:
            cursor.execute(_TICKET)
            (row,) = cursor.fetchall()
        finally:
            cursor.close()
        xid, position, incarnation, pid = row
        if xid is None:
            return None
        is_direct = _client_side_pid(proxied.driver_connection) == pid
        return _Ticket(xid, position, incarnation, pid if is_direct else None)

    def _settle(self, ticket: _Ticket | None, state: CommitState, error: Exception) -> None:
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
            error.add_note(
                "sa_railway: the transaction was rolled back and has changed nothing; "
                "it can safely be run again"
            )
            raise error
        if outcome is Outcome.UNKNOWN and ticket:
            raise CommitOutcomeUnknownError(transaction_id=ticket.xid, orig=error) from error

    def _resolve(self, ticket: _Ticket, deadline: float) -> Outcome:
        """Ask until there is an answer or the deadline has passed."""
        watch = _Watch(ticket.read_at)
        for attempt in itertools.count(1):
            delay = random.uniform(*_LOOKS)  # noqa: S311 - spreads load, guards nothing
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

    def _ask(self, ticket: _Ticket, watch: _Watch) -> Outcome | None:
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
                return _Question(proxied, ticket, watch).outcome()
        finally:
            proxied.invalidate()  # closes it; a rollback would be one more thing to wait for
            pool.dispose()


class _Watch:
    """Whether a server that was away has been looked at without a gap since *since*."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._last = since
        self._gap = 0.0

    def look(self) -> None:
        now = time.monotonic()
        self._gap = max(self._gap, now - self._last)
        self._last = now

    def is_first_life(self, uptime: float) -> bool:
        """Return whether a server that is up for *uptime* seconds cannot have been up before."""
        return self._gap <= _BLIND or time.monotonic() - self._since - uptime <= _BLIND


class _Question:
    """One conversation with a server about the transaction of a ticket."""

    def __init__(self, proxied: PoolProxiedConnection, ticket: _Ticket, watch: _Watch) -> None:
        self._proxied = proxied
        self._ticket = ticket
        self._watch = watch

    def outcome(self) -> Outcome | None:
        """Return what became of the transaction; None if that is not decided yet."""
        ticket = self._ticket
        incarnation, is_standby, uptime = self._ask(_SERVER)
        if is_standby:
            return None  # in the middle of a failover; it may not have all that was committed
        if incarnation != ticket.incarnation:
            return self._after_restart(self._watch.is_first_life(uptime))
        (status,) = self._ask(_STATUS)
        if status == "in progress" and ticket.pid is not None:
            self._ask(_FENCE)
        return _OUTCOMES[status]

    def _after_restart(self, is_first_life: bool) -> Outcome:
        """Ask a server that has crashed, restarted or been replaced since the ticket was read."""
        is_end_of_recovery, has_survived = self._ask(_RECOVERY)
        if is_end_of_recovery and not has_survived:
            return Outcome.ABORTED
        try:
            (status,) = self._ask(_STATUS)
        except Exception as error:
            if classify(error).sqlstate != "22023":
                raise
            return Outcome.ABORTED  # an id from the future: lost, and not given out again yet
        if status in ("aborted", "in progress"):  # what is in progress now was not cut then
            return Outcome.ABORTED
        # with a later checkpoint in its place, nobody knows where the recovery ended
        is_ours = status == "committed" and is_end_of_recovery and is_first_life
        return Outcome.COMMITTED if is_ours else Outcome.UNKNOWN

    def _ask(self, sql: str) -> Sequence[Any]:
        """Return the one row that *sql* gives, with the fields of the ticket put in."""
        cursor = self._proxied.cursor()
        try:
            cursor.execute(sql.format(**vars(self._ticket)))
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return rows[0] if rows else ()


@guarded
def _note_writes(connection: Connection, cursor: object, statement: str, *details: object) -> None:
    if may_write(statement):
        connection.connection.info[_WROTE] = True


@guarded
def _note_connection(connection: Connection) -> None:
    """Remember who commits: ``do_commit()`` is not told."""
    connection.connection.info[_CONNECTION] = connection


@guarded
def _forget(dbapi_connection: object, record: ConnectionPoolEntry) -> None:
    """Leave nothing of a transaction that was rolled back to the next user of the connection."""
    record.info.pop(_WROTE, None)
    record.info.pop(_STATE, None)
    record.info.pop(_CONNECTION, None)


def _client_side_pid(driver_connection: Any) -> int | None:
    """Return the backend that the client was told of: psycopg2 and psycopg, then asyncpg."""
    if hasattr(driver_connection, "info"):
        pid: int = driver_connection.info.backend_pid
        return pid
    if hasattr(driver_connection, "get_server_pid"):
        return int(driver_connection.get_server_pid())
    return None
