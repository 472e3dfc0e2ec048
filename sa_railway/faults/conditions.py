"""What each condition of a database means: its kind, whether to try again, and the advice.

``TRANSIENT`` and ``ADVICE`` hold what is true of a whole kind, ``CONDITIONS`` what single ones are.
How an error is recognised as one of them is the business of ``sa_railway.faults``; this module
changes when a condition means something else, or when there is better advice.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class FaultKind(StrEnum):
    """What went wrong, as far as it matters for what to do next."""

    DISCONNECT = "disconnect"
    CONNECT_TRANSIENT = "connect-transient"
    CONNECT_PERMANENT = "connect-permanent"
    SERIALIZATION = "serialization"
    DEADLOCK = "deadlock"
    LOCK_TIMEOUT = "lock-timeout"
    QUERY_CANCELLED = "query-cancelled"
    READ_ONLY = "read-only"
    POOL_EXHAUSTED = "pool-exhausted"
    RESOURCE = "resource"
    PERMANENT = "permanent"


class Condition(NamedTuple):
    """A kind, and where it differs from the rest of its kind, the advice and the transience."""

    kind: FaultKind
    advice: str | None = None
    transient: bool | None = None


# The kinds after which the same work may succeed if it is run again.
TRANSIENT: frozenset[FaultKind] = frozenset(
    {
        FaultKind.DISCONNECT,
        FaultKind.CONNECT_TRANSIENT,
        FaultKind.SERIALIZATION,
        FaultKind.DEADLOCK,
        FaultKind.LOCK_TIMEOUT,
        # nothing was written, and after a failover a new connection finds the primary
        FaultKind.READ_ONLY,
        # not QUERY_CANCELLED: it would take as long again, on a server that is slow already
        # not POOL_EXHAUSTED: pool_timeout was the retry, and a second one outlasts the request
        # not RESOURCE: more work does not make a shortage smaller
    }
)

ADVICE: dict[FaultKind, str] = {
    FaultKind.DISCONNECT: (
        "The connection is lost: run the work again on a new one, unless it was a COMMIT whose "
        "answer never came."
    ),
    FaultKind.CONNECT_TRANSIENT: (
        "The server cannot be reached now: wait and connect again, and if that does not help, "
        "check that the database service runs and that host and port are right."
    ),
    FaultKind.CONNECT_PERMANENT: ("Waiting will not help: correct the settings of the connection."),
    FaultKind.SERIALIZATION: (
        "Another transaction came first: run the whole transaction again from its beginning."
    ),
    FaultKind.DEADLOCK: (
        "Two transactions waited for each other and this one was rolled back: run it again, and "
        "lock rows in the same order everywhere."
    ),
    FaultKind.LOCK_TIMEOUT: (
        "Another session holds what this statement needs: run it again later, or find that "
        "session in pg_locks and pg_stat_activity."
    ),
    FaultKind.QUERY_CANCELLED: (
        "The statement was cancelled, by statement_timeout or by a person: make it faster, or "
        "raise the timeout."
    ),
    FaultKind.READ_ONLY: (
        "The server or the transaction is read-only: after a failover connect again, otherwise "
        "connect to the primary, begin the transaction READ WRITE, or look for "
        "default_transaction_read_only among the settings of the role and the database."
    ),
    FaultKind.POOL_EXHAUSTED: (
        "Every connection of the pool is in use: return connections sooner, or raise pool_size "
        "or max_overflow as far as the server's max_connections allows."
    ),
    FaultKind.RESOURCE: ("The server lacks a resource: look at its metrics and its log."),
    FaultKind.PERMANENT: (
        "The same work would fail again: correct the statement, its data or the call."
    ),
}

_NOT_ADMITTED = (
    "The server does not admit this user to this database: check user, password and database in "
    "DATABASE_URL, and pg_hba.conf on the server."
)
_TWO_ENDS = (
    "Client and server have lost step with each other, as when a forked process uses its parent's "
    "connection: open connections after the fork, and give each process its own."
)
_OUTCOME_UNKNOWN = (
    "It is unknown whether the work took effect: look for its result before running it again."
)
_ROLLBACK_FIRST = (
    "An earlier statement of this transaction failed: roll back, and look at that first error."
)
_PREPARED = (
    "A pooler in transaction mode gave the statement to another backend: set prepare_threshold "
    "to None (psycopg) or statement_cache_size to 0 (asyncpg), or connect past the pooler."
)
_DAMAGED = (
    "Data or an index on the server are damaged: stop writing, keep a copy, and rebuild the index "
    "or restore a backup."
)
_SERVER_FILE = (
    "The server misses one of its own files or finds one in the way, often an extension's "
    "library: install the extension on the server or correct its image."
)

_POOLER_WAITS = (
    "The pooler cannot get a connection to the server: wait, and if that does not help, look "
    "at the pooler's log and the server's."
)

# By SQLSTATE, by its class where all that is not listed is alike, or by our own name in
# lower case for what no server said. A code that is not found by either is permanent.
CONDITIONS: dict[str, Condition] = {
    # 08 connection exception
    "08": Condition(FaultKind.DISCONNECT),
    "08001": Condition(FaultKind.CONNECT_TRANSIENT),
    "08004": Condition(FaultKind.CONNECT_TRANSIENT),
    "08007": Condition(FaultKind.DISCONNECT, _OUTCOME_UNKNOWN, transient=False),
    "08P01": Condition(FaultKind.DISCONNECT, _TWO_ENDS),
    # 25 invalid transaction state
    "25006": Condition(FaultKind.READ_ONLY),
    "25P02": Condition(FaultKind.PERMANENT, _ROLLBACK_FIRST),
    "25P03": Condition(
        FaultKind.DISCONNECT,
        "The server ended a transaction that did nothing for too long: commit before slow work, "
        "or raise idle_in_transaction_session_timeout.",
    ),
    # unlike an idle pause, which may have been a hiccup, the length of the work stays the same
    "25P04": Condition(
        FaultKind.DISCONNECT,
        "The transaction took longer than transaction_timeout: make it shorter, or raise that.",
        transient=False,
    ),
    # 26 and 42 matter here only for prepared statements
    "26000": Condition(FaultKind.PERMANENT, _PREPARED),
    "42P05": Condition(FaultKind.PERMANENT, _PREPARED),
    # 28 invalid authorization, 3D invalid catalog name
    "28": Condition(FaultKind.CONNECT_PERMANENT, _NOT_ADMITTED),
    "28P01": Condition(
        FaultKind.CONNECT_PERMANENT,
        "The password is wrong: check that user and password in DATABASE_URL are those that the "
        "database has now; a rotated password reaches a service with its next deploy.",
    ),
    "3D000": Condition(
        FaultKind.CONNECT_PERMANENT,
        "There is no such database: create it, or correct its name in DATABASE_URL.",
    ),
    # 40 transaction rollback; 40002 is a constraint, which fails again
    "40": Condition(FaultKind.SERIALIZATION),
    "40002": Condition(FaultKind.PERMANENT),
    "40003": Condition(FaultKind.DISCONNECT, _OUTCOME_UNKNOWN, transient=False),
    "40P01": Condition(FaultKind.DEADLOCK),
    # 53 insufficient resources; memory is free again when others end, a disk is not, and a
    # configured limit such as temp_file_limit is hit by the same work again
    "53": Condition(FaultKind.RESOURCE, transient=True),
    "53100": Condition(
        FaultKind.RESOURCE,
        "The server's disk or shared memory is full: grow the volume or delete data, and for "
        "shared memory raise RAILWAY_SHM_SIZE_BYTES.",
        transient=False,
    ),
    "53200": Condition(
        FaultKind.RESOURCE,
        "The server is out of memory: run fewer queries at once, lower work_mem, or give it more.",
        transient=True,
    ),
    "53300": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The server has no connection left: lower pool_size, max_overflow, workers or replicas, "
        "or put a pooler such as PgBouncer before it.",
    ),
    "53400": Condition(
        FaultKind.RESOURCE,
        "The work exceeds a limit of the server's configuration: make it smaller, or raise the "
        "limit that the server's log names.",
        transient=False,
    ),
    # 55 object not in prerequisite state; for 55006 the server has waited for the others itself
    "55006": Condition(FaultKind.LOCK_TIMEOUT),
    "55P03": Condition(FaultKind.LOCK_TIMEOUT),
    # 57 operator intervention
    "57": Condition(FaultKind.QUERY_CANCELLED),
    "57P01": Condition(FaultKind.DISCONNECT),
    "57P02": Condition(FaultKind.DISCONNECT),
    "57P03": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The server is starting, stopping or recovering: wait and connect again.",
    ),
    "57P04": Condition(
        FaultKind.DISCONNECT,
        "The database was dropped: create it, or use another.",
        transient=False,
    ),
    "57P05": Condition(
        FaultKind.DISCONNECT,
        "The server closed an idle connection: keep pool_recycle below idle_session_timeout.",
    ),
    # Multigres, while its server changes roles; what it says so has not been executed
    "MTB01": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    "MTB02": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    "MTB03": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    "MTF01": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    "MTF02": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    # 58 system error: a broken disk needs a person, and every further write may do harm
    "58": Condition(
        FaultKind.RESOURCE,
        "The server's operating system or disk failed it: look at the server's log.",
    ),
    "58P01": Condition(FaultKind.PERMANENT, _SERVER_FILE),
    "58P02": Condition(FaultKind.PERMANENT, _SERVER_FILE),
    "58P03": Condition(FaultKind.PERMANENT, _SERVER_FILE),
    # XX internal error
    "XX001": Condition(FaultKind.PERMANENT, _DAMAGED),
    "XX002": Condition(FaultKind.PERMANENT, _DAMAGED),
    # what no server said
    "permanent": Condition(FaultKind.PERMANENT),
    # it is not known of work on another server whether it will pass
    "elsewhere": Condition(
        FaultKind.PERMANENT,
        "The server lost, or never had, a connection to another server, such as that of a dblink, "
        "a foreign table or a worker; the connection to the server itself still works.",
    ),
    "lost": Condition(FaultKind.DISCONNECT),
    "out-of-step": Condition(FaultKind.DISCONNECT, _TWO_ENDS),
    # asyncpg raises it for a connect and for a statement alike, so the worse one is assumed
    "timeout": Condition(
        FaultKind.DISCONNECT,
        "There was no answer in time: run the work again on a new connection, unless it was a "
        "COMMIT, and if it happens often, look for slow statements and a lossy network.",
    ),
    "unreachable": Condition(FaultKind.CONNECT_TRANSIENT),
    "refused": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "Nothing listens at this address: wait if the database is being restarted, otherwise "
        "check host and port in DATABASE_URL.",
    ),
    "no-answer": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The address does not answer: wait if the network or the database is only just starting, "
        "otherwise check that both services are in the same project and environment.",
    ),
    "name-not-found": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The host name does not resolve: private DNS may be late after a deploy, and a name under "
        "railway.internal exists only within its own project and environment, so use "
        "DATABASE_PUBLIC_URL elsewhere.",
    ),
    "pooler-full": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The pooler has no connection left: lower pool_size, max_overflow, workers or replicas, "
        "or raise the limits of the pooler.",
    ),
    "pooler-waits": Condition(FaultKind.CONNECT_TRANSIENT, _POOLER_WAITS),
    "pooler-blocks": Condition(
        FaultKind.CONNECT_PERMANENT,
        "The pooler refuses all connections for some minutes because many have failed, and each "
        "further failure prolongs that: correct user and password in DATABASE_URL, then wait.",
    ),
    "unavailable": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The server has been away for longer than the patience: answer 503 with retry_after, and "
        "see orig for the cause.",
    ),
    "not-admitted": Condition(FaultKind.CONNECT_PERMANENT, _NOT_ADMITTED),
    "startup-parameter": Condition(
        FaultKind.CONNECT_PERMANENT,
        "A setting sent at connect is refused, which PgBouncer does with all but a few: remove it "
        "from options or server_settings, and set it for the role by ALTER ROLE instead.",
    ),
    "certificate": Condition(
        FaultKind.CONNECT_PERMANENT,
        "A certificate cannot be verified: Railway's is self-signed, so use sslmode=require, or "
        "give its root certificate with sslrootcert.",
    ),
    "tls": Condition(
        FaultKind.CONNECT_PERMANENT,
        "Client and server do not agree on whether to use TLS: change sslmode, or enable TLS on "
        "the server.",
    ),
    "unmet": Condition(
        FaultKind.CONNECT_PERMANENT,
        "The server does not do what the client demands of it: look at channel_binding, "
        "require_auth, gssencmode, requirepeer and ssl_min_protocol_version in the URL, and at "
        "the PG* variables that stand for them.",
    ),
    "tls-refused": Condition(
        FaultKind.CONNECT_TRANSIENT,
        "The server did not agree to use TLS: wait if it is being restarted, otherwise change "
        "sslmode, or enable TLS on the server.",
    ),
    "bad-url": Condition(
        FaultKind.CONNECT_PERMANENT,
        "The URL cannot be used as it is: correct its host, port and options, and check that "
        "PostgreSQL is what answers at that port.",
    ),
    "stale-plan": Condition(
        FaultKind.SERIALIZATION,
        "A migration has changed a table that a prepared statement reads: run the whole "
        "transaction again, and the driver prepares a new one.",
    ),
    "pool-exhausted": Condition(FaultKind.POOL_EXHAUSTED),
    "rollback-first": Condition(FaultKind.PERMANENT, _ROLLBACK_FIRST),
}
