"""Set-ups that are broken for real: the first finding names the cause, and its fix works."""

import contextlib
import os
import re
import socket
import subprocess
from pathlib import Path

import asyncpg
import psycopg
import pytest
import sqlalchemy
from fix_doctor import (
    SECRET,
    answering,
    codes,
    diagnose,
    first,
    result,
    sql_of,
    stands_for,
)
from fix_engines import DRIVERS, SYNC
from fix_waiting import wait_until
from marked import MarkedPostgres, conninfo, in_text
from packaging.version import Version
from sqlalchemy import event, text
from sqlalchemy.pool import Pool
from within import driver_of

from sa_railway.doctor.checks import CHECKS, sessions
from sa_railway.doctor.findings import Outcome, Severity
from sa_railway.testing import ChaosProxy

# of a certificate authority that has signed nothing
ANOTHER_ROOT = """\
-----BEGIN CERTIFICATE-----
MIIBhTCCASugAwIBAgIUMQzbnRkZ92AxK80y/3i+sEGQoU0wCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMYW5vdGhlci1yb290MCAXDTI2MTEyMTAzMzczMFoYDzIxMjYx
MDI4MDMzNzMwWjAXMRUwEwYDVQQDDAxhbm90aGVyLXJvb3QwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAARuOjGViVQCZSNKZa2ZWxlBTpI1zXnTZ2SZk2tJNpSOCaWl
FHOhEKNSlnQ9n5GKim0IlnOFMBV8n6RFghIIQb0mo1MwUTAdBgNVHQ4EFgQUlHYv
h3FLAb2/kSuEB4xdinNC+CUwHwYDVR0jBBgwFoAUlHYvh3FLAb2/kSuEB4xdinNC
+CUwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiB1NawLjAqoKDQd
oE4Htx1M2sX8sIkZbf0si1SJaU02vgIhAOl7PLdF0UuYX3FVwliOU4hcQM6lSLW/
QSjZc2LMJu6u
-----END CERTIFICATE-----
"""


@pytest.fixture
def use(monkeypatch):
    """Sets ``DATABASE_URL``."""

    def use(url):
        monkeypatch.setenv("DATABASE_URL", in_text(url))

    return use


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_healthy_database(server, execute, driver):
    execute("CREATE TABLE IF NOT EXISTS present (n int)")
    titles: list[str] = []
    diagnosis = diagnose(server.url_for(driver), tables=["present"], progress=titles.append)

    assert {r.check: r.outcome for r in diagnosis.results} == dict.fromkeys(titles, Outcome.GOOD)
    assert titles == [check.title for check in CHECKS]
    assert diagnosis.is_healthy
    assert codes(diagnosis) == []
    assert diagnosis.database == (
        f"postgresql+{driver}://postgres:***@127.0.0.1:{server.port}/postgres"
    )


def test_what_is_not_examined_is_not_good(server):
    diagnosis = diagnose(server.url)

    assert result(diagnosis, "tables").outcome is Outcome.NOT_RUN
    assert result(diagnosis, "tables").detail == "none was asked for (--table)"
    assert diagnosis.count(Outcome.GOOD) == len(CHECKS) - 1


# The environment and the URL


@pytest.mark.parametrize(
    ("environ", "code", "what"),
    [
        ({}, "no-url", "No database URL is set"),
        (
            {"DATABASE_URL": "${{Postgres.DATABASE_URL}}"},
            "url-reference",
            "DATABASE_URL holds a reference that was not resolved",
        ),
        (
            {"DATABASE_PUBLIC_URL": f"postgresql://postgres:{SECRET}@:/railway"},
            "url-half-rendered",
            "DATABASE_PUBLIC_URL is half-rendered: its host or port is empty",
        ),
        ({"DATABASE_URL": ""}, "url-empty", "DATABASE_URL is empty"),
        (
            {"DATABASE_URL": f'"postgresql://postgres:{SECRET}@host/railway'},
            "url-quotes",
            "DATABASE_URL begins or ends with a quotation mark",
        ),
        (
            {"DATABASE_URL": f"postgresql://postgres:p@{SECRET}@host/railway"},
            "url-unreadable",
            "DATABASE_URL cannot be read as a database URL",
        ),
        (
            {"DATABASE_URL": f"postgresql://postgres:{SECRET}@host:54320000/railway"},
            "url-port",
            "There is no such port: DATABASE_URL has the port 54320000; allowed: a number from 1 "
            "to 65535",
        ),
        (
            {"PGHOST": "host", "PGPORT": "port"},
            "url-port",
            "There is no such port: PGPORT is not a port; allowed: a number from 1 to 65535",
        ),
        (
            {"DATABASE_URL": f"postgrex://postgres:{SECRET}@host/railway"},
            "url-scheme",
            "DATABASE_URL names a database or a driver that SQLAlchemy does not know",
        ),
        (
            {"DATABASE_URL": f"postgresql+pg8000://postgres:{SECRET}@host/railway"},
            "driver-missing",
            "The driver is not installed: No module named 'pg8000'",
        ),
    ],
)
@pytest.mark.parametrize("place", [{}, {"RAILWAY_ENVIRONMENT_ID": "1"}])
def test_a_url_that_cannot_be_used(server, use, monkeypatch, environ, place, code, what):
    for name, value in {**environ, **place}.items():
        monkeypatch.setenv(name, value)
    diagnosis = diagnose()

    assert codes(diagnosis) == [code]
    assert (first(diagnosis).severity, first(diagnosis).what) == (Severity.ERROR, what)
    assert result(diagnosis, "authentication").detail == "URL failed"
    assert result(diagnosis, "authentication").outcome is Outcome.NOT_RUN

    use(server.url)
    assert codes(diagnose()) == []


