"""A COMMIT is never said to have happened if it has not, nor the reverse: kind by kind."""

import asyncio
import contextlib
import functools
import io
import logging
import re
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg
import psycopg2
import psycopg2.extras
import psycopg2.sql
import pytest
import sqlalchemy
from fix_commit import ANSWER_LOST, ARRIVED, NEVER_ARRIVED, UNDONE, unknown
from fix_engines import ASYNC, DRIVERS, PACKAGES, SYNC
from fix_missing import need
from fix_standby import Standby
from fix_waiting import wait_until
from marked import MarkedPostgres
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

import sa_railway
from sa_railway import run_transaction
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError
from sa_railway.testing import ChaosProxy
from sa_railway.testing.toxics import Cut

CUTS = {"before": NEVER_ARRIVED, "after": ARRIVED, "before its answer": ANSWER_LOST}


# --- the ways to commit, with any driver ----------------------------------------------------------


def transact(url, work, *, timeout=30.0, **options):
    """Run *work*, which takes a Connection, by run_transaction()."""
    if not is_asyncio(url):
        engine = sa_railway.create_engine(url, **options)
        with disposing(engine):
            return run_transaction(engine, work, timeout=timeout)

    async def main():
        engine = sa_railway.create_async_engine(url, **options)
        async with async_disposing(engine):
            return await run_async_transaction(
                engine, lambda connection: connection.run_sync(work), timeout=timeout
            )

    return asyncio.run(main())


def on_connection(url, work, **options):
    """Return what *work* does with a Connection whose every COMMIT is resolved."""
    if not is_asyncio(url):
        engine = sa_railway.create_engine(url, resolve_commit=True, **options)
        with disposing(engine), engine.connect() as connection:
            return work(connection)

    async def main():
        engine = sa_railway.create_async_engine(url, resolve_commit=True, **options)
        async with async_disposing(engine), engine.connect() as connection:
            return await connection.run_sync(work)

    return asyncio.run(main())


def commit(url, *works, **options):
    """Do each of *works*, which take a Connection, and commit, with every COMMIT resolved."""

    def each(connection):
        for work in works:
            work(connection)
            connection.commit()

    on_connection(url, each, **options)


WAYS = {"run_transaction": transact, "resolve_commit": commit}


def is_asyncio(url):
    return url.get_driver_name() in ASYNC


@contextlib.contextmanager
def disposing(engine):
    try:
        yield
    finally:
        engine.dispose()


@contextlib.asynccontextmanager
async def async_disposing(engine):
    try:
        yield
    finally:
        await engine.dispose()


def first_time(work, fault):
    """Return *work*, followed by a call of *fault* when it is done for the first time."""
    calls = []

    def disturbed(connection):
        work(connection)
        calls.append(1)
        if len(calls) == 1:
            fault()

    counted: Any = disturbed
    counted.calls = calls
    return counted


def insert(connection, n=1):
    connection.execute(text("INSERT INTO effect VALUES (:n)"), {"n": n})


def xid_of(connection):
    return connection.scalar(text("SELECT txid_current_if_assigned()"))


class Admin:
    """Statements of a superuser, each by itself, none of which waits for a standby."""

    def __init__(self, url):
        self.url = url
        self._engine = sqlalchemy.create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )

    def run(self, *statements):
        with self._engine.connect() as connection:
            connection.execute(text("SET synchronous_commit = local"))
            for statement in statements:
                connection.execute(text(statement))

    def scalar(self, query):
        with self._engine.connect() as connection:
            return connection.scalar(text(query))

    def effects(self):
        with self._engine.connect() as connection:
            return list(connection.scalars(text("SELECT n FROM effect ORDER BY n")))


@pytest.fixture
def admin(postgres):
    found = Admin(postgres.url)
    found.run("DROP TABLE IF EXISTS effect", "CREATE TABLE effect (n int)")
    return found


# --- what is not proved to be a read has something to lose ----------------------------------------


def raw(connection):
    """Return the driver's own connection, in a transaction, which asyncpg's adapter begins late."""
    connection.execute(text("SELECT 1"))
    return connection.connection.driver_connection


def notify(connection):
    connection.execute(text("NOTIFY effect, 'once'"))


def pg_notify(connection):
    connection.execute(text("SELECT pg_notify('effect', 'once')"))


def writing_function(connection):
    connection.execute(text("SELECT add_effect()"))


def script(connection):
    statements = "SET LOCAL lock_timeout = '3s'; ALTER TABLE effect ADD made int"
    if connection.dialect.driver == "asyncpg":  # which prepares what SQLAlchemy executes
        await_only(raw(connection).execute(statements))
    else:
        connection.execute(text(statements))


def copy(connection):
    if connection.dialect.driver == "asyncpg":
        await_only(raw(connection).copy_records_to_table("effect", records=[(1,)]))
        return
    with raw(connection).cursor() as cursor:
        if connection.dialect.driver == "psycopg2":
            cursor.copy_expert("COPY effect FROM STDIN", io.StringIO("1\n"))
        else:
            with cursor.copy("COPY effect FROM STDIN") as rows:
                rows.write_row((1,))


