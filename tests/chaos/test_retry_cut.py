"""retry() while connections are cut, also around COMMIT: what may have happened is not repeated."""

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from fix_commit import ANSWER_LOST, ARRIVED, NEVER_ARRIVED
from fix_engines import ASYNC, SYNC, plain_engine
from fix_waiting import wait_until
from marked import MarkedPostgres
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import sa_railway
from sa_railway import events, retry
from sa_railway.testing import ChaosProxy

Makers = dict[str, Callable[..., Any]]

INSERT = text("INSERT INTO entry VALUES (:n)")
MAKERS: Makers = {"plugin": sa_railway.create_engine, "plain": sqlalchemy.create_engine}
ASYNC_MAKERS: Makers = {"plugin": sa_railway.create_async_engine, "plain": create_async_engine}
engines = pytest.mark.parametrize("kind", ["plugin", "plain"])
sync_drivers = pytest.mark.parametrize("driver", SYNC)
async_drivers = pytest.mark.parametrize("driver", ASYNC)
lost_commits = pytest.mark.parametrize(
    ("point", "rows"),
    [(NEVER_ARRIVED, 0), (ARRIVED, 1), (ANSWER_LOST, 1)],
    ids=["before", "after", "answer"],
)
COMMITTED: dict[str, Any] = {"before": "ReadyForQuery", "of": "INSERT"}  # by itself, in autocommit
# a wait is not what is tested here
QUICK: dict[str, Any] = {"backoff_base": 0.001, "backoff_cap": 0.001}


@pytest.fixture
def entries(postgres):
    """The number of rows in a table, which begins empty, when nobody works on it any more."""
    engine = plain_engine(postgres.url, "DROP TABLE IF EXISTS entry", "CREATE TABLE entry (n int)")

    def count():
        # A backend whose client was cut off may still be at work, and holds its lock until its
        # transaction has ended.
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE entry IN ACCESS EXCLUSIVE MODE"))
            return connection.scalar(text("SELECT count(*) FROM entry"))

    return count


@pytest.fixture
def engine_through(request, postgres):
    """A function that makes an engine that connects through a proxy, which it returns as well."""

    def make(driver, kind="plugin", **options):
        proxy = ChaosProxy(postgres.url_for(driver))
        engine = MAKERS[kind](proxy.url, **options)
        request.addfinalizer(proxy.close)
        request.addfinalizer(engine.dispose)
        with engine.connect() as connection:  # the first one asks the server many things
            connection.execute(text("SELECT 1"))
        return engine, proxy

    return make


def note_of(error):
    (note,) = [n for n in error.__notes__ if n.startswith("sa_railway: retry()")]
    return note


@engines
@sync_drivers
@lost_commits
def test_a_lost_commit_is_not_repeated(engine_through, entries, driver, kind, point, rows, retried):
    engine, proxy = engine_through(driver, kind)

    @retry
    def insert():
        with engine.begin() as connection:
            connection.execute(INSERT, {"n": 1})

    with proxy.cut(**point) as cut, pytest.raises(DBAPIError) as caught:
        insert()

    assert cut.happened
    assert caught.value.connection_invalidated
    assert re.fullmatch(
        r"sa_railway: retry\(\) gave up after 1 attempt in [\d.]+ s: the work may have been "
        r"committed, and would then be done twice",
        note_of(caught.value),
    )
    assert retried == []
    assert entries() == rows


@engines
@async_drivers
@lost_commits
def test_a_lost_commit_is_not_repeated_in_asyncio(
    postgres, entries, driver, kind, point, rows, retried
):
    async def main(proxy):
        engine = ASYNC_MAKERS[kind](proxy.url)
        factory = async_sessionmaker(engine)

        @retry
        async def insert():
            async with factory() as session:
                await session.execute(INSERT, {"n": 1})
                await session.commit()

        with pytest.raises(DBAPIError) as caught:
            await insert()
        await engine.dispose()
        return caught.value

    with ChaosProxy(postgres.url_for(driver)) as proxy, proxy.cut(**point) as cut:
        error = asyncio.run(main(proxy))

    assert cut.happened
    assert "may have been committed" in note_of(error)
    assert retried == []
    assert entries() == rows


