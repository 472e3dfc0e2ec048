"""A COMMIT whose answer was lost, at every point of the protocol and after every kind of end."""

import asyncio
import gc
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
import sqlalchemy
from fix_commit import ANSWER_LOST, ARRIVED, NEVER_ARRIVED, UNDONE, unknown
from fix_engines import ASYNC, DRIVERS, SYNC, plain_engine, pool_of
from marked import MarkedPostgres
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from within import using

import sa_railway
from sa_railway.commit import status
from sa_railway.commit.decision import Outcome
from sa_railway.commit.marker_schema import create_sql
from sa_railway.commit.resolver import CommitState, committing, watch_commit
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.testing import ChaosProxy
from sa_railway.testing.toxics import Cut

LOST_BUT_COMMITTED = [ARRIVED, ANSWER_LOST]


@pytest.fixture
def plain(postgres):
    return plain_engine(postgres.url, "DROP TABLE IF EXISTS lost", "CREATE TABLE lost (n int)")


def rows(plain):
    with plain.connect() as connection:
        return list(connection.scalars(text("SELECT n FROM lost ORDER BY n")))


def insert(connection, n=1):
    connection.execute(text("INSERT INTO lost VALUES (:n)"), {"n": n})


@pytest.mark.parametrize("cut", LOST_BUT_COMMITTED, ids=["after", "before the answer"])
@pytest.mark.parametrize("driver", SYNC)
def test_a_commit_that_happened_returns(postgres, plain, driver, cut, outcomes, caplog):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(**cut)
            connection.commit()
            # the connection goes on, on a new backend, and nothing was logged as an error
            insert(connection, 2)
            connection.commit()
        engine.dispose()

    assert rows(plain) == [1, 2]
    assert outcomes == ["committed"]
    assert [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("driver", SYNC)
def test_a_commit_that_did_not_happen_raises_the_drivers_error(postgres, plain, driver, outcomes):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(before="COMMIT")
            with pytest.raises(DBAPIError) as caught:
                connection.commit()
        engine.dispose()

    assert rows(plain) == []
    assert outcomes == ["aborted"]
    assert caught.value.connection_invalidated
    assert caught.value.orig is not None
    assert caught.value.orig.__notes__ == [UNDONE]


def test_plain_sqlalchemy_raises_although_it_happened(postgres, plain):
    with ChaosProxy(postgres.url) as proxy:
        engine = sqlalchemy.create_engine(proxy.url)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(before="CommandComplete", of="COMMIT")
            with pytest.raises(DBAPIError):
                connection.commit()
        engine.dispose()

    assert rows(plain) == [1]


@pytest.mark.parametrize("cut", [*LOST_BUT_COMMITTED, NEVER_ARRIVED])
@pytest.mark.parametrize("driver", SYNC)
def test_a_session_commits_as_if_nothing_had_happened(postgres, plain, driver, cut):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with sessionmaker(engine)() as session:
            insert(session)
            proxy.cut(**cut)
            try:
                session.commit()
            except DBAPIError:
                session.rollback()
                insert(session)
                session.commit()
        engine.dispose()

    assert rows(plain) == [1]


@pytest.mark.parametrize("driver", ASYNC)
@pytest.mark.parametrize("cut", [*LOST_BUT_COMMITTED, NEVER_ARRIVED])
def test_asyncio_engines_too(postgres, plain, driver, cut, outcomes):
    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url, resolve_commit=True)
        async with engine.connect() as connection:
            await connection.execute(text("INSERT INTO lost VALUES (1)"))
            proxy.cut(**cut)
            try:
                await connection.commit()
            except DBAPIError:
                assert "before" in cut
                await connection.rollback()
        await engine.dispose()

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        asyncio.run(main(proxy))

    assert rows(plain) == ([1] if outcomes == ["committed"] else [])
    assert outcomes == ["aborted" if cut == NEVER_ARRIVED else "committed"]


@pytest.mark.parametrize("driver", SYNC)
def test_a_reader_has_nothing_to_lose_and_asks_nothing(postgres, driver, outcomes):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            proxy.cut(before="CommandComplete", of="COMMIT")
            accepted = proxy.accepted
            connection.commit()
        engine.dispose()

        assert proxy.accepted == accepted
    assert outcomes == ["committed"]


