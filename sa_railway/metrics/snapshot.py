"""The numbers of an engine in this process, from the moment that they are to be counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isinf
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from sa_railway.metrics import definitions
from sa_railway.metrics.counters import Counters, counters_of, read_all

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True)
class Histogram:
    """How long something took.

    Attributes:
        count: how often it happened.
        sum: how long all of these took together, in seconds.
        buckets: how many took at most so many seconds, and longer than the bucket before.
    """

    count: int = 0
    sum: float = 0.0
    buckets: Mapping[float, int] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """How long it took on average; None if it has not happened."""
        return self.sum / self.count if self.count else None


@dataclass(frozen=True)
class Snapshot:
    """The numbers of one engine in this process since it began.

    Attributes:
        counters: what has happened, and how often.
        failures: the failed queries by the kind of their fault.
        outcomes: the resolved commits by what became of them.
        gauges: how the pool is now; a ``limit`` of infinity is none.
        histograms: how long connecting, waiting for a checkout, and holding a connection took.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """What has happened lately to one engine in this process.

    Attributes:
        seconds: how long lately is.
        successes: statements that the server has answered.
        failures: statements and checkouts that failed. A violated constraint is an answer.
        reconnections: connections that were made in place of lost ones.
        rollbacks: transactions that had to be rolled back.
    """

    seconds: float
    successes: int = 0
    failures: int = 0
    reconnections: int = 0
    rollbacks: int = 0

    @property
    def success_rate(self) -> float | None:
        """The share of the statements that succeeded; None without any."""
        total = self.successes + self.failures
        return self.successes / total if total else None


@dataclass(frozen=True)
class Processes:
    """The pools of an engine in all processes that share their numbers, at one moment.

    Attributes:
        count: how many processes there are.
        open: connections that are open.
        checked_out: connections that are in use.
        waiting: checkouts that wait for one.
        limit: how many connections there may be; None is no limit.
    """

    count: int
    open: int
    checked_out: int
    waiting: int
    limit: int | None


def processes(engine: Engine | AsyncEngine) -> Processes | None:
    """Return the sums of the processes that are alive; without the plugin, None.

    Engines of the same name are summed up together, as they share their numbers.
    """
    found = _counters(engine)
    if found is None:
        return None
    pools = [
        definitions.gauges(block.values)
        for block in read_all()
        if block.is_alive and block.name == found.label
    ]
    limit = sum(pool["limit"] for pool in pools)
    return Processes(
        count=len(pools),
        limit=None if isinf(limit) else int(limit),
        **{n: int(sum(pool[n] for pool in pools)) for n in ("open", "checked_out", "waiting")},
    )


def snapshot(engine: Engine | AsyncEngine) -> Snapshot:
    """Return the numbers of *engine* in this process; without the plugin, none.

    Engines of the same name share theirs. Any thread may call it; a forked child begins at zero.
    """
    found = _counters(engine)
    if found is None:
        return Snapshot()
    now = found.values.tolist()
    since = {
        name: value - before
        for name, value, before in zip(definitions.FIELDS, now, found.baseline, strict=True)
    }
    failures = {kind: int(since[name]) for kind, name in definitions.FAILURES.items()}
    outcomes = {outcome: int(since[name]) for outcome, name in definitions.OUTCOMES.items()}
    sums = {"failed_queries": sum(failures.values()), "commits_resolved": sum(outcomes.values())}
    return Snapshot(
        counters={name: int(since[name]) for name in definitions.COUNTS} | sums,
        failures=failures,
        outcomes=outcomes,
        gauges={
            name: value if isinf(value) else int(value)
            for name, value in definitions.gauges(now).items()
        },
        histograms={name: _histogram(name, since) for name in definitions.HISTOGRAMS},
    )


def window(engine: Engine | AsyncEngine, seconds: float) -> Window:
    """Return what has happened to *engine* in this process within the last *seconds*.

    It is exact to a hundredth of the profile's ``health_window``, and knows twice that time.
    """
    found = _counters(engine)
    return Window(seconds, *found.window(seconds)) if found is not None else Window(seconds)


def _counters(engine: Engine | AsyncEngine) -> Counters | None:
    return counters_of(getattr(engine, "sync_engine", engine))  # type: ignore[arg-type]


def _histogram(name: str, values: Mapping[str, float]) -> Histogram:
    counts = [int(values[bucket]) for bucket in definitions.bucket_fields(name)]
    buckets = dict(zip((*definitions.BOUNDS, float("inf")), counts, strict=True))
    return Histogram(sum(counts), values[f"{name}_sum"], buckets)
