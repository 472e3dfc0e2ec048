"""The end of a request or command under ``sa_railway.flask``, with two binds on PostgreSQL."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import click
import psycopg
import psycopg.sql
import psycopg2
import pytest
from fix_engines import pool_of, terminate
from flask import Flask, Response, abort, g
from flask_sqlalchemy import SQLAlchemy
from marked import in_text
from sqlalchemy import URL, Connection, Engine, event, func, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session, scoped_session

from sa_railway import engine_options
from sa_railway.flask import Railway

MODES: dict[str, dict[str, Any]] = {"plain": {}, "plugin": {"plugins": ["railway"]}}


class Shop:
    """An application with orders in its default bind and notes in the bind ``audit``."""

    def __init__(self, url: URL, **config: Any) -> None:
        self.url = url
        self.db = SQLAlchemy()
        db: Any = self.db

        class Order(db.Model):
            id = db.Column(db.Integer, primary_key=True)
            name = db.Column(db.Text, unique=True)

        class Note(db.Model):
            __bind_key__ = "audit"
            id = db.Column(db.Integer, primary_key=True)
            text = db.Column(db.Text)

        self.Order, self.Note = Order, Note
        self.apps: list[Flask] = []
        self.app = self.make_app(**config)
        with self.app.app_context():
            db.create_all()
            db.session.add(Order(name="old"))
            db.session.commit()

    def make_app(self, **config: Any) -> Flask:
        options = config.pop("options", {})
        app = Flask("shop")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=self.url,
            SQLALCHEMY_ENGINE_OPTIONS=dict(options),
            SQLALCHEMY_BINDS={"audit": {"url": self.url, **options}},
            **config,
        )
        self.db.init_app(app)
        self.apps.append(app)
        return app

    def engines(self, app: Flask | None = None) -> dict[str | None, Engine]:
        with (app or self.app).app_context():
            return dict(self.db.engines)

    def names(self) -> list[str]:
        with self.app.app_context():
            return list(self.db.session.scalars(select(self.Order.name).order_by("id")))

    def first(self) -> Any:
        return self.db.session.scalars(select(self.Order)).first()

    def backend(self, bind: str | None) -> int:
        """The backend of this session's open transaction on *bind*."""
        connection = self.db.session.connection(bind_arguments={"bind": self.db.engines[bind]})
        return connection.scalar(text("SELECT pg_backend_pid()"))

    def assert_nothing_is_held(self) -> None:
        assert self.db.session.registry.registry == {}
        for app in self.apps:
            engines = self.engines(app).items()
            held = {bind: pool_of(engine).checkedout() for bind, engine in engines}
            assert held == {None: 0, "audit": 0}

    def close(self) -> None:
        for app in self.apps:
            for engine in self.engines(app).values():
                engine.dispose()


@pytest.fixture
def make_shop(database_url: URL) -> Iterator[Callable[..., Shop]]:
    shops = []

    def make(**config: Any) -> Shop:
        shops.append(Shop(database_url, **config))
        return shops[-1]

    yield make
    for shop in shops:
        shop.db.session.registry.registry.clear()
        shop.close()
    gc.collect()  # what Flask-SQLAlchemy alone has left checked out ends here, not in a later test


@pytest.fixture
def shop(make_shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture) -> Shop:
    shop = make_shop()
    Railway(shop.app, shop.db)
    caplog.set_level("DEBUG", logger="sa_railway.flask")
    return shop


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """What the extension has logged of requests and commands, as pairs of level and text."""

    def records() -> list[tuple[str, str]]:
        lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name.startswith("sa_r")]
        # what it says of the engines, some of which are plain here on purpose, has tests below
        return [line for line in lines if not line[1].startswith("Flask app ")]

    return records


# --- a connection that died within the request ---

VICTIMS = {"default": [None], "audit": ["audit"], "both": [None, "audit"]}


def add_killing_view(shop: Shop, victims: list[str | None]) -> None:
    @shop.app.get("/kill")
    def kill() -> dict[str, int]:
        backends = {bind: shop.backend(bind) for bind in (None, "audit")}
        terminate(shop.url, *(backends[bind] for bind in victims))
        return {str(bind): pid for bind, pid in backends.items()}

    @shop.app.get("/backends")
    def backends() -> dict[str, int]:
        return {str(bind): shop.backend(bind) for bind in (None, "audit")}


