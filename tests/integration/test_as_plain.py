"""What works with plain SQLAlchemy works the same with each behaviour that can be asked for."""

from __future__ import annotations

import _thread
import asyncio
import errno
import functools
import gc
import inspect
import os
import threading
import time
from typing import Any
from unittest import mock

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
import wrapt
from fix_engines import DRIVERS, SYNC
from psycopg2.extras import RealDictCursor
from sqlalchemy import event, text
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncAdapt_asyncpg_connection,
    AsyncAdapt_asyncpg_cursor,
)
from sqlalchemy.pool import StaticPool
from within import done, driver_of, using

import sa_railway
from sa_railway.commit.marker_schema import create_sql, drop_sql
from sa_railway.commit.tracking import unwrapped
from sa_railway.commit.work import work_on
from sa_railway.exc import ConfigurationError

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "resolve_commit": {"resolve_commit": True},
    "commit_marker": {"resolve_commit": True, "commit_marker": True},
    "metrics": {"metrics": True},
    "leak_after": {"leak_after": 30.0},
}


@pytest.fixture(scope="module", autouse=True)
def _schema(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as connection:
        for statement in [*drop_sql(), *create_sql()]:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("DROP TABLE IF EXISTS plain; CREATE TABLE plain (n int)")
    yield
    with engine.begin() as connection:
        for statement in drop_sql():
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(params=OPTIONS)
def same(request, caplog):
    """Assert that a function does the same with either package, and that nothing is logged."""

    def same(run, *, expected=None, asynchronous=False):
        plain = sqlalchemy.ext.asyncio if asynchronous else sqlalchemy
        name = "create_async_engine" if asynchronous else "create_engine"
        options = OPTIONS[request.param]

        def ours(*args, **kwargs):
            return getattr(sa_railway, name)(*args, **{**options, **kwargs})

        found = run(getattr(plain, name)), run(ours)
        assert found[0] == found[1]
        assert expected is None or found[0] == expected
        assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []

    return same


def one(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 1"))


# SQLAlchemy itself leaves a detached connection of psycopg's for asyncio to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_detached_connection_commits(postgres, driver, option):
    def check(connection):
        connection.detach()
        connection.exec_driver_sql("DELETE FROM plain")
        connection.exec_driver_sql("INSERT INTO plain VALUES (1)")
        connection.commit()
        return connection.scalar(text("SELECT count(*) FROM plain"))

    options = {"resolve_commit": False, **OPTIONS[option]}
    assert using(postgres, driver, check, **options) == 1
    gc.collect()


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_that_several_share_keeps_its_transaction(postgres, driver, same):
    def run(create_engine):
        engine = create_engine(postgres.url_for(driver), poolclass=StaticPool)
        with engine.connect() as outer:
            outer.execute(text("CREATE TEMPORARY TABLE shared (n int)"))
            with engine.connect() as inner:
                found = inner.scalar(text("SELECT count(*) FROM shared"))
        engine.dispose()
        return found

    same(run, expected=0)


@pytest.mark.parametrize("driver", SYNC)
def test_a_creator_may_hand_out_one_connection_to_all(postgres, driver, same):
    def run(create_engine):
        url = postgres.url_for(driver)
        module = {"psycopg2": psycopg2, "psycopg": psycopg}[driver]
        place = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database}
        raw = module.connect(**place)
        engine = create_engine(url, creator=lambda: raw)
        with engine.connect() as outer:
            outer.execute(text("CREATE TEMPORARY TABLE shared (n int)"))
            found = []
            for _ in range(2):
                with engine.connect() as inner:
                    found.append(inner.scalar(text("SELECT count(*) FROM shared")))
                outer.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS shared (n int)"))
        engine.dispose()
        raw.close()
        return found

    same(run, expected=[0, 0])


@pytest.mark.parametrize("driver", SYNC)
def test_a_transaction_that_a_pool_keeps_open_goes_on(postgres, driver, same):
    def run(create_engine):
        ours = {} if create_engine is sqlalchemy.create_engine else {"trust_idle": 0.0}
        engine = create_engine(
            postgres.url_for(driver), pool_reset_on_return=None, pool_size=1, **ours
        )
        first = engine.raw_connection()
        first.cursor().execute("CREATE TEMPORARY TABLE kept (n int)")
        first.close()
        second = engine.raw_connection()
        cursor = second.cursor()
        cursor.execute("SELECT count(*) FROM kept")
        found = cursor.fetchone()
        second.rollback()
        second.close()
        engine.dispose()
        return found

    same(run, expected=(0,))


@pytest.mark.parametrize("driver", SYNC)
def test_a_connect_that_is_replaced_may_return_what_it_has_at_hand(postgres, driver, same):
    module = {"psycopg2": psycopg2, "psycopg": psycopg}[driver]

    def run(create_engine):
        url = postgres.url_for(driver)
        raw = module.connect(host=url.host, port=url.port, user=url.username, dbname=url.database)
        with mock.patch.object(module, "connect", return_value=raw):
            engine = create_engine(url)
            found = one(engine)
            engine.dispose()
        return found

    same(run, expected=1)


def test_a_connect_of_asyncpg_that_is_replaced_may_return_what_it_has_at_hand(postgres, same):
    def run(create_engine):
        url = postgres.url_for("asyncpg")

        async def main():
            raw = await asyncpg.connect(
                host=url.host, port=url.port, user=url.username, database=url.database
            )
            with mock.patch.object(asyncpg, "connect", mock.AsyncMock(return_value=raw)):
                engine = create_engine(url)
                async with engine.connect() as connection:
                    found = await connection.scalar(text("SELECT 1"))
                await engine.dispose()
            return found

        return asyncio.run(main())

    same(run, expected=1, asynchronous=True)


def test_a_pool_of_asyncpg_may_be_the_creator(postgres, same):
    def run(create_engine):
        url = postgres.url_for("asyncpg")

        async def main():
            pool = await asyncpg.create_pool(
                host=url.host,
                port=url.port,
                user=url.username,
                database=url.database,
                min_size=1,
            )
            engine = create_engine(url, async_creator=pool.acquire)
            async with engine.connect() as connection:
                found = await connection.scalar(text("SELECT 1"))
            await engine.dispose()
            pool.terminate()
            return found

        return asyncio.run(main())

    same(run, expected=1, asynchronous=True)


class OldIdiom(psycopg2.extensions.cursor):
    """Works as long as no class derives from it."""

    def execute(self, query, parameters=None):
        return super(self.__class__, self).execute(query, parameters)


class OldIdiomConnection(psycopg2.extensions.connection):
    def cursor(self, *args, **kwargs):
        return super(self.__class__, self).cursor(*args, **kwargs)


class Strict(psycopg2.extensions.connection):
    """Refuses attributes that its class does not have."""

    def __setattr__(self, name, value):
        if not hasattr(type(self), name):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Unhashable(psycopg2.extensions.connection):
    def __eq__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]