@engines
@sync_drivers
@pytest.mark.parametrize(
    "point",
    [{"before": "BEGIN"}, {"after": "INSERT"}, {"before": "INSERT", "nth": 2}],
    ids=["BEGIN", "first", "second"],
)
def test_what_is_lost_before_commit_is_done_once(
    engine_through, entries, driver, kind, point, retried
):
    engine, proxy = engine_through(driver, kind)

    @retry(**QUICK)
    def insert():
        with Session(engine) as session:
            session.execute(INSERT, {"n": 1})
            session.execute(INSERT, {"n": 2})
            session.commit()

    with proxy.cut(**point) as cut:
        insert()

    assert cut.happened
    assert [(event.engine, event.attempt) for event in retried] == [
        (engine.url.render_as_string(), 1)
    ]
    assert entries() == 2


@async_drivers
def test_asyncio_repeats_what_is_lost_before_commit(postgres, entries, driver, retried):
    async def main(proxy):
        engine = create_async_engine(proxy.url)
        async with async_sessionmaker(engine)() as session:
            async for attempt in retry(session=session, **QUICK):
                with attempt:
                    await session.execute(INSERT, {"n": 1})
                    await session.execute(INSERT, {"n": 2})
                    await session.commit()
        await engine.dispose()

    with (
        ChaosProxy(postgres.url_for(driver)) as proxy,
        proxy.cut(before="INSERT", nth=2) as cut,
    ):
        asyncio.run(main(proxy))

    assert cut.happened
    assert len(retried) == 1
    assert entries() == 2


@async_drivers
def test_what_is_lost_while_connecting_is_no_work_yet(postgres, driver, retried):
    """asyncpg's errors of the network reach the caller without SQLAlchemy having looked at them."""

    async def main(proxy):
        engine = create_async_engine(proxy.url)

        @retry(**QUICK)
        async def look():
            async with engine.connect() as connection:
                return await connection.scalar(text("SELECT 1"))

        result = await look()
        await engine.dispose()
        return result

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        proxy.reset_peer()
        unsubscribe = events.subscribe(lambda event: proxy.restore(), events.Retried)
        assert asyncio.run(main(proxy)) == 1
        unsubscribe()

    assert len(retried) == 1


@engines
@sync_drivers
def test_a_lost_rollback_is_repeated(engine_through, driver, kind, retried):
    engine, proxy = engine_through(driver, kind)

    @retry(**QUICK)
    def look():
        with engine.connect() as connection:
            result = connection.scalar(text("SELECT 1"))
            connection.rollback()
            return result

    with proxy.cut(before="ROLLBACK") as cut:
        assert look() == 1

    assert cut.happened
    assert len(retried) == 1


@sync_drivers
@pytest.mark.parametrize("how", ["engine", "option"])
@engines
def test_what_commits_by_itself_is_not_repeated(engine_through, entries, driver, how, kind):
    options = {"isolation_level": "AUTOCOMMIT"}
    engine, proxy = engine_through(driver, kind, **(options if how == "engine" else {}))

    @retry(**QUICK)
    def insert():
        with engine.connect().execution_options(**options) as connection:
            connection.execute(INSERT, {"n": 1})

    with proxy.cut(**COMMITTED) as cut, pytest.raises(DBAPIError) as caught:
        insert()

    assert cut.happened
    assert "may have been committed" in note_of(caught.value)
    assert entries() == 1


@async_drivers
def test_what_commits_by_itself_is_not_repeated_in_asyncio(postgres, entries, driver):
    async def main(proxy):
        engine = create_async_engine(proxy.url, isolation_level="AUTOCOMMIT")

        @retry(**QUICK)
        async def insert():
            async with engine.connect() as connection:
                await connection.execute(INSERT, {"n": 1})

        with pytest.raises(DBAPIError) as caught:
            await insert()
        await engine.dispose()
        return caught.value

    with ChaosProxy(postgres.url_for(driver)) as proxy, proxy.cut(**COMMITTED) as cut:
        error = asyncio.run(main(proxy))

    assert cut.happened
    assert "may have been committed" in note_of(error)
    assert entries() == 1


