"""A clock for what would otherwise wait."""

from __future__ import annotations


class Clock:
    """Time that passes only in sleep. A test puts it in the place of a module's ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(float(seconds))
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
