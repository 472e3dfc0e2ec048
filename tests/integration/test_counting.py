"""What is counted of connections to a real server, and of their loss."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fix_engines import SYNC, terminate
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

import sa_railway
from sa_railway.metrics.snapshot import snapshot, window
from sa_railway.testing import TemporaryPostgres

Make = Callable[..., Engine]
NUMBERS = itertools.count()  # an id() would be given out again


@pytest.fixture
def make(database_url: URL) -> Iterator[Make]:
    """Make engines for a database of their own, whose numbers begin at zero."""
    engines: list[Engine] = []
    # named, because the database of the next test has the same URL
    name = f"counted-{next(NUMBERS)}"

    def make(driver: str = "psycopg2", **options: Any) -> Engine:
        url = database_url.set(drivername=f"postgresql+{driver}")
        options = {"metrics": True, "logging_name": name, **options}
        engines.append(sa_railway.create_engine(url, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def counted(engine: Engine) -> dict[str, int]:
    """What has been counted, without what is zero."""
    return {name: count for name, count in snapshot(engine).counters.items() if count}


def open_connections(engine: Engine, number: int) -> list[int]:
    """Fill the pool; return the process ids of the backends."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(number)]
        return [c.scalar(text("SELECT pg_backend_pid()")) for c in connections]


@pytest.mark.parametrize("driver", SYNC)
def test_the_statements_by_which_a_driver_gets_ready_are_not_counted(make: Make, driver: str):
    engine = make(driver)
    engine.connect().close()
    assert counted(engine) == {"checkouts": 1}

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert counted(engine) == {"queries": 1, "checkouts": 2}


def test_a_pool_that_the_server_has_killed_is_one_reset_and_as_many_reconnections(make: Make):
    engine = make(pool_size=3)
    terminate(engine.url, *open_connections(engine, 3))
    before = counted(engine)

    open_connections(engine, 3)

    now = counted(engine)
    assert now.pop("queries") - before.pop("queries") == 3
    assert now.pop("checkouts") - before.pop("checkouts") == 3
    assert now == {"stale_connections": 1, "pool_resets": 1, "reconnections": 3}
    assert snapshot(engine).gauges["open"] == 3


def test_a_connection_that_is_lost_in_use(make: Make):
    engine = make()
    with engine.connect() as connection:
        terminate(engine.url, connection.scalar(text("SELECT pg_backend_pid()")))
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1"))
    assert snapshot(engine).gauges["open"] == 0
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    assert counted(engine) == {
        "queries": 3,
        "failed_queries": 1,
        "checkouts": 2,
        "rollbacks": 1,
        "pool_resets": 1,
        "reconnections": 1,
    }
    assert snapshot(engine).failures["disconnect"] == 1
    assert window(engine, 60).success_rate == pytest.approx(2 / 3)


def test_two_connections_that_are_lost_together_are_one_reset(make: Make):
    engine = make()
    with engine.connect() as one, engine.connect() as other:
        terminate(engine.url, *(c.scalar(text("SELECT pg_backend_pid()")) for c in (one, other)))
        for connection in (one, other):
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT 1"))

    assert counted(engine)["failed_queries"] == 2
    assert counted(engine)["pool_resets"] == 1


def test_a_lost_commit_is_a_rollback(make: Make):
    engine = make()
    with pytest.raises(DBAPIError), engine.begin() as connection:
        terminate(engine.url, connection.scalar(text("SELECT pg_backend_pid()")))

    assert counted(engine) == {"queries": 1, "checkouts": 1, "rollbacks": 1, "pool_resets": 1}


def test_in_autocommit_nothing_is_rolled_back(make: Make):
    engine = make(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(ProgrammingError):
        connection.execute(text("SELECT nothing"))

    assert counted(engine) == {"queries": 1, "checkouts": 1, "failed_queries": 1}


def test_a_connection_that_is_replaced_for_its_age_was_not_lost(make: Make):
    engine = make(pool_recycle=1000)
    with engine.connect() as connection:
        connection.connection.invalidate(soft=True)
    engine.connect().close()

    assert counted(engine) == {"checkouts": 2}


def test_a_server_that_is_away_fails_the_checkout(own_postgres: TemporaryPostgres):
    engine = sa_railway.create_engine(own_postgres.url, metrics=True, connect_patience=0)
    own_postgres.stop()
    for _ in range(2):
        with pytest.raises(DBAPIError):
            engine.connect()

    assert counted(engine) == {"checkouts": 2, "failed_checkouts": 2, "breaker_openings": 1}
    assert window(engine, 60).success_rate == 0
    assert snapshot(engine).gauges["waiting"] == 0


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_engines_of_asyncio_are_counted_alike(database_url: URL, driver: str):
    url = database_url.set(drivername=f"postgresql+{driver}")

    async def main() -> None:
        engine = sa_railway.create_async_engine(
            url, metrics=True, logging_name=f"a-{driver}", pool_size=1, max_overflow=0
        )
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            impatient = asyncio.create_task(engine.connect().start())
            while not snapshot(engine).gauges["waiting"]:
                await asyncio.sleep(0)
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            assert snapshot(engine).gauges["waiting"] == 0
            assert snapshot(engine).gauges["checked_out"] == 1
        await engine.dispose()

        now = snapshot(engine)
        assert now.counters["queries"] == 1
        assert (now.gauges["open"], now.gauges["checked_out"]) == (0, 0)

    asyncio.run(main())
