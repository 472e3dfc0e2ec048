"""Celery's prefork pool: the module makes the tables when it is imported, and so before the forks.

Each child process is replaced after ten tasks, so there are forks under load as well. Broker and
results are files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side
import sqlalchemy
from celery import Celery
from celery.result import AsyncResult
from sqlalchemy import Engine, text

from sa_railway.testing import TemporaryPostgres

TASKS = 80
SECONDS = 120.0  # for all tasks

app = Celery("celery_prefork")
app.conf.update(
    broker_url="filesystem://",
    broker_connection_retry_on_startup=True,
    task_time_limit=5,  # two children that read from one socket may wait without end
    worker_max_tasks_per_child=10,
)


def use(folder: str) -> None:
    """Let the application keep its queue and its results in *folder*."""
    app.conf.result_backend = f"file://{folder}/results"
    app.conf.broker_transport_options = {
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    }


def connect() -> Engine:
    """Return an engine whose pool has a connection."""
    arguments = side.engine_arguments(plugin=bool(os.environ["PLUGIN"]))
    engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"], **arguments)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS entry (number int)"))
    return engine


if "CELERY_FOLDER" in os.environ:  # in the worker
    use(os.environ["CELERY_FOLDER"])
    engine = connect()


@app.task
def add(number: int) -> int:
    """Write a row and return what the server says it was."""
    with engine.begin() as connection:
        return connection.execute(
            text("INSERT INTO entry VALUES (:number) RETURNING number"), {"number": number}
        ).scalar_one()


def wait(report: side.Report, results: list[AsyncResult]) -> list[int]:
    """Wait for the tasks; return the numbers of those that succeeded."""
    deadline = time.monotonic() + SECONDS
    done = []
    for number, result in enumerate(results):
        try:
            answer = result.get(timeout=max(deadline - time.monotonic(), 0.1))
        except Exception as error:  # noqa: BLE001 - whatever reaches the caller is counted
            report.fail(error)
            continue
        if answer != number:
            report.fail("the answer of another task")
        done.append(number)
    return done


def start(server: TemporaryPostgres, folder: str, *, plugin: bool) -> subprocess.Popen[bytes]:
    """Start a worker with four children."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "celery_prefork", "worker"),
            *("--pool", "prefork", "--concurrency", "4", "--loglevel", "CRITICAL"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        cwd=Path(__file__).parent,
        env=side.environment(plugin=plugin, url=server.url_for("psycopg"), CELERY_FOLDER=folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run(plugin: bool) -> side.Report:
    report = side.Report("tasks of 4 children, forked from a connected parent", tried=TASKS)
    with tempfile.TemporaryDirectory() as folder, TemporaryPostgres() as server:
        for name in ("results", "queue", "control"):
            Path(folder, name).mkdir()
        use(folder)
        worker = start(server, folder, plugin=plugin)
        try:
            done = wait(report, [add.delay(number) for number in range(TASKS)])
            report.lost = side.wrong_rows(server, done)
        finally:
            side.end(report, worker)
    return report


if __name__ == "__main__":
    side.main(run)
