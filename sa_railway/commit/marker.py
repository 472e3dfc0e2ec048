"""A row per transaction, by which every COMMIT can be proved. It needs a table.

Right before the COMMIT the transaction inserts a row with an id that the client has made. The row
is there if, and only if, the transaction was committed, on whatever server the data has come to:
after crashes, behind poolers, on a promoted standby.

To ask is to write the row, too. That waits for the transaction if it is still at work. Where there
is no row it leaves one that says *not committed*, and the unique id keeps the transaction from
being committed later, even if its statements are still under way.

Old rows are removed a few at a time, after every so many commits, and the point up to which they
may be gone is written down: an id from before it proves nothing by its absence. Ids are in the
order of the clients' clocks, so a wrong clock can make an outcome unknown, but not wrong.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import uuid
from dataclasses import dataclass

from sqlalchemy import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sa_railway.commit.decision import Outcome, decide_by_marker
from sa_railway.commit.marker_schema import HOME, REMOVED, TABLE, USABLE
from sa_railway.commit.status import MAY_END, WAIT_FOR_STANDBYS, Inquiry
from sa_railway.commit.wire import (
    BACK,
    SAVEPOINT,
    backend_pid,
    has_failed,
    in_pipeline,
    is_lost,
    is_refusal,
    sqlstate_of,
)
from sa_railway.engine.watchdog import limit
from sa_railway.faults import first_line

logger = logging.getLogger("sa_railway.commit")

# in the info of the pooled connection
_TABLE = "railway_marker_table"

# Seconds for the answer to a statement, from a server that is there.
_ANSWER_TIMEOUT = 5.0

# Seconds to wait for a transaction that still holds its row, before its backend is ended.
_PATIENCE = "1s"

_HOME = "SELECT removed_before::text FROM {table} WHERE id = '{home}'"
_FIRST_ROWS = f"{_HOME} AND EXISTS (SELECT FROM {{table}} WHERE id = '{{removed}}')"
_INSERT = "INSERT INTO {table} (id, committed) VALUES ('{id}', true)"
# The update changes nothing. It waits for a transaction that is still at work, and its own COMMIT
# waits for the synchronous standbys, which then have everything that came before it, too.
_ASK = """INSERT INTO {table} AS marker (id, committed) VALUES ('{id}', false)
    ON CONFLICT (id) DO UPDATE SET committed = marker.committed RETURNING committed::text,
        (current_setting('synchronous_standby_names') <> '')::text"""
_MAY_BE_REMOVED = "SELECT ('{id}' < removed_before)::text FROM {table} WHERE id = '{removed}'"

# The backend whose transaction holds the row, if it still does. A pooler tells its clients of
# backends that are none, so the connection that asks must be a direct one.
_END_BACKEND = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = {pid} AND pg_backend_pid() = {own} AND backend_xid IS NOT NULL
    AND EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid
        AND relation = '{table}'::regclass AND mode = 'RowExclusiveLock') AND {may_end}"""

# The point moves first, and no row goes unless it does. By the server's clock, in the ids' form.
_REMOVE = """WITH point AS (
        SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - {kept}), 12, '0')
            || repeat('0', 20))::uuid AS before),
    moved AS (UPDATE {table} SET removed_before = greatest(removed_before, before) FROM point
        WHERE id = (SELECT id FROM {table} WHERE id = '{removed}' FOR UPDATE SKIP LOCKED)
        RETURNING before)
    DELETE FROM {table} USING moved WHERE id = ANY(ARRAY(
        SELECT id FROM {table} AS kept, point WHERE committed AND id < before
        ORDER BY id LIMIT {bite} FOR UPDATE OF kept SKIP LOCKED))"""

# A row is kept for a day: a client asks for half a minute, unless it was told otherwise. After
# every so many commits of an engine up to twice as many rows go, so that a backlog shrinks.
_KEPT = 86_400_000  # milliseconds, as in the ids
_EVERY = 128
_BITE = 256


