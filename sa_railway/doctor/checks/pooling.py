"""How the application gets its connections: from its pool, through a pooler, and how many."""

from __future__ import annotations

import statistics
import time

from sqlalchemy import Connection, QueuePool, text

from sa_railway.commit.wire import backend_pid
from sa_railway.config.budget import plan_budget
from sa_railway.doctor.case import Case, NotRunError, Seen, SilentError
from sa_railway.doctor.checks.sessions import read_limits
from sa_railway.doctor.findings import Kind, Severity

_PINGS = 9
_ROUNDS = 3  # others use the pooler, too, and may take in between what was to be ours
_SLOW = 0.02  # seconds; in one region it is 1 or 2 ms, and 20 queries at 20 ms make a slow page

UNSTEADY = Kind(
    "pool-unsteady",
    Severity.WARNING,
    "A connection that was returned to the pool was dead at the next checkout",
    "Only a moment had passed: something in between, or a timeout of a fraction of a second on the "
    "server, closes idle connections. A pool that does not check at checkout hands them out.",
    "Look at the timeouts of the server, and of a proxy or pooler in between. Keep pre_ping on.",
    ("server closed the connection unexpectedly", "SSL connection has been closed unexpectedly"),
)
SLOW = Kind(
    "slow-round-trip",
    Severity.WARNING,
    "A round trip to the database takes <median> ms",
    "Within a region it is 1 or 2 ms. The database is in another region, or is reached by a detour "
    "such as the TCP proxy; every statement waits that long.",
    "Deploy application and database in the same region, and use the private network: "
    "DATABASE_URL=${{Postgres.DATABASE_URL}}.",
)
PREPARED = Kind(
    "prepared-statements",
    Severity.ERROR,
    "A pooler in transaction mode is in between, and <driver> prepares statements",
    "The pooler runs every transaction on another backend, which does not know the statement or, "
    "worse, knows another one by the same name and answers that. Only PgBouncer from 1.21 on, with "
    "max_prepared_statements above 0, keeps them apart.",
    "Say that it is there: SA_RAILWAY_TRANSACTION_POOLER=true, or "
    "engine_options(transaction_pooler=True). Migrations and LISTEN go round it with "
    "DATABASE_UNPOOLED_URL.",
    (
        'prepared statement "_pg3_0" does not exist',
        'prepared statement "_pg3_0" already exists',
        'prepared statement "__asyncpg_stmt_1__" does not exist',
        'prepared statement "__asyncpg_stmt_1__" already exists',
        "InvalidSqlStatementName",
        "DuplicatePreparedStatement",
    ),
)
BUDGET = Kind(
    "over-budget",
    Severity.ERROR,
    "The application may open <peak> connections, and <holder> has <available>",
    "<plan> When none is left the server refuses, most often in the middle of a deploy, while the "
    "old deployment and the new one run at the same time.",
    "Set SA_RAILWAY_POOL_SIZE=<pool_size> and SA_RAILWAY_MAX_OVERFLOW=<max_overflow>; run fewer "
    "processes; or put PgBouncer before the server.",
    (
        "sorry, too many clients already",
        "remaining connection slots are reserved for",
    ),
)
PROCESSES = Kind(
    "too-many-processes",
    Severity.ERROR,
    "The application may open <peak> connections, and <holder> has <available>",
    "<plan> Not even one connection for each process would fit.",
    "Run fewer processes or replicas, or put PgBouncer before the server.",
    ("sorry, too many clients already",),
)
UNLIMITED = Kind(
    "unlimited-overflow",
    Severity.ERROR,
    "The pool has no limit: max_overflow is -1",
    "A burst of work, or connections that are never returned, take all that the server has, from "
    "other applications, too.",
    "Set a limit: SA_RAILWAY_MAX_OVERFLOW=10.",
    ("sorry, too many clients already",),
)

_OWN_LIMITS = text(
    "SELECT rolname AS role, rolconnlimit AS of_role, rolsuper AS is_super,"
    " datname AS database, datconnlimit AS of_database FROM pg_roles, pg_database"
    " WHERE rolname = session_user AND datname = current_database()"
)


