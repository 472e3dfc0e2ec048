"""Trace what each behaviour goes through: python tests/journeys.py [NAME ...] [--write] [--steps].

For each journey: the modules of the package that are entered, how many of its functions are called,
and how often one module is entered from another. ``--steps`` prints every entry, ``--write`` puts
the table into docs/architecture.md. Each journey is made twice, and the second time is traced:
imports and caches are not what happens each time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy
from fix_engines import pool_of
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from marked import in_text
from sqlalchemy import text

import sa_railway
from sa_railway import engine_options, retry
from sa_railway.cli import main as command
from sa_railway.flask import Railway
from sa_railway.testing import ChaosProxy, TemporaryPostgres

PACKAGE = Path(sa_railway.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
MARK = "journeys"


class Trace:
    """The calls within a block, in all threads that begin in it."""

    def __init__(self) -> None:
        self.calls = 0
        self.steps: list[tuple[str, str]] = []  # the module that is entered, and the function

    def __enter__(self) -> Trace:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _see(self, frame: FrameType, kind: str, _: Any) -> None:
        module = module_of(frame)
        if kind != "call" or module is None or "testing" in module:
            return
        self.calls += 1
        caller = frame.f_back
        while caller is not None and module_of(caller) is None:
            caller = caller.f_back
        if caller is None or module_of(caller) != module:
            self.steps.append((module, frame.f_code.co_name))

    @property
    def entries(self) -> Counter[str]:
        return Counter(module for module, _ in self.steps)


def module_of(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


# --- the journeys: each prepares, and yields what is traced ---

Journey = Callable[[TemporaryPostgres], contextlib.AbstractContextManager[Callable[[], object]]]
JOURNEYS: dict[str, Journey] = {}


def journey(name: str) -> Callable[[Callable[..., Iterator[Callable[[], object]]]], object]:
    def add(prepare: Callable[..., Iterator[Callable[[], object]]]) -> object:
        JOURNEYS[name] = contextlib.contextmanager(prepare)
        return prepare

    return add


def use(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


@journey("a checkout")
def checkout(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    engine = sa_railway.create_engine(server.url)
    use(engine)
    yield lambda: engine.connect().close()
    engine.dispose()


@journey("a checkout of a stale connection")
def stale(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    engine = sa_railway.create_engine(server.url)
    use(engine)
    server.terminate_backends()
    yield lambda: engine.connect().close()
    engine.dispose()


@journey("a lost COMMIT")
def lost_commit(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    def work() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO work VALUES (1)"))

    plain = sqlalchemy.create_engine(server.url)
    with plain.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS work (n int)"))
    plain.dispose()
    with ChaosProxy(server.url) as proxy:
        engine = sa_railway.create_engine(proxy.url, resolve_commit=True)
        work()
        proxy.cut(after="COMMIT")
        yield work
        engine.dispose()


@journey("a fork")
def fork(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    engine = sa_railway.create_engine(server.url)
    use(engine)

    def in_child() -> None:
        """Fork with the tracer on, and hand what the child has seen to the parent's trace."""
        trace: Trace = sys.getprofile().__self__  # type: ignore[union-attr]
        trace.calls, trace.steps = 0, []
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            sys.setprofile(None)
            os.write(writer, json.dumps([trace.calls, trace.steps]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            seen = json.loads(answer.read())
        os.waitpid(child, 0)
        trace.calls, trace.steps = seen[0], [tuple(step) for step in seen[1]]

    yield in_child
    engine.dispose()


@journey("a setting, from the environment to an engine")
def setting(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    os.environ["SA_RAILWAY_POOL_SIZE"] = "3"
    engines = []
    yield lambda: engines.append(sa_railway.create_engine(server.url))
    del os.environ["SA_RAILWAY_POOL_SIZE"]
    assert pool_of(engines[-1]).size() == 3


@contextlib.contextmanager
def client(server: TemporaryPostgres) -> Iterator[Any]:
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=server.url, SQLALCHEMY_ENGINE_OPTIONS=engine_options(server.url)
    )
    db = SQLAlchemy(app)
    Railway(app, db, metrics="/metrics")
    app.debug = True  # so that no token is needed
    yield app.test_client()
    with app.app_context():
        db.engine.dispose()


@journey("GET /metrics")
def metrics(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    with client(server) as browser:
        yield lambda: browser.get("/metrics")


@journey("GET /health/ready")
def ready(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    with client(server) as browser:
        yield lambda: browser.get("/health/ready")


@journey("the doctor, with a wrong password")
def doctor(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    url = server.url.set(password="wrong", username="nobody")
    arguments = ["doctor", in_text(url)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield lambda: command(arguments)


@journey("@retry, after one failure")
def again(server: TemporaryPostgres) -> Iterator[Callable[[], object]]:
    engine = sa_railway.create_engine(server.url)
    failures = [1]

    @retry(backoff_base=0.01)
    def work() -> None:
        with engine.connect() as connection:
            if failures:
                failures.pop()
                server.terminate_backends()
            connection.execute(text("SELECT 1"))

    yield work
    engine.dispose()


def traced(name: str, server: TemporaryPostgres) -> Trace:
    for _ in range(2):
        with JOURNEYS[name](server) as go, Trace() as trace:
            go()
    return trace


def row(name: str, trace: Trace) -> str:
    again = [f"`{module}` {count}" for module, count in trace.entries.items() if count > 1]
    cells = (name, len(trace.entries), len(trace.steps), trace.calls, ", ".join(again))
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the names of journeys")
    parser.add_argument("--steps", action="store_true", help="print every entry into a module")
    parser.add_argument("--write", action="store_true", help="update docs/architecture.md")
    arguments = parser.parse_args()
    rows = [
        "| journey | modules | entries | calls | entered more than once |",
        "|---|---|---|---|---|",
    ]
    with TemporaryPostgres() as server:
        for name in JOURNEYS:
            if arguments.names and not any(part in name for part in arguments.names):
                continue
            trace = traced(name, server)
            rows.append(row(name, trace))
            if arguments.steps:
                print(
                    name, *(f"  {module}: {function}" for module, function in trace.steps), sep="\n"
                )
    print(*rows, sep="\n")
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(f"<!-- {MARK} -->\n")
        _, _, after = rest.partition(f"<!-- /{MARK} -->")
        table = "\n".join(rows)
        PAGE.write_text(f"{before}<!-- {MARK} -->\n{table}\n<!-- /{MARK} -->{after}")


if __name__ == "__main__":
    main()
