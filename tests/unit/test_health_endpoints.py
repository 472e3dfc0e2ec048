"""The health endpoints: in a Flask application, as a function, and as an ASGI application."""

import asyncio
import json
import logging

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

import sa_railway
from sa_railway.config import token as token_module
from sa_railway.exc import ConfigurationError
from sa_railway.flask import Railway, routes
from sa_railway.health import HealthApp, respond

TOKEN = "a long random text"
NO_TOKEN = (
    "This page needs a token, and none is set. Set RAILWAY_HEALTH_TOKEN to a long random text in "
    "the application's configuration or environment, and send it as the header X-Health-Token, as "
    "the header Authorization: Bearer, or in a browser as ?token=. In debug mode no token is "
    "needed.\n"
)
WRONG_TOKEN = (
    "This page needs the token that RAILWAY_HEALTH_TOKEN is set to. Send it as the header "
    "X-Health-Token, as the header Authorization: Bearer, or in a browser as ?token=.\n"
)
CARRIERS = [
    {"headers": {"X-Health-Token": TOKEN}},
    {"headers": {"Authorization": f"Bearer {TOKEN}"}},
    {"headers": {"authorization": f"bearer {TOKEN}"}},
    {"query": {"token": TOKEN}},
]
OTHERS = [
    {},
    {"headers": {"X-Health-Token": "another"}},
    {"headers": {"X-Health-Token": ""}},
    {"headers": {"Authorization": f"Basic {TOKEN}"}},
    {"headers": {"Authorization": TOKEN}},
    {"query": {"token": f"{TOKEN}s"}},
    {"query": {"token": "sésame"}},
]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def make_app(*, railway=True, **config):
    app = Flask("shop")
    app.config.update({"SQLALCHEMY_DATABASE_URI": "sqlite://", **config})
    db = SQLAlchemy(app)
    if railway:
        Railway(app, db)
    return app


def get(app, path, *, headers=None, query=None):
    return app.test_client().get(path, headers=headers, query_string=query)


# --- Flask ---


def test_live():
    response = get(make_app(), "/health/live")

    assert (response.status_code, response.json) == (200, {"status": "live"})
    assert response.headers["Cache-Control"] == "no-store"


def test_ready():
    response = get(make_app(), "/health/ready")

    assert (response.status_code, response.json) == (200, {"status": "ready", "reason": None})


def test_one_database_that_cannot_be_used_is_enough():
    app = make_app(SQLALCHEMY_BINDS={"audit": "sqlite:////nowhere/audit.db"})

    response = get(app, "/health/ready")

    assert (response.status_code, response.json) == (
        503,
        {"status": "unavailable", "reason": "audit: The server cannot be used."},
    )


@pytest.mark.parametrize("carrier", CARRIERS)
def test_who_sends_the_token_sees_the_report(carrier):
    response = get(make_app(RAILWAY_HEALTH_TOKEN=TOKEN), "/health/database", **carrier)

    assert response.status_code == 200
    assert response.json["status"] == "healthy"
    assert list(response.json["databases"]) == ["default"]
    assert response.json["databases"]["default"]["status"] == "healthy"


def test_the_report_names_the_application_and_on_railway_its_service(monkeypatch):
    app = make_app(RAILWAY_HEALTH_TOKEN=TOKEN)
    carrier = CARRIERS[0]
    assert get(app, "/health/database", **carrier).json["application"] == "shop"

    monkeypatch.setenv("RAILWAY_SERVICE_NAME", "Shop of Ada")
    assert get(app, "/health/database", **carrier).json["application"] == "Shop of Ada"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_token_beyond_ascii_is_found_in_a_header(encoding):
    token = "s\u00e9same"
    sent = token.encode(encoding).decode("latin-1")  # as a server hands it on
    response = get(
        make_app(RAILWAY_HEALTH_TOKEN=token), "/health/database", headers={"X-Health-Token": sent}
    )

    assert response.status_code == 200


def test_a_character_that_a_header_cannot_hold_stands_for_no_other():
    response = respond({}, "/database", [("X-Health-Token", "who\u20ac")], token="who?")

    assert response.status == 403


def test_databases_are_told_apart_and_the_main_one_comes_first():
    app = make_app(SQLALCHEMY_BINDS={"audit": "sqlite://"})
    other = make_app(SQLALCHEMY_BINDS={"audit": "sqlite://", "default": "sqlite://"})
    app.debug = other.debug = True

    assert list(get(app, "/health/database").json["databases"]) == ["default", "audit"]
    assert list(get(other, "/health/database").json["databases"]) == [
        "SQLALCHEMY_DATABASE_URI",
        "audit",
        "default",
    ]


