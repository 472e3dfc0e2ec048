"""Errors that mean a lost connection, although SQLAlchemy does not know them."""

import asyncio
import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from fix_engines import ASYNC, DRIVERS, SYNC, pool_of
from marked import MarkedPostgres
from sqlalchemy import event, text
from sqlalchemy.pool import NullPool, QueuePool
from within import driver_of, using

import sa_railway
from sa_railway.commit.sql import Writes
from sa_railway.commit.work import work_on
from sa_railway.engine import disconnect


@pytest.fixture(scope="module")
def standby(postgres_binaries):
    """A server that has become a standby, as an old primary does after a failover."""
    with MarkedPostgres() as server:
        engine = sqlalchemy.create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (n int)"))
            folder = Path(connection.scalar(text("SHOW data_directory")))
        engine.dispose()
        server.stop()
        (folder / "standby.signal").touch()
        server.start()
        yield server


def insert_fails(engine, **execution_options):
    with (
        engine.connect().execution_options(**execution_options) as connection,
        pytest.raises(sqlalchemy.exc.DBAPIError, match="read-only transaction") as caught,
    ):
        connection.execute(text("INSERT INTO t VALUES (1)"))
    return caught.value.connection_invalidated


@pytest.mark.parametrize("driver", SYNC)
def test_a_primary_that_became_a_standby_is_left(standby, driver):
    engine = sa_railway.create_engine(standby.url_for(driver))

    assert insert_fails(engine) is True
    engine.dispose()


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
@pytest.mark.parametrize("driver", SYNC)
def test_a_standby_is_stayed_with_when_a_new_connection_finds_it_again(
    standby, driver, poolclass, monkeypatch
):
    engine = sa_railway.create_engine(standby.url_for(driver), poolclass=poolclass)

    assert [insert_fails(engine) for _ in range(4)] == [True, False, False, False]
    monkeypatch.setattr(disconnect, "_STAY", 0.0)
    assert insert_fails(engine) is True
    engine.dispose()


def test_a_server_that_does_not_say_what_it_is_is_left_once(postgres, monkeypatch):
    monkeypatch.setattr(disconnect, "_parameter_status", lambda driver, name: None)
    engine = sa_railway.create_engine(postgres.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS t (n int)"))

    found = []
    for _ in range(3):
        with engine.connect() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
                connection.execute(text("INSERT INTO t VALUES (1)"))
            found.append(caught.value.connection_invalidated)
    assert found == [True, False, False]
    engine.dispose()


def test_a_connection_from_before_is_left_without_the_new_ones(standby):
    engine = sa_railway.create_engine(standby.url)
    with engine.connect() as old:
        assert insert_fails(engine) is True
        with engine.connect() as new:
            made_since = driver_of(new)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            old.execute(text("INSERT INTO t VALUES (1)"))
        assert caught.value.connection_invalidated is True
        assert made_since in fill(engine, 2)
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_work_that_a_standby_refuses_is_run_again_only_once(standby, driver):
    engine = sa_railway.create_engine(standby.url_for(driver))
    pids = []

    def work(connection):
        pids.append(connection.scalar(text("SELECT pg_backend_pid()")))
        connection.execute(text("INSERT INTO t VALUES (1)"))

    @sa_railway.retry
    def insert():
        with engine.begin() as connection:
            work(connection)

    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        sa_railway.run_transaction(engine, work)
    assert len(set(pids)) == len(pids) == 2
    assert caught.value.__notes__[0].startswith("sa_railway: run_transaction() gave up after 2 ")
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        insert()
    assert len(pids) == 3
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_database_that_is_read_only_by_a_setting_is_no_failover(database_url, postgres, driver):
    admin = sqlalchemy.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE TABLE t (n int)"))
        name = database_url.database
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    admin.dispose()
    calls = []

    def check(connection):
        calls.append(driver_of(connection))
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            connection.execute(text("INSERT INTO t VALUES (1)"))
        assert caught.value.connection_invalidated is False

    server: Any = SimpleNamespace(url_for=lambda d: with_driver(database_url, d))
    using(server, driver, check)
    if driver in SYNC:
        engine = sa_railway.create_engine(with_driver(database_url, driver))
        attempts = []

        def attempt(connection):
            attempts.append(1)
            insert(connection)

        with pytest.raises(sqlalchemy.exc.DBAPIError):
            sa_railway.run_transaction(engine, attempt)
        assert attempts == [1]
        engine.dispose()


def with_driver(url, driver):
    return url.set(drivername=f"postgresql+{driver.removesuffix('_async')}")


def insert(connection):
    connection.execute(text("INSERT INTO t VALUES (1)"))


def fill(engine, size=3):
    """Fill the pool, and return the driver's connections that it holds."""
    with contextlib.ExitStack() as stack:
        return [driver_of(stack.enter_context(engine.connect())) for _ in range(size)]


@pytest.mark.parametrize("driver", SYNC)
def test_the_rest_of_a_dead_pool_is_closed_at_once(postgres, driver):
    engine = sa_railway.create_engine(postgres.url_for(driver), pool_size=3, max_overflow=0)
    old = fill(engine)
    postgres.terminate_backends()

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    assert [bool(one.closed) for one in old] == [True] * 3
    assert pool_of(engine).checkedin() == 3
    assert set(fill(engine)).isdisjoint(old)
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_no_session_stays_on_a_server_that_was_left(standby, driver):
    engine = sa_railway.create_engine(standby.url_for(driver), pool_size=3)
    old = fill(engine)

    assert insert_fails(engine) is True
    assert [bool(one.closed) for one in old] == [True] * 3
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC)
def test_the_rest_of_a_dead_pool_is_closed_in_asyncio(postgres, driver):
    closed = []

    async def main():
        url = with_driver(postgres.url, driver)
        engine = sa_railway.create_async_engine(url, pool_size=3)
        event.listen(engine.sync_engine, "invalidate", lambda *what: closed.append(what[1]))
        async with engine.connect(), engine.connect(), engine.connect():
            pass
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.to_thread(postgres.terminate_backends)
            with pytest.raises(sqlalchemy.exc.DBAPIError):
                await connection.execute(text("SELECT 1"))
        await engine.dispose()

    asyncio.run(main())
    assert len(closed) == len(set(map(id, closed))) == 3


