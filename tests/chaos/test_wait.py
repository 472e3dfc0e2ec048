"""Waiting for a server that is away, starting, full, wrong or frozen, and for what it must hold."""

import asyncio
import functools
import logging
import re
import signal

import pytest
import sqlalchemy
from fix_engines import ASYNC, SYNC, plain_engine
from fix_events import hearing
from marked import MARK
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

import sa_railway
from sa_railway import events, wait_for_database
from sa_railway.asyncio import wait_for_database as wait_async
from sa_railway.engine import stopping
from sa_railway.exc import NotReadyError
from sa_railway.recovery import wait
from sa_railway.testing import ChaosProxy


def wait_in_asyncio(url, make=None, **arguments):
    async def main():
        target = url if make is None else make(url)
        try:
            await wait_async(target, **arguments)
        finally:
            if make is not None:
                await target.dispose()

    asyncio.run(main())


def wait_in_sync(url, make=None, **arguments):
    target = url if make is None else make(url)
    try:
        wait_for_database(target, **arguments)
    finally:
        if make is not None:
            target.dispose()


CASES = [
    *((driver, wait_in_sync, None) for driver in SYNC),
    *((driver, wait_in_sync, sqlalchemy.create_engine) for driver in SYNC),
    *((driver, wait_in_sync, sa_railway.create_engine) for driver in SYNC),
    *((driver, wait_in_asyncio, None) for driver in ASYNC),
    *((driver, wait_in_asyncio, create_async_engine) for driver in ASYNC),
    *((driver, wait_in_asyncio, sa_railway.create_async_engine) for driver in ASYNC),
]


def ways(cases):
    return pytest.mark.parametrize(
        ("driver", "wait_for", "make"),
        cases,
        ids=[
            f"{driver}-{'URL' if make is None else make.__module__.split('.')[0]}"
            for driver, _, make in cases
        ],
    )


every_way = ways(CASES)
both_ways = ways([("psycopg2", wait_in_sync, None), ("asyncpg", wait_in_asyncio, None)])


@pytest.fixture
def connects():
    """What the patience of an engine announces: it is to have no part in this."""
    with hearing(events.ConnectAttemptFailed, events.BreakerOpened) as heard:
        yield heard


@pytest.fixture
def plain(postgres):
    return plain_engine(
        postgres.url,
        "DROP TABLE IF EXISTS orders, alembic_version",
        "DROP SCHEMA IF EXISTS billing CASCADE",
        "CREATE SCHEMA billing",
    )


@both_ways
@pytest.mark.parametrize("sqlstate", ["57P03", "53300"])
def test_a_server_that_starts_or_is_full_is_waited_for(
    postgres, driver, wait_for, make, sqlstate, connects
):
    lines: list[str] = []
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        answer = proxy.answer(sqlstate, times=3)
        wait_for(proxy.url, make, progress=lines.append)
        answer.remove()
        name = re.escape(proxy.url.render_as_string())

    said = {"57P03": "the database system is starting up", "53300": "too many clients already"}
    assert len(lines) == 2
    assert re.fullmatch(
        rf"waiting for {name}, 1[12]\d s more at most: .*{said[sqlstate]}", lines[0]
    )
    assert re.fullmatch(rf"{name} is ready after [\d.]+ s", lines[1])
    assert connects == []


@every_way
def test_a_server_that_is_away_is_waited_for(postgres, driver, wait_for, make, connects):
    lines: list[str] = []

    def progress(line):
        lines.append(line)
        proxy.restore()

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        proxy.down()
        wait_for(proxy.url, make, progress=progress)

    # asyncio says "Connect call failed"
    assert re.search(r"Connection refused|Connect call failed", lines[0])
    assert len(lines) == 2
    assert connects == []


@pytest.mark.parametrize("driver", SYNC)
def test_a_server_that_is_started_later(own_postgres, driver):
    own_postgres.stop()
    lines: list[str] = []

    def start(line):
        lines.append(line)
        if len(lines) == 1:
            own_postgres.start()

    wait_for_database(own_postgres.url_for(driver), progress=start)

    assert len(lines) >= 2


