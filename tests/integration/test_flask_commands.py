"""The commands ``flask railway``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, text

from sa_railway import engine_options
from sa_railway.flask import Railway

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(database_url: URL) -> Iterator[Run]:
    """A ``flask`` command of an application with a database, and one that is not there."""
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(database_url, connect_patience=0.0),
        SQLALCHEMY_BINDS={"absent": database_url.set(database="absent")},
    )
    db = SQLAlchemy(app)
    Railway(app, db)
    with app.app_context():
        db.session.execute(text("CREATE TABLE orders (id integer)"))
        db.session.commit()

    def run(*arguments: str) -> tuple[int, str, str]:
        result = app.test_cli_runner().invoke(args=["railway", *arguments])
        return result.exit_code, result.stdout, result.stderr

    yield run
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_the_doctor_examines_the_database_of_the_application(run: Run, database_url: URL):
    status, out, err = run("doctor", "--table", "orders", "--json")

    diagnosis = json.loads(out)
    assert (status, err) == (0, "")
    assert (diagnosis["healthy"], diagnosis["findings"]) == (True, [])
    assert diagnosis["database"] == database_url.render_as_string(hide_password=True)
    assert diagnosis["checks"][-1]["detail"] == "there: orders"
    url = next(check for check in diagnosis["checks"] if check["check"] == "URL")
    place = f"{database_url.host}:{database_url.port}/{database_url.database}"
    assert url["detail"] == f"bind default: {place}, by {database_url.get_driver_name()}"


def test_the_doctor_examines_another_bind(run: Run):
    status, out, err = run("doctor", "--database", "absent")

    assert (status, err) == (1, "")
    assert "\n1. error: There is no database absent\n" in out


def test_waiting(run: Run):
    status, out, err = run("wait", "--table", "orders")

    assert (status, err) == (0, "")
    assert re.fullmatch(r"ready after [\d.]+ s: postgresql\+psycopg2://.*\n", out)
    assert run("wait", "--quiet") == (0, "", "")
    assert json.loads(run("wait", "--json")[1])["ready"] is True


def test_the_budget_is_that_of_the_engine_of_the_application(run: Run):
    expected = (
        "At peak 240: 2 replicas x 4 processes x 15 connections x 2 deployments at once.\n"
        "The server's limit is not known; SHOW max_connections tells it.\n"
    )

    assert run("budget", "--replicas", "2", "--processes", "4") == (0, expected, "")


def test_the_table_of_commit_markers_is_made_in_the_database_of_the_application(run: Run):
    status, out, err = run("commit-marker", "--create")

    assert (status, err) == (0, "")
    assert out.startswith("public.sa_railway_commit_marker can be used, and holds 0 markers: ")
    assert run("commit-marker", "--drop")[0] == 0


def test_waiting_for_what_does_not_come(run: Run):
    status, _, missing = run("wait", "--table", "customers", "--timeout", "0.1")
    other, _, absent = run("wait", "--database", "absent")

    assert (status, other) == (1, 1)
    assert missing.endswith("it still lacks: table customers\n")
    assert absent.endswith(
        'database "absent" does not exist\n'
        "There is no such database: create it, or correct its name in DATABASE_URL.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wait", "--timeout", "0"], "timeout is 0.0; allowed: more than 0 seconds"),
        (["doctor", "--database", "other"], "database is 'other'; allowed: default, absent"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], message: str):
    status, out, err = run(*arguments)

    assert (status, out) == (2, "")
    assert err == f"Error: {message}\n"


def test_a_command_of_the_application_of_the_same_name_is_kept(
    database_url: URL, caplog: pytest.LogCaptureFixture
):
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(database_url),
    )
    app.cli.command("railway")(lambda: print("choo"))
    Railway(app, SQLAlchemy(app))

    assert app.test_cli_runner().invoke(args=["railway"]).output == "choo\n"
    assert [record.getMessage() for record in caplog.records] == [
        "Flask app 'shop' has a command of the name railway already, so it has none of ours"
    ]