@dataclass(frozen=True)
class Marker:
    """The row of one transaction.

    Attributes:
        id: made by the client, in the order of its clock.
        table: where the row is, with its schema.
        home: what tells the database of the table from any other.
        pid: of the backend, as the driver has it.
        is_piped: whether the row travels together with the COMMIT.
    """

    id: uuid.UUID
    table: str
    home: str
    pid: int | None
    is_piped: bool


def _new_id() -> uuid.UUID:
    milliseconds = time.time_ns() // 1_000_000
    return uuid.UUID(int=milliseconds << 80 | int.from_bytes(os.urandom(10), "big"))


class MarkerTable:
    """The table of markers as one engine uses it."""

    def __init__(self, dialect: Dialect, inquiry: Inquiry) -> None:
        self._is_asyncpg = dialect.driver == "asyncpg"
        self._do_commit = dialect.do_commit  # as it is without a resolver around it
        self._inquiry = inquiry
        self._wire = inquiry.wire
        self._count = itertools.count(1)
        self._warned: set[str] = set()

    def _warn(self, text: str, *values: object) -> None:
        """Log a warning of this kind, once."""
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text, self._inquiry.engine_name, *values)

    def find(self, record: ConnectionPoolEntry) -> None:
        """Look for the table on a new connection; say once what is missing."""
        is_usable = False
        try:
            row = self._wire.row(record, USABLE.format(name=TABLE))
            is_usable = bool(row) and row[1] == "true"
            if is_usable:
                query = _FIRST_ROWS.format(table=row[0], home=HOME, removed=REMOVED)
                home = self._wire.row(record, query)
                if home:
                    record.info[_TABLE] = (row[0], home[0])
                    return
        finally:
            self._wire.rollback(record)
        if is_usable:
            self._warn(
                "%s: commit_marker is on, but %s lacks its first rows: make them with sa-railway "
                "commit-marker --create; until then, outcomes are proved by transaction ids",
                row[0],
            )
        elif row:
            self._warn(
                "%s: commit_marker is on, but the role may not read and write %s: its owner can "
                "change that with sa-railway commit-marker --create --grant-to ROLE; until then, "
                "outcomes are proved by transaction ids",
                row[0],
            )
        else:
            self._warn(
                "%s: commit_marker is on, but there is no table %s: create it with sa-railway "
                "commit-marker --create; until then, outcomes are proved by transaction ids",
                TABLE,
            )

    def new(self, proxied: PoolProxiedConnection) -> Marker | None:
        """Return a marker for the open transaction; None if it can have none."""
        # the ticket will say that a transaction has failed
        if _TABLE not in proxied.info or has_failed(proxied) or in_pipeline(proxied):
            return None
        table, home = proxied.info[_TABLE]
        return Marker(
            id=_new_id(),
            table=table,
            home=home,
            pid=backend_pid(proxied.driver_connection),
            is_piped=self._wire.can_run_together(proxied),
        )

    def insert(self, proxied: PoolProxiedConnection, marker: Marker) -> bool:
        """Write the row, in one round trip; return False if the server refuses it.

        Raises:
            Exception: the connection is lost, or the transaction has failed before (25P02).
        """
        try:
            self._wire.run(proxied, f"{SAVEPOINT};{_insert_sql(marker)}")
        except Exception as error:
            if not is_refusal(error):
                raise
            self._give_up(proxied, error)
            return False
        return True

    def insert_and_commit(self, proxied: PoolProxiedConnection, marker: Marker) -> bool:
        """Write the row and commit, together in one round trip.

        Returns:
            False if the server refused the row. It has skipped the COMMIT then, and the transaction
            is as it was before.
        """
        try:
            self._wire.run_together(proxied, (SAVEPOINT, _insert_sql(marker), "COMMIT"))
        except Exception as error:
            if not has_failed(proxied):
                raise
            # of several errors the pipeline raises the last: that the others were skipped
            cause = error.__context__
            self._give_up(proxied, cause if isinstance(cause, Exception) else error)
            return False
        return True

    def _give_up(self, proxied: PoolProxiedConnection, error: Exception) -> None:
        """Let the transaction go on without the row that was refused."""
        sqlstate = sqlstate_of(error) or ""
        if sqlstate == "42P01":
            proxied.info.pop(_TABLE, None)  # it is gone, until a new connection finds it
        self._wire.run(proxied, BACK)
        # One that is read-only has nothing to write. One that cannot be serialized was to fail at
        # its next statement, whatever this was; the COMMIT says so.
        if sqlstate == "25006" or sqlstate.startswith("40"):
            return
        self._warn(
            "%s: a commit marker was refused, and the outcome is proved by the transaction's id: "
            "%s",
            first_line(error),
        )

    def ask(
        self, proxied: PoolProxiedConnection, marker: Marker, *, seconds: float, is_patient: bool
    ) -> Outcome | None:
        """Return what became of the transaction; None if it is still at work.

        Args:
            proxied: a new connection, which is closed afterwards.
            marker: of the transaction.
            seconds: how long a synchronous standby is waited for.
            is_patient: whether a backend that is still at work is left to it.
        """
        wire, table = self._wire, marker.table
        wire.autocommit(proxied)
        with limit(proxied.driver_connection, _ANSWER_TIMEOUT):
            if not is_patient and marker.pid is not None:
                self._end_backend(proxied, marker)
            if wire.row(proxied, _HOME.format(table=table, home=HOME)) != [marker.home]:
                return None  # another database, to which the address may lead for a while
            wire.run(
                proxied,
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
                f"SET LOCAL lock_timeout = '{_PATIENCE}'; {WAIT_FOR_STANDBYS}",
            )
            try:
                answer = wire.row(proxied, _ASK.format(table=table, id=marker.id))
            except Exception as error:
                if sqlstate_of(error) == "55P03":
                    return None
                raise
        is_committed, is_synchronous = (value == "true" for value in answer)
        with limit(proxied.driver_connection, seconds if is_synchronous else _ANSWER_TIMEOUT):
            wire.run(proxied, "COMMIT")
        with limit(proxied.driver_connection, _ANSWER_TIMEOUT):
            # A second statement sees what a removal has committed meanwhile.
            query = _MAY_BE_REMOVED.format(table=table, id=marker.id, removed=REMOVED)
            row = wire.row(proxied, query)
        may_be_removed = not row or row[0] != "false"
        return decide_by_marker(is_committed=is_committed, may_be_removed=may_be_removed)

    def _end_backend(self, proxied: PoolProxiedConnection, marker: Marker) -> None:
        own = backend_pid(proxied.driver_connection)
        query = _END_BACKEND.format(pid=marker.pid, own=own, table=marker.table, may_end=MAY_END)
        self._wire.row(proxied, query)

    def remove_old(self, proxied: PoolProxiedConnection, table: str) -> Exception | None:
        """Remove a few old rows of *table* after every so many commits; a failure changes nothing.

        For a connection whose transaction has just been committed.

        Returns:
            The error that the connection was lost with, if it was.
        """
        if next(self._count) % _EVERY:
            return None
        statement = _REMOVE.format(table=table, removed=REMOVED, kept=_KEPT, bite=_BITE)
        try:
            if not self._is_asyncpg:  # which commits by itself here
                statement = f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {statement}"
            self._wire.run(proxied, statement)
            self._do_commit(proxied)
        except Exception as error:  # noqa: BLE001 - the caller's own COMMIT has succeeded
            self._warn("%s: old commit markers were not removed: %s", first_line(error))
            if is_lost(proxied, error):
                return error
            self._wire.rollback(proxied)
        return None


def _insert_sql(marker: Marker) -> str:
    return _INSERT.format(table=marker.table, id=marker.id)
