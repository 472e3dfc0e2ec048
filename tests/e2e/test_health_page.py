"""The health page in a real browser."""

import itertools
import threading

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from werkzeug.serving import make_server

from sa_railway import engine_options
from sa_railway.flask import Railway

TOKEN = "open sesame"
NUMBERS = itertools.count()


class Site:
    """An application that is being served, and its page."""

    def __init__(self, url):
        app = Flask("shop")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_ENGINE_OPTIONS=engine_options(
                # a name of its own: engines of one name are counted together
                url,
                pool_size=2,
                max_overflow=1,
                logging_name=f"shop-{next(NUMBERS)}",
            ),
            RAILWAY_HEALTH_TOKEN=TOKEN,
        )
        db = SQLAlchemy(app)
        Railway(app, db)
        with app.app_context():
            self.engine = db.engine
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.base = f"http://127.0.0.1:{self._server.port}/"
        self.page = f"{self.base}health/database?token=open+sesame"

    def work(self, successes, failures):
        with self.engine.connect() as connection:
            for _ in range(successes):
                connection.execute(text("SELECT 1"))
            for _ in range(failures):
                with pytest.raises(ProgrammingError):
                    connection.execute(text("SELECT * FROM nowhere"))
                connection.rollback()

    def stop(self):
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self.engine.dispose()


@pytest.fixture
def site(database_url):
    site = Site(database_url)
    yield site
    site.stop()


def from_elsewhere(site, tab):
    return [u for u in tab.requests() if not u.startswith((site.base, "data:", "about:"))]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_loads_nothing_from_elsewhere(site, tab, tmp_path, width, scheme):
    site.work(successes=99, failures=1)
    tab.open(site.page, width=width, scheme=scheme)

    shown = tab.text()
    assert shown.startswith("Healthy shop No rule is broken.")
    assert "99% of 100 statements, 1 failed" in shown
    assert "0 in use, of 3 at most" in shown
    assert tab.evaluate("document.title") == "Healthy: shop"
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(244, 245, 247)", "dark": "rgb(16, 20, 26)"}[scheme]
    assert from_elsewhere(site, tab) == []
    assert tab.complaints() == []
    tab.screenshot(tmp_path / "page.png")


def test_the_page_draws_itself_anew(site, tab):
    tab.open(site.page)
    tab.evaluate("document.querySelector('details').open = true")

    with site.engine.connect(), site.engine.connect(), site.engine.connect():
        tab.wait_for(lambda: tab.text().startswith("Degraded shop The pool is exhausted: 3 of 3"))
    tab.wait_for(lambda: tab.text().startswith("Healthy"))

    assert tab.evaluate("document.title") == "Healthy: shop"
    assert tab.evaluate("document.querySelector('details').open") is True
    assert "Drawn anew every 5 seconds." in tab.text()
    assert len(tab.events("Page.loadEventFired")) == 1
    assert from_elsewhere(site, tab) == []
    assert tab.complaints() == []


def test_an_application_that_is_gone_is_told(site, tab):
    tab.open(site.page)
    site.stop()

    tab.wait_for(lambda: "No answer from the application since" in tab.text())

    assert tab.evaluate("document.body.className") == "gone"


def test_without_javascript_the_page_is_loaded_anew(site, tab):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(site.page)

    assert tab.text().startswith("Healthy shop No rule is broken.")
    tab.wait_for(lambda: len(tab.events("Page.loadEventFired")) == 2)
    assert tab.complaints() == []
