"""What real errors mean, as each driver raises them by itself and through SQLAlchemy."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import threading

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from fix_waiting import wait_until
from marked import MARK, MarkedPostgres, conninfo
from packaging.version import Version
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from sa_railway import faults
from sa_railway.faults import classify

SYNC = {"psycopg2": psycopg2, "psycopg": psycopg}
DEADLINE = 30.0


class Raw:
    """A connection of psycopg2 or psycopg, in autocommit."""

    def __init__(self, url, **connect_args):
        driver = SYNC[url.get_driver_name()]
        plain = conninfo(url)
        self.connection = driver.connect(plain, **connect_args)
        self.connection.autocommit = True

    def run(self, statement):
        cursor = self.connection.cursor()
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None

    def close(self):
        self.connection.close()


class RawAsync:
    """A connection of asyncpg."""

    def __init__(self, url, **connect_args):
        plain = conninfo(url)
        self.runner = asyncio.Runner()
        try:
            self.connection = self.await_(asyncpg.connect(plain, **connect_args))
        except BaseException:
            self.runner.close()
            raise

    def await_(self, awaitable):
        async def wait():
            return await awaitable

        return self.runner.run(wait())

    def run(self, statement):
        return self.await_(self.connection.fetchval(statement))

    def close(self):
        self.connection.terminate()
        self.runner.close()


class Alchemy:
    """A connection of an engine, in autocommit."""

    def __init__(self, url, **connect_args):
        self.engine = sqlalchemy.create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_args
        )
        self.connection = self.engine.connect()

    def run(self, statement):
        result = self.connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None

    def close(self):
        self.connection.close()


class AlchemyAsync:
    """A connection of an asyncio engine, in autocommit."""

    def __init__(self, url, **connect_args):
        self.runner = asyncio.Runner()
        self.engine = create_async_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_args
        )
        try:
            self.connection = self.runner.run(self.connect())
        except BaseException:
            self.runner.close()
            raise

    async def connect(self):
        return await self.engine.connect()

    def run(self, statement):
        async def execute():
            result = await self.connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

        return self.runner.run(execute())

    def close(self):
        self.runner.run(self.connection.close())
        self.runner.close()


WAYS = {
    "psycopg2": Raw,
    "psycopg": Raw,
    "asyncpg": RawAsync,
    "sqlalchemy-psycopg2": Alchemy,
    "sqlalchemy-psycopg": Alchemy,
    "sqlalchemy-asyncpg": AlchemyAsync,
}


@pytest.fixture(params=list(WAYS))
def way(request):
    """One of the ways to the server; ``driver`` is a part of it."""
    return request.param


@pytest.fixture
def driver(way):
    return way.rpartition("-")[2]


def close_quietly(client):
    with contextlib.suppress(Exception):  # it may be the broken one
        client.close()


@pytest.fixture
def connect(way, driver):
    """Connect in this way to a server, or to another URL than its own."""
    with contextlib.ExitStack() as stack:

        def connect(server, url=None, **connect_args):
            url = (url or server.url).set(drivername=f"postgresql+{driver}")
            client = WAYS[way](url, **connect_args)
            stack.callback(close_quietly, client)
            return client

        yield connect


@pytest.fixture(scope="module")
def admin(postgres):
    """A superuser who looks on and sets the stage."""
    client = Raw(postgres.url)
    client.run("CREATE TABLE IF NOT EXISTS faults_real (id int PRIMARY KEY, n int)")
    client.run("INSERT INTO faults_real VALUES (1, 0), (2, 0)")
    yield client
    client.run("DROP TABLE faults_real")
    client.close()


@pytest.fixture
def other(postgres, admin):
    """Another session, which is in the way."""
    client = Raw(postgres.url)
    yield client
    client.close()


@pytest.fixture
def client(connect, postgres, admin):
    return connect(postgres)


def wait_until_gone(admin, pid):
    gone = f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"
    wait_until(lambda: admin.run(gone))


def fault_of(function, *arguments, **keywords):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - every driver has its own
        function(*arguments, **keywords)
    return classify(caught.value)


def facts(fault):
    return str(fault.kind), fault.transient


def reported(driver, sqlstate):
    """The SQLSTATE that a driver may make of the last word of a server that then hung up.

    psycopg2 never reads it; the others do, unless their own statement fails to be sent before,
    which asyncpg called 08003 before 0.32.
    """
    if driver.endswith("asyncpg") and Version(asyncpg.__version__) < Version("0.32"):
        return {sqlstate, None, "08003"}
    return {None} if driver == "psycopg2" else {sqlstate, None}


def test_every_code_is_read_from_every_driver(client):
    codes = {
        error.sqlstate
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
    }
    assert len(codes) > 200
    for code in sorted(codes):
        raising = f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"
        fault = fault_of(client.run, raising)
        assert fault.sqlstate == code
        if code in faults._ENDS or (code.startswith("08") and code != "08007"):
            assert fault.kind == "permanent"  # the connection that it came over works
        else:
            assert fault.kind == classify(psycopg.errors.lookup(code)("x")).kind


@pytest.mark.parametrize("inside", ["a transaction", "none"])
def test_terminated_while_idle(client, driver, admin, inside):
    if inside == "a transaction":
        client.run("BEGIN")
    pid = client.run("SELECT pg_backend_pid()")
    admin.run(f"SELECT pg_terminate_backend({pid})")
    wait_until_gone(admin, pid)

    fault = fault_of(client.run, "SELECT 1")
    assert facts(fault) == ("disconnect", True)
    assert fault.sqlstate in reported(driver, "57P01")


def test_terminated_in_the_middle_of_a_statement(client, driver):
    fault = fault_of(client.run, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(30)")

    assert facts(fault) == ("disconnect", True)
    assert fault.sqlstate in reported(driver, "57P01")


def test_a_connection_that_was_lost_before(client):
    fault_of(client.run, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(30)")

    assert facts(fault_of(client.run, "SELECT 1")) == ("disconnect", True)


def test_idle_for_too_long_in_a_transaction(client, driver, admin):
    pid = client.run("SELECT pg_backend_pid()")
    client.run("SET idle_in_transaction_session_timeout = 1")
    client.run("BEGIN")
    wait_until_gone(admin, pid)

    fault = fault_of(client.run, "SELECT 1")
    assert facts(fault) == ("disconnect", True)
    assert fault.sqlstate in reported(driver, "25P03")


def test_idle_for_too_long(client, driver, admin):
    pid = client.run("SELECT pg_backend_pid()")
    client.run("SET idle_session_timeout = 1")
    wait_until_gone(admin, pid)

    fault = fault_of(client.run, "SELECT 1")
    assert facts(fault) == ("disconnect", True)
    assert fault.sqlstate in reported(driver, "57P05")


def test_statement_timeout(client):
    client.run("SET statement_timeout = 1")

    fault = fault_of(client.run, "SELECT pg_sleep(30)")
    assert (*facts(fault), fault.sqlstate) == ("query-cancelled", False, "57014")


def test_lock_timeout(client, other):
    other.run("BEGIN")
    other.run("SELECT * FROM faults_real FOR UPDATE")
    client.run("SET lock_timeout = 1")

    fault = fault_of(client.run, "UPDATE faults_real SET n = 1")
    assert (*facts(fault), fault.sqlstate) == ("lock-timeout", True, "55P03")


def test_a_lock_that_is_not_waited_for(client, other):
    other.run("BEGIN")
    other.run("SELECT * FROM faults_real FOR UPDATE")

    fault = fault_of(client.run, "SELECT * FROM faults_real FOR UPDATE NOWAIT")
    assert (*facts(fault), fault.sqlstate) == ("lock-timeout", True, "55P03")


def test_deadlock(client, other, admin):
    other.run("SET deadlock_timeout = '10min'")  # so that the client is the one to give way
    other.run("BEGIN")
    other.run("UPDATE faults_real SET n = 1 WHERE id = 1")
    client.run("SET deadlock_timeout = 1")
    client.run("BEGIN")
    client.run("UPDATE faults_real SET n = 1 WHERE id = 2")
    waiting = threading.Thread(
        target=other.run, args=("UPDATE faults_real SET n = 1 WHERE id = 2",)
    )
    waiting.start()
    pid = other.connection.info.backend_pid
    wait_until(lambda: admin.run(f"SELECT cardinality(pg_blocking_pids({pid})) > 0"))

    fault = fault_of(client.run, "UPDATE faults_real SET n = 1 WHERE id = 1")
    waiting.join(DEADLINE)
    assert (*facts(fault), fault.sqlstate) == ("deadlock", True, "40P01")


def test_serialization_failure(client, admin):
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
    client.run("SELECT n FROM faults_real WHERE id = 1")
    admin.run("UPDATE faults_real SET n = n + 1 WHERE id = 1")

    fault = fault_of(client.run, "UPDATE faults_real SET n = n + 1 WHERE id = 1")
    assert (*facts(fault), fault.sqlstate) == ("serialization", True, "40001")


def test_read_only_transaction(client):
    client.run("BEGIN READ ONLY")

    fault = fault_of(client.run, "UPDATE faults_real SET n = 1")
    assert (*facts(fault), fault.sqlstate) == ("read-only", True, "25006")


def test_a_transaction_that_has_failed_before(client):
    client.run("BEGIN")
    fault_of(client.run, "SELECT 1/0")

    fault = fault_of(client.run, "SELECT 1")
    assert (*facts(fault), fault.sqlstate) == ("permanent", False, "25P02")


@pytest.fixture(scope="module")
def never_raises():
    """A server that asks for a password."""
    with MarkedPostgres(password=MARK) as server:
        client = Raw(server.url)
        client.run(f"CREATE ROLE clerk LOGIN PASSWORD '{MARK}' CONNECTION LIMIT 0")
        client.run(f"CREATE ROLE nobody PASSWORD '{MARK}'")
        client.run("CREATE DATABASE small CONNECTION LIMIT 0")
        client.close()
        yield server


@pytest.mark.parametrize(
    ("part", "kind", "sqlstate"),
    [
        ({"password": f"wrong-{MARK}"}, "connect-permanent", "28P01"),
        ({"username": "ghost"}, "connect-permanent", "28P01"),
        ({"username": "nobody"}, "connect-permanent", "28000"),
        ({"database": "ghost"}, "connect-permanent", "3D000"),
        ({"username": "clerk"}, "connect-transient", "53300"),
    ],
)
def test_what_the_server_says_at_connect(connect, never_raises, part, kind, sqlstate):
    fault = fault_of(connect, never_raises, never_raises.url.set(**part))

    assert (*facts(fault), fault.sqlstate) == (kind, kind == "connect-transient", sqlstate)


def test_a_missing_role_where_no_password_is_asked_for(connect, postgres):
    fault = fault_of(connect, postgres, postgres.url.set(username="ghost"))

    assert (*facts(fault), fault.sqlstate) == ("connect-permanent", False, "28000")


def test_a_missing_password(connect, never_raises, driver):
    url = never_raises.url._replace(password=None)

    fault = fault_of(connect, never_raises, url)
    assert facts(fault) == ("connect-permanent", False)


@pytest.fixture(scope="module")
def full():
    """A server whose connections are all taken."""
    settings = {"max_connections": 5, "superuser_reserved_connections": 0}
    with MarkedPostgres(settings=settings) as server, contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg2.OperationalError):
            for _ in range(10):
                stack.callback(Raw(server.url).close)
        yield server


def test_every_connection_is_taken(connect, full):
    fault = fault_of(connect, full)

    assert (*facts(fault), fault.sqlstate) == ("connect-transient", True, "53300")


@pytest.fixture(scope="module")
def leaving():
    """A server that is shutting down, but waits for one client to leave."""
    with MarkedPostgres() as server, contextlib.closing(Raw(server.url)):
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not is_open(server))
        yield server


def is_open(server):
    try:
        Raw(server.url).close()
    except psycopg2.OperationalError:
        return False
    return True


def test_a_server_that_is_shutting_down(connect, leaving):
    fault = fault_of(connect, leaving)

    assert (*facts(fault), fault.sqlstate) == ("connect-transient", True, "57P03")


def test_nobody_listens(connect, postgres):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        fault = fault_of(connect, postgres, postgres.url.set(port=taken.getsockname()[1]))

    assert (*facts(fault), fault.sqlstate) == ("connect-transient", True, None)


def test_a_name_that_does_not_resolve(connect, postgres):
    fault = fault_of(connect, postgres, postgres.url.set(host="name.invalid"))

    assert (*facts(fault), fault.sqlstate) == ("connect-transient", True, None)
    assert fault.advice.startswith("The host name does not resolve: ")


def test_nobody_answers(connect, postgres, driver):
    limit = {"timeout": 0.2} if driver == "asyncpg" else {"connect_timeout": 1}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = postgres.url.set(port=silent.getsockname()[1])
        fault = fault_of(connect, postgres, url, **limit)

    assert fault.transient is True
    # asyncpg's TimeoutError may as well come from a statement
    assert fault.kind == ("disconnect" if driver == "asyncpg" else "connect-transient")


def test_a_server_without_tls(connect, postgres, driver):
    demand = {"ssl": "require"} if driver == "asyncpg" else {"sslmode": "require"}

    fault = fault_of(connect, postgres, **demand)
    # asyncpg says the same of a server that is being restarted
    kind = "connect-transient" if driver == "asyncpg" else "connect-permanent"
    assert (*facts(fault), fault.sqlstate) == (kind, driver == "asyncpg", None)


@pytest.mark.parametrize("driver", list(SYNC))
def test_a_certificate_that_cannot_be_verified(postgres, driver):
    with fake_server(tls=b"S") as port:
        url = postgres.url_for(driver).set(port=port)
        fault = fault_of(Raw, url, sslmode="verify-full", sslrootcert="no-such-file")

    assert (*facts(fault), fault.sqlstate) == ("connect-permanent", False, None)
    assert fault.advice.startswith("A certificate cannot be verified: ")


def test_a_setting_that_the_server_does_not_know(connect, postgres, driver):
    if driver == "asyncpg":
        fault = fault_of(connect, postgres, server_settings={"no_such_setting": "1"})
    else:
        fault = fault_of(connect, postgres, options="-c no_such_setting=1")

    assert fault.transient is False


@contextlib.contextmanager
def fake_server(*answers, tls=b"N"):
    """Answer each startup packet, and then each message of the client, with the next of *answers*.

    A request for TLS gets *tls* for an answer; there is none behind it. When the answers have run
    out, the connection is closed.
    """

    def receive(client, size):
        data = b""
        while len(data) < size and (part := client.recv(size - len(data))):
            data += part
        return data

    def startup(client):
        length, code = struct.unpack("!II", receive(client, 8))
        rest = receive(client, length - 8)
        return code, rest

    def serve(client):
        with client, contextlib.suppress(OSError, struct.error):
            while startup(client)[0] != 0x00030000:
                client.sendall(tls)
            for number, answer in enumerate(answers):
                if number:
                    header = receive(client, 5)
                    receive(client, struct.unpack("!xI", header)[0] - 4)
                client.sendall(answer)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                serve(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)


def message(kind, body=b""):
    return kind + struct.pack("!I", len(body) + 4) + body


def error_response(sqlstate, said):
    fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": said}
    body = "".join(f"{key}{value}\0" for key, value in fields.items()).encode()
    return message(b"E", body + b"\0")


@pytest.mark.parametrize(
    ("sqlstate", "said", "kind"),
    [
        ("57P03", "the database system is starting up", "connect-transient"),
        ("57P03", "the database system is in recovery mode", "connect-transient"),
        ("53300", "sorry, too many clients already", "connect-transient"),
        ("08P01", "no more connections allowed (max_client_conn)", "connect-transient"),
        ("08P01", "query_wait_timeout", "connect-transient"),
        ("08P01", "unsupported startup parameter: statement_timeout", "connect-permanent"),
        ("28000", 'no pg_hba.conf entry for host "10.0.0.1"', "connect-permanent"),
    ],
)
def test_what_servers_and_poolers_answer_to_a_startup_packet(
    connect, postgres, sqlstate, said, kind
):
    with fake_server(error_response(sqlstate, said)) as port:
        fault = fault_of(connect, postgres, postgres.url.set(port=port))

    assert facts(fault) == (kind, kind == "connect-transient")


def test_a_connection_that_is_closed_during_startup(connect, postgres, driver):
    with fake_server(b"") as port:
        fault = fault_of(connect, postgres, postgres.url.set(port=port))

    assert fault.transient is True
    # asyncpg gives it the code 08003, as it does for a statement
    assert fault.kind == ("disconnect" if driver == "asyncpg" else "connect-transient")


READY = message(b"Z", b"I")
SETTINGS = {
    "server_version": "15.0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "standard_conforming_strings": "on",
}
WELCOME = (
    message(b"R", struct.pack("!I", 0))
    + b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in SETTINGS.items())
    + READY
)


ONE_ROW = (
    message(b"T", struct.pack("!H", 1) + b"n\0" + struct.pack("!IhIhih", 0, 0, 23, 4, -1, 0))
    + message(b"D", struct.pack("!HI", 1, 1) + b"1")
    + message(b"C", b"SELECT 1\0")
    + READY
)


@pytest.mark.parametrize(("driver", "answer"), [("psycopg2", ONE_ROW), ("psycopg", READY)])
def test_an_answer_to_somebody_else_s_query(postgres, driver, answer):
    """As a forked child reads it that uses its parent's connection."""
    with fake_server(WELCOME, answer) as port:
        client = Raw(postgres.url_for(driver).set(port=port))
        client.connection.autocommit = False
        fault = fault_of(client.run, "SELECT 1")
        client.close()

    if driver == "psycopg" and Version(psycopg.__version__) < Version("3.3.5"):
        assert facts(fault) == ("permanent", False)  # an IndexError, which says nothing
        return
    assert facts(fault) == ("disconnect", True)
    assert fault.advice.startswith("Client and server have lost step with each other, ")


