"""Real Gunicorn processes: connections under ``--preload``, and what is said of dead workers."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_server import ServerProcess
from fix_waiting import wait_until
from marked import conninfo, in_text

from sa_railway.testing import TemporaryPostgres

APP = """
import os
import pathlib
import time

import sqlalchemy

plugins = os.environ["PLUGINS"].split()
engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"], plugins=plugins)
with engine.connect() as connection:  # at import, and so in the arbiter when it preloads
    connection.execute(sqlalchemy.text("SELECT 1"))


def query(sql, **parameters):
    with engine.connect() as connection:
        return connection.scalar(sqlalchemy.text(sql), parameters)


def hang_in_python():
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        time.sleep(60)


def hang_in_driver():
    query("SELECT pg_sleep(60)")


def application(environ, start_response):
    action, _, argument = environ["PATH_INFO"].strip("/").partition("/")
    if action in ("hang_in_python", "hang_in_driver"):
        pathlib.Path(action).write_text(str(os.getpid()))
        globals()[action]()
    # long enough for the queries of two workers to meet
    echo = "SELECT CAST(:n AS integer) FROM pg_sleep(0.002)"
    body = str(os.getpid() if action == "pid" else query(echo, n=int(argument)))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]
"""
CONFIGURATION = """
import sa_railway.gunicorn
from sa_railway.gunicorn import (
    child_exit, combine, on_starting, post_worker_init, worker_abort, worker_exit
)

def my_post_fork(server, worker):
    server.log.info("my own hook ran in %s", worker.pid)