class Wrapping:
    """A cursor that shows nothing of its connection."""

    def __init__(self, connection, row_factory=None):
        arguments = {"row_factory": row_factory} if row_factory else {}
        self._cursor = psycopg.Cursor(connection, **arguments)

    def execute(self, *args, **kwargs):
        self._cursor.execute(*args, **kwargs)
        return self

    def __getattr__(self, name):
        if name == "connection":
            raise AttributeError(name)
        return getattr(self._cursor, name)


@pytest.mark.parametrize(
    ("driver", "connect_args"),
    [
        ("psycopg2", {"cursor_factory": OldIdiom}),
        ("psycopg2", {"connection_factory": OldIdiomConnection}),
        ("psycopg2", {"connection_factory": Strict}),
        ("psycopg2", {"connection_factory": Unhashable}),
        ("psycopg", {"cursor_factory": Wrapping}),
        ("psycopg2", [("connect_timeout", 3)]),
    ],
)
def test_the_arguments_of_an_application_work(postgres, driver, connect_args, same):
    def run(create_engine):
        engine = create_engine(postgres.url_for(driver), connect_args=connect_args)
        found = [one(engine), one(engine)]
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM plain")
            connection.exec_driver_sql("INSERT INTO plain VALUES (2)")
        with engine.connect() as first, engine.connect() as second:
            found += [each.scalar(text("SELECT n FROM plain")) for each in (first, second)]
        engine.dispose()
        return found

    if isinstance(connect_args, list):
        with_plugin = functools.partial(sqlalchemy.create_engine, plugins=["railway"])
        assert run(sqlalchemy.create_engine) == run(with_plugin)
        return
    same(run, expected=[1, 1, 2, 2])