@pytest.fixture
def namesake(plain):
    """A function round(text), which PostgreSQL chooses by the type of its argument, and writes."""
    with plain.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION round(a text) RETURNS void LANGUAGE sql "
            "AS 'INSERT INTO lost VALUES (1)'"
        )
    yield
    with plain.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION round(text)")


@pytest.mark.parametrize("cut", [NEVER_ARRIVED, ARRIVED], ids=["before", "after"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_function_that_shares_its_name_with_one_of_the_servers_is_not_taken_for_it(
    postgres, namesake, driver, cut, outcomes
):
    def check(connection):
        connection.execute(text("SELECT round(:a)"), {"a": "x"})
        proxy.cut(**cut)
        with pytest.raises(CommitOutcomeUnknownError):
            connection.commit()

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        through: Any = SimpleNamespace(url_for=lambda _: proxy.url)
        using(through, driver, check)

    assert outcomes == ["unknown"]


@pytest.mark.parametrize("cut", [NEVER_ARRIVED, ARRIVED], ids=["before", "after"])
@pytest.mark.parametrize("driver", SYNC)
def test_run_transaction_does_not_take_it_for_one_of_the_servers_either(
    postgres, namesake, driver, cut, outcomes
):
    def work(connection):
        connection.execute(text("SELECT round(:a)"), {"a": "x"})
        proxy.cut(**cut)

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with pytest.raises(CommitOutcomeUnknownError):
            sa_railway.run_transaction(engine, work)
        engine.dispose()

    assert outcomes == ["unknown"]


@pytest.mark.parametrize("driver", SYNC)
def test_a_reader_that_calls_functions_of_the_server_has_nothing_to_lose(
    postgres, driver, outcomes
):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            connection.execute(text("SELECT round(1.5), count(*)"))
            proxy.cut(before="COMMIT")
            connection.commit()
        engine.dispose()

    assert outcomes == ["committed"]


def set_up(dbapi_connection, _record, _proxy):
    """As an application may keep a setting for the time of a checkout."""
    with dbapi_connection.cursor() as cursor:
        cursor.execute("SET my.tenant = '7'")
    dbapi_connection.commit()


def tidy_up(dbapi_connection, _record):
    if dbapi_connection is not None:
        dbapi_connection.cursor().execute("RESET my.tenant")


@pytest.mark.parametrize(
    "options",
    [{"isolation_level": "SERIALIZABLE"}, {"postgresql_readonly": True}, {}],
    ids=["isolation", "readonly", "listeners"],
)
@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_with_options_or_listeners_gives_its_place_in_the_pool_back(
    postgres, driver, options, outcomes
):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, resolve_commit=True, pool_size=1, max_overflow=0, pool_timeout=5
        )
        event.listen(engine, "checkout", set_up)
        event.listen(engine, "checkin", tidy_up)
        with sessionmaker(engine.execution_options(**options))() as session:
            session.execute(text("SELECT 1"))
            session.commit()
            session.execute(text("SELECT 1"))
            proxy.cut(after="COMMIT")
            session.commit()
        assert pool_of(engine).checkedout() == 0
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        engine.dispose()

    assert outcomes == ["committed"]


@pytest.mark.parametrize(
    ("method", "setting"),
    [("set_session", "SERIALIZABLE"), ("set_client_encoding", "LATIN1")],
)
def test_a_setting_by_a_method_of_the_driver_is_not_lost_in_silence(
    postgres, method, setting, outcomes
):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            getattr(connection.connection.driver_connection, method)(setting)
            connection.execute(text("SELECT 1"))
            proxy.cut(after="COMMIT")
            connection.commit()
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT 1"))
        engine.dispose()

    assert outcomes == ["committed"]


@pytest.mark.parametrize("driver", SYNC)
def test_only_a_writer_pays_a_round_trip(postgres, plain, driver):
    def cost(proxy, engine, work):
        for _ in range(7):  # psycopg prepares a statement at its sixth use, which costs one more
            with engine.begin() as connection:
                work(connection)
        before = proxy.round_trips
        with engine.begin() as connection:
            work(connection)
        return proxy.round_trips - before

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        resolving = sa_railway.create_engine(proxy.url, resolve_commit=True)
        usual = sqlalchemy.create_engine(proxy.url)
        read = [
            cost(proxy, engine, lambda c: c.execute(text("SELECT count(*) FROM lost")))
            for engine in (usual, resolving)
        ]
        write = [cost(proxy, engine, insert) for engine in (usual, resolving)]
        resolving.dispose()
        usual.dispose()

    assert read[1] - read[0] == 0
    assert write[1] - write[0] == 1


@pytest.mark.parametrize(
    "asking_cut",
    [
        {"before": "StartupMessage"},
        {"after": "StartupMessage"},
        {"before": "SELECT"},
        {"before": "CommandComplete", "of": "SELECT"},
    ],
    ids=lambda cut: " ".join(cut.values()),
)
@pytest.mark.parametrize("driver", SYNC)
def test_the_connection_that_asks_may_be_cut_as_well(postgres, plain, driver, asking_cut, outcomes):
    with ChaosProxy(postgres.url_for(driver)) as proxy, ThreadPoolExecutor() as executor:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            cut = proxy.cut(before="CommandComplete", of="COMMIT")
            freeze = proxy.freeze(live=False)
            answer = executor.submit(connection.commit)
            cut.wait()
            asking = proxy.cut(**asking_cut, times=3)
            freeze.remove()
            answer.result()
        engine.dispose()

        assert asking.count == 3
    assert rows(plain) == [1]
    assert outcomes == ["committed"]


def test_an_exhausted_pool_does_not_keep_it_from_asking(postgres, plain, outcomes):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, resolve_commit=True, pool_size=1, max_overflow=0, pool_timeout=0.1
        )
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(after="COMMIT")
            connection.commit()
        engine.dispose()

    assert outcomes == ["committed"]