def test_a_server_that_is_ready_is_not_waited_for(postgres):
    lines: list[str] = []

    wait_for_database(postgres.url, progress=lines.append)

    assert lines == []


def test_a_name_that_does_not_resolve_is_waited_for(postgres):
    lines: list[str] = []
    url = postgres.url.set(host="absent.invalid")

    with pytest.raises(sqlalchemy.exc.OperationalError, match="could not translate") as caught:
        wait_for_database(url, timeout=0.1, progress=lines.append)

    assert len(lines) == 1
    (note,) = caught.value.__notes__
    assert re.match(
        r"sa_railway: waited [\d.]+ s, with \d+ attempts?: The host name does not resolve: ", note
    )


@every_way
@pytest.mark.parametrize(
    ("change", "says", "fix"),
    [
        ({"password": f"wrong-{MARK}"}, "password authentication failed", "The password is wrong"),
        ({"database": "absent"}, 'database "absent" does not exist', "There is no such database"),
    ],
    ids=["password", "database"],
)
def test_what_waiting_cannot_mend_is_raised_at_once(
    guarded_postgres, driver, wait_for, make, change, says, fix
):
    lines: list[str] = []
    url = guarded_postgres.url_for(driver).set(**change)

    with pytest.raises(Exception, match=says) as caught:
        wait_for(url, make, progress=lines.append)

    assert lines == []
    assert not isinstance(caught.value, sa_railway.exc.RailwayError)
    assert [note for note in caught.value.__notes__ if note.startswith(f"sa_railway: {fix}")]
    assert MARK not in str(caught.value) + "".join(caught.value.__notes__)


def test_what_an_engine_says_of_errors_counts(postgres):
    """A database that another service is about to create, for instance."""
    url = postgres.url.set(database="absent")
    engine = sa_railway.create_engine(url, fault_kinds={"3D000": "connect-transient"})

    with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
        wait_for_database(engine, timeout=0.1)

    assert caught.value.__notes__[0].startswith("sa_railway: waited ")


def test_a_certificate_that_cannot_be_had_is_raised_at_once(postgres):
    lines: list[str] = []
    url = postgres.url.update_query_dict({"sslmode": "require"})

    with pytest.raises(sqlalchemy.exc.OperationalError, match="does not support SSL"):
        wait_for_database(url, progress=lines.append)

    assert lines == []


@pytest.mark.parametrize("make", [sqlalchemy.create_engine, sa_railway.create_engine])
def test_an_engine_connects_as_it_always_does(guarded_postgres, make):
    """Such as with a password that is fetched anew for each connection."""
    engine = make(guarded_postgres.url.set(password="expired"))

    @event.listens_for(engine, "do_connect")
    def provide_password(dialect, record, arguments, named):
        named["password"] = f"right-{MARK}"

    wait_for_database(engine)
    engine.dispose()


def test_other_work_of_the_engine_keeps_its_patience(postgres, connects):
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        wait_for_database(engine)
        engine.dispose()
        proxy.answer("57P03", times=2)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engine.dispose()

    assert len(connects) == 2


@every_way
def test_a_server_that_never_answers_does_not_hold_it(
    postgres, driver, wait_for, make, monkeypatch
):
    monkeypatch.setattr(wait, "_DEFAULT_LIMIT", 0.2)
    lines: list[str] = []

    def progress(line):
        lines.append(line)
        proxy.restore()

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        proxy.freeze()
        url = proxy.url
        if (driver, make) != ("asyncpg", create_async_engine):  # which takes none from a URL
            url = url.update_query_dict({"connect_timeout": "2"})
        wait_for(url, make, progress=progress)

    assert len(lines) == 2