@sync_drivers
def test_reading_in_autocommit_is_repeated(engine_through, driver, retried):
    engine, proxy = engine_through(driver, isolation_level="AUTOCOMMIT")

    @retry(**QUICK)
    def look():
        with engine.connect() as connection:
            return connection.scalar(text("SELECT 2"))

    with proxy.cut(after="SELECT") as cut:
        assert look() == 2

    assert cut.happened
    assert len(retried) == 1


@pytest.mark.parametrize("statement", ["COMMIT", "/* by hand */ commit", "  end transaction"])
def test_a_commit_that_is_written_as_sql_is_a_commit(engine_through, entries, statement):
    engine, proxy = engine_through("psycopg2", "plain")

    @retry(**QUICK)
    def insert():
        with engine.connect() as connection:
            connection.execute(INSERT, {"n": 1})
            connection.exec_driver_sql(statement)

    with (
        proxy.cut(before="CommandComplete", of="COMMIT") as cut,
        pytest.raises(DBAPIError) as caught,
    ):
        insert()

    assert cut.happened
    assert "may have been committed" in note_of(caught.value)
    assert entries() == 1


def test_a_commit_in_another_thread_is_a_commit(engine_through, entries):
    engine, proxy = engine_through("psycopg2", "plain")

    def insert():
        with engine.begin() as connection:
            connection.execute(INSERT, {"n": 1})

    @retry(**QUICK)
    def insert_elsewhere():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(insert).result()

    with proxy.cut(after="COMMIT") as cut, pytest.raises(DBAPIError):
        insert_elsewhere()

    assert cut.happened
    assert entries() == 1


def test_the_failed_report_of_a_lost_commit_is_not_a_reason_to_repeat_it(engine_through, entries):
    engine, proxy = engine_through("psycopg2", "plain")

    @retry(**QUICK)
    def insert():
        try:
            with engine.begin() as connection:
                connection.execute(INSERT, {"n": 1})
        except DBAPIError:
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO failure VALUES (1)"))

    with (
        proxy.cut(after="COMMIT"),
        proxy.cut(after="INSERT", nth=2) as second,
        pytest.raises(DBAPIError) as caught,
    ):
        insert()

    assert second.happened
    assert "may have been committed" in note_of(caught.value)
    assert entries() == 1


@engines
def test_a_raw_connection_is_not_trusted(engine_through, entries, kind):
    engine, proxy = engine_through("psycopg2", kind)

    @retry(**QUICK)
    def insert():
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("INSERT INTO entry VALUES (1)")
            raw.commit()
        finally:
            raw.close()

    with proxy.cut(after="COMMIT") as cut, pytest.raises(Exception, match="closed") as caught:
        insert()

    assert cut.happened
    assert "may have been committed" in note_of(caught.value)
    assert entries() == 1


def test_an_earlier_error_does_not_vouch_for_a_raw_connection(engine_through, entries):
    engine, proxy = engine_through("psycopg2", "plain")

    @retry(**QUICK)
    def insert():
        with engine.connect() as connection:
            raw = connection.connection
            raw.cursor().execute("INSERT INTO entry VALUES (1)")
            try:
                with connection.begin_nested():
                    connection.execute(text("SELECT 1/0"))
            except DBAPIError:
                raw.commit()

    with proxy.cut(after="COMMIT") as cut, pytest.raises(Exception, match="closed") as caught:
        insert()

    assert cut.happened
    assert "may have been committed" in note_of(caught.value)
    assert entries() == 1


@pytest.fixture(scope="module")
def preparing_postgres(postgres_binaries):
    with MarkedPostgres(settings={"max_prepared_transactions": 5}) as server:
        plain_engine(server.url, "CREATE TABLE entry (n int)")
        yield server


