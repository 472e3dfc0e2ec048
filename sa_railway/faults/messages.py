"""What servers, poolers and drivers say, where that is all there is."""

from __future__ import annotations

import re

from sa_railway.faults.translations import in_english

# Part of a message in lower case, and its condition; the first that is found counts, anywhere in a
# message that has a line for every address or attempt. Hence the order: a server that will be ready
# soon is worth waiting for, whatever another address says (over TLS "starting up", then without TLS
# "no pg_hba.conf entry"); else a refusal for good ends it, although another address did not answer
# (::1 refused, then 127.0.0.1 "password authentication failed"); the network comes last. What else
# fails at connect is waited for: an unknown text costs one patience if it was permanent, an outage
# if it was not and all clients gave up at once.
TEXTS: tuple[tuple[str, str], ...] = (
    # a server that will be ready soon
    ("the database system is", "57P03"),  # starting up, shutting down, in recovery mode, ...
    ("too many clients already", "53300"),
    ("remaining connection slots", "53300"),
    ("too many connections for", "53300"),  # role, database
    ("no more connections allowed", "pooler-full"),
    ("client connections exceeded", "pooler-full"),
    ("max client", "pooler-full"),  # Supavisor
    ("(echeckouttimeout)", "pooler-full"),
    ("(emaxpoolsreached)", "pooler-full"),
    ("checkout timeout", "pooler-full"),  # PgDog
    # a refusal for good
    ("password authentication failed", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("pg_hba.conf rejects", "28000"),
    ('role "" does not exist', "28000"),
    ("not permitted to log in", "28000"),
    ('database "" does not exist', "3D000"),
    ("no such database", "3D000"),
    ("is wrong, or the database does not exist", "28000"),  # PgDog
    ("authentication failed", "not-admitted"),
    ("no password supplied", "not-admitted"),
    ("incorrect server signature", "not-admitted"),  # SCRAM: the server does not know the password
    ("no postgresql user name", "not-admitted"),
    ("no such user", "not-admitted"),
    ("login rejected", "not-admitted"),
    ("tenant or user not found", "not-admitted"),
    ("(enotfound)", "not-admitted"),  # Supavisor's codes, for a name of a tenant or user that it
    ("(enoidentifier)", "not-admitted"),  # does not know or cannot read, and for those that it
    ("(einvaliduserinfo)", "not-admitted"),  # keeps out
    ("(emultipleusers)", "not-admitted"),
    ("(ebanned)", "not-admitted"),
    ("(eaddrnotallowed)", "not-admitted"),
    ("(ejitunauthorized)", "not-admitted"),
    ("(ecircuitbreaker)", "pooler-blocks"),
    ("permission denied for database", "not-admitted"),
    ("not currently accepting connections", "not-admitted"),
    ("cannot connect to invalid database", "not-admitted"),  # DROP DATABASE was interrupted
    ('database "" is disabled', "not-admitted"),  # PgBouncer, until ENABLE
    ("database does not allow connections", "not-admitted"),  # the same of later versions
    ("endpoint could not be found", "not-admitted"),  # Neon, as the two that follow
    ("endpoint id is not specified", "not-admitted"),
    ("exceeded the compute time quota", "not-admitted"),
    ("unsupported startup parameter", "startup-parameter"),
    ("unrecognized configuration parameter", "startup-parameter"),
    ("invalid value for parameter", "startup-parameter"),
    ("cannot be changed now", "startup-parameter"),
    ("certificate", "certificate"),
    ("alert unknown ca", "certificate"),
    ("server does not support ssl", "tls"),
    ("ssl required", "tls"),
    ("clients must connect with tls", "tls"),  # PgDog
    ("ssl connection is required", "tls"),
    # what the client demands: channel_binding, require_auth, gssencmode, requirepeer, a TLS version
    ("channel binding", "unmet"),
    ("authentication method", "unmet"),  # a requirement, and one that the client does not know
    ("authentication mechanisms", "unmet"),
    ("authentication not supported", "unmet"),
    ("gssapi encryption required", "unmet"),
    ("gssapi continuation error", "unmet"),
    ("requirepeer", "unmet"),
    ("alert protocol version", "unmet"),
    ("alert handshake failure", "unmet"),
    ("unsupported protocol", "unmet"),
    ("ssl protocol version", "unmet"),
    ("invalid port number", "bad-url"),
    ("invalid integer value", "bad-url"),
    ("invalid connection option", "bad-url"),
    ("in connection info string", "bad-url"),
    ("sslmode", "bad-url"),
    ("private key file", "bad-url"),
    ("expected authentication request", "bad-url"),
    ("invalid response to ssl negotiation", "bad-url"),
    # a pooler without a server
    ("server login", "pooler-waits"),
    ("cannot connect to server", "pooler-waits"),
    ("query_wait_timeout", "pooler-waits"),
    ("client_login_timeout", "pooler-waits"),
    ("client login timeout", "pooler-waits"),  # PgDog, as the two that follow
    ('and database "" is down', "pooler-waits"),
    ("no primary", "pooler-waits"),
    ("could not get connection from the pool", "pooler-waits"),  # PgCat
    ("(echeckoutfailed)", "pooler-waits"),  # Supavisor, as the rest
    ("(echeckoutretries)", "pooler-waits"),
    ("(epoolcheckout)", "pooler-waits"),
    ("(epoolterminating)", "pooler-waits"),
    # a server with another role
    ("mode during recovery", "25006"),
    ("in a hot standby", "25006"),
    # the network, and whatever else may happen at connect
    ("could not translate host name", "name-not-found"),
    ("failed to resolve host", "name-not-found"),
    ("[errno -", "name-not-found"),  # psycopg before 3.2.13: getaddrinfo()'s, the only ones below 0
    ("nodename nor servname provided", "name-not-found"),  # its text on macOS, with a number above
    ("connection refused", "refused"),
    ("timeout expired", "no-answer"),
    ("failed: connection timed out", "no-answer"),
    ("connection to server", "unreachable"),
    ("could not connect to server", "unreachable"),  # libpq before 14
    ("connection failed:", "unreachable"),
    ("connection is bad:", "unreachable"),
    ("fatal:  ", "unreachable"),  # with a SQLSTATE, had it been a statement
    # asyncpg says this of any answer but yes, also of the error of a server that is restarted
    ("rejected ssl upgrade", "tls-refused"),
    # a connection that is lost
    ("(edbhandlerexited)", "lost"),  # Supavisor, about its own connection to the server
    ("no message from the libpq", "out-of-step"),
    ("lost synchronization", "out-of-step"),
    ("from command ", "out-of-step"),  # received 0 results, unexpected result
    ("unexpected response from server", "out-of-step"),
    ("unknown protocol state", "out-of-step"),  # asyncpg, as the two that follow
    ("cannot switch to", "out-of-step"),
    ("cannot process message", "out-of-step"),
    ("closed the connection", "lost"),
    ("connection is closed", "lost"),
    ("connection is lost", "lost"),
    ("connection was closed", "lost"),
    ("connection already closed", "lost"),
    ("connection has been closed", "lost"),
    ("connection socket closed", "lost"),
    ("connection not open", "lost"),
    ("no connection to the server", "lost"),
    ("could not receive data", "lost"),
    ("could not send data", "lost"),
    ("consuming input failed", "lost"),
    ("flushing failed", "lost"),
    ("terminating connection", "lost"),
    ("ssl syscall error", "lost"),
    ("ssl error", "lost"),
    ("can't reconnect until invalid", "lost"),
    ("cached plan must not change result type", "stale-plan"),
    ("cached statement plan is invalid", "stale-plan"),  # asyncpg
    # PendingRollbackError, for any other reason
    ("previous exception during flush", "rollback-first"),
)
_QUOTED = re.compile(r""""[^"]*"|'[^'\n]*'""")


def condition_in(message: str) -> str | None:
    """Return the condition that *message* tells; None if it is not known."""
    # names of hosts, users and databases are free to choose
    text = _QUOTED.sub('""', in_english(message)).lower()
    return next((key for part, key in TEXTS if part in text), None)
