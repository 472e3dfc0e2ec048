"""An application under the servers that people use, while its database fails."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from fix_server import ServerProcess
from marked import in_text

from sa_railway.testing import ChaosProxy, TemporaryPostgres

PROGRAMS = Path(__file__).parent / "programs"
HOOKS = """
from sa_railway.gunicorn import child_exit, post_worker_init, worker_abort, worker_exit
import sa_railway.gunicorn

def post_fork(server, worker):
    sa_railway.gunicorn.post_fork(server, worker)
    {then}
"""
PSYCOGREEN = "import psycogreen.gevent; psycogreen.gevent.patch_psycopg()"
GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "-c"]
OURS = [*GUNICORN, "python:sa_railway.gunicorn"]
GEVENT = [*GUNICORN, "gevent.conf.py", "--worker-class", "gevent"]
BLOCKING = [*GUNICORN, "blocking.conf.py", "--worker-class", "gevent"]
UVICORN = ["-m", "uvicorn", "--port", "{port}", "served:asgi"]
GRANIAN = ["-m", "granian", "--port", "{port}", "--interface"]
UWSGI = [
    *("-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket", "127.0.0.1:{port}", "--module"),
    *("served:application", "--master", "--processes", "2", "--die-on-term"),
]
WSGI, ASGI = "served:application", "served:asgi"
# Gunicorn has a worker class for eventlet up to version 23, which `make test-sa20` runs.
HAS_EVENTLET_WORKER = importlib.util.find_spec("gunicorn.workers.geventlet") is not None

SERVERS = {
    "gunicorn sync": ("psycopg2", [*OURS, WSGI]),
    "gunicorn sync preload": ("psycopg", [*OURS, "--preload", WSGI]),
    "gunicorn gthread": ("psycopg2", [*OURS, "--threads", "4", WSGI]),
    "gunicorn gevent psycogreen": ("psycopg2", [*GEVENT, WSGI]),
    "gunicorn gevent psycogreen preload": ("psycopg2", [*GEVENT, "--preload", WSGI]),
    "gunicorn gevent without psycogreen": ("psycopg2", [*BLOCKING, WSGI]),
    "gunicorn gevent psycopg": ("psycopg", [*BLOCKING, WSGI]),
    "gunicorn UvicornWorker": (
        "asyncpg",
        [*OURS, "--worker-class", "uvicorn_worker.UvicornWorker", ASGI],
    ),
    "eventlet": ("psycopg2", ["eventlet_server.py", "{port}"]),
    "uvicorn asyncpg": ("asyncpg", UVICORN),
    "uvicorn psycopg": ("psycopg_async", UVICORN),
    "granian wsgi": ("psycopg2", [*GRANIAN, "wsgi", WSGI]),
    "granian asgi": ("asyncpg", [*GRANIAN, "asgi", ASGI]),
    "waitress": ("psycopg2", ["-m", "waitress", "--listen", "127.0.0.1:{port}", WSGI]),
    "uwsgi": ("psycopg2", UWSGI),
    "uwsgi with its hooks": ("psycopg", [*UWSGI, "--enable-threads", "--py-call-osafterfork"]),
}
if HAS_EVENTLET_WORKER:
    SERVERS["gunicorn eventlet"] = ("psycopg2", [*OURS, "--worker-class", "eventlet", WSGI])


class Served(ServerProcess):
    """A server in a process group of its own."""

    def __init__(self, folder: Path, arguments: list[str], url: str, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        for program in PROGRAMS.iterdir():
            (folder / program.name).symlink_to(program)
        (folder / "gevent.conf.py").write_text(HOOKS.format(then=PSYCOGREEN))
        (folder / "blocking.conf.py").write_text(HOOKS.format(then="pass"))
        self.log = folder / "log"
        workers = [int(n) for word, n in pairwise(arguments) if word == "--workers"]
        # each of its workers loads the application, unless the parent has
        self.loads = workers[-1] if workers and "--preload" not in arguments else 1
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(part.format(port=self.port) for part in arguments)],
                cwd=folder,
                env={
                    **os.environ,
                    "HOME": str(folder),  # where Gunicorn keeps its control socket
                    "PYTHONPATH": f"{Path(__file__).parents[2]}:{folder}",
                    "SERVED_URL": url,
                    "SA_RAILWAY_TRUST_IDLE": "0",
                    "SA_RAILWAY_PING_TIMEOUT": "0.3",
                    **environ,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self, path: str = "/") -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(client):
            client.request("GET", path)
            answer = client.getresponse()
            body = answer.read().decode()
        assert answer.status == 200, body
        return body

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            if len(list(self.log.parent.glob("loaded.*"))) >= self.loads:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)


@contextlib.contextmanager
def serving(folder: Path, arguments: list[str], url: str, **environ: str) -> Iterator[Served]:
    server = Served(folder, arguments, url, **environ)
    try:
        server.wait()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def moody_postgres(postgres_binaries: Path) -> Iterator[TemporaryPostgres]:
    """A server that the tests of this module restart."""
    with TemporaryPostgres() as server:
        yield server


@pytest.mark.parametrize("name", SERVERS)
def test_no_request_fails_with_the_connections_that_it_would_have_used(
    moody_postgres: TemporaryPostgres, tmp_path: Path, name: str
):
    driver, arguments = SERVERS[name]
    with ChaosProxy(moody_postgres.url_for(driver)) as proxy:
        url = in_text(proxy.url)
        with serving(tmp_path, arguments, url) as server:
            before = {server.get() for _ in range(6)}

            moody_postgres.terminate_backends()
            killed = {server.get() for _ in range(6)}
            assert not before & killed

            with proxy.freeze(new=False):
                frozen = {server.get() for _ in range(6)}
            assert not killed & frozen

            moody_postgres.restart()
            assert [server.get() for _ in range(6)]

            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) in (0, -signal.SIGTERM), server.log.read_text()
            log = server.log.read_text()
            assert "Traceback" not in log
            assert "SIGKILL" not in log


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=str)
def test_greenlets_run_while_one_waits_for_a_server_that_is_away(
    postgres: TemporaryPostgres, tmp_path: Path, preload: list[str]
):
    with ChaosProxy(postgres.url) as proxy:
        url = in_text(proxy.url)
        arguments = [*GEVENT, "--workers", "1", *preload, WSGI]
        with serving(tmp_path, arguments, url) as server:
            server.get()
            with proxy.down():
                answers: list[str] = []
                waiting = threading.Thread(target=lambda: answers.append(server.get()))
                waiting.start()
                assert [server.get("/pulse") for _ in range(20)] == ["ok"] * 20
                assert not answers
            waiting.join(20)
            assert answers
