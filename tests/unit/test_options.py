"""The arguments of create_engine() for each backend, driver, pool class and profile."""

from __future__ import annotations

import copy
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from sa_railway.config.drivers import choose_driver
from sa_railway.config.options import engine_arguments, engine_options
from sa_railway.config.profile import PROFILES, Profile
from sa_railway.config.url import find_url
from sa_railway.exc import ConfigurationError

PSYCOPG2 = "postgresql+psycopg2://u:pw@h/d"
PSYCOPG = "postgresql+psycopg://u:pw@h/d"
ASYNCPG = "postgresql+asyncpg://u:pw@h/d"
MYSQL = "mysql+pymysql://u:pw@h/d"
FILE = "sqlite:///app.db"
MEMORY = [
    "sqlite://",
    "sqlite:///",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
    "sqlite+aiosqlite://",
    "sqlite+aiosqlite:///:memory:",
]

ANY_POOL = {"pool_pre_ping": True, "pool_recycle": 240.0}
QUEUE_POOL = {
    **ANY_POOL,
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 20.0,
    "pool_use_lifo": True,
}
LIBPQ = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 5,
    "tcp_user_timeout": 15000,
}


def never_called() -> Any:
    """The creator of a pool that is only passed on."""


@pytest.fixture(autouse=True)
def _on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "TCP_USER_TIMEOUT", 18, raising=False)


def complete(
    url: str,
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    profile: Profile = PROFILES["web"],
    generated: Mapping[str, Any] = MappingProxyType({}),
    is_async: bool = False,
) -> dict[str, Any]:
    target = choose_driver(find_url(url), asyncio=is_async)
    return engine_arguments(target, profile, given, generated=generated, is_async=is_async)


def connect_args(url: str, **how: Any) -> dict[str, Any]:
    found: dict[str, Any] = complete(url, **how)["connect_args"]
    return found


def options(url: str, **overrides: Any) -> dict[str, Any]:
    """Call engine_options() in an empty environment."""
    return engine_options(url, **{"environ": {}, **overrides})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (PSYCOPG2, {**QUEUE_POOL, "connect_args": LIBPQ}),
        ("postgres://u:pw@h/d", {**QUEUE_POOL, "connect_args": LIBPQ}),
        (PSYCOPG, {**QUEUE_POOL, "connect_args": LIBPQ}),
        (ASYNCPG, {**QUEUE_POOL, "connect_args": {"timeout": 10.0}}),
        ("postgresql+pg8000://h/d", QUEUE_POOL),
        (MYSQL, {**QUEUE_POOL, "connect_args": {"connect_timeout": 10}}),
        ("mariadb+mysqldb://h/d", {**QUEUE_POOL, "connect_args": {"connect_timeout": 10}}),
        ("mysql+mysqlconnector://h/d", {**QUEUE_POOL, "connect_args": {"connection_timeout": 10}}),
        ("oracle://h/d", QUEUE_POOL),
        (FILE, {"connect_args": {"timeout": 10.0}}),
        ("sqlite+aiosqlite:///app.db", {"connect_args": {"timeout": 10.0}}),
        *[(url, {}) for url in MEMORY],
    ],
)
def test_defaults_of_each_driver(url: str, expected: dict[str, Any]) -> None:
    assert complete(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (PSYCOPG, {**QUEUE_POOL, "connect_args": LIBPQ}),
        ("postgresql://u:pw@h/d", {**QUEUE_POOL, "connect_args": {"timeout": 10.0}}),
        ("sqlite:///app.db", {"connect_args": {"timeout": 10.0}}),
    ],
)
def test_defaults_for_asyncio(url: str, expected: dict[str, Any]) -> None:
    assert complete(url, is_async=True) == expected