@pytest.mark.parametrize("driver", list(SYNC))
def test_a_pool_with_no_connection_left(postgres, driver):
    engine = sqlalchemy.create_engine(
        postgres.url_for(driver), pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    with engine.connect():
        fault = fault_of(engine.connect)
    engine.dispose()

    assert (*facts(fault), fault.sqlstate) == ("pool-exhausted", False, None)


def test_an_asyncio_pool_with_no_connection_left(postgres):
    async def exhaust():
        engine = create_async_engine(
            postgres.url_for("asyncpg"), pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        try:
            async with engine.connect():
                await engine.connect()
        finally:
            await engine.dispose()

    fault = fault_of(asyncio.run, exhaust())
    assert (*facts(fault), fault.sqlstate) == ("pool-exhausted", False, None)


def test_a_session_whose_connection_was_lost_and_that_was_not_rolled_back(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    with Session(engine) as session:
        end = text("SELECT pg_terminate_backend(pg_backend_pid())")
        assert fault_of(session.execute, end).kind == "disconnect"
        fault = fault_of(session.execute, text("SELECT 1"))
    engine.dispose()

    assert (*facts(fault), fault.sqlstate) == ("disconnect", True, None)


def test_a_commit_without_an_answer(postgres, admin):
    engine = sqlalchemy.create_engine(postgres.url_for("psycopg"))
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        admin.run(f"SELECT pg_terminate_backend({pid})")
        wait_until_gone(admin, pid)
        fault = fault_of(session.commit)
    engine.dispose()

    assert facts(fault) == ("disconnect", True)
    assert fault.sqlstate in reported("psycopg", "57P01")


def test_a_connection_that_is_used_after_its_end(postgres):
    engine = sqlalchemy.create_engine(postgres.url)
    connection = engine.connect()
    connection.close()
    fault = fault_of(connection.execute, text("SELECT 1"))
    engine.dispose()

    assert (*facts(fault), fault.sqlstate) == ("permanent", False, None)


@pytest.mark.parametrize("driver", list(SYNC))
def test_a_server_that_speaks_italian(postgres_binaries, driver, monkeypatch):
    # These messages are in ASCII, so that the encoding of the server does not matter. Where the
    # catalogue is not installed, the server speaks English.
    monkeypatch.setenv("LANGUAGE", "it")
    with MarkedPostgres(settings={"lc_messages": "C.UTF-8"}) as server:
        url = server.url_for(driver)
        with contextlib.closing(Raw(url)) as admin:
            admin.run("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
        assert facts_of(url.set(database="nosuch")) == ("connect-permanent", "3D000")
        assert facts_of(url.set(username="nosuch")) == ("connect-permanent", "28000")
        assert facts_of(url.set(username="few")) == ("connect-transient", "53300")


def facts_of(url):
    fault = fault_of(lambda: Raw(url))
    return fault.kind, fault.sqlstate