@pytest.mark.parametrize("victims", VICTIMS.values(), ids=VICTIMS)
def test_without_the_extension_a_lost_connection_fails_the_request_and_keeps_its_session(
    make_shop: Callable[..., Shop], victims: list[str | None]
):
    shop = make_shop()
    add_killing_view(shop, victims)

    with pytest.raises(OperationalError):
        shop.app.test_client().get("/kill")

    assert len(shop.db.session.registry.registry) == 1


def test_without_the_extension_connections_to_two_lost_backends_stay_checked_out(
    make_shop: Callable[..., Shop],
):
    shop = make_shop()
    add_killing_view(shop, [None, "audit"])

    with pytest.raises(OperationalError) as _held:  # its traceback keeps the connections alive
        shop.app.test_client().get("/kill")

    assert sum(pool_of(engine).checkedout() for engine in shop.engines().values()) > 0


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
@pytest.mark.parametrize("victims", VICTIMS.values(), ids=VICTIMS)
def test_a_lost_connection_costs_neither_the_answer_nor_the_other_connections(
    make_shop: Callable[..., Shop], victims: list[str | None], options: dict[str, object]
):
    shop = make_shop(options=options)
    Railway(shop.app, shop.db)
    add_killing_view(shop, victims)
    client = shop.app.test_client()

    answer = client.get("/kill")

    shop.assert_nothing_is_held()
    assert answer.status_code == 200
    renewed = client.get("/backends").get_json()
    backends = answer.get_json()
    survivors = {None, "audit"} - set(victims)
    assert all(renewed[str(bind)] == backends[str(bind)] for bind in survivors)
    assert all(renewed[str(bind)] != backends[str(bind)] for bind in victims)
    shop.assert_nothing_is_held()


def test_a_connection_that_is_lost_within_a_savepoint_is_given_back(shop: Shop):
    @shop.app.get("/")
    def view() -> str:
        backends = [shop.backend(None), shop.backend("audit")]
        shop.db.session.begin_nested()
        shop.db.session.add(shop.Order(name="new"))
        shop.db.session.flush()
        terminate(shop.url, *backends)
        return "done"

    assert shop.app.test_client().get("/").text == "done"
    shop.assert_nothing_is_held()
    assert shop.names() == ["old"]


@pytest.mark.parametrize("refusing", VICTIMS.values(), ids=VICTIMS)
def test_connections_that_cannot_be_rolled_back_for_another_reason_are_not_used_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, refusing: list[str | None]
):
    def refuse(connection: object) -> None:
        raise psycopg2.ProgrammingError("not today")

    add_killing_view(shop, [])
    client = shop.app.test_client()
    with monkeypatch.context() as patch:
        for bind in refusing:
            patch.setattr(shop.engines()[bind].dialect, "do_rollback", refuse)
        before = client.get("/backends").get_json()
        shop.assert_nothing_is_held()

    after = client.get("/backends").get_json()
    renewed = [bind for bind in (None, "audit") if after[str(bind)] != before[str(bind)]]
    assert renewed == refusing


