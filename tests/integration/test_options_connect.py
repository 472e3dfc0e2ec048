"""Every set of options on a real engine that connects, and every URL that is translated."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from fix_engines import SYNC
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from sa_railway.config.options import engine_options
from sa_railway.config.profile import PROFILES
from sa_railway.config.url import database_url, normalize_url
from sa_railway.testing import TemporaryPostgres

ASYNC = ["psycopg", "asyncpg"]
NAME = {"application_name": "shop"}


def arguments(url: URL | str, **overrides: Any) -> dict[str, Any]:
    """Return engine_options() for SQLAlchemy alone, without what only the plugin reads."""
    options = engine_options(url, environ={}, **overrides)
    for name in ("plugins", "railway_profile", "railway_generated"):
        del options[name]
    return options


def ask(url: URL | str, *statements: str, **options: Any) -> list[Any]:
    """Run *statements* on one connection and return the first value of each."""
    engine = sqlalchemy.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            return [connection.scalar(text(statement)) for statement in statements]
    finally:
        engine.dispose()


def ask_async(url: URL | str, *statements: str, **options: Any) -> list[Any]:
    """Do the same with an engine for asyncio."""

    async def run() -> list[Any]:
        engine = create_async_engine(url, **options)
        try:
            async with engine.connect() as connection:
                return [await connection.scalar(text(statement)) for statement in statements]
        finally:
            await engine.dispose()

    return asyncio.run(run())


WAYS = [
    *[pytest.param(ask, driver, id=driver) for driver in SYNC],
    *[pytest.param(ask_async, driver, id=f"{driver}, asyncio") for driver in ASYNC],
]
Ask = Callable[..., list[Any]]
NAME_ON_SERVER = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@pytest.mark.parametrize("overrides", [{}, {"poolclass": NullPool}, {"transaction_pooler": True}])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("ask", "driver"), WAYS)
def test_options_connect_to_postgresql(
    postgres: TemporaryPostgres, ask: Ask, driver: str, profile: str, overrides: dict[str, Any]
) -> None:
    url = normalize_url(postgres.url, driver=driver)
    options = arguments(url, profile=profile, **NAME, **overrides)
    assert ask(url, NAME_ON_SERVER, **options) == ["shop"]


@pytest.mark.parametrize("driver", SYNC)
def test_socket_of_libpq_has_the_timeouts(postgres: TemporaryPostgres, driver: str) -> None:
    url = normalize_url(postgres.url, driver=driver)
    engine = sqlalchemy.create_engine(url, **arguments(url))
    with engine.connect() as connection:
        descriptor = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
        with socket.socket(fileno=os.dup(descriptor)) as peer:
            seen = [
                peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            ]
    engine.dispose()
    assert seen == [1, 20, 10, 5, 15000]


REPEATED = ["SELECT 'a'", "SELECT 1"] * 6  # psycopg prepares at the sixth
COUNT_PREPARED = "SELECT count(*) FROM pg_prepared_statements"


@pytest.mark.parametrize(("ask", "driver"), WAYS)
def test_behind_a_transaction_pooler_nothing_stays_prepared(
    postgres: TemporaryPostgres, ask: Ask, driver: str
) -> None:
    url = normalize_url(postgres.url, driver=driver)
    options = arguments(url, transaction_pooler=True)
    assert ask(url, *REPEATED, COUNT_PREPARED, **options) == [*["a", 1] * 6, 0]
    if driver != "psycopg2":  # the count is not 0 by itself
        assert ask(url, *REPEATED, COUNT_PREPARED, **arguments(url))[-1] > 0


QUERIES = [
    {"sslmode": "prefer", "application_name": "a b&c=d"},
    {"sslmode": "disable", "options": "-c work_mem=5MB", "application_name": "a b&c=d"},
    {"connect_timeout": "5", "keepalives_idle": "20", "application_name": "a b&c=d"},
    {"target_session_attrs": "read-write", "application_name": "a b&c=d"},
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: ",".join(query))
@pytest.mark.parametrize("plain", [True, False], ids=["alone", "with options"])
@pytest.mark.parametrize(("ask", "driver"), WAYS)
def test_libpq_parameters_connect_with_every_driver(
    postgres: TemporaryPostgres, ask: Ask, driver: str, plain: bool, query: dict[str, str]
) -> None:
    given = postgres.url.set(drivername="postgresql", query=query)
    url = database_url(given, driver=driver)
    options = {} if plain else arguments(url, **NAME)
    assert ask(url, NAME_ON_SERVER, **options) == ["a b&c=d"]
    if "options" in query:
        assert ask(url, "SHOW work_mem", **options) == ["5MB"]


@pytest.mark.parametrize(("ask", "driver"), WAYS)
def test_first_of_several_hosts_that_answers_is_used(
    postgres: TemporaryPostgres, ask: Ask, driver: str
) -> None:
    with socket.socket() as refusing:  # bound, but it does not listen
        refusing.bind(("127.0.0.1", 0))
        hosts = f"127.0.0.1:{refusing.getsockname()[1]},127.0.0.1:{postgres.url.port}"
        url = normalize_url(f"postgres://postgres@{hosts}/postgres", driver=driver)
        assert ask(url, "SELECT 1", **arguments(url)) == [1]


@pytest.mark.parametrize(("ask", "driver"), WAYS)
def test_url_from_the_variables_of_libpq_connects(
    postgres: TemporaryPostgres, ask: Ask, driver: str
) -> None:
    environ = {
        "PGHOST": str(postgres.url.host),
        "PGPORT": str(postgres.url.port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "PGSSLMODE": "disable",
    }
    url = database_url(driver=driver, environ=environ)
    assert ask(url, "SELECT current_database()", **arguments(url)) == ["postgres"]


def test_options_connect_to_a_file_of_sqlite(tmp_path: Path) -> None:
    url = normalize_url(f"sqlite:///{tmp_path}/app.db")
    assert ask(url, "PRAGMA busy_timeout", **arguments(url, pool_size=2)) == [10_000]


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"],
)
def test_options_connect_to_sqlite_in_memory(url: str) -> None:
    assert ask(url, "SELECT 1", **arguments(url)) == [1]


@pytest.mark.parametrize("place", ["", "/:memory:", "/{}/app.db"])
def test_options_connect_to_aiosqlite(place: str, tmp_path: Path) -> None:
    url = normalize_url(f"sqlite://{place.format(tmp_path)}", asyncio=True)
    assert ask_async(url, "SELECT 1", **arguments(url)) == [1]
