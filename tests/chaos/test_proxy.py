"""Every fault of the ChaosProxy, before a real PostgreSQL and on real drivers."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from fix_engines import PACKAGES
from fix_waiting import wait_until
from marked import MarkedPostgres
from sqlalchemy import make_url

from sa_railway.exc import ConfigurationError
from sa_railway.testing import ChaosProxy
from sa_railway.testing.protocol import Conversation, Message

LONG = 600.0  # longer than any test; what is delayed by it is not seen to arrive by itself


class SyncClient:
    """A connection of psycopg2 or psycopg."""

    def __init__(self, module, url):
        self.lost = (module.OperationalError, module.InterfaceError)
        self._connection = module.connect(
            host=url.host, port=url.port, user=url.username, dbname=url.database
        )

    def value(self, sql):
        """Run *sql* and return its one value."""
        cursor = self._connection.cursor()
        cursor.execute(sql)
        return cursor.fetchone()[0]

    def insert(self, value):
        """Insert *value* in a transaction of its own."""
        self._connection.cursor().execute(f"INSERT INTO t VALUES ({value})")
        self._connection.commit()

    def close(self):
        self._connection.close()


class AsyncpgClient:
    """A connection of asyncpg, with an event loop of its own."""

    lost = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError)

    def __init__(self, url):
        self._loop = asyncio.new_event_loop()
        try:
            self._connection = self._run(
                asyncpg.connect(
                    host=url.host, port=url.port, user=url.username, database=url.database
                )
            )
        except BaseException:
            self._loop.close()
            raise

    def _run(self, awaitable):
        return self._loop.run_until_complete(awaitable)

    def value(self, sql):
        return self._run(self._connection.fetchval(sql))

    def insert(self, value):
        async def insert():
            async with self._connection.transaction():
                await self._connection.execute("INSERT INTO t VALUES ($1)", value)

        self._run(insert())

    def close(self):
        if self._loop.is_closed():
            return
        self._connection.terminate()
        self._run(asyncio.sleep(0))  # the transport closes its socket in the next turn of the loop
        self._loop.close()


class RawClient:
    """A socket that speaks the protocol by hand; sees exactly what reaches the client."""

    def __init__(self, proxy, *, start=True):
        self.socket = socket.create_connection((proxy.host, proxy.port), timeout=30)
        self._conversation = Conversation()
        self._messages: Iterator[Message] = iter(())
        if start:
            self.send(STARTUP)
            self.until("ReadyForQuery")

    def send(self, data):
        list(self._conversation.frontend(data))
        self.socket.sendall(data)

    def until(self, name):
        """Read up to the message *name*; return the names of all that came."""
        names: list[str | None] = []
        while names[-1:] != [name]:
            names.append(next(self.messages()).name)
        return names

    def rest(self):
        """Read to the end of the connection; return the names of all that came."""
        return [message.name for message in self.messages()]

    def messages(self):
        while True:
            for message in self._messages:  # noqa: UP028 - it must outlive this generator
                yield message
            data = self.socket.recv(65536)
            if not data:
                return
            self._messages = self._conversation.backend(data)

    def close(self):
        self.socket.close()


class RecordingServer:
    """A server that the test plays by hand; it accepts one connection."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connection = None
        self.address = self._listener.getsockname()

    @property
    def connection(self):
        """The connection that the proxy has opened; BlockingIOError if it has not."""
        if self._connection is None:
            self._listener.settimeout(0)
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(30)
        return self._connection

    def rest(self):
        """Read to the end, which is not a reset."""
        received = b""
        while data := self.connection.recv(65536):
            received += data
        return received

    def close(self):
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


def typed(kind, body=b""):
    return kind + struct.pack("!i", 4 + len(body)) + body


def query(sql):
    return typed(b"Q", sql.encode() + b"\0")


def opening(code, body=b""):
    return struct.pack("!ii", 8 + len(body), code) + body


STARTUP = opening(196608, b"user\0postgres\0database\0postgres\0\0")


@pytest.fixture(scope="module")
def postgres(postgres_binaries):
    """A server for this module alone, because its clients are counted."""
    with MarkedPostgres() as server:
        yield server


@pytest.fixture
def proxy(postgres):
    with ChaosProxy(postgres.url) as proxy:
        yield proxy


@pytest.fixture
def opened():
    """Closes what it is given at the end of the test."""
    with contextlib.ExitStack() as stack:

        def keep(thing):
            stack.callback(thing.close)
            return thing

        yield keep


@pytest.fixture
def connect(proxy, opened):
    """Connects a driver through the proxy, or to any other URL."""

    def connect(driver, url=None):
        url = url or proxy.url
        if driver == "asyncpg":
            return opened(AsyncpgClient(url))
        return opened(SyncClient({"psycopg2": psycopg2, "psycopg": psycopg}[driver], url))

    return connect