@pytest.mark.parametrize(
    ("pool_class", "expected"),
    [
        (None, QUEUE_POOL),
        (QueuePool, QUEUE_POOL),
        (AsyncAdaptedQueuePool, QUEUE_POOL),
        (type("Mine", (QueuePool,), {}), QUEUE_POOL),
        (NullPool, ANY_POOL),
        (StaticPool, {}),
        (SingletonThreadPool, {}),
    ],
)
def test_only_a_queue_pool_gets_the_arguments_of_one(
    pool_class: Any, expected: dict[str, Any]
) -> None:
    given = {"poolclass": pool_class}
    assert complete(PSYCOPG2, given) == {**given, **expected, "connect_args": LIBPQ}


def test_a_pool_that_is_there_gets_no_arguments() -> None:
    pool = NullPool(never_called)
    assert complete(PSYCOPG2, {"pool": pool}) == {"pool": pool}


@pytest.mark.parametrize("name", ["creator", "async_creator"])
def test_a_creator_gets_no_connect_args_but_those_of_the_caller(name: str) -> None:
    given = {name: print, "connect_args": {"sslmode": "require"}}
    pool = {key: value for key, value in QUEUE_POOL.items() if key != "pool_recycle"}
    assert complete(PSYCOPG2, given) == {**given, **pool}
    assert complete(PSYCOPG2, {name: print}) == {name: print, **pool}


def test_what_the_caller_passes_wins() -> None:
    given = {
        "echo": True,
        "pool_size": "3",  # as engine_from_config() reads it from a file
        "pool_pre_ping": False,
        "pool_use_lifo": False,
        "connect_args": {"keepalives_idle": 60, "sslmode": "require"},
    }
    assert complete(PSYCOPG2, given) == {
        **QUEUE_POOL,
        **given,
        "connect_args": {**LIBPQ, "keepalives_idle": 60, "sslmode": "require"},
    }


def test_what_the_url_holds_wins() -> None:
    found = connect_args(PSYCOPG2 + "?connect_timeout=3&application_name=mine&keepalives=0")
    assert not {"connect_timeout", "application_name", "keepalives"} & found.keys()
    assert "connect_args" not in complete(FILE + "?timeout=1")
    assert "connect_args" not in complete(MYSQL + "?connect_timeout=1")


def test_what_the_caller_passes_is_not_changed() -> None:
    given = {
        "connect_args": {"check_same_thread": False, "server_settings": {"jit": "off"}},
        "plugins": ["railway"],
    }
    before = copy.deepcopy(given)
    complete(ASYNCPG, given, profile=Profile(application_name="shop"))
    options(ASYNCPG, **{**given, "application_name": "shop"})
    assert given == before


@pytest.mark.parametrize("url", [PSYCOPG2, ASYNCPG, MYSQL])
def test_an_argument_of_sqlite_that_strayed_is_dropped(url: str) -> None:
    assert complete(url, {"connect_args": {"check_same_thread": False}}) == complete(url)


def test_an_argument_of_sqlite_stays_with_sqlite() -> None:
    given = {"connect_args": {"check_same_thread": False}, "poolclass": StaticPool}
    assert complete("sqlite://", given) == given


@pytest.mark.parametrize("url", [PSYCOPG2, PSYCOPG])
def test_without_keepalives_there_are_no_probes(url: str) -> None:
    found = connect_args(url, profile=PROFILES["serverless"])
    assert found == {"connect_timeout": 10, "keepalives": 0, "tcp_user_timeout": 15000}


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.5, 500), (30, 30000), (0.0001, 1)])
def test_tcp_user_timeout_is_in_milliseconds(seconds: float, milliseconds: int) -> None:
    found = connect_args(PSYCOPG2, profile=Profile(tcp_user_timeout=seconds))
    assert found["tcp_user_timeout"] == milliseconds
    assert isinstance(found["tcp_user_timeout"], int)


