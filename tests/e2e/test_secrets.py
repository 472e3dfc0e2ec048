"""Whatever the package can be made to say holds no part of a password.

The server asks for a password each of whose parts, however it is cut, holds the mark. Everything
that is said is collected here and looked through in the end, besides what the watch looks at.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from fix_engines import SYNC
from fix_waiting import wait_until
from marked import MARK, MarkedPostgres, in_text
from sqlalchemy import URL, text

import sa_railway
import sa_railway.asyncio
from sa_railway import events, retry, run_transaction, wait_for_database
from sa_railway.cli import main
from sa_railway.doctor.examine import examine
from sa_railway.doctor.text import render
from sa_railway.health.endpoints import respond
from sa_railway.logs import json_formatter
from sa_railway.metrics import prometheus
from sa_railway.testing import ChaosProxy

PASSWORD = MARK.join(
    ["", "@", "/", "?", "=", "&", ":", "%", "#", ";", " ", "'", '"', "\\", "<", ""]
)
QUERY = {"sslpassword": MARK}
COMMAND = Path(sys.executable).with_name("sa-railway")
TOKEN = "let me in, please!"
PATIENCE: dict[str, Any] = {"connect_patience": 0.2, "breaker_pause": 0.1, "probe_cache": 0.0}


@pytest.fixture(scope="module")
def server(postgres_binaries: Path) -> Iterator[MarkedPostgres]:
    with MarkedPostgres(password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def away() -> Iterator[int]:
    """A port where nobody listens."""
    with ChaosProxy(("127.0.0.1", 1)) as proxy:
        proxy.down()
        yield proxy.port


CHANGES: dict[str, Callable[[URL, int], URL]] = {
    "good": lambda url, away: url,
    "wrong password": lambda url, away: url.set(password=f"{PASSWORD}not"),
    "no such user": lambda url, away: url.set(username="ghost"),
    "no such database": lambda url, away: url.set(database="ghost"),
    "away": lambda url, away: url.set(port=away),
}


@pytest.fixture(params=CHANGES)
def url(request: pytest.FixtureRequest, server: MarkedPostgres, away: int) -> URL:
    """The URL, or one that does not lead to the server."""
    return CHANGES[request.param](server.url, away)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged and announced, and what tests add. It is looked through at the end."""
    said: list[str] = []
    stream = io.StringIO()
    unsubscribe = events.subscribe(
        lambda event: said.append(f"{event!r} {event} {asdict(event)}"), events.Event
    )
    root, handlers = logging.getLogger(), [logging.StreamHandler(stream) for _ in range(2)]
    handlers[0].setFormatter(json_formatter())
    level = root.level
    root.setLevel(logging.DEBUG)
    for handler in handlers:
        root.addHandler(handler)
    yield said
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(level)
    unsubscribe()
    whole = "\n".join([*said, stream.getvalue()])
    assert whole.strip()
    leaks = [line.replace(MARK, "MARK") for line in whole.splitlines() if MARK in line]
    assert leaks == []


@contextlib.contextmanager
def told_of_errors(said: list[str]) -> Iterator[None]:
    """Add whatever can be seen of the exception that ends the block, and log it as well."""
    try:
        yield
    except Exception as error:
        logging.getLogger("application").exception("It failed: %r", error)
        whole: BaseException | None = error
        while whole is not None:
            said += [str(whole), repr(whole), repr(whole.args), *getattr(whole, "__notes__", ())]
            whole = whole.__cause__ or whole.__context__
        said.append("".join(traceback.format_exception(error)))
    else:
        pytest.fail("there was no error to look at")


def fail(connection: sqlalchemy.Connection) -> None:
    connection.execute(text("SELECT 1/0"))


