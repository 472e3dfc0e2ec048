"""Dead, frozen and healthy pooled connections at checkout, on real drivers."""

import asyncio
import contextlib
import gc
import logging
import select
import sys
import threading
import time
import weakref
from typing import Any

import pytest
import sqlalchemy
from fix_engines import ASYNC, DRIVERS, SYNC, plain_engine
from fix_events import hearing
from fix_waiting import wait_until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine as plain_async_engine
from within import driver_of, using

import sa_railway
from sa_railway import events
from sa_railway.engine import liveness
from sa_railway.engine.driver import bytes_received, is_pooled
from sa_railway.testing import ChaosProxy

READABLE, CLOSED = liveness.SocketState.READABLE, liveness.SocketState.CLOSED


def age(engine, seconds=1.5):
    """Make the idle connections of *engine* look as if they had been idle for *seconds* longer."""
    connections = [engine.connect() for _ in range(engine.pool.checkedin())]
    records = [connection.connection._connection_record for connection in connections]
    for connection in connections:
        connection.close()
    for record in records:
        liveness._pooled[id(record.driver_connection)].since -= seconds


def fill(engine, size):
    connections = [engine.connect() for _ in range(size)]
    for connection in connections:
        connection.execute(text("SELECT 1"))
        connection.close()


@pytest.fixture
def seen():
    with hearing() as heard:
        yield heard


def stale(seen):
    return [event.how for event in seen if isinstance(event, events.StaleFound)]


@pytest.mark.parametrize("driver", SYNC)
def test_a_killed_pool_of_8_costs_neither_an_error_nor_a_round_trip(postgres, driver, seen):
    url = postgres.url_for(driver)
    with ChaosProxy(url) as proxy:
        engine = sa_railway.create_engine(proxy.url, pool_size=8)
        fill(engine, 8)
        postgres.terminate_backends()
        before = proxy.round_trips
        wait_until_closed(engine)

        with engine.connect() as connection:
            looked = proxy.round_trips
            assert connection.scalar(text("SELECT 1")) == 1

        assert stale(seen) == ["socket"]
        # Startup and what the driver sends of its own accord, then the query: no ping.
        assert looked - before <= connect_cost(proxy, driver)
        fill(engine, 8)
        assert stale(seen) == ["socket"]
        engine.dispose()


def connect_cost(proxy, driver):
    """The round trips of one bare connect of this driver."""
    before = proxy.round_trips
    engine = sqlalchemy.create_engine(proxy.url, poolclass=sqlalchemy.pool.NullPool)
    engine.connect().close()
    first = proxy.round_trips - before
    before = proxy.round_trips
    engine.connect().close()
    assert proxy.round_trips - before <= first
    return proxy.round_trips - before


def wait_until_closed(engine):
    """Wait for the servers' FINs; the proxy passes them on in its own time."""
    pool = engine.pool
    connections = [pool._pool.queue[i] for i in range(pool.checkedin())]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        looks = {liveness.socket_state(record.driver_connection) for record in connections}
        if looks == {liveness.SocketState.CLOSED}:
            return
    raise AssertionError(f"the connections are still {looks}")


@pytest.mark.parametrize("driver", SYNC)
def test_a_killed_connection_is_seen_through_tls(postgres, encrypting_url, driver, seen):
    """What the server said last is encrypted, and lies in front of its FIN."""
    engine = sa_railway.create_engine(encrypting_url.set(drivername=f"postgresql+{driver}"))
    fill(engine, 2)
    postgres.terminate_backends()
    wait_until_closed(engine)

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    assert stale(seen) == ["socket"]
    engine.dispose()


def test_plain_sqlalchemy_hands_the_killed_connection_to_the_caller(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    fill(engine, 2)
    postgres.terminate_backends()
    wait_until_closed(engine)

    with pytest.raises(sqlalchemy.exc.OperationalError), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_a_killed_asyncio_pool_costs_no_error(postgres, driver, seen):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for(driver), pool_size=8)
        connections = [await engine.connect() for _ in range(8)]
        for connection in connections:
            await connection.execute(text("SELECT 1"))
            await connection.close()
        await asyncio.to_thread(postgres.terminate_backends)
        for _ in range(100):  # the loop must read what the servers have sent
            await asyncio.sleep(0.001)
        for _ in range(9):
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    asyncio.run(main())
    assert stale(seen) == ["socket"]


@pytest.mark.parametrize("driver", SYNC)
def test_a_frozen_peer_is_given_up_at_the_deadline_of_the_ping(postgres, driver, seen):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, ping_timeout=0.2)
        fill(engine, 2)
        age(engine)
        proxy.freeze(new=False)

        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1

        assert stale(seen) == ["deadline"]
        engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_a_frozen_peer_is_given_up_in_asyncio(postgres, driver, seen):
    async def main():
        with ChaosProxy(postgres.url_for(driver)) as proxy:
            engine = sa_railway.create_async_engine(proxy.url, ping_timeout=0.2, trust_idle=0)
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            proxy.freeze(new=False)

            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT 1")) == 1
            await engine.dispose()

    asyncio.run(main())
    assert stale(seen) == ["deadline"]


