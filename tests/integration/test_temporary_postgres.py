import contextlib
import os
import select
import signal
import socket
import subprocess
import sys

import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from fix_waiting import wait_until
from marked import MARK

from sa_railway.exc import ConfigurationError
from sa_railway.testing import TemporaryPostgres, TemporaryPostgresError

DEADLINE = 30.0

pytestmark = pytest.mark.usefixtures("postgres_binaries")


def connect(server, **arguments):
    """A connection of the driver; closed at the end of a with block, unlike psycopg2's own."""
    address = {"host": "127.0.0.1", "port": server.port, "user": "postgres"}
    return contextlib.closing(psycopg2.connect(dbname="postgres", **{**address, **arguments}))


def ask(connection, query):
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def readable(channel, seconds):
    return bool(select.select([channel], [], [], seconds)[0])


def test_it_serves_sqlalchemy_by_its_url(postgres):
    engine = sa.create_engine(postgres.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT current_user")) == "postgres"


def test_a_url_is_made_for_any_driver():
    server = TemporaryPostgres()

    assert str(server.url_for("asyncpg")) == (
        f"postgresql+asyncpg://postgres@127.0.0.1:{server.port}/postgres"
    )


def test_the_pid_is_that_of_the_postmaster(postgres):
    with connect(postgres) as connection:
        lock_file = ask(connection, "SELECT pg_read_file('postmaster.pid')")
    assert int(lock_file.split()[0]) == postgres.pid


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_keeps_the_port_and_what_was_committed(own_postgres, mode):
    port, pid = own_postgres.port, own_postgres.pid
    with connect(own_postgres) as connection:
        ask(connection, "CREATE TABLE kept AS SELECT 7 AS n; SELECT 1")
        connection.commit()

    own_postgres.restart(mode)

    assert own_postgres.port == port
    assert own_postgres.pid != pid
    with connect(own_postgres) as connection:
        assert ask(connection, "SELECT n FROM kept") == 7


def test_a_stopped_server_refuses_connections_until_it_is_started(own_postgres):
    own_postgres.stop()
    own_postgres.stop()
    assert not listens(own_postgres.port)
    with pytest.raises(TemporaryPostgresError, match=r"^The server is stopped$"):
        own_postgres.pid  # noqa: B018 - the property raises

    own_postgres.start()
    own_postgres.start()
    assert listens(own_postgres.port)


def test_a_server_whose_postmaster_was_killed_can_be_started_again(own_postgres):
    os.kill(own_postgres.pid, signal.SIGKILL)
    own_postgres.restart()
    with connect(own_postgres) as connection:
        assert ask(connection, "SELECT 1") == 1


def test_an_unknown_mode_is_refused_and_nothing_is_stopped(postgres):
    with pytest.raises(ConfigurationError) as caught:
        postgres.stop("quick")
    assert str(caught.value) == "mode is 'quick'; allowed: smart, fast, immediate"
    assert listens(postgres.port)


def test_terminating_the_backends_ends_every_connection_and_counts_them(own_postgres):
    with connect(own_postgres) as first, connect(own_postgres) as second:
        assert own_postgres.terminate_backends() == 2
        for connection in (first, second):
            with pytest.raises(psycopg2.OperationalError):
                ask(connection, "SELECT 1")
    assert own_postgres.terminate_backends() == 0


def test_a_frozen_server_accepts_and_answers_nothing_until_it_is_thawed(own_postgres):
    with connect(own_postgres) as connection:
        own_postgres.freeze()
        own_postgres.freeze()
        with socket.create_connection(("127.0.0.1", own_postgres.port), DEADLINE) as client:
            # an SSLRequest, which a live server answers with one byte
            client.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47]))
            assert not readable(client, 0.2)

            own_postgres.thaw()
            assert readable(client, DEADLINE)
        assert ask(connection, "SELECT 1") == 1


