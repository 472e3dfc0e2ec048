"""A deadline for a blocking driver call.

No TCP option ends a wait on a peer whose kernel still acknowledges what nobody reads, such as a
frozen proxy. One daemon thread for the process holds the deadlines; when one has passed it shuts
the socket down, and the blocked call returns with the driver's own error for a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

__all__ = ["Deadline", "limit"]

logger = logging.getLogger("sa_railway.engine.watchdog")


class Deadline:
    """Context manager: the socket *descriptor* is shut down when the block takes over *seconds*.

    For one use, in any thread.

    Attributes:
        expired: whether the deadline passed within the block.
    """

    __slots__ = ("_descriptor", "_duplicate", "_seconds", "expired")

    def __init__(self, descriptor: int, seconds: float) -> None:
        self._descriptor = descriptor
        self._seconds = seconds
        self._duplicate: int | None = None
        self.expired = False

    def __enter__(self) -> Deadline:
        _watchdog.wake()  # before there is a duplicate to close, for it fails where threads run out
        # A duplicate keeps the socket itself: were the driver to close the descriptor just as the
        # deadline passes, its number could belong to another connection by then.
        self._duplicate = os.dup(self._descriptor)
        _watchdog.add(time.monotonic() + self._seconds, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _watchdog.changed:
            self.forget()

    def expire(self) -> None:
        """Shut the socket down, unless the block has ended; under the watchdog's lock."""
        if self._duplicate is None:
            return
        self.expired = True
        duplicate, self._duplicate = self._duplicate, None
        with socket.socket(fileno=duplicate) as peer:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer has closed it in this very moment
                logger.debug("The socket was closed before its deadline could end it")

    def forget(self) -> None:
        """Close the duplicate without touching the connection."""
        if self._duplicate is not None:
            os.close(self._duplicate)
            self._duplicate = None


@contextlib.contextmanager
def limit(driver_connection: Any, seconds: float) -> Iterator[Callable[[], bool]]:
    """End what the block waits for after *seconds*, on any driver that can be interrupted.

    psycopg2 and psycopg show their socket. asyncpg has none to show, but its connection can be
    terminated from its event loop, which runs while the block waits. Other drivers have no limit.

    Yields:
        A function that tells whether the limit has ended the block.
    """
    if hasattr(driver_connection, "fileno"):
        with Deadline(driver_connection.fileno(), seconds) as deadline:
            yield lambda: deadline.expired
    elif hasattr(driver_connection, "terminate"):
        expired: list[bool] = []

        def terminate() -> None:
            expired.append(True)
            driver_connection.terminate()

        timer = asyncio.get_running_loop().call_later(seconds, terminate)
        try:
            yield lambda: bool(expired)
        finally:
            timer.cancel()
    else:
        yield lambda: False


class _Watchdog:
    """The heap of deadlines and the thread that waits for the earliest of them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            with self.changed:
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._run, name="sa_railway-watchdog", daemon=True
                    )
                    thread.start()
                    self._thread = thread

    def add(self, at: float, deadline: Deadline) -> None:
        with self.changed:
            heapq.heappush(self._heap, (at, next(self._order), deadline))
            if self._heap[0][2] is deadline:
                self.changed.notify()

    def _run(self) -> None:
        with self.changed:
            while True:
                self.changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                while self._heap and self._heap[0][0] <= time.monotonic():
                    heapq.heappop(self._heap)[2].expire()

    def abandon(self) -> None:
        """Close the duplicates that a forked child has inherited; they are its parent's sockets."""
        for _, _, deadline in self._heap:
            deadline.forget()


_watchdog = _Watchdog()


def _restart_in_child() -> None:
    """Begin anew: the thread and whoever held the lock exist in the parent only."""
    global _watchdog
    inherited, _watchdog = _watchdog, _Watchdog()
    inherited.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_restart_in_child)
