"""Transactions that are run again until they have been committed exactly once."""

import asyncio
import threading
from typing import Any

import pytest
import sqlalchemy
from fix_commit import ANSWER_LOST, ARRIVED, NEVER_ARRIVED
from fix_engines import ASYNC, SYNC, plain_engine, pool_of
from fix_events import hearing
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import scoped_session, sessionmaker

import sa_railway
from sa_railway import events, run_transaction
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError
from sa_railway.testing import ChaosProxy

POINTS: list[dict[str, Any]] = [
    {"before": "BEGIN"},
    {"before": "INSERT", "nth": 2},
    NEVER_ARRIVED,
    ARRIVED,
    ANSWER_LOST,
]
BUSY = "DO $$ BEGIN RAISE EXCEPTION 'busy' USING ERRCODE = 'P0042'; END $$"
TRANSACTIONS = 100  # benchmarks/exactly_once.py does 1,000


@pytest.fixture
def plain(postgres):
    return plain_engine(
        postgres.url, "DROP TABLE IF EXISTS entry", "CREATE TABLE entry (n int, half int)"
    )


@pytest.fixture
def replays():
    with hearing(events.Replayed) as heard:
        yield heard


def wrong_numbers(plain, expected):
    """Return what is lost, and what is not there exactly once."""
    with plain.connect() as connection:
        counts = connection.execute(text("SELECT n, count(*) FROM entry GROUP BY n"))
        found: dict[int, int] = dict(counts.all())
    lost = [n for n in range(expected) if n not in found]
    return lost, [n for n, count in found.items() if count != 2]


def two_inserts(n):
    def work(connection):
        connection.execute(text("INSERT INTO entry VALUES (:n, 1)"), {"n": n})
        connection.execute(text("INSERT INTO entry VALUES (:n, 2)"), {"n": n})
        return n

    return work


def transactors(kind, engine):
    return {
        "engine": engine,
        "sessionmaker": sessionmaker(engine),
        "scoped_session": scoped_session(sessionmaker(engine)),
        "session": sessionmaker(engine)(),
    }[kind]


@pytest.mark.parametrize("kind", ["engine", "sessionmaker", "scoped_session", "session"])
@pytest.mark.parametrize("driver", SYNC)
def test_exactly_once_wherever_the_connection_is_cut(postgres, plain, driver, kind, replays):
    count = TRANSACTIONS if kind == "engine" else 10
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        transactor = transactors(kind, engine)
        happened = 0
        for n in range(count):
            with proxy.cut(**POINTS[n % len(POINTS)]) as cut:
                assert run_transaction(transactor, two_inserts(n)) == n
                happened += cut.happened
        if hasattr(transactor, "remove"):
            transactor.remove()
        assert pool_of(engine).checkedout() == 0
        engine.dispose()

    assert happened == count
    assert len(replays) >= count * 3 // 5
    assert wrong_numbers(plain, count) == ([], [])


@pytest.mark.parametrize("driver", ASYNC)
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_exactly_once_in_asyncio(postgres, plain, driver, kind):
    count = 30 if kind == "engine" else 10

    def work_for(n):
        async def work(connection):
            await connection.execute(text("INSERT INTO entry VALUES (:n, 1)"), {"n": n})
            await connection.execute(text("INSERT INTO entry VALUES (:n, 2)"), {"n": n})
            return n

        return work

    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url)
        transactor = engine if kind == "engine" else async_sessionmaker(engine)
        happened = 0
        for n in range(count):
            point = POINTS[n % len(POINTS)]
            with proxy.cut(**point) as cut:
                assert await run_async_transaction(transactor, work_for(n)) == n
                happened += cut.happened
        await engine.dispose()
        return happened

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        assert asyncio.run(main(proxy)) == count
    assert wrong_numbers(plain, count) == ([], [])


