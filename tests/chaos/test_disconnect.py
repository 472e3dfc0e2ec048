"""Errors that mean a lost connection, although SQLAlchemy does not know them."""

from pathlib import Path

import pytest
import sqlalchemy
from marked import MarkedPostgres
from sqlalchemy import text

import sa_railway


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


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_primary_that_became_a_standby_is_left(standby, driver):
    engine = sa_railway.create_engine(standby.url_for(driver))

    assert insert_fails(engine) is True
    engine.dispose()


def test_plain_sqlalchemy_stays_with_the_standby(standby):
    engine = sqlalchemy.create_engine(standby.url)

    assert insert_fails(engine) is False
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
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
