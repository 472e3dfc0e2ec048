"""What a request through ``Railway(app, db)`` costs: with it and without, in one run, on loopback.

    python benchmarks/request.py [--rounds 300]

Prints, for each driver and kind of request, the ratio to the same application without ``Railway``;
both have the plugin. The application is called as a server calls it, without a socket in between.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.test import EnvironBuilder, run_wsgi_app

from sa_railway import engine_options
from sa_railway.flask import Railway
from sa_railway.testing import TemporaryPostgres

DRIVERS = ("psycopg2", "psycopg")
CALLS = 20  # of each kind in a round: few enough for both to meet the same weather


def make_app(url: URL, *, has_railway: bool) -> Flask:
    """Make an application with a view for each kind of request."""
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS=engine_options(url))

    class Base(DeclarativeBase):
        pass

    db = SQLAlchemy(app, model_class=Base)

    class Item(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    @app.get("/nothing")
    def nothing() -> str:
        return "done"

    @app.get("/select")
    def select_1() -> str:
        return str(db.session.scalar(text("SELECT 1")))

    @app.get("/item")
    def item() -> str:
        return db.get_or_404(Item, 7).name

    @app.post("/item")
    def write() -> str:
        db.get_or_404(Item, 7).name = str(time.perf_counter())
        db.session.commit()
        return "done"

    if has_railway:
        Railway(app, db)
    with app.app_context():
        db.create_all()
        db.session.merge(Item(id=7, name="tea"))
        db.session.commit()
    return app


REQUESTS = {
    "no database": ("GET", "/nothing"),
    "SELECT 1": ("GET", "/select"),
    "a row": ("GET", "/item"),
    "a write": ("POST", "/item"),
}


def caller(app: Flask, method: str, path: str) -> Callable[[], None]:
    """Return what calls *app* once."""
    environ = EnvironBuilder(path=path, method=method).get_environ()

    def call() -> None:
        _, status, _ = run_wsgi_app(app, dict(environ))
        assert status == "200 OK", status

    return call


def measure(call: Callable[[], None]) -> float:
    """Return the seconds of one request."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    with TemporaryPostgres() as server:
        for driver in DRIVERS:
            url = server.url_for(driver)
            apps = [make_app(url, has_railway=False), make_app(url, has_railway=True)]
            for name, request in REQUESTS.items():
                plain, ours = (caller(app, *request) for app in apps)
                pairs = []
                for number in range(rounds + 5):
                    # every other round the other way round, so that none is always the first
                    if number % 2:
                        pairs.append((measure(plain), measure(ours)))
                    else:
                        pairs.append((measure(ours), measure(plain))[::-1])
                ratio = statistics.median(b / a for a, b in pairs[5:])
                base = statistics.median(a for a, _ in pairs[5:]) * 1e6
                print(f"{driver}, {name:<12} {ratio:.3f}   ({base:.0f} us without)", flush=True)


if __name__ == "__main__":
    main()
