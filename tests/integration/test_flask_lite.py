"""``sa_railway.flask`` with Flask-SQLAlchemy-Lite: sessions by name, of asyncio as well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fix_engines import plain_engine, pool_of, terminate
from flask import Flask, g
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import URL, Engine, NullPool, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_railway import engine_options, retry
from sa_railway.flask import Railway

ADVICE = "If the changes are wanted, call db.session.commit() before it ends"
ONE_NEW = "objects: 1 new, 0 changed, 0 deleted; statements executed: 0"
ONE_EXECUTED = "objects: 0 new, 0 changed, 0 deleted; statements executed: 1"


class Base(DeclarativeBase):
    """The base of the one model."""


class Note(Base):
    """A line of text."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


def make_app(url: URL, **config: object) -> tuple[Flask, SQLAlchemy]:
    """An application with the engines ``default`` and ``audit``, and one of asyncio.

    A view of asyncio has a loop of its own, so nothing of that engine is kept from one to the next.
    """
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_ENGINES={
            "default": {"url": url, **engine_options(url)},
            "audit": {"url": url, **engine_options(url)},
        },
        SQLALCHEMY_ASYNC_ENGINES={
            "default": {
                "url": url.set(drivername="postgresql+psycopg"),
                "plugins": ["railway"],
                "poolclass": NullPool,
            }
        },
        **config,
    )
    return app, SQLAlchemy(app)


@pytest.fixture
def plain(database_url: URL) -> Iterator[Engine]:
    engine = plain_engine(database_url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def shop(database_url: URL, plain: Engine) -> Iterator[Callable[..., tuple[Flask, SQLAlchemy]]]:
    made = []

    def make(**config: object) -> tuple[Flask, SQLAlchemy]:
        app, db = make_app(database_url, **config)
        Railway(app, db)
        made.append((app, db))
        return app, db

    yield make
    for app, db in made:
        with app.app_context():
            for engine in db.engines.values():
                engine.dispose()


def texts(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Note.text).order_by(Note.id)))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "sa_railway.flask"]


def assert_nothing_is_held(app: Flask, db: SQLAlchemy) -> None:
    with app.app_context():
        assert [pool_of(engine).checkedout() for engine in db.engines.values()] == [0, 0]


def test_requests_are_answered_and_their_work_is_kept(
    shop: Callable[..., tuple[Flask, SQLAlchemy]], plain: Engine, caplog: pytest.LogCaptureFixture
):
    app, db = shop()

    @app.post("/<name>")
    def add(name: str) -> str:
        db.session.add(Note(text=name))
        db.session.commit()
        return "done"

    @app.post("/async/<name>")
    async def add_async(name: str) -> str:
        db.async_session.add(Note(text=name))
        await db.async_session.commit()
        return "done"

    app.get("/")(lambda: "nothing")
    client = app.test_client()
    answers = [client.get("/"), *(client.post(path) for path in ("/a", "/async/b", "/c"))]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert texts(plain) == ["a", "b", "c"]
    assert lines(caplog) == []
    assert_nothing_is_held(app, db)


def leave(db: SQLAlchemy) -> None:
    db.session.add(Note(text="left"))


def leave_by_name(db: SQLAlchemy) -> None:
    session = db.get_session("other")
    session.execute(text("INSERT INTO note (text) VALUES ('left')"))


def leave_async(db: SQLAlchemy) -> None:
    async def work() -> None:
        db.async_session.add(Note(text="left"))

    asyncio.run(work())


async def leave_in_the_view(db: SQLAlchemy) -> None:
    await db.get_async_session("other").execute(text("INSERT INTO note (text) VALUES ('left')"))


LEFT: dict[Callable[[SQLAlchemy], object], str] = {
    leave: ONE_NEW,
    leave_by_name: ONE_EXECUTED,
    leave_async: ONE_NEW,
    leave_in_the_view: ONE_EXECUTED,
}


@pytest.mark.parametrize("leftovers", ["rollback", "commit"])
@pytest.mark.parametrize("leave", LEFT)
def test_what_a_request_leaves_in_any_session_is_rolled_back_or_committed(
    shop: Callable[..., tuple[Flask, SQLAlchemy]],
    plain: Engine,
    caplog: pytest.LogCaptureFixture,
    leave: Callable[[SQLAlchemy], object],
    leftovers: str,
):
    caplog.set_level("DEBUG", logger="sa_railway.flask")
    app, db = shop(RAILWAY_LEFTOVERS=leftovers)

    @app.post("/notes")
    def view() -> str:
        return app.ensure_sync(leave)(db) or "done"

    assert app.test_client().post("/notes").status_code == 200

    expected = {
        "rollback": (
            [],
            (
                "WARNING",
                f"Rolled back what POST /notes left uncommitted ({LEFT[leave]}). {ADVICE}",
            ),
        ),
        "commit": (
            ["left"],
            ("INFO", f"Committed what POST /notes left uncommitted ({LEFT[leave]})"),
        ),
    }[leftovers]
    assert (texts(plain), *lines(caplog)) == expected
    assert_nothing_is_held(app, db)