@pytest.mark.parametrize(
    ("query", "given", "milliseconds"),
    [
        ("", {"connect_timeout": 30}, 30_000),
        ("?connect_timeout=30", {}, 30_000),
        ("?connect_timeout=3", {}, 15_000),
        ("?connect_timeout=0", {}, 130_000),
        ("?connect_timeout=soon", {}, 15_000),
        ("?connect_timeout=30", {"connect_timeout": "20"}, 20_000),
        ("?connect_timeout=30&tcp_user_timeout=7", {}, None),
    ],
)
def test_tcp_user_timeout_does_not_end_a_connect_before_its_limit(
    query: str, given: dict[str, object], milliseconds: int | None
) -> None:
    found = complete(PSYCOPG2 + query, given={"connect_args": given})["connect_args"]
    assert found.get("tcp_user_timeout") == milliseconds


def test_tcp_user_timeout_of_the_caller_is_kept() -> None:
    profile = Profile(connect_timeout=30, tcp_user_timeout=5)
    assert connect_args(PSYCOPG2, profile=profile)["tcp_user_timeout"] == 5000
    assert connect_args(PSYCOPG2, profile=Profile(connect_timeout=30))["tcp_user_timeout"] == 30_000


def test_tcp_user_timeout_can_be_off() -> None:
    assert "tcp_user_timeout" not in connect_args(PSYCOPG2, profile=Profile(tcp_user_timeout=0))


def test_tcp_user_timeout_is_left_out_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    assert "tcp_user_timeout" not in connect_args(PSYCOPG2)


def test_connect_timeout_of_libpq_is_whole_seconds() -> None:
    profile = Profile(connect_timeout=2.2)
    assert repr(connect_args(PSYCOPG2, profile=profile)["connect_timeout"]) == "3"
    assert repr(connect_args(MYSQL, profile=profile)["connect_timeout"]) == "3"
    assert connect_args(ASYNCPG, profile=profile)["timeout"] == 2.2


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("shop", "shop"),
        ("x" * 64, "x" * 63),
        ("x" + "ä" * 40, "x" + "ä" * 31),
        ("x" * 62 + "ä", "x" * 62),
    ],
)
def test_application_name_fits_into_what_postgresql_keeps(name: str, sent: str) -> None:
    profile = Profile(application_name=name)
    assert connect_args(PSYCOPG2, profile=profile)["application_name"] == sent
    settings = connect_args(ASYNCPG, profile=profile)["server_settings"]
    assert settings == {"application_name": sent}


@pytest.mark.parametrize("name", [None, ""])
def test_application_name_can_be_missing(name: str | None) -> None:
    profile = Profile(application_name=name)
    assert "application_name" not in connect_args(PSYCOPG2, profile=profile)
    assert "server_settings" not in connect_args(ASYNCPG, profile=profile)


@pytest.mark.parametrize(
    "query", ["application_name=mine", "dsn=postgresql://%3Fapplication_name%3Dmine"]
)
def test_application_name_in_the_url_wins_with_asyncpg(query: str) -> None:
    profile = Profile(application_name="shop")
    assert connect_args(f"{ASYNCPG}?{query}", profile=profile) == {"timeout": 10.0}


def test_server_settings_of_the_caller_are_completed() -> None:
    profile = Profile(application_name="shop")
    given = {"connect_args": {"server_settings": {"jit": "off"}}}
    found = connect_args(ASYNCPG, given=given, profile=profile)
    assert found["server_settings"] == {"application_name": "shop", "jit": "off"}
    given = {"connect_args": {"server_settings": {"application_name": "mine"}}}
    found = connect_args(ASYNCPG, given=given, profile=profile)
    assert found["server_settings"] == {"application_name": "mine"}


@pytest.mark.parametrize(
    ("query", "timeout"),
    [
        ("connect_timeout=3", 3.0),
        ("timeout=2.5", 2.5),
        ("connect_timeout=0", None),  # no limit, as libpq has it
        ("connect_timeout=-1", None),
        ("", 10.0),
    ],
)
def test_timeout_in_the_url_becomes_a_number_for_asyncpg(query: str, timeout: float | None) -> None:
    assert connect_args(f"{ASYNCPG}?{query}") == {"timeout": timeout}


