"""Read a database URL as SQLAlchemy does, and refuse what cannot work.

Where SQLAlchemy cannot read what libpq can, such as a port for each of several hosts, libpq's
reading counts. No message and no log line holds a URL, or a part of one that could be secret.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sa_railway.config.drivers import BACKENDS, allowed_drivers, has_dialect, last_value
from sa_railway.config.masking import shows_password
from sa_railway.config.profile import PROFILES, suggest
from sa_railway.exc import ConfigurationError

logger = logging.getLogger("sa_railway.config")

FIX = (
    "on Railway, set DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the name of "
    "your PostgreSQL service for Postgres"
)
_OWN = "railway_"
_PROFILE = _OWN + "profile"
_LAST_PORT = 65535
_PORTS = f"allowed: a number from 1 to {_LAST_PORT}"
_EMPTY = (
    "is empty: this is what Railway makes of a reference to a service or variable that does not "
    f"exist; {FIX}"
)
_UNRESOLVED = (
    "holds a reference that was not resolved: Railway resolves ${{...}} in the variables of a "
    f"service only, and only if the service and the variable exist; {FIX}"
)
_HALF_RENDERED = (
    "is half-rendered, its host or port is empty: Railway fills them in once the database service "
    "has a private domain or, for a public URL, a TCP proxy; enable that and deploy again, or use "
    "${{Postgres.DATABASE_URL}}, which needs no TCP proxy"
)
_UNREADABLE = (
    "cannot be read as a database URL; allowed: scheme://user:password@host:port/database, where "
    "the characters @ : / ? # in user and password are percent-encoded"
)
_SPACE = "begins or ends with white space"
_QUOTED = "begins or ends with a quotation mark"
_REMOVE = "remove it where the value is set"
_QUOTATION_MARKS = "\"'`"

_REFERENCE = re.compile(r"\$\{\{[^{}]*\}\}")
_SHELLS_REFERENCE = re.compile(r"\$\{\w+\}")
_BEGUN_REFERENCE = re.compile(r"\$\{(\{|\w+\})")

# SQLAlchemy's grammar: a user may hold an @, a password everything but that
_SHAPE = re.compile(
    r"(?P<scheme>[\w+]+)://(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<server>[^/?]*)(?P<path>[^?]*)(?P<query>.*)",
    re.DOTALL,
)
_QUERY = re.compile(r"\?[a-z][a-z0-9_.]*=[^&]*(&[a-z][a-z0-9_.]*=[^&]*)*")
_HOST_ELSEWHERE = re.compile(r"[?&](host|hostaddr|service)=")
_HALF = re.compile(r":\d*|[^:]+:|\[.*\]:")  # "@:/db", "@:5432/db", "@host:/db"
_HOST_IN_LIST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::([0-9]*))?")
_LIST_OF_PORTS = re.compile(r"[?&]port=[0-9]*(,|%2[Cc])")
_HOST_AND_PORT = re.compile(r"([\w.-]+):([0-9]+)")  # as SQLAlchemy takes it in a query


def parse_url(name: str, url: str | URL) -> URL:
    """Return *url* parsed, or say what is wrong with the variable or argument *name*.

    User, password, host, port and database are in their own places; the scheme ``postgres`` becomes
    ``postgresql``. The driver and the other query parameters are left alone.

    Raises:
        ConfigurationError: the URL cannot be read, or cannot work.
    """
    if not isinstance(url, str | URL):
        raise ConfigurationError(
            f"{name} is of type {type(url).__name__}; allowed: a string or a sqlalchemy.URL"
        )
    parsed = _read(name, url) if isinstance(url, str) else url
    if parsed is None:
        raise ConfigurationError(f"{name} {_UNREADABLE}")
    parsed = _with_known_scheme(name, parsed)
    _check_own_parameters(name, parsed)
    parsed = _in_place(name, parsed)
    if shows_password(parsed):
        raise ConfigurationError(f"{name} {_UNREADABLE}")
    if parsed.port is not None and not 1 <= parsed.port <= _LAST_PORT:
        # without a user, the number may be the password of a URL that lacks its host
        shown = f"the port {parsed.port}" if parsed.username else "a port that is out of range"
        raise ConfigurationError(f"{name} has {shown}; {_PORTS}")
    return parsed


def tidied(text: str) -> tuple[str, str]:
    """Return *text* without the white space or quotation marks around it, and what they are."""
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in _QUOTATION_MARKS:
        return bare[1:-1].strip(), _QUOTED
    return bare, _SPACE if bare != text else ""


def tidy(name: str, text: str) -> str:
    """Return *text* tidied, and warn if that changed it.

    Raises:
        ConfigurationError: nothing is left, or a quotation mark that is never closed.
    """
    bare, untidiness = tidied(text)
    if not bare:
        raise ConfigurationError(f"{name} {_EMPTY}")
    if bare[0] in _QUOTATION_MARKS:
        raise ConfigurationError(f"{name} {_QUOTED}; {_REMOVE}")
    if untidiness:
        logger.warning("%s %s, which is left out; %s", name, untidiness, _REMOVE)
    return bare


def check_resolved(name: str, text: str) -> None:
    """Refuse a *text* that Railway or a shell was to fill in."""
    if _BEGUN_REFERENCE.search(text):
        raise ConfigurationError(f"{name} {_UNRESOLVED}")


def check_password(name: str, password: str) -> None:
    """Refuse what Railway was to fill in; what looks like a shell's may be the password itself."""
    if _REFERENCE.search(password):
        raise ConfigurationError(f"{name} {_UNRESOLVED}")
    if _SHELLS_REFERENCE.fullmatch(password):
        logger.warning(
            "%s has a password of the form ${NAME}, which is taken literally; a shell's reference "
            "is not resolved here",
            name,
        )


