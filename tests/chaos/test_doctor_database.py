"""What is wrong within the database: the first finding names the cause, and its fix works."""

import threading

import psycopg
import pytest
import sqlalchemy
from fix_doctor import SECRET, codes, diagnose, first, result, sql_of, stands_for
from fix_engines import DRIVERS, SYNC
from fix_missing import need
from marked import MarkedPostgres, conninfo, in_text
from sqlalchemy import text

from sa_railway.cli import main
from sa_railway.commit.marker_schema import create_sql
from sa_railway.doctor.case import Case
from sa_railway.doctor.checks.login import explain
from sa_railway.doctor.findings import Outcome, Severity


@pytest.fixture
def role(execute):
    """Creates a role that sees all sessions, and drops it with what it has been granted."""
    execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}' IN ROLE pg_read_all_stats")
    yield "app"
    execute("DROP OWNED BY app")
    execute("DROP ROLE app")


# Timeouts


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("setting", "ended"),
    [
        ("statement_timeout", "every statement"),
        ("idle_session_timeout", "every idle connection"),
        ("idle_in_transaction_session_timeout", "every session that pauses within a transaction"),
    ],
)
@pytest.mark.parametrize(
    "place", ["ROLE app", "DATABASE postgres", "ROLE app IN DATABASE postgres"]
)
def test_a_timeout_that_ends_everything(server, execute, role, driver, setting, ended, place):
    execute(f"ALTER {place} SET {setting} = 1")
    url = server.url_for(driver).set(username="app")
    try:
        diagnosis = diagnose(url)
    finally:
        execute(f"ALTER {place} RESET {setting}")

    assert first(diagnosis).code == "timeout-too-short"
    assert first(diagnosis).what == f"The server ends {ended}: {setting} is 0.001 s"
    quoted = place.replace("app", '"app"').replace("postgres", '"postgres"')
    assert first(diagnosis).fix == (
        f"Take it back where it is set: ALTER {quoted} RESET {setting}."
    )
    assert codes(diagnose(url)) == []


def test_a_timeout_whose_statement_the_server_calls_cancelled(server, execute, role):
    error = psycopg.errors.QueryCanceled("canceling statement due to user request")
    case = Case(url=server.url_for("psycopg").set(username="app"))
    findings = [explain(case, error)]
    execute("ALTER ROLE app SET statement_timeout = 50")
    findings.append(explain(case, error))
    execute("ALTER ROLE app RESET statement_timeout")

    assert [finding.code for finding in findings] == ["connect-failed", "timeout-too-short"]
    assert findings[1].what == "The server ends every statement: statement_timeout is 0.05 s"


@pytest.mark.parametrize("driver", SYNC)
def test_a_timeout_in_the_url_that_ends_everything(server, driver):
    url = server.url_for(driver).update_query_dict({"options": "-c statement_timeout=1"})
    finding = first(diagnose(url))

    assert finding.code == "timeout-too-short"
    assert finding.fix == (
        "Take it back where it is set: remove statement_timeout from options in the URL, or from "
        "connect_args."
    )


def test_a_timeout_of_the_configuration_that_ends_everything(postgres_binaries):
    with MarkedPostgres(settings={"statement_timeout": "1ms"}) as server:
        url = server.url.set(password=SECRET)
        finding = first(diagnose(url))

        assert finding.code == "timeout-too-short"
        run_alone(server, 'ALTER ROLE "postgres" SET statement_timeout = 0')
        assert 'ALTER ROLE "postgres" SET statement_timeout = 0.' in finding.fix
        assert codes(diagnose(url)) == []


# Limits


@pytest.mark.parametrize(
    ("place", "holder"), [("ROLE app", "role app"), ("DATABASE postgres", "database postgres")]
)
def test_a_connection_limit_below_what_the_application_may_open(
    server, execute, role, monkeypatch, place, holder
):
    execute(f"ALTER {place} CONNECTION LIMIT 12")
    url = server.url.set(username="app")
    try:
        finding = first(diagnose(url))
        monkeypatch.setenv("SA_RAILWAY_POOL_SIZE", "3")
        monkeypatch.setenv("SA_RAILWAY_MAX_OVERFLOW", "2")
        assert codes(diagnose(url)) == []
    finally:
        execute(f"ALTER {place} CONNECTION LIMIT -1")

    assert finding.what == f"The application may open 30 connections, and the {holder} has 12"
    assert f"The CONNECTION LIMIT of the {holder} is 12." in finding.why