def test_the_session_is_forgotten_even_if_closing_it_fails_otherwise(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    def close() -> None:
        raise RuntimeError("not the connection's fault")

    @shop.app.get("/")
    def view() -> str:
        monkeypatch.setattr(shop.db.session(), "close", close)
        return "done"

    with pytest.raises(RuntimeError, match="not the connection's fault"):
        shop.app.test_client().get("/")
    shop.assert_nothing_is_held()


def test_nothing_is_kept_of_a_connection_when_the_request_is_over(shop: Shop):
    connections = []

    @shop.app.get("/")
    def view() -> str:
        with shop.db.session.begin_nested():
            connections.append(weakref.ref(shop.db.session.connection()))
            leave_flushed(shop)
        return "done"

    shop.app.test_client().get("/")
    gc.collect()

    assert connections[0]() is None


def test_the_info_of_a_session_belongs_to_the_application(shop: Shop):
    @shop.app.get("/")
    def view() -> dict[str, str]:
        leave_flushed(shop)
        return {str(key): str(value) for key, value in shop.db.session.info.items()}

    assert shop.app.test_client().get("/").json == {}


def test_the_last_request_of_an_application_context_is_named(shop: Shop, logged):
    @shop.app.get("/<name>")
    def view(name: str) -> str:
        if name == "reads":
            only_read(shop)
            shop.db.session.rollback()
        else:
            leave_flushed(shop)
        return name

    with shop.app.app_context():
        for path in ("/reads", "/writes"):
            shop.app.test_client().get(path)

    assert [text.partition(" left")[0] for _, text in logged()] == ["Rolled back what GET /writes"]


# --- what was left uncommitted ---


def leave_new(shop: Shop) -> None:
    shop.db.session.add_all([shop.Order(name="a"), shop.Note(text="b")])


def leave_changed(shop: Shop) -> None:
    shop.first().name = "changed"


def leave_deleted(shop: Shop) -> None:
    shop.db.session.delete(shop.first())


def leave_flushed(shop: Shop) -> None:
    shop.first().name = "changed"
    shop.db.session.add(shop.Note(text="b"))
    shop.db.session.flush()


def leave_bulk(shop: Shop) -> None:
    shop.db.session.execute(insert(shop.Order), [{"name": "a"}, {"name": "b"}])


def leave_legacy_bulk(shop: Shop) -> None:
    shop.db.session.bulk_insert_mappings(shop.Note, [{"text": "a"}, {"text": "b"}])


def leave_text(shop: Shop) -> None:
    shop.db.session.execute(
        text("-- a comment\n /* and\nanother */ update \"order\" SET name = 'a'")
    )


def leave_cte(shop: Shop) -> None:
    shop.db.session.execute(
        text('WITH gone AS (DELETE FROM "order" RETURNING name) SELECT name FROM gone')
    ).all()


def leave_on_the_connection(shop: Shop) -> None:
    shop.db.session.connection().execute(text("CREATE TABLE extra (id integer)"))


def leave_after_savepoints(shop: Shop) -> None:
    shop.db.session.execute(text("INSERT INTO note (text) VALUES ('kept')"))
    with shop.db.session.begin_nested():
        shop.db.session.execute(text("INSERT INTO note (text) VALUES ('kept, too')"))
    with shop.db.session.begin_nested() as savepoint:
        shop.db.session.execute(text("INSERT INTO note (text) VALUES ('undone')"))
        savepoint.rollback()


def leave_after_a_commit(shop: Shop) -> None:
    shop.db.session.add(shop.Note(text="committed"))
    shop.db.session.commit()
    shop.db.session.add(shop.Note(text="late"))


def leave_with_a_swallowed_error(shop: Shop) -> None:
    shop.db.session.execute(insert(shop.Order).values(name="lost"))
    shop.db.session.add(shop.Order(name="old"))
    with pytest.raises(IntegrityError):
        shop.db.session.flush()


LEFT: dict[Callable[[Shop], None], str] = {
    leave_new: "objects: 2 new, 0 changed, 0 deleted; statements executed: 0",
    leave_changed: "objects: 0 new, 1 changed, 0 deleted; statements executed: 0",
    leave_deleted: "objects: 0 new, 0 changed, 1 deleted; statements executed: 0",
    leave_flushed: "objects: 0 new, 0 changed, 0 deleted; statements executed: 2",
    leave_bulk: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
    leave_legacy_bulk: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
    leave_text: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
    leave_cte: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
    leave_on_the_connection: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
    leave_after_savepoints: "objects: 0 new, 0 changed, 0 deleted; statements executed: 2",
    leave_after_a_commit: "objects: 1 new, 0 changed, 0 deleted; statements executed: 0",
    leave_with_a_swallowed_error: "objects: 0 new, 0 changed, 0 deleted; statements executed: 1",
}
ADVICE = "If the changes are wanted, call db.session.commit() before it ends"


@pytest.mark.parametrize("leave", LEFT)
def test_what_a_request_leaves_uncommitted_is_rolled_back_and_logged(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]], leave: Callable[[Shop], None]
):
    @shop.app.post("/orders")
    def view() -> str:
        leave(shop)
        return "done"

    assert shop.app.test_client().post("/orders?secret=1").status_code == 200

    assert logged() == [
        (
            "WARNING",
            f"Rolled back what POST /orders left uncommitted ({LEFT[leave]}). {ADVICE}",
        )
    ]
    assert shop.names() == ["old"]
    shop.assert_nothing_is_held()


def do_nothing(shop: Shop) -> None:
    pass


def only_read(shop: Shop) -> None:
    shop.db.session.scalars(select(shop.Order).with_for_update()).all()
    shop.db.session.execute(text("WITH one AS (SELECT 1) SELECT * FROM one")).all()


def commit(shop: Shop) -> None:
    leave_new(shop)
    shop.first().name = "changed"
    shop.db.session.commit()
    only_read(shop)


def roll_back(shop: Shop) -> None:
    leave_flushed(shop)
    shop.db.session.rollback()
    only_read(shop)


def close(shop: Shop) -> None:
    leave_flushed(shop)
    shop.db.session.close()
    only_read(shop)


def change_nothing(shop: Shop) -> None:
    order = shop.first()
    order.name = "other"
    order.name = "old"