@pytest.mark.parametrize("keeps", [True, False])
def test_a_listener_may_keep_the_rest_of_the_pool(postgres, keeps):
    engine = sa_railway.create_engine(postgres.url)
    others = fill(engine, 2)

    @event.listens_for(engine, "handle_error")
    def keep(context):
        context.invalidate_pool_on_disconnect = not keeps

    with engine.connect() as connection:
        driver_of(connection).close()
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            connection.execute(text("SELECT 1"))
    assert sorted(one.closed for one in others) == ([0, 1] if keeps else [1, 1])
    engine.dispose()


def test_a_listener_of_all_engines_may_call_an_error_a_disconnect(postgres):
    def upgrade(context):
        context.is_disconnect = True

    engine = sa_railway.create_engine(postgres.url)
    event.listen(sqlalchemy.Engine, "handle_error", upgrade)
    try:
        with (
            engine.connect() as connection,
            pytest.raises(sqlalchemy.exc.DataError) as caught,
        ):
            connection.execute(text("SELECT 1 / 0"))
    finally:
        event.remove(sqlalchemy.Engine, "handle_error", upgrade)
    assert caught.value.connection_invalidated
    engine.dispose()


def can_hold(engine):
    """Return how many connections *engine* can have out."""
    with contextlib.ExitStack() as stack, contextlib.suppress(sqlalchemy.exc.TimeoutError):
        for size in itertools.count():  # noqa: B007 - the one that failed
            stack.enter_context(engine.connect())
    return size


def test_a_listener_that_fails_while_a_pool_is_closed_costs_no_place_more_in_it(postgres):
    """SQLAlchemy itself loses one by it before 2.0.58."""

    def places_after_a_failure(create_engine, **options):
        engine = create_engine(
            postgres.url, pool_size=3, max_overflow=0, pool_timeout=0.1, **options
        )
        fill(engine)

        @event.listens_for(engine, "close")
        def fail(*_):
            raise KeyboardInterrupt

        postgres.terminate_backends()
        with contextlib.suppress(KeyboardInterrupt), engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        event.remove(engine, "close", fail)
        places = can_hold(engine)
        engine.dispose()
        return places

    ours = places_after_a_failure(sa_railway.create_engine, pre_ping=False)
    assert ours == places_after_a_failure(sqlalchemy.create_engine) >= 2


def test_several_hosts_of_asyncpg_are_seen_as_one_is(postgres):
    def check(connection):
        work = work_on(driver_of(connection))
        connection.execute(text("SELECT 1"))
        return work.is_seen, work.writes

    port = postgres.port
    url = f"postgresql+asyncpg://postgres@/postgres?host=127.0.0.1:{port}&host=localhost:{port}"
    two: Any = SimpleNamespace(url_for=lambda _driver: sqlalchemy.make_url(url))
    assert using(two, "asyncpg", check) == (True, Writes.NO)


def test_a_loss_that_shows_late_closes_no_connection_that_was_made_since(postgres):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as old:
        old.execute(text("SELECT 1"))
        fill(engine, 1)
        postgres.terminate_backends()
        (made_since,) = fill(engine, 1)
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            old.execute(text("SELECT 1"))
        assert not made_since.closed
    engine.dispose()


def test_an_error_of_the_application_within_a_statement_costs_no_connection(postgres):
    engine = sa_railway.create_engine(postgres.url)
    others = fill(engine, 2)

    def fail(*_):
        raise ConnectionResetError("another server's")

    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", fail)
        with pytest.raises(ConnectionResetError):
            connection.execute(text("SELECT 1"))
    assert set(fill(engine, 2)) == set(others)
    engine.dispose()


def test_plain_sqlalchemy_stays_with_the_standby(standby):
    engine = sqlalchemy.create_engine(standby.url)

    assert insert_fails(engine) is False
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_transaction_declared_read_only_is_no_failover(postgres, driver):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS t (n int)"))

    assert insert_fails(engine, postgresql_readonly=True) is False
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            connection.execute(text("INSERT INTO t VALUES (1)"))
    assert caught.value.connection_invalidated is False
    engine.dispose()


def test_the_users_table_overrules_both_ways(standby, postgres):
    engine = sa_railway.create_engine(standby.url, fault_kinds={"25006": "permanent"})
    assert insert_fails(engine) is False
    engine.dispose()

    engine = sa_railway.create_engine(postgres.url, fault_kinds={"22012": "disconnect"})
    with (
        engine.connect() as connection,
        pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero") as caught,
    ):
        connection.execute(text("SELECT 1/0"))
    assert caught.value.connection_invalidated is True
    engine.dispose()


def test_an_ordinary_error_keeps_its_connection(postgres):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            connection.execute(text("SELECT * FROM no_such_table"))
        connection.rollback()
        assert connection.scalar(text("SELECT pg_backend_pid()")) == pid
    engine.dispose()
