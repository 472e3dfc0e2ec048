"""Which driver a URL gets, and how the query parameters of a URL are spelled for its driver.

No driver is imported: whether one is installed is asked of the import system.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from sqlalchemy import URL
from sqlalchemy.exc import NoSuchModuleError

from sa_railway.config.profile import suggest
from sa_railway.exc import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.engine.default import DefaultDialect

logger = logging.getLogger("sa_railway.config")

LIBPQ_DRIVERS = frozenset({"psycopg2", "psycopg2cffi", "psycopg", "psycopg_async"})
"""The drivers that hand every connection parameter to libpq."""

# SQLAlchemy's names, in the order in which they are chosen for a URL that names none.
_SYNC_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg"),
    "mysql": ("mysqldb", "pymysql"),
    "mariadb": ("mysqldb", "pymysql"),
    "sqlite": ("pysqlite",),
}
_ASYNC_DRIVERS = {
    "postgresql": ("asyncpg", "psycopg"),
    "mysql": ("asyncmy", "aiomysql"),
    "mariadb": ("asyncmy", "aiomysql"),
    "sqlite": ("aiosqlite",),
}
_ASYNC_CAPABLE = frozenset(
    {"asyncpg", "psycopg", "psycopg_async", "asyncmy", "aiomysql", "aiosqlite"}
)
_ASYNC_ONLY = _ASYNC_CAPABLE - {"psycopg"}
_MODULES = {"mysqldb": "MySQLdb", "pysqlite": "sqlite3"}  # where it is not the driver's own name

EXTRAS = {"psycopg": "psycopg", "asyncpg": "asyncpg"}
"""The extras of this package by the modules that they install, as pyproject.toml has them."""

BACKENDS = tuple(_SYNC_DRIVERS)
"""The databases that this package knows the drivers of."""

# What libpq knows and asyncpg takes in no other place than the query of its `dsn` argument, where
# it makes a server setting of every name that it does not know.
_DSN_PARAMETERS = frozenset(
    {"application_name", "options", "sslcert", "sslcrl", "sslkey", "sslnegotiation", "sslpassword"}
    | {"sslrootcert", "ssl_max_protocol_version", "ssl_min_protocol_version"}
)
# What libpq knows, asyncpg has in no form that a URL could carry (its own `timeout` must be a
# number, and a query parameter is a text), and a connection can do without. `hostaddr` and
# `require_auth`, for instance, are not among these: asyncpg is to refuse them.
_LIBPQ_ONLY = frozenset(
    {"channel_binding", "client_encoding", "connect_timeout", "fallback_application_name"}
    | {"gssencmode", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"}
    | {"load_balance_hosts", "sslcompression", "sslsni", "tcp_user_timeout"}
)
_SSL_WORDS = {"true": "require", "false": "disable"}  # as JDBC and Node.js spell it


def choose_driver(url: URL, driver: str | None = None, *, asyncio: bool = False) -> URL:
    """Return *url* with a driver: *driver*, else the one it names, else one that is installed.

    Args:
        url: its backend must be one that SQLAlchemy knows.
        driver: as for ``normalize_url()``.
        asyncio: replace a driver that cannot be used with asyncio.

    Raises:
        ConfigurationError: the backend has no such driver, or none is named and none is installed.
    """
    backend, _, named = url.drivername.partition("+")
    if driver is not None:
        is_of_server = driver in _drivers_of("postgresql") + _drivers_of("mysql")
        if backend != "sqlite" or not is_of_server:
            return _with_driver_asked(url, backend, driver)
        named, asyncio = "", asyncio or driver in _ASYNC_ONLY
    is_usable = named and (not asyncio or named in _ASYNC_CAPABLE)
    if is_usable or backend not in BACKENDS:
        return url
    if backend == "sqlite" and not asyncio:
        return url.set(drivername=backend)
    return url.set(drivername=f"{backend}+{_installed_driver(backend, asyncio=asyncio)}")


def _with_driver_asked(url: URL, backend: str, driver: str) -> URL:
    asked = url.set(drivername=f"{backend}+{driver}")
    if has_dialect(asked):
        return asked
    raise ConfigurationError(
        f"driver is {driver!r}; allowed for {backend}: {allowed_drivers(backend, driver)}"
    )


def _installed_driver(backend: str, *, asyncio: bool) -> str:
    candidates = list(_ASYNC_DRIVERS[backend]) if asyncio else _drivers_of(backend)
    for candidate in candidates:
        if find_spec(_MODULES.get(candidate, candidate)):
            return candidate
    extra = next((EXTRAS[name] for name in candidates if name in EXTRAS), None)
    raise ConfigurationError(
        f"no driver for {backend} is installed; install one of: {', '.join(candidates)}"
        + (f", for example by {_install(extra)}" if extra else "")
    )


@contextlib.contextmanager
def naming_extras() -> Iterator[None]:
    """Add to the error about a driver that is not installed by which extra it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            error.add_note(f"sa_railway: install the driver by {_install(EXTRAS[error.name])}")
        raise


