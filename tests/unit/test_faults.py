"""What errors mean: by SQLSTATE, by the driver's word, by text."""

import asyncio
import dataclasses
import errno
import inspect
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import psycopg2.errorcodes
import pytest
import sqlalchemy.exc
from marked import MARK

from sa_railway import faults
from sa_railway.config.profile import Profile
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError, DatabaseUnavailableError
from sa_railway.faults import Fault, FaultKind, check_kinds, classify, messages
from sa_railway.faults.conditions import ADVICE, CONDITIONS, TRANSIENT

# Every condition that appendix A of PostgreSQL's manual lists for these classes: its SQLSTATE and
# name, and what it is here. PostgreSQL 15 does not know 25P04 and 58P03 yet.
POSTGRESQL = """
08000 connection_exception                                     disconnect         transient
08003 connection_does_not_exist                                disconnect         transient
08006 connection_failure                                       disconnect         transient
08001 sqlclient_unable_to_establish_sqlconnection              connect-transient  transient
08004 sqlserver_rejected_establishment_of_sqlconnection        connect-transient  transient
08007 transaction_resolution_unknown                           disconnect         -
08P01 protocol_violation                                       disconnect         transient
25000 invalid_transaction_state                                permanent          -
25001 active_sql_transaction                                   permanent          -
25002 branch_transaction_already_active                        permanent          -
25008 held_cursor_requires_same_isolation_level                permanent          -
25003 inappropriate_access_mode_for_branch_transaction         permanent          -
25004 inappropriate_isolation_level_for_branch_transaction     permanent          -
25005 no_active_sql_transaction_for_branch_transaction         permanent          -
25006 read_only_sql_transaction                                read-only          transient
25007 schema_and_data_statement_mixing_not_supported           permanent          -
25P01 no_active_sql_transaction                                permanent          -
25P02 in_failed_sql_transaction                                permanent          -
25P03 idle_in_transaction_session_timeout                      disconnect         transient
25P04 transaction_timeout                                      disconnect         -
40000 transaction_rollback                                     serialization      transient
40002 transaction_integrity_constraint_violation               permanent          -
40001 serialization_failure                                    serialization      transient
40003 statement_completion_unknown                             disconnect         -
40P01 deadlock_detected                                        deadlock           transient
53000 insufficient_resources                                   resource           transient
53100 disk_full                                                resource           -
53200 out_of_memory                                            resource           transient
53300 too_many_connections                                     connect-transient  transient
53400 configuration_limit_exceeded                             resource           -
55000 object_not_in_prerequisite_state                         permanent          -
55006 object_in_use                                            lock-timeout       transient
55P02 cant_change_runtime_param                                permanent          -
55P03 lock_not_available                                       lock-timeout       transient
55P04 unsafe_new_enum_value_usage                              permanent          -
57000 operator_intervention                                    query-cancelled    -
57014 query_canceled                                           query-cancelled    -
57P01 admin_shutdown                                           disconnect         transient
57P02 crash_shutdown                                           disconnect         transient
57P03 cannot_connect_now                                       connect-transient  transient
57P04 database_dropped                                         disconnect         -
57P05 idle_session_timeout                                     disconnect         transient
58000 system_error                                             resource           -
58030 io_error                                                 resource           -
58P01 undefined_file                                           permanent          -
58P02 duplicate_file                                           permanent          -
58P03 file_name_too_long                                       permanent          -
XX000 internal_error                                           permanent          -
XX001 data_corrupted                                           permanent          -
XX002 index_corrupted                                          permanent          -
"""
CLASSES = {"08", "25", "40", "53", "55", "57", "58", "XX"}
ROWS = [tuple(line.split()) for line in POSTGRESQL.strip().splitlines()]


class DriverError(Exception):
    """An error that carries a SQLSTATE as psycopg and asyncpg do."""

    def __init__(self, sqlstate, message="no text that says anything"):
        super().__init__(message)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(("sqlstate", "name", "kind", "transient"), ROWS)
def test_every_condition_of_postgresql(sqlstate, name, kind, transient):
    fault = classify(DriverError(sqlstate))

    assert (fault.kind, fault.sqlstate) == (kind, sqlstate)
    assert fault.transient is (transient == "transient")


def codes_in(*namespaces):
    """The SQLSTATEs that a driver knows: as attributes of its exceptions, or as constants."""
    values = [value for namespace in namespaces for value in vars(namespace).values()]
    codes = [getattr(value, "sqlstate", value) for value in values]
    return {code for code in codes if isinstance(code, str) and re.fullmatch(r"\w{5}", code)}


@pytest.mark.parametrize("driver", [psycopg.errors, psycopg2.errorcodes, asyncpg.exceptions])
def test_no_condition_is_missing(driver):
    known = {code for code in codes_in(driver) if code[:2] in CLASSES}

    assert len(known) >= 48
    assert known <= {row[0] for row in ROWS}