@pytest.mark.parametrize("driver", SYNC)
def test_a_new_connection_that_never_answers_does_not_hold_it(postgres, driver, monkeypatch):
    """SQLAlchemy asks the server for its version and more before anybody gets the connection."""
    monkeypatch.setattr(wait, "_DEFAULT_LIMIT", 0.2)
    lines: list[str] = []
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sqlalchemy.create_engine(proxy.url)
        event.listen(
            engine, "connect", lambda *_: None if lines else proxy.freeze(new=False), insert=True
        )
        wait_for_database(engine, progress=lines.append)
        engine.dispose()

    assert "server closed the connection" in lines[0]
    assert len(lines) == 2


def test_a_pooled_connection_that_never_answers_does_not_hold_it(postgres, monkeypatch):
    monkeypatch.setattr(wait, "_DEFAULT_LIMIT", 0.2)
    lines: list[str] = []
    with ChaosProxy(postgres.url) as proxy:
        engine = sqlalchemy.create_engine(proxy.url)
        engine.connect().close()
        proxy.freeze(new=False)
        wait_for_database(engine, progress=lines.append)
        engine.dispose()

    assert "server closed the connection" in lines[0]
    assert len(lines) == 2


@every_way
def test_an_attempt_has_the_limit_of_its_engine(postgres, driver, wait_for, make, monkeypatch):
    """Such as for a server that wakes up slowly; the limit of an answer is for others."""
    monkeypatch.setattr(wait, "_DEFAULT_LIMIT", 0.01)
    lines: list[str] = []
    url = postgres.url_for(driver)
    if (driver, make) == ("asyncpg", create_async_engine):
        make = functools.partial(make, connect_args={"timeout": 60})
    else:
        url = url.update_query_dict({"connect_timeout": "60"})
    with ChaosProxy(url) as proxy:
        proxy.latency(0.1)
        wait_for(proxy.url, make, progress=lines.append)

    assert lines == []


@pytest.mark.parametrize("make", [sqlalchemy.create_engine, sa_railway.create_engine])
def test_a_listener_that_is_added_later_is_asked(guarded_postgres, make):
    engine = make(guarded_postgres.url)
    wait_for_database(engine)
    engine.dispose()
    asked = []

    @event.listens_for(engine, "do_connect")
    def provide_database(dialect, record, arguments, named):
        asked.append(named["dbname"])
        named["dbname"] = "template1"

    wait_for_database(engine)

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT current_database()")) == "template1"
    engine.dispose()
    assert asked == ["postgres"]


@both_ways
def test_a_process_that_is_being_stopped_waits_no_longer(
    postgres, driver, wait_for, make, monkeypatch
):
    monkeypatch.setattr(stopping, "_stopped_pid", None)
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *call: calls.append(call))
    try:
        with ChaosProxy(postgres.url_for(driver)) as proxy:
            proxy.down()
            with pytest.raises(Exception, match=r"refused|Connect call failed") as caught:
                wait_for(proxy.url, make, progress=lambda line: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert len(calls) == 1
    assert ", with 2 attempts: " in caught.value.__notes__[0]


@every_way
def test_the_last_exception_says_how_long_it_was_waited(postgres, driver, wait_for, make):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        proxy.down()
        with pytest.raises(Exception, match=r"refused|Connect call failed") as caught:
            wait_for(proxy.url, make, timeout=0.3)

    assert not isinstance(caught.value, sa_railway.exc.RailwayError)
    (note,) = caught.value.__notes__
    assert re.match(
        r"sa_railway: waited 0\.\d s, with \d+ attempts: Nothing listens at this address: ", note
    )


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "psycopg"])
def test_a_url_for_asyncio_will_do(postgres, driver):
    wait_for_database(postgres.url_for(driver))


# what the database must hold


