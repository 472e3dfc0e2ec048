"""What the server is, what it is set to, and whether it holds what the application needs."""

from __future__ import annotations

from sqlalchemy import text

from sa_railway.observe.case import Case, NotRunError, Seen
from sa_railway.observe.findings import Finding, Kind, Severity
from sa_railway.recovery.gate import Gate

__all__ = ["check_read_only", "check_tables", "check_timeouts", "check_version"]

_OLDEST = 130000  # the first with pg_current_xact_id_if_assigned() and pg_xact_status()

OLD = Kind(
    "old-server",
    Severity.WARNING,
    "PostgreSQL <version> is older than 13",
    "It cannot be asked for the outcome of a transaction in the way that run_transaction() and "
    "resolve_commit need, and it gets no security fixes any more.",
    "Upgrade the server: dump, and restore into a new service.",
    ("function pg_current_xact_id_if_assigned() does not exist",),
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
    "If the disk is full, make room; then ALTER ROLE <user> RESET default_transaction_read_only, "
    "or the same with ALTER DATABASE or ALTER SYSTEM, depending on where it is set.",
    ("cannot execute INSERT in a read-only transaction",),
)
IDLE_SESSION = Kind(
    "idle-session-timeout",
    Severity.WARNING,
    "The server closes idle connections after <timeout> s, before the pool replaces them "
    "(pool_recycle is <recycle> s)",
    "idle_session_timeout is set by: <source>. A pool does not notice: what was idle for longer "
    "fails at its next use. This package finds it at checkout, other clients do not.",
    "Let the pool be faster: SA_RAILWAY_POOL_RECYCLE=<below>. Or lift the timeout: ALTER ROLE "
    "<user> SET idle_session_timeout = 0.",
    (
        "terminating connection due to idle-session timeout",
        "server closed the connection unexpectedly",
    ),
)
IDLE_TRANSACTION = Kind(
    "idle-in-transaction-timeout",
    Severity.NOTE,
    "The server ends sessions that pause for <timeout> s within a transaction",
    "idle_in_transaction_session_timeout is set by: <source>. It protects the server from "
    "forgotten transactions; work that waits for something else meanwhile loses its connection.",
    "Commit before slow work that is not in the database, such as a call to another service.",
    (
        "terminating connection due to idle-in-transaction timeout",
        "psycopg.errors.IdleInTransactionSessionTimeout",
    ),
)
STATEMENT = Kind(
    "statement-timeout",
    Severity.NOTE,
    "The server cancels statements that take longer than <timeout> s",
    "statement_timeout is set by: <source>. It holds for migrations, too.",
    "Make the statement faster, or lift the limit where it must be: SET LOCAL statement_timeout "
    "= 0 within its transaction.",
    (
        "canceling statement due to statement timeout",
        "psycopg2.errors.QueryCanceled",
    ),
)
TABLES = Kind(
    "tables-missing",
    Severity.ERROR,
    "Not there: <missing>",
    "The migrations have not been run on this database, or have put it into a schema that is not "
    "in the search path; or this is not the database it is taken for.",
    "Run the migrations as pre-deploy command, such as flask db upgrade or alembic upgrade head, "
    "and compare the name of the database.",
    (
        'relation "<table>" does not exist',
        "psycopg2.errors.UndefinedTable",
        "asyncpg.exceptions.UndefinedTableError",
    ),
)

_SETTINGS = text(
    "SELECT name, setting::float / 1000, source FROM pg_settings WHERE name IN"
    " ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'statement_timeout')"
    " ORDER BY name"
)


def check_version(case: Case) -> Seen:
    """Ask for the version of the server."""
    with case.connection() as connection:
        version = connection.scalar(text("SHOW server_version"))
        number = int(connection.scalar(text("SHOW server_version_num")))
    findings = [OLD.found(version=version)] if number < _OLDEST else []
    return f"PostgreSQL {version}", findings


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
        return "", [READ_ONLY.found(source=source, user=case.url.username)]
    return "a primary, which takes writes", []


def check_timeouts(case: Case) -> Seen:
    """Compare the server's timeouts with the pool."""
    with case.connection() as connection:
        rows = connection.execute(_SETTINGS).all()
    seen, findings = [], []
    for name, seconds, source in rows:
        if seconds > 0:
            seen.append(f"{name} {seconds:g} s")
            findings += _judge(case, name, seconds, source)
    return ", ".join(seen) or "none is set", findings


def _judge(case: Case, name: str, seconds: float, source: str) -> list[Finding]:
    recycle = case.profile.pool_recycle
    values = {"timeout": f"{seconds:g}", "source": source, "user": case.url.username}
    if name == "idle_in_transaction_session_timeout":
        return [IDLE_TRANSACTION.found(**values)]
    if name == "statement_timeout":
        return [STATEMENT.found(**values)]
    if recycle <= seconds:
        return []
    return [IDLE_SESSION.found(recycle=f"{recycle:g}", below=f"{seconds * 0.8:g}", **values)]


def check_tables(case: Case) -> Seen:
    """Look for the tables that were asked for."""
    if not case.tables:
        raise NotRunError("none was asked for (--table)")
    with case.connection() as connection:
        missing = Gate(case.tables, None, "").missing(connection)
    if missing:
        first = missing[0].removeprefix("table ")
        return "", [TABLES.found(missing=", ".join(missing), table=first)]
    return f"there: {', '.join(case.tables)}", []
