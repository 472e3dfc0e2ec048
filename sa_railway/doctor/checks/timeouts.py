"""The timeouts that are set on the server: what the pool makes of them, and what they break."""

from __future__ import annotations

import re

from sqlalchemy import text

from sa_railway.config.drivers import libpq_parameters
from sa_railway.doctor.case import Case, Seen
from sa_railway.doctor.checks.quoting import database_of, quoted, user_of
from sa_railway.doctor.findings import Finding, Kind, Severity
from sa_railway.faults import Fault, FaultKind

TOO_SHORT = Kind(
    "timeout-too-short",
    Severity.ERROR,
    "The server ends <ended>: <setting> is <timeout>",
    "It is set by: <source>. Even to connect takes longer at times. A value without a unit is in "
    "milliseconds.",
    "Take it back where it is set: <reset>",
    (
        "canceling statement due to statement timeout",
        "terminating connection due to idle-session timeout",
        "terminating connection due to idle-in-transaction timeout",
        "terminating connection due to transaction timeout",
        "server closed the connection unexpectedly",
    ),
)
IDLE_SESSION = Kind(
    "idle-session-timeout",
    Severity.WARNING,
    "The server closes idle connections after <timeout> s, before the pool replaces them "
    "(pool_recycle is <recycle> s)",
    "idle_session_timeout is set by: <source>. A pool does not notice: what was idle for longer "
    "fails at its next use. This package finds it at checkout, other clients do not.",
    "Let the pool be faster: SA_RAILWAY_POOL_RECYCLE=<below>. Or lift the timeout: <reset>",
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

_ENDED = {
    "idle_in_transaction_session_timeout": "every session that pauses within a transaction",
    "idle_session_timeout": "every idle connection",
    "statement_timeout": "every statement",
    "transaction_timeout": "every transaction",
}
_OFF = {"default_transaction_read_only": "off"}
_SECONDS = 0.1  # what is shorter is a mistake in the unit, and ends the work of connecting

_SETTINGS = text(
    "SELECT name, setting::float / 1000, source FROM pg_settings"
    " WHERE name = ANY(:names) ORDER BY name"
)
# what holds for this role and database, the strongest first; a number is in milliseconds
_STORED = text(
    "SELECT name, CASE WHEN value ~ '^[0-9.]+$' THEN value::float / 1000"
    " ELSE extract(epoch FROM value::interval)::float END, source FROM (SELECT"
    " split_part(entry, '=', 1) AS name, split_part(entry, '=', 2) AS value, CASE"
    " WHEN setrole <> 0 AND setdatabase <> 0 THEN 'database user' WHEN setrole <> 0 THEN 'user'"
    " WHEN setdatabase <> 0 THEN 'database' ELSE 'global' END AS source"
    " FROM pg_db_role_setting, unnest(setconfig) AS entry"
    " WHERE setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))"
    " AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
    " ) AS stored WHERE name = ANY(:names) ORDER BY"
    " array_position(ARRAY['database user', 'user', 'database', 'global'], source)"
)
_SAID = (
    ("statement timeout", "statement_timeout"),
    ("idle-session timeout", "idle_session_timeout"),
    ("idle-in-transaction timeout", "idle_in_transaction_session_timeout"),
    ("transaction timeout", "transaction_timeout"),
)


def check_timeouts(case: Case) -> Seen:
    """Compare the server's timeouts with the pool."""
    with case.connection() as connection:
        rows = connection.execute(_SETTINGS, {"names": list(_ENDED)}).all()
    seen, findings = [], []
    for name, seconds, source in rows:
        if seconds > 0:
            seen.append(f"{name} {seconds:g} s")
            findings += _judge(case, name, seconds, source)
    return ", ".join(seen) or "none is set", findings


def _judge(case: Case, name: str, seconds: float, source: str) -> list[Finding]:
    recycle = case.profile.pool_recycle
    values = {
        "timeout": f"{seconds:g}",
        "source": source,
        "reset": resetting(case, name, source),
    }
    if seconds < _SECONDS:
        return [_too_short(case, name, f"{seconds:g} s", source)]
    if name == "idle_in_transaction_session_timeout":
        return [IDLE_TRANSACTION.found(**values)]
    if name == "statement_timeout":
        return [STATEMENT.found(**values)]
    if name == "transaction_timeout" or recycle <= seconds:
        return []
    return [IDLE_SESSION.found(recycle=f"{recycle:g}", below=f"{seconds * 0.8:g}", **values)]


def _too_short(case: Case, name: str, timeout: str, source: str) -> Finding:
    return TOO_SHORT.found(
        ended=_ENDED[name],
        setting=name,
        timeout=timeout,
        source=source,
        reset=resetting(case, name, source),
    )


def resetting(case: Case, name: str, source: str) -> str:
    """Say how to take back the setting *name*, in whose place *source* is in pg_settings."""
    role, database = quoted(user_of(case)), quoted(database_of(case))
    if source == "client":
        return f"remove {name} from options in the URL, or from connect_args."
    places = {
        "user": f"ROLE {role}",
        "database": f"DATABASE {database}",
        "database user": f"ROLE {role} IN DATABASE {database}",
        "global": "ROLE ALL",
    }
    if source in places:
        return f"ALTER {places[source]} RESET {name}."
    # of the configuration, or of how the server was started
    return f"ALTER ROLE {role} SET {name} = {_OFF.get(name, '0')}."


def explain_timeout(case: Case, message: str, fault: Fault) -> Finding | None:
    """Say which timeout has ended what *message* is about; None if none is known to.

    Where it ends everything it cannot be read, either, so it is lifted for one connection. A busy
    server calls some of the statements that ran into ``statement_timeout`` cancelled by the user.
    """
    said = next((name for part, name in _SAID if part in message), None)
    if said is None and not fault.connection_lost and fault.kind is not FaultKind.QUERY_CANCELLED:
        return None
    names = [said] if said else list(_ENDED)[:3]  # the last is of PostgreSQL 17
    try:
        with case.variant(settings=dict.fromkeys(names, "0")) as other, other.connection() as open_:
            rows = open_.execute(_STORED, {"names": names}).all()
    except Exception:  # noqa: BLE001 - it is no help then, as behind a pooler
        return None
    for name, seconds, source in rows:
        if said or 0 < seconds < _SECONDS:
            return _too_short(case, name, f"{seconds:g} s", source)
    if said is None:
        return None
    in_url = re.search(rf"\b{said}=(\S+)", libpq_parameters(case.url).get("options", ""))
    if in_url:
        return _too_short(case, said, in_url[1], "client")
    return _too_short(case, said, "too short", "configuration file")
