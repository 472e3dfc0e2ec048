"""The COMMIT of run_transaction(): what is flushed within it, what is refused before it."""

import asyncio

import psycopg2
import pytest
from fix_commit import ANSWER_LOST
from fix_engines import SYNC, plain_engine
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker
from within import driver_of

import sa_railway
from sa_railway import run_transaction
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.commit.marker_schema import create_sql
from sa_railway.exc import ConfigurationError
from sa_railway.testing import ChaosProxy

EXECUTES = (
    "callback executes COMMIT by itself; run_transaction() ends the transaction when it returns "
    "or raises"
)


class Model(DeclarativeBase):
    pass


class Entry(Model):
    __tablename__ = "late_entry"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def plain(postgres):
    engine = plain_engine(postgres.url)
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    return engine


def count(plain):
    with plain.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM late_entry"))


@pytest.mark.parametrize("driver", SYNC)
def test_what_is_flushed_by_the_commit_itself_is_written_once(postgres, plain, driver):
    """The session gets its connection within the COMMIT, which is watched all the same."""
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with proxy.cut(**ANSWER_LOST) as cut:
            run_transaction(sessionmaker(engine), lambda session: session.add(Entry()))
        engine.dispose()

    assert cut.happened
    assert count(plain) == 1


def test_what_is_flushed_by_the_commit_itself_is_written_once_in_asyncio(postgres, plain):
    async def work(session):
        session.add(Entry())

    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url)
        with proxy.cut(**ANSWER_LOST) as cut:
            await run_async_transaction(async_sessionmaker(engine), work)
        await engine.dispose()
        return cut.happened

    with ChaosProxy(postgres.url_for("asyncpg")) as proxy:
        assert asyncio.run(main(proxy))
    assert count(plain) == 1


