"""A deadline for a driver call that waits for its peer.

No TCP option ends a wait on a peer whose kernel still acknowledges what is never read, such as a
frozen proxy. For blocking calls one daemon thread of the process holds the deadlines; when one has
passed it shuts the socket down, and the call returns with the driver's own error for a lost
connection. In an event loop a timer does so. Neither ends a wait whose answer has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from sa_railway.engine import native, process
from sa_railway.engine.driver import (
    Identity,
    descriptor_of,
    identity,
    is_asyncio,
    shut_down,
)

logger = logging.getLogger("sa_railway.engine.watchdog")


class Deadline:
    """Context manager: the socket *descriptor* is shut down when the block takes over *seconds*.

    For one use, in any thread.

    Attributes:
        expired: whether the deadline passed within the block.
    """

    __slots__ = ("_descriptor", "_duplicate", "_identity", "_seconds", "expired")

    def __init__(self, descriptor: int, seconds: float) -> None:
        self._descriptor = descriptor
        self._seconds = seconds
        self._duplicate: int | None = None
        self._identity: Identity | None = None
        self.expired = False

    def __enter__(self) -> Deadline:
        process.renew()
        _watchdog.wake()  # before there is a duplicate to close, for it fails where threads run out
        # A duplicate keeps the socket itself: were the driver to close the descriptor just as the
        # deadline passes, its number could belong to another connection by then. A program that
        # closes descriptors which it did not open, as daemons do, may take the duplicate's number
        # as well, so nothing is done to a descriptor that is not this socket.
        self._identity = identity(self._descriptor)
        self._duplicate = os.dup(self._descriptor)
        _watchdog.add(self, self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        with _watchdog.lock:
            self.forget()

    def expire(self) -> None:
        """Shut the socket down, unless the block has ended; under the watchdog's lock."""
        if self._duplicate is None:
            return
        holder = next(filter(self._holds, (self._duplicate, self._descriptor)), None)
        if holder is not None and _has_arrived(holder):  # the caller is about to read it
            _watchdog.add(self, self._seconds)
            return
        self.expired = True
        if holder is not None:
            shut_down(holder)
        self.forget()

    def forget(self) -> None:
        """Close the duplicate without touching the connection."""
        if self._duplicate is not None and self._holds(self._duplicate):
            os.close(self._duplicate)
        self._duplicate = None

    def _holds(self, descriptor: int) -> bool:
        """Return whether *descriptor* is still one of the socket."""
        return self._identity is not None and identity(descriptor) == self._identity


@contextlib.contextmanager
def limit(driver_connection: Any, seconds: float) -> Iterator[Callable[[], bool]]:
    """End what the block waits for after *seconds*, on any driver that can be interrupted.

    psycopg2 and psycopg show their socket, and asyncpg's connection can be terminated. Other
    drivers have no limit.

    Yields:
        A function that tells whether the limit has ended the block.
    """
    if is_asyncio(driver_connection):
        timer = _Timer(driver_connection, seconds)
        try:
            yield lambda: timer.expired
        finally:
            timer.cancel()
    elif hasattr(driver_connection, "fileno"):
        with Deadline(driver_connection.fileno(), seconds) as deadline:
            yield lambda: deadline.expired
    else:
        yield lambda: False


class Patience:
    """Seconds of waiting in an event loop, in which only those count that the loop had for it.

    A loop that computes, or a process that is throttled, cannot see an answer that is there.
    """

    _STEPS = 10

    def __init__(self, seconds: float, now: float) -> None:
        self.step = seconds / self._STEPS
        self._left = seconds
        self._last = now

    def is_over(self, now: float) -> bool:
        """Return whether the patience is at its end; to be asked after every step."""
        self._left -= min(now - self._last, 2 * self.step)
        self._last = now
        return self._left <= 0


class _Timer:
    """The limit of a wait in the running event loop."""

    def __init__(self, driver_connection: Any, seconds: float) -> None:
        self.expired = False
        self._connection = driver_connection
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(seconds, self._loop.time())
        self._handle = self._loop.call_later(self._patience.step, self._tick)

    def cancel(self) -> None:
        self._handle.cancel()

    def _tick(self) -> None:
        descriptor = descriptor_of(self._connection)
        is_over = self._patience.is_over(self._loop.time())
        if not is_over or (descriptor is not None and _has_arrived(descriptor)):
            self._handle = self._loop.call_later(self._patience.step, self._tick)
            return
        self.expired = True
        if hasattr(self._connection, "terminate"):
            self._connection.terminate()
        elif descriptor is not None:
            shut_down(descriptor)


def _has_arrived(descriptor: int) -> bool:
    """Return whether there is something to read that has not been read."""
    if native.poll is None:
        return False
    poller = native.poll()
    poller.register(descriptor, select.POLLIN)
    return any(found & select.POLLIN for _, found in poller.poll(0))


class _Watchdog:
    """The heap of deadlines and the thread that waits for the earliest of them."""

    def __init__(self) -> None:
        self.lock = native.Lock()
        self._bell = native.Bell()
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = itertools.count()
        self._runs = False

    def wake(self) -> None:
        """Start the thread, unless it runs."""
        if not self._runs:
            with self.lock:
                if not self._runs:
                    native.start_thread(self._run, "sa_railway-watchdog")
                    self._runs = True

    def add(self, deadline: Deadline, seconds: float) -> None:
        with self.lock:
            entry = (time.monotonic() + seconds, next(self._order), deadline)
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                self._bell.ring()

    def _run(self) -> None:
        while True:
            try:
                self._bell.wait(self._expire_due())
            except Exception:
                logger.exception("A deadline could not be kept")

    def _expire_due(self) -> float | None:
        """Expire what is due, and return the seconds until the next."""
        with self.lock:
            while self._heap and self._heap[0][0] <= time.monotonic():
                heapq.heappop(self._heap)[2].expire()
            return self._heap[0][0] - time.monotonic() if self._heap else None

    def abandon(self) -> None:
        """Close the duplicates that a forked child has inherited; they are its parent's sockets."""
        for _, _, deadline in self._heap:
            deadline.forget()


_watchdog = _Watchdog()


def _restart_in_child() -> None:
    """Begin afresh: the thread, and a lock that another one held, exist in the parent only."""
    global _watchdog
    inherited, _watchdog = _watchdog, _Watchdog()
    inherited.abandon()


process.at_fork(_restart_in_child)
