"""A connection that is held for too long is named, with the place where it was checked out."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from fix_events import hearing
from fix_waiting import wait_until
from marked import in_text
from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import sa_railway
from sa_railway import events
from sa_railway.engine.rounds import rounds

LOGGER = "sa_railway.engine.leaks"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger=LOGGER)
    return lambda: [r.getMessage() for r in caplog.records if r.name == LOGGER]


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    engine = sa_railway.create_engine(database_url, leak_after=0.05, logging_name="shop")
    yield engine
    engine.dispose()


def test_who_holds_a_connection_is_logged_once_and_again_when_it_comes_back(
    engine: Engine, logged: Callable[[], list[str]]
):
    with hearing(events.Leaked, events.LeakReturned) as heard:  # noqa: SIM117 - the line is shown
        with engine.connect():
            wait_until(lambda: heard)
            engine.connect().close()
            threading.Event().wait(0.2)  # for a second line, which must not come

    this = r"test_who_holds_a_connection_is_logged_once_and_again_when_it_comes_back"
    held, back = logged()
    assert re.fullmatch(
        r"shop: a connection has been held for 0\.\d s, and leak_after is 0\.05 s\. "
        r"It was checked out here:\n"
        r'(?:  File .*\n(?:    .*\n)*)*  File ".*/test_leaks\.py", line \d+, in ' + this + "\n"
        r"    with engine\.connect\(\):",
        held,
    )
    assert re.fullmatch(
        r"shop: a connection came back after 0\.\d s; it was checked out in "
        r".*/test_leaks\.py, line \d+, in " + this,
        back,
    )
    leaked, returned = heard
    assert isinstance(leaked, events.Leaked)
    assert isinstance(returned, events.LeakReturned)
    assert 0.05 < leaked.seconds < returned.seconds
    assert held.endswith(leaked.stack)


def test_whoever_is_quick_is_not_named(database_url: URL, logged: Callable[[], list[str]]):
    engine = sa_railway.create_engine(database_url, leak_after=30.0)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()

    assert logged() == []


@pytest.mark.parametrize("leave", ["invalidate", "detach"])
def test_a_connection_that_leaves_the_pool_is_held_no_longer(
    engine: Engine, logged: Callable[[], list[str]], leave: str
):
    connection = engine.raw_connection()
    wait_until(logged)
    getattr(connection, leave)()

    assert len(logged()) == 2
    connection.close()
    assert len(logged()) == 2


def test_the_stack_of_a_session_ends_in_the_code_of_the_application(
    engine: Engine, logged: Callable[[], list[str]]
):
    def view() -> None:
        with Session(engine) as session:
            session.scalar(text("SELECT 1"))
            wait_until(logged)

    view()

    lines = logged()[0].splitlines()
    assert lines[-2].endswith(", in view")
    assert lines[-1] == '    session.scalar(text("SELECT 1"))'


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_the_stack_of_a_coroutine_shows_who_awaits(
    database_url: URL, logged: Callable[[], list[str]], driver: str
):
    async def view(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            while not logged():
                await asyncio.sleep(0.01)

    async def main() -> None:
        url = database_url.set(drivername=f"postgresql+{driver}")
        engine = sa_railway.create_async_engine(url, leak_after=0.05)
        await view(engine)
        await engine.dispose()

    asyncio.run(main())

    assert logged()[0].splitlines()[-2:] == [
        f'  File "{__file__}", line {view.__code__.co_firstlineno + 1}, in view',
        "    async with engine.connect() as connection:",
    ]


def test_an_engine_that_is_gone_is_watched_no_longer(database_url: URL):
    engine = sa_railway.create_engine(database_url, leak_after=0.05)
    engine.connect().close()
    gone = weakref.ref(engine.pool)
    engine.dispose()
    del engine
    gc.collect()

    assert gone() is None
    wait_until(lambda: rounds.is_asleep)


def test_a_patient_engine_does_not_hold_up_an_impatient_one(database_url: URL):
    patient = sa_railway.create_engine(database_url, leak_after=3600)
    patient.connect().close()
    impatient = sa_railway.create_engine(database_url, leak_after=0.05)
    with hearing(events.Leaked) as heard, impatient.connect():
        wait_until(lambda: heard)
    impatient.dispose()
    patient.dispose()


FORK = """
import logging, os, sys, threading, time
import sa_railway
from sa_railway import events

leaked = threading.Event()
events.subscribe(lambda event: leaked.set(), events.Leaked)
logging.basicConfig(format="%(process)d %(message)s", stream=sys.stdout)
engine = sa_railway.create_engine(sys.argv[1], leak_after=0.05)
held = engine.connect()
if not os.fork():
    another = engine.connect()
    leaked.wait(20)
    time.sleep(0.2)  # for that of the parent, which must not come
    sys.stdout.flush()
    os._exit(0)
os.wait()
leaked.wait(20)
"""


def test_a_forked_child_watches_its_own_connections(database_url: URL):
    url = in_text(database_url)
    run = subprocess.run(
        [sys.executable, "-c", FORK, url], capture_output=True, text=True, check=True
    )

    held = [line for line in run.stdout.splitlines() if "has been held for" in line]
    assert len(held) == len({line.split()[0] for line in held}) == 2