def test_exactly_once_while_the_server_crashes(own_postgres):
    """What was acknowledged must be there, and whatever is there must be there once."""
    plain = plain_engine(own_postgres.url, "CREATE TABLE entry (n int, half int)")
    engine = sa_railway.create_engine(own_postgres.url, pool_size=8)
    stop, lock = threading.Event(), threading.Lock()
    acknowledged, errors, numbers = [], [], iter(range(10**9))

    def work():
        while not stop.is_set():
            with lock:
                n = next(numbers)
            try:
                run_transaction(engine, two_inserts(n))
                acknowledged.append(n)
            except Exception as error:  # noqa: BLE001 - none is expected
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        known = len(acknowledged)
        while len(acknowledged) < known + 100:
            stop.wait(0.01)
        own_postgres.restart("immediate")
    stop.set()
    for thread in threads:
        thread.join(60)
    engine.dispose()

    assert [error for error in errors if not isinstance(error, CommitOutcomeUnknownError)] == []
    print(f"{len(acknowledged)} committed, {len(errors)} with an unknown outcome")
    with plain.connect() as connection:
        counts = connection.execute(text("SELECT n, count(*) FROM entry GROUP BY n"))
        found: dict[int, int] = dict(counts.all())
    assert [n for n in acknowledged if n not in found] == []
    assert [n for n, count in found.items() if count != 2] == []