def test_plain_pre_ping_hangs_on_a_frozen_peer(postgres):
    with ChaosProxy(postgres.url) as proxy:
        engine = sqlalchemy.create_engine(
            proxy.url,
            pool_pre_ping=True,
            connect_args={"keepalives_idle": 1, "tcp_user_timeout": 200},
        )
        fill(engine, 1)
        proxy.freeze(new=False)
        done = threading.Event()

        def checkout():
            with contextlib.suppress(sqlalchemy.exc.OperationalError):
                engine.connect().close()
            done.set()

        thread = threading.Thread(target=checkout)
        thread.start()
        # ten times the deadline of the test above, and five times its tcp_user_timeout
        assert not done.wait(2)
        proxy.reset_peer(new=False)
        thread.join(10)
        engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_idle_for_a_second_must_answer(postgres, driver, seen):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        fill(engine, 1)
        before = proxy.round_trips
        engine.connect().close()
        trusted = proxy.round_trips - before
        age(engine)
        before = proxy.round_trips
        engine.connect().close()

        assert trusted == 0
        assert proxy.round_trips - before == 1
        assert [type(e) for e in seen if isinstance(e, events.Pinged)] == [events.Pinged]
        engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_waiting_notification_does_not_make_a_connection_dead(postgres, driver, seen):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    with engine.connect() as connection:
        connection.execute(text("LISTEN news"))
        connection.commit()
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
    with sqlalchemy.create_engine(postgres.url).begin() as other:
        other.execute(text("NOTIFY news"))
        other.engine.dispose()
    pool: Any = engine.pool
    (record,) = pool._pool.queue
    wait_until(lambda: liveness.socket_state(record.driver_connection) is READABLE)

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == backend
    assert stale(seen) == []
    engine.dispose()


def test_pre_ping_off_means_no_check_at_all(postgres, seen):
    engine = sa_railway.create_engine(postgres.url, pool_pre_ping=False)
    fill(engine, 1)
    postgres.terminate_backends()
    wait_until_closed(engine)

    with pytest.raises(sqlalchemy.exc.OperationalError), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert stale(seen) == []
    engine.dispose()


def test_the_pool_pings_as_the_profile_has_it(postgres):
    assert sa_railway.create_engine(postgres.url).pool._pre_ping is True
    assert sa_railway.create_engine(postgres.url, pre_ping=False).pool._pre_ping is False


@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_is_kept_of_a_connection_that_is_gone(postgres, driver):
    before = set(liveness._pooled)
    made = []

    def check(connection):
        driver_connection = driver_of(connection)
        made.append(weakref.ref(driver_connection))
        assert set(liveness._pooled) - before == {id(driver_connection)}

    using(postgres, driver, check)
    gc.collect()

    assert [reference() for reference in made] == [None]
    assert set(liveness._pooled) <= before


def test_an_engine_that_is_dropped_drops_its_connections(postgres):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as connection:
        driver_connection = weakref.ref(driver_of(connection))
    assert driver_connection() is not None

    del engine, connection
    gc.collect()

    assert driver_connection() is None


def test_a_connection_whose_check_fails_is_replaced_and_that_is_logged_once(
    postgres, caplog, monkeypatch
):
    def broken(connection):
        raise RuntimeError("a bug")

    engine = sa_railway.create_engine(postgres.url, trust_idle=0, logging_name="orders")
    fill(engine, 1)
    monkeypatch.setattr(liveness, "socket_state", broken)
    backends = set()

    with caplog.at_level(logging.ERROR, logger="sa_railway"):
        for _ in range(3):
            with engine.connect() as connection:
                backends.add(connection.scalar(text("SELECT pg_backend_pid()")))

    assert len(backends) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "orders: a connection could not be checked and is replaced; further failures are not logged"
    ]
    engine.dispose()


def test_an_answer_that_comes_with_the_deadline_does_not_save_the_connection(
    postgres, seen, monkeypatch
):
    dialect = postgres.url.get_dialect()
    ping = dialect.do_ping

    def late(self, dbapi_connection):
        answer = ping(self, dbapi_connection)
        select.select([dbapi_connection], [], [], 20)  # until the socket is shut down
        return answer

    monkeypatch.setattr(dialect, "do_ping", late)
    engine = sa_railway.create_engine(postgres.url, trust_idle=0, ping_timeout=0.05)
    fill(engine, 1)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1

    assert stale(seen) == ["deadline"]
    engine.dispose()


def test_plain_asyncpg_raises_when_its_pool_was_killed(postgres):
    async def main():
        engine = plain_async_engine(postgres.url_for("asyncpg"))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await asyncio.to_thread(postgres.terminate_backends)
        for _ in range(100):
            await asyncio.sleep(0.001)
        try:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        finally:
            await engine.dispose()

    with pytest.raises(sqlalchemy.exc.DBAPIError):
        asyncio.run(main())


# --- event loops ---


def wait_until_hung_up(engine):
    """Wait until the sockets show the servers' FINs, without a turn for the event loop."""
    records = list(engine.sync_engine.pool._pool._queue._queue)
    wait_until(
        lambda: {liveness.socket_state(record.driver_connection) for record in records} == {CLOSED}
    )


