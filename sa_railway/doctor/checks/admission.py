"""What a refusal at connect means: the words of PostgreSQL and PgBouncer, and what to do.

Each kind stands for words that have one cause. Where several have the same, the finding begins with
the words, and its fix names what each of the causes needs.
"""

from __future__ import annotations

import re

from sa_railway.doctor.findings import Kind, Severity

PASSWORD = Kind(
    "wrong-password",
    Severity.ERROR,
    "The server refuses the password: <message>",
    "The role has another password, or its password has expired, or there is no such role, or the "
    "role has no password: the server says the same of all four, and only its log tells which. The "
    "Docker image of PostgreSQL takes POSTGRES_PASSWORD only when its volume is empty, and a "
    "rotated password reaches a service with its next deploy.",
    "Set the password of the database in the URL; on Railway best by reference: "
    "DATABASE_URL=${{Postgres.DATABASE_URL}}, then deploy again. Or change it on the server: ALTER "
    "ROLE <role> PASSWORD '...'; and if it has expired: ALTER ROLE <role> VALID UNTIL 'infinity'.",
    ('password authentication failed for user "<user>"',),
)
POOLER_PASSWORD = Kind(
    "pooler-password",
    Severity.ERROR,
    "The pooler refuses user <user> or the password: <message>",
    "PgBouncer asks its own list, auth_file, or the server by auth_query, and there the user is "
    "missing, or has another password.",
    'Correct user and password in the URL, or add the line "<user>" "..." to auth_file, then '
    "RELOAD in PgBouncer's console.",
    ("password authentication failed", "SASL authentication failed", "no such user: <user>"),
)
NO_PASSWORD = Kind(
    "password-missing",
    Severity.ERROR,
    "The server asks for a password, and the URL has none",
    "The user is let in only with one, and neither PGPASSWORD nor a password file has it, either.",
    "Put it into the URL: postgresql://user:password@host:port/database; on Railway best by "
    "reference: DATABASE_URL=${{Postgres.DATABASE_URL}}.",
    ("fe_sendauth: no password supplied", "empty password returned by client"),
)
NO_ROLE = Kind(
    "role-missing",
    Severity.ERROR,
    "There is no role <user>",
    "The server has no user of this name.",
    "Correct the user in the URL, or create it: CREATE ROLE <role> LOGIN PASSWORD '...'.",
    ('role "<user>" does not exist',),
)
NO_LOGIN = Kind(
    "role-nologin",
    Severity.ERROR,
    "The role <user> may not log in",
    "It was created by CREATE ROLE without LOGIN, or was locked with NOLOGIN.",
    "Let it: ALTER ROLE <role> LOGIN. Or use the URL of another user.",
    ('role "<user>" is not permitted to log in',),
)
ROLE_LIMIT = Kind(
    "role-connection-limit",
    Severity.ERROR,
    "The role <user> has all connections that it may have",
    "The role has a CONNECTION LIMIT; that of the server, max_connections, is another one.",
    "Lift it: ALTER ROLE <role> CONNECTION LIMIT -1. Or use fewer: lower pool_size, max_overflow, "
    "processes or replicas, as sa-railway budget recommends.",
    ('too many connections for role "<user>"',),
)
DATABASE_LIMIT = Kind(
    "database-connection-limit",
    Severity.ERROR,
    "The database <database> has all connections that it may have",
    "The database has a CONNECTION LIMIT; that of the server, max_connections, is another one.",
    "Lift it: ALTER DATABASE <db> CONNECTION LIMIT -1. Or use fewer: lower pool_size, "
    "max_overflow, processes or replicas, as sa-railway budget recommends.",
    ('too many connections for database "<database>"',),
)
TOO_MANY = Kind(
    "too-many-clients",
    Severity.ERROR,
    "The server has no connection left",
    "All of max_connections are taken. Most often replicas x processes x (pool_size + "
    "max_overflow), twice of it during a deploy, is more than the server has; or sessions are open "
    "that are used no more.",
    "Lower pool_size, max_overflow, processes or replicas, as sa-railway budget recommends; end "
    "what is idle with pg_terminate_backend(); or put PgBouncer before the server.",
    ("sorry, too many clients already", "remaining connection slots are reserved for"),
)
POOLER_FULL = Kind(
    "pooler-full",
    Severity.ERROR,
    "The pooler accepts no further client: <message>",
    "It has as many as its own limit allows: max_client_conn in PgBouncer, or one for each "
    "database or user.",
    "Raise that limit in the pooler, or lower pool_size, max_overflow, processes or replicas.",
    ("no more connections allowed (max_client_conn)", "max client connections reached"),
)
DATABASE = Kind(
    "database-missing",
    Severity.ERROR,
    "There is no database <database>",
    "The server is there and lets the user in, but has no database of this name. On Railway it is "
    "railway, unless POSTGRES_DB says otherwise.",
    "Correct the name at the end of the URL, or create it: CREATE DATABASE <db>.",
    ('database "<database>" does not exist',),
)
POOLER_DATABASE = Kind(
    "pooler-database-missing",
    Severity.ERROR,
    "The pooler has no database <database>",
    "PgBouncer leads to the databases that its section [databases] lists, and to no other.",
    "Correct the name at the end of the URL, or add it there, as in <database> = host=... "
    "port=5432, then RELOAD in PgBouncer's console.",
    ("no such database: <database>",),
)
DATABASE_CLOSED = Kind(
    "database-closed",
    Severity.ERROR,
    "The database <database> takes no connections",
    "Its datallowconn is off, as for template0 and during some migrations of a provider.",
    "From another database of the server: ALTER DATABASE <db> ALLOW_CONNECTIONS true.",
    ('database "<database>" is not currently accepting connections',),
)
POOLER_DISABLED = Kind(
    "pooler-database-disabled",
    Severity.ERROR,
    "The pooler has the database <database> disabled",
    "DISABLE was executed in PgBouncer's console; the server behind it is not asked.",
    "In that console, which is the database pgbouncer of the pooler: ENABLE <db>.",
    ('database "<database>" is disabled', "database does not allow connections: <database>"),
)
NO_CONNECT = Kind(
    "connect-not-granted",
    Severity.ERROR,
    "The role <user> may not connect to the database <database>",
    "CONNECT was revoked from it, or from PUBLIC.",
    "Grant it: GRANT CONNECT ON DATABASE <db> TO <role>.",
    ('permission denied for database "<database>"',),
)
NO_ENTRY = Kind(
    "hba",
    Severity.ERROR,
    "pg_hba.conf does not admit user <user> to database <database> from here: <message>",
    "The server's list of admitted clients has no line for this user, database, address and "
    "encryption, or one that rejects them.",
    "Add a line to it above those that reject, such as: host <db> <role> <client> scram-sha-256; "
    "then SELECT pg_reload_conf(). Or come by another way that it has a line for.",
    (
        "no pg_hba.conf entry for host",
        "pg_hba.conf rejects connection for host",
    ),
)
TLS_DEMANDED = Kind(
    "tls-demanded",
    Severity.ERROR,
    "The server admits only connections with TLS, and the URL has sslmode=<mode>",
    "Its pg_hba.conf has no line for this connection unless it is encrypted, or a pooler demands "
    "it.",
    "Set sslmode=require in the URL.",
    (
        "no pg_hba.conf entry for host",
        "SSL required",
    ),
)
TLS_REFUSED = Kind(
    "tls-refused",
    Severity.ERROR,
    "The server admits only connections without TLS, and the URL has sslmode=<mode>",
    "Its pg_hba.conf has no line for this connection if it is encrypted (hostnossl).",
    "Set sslmode=disable in the URL if the network is private, or add a line with hostssl.",
    ("no pg_hba.conf entry for host",),
)
NOT_ADMITTED = Kind(
    "not-admitted",
    Severity.ERROR,
    "The server does not admit user <user> to database <database>: <message>",
    "There is no such role, it may not log in, it must prove itself in another way, or pg_hba.conf "
    "has no line for it.",
    "Correct the user in the URL, and compare with the log of the server, which says more.",
    (
        'Peer authentication failed for user "<user>"',
        'Ident authentication failed for user "<user>"',
        'certificate authentication failed for user "<user>"',
        "connection requires a valid client certificate",
    ),
)