def test_eight_threads_increment_one_row_under_serializable(postgres, replays):
    plain = plain_engine(
        postgres.url,
        "DROP TABLE IF EXISTS counter",
        "CREATE TABLE counter (n int)",
        "INSERT INTO counter VALUES (0)",
    )
    engine = sa_railway.create_engine(postgres.url, pool_size=8)
    errors, successes = [], []

    def increment(connection):
        n = connection.scalar(text("SELECT n FROM counter"))
        connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    def work(times):
        for _ in range(times):
            try:
                run_transaction(engine, increment, isolation_level="SERIALIZABLE", timeout=60)
                successes.append(1)
            except Exception as error:  # noqa: BLE001 - none is expected
                errors.append(error)

    threads = [threading.Thread(target=work, args=(63 if k < 4 else 62,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    engine.dispose()

    assert errors == []
    assert len(successes) == 500
    with plain.connect() as connection:
        assert connection.scalar(text("SELECT n FROM counter")) == 500
    assert len(replays) > 0  # there was something to replay


def test_deadlocks_are_replayed(postgres, replays):
    plain = plain_engine(
        postgres.url,
        "DROP TABLE IF EXISTS pair",
        "CREATE TABLE pair (id int, n int)",
        "INSERT INTO pair VALUES (1, 0), (2, 0)",
    )
    engine = sa_railway.create_engine(postgres.url)
    both_hold_one = threading.Barrier(2, timeout=10)
    attempts, errors = [], []

    def work(first, second):
        def callback(connection):
            update = text("UPDATE pair SET n = n + 1 WHERE id = :id")
            connection.execute(update, {"id": first})
            attempts.append(first)
            if len(attempts) <= 2:
                both_hold_one.wait()
            connection.execute(update, {"id": second})

        try:
            run_transaction(engine, callback)
        except Exception as error:  # noqa: BLE001 - none is expected
            errors.append(error)

    threads = [threading.Thread(target=work, args=ids) for ids in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    engine.dispose()

    assert errors == []
    assert len(replays) == 1
    with plain.connect() as connection:
        assert connection.scalars(text("SELECT n FROM pair")).all() == [2, 2]


def test_an_outage_is_ridden_out(own_postgres):
    engine = sa_railway.create_engine(own_postgres.url, connect_patience=0.2, breaker_pause=0.1)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE entry (n int, half int)"))
    own_postgres.stop()
    back = threading.Timer(1.0, own_postgres.start)
    back.start()

    assert run_transaction(engine, two_inserts(1)) == 1
    back.join()
    engine.dispose()


def test_the_deadline_ends_it_with_the_last_error_and_a_note(own_postgres):
    engine = sa_railway.create_engine(own_postgres.url, connect_patience=0.05, breaker_pause=0)
    own_postgres.stop()

    with pytest.raises(sqlalchemy.exc.OperationalError, match="refused") as caught:
        run_transaction(engine, two_inserts(1), timeout=0.5)

    assert any(
        note.startswith("sa_railway: run_transaction() gave up after ")
        for note in caught.value.__notes__
    )
    engine.dispose()


class UnrelatedError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [UnrelatedError("mine"), ConnectionResetError("another server's")]
)
@pytest.mark.parametrize("kind", ["engine", "sessionmaker", "scoped_session"])
def test_what_the_callback_raises_is_rolled_back_once_and_raised_as_it_is(
    postgres, plain, kind, error, replays
):
    engine = sa_railway.create_engine(postgres.url)
    calls = []

    def work(connection):
        calls.append(1)
        connection.execute(text("INSERT INTO entry VALUES (1, 1)"))
        raise error

    with pytest.raises(type(error)) as caught:
        run_transaction(transactors(kind, engine), work)

    assert caught.value is error
    assert calls == [1]
    assert replays == []
    assert wrong_numbers(plain, 0) == ([], [])
    assert pool_of(engine).checkedout() == 0
    engine.dispose()


def test_an_error_of_the_callback_is_not_hidden_by_a_dead_backend(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)

    def work(connection):
        connection.execute(text("INSERT INTO entry VALUES (1, 1)"))
        postgres.terminate_backends()
        raise UnrelatedError("mine")

    with pytest.raises(UnrelatedError, match="mine"):
        run_transaction(engine, work)
    with pytest.raises(UnrelatedError, match="mine"):
        run_transaction(sessionmaker(engine), work)
    assert pool_of(engine).checkedout() == 0
    engine.dispose()


def test_a_constraint_is_not_tried_again(postgres, plain, replays):
    engine = sa_railway.create_engine(postgres.url)

    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        run_transaction(engine, lambda c: c.execute(text("SELECT * FROM no_such_table")))
    assert replays == []
    engine.dispose()


@pytest.mark.parametrize("kind", ["engine", "sessionmaker"])
def test_what_the_user_calls_a_serialization_failure_is_replayed(postgres, plain, replays, kind):
    engine = sa_railway.create_engine(postgres.url, fault_kinds={"P0042": "serialization"})
    attempts = []

    def work(connection):
        two_inserts(0)(connection)
        attempts.append(1)
        if len(attempts) == 1:
            connection.execute(text(BUSY))

    run_transaction(transactors(kind, engine), work)

    assert wrong_numbers(plain, 1) == ([], [])
    assert len(replays) == 1
    engine.dispose()


def test_a_plan_that_a_migration_made_stale_is_prepared_anew(postgres, plain, replays):
    engine = sa_railway.create_engine(
        postgres.url_for("psycopg"), connect_args={"prepare_threshold": 0}
    )

    def read(connection):
        return connection.execute(text("SELECT * FROM entry")).keys()

    assert list(run_transaction(engine, read)) == ["n", "half"]
    with plain.begin() as connection:
        connection.execute(text("ALTER TABLE entry ADD third int"))

    assert list(run_transaction(engine, read)) == ["n", "half", "third"]
    assert len(replays) == 1
    engine.dispose()


def test_a_plan_that_a_migration_made_stale_is_prepared_anew_in_asyncio(postgres, plain, replays):
    async def read(connection):
        return (await connection.execute(text("SELECT * FROM entry"))).keys()

    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for("asyncpg"))
        before = await run_async_transaction(engine, read)
        with plain.begin() as connection:
            connection.execute(text("ALTER TABLE entry ADD third int"))
        after = await run_async_transaction(engine, read)
        await engine.dispose()
        return list(before), list(after)

    assert asyncio.run(main()) == (["n", "half"], ["n", "half", "third"])
    assert len(replays) == 1


# Session.rollback() says so after a COMMIT that failed behind another one
@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_of_two_databases_none_is_written_twice(postgres, plain):
    """One COMMIT never arrives; if the other one was first, it must not be done again."""

    class Model(sqlalchemy.orm.DeclarativeBase):
        pass

    class Entry(Model):
        __tablename__ = "entry"
        n: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)
        half: sqlalchemy.orm.Mapped[int]

    direct = sa_railway.create_engine(postgres.url)
    with ChaosProxy(postgres.url) as proxy:
        cut_off = sa_railway.create_engine(proxy.url)
        factory = sessionmaker(cut_off, binds={Entry: direct})
        for n in range(12):  # in which order a session commits is not defined

            def work(session, n=n):
                session.add(Entry(n=n, half=1))
                session.flush()
                values = text("INSERT INTO entry VALUES (:n, 2)")
                session.execute(values, {"n": n}, bind_arguments={"bind": cut_off})

            with (
                proxy.cut(before="COMMIT", times=None),
                pytest.raises((sqlalchemy.exc.OperationalError, CommitOutcomeUnknownError)),
            ):
                run_transaction(factory, work, timeout=0.5)
        cut_off.dispose()
        direct.dispose()

    with plain.connect() as connection:
        counts = text("SELECT n, count(*) FROM entry GROUP BY n HAVING count(*) > 1")
        assert connection.execute(counts).all() == []
        assert connection.scalar(text("SELECT count(*) FROM entry")) > 0


@pytest.mark.parametrize("writes", [None, True])
def test_writes_past_sqlalchemy_are_seen_and_may_be_declared(postgres, plain, writes):
    def by_cursor(connection):
        cursor = connection.connection.cursor()
        cursor.execute("INSERT INTO entry VALUES (0, 1), (0, 2)")
        cursor.close()

    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with proxy.cut(before="COMMIT"):
            run_transaction(engine, by_cursor, writes=writes)
        engine.dispose()

    assert wrong_numbers(plain, 1) == ([], [])


@pytest.mark.parametrize(("writes", "attempts"), [(None, 2), (False, 1)])
def test_what_is_declared_to_write_nothing_has_nothing_to_lose(
    postgres, plain, replays, writes, attempts
):
    """A function that only reads may be declared to; then its COMMIT costs and asks nothing."""
    with plain.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION price(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2'"
            )
        )
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        run_transaction(engine, lambda c: c.execute(text("SELECT 1")))
        with proxy.cut(before="COMMIT"):
            run_transaction(engine, lambda c: c.scalar(text("SELECT price(1)")), writes=writes)
        engine.dispose()

    assert len(replays) == attempts - 1