@pytest.mark.parametrize("other", OTHERS)
def test_nobody_else_does(other):
    response = get(make_app(RAILWAY_HEALTH_TOKEN=TOKEN), "/health/database", **other)

    assert (response.status_code, response.text) == (403, WRONG_TOKEN)
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("token", [None, "", " "])
def test_without_a_token_nobody_does_and_is_told_how_to_set_one(token):
    query = {"token": token or ""}
    response = get(make_app(RAILWAY_HEALTH_TOKEN=token), "/health/database", query=query)

    assert (response.status_code, response.text) == (403, NO_TOKEN)


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("RAILWAY_HEALTH_TOKEN", TOKEN)
    app = make_app()

    assert get(app, "/health/database", query={"token": TOKEN}).status_code == 200
    assert get(app, "/health/database").text == WRONG_TOKEN


def test_in_debug_everybody_sees_the_report():
    app = make_app()
    app.debug = True

    assert get(app, "/health/database").status_code == 200


@pytest.fixture
def warnings(caplog):
    """What is said of open doors, as if it had not been said yet."""
    token_module._warn_of_length.cache_clear()
    routes._warn_of_debug.cache_clear()
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


SHORT = (
    "RAILWAY_HEALTH_TOKEN can be guessed (length {}); set it to a random text of 16 characters or "
    "more"
)
GUESSABLE = (
    "This page needs a token that cannot be guessed. Set RAILWAY_HEALTH_TOKEN to a random text of "
    "16 characters or more, and send it as the header X-Health-Token, as the header "
    "Authorization: Bearer, or in a browser as ?token=.\n"
)


@pytest.mark.parametrize("token", ["x", "fifteen letters"])
def test_a_token_that_can_be_guessed_opens_the_report_with_a_warning(token, warnings):
    app = make_app(RAILWAY_HEALTH_TOKEN=token)
    expected = SHORT.format(len(token))
    assert warnings() == [expected]

    assert get(app, "/health/database", query={"token": token}).status_code == 200
    assert respond({}, "/live", token=token).status == 200
    assert warnings() == [expected]


def test_a_token_that_can_be_guessed_is_warned_of_without_flask_too(warnings):
    engine = sa_railway.create_engine("sqlite://")

    assert respond(engine, "/database", query={"token": "x"}, token="x").status == 200

    assert warnings() == [SHORT.format(1)]


@pytest.mark.parametrize("token", ["x", "fifteen letters"])
def test_on_railway_a_token_that_can_be_guessed_opens_nothing(token, monkeypatch, warnings):
    monkeypatch.setenv("RAILWAY_ENVIRONMENT_NAME", "production")
    monkeypatch.setenv("DATABASE_URL", "sqlite://")
    app = make_app(RAILWAY_HEALTH_TOKEN=token, RAILWAY_METRICS="/metrics")

    for path in ("/health/database", "/metrics"):
        response = get(app, path, query={"token": token})
        assert (response.status_code, response.text) == (403, GUESSABLE)
    answer = respond({}, "/database", query={"token": token}, token=token)
    assert (answer.status, answer.body) == (403, GUESSABLE)
    expected = SHORT.format(len(token))
    assert warnings() == [f"{expected}. Until then it opens nothing"]


def test_a_token_that_cannot_be_guessed_is_enough_on_railway(monkeypatch, warnings):
    monkeypatch.setenv("RAILWAY_ENVIRONMENT_NAME", "production")
    app = make_app(RAILWAY_HEALTH_TOKEN="sixteen letters!")

    query = {"token": "sixteen letters!"}
    assert get(app, "/health/database", query=query).status_code == 200
    assert warnings() == []


