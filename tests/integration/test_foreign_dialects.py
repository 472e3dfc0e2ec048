"""What the plugin knows nothing of is left to SQLAlchemy and to the dialect, whole."""

import os
import time
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import NoSuchModuleError

import sa_railway
from sa_railway.commit.marker_schema import create_sql, drop_sql
from sa_railway.engine.state import has_plugin
from sa_railway.exc import ConfigurationError


class Nameless(DefaultDialect):
    """As an application may register one: with no driver's name."""

    @classmethod
    def import_dbapi(cls):
        return Mock(connect=Mock(return_value=Mock(spec=["close", "cursor", "rollback"])))


class Derived(PGDialect_psycopg2):
    """A database that speaks PostgreSQL's protocol, with reasons for a disconnect."""

    supports_statement_cache = True

    def is_disconnect(self, error, connection, cursor):
        return "division by zero" in str(error)


registry.register("nameless", __name__, "Nameless")
registry.register("derived.psycopg2", __name__, "Derived")


@pytest.mark.parametrize("url", ["nameless://host/db", "nameless://host/db?railway_profile=worker"])
def test_a_dialect_without_a_driver_is_left_alone(url):
    engine = sqlalchemy.create_engine(url, plugins=["railway"], _initialize=False)

    engine.connect().close()

    assert engine.url.render_as_string() == "nameless://host/db"
    assert engine.pool._pre_ping is False
    assert [name for name in vars(engine.dialect) if "connect" in name] == [
        name for name in vars(sqlalchemy.create_engine("nameless://").dialect) if "connect" in name
    ]


def test_an_unknown_scheme_is_the_error_of_sqlalchemy():
    errors = []
    for arguments in ({}, {"plugins": ["railway"]}):
        with pytest.raises(NoSuchModuleError) as raised:
            sqlalchemy.create_engine("unknown://host/db", **arguments)
        errors.append(str(raised.value))

    assert errors[0] == errors[1]


def test_a_driver_that_the_caller_hands_over_need_not_be_installed():
    module = Mock(paramstyle="format", version_info=(2, 2, 0))
    arguments = {"module": module, "plugins": ["railway"], "_initialize": False}
    engine = sqlalchemy.create_engine("mysql+mysqldb://host/db", **arguments)

    assert engine.dialect.driver == "mysqldb"


def test_a_url_that_needs_no_change_stays_the_object_that_it_is(postgres):
    url = postgres.url

    assert sqlalchemy.create_engine(url, plugins=["railway"]).url is url


def test_a_dialect_of_the_application_says_what_is_a_disconnect(postgres):
    url = postgres.url.set(drivername="derived+psycopg2")
    lost = []
    for engine in (sqlalchemy.create_engine(url), sa_railway.create_engine(url)):
        event.listen(engine, "handle_error", lambda context: lost.append(context.is_disconnect))
        with engine.connect() as connection, pytest.raises(sqlalchemy.exc.DataError):
            connection.execute(text("SELECT 1 / 0"))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        engine.dispose()

    assert lost == [True, True]


def test_the_pools_way_to_connect_may_be_called_as_that_of_sqlalchemy(postgres):
    for engine in (sqlalchemy.create_engine(postgres.url), sa_railway.create_engine(postgres.url)):
        create: Any = engine.pool._creator
        create().close()
        create(None).close()
        engine.dispose()


def test_a_dsn_in_libpqs_own_form_is_handed_on(postgres):
    dsn = f"host=127.0.0.1 port={postgres.port} user=postgres dbname=postgres"
    url = sqlalchemy.URL.create("postgresql+psycopg2", query={"dsn": dsn})
    engine = sa_railway.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT inet_server_port()")) == postgres.port
    engine.dispose()


def test_the_parameters_of_another_dialect_stay_where_they_are():
    engine = sqlalchemy.create_engine(
        "nameless://host/db?user=me&password=secret", plugins=["railway"], _initialize=False
    )

    assert dict(engine.url.query) == {"user": "me", "password": "secret"}


class OtherSQLite(SQLiteDialect_pysqlite):
    """A driver for SQLite files with arguments of other names, as that of Turso has."""

    driver = "other"
    supports_statement_cache = True


class OtherPostgres(PGDialect_psycopg2):
    """A driver that the package knows nothing of, as pg8000 is."""

    driver = "other"
    supports_statement_cache = True


registry.register("sqlite.other", __name__, "OtherSQLite")
registry.register("postgresql.other", __name__, "OtherPostgres")


def test_other_drivers_of_sqlite_get_no_argument_of_its_own():
    options = sa_railway.engine_options("sqlite+other:///app.db")

    assert "connect_args" not in options


@pytest.mark.parametrize("setting", ["resolve_commit", "commit_marker"])
def test_a_driver_that_cannot_ask_for_an_outcome_is_refused(setting):
    asked: dict[str, Any] = {setting: True}
    with pytest.raises(ConfigurationError) as caught:
        sqlalchemy.create_engine(
            "postgresql+other://h/d",
            plugins=["railway"],
            railway_profile=sa_railway.Profile(**asked),
        )

    assert str(caught.value) == (
        f"{setting} is True, and the driver is other; allowed: with psycopg2, psycopg and asyncpg "
        "only"
    )


class Committing(PGDialect_psycopg):
    """A dialect that has something to say to each COMMIT."""

    supports_statement_cache = True
    commits = 0

    def do_commit(self, dbapi_connection):
        type(self).commits += 1
        super().do_commit(dbapi_connection)


registry.register("postgresql.committing", __name__, "Committing")


def test_the_commit_of_a_dialect_is_its_own_with_markers_too(postgres):
    plain = sqlalchemy.create_engine(postgres.url)
    with plain.begin() as connection:
        for statement in [*drop_sql(), *create_sql()]:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("DROP TABLE IF EXISTS seen; CREATE TABLE seen (n int)")
    url = postgres.url.set(drivername="postgresql+committing")
    engine = sqlalchemy.create_engine(
        url,
        plugins=["railway"],
        railway_profile=sa_railway.Profile(resolve_commit=True, commit_marker=True),
    )
    with engine.begin() as connection:
        before = Committing.commits
        connection.exec_driver_sql("INSERT INTO seen VALUES (1)")
    assert Committing.commits == before + 1
    engine.dispose()
    # and the engine did write a marker, for which psycopg could have left that COMMIT out
    with plain.connect() as connection:
        markers = connection.exec_driver_sql("SELECT count(*) FROM sa_railway_commit_marker")
        assert markers.scalar_one() > 2
    plain.dispose()


class InMemory(SQLiteDialect_pysqlite):
    """A database within the process that is no SQLite by its name, as DuckDB is."""

    name = "inmemory"
    supports_statement_cache = True


registry.register("inmemory", __name__, "InMemory")


def test_what_a_database_in_memory_holds_stays_where_its_connection_does():
    def count():
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM held"))

    engine = sqlalchemy.create_engine("inmemory://", plugins=["railway"])
    assert has_plugin(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE held (n int)"))
    with pytest.MonkeyPatch.context() as patch:
        clock = time.time
        patch.setattr(time, "time", lambda: clock() + 300)
        assert count() == 0
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = count()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.dispose()