def test_an_isolation_level_is_that_of_these_transactions_only(postgres):
    engine = sa_railway.create_engine(postgres.url, pool_size=1)
    show = text("SHOW transaction_isolation")

    assert run_transaction(engine, lambda c: c.scalar(show)) == "read committed"
    for transactor in (engine, sessionmaker(engine)):
        level = run_transaction(
            transactor, lambda c: c.scalar(show), isolation_level="SERIALIZABLE"
        )
        assert level == "serializable"
        assert run_transaction(engine, lambda c: c.scalar(show)) == "read committed"
    engine.dispose()


def test_a_session_that_has_read_may_go_on(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)
    session = scoped_session(sessionmaker(engine))
    session.execute(text("SELECT 1"))

    run_transaction(session, two_inserts(0))

    session.remove()
    assert wrong_numbers(plain, 1) == ([], [])
    engine.dispose()


def test_a_session_with_uncommitted_changes_is_refused(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)
    session = scoped_session(sessionmaker(engine))
    session.execute(text("INSERT INTO entry VALUES (1, 1)"))

    with pytest.raises(ConfigurationError) as caught:
        run_transaction(session, two_inserts(0))

    assert str(caught.value) == (
        "transactor is a session with uncommitted changes, which could not be run again; "
        "commit them or roll them back before run_transaction()"
    )
    session.remove()
    engine.dispose()


COMMITS = "callback commits by itself; run_transaction() does so when it returns"
ENDS = (
    "callback has ended the transaction by itself; run_transaction() does so when it returns "
    "or raises"
)


@pytest.mark.parametrize("kind", ["engine", "sessionmaker", "scoped_session"])
@pytest.mark.parametrize(("method", "message"), [("commit", COMMITS), ("rollback", ENDS)])
def test_a_callback_that_ends_the_transaction_is_refused(postgres, plain, kind, method, message):
    engine = sa_railway.create_engine(postgres.url)

    def work(connection):
        connection.execute(text("INSERT INTO entry VALUES (1, 1)"))
        getattr(connection, method)()

    with pytest.raises(ConfigurationError) as caught:
        run_transaction(transactors(kind, engine), work)

    assert str(caught.value) == message
    assert wrong_numbers(plain, 0) == ([], [])
    engine.dispose()


