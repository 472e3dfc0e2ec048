"""Find the database URL.

A host is judged as parsed, never as a part of the URL's text.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from sqlalchemy import URL, make_url

from sa_railway.config.drivers import choose_driver, translate_query
from sa_railway.config.parse import (
    FIX,
    check_password,
    check_resolved,
    parse_url,
    read_ports,
    tidy,
)
from sa_railway.exc import ConfigurationError

logger = logging.getLogger("sa_railway.config")

VARIABLES = (
    "DATABASE_UNPOOLED_URL",  # only where it is asked for
    "DATABASE_URL",
    "DATABASE_PRIVATE_URL",
    "PGHOST",
    "DATABASE_PUBLIC_URL",
)
"""Where a URL is looked for, in this order."""

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
    return translate_query(choose_driver(parse_url("url", url), driver, asyncio=asyncio))


def find_url(
    url: str | URL | None = None,
    *,
    unpooled: bool = False,
    environ: Mapping[str, str] | None = None,
) -> URL:
    """Do what ``database_url()`` does, but leave the driver and the query parameters alone."""
    if url is not None:
        return parse_url("url", url)
    environ = os.environ if environ is None else environ
    flaws: list[str] = []
    for name in VARIABLES if unpooled else VARIABLES[1:]:
        if name not in environ:
            continue
        try:
            found = parse_url(name, _from_parts(environ) if name == "PGHOST" else environ[name])
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
            f"file is used instead; {FIX}"
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


def _from_parts(environ: Mapping[str, str]) -> URL:
    """Build the URL from the variables that libpq reads, as Railway's PostgreSQL sets them."""
    parts = {name: environ.get(f"PG{name}") for name in ("USER", "PASSWORD", "DATABASE", "SSLMODE")}
    host = tidy("PGHOST", environ["PGHOST"])
    check_resolved("PGHOST", host)
    for name in ("USER", "DATABASE", "SSLMODE"):
        check_resolved(f"PG{name}", parts[name] or "")
    check_password("PGPASSWORD", parts["PASSWORD"] or "")
    ports = read_ports("PGPORT", environ.get("PGPORT") or "5432")
    query = {"sslmode": parts["SSLMODE"]} if parts["SSLMODE"] else {}
    if len(ports) > 1:
        query |= {"host": host, "port": ",".join(map(str, ports))}
    elif host.startswith("/"):
        query["host"] = host
    return URL.create(
        "postgresql",
        username=parts["USER"] or None,
        password=parts["PASSWORD"] or None,
        host=None if "host" in query else host,
        port=ports[0] if len(ports) == 1 else None,
        database=parts["DATABASE"] or None,
        query=query,
    )
