"""Connecting while the server is away, full, wrong or coming back."""

import asyncio
import logging
import re
import socket
import time
import traceback

import asyncpg
import psycopg2
import pytest
import sqlalchemy
from fix_engines import ASYNC, SYNC
from fix_events import hearing
from marked import MARK
from sqlalchemy import event, text

import sa_railway
from sa_railway import events
from sa_railway.exc import DatabaseUnavailableError
from sa_railway.testing import ChaosProxy


@pytest.fixture
def failures():
    with hearing(events.ConnectAttemptFailed) as heard:
        yield heard


def scalar(engine, statement="SELECT 1"):
    with engine.connect() as connection:
        return connection.scalar(text(statement))


async def async_scalar(engine):
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT 1"))


@pytest.mark.parametrize("sqlstate", ["57P03", "53300"])
@pytest.mark.parametrize("driver", SYNC)
def test_a_server_that_starts_or_is_full_is_waited_for(postgres, driver, sqlstate, failures):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        proxy.answer(sqlstate, times=3)

        assert scalar(engine) == 1
        assert len(failures) == 3
        engine.dispose()


def test_waiting_giving_up_and_coming_back_are_logged_once_each(postgres, caplog):
    caplog.set_level(logging.INFO, logger="sa_railway.engine.connect")
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, connect_patience=0.2, breaker_pause=0.01, logging_name="shop"
        )
        proxy.down()
        for _ in range(3):
            with pytest.raises(sqlalchemy.exc.OperationalError):
                scalar(engine)
        proxy.restore()
        scalar_when_allowed(engine)
        engine.dispose()

    refused = r"connection to server at .* failed: Connection refused"
    waiting, given_up, back = (f"{r.levelname} {r.getMessage()}" for r in caplog.records)
    assert re.fullmatch(
        rf"WARNING shop: connecting failed, trying again for 0\.\d s: {refused}", waiting
    )
    assert re.fullmatch(
        r"WARNING shop: the server is away; until it is back, connects fail at once for 0\.01 s at "
        rf"a time: {refused}",
        given_up,
    )
    assert back == "INFO shop: the server can be reached again"


def scalar_when_allowed(engine):
    deadline = time.monotonic() + 20
    while True:
        try:
            return scalar(engine)
        except DatabaseUnavailableError:
            assert time.monotonic() < deadline


def test_plain_sqlalchemy_does_not_wait(postgres):
    with ChaosProxy(postgres.url) as proxy:
        engine = sqlalchemy.create_engine(proxy.url, pool_pre_ping=True)
        proxy.answer("57P03", times=1)

        with pytest.raises(sqlalchemy.exc.OperationalError, match="starting up"):
            scalar(engine)
        engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_asyncio_waits_without_blocking_the_loop(postgres, driver, failures):
    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url)
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        waiting = asyncio.create_task(async_scalar(engine))
        while len(failures) < 3:
            await asyncio.sleep(0.001)
        seen = ticks
        proxy.restore()
        result = await waiting
        ticking.cancel()
        await engine.dispose()
        return result, seen

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        proxy.down()
        result, ticks = asyncio.run(main(proxy))

    assert result == 1
    assert ticks > 3


def ask_at_each_attempt(engine, port, refused_port):
    """Send the first three attempts of *engine* to a port where nothing listens."""
    asked = []

    @event.listens_for(engine, "do_connect")
    def provide_port(dialect, record, arguments, named):
        asked.append(named["host"])
        named["port"] = refused_port if len(asked) <= 3 else port

    return asked


@pytest.mark.parametrize("driver", SYNC)
def test_every_attempt_asks_the_listeners_again(postgres, driver, refused_port):
    """Such as for the address of a server that has moved, or a token that has expired."""
    engine = sa_railway.create_engine(postgres.url_for(driver))
    asked = ask_at_each_attempt(engine, postgres.port, refused_port)

    assert scalar(engine) == 1
    assert len(asked) == 4
    engine.dispose()
    assert scalar(engine) == 1  # in the pool that came after it, too
    assert len(asked) == 5
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_every_attempt_asks_the_listeners_again_in_asyncio(postgres, driver, refused_port):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for(driver))
        asked = ask_at_each_attempt(engine.sync_engine, postgres.port, refused_port)
        result = await async_scalar(engine)
        await engine.dispose()
        return result, len(asked)

    assert asyncio.run(main()) == (1, 4)


def test_a_listener_that_connects_by_itself_is_asked_again(postgres, refused_port):
    engine = sa_railway.create_engine(postgres.url)
    ports = iter([refused_port, refused_port, postgres.port])

    @event.listens_for(engine, "do_connect")
    def connect(dialect, record, arguments, named):
        return psycopg2.connect(**{**named, "port": next(ports)})

    assert scalar(engine) == 1
    engine.dispose()


def test_a_listener_that_connects_by_itself_is_asked_again_in_asyncio(postgres, refused_port):
    ports = iter([refused_port, refused_port, postgres.port])

    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"))

        @event.listens_for(engine.sync_engine, "do_connect")
        def connect(dialect, record, arguments, named):
            named["port"] = next(ports)
            return dialect.loaded_dbapi.connect(*arguments, **named)

        result = await async_scalar(engine)
        await engine.dispose()
        return result

    assert asyncio.run(main()) == 1


