"""Applications under Gunicorn, and requests that come to them at a steady rate."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LIMIT", "RATE", "WRITE_EVERY", "Application", "Load", "Results", "running"]

RATE = 20  # requests a second to each application, however long the answers take
WRITE_EVERY = 5  # one request in so many stores a note, the others read
LIMIT = 5.0  # seconds that a client waits for an answer

_APP = "application"  # a module of this folder
_HERE = Path(__file__).resolve().parent


class Application:
    """One variant under Gunicorn, with 2 workers, on a free port.

    Args:
        variant: the name of a function of ``application.py``.
        folder: where it runs and logs.
        url: the database; without one the application takes its default.
    """

    def __init__(self, variant: str, folder: Path, url: str | None) -> None:
        self.variant = variant
        self._log = folder / f"{variant}.log"
        hooks = ["-c", "python:sa_railway.gunicorn"] if variant == "sa_railway" else []
        with (
            socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
            self._log.open("wb") as log,
        ):
            self._port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", *hooks, "--workers=2"),
                    *("--graceful-timeout=1", f"--bind=fd://{listener.fileno()}"),
                    f"{_APP}:{variant}()",
                ],
                cwd=folder,
                env=_environment(folder, url),
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the others
            )

    def stop(self) -> None:
        """End it and its workers, by force if need be."""
        self._process.send_signal(signal.SIGQUIT)  # Gunicorn's quick shutdown
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def wait_until_ready(self) -> None:
        """Wait for an answer.

        Raises:
            RuntimeError: there is none; with what was logged.
        """
        try:
            async with asyncio.timeout(30):
                await self.request("GET", "/notes")
        except OSError as error:
            log = self._log.read_text()
            raise RuntimeError(f"{self.variant} does not answer ({error!r}):\n{log}") from error

    async def request(self, method: str, path: str, note: str | None = None) -> tuple[int, str]:
        """Return the status and body of the answer.

        Raises:
            OSError: there is none.
        """
        body = "" if note is None else json.dumps({"text": note})
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                f"{body}".encode()
            )
            head, _, answer = (await reader.read()).decode().partition("\r\n\r\n")
        if not head:
            raise ConnectionError("the connection was closed without an answer")
        return int(head.split()[1]), answer


@contextlib.contextmanager
def running(
    variants: Iterable[str], folder: Path, url: str | None = None
) -> Iterator[list[Application]]:
    """Make the tables of the database at *url*, and run the *variants* on it."""
    subprocess.run(
        [sys.executable, "-m", _APP],
        cwd=folder,
        env=_environment(folder, url),
        start_new_session=True,
        check=True,
    )
    with contextlib.ExitStack() as stack:
        applications = []
        for variant in variants:
            applications.append(Application(variant, folder, url))
            stack.callback(applications[-1].stop)
        yield applications


def _environment(folder: Path, url: str | None) -> dict[str, str]:
    """The environment without the databases and the settings of the user's own applications."""
    own = ("DATABASE_", "PG", "RAILWAY_", "SA_RAILWAY_", "GUNICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {
        **kept,
        **({"DATABASE_URL": url} if url else {}),
        "HOME": str(folder),  # where Gunicorn puts its control socket
        "PYTHONPATH": os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Results:
    """What became of the requests to one application, by the step in which they were sent.

    Attributes:
        answered: how many had the answer that they should have.
        failed: how many had another one, or none within ``LIMIT``.
        slowest: the seconds that the slowest answer took.
        stored: the notes that the application says it has stored.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    stored: list[str] = field(default_factory=list)


class Load:
    """The same requests to all *applications*."""

    def __init__(self, applications: Sequence[Application]) -> None:
        self.applications = applications
        self.results = {application.variant: Results() for application in applications}
        self._numbers = itertools.count(1)

    async def wait_until_ready(self) -> None:
        """Wait until all applications answer."""
        for application in self.applications:
            await application.wait_until_ready()

    async def send(self, step: str, seconds: float) -> None:
        """Send requests for *seconds*, and return when none is under way any more."""
        async with asyncio.TaskGroup() as group:
            for _ in range(round(seconds * RATE)):
                number = next(self._numbers)
                for application in self.applications:
                    group.create_task(self._ask(step, application, number))
                await asyncio.sleep(1 / RATE)

    async def _ask(self, step: str, application: Application, number: int) -> None:
        results = self.results[application.variant]
        note = f"{application.variant} {number}" if number % WRITE_EVERY == 0 else None
        began = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT):
                status, _ = await application.request("POST" if note else "GET", "/notes", note)
        except OSError:  # TimeoutError is one, too
            status = 0
        if status != (201 if note else 200):
            results.failed[step] += 1
            return
        results.answered[step] += 1
        results.slowest = max(results.slowest, time.monotonic() - began)
        if note:
            results.stored.append(note)
