"""What is seen of the work on a connection, by whichever way it is done."""

import io
from operator import methodcaller
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from fix_engines import DRIVERS
from marked import conninfo
from psycopg.rows import dict_row
from psycopg2 import extras
from psycopg2 import sql as psycopg2_sql
from psycopg2.extensions import AsIs
from psycopg2.extras import RealDictCursor
from sqlalchemy import column, event, insert, table, text
from within import done, driver_of, using

import sa_railway
from sa_railway.commit.sql import Writes, effects_of
from sa_railway.commit.work import work_on
from sa_railway.engine.driver import is_idle

INSERT = "INSERT INTO seen VALUES (1)"
RETURNING = INSERT + " RETURNING n"
PYFORMAT = "INSERT INTO seen VALUES (%s)"
VALUES = "INSERT INTO seen VALUES %s"
NO, MAYBE, YES = Writes


@pytest.fixture(scope="module", autouse=True)
def _schema(postgres):
    """A table, and a function that writes into it."""
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as connection:
        for statement in (
            "DROP TABLE IF EXISTS seen",
            "CREATE TABLE seen (n int)",
            "CREATE OR REPLACE FUNCTION f(int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS"
            " $$BEGIN INSERT INTO seen VALUES ($1); RETURN $1; END$$",
            "CREATE OR REPLACE FUNCTION move(int) RETURNS int LANGUAGE sql AS 'SELECT f($1)'",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_sqlalchemy_executes_is_seen_and_a_rollback_begins_anew(postgres, driver):
    def check(connection):
        work = work_on(driver_of(connection))
        found = []
        for statement in ["SELECT 1", INSERT, "SELECT 1", None, "SELECT 1"]:
            if statement is None:
                connection.rollback()
            else:
                connection.execute(text(statement))
                found.append(work.writes)
        return found, work.is_seen, work.has_session_state

    assert using(postgres, driver, check) == ([NO, YES, YES, NO], True, False)


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_batches_of_an_insert_of_many_rows_write_and_keep_the_session(postgres, driver):
    seen = table("seen", column("n", sqlalchemy.Integer))

    def check(connection):
        executed = []
        event.listen(
            connection,
            "before_cursor_execute",
            lambda *args: executed.append(effects_of(args[2])[:2]),
        )
        connection.execute(insert(seen).returning(seen.c.n), [{"n": n} for n in range(1_500)])
        return executed

    assert using(postgres, driver, check) == [(YES, True), (YES, True)]


def rows(*lines):
    return io.StringIO("".join(f"{line}\n" for line in lines))


def copy_with_psycopg(driver):
    with driver.cursor().copy("COPY seen FROM STDIN") as copy:
        copy.write_row((1,))


async def copy_with_psycopg_async(driver):
    async with driver.cursor().copy("COPY seen FROM STDIN") as copy:
        await copy.write_row((1,))


async def stream_with_psycopg_async(driver):
    return [row async for row in driver.cursor().stream(RETURNING)]


def pipe_with_psycopg(driver):
    with driver.pipeline():
        assert driver.execute(RETURNING).fetchone() == (1,)
        driver.execute("SELECT 1")


def use_a_server_cursor_of_psycopg(driver):
    with driver.cursor("a") as cursor:
        cursor.execute("SELECT f()")


async def use_a_server_cursor_of_psycopg_async(driver):
    async with driver.cursor("a") as cursor:
        await cursor.execute("SELECT f()")


def hold_a_cursor(driver):
    with driver.cursor("a", withhold=True) as cursor:
        cursor.execute("SELECT 1")


def set_factory(factory, *arguments):
    def act(driver):
        driver.cursor_factory = factory
        return driver.cursor().execute(*arguments)

    return act


async def discard(_data):
    pass


# What an application does on the driver's connection, and what is known of its transaction then.
ACTIONS = {
    "psycopg2": {
        "a query": (NO, lambda d: d.cursor().execute("SELECT 1")),
        "constants": (NO, lambda d: d.cursor().execute("SELECT %s, %s", ("a", [1, None]))),
        "SQL as a value": (MAYBE, lambda d: d.cursor().execute("SELECT %s", (AsIs("f()"),))),
        "SQL by a name": (MAYBE, lambda d: d.cursor().execute("SELECT %(n)s", {"n": AsIs("f()")})),
        "SQL for each": (MAYBE, lambda d: d.cursor().executemany("SELECT %s", [(AsIs("f()"),)])),
        "a tuple": (MAYBE, lambda d: d.cursor().execute("SELECT f %s", ((1,),))),
        "a change": (YES, lambda d: d.cursor().execute(INSERT)),
        "by keyword": (YES, lambda d: d.cursor().execute(query=INSERT)),
        "bytes": (MAYBE, lambda d: d.cursor().execute(b"SELECT 1")),
        "composed": (MAYBE, lambda d: d.cursor().execute(psycopg2_sql.SQL("SELECT 1"))),
        "executemany": (YES, lambda d: d.cursor().executemany(PYFORMAT, [(1,), (2,)])),
        "copy_expert": (YES, lambda d: d.cursor().copy_expert("COPY seen FROM STDIN", rows(1))),
        "copy_from": (MAYBE, lambda d: d.cursor().copy_from(rows(1), "seen")),
        "copy_to": (MAYBE, lambda d: d.cursor().copy_to(rows(), "seen")),
        "callproc": (MAYBE, lambda d: d.cursor().callproc("move", [1])),
        "dict cursor": (YES, lambda d: d.cursor(cursor_factory=RealDictCursor).execute(INSERT)),
        "dict, by place": (YES, lambda d: d.cursor(None, RealDictCursor).execute(INSERT)),
        "factory set later": (YES, set_factory(RealDictCursor, INSERT)),
        "named cursor": (MAYBE, lambda d: d.cursor("a").execute("SELECT f()")),
        "large object": (MAYBE, lambda d: d.lobject(0, "w").write("a")),
        "execute_values": (MAYBE, lambda d: extras.execute_values(d.cursor(), VALUES, [(1,)])),
        "execute_batch": (MAYBE, lambda d: extras.execute_batch(d.cursor(), PYFORMAT, [(1,)])),
    },
    "psycopg": {
        "a query": (NO, lambda d: d.cursor().execute("SELECT %s::text", ("a",))),
        "a change": (YES, lambda d: d.cursor().execute(INSERT)),
        "of the connection": (YES, lambda d: d.execute(INSERT)),
        "bytes": (MAYBE, lambda d: d.execute(b"SELECT 1")),
        "composed": (MAYBE, lambda d: d.execute(psycopg.sql.SQL("SELECT 1"))),
        "executemany": (YES, lambda d: d.cursor().executemany(PYFORMAT, [(1,), (2,)])),
        "copy": (YES, copy_with_psycopg),
        "stream": (YES, lambda d: list(d.cursor().stream(RETURNING))),
        "pipeline": (YES, pipe_with_psycopg),
        "dict rows": (YES, lambda d: d.cursor(row_factory=dict_row).execute(INSERT)),
        "server cursor": (MAYBE, use_a_server_cursor_of_psycopg),
        "factory set later": (YES, set_factory(psycopg.ClientCursor, INSERT)),
        "client-side query": (NO, set_factory(psycopg.ClientCursor, "SELECT %s", (1,))),
        "client-side tuple": (MAYBE, set_factory(psycopg.ClientCursor, "SELECT %s", ((1, 2),))),
    },
    "psycopg_async": {
        "a query": (NO, lambda d: d.cursor().execute("SELECT 1")),
        "a change": (YES, lambda d: d.cursor().execute(INSERT)),
        "of the connection": (YES, lambda d: d.execute(INSERT)),
        "executemany": (YES, lambda d: d.cursor().executemany(PYFORMAT, [(1,), (2,)])),
        "copy": (YES, copy_with_psycopg_async),
        "stream": (YES, stream_with_psycopg_async),
        "server cursor": (MAYBE, use_a_server_cursor_of_psycopg_async),
        "factory set later": (YES, set_factory(psycopg.AsyncClientCursor, INSERT)),
    },
    "asyncpg": {
        "a query": (NO, lambda d: d.fetch("SELECT $1::int", 1)),
        "a value": (NO, lambda d: d.fetchval("SELECT 1")),
        "a change": (YES, lambda d: d.execute(INSERT)),
        "a changed row": (YES, lambda d: d.fetchrow(RETURNING)),
        "executemany": (YES, lambda d: d.executemany("INSERT INTO seen VALUES ($1)", [(1,), (2,)])),
        "copy of records": (MAYBE, lambda d: d.copy_records_to_table("seen", records=[(1,)])),
        "copy of a query": (MAYBE, lambda d: d.copy_from_query("SELECT f()", output=discard)),
        "prepare": (MAYBE, lambda d: d.prepare("SELECT 1")),
        "cursor": (MAYBE, lambda d: d.cursor("SELECT f()")),
    },
}


@pytest.mark.parametrize(
    ("driver", "name"), [(driver, name) for driver, found in ACTIONS.items() for name in found]
)
def test_what_is_done_with_the_drivers_own_cursors_is_seen(postgres, driver, name):
    expected, act = ACTIONS[driver][name]

    def check(connection):
        connection.execute(text("SELECT 1"))
        work = work_on(driver_of(connection))
        assert work.writes is NO
        done(act(driver_of(connection)))
        return work.writes

    assert using(postgres, driver, check) is expected


@pytest.mark.parametrize(
    "act",
    [
        lambda adapted: adapted.cursor().execute(INSERT),
        lambda adapted: adapted.cursor().execute(operation=INSERT),
        lambda adapted: adapted.cursor().executemany("INSERT INTO seen VALUES ($1)", [(1,)]),
        lambda adapted: adapted.cursor(server_side=True).execute(RETURNING),
        lambda adapted: adapted.run_async(methodcaller("execute", INSERT)),
    ],
    ids=["cursor", "by keyword", "executemany", "server-side", "run_async"],
)
def test_what_sqlalchemys_adapter_of_asyncpg_is_told_is_seen(postgres, act):
    def check(connection):
        connection.execute(text("SELECT 1"))
        adapted = connection.connection.dbapi_connection
        # what is private in SQLAlchemy, and used
        assert adapted.cursor()._connection is driver_of(connection)
        act(adapted)
        return work_on(driver_of(connection)).writes

    assert using(postgres, "asyncpg", check) is YES


@pytest.mark.parametrize(
    ("driver", "act"),
    [
        ("psycopg2", hold_a_cursor),
        ("psycopg", hold_a_cursor),
        ("psycopg", lambda d: d.execute("SET search_path = other")),
        ("asyncpg", lambda d: d.add_listener("channel", print)),
        ("asyncpg", lambda d: d.reset_type_codec("json", schema="pg_catalog")),
    ],
    ids=["psycopg2 hold", "psycopg hold", "setting", "asyncpg listener", "asyncpg codec"],
)
def test_what_outlives_the_transaction_is_session_state_and_no_write(postgres, driver, act):
    def check(connection):
        work = work_on(driver_of(connection))
        done(act(driver_of(connection)))
        return work.has_session_state, work.writes, work.is_seen

    assert using(postgres, driver, check) == (True, NO, True)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_connection_that_the_application_makes_is_not_seen(postgres, driver):
    url = conninfo(postgres.url)
    makers: dict[str, dict[str, Any]] = {
        "psycopg2": {"creator": lambda: psycopg2.connect(url)},
        "psycopg": {"creator": lambda: psycopg.connect(url)},
        "psycopg_async": {"async_creator": lambda: psycopg.AsyncConnection.connect(url)},
        "asyncpg": {"connect_args": {"async_creator_fn": lambda *_, **__: asyncpg.connect(url)}},
    }

    def check(connection):
        work = work_on(driver_of(connection))
        connection.execute(text("SELECT 1"))
        return work.is_seen, work.writes, work.has_session_state

    assert using(postgres, driver, check, **makers[driver]) == (False, MAYBE, True)


def test_a_connection_of_a_listener_is_not_seen(postgres):
    engine = sa_railway.create_engine(postgres.url)
    event.listen(engine, "do_connect", lambda *args: psycopg2.connect(*args[2], **args[3]))
    with engine.connect() as connection:
        work = work_on(driver_of(connection))
    engine.dispose()

    assert (work.is_seen, work.writes) == (False, MAYBE)


def composed(driver):
    module = psycopg2_sql if driver == "psycopg2" else psycopg.sql
    return module.SQL("{} {}").format(module.SQL("SELECT 1;"), module.SQL("COMMIT"))


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_end_of_the_transaction_is_refused_before_anything_is_sent(postgres, driver):
    def check(connection):
        refused = []

        def refuse(command):
            refused.append(command)
            raise LookupError

        connection.execute(text(INSERT))
        raw = driver_of(connection)
        commands = {
            "COMMIT": lambda: connection.exec_driver_sql("SELECT 1; COMMIT"),
            "ROLLBACK": lambda: (raw if driver == "asyncpg" else raw.cursor()).execute("ROLLBACK"),
        }
        commands["COMMIT by the pool's"] = connection.connection.commit
        if driver != "asyncpg":
            commands["END"] = lambda: raw.cursor().execute(b"END")
            commands["COMMIT by the driver's"] = raw.commit
            commands["COMMIT composed"] = lambda: raw.cursor().execute(composed(driver))
        work_on(raw).refuse_end = refuse
        for command in commands.values():
            with pytest.raises(LookupError):
                done(command())
        work_on(raw).refuse_end = None
        assert not is_idle(raw)
        connection.rollback()
        assert connection.scalar(text("SELECT count(*) FROM seen")) == 0
        return refused == [name.split()[0] for name in commands]

    assert using(postgres, driver, check)


class Sequence:
    """As an array of numpy: it has items, and no truth value."""

    def __init__(self, *items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]

    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")


def test_values_without_a_truth_value_are_taken_as_by_the_driver(postgres):
    engine = sa_railway.create_engine(postgres.url)
    connection = engine.raw_connection()
    cursor = connection.cursor()

    pair: Any = Sequence("a", "b")
    cursor.execute("SELECT %s, %s", pair)
    assert cursor.fetchone() == ("a", "b")
    cursor.execute("CREATE TEMPORARY TABLE pair (a text, b text)")
    pairs: Any = Sequence(pair, ["c", "d"])
    cursor.executemany("INSERT INTO pair VALUES (%s, %s)", pairs)
    cursor.execute("SELECT * FROM pair ORDER BY a")
    assert cursor.fetchall() == [("a", "b"), ("c", "d")]
    connection.close()
    engine.dispose()
