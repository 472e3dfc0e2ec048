"""The arguments of create_engine() that a backend, a driver, a pool class and a profile ask for."""

from __future__ import annotations

import inspect
import math
import os
import socket
from collections.abc import Container, Mapping
from dataclasses import fields
from typing import Any, Unpack

from sqlalchemy import URL
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool

from sa_railway.config.drivers import (
    LIBPQ_DRIVERS,
    choose_driver,
    dialect_of,
    last_value,
    libpq_parameters,
)
from sa_railway.config.parse import profile_named_in
from sa_railway.config.profile import Profile, load_profile, suggest
from sa_railway.config.settings import EngineArguments, ProfileName, Settings
from sa_railway.config.url import find_url
from sa_railway.exc import ConfigurationError

# where libpq's parameters may stand besides the URL and the arguments of the driver
_ELSEWHERE = {"service", "dsn", "conninfo"}

_ENGINE_ARGUMENTS = frozenset(EngineArguments.__annotations__) - {"pool_pre_ping"}  # see _split()

_MYSQL_TIMEOUTS = dict.fromkeys(
    ("mysqldb", "pymysql", "asyncmy", "aiomysql", "mariadbconnector"), "connect_timeout"
) | {"mysqlconnector": "connection_timeout"}

CONNECT_TIMEOUTS = {
    **dict.fromkeys(LIBPQ_DRIVERS, "connect_timeout"),
    "asyncpg": "timeout",
    **_MYSQL_TIMEOUTS,
}
"""The argument by which a driver takes its limit for connecting."""

_NAME_BYTES = 63  # what PostgreSQL keeps of a name
_CONNECT_TIMEOUT, _TCP_USER_TIMEOUT = Profile().connect_timeout, Profile().tcp_user_timeout
_LINUX_TRIES = 130  # seconds; 127 with 6 retries of the first packet
_SQLITE_BUSY = 10.0  # seconds to wait for another writer; twice what sqlite3 does by itself


def engine_options(
    url: str | URL | None = None,
    *,
    profile: ProfileName | Profile | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: Unpack[Settings],
) -> dict[str, Any]:
    """Return the arguments of ``create_engine()`` for a database.

    They suit ``sqlalchemy.create_engine(url, **options)`` as well as Flask-SQLAlchemy's
    ``SQLALCHEMY_ENGINE_OPTIONS``, also where engines of several databases share them: the plugin
    replaces what does not fit the database that it finds.

    Args:
        url: the database; None looks for it in the environment as ``database_url()`` does.
        profile: a named profile or one that you made; None takes the one that the URL names as its
            ``railway_profile``, or else ``web``.
        environ: the variables to read, ``SA_RAILWAY_*`` among them; None reads those of the
            process.
        **overrides: fields of the profile, and arguments of ``create_engine()`` or of the
            dialect. ``pool_pre_ping`` is the field ``pre_ping``. Fields of the profile that the
            driver or the pool class has no use for have no effect.

    Returns:
        A new dict at every call, with new dicts in it.

    Raises:
        ConfigurationError: the URL, the profile or an override cannot be used.
    """
    environ = os.environ if environ is None else environ
    target = choose_driver(find_url(url, environ=environ))
    return options_for(target, profile, environ, overrides)