class Alike(type):
    """Makes classes that are equal by their names."""

    def __eq__(cls, other):
        return type(other) is Alike and cls.__name__ == other.__name__

    def __hash__(cls):
        return hash(cls.__name__)


def test_classes_that_are_equal_are_not_mistaken_for_one_another(postgres, same):
    made = [Alike("Cursor", (psycopg2.extensions.cursor,), {"tag": tag}) for tag in "ab"]

    def run(create_engine):
        engine = create_engine(postgres.url)
        with engine.connect() as connection:
            raw = driver_of(connection)
            tags = [raw.cursor(cursor_factory=each).tag for each in made]
        engine.dispose()
        return tags

    same(run, expected=["a", "b"])


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async"])
def test_a_transaction_of_psycopg_looks_as_it_is(postgres, driver):
    def check(connection):
        transaction = driver_of(connection).transaction
        return str(inspect.signature(transaction)), transaction.__doc__

    ours = using(postgres, driver, check)
    assert ours == using(postgres, driver, check, is_ours=False)
    assert ours[1]


def test_a_thread_may_do_nothing_but_check_out(postgres, same):
    def run(create_engine):
        engine = create_engine(postgres.url)
        found = []
        done_with = threading.Event()

        def hear(*_):
            found.append("checkout")

        event.listen(engine, "checkout", hear)
        event.listen(engine, "checkin", lambda *_: done_with.set())
        _thread.start_new_thread(engine.pool.connect, ())
        assert done_with.wait(30)
        engine.dispose()
        return found

    same(run, expected=["checkout"])


PATCHED = [
    ("psycopg", psycopg.Connection, "commit"),
    ("psycopg", psycopg.Cursor, "execute"),
    ("psycopg_async", psycopg.AsyncConnection, "commit"),
    ("psycopg_async", psycopg.AsyncCursor, "execute"),
    ("asyncpg", asyncpg.Connection, "prepare"),
    ("asyncpg", AsyncAdapt_asyncpg_connection, "commit"),
    ("asyncpg", AsyncAdapt_asyncpg_cursor, "execute"),
    ("psycopg2", RealDictCursor, "execute"),
]


@pytest.mark.parametrize("is_used_before", [False, True])
@pytest.mark.parametrize(("driver", "of", "name"), PATCHED)
def test_a_method_that_a_test_replaces_is_replaced_for_as_long(
    postgres, driver, of, name, is_used_before
):
    def run(*, is_ours):
        def use():
            using(postgres, driver, check, is_ours=is_ours)

        if is_used_before:
            use()
        with mock.patch.object(of, name, autospec=True, side_effect=getattr(of, name)) as spy:
            use()
        during, after = spy.called, spy.call_count
        use()
        return during, spy.call_count - after

    def check(connection):
        connection.exec_driver_sql("SELECT 1")
        if name == "prepare":  # SQLAlchemy's adapter calls the private one
            done(driver_of(connection).prepare("SELECT 1"))
        if of is RealDictCursor:
            driver_of(connection).cursor(cursor_factory=of).execute("SELECT 1")
        connection.commit()

    assert run(is_ours=True) == run(is_ours=False) == (True, 0)


class Named(wrapt.ObjectProxy):
    """As monitoring agents wrap connections whose calls they count."""

    def cursor(self, *args, **kwargs):
        return self.__wrapped__.cursor(*args, **kwargs)

    def commit(self):
        return self.__wrapped__.commit()

    def transaction(self, *args, **kwargs):
        return self.__wrapped__.transaction(*args, **kwargs)


@pytest.fixture
def wrap(monkeypatch):
    """A function that lets ``connect()`` of a driver return proxies of a class."""

    def wrap(driver, wrapper):
        module: Any = {"psycopg2": psycopg2, "psycopg": psycopg}[driver]
        connect, register = module.connect, psycopg2.extensions.register_type
        monkeypatch.setattr(module, "connect", lambda *a, **named: wrapper(connect(*a, **named)))
        # which takes no proxy, so the agents unwrap it
        for place in ("psycopg2.extensions.register_type", "psycopg2._json.register_type"):
            monkeypatch.setattr(place, lambda kind, scope=None: register(kind, unwrapped(scope)))

    return wrap


