"""Whether the server lets the application in, and what its refusal, or its silence, means."""

from __future__ import annotations

import re

from sqlalchemy import text

from sa_railway.config.url import normalize_url
from sa_railway.doctor.case import Case, Seen, SilentError
from sa_railway.doctor.checks import admission
from sa_railway.doctor.checks.certificates import explain_certificate
from sa_railway.doctor.checks.quoting import database_of, quoted, user_of
from sa_railway.doctor.checks.timeouts import explain_timeout
from sa_railway.doctor.findings import Finding, Kind, Severity
from sa_railway.faults import classify, first_line

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
STATEMENT_MODE = Kind(
    "statement-pooling",
    Severity.ERROR,
    "A pooler in statement mode is in between, which allows no transactions",
    "It gives every single statement to another backend (pool_mode = statement). SQLAlchemy "
    "needs transactions, and so does every rollback.",
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
    "It is frozen or overloaded; or a pooler is in between, which accepts every client and has no "
    "connection to the server to give, or is paused.",
    "Look at CPU, memory and disk of the database service, and for a pooler at its pool size and "
    "its log; RESUME in PgBouncer's console ends a pause.",
    ("query_wait_timeout", "timeout expired", "TimeoutError"),
)
LOST = Kind(
    "lost",
    Severity.ERROR,
    "The connection was lost while it was examined: <message>",
    "The server was restarted or has crashed, an operator ended the session, or a proxy in between "
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
POOLER_WAITS = Kind(
    "pooler-waits",
    Severity.ERROR,
    "The pooler gets no connection to the server: <message>",
    "The pooler is there; the server behind it is not, or refuses it.",
    "Compare host, port, user and password of the server in the pooler's settings, for PgBouncer "
    "in its section [databases], and look at the log of both.",
    (
        "server login has been failing, try again later (server_login_retry)",
        "client_login_timeout (server down)",
        "query_wait_timeout",
    ),
)

_BY_SQLSTATE = {"57P03": STARTING}
_WORDS = (
    ("startup parameter|unrecognized configuration parameter", PARAMETER),
    ("statement pooling mode", STATEMENT_MODE),
    ("server login|client_login_timeout|query_wait_timeout|cannot connect to server", POOLER_WAITS),
    ("unable to open database file", SQLITE_FILE),
)
_ADVICE = "Check host, port, user, password and database in the URL, and that the server runs."
# the severity stands before what the server says, behind what libpq, psycopg or SQLAlchemy say
_SPOKEN = re.compile(r"(?:FATAL|ERROR|PANIC):\s+(.+)|<class '[\w.]+'>: (.+)")
_NAMED = re.compile(r'\b(role|user|database) "([^"]+)"')
_SILENCE = re.compile("timeout expired|timed out")
_PLAIN = re.compile("no encryption|SSL off")


def check_login(case: Case) -> Seen:
    """Connect once as the application does, and ask for a sign of life."""
    with case.connection() as connection:
        connection.execute(text("SELECT 1"))  # a pooler may have answered the connect by itself
    if not case.is_postgres:
        return f"connected to {case.url.get_backend_name()}", []
    return f"user {case.url.username or 'by default'}, database {case.url.database}", []


def explain(case: Case, error: Exception) -> Finding:
    """Say what *error* means, which ended a check."""
    message, fault = case.redact(_said(error)), classify(error)
    if isinstance(error, SilentError | TimeoutError) or _SILENCE.search(message):
        return SILENT.found(seconds=f"{case.timeout:g}")
    kind = _kind(case, message, fault.sqlstate)
    if kind is None and case.is_postgres:
        if "certificate" in message or _lacks_file(case, error):
            return explain_certificate(case, message)
        if finding := explain_timeout(case, message, fault):
            return finding
    return _fill(case, kind or (LOST if fault.connection_lost else LOGIN), message, fault.advice)


def _lacks_file(case: Case, error: Exception) -> bool:
    """Return whether it is the root certificate that is not there; asyncpg does not name it."""
    cause = getattr(error, "orig", None) or error
    is_missing = any(isinstance(e, FileNotFoundError) for e in (cause, cause.__cause__))
    return is_missing and case.sslmode.startswith("verify")


def _kind(case: Case, message: str, sqlstate: str | None) -> Kind | None:
    """Return what is known by its words, or by its SQLSTATE."""
    if (kind := next((k for words, k in _WORDS if re.search(words, message)), None)) is not None:
        return kind
    if not case.is_postgres:
        return None
    kind = admission.named(message, sqlstate) or _BY_SQLSTATE.get(sqlstate or "")
    return _by_encryption(case, message) if kind is admission.NO_ENTRY else kind


def _by_encryption(case: Case, message: str) -> Kind:
    """Return whether it is the missing TLS, or the TLS, that pg_hba.conf does not admit.

    Another line may be missing as well; so the opposite is tried.
    """
    opposites = {"require": admission.TLS_DEMANDED, "disable": admission.TLS_REFUSED}
    mode = "require" if _PLAIN.search(message) else "disable"
    is_possible = case.offers_tls and case.sslmode != "prefer"  # which has tried both by itself
    if is_possible and not _is_without_entry(case, mode):
        return opposites[mode]
    return admission.NO_ENTRY


def _is_without_entry(case: Case, mode: str) -> bool:
    url = case.url.difference_update_query(["ssl"]).update_query_dict({"sslmode": mode})
    try:
        with case.variant(url=normalize_url(url)) as other, other.connection():
            return False
    except Exception as error:  # noqa: BLE001 - whatever comes after pg_hba.conf
        return admission.named(_said(error), None) is admission.NO_ENTRY


def _fill(case: Case, kind: Kind, message: str, advice: str) -> Finding:
    # behind a pooler, the server's user and database may have other names than the URL has
    named = dict(_NAMED.findall(message))
    user = named.get("role") or named.get("user") or user_of(case)
    database = named.get("database") or database_of(case)
    return kind.found(
        user=user,
        role=quoted(user),
        database=database,
        db=quoted(database),
        mode=case.sslmode,
        client=_client(message),
        message=message,
        advice=advice if case.is_postgres else _ADVICE,
    )


def _client(message: str) -> str:
    """Return the address that the server saw, as in pg_hba.conf."""
    seen = re.search(r'for host "([^"]+)"', message)
    ip = seen[1] if seen else "0.0.0.0"  # noqa: S104 - nothing listens there
    return f"{ip}/{128 if ':' in ip else 32}"


def _said(error: Exception) -> str:
    """Return what the server said, or else the first line of what the driver says."""
    spoken = _SPOKEN.search(str(getattr(error, "orig", None) or error))
    return (spoken[1] or spoken[2]).strip() if spoken else first_line(error)


def is_lost(error: Exception) -> bool:
    """Return whether no further check can be made after *error*."""
    if isinstance(error, SilentError) or "statement timeout" in _said(error):
        return True
    return classify(error).not_connected
