"""The numbers that are kept of every engine: which there are, and what they have been a while ago.

A number is added to in place and without a lock: ``counters.values[QUERIES] += 1``. CPython changes
threads at calls and where a loop begins again; there is neither between the reading and the
writing, so no count is lost. Engines that share a name share their numbers.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

from sqlalchemy import Engine, Pool, QueuePool

from sa_railway.engine import process
from sa_railway.engine.state import engine_name
from sa_railway.metrics.definitions import FAILURES, FIELDS, close_open_gauges, index_of
from sa_railway.metrics.shared_memory import Block, SharedNumbers

_SIZE, _LIMIT = map(index_of, ("size", "limit"))
_QUERIES, _FAILED_CHECKOUTS = map(index_of, ("queries", "failed_checkouts"))
_RECONNECTIONS, _ROLLBACKS = map(index_of, ("reconnections", "rollbacks"))
_FAILED_QUERIES = [index_of(name) for name in FAILURES.values()]

# of the window's numbers that can be told apart, and kept for so much longer than the window asks
_RESOLUTION = 100


class Totals(NamedTuple):
    """What the health of an engine is judged by, since some beginning."""

    successes: int
    failures: int
    reconnections: int
    rollbacks: int

    def since(self, earlier: Totals) -> Totals:
        """Return what has been added after *earlier*."""
        return Totals(*(now - then for now, then in zip(self, earlier, strict=True)))


class Counters:
    """The numbers of the engines of one name in this process.

    Attributes:
        name: what ``engine_name()`` says; events carry it.
        label: what the metrics show: short, and without host, user and password.
        values: by the index of a field. They may go on from what a dead process has counted.
        baseline: the values when this process began to count.
        out: the connections that are checked out, and since when; on the clock of
            ``time.monotonic()``, as all times here.
        began: when this process began to count. A forked child drops connections that were opened
            before.
        last: when a connection was last checked out or returned, or something failed.
        next_sample: when ``sample()`` is due.
    """

    __slots__ = (
        "_engines",
        "_interval",
        "_samples",
        "baseline",
        "began",
        "label",
        "last",
        "name",
        "next_sample",
        "out",
        "values",
    )

    def __init__(self, name: str, label: str) -> None:
        self.name = name
        self.label = label
        self._interval = float("inf")
        self.out: dict[int, float] = {}  # since when, by the id() of the connection
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.begin()

    def begin(self) -> None:
        """Begin to count, in a new process."""
        self.values = _numbers().claim(self.label)
        self.baseline = self.values.tolist()
        self.began = self.last = time.monotonic()
        self.out.clear()
        self.next_sample = 0.0
        self._samples = deque([(self.last, self.totals())], maxlen=2 * _RESOLUTION)
        self._sum_up_sizes()

    def add(self, engine: Engine, window: float) -> None:
        """Count for *engine*, and remember totals for the last *window* seconds."""
        self._engines.add(engine)
        weakref.finalize(engine, self._sum_up_sizes).atexit = False
        self._interval = min(self._interval, window / _RESOLUTION)
        self._sum_up_sizes()

    @property
    def engines(self) -> int:
        """How many engines of this process have these numbers in common."""
        return len(self._engines)

    def _sum_up_sizes(self) -> None:
        pools = [engine.pool for engine in self._engines]
        self.values[_SIZE] = sum(p.size() for p in pools if isinstance(p, QueuePool))
        self.values[_LIMIT] = sum(map(pool_limit, pools))
        if not pools:
            close_open_gauges(self.values)  # no connection outlives its engine

    def totals(self) -> Totals:
        """Return the totals of now."""
        values = self.values
        failed = int(sum(values[index] for index in _FAILED_QUERIES))
        return Totals(
            successes=int(values[_QUERIES]) - failed,
            failures=int(values[_FAILED_CHECKOUTS]) + failed,
            reconnections=int(values[_RECONNECTIONS]),
            rollbacks=int(values[_ROLLBACKS]),
        )

    def sample(self, now: float) -> None:
        """Remember the totals, to be called before a checkout that begins *now* is counted."""
        # Since the last checkin nothing has happened, unless a connection is out: what is done with
        # it is not counted here.
        self._samples.append((now if self.out else self.last, self.totals()))
        self.next_sample = now + self._interval

    def window(self, seconds: float) -> Totals:
        """Return what has been counted in the last *seconds*, give or take a hundredth.

        Nothing is known before the process began, nor from before twice the window of the profile.
        """
        now = time.monotonic()
        if now >= self.next_sample:
            self.sample(now)
        samples = self._samples.copy()
        before = samples[0][1]
        for at, totals in samples:
            if at > now - seconds:
                break
            before = totals
        return self.totals().since(before)


def pool_limit(pool: Pool) -> float:
    """Return how many connections *pool* may have open; infinity is no limit."""
    if not isinstance(pool, QueuePool):
        return float("inf")
    # not public; tests/unit/test_probe.py fails when it moves
    max_overflow = pool._max_overflow
    return pool.size() + max_overflow if max_overflow >= 0 else float("inf")


_lock = threading.Lock()
_shared: SharedNumbers | None = None
_by_name: dict[str, Counters] = {}
_by_dialect: weakref.WeakKeyDictionary[Any, Counters] = weakref.WeakKeyDictionary()


def _numbers() -> SharedNumbers:
    """Return the memory, made at the first call, which must be one at a time."""
    global _shared
    if _shared is None:
        _shared = SharedNumbers(FIELDS, close_open_gauges)
    return _shared


def share() -> None:
    """Make the memory for the numbers now, for all processes that this one is going to fork."""
    with _lock:
        _numbers()


def read_all() -> Iterator[Block]:
    """Yield the numbers of every process that shares them; see ``SharedNumbers``."""
    with _lock:
        numbers = _numbers()
    return numbers.read()


def counters_for(engine: Engine) -> Counters:
    """Return the counters for a new *engine*: those of its name, or new ones."""
    name = engine_name(engine)
    with _lock:
        if name not in _by_name:
            _by_name[name] = Counters(name, _new_label(engine))
        # an engine and its copies with other execution options have the dialect in common
        return _by_dialect.setdefault(engine.dialect, _by_name[name])


def counters_named(name: str) -> Counters | None:
    """Return the counters of the engines that events call *name*."""
    return _by_name.get(name)


def counters_of(engine: Engine) -> Counters | None:
    """Return the counters of *engine*; None if it is without the plugin."""
    return _by_dialect.get(engine.dialect)


def _new_label(engine: Engine) -> str:
    """Return the engine's ``logging_name``, or the name of its database, told from all others."""
    database = PurePath(engine.url.database or engine.dialect.name).name
    label = engine.logging_name or database or engine.dialect.name
    taken = {counters.label for counters in _by_name.values()}
    numbered = (f"{label}-{number}" for number in range(2, len(taken) + 3))
    return label if label not in taken else next(n for n in numbered if n not in taken)


def _begin_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    if _shared is not None:
        _shared.forget_parent()
    for counters in _by_name.values():
        counters.begin()


process.at_fork(_begin_in_child)