@pytest.mark.parametrize("url", [PSYCOPG2, PSYCOPG])
def test_a_limit_that_libpq_finds_in_the_environment_is_left_to_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "30")

    found = connect_args(url)
    assert "connect_timeout" not in found
    assert found["tcp_user_timeout"] == 30_000
    assert connect_args(url, profile=Profile(connect_timeout=5))["connect_timeout"] == 5


@pytest.mark.parametrize("url", [PSYCOPG2, PSYCOPG])
def test_what_a_service_file_may_say_is_left_to_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "connect_args" not in complete(url + "?service=mine")
    monkeypatch.setenv("PGSERVICE", "mine")
    assert "connect_args" not in complete(url)


@pytest.mark.parametrize(("url", "name"), [(PSYCOPG2, "dsn"), (PSYCOPG, "conninfo")])
def test_what_the_caller_s_connection_string_may_say_is_left_to_it(url: str, name: str) -> None:
    given = {"connect_args": {name: "connect_timeout=60"}}

    assert complete(url, given)["connect_args"] == given["connect_args"]


def test_a_connection_that_may_be_shared_is_neither_pinged_nor_recycled_unasked() -> None:
    static = complete(PSYCOPG2, {"poolclass": StaticPool})
    created = complete(PSYCOPG2, {"creator": object()})
    asked = options(PSYCOPG2, poolclass=StaticPool, pool_recycle=60, pool_pre_ping=True)

    assert static.keys() & {"pool_recycle", "pool_pre_ping"} == set()
    assert created.keys() & {"pool_recycle", "pool_pre_ping"} == {"pool_pre_ping"}
    assert (asked["pool_recycle"], asked["pool_pre_ping"]) == (60, True)


def test_timeout_in_the_url_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        complete(ASYNCPG + "?connect_timeout=soon")
    assert str(caught.value) == (
        "connect_timeout in the URL is 'soon'; allowed: a number of seconds"
    )


@pytest.mark.parametrize(
    ("url", "more"),
    [
        (PSYCOPG2, {}),
        (PSYCOPG, {"prepare_threshold": None}),
        ("postgresql+psycopg_async://h/d", {"prepare_threshold": None}),
        (ASYNCPG, {"statement_cache_size": 0, "prepared_statement_name_func": str}),
    ],
)
def test_behind_a_transaction_pooler_nothing_stays_prepared(url: str, more: dict[str, Any]) -> None:
    profile = Profile(transaction_pooler=True)
    assert connect_args(url, profile=profile) == {**connect_args(url), **more}


@pytest.mark.parametrize("url", [PSYCOPG2, PSYCOPG, ASYNCPG])
def test_nothing_that_pgbouncer_refuses_goes_into_the_startup_packet(url: str) -> None:
    profile = Profile(application_name="shop", transaction_pooler=True)
    found = connect_args(url, profile=profile)
    assert "options" not in found
    assert found.get("server_settings", {}).keys() <= {"application_name"}


# engine_options()


def test_options_are_everything_an_engine_needs() -> None:
    assert options(PSYCOPG2) == {
        **QUEUE_POOL,
        "connect_args": LIBPQ,
        "plugins": ["railway"],
        "railway_profile": PROFILES["web"],
        "railway_generated": {**QUEUE_POOL, "connect_args": LIBPQ},
    }


@pytest.mark.parametrize("url", MEMORY)
def test_options_of_a_database_in_memory(url: str) -> None:
    assert options(url, pool_size=3, max_overflow=0) == {
        "plugins": ["railway"],
        "railway_profile": Profile(pool_size=3, max_overflow=0),
        "railway_generated": {},
    }


