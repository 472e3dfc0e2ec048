"""What is the application's own is never taken for an error of the database."""

import asyncio
import contextlib
import signal
import threading
from typing import Any

import pytest
import sqlalchemy
from fix_engines import ASYNC, SYNC
from fix_events import hearing
from sqlalchemy import bindparam, event, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.types import Integer, TypeDecorator

import sa_railway
from sa_railway import events, retry, run_transaction
from sa_railway.asyncio import create_async_engine
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.faults.origin import is_database_error

WAYS = ["run_transaction", "retry"]


@pytest.fixture(params=SYNC)
def engine(request, postgres):
    engine = sa_railway.create_engine(postgres.url_for(request.param))
    yield engine
    engine.dispose()


@pytest.fixture
def seen():
    """What was taken for a loss of the connection."""
    with hearing(events.DisconnectSeen) as heard:
        yield heard


def run(way, engine, work):
    """Do *work* with a Connection; return how often it was begun, and what it raised."""
    calls = []

    def counted(connection):
        calls.append(1)
        work(connection)

    @retry
    def again():
        with engine.begin() as connection:
            counted(connection)

    error = None
    try:
        if way == "retry":
            again()
        else:
            run_transaction(engine, counted)
    except Exception as raised:  # noqa: BLE001 - looked at by the test
        error = raised
    return len(calls), error


def in_a_savepoint(error):
    def work(connection):
        with connection.begin_nested():
            raise error

    return work


def in_an_event(error):
    def fail(*_):
        raise error

    def work(connection):
        event.listen(connection, "before_cursor_execute", fail)
        connection.execute(text("SELECT 1"))

    return work


def in_a_type(error):
    class Fails(TypeDecorator):
        impl = Integer
        cache_ok = True

        def process_bind_param(self, value, dialect):
            raise error

    return lambda connection: connection.execute(
        text("SELECT :n").bindparams(bindparam("n", 1, Fails()))
    )


@pytest.mark.parametrize("place", [in_a_savepoint, in_an_event, in_a_type])
@pytest.mark.parametrize(
    "error", [TimeoutError("mine"), ConnectionResetError("mine"), BrokenPipeError("mine")]
)
@pytest.mark.parametrize("way", WAYS)
def test_an_error_that_passes_through_sqlalchemy(engine, way, place, error):
    calls, raised = run(way, engine, place(error))

    assert calls == 1
    assert raised is error or raised.orig is error
    assert not hasattr(raised, "__notes__")


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_that_interrupts_the_driver(engine, way, seen):
    class JobTimeoutError(TimeoutError):
        pass

    for error in (TimeoutError("my job took too long"), JobTimeoutError("my job took too long")):

        def ring(*_, error=error):
            raise error

        before = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            calls, raised = run(way, engine, lambda c: c.execute(text("SELECT pg_sleep(1)")))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert (calls, raised) == (1, error)
    assert seen == []
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_signal_within_a_frame_of_asyncpg_is_not_asyncpg_s():
    namespace: dict[str, Any] = {"__name__": "asyncpg.protocol", "ring": None}
    exec("def receive(): ring()", namespace)

    def ring():
        raise TimeoutError("mine")

    namespace["ring"] = ring
    with pytest.raises(TimeoutError) as caught:
        namespace["receive"]()
    assert not is_database_error(caught.value)

    exec("def ring(): raise TimeoutError()", namespace)
    with pytest.raises(TimeoutError) as caught:
        namespace["receive"]()
    assert is_database_error(caught.value)
    assert not is_database_error(TimeoutError("of another process, so without frames"))


@pytest.mark.parametrize("driver", ASYNC)
@pytest.mark.parametrize("way", WAYS)
def test_a_time_limit_of_asyncio(postgres, driver, way):
    calls = []

    async def work(connection):
        calls.append(1)
        async with asyncio.timeout(0.2):
            await connection.execute(text("SELECT pg_sleep(60)"))

    async def main():
        url = postgres.url.set(drivername=f"postgresql+{driver.removesuffix('_async')}")
        engine = create_async_engine(url)

        @retry
        async def again():
            async with engine.begin() as connection:
                await work(connection)

        with pytest.raises(TimeoutError):
            await (again() if way == "retry" else run_async_transaction(engine, work))
        await engine.dispose()

    asyncio.run(main())
    assert calls == [1]