# Tables


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_table_that_the_role_may_not_read(server, execute, role, driver):
    execute("CREATE TABLE IF NOT EXISTS invoices (n int)")
    url = server.url_for(driver).set(username="app")
    finding = first(diagnose(url, tables=["invoices"]))

    assert finding.severity is Severity.ERROR
    assert finding.what == "The role app may not SELECT, INSERT, UPDATE, DELETE on invoices"
    assert stands_for(finding, url, "SELECT * FROM invoices")
    execute(sql_of(finding))
    assert codes(diagnose(url, tables=["invoices"])) == []


def test_a_table_in_a_schema_that_the_role_may_not_use(server, execute, role):
    execute("CREATE SCHEMA IF NOT EXISTS closed")
    execute("CREATE TABLE IF NOT EXISTS closed.invoices (n int)")
    execute("GRANT SELECT, INSERT, UPDATE, DELETE ON closed.invoices TO app")
    url = server.url.set(username="app")
    finding = first(diagnose(url, tables=["closed.invoices"]))

    assert finding.code == "table-denied"
    assert stands_for(finding, url, "SELECT * FROM closed.invoices")
    execute(sql_of(finding))
    assert codes(diagnose(url, tables=["closed.invoices"])) == []


def test_a_table_that_the_role_may_only_read(server, execute, role):
    execute("CREATE TABLE IF NOT EXISTS invoices (n int)")
    execute("GRANT SELECT ON invoices TO app")
    url = server.url.set(username="app")
    diagnosis = diagnose(url, tables=["invoices"])

    assert codes(diagnosis) == ["table-denied"]
    assert first(diagnosis).what == "The role app may not INSERT, UPDATE, DELETE on invoices"
    assert diagnosis.is_healthy


# Commit markers


@pytest.fixture
def marked(execute, monkeypatch):
    monkeypatch.setenv("SA_RAILWAY_COMMIT_MARKER", "true")
    execute("DROP TABLE IF EXISTS sa_railway_commit_marker")
    yield
    execute("DROP TABLE IF EXISTS sa_railway_commit_marker")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_table_of_commit_markers_that_is_missing(server, marked, driver, monkeypatch):
    url = server.url_for(driver)
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["commit-marker"]
    assert first(diagnosis).what == (
        "commit_marker is on, but there is no table sa_railway_commit_marker in the search path of "
        "this role"
    )
    assert first(diagnosis).fix == (
        "Make it a table that this role can use. Create it: sa-railway commit-marker --create."
    )
    assert main(["commit-marker", "--create", in_text(url)]) == 0
    diagnosis = diagnose(url)
    assert codes(diagnosis) == []
    assert result(diagnosis, "tables").detail == "there: sa_railway_commit_marker"


def test_a_table_of_commit_markers_that_the_role_may_not_use(server, execute, role, marked):
    for statement in create_sql():
        execute(statement)
    url = server.url.set(username="app")
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["commit-marker"]
    assert first(diagnosis).what == (
        "commit_marker is on, but the role may not read and write public.sa_railway_commit_marker"
    )
    execute(sql_of(first(diagnosis)))
    assert codes(diagnose(url)) == []


def test_a_table_of_commit_markers_without_its_first_rows(server, execute, marked):
    for statement in create_sql():
        execute(statement)
    execute("DELETE FROM sa_railway_commit_marker")
    diagnosis = diagnose(server.url)

    assert codes(diagnosis) == ["commit-marker"]
    assert first(diagnosis).what == (
        "commit_marker is on, but public.sa_railway_commit_marker lacks its first rows"
    )
    assert first(diagnosis).fix == (
        "Make it a table that this role can use. sa-railway commit-marker --create makes them."
    )
    url = in_text(server.url)
    assert main(["commit-marker", "--create", url]) == 0
    assert codes(diagnose(server.url)) == []


def test_commit_markers_that_are_off_need_no_table(server):
    assert result(diagnose(server.url), "tables").outcome is Outcome.NOT_RUN


# Locks


