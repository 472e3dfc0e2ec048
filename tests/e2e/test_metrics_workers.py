"""Metrics of several Gunicorn workers: any of them tells those of all."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fix_server import ServerProcess
from fix_waiting import wait_until
from marked import conninfo, in_text
from prometheus_client.parser import text_string_to_metric_families

from sa_railway.testing import TemporaryPostgres

APP = """
import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from prometheus_client import Gauge
from sqlalchemy import text

from sa_railway import engine_options
from sa_railway.flask import Railway

application = Flask(__name__)
application.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
application.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(application_name="shop")
application.config["RAILWAY_HEALTH_TOKEN"] = "let me in, please!"
db = SQLAlchemy(application)
Railway(application, db, metrics="/metrics")
own = Gauge("shop_open", "Whether a worker is open", multiprocess_mode="livesum")
held = []


@application.get("/query")
def query():
    own.set(1)
    return str(db.session.scalar(text("SELECT 1")))


@application.get("/hold")
def hold():
    held.append(db.engine.connect())
    return "held"


@application.after_request
def tell_the_process(response):
    response.headers["X-Process"] = str(os.getpid())
    return response
"""
WORKERS = 4


class Gunicorn(ServerProcess):
    """A server in a process group of its own."""

    def __init__(self, folder: Path, url: str, *arguments: str, **environment: str) -> None:
        (folder / "app.py").write_text(APP)
        self.log = folder / "log"
        command = [sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0", f"--workers={WORKERS}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments, "app:application"],
                cwd=folder,
                env={
                    **os.environ,
                    "DATABASE_URL": url,
                    "HOME": str(folder),  # where Gunicorn keeps its control socket
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    **environment,
                },
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.port = self.gunicorn_port()

    def get(self, path: str) -> tuple[int, str]:
        """Return which process has answered, and what."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(client):
            client.request("GET", path, headers={"X-Health-Token": "let me in, please!"})
            answer = client.getresponse()
            body = answer.read().decode()
        assert answer.status == 200, body
        return int(answer.headers["X-Process"]), body

    def get_at_once(self, path: str, times: int) -> set[int]:
        """Return which processes have answered that many requests, made by 8 threads."""
        with ThreadPoolExecutor(8) as pool:
            return {process for process, _ in pool.map(self.get, [path] * times)}

    def metrics(self) -> list[dict[str, float]]:
        """Return what each of the workers tells, once all of them have begun to answer."""
        self._ask_all()
        return [
            {
                sample.name: sample.value
                for family in text_string_to_metric_families(body)
                for sample in family.samples
                if sample.labels.keys() <= {"engine"}
            }
            for body in self._ask_all().values()
        ]

    def _ask_all(self) -> dict[int, str]:
        told: dict[int, str] = {}
        wait_until(lambda: told.update([self.get("/metrics")]) or len(told) == WORKERS)
        return told

    def kill(self, worker: int) -> None:
        """Kill *worker*, and wait until the server has noticed."""
        before = self.text().count("Booting worker")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: self.text().count("Booting worker") > before)


Start = Callable[..., Gunicorn]


@pytest.fixture
def start_gunicorn(postgres: TemporaryPostgres, tmp_path: Path) -> Iterator[Start]:
    started = []
    url = in_text(postgres.url)

    def start(*arguments: str, **environment: str) -> Gunicorn:
        started.append(Gunicorn(tmp_path, url, *arguments, **environment))
        return started[-1]

    yield start
    for server in started:
        server.close()


def open_sessions(postgres: TemporaryPostgres) -> int:
    with psycopg.connect(conninfo(postgres.url)) as admin:
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'"
        ).fetchone()
    assert row is not None
    return int(row[0])


OURS = ("-c", "python:sa_railway.gunicorn")


@pytest.mark.parametrize(
    ("arguments", "shares_directory", "pools"),
    [(OURS, False, WORKERS), ((*OURS, "--preload"), False, WORKERS + 1), ((), True, WORKERS)],
    ids=["with our hooks", "preloaded", "with a directory and no hooks"],
)
def test_any_worker_tells_of_all_and_nothing_is_lost_with_one_that_is_killed(
    start_gunicorn: Start,
    postgres: TemporaryPostgres,
    tmp_path: Path,
    arguments: tuple[str, ...],
    shares_directory: bool,
    pools: int,
):
    directory = tmp_path / "metrics"
    directory.mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory)} if shares_directory else {}
    server = start_gunicorn(*arguments, **environment)
    server.get_at_once("/query", 20)
    before = server.metrics()
    assert len({told["sa_railway_queries_total"] for told in before}) == 1

    workers = server.get_at_once("/query", 500)
    server.kill(min(workers))
    server.get_at_once("/query", 500)

    for told in server.metrics():
        assert told["sa_railway_queries_total"] == before[0]["sa_railway_queries_total"] + 1000
        assert told["sa_railway_hold_seconds_count"] == told["sa_railway_queries_total"]
        assert told["sa_railway_pool_checked_out"] == told["sa_railway_pool_waiting"] == 0
        assert told["sa_railway_pool_size"] == pools * 5
        assert told["sa_railway_pool_open"] == open_sessions(postgres)


def test_what_a_dead_worker_held_is_held_no_longer(
    start_gunicorn: Start, postgres: TemporaryPostgres
):
    server = start_gunicorn(*OURS)
    holder, _ = server.get("/hold")
    assert [told["sa_railway_pool_checked_out"] for told in server.metrics()] == [1] * WORKERS

    server.kill(holder)

    for told in server.metrics():
        assert told["sa_railway_pool_checked_out"] == told["sa_railway_pool_open"] == 0
        assert told["sa_railway_checkout_wait_seconds_count"] == 1
    wait_until(lambda: open_sessions(postgres) == 0)


def test_the_applications_own_gauges_forget_a_dead_worker_too(
    start_gunicorn: Start, tmp_path: Path
):
    directory = tmp_path / "metrics"
    directory.mkdir()
    server = start_gunicorn(*OURS, PROMETHEUS_MULTIPROC_DIR=str(directory))
    wait_until(lambda: server.get("/query") and all_open(server, WORKERS))

    server.kill(server.get("/query")[0])

    assert all_open(server, WORKERS - 1)


def all_open(server: Gunicorn, number: int) -> bool:
    return all(told["shop_open"] == number for told in server.metrics())


def test_on_railway_gunicorn_logs_json_to_stdout(start_gunicorn: Start):
    server = start_gunicorn(*OURS, RAILWAY_ENVIRONMENT_ID="production")
    server.get("/query")
    worker, _ = server.get("/query")
    server.kill(worker)

    lines = [json.loads(line) for line in server.text().splitlines()]
    assert {line["logger"] for line in lines} == {"gunicorn.error", "sa_railway.plugin"}
    assert {
        "message": f"sa_railway: worker (pid:{worker}) was killed without notice: by a SIGKILL "
        "(out of memory, or graceful_timeout was over), or by a crash",
        "level": "error",
    } in [{"message": line["message"], "level": line["level"]} for line in lines]