@pytest.mark.parametrize("driver", SYNC)
def test_a_callback_may_do_nothing_on_a_connection_that_has_written(postgres, plain, driver):
    engine = sa_railway.create_engine(postgres.url_for(driver), pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO late_entry DEFAULT VALUES"))

    assert run_transaction(engine, lambda connection: "nothing") == "nothing"
    session = scoped_session(sessionmaker(engine))
    session.connection()
    assert run_transaction(session, lambda session: "nothing") == "nothing"
    session.remove()
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_commit_as_text_is_refused_with_an_isolation_level_too(postgres, plain, driver):
    def work(session):
        session.execute(text("INSERT INTO late_entry DEFAULT VALUES"))
        session.execute(text("COMMIT"))

    engine = sa_railway.create_engine(postgres.url_for(driver))
    with pytest.raises(ConfigurationError) as caught:
        run_transaction(sessionmaker(engine), work, isolation_level="SERIALIZABLE")
    engine.dispose()

    assert str(caught.value) == EXECUTES
    assert count(plain) == 0


def test_asyncpgs_own_connection_is_refused_before_sqlalchemy_has_begun(postgres, plain):
    async def directly(connection):
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute("INSERT INTO late_entry DEFAULT VALUES")

    async def in_a_transaction(connection):
        driver = (await connection.get_raw_connection()).driver_connection
        async with driver.transaction():
            await driver.execute("INSERT INTO late_entry DEFAULT VALUES")

    async def after_sqlalchemy(connection):
        await connection.execute(text("SELECT 1"))
        await in_a_transaction(connection)

    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"))
        messages = []
        for work in (directly, in_a_transaction):
            with pytest.raises(ConfigurationError) as caught:
                await run_async_transaction(engine, work)
            messages.append(str(caught.value))
        await run_async_transaction(engine, after_sqlalchemy)
        await engine.dispose()
        return messages

    assert asyncio.run(main()) == 2 * [
        "callback uses the driver's own connection before SQLAlchemy has begun the transaction on "
        "it: the server would commit at once what it executes, and a replay would execute it "
        "twice; execute something through SQLAlchemy first"
    ]
    assert count(plain) == 1


def test_a_transaction_that_has_failed_before_raises_a_dbapi_error_on_asyncpg(postgres, plain):
    """Its ticket is read on asyncpg's own connection, past what SQLAlchemy would wrap."""

    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"), resolve_commit=True)
        async with engine.connect() as connection:
            await connection.execute(text("INSERT INTO late_entry DEFAULT VALUES"))
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT * FROM no_such_table"))
            with pytest.raises(DBAPIError) as caught:
                await connection.commit()
            await connection.rollback()
        await engine.dispose()
        return sa_railway.classify(caught.value).sqlstate

    assert asyncio.run(main()) == "25P02"
    assert count(plain) == 0


@pytest.mark.parametrize("has_markers", [False, True])
def test_a_commit_within_a_pipeline_of_psycopg(postgres, plain, has_markers):
    with plain.begin() as connection:
        for statement in create_sql():
            connection.execute(text(statement))
    engine = sa_railway.create_engine(
        postgres.url_for("psycopg"), resolve_commit=True, commit_marker=has_markers
    )
    with engine.connect() as connection, driver_of(connection).pipeline():
        connection.execute(text("INSERT INTO late_entry DEFAULT VALUES"))
        connection.commit()
    engine.dispose()

    assert count(plain) == 1


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_with_an_isolation_level_does_not_go_on_without_it(postgres, plain, driver):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            connection = connection.execution_options(isolation_level="SERIALIZABLE")
            connection.execute(text("INSERT INTO late_entry DEFAULT VALUES"))
            with proxy.cut(**ANSWER_LOST):
                connection.commit()
            with pytest.raises(DBAPIError) as caught:
                connection.execute(text("SHOW transaction_isolation"))
            assert caught.value.connection_invalidated
        engine.dispose()

    assert count(plain) == 1


def test_a_transaction_of_which_nothing_was_seen_may_have_written(postgres, plain):
    def work(connection):
        import psycopg

        cursor = psycopg.ClientCursor(driver_of(connection))
        cursor.execute("INSERT INTO late_entry DEFAULT VALUES")

    with ChaosProxy(postgres.url_for("psycopg")) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with proxy.cut(before="COMMIT") as cut:
            run_transaction(engine, work)
        engine.dispose()

    assert cut.happened
    assert count(plain) == 1


@pytest.mark.parametrize("end", ["COMMIT", "INSERT INTO late_entry DEFAULT VALUES; COMMIT"])
def test_a_commit_as_text_is_refused_on_a_connection_that_is_not_seen(postgres, plain, end):
    url = postgres.url
    engine = sa_railway.create_engine(
        url, creator=lambda: psycopg2.connect(host=url.host, port=url.port, user="postgres")
    )

    def work(connection):
        connection.execute(text("INSERT INTO late_entry DEFAULT VALUES"))
        connection.execute(text(end))

    with pytest.raises(ConfigurationError) as caught:
        run_transaction(engine, work)
    engine.dispose()

    assert str(caught.value) == EXECUTES
    assert count(plain) == 0


def test_a_transaction_of_psycopgs_own_is_refused_before_sqlalchemy_has_begun(postgres, plain):
    def work(connection):
        driver = driver_of(connection)
        with driver.transaction():
            driver.execute("INSERT INTO late_entry DEFAULT VALUES")

    def after_sqlalchemy(connection):
        connection.execute(text("SELECT 1"))
        work(connection)

    engine = sa_railway.create_engine(postgres.url_for("psycopg"))
    with pytest.raises(ConfigurationError, match="uses the driver's own connection before"):
        run_transaction(engine, work)
    assert count(plain) == 0
    run_transaction(engine, after_sqlalchemy)
    assert count(plain) == 1
    engine.dispose()


def test_an_error_within_a_pipeline_of_psycopg_is_raised_as_it_is(postgres, plain):
    engine = sa_railway.create_engine(postgres.url_for("psycopg"), resolve_commit=True)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO late_entry VALUES (1)"))
        connection.commit()
        connection.execute(text("SELECT 1"))
        driver = driver_of(connection)

        def fail_late():
            with driver.pipeline():
                driver.cursor().execute("INSERT INTO late_entry VALUES (1)")
                connection.commit()

        with pytest.raises(IntegrityError):
            fail_late()
    engine.dispose()