def write_with_a_connection_of_its_own(shop: Shop) -> None:
    only_read(shop)
    with shop.db.engine.begin() as connection:
        connection.execute(text("INSERT INTO note (text) VALUES ('kept')"))


def commit_as_text(shop: Shop) -> None:
    shop.db.session.execute(text("INSERT INTO note (text) VALUES ('kept')"))
    shop.db.session.execute(text("COMMIT"))


def commit_with_the_driver(shop: Shop) -> None:
    shop.db.session.execute(text("INSERT INTO note (text) VALUES ('kept')"))
    shop.db.session.connection().connection.commit()


def write_in_autocommit(shop: Shop) -> None:
    options = {"isolation_level": "AUTOCOMMIT"}
    shop.db.session.connection(execution_options=options).execute(
        text("INSERT INTO note (text) VALUES ('kept')")
    )


@pytest.mark.parametrize(
    "work",
    [
        commit_as_text,
        commit_with_the_driver,
        write_in_autocommit,
        do_nothing,
        only_read,
        commit,
        roll_back,
        close,
        change_nothing,
        write_with_a_connection_of_its_own,
    ],
)
def test_nothing_is_logged_where_nothing_is_lost(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]], work: Callable[[Shop], None]
):
    @shop.app.get("/")
    def view() -> str:
        work(shop)
        return "done"

    assert shop.app.test_client().get("/").status_code == 200

    assert logged() == []
    shop.assert_nothing_is_held()


def test_a_request_that_never_uses_the_session_connects_to_nothing(shop: Shop):
    shop.close()
    shop.app.get("/")(lambda: "done")

    assert shop.app.test_client().get("/").text == "done"

    assert [pool_of(engine).checkedin() for engine in shop.engines().values()] == [0, 0]
    shop.assert_nothing_is_held()


def test_a_line_break_in_the_path_does_not_forge_a_line_of_the_log(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]]
):
    @shop.app.get("/<name>")
    def view(name: str) -> str:
        leave_new(shop)
        return name

    shop.app.test_client().get("/a%0AERROR%20b")

    ((_, line),) = logged()
    assert line == (
        f"Rolled back what GET /a%0AERROR%20b left uncommitted ({LEFT[leave_new]}). {ADVICE}"
    )


# --- requests that fail ---


def raise_an_error(shop: Shop) -> None:
    raise ZeroDivisionError


def raise_a_handled_error(shop: Shop) -> None:
    raise LookupError


def refuse(shop: Shop) -> None:
    abort(409)


@pytest.mark.parametrize("fail", [raise_an_error, raise_a_handled_error, refuse])
@pytest.mark.parametrize("leftovers", ["rollback", "commit"])
def test_a_failed_request_is_rolled_back_without_a_warning(
    make_shop: Callable[..., Shop],
    caplog: pytest.LogCaptureFixture,
    logged: Callable[[], list[tuple[str, str]]],
    leftovers: Literal["rollback", "commit"],
    fail: Callable[[Shop], None],
):
    caplog.set_level("DEBUG", logger="sa_railway.flask")
    shop = make_shop(PROPAGATE_EXCEPTIONS=False)
    Railway(shop.app, shop.db, leftovers=leftovers)
    shop.app.errorhandler(LookupError)(lambda error: ("not found", 404))

    @shop.app.post("/orders")
    def view() -> str:
        leave_flushed(shop)
        fail(shop)
        return "unreachable"

    assert shop.app.test_client().post("/orders").status_code >= 400

    assert logged() == [
        (
            "DEBUG",
            "Rolled back what POST /orders left uncommitted when it failed "
            f"({LEFT[leave_flushed]})",
        )
    ]
    assert shop.names() == ["old"]
    shop.assert_nothing_is_held()


def test_what_was_committed_on_a_connection_of_the_caller_is_not_left(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]]
):
    insertion = insert(shop.Order).values(name="new")
    with shop.engines()[None].connect() as connection, shop.app.app_context():
        shop.db.session.execute(insertion, bind_arguments={"bind": connection})
        shop.db.session.commit()

    assert logged() == []
    assert shop.names() == ["old", "new"]