@pytest.mark.parametrize("way", WAYS)
def test_a_time_limit_of_asyncpg_is_the_database_s(postgres, way):
    calls = []

    async def work(connection):
        calls.append(1)
        if len(calls) == 1:
            await connection.execute(text("SELECT pg_sleep(60)"))

    async def main():
        engine = create_async_engine(
            postgres.url_for("asyncpg"), connect_args={"command_timeout": 0.5}
        )

        @retry
        async def again():
            async with engine.begin() as connection:
                await work(connection)

        await (again() if way == "retry" else run_async_transaction(engine, work))
        await engine.dispose()

    asyncio.run(main())
    assert calls == [1, 1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", [None, ValueError("mine"), ConnectionResetError("mine")])
def test_a_group_counts_if_all_its_members_do(postgres, way, other):
    calls: list[int] = []

    async def one(connection):
        await connection.execute(text("SELECT 1"))
        if len(calls) == 1:
            await asyncio.to_thread(postgres.terminate_backends)
        return await connection.scalar(text("SELECT 2"))

    async def work(connection):
        calls.append(1)
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(one(connection))
        except ExceptionGroup as lost:
            if other is not None:
                raise ExceptionGroup("both", [lost, other]) from None
            raise
        return task.result()

    async def main():
        engine = create_async_engine(postgres.url_for("asyncpg"))

        @retry
        async def again():
            async with engine.begin() as connection:
                return await work(connection)

        try:
            return await (again() if way == "retry" else run_async_transaction(engine, work))
        finally:
            await engine.dispose()

    if other is None:
        assert asyncio.run(main()) == 2
        assert calls == [1, 1]
    else:
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(main())
        assert caught.value.exceptions[-1] is other
        assert calls == [1]


def test_a_group_with_an_unknown_outcome_is_not_run_again(engine):
    calls = []

    def work(connection):
        calls.append(1)
        error: Any = OSError()
        error.railway_in_doubt = True
        lost = sqlalchemy.exc.OperationalError("COMMIT", {}, error)
        raise ExceptionGroup("two threads", [lost, sqlalchemy.exc.DisconnectionError()])

    again = retry(lambda: work(None))
    with pytest.raises(ExceptionGroup):
        again()
    assert calls == [1]


@pytest.mark.parametrize("then", ["execute", "return"])
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_a_callback_that_invalidates_its_connection_is_not_run_again(engine, kind, then):
    calls = []

    def work(transactor):
        calls.append(1)
        connection = transactor if kind == "engine" else transactor.connection()
        connection.execute(text("SELECT 1"))
        connection.invalidate()
        if then == "execute":
            connection.execute(text("SELECT 1"))

    with pytest.raises(sqlalchemy.exc.PendingRollbackError) as caught:
        run_transaction(engine if kind == "engine" else sessionmaker(engine), work)
    assert calls == [1]
    assert caught.value.__notes__ == [
        "sa_railway: run_transaction() cannot run the work again: the callback has invalidated its "
        "connection, and would do so again"
    ]


@pytest.mark.parametrize("kind", ["engine", "session"])
def test_a_loss_that_the_callback_has_swallowed_is_run_again(engine, postgres, kind):
    calls = []

    def work(transactor):
        calls.append(1)
        transactor.execute(text("SELECT 1"))
        if len(calls) == 1:
            postgres.terminate_backends()
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):
                transactor.execute(text("SELECT 2"))
        return transactor.scalar(text("SELECT 3"))

    assert run_transaction(engine if kind == "engine" else sessionmaker(engine), work) == 3
    assert calls == [1, 1]


@pytest.mark.parametrize("name", ["checkin", "checkout", "reset"])
def test_the_first_run_transaction_attaches_nothing_to_a_pool_in_use(engine, name):
    done: list[int] = []

    def listener(*_):
        if not done:
            done.append(1)
            # in another thread, as the application would do it
            thread = threading.Thread(target=run_transaction, args=(engine, lambda c: None))
            thread.start()
            thread.join()

    event.listen(engine, name, listener)
    event.listen(engine, name, lambda *_: done.append(2))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert done.count(1) == 1
    assert engine.pool.checkedout() == 0