def test_an_open_connection_is_frozen_too(own_postgres):
    url = own_postgres.url.set(drivername="postgresql").render_as_string()
    with contextlib.closing(psycopg.connect(url)) as client:
        own_postgres.freeze()
        client.pgconn.send_query(b"SELECT 1")
        assert not readable(client, 0.2)

        own_postgres.thaw()
        assert readable(client, DEADLINE)


def test_a_frozen_server_can_be_stopped(own_postgres):
    own_postgres.freeze()
    own_postgres.stop()
    assert not listens(own_postgres.port)


def test_settings_hold_for_every_start():
    with TemporaryPostgres(settings={"max_connections": 17}) as server:
        server.restart()
        with connect(server) as connection:
            assert ask(connection, "SHOW max_connections") == "17"


def test_a_password_is_demanded_and_hidden():
    with TemporaryPostgres(password=MARK) as server:
        assert str(server.url) == (
            f"postgresql+psycopg2://postgres:***@127.0.0.1:{server.port}/postgres"
        )
        with pytest.raises(psycopg2.OperationalError, match="password"):
            connect(server, password=f"not-{MARK}")
        with connect(server, password=server.url.password) as connection:
            assert ask(connection, "SELECT 1") == 1
        assert server.terminate_backends() == 0


def test_a_given_port_that_is_taken_is_an_error_with_the_log(postgres):
    with pytest.raises(TemporaryPostgresError) as caught:
        TemporaryPostgres(port=postgres.port).__enter__()
    message = str(caught.value)
    assert message.startswith("The server did not start; its log:\n")
    assert "Address already in use" in message


def test_a_chosen_port_that_is_taken_meanwhile_is_replaced(postgres, postgres_binaries):
    server = TemporaryPostgres()
    server.port = postgres.port
    with server:
        assert server.port != postgres.port
        assert listens(server.port)


def test_a_setting_that_the_server_refuses_is_an_error_with_the_log():
    with pytest.raises(TemporaryPostgresError) as caught:
        TemporaryPostgres(settings={"max_connection": 1}).__enter__()
    assert 'unrecognized configuration parameter "max_connection"' in str(caught.value)


def test_closing_removes_the_data_and_a_new_start_begins_empty():
    server = TemporaryPostgres()
    server.start()
    with connect(server) as connection:
        folder = ask(connection, "SHOW data_directory")
        ask(connection, "CREATE TABLE gone (); SELECT 1")
        connection.commit()
    server.close()
    server.close()
    assert not os.path.exists(os.path.dirname(folder))

    with server, connect(server) as connection:
        assert ask(connection, "SELECT to_regclass('gone')") is None


SERVER_IN_A_PROCESS = """
import sys
from sa_railway.testing import TemporaryPostgres
server = TemporaryPostgres()
server.start()
print(server.port, flush=True)
sys.stdin.read()
"""


def test_the_server_does_not_outlive_a_process_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", SERVER_IN_A_PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        server = TemporaryPostgres(port=int(process.stdout.readline()))
        with connect(server) as connection:
            folder = ask(connection, "SHOW data_directory")
        assert listens(server.port)
        process.kill()
    wait_until(lambda: not listens(server.port))
    wait_until(lambda: not os.path.exists(os.path.dirname(folder)))


SERVER_WITH_A_FORKED_CHILD = """
import os, signal
from sa_railway.testing import TemporaryPostgres
with TemporaryPostgres():
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        signal.pause()
print("closed before the child's end" if os.waitpid(child, os.WNOHANG) == (0, 0) else "waited")
os.kill(child, signal.SIGKILL)
"""


def test_closing_does_not_wait_for_a_forked_child():
    output = subprocess.run(
        [sys.executable, "-c", SERVER_WITH_A_FORKED_CHILD],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    ).stdout
    assert output == "closed before the child's end\n"


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_gets_an_empty_database(database_url, turn):
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert sa.inspect(connection).get_table_names() == []
        connection.execute(sa.text("CREATE TABLE left_behind ()"))