class Incomparable:
    """As a DataFrame of pandas: it does not say whether it is equal."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("cannot compare")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Incomparable, ())


def test_a_value_that_cannot_be_compared_counts_as_changed(
    database_url: URL, caplog: pytest.LogCaptureFixture
):
    db: Any = SQLAlchemy()
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=database_url)

    class Stored(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        value = db.Column(db.PickleType)

    db.init_app(app)
    Railway(app, db)
    with app.app_context():
        db.create_all()
        db.session.add(Stored(value=Incomparable()))
        db.session.commit()

    @app.get("/")
    def view() -> str:
        stored = db.session.get(Stored, 1)
        assert isinstance(stored.value, Incomparable)
        stored.value = Incomparable()
        return "done"

    assert app.test_client().get("/").text == "done"
    assert "objects: 0 new, 1 changed, 0 deleted" in caplog.messages[-1]
    with app.app_context():
        db.engine.dispose()


class Stub:
    """What a test may put in the place of db.session."""

    def remove(self) -> None:
        pass


@pytest.mark.parametrize(
    "make", [Stub, mock.Mock, mock.MagicMock, lambda: mock.MagicMock(spec=scoped_session)]
)
def test_a_session_that_a_test_has_replaced_is_left_alone(shop: Shop, make: Callable[[], Any]):
    @shop.app.get("/")
    def view() -> str:
        shop.db.session.remove()
        return "done"

    original, shop.db.session = shop.db.session, make()
    try:
        assert shop.app.test_client().get("/").text == "done"
    finally:
        shop.db.session = original


def test_a_session_that_a_test_keeps_across_requests_is_kept(make_shop: Callable[..., Shop]):
    shop = make_shop()
    Railway(shop.app, shop.db)

    @shop.app.post("/orders/<name>")
    def view(name: str) -> str:
        shop.db.session.add(shop.Order(name=name))
        shop.db.session.flush()
        return "done"

    with mock.patch.object(shop.db.session, "remove"):
        client = shop.app.test_client()
        assert [client.post(f"/orders/{name}").status_code for name in "ab"] == [200, 200]
        held = list(shop.db.session.registry.registry.values())
        counted = select(func.count()).select_from(shop.Order)
        with shop.app.app_context():
            assert sum(session.scalar(counted) - 1 for session in held) == 2
        for session in held:
            session.close()


def test_an_application_without_the_extension_keeps_nothing_in_g(database_url: URL):
    db = SQLAlchemy()
    app = Flask("other")
    app.config.update(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)

    @app.get("/")
    def view() -> list[str]:
        db.session.execute(text("SELECT 1"))
        return sorted(g)

    assert app.test_client().get("/").json == []
    with app.app_context():
        db.engine.dispose()


class Slots:
    """A class of ``g`` that has no place for what is not its own."""

    __slots__ = ("_sqlalchemy_queries",)


def test_a_g_without_a_place_for_anything_is_left_alone(shop: Shop):
    shop.app.app_ctx_globals_class = Slots  # type: ignore[assignment]
    shop.app.get("/")(lambda: str(shop.db.session.scalar(text("SELECT 1"))))

    assert shop.app.test_client().get("/").text == "1"


# --- leftovers="commit" ---


def test_leftovers_of_a_success_are_committed_on_every_bind_if_that_is_wanted(
    make_shop: Callable[..., Shop],
    caplog: pytest.LogCaptureFixture,
    logged: Callable[[], list[tuple[str, str]]],
):
    caplog.set_level("DEBUG", logger="sa_railway.flask")
    shop = make_shop(RAILWAY_LEFTOVERS="commit")
    Railway(shop.app, shop.db)

    @shop.app.post("/orders")
    def view() -> str:
        leave_new(shop)
        return "done"

    assert shop.app.test_client().post("/orders").status_code == 200

    assert logged() == [
        ("INFO", f"Committed what POST /orders left uncommitted ({LEFT[leave_new]})")
    ]
    shop.assert_nothing_is_held()
    assert shop.names() == ["old", "a"]
    with shop.app.app_context():
        assert list(shop.db.session.scalars(select(shop.Note.text))) == ["b"]


def test_what_a_function_has_written_is_committed_too(
    make_shop: Callable[..., Shop], logged: Callable[[], list[tuple[str, str]]]
):
    shop = make_shop()
    Railway(shop.app, shop.db, leftovers="commit")
    with shop.app.app_context():
        shop.db.session.execute(
            text(
                "CREATE FUNCTION sell(text) RETURNS void LANGUAGE sql AS"
                """ 'INSERT INTO "order" (name) VALUES ($1)' """
            )
        )
        shop.db.session.commit()

    @shop.app.post("/orders")
    def view() -> str:
        shop.db.session.execute(select(func.sell("tea")))
        return "done"

    assert shop.app.test_client().post("/orders").status_code == 200

    assert shop.names() == ["old", "tea"]
    assert logged() == []  # a query as any other, as far as anybody can tell


@pytest.mark.parametrize("cause", ["constraint", "connection"])
def test_leftovers_that_cannot_be_committed_fail_the_request(
    make_shop: Callable[..., Shop], cause: str
):
    shop = make_shop()
    Railway(shop.app, shop.db, leftovers="commit")

    @shop.app.post("/orders")
    def view() -> str:
        shop.db.session.add(shop.Order(name="old" if cause == "constraint" else "new"))
        if cause == "connection":
            terminate(shop.url, shop.backend(None), shop.backend("audit"))
        return "done"

    error = {"constraint": IntegrityError, "connection": OperationalError}[cause]
    with pytest.raises(error):
        shop.app.test_client().post("/orders")

    shop.assert_nothing_is_held()
    assert shop.names() == ["old"]


def test_connections_that_a_commit_itself_has_begun_are_given_back_if_it_fails(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
):
    def refuse(connection: psycopg2.extensions.connection) -> None:
        connection.rollback()
        raise psycopg2.ProgrammingError("not today")

    shop = make_shop()
    Railway(shop.app, shop.db, leftovers="commit")
    begun = []  # kept, as by a traceback: a connection that is collected is given back, too

    @event.listens_for(shop.db.session, "after_begin")
    def keep(_session: object, _transaction: object, connection: Connection) -> None:
        begun.append(connection)

    @shop.app.post("/orders")
    def view() -> str:
        leave_new(shop)
        return "done"

    with monkeypatch.context() as patch:
        for engine in shop.engines().values():
            patch.setattr(engine.dialect, "do_commit", refuse)
            patch.setattr(engine.dialect, "do_rollback", refuse)
        with pytest.raises(ProgrammingError):
            shop.app.test_client().post("/orders")

    shop.assert_nothing_is_held()
    assert len(begun) == 2
    assert shop.names() == ["old"]


def test_what_a_hook_writes_after_a_request_has_failed_is_not_committed(
    make_shop: Callable[..., Shop],
):
    shop = make_shop()
    Railway(shop.app, shop.db, leftovers="commit")

    @shop.app.after_request
    def audit(response: Response) -> Response:
        shop.db.session.add(shop.Order(name=f"answered with {response.status_code}"))
        return response

    shop.app.get("/")(lambda: "done")
    client = shop.app.test_client()

    assert [client.get(path).status_code for path in ("/", "/nothing")] == [200, 404]
    assert shop.names() == ["old", "answered with 200"]


def test_a_lost_connection_without_leftovers_costs_nothing_in_that_mode_either(
    make_shop: Callable[..., Shop],
):
    shop = make_shop()
    Railway(shop.app, shop.db, leftovers="commit")
    add_killing_view(shop, [None, "audit"])

    assert shop.app.test_client().get("/kill").status_code == 200
    shop.assert_nothing_is_held()


# --- what the application itself does at the end ---


@pytest.mark.parametrize("is_first", [True, False], ids=["Railway first", "Railway last"])
def test_what_an_application_commits_in_a_teardown_of_its_own_is_kept(
    make_shop: Callable[..., Shop], logged: Callable[[], list[tuple[str, str]]], is_first: bool
):
    shop = make_shop()
    if is_first:
        Railway(shop.app, shop.db)

    @shop.app.teardown_appcontext
    def commit(error: BaseException | None) -> None:
        if error is None:
            shop.db.session.commit()

    if not is_first:
        Railway(shop.app, shop.db)

    @shop.app.post("/orders/<name>")
    def view(name: str) -> str:
        shop.db.session.add(shop.Order(name=name))
        return "done"

    client = shop.app.test_client()
    assert [client.post(f"/orders/{name}").status_code for name in "ab"] == [200, 200]

    assert logged() == []
    shop.assert_nothing_is_held()
    assert shop.names() == ["old", "a", "b"]


def test_what_an_application_uses_in_a_teardown_of_its_own_is_given_back(shop: Shop):
    @shop.app.teardown_appcontext
    def audit(_error: BaseException | None) -> None:
        shop.backend("audit")

    shop.app.get("/")(lambda: "done")

    assert shop.app.test_client().get("/").text == "done"
    shop.assert_nothing_is_held()


# --- engines ---

PSYCOPG_SQL = psycopg.sql.SQL("INSERT INTO note (text) VALUES ({})").format("composed")


@pytest.mark.parametrize("statement", [PSYCOPG_SQL, b"INSERT INTO note (text) VALUES ('b')"])
def test_a_statement_that_is_no_text_is_executed(database_url: URL, statement: Any):
    shop = Shop(database_url.set(drivername="postgresql+psycopg"))
    Railway(shop.app, shop.db, leftovers="commit")

    @shop.app.post("/notes")
    def view() -> str:
        shop.db.session.connection().exec_driver_sql(statement)
        return "done"

    assert shop.app.test_client().post("/notes").status_code == 200

    with shop.app.app_context():
        assert shop.db.session.scalar(select(func.count()).select_from(shop.Note)) == 1
    shop.close()


def test_a_connection_in_the_place_of_an_engine_as_tests_put_it_is_ready(shop: Shop):
    """https://flask-sqlalchemy.readthedocs.io: isolating tests in a transaction."""
    with shop.app.app_context():
        engines: Any = shop.db.engines
        engine = engines[None]
        with engine.connect() as connection, connection.begin() as transaction:
            engines[None] = connection
            try:
                answers = [shop.app.test_client().get(f"/health/{n}") for n in ("ready", "live")]
                shop.app.debug = True
                answers.append(shop.app.test_client().get("/health/database"))
            finally:
                engines[None] = engine
                transaction.rollback()

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].json == {"status": "ready", "reason": None}
    assert list(answers[2].get_json()["databases"]) == ["default", "audit"]