def options_for(
    url: URL,
    profile: str | Profile | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Do what ``engine_options()`` does, for a URL that has been found and has a driver."""
    settings, given = _split(overrides, url)
    named = profile_named_in(url) or "web" if profile is None else profile
    resolved = load_profile(named, settings, environ)
    pool = _pool_arguments(url, resolved, given, is_async=False, asked=settings)
    given |= {name: value for name, value in pool.items() if name in settings}
    if "pool_pre_ping" in overrides:
        given["pool_pre_ping"] = resolved.pre_ping
    arguments = engine_arguments(url, resolved, given, generated={}, is_async=False)
    return {
        **arguments,
        "plugins": _with_plugin(given.get("plugins", ())),
        "railway_profile": resolved,
        "railway_generated": _without(arguments, given),
    }


def _without(arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Copy *arguments* but for those that were *given*, also within ``connect_args``."""
    generated = {name: value for name, value in arguments.items() if name not in given}
    in_given = dict(given.get("connect_args") or {})
    connect_args = {
        name: _copied(value)
        for name, value in arguments.get("connect_args", {}).items()
        if name not in in_given
    }
    return {**generated, "connect_args": connect_args} if connect_args else generated


def engine_arguments(
    url: URL,
    profile: Profile,
    given: Mapping[str, Any],
    *,
    generated: Mapping[str, Any],
    is_async: bool,
) -> dict[str, Any]:
    """Return *given* with the defaults that this engine lacks and without those of another.

    What the caller passed wins, in the URL, in *given* and within its ``connect_args``; a text,
    as ``engine_from_config()`` reads from a file, stays a text.

    Args:
        url: the database, with the driver that the engine will have. Its query is that of libpq or
            of the driver; only in the former is there a ``connect_timeout`` for asyncpg.
        profile: where the defaults come from.
        given: keyword arguments of ``create_engine()``; they are not changed.
        generated: those that ``engine_options()`` generated, perhaps for another database.
            What equals them in *given* is taken for a default.
        is_async: whether the engine is one for asyncio.
    """
    arguments = _without_generated(given, generated)
    connect_args = arguments.pop("connect_args", {})
    if url.get_backend_name() != "sqlite":
        # Flask-SQLAlchemy puts this into the dict that an in-memory bind shares with the others
        connect_args.pop("check_same_thread", None)
        arguments = _pool_arguments(url, profile, arguments, is_async=is_async) | arguments
    if not any(arguments.get(name) for name in ("pool", "creator", "async_creator")):
        connect_args = _merge(_connect_defaults(url, profile, connect_args), connect_args)
    return {**arguments, "connect_args": connect_args} if connect_args else arguments


def _split(overrides: Mapping[str, Any], url: URL) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part *overrides* into fields of the profile and arguments of ``create_engine()``."""
    connect_args = overrides.get("connect_args")
    if not isinstance(connect_args, Mapping | None):  # not shown: it may hold a password
        raise ConfigurationError(
            f"connect_args is of type {type(connect_args).__name__}; allowed: a dict"
        )
    known = {setting.name for setting in fields(Profile)}
    others = _ENGINE_ARGUMENTS | _dialect_arguments(url)
    settings, arguments = {}, {}
    for name, value in overrides.items():
        setting = "pre_ping" if name == "pool_pre_ping" else name
        if setting in known:
            settings[setting] = value
        elif name in others:
            arguments[name] = _copied(value)
        else:
            raise ConfigurationError(
                f"{name} is not an option{suggest(name, sorted(known | others))}; allowed: the "
                "fields of a profile, the arguments of create_engine(), and those of the dialect "
                f"{url.drivername}"
            )
    return settings, arguments


def _dialect_arguments(url: URL) -> set[str]:
    """Return the names that the dialect of *url* and its bases take."""
    return {
        parameter.name
        for cls in url.get_dialect().__mro__
        for parameter in inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self", "dbapi"}


def _copied(value: Any) -> Any:
    """Copy dicts within dicts, and nothing else: an SSL context, for one, cannot be copied."""
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def _with_plugin(plugins: Any) -> list[str]:
    names = [plugins] if isinstance(plugins, str) else plugins
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"plugins is {plugins!r}; allowed: a list of names")
    names = list(names)
    return names if "railway" in names else [*names, "railway"]


def _without_generated(given: Mapping[str, Any], generated: Mapping[str, Any]) -> dict[str, Any]:
    """Copy *given* but for what equals *generated*, also within ``connect_args``."""
    kept = {k: v for k, v in given.items() if k not in generated or v != generated[k]}
    connect_args = dict(given.get("connect_args") or {})  # SQLAlchemy takes pairs as well
    defaults = generated.get("connect_args", {})
    kept["connect_args"] = {
        k: v for k, v in connect_args.items() if k not in defaults or v != defaults[k]
    }
    return kept


def _pool_arguments(
    url: URL,
    profile: Profile,
    given: Mapping[str, Any],
    *,
    is_async: bool,
    asked: Container[str] = (),
) -> dict[str, Any]:
    """Return what *profile* says to the pool, as far as its class can hear it.

    A class of the application's with its own constructor may have settled any of it, so it gets no
    more than what the caller *asked* for; the check at checkout is a listener then.
    """
    if given.get("pool") is not None or _is_memory(url):
        return {}
    arguments = {"pool_pre_ping": profile.pre_ping, "pool_recycle": profile.pool_recycle}
    dialect = dialect_of(url, asyncio=is_async)
    pool_class = given.get("poolclass") or dialect.get_pool_class(url)
    if isinstance(pool_class, type) and issubclass(pool_class, StaticPool | SingletonThreadPool):
        # what holds one connection for all may hold what only that connection has
        return {name: value for name, value in arguments.items() if name in asked}
    if (given.get("creator") or given.get("async_creator")) and "pool_recycle" not in asked:
        del arguments["pool_recycle"]  # it may hand out the same connection again
    if isinstance(pool_class, type) and issubclass(pool_class, QueuePool):
        arguments |= _queue_arguments(profile)
    constructor = getattr(pool_class, "__init__", None)
    if str(getattr(constructor, "__module__", "")).partition(".")[0] == "sqlalchemy":
        return arguments
    return {name: value for name, value in arguments.items() if name in asked}


def _queue_arguments(profile: Profile) -> dict[str, Any]:
    return {
        "pool_size": profile.pool_size,
        "max_overflow": profile.max_overflow,
        "pool_timeout": profile.pool_timeout,
        "pool_use_lifo": True,  # what only a burst needed is left alone, and so grows old
    }


def _connect_defaults(url: URL, profile: Profile, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the driver of *url*, but for those that the URL holds."""
    in_url = libpq_parameters(url)
    driver = url.get_driver_name()
    defaults: dict[str, Any] = {}
    if driver == "asyncpg":
        return _asyncpg_defaults(url, profile)
    if driver in LIBPQ_DRIVERS:
        defaults = _libpq_defaults(driver, profile)
        if _ELSEWHERE & {**in_url, **given}.keys() or os.environ.get("PGSERVICE"):
            # what stands there is the caller's, and libpq shows nothing of it; this one is the
            # driver's own
            defaults = {k: v for k, v in defaults.items() if k == "prepare_threshold"}
        limits = {"connect_timeout": os.environ.get("PGCONNECT_TIMEOUT")} | defaults
        limit = {**limits, **in_url, **given}["connect_timeout"]
        if "tcp_user_timeout" in defaults and profile.tcp_user_timeout == _TCP_USER_TIMEOUT:
            # it ends a connect, too, and must not do so before the caller's own limit
            defaults["tcp_user_timeout"] = max(_seconds(limit) * 1000, defaults["tcp_user_timeout"])
    elif driver in _MYSQL_TIMEOUTS:
        defaults = {_MYSQL_TIMEOUTS[driver]: math.ceil(profile.connect_timeout)}
    elif driver in ("pysqlite", "aiosqlite") and not _is_memory(url):
        defaults = {"timeout": _SQLITE_BUSY}
    return {name: value for name, value in defaults.items() if name not in in_url}


def _seconds(connect_timeout: Any) -> int:
    """Return how long libpq may take to connect: with 0, as long as Linux tries."""
    try:
        limit = int(connect_timeout)
    except (TypeError, ValueError):  # which libpq refuses
        return 0
    return limit if limit > 0 else _LINUX_TRIES


def _libpq_defaults(driver: str, profile: Profile) -> dict[str, Any]:
    defaults: dict[str, Any] = {"keepalives": int(profile.keepalives)}
    # libpq reads the variable where no argument is in the way; the profile's own default would be
    if not (os.environ.get("PGCONNECT_TIMEOUT") and profile.connect_timeout == _CONNECT_TIMEOUT):
        defaults["connect_timeout"] = math.ceil(profile.connect_timeout)
    if profile.keepalives:
        defaults |= {
            "keepalives_idle": profile.keepalives_idle,
            "keepalives_interval": profile.keepalives_interval,
            "keepalives_count": profile.keepalives_count,
        }
    if profile.tcp_user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
        defaults["tcp_user_timeout"] = math.ceil(profile.tcp_user_timeout * 1000)
    if profile.application_name:
        defaults["application_name"] = _truncate(profile.application_name)
    if profile.transaction_pooler and driver in ("psycopg", "psycopg_async"):
        defaults["prepare_threshold"] = None
    return defaults


def _asyncpg_defaults(url: URL, profile: Profile) -> dict[str, Any]:
    in_url = libpq_parameters(url)
    defaults: dict[str, Any] = {"timeout": _asyncpg_timeout(url, profile)}
    if profile.application_name and "application_name" not in in_url:
        name = _truncate(profile.application_name)
        defaults["server_settings"] = {"application_name": name}
    if profile.transaction_pooler:
        # SQLAlchemy prepares every statement; str() returns "", the name of the unnamed one, which
        # asyncpg parses again at each use. asyncpg before 0.31 gives them names without that.
        defaults |= {"statement_cache_size": 0, "prepared_statement_name_func": str}
    return defaults


def _asyncpg_timeout(url: URL, profile: Profile) -> float | None:
    """Return the limit for connecting: that of *url*, a text where asyncpg wants a number.

    As for libpq, 0 is no limit, which is None for asyncpg.
    """
    text = last_value(url.query.get("connect_timeout") or url.query.get("timeout") or "")
    if not text:
        return profile.connect_timeout
    try:
        return max(float(text), 0.0) or None
    except ValueError:
        raise ConfigurationError(
            f"connect_timeout in the URL is {text!r}; allowed: a number of seconds"
        ) from None


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return *given* over *defaults*, also within ``server_settings``."""
    merged = {**defaults, **given}
    if "server_settings" in defaults and given.get("server_settings"):
        merged["server_settings"] = {**defaults["server_settings"], **given["server_settings"]}
    return merged


def _truncate(name: str) -> str:
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


def _is_memory(url: URL) -> bool:
    """Return whether *url* is an SQLite database that lives and dies with its connection."""
    return url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"
    )