@pytest.fixture
def raw(proxy, opened):
    return lambda **options: opened(RawClient(proxy, **options))


@pytest.fixture
def table(postgres, opened):
    """An empty table ``t``, looked at past the proxy."""

    class Table:
        def __init__(self):
            self._connection = psycopg2.connect(
                host="127.0.0.1", port=postgres.port, user="postgres", dbname="postgres"
            )
            self._connection.autocommit = True
            self.run("DROP TABLE IF EXISTS t; CREATE TABLE t (a int)")

        def run(self, sql):
            cursor = self._connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

        @property
        def values(self):
            return [value for (value,) in self.run("SELECT a FROM t ORDER BY a")]

        def close(self):
            self._connection.close()

    return opened(Table())


class Attempt(threading.Thread):
    """A call in a thread of its own, and how it ended."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self._call = lambda: call(*arguments)
        self._outcome: tuple[Any, Exception | None] | None = None
        self.start()

    def run(self):
        try:
            self._outcome = (self._call(), None)
        except Exception as error:  # noqa: BLE001 - it is looked at in result()
            self._outcome = (None, error)

    @property
    def waits(self):
        return self._outcome is None

    def result(self):
        self.join(30)
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value


# What passes, and what is counted


def answered(proxy, before):
    """Whether the server has answered on every connection since *before*, their round trips."""
    return all(
        connection.round_trips > trips
        for connection, trips in zip(proxy.connections, before, strict=True)
    )


def round_trips(proxy):
    return [connection.round_trips for connection in proxy.connections]


def backends(table):
    """The number of clients of the server, without the one that asks."""
    return table.run(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )[0][0]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_driver_works_through_the_proxy(connect, proxy, table, driver):
    client = connect(driver)
    client.insert(7)

    assert client.value("SELECT a FROM t") == 7
    assert table.values == [7]
    assert len(proxy.connections) == 1
    assert proxy.messages["INSERT"] == 1
    client.close()
    proxy.wait_for(lambda: not proxy.connections)
    assert proxy.accepted == 1


@pytest.mark.parametrize(
    ("driver", "trips"),
    # BEGIN, INSERT, COMMIT; asyncpg first takes one more to prepare a statement
    [("psycopg2", [6, 3]), ("psycopg", [6, 3]), ("asyncpg", [7, 4])],
)
def test_round_trips_are_counted_on_each_connection(connect, proxy, table, driver, trips):
    one, two = connect(driver), connect(driver)
    before = round_trips(proxy)
    one.insert(1)
    one.insert(2)
    two.insert(3)

    assert [now - was for now, was in zip(round_trips(proxy), before, strict=True)] == trips
    assert proxy.round_trips == sum(connection.round_trips for connection in proxy.connections)


def test_an_answer_in_many_pieces_is_one_round_trip(connect, proxy):
    client = connect("psycopg2")
    client.value("SELECT 1")
    before = proxy.round_trips
    client.value("SELECT repeat('x', 5000000)")

    assert proxy.round_trips == before + 1


def test_messages_are_counted_by_name_and_by_command(raw, proxy):
    client = raw()
    client.send(query("BEGIN") + query("SELECT 1") + query("COMMIT"))
    for _ in range(3):
        client.until("ReadyForQuery")

    counted = proxy.messages
    assert (counted["StartupMessage"], counted["Query"], counted["ReadyForQuery"]) == (1, 3, 4)
    assert (counted["BEGIN"], counted["SELECT"], counted["COMMIT"]) == (1, 1, 1)
    assert (counted["CommandComplete"], counted["DataRow"]) == (3, 1)


def test_much_data_passes_unchanged_both_ways(connect):
    client = connect("psycopg")
    text = "0123456789abcdef" * 500_000
    cursor = client._connection.cursor()
    cursor.execute("SELECT %s || ''", [text])

    assert cursor.fetchone()[0] == text


def test_a_client_that_does_not_read_makes_the_server_wait(raw, proxy):
    client = raw()
    client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 200000)"))
    seen = []

    def stands_still():
        seen.append(proxy.messages["DataRow"])
        return seen[-1] > 0 and len(seen) > 50 and len(set(seen[-50:])) == 1

    wait_until(stands_still)
    assert seen[-1] < 200000
    # and goes on when it reads
    assert client.until("ReadyForQuery").count("DataRow") == 200000


def test_16_connections_at_once(connect, proxy):
    clients = [connect(PACKAGES[number % 3]) for number in range(16)]

    def total(client, number):
        return sum(client.value(f"SELECT {number} + {step}") for step in range(30))

    with proxy.latency(0.001, jitter=0.001, stream="both"):
        attempts = [Attempt(total, client, number) for number, client in enumerate(clients)]
        totals = [attempt.result() for attempt in attempts]

    assert totals == [30 * number + sum(range(30)) for number in range(16)]
    assert len(proxy.connections) == 16


def test_a_query_is_cancelled_through_the_proxy(connect, proxy, table):
    client = connect("psycopg")
    attempt = Attempt(client.value, "SELECT pg_sleep(600)")
    # before the query runs, a request to cancel it does nothing
    wait_until(lambda: table.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    client._connection.cancel_safe()

    with pytest.raises(
        psycopg.errors.QueryCanceled, match=r"^canceling statement due to user request$"
    ):
        attempt.result()
    assert proxy.messages["CancelRequest"] == 1


def test_a_request_for_gssapi_is_answered_by_the_server(raw, proxy):
    client = raw(start=False)
    client.send(opening(80877104))

    assert client.socket.recv(10) in (b"G", b"N")  # as the server was built
    assert proxy.messages == {"GSSENCRequest": 1}


def test_the_end_of_the_server_reaches_the_client(raw, proxy, table):
    client = raw()
    table.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    assert client.rest() == ["ErrorResponse"]
    assert proxy.connections == ()


def test_a_server_that_is_away_looks_like_a_connection_that_is_closed_at_once(opened):
    with closed_port() as port, ChaosProxy(("127.0.0.1", port)) as proxy:
        client = opened(RawClient(proxy, start=False))
        client.send(STARTUP)

        assert client.rest() == []


@contextlib.contextmanager
def closed_port():
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# Cuts

CUTS = [
    ({"before": "BEGIN"}, []),
    ({"after": "BEGIN"}, []),
    ({"before": "INSERT"}, []),
    ({"after": "INSERT"}, []),
    ({"before": "CommandComplete", "of": "INSERT"}, []),
    ({"before": "COMMIT"}, []),
    ({"before": "COMMIT", "reset": True}, []),
    ({"after": "COMMIT"}, [1]),
    ({"after": "COMMIT", "reset": True}, [1]),
    ({"before": "CommandComplete", "of": "COMMIT"}, [1]),
    ({"before": "CommandComplete", "of": "COMMIT", "reset": True}, [1]),
    ({"after": "CommandComplete", "of": "COMMIT"}, [1]),
    ({"before": "ReadyForQuery", "of": "COMMIT"}, [1]),
]


@pytest.mark.parametrize(("point", "values"), CUTS, ids=lambda value: str(value))
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_cut_around_a_transaction(connect, proxy, table, driver, point, values):
    client = connect(driver)
    cut = proxy.cut(**point)

    with pytest.raises(client.lost):
        client.insert(1)

    assert (cut.happened, cut.count) == (True, 1)
    assert proxy.connections == ()
    # the backend reads what it was sent, then the end of the connection, and goes
    wait_until(lambda: backends(table) == 0)
    assert table.values == values
    connect(driver).insert(2)
    assert table.values == [*values, 2]


@pytest.mark.parametrize("driver", PACKAGES)
def test_an_answer_that_is_lost_by_a_cut_before_it_was_committed_already(
    connect, proxy, table, driver
):
    client = connect(driver)
    proxy.cut(before="CommandComplete", of="COMMIT")
    with pytest.raises(client.lost):
        client.insert(1)

    assert table.values == [1]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_cut_after_the_whole_answer_is_seen_by_the_next_statement(connect, proxy, table, driver):
    client = connect(driver)
    cut = proxy.cut(after="ReadyForQuery", of="COMMIT")
    client.insert(1)
    cut.wait()

    with pytest.raises(client.lost):
        client.value("SELECT 1")
    assert table.values == [1]


@pytest.mark.parametrize(("point", "values"), [("before", []), ("after", [1])])
def test_a_commit_in_the_extended_protocol_is_cut_at_its_execute(
    connect, proxy, table, point, values
):
    connection = connect("psycopg")._connection
    connection.autocommit = True
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (1)")
    cut = proxy.cut(**{point: "COMMIT"})
    queries = proxy.messages["Query"]

    with pytest.raises(psycopg.OperationalError):
        connection.execute("COMMIT", prepare=True)

    assert cut.happened
    assert proxy.messages["Query"] == queries
    wait_until(lambda: table.values == values)


@pytest.mark.parametrize(
    ("point", "names"),
    [
        ({"before": "RowDescription"}, []),
        ({"after": "RowDescription"}, ["RowDescription"]),
        ({"before": "DataRow", "nth": 2}, ["RowDescription", "DataRow"]),
        ({"before": "CommandComplete"}, ["RowDescription", "DataRow", "DataRow", "DataRow"]),
        (
            {"after": "CommandComplete", "of": "SELECT"},
            ["RowDescription", "DataRow", "DataRow", "DataRow", "CommandComplete"],
        ),
        (
            {"after": "ReadyForQuery"},
            ["RowDescription", "DataRow", "DataRow", "DataRow", "CommandComplete", "ReadyForQuery"],
        ),
    ],
    ids=str,
)
def test_the_client_gets_all_up_to_the_cut_and_nothing_after(raw, proxy, point, names):
    client = raw()
    proxy.cut(**point)
    client.send(query("SELECT generate_series(1, 3)"))

    assert client.rest() == names


def test_a_cut_loses_nothing_of_a_large_result(raw, proxy):
    client = raw()
    proxy.cut(before="CommandComplete")
    client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)"))
    # The client has not read anything yet; more than the kernel's buffers hold is on its way.
    assert client.rest() == ["RowDescription"] + 20000 * ["DataRow"]


UP = [STARTUP, query("SELECT 1"), query("COMMIT"), query("SELECT 2"), typed(b"X")]


@pytest.mark.parametrize(
    ("point", "passed"),
    [
        ({"after": "StartupMessage"}, 1),
        ({"before": "Query"}, 1),
        ({"before": "COMMIT"}, 2),
        ({"after": "COMMIT"}, 3),
        ({"before": "Query", "of": "COMMIT"}, 2),
        ({"after": "Query", "nth": 3}, 4),
        ({"before": "Terminate"}, 4),
        ({"after": "Terminate"}, 5),
        ({"before": "COMMIT", "reset": True}, 2),
    ],
    ids=str,
)
def test_the_server_gets_all_up_to_the_cut_and_nothing_after(opened, point, passed):
    server = opened(RecordingServer())
    with ChaosProxy(server.address) as proxy:
        cut = proxy.cut(**point)
        opened(RawClient(proxy, start=False)).send(b"".join(UP))
        cut.wait()

        assert server.rest() == b"".join(UP[:passed])


def test_before_the_first_message_the_server_is_not_even_connected_to(opened):
    server = opened(RecordingServer())
    with ChaosProxy(server.address) as proxy:
        cut = proxy.cut(before="StartupMessage")
        opened(RawClient(proxy, start=False)).send(STARTUP)
        cut.wait()

        with pytest.raises(BlockingIOError):
            server.rest()


def test_after_a_cut_the_server_may_answer_what_it_got_without_a_reset(opened):
    server = opened(RecordingServer())
    with ChaosProxy(server.address) as proxy:
        cut = proxy.cut(after="COMMIT")
        opened(RawClient(proxy, start=False)).send(b"".join(UP))
        cut.wait()
        for _ in range(100):
            server.connection.sendall(typed(b"C", b"COMMIT\0"))

        assert server.rest() == b"".join(UP[:3])


def test_a_reset_cut_resets_the_client(raw, proxy):
    client = raw()
    proxy.cut(before="SELECT", reset=True)
    client.send(query("SELECT 1"))

    with pytest.raises(ConnectionResetError):
        client.rest()


@pytest.mark.parametrize(
    ("sqlstate", "sql"),
    [("22012", "SELECT 1 / 0"), ("P0001", "DO $$ BEGIN RAISE EXCEPTION 'no'; END $$")],
)
def test_an_error_is_cut_by_its_sqlstate(raw, proxy, sqlstate, sql):
    client = raw()
    proxy.cut(before="ErrorResponse", of=sqlstate)
    client.send(query("SELECT 1 FROM nowhere"))
    assert client.until("ReadyForQuery") == ["ErrorResponse", "ReadyForQuery"]
    client.send(query(sql))

    assert client.rest() == []


def test_a_cut_at_every_second_occurrence_three_times(connect, proxy, table):
    cut = proxy.cut(before="INSERT", nth=2, times=3)
    for number in range(1, 10):
        with contextlib.suppress(psycopg2.OperationalError):
            connect("psycopg2").insert(number)

    assert table.values == [1, 3, 5, 7, 8, 9]
    assert cut.count == 3


def test_a_cut_for_ever_ends_when_it_is_removed(connect, proxy, table):
    with proxy.cut(before="INSERT", times=None) as cut:
        for number in range(3):
            with pytest.raises(psycopg2.OperationalError):
                connect("psycopg2").insert(number)
    connect("psycopg2").insert(7)

    assert table.values == [7]
    assert cut.count == 3


def test_a_cut_that_was_removed_does_not_happen(connect, proxy, table):
    with proxy.cut(before="INSERT") as cut:
        assert repr(cut) == "<cut before='INSERT'>"
    connect("psycopg2").insert(1)

    assert not cut.happened
    with pytest.raises(
        TimeoutError, match=r"^<cut before='INSERT'> has not happened within 0 seconds$"
    ):
        cut.wait(timeout=0)


# Toxics of a stream


def test_latency_delays_without_making_others_wait(connect, proxy):
    clients = [connect(driver) for driver in PACKAGES * 3]
    before = round_trips(proxy)
    # so long that only its removal lets anything arrive
    latency = proxy.latency(LONG)
    attempts = [Attempt(client.value, f"SELECT {number}") for number, client in enumerate(clients)]
    proxy.wait_for(lambda: answered(proxy, before))
    assert all(attempt.waits for attempt in attempts)
    latency.remove()

    assert [attempt.result() for attempt in attempts] == list(range(9))


@pytest.mark.parametrize("driver", PACKAGES)
def test_latency_passes_by_itself(connect, proxy, driver):
    client = connect(driver)
    with proxy.latency(0.005, jitter=0.005, stream="both"):
        assert [client.value(f"SELECT {number}") for number in range(5)] == list(range(5))


HOLDING_UPSTREAM = [
    lambda proxy: proxy.latency(LONG, stream="upstream"),
    lambda proxy: proxy.timeout(stream="upstream"),
    lambda proxy: proxy.timeout(stream="both"),
    lambda proxy: proxy.freeze(),
]


@pytest.mark.parametrize("fault", HOLDING_UPSTREAM, ids=["latency", "timeout", "both", "freeze"])
def test_what_is_held_upstream_never_reaches_the_server(raw, proxy, table, fault):
    client = raw()
    fault(proxy)
    client.send(query("INSERT INTO t VALUES (1)"))
    proxy.wait_for(lambda: proxy.messages["INSERT"] == 1)
    proxy.reset_peer()

    wait_until(lambda: backends(table) == 0)
    assert table.values == []


def test_timeout_swallows_answers_for_ever_and_keeps_the_connection(raw, proxy, table):
    client = raw()
    with proxy.timeout():
        client.send(query("INSERT INTO t VALUES (1)"))
        proxy.wait_for(lambda: proxy.connections[0].messages["ReadyForQuery"] == 2)
        assert table.values == [1]
    client.send(query("SELECT 1"))

    names = ["RowDescription", "DataRow", "CommandComplete", "ReadyForQuery"]
    assert client.until("ReadyForQuery") == names


@pytest.mark.parametrize("fault", ["timeout", "freeze"])
@pytest.mark.parametrize("driver", PACKAGES)
def test_a_driver_waits_until_it_is_reset(connect, proxy, driver, fault):
    client = connect(driver)
    getattr(proxy, fault)()
    seen = proxy.connections[0].messages.total()
    attempt = Attempt(client.value, "SELECT 1")
    proxy.wait_for(lambda: proxy.connections[0].messages.total() > seen)
    assert attempt.waits
    proxy.reset_peer()

    with pytest.raises(client.lost):
        attempt.result()


def test_slow_close_delays_the_end_and_not_the_data(raw, proxy, table):
    slow, other = raw(), raw()
    slow.send(query("SELECT pg_backend_pid()"))
    data = [message.data for _, message in zip(range(4), slow.messages(), strict=False)]
    backend = int(data[1][11:])
    close = proxy.slow_close(LONG)
    table.run(f"SELECT pg_terminate_backend({backend})")
    assert slow.until("ErrorResponse") == ["ErrorResponse"]
    wait_until(lambda: backends(table) == 1)
    # the proxy passes this on after it has read the end of the other connection
    other.send(query("SELECT 1"))
    other.until("ReadyForQuery")
    assert len(proxy.connections) == 2
    close.remove()

    assert slow.rest() == []
    assert len(proxy.connections) == 1


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_limit_data_closes_after_exactly_so_many_bytes(raw, proxy, size):
    client = raw()
    proxy.limit_data(size)
    client.send(query("SELECT repeat('x', 100000)"))

    received = b""
    while data := client.socket.recv(65536):
        received += data
    assert len(received) == size


def test_limit_data_upstream_cuts_a_message_in_two(opened):
    server = opened(RecordingServer())
    with ChaosProxy(server.address) as proxy, proxy.limit_data(20, stream="upstream"):
        client = opened(RawClient(proxy, start=False))
        client.send(STARTUP)

        assert client.rest() == []
        assert server.rest() == STARTUP[:20]


@pytest.mark.parametrize("driver", PACKAGES)
def test_a_driver_loses_its_connection_at_the_limit(connect, proxy, driver):
    client = connect(driver)
    with proxy.limit_data(500), pytest.raises(client.lost):
        client.value("SELECT repeat('x', 1000)")


# Toxics of a connection


@pytest.mark.parametrize("driver", PACKAGES)
def test_freeze_holds_live_and_new_connections_until_it_is_removed(
    connect, proxy, table, opened, driver
):
    client = connect(driver)
    wait_until(lambda: backends(table) == 1)
    proxy.freeze()
    seen = proxy.connections[0].messages.total()
    query = Attempt(client.value, "SELECT 1")
    newcomer = Attempt(lambda: connect(driver).value("SELECT 2"))
    proxy.wait_for(lambda: proxy.accepted == 2 and proxy.connections[0].messages.total() > seen)
    assert (query.waits, newcomer.waits, backends(table)) == (True, True, 1)
    proxy.restore()

    assert (query.result(), newcomer.result()) == (1, 2)


def test_a_frozen_proxy_still_acknowledges_much_data(raw, proxy):
    client = raw()
    with proxy.freeze():
        client.send(query(f"SELECT length('{'x' * 8_000_000}')"))
    names = ["RowDescription", "DataRow", "CommandComplete", "ReadyForQuery"]

    assert client.until("ReadyForQuery") == names


def test_freeze_of_live_connections_lets_new_ones_pass(connect, proxy):
    frozen = connect("psycopg2")
    freeze = proxy.freeze(new=False)
    attempt = Attempt(frozen.value, "SELECT 1")
    assert connect("psycopg2").value("SELECT 2") == 2
    assert attempt.waits
    freeze.remove()

    assert attempt.result() == 1


def test_freeze_of_new_connections_lets_live_ones_pass(connect, proxy):
    live = connect("psycopg2")
    with proxy.freeze(live=False):
        newcomer = Attempt(lambda: connect("psycopg2").value("SELECT 2"))
        proxy.wait_for(lambda: proxy.accepted == 2)
        assert live.value("SELECT 1") == 1
        assert newcomer.waits

    assert newcomer.result() == 2


def test_reset_peer_resets_live_and_new_connections(raw, proxy):
    live = raw()
    with proxy.reset_peer():
        with pytest.raises(ConnectionResetError):
            live.rest()
        with pytest.raises(ConnectionResetError):
            raw(start=False).rest()
    raw()

    assert len(proxy.connections) == 1


@pytest.mark.parametrize("driver", PACKAGES)
def test_reset_peer_of_live_connections_happens_once(connect, proxy, driver):
    clients = [connect(driver), connect(driver)]
    proxy.reset_peer(new=False)

    for client in clients:
        with pytest.raises(client.lost):
            client.value("SELECT 1")
    assert connect(driver).value("SELECT 2") == 2


@pytest.mark.parametrize("driver", PACKAGES)
def test_down_closes_and_refuses_until_it_is_removed(connect, proxy, driver):
    client = connect(driver)
    with proxy.down():
        with pytest.raises(client.lost):
            client.value("SELECT 1")
        with pytest.raises((*client.lost, OSError)):
            connect(driver)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port))

    assert connect(driver).value("SELECT 2") == 2
    assert proxy.accepted == 2


def test_nobody_else_gets_the_port_of_a_proxy_that_is_down(proxy):
    with proxy.down(), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            other.bind((proxy.host, proxy.port))


def test_down_ends_in_good_order(raw, proxy):
    client = raw()
    proxy.down()

    assert client.rest() == []


def test_down_for_live_connections_lets_new_ones_in(raw, proxy):
    client = raw()
    proxy.down(new=False)
    raw()

    assert client.rest() == []


def test_down_for_new_connections_keeps_the_live_ones(connect, proxy):
    client = connect("psycopg2")
    with proxy.down(live=False), pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port))

    assert client.value("SELECT 1") == 1


def test_restore_removes_all_faults(connect, proxy, table):
    proxy.latency(LONG)
    proxy.freeze()
    proxy.down()
    proxy.cut(before="INSERT")
    proxy.answer("57P03")
    proxy.restore()
    connect("psycopg2").insert(1)

    assert table.values == [1]


def test_faults_of_one_kind_add_up(proxy, raw):
    first, second = proxy.down(), proxy.down()
    first.remove()
    first.remove()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port))
    second.remove()
    raw()


# Answers in place of the server

ERRORS = {
    "57P03": "the database system is starting up",
    "53300": "sorry, too many clients already",
}
REFUSED = {
    "psycopg2": psycopg2.OperationalError,
    "psycopg": psycopg.OperationalError,
    "asyncpg": (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError),
}


@pytest.mark.parametrize("driver", PACKAGES)
@pytest.mark.parametrize("sqlstate", ERRORS)
def test_the_next_connects_are_answered_with_an_error(connect, proxy, driver, sqlstate):
    answer = proxy.answer(sqlstate, times=2)
    for _ in range(2):
        with pytest.raises(REFUSED[driver], match=ERRORS[sqlstate]):
            connect(driver)
    assert answer.count == 2

    assert connect(driver).value("SELECT 1") == 1
    assert proxy.accepted == 3
    proxy.wait_for(lambda: len(proxy.connections) == 1)


def test_the_message_of_libpq_is_that_of_a_real_server(connect, proxy):
    proxy.answer("57P03")

    with pytest.raises(psycopg2.OperationalError) as caught:
        connect("psycopg2")
    assert str(caught.value) == (
        f'connection to server at "127.0.0.1", port {proxy.port} failed: '
        "FATAL:  the database system is starting up\n"
    )


def test_an_answer_needs_no_server_and_may_have_any_text(opened):
    with closed_port() as port, ChaosProxy(("127.0.0.1", port)) as proxy:
        proxy.answer("08P01", "no more connections allowed (max_client_conn)", times=None)
        for _ in range(3):
            client = opened(RawClient(proxy, start=False))
            client.send(opening(80877103))
            assert client.socket.recv(10) == b"N"
            list(client._conversation.backend(b"N"))
            client.send(STARTUP)
            (error,) = client.messages()

            assert (error.name, error.of) == ("ErrorResponse", "08P01")
            assert b"\0Mno more connections allowed (max_client_conn)\0" in error.data
        assert proxy.messages == {"SSLRequest": 3, "StartupMessage": 3}


def test_requests_to_cancel_are_not_answered(connect, proxy, table):
    client = connect("psycopg")
    attempt = Attempt(client.value, "SELECT pg_sleep(600)")
    # before the query runs, a request to cancel it does nothing
    wait_until(lambda: table.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    with proxy.answer("57P03") as answer:
        client._connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            attempt.result()

    assert not answer.happened


# Encryption


def connect_encrypted(proxy):
    return psycopg2.connect(
        host=proxy.host, port=proxy.port, user="postgres", dbname="postgres", sslmode="require"
    )


def test_encrypted_connections_pass_and_their_messages_are_not_seen(encrypting_url, opened):
    with ChaosProxy(encrypting_url) as proxy:
        cut = proxy.cut(before="COMMIT", times=None)
        connection = opened(connect_encrypted(proxy))
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        trips = proxy.round_trips
        connection.commit()

        assert connection.info.ssl_in_use
        assert proxy.messages == {"SSLRequest": 1}
        assert proxy.round_trips == trips + 1
        assert not cut.happened


def test_faults_of_streams_and_connections_work_on_encrypted_connections(encrypting_url, opened):
    with ChaosProxy(encrypting_url) as proxy:
        cursor = opened(connect_encrypted(proxy)).cursor()

        def value(sql):
            cursor.execute(sql)
            return cursor.fetchone()[0]

        before = round_trips(proxy)
        with proxy.latency(LONG):
            attempt = Attempt(value, "SELECT 1")
            proxy.wait_for(lambda: answered(proxy, before))
            assert attempt.waits
        assert attempt.result() == 1
        freeze = proxy.freeze()
        attempt = Attempt(value, "SELECT 2")
        freeze.remove()
        assert attempt.result() == 2
        with proxy.limit_data(500), pytest.raises(psycopg2.OperationalError):
            value("SELECT repeat('x', 1000)")


def test_without_encryption_at_the_server_messages_are_seen_after_the_request(connect, proxy):
    client = connect("psycopg")  # which asks for encryption first

    assert proxy.messages["SSLRequest"] == 1
    with proxy.cut(before="SELECT") as cut, pytest.raises(client.lost):
        client.value("SELECT 1")
    assert cut.happened


# The proxy itself


def test_the_url_is_that_of_the_server_but_for_host_and_port():
    upstream = "postgresql+psycopg://app:s3cret@localhost:6543/shop?application_name=web"
    with ChaosProxy(upstream) as proxy:
        assert proxy.url == make_url(upstream).set(host="127.0.0.1", port=proxy.port)
        assert repr(proxy) == f"<ChaosProxy 127.0.0.1:{proxy.port} for localhost:6543>"


def test_the_usual_port_stands_for_none():
    with ChaosProxy("postgresql://localhost/shop") as proxy:
        assert repr(proxy) == f"<ChaosProxy 127.0.0.1:{proxy.port} for localhost:5432>"


def test_localhost_finds_a_server_that_only_has_ipv4(postgres, connect, monkeypatch):
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", postgres.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", postgres.port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: both)
    with ChaosProxy(postgres.url.set(host="localhost")) as proxy:
        assert connect("psycopg2", proxy.url).value("SELECT 1") == 1


def test_closing_ends_the_thread_and_every_connection(postgres, opened):
    proxy = ChaosProxy(postgres.url)
    clients = [opened(RawClient(proxy)) for _ in range(3)]
    proxy.freeze()
    proxy.close()
    proxy.close()

    assert [client.rest() for client in clients] == [[], [], []]
    assert f"chaos-proxy-{proxy.port}" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port))


def test_after_closing_faults_can_be_removed_but_not_added(postgres):
    with ChaosProxy(postgres.url) as proxy:
        freeze = proxy.freeze()
    freeze.remove()
    proxy.restore()

    with pytest.raises(
        RuntimeError, match=r"^This proxy is closed, or belongs to the parent of this process$"
    ):
        proxy.freeze()


def test_a_forked_child_can_neither_use_nor_harm_the_proxy(connect, proxy):
    client = connect("psycopg2")
    child = os.fork()
    if child == 0:
        try:
            proxy.close()
            proxy.restore()
            with pytest.raises(RuntimeError):
                proxy.freeze()
            os._exit(0)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.value("SELECT 1") == 1


def test_a_fault_is_complete_although_a_forked_child_has_copies_of_the_sockets(raw, proxy):
    client = raw()
    ours, childs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            childs.recv(1)
        finally:
            os._exit(0)
    childs.close()
    try:
        with proxy.down():
            assert client.rest() == []
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((proxy.host, proxy.port))
        raw()
    finally:
        ours.close()
        os.waitpid(child, 0)


def test_waiting_for_what_does_not_come_ends_with_what_there_is(raw, proxy):
    client = raw()

    with pytest.raises(TimeoutError) as caught:
        proxy.wait_for(lambda: len(proxy.connections) == 2, timeout=0)
    assert str(caught.value) == (
        "The condition is still false after 0 seconds, with 1 connections and these messages: "
        f"{dict(proxy.messages)}"
    )
    client.close()
    proxy.wait_for(lambda: not proxy.connections)


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ("mysql://localhost/shop", "upstream is a URL for 'mysql'; allowed: one for PostgreSQL"),
        (
            "postgresql:///shop",
            "upstream is a URL without a single host for TCP; allowed: one such as "
            "postgresql://user@host:5432/database",
        ),
        (
            "postgresql://app:s3cret@/shop?host=a:1&host=b:2",
            "upstream is a URL without a single host for TCP; allowed: one such as "
            "postgresql://user@host:5432/database",
        ),
    ],
)
def test_an_upstream_that_cannot_be_reached_by_tcp_is_refused(upstream, message):
    with pytest.raises(ConfigurationError) as caught:
        ChaosProxy(upstream)
    assert str(caught.value) == message


NAMES = (
    "Authentication, BackendKeyData, Bind, BindComplete, CancelRequest, Close, CloseComplete, "
    "CommandComplete, CopyBothResponse, CopyData, CopyDone, CopyFail, CopyInResponse, "
    "CopyOutResponse, DataRow, Describe, EmptyQueryResponse, ErrorResponse, Execute, Flush, "
    "FunctionCall, FunctionCallResponse, GSSENCRequest, NegotiateProtocolVersion, NoData, "
    "NoticeResponse, NotificationResponse, ParameterDescription, ParameterStatus, Parse, "
    "ParseComplete, PasswordMessage, PortalSuspended, Query, ReadyForQuery, RowDescription, "
    "SSLRequest, StartupMessage, Sync, Terminate"
)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda p: p.latency(-1), "seconds is -1; allowed: 0 or more"),
        (lambda p: p.latency(float("nan")), "seconds is nan; allowed: 0 or more"),
        (lambda p: p.latency(1, jitter=-0.5), "jitter is -0.5; allowed: 0 or more"),
        (
            lambda p: p.latency(1, stream="down"),
            "stream is 'down'; allowed: upstream, downstream, both",
        ),
        (lambda p: p.slow_close(-1), "seconds is -1; allowed: 0 or more"),
        (lambda p: p.limit_data(-1), "size is -1; allowed: 0 or more"),
        (
            lambda p: p.freeze(live=False, new=False),
            "live and new are False; allowed: at least one of them True",
        ),
        (lambda p: p.cut(), "before is None and after is None; allowed: one of them"),
        (
            lambda p: p.cut(before="BEGIN", after="COMMIT"),
            "before is 'BEGIN' and after is 'COMMIT'; allowed: one of them",
        ),
        (
            lambda p: p.cut(after="Qurey"),
            "after is 'Qurey' (did you mean 'Query'?); allowed: an SQL command in capitals, such "
            f"as 'COMMIT', or a message: {NAMES}",
        ),
        (
            lambda p: p.cut(before="57P01"),
            "before is '57P01'; allowed: an SQL command in capitals, such as 'COMMIT', or a "
            f"message: {NAMES}",
        ),
        (lambda p: p.cut(before="COMMIT", nth=0), "nth is 0; allowed: 1 or more"),
        (lambda p: p.cut(before="COMMIT", times=0), "times is 0; allowed: 1 or more"),
        (
            lambda p: p.answer("starting"),
            "sqlstate is 'starting'; allowed: five digits or capitals, such as '57P03'",
        ),
        (
            lambda p: p.answer("28P01"),
            "text is None, and there is no usual text for 28P01; allowed: a string",
        ),
        (lambda p: p.answer("57P03", times=0), "times is 0; allowed: 1 or more"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fault, message):
    with (
        ChaosProxy("postgresql://localhost/shop") as proxy,
        pytest.raises(ConfigurationError) as caught,
    ):
        fault(proxy)
    assert str(caught.value) == message