_WORDS = (
    ("too many connections for role ", ROLE_LIMIT),
    ("too many connections for database ", DATABASE_LIMIT),
    ("(sorry, too many clients already|remaining connection slots)", TOO_MANY),
    (r"(no more connections allowed|client connections exceeded|max.client)", POOLER_FULL),
    ("password authentication failed for user ", PASSWORD),
    ("(password|SASL) authentication failed|no such user", POOLER_PASSWORD),
    (".*(no password supplied|empty password returned)", NO_PASSWORD),
    (r'role ".*" does not exist', NO_ROLE),
    (r'role ".*" is not permitted to log in', NO_LOGIN),
    (r'database ".*" does not exist', DATABASE),
    ("no such database", POOLER_DATABASE),
    (r'database ".*" is not currently accepting connections', DATABASE_CLOSED),
    (r'database ".*" is disabled|database does not allow connections', POOLER_DISABLED),
    ("permission denied for database ", NO_CONNECT),
    ("no pg_hba.conf entry|pg_hba.conf rejects", NO_ENTRY),
    ("SSL (connection is )?required", TLS_DEMANDED),
    (".* authentication failed for user |connection requires a valid client", NOT_ADMITTED),
)
# for a server that speaks another language; 28P01 and 53300 have several causes
_BY_SQLSTATE = {"3D000": DATABASE, "28P01": PASSWORD, "28000": NOT_ADMITTED}


def named(message: str, sqlstate: str | None) -> Kind | None:
    """Return the kind that the server's own words, or else its SQLSTATE, stand for."""
    for words, kind in _WORDS:
        if re.match(words, message, re.IGNORECASE):
            return kind
    return _BY_SQLSTATE.get(sqlstate or "")
