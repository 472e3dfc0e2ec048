"""Find the database URL and refuse what cannot work.

No message and no log line holds a URL, or a part of one that could be secret. A host is judged as
parsed, never as a part of the URL's text.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sa_railway.config.drivers import (
    BACKENDS,
    allowed_drivers,
    choose_driver,
    has_dialect,
    last,
    spell_query,
)
from sa_railway.config.masking import shows_password
from sa_railway.exc import ConfigurationError

__all__ = [
    "database_url",
    "find_url",
    "is_private_host",
    "is_public_proxy",
    "normalize_url",
    "on_railway",
]

logger = logging.getLogger("sa_railway.config")

_VARIABLES = ("DATABASE_URL", "DATABASE_PRIVATE_URL", "PGHOST", "DATABASE_PUBLIC_URL")
_PUBLIC_PROXY = re.compile(
    r"(?:.*\.)?proxy\.rlwy\.net|containers-[a-z]+-[a-z]+-\d+\.railway\.app", re.IGNORECASE
)
_RAILWAY_VARIABLES = (
    "RAILWAY_ENVIRONMENT_ID",
    "RAILWAY_ENVIRONMENT_NAME",
    "RAILWAY_ENVIRONMENT",
    "RAILWAY_PROJECT_ID",
    "RAILWAY_SERVICE_ID",
)

_LAST_PORT = 65535
_PORTS = f"allowed: a number from 1 to {_LAST_PORT}"

_FIX = (
    "on Railway, set DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the name of "
    "your PostgreSQL service for Postgres"
)
_UNREADABLE = (
    "cannot be read as a database URL; allowed: scheme://user:password@host:port/database, where "
    "the characters @ : / ? # in user and password are percent-encoded"
)
_UNRESOLVED = (
    re.compile(r".*\$\{(\{|\w+\})", re.DOTALL),  # ${...} is a shell's, and nobody's here
    "holds a reference that was not resolved: Railway resolves ${{...}} in the variables of a "
    f"service only, and only if the service and the variable exist; {_FIX}",
)
_FLAWS = (
    (
        re.compile(r"\s*\Z"),
        "is empty: this is what Railway makes of a reference to a service or variable that does "
        f"not exist; {_FIX}",
    ),
    _UNRESOLVED,
    (
        re.compile(r"\s|.*\s\Z", re.DOTALL),
        "begins or ends with white space; remove it where the value is set",
    ),
    (
        re.compile(r"[\"'`]|.*[\"'`]\Z", re.DOTALL),
        "begins or ends with a quotation mark; remove it where the value is set",
    ),
    (
        # "@:/db", "@:5432/db", "@host:/db"; a host in the query is one as well
        re.compile(r"(?!.*[?&]host=).*@(:\d*|[^@/:?]+:)([/?]|\Z)", re.DOTALL),
        "is half-rendered, its host or port is empty: Railway fills them in once the database "
        "service has a private domain or, for a public URL, a TCP proxy; enable that and deploy "
        "again, or use ${{Postgres.DATABASE_URL}}, which needs no TCP proxy",
    ),
)

# but for one in a query, it is of a password, whose rest would be taken for host and database
_SECOND_AT = re.compile(r"(?i:postgres|mysql|mariadb)[^@]*@(?![^@?]*\?[a-z_]+=).*@", re.DOTALL)

_HOST_LIST = re.compile(
    r"(?P<start>postgres(?:ql)?(?:\+\w+)?://(?:[^@/?]*@)?)"
    r"(?P<hosts>[^@/?,\[\]]+(?:,[^@/?,\[\]]+)+)(?P<rest>.*)",
    re.DOTALL,
)


def database_url(
    url: str | URL | None = None,
    *,
    driver: str | None = None,
    unpooled: bool = False,
    asyncio: bool = False,
    environ: Mapping[str, str] | None = None,
) -> URL:
    """Return the URL of the database, from *url* or the environment, with a driver.

    Looked for in this order: *url*, ``DATABASE_URL``, ``DATABASE_PRIVATE_URL``, ``PGHOST`` with
    the other ``PG*`` variables, ``DATABASE_PUBLIC_URL``. A variable whose value cannot work is
    passed over with a warning if a later one is good. Without any, it is the SQLite file
    ``app.db``, but for Railway, where a container's disk is lost at every deploy.

    Args:
        url: the database; None looks for it in the environment.
        driver: as for ``normalize_url()``.
        unpooled: prefer ``DATABASE_UNPOOLED_URL``, which goes round Railway's PgBouncer:
            migrations and ``LISTEN`` need that.
        asyncio: as for ``normalize_url()``.
        environ: the variables to read; None reads those of the process.

    Returns:
        A URL whose ``str()`` hides the password, but SQLAlchemy shows an ``sslpassword`` in its
        query; that is better passed in ``connect_args``. The environment is read at every call.

    Raises:
        ConfigurationError: no usable URL; the message says of each variable what is wrong.
    """
    found = find_url(url, unpooled=unpooled, environ=environ)
    return normalize_url(found, driver=driver, asyncio=asyncio)


def normalize_url(url: str | URL, *, driver: str | None = None, asyncio: bool = False) -> URL:
    """Return *url* with the scheme and query parameters that its driver understands.

    A driver that the URL names is kept; without one it is the first that is installed of psycopg2,
    psycopg and asyncpg, or of mysqlclient and PyMySQL. Query parameters of libpq are translated for
    asyncpg, and back. Normalising twice changes nothing.

    Args:
        url: a URL of any kind that SQLAlchemy takes, or ``postgres://``, or a list of hosts.
        driver: SQLAlchemy's name of the driver to use, whatever the URL says. For an SQLite
            URL a driver of another database says only whether to use asyncio.
        asyncio: replace a driver that cannot be used with asyncio; asyncpg is chosen first.

    Raises:
        ConfigurationError: the URL cannot be read, its scheme or driver is unknown, or it names no
            driver and none is installed.
    """
    return spell_query(choose_driver(_parse("url", url), driver, asyncio=asyncio))


def find_url(
    url: str | URL | None = None,
    *,
    unpooled: bool = False,
    environ: Mapping[str, str] | None = None,
) -> URL:
    """Do what ``database_url()`` does, but leave the driver and the query parameters alone."""
    if url is not None:
        return _parse("url", url)
    environ = os.environ if environ is None else environ
    flaws: list[str] = []
    for name in ("DATABASE_UNPOOLED_URL", *_VARIABLES) if unpooled else _VARIABLES:
        if name not in environ:
            continue
        try:
            found = _parse(name, _from_parts(environ) if name == "PGHOST" else environ[name])
        except ConfigurationError as error:
            flaws.append(str(error))
            continue
        for flaw in flaws:
            logger.warning("Using %s, because %s", name, flaw)
        return found
    if flaws:
        raise ConfigurationError("; ".join(flaws))
    if on_railway(environ):
        raise ConfigurationError(
            "no database URL is set, and a container's disk is lost at every deploy, so no SQLite "
            f"file is used instead; {_FIX}"
        )
    return make_url("sqlite:///app.db")


def on_railway(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether Railway set these variables; ``railway run`` on a laptop does so, too."""
    variables = os.environ if environ is None else environ
    return any(variables.get(name) for name in _RAILWAY_VARIABLES)


