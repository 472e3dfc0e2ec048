"""A COMMIT whose answer was lost, at every point of the protocol and after every kind of end."""

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg2
import pytest
import sqlalchemy
from marked import MarkedPostgres
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

import sa_railway
from sa_railway import events
from sa_railway.engine import commit, outcome
from sa_railway.engine.commit import CommitState, watch_commit
from sa_railway.engine.outcome import Outcome, read_ticket
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.testing import ChaosProxy

SYNC = ["psycopg2", "psycopg"]
LOST_BUT_COMMITTED = [
    {"after": "COMMIT"},
    {"before": "CommandComplete", "of": "COMMIT"},
]


@pytest.fixture
def outcomes():
    found = []
    unsubscribe = events.subscribe(
        lambda event: isinstance(event, events.CommitResolved) and found.append(event.outcome)
    )
    yield found
    unsubscribe()


@pytest.fixture
def plain(postgres):
    engine = sqlalchemy.create_engine(postgres.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS lost"))
        connection.execute(text("CREATE TABLE lost (n int)"))
    return engine


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
    assert caught.value.orig.__notes__ == [
        "sa_railway: the transaction was rolled back and has changed nothing; "
        "it can safely be run again"
    ]


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


@pytest.mark.parametrize("cut", [*LOST_BUT_COMMITTED, {"before": "COMMIT"}])
@pytest.mark.parametrize("driver", SYNC)
def test_a_session_commits_as_if_nothing_had_happened(postgres, plain, driver, cut, outcomes):
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


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
@pytest.mark.parametrize("cut", [*LOST_BUT_COMMITTED, {"before": "COMMIT"}])
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
    assert outcomes == ["aborted" if cut == {"before": "COMMIT"} else "committed"]


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


def test_a_backend_that_still_works_is_ended_before_it_is_asked_about(postgres, plain, outcomes):
    """The client is cut off while its COMMIT waits for a lock; later it would have succeeded."""
    with plain.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS parent CASCADE"))
        connection.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
        connection.execute(
            text(
                "CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED,"
                " slow int)"
            )
        )
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION wait_long() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON parent DEFERRABLE "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_long()"
            )
        )
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO parent VALUES (1)"))
            proxy.cut(after="COMMIT")
            with pytest.raises(DBAPIError):
                connection.commit()  # pg_sleep(60) within the COMMIT is still running
        engine.dispose()

    assert outcomes == ["aborted"]
    with plain.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM parent")) == 0
        connection.execute(text("DROP TABLE child, parent"))


def test_the_connection_that_asks_may_be_cut_as_well(postgres, plain, outcomes):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(before="CommandComplete", of="COMMIT")
            asking = proxy.cut(before="CommandComplete", of="SELECT", nth=2, times=3)
            connection.commit()
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

    assert str(caught.value) == (
        f"nobody can say whether transaction {xid} was committed: the connection was lost during "
        "COMMIT, and the server could not be asked for the outcome; ask it with "
        f"SELECT txid_status({xid}), which says 'committed', 'aborted', 'in progress', or NULL if "
        "it has forgotten; do not run the work again before you know"
    )
    assert caught.value.transaction_id == xid
    assert isinstance(caught.value.orig, psycopg2.OperationalError)
    assert outcomes == ["unknown"]
    assert rows(plain) == [1]


def test_a_status_too_old_to_be_known_is_unknown(postgres, plain, monkeypatch, outcomes):
    monkeypatch.setattr(outcome, "_STATUS", "SELECT txid_status({xid} - {xid} + 3)")
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(after="COMMIT")
            monkeypatch.setitem(outcome._OUTCOMES, "committed", Outcome.UNKNOWN)
            with pytest.raises(CommitOutcomeUnknownError):
                connection.commit()
        engine.dispose()


@pytest.fixture
def lazy_log(postgres_binaries):
    """A server that writes its log only when a COMMIT makes it, so that a crash loses ids."""
    with MarkedPostgres(settings={"wal_writer_delay": "10s", "bgwriter_delay": "10s"}) as server:
        engine = sqlalchemy.create_engine(server.url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE lost (n int)"))
            connection.execute(text("CREATE TABLE other (n int)"))
        yield server, engine


def ticket_of_an_open_transaction(engine):
    """Begin, write, and read the ticket; the connection is then lost in the crash."""
    resolver = commit._resolver(engine)
    connection = engine.connect()
    insert(connection)
    ticket = read_ticket(connection.connection)
    return resolver, ticket, connection


def ask(resolver, ticket):
    return resolver._ask(ticket, outcome.Watch(ticket.read_at - 1))


def test_after_a_crash_an_id_that_was_given_out_again_is_not_taken_for_ours(lazy_log):
    server, plain = lazy_log
    engine = sa_railway.create_engine(server.url)
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)
    server.restart("immediate")
    connection.invalidate()
    with plain.begin() as stranger:
        stranger.execute(text("INSERT INTO other VALUES (1)"))
        reused = stranger.scalar(text("SELECT txid_current_if_assigned()"))

    assert reused == ticket.xid
    with plain.connect() as asking:
        assert asking.scalar(text(f"SELECT txid_status({ticket.xid})")) == "committed"
    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.ABORTED
    engine.dispose()


