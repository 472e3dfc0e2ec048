"""Commit markers: a row per transaction, by which every outcome can be proved."""

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy
from fix_commit import ANSWER_LOST, ARRIVED, NEVER_ARRIVED, UNDONE
from fix_engines import ASYNC, DRIVERS, SYNC, plain_engine
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from within import driver_of, using

import sa_railway
from sa_railway.commit import marker
from sa_railway.commit.decision import Outcome
from sa_railway.commit.marker_schema import HOME, REMOVED, create_sql, drop_sql
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.faults import classify
from sa_railway.testing import ChaosProxy

CUTS = {
    "before": (NEVER_ARRIVED, "aborted"),
    "after": (ARRIVED, "committed"),
    "answer": (ANSWER_LOST, "committed"),
}


def prepare(server, *, with_table=True):
    """Return an engine of plain SQLAlchemy, with an empty table for work and one for markers."""
    work = ["DROP TABLE IF EXISTS work", "CREATE TABLE work (n int)"]
    return plain_engine(server.url, *work, *drop_sql(), *(create_sql() if with_table else []))


@pytest.fixture
def plain(postgres):
    return prepare(postgres)


def rows(plain, query="SELECT n FROM work ORDER BY n"):
    with plain.connect() as connection:
        return list(connection.scalars(text(query)))


def markers(plain):
    query = (
        "SELECT committed FROM sa_railway_commit_marker WHERE removed_before IS NULL ORDER BY id"
    )
    return rows(plain, query)


def insert(connection, n=1):
    connection.execute(text("INSERT INTO work VALUES (:n)"), {"n": n})


def make(url, **options):
    return sa_railway.create_engine(url, resolve_commit=True, commit_marker=True, **options)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("driver", SYNC)
def test_the_row_tells_what_became_of_a_commit(postgres, plain, driver, cut, outcomes, caplog):
    point, expected = CUTS[cut]
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = make(proxy.url)
        with engine.connect() as connection:
            insert(connection)
            with proxy.cut(**point) as happening:
                try:
                    connection.commit()
                except DBAPIError as error:
                    outcomes += error.orig.__notes__[:1] if error.orig else []
        assert happening.happened
        engine.dispose()

    notes = [UNDONE] if expected == "aborted" else []
    assert outcomes == [expected, *notes]
    assert rows(plain) == ([1] if expected == "committed" else [])
    assert markers(plain) == [expected == "committed"]
    assert [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("driver", ASYNC)
def test_the_row_tells_it_in_asyncio(postgres, plain, driver, cut, outcomes):
    point, expected = CUTS[cut]

    async def work(connection):
        await connection.execute(text("INSERT INTO work VALUES (1)"))

    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url, commit_marker=True)
        with proxy.cut(**point) as happening:
            await sa_railway.asyncio.run_transaction(engine, work)
        await engine.dispose()
        return happening.happened

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        assert asyncio.run(main(proxy))
    assert outcomes == [expected]
    assert rows(plain) == [1]


@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
def test_it_costs_one_round_trip_and_none_where_the_driver_has_a_pipeline(postgres, plain, driver):
    async def count(proxy):
        engine = sa_railway.create_async_engine(proxy.url, **options)
        for _ in range(8):  # psycopg prepares a statement at its sixth use, which costs one more
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO work VALUES (1)"))
            counts.append(proxy.round_trips)
        await engine.dispose()

    def count_sync(proxy):
        engine = sa_railway.create_engine(proxy.url, **options)
        for _ in range(8):
            with engine.begin() as connection:
                insert(connection)
            counts.append(proxy.round_trips)
        engine.dispose()

    costs = []
    options: dict[str, Any]
    for options in ({}, {"resolve_commit": True, "commit_marker": True}):  # noqa: B007 - read by count()
        with ChaosProxy(postgres.url_for(driver)) as proxy:
            counts: list[int] = []
            asyncio.run(count(proxy)) if driver in ASYNC else count_sync(proxy)
            costs.append(counts[-1] - counts[-2])

    assert costs[1] - costs[0] == (
        0 if driver.startswith("psycopg") and driver != "psycopg2" else 1
    )


