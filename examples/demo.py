"""Show what the failures of a server do to an application, without and with sa_railway.

    python examples/demo.py [--quick]

The application of ``flask_app/`` runs three times, each under a Gunicorn of its own and with the
configuration that ``demo_app.py`` gives it. All three use one throwaway PostgreSQL through one
proxy and so meet the same faults at the same time, while requests come in.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from demo_load import LIMIT, RATE, WRITE_EVERY, Load, Results, running
from sqlalchemy import Engine, NullPool, text

from sa_railway import create_engine
from sa_railway.testing import ChaosProxy, PostgresNotFoundError, TemporaryPostgres

STARTED = time.monotonic()
VARIANTS = {
    "plain": "Flask-SQLAlchemy as it comes",
    "pool_pre_ping": "with the options pool_pre_ping=True and pool_recycle=300",
    "sa_railway": "with engine_options(), Railway(app, db), and the hooks for Gunicorn",
}
IDLE_TIMEOUT = 1.0  # seconds after which the server closes an idle connection, while it does so
QUIET = 1.5  # seconds without requests: long enough for that

Send = Callable[[float], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Plan:
    """How much there is of each fault.

    Attributes:
        calm: seconds of requests without a fault.
        burst: seconds of requests between two faults.
        terminations: how often all connections are terminated.
        idle_spells: how often the server closes what has been idle.
        frozen: seconds of requests while connections are frozen.
        away: seconds that the server takes to restart.
    """

    calm: float = 3.0
    burst: float = 1.0
    terminations: int = 5
    idle_spells: int = 2
    frozen: float = 4.0
    away: float = 2.0


QUICK = Plan(calm=1.0, burst=0.5, terminations=2, idle_spells=1, frozen=1.0, away=1.0)


class Step(NamedTuple):
    """A row of the table, and what happens in it."""

    title: str
    explanation: str
    strike: Callable[[Send], Awaitable[None]]


class Faults:
    """The faults, one after the other.

    Each strikes while no request is under way, and meets those that are sent after it.
    """

    def __init__(
        self, plan: Plan, server: TemporaryPostgres, proxy: ChaosProxy, admin: Engine
    ) -> None:
        self.steps = [
            Step("no fault", "only requests", self._calm),
            Step(
                f"connections terminated, {plan.terminations}x",
                "all of them, by pg_terminate_backend()",
                self._terminate,
            ),
            Step(
                f"idle connections closed, {plan.idle_spells}x",
                "by the server's idle_session_timeout",
                self._close_idle,
            ),
            Step(
                "idle connections frozen",
                "open, but without an answer, as behind a wedged proxy",
                self._freeze,
            ),
            Step(
                f"server restarted, {plan.away:g} s away",
                "while requests go on",
                self._restart,
            ),
        ]
        self._plan = plan
        self._server = server
        self._proxy = proxy
        self._admin = admin

    async def strike(self, load: Load) -> None:
        """Go through all steps."""
        await load.wait_until_ready()
        for step in self.steps:
            say(f"{step.title}: {step.explanation}")
            await step.strike(functools.partial(load.send, step.title))

    async def _calm(self, send: Send) -> None:
        await send(self._plan.calm)

    async def _terminate(self, send: Send) -> None:
        for _ in range(self._plan.terminations):
            await asyncio.to_thread(self._server.terminate_backends)
            await self._all_gone()
            await send(self._plan.burst)

    async def _close_idle(self, send: Send) -> None:
        # a backend heeds the setting when it becomes idle the next time
        self._configure(f"SET idle_session_timeout = '{IDLE_TIMEOUT}s'")
        for _ in range(self._plan.idle_spells):
            await send(self._plan.burst)
            await asyncio.sleep(QUIET)
        self._configure("RESET idle_session_timeout")
        await send(self._plan.burst)

    async def _freeze(self, send: Send) -> None:
        with self._proxy.freeze(new=False):
            await asyncio.sleep(QUIET)
            await send(self._plan.frozen)
        await send(self._plan.burst)

    async def _restart(self, send: Send) -> None:
        await asyncio.to_thread(self._server.stop)
        await self._all_gone()
        async with asyncio.TaskGroup() as group:
            group.create_task(send(self._plan.away + self._plan.burst))
            await asyncio.sleep(self._plan.away)
            await asyncio.to_thread(self._server.start)

    async def _all_gone(self) -> None:
        """Wait until the proxy has passed the end of every connection on."""
        await asyncio.to_thread(self._proxy.wait_for, lambda: not self._proxy.connections)

    def _configure(self, setting: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"ALTER SYSTEM {setting}"))
            connection.execute(text("SELECT pg_reload_conf()"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of each fault")
    plan = QUICK if parser.parse_args().quick else Plan()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like a Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="sa-railway-demo-") as folder:
            show(plan, Path(folder))
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.")
        sys.exit(130)


def show(plan: Plan, folder: Path) -> None:
    try:
        with TemporaryPostgres() as server, ChaosProxy(server.url) as proxy:
            compare(plan, folder, server, proxy)
    except PostgresNotFoundError as error:
        print(error)
        show_sqlite(folder)


def compare(plan: Plan, folder: Path, server: TemporaryPostgres, proxy: ChaosProxy) -> None:
    """Run all variants through all faults, and print what became of the requests."""
    print_introduction()
    say("starting the applications")
    admin = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    faults = Faults(plan, server, proxy, admin)
    with running(VARIANTS, folder, proxy.url.render_as_string(hide_password=False)) as applications:
        load = Load(applications)
        asyncio.run(faults.strike(load))
    say("done")
    print_requests(load.results, [step.title for step in faults.steps])
    print_notes(load.results, stored_notes(admin))


def stored_notes(admin: Engine) -> Counter[str]:
    """Return how often each note is in the database."""
    with admin.connect() as connection:
        rows = connection.execute(text("SELECT text, count(*) FROM note GROUP BY text"))
        return Counter(dict(rows.all()))


def show_sqlite(folder: Path) -> None:
    """Run the application without a server, for a few requests."""
    print("\nSo there is no server to break. The application on the SQLite file it then uses:\n")
    with running(["sa_railway"], folder) as applications:
        asyncio.run(ask_a_little(Load(applications)))


async def ask_a_little(load: Load) -> None:
    await load.wait_until_ready()
    for method, path, note in (
        ("GET", "/health", None),
        ("POST", "/notes", "A file will do."),
        ("GET", "/notes", None),
    ):
        status, body = await load.applications[0].request(method, path, note)
        print(f"  {method:<5}{path:<8} {status}  {body.strip()}")


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:5.1f} s  {text}", flush=True)


def print_introduction() -> None:
    print("One small Flask application, three times, each under a Gunicorn with 2 workers:\n")
    for variant, description in VARIANTS.items():
        print(f"  {variant:<15}{description}")
    print(f"\nAll use the same PostgreSQL server. Each is sent {RATE} requests a second,")
    print(f"one in {WRITE_EVERY} of them a write.\n")


def print_requests(results: Mapping[str, Results], steps: Sequence[str]) -> None:
    """Print the requests answered and failed, side by side, by step and in total."""
    print()
    print_row("", [f"{variant:>18}" for variant in results])
    print_row("", ["  answered  failed"] * len(results))
    for step in steps:
        print_row(step, [f"{r.answered[step]:10}{r.failed[step]:8}" for r in results.values()])
    print_row("total", [f"{r.answered.total():10}{r.failed.total():8}" for r in results.values()])


def print_notes(results: Mapping[str, Results], stored: Counter[str]) -> None:
    """Print what else there is to know of each variant, and what was counted."""
    lost = {name: sum(not stored[note] for note in r.stored) for name, r in results.items()}
    twice = Counter(note.split()[0] for note, times in stored.items() if times > 1)
    print()
    print_row("slowest answer, in seconds", [f"{r.slowest:18.1f}" for r in results.values()])
    print_row("writes answered but lost", [f"{lost[name]:18}" for name in results])
    print_row("writes stored twice", [f"{twice[name]:18}" for name in results])
    print(f"\nFailed: an error, or no answer within {LIMIT:g} s. Each fault strikes while no")
    print("request is under way; one that is cut off midway may fail in every column.")


def print_row(title: str, cells: Sequence[str]) -> None:
    print(f"{title:<27}{''.join(cells)}")


if __name__ == "__main__":
    main()