def is_private_host(host: str | None) -> bool:
    """Return whether the parsed *host* is of Railway's private network."""
    return (host or "").lower().endswith(".railway.internal")


def is_public_proxy(host: str | None) -> bool:
    """Return whether the parsed *host* is Railway's TCP proxy, old or new; its traffic is billed.

    A proxy behind a domain of one's own cannot be told by its name.
    """
    return _PUBLIC_PROXY.fullmatch(host or "") is not None


def _parse(name: str, url: str | URL) -> URL:
    """Return *url* parsed, or say what is wrong with the variable or argument *name*."""
    if not isinstance(url, str | URL):
        raise ConfigurationError(
            f"{name} is of type {type(url).__name__}; allowed: a string or a sqlalchemy.URL"
        )
    if isinstance(url, str):
        for pattern, flaw in _FLAWS:
            if pattern.match(url):
                raise ConfigurationError(f"{name} {flaw}")
    parsed = _read(url) if isinstance(url, str) else url
    if parsed is None or shows_password(parsed):
        raise ConfigurationError(f"{name} {_UNREADABLE}")
    if parsed.port is not None and not 1 <= parsed.port <= _LAST_PORT:
        raise ConfigurationError(f"{name} has the port {parsed.port}; {_PORTS}")
    backend, plus, driver = parsed.drivername.lower().partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    parsed = parsed.set(drivername=backend + plus + driver)
    if not has_dialect(parsed):
        raise ConfigurationError(f"{name} {_unknown(backend, driver)}")
    return _with_credentials_in_place(parsed)


def _read(text: str) -> URL | None:
    """Parse *text*; None says that it cannot be, without the parser's message, which may quote."""
    if _SECOND_AT.match(text):
        return None
    hosts = _HOST_LIST.match(text)
    try:
        if not hosts:
            return make_url(text)
        listed = [h if ":" in h else f"{h}:5432" for h in hosts["hosts"].split(",")]
        return make_url(hosts["start"] + hosts["rest"]).update_query_dict({"host": listed})
    except (ArgumentError, ValueError):
        return None


def _unknown(backend: str, driver: str) -> str:
    if backend in BACKENDS:
        return f"names the driver {driver!r}; allowed: {allowed_drivers(backend, driver)}"
    return (
        f"has the scheme {backend!r}; allowed: postgres, {', '.join(BACKENDS)}, "
        "and those of other SQLAlchemy dialects that are installed"
    )


def _with_credentials_in_place(url: URL) -> URL:
    """Move user and password out of the query: ``str()`` hides them only in their own place."""
    user, password = url.query.get("user"), url.query.get("password")
    return url.set(
        username=last(user) if user else None,
        password=last(password) if password else None,
    ).difference_update_query(["user", "password"])


def _from_parts(environ: Mapping[str, str]) -> URL:
    """Build the URL from the variables that libpq reads, as Railway's PostgreSQL sets them."""
    parts = {name: environ.get(f"PG{name}") for name in ("HOST", "USER", "PASSWORD", "DATABASE")}
    parts |= {name: environ.get(f"PG{name}") for name in ("PORT", "SSLMODE")}
    for name, value in parts.items():
        for pattern, flaw in _FLAWS if name == "HOST" else (_UNRESOLVED,):
            if value is not None and pattern.match(value):
                raise ConfigurationError(f"PG{name} {flaw}")
    host, port = parts["HOST"] or "", parts["PORT"] or "5432"
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= _LAST_PORT):
        raise ConfigurationError(f"PGPORT is not a port; {_PORTS}")
    query = {"sslmode": parts["SSLMODE"]} if parts["SSLMODE"] else {}
    is_socket = host.startswith("/")
    return URL.create(
        "postgresql",
        username=parts["USER"] or None,
        password=parts["PASSWORD"] or None,
        host=None if is_socket else host,
        port=int(port),
        database=parts["DATABASE"] or None,
        query={**query, "host": host} if is_socket else query,
    )
