"""What run_transaction() refuses before it touches a database."""

import asyncio
import pickle

import pytest
import sqlalchemy
from sqlalchemy.orm import Session, sessionmaker

from sa_railway import run_transaction
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError


@pytest.fixture
def engine():
    """An engine whose first connect would fail the test."""

    def connect():
        raise AssertionError("connected")

    return sqlalchemy.create_engine("sqlite://", creator=connect)


def work(connection):
    raise AssertionError("called")


async def async_work(connection):
    raise AssertionError("called")


def generate(connection):
    yield


async def generate_async(connection):
    yield


TRANSACTORS = (
    "allowed: an Engine, a sessionmaker, a scoped_session such as db.session, or a Session; for "
    "asyncio, their asyncio twins with sa_railway.asyncio.run_transaction()"
)
GENERATOR = (
    "callback is a generator function, whose body would run after the commit; allowed: a function "
    "that does its work and returns"
)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), None, True, "30"])
def test_a_timeout_that_is_no_time(engine, timeout):
    with pytest.raises(ConfigurationError) as caught:
        run_transaction(engine, work, timeout=timeout)
    assert str(caught.value) == f"timeout is {timeout!r}; allowed: more than 0 seconds"


@pytest.mark.parametrize("transactor", ["postgresql://h/d", None, object()])
def test_a_transactor_of_another_type(transactor):
    with pytest.raises(ConfigurationError) as caught:
        run_transaction(transactor, work)
    assert str(caught.value) == (
        f"transactor is of type {type(transactor).__name__}; {TRANSACTORS}"
    )


@pytest.mark.parametrize("make", [lambda c: sessionmaker(c), lambda c: Session(c)])
def test_a_transactor_that_cannot_be_connected_again(make):
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        with pytest.raises(ConfigurationError) as caught:
            run_transaction(make(connection), work)
        connection.engine.dispose()
    assert str(caught.value) == (
        "transactor is bound to a Connection, which cannot be replaced when it is lost; "
        "allowed: one that is bound to an Engine"
    )


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("work", "callback is of type str; allowed: a function of one argument"),
        (generate, GENERATOR),
        (generate_async, GENERATOR),
        (
            async_work,
            "callback is a coroutine function; allowed: a function, or "
            "sa_railway.asyncio.run_transaction()",
        ),
    ],
)
def test_a_callback_that_would_not_be_run(engine, callback, message):
    with pytest.raises(ConfigurationError) as caught:
        run_transaction(engine, callback)
    assert str(caught.value) == message


def test_autocommit_is_no_transaction(engine):
    with pytest.raises(ConfigurationError) as caught:
        run_transaction(engine, work, isolation_level="autocommit")
    assert str(caught.value) == (
        "isolation_level is 'AUTOCOMMIT'; allowed: a level that has transactions"
    )


def test_the_asyncio_twin_refuses_as_much(engine):
    with pytest.raises(ConfigurationError, match="transactor is of type Engine; allowed: an Async"):
        asyncio.run(run_async_transaction(engine, async_work))
    with pytest.raises(ConfigurationError, match="timeout is 0"):
        asyncio.run(run_async_transaction(engine, async_work, timeout=0))


def test_an_unknown_outcome_survives_a_task_queue():
    error = CommitOutcomeUnknownError(transaction_id=7, orig=OSError("lost"))
    copy = pickle.loads(pickle.dumps(error))

    assert (str(copy), copy.transaction_id, str(copy.orig)) == (str(error), 7, "lost")
    assert not isinstance(error, sqlalchemy.exc.DBAPIError)