def read_ports(name: str, text: str) -> list[int]:
    """Return the ports of *text*, which has commas between them."""
    ports = [port.strip() for port in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= _LAST_PORT for port in ports):
        raise ConfigurationError(f"{name} is not a port; {_PORTS}")
    return list(map(int, ports))


def profile_named_in(url: URL) -> str | None:
    """Return the name of a profile that the query of *url* holds; ``parse_url()`` checks it."""
    named = url.query.get(_PROFILE)
    return last_value(named) if named else None


def plugin_parameters(url: URL) -> list[str]:
    """Return the query parameters of *url* that are for SQLAlchemy and its plugins.

    psql, pg_dump, drivers and engines that are made of such a URL without the plugin refuse them.
    """
    return sorted(key for key in url.query if key == "plugin" or key.startswith(_OWN))


def _read(name: str, text: str) -> URL | None:
    """Parse *text*; None says that it cannot be, without the parser's message, which may quote."""
    text = tidy(name, text)
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        check_resolved(name, text)
        return None
    check_resolved(name, (shape["user"] or "") + shape["server"] + shape["path"])
    check_password(name, shape["password"] or "")
    if _REFERENCE.search(shape["query"]):
        raise ConfigurationError(f"{name} {_UNRESOLVED}")
    if shape["scheme"].lower().startswith(("postgres", "mysql", "mariadb")):
        if _holds_rest_of_password(shape):
            return None
        if _is_half_rendered(shape):
            raise ConfigurationError(f"{name} {_HALF_RENDERED}")
    try:
        return _read_hosts(shape, text)
    except (ArgumentError, ValueError):
        return None


def _holds_rest_of_password(shape: re.Match[str]) -> bool:
    """Return whether an @ stands where only that of an unescaped password could come from."""
    if "@" in shape["query"] and not _QUERY.fullmatch(shape["query"]):
        return True
    if shape["password"] is None:
        return re.search(":[^@]*@", shape["path"]) is not None
    return "@" in shape["server"] + shape["path"]


def _is_half_rendered(shape: re.Match[str]) -> bool:
    return (
        shape["user"] is not None
        and "," not in shape["server"]
        and _HALF.fullmatch(shape["server"]) is not None
        and _HOST_ELSEWHERE.search(shape["query"]) is None
    )