def many(connection):
    if connection.dialect.driver == "asyncpg":
        await_only(raw(connection).executemany("INSERT INTO effect VALUES ($1)", [(1,)]))
        return
    with raw(connection).cursor() as cursor:
        if connection.dialect.driver == "psycopg2":
            psycopg2.extras.execute_values(cursor, "INSERT INTO effect VALUES %s", [(1,)])
        else:
            cursor.executemany("INSERT INTO effect VALUES (%s)", [(1,)])


def in_bytes(connection):
    connection.exec_driver_sql(b"INSERT INTO effect VALUES (1)")


def composed(connection):
    sql = psycopg2.sql if connection.dialect.driver == "psycopg2" else psycopg.sql
    statement = sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier("effect"))
    connection.exec_driver_sql(statement)


def foreign_table(connection):
    connection.execute(text("INSERT INTO far_effect VALUES (1)"))


WRITERS = [
    (driver, work)
    for driver in PACKAGES
    for work in (notify, pg_notify, writing_function, script, copy, many, foreign_table)
] + [(driver, work) for driver in SYNC for work in (in_bytes, composed)]


@pytest.fixture
def count_effects(postgres, admin, work):
    """Return a function that says how often the effect of *work* is there."""
    admin.run(
        "CREATE OR REPLACE FUNCTION add_effect() RETURNS void LANGUAGE sql "
        "AS 'INSERT INTO effect VALUES (1)'",
    )
    if work is foreign_table:
        need("postgres_fdw", postgres)
        admin.run(
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
            "DROP SERVER IF EXISTS far CASCADE",
            "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw "
            f"OPTIONS (host '127.0.0.1', port '{postgres.port}', dbname 'postgres')",
            "CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'postgres')",
            "CREATE FOREIGN TABLE far_effect (n int) SERVER far OPTIONS (table_name 'effect')",
        )
    listener = psycopg2.connect(
        host="127.0.0.1", port=postgres.port, user="postgres", dbname="postgres"
    )
    with contextlib.closing(listener):
        listener.autocommit = True
        listener.cursor().execute("LISTEN effect")

        def payloads():
            listener.poll()
            return [notification.payload for notification in listener.notifies]

        def count():
            if work in (notify, pg_notify):
                admin.run("NOTIFY effect, 'end'")
                wait_until(lambda: "end" in payloads())
                return payloads().count("once")
            if work is script:
                return admin.scalar(
                    "SELECT count(*) FROM pg_attribute "
                    "WHERE attrelid = 'effect'::regclass AND attname = 'made'"
                )
            return admin.scalar("SELECT count(*) FROM effect")

        yield count


@pytest.mark.parametrize("point", CUTS)
@pytest.mark.parametrize(("driver", "work"), WRITERS)
def test_what_is_not_seen_to_write_is_run_exactly_once(
    postgres, driver, work, point, count_effects, outcomes
):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        disturbed = first_time(work, lambda: proxy.cut(**CUTS[point]))
        transact(proxy.url, disturbed)

    is_lost = point == "before"
    assert outcomes == ["aborted" if is_lost else "committed"]
    assert len(disturbed.calls) == (2 if is_lost else 1)
    assert count_effects() == 1


@pytest.mark.parametrize("point", ["before", "before its answer"])
@pytest.mark.parametrize(("driver", "work"), WRITERS)
def test_what_is_not_seen_to_write_is_committed_or_its_error_raised(
    postgres, driver, work, point, count_effects, outcomes
):
    is_lost = point == "before"
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        disturbed = first_time(work, lambda: proxy.cut(**CUTS[point]))
        with pytest.raises(DBAPIError) if is_lost else contextlib.nullcontext() as caught:
            commit(proxy.url, disturbed)

    if is_lost:
        assert caught is not None
        assert caught.value.connection_invalidated
        assert caught.value.orig is not None
        assert caught.value.orig.__notes__ == [UNDONE]
    assert outcomes == ["aborted" if is_lost else "committed"]
    assert count_effects() == (0 if is_lost else 1)


# --- a wait for a standby is not ended -----------------------------------------------------------


@pytest.fixture(scope="module")
def primary(postgres_binaries):
    # some tests switch to the next file of the log, which the standby must find all the same
    with MarkedPostgres(settings={"wal_keep_size": "2GB"}) as server:
        Admin(server.url).run("CREATE TABLE effect (n int)", "CREATE TABLE other (n int)")
        yield server


@pytest.fixture
def standby_away(primary):
    """A superuser of a server whose COMMITs wait for a standby that is not there."""
    admin = Admin(primary.url)
    admin.run("TRUNCATE effect")
    set_standby(admin, "SET synchronous_standby_names = 'standby'")
    yield admin
    set_standby(admin, "RESET synchronous_standby_names")


