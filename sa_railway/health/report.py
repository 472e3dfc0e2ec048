"""How an engine fares: ``check_health()`` gives a ``HealthReport`` with what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from sa_railway.engine.state import profile_of
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import Probe, ServerFacts, start_probe, start_probe_in_loop
from sa_railway.health.rules import Recommendation, RuleInput, Severity, judge
from sa_railway.metrics import collect
from sa_railway.metrics.counters import Counters, counters_of
from sa_railway.metrics.snapshot import Processes, Window, processes, snapshot, window

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class Status(StrEnum):
    """How bad it is, the worst first."""

    CRITICAL = "critical"
    DEGRADED = "degraded"
    HEALTHY = "healthy"


_STATUS = {
    Severity.CRITICAL: Status.CRITICAL,
    Severity.WARNING: Status.DEGRADED,
    Severity.INFO: Status.HEALTHY,
}


@dataclass(frozen=True)
class HealthReport:
    """The health of one engine in this process, at one moment. It holds no secret, and no SQL.

    Attributes:
        status: how bad it is.
        rule: the name of the rule that decided it; None if no rule was broken.
        recommendations: what was found, the worst first.
        window: what the success rate and the rules are reckoned from.
        pool: None if the pool has no limit and no size.
        server: None if it did not answer, or tells nothing of itself, as all but PostgreSQL.
        round_trip: seconds for a ``SELECT 1``; None if the server did not answer.
        metrics: the counters of this engine since the process began.
        process: the id of this process: every worker has its own pool, window and counters.
        time: when this was, in UTC.
        since: when this process began to count.
        processes: what the pools of all processes have together; None if nothing is counted.
        engines: how many engines of this process are counted together, as they have one name: the
            same URL, and no ``logging_name`` or the same.
    """

    status: Status
    rule: str | None
    recommendations: tuple[Recommendation, ...]
    window: Window
    pool: PoolState | None
    server: ServerFacts | None
    round_trip: float | None
    metrics: Mapping[str, int]
    process: int
    time: datetime
    since: datetime | None = None
    processes: Processes | None = None
    engines: int = 1

    @property
    def success_rate(self) -> float | None:
        """The share of the statements in the window that succeeded; None without statements."""
        return self.window.success_rate

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it; times in seconds."""
        report = asdict(self)
        report["time"] = self.time.isoformat(timespec="seconds")
        report["since"] = self.since and self.since.isoformat(timespec="seconds")
        report["success_rate"] = self.success_rate
        return report


def check_health(engine: Engine | AsyncEngine) -> HealthReport:
    """Look at *engine* and its server, within the profile's ``probe_timeout``.

    The pool is not used, so that it may be exhausted. The thresholds are those of the engine's
    profile. Any thread may call it, and a forked child; it blocks, so within an event loop use
    ``check_health_async()``.

    Returns:
        a report, whatever the server and the pool do.
    """
    sync_engine = counted_sync_engine(engine)
    return build_report(sync_engine, start_probe(sync_engine).wait())


async def check_health_async(engine: Engine | AsyncEngine) -> HealthReport:
    """Do the same without blocking the event loop."""
    sync_engine = counted_sync_engine(engine)
    return build_report(sync_engine, await start_probe_in_loop(sync_engine).wait_async())


def build_report(engine: Engine, answer: Probe) -> HealthReport:
    """Put together what is known of *engine*, given the *answer* of its server."""
    profile = profile_of(engine)
    now, counters = snapshot(engine), counters_of(engine)
    facts = RuleInput(
        profile=profile,
        probe=answer,
        pool=PoolState.of(engine, waiting=int(now.gauges.get("waiting", 0))),
        window=window(engine, profile.health_window),
    )
    found = judge(facts)
    worst = found[0] if found and found[0].severity is not Severity.INFO else None
    return HealthReport(
        status=_STATUS[worst.severity] if worst else Status.HEALTHY,
        rule=worst.rule if worst else None,
        recommendations=tuple(found),
        window=facts.window,
        pool=facts.pool,
        server=answer.server,
        round_trip=answer.round_trip,
        metrics=dict(now.counters),
        process=os.getpid(),
        time=datetime.now(UTC),
        since=_since(counters),
        processes=processes(engine),
        engines=counters.engines if counters else 1,
    )


def _since(counters: Counters | None) -> datetime | None:
    if counters is None:
        return None
    return datetime.now(UTC) - timedelta(seconds=time.monotonic() - counters.began)


def counted_sync_engine(engine: Engine | AsyncEngine) -> Engine:
    """Return the ``Engine`` that *engine* is, or that an ``AsyncEngine`` surrounds.

    What happens to it is counted from now on, if it was not before.
    """
    sync_engine: Engine = getattr(engine, "sync_engine", engine)  # type: ignore[arg-type]
    collect.listen(sync_engine, profile_of(sync_engine))
    return sync_engine