def test_the_conditions_have_the_names_that_psycopg_gives_them():
    names = {
        (error.sqlstate, error.__name__.rstrip("_").lower())
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error)
        if error.sqlstate and error.sqlstate[:2] in CLASSES
    }

    assert names <= {(row[0], row[1].replace("_", "")) for row in ROWS}


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("28000", "connect-permanent"),
        ("28P01", "connect-permanent"),
        ("28ZZZ", "connect-permanent"),
        ("3D000", "connect-permanent"),
        ("08ZZZ", "disconnect"),
        ("26000", "permanent"),
        ("42P05", "permanent"),
        ("23505", "permanent"),
        ("ZZZZZ", "permanent"),
    ],
)
def test_codes_of_other_classes_and_codes_of_later_versions(sqlstate, kind):
    fault = classify(DriverError(sqlstate))

    assert (fault.kind, fault.sqlstate) == (kind, sqlstate)


@pytest.mark.parametrize(
    "attributes",
    [
        {"sqlstate": "40001"},
        {"pgcode": "40001"},
        {"sqlstate": None, "pgcode": "40001"},
        {"diag": SimpleNamespace(sqlstate="40001")},
    ],
)
def test_the_sqlstate_is_found_where_each_driver_puts_it(attributes):
    error = Exception()
    vars(error).update(attributes)

    assert classify(error).kind == "serialization"


@pytest.mark.parametrize("sqlstate", [None, 40001, "4000", "400011", b"40001", True])
def test_what_is_no_sqlstate_is_not_taken_for_one(sqlstate):
    assert classify(DriverError(sqlstate)) == Fault(
        FaultKind.PERMANENT,
        None,
        transient=False,
        advice="The same work would fail again: correct the statement, its data or the call.",
    )


AT = 'connection to server at "db.railway.internal" (10.0.0.1), port 5432 failed: '
HINT = "\n\tIs the server running on that host and accepting TCP/IP connections?"
EOF = (
    "server closed the connection unexpectedly\n"
    "\tThis probably means the server terminated abnormally\n"
    "\tbefore or while processing the request."
)

