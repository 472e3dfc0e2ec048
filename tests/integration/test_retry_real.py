"""retry() with the conflicts of a real server, and with the session of a Flask application."""

import threading
from typing import Any

import flask
import pytest
import sqlalchemy
from fix_engines import SYNC, plain_engine
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, mapped_column
from sqlalchemy.pool import NullPool

import sa_railway
from sa_railway import engine_options, retry
from sa_railway.flask import Railway

QUICK: dict[str, Any] = {"backoff_base": 0.001, "backoff_cap": 0.001}
TERMINATE = text(
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE application_name = :name AND pid <> pg_backend_pid()"
)


@pytest.fixture
def plain(database_url):
    return plain_engine(
        database_url,
        "CREATE TABLE account (id int PRIMARY KEY, n int)",
        "INSERT INTO account VALUES (1, 0), (2, 0)",
    )


def totals(engine):
    with engine.connect() as connection:
        return connection.scalars(text("SELECT n FROM account ORDER BY id")).all()


@pytest.mark.parametrize("driver", SYNC)
def test_a_deadlock_is_run_again(database_url, plain, driver, retried):
    engine = sa_railway.create_engine(database_url.set(drivername=f"postgresql+{driver}"))
    both_locked = threading.Barrier(2)

    def transfer(first, second):
        attempts = 0

        @retry
        def work():
            nonlocal attempts
            attempts += 1
            with engine.begin() as connection:
                add = text("UPDATE account SET n = n + 1 WHERE id = :id")
                connection.execute(add, {"id": first})
                if attempts == 1:
                    both_locked.wait(timeout=30)
                connection.execute(add, {"id": second})

        work()

    threads = [threading.Thread(target=transfer, args=ids) for ids in [(1, 2), (2, 1)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()

    assert [event.error.orig.sqlstate if driver == "psycopg" else event.error.orig.pgcode
            for event in retried] == ["40P01"]  # fmt: skip
    assert totals(plain) == [2, 2]


@pytest.mark.parametrize("driver", SYNC)
def test_a_serialization_failure_at_commit_is_run_again(database_url, plain, driver, retried):
    """It is an answer of the server: the transaction was rolled back."""
    engine = sa_railway.create_engine(
        database_url.set(drivername=f"postgresql+{driver}"), isolation_level="SERIALIZABLE"
    )

    def read_other_and_write(connection, read, written):
        n = connection.scalar(text("SELECT n FROM account WHERE id = :id"), {"id": read})
        connection.execute(
            text("UPDATE account SET n = :n WHERE id = :id"), {"id": written, "n": n + 1}
        )

    @retry(**QUICK)
    def work():
        with engine.begin() as connection:
            read_other_and_write(connection, 1, 2)
            if not retried:
                with engine.begin() as rival:
                    read_other_and_write(rival, 2, 1)

    work()
    engine.dispose()

    assert len(retried) == 1
    assert totals(plain) == [1, 2]


# Flask


class App:
    """A Flask application with one table."""

    def __init__(self, url, **options):
        self.flask = flask.Flask("shop")
        self.flask.config["SQLALCHEMY_DATABASE_URI"] = url
        self.flask.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
        self.db = SQLAlchemy(self.flask)
        db: Any = self.db

        class Account(db.Model):
            id = mapped_column(sqlalchemy.Integer, primary_key=True)
            n = mapped_column(sqlalchemy.Integer)

        self.Account: Any = Account


@pytest.fixture
def app(database_url, plain):
    options = engine_options(database_url, application_name="shop")
    app = App(database_url, **options)
    Railway(app.flask, app.db)
    yield app
    with app.flask.app_context():
        app.db.engine.dispose()


def lose_connection(plain):
    with plain.connect() as connection:
        assert connection.scalars(TERMINATE, {"name": "shop"}).all() == [True]


def test_the_session_of_a_request_is_rolled_back(app, plain, retried):
    """What it has only read, such as the user who is logged in, is not in the way."""
    account = app.Account

    @retry(**QUICK)
    def increment():
        if not retried:
            lose_connection(plain)
        app.db.session.get(account, 2, populate_existing=True).n += 1
        app.db.session.commit()

    with app.flask.test_request_context():
        user = app.db.session.get(account, 1)
        increment()
        assert user.n == 0

    assert len(retried) == 1
    assert totals(plain) == [0, 1]


def test_a_session_that_somebody_has_left_broken_is_rolled_back(app, plain, retried):
    account = app.Account

    @retry(**QUICK)
    def increment():
        app.db.session.get(account, 2, populate_existing=True).n += 1
        app.db.session.commit()

    with app.flask.app_context():
        app.db.session.get(account, 1)
        lose_connection(plain)
        with pytest.raises(OperationalError):
            app.db.session.execute(text("SELECT 1"))
        increment()

    assert [type(event.error).__name__ for event in retried] == ["PendingRollbackError"]
    assert totals(plain) == [0, 1]


def test_a_session_that_is_first_used_within_the_work_is_rolled_back(app, plain, retried):
    account = app.Account

    @retry(**QUICK)
    def increment():
        app.db.session.get(account, 1).n += 1
        app.db.session.flush()
        if not retried:
            lose_connection(plain)
        app.db.session.get(account, 2).n += 1
        app.db.session.commit()

    with app.flask.app_context():
        increment()

    assert len(retried) == 1
    assert totals(plain) == [1, 1]


@pytest.mark.parametrize("flush", [True, False])
def test_what_a_request_has_changed_before_is_not_lost_silently(app, plain, retried, flush):
    account = app.Account

    @retry(**QUICK)
    def increment():
        lose_connection(plain)
        app.db.session.get(account, 2).n += 1
        app.db.session.commit()

    with app.flask.app_context():
        app.db.session.get(account, 1).n += 1
        if flush:
            app.db.session.flush()
        with pytest.raises(OperationalError) as caught:
            increment()

    assert retried == []
    assert caught.value.__notes__[-1].endswith(
        ": the session held earlier work when this began, and a rollback would lose it"
    )
    assert totals(plain) == [0, 0]


def test_without_the_extension_the_session_is_passed_on(database_url, plain, retried):
    app = App(database_url, connect_args={"application_name": "shop"})
    session: Any = app.db.session

    @retry(session=session, **QUICK)
    def increment():
        session.get(app.Account, 1).n += 1
        session.flush()
        if not retried:
            lose_connection(plain)
        session.get(app.Account, 2).n += 1
        session.commit()

    with app.flask.app_context():
        increment()
        app.db.engine.dispose()

    assert len(retried) == 1
    assert totals(plain) == [1, 1]


def test_outside_of_an_application_there_is_no_session(app, plain, retried):
    engine = sqlalchemy.create_engine(
        plain.url, connect_args={"application_name": "shop"}, poolclass=NullPool
    )

    @retry(**QUICK)
    def increment():
        with Session(engine) as session:
            session.execute(text("UPDATE account SET n = n + 1 WHERE id = 1"))
            if not retried:
                lose_connection(plain)
            session.execute(text("UPDATE account SET n = n + 1 WHERE id = 2"))
            session.commit()

    increment()

    assert len(retried) == 1
    assert totals(plain) == [1, 1]


@pytest.mark.parametrize(("kinds", "attempts"), [({}, 1), ({"22012": "lock-timeout"}, 3)])
def test_what_the_user_says_of_an_error_counts(database_url, retried, kinds, attempts):
    engine = sa_railway.create_engine(database_url, fault_kinds=kinds)

    @retry(**QUICK)
    def divide():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError):
        divide()

    assert len(retried) == attempts - 1
    engine.dispose()