def check_pool(case: Case) -> Seen:
    """Use the application's own pool: check out, ask, return, check out again."""
    with case.connection() as connection:
        first = connection.connection.driver_connection
    started = time.monotonic()
    with case.connection() as connection:
        checkout = (time.monotonic() - started) * 1000
        second = connection.connection.driver_connection
        answer = _ping(connection) * 1000
    profile = case.profile
    pool = type(case.engine.pool).__name__
    if isinstance(case.engine.pool, QueuePool):
        pool += (
            f" {profile.pool_size} + {profile.max_overflow}, recycled after "
            f"{profile.pool_recycle:g} s"
        )
    detail = f"{pool}; checkout in {checkout:.1f} ms, answer in {answer:.1f} ms"
    return detail, [] if first is second else [UNSTEADY.found()]


def check_round_trip(case: Case) -> Seen:
    """Measure how long the server takes for an answer."""
    with case.connection() as connection:
        times = [_ping(connection) * 1000 for _ in range(_PINGS)]
    median = statistics.median(times)
    detail = f"median {median:.1f} ms, {min(times):.1f} to {max(times):.1f} ms"
    # far away from Railway is how a laptop is
    is_slow = case.is_on_railway and median > _SLOW * 1000
    return detail, [SLOW.found(median=f"{median:.0f}")] if is_slow else []


def _ping(connection: Connection) -> float:
    started = time.monotonic()
    connection.execute(text("SELECT 1"))
    return time.monotonic() - started


def check_pooler(case: Case) -> Seen:
    """Find out whether a pooler is in between, and whether its clients share backends.

    The pid in PostgreSQL's protocol is that of the backend, or one that a pooler made up.
    """
    try:
        with case.connection() as one:
            if _told_pid(one) == _backend_pid(one):
                return "none", []
            case.has_pooler = True
            with case.connection(autocommit=False) as other:
                is_shared = any(_share(one, other) for _ in range(_ROUNDS))
    except SilentError:
        raise NotRunError("one is in between, which gave no second connection in time") from None
    if not is_shared:
        return "one in session mode, or a proxy that knows the protocol", []
    driver = case.engine.dialect.driver
    detail = "one in transaction mode, such as PgBouncer"
    if case.profile.transaction_pooler or driver == "psycopg2":  # which never prepares
        return detail, []
    return detail, [PREPARED.found(driver=driver)]


def _share(one: Connection, other: Connection) -> bool:
    """Return whether two open connections have used one backend, or one of them has used two.

    While *other* is in a transaction, its backend cannot be that of *one*.
    """
    before = _backend_pid(one)
    with other.begin():
        return _backend_pid(other) == before or _backend_pid(one) != before


def _backend_pid(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def _told_pid(connection: Connection) -> int:
    """Return the backend's pid as the server, or a pooler, said at the beginning."""
    try:
        return backend_pid(connection.connection.driver_connection)
    except AttributeError:
        raise NotRunError("the driver does not tell the backend's pid") from None


def check_budget(case: Case) -> Seen:
    """Compare what the application may open with what the server has."""
    if case.has_pooler:
        raise NotRunError("a pooler is in between, and its limit counts, not the server's")
    with case.connection() as connection:
        limits = read_limits(connection)
        holder, limit = _least_limit(connection)
    plan = ""
    if limit is not None and limit < limits[0] - limits[1]:
        limits, plan = (limit, 0), f"The CONNECTION LIMIT of {holder} is {limit}."
    else:
        holder = "the server"
    profile = case.profile
    if profile.max_overflow < 0:
        return f"max_connections {limits[0]}", [UNLIMITED.found()]
    budget = plan_budget(
        case.replicas,
        case.processes,
        profile.pool_size,
        profile.max_overflow,
        extra=case.extra,
        max_connections=limits[0],
        reserved=limits[1],
    )
    detail = f"{budget.sentences[0].removesuffix('.')}; {holder} has {budget.available}"
    if budget.fits:
        return detail, []
    kind = PROCESSES if budget.recommended_pool_size is None else BUDGET
    finding = kind.found(
        peak=budget.peak,
        holder=holder,
        available=budget.available,
        plan=f"{budget.sentences[0]} {plan or budget.sentences[1]}",
        pool_size=budget.recommended_pool_size,
        max_overflow=budget.recommended_max_overflow,
    )
    return detail, [finding]


def _least_limit(connection: Connection) -> tuple[str, int | None]:
    """Return what has the lowest CONNECTION LIMIT, the role or the database, and that limit."""
    row = connection.execute(_OWN_LIMITS).one()
    limits = {f"the role {row.role}": row.of_role, f"the database {row.database}": row.of_database}
    # a superuser has none, and -1 is none
    found = {name: n for name, n in limits.items() if n >= 0 and not row.is_super}
    least = min(found, key=lambda name: found[name], default="")
    return least, found.get(least)