@sync_drivers
def test_a_commit_in_two_phases_is_a_commit(preparing_postgres, driver):
    plain = plain_engine(preparing_postgres.url)
    with ChaosProxy(preparing_postgres.url_for(driver)) as proxy:
        engine = plain_engine(proxy.url)

        @retry(**QUICK)
        def insert():
            with engine.connect() as connection:
                transaction = connection.begin_twophase()
                connection.execute(INSERT, {"n": 1})
                transaction.prepare()
                transaction.commit()

        with (
            proxy.cut(before="CommandComplete", of="COMMIT PREPARED") as cut,
            pytest.raises(DBAPIError) as caught,
        ):
            insert()

    assert cut.happened
    assert "may have been committed" in note_of(caught.value)
    with plain.begin() as connection:
        assert connection.execute(text("DELETE FROM entry")).rowcount == 1


def test_work_on_the_connection_of_a_transaction_is_repeated_by_run_transaction(
    engine_through, entries
):
    engine, proxy = engine_through("psycopg2")
    attempts = []

    @retry(**QUICK)
    def insert(connection, n):
        attempts.append(n)
        connection.execute(INSERT, {"n": n})

    def both(connection):
        insert(connection, 1)
        insert(connection, 2)

    with proxy.cut(before="INSERT", nth=2) as cut:
        sa_railway.run_transaction(engine, both)

    assert cut.happened
    assert attempts == [1, 2, 2, 1, 2]
    assert entries() == 2


def test_a_session_that_lost_its_connection_can_be_used_again(engine_through, entries, retried):
    engine, proxy = engine_through("psycopg2")
    session = sessionmaker(engine)()

    @retry(session=session, **QUICK)
    def insert():
        session.execute(INSERT, {"n": 1})
        session.execute(INSERT, {"n": 2})
        session.commit()

    with proxy.cut(before="INSERT", nth=2) as cut:
        insert()

    assert cut.happened
    assert len(retried) == 1
    assert entries() == 2
    session.close()


def test_a_session_is_clean_when_all_attempts_have_failed(engine_through, entries):
    engine, proxy = engine_through("psycopg2", "plain")
    session = Session(engine)

    @retry(session=session, **QUICK)
    def insert():
        session.execute(INSERT, {"n": 1})
        session.commit()

    with proxy.cut(before="INSERT", times=None), pytest.raises(DBAPIError):
        insert()

    insert()
    assert entries() == 1
    session.close()


@sync_drivers
def test_an_outage_is_ridden_out(own_postgres, driver):
    engine = sa_railway.create_engine(own_postgres.url_for(driver))
    errors, answers = [], []
    stopped, done = threading.Event(), threading.Event()

    @retry
    def look():
        with engine.connect() as connection:
            return connection.scalar(text("SELECT 1"))

    def work():
        while not done.is_set():
            try:
                answers.append((look(), stopped.is_set()))
            except DBAPIError as error:
                errors.append(error)

    look()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    own_postgres.stop("immediate")
    done.wait(1.0)  # the outage
    stopped.set()
    own_postgres.start()
    wait_until(lambda: errors or any(after for _, after in answers))
    done.set()
    for thread in threads:
        thread.join()
    engine.dispose()

    assert errors == []
    assert {answer for answer, _ in answers} == {1}


def test_with_commits_that_are_looked_up_nothing_is_lost(engine_through, entries, retried):
    """The COMMIT that has happened succeeds; the one that has not is known to be safe to repeat."""
    engine, proxy = engine_through("psycopg2", resolve_commit=True)

    @retry(**QUICK)
    def insert():
        with engine.begin() as connection:
            connection.execute(INSERT, {"n": 1})

    with proxy.cut(after="COMMIT") as cut:
        insert()
    assert cut.happened
    assert retried == []
    assert entries() == 1

    with proxy.cut(before="COMMIT") as cut:
        insert()
    assert cut.happened
    assert len(retried) == 1
    assert entries() == 2