# What libpq, the server and the poolers say where the driver gives no SQLSTATE, and the condition.
TRANSIENT_AT_CONNECT = [
    (AT + "FATAL:  the database system is starting up", "57P03"),
    (AT + "FATAL:  the database system is shutting down", "57P03"),
    (AT + "FATAL:  the database system is in recovery mode", "57P03"),
    (AT + "FATAL:  the database system is not yet accepting connections", "57P03"),
    ("FATAL:  the database system is starting up", "57P03"),
    (AT + "FATAL:  sorry, too many clients already", "53300"),
    (
        AT + "FATAL:  remaining connection slots are reserved for non-replication superuser"
        " connections",
        "53300",
    ),
    (AT + 'FATAL:  too many connections for role "app"', "53300"),
    (AT + 'FATAL:  too many connections for database "railway"', "53300"),
    (AT + "FATAL:  no more connections allowed (max_client_conn)", "pooler-full"),
    (AT + "FATAL:  client connections exceeded (max_db_client_connections)", "pooler-full"),
    (AT + "FATAL:  MaxClientsInSessionMode: max clients reached", "pooler-full"),
    (
        AT + "FATAL:  server login has been failing, try again later (server_login_retry)",
        "pooler-waits",
    ),
    (AT + "FATAL:  pgbouncer cannot connect to server", "pooler-waits"),
    (AT + "FATAL:  query_wait_timeout", "pooler-waits"),
    (AT + "FATAL:  client_login_timeout (server down)", "pooler-waits"),
    (AT + "FATAL:  client login timeout", "pooler-waits"),
    (AT + 'ERROR:  connection pool for user "u" and database "d" is down', "pooler-waits"),
    (AT + "FATAL:  (EMAXCONNSESSION) max clients reached in session mode", "pooler-full"),
    (AT + "FATAL:  (EMAXPOOLSREACHED) max pools count reached", "pooler-full"),
    (AT + "Connection refused" + HINT, "refused"),
    (AT + "Connection timed out" + HINT, "no-answer"),
    (AT + "No route to host" + HINT, "unreachable"),
    (AT + "Network is unreachable" + HINT, "unreachable"),
    (AT + "timeout expired", "no-answer"),
    (AT + EOF, "unreachable"),
    (AT + "could not receive data from server: Connection reset by peer", "unreachable"),
    (AT + "FATAL:  terminating connection due to administrator command", "unreachable"),
    (AT + "session is read-only", "unreachable"),
    ("connection timeout expired", "no-answer"),
    ("connection failed: " + AT + "Connection refused" + HINT, "refused"),
    ("could not connect to server: Connection refused" + HINT, "refused"),
    ("could not connect to server: No route to host", "unreachable"),
    (
        'could not translate host name "db.railway.internal" to address: Name or service not known',
        "name-not-found",
    ),
    (
        "failed to resolve host 'db.railway.internal': [Errno -2] Name or service not known",
        "name-not-found",
    ),
    (
        "failed to resolve host 'certificate.internal': [Errno -2] Name or service not known",
        "name-not-found",
    ),
    ("[Errno -2] Name or service not known", "name-not-found"),
    ("[Errno -3] Temporary failure in name resolution", "name-not-found"),
    ("[Errno 8] nodename nor servname provided, or not known", "name-not-found"),
    # unknown texts
    (AT + "FATAL:  der Server hat keine Zeit", "unreachable"),
    (AT + "something that libpq will say in ten years", "unreachable"),
    ("connection failed: something else", "unreachable"),
    ("connection is bad: something else", "unreachable"),
    ("FATAL:  something that libpq 13 passes on without a word of its own", "unreachable"),
]
PERMANENT_AT_CONNECT = [
    (AT + 'FATAL:  password authentication failed for user "postgres"', "28P01"),
    (AT + 'FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "app", database "d"', "28000"),
    (AT + 'FATAL:  pg_hba.conf rejects connection for host "10.0.0.2", user "app"', "28000"),
    (AT + 'FATAL:  role "app" does not exist', "28000"),
    (AT + 'FATAL:  role "app" is not permitted to log in', "28000"),
    (AT + 'FATAL:  database "railway" does not exist', "3D000"),
    (AT + "FATAL:  no such database: railway", "3D000"),
    (AT + 'FATAL:  Peer authentication failed for user "app"', "not-admitted"),
    (AT + "FATAL:  SASL authentication failed", "not-admitted"),
    (AT + "fe_sendauth: no password supplied", "not-admitted"),
    (AT + "FATAL:  no such user: app", "not-admitted"),
    (AT + "FATAL:  login rejected", "not-admitted"),
    (AT + "FATAL:  Tenant or user not found", "not-admitted"),
    (AT + "FATAL:  (ENOTFOUND) tenant/user postgres.abc not found", "not-admitted"),
    (AT + "FATAL:  (ENOIDENTIFIER) no tenant identifier provided", "not-admitted"),
    (AT + "FATAL:  (EINVALIDUSERINFO) Invalid format for user or db_name", "not-admitted"),
    (AT + "FATAL:  (EMULTIPLEUSERS) multiple users matched for postgres.abc", "not-admitted"),
    (AT + "FATAL:  (EBANNED) tenant is banned: unpaid", "not-admitted"),
    (AT + "FATAL:  (EADDRNOTALLOWED) address not in tenant allow_list: {1, 2}", "not-admitted"),
    (AT + "FATAL:  (EJITUNAUTHORIZED) access is not granted", "not-admitted"),
    (AT + 'FATAL:  database "shop" is disabled', "not-admitted"),
    (AT + "FATAL:  database does not allow connections: shop", "not-admitted"),
    (
        AT + "FATAL:  (ECIRCUITBREAKER) too many authentication failures, new connections are "
        "temporarily blocked",
        "pooler-blocks",
    ),
    (
        AT + 'FATAL:  password for user "u" and database "d" is wrong, or the database does not '
        "exist",
        "28000",
    ),
    (AT + 'FATAL:  permission denied for database "railway"', "not-admitted"),
    (AT + 'FATAL:  database "template0" is not currently accepting connections', "not-admitted"),
    (AT + "FATAL:  unsupported startup parameter: statement_timeout", "startup-parameter"),
    (
        AT + "FATAL:  unsupported startup parameter in options: statement_timeout",
        "startup-parameter",
    ),
    (AT + 'FATAL:  unrecognized configuration parameter "statement_timeot"', "startup-parameter"),
    (AT + 'FATAL:  invalid value for parameter "statement_timeout": "soon"', "startup-parameter"),
    (AT + 'FATAL:  parameter "max_connections" cannot be changed now', "startup-parameter"),
    (AT + "SSL error: certificate verify failed", "certificate"),
    (AT + 'root certificate file "/root/.postgresql/root.crt" does not exist', "certificate"),
    (AT + 'server certificate for "localhost" does not match host name "db"', "certificate"),
    (AT + "server does not support SSL, but SSL was required", "tls"),
    (AT + "FATAL:  SSL required", "tls"),
    (AT + "FATAL:  SSL connection is required", "tls"),
    (AT + "FATAL:  Clients must connect with TLS", "tls"),
    (AT + "expected authentication request from server, but received H", "bad-url"),
    (AT + "received invalid response to SSL negotiation: H", "bad-url"),
    ('invalid port number: "99999"', "bad-url"),
    ('invalid integer value "x" for connection option "port"', "bad-url"),
    ('invalid dsn: missing "=" after "nonsense" in connection info string', "bad-url"),
    ('invalid connection option "nonsense"', "bad-url"),
    ('missing "=" after "nonsense" in connection info string', "bad-url"),
    ('invalid sslmode value: "maybe"', "bad-url"),
    (
        AT + 'private key file "/k" has group or world access; file must have permissions u=rw '
        "(0600) or less",
        "bad-url",
    ),
    (
        AT + "channel binding required, but server authenticated client without channel binding",
        "unmet",
    ),
    (AT + "channel binding is required, but client does not support it", "unmet"),
    (
        AT + 'authentication method requirement "scram-sha-256" failed: server requested a '
        "cleartext password",
        "unmet",
    ),
    (AT + "authentication method 9 not supported", "unmet"),
    (AT + "none of the server's SASL authentication mechanisms are supported", "unmet"),
    (AT + "Kerberos 5 authentication not supported", "unmet"),
    (
        AT + "GSSAPI encryption required but was impossible (possibly no credential cache, no "
        "server support, or using a local socket)",
        "unmet",
    ),
    (AT + "GSSAPI continuation error: No credentials were supplied", "unmet"),
    (AT + 'requirepeer specifies "db", but actual peer user name is "app"', "unmet"),
    (AT + "SSL error: tlsv1 alert protocol version", "unmet"),
    (AT + "SSL error: sslv3 alert handshake failure", "unmet"),
    (AT + "SSL error: unsupported protocol", "unmet"),
    (AT + 'invalid value "TLSv9" for minimum SSL protocol version', "unmet"),
    (AT + "SSL error: tlsv1 alert unknown ca", "certificate"),
    (AT + "incorrect server signature", "not-admitted"),
    (AT + "FATAL:  no PostgreSQL user name specified in startup packet", "not-admitted"),
    (AT + 'FATAL:  cannot connect to invalid database "shop"', "not-admitted"),
    (
        AT + "ERROR:  The requested endpoint could not be found, or you don't have access to it.",
        "not-admitted",
    ),
    (AT + "ERROR:  Endpoint ID is not specified.", "not-admitted"),
    (
        AT + "ERROR:  Your account or project has exceeded the compute time quota.",
        "not-admitted",
    ),
    (AT + "FATAL:  server login failed: FATAL password authentication failed", "28P01"),
]
LOST = [
    EOF,
    "consuming input failed: " + EOF,
    "consuming input failed: SSL error: decryption failed or bad record mac",
    "consuming input failed: die Verbindung wurde beendet",
    "consuming input failed: could not receive data from server: Connection timed out",
    "could not receive data from server: Connection timed out",
    "could not send data to server: Broken pipe",
    "SSL SYSCALL error: EOF detected",
    "SSL SYSCALL error: Connection timed out",
    "SSL error: decryption failed or bad record mac",
    "SSL connection has been closed unexpectedly",
    "terminating connection due to administrator command",
    "connection already closed",
    "connection not open",
    "no connection to the server",
    "the connection is closed",
    "the connection is lost",
    "connection socket closed",
    "flushing failed: the socket is gone",
    "connection was closed in the middle of operation",
    "error with status PGRES_TUPLES_OK and no message from the libpq",
    'lost synchronization with server: got message type "\0", length 0',
    "received 0 results from command 'ROLLBACK'",
    "unexpected result TUPLES_OK from command 'BEGIN'",
    'unexpected response from server; first received character was "\0"',
    "got result for unknown protocol state 3",
    "cannot switch to state 11; another operation (2) is in progress",
    "cannot process message 'T': protocol is in an unexpected state 3.",
]


