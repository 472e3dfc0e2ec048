"""Errors that the server sends about other connections than the client's own."""

import pytest
import sqlalchemy
from fix_engines import DRIVERS, SYNC
from sqlalchemy import text
from within import driver_of, using

import sa_railway
from sa_railway import retry, run_transaction

SPOKEN_OF = {
    # the code, and what it says: of a dblink, of a worker, of a backend behind a foreign table
    "08001": "could not establish connection",
    "08003": 'connection "other" not available',
    "08006": "server closed the connection unexpectedly",
    "57P01": "terminating connection due to administrator command",
}


def say(code):
    message = SPOKEN_OF[code].replace('"', "")
    return text(f"DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{code}'; END $$")


@pytest.mark.parametrize(("code", "is_ours"), [("08003", True), ("08003", False), ("57P01", True)])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_savepoint_catches_it(postgres, driver, code, is_ours):
    def check(connection):
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught, connection.begin_nested():
            connection.execute(say(code))
        assert caught.value.connection_invalidated is False
        assert connection.scalar(text("SELECT pg_backend_pid()")) == pid

    using(postgres, driver, check, is_ours=is_ours)


@pytest.mark.parametrize("driver", SYNC)
def test_the_other_connections_of_the_pool_are_kept(postgres, driver):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    with engine.connect() as one, engine.connect() as other:
        drivers = {driver_of(one), driver_of(other)}

    with pytest.raises(sqlalchemy.exc.DBAPIError), engine.begin() as connection:
        connection.execute(say("08006"))
    with engine.connect() as one, engine.connect() as other:
        assert {driver_of(one), driver_of(other)} == drivers
    engine.dispose()


@pytest.mark.parametrize("code", SPOKEN_OF)
@pytest.mark.parametrize("driver", SYNC)
def test_it_is_raised_at_once(postgres, driver, code):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    calls = []

    def work(connection):
        calls.append(1)
        connection.execute(say(code))

    @retry
    def read():
        with engine.connect() as connection:
            work(connection)

    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        run_transaction(engine, work)
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        read()
    assert len(calls) == 2
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_text_that_sqlalchemy_takes_for_a_loss_is_none_over_a_connection_that_works(
    postgres, driver
):
    def check(connection):
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught, connection.begin_nested():
            connection.execute(
                text("DO $$ BEGIN RAISE EXCEPTION 'could not receive data from server'; END $$")
            )
        assert caught.value.connection_invalidated is False
        assert connection.scalar(text("SELECT 1")) == 1

    using(postgres, driver, check)


def test_the_users_table_still_overrules(postgres):
    engine = sa_railway.create_engine(postgres.url, fault_kinds={"08006": "disconnect"})

    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        connection.execute(say("08006"))
    assert caught.value.connection_invalidated is True
    engine.dispose()