def _install(extra: str) -> str:
    return f'pip install "sa-railway[{extra}]"'


def _drivers_of(backend: str) -> list[str]:
    return list(dict.fromkeys(_SYNC_DRIVERS.get(backend, ()) + _ASYNC_DRIVERS.get(backend, ())))


def has_dialect(url: URL) -> bool:
    """Return whether SQLAlchemy knows the backend and the driver that *url* names."""
    try:
        url.get_dialect()
    except (NoSuchModuleError, ValueError):  # a second plus sign
        return False
    return True


def dialect_of(url: URL, *, asyncio: bool) -> type[DefaultDialect]:
    """Return the dialect that an engine for *url* has."""
    # an application's own get_dialect() need not know of asyncio
    dialect = url.get_dialect(_is_async=True) if asyncio else url.get_dialect()
    return cast("type[DefaultDialect]", dialect)


def is_foreign(url: URL) -> bool:
    """Return whether nothing is known of the database: no dialect of SQLAlchemy's for a driver."""
    if not has_dialect(url):
        return url.drivername.lower().partition("+")[0] not in ("postgres", *BACKENDS)
    return not hasattr(url.get_dialect(), "driver")


def has_driver(url: URL, *, asyncio: bool) -> bool:
    """Return whether SQLAlchemy itself finds an installed driver for *url* that it can use."""
    if not has_dialect(url):  # such as postgres
        return False
    dialect = dialect_of(url, asyncio=asyncio)
    module = dialect.driver.removesuffix("_async")
    return dialect.is_async == asyncio and bool(find_spec(_MODULES.get(module, module)))


def allowed_drivers(backend: str, given: str) -> str:
    """List the drivers of *backend* for a message, and which of them *given* may have meant."""
    drivers = _drivers_of(backend)
    return f"{', '.join(drivers) or 'its own'}{suggest(given, drivers)}"


def translate_query(url: URL) -> URL:
    """Return *url* with the query parameters that its driver understands.

    Between libpq and asyncpg they are translated; what is of neither is left alone, and so are the
    parameters of other drivers. What asyncpg cannot be told is left out with a warning.
    """
    driver = url.get_driver_name()
    if driver == "asyncpg":
        return _for_asyncpg(url)
    return _for_libpq(url) if driver in LIBPQ_DRIVERS else url


def libpq_parameters(url: URL) -> dict[str, str]:
    """Return the query parameters of *url* in libpq's words, also those meant for asyncpg."""
    query = {key: last_value(value) for key, value in url.query.items()}
    if "ssl" in query:
        query.setdefault("sslmode", _SSL_WORDS.get(query["ssl"].lower(), query["ssl"]))
    dsn = query.get("dsn", "")
    return {**(dict(parse_qsl(urlsplit(dsn).query)) if _is_url(dsn) else {}), **query}


def _is_url(dsn: str) -> bool:
    """Return whether the parameter *dsn* is asyncpg's; libpq's may be ``host=... port=...``."""
    return "://" in dsn


def _for_asyncpg(url: URL) -> URL:
    query = dict(url.query)
    if "," in (url.host or ""):
        # one port for all, as libpq reads it; asyncpg would look for one host of that name
        query["host"] = tuple(f"{host}:{url.port or 5432}" for host in (url.host or "").split(","))
        url = url._replace(host=None, port=None)  # what set() documents for a part to be removed
    mode = last_value(query.pop("sslmode", query.get("ssl", "")))
    if mode:
        query["ssl"] = _SSL_WORDS.get(mode.lower(), mode)
    lost = sorted(_LIBPQ_ONLY & query.keys())
    if lost:
        logger.warning("asyncpg takes no %s from a URL; left out", ", ".join(lost))
    inner = {key: last_value(query[key]) for key in sorted(_DSN_PARAMETERS & query.keys())}
    if inner:
        dsn = last_value(query.get("dsn", "postgresql://"))
        query["dsn"] = f"{dsn}{'&' if '?' in dsn else '?'}{urlencode(inner, quote_via=quote)}"
    return url.set(query={k: v for k, v in query.items() if k not in (*lost, *inner)})


def _for_libpq(url: URL) -> URL:
    query = {**libpq_parameters(url), **url.query}
    for key in ("ssl", "prepared_statement_cache_size"):
        query.pop(key, None)
    if _is_url(last_value(query.get("dsn", ""))):
        query.pop("dsn")
    return url.set(query=query)


def last_value(value: str | tuple[str, ...]) -> str:
    """Return the value of a query parameter; of one that is given several times, the last."""
    return value if isinstance(value, str) else value[-1]
