"""What happens to the server of the demonstration, and when."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import NamedTuple

from load import Load
from sqlalchemy import Engine, text

from sa_railway.testing import ChaosProxy, TemporaryPostgres

__all__ = ["QUICK", "WHOLE", "Faults", "Plan"]

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


WHOLE = Plan()
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

    async def strike(self, load: Load, say: Callable[[str], object]) -> None:
        """Go through all steps, and *say* which one it is."""
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
