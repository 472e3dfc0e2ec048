"""Processes that are told to stop while their work waits for a server that is away."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_waiting import wait_until

PATIENCE = 300.0  # seconds; no test waits for as long
DEADLINE = 60.0

PRELUDE = f"""
import asyncio, os, signal, sys
import sa_railway, sa_railway.asyncio, sqlalchemy
from sa_railway import events

def told(event):
    # the loop of the main thread may have to be given its turn first
    handler = type(signal.getsignal(signal.SIGTERM)).__module__
    if isinstance(event, events.ConnectAttemptFailed) and handler == "sa_railway.engine.stopping":
        print("waiting", flush=True)

events.subscribe(told)
options = dict(connect_patience={PATIENCE})

def connect():
    engine = sa_railway.create_engine(os.environ["DATABASE_URL"], **options)
    try:
        engine.connect()
    except sqlalchemy.exc.OperationalError:
        print("failed", flush=True)

async def connect_async():
    engine = sa_railway.asyncio.create_async_engine(os.environ["DATABASE_URL"], **options)
    try:
        await engine.connect()
    except (OSError, sqlalchemy.exc.OperationalError):
        print("failed", flush=True)
"""
SCRIPTS = {
    "a handler that exits": """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
connect()
""",
    "a handler that makes a note": """
signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
connect()
""",
    "a task of asyncio": """
async def main():
    signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
    await connect_async()

asyncio.run(main())
""",
    "a handler of the loop": """
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "stop")
    await connect_async()

asyncio.run(main())
""",
    "a thread of asyncio": """
async def main():
    signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
    await asyncio.to_thread(connect)

asyncio.run(main())
""",
    "a thread, and an engine from before": """
import threading
signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
sa_railway.create_engine("sqlite://")
thread = threading.Thread(target=connect)
thread.start()
thread.join()
""",
    "a parent that waits for its child": """
signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    connect()
""",
}
APP = """
import os
import pathlib

import sa_railway
import sqlalchemy
from sa_railway import events

engine = sa_railway.create_engine(os.environ["DATABASE_URL"], connect_patience=PATIENCE)
events.subscribe(
    lambda event: isinstance(event, events.ConnectAttemptFailed)
    and pathlib.Path("waiting").touch()
)

def application(environ, start_response):
    try:
        engine.connect().close()
        status = "200 OK"
    except sqlalchemy.exc.OperationalError:
        status = "503 Service Unavailable"
    start_response(status, [("Content-Length", "0")])
    return [b""]
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where nothing listens at the address of the database, during all of the test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield {
            **os.environ,
            "DATABASE_URL": f"postgresql://u:p@127.0.0.1:{taken.getsockname()[1]}/d",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends(name: str, environment: dict[str, str]) -> None:
    script = PRELUDE + SCRIPTS[name]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGTERM)
            out, error = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()

    said = [line for line in out.splitlines() if line != "waiting"]
    assert said == ([] if name == "a handler that exits" else ["stop", "failed"]), error
    assert process.returncode == 0, error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--threads", "2"],
        ["--threads", "2", "--preload"],
        ["--threads", "2", "--preload", "-c", "python:sa_railway.gunicorn"],
    ],
    ids=["sync", "gthread", "gthread, preloaded", "gthread, preloaded, with hooks"],
)
def test_a_worker_of_gunicorn_ends(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP.replace("PATIENCE", str(PATIENCE)))
    log = tmp_path / "error.log"
    command = [
        *(sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--error-logfile", str(log)),
        *("--timeout", "0", "--graceful-timeout", str(int(PATIENCE)), *arguments),
        "app:application",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        listening = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")
        port = wait_until(lambda: log.exists() and listening.search(log.read_text()), DEADLINE)[1]
        statuses: list[int] = []

        def request() -> None:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(port))) as client:
                client.request("GET", "/")
                statuses.append(client.getresponse().status)

        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        wait_until((tmp_path / "waiting").exists, DEADLINE)
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
        thread.join(DEADLINE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    assert statuses == [503]
