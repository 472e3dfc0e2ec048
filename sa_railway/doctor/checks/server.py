"""What the server is: its version, and whether it takes writes."""

from __future__ import annotations

from sqlalchemy import text

from sa_railway.doctor.case import Case, Seen
from sa_railway.doctor.checks.timeouts import resetting
from sa_railway.doctor.findings import Finding, Kind, Severity

_OLDEST = 10  # the first with txid_status()
# see https://www.postgresql.org/support/versioning/
_ENDED = {
    10: "November 2022",
    11: "November 2023",
    12: "November 2024",
    13: "November 2025",
    14: "November 2026",
}

OLD = Kind(
    "old-server",
    Severity.WARNING,
    "PostgreSQL <version> is older than 10",
    "It cannot be asked for the outcome of a transaction, as run_transaction() and resolve_commit "
    "do, and it has got no security fixes for years.",
    "Upgrade the server: dump, and restore into a new service.",
    ("function txid_status(bigint) does not exist", "allowed: PostgreSQL 10 or newer"),
)
UNSUPPORTED = Kind(
    "unsupported-server",
    Severity.WARNING,
    "PostgreSQL <version> gets no security fixes since <month>",
    "Five years after its first release, a major version of PostgreSQL gets its last fixes. All "
    "of this package works with it.",
    "Upgrade the server: dump, and restore into a new service.",
)
STANDBY = Kind(
    "standby",
    Severity.ERROR,
    "The server is a read-only standby",
    "It follows another server, the primary, and takes no writes: the URL names a replica, or a "
    "failover has made this one a standby.",
    "Use the URL of the primary: with Railway's high availability that is port 5432, while 5433 "
    "leads to the replicas. Several hosts in one URL with target_session_attrs=read-write find "
    "the primary by themselves. If the primary is gone for good: SELECT pg_promote().",
    (
        "cannot execute INSERT in a read-only transaction",
        "cannot execute UPDATE in a read-only transaction",
        "psycopg2.errors.ReadOnlySqlTransaction",
    ),
)
READ_ONLY = Kind(
    "read-only",
    Severity.ERROR,
    "Transactions are read-only by default (set by: <source>)",
    "default_transaction_read_only is on. Some providers switch it on when the disk is full.",
    "If the disk is full, make room first. Then take it back where it is set: <reset>",
    ("cannot execute INSERT in a read-only transaction",),
)


def check_version(case: Case) -> Seen:
    """Ask for the version of the server."""
    with case.connection() as connection:
        version = connection.scalar(text("SHOW server_version"))
        number = int(connection.scalar(text("SHOW server_version_num")))
    return f"PostgreSQL {version}", _judge_version(version, number // 10000)


def _judge_version(version: str, major: int) -> list[Finding]:
    if major < _OLDEST:
        return [OLD.found(version=version)]
    if major in _ENDED:
        return [UNSUPPORTED.found(version=version, month=_ENDED[major])]
    return []


def check_read_only(case: Case) -> Seen:
    """See whether the server takes writes, unless the URL asks for one that does not."""
    with case.connection() as connection:
        is_standby = connection.scalar(text("SELECT pg_is_in_recovery()"))
        is_read_only, source = connection.execute(
            text(
                "SELECT setting = 'on', source FROM pg_settings"
                " WHERE name = 'default_transaction_read_only'"
            )
        ).one()
    wanted = str(case.url.query.get("target_session_attrs", ""))
    if wanted in ("standby", "prefer-standby", "read-only"):
        return f"target_session_attrs={wanted}: a server to read from is wanted", []
    if is_standby:
        return "", [STANDBY.found()]
    if is_read_only:
        reset = resetting(case, "default_transaction_read_only", source)
        return "", [READ_ONLY.found(source=source, reset=reset)]
    return "a primary, which takes writes", []
