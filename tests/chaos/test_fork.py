"""What a forked child does to the connections of its parent: nothing."""

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import psycopg2.extensions
import pytest
import sqlalchemy
from fix_engines import DRIVERS, SYNC
from marked import in_text
from sqlalchemy import event, text
from within import driver_of

import sa_railway
from sa_railway.engine import fork, process
from sa_railway.engine.driver import descriptor_of, identity
from sa_railway.testing import ChaosProxy

ROUNDS = 100
PROGRAM = Path(__file__).parent / "programs" / "fork_rounds.py"


@pytest.fixture
def rounds_table(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS rounds"))
        connection.execute(text("CREATE TABLE rounds (n int)"))
    yield lambda: committed(engine)
    engine.dispose()


def committed(engine):
    with engine.connect() as connection:
        return sorted(connection.scalars(text("SELECT n FROM rounds")))


def run_rounds(url, kind, rounds):
    return subprocess.run(
        [sys.executable, PROGRAM, in_text(url), str(rounds), kind],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_parent_commits_whatever_the_child_did(postgres, rounds_table, driver):
    result = run_rounds(postgres.url_for(driver), "railway", ROUNDS)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"helpless_children": 0, "same_backends": True}
    assert rounds_table() == list(range(ROUNDS))


@pytest.mark.parametrize("driver", SYNC)
def test_plain_sqlalchemy_loses_what_the_parent_began(postgres, rounds_table, driver):
    run_rounds(postgres.url_for(driver), "plain", 6)

    assert rounds_table() != list(range(6))


def tidy_up(dbapi_connection, _record):
    """As a listener to "checkin" may do it, which gets None for a connection that is lost."""
    if dbapi_connection is not None:
        dbapi_connection.cursor().execute("RESET search_path")


def in_child(check):
    """Fork, run *check* in the child, and return whether it was true there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def engine(postgres):
    engine = sa_railway.create_engine(postgres.url)
    yield engine
    engine.dispose()


def test_a_descriptor_that_became_a_file_is_left_alone(engine, tmp_path):
    connection = engine.connect()
    descriptor = driver_of(connection).fileno()
    with (tmp_path / "log").open("w") as log:
        kept = os.dup(descriptor)
        os.dup2(log.fileno(), descriptor)  # as a program does that closes what it did not open
        expected = os.fstat(log.fileno()).st_ino

        assert in_child(lambda: os.fstat(descriptor).st_ino == expected)

        os.dup2(kept, descriptor)
        os.close(kept)
    connection.close()


def test_a_descriptor_that_became_another_socket_is_left_alone(engine, postgres):
    connection = engine.connect()
    descriptor = driver_of(connection).fileno()
    plain = sqlalchemy.create_engine(postgres.url)
    other = plain.connect()
    kept = os.dup(descriptor)
    os.dup2(driver_of(other).fileno(), descriptor)
    expected = os.fstat(descriptor).st_ino

    assert in_child(lambda: os.fstat(descriptor).st_ino == expected)

    os.dup2(kept, descriptor)
    os.close(kept)
    connection.close()
    other.close()
    plain.dispose()


def test_a_detached_connection_is_protected_too(engine):
    connection = engine.connect()
    driver = connection.connection.driver_connection
    connection.detach()
    ours = os.fstat(driver.fileno()).st_ino

    assert in_child(lambda: os.fstat(driver.fileno()).st_ino != ours)

    assert connection.scalar(text("SELECT 1")) == 1
    connection.close()


class Equal(psycopg2.extensions.connection):
    """Connections that are all the same to the application, and have no hash."""

    def __eq__(self, other):
        return isinstance(other, Equal)

    __hash__ = None  # type: ignore[assignment]


def test_connections_that_cannot_be_told_apart_are_all_protected(postgres, caplog):
    engine = sa_railway.create_engine(postgres.url, connect_args={"connection_factory": Equal})
    connections = [engine.connect(), engine.connect()]
    drivers = [driver_of(connection) for connection in connections]
    ours = [os.fstat(driver.fileno()).st_ino for driver in drivers]

    def all_are_replaced():
        found = [os.fstat(driver.fileno()).st_ino for driver in drivers]
        return not set(found) & set(ours)

    assert in_child(all_are_replaced)

    assert [connection.scalar(text("SELECT 1")) for connection in connections] == [1, 1]
    for connection in connections:
        connection.close()
    # also by its socket alone, without a ping
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
    assert caplog.records == []


def test_the_hook_does_nothing_in_the_parent_and_once_in_the_child(engine):
    with engine.connect() as connection:
        pool = engine.pool
        fork.after_fork_in_child()
        assert engine.pool is pool
        assert connection.scalar(text("SELECT 1")) == 1

    def again():
        renewed = engine.pool
        fork.after_fork_in_child()
        return engine.pool is renewed and renewed is not pool

    assert in_child(again)


def test_listeners_hear_of_no_disposal_in_the_child(engine):
    """Such as one that closes the tunnel of the parent. With plain SQLAlchemy nothing is fired."""
    engine.connect().close()
    pool = engine.pool
    heard: list[object] = []
    event.listen(engine, "engine_disposed", heard.append)
    event.listen(engine, "checkin", lambda *_: heard.append("checkin"))

    def child():
        is_silent = engine.pool is not pool and heard == []
        engine.connect().close()
        engine.dispose(close=False)
        return is_silent and heard == ["checkin", engine]

    assert in_child(child)
    assert heard == []


def test_a_grandchild_is_cut_off_from_its_parent(engine):
    engine.connect().close()

    def child():
        with engine.begin() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            works = in_child(
                lambda: engine.connect().scalar(text("SELECT pg_backend_pid()")) != pid
            )
            return works and connection.scalar(text("SELECT pg_backend_pid()")) == pid

    assert in_child(child)


def test_a_fork_with_the_locks_of_the_pool_held_does_not_block_the_child(engine):
    engine.connect().close()
    with engine.pool._pool.mutex, engine.pool._overflow_lock:
        assert in_child(lambda: engine.connect().scalar(text("SELECT 1")) == 1)


def with_a_row(url):
    """Return an engine of a new SQLite database, and what looks for the row that is in it."""
    engine = sa_railway.create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n int)"))
        connection.execute(text("INSERT INTO t VALUES (7)"))

    def has_row():
        with engine.connect() as connection:
            return connection.scalars(text("SELECT n FROM t")).all() == [7]

    return engine, has_row


def test_an_in_memory_sqlite_database_keeps_its_rows_in_the_child():
    engine, has_row = with_a_row("sqlite://")
    assert in_child(has_row)
    engine.dispose()


def test_an_sqlite_file_is_opened_anew_in_the_child(tmp_path):
    engine = sa_railway.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n int)"))
        before = engine.pool
        assert in_child(lambda: engine.pool is not before and before in fork._inherited_pools)
    engine.dispose()


def test_asyncpg_still_shows_its_socket(postgres):
    """The one private attribute that the protection of asyncpg needs."""
    import asyncio

    import asyncpg

    async def main():
        url = postgres.url
        connection = await asyncpg.connect(
            host=url.host, port=url.port, user=url.username, database=url.database
        )
        descriptor = descriptor_of(connection)
        assert descriptor is not None
        found = identity(descriptor)
        await connection.close()
        return descriptor, found

    descriptor, found = asyncio.run(main())
    assert isinstance(descriptor, int)
    assert found is not None


# --- a child that leaves the blocks of its parent ---

LEAVE = """
import os, sys
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session

engine = sqlalchemy.create_engine(sys.argv[1], plugins=["railway"])


def leave():
    child = os.fork()
    if child == 0:
        sys.exit(0)  # which unwinds through the blocks
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


{blocks}
"""
BLOCKS = {
    "connection without a transaction": """
with engine.connect() as connection:
    leave()
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    connection.commit()
""",
    "connection": """
with engine.connect() as connection:
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    leave()
    connection.commit()
""",
    "transaction": """
with engine.begin() as connection:
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    leave()
""",
    "savepoint": """
with engine.begin() as connection, connection.begin_nested():
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    leave()
""",
    "session": """
with Session(engine) as session, session.begin():
    session.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    with session.begin_nested():
        leave()
""",
    "raw connection": """
raw = engine.raw_connection()
raw.cursor().execute("INSERT INTO rounds (n) VALUES (0)")
try:
    leave()
    raw.commit()
finally:
    raw.close()
""",
    "detached connection": """
with engine.connect() as connection:
    connection.detach()
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    leave()
    connection.commit()
""",
    "two generations": """
with engine.connect() as connection:
    connection.execute(text("INSERT INTO rounds (n) VALUES (0)"))
    child = os.fork()
    if child == 0:
        with engine.connect() as own:
            own.execute(text("SELECT 1"))
            leave()
        sys.exit(0)
    os.waitpid(child, 0)
    connection.commit()
""",
}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_child_leaves_the_blocks_of_its_parent_in_silence(postgres, rounds_table, blocks):
    program = LEAVE.replace("{blocks}", BLOCKS[blocks])
    result = subprocess.run(
        [sys.executable, "-c", program, in_text(postgres.url)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")
    assert rounds_table() == [0]


# --- forks of C code that tell Python nothing, as those of uWSGI ---


def fork_unseen(check):
    """Do what ``in_child()`` does, without any hook of Python's."""
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def backend(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT pg_backend_pid()"))


@pytest.mark.parametrize("arguments", [{}, {"pool_pre_ping": False}, {"trust_idle": 0}], ids=str)
@pytest.mark.parametrize("driver", SYNC)
def test_a_child_that_python_knows_nothing_of_has_connections_of_its_own(
    postgres, driver, arguments
):
    engine = sa_railway.create_engine(postgres.url_for(driver), **arguments)
    parents = backend(engine)

    def works():
        first, second, third = backend(engine), backend(engine), backend(engine)
        return parents not in (first, second) and second == third

    assert all(fork_unseen(works) for _ in range(3))
    assert backend(engine) == parents
    engine.dispose()


def test_such_a_child_can_be_the_first_to_connect(engine):
    def works():
        is_unseen = process.pid != os.getpid()
        return backend(engine) and is_unseen and process.pid == os.getpid()

    assert fork_unseen(works)


def test_such_a_child_has_a_watchdog(postgres):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, ping_timeout=0.2, trust_idle=0)
        backend(engine)
        backend(engine)  # a ping, and so the parent has a watchdog

        def recovers():
            first = backend(engine)
            proxy_is_frozen.wait(10)
            return backend(engine) != first

        proxy_is_frozen = multiprocessing.get_context("fork").Event()

        def freeze():
            proxy.freeze(new=False)
            proxy_is_frozen.set()

        thread = threading.Timer(0.5, freeze)
        thread.start()
        assert fork_unseen(recovers)
        thread.join()
        engine.dispose()


@pytest.mark.parametrize("path", ["", "/app.db"])
def test_such_a_child_leaves_an_sqlite_database_as_it_is(tmp_path, path):
    engine, has_row = with_a_row(f"sqlite://{'/' + str(tmp_path) + path if path else ''}")
    assert fork_unseen(has_row)
    engine.dispose()


@pytest.mark.parametrize(
    "options",
    [{"isolation_level": "REPEATABLE READ"}, {"postgresql_readonly": True}, {}],
    ids=["isolation", "readonly", "listener"],
)
@pytest.mark.parametrize("driver", SYNC)
def test_a_child_leaves_a_block_whose_connection_has_options(postgres, driver, options):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    event.listen(engine, "checkin", tidy_up)
    engine = engine.execution_options(**options)

    def leave():
        connection.close()
        return True

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert in_child(leave)
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