@pytest.mark.parametrize("driver", SYNC)
def test_a_transaction_that_reads_has_no_row(postgres, plain, driver):
    engine = make(postgres.url_for(driver))
    with engine.begin() as connection:
        connection.execute(text("SELECT n FROM work"))

    assert markers(plain) == []
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_it_survives_two_crashes_and_an_id_that_was_given_out_again(postgres_binaries, driver):
    """Where a ticket proves nothing: the answer is lost, and the server crashes twice."""
    from marked import MarkedPostgres

    with MarkedPostgres(settings={"wal_writer_delay": "10s"}) as server:
        plain = prepare(server)
        with ChaosProxy(server.url_for(driver)) as proxy:
            engine = make(proxy.url)
            returned = []
            for number, (point, _) in enumerate(CUTS.values()):
                crash = Crashes(server, plain)
                with proxy.cut(**point), engine.connect() as connection:
                    insert(connection, number)
                    if crash.instead_of_asking(engine, connection):
                        returned.append(number)
            engine.dispose()

        # the second COMMIT has arrived, but perhaps not been executed before the crash
        assert returned in ([2], [1, 2])
        assert rows(plain) == returned


class Crashes:
    """Lets a server crash twice, with strangers in between, before the outcome is asked for."""

    def __init__(self, server, plain):
        self.server, self.plain = server, plain

    def instead_of_asking(self, engine, connection):
        asker = engine.dialect.do_commit.__self__._asker
        ask = asker._ask

        def first_crash(*args, **kwargs):
            asker._ask = ask
            for _ in range(2):
                self.server.restart("immediate")
                for _ in range(5):
                    with self.plain.begin() as stranger:
                        stranger.execute(text("CREATE TEMPORARY TABLE own AS SELECT 1"))

        asker._ask = first_crash
        try:
            connection.commit()
        except DBAPIError:
            connection.rollback()
            return False
        return True


def test_a_backend_that_is_still_at_work_is_ended(postgres, plain, outcomes):
    """The client is cut off while its COMMIT executes a slow trigger; later it would succeed."""
    with plain.begin() as connection:
        for statement in (
            "CREATE OR REPLACE FUNCTION wait_long() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON work DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION wait_long()",
        ):
            connection.execute(text(statement))
    with ChaosProxy(postgres.url) as proxy:
        engine = make(proxy.url)
        with engine.connect() as connection:
            insert(connection)
            with proxy.cut(after="COMMIT"), pytest.raises(DBAPIError):
                connection.commit()
        engine.dispose()

    assert outcomes == ["aborted"]
    assert rows(plain) == []


def test_a_commit_that_is_asked_about_cannot_be_executed_later(postgres, plain):
    """Its statements are still under way when the question is answered."""
    engine = make(postgres.url)
    resolver = engine.dialect.do_commit.__self__
    with engine.connect() as connection:
        insert(connection)
        late = resolver._markers.new(connection.connection)
        assert resolver._asker.resolve(late, time.monotonic() + 30) is Outcome.ABORTED
        with pytest.raises(IntegrityError):
            connection.exec_driver_sql(marker._insert_sql(late))
    engine.dispose()

    assert rows(plain) == []


@pytest.mark.parametrize("driver", SYNC)
def test_a_commit_that_the_server_refuses_is_refused(postgres, plain, driver, outcomes):
    with plain.begin() as connection:
        unique = "ALTER TABLE work ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(unique))
    engine = make(postgres.url_for(driver))
    with engine.connect() as connection:
        insert(connection)
        insert(connection)
        with pytest.raises(IntegrityError):
            connection.commit()
        connection.rollback()
        insert(connection, 2)
        connection.commit()
    engine.dispose()

    assert outcomes == []
    assert rows(plain) == [2]


@pytest.mark.parametrize("has_markers", [False, True])
@pytest.mark.parametrize("driver", SYNC)
def test_a_transaction_that_has_failed_before_is_said_to_be_and_ended(
    postgres, plain, driver, has_markers
):
    engine = sa_railway.create_engine(
        postgres.url_for(driver), resolve_commit=True, commit_marker=has_markers
    )
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
    engine.dispose()

    assert rows(plain) == [2]


def messages(caplog, name):
    texts = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    return [one.removeprefix(f"{name}: ") for one in texts]


def named(server, driver="psycopg2", user="postgres"):
    url = server.url_for(driver)
    return f"postgresql+{driver}://{user}@127.0.0.1:{url.port}/postgres"


