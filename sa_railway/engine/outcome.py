"""Ask a server what became of a transaction, and know when its answer cannot be trusted.

Two things make the answer certain:

* While the old backend is still at work, the transaction is "in progress". The backend is
  terminated, so that it cannot commit after somebody has run the work again.
* After a crash, ids that had not reached the write-ahead log are given out a second time, so that
  "committed" may be said of a stranger. The log position that was read with the id tells: if the
  checkpoint that ended the recovery lies at or before it, our COMMIT was lost with the rest. This
  holds for the first recovery only, so whoever waits for the server looks often enough to be sure
  that it has not come up, and crashed again, in between.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.pool import PoolProxiedConnection

from sa_railway.faults import classify

__all__ = ["LOOKS", "Outcome", "Ticket", "Watch", "ask", "read_ticket"]

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

# Seconds between two looks at a server that is away, as drawn at random, and the longest time
# without a look. A server that comes up, gives an id to somebody who commits, and crashes again
# within the latter would go unnoticed.
LOOKS = (0.02, 0.06)
_BLIND = 0.1

# Seconds that a backend gets to finish a COMMIT whose client is gone, before it is ended.
_GRACE = 0.1


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


@dataclass(frozen=True)
class Ticket:
    """What must be known before a COMMIT, so that its outcome can be asked for after it."""

    xid: int
    log_position: str
    incarnation: str
    pid: int | None  # of the backend; None behind a pooler, which may have given it to others since
    read_at: float = field(default_factory=time.monotonic)


def read_ticket(proxied: PoolProxiedConnection) -> Ticket | None:
    """Read what identifies the open transaction: one round trip. None if it has not written."""
    xid, position, incarnation, pid = _row(proxied, _TICKET)
    if xid is None:
        return None
    is_direct = _client_side_pid(proxied.driver_connection) == pid
    return Ticket(xid, position, incarnation, pid if is_direct else None)


class Watch:
    """Whether a server that was away has been looked at without a gap since *since*."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._last = since
        self._gap = 0.0

    def look(self) -> None:
        """Note that the server was looked at just now."""
        now = time.monotonic()
        self._gap = max(self._gap, now - self._last)
        self._last = now

    def is_patient_no_more(self) -> bool:
        """Return whether a COMMIT has had its time to end by itself, which most do in no time."""
        return time.monotonic() - self._since > _GRACE

    def is_first_life(self, uptime: float) -> bool:
        """Return whether a server that is up for *uptime* seconds cannot have been up before."""
        return self._gap <= _BLIND or time.monotonic() - self._since - uptime <= _BLIND


def ask(proxied: PoolProxiedConnection, ticket: Ticket, watch: Watch) -> Outcome | None:
    """Return what became of the transaction; None if that is not decided yet."""
    incarnation, is_standby, uptime = _row(proxied, _SERVER)
    if is_standby:
        return None  # in the middle of a failover; it may not have all that was committed
    if incarnation != ticket.incarnation:
        return _ask_after_restart(proxied, ticket, watch.is_first_life(uptime))
    (status,) = _row(proxied, _STATUS, ticket)
    if status == "in progress" and ticket.pid is not None and watch.is_patient_no_more():
        _row(proxied, _FENCE, ticket)
    return _OUTCOMES[status]


def _ask_after_restart(
    proxied: PoolProxiedConnection, ticket: Ticket, is_first_life: bool
) -> Outcome:
    """Ask a server that has crashed, restarted or been replaced since the ticket was read."""
    is_end_of_recovery, has_survived = _row(proxied, _RECOVERY, ticket)
    if is_end_of_recovery and not has_survived:
        return Outcome.ABORTED
    try:
        (status,) = _row(proxied, _STATUS, ticket)
    except Exception as error:
        if classify(error).sqlstate != "22023":
            raise
        return Outcome.ABORTED  # an id from the future: lost, and not given out again yet
    if status in ("aborted", "in progress"):  # what is in progress now was not cut then
        return Outcome.ABORTED
    # with a later checkpoint in its place, nobody knows where the recovery ended
    is_ours = status == "committed" and is_end_of_recovery and is_first_life
    return Outcome.COMMITTED if is_ours else Outcome.UNKNOWN


def _row(proxied: PoolProxiedConnection, sql: str, ticket: Ticket | None = None) -> Sequence[Any]:
    """Return the one row that *sql* gives, with the fields of *ticket* put in."""
    cursor = proxied.cursor()
    try:
        cursor.execute(sql.format(**vars(ticket)) if ticket else sql)
        rows = cursor.fetchall()
    finally:
        cursor.close()
    return rows[0] if rows else ()


def _client_side_pid(driver_connection: Any) -> int | None:
    """Return the backend that the client was told of: psycopg2 and psycopg, then asyncpg."""
    if hasattr(driver_connection, "info"):
        pid: int = driver_connection.info.backend_pid
        return pid
    if hasattr(driver_connection, "get_server_pid"):
        return int(driver_connection.get_server_pid())
    return None