@pytest.mark.parametrize("wrapper", [wrapt.ObjectProxy, Named])
@pytest.mark.parametrize("driver", SYNC)
def test_connections_may_be_wrapped(postgres, driver, wrapper, same, wrap):
    wrap(driver, wrapper)

    def run(create_engine):
        engine = create_engine(postgres.url_for(driver))
        found = []
        for _ in range(2):
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM plain"))
                connection.execute(text("INSERT INTO plain VALUES (1)"))
            with engine.connect() as connection:
                found.append(connection.scalar(text("SELECT count(*) FROM plain")))
        engine.dispose()
        return found

    same(run, expected=[1, 1])


@pytest.mark.parametrize("wrapper", [wrapt.ObjectProxy, Named])
@pytest.mark.parametrize("driver", SYNC)
def test_what_runs_on_a_wrapped_connection_is_not_thought_to_be_seen(
    postgres, driver, wrapper, wrap
):
    wrap(driver, wrapper)
    engine = sa_railway.create_engine(postgres.url_for(driver))

    def ends_by_itself(connection):
        connection.execute(text("INSERT INTO plain VALUES (1)"))
        connection.execute(text("COMMIT"))

    with pytest.raises(ConfigurationError, match="callback executes COMMIT by itself"):
        sa_railway.run_transaction(engine, ends_by_itself, writes=False)
    with engine.connect() as connection:
        assert not work_on(connection.connection.driver_connection).is_seen
    engine.dispose()


def later(monkeypatch, seconds=300.0):
    for name in ("time", "monotonic"):
        clock = getattr(time, name)
        monkeypatch.setattr(time, name, lambda clock=clock: clock() + seconds)


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_that_several_share_is_not_recycled(postgres, driver, same):
    def run(create_engine):
        engine = create_engine(postgres.url_for(driver), poolclass=StaticPool)
        with engine.connect() as outer, pytest.MonkeyPatch.context() as patch:
            outer.execute(text("CREATE TEMPORARY TABLE shared (n int)"))
            later(patch)
            with engine.connect() as inner:
                found = inner.scalar(text("SELECT count(*) FROM shared"))
            outer.execute(text("SELECT 1"))
        engine.dispose()
        return found

    same(run, expected=0)


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_of_a_creator_is_not_recycled(postgres, driver, same):
    def run(create_engine):
        raw = raw_connection(postgres, driver)
        engine = create_engine(postgres.url_for(driver), creator=lambda: raw)
        found = [one(engine)]
        with pytest.MonkeyPatch.context() as patch:
            later(patch)
            found += [one(engine), one(engine)]
        engine.dispose()
        raw.close()
        return found

    same(run, expected=[1, 1, 1])


def raw_connection(postgres, driver):
    url = postgres.url_for(driver)
    module: Any = {"psycopg2": psycopg2, "psycopg": psycopg}[driver]
    return module.connect(host=url.host, port=url.port, user=url.username, dbname=url.database)


@pytest.mark.parametrize("kind", ["StaticPool", "creator"])
@pytest.mark.parametrize("driver", SYNC)
def test_threads_may_share_one_connection(postgres, driver, kind, same):
    def run(create_engine):
        raw = raw_connection(postgres, driver)
        options = {"creator": lambda: raw} if kind == "creator" else {"poolclass": StaticPool}
        engine = create_engine(postgres.url_for(driver), **options)
        errors = []

        def work():
            for _ in range(200):
                try:
                    one(engine)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
                    errors.append(repr(error))

        one(engine)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        engine.dispose()
        raw.close()
        return errors

    same(run, expected=[])


@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_is_kept_where_no_descriptor_is_left(postgres, driver, same, monkeypatch):
    def run(create_engine):
        engine = create_engine(postgres.url_for(driver))
        with engine.connect() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with pytest.MonkeyPatch.context() as patch:
            later(patch, 2.0)
            with engine.connect() as connection:
                is_kept = connection.scalar(text("SELECT pg_backend_pid()")) == pid
        engine.dispose()
        return is_kept

    def dup(_descriptor):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", dup)
    same(run, expected=True)