@pytest.mark.parametrize("driver", SYNC)
def test_a_missing_table_is_told_once_and_tickets_prove_instead(postgres, driver, outcomes, caplog):
    plain = prepare(postgres, with_table=False)
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = make(proxy.url, logging_name="app")
        with engine.connect() as connection:
            insert(connection)
            with proxy.cut(after="COMMIT"):
                connection.commit()
        engine.dispose()

    assert rows(plain) == [1]
    assert outcomes == ["committed"]
    assert messages(caplog, "app") == [
        "commit_marker is on, but there is no table sa_railway_commit_marker: create it with "
        "sa-railway commit-marker --create; until then, outcomes are proved by transaction ids"
    ]


@pytest.mark.parametrize("driver", SYNC)
def test_a_table_that_comes_later_is_found_by_a_new_connection(postgres, driver):
    plain = prepare(postgres, with_table=False)
    engine = make(postgres.url_for(driver))
    with engine.begin() as connection:
        insert(connection)
    prepare(postgres)
    engine.dispose()
    with engine.begin() as connection:
        insert(connection)

    assert markers(plain) == [True]
    engine.dispose()


def test_a_role_without_rights_is_told_at_the_first_connect(own_postgres, caplog):
    plain = prepare(own_postgres)
    with plain.begin() as connection:
        connection.execute(text("CREATE ROLE app LOGIN"))
        connection.execute(text("GRANT INSERT ON work, sa_railway_commit_marker TO app"))
    engine = make(own_postgres.url.set(username="app"), logging_name="app")
    with engine.begin() as connection:
        insert(connection)
    engine.dispose()

    assert rows(plain) == [1]
    assert messages(caplog, "app") == [
        "commit_marker is on, but the role may not read and write "
        "public.sa_railway_commit_marker: its owner can change that with sa-railway commit-marker "
        "--create --grant-to ROLE; until then, outcomes are proved by transaction ids"
    ]


@pytest.mark.parametrize("lacking", [HOME, REMOVED])
def test_a_table_without_a_first_row_is_told_at_the_first_connect(own_postgres, caplog, lacking):
    plain = prepare(own_postgres)
    with plain.begin() as connection:
        connection.execute(
            text("DELETE FROM sa_railway_commit_marker WHERE id = :id"), {"id": lacking}
        )
    engine = make(own_postgres.url, logging_name="app")
    with engine.begin() as connection:
        insert(connection)
    engine.dispose()

    assert rows(plain) == [1]
    assert messages(caplog, "app") == [
        "commit_marker is on, but public.sa_railway_commit_marker lacks its first rows: make them "
        "with sa-railway commit-marker --create; until then, outcomes are proved by transaction ids"
    ]