@both_ways
def test_tables_are_waited_for(postgres, plain, driver, wait_for, make):
    lines: list[str] = []

    def progress(line):
        lines.append(line)
        with plain.begin() as connection:
            if len(lines) == 1:
                connection.execute(text("CREATE TABLE orders (n int)"))
            if len(lines) == 2:
                connection.execute(text("CREATE VIEW billing.invoice AS SELECT 1 AS n"))

    wait_for(
        postgres.url_for(driver), make, tables=["orders", "billing.invoice"], progress=progress
    )

    assert [line.partition(" at most: ")[2] for line in lines[:2]] == [
        "it lacks: table orders, table billing.invoice",
        "it lacks: table billing.invoice",
    ]
    assert len(lines) == 3


@both_ways
def test_a_gate_that_never_opens(postgres, plain, driver, wait_for, make):
    url = postgres.url_for(driver)

    with pytest.raises(NotReadyError) as caught:
        wait_for(url, make, timeout=0.2, tables=["orders"], revision="1975ea83b712")

    assert isinstance(caught.value, TimeoutError)
    assert caught.value.missing == ("table orders", "revision 1975ea83b712 (found: none)")
    assert re.fullmatch(
        re.escape(url.render_as_string()) + r" answers, but after [\d.]+ s it still lacks: "
        r"table orders, revision 1975ea83b712 \(found: none\)",
        str(caught.value),
    )


def set_revision(engine, revision):
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:r)"), {"r": revision})


@both_ways
def test_a_revision_is_waited_for(postgres, plain, driver, wait_for, make):
    set_revision(plain, "aaaa")
    lines: list[str] = []

    def progress(line):
        lines.append(line)
        set_revision(plain, "bbbb")

    wait_for(postgres.url_for(driver), make, revision="bbbb", progress=progress)

    assert lines[0].endswith("it lacks: revision bbbb (found: aaaa)")
    assert len(lines) == 2


@pytest.fixture(params=["alembic", "Flask-Migrate"])
def migrations(request, tmp_path):
    """Migrations aaaa and bbbb, and the file that leads to them."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for revision, before in [("aaaa", None), ("bbbb", "aaaa")]:
        (versions / f"{revision}.py").write_text(
            f"revision = {revision!r}\ndown_revision = {before!r}\n"
        )
    if request.param == "alembic":
        config = tmp_path / "alembic.ini"
        config.write_text(f"[alembic]\nscript_location = {tmp_path / 'migrations'}\n")
    else:
        config = tmp_path / "migrations" / "alembic.ini"
        config.write_text("[alembic]\n")
    return config


def test_head_is_what_the_code_brings_along(postgres, plain, migrations):
    set_revision(plain, "aaaa")
    lines: list[str] = []

    def progress(line):
        lines.append(line)
        set_revision(plain, "bbbb")

    wait_for_database(
        postgres.url, revision="head", alembic_config=str(migrations), progress=progress
    )

    assert lines[0].endswith("it lacks: revision bbbb (found: aaaa)")
    assert len(lines) == 2


# who is told


def test_people_at_a_terminal_are_told(postgres, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ChaosProxy(postgres.url) as proxy:
        proxy.answer("57P03", times=1)
        wait_for_database(proxy.url)

    captured = capsys.readouterr()
    assert re.fullmatch(r"waiting for .* starting up\n.* is ready after [\d.]+ s\n", captured.err)
    assert captured.out == ""


def test_machines_get_a_log(postgres, capsys, caplog):
    caplog.set_level(logging.INFO, "sa_railway.recovery.wait")
    with ChaosProxy(postgres.url) as proxy:
        proxy.answer("57P03", times=1)
        wait_for_database(proxy.url)

    assert capsys.readouterr().err == ""
    assert len(caplog.messages) == 2


def test_no_line_holds_a_password(guarded_postgres, plain):
    lines: list[str] = []

    with pytest.raises(NotReadyError) as caught:
        wait_for_database(
            guarded_postgres.url, timeout=0.1, tables=["absent"], progress=lines.append
        )

    assert "postgres:***@" in lines[0]
    assert MARK not in "".join(lines) + str(caught.value)