def test_on_railway_debug_mode_opens_nothing(monkeypatch, warnings):
    monkeypatch.setenv("RAILWAY_ENVIRONMENT_NAME", "production")
    app = make_app(RAILWAY_METRICS="/metrics")
    app.debug = True
    expected = NO_TOKEN.replace(
        "In debug mode no token is needed.", "On Railway it is needed in debug mode, too."
    )

    for path in ("/health/database", "/metrics"):
        assert (get(app, path).status_code, get(app, path).text) == (403, expected)
    assert respond({}, "/database", debug=True).body == expected
    assert get(app, "/health/ready").status_code == 200
    assert warnings() == []


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (
            "gunicorn/27.0.1",
            [
                "Flask app 'shop' is in debug mode under gunicorn/27.0.1, so every client may see "
                "its health report and metrics; unset FLASK_DEBUG"
            ],
        ),
        ("Werkzeug/3.1.3", []),
    ],
)
def test_debug_mode_under_a_server_for_production_is_warned_of_once(server, expected, warnings):
    app = make_app()
    app.debug = True

    for _ in range(2):
        environ = {"SERVER_SOFTWARE": server}
        answer = app.test_client().get("/health/database", environ_overrides=environ)
        assert answer.status_code == 200
    assert warnings() == expected


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("text/html", True),
        ("Text/HTML", True),
        ("text/html-sandboxed", False),
        ("text/html;q=0", False),
        ("text/html; q=0.9, */*", True),
        ("application/json, text/html;q=0.5", False),
        ("text/html, application/json;q=0.5", True),
        ("text/html, application/json", False),
        ("text/html;level=1;q=0.4, application/json;q=0.3", True),
        ("text/html;q=high", False),
    ],
)
def test_who_prefers_html_gets_the_page(accept, html):
    app = make_app()
    app.debug = True

    response = get(app, "/health/database", headers={"Accept": accept})

    assert response.mimetype == ("text/html" if html else "application/json")


def test_without_jinja_a_browser_gets_the_report_as_json(monkeypatch):
    monkeypatch.setattr("sa_railway.health.endpoints.find_spec", lambda name: None)

    app = make_app()
    app.debug = True

    response = get(app, "/health/database", headers=BROWSER)

    assert response.mimetype == "application/json"
    assert "databases" in response.json


def test_a_browser_gets_a_page_that_may_load_nothing():
    app = make_app(RAILWAY_HEALTH_TOKEN=TOKEN)

    response = get(app, "/health/database", headers=BROWSER, query={"token": TOKEN})

    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    nonce = response.text.partition('<script nonce="')[2].partition('"')[0]
    assert response.headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    again = get(app, "/health/database", headers=BROWSER, query={"token": TOKEN})
    assert nonce not in again.text


def test_a_critical_report_is_503_for_machines_and_a_page_for_people():
    app = make_app(SQLALCHEMY_DATABASE_URI="sqlite:////nowhere/shop.db")
    app.debug = True

    assert get(app, "/health/database").status_code == 503
    assert get(app, "/health/database", headers=BROWSER).status_code == 200


def test_each_bind_has_a_report():
    app = make_app(SQLALCHEMY_BINDS={"audit": "sqlite://"}, RAILWAY_HEALTH_TOKEN=TOKEN)

    response = get(app, "/health/database", query={"token": TOKEN})

    assert set(response.json["databases"]) == {"default", "audit"}


@pytest.mark.parametrize(("prefix", "path"), [("/ops/", "/ops/live"), ("/", "/live")])
def test_another_prefix(prefix, path):
    app = make_app(RAILWAY_HEALTH=prefix)

    assert get(app, path).json == {"status": "live"}
    assert get(app, "/health/live").status_code == 404


@pytest.mark.parametrize("off", [None, False])
def test_no_endpoints(off):
    assert get(make_app(RAILWAY_HEALTH=off), "/health/live").status_code == 404


def test_the_configuration_of_the_app_wins_over_the_argument():
    app = make_app(railway=False, RAILWAY_HEALTH="/ops")
    Railway(app, health=None)

    assert get(app, "/ops/live").status_code == 200


def test_the_argument_sets_the_prefix():
    app = make_app(railway=False)
    Railway(app, health="/")

    assert get(app, "/live").status_code == 200


@pytest.mark.parametrize("prefix", ["health", "", True, 7])
def test_a_prefix_that_is_no_path_is_refused(prefix):
    with pytest.raises(ConfigurationError) as caught:
        make_app(RAILWAY_HEALTH=prefix)

    assert str(caught.value) == (
        f"RAILWAY_HEALTH is {prefix!r}; allowed: a path that begins with a slash, or None for no "
        "health endpoints"
    )


def test_a_view_that_the_application_has_already_is_not_replaced():
    app = make_app(railway=False)
    app.add_url_rule("/health/ready", "my_check", lambda: "mine")

    with pytest.raises(ConfigurationError) as caught:
        Railway(app)

    assert str(caught.value) == (
        "Flask app 'shop' answers /health/ready already, with its view 'my_check'; set "
        "RAILWAY_HEALTH to another prefix, or to None for no health endpoints"
    )
    assert get(app, "/health/live").status_code == 404


def test_a_view_that_is_added_later_and_hidden_is_logged_once(caplog):
    app = make_app()
    app.add_url_rule("/health/live", "my_check", lambda: "mine")

    get(app, "/health/live")
    get(app, "/health/live")

    assert [
        (r.levelno, r.getMessage()) for r in caplog.records if r.name == "sa_railway.flask"
    ] == [
        (
            logging.ERROR,
            "/health/live is answered by sa_railway, and so never by the view 'my_check'; set "
            "RAILWAY_HEALTH to another prefix, or to None for no health endpoints",
        )
    ]