def test_a_server_that_stays_away_leaves_the_outcome_unknown(postgres, plain, outcomes):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(
            proxy.url, resolve_commit=True, resolve_timeout=0.3, connect_patience=0.1
        )
        with engine.connect() as connection:
            insert(connection)
            xid = connection.scalar(text("SELECT txid_current_if_assigned()"))
            proxy.cut(after="COMMIT")
            proxy.down(live=False)
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                connection.commit()
        engine.dispose()

    assert str(caught.value) == unknown(xid)
    assert caught.value.transaction_id == xid
    assert isinstance(caught.value.orig, psycopg2.OperationalError)
    assert outcomes == ["unknown"]
    assert rows(plain) == [1]


def test_a_status_that_the_server_has_forgotten_is_unknown(postgres, plain, monkeypatch, outcomes):
    # a real one would take a million transactions
    monkeypatch.setattr(status, "_STATUS", "'forgotten'")
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            xid = connection.scalar(text("SELECT txid_current_if_assigned()"))
            proxy.cut(after="COMMIT")
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                connection.commit()
        engine.dispose()

    assert str(caught.value) == unknown(xid)
    assert outcomes == ["unknown"]
    assert rows(plain) == [1]


@pytest.fixture(scope="module")
def crashing(postgres_binaries):
    """A server that writes its log only when a COMMIT makes it, so that a crash loses ids."""
    settings = {
        "wal_writer_delay": "10s",
        "bgwriter_lru_maxpages": "0",
        "autovacuum": "off",
        "max_prepared_transactions": "2",
    }
    with MarkedPostgres(settings=settings) as server:
        tables = ["CREATE TABLE lost (n int)", "CREATE TABLE other (n int)"]
        plain_engine(server.url, *tables, *create_sql())
        yield server


@pytest.fixture
def stranger(crashing):
    """An engine for the transactions of others."""
    engine = plain_engine(crashing.url, "TRUNCATE lost, other")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # what follows is at the beginning of a page, and no full page is there to be written early
        connection.execute(text("SELECT pg_switch_wal()"))
        connection.execute(text("CHECKPOINT"))
    return engine


def make_commits_slow(admin):
    """Let a COMMIT that has written to the table *slow* take a minute."""
    with admin.begin() as connection:
        for statement in (
            "DROP TABLE IF EXISTS slow",
            "CREATE TABLE slow (n int)",
            "CREATE OR REPLACE FUNCTION wait_long() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION wait_long()",
            "DROP ROLE IF EXISTS app",
            "CREATE ROLE app LOGIN",
            "GRANT INSERT ON slow TO app",
        ):
            connection.execute(text(statement))