def unprotected(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    return [message for message in messages if "is not protected" in message]


UNPROTECTED = {
    "default": (
        "Flask app 'shop': database 'default' is not protected, as its engine is without the "
        "plugin. Configure SQLALCHEMY_ENGINE_OPTIONS = engine_options(), with engine_options from "
        "sa_railway"
    ),
    "audit": (
        "Flask app 'shop': database 'audit' is not protected, as its engine is without the plugin. "
        'Configure SQLALCHEMY_BINDS = {"audit": {"url": url, **engine_options(url)}}, with '
        "engine_options from sa_railway"
    ),
}


@pytest.mark.parametrize(
    ("options", "names"),
    [({}, ["default", "audit"]), ({"plugins": ["railway"]}, [])],
    ids=["plain", "plugin"],
)
def test_an_engine_without_the_plugin_is_named_with_what_to_configure(
    make_shop: Callable[..., Shop],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, object],
    names: list[str],
):
    shop = make_shop(options=options)

    Railway(shop.app, shop.db)

    assert unprotected(caplog) == [UNPROTECTED[name] for name in names]


def test_a_bind_that_is_a_text_has_no_options_and_is_named(
    database_url: URL, caplog: pytest.LogCaptureFixture
):
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(database_url),
        SQLALCHEMY_BINDS={
            "audit": in_text(database_url),
            "kept": {"url": database_url, **engine_options(database_url)},
            "file": "sqlite://",
        },
    )

    Railway(app, SQLAlchemy(app))

    assert unprotected(caplog) == [UNPROTECTED["audit"]]