def test_savepoints_of_the_callback_are_its_own_business(postgres, plain):
    engine = sa_railway.create_engine(postgres.url)

    def work(session):
        with session.begin_nested():
            two_inserts(0)(session)
        savepoint = session.begin_nested()
        two_inserts(1)(session)
        savepoint.rollback()

    run_transaction(sessionmaker(engine), work)

    assert wrong_numbers(plain, 1) == ([], [])
    engine.dispose()


AUTOCOMMIT = (
    "transactor is in autocommit mode, where a statement that was executed cannot be rolled back "
    "and run again; allowed: an isolation level that has transactions"
)


@pytest.mark.parametrize("kind", ["engine", "sessionmaker", "scoped_session", "session"])
@pytest.mark.parametrize("driver", SYNC)
def test_autocommit_is_refused_because_a_replay_would_repeat_it(postgres, plain, driver, kind):
    engine = sa_railway.create_engine(postgres.url_for(driver))
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    with pytest.raises(ConfigurationError) as caught:
        run_transaction(transactors(kind, autocommit), two_inserts(0))

    assert str(caught.value) == AUTOCOMMIT
    assert wrong_numbers(plain, 0) == ([], [])
    run_transaction(transactors(kind, autocommit), two_inserts(0), isolation_level="SERIALIZABLE")
    assert wrong_numbers(plain, 1) == ([], [])
    engine.dispose()


def test_autocommit_is_refused_in_asyncio(postgres, plain):
    async def main():
        engine = sa_railway.create_async_engine(
            postgres.url_for("asyncpg"), isolation_level="AUTOCOMMIT"
        )
        try:
            await run_async_transaction(engine, callback)
        finally:
            await engine.dispose()

    async def callback(connection):
        await connection.execute(text("INSERT INTO entry VALUES (0, 1)"))

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(main())

    assert str(caught.value) == AUTOCOMMIT
    assert wrong_numbers(plain, 0) == ([], [])


def test_other_databases_have_transactions_too(tmp_path):
    engine = sa_railway.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    run_transaction(engine, lambda c: c.execute(text("CREATE TABLE entry (n int, half int)")))

    assert run_transaction(engine, two_inserts(3)) == 3
    engine.dispose()


def test_a_flask_session(postgres, plain, tmp_path):
    import flask
    import flask_sqlalchemy

    with ChaosProxy(postgres.url) as proxy:
        app = flask.Flask(__name__, instance_path=str(tmp_path))
        app.config["SQLALCHEMY_DATABASE_URI"] = proxy.url
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = sa_railway.engine_options(proxy.url)
        db = flask_sqlalchemy.SQLAlchemy(app)
        with app.app_context():
            for n, point in enumerate(POINTS):
                db.session.execute(text("SELECT 1"))
                with proxy.cut(**point):
                    run_transaction(db.session, two_inserts(n))
            db.engine.dispose()

    assert wrong_numbers(plain, len(POINTS)) == ([], [])


def test_waiting_between_attempts_lets_the_event_loop_run(own_postgres):
    async def main():
        engine = sa_railway.create_async_engine(
            own_postgres.url_for("asyncpg"), connect_patience=0.1, breaker_pause=0.05
        )
        own_postgres.stop()
        starting = asyncio.get_running_loop().run_in_executor(None, own_postgres.start)

        async def work(connection):
            return await connection.scalar(text("SELECT 1"))

        ticks = 0
        task = asyncio.create_task(run_async_transaction(engine, work))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        await starting
        await engine.dispose()
        return task.result(), ticks

    result, ticks = asyncio.run(main())
    assert result == 1
    assert ticks > 10


@pytest.mark.parametrize("kind", ["engine", "factory"])
@pytest.mark.parametrize("driver", ASYNC)
def test_a_callback_that_is_cancelled_is_rolled_back_and_its_connection_given_back(
    postgres, plain, driver, kind
):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for(driver))
        inserted = asyncio.Event()

        async def work(connection):
            await connection.execute(text("INSERT INTO entry VALUES (1, 1)"))
            inserted.set()
            await asyncio.Event().wait()

        transactor = engine if kind == "engine" else async_sessionmaker(engine)
        task = asyncio.create_task(run_async_transaction(transactor, work))
        await inserted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool_of(engine).checkedout() == 0
        await engine.dispose()

    asyncio.run(main())

    with plain.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM entry")) == 0