post_fork = combine(sa_railway.gunicorn.post_fork, my_post_fork)
"""
NO_ANSWER = (OSError, http.client.HTTPException, AssertionError)
LINE = re.compile(r"^\[[^]]+\] \[(\d+)\] \[(\w+)\] (.*)$")


class Gunicorn(ServerProcess):
    """A server in a process group of its own, and the lines of its error log."""

    def __init__(self, folder: Path, url: str, *arguments: str, plugins: str = "railway") -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        (folder / "gunicorn_hooks.py").write_text(CONFIGURATION)
        self.log = folder / "error.log"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--bind", "127.0.0.1:0"),
                *("--error-logfile", str(self.log), *arguments, "app:application"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "DATABASE_URL": url,
                "HOME": str(folder),  # where Gunicorn keeps its control socket
                "PLUGINS": plugins,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            start_new_session=True,
        )
        self.port = self.gunicorn_port()

    def lines(self, author: int | None = None) -> list[tuple[str, str]]:
        """What *author*, a process id, or anybody has logged, as pairs of level and text."""
        matches = filter(None, map(LINE.match, self.text().splitlines()))
        return [(m[2], m[3]) for m in matches if author in (None, int(m[1]))]

    def ends(self) -> list[tuple[str, str]]:
        """What the arbiter has said of the end of workers."""
        own = self.lines(self.process.pid)
        return [(level, text) for level, text in own if text.startswith("sa_railway: worker (")]

    def has_told_of(self, *workers: int) -> bool:
        return all(f"(pid:{pid})" in str(self.ends()) for pid in workers)

    def get(self, path: str, timeout: float = 10) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(client):
            client.request("GET", path)
            answer = client.getresponse()
            body = answer.read().decode()
        assert answer.status == 200, body
        return body

    def hang(self, action: str) -> int:
        """Make a worker hang; return its process id when it does."""

        def request() -> None:
            with contextlib.suppress(*NO_ANSWER):
                self.get(f"/{action}", timeout=30)

        threading.Thread(target=request, daemon=True).start()
        told = self.folder / action
        return int(wait_until(lambda: told.exists() and told.read_text()))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)


Start = Callable[..., Gunicorn]


@pytest.fixture(scope="module")
def start_gunicorn(
    postgres: TemporaryPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    started = []
    url = in_text(postgres.url)

    def start(*arguments: str, plugins: str = "railway") -> Gunicorn:
        started.append(Gunicorn(tmp_path_factory.mktemp("g"), url, *arguments, plugins=plugins))
        return started[-1]

    yield start
    for server in started:
        server.close()


# --- a query at import, before the workers are forked ---


def right_answers(server: Gunicorn, requests: int) -> int:
    """Ask that many times for a number each, from 8 threads; count the numbers that came back."""

    def ask(number: int) -> bool:
        try:
            return server.get(f"/echo/{number}", timeout=3) == str(number)
        except NO_ANSWER:
            return False

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(ask, range(requests)))


@pytest.mark.parametrize(
    "arguments", [["--workers=4"], ["--workers=4", "--threads=4"]], ids=["sync", "gthread"]
)
def test_workers_that_were_forked_from_a_connected_arbiter_answer_rightly(
    start_gunicorn: Start, arguments: list[str]
):
    server = start_gunicorn("-c", "python:sa_railway.gunicorn", *arguments)

    assert right_answers(server, 480) == 480

    server.stop()
    assert [text.partition(") ")[2] for _, text in server.ends()] == ["left in good order"] * 4


def test_without_the_plugin_such_workers_answer_wrongly(start_gunicorn: Start):
    server = start_gunicorn("--workers=4", "--graceful-timeout=1", plugins="")

    assert right_answers(server, 48) < 48


# --- how workers end ---


@pytest.fixture(scope="module")
def cemetery(start_gunicorn: Start, postgres: TemporaryPostgres) -> Iterator[dict[str, object]]:
    """A server four of whose workers have come to four different ends."""
    server = start_gunicorn("-c", "gunicorn_hooks.py", "--workers=4", "--timeout=2")
    dead = {action: server.hang(action) for action in ("hang_in_python", "hang_in_driver")}
    dead["SIGKILL"] = int(server.get("/pid"))
    os.kill(dead["SIGKILL"], signal.SIGKILL)
    wait_until(lambda: server.has_told_of(dead["SIGKILL"]))
    dead["SIGTERM"] = int(server.get("/pid"))
    os.kill(dead["SIGTERM"], signal.SIGTERM)
    wait_until(lambda: server.has_told_of(*dead.values()))
    yield {"server": server, **dead}
    with psycopg.connect(conninfo(postgres.url)) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity" + SLEEPING)


SLEEPING = " WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"


@pytest.mark.parametrize(
    ("death", "level", "end"),
    [
        ("SIGTERM", "INFO", "left in good order"),
        (
            "SIGKILL",
            "ERROR",
            "was killed without notice: by a SIGKILL (out of memory, or graceful_timeout was "
            "over), or by a crash",
        ),
        (
            "hang_in_python",
            "ERROR",
            "timed out and was unwound; its stack is logged above",
        ),
        (
            "hang_in_driver",
            "ERROR",
            "timed out and was killed before Python could run, so it was blocked in a driver call "
            "or other C code; its query may still be running on the server; "
            "set statement_timeout below Gunicorn's timeout of 2 s",
        ),
    ],
)
def test_the_arbiter_tells_the_ends_of_workers_apart(
    cemetery: dict[str, Any], death: str, level: str, end: str
):
    pid = cemetery[death]

    assert (level, f"sa_railway: worker (pid:{pid}) {end}") in cemetery["server"].ends()


def test_a_worker_that_hangs_in_python_shows_its_pool_and_its_stack(
    cemetery: dict[str, Any], postgres: TemporaryPostgres
):
    pid = cemetery["hang_in_python"]

    assert re.search(
        rf"\[CRITICAL\] sa_railway: worker \(pid:{pid}\) is aborted\.\n"
        r"Connection pools:\n"
        rf"  {re.escape(str(postgres.url))}: Pool size: 5  Connections in pool: 0 "
        r"Current Overflow: -4 Current Checked out connections: 1\n"
        r"Main thread:\n"
        r"(  .*\n)+"
        r'  File ".*/app\.py", line \d+, in hang_in_python\n'
        r"    time\.sleep\(60\)\n\[",
        cemetery["server"].text(),
    )


def test_the_query_of_a_worker_that_was_killed_in_the_driver_still_runs(
    cemetery: dict[str, Any], postgres: TemporaryPostgres
):
    with psycopg.connect(conninfo(postgres.url)) as admin:
        count = admin.execute("SELECT count(*) FROM pg_stat_activity" + SLEEPING).fetchone()

    assert count == (1,)


def test_a_hook_of_the_user_runs_beside_ours(cemetery: dict[str, Any]):
    pid = cemetery["SIGTERM"]

    assert cemetery["server"].lines(pid).count(("INFO", f"my own hook ran in {pid}")) == 1


def test_a_short_timeout_is_warned_about_at_the_start(cemetery: dict[str, Any]):
    own = [text for level, text in cemetery["server"].lines() if level == "WARNING"]

    assert own[0] == (
        "sa_railway: timeout is 2 s and pool_timeout 20 s, so a request that waits for a "
        "connection ends as WORKER TIMEOUT before the pool can say that it is exhausted; "
        "raise timeout, or set SA_RAILWAY_POOL_TIMEOUT below it"
    )


def test_the_module_alone_is_a_configuration(start_gunicorn: Start):
    server = start_gunicorn("-c", "python:sa_railway.gunicorn", "--max-requests=2")
    pid = server.get("/pid")
    server.get("/pid")

    wait_until(server.ends)

    assert server.ends() == [("INFO", f"sa_railway: worker (pid:{pid}) left in good order")]
    assert server.lines()[1] == (
        "INFO",
        "sa_railway: workers: 1 (sync), threads in each: 1; "
        "every worker has its own connection pools",
    )