def _read_hosts(shape: re.Match[str], text: str) -> URL:
    """Parse *text*, with its hosts as libpq reads them where SQLAlchemy does not."""
    server = shape["server"]
    is_postgres = shape["scheme"].lower().startswith("postgres")
    if not is_postgres or not re.search("[,%]", server) or _is_list_of_sqlalchemy(shape):
        return make_url(text)
    url = make_url(text[: shape.start("server")] + text[shape.end("server") :])
    hosts, ports = [], []
    for each in server.split(","):
        match = _HOST_IN_LIST.fullmatch(each)
        if match is None:
            raise ValueError
        hosts.append(unquote(match[1] or match[2]))
        ports.append(match[3] or "")
    # in the query they count more
    hosts = last_value(url.query.get("host", ",".join(hosts))).split(",")
    ports = last_value(url.query.get("port", ",".join(ports))).split(",")
    if not all(1 <= int(port) <= _LAST_PORT for port in ports if port):
        raise ValueError
    return url.difference_update_query(["host", "port"]).update_query_dict(_spelled(hosts, ports))


def _is_list_of_sqlalchemy(shape: re.Match[str]) -> bool:
    """Return whether SQLAlchemy reads these hosts: a port behind the last one is that of all."""
    first, _, end = shape["server"].rpartition(",")
    return not (
        re.search(r"[:%\[]", first)
        or re.search(r"[%\[]|:\Z", end)
        or _LIST_OF_PORTS.search(shape["query"])
    )


def _spelled(hosts: list[str], ports: list[str]) -> dict[str, str | list[str]]:
    """Spell *hosts* and *ports* as SQLAlchemy takes them in a query."""
    if len(hosts) == len(ports) == 1:
        return {"host": hosts[0], **({"port": ports[0]} if ports[0] else {})}
    ports = [port or "5432" for port in ports]
    if len(ports) == 1:
        ports *= len(hosts)
    if len(hosts) != len(ports):
        raise ValueError
    if any(":" in host for host in hosts):  # IPv6
        return {"host": ",".join(hosts), "port": ",".join(ports)}
    return {"host": [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]}


def _with_known_scheme(name: str, url: URL) -> URL:
    if has_dialect(url):
        return url
    backend, plus, driver = url.drivername.lower().partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    url = url.set(drivername=backend + plus + driver)
    if has_dialect(url):
        return url
    if backend in BACKENDS:
        allowed = allowed_drivers(backend, driver)
        raise ConfigurationError(f"{name} names the driver {driver!r}; allowed: {allowed}")
    raise ConfigurationError(
        f"{name} has the scheme {backend!r}; allowed: postgres, {', '.join(BACKENDS)}, "
        "and those of other SQLAlchemy dialects that are installed"
    )


def _check_own_parameters(name: str, url: URL) -> None:
    """Refuse now what would be an error of the driver at the first connect."""
    for key in url.query:
        if key.startswith(_OWN) and key != _PROFILE:
            raise ConfigurationError(
                f"{name} has the parameter {key!r}; allowed of this package: {_PROFILE}"
            )
    profile = profile_named_in(url)
    if profile is not None and profile not in PROFILES:
        guess = suggest(profile, PROFILES)
        raise ConfigurationError(
            f"{name} has the {_PROFILE} {profile!r}{guess}; allowed: {', '.join(PROFILES)}"
        )


def _in_place(name: str, url: URL) -> URL:
    """Move what has a place in a URL out of its query: ``str()`` hides a password only there."""
    if url.get_backend_name() == "sqlite" or url.get_backend_name() not in BACKENDS:
        return url  # to which they may mean something else
    places = {"user": "username", "password": "password"}
    if url.drivername.startswith("postgresql"):
        places["dbname"] = "database"
        url = _with_server_in_place(name, url)
    found = {places[key]: last_value(url.query[key]) for key in places if key in url.query}
    return url.set(**found).difference_update_query(list(places))  # type: ignore[arg-type]


def _with_server_in_place(name: str, url: URL) -> URL:
    host, port = (url.query.get(key, "") for key in ("host", "port"))
    if not isinstance(host, str) or not isinstance(port, str) or "," in port:
        return url  # several hosts, as SQLAlchemy spells them
    if "," in host:
        # to libpq one port is that of all; SQLAlchemy wants as many
        return url.update_query_dict(
            {"port": ",".join([port] * len(host.split(",")))} if port else {}
        )
    with_port = None if port else _HOST_AND_PORT.fullmatch(host)
    if with_port is not None:
        host, port = with_port.groups()
    if port:
        (number,) = read_ports(f"port in the query of {name}", port)
        url = url.set(port=number).difference_update_query(["port"])
    if host and host[0] not in "/@":  # else it is a socket, for which a URL has no other place
        url = url.set(host=host).difference_update_query(["host"])
    return url
