"""What a forked child does to the connections of its parent: nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import text

import sa_railway
from sa_railway.engine import fork

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
        [sys.executable, PROGRAM, url.render_as_string(hide_password=False), str(rounds), kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg", "psycopg_async"])
def test_the_parent_commits_whatever_the_child_did(postgres, rounds_table, driver):
    result = run_rounds(postgres.url_for(driver), "railway", ROUNDS)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"helpless_children": 0, "same_backends": True}
    assert rounds_table() == list(range(ROUNDS))


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_plain_sqlalchemy_loses_what_the_parent_began(postgres, rounds_table, driver):
    run_rounds(postgres.url_for(driver), "plain", 6)

    assert rounds_table() != list(range(6))


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
    descriptor = connection.connection.driver_connection.fileno()
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
    descriptor = connection.connection.driver_connection.fileno()
    plain = sqlalchemy.create_engine(postgres.url)
    other = plain.connect()
    kept = os.dup(descriptor)
    os.dup2(other.connection.driver_connection.fileno(), descriptor)
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


def test_an_in_memory_sqlite_database_keeps_its_rows_in_the_child():
    engine = sa_railway.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n int)"))
        connection.execute(text("INSERT INTO t VALUES (7)"))

    def rows():
        with engine.connect() as connection:
            return connection.scalars(text("SELECT n FROM t")).all() == [7]

    assert in_child(rows)
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
        descriptor = fork._descriptor(connection)
        identity = fork._identity(descriptor)
        await connection.close()
        return descriptor, identity

    descriptor, identity = asyncio.run(main())
    assert isinstance(descriptor, int)
    assert identity is not None
