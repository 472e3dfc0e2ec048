"""One direction of a connection: a delay line between two sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sa_railway.testing.toxics import (
    Direction,
    Latency,
    LimitData,
    SlowClose,
    Timeout,
    Toxics,
    Trigger,
)

_FULL = 16 * 1024 * 1024  # held bytes of a stream at which the kernel's buffers take over


@dataclass(frozen=True)
class End:
    """The end of a connection, as it stands in a delay line behind the data that goes before it.

    Attributes:
        trigger: what is called when the end is reached.
        reset: whether the client gets a TCP reset.
    """

    trigger: Trigger | None = None
    reset: bool = False


END = End()
RESET = End(reset=True)


class Stream:
    """One direction: a line of what was read on one side and is due on the other at some time."""

    def __init__(self, name: Direction, toxics: Toxics) -> None:
        self.ends = False
        """Whether the end stands in the line, so that nothing more is to be read."""
        self.blocked = False
        """Whether the other side had no room for what is due."""
        self._name = name
        self._toxics = toxics
        self._line: deque[tuple[float, bytes | End]] = deque()
        self._held = 0

    @property
    def full(self) -> bool:
        """Whether no more is to be read until something has been sent."""
        return self._held >= _FULL

    @property
    def due(self) -> float | None:
        """When the next piece is to be sent; None if there is none, or no room for it."""
        return None if self.blocked or not self._line else self._line[0][0]

    def push(self, data: bytes) -> None:
        """Put *data* at the end of the line."""
        if self.ends or not data or self._toxics.of_stream(Timeout, self._name):
            return
        limits = [
            passing
            for limit in self._toxics.of_stream(LimitData, self._name)
            if (passing := limit.take(self, len(data))) is not None
        ]
        if limits:
            data = data[: min(limits)]
        self._append(data, 0.0)
        if limits:
            self.end(END)

    def end(self, end: End) -> None:
        """Put the end of the connection at the end of the line."""
        if not self.ends:
            closes = self._toxics.of_stream(SlowClose, self._name)
            self._append(end, sum(toxic.seconds for toxic in closes))
            self.ends = True

    def hurry(self) -> None:
        """Make everything in the line due now."""
        self._line = deque((0.0, item) for _, item in self._line)

    def send(self, send: Callable[[bytes], int]) -> End | None:
        """Hand what is due to *send*; return the end if it has been reached."""
        now = time.monotonic()
        self.blocked = False
        while self._line and self._line[0][0] <= now:
            due, item = self._line.popleft()
            if isinstance(item, End):
                return item
            sent = _attempt(send, item)
            self._held -= sent
            if sent < len(item):
                self._line.appendleft((due, item[sent:]))
                self.blocked = True
                break
        return None

    def _append(self, item: bytes | End, extra: float) -> None:
        delay = sum(toxic.draw() for toxic in self._toxics.of_stream(Latency, self._name))
        self._line.append((time.monotonic() + delay + extra, item))
        if isinstance(item, bytes):
            self._held += len(item)


def _attempt(send: Callable[[bytes], int], data: bytes) -> int:
    """Return how much of *data* the other side took."""
    try:
        return send(data)
    except BlockingIOError:
        return 0
    except OSError:
        # It is gone. What it said before is still to be read, and then its end ends the link.
        return len(data)