def lose(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


# --- engines ---


@pytest.mark.parametrize("driver", SYNC)
def test_engines(url: URL, driver: str, said: list[str]):
    url = url.set(drivername=f"postgresql+{driver}")
    given = in_text(url)  # with the special characters percent-encoded
    options = sa_railway.engine_options(given)
    engine = sa_railway.create_engine(given, metrics=True, leak_after=0.01, **PATIENCE)
    said += [repr(engine), str(engine.url), repr(engine.url), repr(options), repr(engine.pool)]
    said.append(repr(sa_railway.database_url(given)))

    with told_of_errors(said), engine.connect() as connection:
        said.append(repr(connection))
        time.sleep(0.03)  # longer than a connection may be out without being called a leak
        connection.execute(text("SELECT nothing FROM nowhere"))
    with told_of_errors(said):
        run_transaction(engine, fail, timeout=0.1)
    with told_of_errors(said):
        retry(attempts=2)(lose)(engine)
    with told_of_errors(said):
        wait_for_database(given, timeout=0.1, tables=["absent"], progress=said.append)
    report = sa_railway.check_health(engine)
    said += [
        repr(report),
        str(report),
        json.dumps(report.to_dict()),
        prometheus.render()[1].decode(),
    ]
    said += answers(engine)
    engine.dispose()


def answers(engine: Any) -> list[str]:
    """What the health endpoints tell of *engine*."""
    return [
        repr(respond(engine, path, headers, debug=True))
        for path in ("/live", "/ready", "/database")
        for headers in ([], [("Accept", "text/html")])
    ]


def test_engines_of_asyncio(url: URL, said: list[str]):
    async def work() -> None:
        engine = sa_railway.create_async_engine(in_text(url), **PATIENCE)
        said.extend([repr(engine), repr(engine.url), repr(sa_railway.engine_options(url))])
        with told_of_errors(said):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT nothing FROM nowhere"))
        with told_of_errors(said):
            await sa_railway.asyncio.wait_for_database(
                url, timeout=0.1, tables=["absent"], progress=said.append
            )
        said.extend([repr(sa_railway.check_health(engine)), *answers(engine)])
        await engine.dispose()

    asyncio.run(work())


@pytest.mark.parametrize("plugins", [[], ["railway"]], ids=["plain", "plugin"])
def test_secrets_in_a_query(url: URL, plugins: list[str], said: list[str]):
    """SQLAlchemy shows them in its own ``repr()`` of such a URL and its engine; we do not."""
    assert url.password is not None
    query = {"user": "postgres", "password": url.password, **QUERY}
    url = url.set(username=None)._replace(password=None).update_query_dict(query)
    profile = {"railway_profile": sa_railway.Profile(**PATIENCE)} if plugins else {}
    engine = sqlalchemy.create_engine(url, plugins=plugins, **profile)

    with told_of_errors(said):
        run_transaction(engine, fail, timeout=0.1)
    with told_of_errors(said):
        wait_for_database(engine, timeout=0.1, tables=["absent"], progress=said.append)
    with told_of_errors(said):
        retry(attempts=2)(lose)(engine)
    said += answers(engine)
    engine.dispose()


def test_a_file_of_passwords(server: MarkedPostgres, tmp_path: Path, said: list[str]):
    file = tmp_path / "pgpass"
    quoted = PASSWORD.replace("\\", r"\\").replace(":", r"\:")
    for password, chance in ((quoted, "good"), (f"{quoted}not", "wrong")):
        file.write_text(f"*:*:*:*:{password}\n")
        file.chmod(0o600)
        url = server.url._replace(password=None).update_query_dict({"passfile": str(file)})
        engine = sa_railway.create_engine(url, **PATIENCE)
        is_good = chance == "good"
        looking = contextlib.nullcontext() if is_good else told_of_errors(said)
        with looking, engine.connect() as connection:
            said.append(f"{chance}: {connection!r}")
        said += [repr(engine), repr(examine(url)), *answers(engine)]
        engine.dispose()

    assert any(line.startswith("good") for line in said)
    assert not any(line.startswith("wrong") for line in said)


# --- the command ---


def test_the_doctor(url: URL, said: list[str]):
    for driver in ("psycopg2", "psycopg", "asyncpg"):
        diagnosis = examine(in_text(url.set(drivername=f"postgresql+{driver}")), tables=["absent"])
        said += [repr(diagnosis), render(diagnosis, 80), json.dumps(diagnosis.as_dict())]


@pytest.mark.parametrize("query", [{}, QUERY], ids=["userinfo", "query"])
def test_the_command(
    url: URL,
    query: dict[str, str],
    said: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    given = in_text(url.set(drivername="postgres").update_query_dict(query))
    monkeypatch.setenv("DATABASE_URL", given)
    monkeypatch.setenv("DATABASE_PUBLIC_URL", given)
    for command in (
        ["doctor", "--table=absent"],
        ["doctor", given, "--json"],
        ["wait", "--timeout=0.1", "--table=absent"],
        ["wait", given, "--timeout=0.1", "--json"],
        ["url"],
        ["budget"],
    ):
        main(command)
    said += capfd.readouterr()


def test_a_server_that_does_not_answer(
    server: MarkedPostgres, said: list[str], capfd: pytest.CaptureFixture[str]
):
    with ChaosProxy(server.url) as proxy:
        proxy.freeze()
        main(["doctor", in_text(proxy.url), "--timeout=0.3"])
        engine = sa_railway.create_engine(proxy.url, probe_timeout=0.3, **PATIENCE)
        said += [*capfd.readouterr(), *answers(engine)]


BROKEN = {
    "half-rendered": f"postgresql://postgres:{MARK}@:/railway",
    "quoted": f"'postgresql://postgres:{MARK}@h/railway",
    "not resolved": f"postgresql://postgres:{MARK}@${{{{Postgres.HOST}}}}/railway",
    "other scheme": f"postgrex://postgres:{MARK}@h/railway",
    "other driver": f"postgresql+psycopg9://postgres:{MARK}@h/railway",
    "@": f"postgresql://postgres:p@{MARK}@h/railway",
    "@ and :": f"postgresql://postgres:p@x:{MARK}@h/railway",
    "@ and /": f"postgresql://postgres:p@x/{MARK}@h/railway",
    "@ and ?": f"postgresql://postgres:p@x?{MARK}@h/railway",
    "@, / and ?": f"postgresql://postgres:p@x/{MARK}?{MARK}@h/railway",
    "of MySQL": f"mysql://postgres:p@x/{MARK}@h/railway",
    "all of them": f"postgresql://postgres:{PASSWORD}@h/railway",
}


@pytest.mark.parametrize("given", BROKEN.values(), ids=BROKEN)
def test_urls_that_cannot_be_used(
    given: str, said: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for function in (sa_railway.create_engine, sa_railway.database_url, wait_for_database):
        with told_of_errors(said):
            said.append(repr(function(given)))
    said.append(repr(examine(given)))
    for command in ["doctor"], ["doctor", "--json"], ["url"], ["wait"]:
        monkeypatch.setenv("DATABASE_URL", given)
        assert main(command) > 0
    said += capfd.readouterr()


def test_the_doctor_on_a_terminal(server: MarkedPostgres, said: list[str]):
    master, slave = os.openpty()
    url = in_text(server.url.set(password=f"{PASSWORD}not").update_query_dict(QUERY))
    with subprocess.Popen(
        [COMMAND, "doctor"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "DATABASE_URL": url, "TERM": "xterm-256color"},
    ):
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(master, 65536):
                shown += part
    os.close(master)
    said.append(shown.decode())

    assert "╭─" in said[-1]


# --- an application ---

APP = """
import os
import time

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from sa_railway import engine_options
from sa_railway.flask import Railway

app = Flask(__name__)
app.config.update(
    SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"],
    SQLALCHEMY_ENGINE_OPTIONS=engine_options(connect_patience=0.2),
    RAILWAY_HEALTH_TOKEN="let me in, please!",
)
db = SQLAlchemy(app)
Railway(app, db, metrics="/metrics")


@app.get("/query")
def query():
    return str(db.session.scalar(text("SELECT 1")))


@app.get("/forget")
def forget():
    db.session.execute(text("CREATE TABLE forgotten ()"))
    return "forgotten"


@app.get("/lose")
def lose():
    db.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@app.get("/pid")
def pid():
    return str(os.getpid())
"""
PATHS = (
    *("/query", "/forget", "/lose", "/pid", "/metrics"),
    *("/health/live", "/health/ready", "/health/database"),
)
HEADERS: tuple[dict[str, str], ...] = ({}, {"Accept": "text/html"})


@pytest.mark.parametrize("debug", [False, True], ids=["token", "debug"])
def test_an_application(url: URL, debug: bool, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", in_text(url))
    module: dict[str, Any] = {"__name__": "shop"}
    exec(APP, module)
    app = module["app"]
    app.debug, app.config["PROPAGATE_EXCEPTIONS"] = debug, False
    client = app.test_client()
    for path in PATHS:
        for headers in HEADERS:
            answer = client.get(path, headers={**headers, "X-Health-Token": TOKEN})
            said.append(f"{path} {answer.headers} {answer.text}")
    for arguments in ("doctor", "wait --timeout 0.1"):
        if "railway" in app.cli.commands:
            said.append(app.test_cli_runner().invoke(args=["railway", *arguments.split()]).output)
    with app.app_context():
        module["db"].engine.dispose()


@pytest.mark.parametrize("chance", ["good", "wrong password"])
def test_gunicorn(server: MarkedPostgres, chance: str, tmp_path: Path, said: list[str]):
    (tmp_path / "app.py").write_text(APP)
    log = tmp_path / "log"
    url = CHANGES[chance](server.url, 0).update_query_dict(QUERY)
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-c", "python:sa_railway.gunicorn"),
                *("--bind=127.0.0.1:0", "--log-level=debug", "app:app"),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "DATABASE_URL": in_text(url),
                "HOME": str(tmp_path),  # where Gunicorn keeps its control socket
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        found = wait_until(lambda: re.search(r"Listening at: http://\S+:(\d+)", log.read_text()))
        for path in PATHS:
            for headers in HEADERS:
                said.append(get(int(found[1]), path, {**headers, "X-Health-Token": TOKEN}))
        os.kill(int(get(int(found[1]), "/pid", {}).rpartition("\n")[2]), signal.SIGABRT)
        wait_until(lambda: "is aborted" in log.read_text())
        process.terminate()
        process.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said.append(log.read_text())

    assert "sslpassword=***" in said[-1]


def get(port: int, path: str, headers: dict[str, str]) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return f"{path} {answer.status} {answer.headers}\n{answer.read().decode()}"
