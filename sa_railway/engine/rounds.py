"""A thread that looks at engines again and again, and ends when there is none left."""

from __future__ import annotations

import weakref
from typing import Protocol

from sa_railway.engine import native, process
from sa_railway.engine.hooks import never_raises


class Watched(Protocol):
    """What is looked at, for one engine.

    Attributes:
        period: it is to be looked at every so many seconds at least.
    """

    period: float

    def look(self) -> None:
        """Look at it."""

    def forget_parent(self) -> None:
        """Begin afresh in a forked child."""


class _Rounds:
    """One daemon thread for all engines of the process, started at the first use of one of them."""

    def __init__(self) -> None:
        self.is_asleep = True
        self._lock = native.Lock()
        self._bell = native.Bell()
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        process.at_fork(self._forget_parent)

    def add(self, watched: Watched) -> None:
        """Look at *watched* as long as it lives."""
        with self._lock:
            self._watched.add(watched)
            self._bell.ring()  # it may be in more of a hurry than the others

    @never_raises
    def wake(self) -> None:
        """Start the thread, unless it runs."""
        if self.is_asleep:
            with self._lock:
                if self.is_asleep:
                    native.start_thread(self._run, "sa_railway-rounds")
                    self.is_asleep = False  # now that it runs: the next one tries again otherwise

    def _run(self) -> None:
        while True:
            with self._lock:
                all_watched = list(self._watched)
                if not all_watched:
                    self.is_asleep = True
                    return
            for watched in all_watched:
                _look(watched)
            shortest = min(watched.period for watched in all_watched)
            del watched, all_watched  # an engine that is gone must not live on in a sleeping thread
            self._bell.wait(shortest)

    def _forget_parent(self) -> None:
        """Begin afresh in a forked child: the thread exists in the parent only."""
        self._lock = native.Lock()
        self._bell = native.Bell()
        self.is_asleep = True
        for watched in self._watched:
            watched.forget_parent()


rounds = _Rounds()
"""For all behaviours. Deadlines have a thread to themselves: what is done here may take a while."""


@never_raises
def _look(watched: Watched) -> None:
    watched.look()