def explained(condition, kind):
    """The fault of a condition that has a name of ours, or the SQLSTATE that the text tells."""
    row = CONDITIONS.get(condition) or CONDITIONS[condition[:2]]
    sqlstate = condition if condition in {"57P03", "53300", "28P01", "28000", "3D000"} else None
    return Fault(kind, sqlstate, kind in TRANSIENT, row.advice or ADVICE[kind])


@pytest.mark.parametrize("driver", [psycopg2, psycopg])
@pytest.mark.parametrize(("text", "condition"), TRANSIENT_AT_CONNECT)
def test_a_connect_that_is_worth_waiting_for(driver, text, condition):
    fault = classify(driver.OperationalError(text))

    assert fault == explained(condition, FaultKind.CONNECT_TRANSIENT)
    assert fault.transient is True


@pytest.mark.parametrize("driver", [psycopg2, psycopg])
@pytest.mark.parametrize(("text", "condition"), PERMANENT_AT_CONNECT)
def test_a_connect_that_is_refused_for_good(driver, text, condition):
    fault = classify(driver.OperationalError(text))

    assert fault == explained(condition, FaultKind.CONNECT_PERMANENT)
    assert fault.transient is False


@pytest.mark.parametrize("text", LOST)
@pytest.mark.parametrize(
    "driver_error",
    [
        psycopg2.DatabaseError,
        psycopg.OperationalError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ],
)
def test_a_connection_that_is_lost(driver_error, text):
    fault = classify(driver_error(text))

    assert (fault.kind, fault.sqlstate, fault.transient) == ("disconnect", None, True)


def test_every_text_of_the_table_decides_some_message():
    spoken = [text for text, _ in TRANSIENT_AT_CONNECT + PERMANENT_AT_CONNECT]
    spoken += [*LOST, str(rejected_upgrade()), str(invalid_connection())]
    spoken += [str(failed_flush()).splitlines()[0], *STALE]
    spoken += [text for code, text, _ in SAID_BY_POOLERS if not code.startswith("MT")]
    decisive = {
        next(part for part, _ in messages.TEXTS if part in messages._QUOTED.sub('""', text).lower())
        for text in spoken
    }

    assert {part for part, _ in messages.TEXTS} - decisive == set()


@pytest.mark.parametrize(
    "text",
    [
        'relation "server closed the connection" does not exist',
        "column 'the connection is lost' is ambiguous",
        'could not parse "Connection refused"',
    ],
)
def test_what_a_message_quotes_decides_nothing(text):
    assert classify(psycopg2.DatabaseError(text)).kind == "permanent"


def addresses(*failures):
    return psycopg2.OperationalError("\n".join(AT + failure for failure in failures))


REFUSED = "Connection refused" + HINT
STARTING = "FATAL:  the database system is starting up"
WRONG_PASSWORD = 'FATAL:  password authentication failed for user "postgres"'
NO_ENTRY = 'FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "a", database "d", no encryption'


