"""Whether the server lets the application in, and what its refusal, or its silence, means."""

from __future__ import annotations

from sqlalchemy import text

from sa_railway.faults import FaultKind, classify, first_line
from sa_railway.observe.case import Case, Seen, SilentError
from sa_railway.observe.findings import Finding, Kind, Severity

__all__ = ["check_login", "explain", "is_lost"]

PASSWORD = Kind(
    "wrong-password",
    Severity.ERROR,
    "The password for user <user> is wrong",
    "The server has another one. The image of PostgreSQL takes POSTGRES_PASSWORD only when its "
    "volume is empty, and a rotated password reaches a service with its next deploy.",
    "Set the password of the database in the URL, best by reference: "
    "DATABASE_URL=${{Postgres.DATABASE_URL}}, then deploy again. Or change that of the database: "
    "ALTER ROLE <user> PASSWORD '...'.",
    ('password authentication failed for user "<user>"',),
)
DATABASE = Kind(
    "database-missing",
    Severity.ERROR,
    "There is no database <database>",
    "The server is there and lets the user in, but has no database of this name. On Railway it is "
    "railway, unless POSTGRES_DB says otherwise.",
    'Correct the name at the end of the URL, or create it: CREATE DATABASE "<database>".',
    ('database "<database>" does not exist',),
)
TOO_MANY = Kind(
    "too-many-clients",
    Severity.ERROR,
    "The server has no connection left",
    "All of max_connections are taken. Most often replicas x processes x (pool_size + "
    "max_overflow), twice of it during a deploy, is more than the server has; or sessions that "
    "nobody uses are still open.",
    "Lower pool_size, max_overflow, processes or replicas, as sa-railway budget recommends; end "
    "what is idle with pg_terminate_backend(); or put PgBouncer before the server.",
    (
        "sorry, too many clients already",
        "remaining connection slots are reserved for",
        'too many connections for role "<user>"',
        'too many connections for database "<database>"',
    ),
)
STARTING = Kind(
    "starting",
    Severity.ERROR,
    "The server is starting, stopping or recovering",
    "It was restarted, or has crashed and replays its log; that takes seconds as a rule.",
    "Wait: sa-railway wait. If it does not end, look at the log of the database service.",
    (
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
    ),
)
PARAMETER = Kind(
    "startup-parameter",
    Severity.ERROR,
    "A setting that is sent at connect is refused: <message>",
    "PgBouncer accepts only a few there, and Railway puts it before the database by one click. "
    "The setting comes from options=-c ... in the URL or in connect_args, or from asyncpg's "
    "server_settings.",
    "Remove it there and set it for the role, for example: ALTER ROLE <user> SET statement_timeout "
    "= '30s'.",
    (
        "unsupported startup parameter: options",
        "unsupported startup parameter: statement_timeout",
        "unsupported startup parameter in options: statement_timeout",
    ),
)
CERTIFICATE = Kind(
    "certificate",
    Severity.ERROR,
    "The certificate of the server cannot be verified: <message>",
    "Railway's is signed by a root of its own, is made for localhost, and both change when it is "
    "renewed. sslmode=verify-ca and verify-full cannot work with that.",
    "Use sslmode=require, which encrypts without verifying, or give the root with sslrootcert.",
    (
        "SSL error: certificate verify failed",
        'root certificate file "<path>" does not exist',
        'server certificate for "localhost" does not match host name "<host>"',
        "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED]",
    ),
)
NOT_ADMITTED = Kind(
    "not-admitted",
    Severity.ERROR,
    "The server does not admit user <user> to database <database>: <message>",
    "There is no such role, it may not log in, or pg_hba.conf has no line for it.",
    "Correct the user in the URL; or create it with CREATE ROLE ... LOGIN, or add a line to "
    "pg_hba.conf.",
    (
        'role "<user>" does not exist',
        "no pg_hba.conf entry for host",
        'password authentication failed for user "<user>"',
        "fe_sendauth: no password supplied",
    ),
)
STATEMENT_MODE = Kind(
    "statement-pooling",
    Severity.ERROR,
    "A pooler in statement mode is in between, which allows no transactions",
    "It gives every single statement to another backend (pool_mode = statement). SQLAlchemy, and "
    "whoever wants to roll back, needs transactions.",
    "Set pool_mode = transaction in the pooler, or connect past it.",
    ("transaction blocks not allowed in statement pooling mode",),
)
LOGIN = Kind(
    "connect-failed",
    Severity.ERROR,
    "Connecting failed: <message>",
    "The server, something on the way to it, or a setting of the connection has ended it before it "
    "could be used.",
    "<advice>",
)
SQLITE_FILE = Kind(
    "sqlite-file",
    Severity.ERROR,
    "The SQLite file <database> cannot be opened",
    "SQLite makes the file if it is missing, but not the folder that it is in, and must be allowed "
    "to write to both.",
    "Make the folder, or correct the path in the URL: sqlite:///app.db is relative to where the "
    "application was started, sqlite:////data/app.db with four slashes is not.",
    ("sqlite3.OperationalError: unable to open database file",),
)
SILENT = Kind(
    "silent",
    Severity.ERROR,
    "The server answers no more: nothing has come within <seconds> s",
    "It is frozen or overloaded; or a pooler is in between, which accepts everybody and has no "
    "connection to the server to give.",
    "Look at CPU, memory and disk of the database service, and for a pooler at its pool size and "
    "its log.",
    ("query_wait_timeout", "timeout expired", "TimeoutError"),
)
LOST = Kind(
    "lost",
    Severity.ERROR,
    "The connection was lost while it was examined: <message>",
    "The server was restarted or has crashed, somebody ended the session, or a proxy in between "
    "closed it. psycopg2 says no more, either, if a pooler in statement mode is in between.",
    "Look at the deployments and the log of the database service. Applications that use this "
    "package get a new connection; run the doctor again.",
    (
        "server closed the connection unexpectedly",
        "terminating connection due to administrator command",
        "SSL connection has been closed unexpectedly",
        "SSL SYSCALL error: EOF detected",
        "psycopg2.InterfaceError: connection already closed",
        "asyncpg.exceptions.ConnectionDoesNotExistError: connection was closed in the middle of "
        "operation",
    ),
)

