"""Which applications the Flask extension takes, and what it says to the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from sa_railway.exc import ConfigurationError
from sa_railway.flask import Railway


def make_app(name: str = "shop", **config: object) -> Flask:
    app = Flask(name)
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", **config)
    return app


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("db", [None, SQLAlchemy()])
def test_an_app_without_a_database_is_refused_with_what_to_call_first(db: SQLAlchemy | None):
    app = make_app()

    assert refusal(Railway, app, db) == (
        "Flask app 'shop' has no SQLAlchemy extension yet; "
        "call db.init_app(app) before Railway.init_app(app, db)"
    )
    assert app.extensions == {}


def test_another_database_than_the_registered_one_is_refused():
    app = make_app()
    SQLAlchemy(app)

    assert refusal(Railway, app, SQLAlchemy()) == (
        "db is not the SQLAlchemy extension of Flask app 'shop'; "
        "pass the one whose init_app(app) was called, or leave it out"
    )


def test_a_second_registration_on_an_app_is_refused():
    app = make_app()
    railway = Railway(app, SQLAlchemy(app))
    message = (
        "Flask app 'shop' has a Railway extension already; "
        "call Railway.init_app() once for each app"
    )

    assert refusal(railway.init_app, app) == message
    assert refusal(Railway, app) == message


def test_leftovers_other_than_rollback_and_commit_are_refused():
    app = make_app(RAILWAY_LEFTOVERS="keep")
    db = SQLAlchemy(app)

    assert refusal(Railway, leftovers="drop") == (
        "leftovers is 'drop'; allowed: 'rollback', 'commit'"
    )
    assert refusal(Railway, app, db) == "RAILWAY_LEFTOVERS is 'keep'; allowed: 'rollback', 'commit'"


def test_a_refused_app_can_be_registered_when_its_fault_is_mended():
    app = make_app(RAILWAY_LEFTOVERS="keep")
    db = SQLAlchemy(app)
    railway = Railway(db=db)
    refusal(railway.init_app, app)

    app.config["RAILWAY_LEFTOVERS"] = "commit"
    railway.init_app(app)

    assert app.extensions["railway"].leftovers == "commit"


def test_the_database_may_be_left_out_or_given_to_the_object_or_to_init_app():
    db = SQLAlchemy()
    apps = [make_app(name) for name in ("a", "b", "c")]
    for app in apps:
        db.init_app(app)

    Railway(apps[0])
    Railway(db=db).init_app(apps[1])
    Railway().init_app(apps[2], db)

    assert [app.extensions["railway"].db for app in apps] == [db, db, db]


def test_one_object_serves_apps_whose_configurations_differ():
    railway = Railway(leftovers="commit")
    apps = [make_app("a"), make_app("b", RAILWAY_LEFTOVERS="rollback")]
    for app in apps:
        SQLAlchemy(app)
        railway.init_app(app)

    assert [app.extensions["railway"].leftovers for app in apps] == ["commit", "rollback"]


def test_comments_before_a_statement_cost_no_time():
    # in a process of its own, since otherwise each of them doubles the time, uninterruptibly
    program = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sa_railway.flask import Railway

app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = SQLAlchemy(app)
Railway(app, db)
with app.app_context():
    assert db.session.scalar(text("/* a comment */ " * 100 + "SELECT 7")) == 7
"""

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_text_of_a_large_statement_is_not_kept():
    # in a process of its own, as what other tests leave behind is measured as well
    program = """
import gc, tracemalloc
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sa_railway import engine_options
from sa_railway.flask import Railway

app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
options = engine_options("sqlite://", connect_args={"cached_statements": 0}, query_cache_size=0)
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
db = SQLAlchemy(app)
Railway(app, db)

def length(size, number):
    with app.app_context():
        statement = f"SELECT length('{number:06}{'a' * size}')"
        return db.session.connection().exec_driver_sql(statement).scalar()

length(10, 0)
tracemalloc.start()
for size in (4_900_000, 50_000, 5_000):
    for number in range(20):
        assert length(size, number) == size + 6
gc.collect()
assert tracemalloc.get_traced_memory()[0] < 200_000, tracemalloc.get_traced_memory()
"""

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