@pytest.mark.parametrize(
    ("failures", "kind", "sqlstate"),
    [
        pytest.param([REFUSED, STARTING], "connect-transient", "57P03", id="::1, 127.0.0.1"),
        pytest.param([REFUSED, REFUSED], "connect-transient", None, id="nobody there"),
        pytest.param([REFUSED, WRONG_PASSWORD], "connect-permanent", "28P01", id="one answers"),
        pytest.param([WRONG_PASSWORD, REFUSED], "connect-permanent", "28P01", id="one answered"),
        pytest.param([STARTING, NO_ENTRY], "connect-transient", "57P03", id="TLS, then without"),
        pytest.param([WRONG_PASSWORD, NO_ENTRY], "connect-permanent", "28P01", id="both refuse"),
    ],
)
def test_of_several_addresses_the_most_telling_answer_counts(failures, kind, sqlstate):
    fault = classify(addresses(*failures))

    assert (fault.kind, fault.sqlstate) == (kind, sqlstate)


def test_psycopg_lists_all_its_attempts_after_the_last_one():
    error = psycopg.errors.ConnectionTimeout(
        "connection timeout expired\n"
        "Multiple connection attempts failed. All failures were:\n"
        f"- host: 'db', port: None, hostaddr: '::1': connection failed: {AT}{WRONG_PASSWORD}\n"
        "- host: 'db', port: None, hostaddr: '127.0.0.1': connection timeout expired"
    )

    assert classify(error).kind == "connect-permanent"


STALE = [
    "cached plan must not change result type",
    "cached statement plan is invalid due to a database schema or configuration change",
]


@pytest.mark.parametrize("text", STALE)
def test_a_prepared_statement_that_a_migration_made_stale(text):
    error = asyncpg.PostgresError.new({"C": "0A000", "M": text})

    fault = classify(error)

    assert (fault.kind, fault.sqlstate, fault.transient) == ("serialization", "0A000", True)
    assert fault.advice == (
        "A migration has changed a table that a prepared statement reads: run the whole "
        "transaction again, and the driver prepares a new one."
    )


SAID_BY_POOLERS = [
    ("XX000", "(ECHECKOUTTIMEOUT) unable to check out connection from the pool", "pooler-full"),
    ("XX000", "(ECHECKOUTFAILED) checkout failed due to %{}", "pooler-waits"),
    ("XX000", "(ECHECKOUTRETRIES) failed to check out a connection", "pooler-waits"),
    ("XX000", "(EPOOLCHECKOUT) pool checkout failed: :noproc", "pooler-waits"),
    ("XX000", "(EPOOLTERMINATING) pool terminating", "pooler-waits"),
    ("XX000", "(EDBHANDLEREXITED) DbHandler exited. Check logs", "lost"),
    ("58000", "checkout timeout", "pooler-full"),
    ("58000", "no primary", "pooler-waits"),
    ("58000", "could not get connection from the pool - AllServersDown", "pooler-waits"),
    ("MTF01", "planned failover in progress", "pooler-waits"),
    ("MTF02", "planned failover in progress", "pooler-waits"),
    ("MTB02", "failover buffer timeout", "pooler-waits"),
    ("0A000", "cannot set transaction read-write mode during recovery", "25006"),
    ("0A000", "cannot use serializable mode in a hot standby", "25006"),
]


@pytest.mark.parametrize("severity", ["ERROR", "FATAL"])
@pytest.mark.parametrize(("sqlstate", "text", "condition"), SAID_BY_POOLERS)
def test_what_a_pooler_says_within_a_statement_passes(severity, sqlstate, text, condition):
    fault = classify(said(sqlstate, text, severity))

    if condition == "lost" and severity == "ERROR":
        assert fault.kind == "permanent"  # the server's own words, over a connection that goes on
    else:
        assert fault.kind == CONDITIONS[condition].kind
        assert fault.advice == (CONDITIONS[condition].advice or ADVICE[fault.kind])
        assert (fault.sqlstate, fault.transient) == (sqlstate, True)


def said(sqlstate, text="", severity="ERROR"):
    """An error as the server or a pooler sends it."""
    return asyncpg.PostgresError.new({"S": severity, "V": severity, "C": sqlstate, "M": text})


ELSEWHERE = Fault(
    FaultKind.PERMANENT,
    "08006",
    transient=False,
    advice="The server lost, or never had, a connection to another server, such as that of a "
    "dblink, a foreign table or a worker; the connection to the server itself still works.",
)


@pytest.mark.parametrize(
    "sqlstate", ["08000", "08001", "08003", "08004", "08006", "57P01", "57P02", "57P05", "25P03"]
)
def test_what_the_server_says_and_goes_on_is_about_another_connection(sqlstate):
    error = said(sqlstate, "terminating connection due to administrator command")

    assert classify(error) == dataclasses.replace(ELSEWHERE, sqlstate=sqlstate)
    assert classify(wrapped(error)) == dataclasses.replace(ELSEWHERE, sqlstate=sqlstate)


@pytest.mark.parametrize("sqlstate", ["08006", "57P01", "57P02", "57P05", "25P03"])
def test_the_last_word_of_the_server_is_about_this_connection(sqlstate):
    assert classify(said(sqlstate, severity="FATAL")).kind == "disconnect"
    assert classify(wrapped(said(sqlstate), invalidated=True)).kind == "disconnect"