@pytest.mark.parametrize("role", ["postgres", "app"])
@pytest.mark.parametrize("driver", SYNC)
def test_a_backend_that_still_works_is_ended_before_it_is_asked_about(
    crashing, stranger, driver, role, outcomes
):
    """The client is cut off while its COMMIT is at work; later it would have succeeded."""
    make_commits_slow(stranger)
    with ChaosProxy(crashing.url_for(driver).set(username=role)) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO slow VALUES (1)"))
            proxy.cut(after="COMMIT")
            with pytest.raises(DBAPIError) as caught:
                connection.commit()
        engine.dispose()

    assert caught.value.orig is not None
    assert caught.value.orig.__notes__ == [UNDONE]
    assert outcomes == ["aborted"]
    with stranger.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM slow")) == 0


@contextmanager
def lost_commit(url, cut, **options):
    """Cut a COMMIT, and let the client find the way to the server shut during the block.

    Yields:
        The id of the transaction, and a Future of what ``commit()`` does.
    """
    with ChaosProxy(url) as proxy, ThreadPoolExecutor() as executor:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True, **options)
        with engine.connect() as connection:
            insert(connection)
            xid = connection.scalar(text("SELECT txid_current_if_assigned()"))
            trigger = proxy.cut(**cut)
            down = proxy.down(live=False)
            answer = executor.submit(connection.commit)
            trigger.wait()
            try:
                yield xid, answer
            finally:
                down.remove()
                answer.exception()
        engine.dispose()


def commit_other(stranger):
    """Commit a transaction of others; return its id."""
    with stranger.begin() as connection:
        connection.execute(text("INSERT INTO other VALUES (1)"))
        return connection.scalar(text("SELECT txid_current_if_assigned()"))


def test_after_a_crash_an_id_that_was_given_out_again_is_not_taken_for_ours(
    crashing, stranger, outcomes
):
    with lost_commit(crashing.url, NEVER_ARRIVED) as (xid, answer):
        crashing.restart("immediate")
        reused = commit_other(stranger)

    assert reused == xid
    with stranger.connect() as asking:
        assert asking.scalar(text(f"SELECT txid_status({xid})")) == "committed"
    assert answer.exception().orig.__notes__ == [UNDONE]
    assert outcomes == ["aborted"]


def test_after_a_crash_an_id_that_is_not_given_out_yet_means_aborted(crashing, stranger, outcomes):
    with lost_commit(crashing.url, NEVER_ARRIVED) as (_, answer):
        crashing.restart("immediate")

    assert answer.exception().orig.__notes__ == [UNDONE]
    assert outcomes == ["aborted"]


def test_after_two_crashes_committed_proves_nothing(crashing, stranger, outcomes):
    """The second recovery ends behind our log position, because strangers have written since."""
    with lost_commit(crashing.url, NEVER_ARRIVED) as (xid, answer):
        crashing.restart("immediate")
        for _ in range(20):
            commit_other(stranger)
        crashing.restart("immediate")

    assert str(answer.exception()) == unknown(xid)
    assert outcomes == ["unknown"]


def test_a_later_checkpoint_hides_where_the_recovery_ended(crashing, stranger, outcomes):
    with lost_commit(crashing.url, ANSWER_LOST) as (xid, answer):
        crashing.restart("immediate")
        commit_other(stranger)
        with stranger.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CHECKPOINT"))

    assert str(answer.exception()) == unknown(xid)
    assert outcomes == ["unknown"]
    assert rows(stranger) == [1]


@pytest.mark.parametrize(
    ("mode", "options", "outcome"),
    [
        ("fast", {}, "committed"),
        ("immediate", {}, "unknown"),
        ("immediate", {"commit_marker": True}, "committed"),
    ],
    ids=["clean stop", "crash", "crash, with a marker"],
)
@pytest.mark.parametrize("driver", SYNC)
def test_a_commit_that_survived_a_restart_is_found_where_it_can_be_proved(
    crashing, stranger, driver, mode, options, outcome, outcomes
):
    """However late the client looks again: it sees nothing of the restart."""
    with lost_commit(crashing.url_for(driver), ANSWER_LOST, **options) as (_, answer):
        crashing.restart(mode)

    assert outcomes == [outcome]
    assert isinstance(answer.exception(), CommitOutcomeUnknownError) == (outcome == "unknown")
    assert rows(stranger) == [1]