# --- several apps, commands, contexts ---


def test_two_apps_share_a_database_object_and_keep_their_settings(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]]
):
    other = shop.make_app(RAILWAY_LEFTOVERS="commit")
    Railway(db=shop.db).init_app(other)
    for app, name in ((shop.app, "one"), (other, "two")):

        @app.post("/orders")
        def view(name: str = name) -> str:
            shop.db.session.add(shop.Order(name=name))
            shop.db.session.flush()
            return "done"

        app.test_client().post("/orders")

    what = "POST /orders left uncommitted"
    left = "(objects: 0 new, 0 changed, 0 deleted; statements executed: 1)"
    assert logged() == [
        ("WARNING", f"Rolled back what {what} {left}. {ADVICE}"),
        ("INFO", f"Committed what {what} {left}"),
    ]
    assert shop.names() == ["old", "two"]
    shop.assert_nothing_is_held()


def test_each_app_of_a_factory_ends_its_sessions(database_url: URL, shop: Shop):
    apps = []
    for _ in range(2):
        app = shop.make_app()
        Railway().init_app(app, shop.db)
        apps.append(app)

    with apps[0].app_context(), apps[1].app_context():
        leave_flushed(shop)

    assert shop.names() == ["old"]
    shop.assert_nothing_is_held()


def test_the_log_names_a_bare_application_context(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]]
):
    with shop.app.app_context():
        leave_new(shop)

    ((_, line),) = logged()
    assert line == (
        f"Rolled back what an application context left uncommitted ({LEFT[leave_new]}). {ADVICE}"
    )


