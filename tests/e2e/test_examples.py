"""The examples, each as a process of its own, while their server restarts."""

from __future__ import annotations

import http.client
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from fix_server import ServerProcess
from fix_waiting import wait_until
from marked import MarkedPostgres, conninfo
from sqlalchemy import URL

from sa_railway.testing import ChaosProxy, TemporaryPostgres

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FLASK_APP = EXAMPLES / "flask_app"
DEPLOY = json.loads((FLASK_APP / "railway.json").read_text())["deploy"]


def environment(url: URL, **variables: str) -> dict[str, str]:
    """That of a service on Railway, with the programs of this virtual environment."""
    return {
        **os.environ,
        "DATABASE_URL": conninfo(url),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }


def sql(url: URL, statement: str) -> list[tuple[object, ...]]:
    """Execute *statement*; return its rows, if it has any."""
    with psycopg.connect(conninfo(url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


# --- flask_app ---


class Deployment(ServerProcess):
    """``flask_app`` as ``railway.json`` deploys it, but on a port of loopback."""

    def __init__(self, url: URL, folder: Path) -> None:
        self.log = folder / "gunicorn.log"
        env = environment(
            url,
            HOME=str(folder),  # where Gunicorn keeps its control socket
            GUNICORN_CMD_ARGS=f"--bind=127.0.0.1:0 --error-logfile={self.log}",
            SA_RAILWAY_CONNECT_PATIENCE="0.2",
        )
        for command in DEPLOY["preDeployCommand"]:
            subprocess.run(command, shell=True, cwd=FLASK_APP, env=env, check=True)
        command = shlex.split(DEPLOY["startCommand"])
        self.process = subprocess.Popen(command, cwd=FLASK_APP, env=env, start_new_session=True)
        self.port = self.gunicorn_port()

    def ask(self, method: str, path: str, content: object = None) -> tuple[int, str, str | None]:
        """Return the status, the body, and the header Retry-After."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            headers = {"Content-Type": "application/json"}
            client.request(method, path, json.dumps(content) if content else None, headers)
            answer = client.getresponse()
            return answer.status, answer.read().decode(), answer.headers["Retry-After"]


@pytest.fixture(scope="module")
def server(postgres_binaries: Path) -> Iterator[TemporaryPostgres]:
    """A server that the tests of this file may stop, if they start it again."""
    with MarkedPostgres() as server:
        yield server


@pytest.fixture(scope="module")
def deployment(
    server: TemporaryPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with closing(Deployment(server.url, tmp_path_factory.mktemp("flask_app"))) as deployment:
        yield deployment


def test_the_flask_app_is_healthy_where_railway_asks(deployment: Deployment):
    status, body, _ = deployment.ask("GET", DEPLOY["healthcheckPath"])

    assert (status, json.loads(body)) == (200, {"status": "ready", "reason": None})


def test_the_flask_app_keeps_its_notes_and_answers_through_restarts(
    deployment: Deployment, server: TemporaryPostgres
):
    for number in range(4):  # as many as there may be connections in the two workers
        status, body, _ = deployment.ask("POST", "/notes", {"text": f"note {number}"})
        assert status == 201
        server.restart()
        note = json.loads(body)
        status, body, _ = deployment.ask("GET", f"/notes/{note['id']}")
        assert (status, json.loads(body)) == (200, note)

    status, body, _ = deployment.ask("GET", "/notes")
    newest = [note["text"] for note in json.loads(body)[:4]]
    assert (status, newest) == (200, ["note 3", "note 2", "note 1", "note 0"])


def test_the_flask_app_refuses_what_is_no_note(deployment: Deployment):
    status, body, _ = deployment.ask("POST", "/notes", ["text"])

    assert status == 400
    assert "a note is an object with a text" in body


def test_the_flask_app_says_when_to_come_again_while_its_server_stays_away(
    deployment: Deployment, server: TemporaryPostgres
):
    server.stop()
    try:
        status, body, retry_after = deployment.ask("GET", "/notes")
    finally:
        server.start()

    assert (status, body) == (503, '{"error":"the database cannot be reached"}\n')
    assert retry_after == "1"
    wait_until(lambda: deployment.ask("GET", "/notes")[0] == 200)


def test_the_flask_app_stops_in_good_order(server: TemporaryPostgres, tmp_path: Path):
    with closing(Deployment(server.url, tmp_path)) as deployment:
        assert deployment.ask("GET", "/notes")[0] == 200
        deployment.process.terminate()

        assert deployment.process.wait(20) == 0
        ends = re.findall(r"sa_railway: worker \(pid:\d+\) (.*)", deployment.text())
        assert ends == ["left in good order"] * 2


def test_the_flask_app_has_the_time_to_finish_its_requests():
    settings = runpy.run_path(str(FLASK_APP / "gunicorn.conf.py"))

    assert settings["graceful_timeout"] < DEPLOY["drainingSeconds"]


# --- script.py ---


def run_script(url: URL) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "script.py")]
    return subprocess.run(command, env=environment(url), capture_output=True, text=True, timeout=60)


def test_the_script_counts_the_rows_of_each_table(database_url: URL):
    sql(database_url, "CREATE TABLE stone AS SELECT 1 WHERE false")
    sql(database_url, "CREATE TABLE fruit AS SELECT generate_series(1, 3)")

    assert run_script(database_url).stdout == "         3  fruit\n         0  stone\n"


def test_the_script_waits_for_a_server_that_is_starting(database_url: URL):
    sql(database_url, "CREATE TABLE fruit AS SELECT generate_series(1, 3)")
    with ChaosProxy(database_url) as proxy:
        proxy.answer("57P03", times=3)

        assert run_script(proxy.url).stdout == "         3  fruit\n"
        assert proxy.accepted == 4


# --- worker.py ---

# a savepoint is the last thing that the worker asks for before it does the work
IN_HAND = """
SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE 'SAVEPOINT%'
"""


class Workers:
    """Processes that run ``worker.py``."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "worker.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, url: URL, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(EXAMPLES / "worker.py"), *arguments]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, env=environment(url), stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with closing(Workers(tmp_path)) as workers:
        yield workers


def add_jobs(workers: Workers, url: URL, *seconds: float) -> None:
    """Let the example make its tables, and give it a job for each of *seconds*."""
    assert workers.run(url, "add").wait(20) == 0
    for number, duration in enumerate(seconds, 1):
        sql(url, f"INSERT INTO jobs VALUES ({number}, 'Ada', {duration}, 'waiting')")


def states(url: URL) -> list[object]:
    return [state for (state,) in sql(url, "SELECT state FROM jobs ORDER BY id")]


def jobs_done(url: URL) -> list[object]:
    """The jobs that have left something in the database, each as often as it did."""
    return [job for (job,) in sql(url, "SELECT job_id FROM greetings ORDER BY job_id")]


def test_the_worker_greets_whom_it_was_told_to_greet(workers: Workers, database_url: URL):
    assert workers.run(database_url, "add", "Ada", "Grace").wait(20) == 0
    worker = workers.run(database_url)
    wait_until(lambda: states(database_url) == ["done", "done"])
    worker.terminate()

    assert worker.wait(20) == 0
    assert sql(database_url, "SELECT text FROM greetings ORDER BY job_id") == [
        ("Hello Ada",),
        ("Hello Grace",),
    ]


def test_workers_do_every_job_once_while_their_server_restarts_and_crashes(
    workers: Workers, own_postgres: TemporaryPostgres
):
    url = own_postgres.url
    add_jobs(workers, url, 1.0, *[0.05] * 20)
    running = [workers.run(url) for _ in range(2)]
    wait_until(lambda: len(jobs_done(url)) >= 5)
    own_postgres.restart()  # the first job is in hand
    wait_until(lambda: len(jobs_done(url)) >= 10)
    own_postgres.restart("immediate")
    wait_until(lambda: states(url) == ["done"] * 21)
    for worker in running:
        worker.terminate()

    assert [worker.wait(20) for worker in running] == [0, 0]
    assert jobs_done(url) == list(range(1, 22))
    assert "A job that was in hand waits for its next turn." in workers.log()


def test_the_worker_passes_over_a_job_that_another_one_has_in_hand(
    workers: Workers, database_url: URL
):
    add_jobs(workers, database_url, 0, 0)
    with psycopg.connect(conninfo(database_url)) as another:
        another.execute("SELECT 1 FROM jobs WHERE id = 1 FOR UPDATE")
        worker = workers.run(database_url)
        wait_until(lambda: states(database_url) == ["waiting", "done"])
    wait_until(lambda: states(database_url) == ["done", "done"])
    worker.terminate()

    assert worker.wait(20) == 0


def test_the_worker_finishes_the_job_in_hand_at_sigterm(workers: Workers, database_url: URL):
    add_jobs(workers, database_url, 0.5, 0)
    worker = workers.run(database_url)
    wait_until(lambda: sql(database_url, IN_HAND))
    worker.terminate()

    assert worker.wait(20) == 0
    assert states(database_url) == ["done", "waiting"]
    assert jobs_done(database_url) == [1]


def test_the_worker_leaves_at_once_when_it_waits_for_its_server(
    workers: Workers, database_url: URL
):
    with ChaosProxy(database_url) as proxy:
        proxy.answer("57P03", times=None)
        worker = workers.run(proxy.url)
        proxy.wait_for(lambda: proxy.accepted > 1)
        worker.terminate()

        assert worker.wait(20) == 0  # its patience is a minute


def test_a_job_that_fails_does_not_stop_the_worker(workers: Workers, database_url: URL):
    assert workers.run(database_url, "add", "Eve", "Ada").wait(20) == 0
    sql(database_url, "ALTER TABLE greetings ADD CHECK (text <> 'Hello Eve')")
    worker = workers.run(database_url)
    wait_until(lambda: states(database_url) == ["failed", "done"])
    worker.terminate()

    assert worker.wait(20) == 0
    assert jobs_done(database_url) == [2]


def test_the_worker_ends_with_an_error_that_no_waiting_can_cure(
    workers: Workers, database_url: URL
):
    assert workers.run(database_url).wait(20) == 1
    assert 'relation "jobs" does not exist' in workers.log()