@pytest.fixture
def refused_port():
    """A port where nothing listens, and nothing else will during the test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("takes_record", [False, True])
def test_every_attempt_calls_the_creator_again(postgres, takes_record, refused_port):
    calls = []

    def connect(record=None):
        calls.append(record)
        port = refused_port if len(calls) <= 2 else postgres.port
        return psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")

    def with_record(record):
        return connect(record)

    creator = with_record if takes_record else connect
    engine = sa_railway.create_engine(postgres.url, creator=creator)

    assert scalar(engine) == 1
    assert len(calls) == 3
    assert (calls[0] is not None) == takes_record
    engine.dispose()


def test_every_attempt_calls_the_async_creator_again(postgres, refused_port):
    ports = iter([refused_port, refused_port, postgres.port])

    async def creator():
        return await asyncpg.connect(
            host="127.0.0.1", port=next(ports), user="postgres", database="postgres"
        )

    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"), async_creator=creator)
        result = await async_scalar(engine)
        await engine.dispose()
        return result

    assert asyncio.run(main()) == 1


def test_a_pool_that_the_application_made_connects_as_it_was_made_to(postgres, failures):
    attempts = []

    def creator():
        attempts.append(1)
        raise psycopg2.OperationalError("connection to server failed: Connection refused")

    pool = sqlalchemy.pool.QueuePool(creator)
    engine = sa_railway.create_engine(postgres.url, pool=pool)

    with pytest.raises(sqlalchemy.exc.OperationalError):
        engine.connect()
    assert len(attempts) == 1
    assert failures == []


def test_asyncpg_reaches_the_second_host_when_the_first_never_answers(postgres):
    async def main(url):
        engine = sa_railway.create_async_engine(url, connect_timeout=2)
        result = await async_scalar(engine)
        await engine.dispose()
        return result

    with ChaosProxy(postgres.url) as proxy:
        proxy.freeze()
        hosts = [f"127.0.0.1:{port}" for port in (proxy.port, postgres.port)]
        url = postgres.url_for("asyncpg").set(host=None, port=None)
        assert asyncio.run(main(url.update_query_dict({"host": hosts}))) == 1
        assert proxy.accepted == 1


@pytest.mark.parametrize("driver", SYNC)
@pytest.mark.parametrize(
    ("change", "says", "fix"),
    [
        ({"password": f"wrong-{MARK}"}, "password authentication failed", "password"),
        (
            {"database": "absent"},
            'database "absent" does not exist',
            "create it, or correct its name",
        ),
        ({"query": {"channel_binding": "require"}}, "channel binding", "look at channel_binding"),
        (
            {"query": {"gssencmode": "require"}},
            r"GSSAPI encryption required|gssencmode value \"require\" invalid",
            "",  # a libpq that has no GSSAPI says so before it connects
        ),
        ({"query": {"sslmode": "require"}}, "server does not support SSL", "change sslmode"),
    ],
)
def test_what_waiting_cannot_mend_is_raised_at_once(
    guarded_postgres, driver, change, says, fix, failures
):
    url = guarded_postgres.url_for(driver).set(**change)
    engine = sa_railway.create_engine(url, profile="worker")

    with pytest.raises(sqlalchemy.exc.OperationalError, match=says) as caught:
        engine.connect()

    assert failures == []
    shown = "".join(traceback.format_exception(caught.value))
    notes = "\n".join(caught.value.__notes__)
    assert fix in notes
    assert "(1 attempt)" in notes
    assert MARK not in shown


@pytest.mark.parametrize(
    "change", [{"password": f"wrong-{MARK}"}, {"database": "absent"}], ids=["password", "database"]
)
def test_asyncpg_raises_at_once_too(guarded_postgres, change, failures):
    async def main():
        url = guarded_postgres.url_for("asyncpg").set(**change)
        engine = sa_railway.create_async_engine(url, profile="worker")
        async with engine.connect():
            pass

    with pytest.raises(Exception, match=r"password authentication failed|does not exist") as caught:
        asyncio.run(main())

    assert failures == []
    assert "(1 attempt)" in "".join(caught.value.__notes__)


def test_the_drivers_own_exception_is_the_cause(guarded_postgres):
    engine = sa_railway.create_engine(guarded_postgres.url.set(password=f"wrong-{MARK}"))

    with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
        engine.connect()

    assert type(caught.value.orig) is psycopg2.OperationalError


def test_an_open_breaker_answers_with_an_operational_error(postgres):
    with ChaosProxy(postgres.url) as proxy:
        proxy.down()
        engine = sa_railway.create_engine(proxy.url, connect_patience=0.05, breaker_pause=60)
        with pytest.raises(sqlalchemy.exc.OperationalError, match="Connection refused"):
            engine.connect()

        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            engine.connect()

    assert isinstance(caught.value, sa_railway.exc.DatabaseUnavailableError)
    assert 0 < caught.value.retry_after <= 60
    assert isinstance(caught.value.orig, psycopg2.OperationalError)
    engine.dispose()


def test_a_failed_connect_takes_no_place_in_the_pool(postgres):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, connect_patience=0, breaker_pause=0, pool_size=1, max_overflow=0
        )
        proxy.down()
        for _ in range(3):
            with pytest.raises(sqlalchemy.exc.OperationalError, match="refused"):
                engine.connect()
        proxy.restore()

        assert scalar(engine) == 1
        engine.dispose()