def fail_with(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "level", "names"),
    [
        (None, "INFO", ["old", "a"]),
        (SystemExit(0), "INFO", ["old", "a"]),
        (SystemExit(3), "DEBUG", ["old"]),
        (ZeroDivisionError(), "DEBUG", ["old"]),
    ],
    ids=repr,
)
def test_leftovers_of_a_command_are_committed_only_if_it_succeeds(
    make_shop: Callable[..., Shop],
    caplog: pytest.LogCaptureFixture,
    logged: Callable[[], list[tuple[str, str]]],
    error: BaseException | None,
    level: str,
    names: list[str],
):
    caplog.set_level("DEBUG", logger="sa_railway.flask")
    shop = make_shop(RAILWAY_LEFTOVERS="commit")
    Railway(shop.app, shop.db)

    @shop.app.cli.command("seed")
    def seed() -> None:
        leave_new(shop)
        fail_with(error)

    shop.app.test_cli_runner().invoke(args=["seed"])

    line = {
        "INFO": f"Committed what shop seed left uncommitted ({LEFT[leave_new]})",
        "DEBUG": f"Rolled back what shop seed left uncommitted when it failed ({LEFT[leave_new]})",
    }[level]
    assert logged() == [(level, line)]
    assert shop.names() == names
    shop.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (click.exceptions.Exit(0), "WARNING"),
        (SystemExit(0), "WARNING"),
        (click.exceptions.Exit(3), "DEBUG"),
        (SystemExit(3), "DEBUG"),
        (ZeroDivisionError(), "DEBUG"),
    ],
    ids=repr,
)
def test_the_failure_of_a_command_is_seen_even_if_click_does_not_tell(
    shop: Shop, logged: Callable[[], list[tuple[str, str]]], error: BaseException, level: str
):
    def run_command() -> None:
        app_context = shop.app.app_context()
        with click.Context(click.Command("seed"), info_name="seed") as command:
            app_context.push()
            command.call_on_close(lambda: app_context.pop(None))  # what older click does
            leave_new(shop)
            raise error

    with pytest.raises(type(error)):
        run_command()

    assert [level for level, _ in logged()] == [level]
    shop.assert_nothing_is_held()


@pytest.mark.parametrize("mode", MODES)
def test_a_session_may_detach_its_connection(make_shop: Callable[..., Shop], mode: str):
    shop = make_shop(options=MODES[mode])
    Railway(shop.app, shop.db)

    @shop.app.get("/")
    def view() -> str:
        leave_text(shop)
        shop.db.session.connection().detach()
        return "done"

    assert shop.app.test_client().get("/").text == "done"


@pytest.mark.parametrize("mode", MODES)
def test_a_test_may_put_a_mock_in_place_of_the_session(
    make_shop: Callable[..., Shop], mode: str, monkeypatch: pytest.MonkeyPatch
):
    shop = make_shop(options=MODES[mode])
    Railway(shop.app, shop.db)
    make: Any = mock.Mock
    monkeypatch.setattr(shop.db, "session", scoped_session(make))
    shop.app.add_url_rule(
        "/", view_func=lambda: str(bool(shop.db.session.execute(text("SELECT 1"))))
    )

    assert shop.app.test_client().get("/").text == "True"


@pytest.mark.parametrize(("leftovers", "commits"), [("rollback", 0), ("commit", 1)])
def test_what_a_session_has_left_that_cannot_be_looked_at_is_unknown_and_not_nothing(
    shop: Shop,
    leftovers: Literal["rollback", "commit"],
    commits: int,
    logged,
    monkeypatch: pytest.MonkeyPatch,
):
    app = shop.make_app()
    Railway(app, shop.db, leftovers=leftovers)
    session = mock.Mock()
    make: Any = lambda: session  # noqa: E731 - for a scoped_session
    monkeypatch.setattr(shop.db, "session", scoped_session(make))
    app.add_url_rule("/", view_func=lambda: str(bool(shop.db.session.execute(text("SELECT 1")))))

    assert app.test_client().get("/").text == "True"
    assert session.commit.call_count == commits
    assert logged() == [
        (
            "WARNING",
            "What <class 'unittest.mock.Mock'> has left uncommitted is unknown: "
            "TypeError(\"object of type 'Mock' has no len()\")",
        )
    ]


def test_sessions_that_their_connections_lead_to_are_collected(shop: Shop):
    """The listener is on the class of all sessions, whatever they have to do with Flask."""
    engine = shop.engines()[None]
    found = []
    for _ in range(3):
        session = Session(engine)
        session.connection(execution_options={"owner": session}).execute(text("SELECT 1"))
        session.close()
        found.append(weakref.ref(session))
    del session
    gc.collect()

    assert [reference() for reference in found] == [None] * 3


def test_sessions_need_no_hash(shop: Shop):
    class Equal(Session):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    with Equal(shop.engines()[None]) as session:
        assert session.scalar(text("SELECT 1")) == 1
