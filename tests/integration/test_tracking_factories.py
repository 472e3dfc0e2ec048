"""What an application asks of the driver's connection is as it is without us."""

import asyncio
import copy
import gc
import inspect
import logging
import pickle
import weakref

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from fix_engines import DRIVERS
from psycopg.types import TypeInfo
from psycopg2 import extras
from sqlalchemy import text
from sqlalchemy.util import await_only
from within import done, driver_of, using

import sa_railway
from sa_railway.commit.work import work_on
from sa_railway.engine.driver import is_idle


class Logging(extras.LoggingConnection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.initialize(logging.getLogger("factory"))


class Working(psycopg2.extensions.connection):
    """Works on a cursor before it is given away."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with self, self.cursor() as cursor:
            cursor.execute("SELECT 1")


class Choosing(psycopg2.extensions.connection):
    """Asks psycopg2's own class for a cursor of another one."""

    def cursor(self, *args, **kwargs):
        kwargs["cursor_factory"] = extras.NamedTupleCursor
        return psycopg2.extensions.connection.cursor(self, *args, **kwargs)


class Bypassing(psycopg2.extensions.connection):
    def cursor(self, *args, **kwargs):
        return psycopg2.extensions.connection.cursor(self, *args, **kwargs)


class Final:
    """Lets no class derive from those that derive from it."""

    def __init_subclass__(cls, **kwargs):
        if any(Final in base.__mro__[1:] for base in cls.__bases__):
            raise RuntimeError(f"{cls.__name__} is final")


class FinalConnection(Final, psycopg2.extensions.connection):
    pass


class FinalCursor(Final, psycopg2.extensions.cursor):
    pass


class FinalPsycopgCursor(Final, psycopg.Cursor):
    pass


class FinalAsyncpg(Final, asyncpg.Connection):
    pass


class Mine(asyncpg.Connection):
    async def fetchval(self, *args, **kwargs):
        return "mine", await super().fetchval(*args, **kwargs)


@pytest.mark.parametrize(
    ("driver", "arguments", "is_seen"),
    [
        ("psycopg2", {"connection_factory": Logging}, True),
        ("psycopg2", {"connection_factory": extras.DictConnection}, True),
        ("psycopg2", {"connection_factory": Working}, True),
        ("psycopg2", {"connection_factory": Choosing}, True),
        ("psycopg2", {"connection_factory": Bypassing}, False),
        ("psycopg2", {"connection_factory": lambda *args, **kw: Working(*args, **kw)}, False),
        ("psycopg2", {"cursor_factory": extras.DictCursor}, True),
        ("psycopg2", {"cursor_factory": extras.NamedTupleCursor}, True),
        ("psycopg2", {"connection_factory": FinalConnection}, False),
        ("psycopg2", {"cursor_factory": FinalCursor}, False),
        ("psycopg", {"cursor_factory": FinalPsycopgCursor}, False),
        ("psycopg", {"cursor_factory": psycopg.ClientCursor}, True),
        ("psycopg_async", {"cursor_factory": psycopg.AsyncClientCursor}, True),
    ],
)
def test_the_factories_of_an_application_give_what_they_give_without_us(
    postgres, caplog, driver, arguments, is_seen
):
    def check(connection):
        caplog.clear()
        raw = driver_of(connection)
        cursor = raw.cursor()
        done(cursor.execute("SELECT 1 AS one"))
        row = done(cursor.fetchone())
        named = raw.cursor("named") if driver == "psycopg2" else cursor
        work = work_on(raw)
        return work.is_seen, [
            *(type(row).__name__, list(row), getattr(row, "one", None), caplog.messages),
            *(type(raw).__name__, type(raw).__module__, name_of(raw.cursor_factory)),
            *(type(cursor).__qualname__, type(cursor).__module__, type(named).__name__),
            *(
                isinstance(raw, factory)
                for factory in arguments.values()
                if isinstance(factory, type)
            ),
        ]

    caplog.set_level(logging.DEBUG, "factory")
    arguments = {"connect_args": arguments}
    _, without = using(postgres, driver, check, is_ours=False, **arguments)
    assert using(postgres, driver, check, **arguments) == (is_seen, without)


def test_a_class_that_the_application_makes_for_every_connection_is_not_kept(postgres):
    engine = sa_railway.create_engine(postgres.url, poolclass=sqlalchemy.pool.NullPool)
    made = []

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def choose(dialect, record, cargs, cparams):
        factory = type("Made", (psycopg2.extensions.connection,), {})
        made.append(weakref.ref(factory))
        cparams["connection_factory"] = factory

    for _ in range(100):
        engine.connect().close()
    gc.collect()

    assert made[0]() is None


@pytest.mark.parametrize(
    ("chosen", "is_seen", "answer"), [(Mine, True, ("mine", 1)), (FinalAsyncpg, False, 1)]
)
def test_a_connection_class_for_asyncpg_stays_in_use(postgres, chosen, is_seen, answer):
    def check(connection):
        raw = driver_of(connection)
        return (
            *(type(raw).__name__, isinstance(raw, chosen), work_on(raw).is_seen),
            await_only(raw.fetchval("SELECT 1")),
        )

    arguments = {"connection_class": chosen}
    assert using(postgres, "asyncpg", check, connect_args=arguments) == (
        *(chosen.__name__, True, is_seen),
        answer,
    )


def name_of(factory):
    """Return what a class of cursors is called; ours are called as those they derive from."""
    return getattr(factory, "__qualname__", factory)


def is_refused(act, *args):
    with pytest.raises((TypeError, pickle.PicklingError)):
        act(*args)


@pytest.fixture(scope="module", autouse=True)
def _schema(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "DROP TYPE IF EXISTS two_numbers; CREATE TYPE two_numbers AS (a int, b int)"
        )
    engine.dispose()


def use_as_context(driver):
    with driver, driver.cursor() as cursor:
        cursor.execute("SELECT 1")
    return cursor.closed, driver.closed, is_idle(driver)


def register_types(driver):
    extras.register_composite("two_numbers", driver)
    extras.register_default_jsonb(driver, loads=lambda _: "json")
    cursor = driver.cursor()
    cursor.execute("SELECT ROW(1, 2)::two_numbers, '{}'::jsonb")
    return [str(value) for value in cursor.fetchone()]


def hear_with_psycopg2(driver):
    driver.cursor().execute("DO $$BEGIN RAISE NOTICE 'hello'; END$$; LISTEN a; NOTIFY a, 'b'")
    driver.commit()
    return driver.notices, [(notify.channel, notify.payload) for notify in driver.notifies]


def hear_with_psycopg(driver):
    heard = []
    driver.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    driver.add_notify_handler(lambda notify: heard.append(notify.payload))
    driver.execute("DO $$BEGIN RAISE NOTICE 'hello'; END$$")
    driver.execute("LISTEN a")
    driver.execute("NOTIFY a, 'b'")
    driver.commit()
    return heard


def nest_with_psycopg(driver):
    with driver.transaction(), driver.transaction(), driver.cursor() as cursor:
        cursor.execute("CREATE TABLE never (n int)")
        raise psycopg.Rollback
    return TypeInfo.fetch(driver, "two_numbers").name, is_idle(driver)


async def hear_with_asyncpg(driver):
    heard = asyncio.get_running_loop().create_future()
    await driver.add_listener("a", lambda *args: heard.set_result(args[2:]))
    async with driver.transaction():
        await driver.execute("NOTIFY a, 'b'")
    return await asyncio.wait_for(heard, 30), driver.is_in_transaction()


PROBES = [
    ("psycopg2", lambda d: weakref.ref(d)() is d),
    ("psycopg2", lambda d: (is_refused(pickle.dumps, d), is_refused(copy.copy, d.cursor()))),
    ("psycopg2", use_as_context),
    ("psycopg2", register_types),
    ("psycopg2", hear_with_psycopg2),
    ("psycopg2", lambda d: d.cursor().mogrify("SELECT %s", ("a",))),
    (
        "psycopg",
        lambda d: (weakref.ref(d)() is d, name_of(d.cursor_factory), type(d.cursor()).__name__),
    ),
    ("psycopg", lambda d: (is_refused(pickle.dumps, d), is_refused(pickle.dumps, d.cursor()))),
    ("psycopg", hear_with_psycopg),
    ("psycopg", nest_with_psycopg),
    ("psycopg", lambda d: hasattr(d.cursor(), "__dict__")),
    ("asyncpg", lambda d: (weakref.ref(d)() is d, type(d).__name__, type(d).__module__)),
    ("asyncpg", lambda d: is_refused(pickle.dumps, d)),
    ("asyncpg", hear_with_asyncpg),
]


@pytest.mark.parametrize(("driver", "probe"), PROBES, ids=range(len(PROBES)))
def test_the_drivers_connection_does_what_it_does_without_us(postgres, driver, probe):
    def check(connection):
        return done(probe(driver_of(connection)))

    assert using(postgres, driver, check) == using(postgres, driver, check, is_ours=False)


def kinds(of):
    """Return how each public function of the object *of* is to be called."""
    questions = ("iscoroutinefunction", "isasyncgenfunction", "isgeneratorfunction")
    return {
        name: (
            callable(function := getattr(of, name, None)),
            [question for question in questions if getattr(inspect, question)(function)],
        )
        for name in dir(of)
        if not name.startswith(("_", "railway_"))
    }


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_functions_of_a_driver_are_of_the_kind_that_they_are_without_us(postgres, driver):
    def check(connection):
        raw = driver_of(connection)
        adapted = connection.connection.dbapi_connection
        of = [raw, type(raw), adapted, type(adapted)]
        cursors = [adapted.cursor()] if driver == "asyncpg" else [raw.cursor(), adapted.cursor()]
        return [kinds(one) for one in of + cursors]

    assert using(postgres, driver, check) == using(postgres, driver, check, is_ours=False)


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_of_a_connection_of_asyncpg_that_is_closed_the_driver_says_so(postgres, end):
    def check(connection):
        connection.execute(text("SELECT txid_current()"))
        raw = driver_of(connection)
        done(getattr(raw, end)())
        assert not is_idle(raw)
        with pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
            await_only(raw.execute("SELECT 1"))
        connection.invalidate()

    using(postgres, "asyncpg", check)