def set_standby(admin, change):
    names = "standby" if change.startswith("SET") else ""
    admin.run(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
    wait_until(lambda: admin.scalar("SHOW synchronous_standby_names") == names)


def waiting(admin):
    """Return the backends whose COMMIT waits for a standby."""
    return admin.scalar(
        "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    )


class Waiting(NamedTuple):
    """A COMMIT that waits for a standby while its client asks for the outcome."""

    pid: int
    xid: int
    answer: Future


@contextlib.contextmanager
def commit_waiting_for_a_standby(proxy, way, admin, **options):
    """Lose a COMMIT that waits for a standby, and ask often enough to have ended its backend."""
    ids: list[int] = []

    def work(connection):
        insert(connection)
        if not ids:
            ids.append(connection.scalar(text("SELECT pg_backend_pid()")))
            ids.append(xid_of(connection))
            proxy.cut(after="COMMIT")

    with ThreadPoolExecutor() as executor:
        answer = executor.submit(WAYS[way], proxy.url, work, **options)
        wait_until(lambda: (ids and ids[0] in waiting(admin)) or answer.done())
        before = proxy.accepted
        wait_until(lambda: proxy.accepted >= before + 6 or answer.done())
        pid, xid = ids
        yield Waiting(pid, xid, answer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_backend_that_waits_for_a_standby_is_left_to_it(
    primary, standby_away, driver, way, outcomes
):
    with (
        ChaosProxy(primary.url_for(driver)) as proxy,
        commit_waiting_for_a_standby(proxy, way, standby_away) as case,
    ):
        is_left = waiting(standby_away) == [case.pid] and not case.answer.done()
        set_standby(standby_away, "RESET synchronous_standby_names")
        case.answer.result(timeout=30)

    assert is_left
    assert outcomes == ["committed"]
    assert standby_away.effects() == [1]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_commit_that_no_standby_has_by_the_deadline_is_unknown(
    primary, standby_away, driver, outcomes
):
    with (
        ChaosProxy(primary.url_for(driver)) as proxy,
        commit_waiting_for_a_standby(
            proxy, "resolve_commit", standby_away, resolve_timeout=1.0
        ) as case,
    ):
        error = case.answer.exception(timeout=30)

        assert waiting(standby_away) == [case.pid]
    assert str(error) == unknown(case.xid)
    assert outcomes == ["unknown"]


def test_a_wait_that_an_administrator_ends_leaves_the_commit_open(primary, standby_away, outcomes):
    """It can be seen then, and would be gone after a failover."""
    with (
        ChaosProxy(primary.url) as proxy,
        commit_waiting_for_a_standby(proxy, "resolve_commit", standby_away) as case,
    ):
        standby_away.run(f"SELECT pg_terminate_backend({case.pid})")
        wait_until(lambda: standby_away.effects() == [1])
        # it is a COMMIT of the one that asks that waits now
        wait_until(lambda: waiting(standby_away) not in ([], [case.pid]) or case.answer.done())
        is_open = not case.answer.done()
        set_standby(standby_away, "RESET synchronous_standby_names")
        case.answer.result(timeout=30)

    assert is_open
    assert outcomes == ["committed"]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_commit_that_a_standby_gets_in_time_is_committed(primary, standby_away, driver, outcomes):
    with (
        Standby(primary) as standby,
        ChaosProxy(primary.url_for(driver)) as proxy,
    ):
        standby.catch_up(primary)
        standby.stop()
        with commit_waiting_for_a_standby(proxy, "run_transaction", standby_away) as case:
            is_open = not case.answer.done()
            standby.start()
            case.answer.result(timeout=30)
        standby.catch_up(primary)

        assert Admin(standby.url).effects() == [1]
    assert is_open
    assert outcomes == ["committed"]


@pytest.mark.parametrize("has_stranger", [False, True], ids=["free id", "a stranger has the id"])
def test_a_standby_that_takes_over_without_the_commit_is_not_said_to_have_it(
    primary, standby_away, has_stranger, outcomes
):
    with ChaosProxy(primary.url) as proxy, Standby(primary) as standby:
        standby.stop()
        with commit_waiting_for_a_standby(proxy, "run_transaction", standby_away) as case:
            down = proxy.down()
            primary.stop("immediate")
            try:
                standby.port = primary.port  # the address of the service leads to it now
                standby.start()
                standby.promote()
                promoted = Admin(standby.url)
                set_standby(promoted, "RESET synchronous_standby_names")
                if has_stranger:
                    give_away(promoted, case.xid)
                down.remove()
                error = case.answer.exception(timeout=60)
                effects = promoted.effects()
            finally:
                standby.stop()
                primary.start()

    assert outcomes[-1] == ("unknown" if has_stranger else "aborted")
    assert str(error) == (unknown(case.xid) if has_stranger else "None")
    assert effects == ([] if has_stranger else [1])


# --- a way that is shut is no look at the server --------------------------------------------------

SHUT = {
    "refused": lambda proxy: proxy.down(live=False),
    "full": lambda proxy: proxy.answer("53300", times=None),
    "starting": lambda proxy: proxy.answer("57P03", times=None),
}


@pytest.fixture(scope="module")
def crashing(postgres_binaries):
    """A server that writes its log only when a COMMIT makes it, so that a crash loses ids."""
    settings = {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0", "autovacuum": "off"}
    with MarkedPostgres(settings=settings) as server:
        Admin(server.url).run("CREATE TABLE effect (n int)", "CREATE TABLE other (n int)")
        yield server


@pytest.fixture
def stranger(crashing):
    found = Admin(crashing.url)
    # what follows is at the beginning of a page: no full page is there to be written early
    found.run("TRUNCATE effect, other", "SELECT pg_switch_wal()", "CHECKPOINT")
    return found


def give_away(admin, xid):
    """Have others commit until the id *xid* has been given out, and by them."""
    while admin.scalar("INSERT INTO other VALUES (1) RETURNING txid_current()") < xid:
        pass
    assert admin.scalar(f"SELECT txid_status({xid})") == "committed"


@contextlib.contextmanager
def commit_lost_in_a_partition(proxy, way, shut):
    """Lose a COMMIT before it arrives, and shut the way to the server within the block."""
    cuts, xids, faults = [], [], []
    is_ready = threading.Event()

    def work(connection):
        insert(connection)
        xids.append(xid_of(connection))
        if len(xids) == 1:
            cuts.append(proxy.cut(before="COMMIT"))
            faults.append(SHUT[shut](proxy))
            is_ready.set()

    with ThreadPoolExecutor() as executor:
        case = Partition(xids, executor.submit(WAYS[way], proxy.url, work))
        try:
            assert is_ready.wait(30)
            cuts[0].wait()
            yield case
        finally:
            proxy.restore()


class Partition(NamedTuple):
    """The ids of all attempts, and what the last one has come to."""

    xids: list[int]
    answer: Future


def assert_never_acknowledged(case, stranger, outcomes):
    error = case.answer.exception(timeout=60)

    assert str(error) == unknown(case.xids[0])
    assert isinstance(error, CommitOutcomeUnknownError)
    assert len(case.xids) == 1
    assert outcomes == ["unknown"]
    assert stranger.effects() == []


@pytest.mark.parametrize("shut", SHUT)
@pytest.mark.parametrize(
    ("driver", "way", "second_end"),
    [
        ("psycopg2", "run_transaction", "fast"),
        ("psycopg", "run_transaction", "immediate"),
        ("psycopg", "resolve_commit", "fast"),
        ("asyncpg", "run_transaction", "fast"),
    ],
)
def test_a_stranger_with_our_id_is_not_taken_for_us_after_two_lives_unseen(
    crashing, stranger, driver, way, shut, second_end, outcomes
):
    with ChaosProxy(crashing.url_for(driver)) as proxy:
        with commit_lost_in_a_partition(proxy, way, shut) as case:
            crashing.restart("immediate")
            give_away(stranger, case.xids[0])
            crashing.restart(second_end)
        assert_never_acknowledged(case, stranger, outcomes)


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_stranger_with_our_id_is_not_taken_for_us_after_a_checkpoint_that_looks_like_a_stop(
    crashing, stranger, driver, outcomes
):
    """With wal_level=minimal an online checkpoint is no different from that of a recovery."""
    stranger.run("ALTER SYSTEM SET wal_level = minimal", "ALTER SYSTEM SET max_wal_senders = 0")
    crashing.restart()
    try:
        with ChaosProxy(crashing.url_for(driver)) as proxy:
            with commit_lost_in_a_partition(proxy, "run_transaction", "refused") as case:
                crashing.restart("immediate")
                give_away(stranger, case.xids[0])
                stranger.run("CHECKPOINT")
            assert_never_acknowledged(case, stranger, outcomes)
    finally:
        stranger.run("ALTER SYSTEM RESET ALL")
        crashing.restart()


# --- statistics that are reset are no crash -------------------------------------------------------


@contextlib.contextmanager
def repeating(admin, *statements):
    """Execute *statements* again and again during the block."""
    stop, rounds = threading.Event(), []

    def repeat():
        while not stop.is_set():
            admin.run(*statements)
            rounds.append(1)

    with ThreadPoolExecutor() as executor:
        job = executor.submit(repeat)
        try:
            wait_until(lambda: rounds or job.done())
            yield
        finally:
            stop.set()
            job.result()


RESETS = ["SELECT pg_stat_reset_shared('bgwriter')"]


@pytest.mark.parametrize("also", [[], ["CHECKPOINT"]], ids=["", "and checkpoints"])
@pytest.mark.parametrize("role", ["postgres", "app"])
@pytest.mark.parametrize("driver", PACKAGES)
def test_statistics_that_are_reset_while_a_commit_is_resolved_are_no_crash(
    postgres, admin, driver, role, also, outcomes
):
    create_role(admin, "app")
    admin.run("GRANT INSERT ON effect TO app")
    resets = [*RESETS, *also]
    if role == "postgres" and admin.scalar("SELECT current_setting('server_version_num')::int") >= (
        170_000
    ):
        resets.append("SELECT pg_stat_reset_shared()")
    count = 6
    with (
        ChaosProxy(postgres.url_for(driver).set(username=role)) as proxy,
        repeating(admin, *resets),
    ):
        for n in range(count):
            cut = NEVER_ARRIVED if n % 3 == 2 else ANSWER_LOST
            work = functools.partial(insert, n=n)
            transact(proxy.url, first_time(work, functools.partial(proxy.cut, **cut)))

    assert admin.effects() == list(range(count))
    assert len(outcomes) == count
    assert "unknown" not in outcomes


def create_role(admin, name):
    admin.run(
        f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )


# --- a ticket that cannot be read -----------------------------------------------------------------

READS = [
    "SELECT price(n) FROM effect",
    "SELECT n FROM effect",
    "SELECT coalesce(sum(n), 0), to_char(now(), 'YYYY'), pg_size_pretty(1::bigint) FROM effect",
    "SELECT st FROM generate_series(1, 2) AS st",
    "EXPLAIN SELECT price(n) FROM effect",
]


@pytest.fixture(scope="module")
def standby(primary):
    Admin(primary.url).run(
        "CREATE FUNCTION price(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2'"
    )
    with Standby(primary, "observer") as server:
        yield server


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_standby_is_read_as_without_us(primary, standby, driver, way, outcomes, caplog):
    standby.catch_up(primary)

    def work(connection):
        for query in READS:
            connection.execute(text(query)).all()

    WAYS[way](standby.url_for(driver), work)

    assert outcomes == []
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("point", CUTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_standby_has_nothing_to_lose_by_a_lost_answer(primary, standby, way, point, outcomes):
    standby.catch_up(primary)
    with ChaosProxy(standby.url) as proxy:
        work = first_time(executing(READS[0]), lambda: proxy.cut(**CUTS[point]))
        WAYS[way](proxy.url, work)

    assert len(work.calls) == 1
    assert outcomes == ["committed"]


class Lack(NamedTuple):
    """What a role may not use, what is said of it, and what becomes of a COMMIT that is lost."""

    objects: list[str]
    missing: str = ""
    said_later: str = ""
    outcomes: tuple[str, str] = ("aborted", "committed")


STATISTICS = ["pg_stat_bgwriter", "pg_stat_archiver", "pg_stat_activity"]
LACKS = {
    "log position": Lack(["FUNCTION pg_current_wal_insert_lsn()"]),
    "timeline": Lack(["FUNCTION pg_walfile_name(pg_lsn)"]),
    "system": Lack(["FUNCTION pg_control_system()"], "EXECUTE on pg_control_system()"),
    "checkpoint": Lack(["FUNCTION pg_control_checkpoint()"]),
    "statistics": Lack(STATISTICS),
    "all that shows no crash": Lack(
        [*STATISTICS, "FUNCTION pg_control_checkpoint()"],
        "EXECUTE on pg_control_checkpoint()",
        outcomes=("aborted", "unknown"),
    ),
    "id": Lack(
        ["FUNCTION txid_current()"],
        "EXECUTE on txid_current()",
        "a transaction cannot have a ticket, so the outcome of a lost COMMIT is unknown: "
        "permission denied for function txid_current",
        outcomes=("unknown", "unknown"),
    ),
    "status": Lack(
        ["FUNCTION txid_status(bigint)"],
        "EXECUTE on txid_status(bigint)",
        "the outcome of a COMMIT cannot be asked for: permission denied for function txid_status",
        outcomes=("unknown", "unknown"),
    ),
}
SAID_EARLY = (
    "a COMMIT whose answer is lost will often have an unknown outcome, because the role lacks: {}; "
    "GRANT it, or use commit markers"
)


@pytest.fixture(scope="module")
def guarded(postgres):
    """A database of its own, for rights on functions are those of one."""
    admin = Admin(postgres.url)
    create_role(admin, "app")
    admin.run("DROP DATABASE IF EXISTS guarded", "CREATE DATABASE guarded")
    found = Admin(postgres.url.set(database="guarded"))
    found.run("CREATE TABLE effect (n int)", "GRANT INSERT ON effect TO app")
    return found


@contextlib.contextmanager
def without(guarded, objects):
    """Take *objects* from all roles during the block."""
    rights = [("EXECUTE" if name.startswith("FUNCTION") else "SELECT", name) for name in objects]
    guarded.run(*(f"REVOKE {right} ON {name} FROM public" for right, name in rights))
    try:
        yield
    finally:
        guarded.run(*(f"GRANT {right} ON {name} TO public" for right, name in rights))


OF_A_TICKET = ["log position", "id"]  # what is read before every COMMIT


@pytest.mark.parametrize(
    ("driver", "name", "is_early"),
    [
        pytest.param(driver, name, is_early, id=f"{driver}-{name}-{when}")
        for driver in PACKAGES
        for name in LACKS
        for is_early, when in [(True, "before the connect"), (False, "after a commit")]
        if is_early or driver != "asyncpg" or name not in OF_A_TICKET
    ],
)
def test_a_role_that_may_not_look_commits_and_is_told_what_it_lacks(
    guarded, driver, name, is_early, outcomes, caplog
):
    lack = LACKS[name]
    guarded.run("TRUNCATE effect")
    url = guarded.url.set(drivername=f"postgresql+{driver}", username="app")
    errors = []
    for cut in (NEVER_ARRIVED, ANSWER_LOST):
        with ChaosProxy(url) as proxy, contextlib.ExitStack() as block:
            take_rights = functools.partial(block.enter_context, without(guarded, lack.objects))
            if is_early:
                take_rights()

            def insert_without_rights(connection, take_rights=take_rights):
                if not is_early:
                    take_rights()  # a backend sees it when its next transaction begins
                insert(connection, 2)

            last = first_time(functools.partial(insert, n=3), functools.partial(proxy.cut, **cut))
            try:
                commit(proxy.url, insert, insert_without_rights, last)
            except (DBAPIError, CommitOutcomeUnknownError) as error:
                errors.append(error)

    assert outcomes == list(lack.outcomes)
    assert [isinstance(error, CommitOutcomeUnknownError) for error in errors] == [
        outcome == "unknown" for outcome in outcomes if outcome != "committed"
    ]
    assert guarded.effects() == [1, 1, 2, 2, 3]
    said = [lack.said_later] if lack.said_later else []
    if is_early and lack.missing:
        said.append(SAID_EARLY.format(lack.missing))
    if "unknown" in outcomes:
        said.append("the answer to a COMMIT was lost; outcome: unknown")
    assert {heard(warning) for warning in warnings(caplog)} == set(said)


def heard(warning):
    """Return *warning* without the name of the engine, and what SQLAlchemy 2.0 says of a class."""
    return re.sub(r"<class '[\w.]+'>: ", "", warning.partition("guarded: ")[2])


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", OF_A_TICKET)
def test_asyncpg_fails_once_when_a_right_is_taken_that_it_has_used(guarded, name, outcomes):
    """It could only be spared that by a round trip more for every COMMIT."""
    guarded.run("TRUNCATE effect")

    def work(connection):
        insert(connection, 1)
        connection.commit()
        with without(guarded, LACKS[name].objects):
            insert(connection, 2)
            with pytest.raises(DBAPIError, match="permission denied for function"):
                connection.commit()
            connection.rollback()
            insert(connection, 3)
            connection.commit()

    on_connection(guarded.url.set(drivername="postgresql+asyncpg", username="app"), work)

    assert outcomes == []
    assert guarded.effects() == [1, 3]


# --- the last words of a server are no answer -----------------------------------------------------


class LastWords(Cut):
    """The server ends with an error of *severity* in place of its answer to a COMMIT."""

    def __init__(self, severity, sqlstate):
        super().__init__(None, "CommandComplete", "COMMIT", nth=1, times=1, reset=False)
        fields = (f"S{severity}", f"V{severity}", f"C{sqlstate}", "Mcould not fdatasync file")
        body = "".join(f"{field}\0" for field in fields).encode() + b"\0"
        self._data = b"E" + struct.pack("!i", 4 + len(body)) + body

    def strikes(self, message):
        if not super().strikes(message):
            return False
        object.__setattr__(message, "data", self._data)  # it is passed on, and then the end
        return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("severity", "sqlstate"),
    [
        ("PANIC", "58030"),
        ("PANIC", "XX000"),
        ("PANIC", "53100"),
        ("FATAL", "58030"),
        ("FATAL", "XX000"),
        ("FATAL", "57P01"),
        ("ERROR", "08P01"),  # a pooler's, as the next
        ("ERROR", "MTF01"),
    ],
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_last_words_of_a_server_are_no_answer(
    postgres, admin, driver, severity, sqlstate, way, outcomes
):
    """The COMMIT is in the log that the server will recover from, whatever it says as it dies."""
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        work = first_time(insert, lambda: proxy._add(LastWords(severity, sqlstate)))
        WAYS[way](proxy.url, work)

    assert outcomes == ["committed"]
    assert admin.effects() == [1]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_backend_that_dies_of_its_commit_is_asked_about(postgres, admin, driver, outcomes):
    """A FATAL of the server itself, before the COMMIT has taken place."""
    admin.run(
        "DROP SEQUENCE IF EXISTS deaths",
        "CREATE SEQUENCE deaths",  # which no rollback sets back: there is one death
        "CREATE OR REPLACE FUNCTION die_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('deaths') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER dying AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION die_once()",
    )

    transact(postgres.url_for(driver), insert)

    assert outcomes == ["aborted"]
    assert admin.effects() == [1]


@pytest.mark.parametrize("way", WAYS)
def test_a_limit_of_the_driver_is_no_answer(postgres, admin, way, outcomes):
    """asyncpg gives up and cancels, but the COMMIT is past the point where that ends it."""
    admin.run(
        "CREATE OR REPLACE FUNCTION end_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; "
        "RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION end_late()",
    )

    WAYS[way](postgres.url_for("asyncpg"), insert, connect_args={"command_timeout": 2.0})

    assert outcomes == ["committed"]
    assert admin.effects() == [1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_refusal_is_an_answer(postgres, admin, driver, way, outcomes):
    admin.run("ALTER TABLE effect ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")

    def work(connection):
        insert(connection)
        insert(connection)

    with (
        ChaosProxy(postgres.url_for(driver)) as proxy,
        pytest.raises(sqlalchemy.exc.IntegrityError, match="effect_n_key"),
    ):
        WAYS[way](proxy.url, work)

    assert outcomes == []
    assert admin.effects() == []


# --- limits ---------------------------------------------------------------------------------------

DEAF = {
    "accepts and says nothing": lambda proxy: proxy.freeze(live=False),
    "drops every connection": lambda proxy: proxy.reset_peer(live=False),
}
TOO_LATE = 10  # seconds; half of one would do, and a limit other than our own is 30


@pytest.mark.parametrize("deafness", DEAF)
@pytest.mark.parametrize(
    ("way", "limit"), [("resolve_commit", "resolve_timeout"), ("run_transaction", "timeout")]
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_says_nothing_is_asked_until_the_deadline_only(
    postgres, admin, driver, way, limit, deafness, outcomes
):
    xids = []

    def work(connection):
        insert(connection)
        xids.append(xid_of(connection))
        proxy.cut(**ARRIVED)
        DEAF[deafness](proxy)

    with ThreadPoolExecutor() as executor, ChaosProxy(postgres.url_for(driver)) as proxy:
        answer = executor.submit(WAYS[way], proxy.url, work, connect_timeout=30, **{limit: 0.5})
        error = answer.exception(timeout=TOO_LATE)

    assert str(error) == unknown(xids[0])
    assert outcomes == ["unknown"]
    assert len(xids) == 1


# --- a session does not go on in another session --------------------------------------------------


def set_raw(connection):
    if connection.dialect.is_async:
        await_only(raw(connection).execute("SET search_path TO elsewhere"))
    else:
        with connection.connection.cursor() as cursor:
            cursor.execute("SET search_path TO elsewhere")


def executing(statement):
    return lambda connection: connection.execute(text(statement))


STATES = {
    "role": executing("SET ROLE tenant"),
    "search_path": executing("SET search_path TO elsewhere"),
    "set_config": executing("SELECT set_config('search_path', 'elsewhere', false)"),
    "lock": executing("SELECT pg_advisory_lock(7)"),
    "by the driver": set_raw,
    "temporary table": executing("CREATE TEMPORARY TABLE note (n int)"),
    "listening": executing("LISTEN effect"),
}


@pytest.fixture
def tenants(admin):
    """A role and a schema whose table is another one by the same name."""
    create_role(admin, "tenant")
    admin.run(
        "DROP SCHEMA IF EXISTS elsewhere CASCADE",
        "CREATE SCHEMA elsewhere",
        "CREATE TABLE elsewhere.effect (n int)",
        "GRANT USAGE ON SCHEMA elsewhere TO tenant",
        "GRANT INSERT ON effect, elsewhere.effect TO tenant",
    )
    return admin


LOST_SESSION = (
    "sa_railway: the connection was lost during the last COMMIT, which has happened; its "
    "session had settings or locks that a new connection would lack"
)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_session_with_a_state_ends_with_a_lost_answer(
    postgres, tenants, driver, state, outcomes, caplog
):
    """Nothing is executed as another role, or in another schema, than was set."""

    def work(connection):
        STATES[state](connection)
        connection.commit()
        insert(connection, 1)
        proxy.cut(**ANSWER_LOST)
        connection.commit()
        with pytest.raises(DBAPIError) as caught:
            insert(connection, 2)
        connection.rollback()
        insert(connection, 3)
        connection.commit()
        return caught.value, connection.scalar(text("SELECT current_user"))

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        error, user = on_connection(proxy.url, work)

    assert error.connection_invalidated
    assert error.orig.__notes__ == [LOST_SESSION]
    assert user == "postgres"
    assert outcomes == ["committed"]
    assert warnings(caplog) == []
    is_elsewhere = state in ("search_path", "set_config", "by the driver")
    assert tenants.effects() == ([3] if is_elsewhere else [1, 3])
    assert tenants.scalar("SELECT array_agg(n) FROM elsewhere.effect") == (
        [1] if is_elsewhere else None
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_session_with_a_state_can_be_closed_after_a_lost_answer(
    postgres, tenants, driver, state, outcomes, caplog
):
    def work(connection):
        STATES[state](connection)
        insert(connection)
        proxy.cut(**ANSWER_LOST)

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        commit(proxy.url, work)

    assert outcomes == ["committed"]
    assert warnings(caplog) == []


LOCAL = {
    "nothing": executing("SELECT 1"),
    "local setting": executing("SET LOCAL search_path TO elsewhere, public"),
    "row lock": executing("SELECT n FROM effect FOR UPDATE"),
}


@pytest.mark.parametrize("state", LOCAL)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_session_without_a_state_goes_on_after_a_lost_answer(
    postgres, tenants, driver, state, outcomes, caplog
):
    def work(connection):
        LOCAL[state](connection)
        connection.execute(text("INSERT INTO public.effect VALUES (1)"))
        proxy.cut(**ANSWER_LOST)

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        commit(proxy.url, work, functools.partial(insert, n=2))

    assert outcomes == ["committed"]
    assert tenants.effects() == [1, 2]
    assert warnings(caplog) == []


# --- no clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_clean_restart_that_was_not_watched_proves_what_came_before_it(
    crashing, stranger, driver, outcomes
):
    """However late the client looks again, and however many ask at once."""
    count = 8
    cuts = []

    def work(connection, n):
        insert(connection, n)
        cuts.append(proxy.cut(**ANSWER_LOST))
        all_are_open.wait()

    all_are_open = threading.Barrier(count, timeout=30)
    with ChaosProxy(crashing.url_for(driver)) as proxy, ThreadPoolExecutor(count) as executor:
        answers = [
            executor.submit(transact, proxy.url, functools.partial(work, n=n)) for n in range(count)
        ]
        wait_until(lambda: len(cuts) == count)
        down = proxy.down(live=False)
        for cut in cuts:
            cut.wait(30)
        crashing.restart("fast")
        down.remove()
        for answer in answers:
            answer.result(timeout=60)

    assert outcomes == ["committed"] * count
    assert stranger.effects() == list(range(count))


# --- a callback does not end its own transaction --------------------------------------------------


def by_cursor(statement):
    def execute(connection):
        driver = raw(connection)
        if connection.dialect.is_async:
            await_only(driver.execute(statement))
        else:
            driver.cursor().execute(statement)

    return execute


def by_method(connection):
    connection.connection.commit()


def by_drivers_method(connection):
    driver = raw(connection)
    if connection.dialect.is_async:
        await_only(driver.commit())
    else:
        driver.commit()


def by_driver_sql(statement):
    return lambda connection: connection.exec_driver_sql(statement)


ENDS = {
    "text": ("COMMIT", executing("COMMIT")),
    "small letters, a comment, an option": ("COMMIT", executing("/* now */ commit AND CHAIN")),
    "END": ("END", executing("END")),
    "ROLLBACK": ("ROLLBACK", executing("ROLLBACK")),
    "PREPARE TRANSACTION": ("PREPARE TRANSACTION", executing("PREPARE TRANSACTION 'ours'")),
    "driver's text": ("COMMIT", by_driver_sql("COMMIT")),
    "at the end of a text": ("COMMIT", executing("INSERT INTO effect VALUES (2); COMMIT")),
    "cursor": ("COMMIT", by_cursor("COMMIT")),
    "at the end of a cursor's text": (
        "COMMIT",
        by_cursor("INSERT INTO effect VALUES (2); COMMIT"),
    ),
    "method": ("COMMIT", by_method),
}
OF_LIBPQ = {
    "driver's method": ("COMMIT", by_drivers_method),
    "bytes": ("COMMIT", by_driver_sql(b"COMMIT")),
}


ENDING = ("COMMIT", "ROLLBACK", "PREPARE TRANSACTION", "INSERT")
ENDED = (
    "callback executes {} by itself; run_transaction() ends the transaction when it returns or "
    "raises"
)


@pytest.mark.parametrize(
    ("driver", "kind"),
    [(driver, kind) for driver in DRIVERS for kind in ENDS]
    + [(driver, kind) for driver in SYNC for kind in OF_LIBPQ]
    + [("psycopg_async", "driver's method")],
)
def test_a_callback_that_would_end_its_transaction_is_refused_before_it_is_sent(
    postgres, admin, driver, kind, outcomes
):
    command, end = (ENDS | OF_LIBPQ)[kind]
    sent: list[str] = []

    def work(connection):
        insert(connection)
        before = proxy.messages
        try:
            end(connection)
        finally:
            sent.extend(name for name in ENDING if proxy.messages[name] > before[name])

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        with pytest.raises(ConfigurationError) as caught:
            transact(proxy.url, work)

        # a rollback of what was refused is all that follows
        assert sent == []
        assert proxy.messages["COMMIT"] == proxy.messages["PREPARE TRANSACTION"] == 0
    assert str(caught.value) == ENDED.format(command)
    assert outcomes == []
    assert admin.effects() == []


def transact_with_session(url, work, isolation_level):
    if not is_asyncio(url):
        engine = sa_railway.create_engine(url)
        with disposing(engine):
            run_transaction(sessionmaker(engine), work, isolation_level=isolation_level)
        return

    async def main():
        engine = sa_railway.create_async_engine(url)
        async with async_disposing(engine):
            await run_async_transaction(
                async_sessionmaker(engine),
                lambda session: session.run_sync(work),
                isolation_level=isolation_level,
            )

    asyncio.run(main())


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE"])
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_callback_with_a_session_is_refused_before_it_is_sent_too(
    postgres, admin, driver, isolation_level
):
    """Also of a session whose connection was taken early, for its isolation level."""

    def work(session):
        session.execute(text("INSERT INTO effect VALUES (1)"))
        session.execute(text("COMMIT"))

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        with pytest.raises(ConfigurationError) as caught:
            transact_with_session(proxy.url, work, isolation_level)

        assert proxy.messages["COMMIT"] == 0
    assert str(caught.value) == ENDED.format("COMMIT")
    assert admin.effects() == []


def test_what_was_refused_of_one_callback_is_not_refused_of_others(postgres, admin):
    """The connection goes back to the pool, and the next one may commit as it likes."""
    engine = sa_railway.create_engine(postgres.url, pool_size=1)
    with disposing(engine):
        with pytest.raises(ConfigurationError):
            run_transaction(engine, executing("COMMIT"))
        with engine.connect() as connection:
            insert(connection)
            connection.connection.commit()

    assert admin.effects() == [1]