def test_a_flaw_of_a_variable_that_was_passed_over(server, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(server.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    diagnosis = diagnose()

    assert codes(diagnosis) == ["url-empty"]
    assert first(diagnosis).severity is Severity.WARNING
    assert not diagnosis.is_healthy
    assert result(diagnosis, "URL").detail == f"PGHOST: 127.0.0.1:{server.port}, by psycopg2"
    assert result(diagnosis, "sessions").outcome is Outcome.GOOD

    monkeypatch.delenv("DATABASE_URL")
    assert codes(diagnose()) == []


@pytest.mark.parametrize(
    ("around", "code", "what"),
    [
        ("{}\n", "url-space", "DATABASE_URL begins or ends with white space"),
        ('"{}"', "url-quotes", "DATABASE_URL begins or ends with a quotation mark"),
    ],
)
def test_what_was_copied_along_with_a_url(server, monkeypatch, around, code, what):
    url = in_text(server.url)
    monkeypatch.setenv("DATABASE_URL", around.format(url))
    diagnosis = diagnose()

    assert codes(diagnosis) == [code]
    assert (first(diagnosis).severity, first(diagnosis).what) == (Severity.WARNING, what)
    assert result(diagnosis, "sessions").outcome is Outcome.GOOD


def test_a_scheme_that_only_this_package_reads(server):
    url = in_text(server.url)
    diagnosis = diagnose(url.replace("postgresql+psycopg2:", "postgres:"))

    assert codes(diagnosis) == ["url-postgres-scheme"]
    assert diagnosis.is_healthy
    assert result(diagnosis, "URL").outcome is Outcome.GOOD


def test_a_setting_that_cannot_be_used(server, monkeypatch):
    monkeypatch.setenv("SA_RAILWAY_POOL_SIZE", "many")
    diagnosis = diagnose(server.url)

    assert codes(diagnosis) == ["setting"]
    assert first(diagnosis).what == (
        "A setting cannot be used: SA_RAILWAY_POOL_SIZE is 'many'; allowed: a whole number"
    )

    monkeypatch.setenv("SA_RAILWAY_POOL_SIZE", "4")
    assert codes(diagnose(server.url)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_parameters_that_only_sqlalchemy_knows(server, use, driver):
    url = server.url_for(driver)
    use(url.update_query_dict({"plugin": "railway", "railway_profile": "worker"}))
    diagnosis = diagnose()

    assert codes(diagnosis) == ["url-plugin"]
    assert first(diagnosis).severity is Severity.WARNING
    assert first(diagnosis).what == (
        "DATABASE_URL has parameters that only SQLAlchemy knows: plugin, railway_profile"
    )
    assert result(diagnosis, "authentication").outcome is Outcome.GOOD
    use(url)
    assert codes(diagnose()) == []


def test_what_psql_says_to_the_parameters_of_sqlalchemy(server, postgres_binaries):
    url = server.url.set(drivername="postgresql").update_query_dict({"plugin": "railway"})
    done = subprocess.run(
        [postgres_binaries / "psql", in_text(url)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    finding = first(diagnose(url))
    assert any(text in done.stderr for text in finding.literal)


def test_sqlite_in_memory():
    diagnosis = diagnose("sqlite://")

    assert codes(diagnosis) == []
    assert result(diagnosis, "URL").detail == "the argument: in memory, by pysqlite"
    assert result(diagnosis, "pool").detail.startswith("SingletonThreadPool; checkout in ")


def test_an_sqlite_file_in_a_folder_that_is_not_there(tmp_path):
    path = tmp_path / "data" / "app.db"
    diagnosis = diagnose(f"sqlite:///{path}")

    assert codes(diagnosis) == ["sqlite-file"]
    assert first(diagnosis).what == f"The SQLite file {path} cannot be opened"

    path.parent.mkdir()
    assert codes(diagnose(f"sqlite:///{path}")) == []


def test_another_database_that_is_not_there():
    diagnosis = diagnose("mysql+pymysql://127.0.0.1:1/shop")

    assert codes(diagnosis) == ["refused"]
    assert first(diagnosis).fix.startswith("Check the port: MySQL has 3306; on Railway")


def test_sqlite(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'app.db'}"
    diagnosis = diagnose(url, tables=["orders"])

    assert codes(diagnosis) == ["tables-missing"]
    assert result(diagnosis, "DNS").detail == "not for sqlite"
    assert result(diagnosis, "DNS").outcome is Outcome.NOT_RUN
    assert result(diagnosis, "authentication").outcome is Outcome.GOOD

    monkeypatch.setenv("RAILWAY_SERVICE_ID", "1")
    assert codes(diagnose(url)) == ["sqlite-on-railway"]
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", str(tmp_path))
    assert codes(diagnose(url)) == []


# The network


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wrong_port(server, driver):
    with ChaosProxy(server.url_for(driver)) as proxy:
        proxy.down()
        wrong = proxy.url
        diagnosis = diagnose(wrong)

        assert codes(diagnosis) == ["refused"]
        assert stands_for(first(diagnosis), wrong)
    assert first(diagnosis).what == f"Nothing listens at 127.0.0.1:{wrong.port}"
    assert first(diagnosis).literal[0] == f"port {wrong.port} failed: Connection refused"
    assert codes(diagnose(wrong.set(port=server.port))) == []


def test_a_default_for_development_on_railway(server, monkeypatch):
    monkeypatch.setenv("RAILWAY_SERVICE_ID", "1")
    with ChaosProxy(server.url) as proxy:
        proxy.down()
        url = proxy.url.set(host="localhost")
        diagnosis = diagnose(url)

        assert codes(diagnosis) == ["localhost-on-railway"]
        assert stands_for(first(diagnosis), url)


@pytest.mark.parametrize(
    ("host", "place", "code"),
    [
        ("no-such-host.invalid", {}, "name-not-found"),
        ("no-such-service.railway.internal", {}, "private-host"),
        ("no-such-service.railway.internal", {"RAILWAY_SERVICE_ID": "1"}, "private-name"),
    ],
)
def test_a_name_that_does_not_resolve(server, monkeypatch, host, place, code):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    diagnosis = diagnose(server.url.set(host=host))

    assert codes(diagnosis) == [code]
    for driver in DRIVERS:
        assert stands_for(first(diagnosis), server.url_for(driver).set(host=host))
    assert host in first(diagnosis).what
    assert first(diagnosis).literal[0] == (
        f'could not translate host name "{host}" to address: Name or service not known'
    )
    assert codes(diagnose(server.url)) == []


def test_the_next_of_several_hosts(server):
    url = server.url.set(host=None, port=None).update_query_dict(
        {"host": ["no-such-host.invalid:5432", f"127.0.0.1:{server.port}"]}
    )

    assert codes(diagnose(url)) == []


def test_an_address_that_does_not_answer(server):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # the kernel drops what does not fit into the queue of a program that accepts nobody
        with socket.create_connection(listener.getsockname()):
            url = server.url.set(port=listener.getsockname()[1])
            diagnosis = diagnose(url, timeout=0.2)
            impatient = url.update_query_dict({"connect_timeout": "2"})
            assert stands_for(first(diagnosis), impatient)

    assert codes(diagnosis) == ["no-answer"]
    assert first(diagnosis).what == f"127.0.0.1:{url.port} did not answer within 0.2 s"


def test_a_frozen_server(server):
    with ChaosProxy(server.url) as proxy:
        fault = proxy.freeze()
        diagnosis = diagnose(proxy.url, timeout=0.3)

        assert codes(diagnosis) == ["frozen"]
        assert stands_for(first(diagnosis), proxy.url.update_query_dict({"connect_timeout": "2"}))
        assert first(diagnosis).what == (
            f"127.0.0.1:{proxy.port} accepts connections, but did not answer within 0.3 s"
        )
        assert diagnosis.results[-1].detail == "TLS failed"
        fault.remove()
        assert codes(diagnose(proxy.url)) == []


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("moment", ["authentication", "round trip"])
def test_a_server_that_freezes_while_it_is_examined(server, driver, moment):
    with ChaosProxy(server.url_for(driver)) as proxy:

        def freeze(title):
            if title == moment:
                proxy.freeze()

        # long enough for all that comes before it, on a busy machine
        diagnosis = diagnose(proxy.url, timeout=2.0, progress=freeze)

    assert codes(diagnosis) == ["silent"]
    assert result(diagnosis, moment).outcome is Outcome.FOUND
    assert result(diagnosis, "pooler").detail == f"{moment} failed"


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_goes_away_while_it_is_examined(server, driver):
    with ChaosProxy(server.url_for(driver)) as proxy:

        def cut(title):
            if title == "round trip":
                proxy.cut(after="SELECT")

        diagnosis = diagnose(proxy.url, progress=cut)

    assert codes(diagnosis) == ["lost"]
    assert result(diagnosis, "pooler").detail == "round trip failed"


def test_something_that_closes_at_once(server):
    with answering(with_bytes=b"") as port:
        diagnosis = diagnose(server.url.set(port=port))

        assert codes(diagnosis) == ["closed-at-start"]
        for driver in DRIVERS:
            assert stands_for(first(diagnosis), server.url_for(driver).set(port=port))


MYSQL_GREETING = b"N\0\0\0\n8.0.36\0" + bytes(70)  # N is PostgreSQL's "no TLS" as well


@pytest.mark.parametrize(
    ("answer", "behind", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, "an HTTP server"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n\r\n", "an HTTP server"),
        (b"-ERR wrong number of arguments for 'get' command\r\n", b"GET", "Redis"),
        (b"-NOAUTH Authentication required.\r\n", b"\r\n", "Redis"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", b"", "an SSH server"),
        (MYSQL_GREETING, b"", "MySQL or MariaDB"),
        (b"E" + MYSQL_GREETING[1:], b"", "MySQL or MariaDB"),
        (b"S" + MYSQL_GREETING[1:], b"", "MySQL or MariaDB"),
        (b"220 mail.example.com ESMTP\r\n", b"", "a mail or FTP server"),
        (b"\x15\x03\x01\0\x02\x02\x50", None, "a server that speaks TLS from the start, as HTTPS"),
        (b"HELO", None, "something that answers 'HELO'"),
    ],
)
def test_another_service_at_the_port(server, answer, behind, name):
    with answering(with_bytes=answer, behind=behind) as port:
        diagnosis = diagnose(server.url.set(port=port), timeout=0.3)

    assert codes(diagnosis) == ["not-postgres"]
    assert first(diagnosis).what == f"What listens at 127.0.0.1:{port} is {name}, not PostgreSQL"
    assert result(diagnosis, "authentication").detail == "TLS failed"


def test_what_drivers_say_to_another_service(server):
    with answering(with_bytes=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        finding = first(diagnose(server.url.set(port=port)))
        for driver in DRIVERS:
            assert stands_for(finding, server.url_for(driver).set(port=port))


def test_a_url_of_mysql_that_leads_to_postgresql(server):
    url = server.url.set(drivername="mysql+pymysql")
    diagnosis = diagnose(url, timeout=0.3)

    assert codes(diagnosis) == ["not-mysql"]
    assert first(diagnosis).what == (
        f"What listens at 127.0.0.1:{server.port} is PostgreSQL, and the URL names mysql"
    )
    assert first(diagnosis).fix.startswith("If the database is PostgreSQL, begin the URL with ")
    assert codes(diagnose(url.set(drivername="postgresql"))) == []


@pytest.mark.parametrize(
    ("answer", "behind", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", b"", "not-mysql"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n\r\n", "not-mysql"),
        (b"", b"", "closed-at-start"),
        (MYSQL_GREETING, b"", "lost"),  # it says no more than that
    ],
)
def test_a_url_of_mysql_that_leads_elsewhere(answer, behind, code):
    with answering(with_bytes=answer, behind=behind) as port:
        url = f"mysql+pymysql://shop:{SECRET}@127.0.0.1:{port}/shop"

        assert codes(diagnose(url, timeout=0.3)) == [code]


@pytest.mark.parametrize("driver", DRIVERS)
def test_tls_that_the_server_does_not_have(server, driver):
    url = server.url_for(driver).update_query_dict({"sslmode": "require"})
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["tls-missing"]
    assert stands_for(first(diagnosis), url)
    assert first(diagnosis).what == (
        "The URL asks for TLS (sslmode=require), but the server offers none"
    )
    assert codes(diagnose(server.url.update_query_dict({"sslmode": "prefer"}))) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_certificate_of_an_unknown_root(encrypting_url, tmp_path, driver):
    (tmp_path / "root.crt").write_text(ANOTHER_ROOT)
    mode = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "root.crt")}
    url = encrypting_url.set(drivername=f"postgresql+{driver}")
    diagnosis = diagnose(url.update_query_dict(mode))

    assert codes(diagnosis) == ["certificate-root"]
    assert stands_for(first(diagnosis), url.update_query_dict(mode))
    assert result(diagnosis, "TLS").detail.startswith("TLSv1.")
    assert codes(diagnose(url)) == []


# Letting in


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wrong_password(server, driver):
    right = server.url_for(driver)
    wrong = right.set(password=f"not-{SECRET}")
    diagnosis = diagnose(wrong)

    assert codes(diagnosis) == ["wrong-password"]
    assert stands_for(first(diagnosis), wrong)
    assert first(diagnosis).literal == ('password authentication failed for user "postgres"',)
    assert codes(diagnose(right)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_missing_database(server, execute, driver):
    name = f"missing_{driver}"
    url = server.url_for(driver).set(database=name)
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["database-missing"]
    assert stands_for(first(diagnosis), url)
    assert first(diagnosis).fix.endswith(f'or create it: CREATE DATABASE "{name}".')
    execute(f'CREATE DATABASE "{name}"')
    assert codes(diagnose(url)) == []


def test_a_role_that_may_not_log_in(server, execute):
    execute(f"CREATE ROLE nologin PASSWORD '{SECRET}'")
    url = server.url.set(username="nologin")

    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["role-nologin"]
    assert first(diagnosis).what == "The role nologin may not log in"
    execute(sql_of(first(diagnosis)))
    assert result(diagnose(url), "authentication").outcome is Outcome.GOOD


@pytest.mark.parametrize("driver", DRIVERS)
def test_too_many_clients(postgres_binaries, driver):
    with MarkedPostgres(settings={"max_connections": 8}) as server:
        url = server.url_for(driver).set(password=SECRET)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(
                    psycopg.connect(host="127.0.0.1", port=server.port, user="postgres")
                )
            diagnosis = diagnose(url)
            assert stands_for(first(diagnosis), url)

        assert codes(diagnosis) == ["too-many-clients"]
        assert first(diagnosis).literal[0] == "sorry, too many clients already"
        settings = {"SA_RAILWAY_POOL_SIZE": "1", "SA_RAILWAY_MAX_OVERFLOW": "0"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            wait_until_gone(server)
            assert codes(diagnose(url)) == []


def wait_until_gone(server):
    """Wait until no client is connected: a backend ends a moment after its connection."""
    with psycopg.connect(host="127.0.0.1", port=server.port, user="postgres") as connection:
        connection.autocommit = True
        query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        wait_until(lambda: connection.execute(query).fetchone() == (1,))


def test_a_server_that_is_starting(server):
    with ChaosProxy(server.url) as proxy:
        proxy.answer("57P03", times=None)

        diagnosis = diagnose(proxy.url)
        assert codes(diagnosis) == ["starting"]
        assert stands_for(first(diagnosis), proxy.url)
        proxy.restore()
        assert codes(diagnose(proxy.url)) == []


# PgBouncer


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg_async"])
@pytest.mark.parametrize("settings", [{}, {"default_pool_size": 1}, {"server_round_robin": 1}])
def test_prepared_statements_behind_a_pooler_in_transaction_mode(
    pgbouncer, monkeypatch, driver, settings
):
    url = pgbouncer(pool_mode="transaction", **settings).set(drivername=f"postgresql+{driver}")
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["prepared-statements"]
    assert first(diagnosis).what == (
        "A pooler in transaction mode is in between, and "
        f"{driver.removesuffix('_async')} prepares statements"
    )
    assert result(diagnosis, "budget").outcome is Outcome.NOT_RUN
    monkeypatch.setenv("SA_RAILWAY_TRANSACTION_POOLER", "true")
    assert codes(diagnose(url)) == []


def test_what_prepared_statements_do_behind_a_pooler(pgbouncer):
    url = pgbouncer(pool_mode="transaction")
    finding = first(diagnose(url.set(drivername="postgresql+psycopg")))
    plain = conninfo(url)
    with (
        psycopg.connect(plain, autocommit=True) as one,
        psycopg.connect(plain, autocommit=True) as other,
    ):
        one.execute("SELECT 1", prepare=True)
        with other.transaction():
            other.execute("SELECT 1")
            with pytest.raises(psycopg.Error) as caught:
                one.execute("SELECT 1", prepare=True)

    assert str(caught.value) in finding.literal


def test_psycopg2_prepares_nothing(pgbouncer):
    diagnosis = diagnose(pgbouncer(pool_mode="transaction"))

    assert codes(diagnosis) == []
    assert result(diagnosis, "pooler").detail == "one in transaction mode, such as PgBouncer"


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_doctor_leaves_no_prepared_statement_behind(pgbouncer, driver):
    """Behind a pooler it would lie in wait for other clients in the backend."""
    url = pgbouncer(pool_mode="transaction", default_pool_size=1)
    diagnose(url.set(drivername=f"postgresql+{driver}"), tables=["absent"])
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT name FROM pg_prepared_statements")).all() == []
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pooler_in_session_mode(pgbouncer, driver):
    diagnosis = diagnose(pgbouncer(pool_mode="session").set(drivername=f"postgresql+{driver}"))

    assert codes(diagnosis) == []
    assert result(diagnosis, "pooler").detail == (
        "one in session mode, or a proxy that knows the protocol"
    )


def test_a_pooler_that_gives_no_second_connection(pgbouncer):
    diagnosis = diagnose(pgbouncer(pool_mode="session", default_pool_size=1), timeout=0.3)

    assert codes(diagnosis) == []
    assert result(diagnosis, "pooler").outcome is Outcome.NOT_RUN
    assert result(diagnosis, "sessions").outcome is Outcome.GOOD


@pytest.mark.parametrize("driver", DRIVERS[1:])  # psycopg2 hides what the pooler says
def test_a_pooler_in_statement_mode(pgbouncer, driver):
    diagnosis = diagnose(pgbouncer(pool_mode="statement").set(drivername=f"postgresql+{driver}"))

    # before 0.32 asyncpg does not say what the pooler has said
    hides_it = driver == "asyncpg" and Version(asyncpg.__version__) < Version("0.32")
    assert codes(diagnosis) == ["lost" if hides_it else "statement-pooling"]


@pytest.mark.parametrize("driver", SYNC)
def test_a_startup_parameter_that_the_pooler_refuses(pgbouncer, driver):
    url = pgbouncer(pool_mode="transaction").set(drivername=f"postgresql+{driver}")
    url = url.update_query_dict({"options": "-c statement_timeout=5000"})
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["startup-parameter"]
    assert stands_for(first(diagnosis), url)


# The server


def test_a_read_only_standby(own_postgres):
    engine = sqlalchemy.create_engine(own_postgres.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n int)"))
        folder = Path(connection.scalar(text("SHOW data_directory")))
    engine.dispose()
    own_postgres.stop()
    (folder / "standby.signal").touch()
    own_postgres.start()
    diagnosis = diagnose(own_postgres.url)

    assert codes(diagnosis) == ["standby"]
    assert stands_for(first(diagnosis), own_postgres.url, "INSERT INTO t VALUES (1)")
    wanted = own_postgres.url.update_query_dict({"target_session_attrs": "standby"})
    assert codes(diagnose(wanted)) == []
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_promote()"))
    engine.dispose()
    assert codes(diagnose(own_postgres.url)) == []


def test_read_only_by_default(server, execute):
    execute(f"CREATE ROLE reader LOGIN PASSWORD '{SECRET}' IN ROLE pg_read_all_stats")
    execute("ALTER ROLE reader SET default_transaction_read_only = on")
    url = server.url.set(username="reader")
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["read-only"]
    assert first(diagnosis).what == "Transactions are read-only by default (set by: user)"
    execute("ALTER ROLE reader RESET default_transaction_read_only")
    assert codes(diagnose(url)) == []


def test_an_expired_idle_timeout_of_the_server(postgres_binaries, monkeypatch):
    with MarkedPostgres(settings={"idle_session_timeout": "1s"}) as server:
        said = killed_in_the_pool(server)
        for driver in DRIVERS:
            diagnosis = diagnose(server.url_for(driver).set(password=SECRET))
            assert codes(diagnosis) == ["idle-session-timeout"]

        assert first(diagnosis).what == (
            "The server closes idle connections after 1 s, before the pool replaces them "
            "(pool_recycle is 240 s)"
        )
        assert said in first(diagnosis).literal
        assert "SA_RAILWAY_POOL_RECYCLE=0.8." in first(diagnosis).fix
        monkeypatch.setenv("SA_RAILWAY_POOL_RECYCLE", "0.8")
        assert codes(diagnose(server.url)) == []


def killed_in_the_pool(server):
    """Leave a connection in a pool until the server closes it; return what its next user gets."""
    engine = sqlalchemy.create_engine(server.url_for("psycopg"))
    with engine.connect() as connection:
        descriptor = driver_of(connection).fileno()
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        peer.settimeout(10)
        peer.recv(1, socket.MSG_PEEK)
    with (
        pytest.raises(sqlalchemy.exc.OperationalError) as caught,
        engine.connect() as connection,
    ):
        connection.execute(text("SELECT 1"))
    engine.dispose()
    return str(caught.value.orig)


def test_timeouts_that_explain_errors(server, execute):
    execute(f"CREATE ROLE hurried LOGIN PASSWORD '{SECRET}' IN ROLE pg_read_all_stats")
    execute("ALTER ROLE hurried SET statement_timeout = '100ms'")
    execute("ALTER ROLE hurried SET idle_in_transaction_session_timeout = '1min'")
    url = server.url.set(username="hurried")
    diagnosis = diagnose(url)

    assert stands_for(diagnosis.findings[1], url, "SELECT pg_sleep(10)")
    assert codes(diagnosis) == ["idle-in-transaction-timeout", "statement-timeout"]
    assert diagnosis.is_healthy
    assert result(diagnosis, "timeouts").detail == (
        "idle_in_transaction_session_timeout 60 s, statement_timeout 0.1 s"
    )


def test_tables_that_are_not_there(server, execute):
    diagnosis = diagnose(server.url, tables=["orders", "pg_catalog.pg_class"])

    assert codes(diagnosis) == ["tables-missing"]
    assert first(diagnosis).what == "Not there: table orders"
    for driver in DRIVERS:
        assert stands_for(first(diagnosis), server.url_for(driver), "SELECT * FROM orders")
    execute("CREATE TABLE orders (n int)")
    assert codes(diagnose(server.url, tables=["orders"])) == []


# Connections


def test_a_budget_over_max_connections(postgres_binaries, monkeypatch):
    with MarkedPostgres(settings={"max_connections": 20}) as server:
        url = server.url.set(password=SECRET)
        scale = {"replicas": 2, "processes": 2}
        diagnosis = diagnose(url, **scale)

        assert codes(diagnosis) == ["over-budget"]
        assert first(diagnosis).what == (
            "The application may open 120 connections, and the server has 17"
        )
        assert first(diagnosis).fix.startswith(
            "Set SA_RAILWAY_POOL_SIZE=2 and SA_RAILWAY_MAX_OVERFLOW=0; "
        )
        monkeypatch.setenv("SA_RAILWAY_POOL_SIZE", "2")
        monkeypatch.setenv("SA_RAILWAY_MAX_OVERFLOW", "0")
        assert codes(diagnose(url, **scale)) == []


def test_more_processes_than_connections(server, monkeypatch):
    diagnosis = diagnose(server.url, processes=50)

    assert codes(diagnosis) == ["too-many-processes"]
    assert codes(diagnose(server.url, processes=3)) == []


def test_processes_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    diagnosis = diagnose(server.url)

    assert codes(diagnosis) == ["over-budget"]
    assert first(diagnosis).why.startswith(
        "At peak 120: 1 replica x 4 processes x 15 connections x 2 deployments at once."
    )


def test_a_pool_without_a_limit(server, monkeypatch):
    monkeypatch.setenv("SA_RAILWAY_MAX_OVERFLOW", "-1")
    assert codes(diagnose(server.url)) == ["unlimited-overflow"]

    monkeypatch.setenv("SA_RAILWAY_MAX_OVERFLOW", "10")
    assert codes(diagnose(server.url)) == []


@pytest.mark.parametrize(("held", "severity"), [(7, "warning"), (9, "error")])
def test_connections_that_become_scarce(postgres_binaries, monkeypatch, held, severity):
    monkeypatch.setenv("SA_RAILWAY_POOL_SIZE", "1")
    monkeypatch.setenv("SA_RAILWAY_MAX_OVERFLOW", "0")
    with MarkedPostgres(settings={"max_connections": 14}) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(held):
                stack.enter_context(
                    psycopg.connect(host="127.0.0.1", port=server.port, user="postgres")
                )
            diagnosis = diagnose(server.url)

        assert codes(diagnosis) == ["connections-scarce"]
        assert first(diagnosis).severity == severity
        assert first(diagnosis).what.startswith(f"{held + 1} of 11 connections are in use (")


def test_a_session_that_is_idle_in_a_transaction(server, monkeypatch):
    monkeypatch.setattr(sessions, "_PAUSE", 0.0)
    engine = sqlalchemy.create_engine(server.url, connect_args={"application_name": "leaky"})
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        diagnosis = diagnose(server.url)

        assert codes(diagnosis) == ["idle-in-transaction"]
        assert first(diagnosis).what == (
            f"1 session idle in a transaction for over 0 s: leaky (pid {pid}, 0 s)"
        )
        assert f"SELECT pg_terminate_backend({pid})." in first(diagnosis).fix
        connection.rollback()
        assert codes(diagnose(server.url)) == []
    engine.dispose()


def test_sessions_that_do_nothing(server, monkeypatch):
    monkeypatch.setattr(sessions, "_FORGOTTEN", 0.0)
    engine = sqlalchemy.create_engine(server.url, connect_args={"application_name": "idle"})
    connections = [engine.connect() for _ in range(4)]
    for connection in connections:
        connection.close()
    diagnosis = diagnose(server.url)

    assert codes(diagnosis) == ["idle-sessions"]
    assert diagnosis.is_healthy
    assert result(diagnosis, "sessions").outcome is Outcome.GOOD
    assert re.fullmatch(
        r"\d sessions idle for over 0 minutes: .*idle \(pid \d+, 0 s\) and \d more",
        first(diagnosis).what,
    )
    engine.dispose()


def test_sessions_that_may_not_be_seen(server, execute):
    execute(f"CREATE ROLE modest LOGIN PASSWORD '{SECRET}'")
    url = server.url.set(username="modest")
    diagnosis = diagnose(url)

    assert codes(diagnosis) == []
    assert result(diagnosis, "sessions").outcome is Outcome.NOT_RUN
    assert re.fullmatch(
        r"\d+ of 100 connections in use; \d+ of other users cannot be seen without GRANT "
        "pg_read_all_stats TO modest",
        result(diagnosis, "sessions").detail,
    )
    execute("GRANT pg_read_all_stats TO modest")
    assert result(diagnose(url), "sessions").outcome is Outcome.GOOD


def test_a_check_that_is_not_permitted_is_not_run(server, execute):
    execute(f"CREATE ROLE blind LOGIN PASSWORD '{SECRET}' IN ROLE pg_read_all_stats")
    execute("REVOKE EXECUTE ON FUNCTION pg_is_in_recovery() FROM PUBLIC")
    try:
        diagnosis = diagnose(server.url.set(username="blind"))
    finally:
        execute("GRANT EXECUTE ON FUNCTION pg_is_in_recovery() TO PUBLIC")

    assert codes(diagnosis) == []
    assert result(diagnosis, "read-only").outcome is Outcome.NOT_RUN
    assert result(diagnosis, "read-only").detail == (
        "permission denied for function pg_is_in_recovery"
    )
    assert result(diagnosis, "sessions").outcome is Outcome.GOOD


def test_a_slow_round_trip_on_railway(server, monkeypatch):
    with ChaosProxy(server.url) as proxy:
        proxy.latency(0.03)
        assert codes(diagnose(proxy.url)) == []
        monkeypatch.setenv("RAILWAY_SERVICE_ID", "1")
        assert codes(diagnose(proxy.url)) == ["slow-round-trip"]
        proxy.restore()
        assert codes(diagnose(proxy.url)) == []


@pytest.mark.parametrize("driver", SYNC)
def test_a_pool_whose_connections_do_not_last(server, driver):
    titles: list[str] = []

    def close(connection, record):
        if titles[-1] == "pool":
            with socket.socket(fileno=os.dup(record.driver_connection.fileno())) as peer:
                peer.shutdown(socket.SHUT_RDWR)

    event.listen(Pool, "checkin", close)
    try:
        diagnosis = diagnose(server.url_for(driver), progress=titles.append)
    finally:
        event.remove(Pool, "checkin", close)

    assert codes(diagnosis) == ["pool-unsteady"]
    assert result(diagnosis, "tables").detail == "none was asked for (--table)"
