"""The clients of the server, and those that hold a connection for nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, text

from sa_railway.doctor.case import Case, NotRunError, Seen
from sa_railway.doctor.checks.quoting import quoted, user_of
from sa_railway.doctor.findings import Finding, Kind, Severity

_NEARLY_FULL, _FULL = 0.7, 0.9  # the thresholds of Railway's own tools
_PAUSE = 30.0  # seconds; work that goes on seldom pauses as long within a transaction
_FORGOTTEN = 3600.0  # seconds; what is idle for that long may be forgotten
_MOMENT = 0.5  # seconds; a wait for a lock that is longer is worth a look
_SHOWN = 3  # sessions by name; the others are counted

SCARCE = Kind(
    "connections-scarce",
    Severity.WARNING,
    "<used> of <available> connections are in use (<share> %)",
    "When none is left, new ones are refused. During a deploy, two deployments are connected.",
    "Lower pool_size, max_overflow, processes or replicas, as sa-railway budget recommends; end "
    "what is idle with pg_terminate_backend(); or put PgBouncer before the server.",
    ("sorry, too many clients already",),
)
IDLE_IN_TRANSACTION = Kind(
    "idle-in-transaction",
    Severity.WARNING,
    "<count> idle in a transaction for over <seconds> s: <sessions>",
    "A client began a transaction and neither ended it nor went on: a leaked connection or "
    "session, slow work in between, or a client that is gone. It keeps its locks, stops VACUUM "
    "from cleaning up, and holds a connection.",
    "Find the code by its application_name, and commit before slow work. End one now: SELECT "
    "pg_terminate_backend(<pid>). End them always: ALTER ROLE <role> SET "
    "idle_in_transaction_session_timeout = '60s'.",
    (
        "QueuePool limit of size <size> overflow <overflow> reached, connection timed out",
        "canceling statement due to lock timeout",
    ),
)
BLOCKED = Kind(
    "lock-waits",
    Severity.WARNING,
    "<count> for a lock: <sessions>",
    "Another session holds what they need, until its transaction ends: <holders>. A migration that "
    "waits for a table stops all that come after it, too.",
    "Commit sooner in what holds the lock. End it now: <end>. For migrations, SET lock_timeout = "
    "'5s' makes them give up in place of stopping the others.",
    (
        "canceling statement due to lock timeout",
        "canceling statement due to statement timeout",
        "still waiting for AccessExclusiveLock on relation",
    ),
)
FORGOTTEN = Kind(
    "idle-sessions",
    Severity.NOTE,
    "<count> idle for over <minutes> minutes: <sessions>",
    "A pool keeps its connections open also when there is no work, and a client that has vanished "
    "without notice stays connected until TCP keepalives of the server find out.",
    "If connections are scarce, let pools release them: SA_RAILWAY_IDLE_RELEASE=300.",
)

_SESSIONS = text(
    "SELECT pid, coalesce(nullif(application_name, ''), usename, '?') AS name, state,"
    " extract(epoch FROM clock_timestamp() - state_change)::float AS seconds"
    " FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    # without the permission to see it, all that says whose session it is is null
    " AND (backend_type = 'client backend' OR backend_type IS NULL AND datid IS NOT NULL)"
)
# the locks of others can be seen without any permission
_WAITING = text(
    "SELECT a.pid, coalesce(nullif(application_name, ''), usename, '?') AS name,"
    " pg_blocking_pids(a.pid) AS holders FROM pg_stat_activity a"
    " WHERE a.pid IN (SELECT pid FROM pg_locks WHERE NOT granted) ORDER BY a.pid"
)
_HOLDERS = text(
    "SELECT pid, coalesce(nullif(application_name, ''), usename, '?') AS name"
    " FROM pg_stat_activity WHERE pid = ANY(:pids) ORDER BY pid"
)
_LIMITS = text(
    "SELECT name, setting::int AS setting FROM pg_settings WHERE name IN"
    # the last one exists from PostgreSQL 16 on
    " ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
)


def read_limits(connection: Connection) -> tuple[int, int]:
    """Return the server's max_connections, and how many of these it reserves."""
    settings = {row.name: row.setting for row in connection.execute(_LIMITS)}
    return settings.pop("max_connections"), sum(settings.values())