@pytest.mark.parametrize("driver", SYNC)
def test_a_refused_row_does_not_fail_the_commit(own_postgres, driver, outcomes, caplog):
    plain = prepare(own_postgres)
    with plain.begin() as connection:
        connection.execute(text("CREATE ROLE tenant"))
        connection.execute(text("GRANT INSERT ON work TO tenant"))
    with ChaosProxy(own_postgres.url_for(driver)) as proxy:
        engine = make(proxy.url, logging_name="app")
        with engine.connect() as connection:
            connection.execute(text("SET LOCAL ROLE tenant"))
            insert(connection)
            # psycopg sends one together with the row that is refused, which the server skips
            with proxy.cut(after="COMMIT", nth=2 if driver == "psycopg" else 1):
                connection.commit()
        engine.dispose()

    assert rows(plain) == [1]
    assert outcomes == ["committed"]
    assert messages(caplog, "app") == [
        "a commit marker was refused, and the outcome is proved by the transaction's id: "
        "permission denied for table sa_railway_commit_marker"
    ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_transaction_that_cannot_be_serialized_fails_as_without_a_marker(
    postgres, plain, driver, caplog
):
    """The row may be what the server refuses first, and is not what is wrong."""

    def check(connection):
        with plain.execution_options(isolation_level="SERIALIZABLE").connect() as other:
            for one in (connection, other):
                one.scalar(text("SELECT count(*) FROM work"))
            insert(connection, 1)
            insert(other, 2)
            other.commit()
        with pytest.raises(DBAPIError) as caught:
            connection.commit()
        return classify(caught.value).sqlstate, str(caught.value)

    found = [
        using(postgres, driver, check, isolation_level="SERIALIZABLE", **options)
        for options in ({"is_ours": False}, {"commit_marker": True, "logging_name": "app"})
    ]

    assert found[0] == found[1]
    assert found[0][0] == "40001"
    assert rows(plain) == [2, 2]
    assert messages(caplog, "app") == []


@pytest.mark.parametrize("driver", [*SYNC, "asyncpg"])
def test_old_rows_are_removed_in_bites_and_prove_nothing_any_more(
    postgres, plain, driver, monkeypatch
):
    monkeypatch.setattr(marker, "_EVERY", 4)
    monkeypatch.setattr(marker, "_BITE", 3)
    monkeypatch.setattr(marker, "_KEPT", -1000)  # a row of this very millisecond is old, too

    async def work(engine):
        for _ in range(8):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO work VALUES (1)"))
        await engine.dispose()

    if driver == "asyncpg":
        options: dict[str, Any] = {"resolve_commit": True, "commit_marker": True}
        asyncio.run(work(sa_railway.create_async_engine(postgres.url_for(driver), **options)))
    else:
        engine = make(postgres.url_for(driver))
        for _ in range(8):
            with engine.begin() as connection:
                insert(connection)
        engine.dispose()
    assert rows(plain) == [1] * 8
    assert markers(plain) == [True] * 2  # 8 rows, and twice 3 are gone

    engine = make(postgres.url)
    resolver = engine.dialect.do_commit.__self__
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        gone = resolver._markers.new(connection.connection)
        old = replace(gone, id=uuid.UUID(int=1), pid=None)
        assert resolver._asker.resolve(old, time.monotonic() + 30) is Outcome.UNKNOWN
    engine.dispose()


def test_an_unknown_outcome_names_the_marker(postgres, plain):
    with ChaosProxy(postgres.url) as proxy:
        engine = make(proxy.url, resolve_timeout=0.2)
        with engine.connect() as connection:
            insert(connection)
            proxy.cut(after="COMMIT")
            proxy.down(live=False)
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                connection.commit()
        engine.dispose()

    (id_,) = rows(
        plain, "SELECT id::text FROM sa_railway_commit_marker WHERE removed_before IS NULL"
    )
    assert caught.value.marker == id_
    assert caught.value.transaction_id is None
    assert str(caught.value) == (
        f"it is unknown whether the transaction with the commit marker {id_} was committed: the "
        "connection was lost during COMMIT, and the outcome could not be proved; SELECT committed "
        f"FROM sa_railway_commit_marker WHERE id = '{id_}' says true if it was, false if it was "
        "not and cannot be any more, and nothing if that is open; do not run the work again before "
        "you know"
    )


def test_another_database_is_not_asked(postgres, plain):
    """The address leads to a database that has the table, too, but is not the one of the COMMIT."""
    with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS elsewhere"))
        connection.execute(text("CREATE DATABASE elsewhere"))
    other = plain_engine(postgres.url.set(database="elsewhere"), *create_sql())
    place = ["postgres"]
    with ChaosProxy(postgres.url) as proxy:
        engine = make(proxy.url, resolve_timeout=1.0)

        @sqlalchemy.event.listens_for(engine, "do_connect")
        def choose(dialect, record, arguments, parameters):
            parameters["dbname"] = place[0]

        with engine.connect() as connection:
            insert(connection)
            place[0] = "elsewhere"
            with proxy.cut(after="COMMIT"), pytest.raises(CommitOutcomeUnknownError):
                connection.commit()
            assert connection.invalidated
        engine.dispose()

    assert rows(plain) == [1]
    with other.connect() as connection:
        count = "SELECT count(*) FROM sa_railway_commit_marker WHERE removed_before IS NULL"
        assert connection.scalar(text(count)) == 0


@pytest.mark.parametrize("has_markers", [False, True])
def test_what_psycopg_refuses_by_itself_is_raised_as_it_is(postgres, plain, has_markers):
    engine = sa_railway.create_engine(
        postgres.url_for("psycopg"), resolve_commit=True, commit_marker=has_markers
    )
    with engine.connect() as connection:
        connection.begin()
        driver = driver_of(connection)
        with driver.transaction():
            insert(connection)
            with pytest.raises(DBAPIError, match="Explicit commit"):
                connection.commit()
    engine.dispose()

    assert rows(plain) == [1]


def test_a_commit_of_the_applications_own_is_called(postgres, plain):
    import psycopg

    calls = []

    class Own(psycopg.Connection):
        def commit(self):
            calls.append(1)
            super().commit()

    url = postgres.url
    engine = make(
        postgres.url_for("psycopg"),
        creator=lambda: Own.connect(host=url.host, port=url.port, user="postgres"),
    )
    with engine.begin() as connection:
        insert(connection)
    engine.dispose()

    assert calls[-1:] == [1]
    assert rows(plain) == [1]