@pytest.mark.parametrize("driver", ASYNC)
def test_a_server_that_hangs_up_while_the_event_loop_is_busy_is_seen(postgres, driver, seen):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for(driver), pool_size=4)
        connections = [await engine.connect() for _ in range(4)]
        for connection in connections:
            await connection.execute(text("SELECT 1"))
            await connection.close()
        postgres.terminate_backends()
        wait_until_hung_up(engine)

        for _ in range(4):
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    asyncio.run(main())
    assert stale(seen) == ["socket"]


def test_a_farewell_that_asyncpg_has_read_is_seen_before_the_end_of_the_stream(postgres, seen):
    async def main():
        with ChaosProxy(postgres.url_for("asyncpg")) as proxy:
            engine = sa_railway.create_async_engine(proxy.url)
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                driver = (await connection.get_raw_connection()).driver_connection
            received = bytes_received(driver)
            with proxy.slow_close(60.0):
                await asyncio.to_thread(postgres.terminate_backends)
                deadline = time.monotonic() + 10
                while (
                    bytes_received(driver) == received or liveness.socket_state(driver) is READABLE
                ):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.001)

                assert liveness.socket_state(driver) is liveness.SocketState.NOTHING_TO_READ
                async with engine.connect() as connection:
                    assert await connection.scalar(text("SELECT 1")) == 1
            await engine.dispose()

    asyncio.run(main())
    assert stale(seen) == ["ping"]


def test_what_asyncpg_has_received_is_known_of_a_tcp_socket_alone(postgres, monkeypatch, seen):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"))
        received = []
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                driver = (await connection.get_raw_connection()).driver_connection
                received.append(bytes_received(driver))
        monkeypatch.setattr(sys, "platform", "darwin")
        received.append(bytes_received(driver))
        for _ in range(2):  # where the system does not count, the server is asked
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        await engine.dispose()
        monkeypatch.undo()
        return [*received, bytes_received(driver)]

    with hearing(events.Pinged) as pings:
        first, second, *unknown = asyncio.run(main())
    assert 0 < first < second
    assert unknown == [None, None]
    assert len(pings) == 2


# what is left of a connection when its event loop is closed says so, with plain SQLAlchemy as well
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ASYNC)
def test_an_event_loop_for_each_message(postgres, driver, seen, caplog):
    url = postgres.url_for(driver)
    engine = sa_railway.create_async_engine(url, application_name=f"messages-{driver}")

    async def message(number):
        async with engine.connect() as connection:
            return await connection.scalar(text(f"SELECT {number}"))

    assert [asyncio.run(message(number)) for number in range(20)] == list(range(20))
    assert stale(seen) == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    plain = plain_engine(postgres.url)
    sessions = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    deadline = time.monotonic() + 10
    with plain.connect() as connection:
        while connection.scalar(sessions, {"name": f"messages-{driver}"}) > 1:
            assert time.monotonic() < deadline
            connection.rollback()
    engine.sync_engine.dispose(close=False)
    gc.collect()  # so that it is said here


@pytest.mark.parametrize("driver", ASYNC)
def test_an_event_loop_that_was_blocked_costs_no_connection(postgres, driver, seen):
    async def main():
        with ChaosProxy(postgres.url_for(driver)) as proxy, proxy.latency(0.05):
            engine = sa_railway.create_async_engine(proxy.url, ping_timeout=0.5, trust_idle=0)
            backend = text("SELECT pg_backend_pid()")
            async with engine.connect() as connection:
                first = await connection.scalar(backend)

            async def again():
                async with engine.connect() as connection:
                    return await connection.scalar(backend)

            task = asyncio.create_task(again())
            before = proxy.round_trips
            while proxy.round_trips == before:  # until the ping has been sent
                await asyncio.sleep(0)
            time.sleep(1)
            assert await task == first
            await engine.dispose()

    asyncio.run(main())
    assert stale(seen) == []


# --- poolers ---


@pytest.mark.parametrize("driver", SYNC)
def test_a_pooler_that_queues_longer_than_a_ping_may_take_is_not_dead(postgres, driver, seen):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, ping_timeout=0.1, pool_timeout=20, trust_idle=0, transaction_pooler=True
        )
        fill(engine, 1)
        toxic = proxy.freeze(new=False)
        threading.Timer(1.0, toxic.remove).start()

        fill(engine, 1)

        assert stale(seen) == []
        assert proxy.accepted == 1
        engine.dispose()


def test_a_pooler_that_never_answers_is_given_up_when_a_checkout_is(postgres, seen):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, ping_timeout=0.1, pool_timeout=0.3, trust_idle=0, transaction_pooler=True
        )
        fill(engine, 1)
        proxy.freeze(new=False)

        fill(engine, 1)

        assert stale(seen) == ["deadline"]
        engine.dispose()


@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
def test_a_server_is_not_taken_for_a_pooler(postgres, driver):
    assert using(postgres, driver, lambda connection: not is_pooled(driver_of(connection)))
