"""The names of the hosts in the URL, and the addresses that they resolve to."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator

from sqlalchemy import URL

from sa_railway.config.url import is_private_host
from sa_railway.doctor.case import Address, Case, NotRunError, Seen
from sa_railway.doctor.findings import Finding, Kind, Severity

SERVERS = {
    "postgresql": ("PostgreSQL", 5432),
    "mysql": ("MySQL", 3306),
    "mariadb": ("MariaDB", 3306),
}
"""The databases whose network is examined, and their standard ports."""

_NO_NAME_ERRORS = (
    'could not translate host name "<host>" to address: Name or service not known',
    "failed to resolve host '<host>': [Errno -2] Name or service not known",
    "socket.gaierror: [Errno -2] Name or service not known",
    "[Errno -3] Temporary failure in name resolution",
)

PRIVATE_HOST = Kind(
    "private-host",
    Severity.ERROR,
    "<host> is a private host of Railway, and this is not Railway",
    "Names under railway.internal exist only within the project and environment of the service, "
    "not on a laptop, in CI or in another project.",
    "From here, use DATABASE_PUBLIC_URL, for which the database needs Public Access, or a tunnel: "
    "railway connect --tunnel-only.",
    _NO_NAME_ERRORS,
)
PRIVATE_NAME = Kind(
    "private-name",
    Severity.ERROR,
    "The private host <host> does not resolve",
    "There is no such service in this project and environment, or this process runs where the "
    "private network does not reach: during the build, or by railway run on a laptop.",
    "Compare it with the private domain in the settings of the database service, and run "
    "migrations as pre-deploy command, not in the build. If it fails in the first seconds of a "
    "deploy only, waiting is enough: sa-railway wait. The DNS logs of the Network tab show it as "
    "@zone:internal AND @status:failed.",
    _NO_NAME_ERRORS,
)
NO_NAME = Kind(
    "name-not-found",
    Severity.ERROR,
    "The host name <host> does not resolve",
    "It is misspelt, it no longer exists, or this machine has no working DNS: <message>.",
    "Compare it with the host that the provider of the database shows, and look up another name "
    "from here.",
    (*_NO_NAME_ERRORS, "[Errno -3] Lookup timed out"),
)

_HOST_AND_PORT = re.compile(r"([^:]+):(\d*)")


def check_dns(case: Case) -> Seen:
    """Resolve the hosts of the URL, to IPv4 and IPv6."""
    targets = list(_targets(case.url))
    if not targets:
        raise NotRunError("the URL names no host; the driver takes its default")
    seen, findings = [], []
    for target in targets:
        try:
            found = _resolve(target, case.timeout)
        except OSError as error:
            findings.append(_unresolved(case, target.host, error))
            continue
        case.addresses += found
        seen.append(_names(target, found))
    # with several hosts, the driver goes on to the next
    return "; ".join(seen), [] if case.addresses else findings


def _targets(url: URL) -> Iterator[Address]:
    """Yield the hosts of *url*: its own, or those in its query."""
    hosts = url.query.get("host", ())
    port = url.port or SERVERS[url.get_backend_name()][1]
    for entry in (hosts,) if isinstance(hosts, str) else hosts:
        if entry.startswith("/"):
            path = f"{entry}/.s.PGSQL.{port}"
            yield Address(entry, path=path)
        else:
            match = _HOST_AND_PORT.fullmatch(entry)
            host, own_port = match.groups() if match else (entry, "")
            yield Address(host, int(own_port or port))
    if url.host and not hosts:
        yield Address(url.host, port)


def _resolve(target: Address, seconds: float) -> list[Address]:
    """Return the addresses of *target*; the system's own look-up has no deadline."""
    if target.path:
        return [target]
    found: list[Address] = []
    failed: list[OSError] = [TimeoutError(f"no answer within {seconds:g} s")]

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found.extend(Address(target.host, target.port, str(i[4][0])) for i in infos)
        except (OSError, UnicodeError) as error:  # a label of over 63 characters is a UnicodeError
            failed[0] = error if isinstance(error, OSError) else OSError(str(error))

    thread = threading.Thread(target=look_up, name="sa_railway-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise failed[0]
    return list(dict.fromkeys(found))


def _names(target: Address, found: list[Address]) -> str:
    if target.path:
        return f"{target.host} is a folder"
    if [target.host] == [address.ip for address in found]:
        return f"{target.host} is an address"
    return f"{target.host}: {', '.join(address.ip for address in found)}"


def _unresolved(case: Case, host: str, error: OSError) -> Finding:
    if not is_private_host(host):
        return NO_NAME.found(host=host, message=error.strerror or error)
    return (PRIVATE_NAME if case.is_on_railway else PRIVATE_HOST).found(host=host)