def check_sessions(case: Case) -> Seen:
    """Count the sessions on the server, and find those that hold a connection for nothing."""
    with case.connection() as connection:
        rows = connection.execute(_SESSIONS).all()
        total, reserved = read_limits(connection)
        blocked = _blocked(connection)
    findings = [
        *_scarcity(len(rows) + 1, total - reserved),
        *_idle(case, rows),
        *blocked,
    ]
    used = f"{len(rows) + 1} of {total} connections in use"
    hidden = sum(row.state is None for row in rows)
    if hidden:
        raise NotRunError(
            f"{used}; {hidden} of other users cannot be seen without GRANT pg_read_all_stats TO "
            f"{case.url.username}",
            findings,
        )
    return used, findings


def _scarcity(used: int, available: int) -> list[Finding]:
    share = used / available
    if share < _NEARLY_FULL:
        return []
    severity = Severity.ERROR if share >= _FULL else Severity.WARNING
    return [
        replace(
            SCARCE.found(used=used, available=available, share=f"{share * 100:.0f}"),
            severity=severity,
        )
    ]


def _idle(case: Case, rows: Sequence[Row[Any]]) -> list[Finding]:
    findings = []
    paused = [r for r in rows if (r.state or "").startswith("idle in t") and r.seconds > _PAUSE]
    if paused:
        findings.append(
            IDLE_IN_TRANSACTION.found(
                count=_count(paused),
                seconds=f"{_PAUSE:g}",
                sessions=_names(paused),
                pid=paused[0].pid,
                role=quoted(user_of(case)),
                size=case.profile.pool_size,
                overflow=case.profile.max_overflow,
            )
        )
    forgotten = [r for r in rows if r.state == "idle" and r.seconds > _FORGOTTEN]
    if forgotten:
        findings.append(
            FORGOTTEN.found(
                count=_count(forgotten),
                minutes=f"{_FORGOTTEN / 60:g}",
                sessions=_names(forgotten),
            )
        )
    return findings


def _blocked(connection: Connection) -> list[Finding]:
    """Find sessions that wait for a lock, and still do a moment later: most waits are short."""
    first = connection.execute(_WAITING).all()
    if not first:
        return []
    time.sleep(_MOMENT)
    before = {row.pid: row.holders for row in first}
    rows = [r for r in connection.execute(_WAITING) if before.get(r.pid) == r.holders]
    if not rows:
        return []
    waiting = {row.pid for row in rows}
    pids = sorted({pid for row in rows for pid in row.holders} - waiting)
    holders = connection.execute(_HOLDERS, {"pids": pids}).all()
    names = [f"{row.name} (pid {row.pid})" for row in holders]
    ends = [f"SELECT pg_terminate_backend({row.pid})" for row in holders]
    if 0 in pids:  # it belongs to no session, and survives a restart
        names.append("a prepared transaction")
        ends.append("ROLLBACK PREPARED, with a name in pg_prepared_xacts")
    shown = [f"{row.name} (pid {row.pid})" for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return [
        BLOCKED.found(
            count=f"{_count(rows)} wait{'' if len(rows) > 1 else 's'}",
            sessions=", ".join(shown) + more,
            holders=", ".join(names) or "one that has just gone",
            end="; ".join(ends) or "it has gone",
        )
    ]


def _count(rows: Sequence[Row[Any]]) -> str:
    return f"{len(rows)} session{'s' if len(rows) > 1 else ''}"


def _names(rows: Sequence[Row[Any]]) -> str:
    """Name the oldest, but for what they have executed, which may hold anything."""
    oldest = sorted(rows, key=lambda row: -row.seconds)
    names = [f"{row.name} (pid {row.pid}, {row.seconds:.0f} s)" for row in oldest[:_SHOWN]]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
