"""Ask the server about a transaction: read its ticket, its status, and end its backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Dialect

from sa_railway.commit.decision import Outcome, Server, Status, Ticket
from sa_railway.commit.wire import (
    BACK,
    SAVEPOINT,
    Pooled,
    Wire,
    backend_pid,
    in_pipeline,
    is_lost,
    is_refusal,
    sqlstate_of,
)
from sa_railway.commit.work import Work
from sa_railway.engine.driver import is_idle
from sa_railway.faults import first_line

logger = logging.getLogger("sa_railway.commit")

# The facts that a role may be kept from reading, or a host from offering. pg_walfile_name() begins
# with the timeline that is being written; pg_control_checkpoint() still tells the old one for a
# while after a promotion.
_FACTS = {
    "system": "SELECT system_identifier FROM pg_control_system()",
    "timeline": (
        "CASE WHEN NOT pg_is_in_recovery() THEN "
        "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END"
    ),
    "checkpointer": (
        "SELECT pid || ' ' || extract(epoch FROM backend_start) FROM pg_stat_activity "
        "WHERE backend_type = 'checkpointer'"
    ),
    "checkpoint": "SELECT checkpoint_lsn - '0/0' FROM pg_control_checkpoint()",
    "bgwriter": "SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter",
    "archiver": "SELECT extract(epoch FROM stats_reset) FROM pg_stat_archiver",
}
_ALWAYS = (
    "(extract(epoch FROM pg_postmaster_start_time()))::text, (pg_is_in_recovery())::text, "
    "(current_setting('synchronous_standby_names') <> '')::text"
)
_POSITION = "CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() - '0/0' END"

# Since PostgreSQL 10; the newer pg_current_xact_id() and pg_xact_status() do the same. A standby
# gives no ids, and has nothing to commit.
_XID = "CASE WHEN NOT pg_is_in_recovery() THEN txid_current() END"
_PID = "pg_backend_pid()"

# The functions that no outcome can be proved without. Rights are looked at before the condition is,
# which gives no id away.
_RIGHTS = {
    "txid_current()": (
        "CASE WHEN pg_is_in_recovery() AND NOT pg_is_in_recovery() THEN txid_current() END"
    ),
    "txid_status(bigint)": "txid_status(3)",
}

# From the end of the snapshot on, an id is in progress or not given out yet, and txid_status()
# refuses the latter. Status and facts are read by one statement, which no pooler tears apart.
_STATUS = """CASE WHEN {xid} < txid_snapshot_xmax(txid_current_snapshot())
    THEN coalesce(txid_status({xid}), 'forgotten') END"""

# pg_stat_activity shows the id without its epoch. A backend that waits for a synchronous standby is
# left alone: the wait would end, and leave a COMMIT that the standby does not have.
_ENDBACKEND = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid}
    AND backend_xid::text::bigint = {xid} % 4294967296 AND {may_end}"""
MAY_END = """coalesce(wait_event, '') <> 'SyncRep'
    AND (current_setting('synchronous_standby_names') = '' OR state LIKE 'idle in transaction%')"""

# A time limit that ends the wait for a standby makes the COMMIT succeed without it.
WAIT_FOR_STANDBYS = "SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = 0"