_BY_SQLSTATE = {
    "28P01": PASSWORD,
    "3D000": DATABASE,
    "53300": TOO_MANY,
    "57P03": STARTING,
    "28000": NOT_ADMITTED,
}
_BY_TEXT = (
    ("startup parameter", PARAMETER),
    ("certificate", CERTIFICATE),
    ("statement pooling mode", STATEMENT_MODE),
    ("unable to open database file", SQLITE_FILE),
)
_ADVICE = "Check host, port, user, password and database in the URL, and that the server runs."
_AWAY = {FaultKind.DISCONNECT, FaultKind.CONNECT_TRANSIENT, FaultKind.CONNECT_PERMANENT}


def check_login(case: Case) -> Seen:
    """Connect once as the application does, and ask for a sign of life."""
    with case.connection() as connection:
        connection.execute(text("SELECT 1"))  # a pooler may have answered the connect by itself
    if not case.is_postgres:
        return f"connected to {case.url.get_backend_name()}", []
    return f"user {case.url.username or 'by default'}, database {case.url.database}", []


def explain(case: Case, error: Exception) -> Finding:
    """Say what *error* means, which ended a check."""
    fault, message = classify(error), case.redact(first_line(error))
    if isinstance(error, SilentError | TimeoutError) or "timeout expired" in message:
        return SILENT.found(seconds=f"{case.timeout:g}")
    kind = _BY_SQLSTATE.get(fault.sqlstate or "")
    if kind is None:
        other = LOST if fault.kind is FaultKind.DISCONNECT else LOGIN
        kind = next((kind for part, kind in _BY_TEXT if part in message), other)
    return kind.found(
        user=case.url.username,
        database=case.url.database,
        message=message,
        advice=fault.advice if case.is_postgres else _ADVICE,
    )


def is_lost(error: Exception) -> bool:
    """Return whether no further check can be made after *error*."""
    return isinstance(error, SilentError) or classify(error).kind in _AWAY
