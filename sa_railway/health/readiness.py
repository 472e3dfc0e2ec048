"""Whether a request that needs the database can be served now.

A pool that is exhausted for a moment is a queue, and a process that is taken out of service for it
leaves its load to the next one. A pool to which nothing is returned is another matter: every
checkout that waits for it fails. So an exhausted pool is reported, and becomes a failure when
nothing has come back for as long as a checkout waits.
"""

from __future__ import annotations

import time
import weakref
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine

from sa_railway.engine.state import profile_of
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import Probe
from sa_railway.metrics.snapshot import snapshot


class Readiness(StrEnum):
    """Whether requests can be served, the worst first."""

    UNAVAILABLE = "unavailable"
    SATURATED = "saturated"
    READY = "ready"


def readiness(engine: Engine, probe: Probe) -> tuple[Readiness, str]:
    """Return what *engine* is good for, given what its server has answered, and why.

    Any thread may call it. The pool is looked at, and not used.
    """
    pool = PoolState.of(engine)
    is_saturated = pool is not None and pool.is_saturated
    still = _stalled_for(engine, is_saturated=is_saturated)
    if probe.failure is not None:
        # what the pool has open works on
        is_served = probe.is_full and pool is not None and pool.is_open
        return Readiness.SATURATED if is_served else Readiness.UNAVAILABLE, probe.failure
    if pool is None or not is_saturated:
        return Readiness.READY, ""
    if still < profile_of(engine).pool_timeout:
        return Readiness.SATURATED, f"All {pool.limit:,} connections of the pool are in use."
    return Readiness.UNAVAILABLE, (
        f"All {pool.limit:,} connections of the pool are in use, and none has come back for "
        f"{still:.0f} s."
    )


# By the dialect, which an engine and its copies have in common: how many connections had been
# returned to the pool when it was first seen exhausted, and when that was.
_stalled: weakref.WeakKeyDictionary[Any, tuple[int, float]] = weakref.WeakKeyDictionary()


def _stalled_for(engine: Engine, *, is_saturated: bool) -> float:
    """Return for how many seconds the pool is known to be exhausted without a return.

    Nothing watches it for that; it is known from one call to the next.
    """
    held = snapshot(engine).histograms.get("hold") if is_saturated else None
    if held is None:
        _stalled.pop(engine.dialect, None)
        return 0.0
    now = time.monotonic()
    count, since = _stalled.get(engine.dialect, (-1, now))
    if count != held.count:
        _stalled[engine.dialect] = (held.count, now)
        return 0.0
    return now - since