def test_the_severity_is_found_where_each_driver_puts_it():
    error: Any = DriverError("08006")
    error.diag = SimpleNamespace(sqlstate="08006", severity_nonlocalized="ERROR")

    assert classify(error) == ELSEWHERE
    assert classify(caused(DriverError("08006"), said("08006"))) == ELSEWHERE


@pytest.mark.parametrize(
    ("sqlstate", "text", "kind"),
    [
        ("08P01", "bind message supplies 2 parameters, but 1 is required", "permanent"),
        ("XX000", "could not connect to server: Connection refused at line 3.", "permanent"),
        ("XX000", "server closed the connection unexpectedly", "permanent"),
        ("40003", "result is ambiguous", "disconnect"),
        ("53300", "too many connections for role", "connect-transient"),
        ("57P03", "the database system is starting up", "connect-transient"),
    ],
)
def test_the_text_of_a_statement_s_error_is_not_about_the_connection(sqlstate, text, kind):
    assert classify(said(sqlstate, text)).kind == kind


def test_a_user_s_table_goes_before_what_the_severity_tells():
    assert classify(said("08006"), kinds={"08006": "disconnect"}).kind == "disconnect"


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([DriverError("40001")], "serialization"),
        ([DriverError("40001"), DriverError("40P01")], "serialization"),
        ([DriverError("40001"), DriverError("23505")], "permanent"),
        ([ValueError("no luck"), DriverError("40001")], "permanent"),
        ([ExceptionGroup("inner", [DriverError("08006")])], "disconnect"),
        ([ExceptionGroup("inner", [DriverError("08006"), KeyError("k")])], "permanent"),
    ],
)
def test_a_group_is_as_permanent_as_its_most_permanent_member(errors, kind):
    fault = classify(ExceptionGroup("unhandled errors in a TaskGroup", errors))

    assert fault.kind == kind


@pytest.mark.parametrize(
    ("sqlstate", "text", "kind"),
    [
        ("08P01", "no more connections allowed (max_client_conn)", "connect-transient"),
        ("08P01", "server login has been failing, cached error: x", "connect-transient"),
        ("08P01", "unsupported startup parameter: statement_timeout", "connect-permanent"),
        ("08P01", "insufficient data left in message", "disconnect"),
        ("XX000", "Max client connections reached", "connect-transient"),
        ("XX000", "Tenant or user not found", "connect-permanent"),
        ("XX000", "cache lookup failed for relation 1", "permanent"),
        ("53300", "password authentication failed", "connect-transient"),
    ],
)
def test_a_pooler_that_gives_one_code_for_everything_is_read(sqlstate, text, kind):
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": text})

    fault = classify(error)

    assert (fault.kind, fault.sqlstate) == (kind, sqlstate)


def wrapped(orig, *, invalidated=False):
    return sqlalchemy.exc.DBAPIError(
        "INSERT INTO t VALUES (%s)",
        {"note": "server closed the connection unexpectedly"},
        orig,
        connection_invalidated=invalidated,
    )


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_sqlalchemy_s_wrapper_means_what_it_wraps():
    assert classify(wrapped(DriverError("40P01"))).kind == "deadlock"
    assert classify(wrapped(psycopg2.OperationalError(EOF))).kind == "disconnect"


def test_what_a_wrapper_of_sqlalchemy_holds_is_a_driver_s_whatever_its_class():
    class OperationalError(Exception):
        """Of a driver that nobody has heard of."""

    assert classify(wrapped(OperationalError(EOF))).kind == "disconnect"
    assert classify(OperationalError(EOF)).kind == "permanent"
    assert classify(caused(ValueError("no luck"), OperationalError(EOF))).kind == "permanent"


def test_statement_and_parameters_of_the_wrapper_mean_nothing():
    assert classify(wrapped(psycopg2.DataError("no luck"))).kind == "permanent"


def test_the_driver_s_word_that_the_connection_is_lost_needs_no_text():
    error = psycopg2.OperationalError("die Verbindung wurde beendet")

    assert classify(wrapped(error, invalidated=True)).kind == "disconnect"
    assert classify(wrapped(error)).kind == "permanent"


@pytest.mark.parametrize(("closed", "kind"), [(0, "permanent"), (2, "disconnect")])
def test_psycopg2_names_the_cursor_and_so_the_state_of_the_connection(closed, kind):
    class Error(Exception):
        cursor = SimpleNamespace(connection=SimpleNamespace(closed=closed))

    assert classify(Error("die Verbindung wurde beendet")).kind == kind


def test_a_sqlstate_is_believed_before_the_loss_of_the_connection():
    assert classify(wrapped(DriverError("40001"), invalidated=True)).kind == "serialization"


def test_causes_are_followed():
    inner = caused(RuntimeError("repository"), wrapped(DriverError("55P03")))

    assert classify(caused(LookupError("service"), inner)).kind == "lock-timeout"


def test_an_error_raised_while_another_was_handled_is_an_error_of_its_own():
    error = KeyError("cached")
    error.__context__ = DriverError("40001")

    assert classify(error).kind == "permanent"