@pytest.mark.parametrize("is_async", [False, True], ids=["session", "async session"])
def test_a_lost_connection_costs_neither_the_answer_nor_the_other_sessions(
    shop: Callable[..., tuple[Flask, SQLAlchemy]], database_url: URL, is_async: bool
):
    app, db = shop()
    pid = text("SELECT pg_backend_pid()")

    @app.get("/kill")
    async def kill() -> str:
        db.get_session("other").scalar(pid)
        victim = await db.async_session.scalar(pid) if is_async else db.session.scalar(pid)
        terminate(database_url, victim)
        return "done"

    assert app.test_client().get("/kill").text == "done"
    assert_nothing_is_held(app, db)


def test_leftovers_that_cannot_be_committed_fail_the_request_and_keep_the_others(
    shop: Callable[..., tuple[Flask, SQLAlchemy]], plain: Engine
):
    app, db = shop(RAILWAY_LEFTOVERS="commit")
    with plain.begin() as connection:
        connection.execute(text("INSERT INTO note (text) VALUES ('old')"))

    @app.post("/notes")
    def view() -> str:
        for name in ("first", "old", "last"):
            db.get_session(name).add(Note(text=name))
        return "done"

    with pytest.raises(IntegrityError):
        app.test_client().post("/notes")

    assert sorted(texts(plain)) == ["first", "last", "old"]
    assert_nothing_is_held(app, db)


@pytest.mark.parametrize("is_first", [True, False], ids=["Railway first", "Railway last"])
def test_what_an_application_commits_in_a_teardown_of_its_own_is_kept(
    database_url: URL, plain: Engine, caplog: pytest.LogCaptureFixture, is_first: bool
):
    app, db = make_app(database_url)
    if is_first:
        Railway(app, db)

    @app.teardown_appcontext
    def commit(_error: BaseException | None) -> None:
        db.session.commit()

    if not is_first:
        Railway(app, db)

    @app.post("/")
    def view() -> str:
        leave(db)
        return "done"

    assert app.test_client().post("/").status_code == 200

    assert (texts(plain), lines(caplog)) == (["left"], [])
    assert_nothing_is_held(app, db)
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_retry_rolls_back_the_session_of_the_request(
    shop: Callable[..., tuple[Flask, SQLAlchemy]], plain: Engine, database_url: URL
):
    app, db = shop()
    attempts = []

    @retry(attempts=2, backoff_base=0.001)
    def work() -> None:
        attempts.append(1)
        db.session.add(Note(text=f"attempt {len(attempts)}"))
        db.session.flush()
        if len(attempts) == 1:
            terminate(database_url, db.session.scalar(text("SELECT pg_backend_pid()")))
            db.session.execute(text("SELECT 1"))
        db.session.commit()

    @app.post("/")
    def view() -> str:
        work()
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert texts(plain) == ["attempt 2"]


def test_health_and_commands_know_the_engines_by_their_names(
    shop: Callable[..., tuple[Flask, SQLAlchemy]],
):
    app, _ = shop(DEBUG=True)

    assert app.test_client().get("/health/ready").json == {"status": "ready", "reason": None}
    report = app.test_client().get("/health/database").get_json()
    assert list(report["databases"]) == ["default", "audit", "default (async)"]
    for name in report["databases"]:
        waited, examined = (
            app.test_cli_runner().invoke(args=["railway", command, "--database", name])
            for command in ("wait", "doctor")
        )
        assert waited.exit_code == 0
        assert waited.output.startswith("ready after 0.")
        assert examined.exit_code == 0, examined.output


def test_engines_without_the_plugin_are_named_with_what_to_configure(
    database_url: URL, caplog: pytest.LogCaptureFixture
):
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_ENGINES={
            "default": {"url": database_url, **engine_options(database_url)},
            "audit": database_url,
        },
        SQLALCHEMY_ASYNC_ENGINES={"stock": database_url.set(drivername="postgresql+asyncpg")},
    )

    Railway(app, SQLAlchemy(app))

    assert lines(caplog) == [
        (
            "WARNING",
            f"Flask app 'shop': database '{name}' is not protected, as its engine is without the "
            f'plugin. Configure {setting} = {{"{name}": {{"url": url, **engine_options(url)}}}}, '
            "with engine_options from sa_railway",
        )
        for name, setting in (
            ("audit", "SQLALCHEMY_ENGINES"),
            ("stock", "SQLALCHEMY_ASYNC_ENGINES"),
        )
    ]


def test_the_extension_keeps_its_sessions_where_they_are_looked_for(
    shop: Callable[..., tuple[Flask, SQLAlchemy]],
):
    app, db = shop()

    with app.app_context():
        sessions = {"default": db.session, "other": db.get_session("other")}
        async_sessions = {"default": db.async_session}
        assert g._sqlalchemy_sessions == sessions
        assert g._sqlalchemy_async_sessions == async_sessions


def test_nothing_of_the_other_extension_is_needed():
    program = "import sys; sys.modules['flask_sqlalchemy'] = None; import sa_railway.flask"

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
