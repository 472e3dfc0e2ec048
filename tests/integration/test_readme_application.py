"""What the book promises to an application that is there already, and what to turn off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from marked import conninfo, in_text
from sqlalchemy import URL, create_engine, text

from sa_railway import engine_options
from sa_railway.flask import Railway

ROOT = Path(__file__).parents[2]


def section(page: str, heading: str) -> str:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


APPLICATION = section("flask", "I already have an application")
(CODE,) = re.findall(r"```python\n(.*?)```", APPLICATION, re.S)
PARTS = re.findall(r"^\| (.+?) \| (.+?) \|$", APPLICATION, re.M)[2:]


def environment(url: URL) -> dict[str, str]:
    text = in_text(url)
    return {"DATABASE_URL": text, "AUDIT_DATABASE_URL": text}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The names of the application, with the databases and variables that are given."""

    def load(url: URL, **variables: str) -> dict[str, Any]:
        for name, value in {**environment(url), **variables}.items():
            monkeypatch.setenv(name, value)
        names = {"__name__": "example"}
        exec(compile(CODE, "docs/flask.md", "exec"), names)
        return names

    return load


def dispose(app: Flask, names: dict[str, Any]) -> None:
    with app.app_context():
        for engine in names["db"].engines.values():
            engine.dispose()


def test_both_databases_are_protected_and_ready(
    load: Callable[..., dict[str, Any]], database_url: URL, caplog: pytest.LogCaptureFixture
):
    names = load(database_url)
    app = names["create_app"]()

    assert app.test_client().get("/health/ready").json == {"status": "ready", "reason": None}
    assert [record.getMessage() for record in caplog.records] == []
    dispose(app, names)


def test_while_the_database_is_away_clients_are_asked_to_come_again(
    load: Callable[..., dict[str, Any]], database_url: URL
):
    away = database_url.set(port=1)
    names = load(away, SA_RAILWAY_CONNECT_PATIENCE="0", SA_RAILWAY_BREAKER_PAUSE="60")
    app = names["create_app"]()
    app.get("/")(lambda: str(names["db"].session.scalar(text("SELECT 1"))))
    client = app.test_client()

    first, second = client.get("/"), client.get("/")  # the first has found it out

    for answer in (first, second):
        assert (answer.status_code, answer.json) == (503, {"error": "the database is away"})
    assert first.headers["Retry-After"] == "1"
    assert 1 < int(second.headers["Retry-After"]) <= 60


MODEL = """

class Note(db.Model):
    id = db.Column(db.Integer, primary_key=True)
"""


def test_migrations_run(database_url: URL, tmp_path: Path):
    (tmp_path / "shop.py").write_text(CODE + MODEL)

    def flask(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "shop", "db", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                **environment(database_url),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "SA_RAILWAY_PROFILE": "script",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    for command in ("init", "migrate", "upgrade"):
        flask(command)

    with psycopg.connect(conninfo(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM note").fetchone() == (0,)


@pytest.mark.parametrize("part", [code for _, code in PARTS if "engine_options(" in code])
def test_what_turns_a_part_off_is_allowed(part: str, database_url: URL):
    for call in re.findall(r"`engine_options\((.+?)\)`", part):
        options = eval(f"dict({call})")
        engine = create_engine(database_url, **engine_options(database_url, **options))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        engine.dispose()


@pytest.mark.parametrize(
    ("options", "config"), [({"health": None}, {}), ({}, {"RAILWAY_HEALTH": None})]
)
def test_the_endpoints_can_be_left_out(
    options: dict[str, Any],
    config: dict[str, Any],
    load: Callable[..., dict[str, Any]],
    database_url: URL,
):
    names = load(database_url)
    names["railway"] = Railway(**options)
    for name, value in config.items():
        setattr(names["Config"], name, value)
    app = names["create_app"]()

    assert app.test_client().get("/health/ready").status_code == 404
    assert app.test_client().get("/metrics").status_code == 404
    dispose(app, names)


def test_the_line_of_the_log_is_what_is_printed(database_url: URL, tmp_path: Path):
    shown = section("start", "See that it works")
    (code,) = re.findall(r"```python\n(.*?)```", shown, re.S)
    (expected,) = re.findall(r"```\n(INFO .*?)```", shown, re.S)

    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, **environment(database_url), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stdout == expected
