"""The plugin within SQLAlchemy's own ways to make an engine."""

import asyncio
import gc
import logging
import sqlite3
import weakref
from typing import Any

import flask
import flask_sqlalchemy
import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fix_engines import SYNC, pool_of
from fix_events import hearing
from marked import MARK, conninfo, in_text
from sqlalchemy import engine_from_config, event, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import async_engine_from_config
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemy_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

import sa_railway
from sa_railway.config import drivers
from sa_railway.engine import fork, liveness
from sa_railway.engine.state import has_plugin, profile_of
from sa_railway.exc import ConfigurationError


def is_alive(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 1")) == 1


def carries_behaviours(engine):
    """Whether this engine is protected and has the dialect's ping replaced."""
    with engine.connect() as connection:
        driver_connection = connection.connection.driver_connection
    return (
        engine in fork.engines()
        and "do_ping" in vars(engine.dialect)
        and isinstance(liveness._pooled[id(driver_connection)].since, float)
    )


@pytest.fixture
def dispose():
    made = []

    def dispose(engine):
        made.append(engine)
        return engine

    yield dispose
    for engine in made:
        engine.dispose()


def with_query(url, **query):
    return url.update_query_dict(query)


def test_named_in_the_arguments(postgres, dispose):
    engine = dispose(sqlalchemy.create_engine(postgres.url, plugins=["railway"]))

    assert carries_behaviours(engine)
    assert engine.pool._recycle == 240


def test_named_in_the_url_and_removed_from_it(postgres, dispose):
    url = with_query(postgres.url, plugin="railway", railway_profile="serverless")
    engine = dispose(sqlalchemy.create_engine(url))

    assert carries_behaviours(engine)
    assert dict(engine.url.query) == dict(postgres.url.query)


def test_named_twice_it_attaches_once(postgres, dispose):
    url = with_query(postgres.url, plugin="railway")
    with hearing() as heard:
        engine = dispose(sqlalchemy.create_engine(url, plugins=["railway"], pool_size=3))

        assert carries_behaviours(engine)
    assert engine.pool.size() == 3
    assert [type(event).__name__ for event in heard] == ["Connected"]


def test_a_postgres_scheme_gets_a_driver(postgres, dispose):
    url = conninfo(postgres.url)
    engine = dispose(
        sqlalchemy.create_engine(url.replace("postgresql://", "postgres://"), plugins=["railway"])
    )

    assert engine.url.drivername == "postgresql+psycopg2"
    assert is_alive(engine)


def test_what_the_caller_passes_wins(postgres, dispose):
    engine = dispose(
        sqlalchemy.create_engine(
            postgres.url,
            plugins=["railway"],
            pool_size=1,
            pool_recycle=7,
            connect_args={"application_name": "mine"},
        )
    )

    with engine.connect() as connection:
        assert connection.scalar(text("SHOW application_name")) == "mine"
    assert engine.pool.size() == 1
    assert engine.pool._recycle == 7


def test_null_pool(postgres, dispose):
    engine = dispose(
        sqlalchemy.create_engine(postgres.url, plugins=["railway"], poolclass=NullPool)
    )
    also = dispose(sa_railway.create_engine(postgres.url, poolclass=NullPool))

    assert is_alive(engine)
    assert is_alive(also)
    assert isinstance(also.pool, NullPool)


def test_a_pool_of_the_callers_own(postgres, dispose):
    import psycopg2

    dsn = conninfo(postgres.url)
    pool = QueuePool(lambda: psycopg2.connect(dsn), pool_size=2)
    engine = dispose(sqlalchemy.create_engine(postgres.url, plugins=["railway"], pool=pool))

    assert carries_behaviours(engine)
    assert engine.pool is pool


@pytest.mark.parametrize("takes_record", [False, True])
def test_a_creator_of_the_callers_own(postgres, dispose, takes_record):
    import psycopg2

    dsn = conninfo(postgres.url)
    outcomes = iter([psycopg2.OperationalError("connection refused: Connection refused"), None])

    def create():
        outcome = next(outcomes, None)
        if outcome:
            raise outcome
        return psycopg2.connect(dsn)

    creator = (lambda record: create()) if takes_record else create
    engine = dispose(sa_railway.create_engine(postgres.url, creator=creator))

    assert is_alive(engine)  # at the second attempt: the creator has patience, too


def test_the_callers_connect_args_are_not_touched(postgres, dispose):
    mine = {"application_name": "mine"}
    dispose(sqlalchemy.create_engine(postgres.url, plugins=["railway"], connect_args=mine))
    dispose(sa_railway.create_engine(postgres.url, connect_args=mine))

    assert mine == {"application_name": "mine"}


def test_an_engine_from_an_ini_file(postgres, dispose):
    url = in_text(with_query(postgres.url, plugin="railway"))
    engine = dispose(
        engine_from_config(
            {
                "sqlalchemy.url": url,
                "sqlalchemy.pool_size": "2",
                "sqlalchemy.pool_recycle": "60",
                "sqlalchemy.pool_pre_ping": "true",
            }
        )
    )

    assert carries_behaviours(engine)
    assert (pool_of(engine).size(), engine.pool._recycle) == (2, 60)


def test_pre_ping_switched_off_in_an_ini_file(postgres, dispose):
    engine = dispose(
        engine_from_config(
            {"sqlalchemy.url": postgres.url, "sqlalchemy.pool_pre_ping": "false"},
            plugins=["railway"],
        )
    )

    with engine.connect() as connection:
        driver_connection = connection.connection.driver_connection
    assert id(driver_connection) not in liveness._pooled


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_asyncio_engines(postgres, driver):
    async def scalar(engine):
        async with engine.connect() as connection:
            result = await connection.scalar(text("SELECT 1"))
        await engine.dispose()
        return result

    url = postgres.url_for(driver)
    makers = [
        lambda: sa_railway.create_async_engine(url),
        lambda: sqlalchemy_async_engine(url, plugins=["railway"]),
        lambda: async_engine_from_config(
            {"sqlalchemy.url": with_query(url, plugin="railway"), "sqlalchemy.pool_size": "2"}
        ),
        lambda: sqlalchemy_async_engine(url, plugins=["railway"], poolclass=NullPool),
    ]
    for make in makers:
        engine = make()
        assert engine.sync_engine in fork.engines()
        assert asyncio.run(scalar(engine)) == 1


def test_a_bare_url_gets_an_asyncio_driver(postgres):
    url = postgres.url.set(drivername="postgresql")

    assert sa_railway.create_async_engine(url).url.drivername == "postgresql+asyncpg"
    assert sa_railway.create_async_engine("sqlite://").url.drivername == "sqlite+aiosqlite"


@pytest.mark.parametrize("make", [sqlalchemy.create_engine, sqlalchemy_async_engine])
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_named_in_the_arguments_it_keeps_the_driver_that_sqlalchemy_chooses(postgres, make, scheme):
    url = postgres.url.set(drivername=scheme)
    try:
        plain = make(url)
    except InvalidRequestError:  # not a driver for asyncio
        assert make(url, plugins=["railway"]).dialect.driver == "asyncpg"
        return
    engine = make(url, plugins=["railway"])

    assert engine.url == plain.url
    assert engine.dialect.driver == plain.dialect.driver


@pytest.mark.parametrize("driver", SYNC)
def test_a_driver_that_is_missing_is_replaced(postgres, monkeypatch, driver):
    monkeypatch.setattr(drivers, "find_spec", lambda name: name == driver)
    url = postgres.url.set(drivername="postgresql")
    engine = sqlalchemy.create_engine(url, plugins=["railway"])

    assert engine.dialect.driver == driver


def test_options_for_one_driver_suit_the_one_that_sqlalchemy_chooses(postgres, dispose):
    url = postgres.url.set(drivername="postgresql")
    engine = dispose(sqlalchemy.create_engine(url, **sa_railway.engine_options(url)))

    assert carries_behaviours(engine)
    assert engine.dialect.driver == sqlalchemy.create_engine(url).dialect.driver


def test_a_listener_that_sets_the_password_of_every_connect_is_heard(postgres, dispose):
    engine = dispose(sa_railway.create_engine(postgres.url.set(username="nobody")))

    @event.listens_for(engine, "do_connect")
    def fetch_credentials(dialect, record, cargs, cparams):
        cparams["user"] = postgres.url.username

    assert is_alive(engine)


def test_binds_that_share_one_dictionary_of_options(postgres, tmp_path):
    app = flask.Flask(__name__, instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = postgres.url
    app.config["SQLALCHEMY_BINDS"] = {
        "memory": "sqlite://",
        "file": f"sqlite:///{tmp_path / 'bind.db'}",
        "second": in_text(postgres.url),
    }
    db = flask_sqlalchemy.SQLAlchemy(engine_options=sa_railway.engine_options(postgres.url))
    db.init_app(app)

    with app.app_context():
        engines = dict(db.engines)
        assert {key: is_alive(engine) for key, engine in engines.items()} == {
            None: True,
            "memory": True,
            "file": True,
            "second": True,
        }
        assert isinstance(engines["memory"].pool, StaticPool)
        assert engines["second"].pool._recycle == 240
        for engine in engines.values():
            engine.dispose()


def test_flask_config_with_options_of_its_own(postgres, tmp_path):
    app = flask.Flask(__name__, instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = sa_railway.database_url(postgres.url)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = sa_railway.engine_options(postgres.url, pool_size=2)
    db = flask_sqlalchemy.SQLAlchemy(app)

    with app.app_context():
        assert carries_behaviours(db.engine)
        assert pool_of(db.engine).size() == 2
        db.engine.dispose()


PARENT_AND_CHILD = [
    "CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)",
    "CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent ON DELETE CASCADE)",
    "INSERT INTO parent VALUES (1, 'a')",
    "INSERT INTO child VALUES (1, 1)",
]


def test_a_migration_of_sqlite_that_recreates_a_table_keeps_its_children(tmp_path, dispose):
    engine = dispose(sa_railway.create_engine(f"sqlite:///{tmp_path / 'app.db'}"))
    with engine.begin() as connection:
        for statement in PARENT_AND_CHILD:
            connection.execute(text(statement))

    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("parent", recreate="always") as batch:
            batch.alter_column("name", new_column_name="title")

    with engine.connect() as connection:
        assert connection.execute(text("SELECT id, parent FROM child")).all() == [(1, 1)]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_of_sqlite_stays_as_it_was_made(tmp_path, dispose, read_only):
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE t (id INTEGER)")
    file.close()
    query = "?mode=ro&uri=true" if read_only else ""
    with sqlite3.connect(path) as busy:
        busy.execute("BEGIN EXCLUSIVE")
        engine = dispose(sa_railway.create_engine(f"sqlite:///file:{path}{query or '?uri=true'}"))
        with engine.connect() as connection:
            connection.rollback()
            busy.rollback()
            assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
            assert connection.scalar(text("PRAGMA foreign_keys")) == 0
    busy.close()


def test_a_ping_that_the_caller_asks_for_is_done_on_sqlite(tmp_path, dispose):
    url = f"sqlite:///{tmp_path / 'app.db'}"
    makers = [
        lambda **how: sqlalchemy.create_engine(url, plugins=["railway"], **how),
        lambda **how: sa_railway.create_engine(url, **how),
    ]
    for make in makers:
        assert dispose(make(pool_pre_ping=True)).pool._pre_ping is True
        assert dispose(make()).pool._pre_ping is False


def test_a_connection_opens_no_cursor_that_plain_sqlalchemy_does_not_open(postgres, dispose):
    import psycopg2.extensions

    class Counted(psycopg2.extensions.connection):
        cursors = 0

        def cursor(self, *args, **kwargs):
            Counted.cursors += 1  # and not of a subclass
            return super().cursor(*args, **kwargs)

    def opened(make):
        engine = dispose(make(postgres.url, connect_args={"connection_factory": Counted}))
        with engine.connect():  # the first one finds out what the server is
            Counted.cursors = 0
            with engine.connect():
                return Counted.cursors

    assert opened(sa_railway.create_engine) == opened(sqlalchemy.create_engine)


def test_a_disposed_engine_keeps_its_behaviours(postgres, dispose):
    engine = dispose(sa_railway.create_engine(postgres.url))
    engine.dispose()

    assert carries_behaviours(engine)


def test_the_password_is_in_no_repr(postgres):
    url = postgres.url.set(password=MARK)
    engine = sa_railway.create_engine(url)
    options = sa_railway.engine_options(url)

    assert MARK not in repr(engine) + str(engine.url) + repr(options)


def test_an_engine_that_is_gone_is_forgotten(postgres):
    engine = sa_railway.create_engine(postgres.url, idle_release=60)
    engine.connect().close()
    engine.dispose()
    identity = id(engine)
    del engine
    gc.collect()

    assert identity not in map(id, fork.engines())


def test_an_engine_that_was_never_disposed_takes_its_connections_with_it(postgres):
    engine = sa_railway.create_engine(
        postgres.url, trust_idle=0, idle_release=60, leak_after=60, resolve_commit=True
    )
    for _ in range(2):  # the second checkout pings
        assert is_alive(engine)
    sa_railway.run_transaction(engine, lambda connection: connection.execute(text("SELECT 1")))
    gone: list[Any] = [weakref.ref(engine), weakref.ref(engine.dialect), weakref.ref(engine.pool)]
    del engine
    gc.collect()

    assert [reference() for reference in gone] == [None, None, None]


def test_sqlite_waits_for_another_writer_as_long_as_the_caller_says(tmp_path, dispose):
    engine = dispose(
        sa_railway.create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"timeout": 30})
    )

    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000


# Which profile


MAKERS = [
    pytest.param(sa_railway.create_engine, id="create_engine"),
    pytest.param(
        lambda url, **how: sa_railway.create_async_engine(url, **how).sync_engine,
        id="create_async_engine",
    ),
    pytest.param(
        lambda url, **how: sqlalchemy.create_engine(url, **sa_railway.engine_options(url, **how)),
        id="engine_options",
    ),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_profile_named_in_the_url_counts_unless_the_caller_names_one(make, monkeypatch):
    url = "postgresql://u@h/d?plugin=railway&railway_profile=worker"

    assert profile_of(make(url)).name == "worker"
    assert profile_of(make(url, profile="script")).name == "script"
    assert profile_of(make("postgresql://u@h/d")).name == "web"
    assert dict(make(url).url.query) == {}

    monkeypatch.setenv("DATABASE_URL", url)
    assert profile_of(sa_railway.create_engine()).name == "worker"
    assert sa_railway.engine_options()["railway_profile"].name == "worker"


@pytest.mark.parametrize(
    ("url", "arguments", "message"),
    [
        (
            "sqlite://",
            {"railway_profil": "worker"},
            "railway_profil is not an argument of the plugin; allowed: railway_profile",
        ),
        (
            "sqlite://?railway_leak_after=30",
            {},
            "url has the parameter 'railway_leak_after'; allowed of this package: railway_profile",
        ),
        (
            "sqlite://",
            {"railway_profile": "workers"},
            "profile is 'workers'; allowed: web, worker, script, serverless "
            "(did you mean 'worker'?)",
        ),
    ],
)
def test_a_misspelt_setting_is_refused_when_the_engine_is_made(url, arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        sqlalchemy.create_engine(url, plugins=["railway"], **arguments)

    assert str(caught.value) == message


def test_an_engine_is_known_to_have_the_plugin_or_not():
    assert has_plugin(sa_railway.create_engine("sqlite://"))
    assert has_plugin(sa_railway.create_engine("sqlite://").execution_options(a=1))
    assert not has_plugin(sqlalchemy.create_engine("sqlite://"))


# What an application that works says


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "sa_railway.plugin"]


def test_an_engine_says_once_that_it_is_protected_when_it_first_connects(postgres, dispose, caplog):
    caplog.set_level(logging.INFO, "sa_railway.plugin")
    url = with_query(postgres.url, plugin="railway", railway_profile="worker")
    engine = dispose(sqlalchemy.create_engine(url, plugins=["railway"]))
    assert lines(caplog) == []

    for _ in range(2):
        with engine.connect(), engine.connect():
            pass
        engine.dispose()

    assert lines(caplog) == [f"{engine.url}: protected by sa_railway, profile worker"]
    assert [r.levelname for r in caplog.records if r.name == "sa_railway.plugin"] == ["INFO"]


def test_each_engine_says_so_by_its_name(postgres, dispose, caplog):
    caplog.set_level(logging.INFO, "sa_railway.plugin")
    for name in ("orders", "archive"):
        engine = dispose(sa_railway.create_engine(postgres.url, logging_name=name))
        assert is_alive(engine)

    assert lines(caplog) == [
        "orders: protected by sa_railway, profile web",
        "archive: protected by sa_railway, profile web",
    ]


def test_an_engine_for_asyncio_says_so_too(postgres, caplog):
    async def connect_twice():
        engine = sa_railway.create_async_engine(postgres.url, logging_name="shop")
        for _ in range(2):
            async with engine.connect(), engine.connect():
                pass
        await engine.dispose()

    caplog.set_level(logging.INFO, "sa_railway.plugin")
    asyncio.run(connect_twice())

    assert lines(caplog) == ["shop: protected by sa_railway, profile web"]


class Pinned(QueuePool):
    """Settles its size, so that no caller can."""

    def __init__(self, creator, **arguments):
        super().__init__(creator, pool_size=1, max_overflow=0, recycle=60, **arguments)

    def recreate(self):
        return type(self)(self._creator, dialect=self._dialect)


class Fixed(NullPool):
    """Names what it takes."""

    def __init__(self, creator, dialect=None, pre_ping=False):
        super().__init__(creator, dialect=dialect, pre_ping=pre_ping)

    def recreate(self):
        return type(self)(self._creator, self._dialect)


class Plain(QueuePool):
    """Has the constructor of its base."""


@pytest.mark.parametrize("pool_class", [Pinned, Fixed, Plain])
@pytest.mark.parametrize("make", ["plugin", "options", "factory"])
def test_a_pool_class_of_the_application_gets_what_it_takes(postgres, pool_class, make):
    url = postgres.url
    if make == "plugin":
        engine = sqlalchemy.create_engine(url, poolclass=pool_class, plugins=["railway"])
    elif make == "options":
        options = sa_railway.engine_options(url, poolclass=pool_class)
        engine = sqlalchemy.create_engine(url, **options)
    else:
        engine = sa_railway.create_engine(url, poolclass=pool_class)

    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        postgres.terminate_backends()
    assert type(engine.pool) is pool_class
    if pool_class is Plain:
        assert (pool_of(engine).size(), engine.pool._recycle) == (5, 240)
    engine.dispose()


def test_what_a_caller_asks_of_such_a_pool_reaches_it(postgres):
    class Sized(QueuePool):
        def __init__(self, creator, **arguments):
            super().__init__(creator, max_overflow=0, **arguments)

    engine = sa_railway.create_engine(postgres.url, poolclass=Sized, pool_size=3)

    assert pool_of(engine).size() == 3
