"""The last minutes of an engine in this process, for the plots of the health page.

Nothing is sampled for it: statements are counted by the metrics anyway, and probes are remembered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Engine

from sa_railway.health.probe import recent_probes
from sa_railway.metrics.snapshot import Window, window

_PARTS = 30


@dataclass(frozen=True)
class RoundTrip:
    """A probe: how long ago it was, and how long the server took; None is no answer."""

    age: float
    seconds: float | None


def statements(engine: Engine, seconds: float) -> list[Window]:
    """Return the statements of the last *seconds* in equal parts of it, the oldest first."""
    length = seconds / _PARTS
    sums = [Window(0.0), *(window(engine, length * count) for count in range(1, _PARTS + 1))]
    return [
        # a statement may be counted between two of the sums
        Window(
            length,
            successes=max(0, longer.successes - shorter.successes),
            failures=max(0, longer.failures - shorter.failures),
        )
        for shorter, longer in pairwise(sums)
    ][::-1]


def round_trips(engine: Engine, seconds: float) -> list[RoundTrip]:
    """Return the probes of the last *seconds*, the oldest first."""
    now = time.time()
    ages = [(now - probe.time, probe.round_trip) for probe in recent_probes(engine)]
    return [RoundTrip(max(0.0, age), trip) for age, trip in ages if age <= seconds]