class OtherPid(Cut):
    """Tells clients of another backend than the one that they have, as poolers do."""

    def __init__(self):
        super().__init__("BackendKeyData", None, None, nth=1, times=1, reset=False)

    def strikes(self, message):
        if message.name == "BackendKeyData":
            pid, key = struct.unpack("!ii", message.data[5:])
            data = message.data[:5] + struct.pack("!ii", pid + 1_000_000, key)
            object.__setattr__(message, "data", data)
        return False


def test_behind_a_pooler_no_backend_is_ended(crashing, stranger, outcomes):
    """What a pooler has told of is not the backend, which serves others by now."""
    make_commits_slow(stranger)
    with ChaosProxy(crashing.url) as proxy:
        proxy._add(OtherPid())
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True, resolve_timeout=1.0)
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO slow VALUES (1)"))
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            proxy.cut(after="COMMIT")
            with pytest.raises(CommitOutcomeUnknownError):
                connection.commit()
        engine.dispose()

    assert outcomes == ["unknown"]
    with stranger.connect() as connection:
        is_left = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid}")
        assert connection.scalar(is_left) is True


def test_a_watched_commit_tells_what_became_of_it(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as connection:
        state = CommitState(deadline=time.monotonic() + 30)
        connection.begin()
        assert watch_commit(connection, state) is True
        insert(connection)
        with committing([state]):
            connection.commit()

        assert (state.writes, state.sent, state.outcome) == (True, True, Outcome.COMMITTED)
    engine.dispose()


def test_a_commit_that_is_not_watched_is_left_alone(postgres, plain):
    """run_transaction() has used this engine before, and the next commit is another's."""
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, pool_size=1)
        with engine.connect() as connection:
            state = CommitState(deadline=time.monotonic() + 30)
            watch_commit(connection, state)
            insert(connection)
            connection.rollback()
        with engine.connect() as connection, committing([state]):
            insert(connection)
            proxy.cut(before="CommandComplete", of="COMMIT")
            with pytest.raises(DBAPIError):
                connection.commit()
        engine.dispose()

    assert not state.sent
    assert rows(plain) == [1]


def test_a_loss_that_looks_like_a_failed_connect_is_a_loss(postgres, plain, outcomes):
    engine = sqlalchemy.create_engine(postgres.url)
    commit = engine.dialect.do_commit

    def commit_and_lose_the_answer(connection):
        commit(connection)
        connection.dbapi_connection.close()
        raise psycopg2.OperationalError("could not receive data from server: Connection refused")

    engine.dialect.do_commit = commit_and_lose_the_answer  # type: ignore[method-assign]
    sa_railway.run_transaction(engine, insert)

    assert rows(plain) == [1]
    assert outcomes == ["committed"]
    engine.dispose()


def test_a_connection_dropped_without_being_closed_goes_back_to_the_pool(postgres, plain):
    engine = sa_railway.create_engine(
        postgres.url, resolve_commit=True, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    insert(engine.connect())
    gc.collect()

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM lost")) == 0
    engine.dispose()


def test_another_database_cannot_be_watched():
    engine = sa_railway.create_engine("sqlite://")
    with engine.connect() as connection:
        assert watch_commit(connection, CommitState(deadline=time.monotonic() + 30)) is False
    engine.dispose()


def test_two_phase_commits_and_savepoints_are_left_alone(crashing, stranger, outcomes):
    with ChaosProxy(crashing.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            insert(connection)
            transaction.prepare()
            proxy.cut(after="COMMIT PREPARED")
            with pytest.raises(DBAPIError):
                transaction.commit()
        with engine.begin() as connection:
            with connection.begin_nested():
                insert(connection, 2)
            assert connection.scalar(text("SELECT count(*) FROM lost WHERE n = 2")) == 1
        engine.dispose()

    assert outcomes == []
