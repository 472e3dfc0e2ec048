"""The way to the server without a driver: whether a port takes connections, and what answers."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import time

from sa_railway.doctor.case import Address, Case, NotRunError, Seen
from sa_railway.doctor.checks.greetings import MYSQL, SSL_REQUEST, is_postgres, name_of
from sa_railway.doctor.checks.names import SERVERS
from sa_railway.doctor.findings import Finding, Kind, Severity

LOCALHOST = Kind(
    "localhost-on-railway",
    Severity.ERROR,
    "The URL names <address>, which is this container itself, and nothing listens there",
    "The database is another service. A default for local development was used, because the "
    "variable that was to replace it is not set.",
    "On Railway, set DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the name of "
    "your PostgreSQL service for Postgres.",
    (
        "port <port> failed: Connection refused",
        'connection to server at "localhost" (::1), port 5432 failed: Connection refused',
        "connect ECONNREFUSED ::1:5432",
    ),
)
REFUSED = Kind(
    "refused",
    Severity.ERROR,
    "Nothing listens at <address>",
    "The machine is there and refuses the connection: the port is wrong, or the database is being "
    "restarted or has crashed.",
    "Check the port: <server> has <standard>; on Railway, its TCP proxy has another, in "
    "RAILWAY_TCP_PROXY_PORT. If it is right, look at the deployments and the log of "
    "the database service; sa-railway wait waits for it.",
    (
        "port <port> failed: Connection refused",
        "ConnectionRefusedError: [Errno 111] Connect call failed",
        "Is the server running on that host and accepting TCP/IP connections?",
    ),
)
NO_ANSWER = Kind(
    "no-answer",
    Severity.ERROR,
    "<address> did not answer within <seconds> s",
    "What is sent there disappears: a firewall or an allowlist, a route that does not exist, or a "
    "service that does not run.",
    "Check that the database service runs, that both are in the same project and environment, and "
    "that no firewall is in between.",
    (
        "port <port> failed: Connection timed out",
        "port <port> failed: timeout expired",
        "connection timeout expired",
    ),
)
UNREACHABLE = Kind(
    "unreachable",
    Severity.ERROR,
    "This machine has no route to <address>: <message>",
    "The name has addresses of IPv4: <ipv4>; of IPv6: <ipv6>. A machine or a container without "
    "IPv6 cannot reach those of IPv6, and environments of Railway from before October 2025 have "
    "no others in the private network.",
    "Use a host with an address that this machine can reach; from outside of Railway, "
    "DATABASE_PUBLIC_URL has one of IPv4. For Docker, enable IPv6.",
    (
        "port <port> failed: Network is unreachable",
        "OSError: [Errno 101] Network is unreachable",
        "Cannot assign requested address",
    ),
)
FROZEN = Kind(
    "frozen",
    Severity.ERROR,
    "<address> accepts connections, but did not answer within <seconds> s",
    "The kernel or a proxy there accepts and acknowledges everything, while the server is frozen, "
    "overloaded or gone. Without a deadline a client waits without end: neither keepalives nor "
    "tcp_user_timeout end it, and pool_pre_ping waits, too.",
    "Restart the database service, or the proxy or pooler before it; look at its CPU, memory and "
    "disk first. The deadlines of this package (ping_timeout, connect_timeout) keep the "
    "application answering meanwhile.",
    (
        "port <port> failed: timeout expired",
        "connection timeout expired",
        "[CRITICAL] WORKER TIMEOUT (pid:<pid>)",
    ),
)
CLOSED = Kind(
    "closed-at-start",
    Severity.ERROR,
    "<address> accepts connections and closes them at once",
    "A proxy listens there, and what it leads to does not: the database is being restarted, was "
    "removed, or the proxy leads to another port.",
    "Look at the deployments of the database service, and which port its TCP proxy leads to: it "
    "must be 5432.",
    (
        "server closed the connection unexpectedly",
        "unexpected connection_lost() call",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
    ),
)
NOT_POSTGRES = Kind(
    "not-postgres",
    Severity.ERROR,
    "What listens at <address> is <other>, not PostgreSQL",
    "Its first answer is none that PostgreSQL gives. Host or port are those of another service.",
    "Check host and port: PostgreSQL has 5432 in the private network, and the TCP proxy has "
    "another, in RAILWAY_TCP_PROXY_PORT; a public domain of Railway speaks HTTP. If the database "
    "is another one, the URL begins with its name, such as mysql://.",
    (
        "received invalid response to SSL negotiation",
        "expected authentication request from server, but received",
        "rejected SSL upgrade",
    ),
)
NOT_MYSQL = Kind(
    "not-mysql",
    Severity.ERROR,
    "What listens at <address> is <other>, and the URL names <backend>",
    "A client of MySQL waits for the server to speak first, which no other database does, so "
    "without a deadline it waits for a minute, or without end.",
    "If the database is PostgreSQL, begin the URL with postgresql:// in place of <scheme>://. "
    "Otherwise check host and port: MySQL has 3306.",
    (
        "Lost connection to MySQL server at 'reading initial communication packet'",
        "Lost connection to MySQL server during query",
    ),
)
NO_TLS = Kind(
    "tls-missing",
    Severity.ERROR,
    "The URL asks for TLS (sslmode=<mode>), but the server offers none",
    "PostgreSQL has TLS off, or a pooler that offers none is in between.",
    "Enable TLS there, or set sslmode=prefer if the network is private, as Railway's is.",
    (
        "server does not support SSL, but SSL was required",
        'PostgreSQL server at "<address>" rejected SSL upgrade',
    ),
)
PLAIN = Kind(
    "plain-text",
    Severity.WARNING,
    "The connection to <address> crosses the internet without TLS",
    "What is sent and read can be seen and changed on the way.",
    "Add ?sslmode=require to the URL.",
)

_NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
)
_ENOUGH = 256  # bytes of a first answer, to tell what gives it


class _NoTlsError(Exception):
    """What answers a handshake does not speak TLS."""


def check_tcp(case: Case) -> Seen:
    """Connect to each address, and keep the first that takes a connection."""
    if not case.addresses:
        raise NotRunError("there is no address to connect to")
    seen, errors = [], {}
    seconds = case.timeout / len(case.addresses)
    for address in case.addresses:
        started = time.monotonic()
        try:
            _connect(address, seconds).close()
        except OSError as error:
            errors[address] = error
            seen.append(f"{address}: {error.strerror or 'no answer'}")
        else:
            case.address = case.address or address
            seen.append(f"{address}: connected in {_milliseconds(started)}")
    if case.address is not None:
        return "; ".join(seen), []
    return "; ".join(seen), [_unconnected(case, errors, seconds)]


def _connect(address: Address, seconds: float) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.ip, address.port), seconds)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(seconds)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _unconnected(case: Case, errors: dict[Address, OSError], seconds: float) -> Finding:
    """Judge by the error that says most: of several addresses, some may not be meant to answer."""
    address, error = min(errors.items(), key=lambda item: _rank(item[1]))
    server, standard = SERVERS[case.url.get_backend_name()]
    values = {"address": address, "port": address.port, "server": server, "standard": standard}
    if _rank(error) == 0:
        is_here = address.ip and ipaddress.ip_address(address.ip).is_loopback
        return (LOCALHOST if is_here and case.is_on_railway else REFUSED).found(**values)
    if _rank(error) == 1:
        return NO_ANSWER.found(seconds=f"{seconds:g}", **values)
    ips = [found.ip for found in case.addresses if found.ip]
    ipv4 = ", ".join(ip for ip in ips if ":" not in ip) or "none"
    ipv6 = ", ".join(ip for ip in ips if ":" in ip) or "none"
    return UNREACHABLE.found(message=error.strerror or error, ipv4=ipv4, ipv6=ipv6, **values)


def _rank(error: OSError) -> int:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return 0
    return 2 if error.errno in _NO_ROUTE else 1


def check_tls(case: Case) -> Seen:
    """See what answers; ask PostgreSQL for TLS, and begin it unless the URL forbids it."""
    if case.address is None:
        raise NotRunError("there is no address to connect to")
    try:
        return (
            _greet_postgres(case, case.address) if case.is_postgres else _greet(case, case.address)
        )
    except TimeoutError:
        other = _ask_in_http(case.address, case.timeout)
    if other:
        return "", [_other(case, other)]
    return "", [FROZEN.found(seconds=f"{case.timeout:g}", **_values(case))]


def ask_for_tls(address: Address, seconds: float) -> socket.socket:
    """Return a new connection that has been asked for TLS, and waits for at most *seconds*."""
    connection = _connect(address, seconds)
    try:
        connection.sendall(SSL_REQUEST)
    except BaseException:
        connection.close()
        raise
    return connection


def _greet_postgres(case: Case, address: Address) -> Seen:
    """Ask for TLS, which every PostgreSQL answers."""
    started = time.monotonic()
    try:
        with ask_for_tls(address, case.timeout) as connection:
            answer = connection.recv(_ENOUGH)
            case.offers_tls = answer == b"S"
            if case.offers_tls and case.sslmode not in ("disable", "allow"):
                return f"{_handshake(connection)}, in {_milliseconds(started)}", []
    except ConnectionError:
        answer = b""
    except _NoTlsError:
        return "", [_other(case, "something that sends no TLS")]
    if answer == b"":
        return "", [CLOSED.found(**_values(case))]
    if not is_postgres(answer):
        return "", [_other(case, name_of(answer))]
    return _without_tls(address, case.sslmode, offered=case.offers_tls)


def _greet(case: Case, address: Address) -> Seen:
    """Wait for the greeting of MySQL, and if none comes, ask as a client of PostgreSQL does."""
    with _connect(address, case.timeout) as connection:
        try:
            answer = connection.recv(_ENOUGH)
        except TimeoutError:
            connection.sendall(SSL_REQUEST)
            answer = connection.recv(_ENOUGH)
            if is_postgres(answer):
                return "", [_other(case, "PostgreSQL")]
        except ConnectionError:
            answer = b""
    if answer == b"":
        return "", [CLOSED.found(**_values(case))]
    if name_of(answer) != MYSQL:
        return "", [_other(case, name_of(answer))]
    return "a greeting of MySQL", []


def _ask_in_http(address: Address, seconds: float) -> str:
    """Return what listens there, if it answers a line of text; "" if it says nothing at all.

    Redis, HTTP and others wait for the end of a line, which a request of PostgreSQL has not.
    """
    try:
        with _connect(address, seconds) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = connection.recv(_ENOUGH)
    except OSError:
        return ""
    return name_of(answer) if answer else ""


def _other(case: Case, other: str) -> Finding:
    kind = NOT_POSTGRES if case.is_postgres else NOT_MYSQL
    backend = case.url.get_backend_name()
    return kind.found(other=other, backend=backend, scheme=backend, **_values(case))


def _values(case: Case) -> dict[str, object]:
    address = case.address
    return {"address": address, "port": address.port if address else ""}


def _handshake(connection: socket.socket) -> str:
    """Return the version of TLS that is agreed on. Whom it is with is for the driver to verify.

    Raises:
        _NoTlsError: what came is no TLS at all.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connection) as encrypted:
            return encrypted.version() or "TLS"
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            raise _NoTlsError from error
        return f"TLS is offered, but not as this Python wants it: {error.reason}"


def _without_tls(address: Address, mode: str, *, offered: bool) -> Seen:
    detail = f"{'offered' if offered else 'not offered'}, sslmode={mode}"
    if not offered and mode in ("require", "verify-ca", "verify-full"):
        return detail, [NO_TLS.found(mode=mode, address=address)]
    if address.ip and ipaddress.ip_address(address.ip).is_global:
        return detail, [PLAIN.found(address=address)]
    return detail, []


def _milliseconds(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.1f} ms"
