"""A FastAPI application on asyncpg under uvicorn: each request writes a row or reads one.

While eight clients send requests, all backends are ended five times, and the server is away once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import side
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sa_railway.testing import TemporaryPostgres

CLIENTS = 8
PAUSE = 0.02  # seconds between two requests of a client: it finds the connections idle
AWAY = 1.0  # seconds without a server
WHILE = 0.7  # seconds from one fault to the next


def create_app() -> FastAPI:
    arguments = side.engine_arguments(plugin=bool(os.environ["PLUGIN"]))
    engine = create_async_engine(os.environ["DATABASE_URL"], **arguments)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS entry (number int)"))
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/entries/{number}")
    async def add(number: int) -> int:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO entry VALUES (:n)"), {"n": number})
        return number

    @app.get("/entries/{number}")
    async def show(number: int) -> int:
        async with engine.connect() as connection:
            rows = await connection.execute(text("SELECT cast(:n AS int)"), {"n": number})
        return rows.scalar_one()

    return app


@dataclass
class Client:
    """Sends one request after the other, and notes what became of them."""

    address: str
    first: int
    tried: int = 0
    written: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        """Go on until *stop* is set; every other request writes."""
        while not stop.wait(PAUSE):
            method = "POST" if self.tried % 2 else "GET"
            try:
                self._ask(method, self.first + self.tried)
            except (OSError, HTTPException) as error:
                self.failures.append(f"{method}: {error}")
            self.tried += 1

    def _ask(self, method: str, number: int) -> None:
        request = urllib.request.Request(f"{self.address}/entries/{number}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            if answer.read() != str(number).encode():
                self.failures.append(f"{method}: the answer of another request")
        if method == "POST":
            self.written.append(number)


@contextmanager
def serving(report: side.Report, server: TemporaryPostgres, *, plugin: bool) -> Iterator[str]:
    """Start uvicorn on a socket that listens already; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
        uvicorn = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--factory", "fastapi_asyncpg:create_app"),
                *("--fd", str(listener.fileno()), "--log-level", "critical"),
            ],
            cwd=Path(__file__).parent,
            env=side.environment(plugin=plugin, url=server.url_for("asyncpg")),
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            side.end(report, uvicorn)


def disturb(server: TemporaryPostgres) -> None:
    for fault in (*[server.terminate_backends] * 5, server.stop):
        time.sleep(WHILE)
        fault()
    time.sleep(AWAY)
    server.start()
    time.sleep(WHILE)


def run(plugin: bool) -> side.Report:
    report = side.Report("requests of 8 clients; backends ended, server stopped")
    stop = threading.Event()
    with TemporaryPostgres() as server, serving(report, server, plugin=plugin) as address:
        clients = [Client(address, number * 1_000_000) for number in range(CLIENTS)]
        urllib.request.urlopen(f"{address}/entries/0", timeout=60).close()  # until it has started
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(client.run, stop) for client in clients]
            disturb(server)
            stop.set()
        for future in running:
            future.result()
        written = [number for client in clients for number in client.written]
        report.lost = side.wrong_rows(server, written)
    report.tried = sum(client.tried for client in clients)
    report.failures.update(failure for client in clients for failure in client.failures)
    return report


if __name__ == "__main__":
    side.main(run)
