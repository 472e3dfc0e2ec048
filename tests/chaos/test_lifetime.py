"""Recycling with jitter and the release of idle connections."""

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import sqlalchemy
from fix_engines import ASYNC, SYNC, plain_engine
from fix_events import hearing
from fix_waiting import wait_until
from marked import in_text
from sqlalchemy import text

import sa_railway
from sa_railway import events
from sa_railway.engine import lifetime


def open_sessions(postgres, name):
    plain = plain_engine(postgres.url)
    with plain.connect() as connection:
        return connection.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"),
            {"name": name},
        )


def fill(engine, size):
    connections = [engine.connect() for _ in range(size)]
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("driver", SYNC)
def test_idle_connections_are_closed_and_replaced_when_needed(postgres, driver):
    engine = sa_railway.create_engine(
        postgres.url_for(driver), idle_release=0.2, application_name=f"idle-{driver}"
    )
    with hearing() as seen:
        fill(engine, 4)

        wait_until(lambda: open_sessions(postgres, f"idle-{driver}") == 0)

        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    assert sum(isinstance(event, events.IdleReleased) for event in seen) >= 4
    assert not any(isinstance(event, events.StaleFound) for event in seen)
    engine.dispose()


def test_a_connection_in_use_is_not_released(postgres):
    engine = sa_railway.create_engine(
        postgres.url, idle_release=0.1, application_name="held", pool_size=2
    )
    with engine.connect() as held:
        held.execute(text("SELECT 1"))
        engine.connect().close()
        wait_until(lambda: open_sessions(postgres, "held") == 1)
        assert held.scalar(text("SELECT 2")) == 2
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_idle_connections_of_asyncio_engines_are_closed(postgres, driver):
    async def main():
        engine = sa_railway.create_async_engine(
            postgres.url_for(driver), idle_release=0.2, application_name=f"aidle-{driver}"
        )
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        deadline = time.monotonic() + 20
        while await asyncio.to_thread(open_sessions, postgres, f"aidle-{driver}"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    asyncio.run(main())


def test_an_engine_that_keeps_connections_longer_does_not_hold_up_another(postgres):
    patient = sa_railway.create_engine(postgres.url, idle_release=3600)
    fill(patient, 1)
    impatient = sa_railway.create_engine(
        postgres.url, idle_release=0.1, application_name="impatient"
    )
    fill(impatient, 1)

    wait_until(lambda: open_sessions(postgres, "impatient") == 0)

    impatient.dispose()
    patient.dispose()


def test_checkouts_and_releases_at_the_same_moment_cost_no_error(postgres):
    engine = sa_railway.create_engine(postgres.url, idle_release=0.004, pool_size=4, trust_idle=60)
    errors = []

    def work():
        for _ in range(300):
            try:
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                threading.Event().wait(0.003)
            except sqlalchemy.exc.SQLAlchemyError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    engine.dispose()


def test_a_pool_filled_at_once_is_not_recycled_at_once(postgres):
    engine = sa_railway.create_engine(
        postgres.url, pool_size=8, pool_recycle=1000, recycle_jitter=0.2
    )
    fill(engine, 8)
    pool: Any = engine.pool
    records = list(pool._pool.queue)
    ages = [record.info[lifetime._RECYCLE_AT] - time.monotonic() for record in records]

    assert len({round(age) for age in ages}) > 3
    assert all(790 < age <= 1000 for age in ages)
    engine.dispose()


def test_a_connection_past_its_time_is_replaced_at_the_next_checkout(postgres):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as connection:
        first = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.connection._connection_record.info[lifetime._RECYCLE_AT] = 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != first
    engine.dispose()


LEFT_OPEN = """
import logging
import sys

import sqlalchemy
import sa_railway

logging.basicConfig()
engine = sa_railway.create_engine(sys.argv[1], idle_release=50.0)


def rows():
    with engine.connect() as connection:
        yield from connection.exec_driver_sql("SELECT generate_series(1, 3)")


left = rows()
print(next(left))
"""


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_that_comes_back_when_python_ends_is_no_error(postgres, driver):
    """No thread can be started any more, and nothing imported."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, in_text(postgres.url_for(driver))],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("(1,)\n", "")