def test_options_are_fresh_at_every_call() -> None:
    profile = Profile(application_name="shop")
    given = {"jit": "off"}
    more = {"connect_args": {"server_settings": given}, "execution_options": given}
    first = options(ASYNCPG, profile=profile, **more)
    expected = copy.deepcopy(first)
    second = options(ASYNCPG, profile=profile, **more)
    assert first["connect_args"] is not first["railway_generated"]["connect_args"]
    first["connect_args"]["server_settings"].clear()
    first["execution_options"].clear()
    first["railway_generated"]["connect_args"].clear()
    first["plugins"].clear()
    first.clear()
    assert second == expected
    assert given == {"jit": "off"}


def test_url_and_profile_come_from_the_environment() -> None:
    environ = {
        "DATABASE_URL": PSYCOPG2,
        "RAILWAY_SERVICE_NAME": "shop",
        "RAILWAY_REPLICA_ID": "1f0c",
        "SA_RAILWAY_PROFILE": "worker",
        "SA_RAILWAY_POOL_SIZE": "2",
    }
    found = engine_options(environ=environ)
    assert found["railway_profile"] == Profile(
        name="worker", connect_patience=60.0, pool_size=2, application_name="shop-1f0c"
    )
    assert found["pool_size"] == 2
    assert found["connect_args"] == {**LIBPQ, "application_name": "shop-1f0c"}


@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is empty: "),
        ({"RAILWAY_SERVICE_ID": "x"}, "no database URL is set, "),
        ({"SA_RAILWAY_POOL_SIZES": "5"}, "SA_RAILWAY_POOL_SIZES is set, but there is no such "),
    ],
)
def test_broken_environment_is_refused(environ: dict[str, str], start: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        engine_options(environ=environ)
    assert str(caught.value).startswith(start)


def test_override_of_a_profile_is_both_field_and_argument() -> None:
    found = options(PSYCOPG2, pool_size=2, pool_recycle=60, connect_timeout=3, pool_pre_ping=False)
    assert found["railway_profile"] == Profile(
        pool_size=2, pool_recycle=60, connect_timeout=3, pre_ping=False
    )
    assert found["pool_size"] == 2
    assert found["pool_recycle"] == 60
    assert found["pool_pre_ping"] is False
    assert found["connect_args"]["connect_timeout"] == 3


def test_override_of_the_pool_reaches_a_database_that_has_no_defaults() -> None:
    assert options(FILE, pool_size=2)["pool_size"] == 2
    assert "pool_size" not in options(FILE, pool_size=2, poolclass=NullPool)
    assert options(FILE, pool_pre_ping=True)["pool_pre_ping"] is True


def test_override_of_create_engine_is_passed_on() -> None:
    given = {"echo": True, "poolclass": NullPool, "execution_options": {"a": 1}}
    given |= {"isolation_level": "AUTOCOMMIT", "executemany_mode": "values_only"}
    found = options(PSYCOPG2, **given)
    assert {name: found.get(name) for name in given} == given
    assert not found.keys() & (QUEUE_POOL.keys() - ANY_POOL.keys())


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        (["mine"], ["mine", "railway"]),
        (("railway", "mine"), ["railway", "mine"]),
        ("mine", ["mine", "railway"]),
    ],
)
def test_other_plugins_are_kept(plugins: Any, expected: list[str]) -> None:
    assert options(PSYCOPG2, plugins=plugins)["plugins"] == expected