class Inquiry:
    """What one engine asks its server about transactions.

    It learns which facts the server does not tell, and leaves them out from then on.
    """

    def __init__(self, dialect: Dialect, engine_name: str) -> None:
        self.engine_name = engine_name
        self.wire = Wire(dialect)
        self._is_asyncpg = dialect.driver == "asyncpg"
        self._has_warned = False
        self._facts = tuple(_FACTS)
        self._has_position = True
        self._is_tried = False

    def read_ticket(self, pooled: Pooled, work: Work) -> Ticket | Outcome:
        """Give the open transaction an id, if it has none yet, and read what identifies it.

        One round trip: behind a savepoint, so that a refusal does not end the transaction. asyncpg
        cannot send both at once, so there the savepoint is made until a ticket was read once, and
        again after a refusal.

        Returns:
            What is known instead: *committed* of a standby, where there is nothing to lose, and
            *unknown* if the server does not tell, or within a pipeline of the application's, which
            may have failed already.

        Raises:
            Exception: the connection is lost, or the transaction has failed, mostly before (25P02).
        """
        if in_pipeline(pooled):
            return Outcome.UNKNOWN
        asked = (self._facts, self._has_position)
        is_careful = not (self._is_tried and self._is_asyncpg)
        try:
            ticket = self._try_ticket(pooled, work, before=SAVEPOINT if is_careful else "")
        except Exception as error:
            if isinstance(error, ValueError):  # the application reads texts in its own way
                return self._without_ticket(error)
            if not is_refusal(error):
                raise
            if not is_careful:
                self._is_tried = False
                raise
            self.wire.run(pooled, BACK)
            self.learn(pooled)
            if (self._facts, self._has_position) != asked:
                return self.read_ticket(pooled, work)
            return self._without_ticket(error)
        self._is_tried = True
        return ticket

    def _without_ticket(self, error: Exception) -> Outcome:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: a transaction cannot have a ticket, so the outcome of a lost COMMIT is "
                "unknown: %s",
                *(self.engine_name, first_line(error)),
            )
        return Outcome.UNKNOWN

    def _try_ticket(self, pooled: Pooled, work: Work, *, before: str) -> Ticket | Outcome:
        position = f"({_POSITION})::text" if self._has_position else "NULL"
        query = f"SELECT ({_XID})::text, {_PID}::text, {position}"
        if work.server is None:
            query += f", {self._columns()}"
        xid, pid, at, *facts = self.wire.row(pooled, query, before=before)
        if xid is None:
            return Outcome.COMMITTED
        is_direct = pid == str(backend_pid(pooled.driver_connection))
        if not is_direct and work.server is not None:
            work.server = None  # behind a pooler after all, so it is another server's life
            return self._try_ticket(pooled, work, before=before)
        server = work.server or self._server(facts)
        if is_direct:
            # A crash ends this connection, so the look stays true as long as it lives.
            work.server = server
        return Ticket(
            xid=int(xid),
            server=server,
            position=None if at is None else int(at),
            pid=int(pid) if is_direct else None,
        )

    def learn(self, pooled: Pooled) -> None:
        """Find out which facts can be read."""
        self._facts = tuple(f for f in self._facts if self.can_read(pooled, _FACTS[f]))
        self._has_position = self._has_position and self.can_read(pooled, _POSITION)

    def can_read(self, pooled: Pooled, expression: str) -> bool:
        """Return whether the server tells what *expression* asks for, and leave no trace."""
        is_within = not is_idle(pooled.driver_connection)
        query = f"SELECT ({_subquery(expression)})::text"
        try:
            self.wire.row(pooled, query, before=SAVEPOINT if is_within else "")
        except Exception as error:
            if is_lost(pooled, error):
                raise
            if is_within:
                self.wire.run(pooled, BACK)
            return False
        finally:
            if not is_within:
                self.wire.rollback(pooled)
        return True

    def unreadable(self, pooled: Pooled) -> list[str]:
        """Return what keeps the server from proving an outcome, each in a few words."""
        facts = [_FACTS[f] for f in self._facts]
        everything = " || ".join(
            f"({_subquery(one)})::text" for one in (_POSITION, *_RIGHTS.values(), *facts)
        )
        if self.can_read(pooled, everything):
            return []  # as a rule, and in one round trip
        self.learn(pooled)
        missing = [
            f"EXECUTE on {name}"
            for name, call in _RIGHTS.items()
            if not self.can_read(pooled, call)
        ]
        if "system" not in self._facts:
            missing.append("EXECUTE on pg_control_system()")
        if not {"bgwriter", "archiver", "checkpoint"} & set(self._facts):
            missing.append("EXECUTE on pg_control_checkpoint()")
        return missing

    def look(self, pooled: Pooled, xid: int) -> tuple[Server, Status]:
        """Read what the server shows of its life, and the status of *xid*."""
        status = f"({_STATUS.format(xid=xid)})"
        asked = self._facts
        try:
            found, *facts = self.wire.row(pooled, f"SELECT {status}, {self._columns()}")
        except Exception as error:
            if is_lost(pooled, error):
                raise
            self.wire.rollback(pooled)
            self.learn(pooled)
            if self._facts == asked:
                raise
            found, *facts = self.wire.row(pooled, f"SELECT {status}, {self._columns()}")
        server = self._server(facts)
        return server, self._status_of(pooled, xid) if found is None else Status(found)

    def _status_of(self, pooled: Pooled, xid: int) -> Status:
        try:
            (status,) = self.wire.row(pooled, f"SELECT txid_status({xid})::text")
        except Exception as error:
            if sqlstate_of(error) != "22023":
                raise
            return Status.NOT_ASSIGNED
        return Status(status or "forgotten")

    def end_backend(self, pooled: Pooled, ticket: Ticket) -> None:
        """End the backend of *ticket*, if it still runs this very transaction."""
        if ticket.pid is not None:
            query = _ENDBACKEND.format(pid=ticket.pid, xid=ticket.xid, may_end=MAY_END)
            self.wire.row(pooled, query)

    def confirm(self, pooled: Pooled) -> None:
        """Return when the synchronous standbys have all that was committed so far.

        They are waited for by a COMMIT that comes after it. The connection commits statements by
        themselves from then on.
        """
        self.wire.rollback(pooled)
        self.wire.autocommit(pooled)
        self.wire.run(pooled, f"BEGIN; {WAIT_FOR_STANDBYS}")
        self.wire.row(pooled, "SELECT pg_logical_emit_message(true, 'sa_railway', '')::text")
        self.wire.run(pooled, "COMMIT")

    def _columns(self) -> str:
        facts = [f"({_subquery(_FACTS[f])})::text" if f in self._facts else "NULL" for f in _FACTS]
        return ", ".join([_ALWAYS, *facts])

    def _server(self, columns: Sequence[str | None]) -> Server:
        postmaster, is_standby, is_synchronous, *facts = columns
        system, timeline, checkpointer, checkpoint, *resets = facts
        return Server(
            postmaster=str(postmaster),
            system=system,
            timeline=timeline,
            checkpointer=checkpointer,
            checkpoint=None if checkpoint is None else int(checkpoint),
            resets=tuple(resets),
            is_standby=is_standby == "true",
            is_synchronous=is_synchronous == "true",
        )


def _subquery(expression: str) -> str:
    return f"({expression})" if expression.startswith("SELECT ") else expression