@pytest.fixture
def blocked(server, execute):
    """A session that waits for another; gives the pids of both, the waiting one first."""
    execute("CREATE TABLE IF NOT EXISTS stock (n int)")
    plain = conninfo(server.url)
    with (
        psycopg.connect(plain, application_name="holder") as holder,
        psycopg.connect(plain, application_name="waiter") as waiter,
    ):
        holder.execute("LOCK TABLE stock")

        def wait():
            with psycopg.connect(plain) as watching:
                query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                while watching.execute(query).fetchone() == (0,):
                    pass

        def work():
            waiter.execute("SELECT * FROM stock")

        thread = threading.Thread(target=work)
        thread.start()
        wait()
        yield waiter.info.backend_pid, holder.info.backend_pid
        holder.close()
        thread.join(10)


@pytest.mark.parametrize("driver", DRIVERS)
def test_sessions_that_wait_for_a_lock(server, execute, blocked, driver):
    waiting, holding = blocked
    diagnosis = diagnose(server.url_for(driver))

    assert codes(diagnosis) == ["lock-waits"]
    assert first(diagnosis).what == f"1 session waits for a lock: waiter (pid {waiting})"
    assert f"until its transaction ends: holder (pid {holding})." in first(diagnosis).why
    assert f"End it now: SELECT pg_terminate_backend({holding})." in first(diagnosis).fix
    execute(sql_of(first(diagnosis)))
    assert codes(diagnose(server.url)) == []


def test_locks_are_seen_without_a_permission(server, execute, role, blocked):
    execute("REVOKE pg_read_all_stats FROM app")

    assert codes(diagnose(server.url.set(username="app"))) == ["lock-waits"]


# Indexes


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_index_that_is_invalid(server, execute, driver):
    execute('CREATE TABLE "my rows" (n int)')
    execute('INSERT INTO "my rows" VALUES (1), (1)')
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        run_alone(server, 'CREATE UNIQUE INDEX CONCURRENTLY "my index" ON "my rows" (n)')
    diagnosis = diagnose(server.url_for(driver))

    assert codes(diagnosis) == ["invalid-index"]
    assert first(diagnosis).what == '1 index is invalid: public."my index" on "my rows"'
    execute('DELETE FROM "my rows"')
    run_alone(server, sql_of(first(diagnosis)))
    assert codes(diagnose(server.url)) == []
    execute('DROP TABLE "my rows"')


def run_alone(server, statement, database="postgres"):
    url = server.url.set(database=database)
    engine = sqlalchemy.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        connect_args={"options": "-c statement_timeout=0"},
    )
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_database_whose_collation_has_another_version(server, execute, driver):
    need("ICU", server)
    execute(
        "CREATE DATABASE \"a b\" LOCALE_PROVIDER icu ICU_LOCALE 'en-US' ENCODING 'UTF8' "
        "TEMPLATE template0"
    )
    execute("UPDATE pg_database SET datcollversion = '1.1' WHERE datname = 'a b'")
    url = server.url_for(driver).set(database="a b")
    diagnosis = diagnose(url)

    assert codes(diagnosis) == ["collation-version"]
    assert first(diagnosis).what.startswith(
        "The database a b has another version of its collation than it was made with: 1.1, now "
    )
    for statement in ('REINDEX DATABASE "a b"', 'ALTER DATABASE "a b" REFRESH COLLATION VERSION'):
        assert statement in first(diagnosis).fix
        run_alone(server, statement, database="a b")
    assert codes(diagnose(url)) == []
    execute('DROP DATABASE "a b" WITH (FORCE)')


def test_an_index_whose_collation_has_another_version(server, execute):
    need("ICU", server)
    execute("CREATE COLLATION german (provider = icu, locale = 'de')")
    execute("CREATE TABLE words (word text COLLATE german PRIMARY KEY)")
    execute("UPDATE pg_collation SET collversion = '1.1' WHERE collname = 'german'")
    diagnosis = diagnose(server.url)

    assert codes(diagnosis) == ["collation-version"]
    assert first(diagnosis).what.startswith("The collation public.german of an index has another ")
    execute("ALTER COLLATION public.german REFRESH VERSION")
    assert codes(diagnose(server.url)) == []
    execute("DROP TABLE words")