@pytest.mark.parametrize("plugins", [None, 5, ["railway", 5]])
def test_plugins_that_are_no_names_are_refused(plugins: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        options(PSYCOPG2, plugins=plugins)
    assert str(caught.value) == f"plugins is {plugins!r}; allowed: a list of names"


def test_connect_args_that_are_no_dict_are_refused_without_showing_them() -> None:
    with pytest.raises(ConfigurationError) as caught:
        engine_options(PSYCOPG2, connect_args="password=secret")  # type: ignore[arg-type]
    assert str(caught.value) == "connect_args is of type str; allowed: a dict"


@pytest.mark.parametrize(
    ("url", "name", "expected"),
    [
        (
            PSYCOPG2,
            "pool_sise",
            "pool_sise is not an option (did you mean 'pool_size'?); allowed: the fields of a "
            "profile, the arguments of create_engine(), and those of the dialect "
            "postgresql+psycopg2",
        ),
        (
            PSYCOPG,
            "executemany_mode",
            "executemany_mode is not an option; allowed: the fields of a "
            "profile, the arguments of create_engine(), and those of the dialect "
            "postgresql+psycopg",
        ),
    ],
)
def test_unknown_override_is_refused_with_a_guess(url: str, name: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        options(url, **{name: 1})
    assert str(caught.value) == expected


def test_bad_override_of_a_profile_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        options(PSYCOPG2, pool_size=0)
    assert str(caught.value) == "pool_size is 0; allowed: 1 or more"


@pytest.mark.parametrize(
    "name",
    [
        *("connect_args", "creator", "echo", "echo_pool", "enable_from_linting"),
        *("execution_options", "future", "hide_parameters", "insertmanyvalues_page_size"),
        *("isolation_level", "json_deserializer", "json_serializer", "label_length"),
        *("logging_name", "max_identifier_length", "max_overflow", "module", "paramstyle"),
        *("plugins", "pool", "pool_events", "pool_logging_name", "pool_pre_ping", "pool_recycle"),
        *("pool_reset_on_return", "pool_size", "pool_timeout", "pool_use_lifo", "poolclass"),
        *("query_cache_size", "use_insertmanyvalues", "use_native_hstore"),
    ],
)
def test_every_documented_argument_is_an_option(name: str) -> None:
    good = {"connect_args": {}, "plugins": [], "pool_pre_ping": True}
    assert options(PSYCOPG2, **{name: good.get(name, 1)})


# One dict for engines of several databases, as Flask-SQLAlchemy hands it out


def shared(url: str, found: dict[str, Any]) -> dict[str, Any]:
    """Do with options made for one database what the plugin does for an engine on *url*."""
    given = dict(found)
    del given["plugins"]
    profile, generated = given.pop("railway_profile"), given.pop("railway_generated")
    return complete(url, given, profile=profile, generated=generated)


SOURCES = [PSYCOPG2, PSYCOPG, ASYNCPG, MYSQL, FILE]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", [*SOURCES, *MEMORY])
def test_generated_options_become_those_of_another_database(source: str, target: str) -> None:
    profile = Profile(application_name="shop", transaction_pooler=True, pool_size=7)
    found = options(source, profile=profile)
    assert shared(target, found) == complete(target, profile=profile)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", [PSYCOPG2, ASYNCPG])
def test_bind_in_memory_that_writes_into_the_shared_dict_does_no_harm(
    source: str, target: str
) -> None:
    found = options(source)
    memory = {**found, "poolclass": StaticPool}
    memory.setdefault("connect_args", {})["check_same_thread"] = False
    assert shared("sqlite://", memory) == {
        "poolclass": StaticPool,
        "connect_args": {"check_same_thread": False},
    }
    assert shared(target, found) == complete(target)


@pytest.mark.parametrize("more", [{"pool": NullPool(never_called)}, {"poolclass": NullPool}])
def test_caller_may_add_a_pool_to_generated_options(more: dict[str, Any]) -> None:
    found = {**options(PSYCOPG2), **more}
    assert shared(PSYCOPG2, found) == complete(PSYCOPG2, more)


def test_caller_may_change_generated_options() -> None:
    found = options(PSYCOPG2, echo=True)
    found["pool_size"] = 9
    found["connect_args"]["sslmode"] = "require"
    assert shared(PSYCOPG2, found) == {
        **QUEUE_POOL,
        "echo": True,
        "pool_size": 9,
        "connect_args": {**LIBPQ, "sslmode": "require"},
    }


# SQLAlchemy


@pytest.mark.parametrize("url", [PSYCOPG2, PSYCOPG, MYSQL, FILE, "sqlite://"])
def test_sqlalchemy_accepts_the_arguments(url: str) -> None:
    engine = sqlalchemy.create_engine(url, **complete(url))
    assert engine.url == make_url(url)