def test_after_a_crash_an_id_that_nobody_has_yet_means_aborted(lazy_log):
    server, _ = lazy_log
    engine = sa_railway.create_engine(server.url)
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)
    server.restart("immediate")
    connection.invalidate()

    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.ABORTED
    engine.dispose()


def test_after_two_crashes_nobody_can_tell(lazy_log):
    """The second recovery ends behind our log position, because strangers have written since."""
    server, plain = lazy_log
    engine = sa_railway.create_engine(server.url)
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)
    server.restart("immediate")
    connection.invalidate()
    for _ in range(20):
        with plain.begin() as stranger:
            stranger.execute(text("INSERT INTO other VALUES (1)"))
    server.restart("immediate")
    ticket = replace(ticket, read_at=ticket.read_at - 1)  # nobody has looked for a second

    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.UNKNOWN
    engine.dispose()


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_commit_that_survived_a_restart_is_found(own_postgres, mode):
    engine = sa_railway.create_engine(own_postgres.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE lost (n int)"))
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)
    connection.commit()
    own_postgres.stop(mode)
    ticket = replace(ticket, read_at=time.monotonic())
    with ThreadPoolExecutor() as executor:
        asking = executor.submit(resolver._resolve, ticket, float("inf"))
        own_postgres.start()

        assert asking.result() is Outcome.COMMITTED
    engine.dispose()


def test_a_later_checkpoint_hides_where_the_recovery_ended(own_postgres):
    engine = sa_railway.create_engine(own_postgres.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE lost (n int)"))
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)
    connection.commit()
    own_postgres.restart("immediate")
    with engine.begin() as connection:
        insert(connection, 2)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))

    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.UNKNOWN
    engine.dispose()


def test_a_role_without_privileges_can_ask(own_postgres):
    admin = sqlalchemy.create_engine(own_postgres.url, poolclass=NullPool)
    with admin.begin() as connection:
        connection.execute(text("CREATE ROLE app LOGIN"))
        connection.execute(text("GRANT CREATE ON SCHEMA public TO app"))
    engine = sa_railway.create_engine(own_postgres.url.set(username="app"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE lost (n int)"))
    resolver, ticket, connection = ticket_of_an_open_transaction(engine)

    assert ask(resolver, ticket) is None  # in progress; and its backend was ended
    with pytest.raises(DBAPIError):
        connection.commit()
    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.ABORTED
    own_postgres.restart("immediate")
    assert resolver._resolve(ticket, deadline=float("inf")) is Outcome.ABORTED
    engine.dispose()


def test_behind_a_pooler_nobody_is_ended(postgres, plain):
    """The pid that the client was told is not that of the backend."""
    engine = sa_railway.create_engine(postgres.url)
    resolver = commit._resolver(engine)
    with engine.connect() as connection:
        insert(connection)
        ticket = read_ticket(connection.connection)
        behind = replace(ticket, pid=None)

        assert ask(resolver, behind) is None
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_watched_commit_tells_what_became_of_it(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)
    with engine.connect() as connection:
        state = CommitState(deadline=float("inf"))
        connection.begin()
        assert watch_commit(connection, state) is True
        insert(connection)
        connection.commit()

        assert (state.writes, state.sent, state.outcome) == (True, True, Outcome.COMMITTED)
    engine.dispose()


def test_a_transaction_that_was_rolled_back_leaves_nothing_to_the_next(postgres, plain):
    engine = sa_railway.create_engine(postgres.url, pool_size=1)
    with engine.connect() as connection:
        state = CommitState(deadline=float("inf"))
        watch_commit(connection, state)
        insert(connection)
        connection.rollback()
    with engine.begin() as connection:
        insert(connection)

    assert not state.sent
    engine.dispose()


def test_a_loss_that_looks_like_a_failed_connect_is_a_loss(postgres, plain, outcomes):
    engine = sqlalchemy.create_engine(postgres.url)
    commit = engine.dialect.do_commit

    def commit_and_lose_the_answer(connection):
        commit(connection)
        raise psycopg2.OperationalError("could not receive data from server: Connection refused")

    engine.dialect.do_commit = commit_and_lose_the_answer
    sa_railway.run_transaction(engine, insert)

    assert rows(plain) == [1]
    assert outcomes == ["committed"]
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_transaction_that_has_failed_before_is_said_to_be_and_ended(postgres, plain, driver):
    engine = sa_railway.create_engine(postgres.url_for(driver), resolve_commit=True)
    with engine.connect() as connection:
        insert(connection)
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT * FROM no_such_table"))

        with pytest.raises(DBAPIError) as caught:
            connection.commit()

        assert sa_railway.classify(caught.value).sqlstate == "25P02"
        connection.rollback()
        insert(connection, 2)
        connection.commit()

    assert rows(plain) == [2]
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
        assert watch_commit(connection, CommitState(deadline=float("inf"))) is False
    engine.dispose()


def test_two_phase_commits_and_savepoints_are_left_alone(postgres_binaries, outcomes):
    with (
        MarkedPostgres(settings={"max_prepared_transactions": 2}) as server,
        ChaosProxy(server.url) as proxy,
    ):
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE lost (n int)"))
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