def test_asyncpg_s_own_code_gives_way_to_the_reason_the_server_gave():
    reset = ConnectionResetError(104, "Connection reset by peer")
    timeout = caused(asyncpg.IdleInTransactionSessionTimeoutError("terminating"), reset)
    error = caused(asyncpg.ConnectionDoesNotExistError("connection was closed"), timeout)

    assert classify(error).sqlstate == "25P03"
    assert classify(caused(DriverError("08006"), reset)).sqlstate == "08006"


def test_a_circle_of_causes_has_an_end():
    first, second = RuntimeError("a"), RuntimeError("b")
    caused(first, second)
    caused(second, first)

    assert classify(first).kind == "permanent"


class HostileError(Exception):
    def __getattr__(self, name):
        raise RuntimeError(f"no {name} here")


class MuteError(psycopg2.OperationalError):
    __module__ = "psycopg2"

    def __str__(self):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    "make", [HostileError, MuteError, Exception, lambda: None, lambda: "40001", lambda: 57014]
)
def test_nothing_makes_it_raise(make):
    assert classify(make()).kind == "permanent"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_a_program_or_a_task_is_no_fault_of_the_database(error):
    assert classify(caused(error(), DriverError("40001"))).transient is False


def invalid_connection():
    return sqlalchemy.exc.PendingRollbackError(
        "Can't reconnect until invalid transaction is rolled back.  "
        "Please rollback() fully before proceeding",
        code="8s2b",
    )


def failed_flush(original="(psycopg2.errors.UniqueViolation) duplicate key"):
    return sqlalchemy.exc.PendingRollbackError(
        "This Session's transaction has been rolled back due to a previous exception during flush. "
        "To begin a new transaction with this Session, first issue Session.rollback(). "
        f"Original exception was: {original}\n"
        "[SQL: SELECT 1 -- server closed the connection unexpectedly]\n",
        code="7s2a",
    )


def test_a_session_that_failed_before_is_told_where_to_look():
    assert classify(failed_flush()).advice == (
        "An earlier statement of this transaction failed: roll back, and look at that first error."
    )


def unavailable(orig):
    return DatabaseUnavailableError("away", retry_after=2.0, orig=orig)


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (sqlalchemy.exc.TimeoutError("QueuePool limit of size 5"), "pool-exhausted", False),
        (sqlalchemy.exc.DisconnectionError(), "disconnect", True),
        (sqlalchemy.exc.InvalidatePoolError(), "disconnect", True),
        (sqlalchemy.exc.InvalidRequestError("This connection is closed"), "disconnect", True),
        (sqlalchemy.exc.ResourceClosedError("This Connection is closed"), "permanent", False),
        (invalid_connection(), "disconnect", True),
        (failed_flush(f"(psycopg2.OperationalError) {EOF}"), "disconnect", True),
        (failed_flush(), "permanent", False),
        (sqlalchemy.exc.NoResultFound("No row was found"), "permanent", False),
        (unavailable(psycopg2.OperationalError(AT + REFUSED)), "connect-transient", True),
        (unavailable(DriverError("08003")), "connect-transient", True),
        (caused(RuntimeError(), unavailable(TimeoutError())), "connect-transient", True),
    ],
)
def test_errors_of_sqlalchemy_and_of_this_package(error, kind, transient):
    fault = classify(error)

    assert (fault.kind, fault.sqlstate, fault.transient) == (kind, None, transient)


def rejected_upgrade():
    return ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade')


class HTTPConnectionError(ConnectionResetError):
    """An error of somebody else's."""