def test_a_view_for_any_path_that_is_hidden_is_logged_once(caplog):
    app = make_app(railway=False)
    app.add_url_rule("/<path:name>", "pages", lambda name: name)
    Railway(app)

    assert get(app, "/health/live").json["status"] == "live"
    assert get(app, "/health/else").text == "health/else"
    get(app, "/health/live")

    assert [
        (r.levelno, r.getMessage()) for r in caplog.records if r.name == "sa_railway.flask"
    ] == [
        (
            logging.WARNING,
            "/health/live is answered by sa_railway, and so never by the view 'pages' of "
            "/<path:name>; if that is right, set RAILWAY_HEALTH to this prefix; otherwise to "
            "another one, or to None for no health endpoints",
        )
    ]


def test_a_prefix_that_was_chosen_may_hide_a_view_for_any_path(caplog):
    app = make_app(RAILWAY_HEALTH="/health")
    app.add_url_rule("/<path:name>", "pages", lambda name: name)

    assert get(app, "/health/live").json["status"] == "live"
    assert caplog.records == []


def test_a_view_of_another_subdomain_is_no_clash(caplog):
    app = Flask("shop", subdomain_matching=True)
    app.config.update(SERVER_NAME="shop.test", SQLALCHEMY_DATABASE_URI="sqlite://")
    app.add_url_rule("/health/live", "other", lambda: "other", subdomain="api")
    SQLAlchemy(app)
    Railway(app)

    client = app.test_client()
    assert client.get("/health/live", base_url="http://api.shop.test").text == "other"
    assert client.get("/health/live", base_url="http://shop.test").get_json()["status"] == "live"
    assert caplog.records == []


def test_a_view_for_another_method_is_no_clash(caplog):
    app = make_app(railway=False)
    app.add_url_rule("/health/ready", "my_hook", lambda: "mine", methods=["POST"])
    Railway(app)

    assert get(app, "/health/ready").json["status"] == "ready"
    assert app.test_client().post("/health/ready").text == "mine"
    assert caplog.records == []


# --- without a framework ---


@pytest.fixture
def engine():
    return sa_railway.create_engine("sqlite://")


def test_the_function(engine):
    live = respond(engine, "/ops/live")
    report = respond(engine, "/ops/database/", [("x-health-token", TOKEN)], token=TOKEN)
    page = respond(engine, "/ops/database", list(BROWSER.items()), debug=True)

    assert (live.status, live.content_type, live.body) == (
        200,
        "application/json",
        '{"status": "live"}\n',
    )
    assert respond(engine, "/ops/ready").body == '{"status": "ready", "reason": null}\n'
    assert json.loads(report.body)["databases"]["default"]["status"] == "healthy"
    assert page.body.startswith("<!doctype html>")


def test_the_function_refuses(engine):
    assert respond(engine, "/ops/database").body == NO_TOKEN
    assert respond(engine, "/ops/database", token=TOKEN).body == WRONG_TOKEN
    other = respond(engine, "/ops/elsewhere")
    assert (other.status, other.body) == (404, "There are live, ready and database here.\n")


async def request(app, path, *, method="GET", query=b"", headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    await app(scope, None, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


def test_asgi():
    app = HealthApp({"shop": sa_railway.create_async_engine("sqlite+aiosqlite://")}, token=TOKEN)

    async def main():
        return [
            await request(app, "/health/live"),
            await request(app, "/health/ready"),
            await request(app, "/health/database"),
            await request(app, "/health/database", query=b"token=a+long+random+text"),
            await request(app, "/health/ready", method="HEAD"),
        ]

    live, ready, refused, report, head = asyncio.run(main())

    assert (live[0], live[2]) == (200, b'{"status": "live"}\n')
    assert (ready[0], ready[2]) == (200, b'{"status": "ready", "reason": null}\n')
    assert ready[1] == {
        b"content-type": b"application/json",
        b"content-length": b"36",
        b"cache-control": b"no-store",
    }
    assert (refused[0], refused[2].decode()) == (403, WRONG_TOKEN)
    assert list(json.loads(report[2])["databases"]) == ["shop"]
    assert (head[1][b"content-length"], head[2]) == (b"36", b"")


def test_asgi_takes_nothing_but_http():
    with pytest.raises(
        RuntimeError, match=r"^HealthApp answers HTTP only; this is of type 'websocket'$"
    ):
        asyncio.run(HealthApp({})({"type": "websocket"}, None, None))  # type: ignore[arg-type]