class HTTPError(OSError):
    """Another one, as HTTP libraries have them."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "connect-transient"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "connect-transient"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "connect-transient"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "connect-transient"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "connect-transient"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), "connect-transient"),
        (asyncpg.TargetServerAttributeNotMatched("None of the hosts match"), "connect-transient"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "disconnect"),
        (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), "disconnect"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "disconnect"),
        (ConnectionError("unexpected connection_lost() call"), "disconnect"),
        (TimeoutError(), "disconnect"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "disconnect"),
        (ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"), "disconnect"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "disconnect"),
        (ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"), "disconnect"),
        (ssl.SSLSyscallError(5, "Some I/O error occurred"), "disconnect"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "connect-permanent"),
        (rejected_upgrade(), "connect-transient"),
        (asyncpg.ClientConfigurationError("could not match"), "connect-permanent"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "permanent"),
        (PermissionError(errno.EACCES, "Permission denied"), "permanent"),
        (OSError(errno.ENOSPC, "No space left on device"), "permanent"),
        (HTTPConnectionError(errno.ECONNRESET, "Connection reset by peer"), "permanent"),
        (HTTPError(errno.EHOSTUNREACH, "No route to host"), "permanent"),
        (ValueError("server closed the connection unexpectedly"), "permanent"),
    ],
)
def test_errors_that_asyncpg_lets_through(error, kind):
    fault = classify(error)

    assert (fault.kind, fault.sqlstate) == (kind, None)
    assert fault.transient is (kind in {"connect-transient", "disconnect"})


def test_a_user_s_table_overrules_kind_transience_and_advice():
    assert classify(DriverError("25P01"), kinds={"25P01": "disconnect"}) == Fault(
        FaultKind.DISCONNECT,
        "25P01",
        transient=True,
        advice="The connection is lost: run the work again on a new one, unless it was a COMMIT "
        "whose answer never came.",
    )
    assert classify(DriverError("25P03"), kinds={"25P03": "permanent"}) == Fault(
        FaultKind.PERMANENT,
        "25P03",
        transient=False,
        advice="The same work would fail again: correct the statement, its data or the call.",
    )


def test_a_user_s_code_goes_before_a_user_s_class_and_both_before_ours():
    kinds = {"53": "permanent", "53200": "query-cancelled"}

    assert classify(DriverError("53300"), kinds=kinds).kind == "permanent"
    assert classify(DriverError("53200"), kinds=kinds).kind == "query-cancelled"
    assert classify(DriverError("57P01"), kinds=kinds).kind == "disconnect"


def test_a_user_s_table_reaches_codes_that_the_driver_drops():
    error = psycopg2.OperationalError(AT + "FATAL:  sorry, too many clients already")

    assert classify(error, kinds={"53300": "connect-permanent"}).kind == "connect-permanent"


QUESTIONS = (
    "connection_lost",
    "server_unavailable",
    "not_connected",
    "rolled_back",
    "outcome_ambiguous",
)


@pytest.mark.parametrize(
    ("kind", "yes"),
    [
        ("disconnect", "connection_lost server_unavailable not_connected outcome_ambiguous"),
        ("connect-transient", "server_unavailable not_connected outcome_ambiguous"),
        ("connect-permanent", "not_connected"),
        ("serialization", "rolled_back"),
        ("deadlock", "rolled_back"),
        ("lock-timeout", ""),
        ("query-cancelled", ""),
        ("read-only", ""),
        ("pool-exhausted", ""),
        ("resource", "server_unavailable"),
        ("permanent", "outcome_ambiguous"),
    ],
)
def test_a_fault_answers_the_questions_that_its_readers_ask(kind, yes):
    fault = Profile(name="own", fault_kinds={"XX000": kind}).classify(DriverError("XX000"))

    assert fault.kind == kind
    assert [name for name in QUESTIONS if getattr(fault, name)] == [
        name for name in QUESTIONS if name in yes.split()
    ]


ALLOWED = (
    "disconnect, connect-transient, connect-permanent, serialization, deadlock, lock-timeout, "
    "query-cancelled, read-only, pool-exhausted, resource, permanent"
)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"25P01": "lost"}, f"fault_kinds['25P01'] is 'lost'; allowed: {ALLOWED}"),
        ({"25P01": None}, f"fault_kinds['25P01'] is None; allowed: {ALLOWED}"),
        (
            {"deadlock": "permanent"},
            "fault_kinds has the key 'deadlock'; "
            "allowed: a SQLSTATE such as '40P01', or its first two characters",
        ),
        (
            {40001: "permanent"},
            "fault_kinds has the key 40001; "
            "allowed: a SQLSTATE such as '40P01', or its first two characters",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(kinds, message):
    for call in (lambda: check_kinds(kinds), lambda: classify(Exception(), kinds=kinds)):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sqlstate", "advice"),
    [
        (
            "28P01",
            "The password is wrong: check that user and password in DATABASE_URL are those that "
            "the database has now; a rotated password reaches a service with its next deploy.",
        ),
        ("3D000", "There is no such database: create it, or correct its name in DATABASE_URL."),
        (
            "53300",
            "The server has no connection left: lower pool_size, max_overflow, workers or "
            "replicas, or put a pooler such as PgBouncer before it.",
        ),
    ],
)
def test_the_advice_names_the_fix(sqlstate, advice):
    assert classify(DriverError(sqlstate)).advice == advice


def test_every_advice_is_one_sentence():
    advices = {*ADVICE.values(), *(row.advice for row in CONDITIONS.values() if row.advice)}

    assert set(ADVICE) == set(FaultKind)
    assert [text for text in advices if not re.fullmatch(r"[A-Z](?:[^.]|\.(?! ))*\.", text)] == []


def test_the_fault_holds_nothing_of_the_error():
    error = psycopg2.OperationalError(f'invalid dsn: postgresql://u:{MARK}@h/"d"')

    assert MARK not in repr(classify(wrapped(error)))


def test_every_condition_that_is_recognised_is_explained():
    recognised = {*dict(messages.TEXTS).values(), *faults._CLASSES.values()}
    recognised |= set(faults._BUILTINS.values())

    assert {key for key in recognised if not faults._look_up(CONDITIONS, key)} == set()


def test_no_driver_is_imported():
    program = inspect.cleandoc("""
        import sys, types
        package = types.ModuleType("sa_railway")
        package.__path__ = [sys.argv[1]]
        sys.modules["sa_railway"] = package
        from sa_railway.faults import classify
        classify(Exception())
        print(*sorted({"psycopg2", "psycopg", "asyncpg"} & set(sys.modules)))
    """)
    package = str(Path(faults.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", program, package], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "\n"


def test_an_unknown_outcome_is_not_called_transient():
    fault = classify(CommitOutcomeUnknownError(transaction_id=7, orig=OSError()))

    assert (fault.kind, fault.transient) == (FaultKind.DISCONNECT, False)
    assert fault.advice == (
        "It is unknown whether the work took effect: look for its result before running it again."
    )
