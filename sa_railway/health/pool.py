"""What the pool of an engine has left to give, read without taking part in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isinf

from sqlalchemy import Engine, QueuePool

from sa_railway.engine.leaks import Hold, longest_holds
from sa_railway.metrics.counters import counters_of, pool_limit

_MOST_HOLDS = 10


@dataclass(frozen=True)
class PoolState:
    """The connections of one pool, at one moment.

    Attributes:
        size: how many it keeps open.
        checked_out: how many are in use.
        idle: how many are open and free.
        overflow: how many are open beyond the size.
        max_overflow: how many there may be beyond the size; None is no limit.
        waiting: how many checkouts wait for one.
        longest_hold: for how many seconds the one that was checked out first has been in use; None
            if none is, or nothing is counted.
        holds: what has held one for longest; with ``leak_after`` only.
    """

    size: int
    checked_out: int
    idle: int
    overflow: int
    max_overflow: int | None
    waiting: int = 0
    longest_hold: float | None = None
    holds: tuple[Hold, ...] = ()

    @classmethod
    def of(cls, engine: Engine, *, waiting: int = 0) -> PoolState | None:
        """Read the pool of *engine*; None if it is of a kind that has no limit and no size."""
        pool = engine.pool
        if not isinstance(pool, QueuePool):
            return None
        limit = pool_limit(pool)
        return cls(
            size=pool.size(),
            checked_out=pool.checkedout(),
            idle=pool.checkedin(),
            overflow=max(0, pool.overflow()),
            max_overflow=None if isinf(limit) else int(limit) - pool.size(),
            waiting=waiting,
            longest_hold=_longest_hold(engine) if pool.checkedout() else None,
            holds=longest_holds(engine, _MOST_HOLDS),
        )

    @property
    def limit(self) -> int | None:
        """How many connections there may be; None is no limit."""
        return None if self.max_overflow is None else self.size + self.max_overflow

    @property
    def is_saturated(self) -> bool:
        """Whether the next checkout has to wait until a connection is returned."""
        return self.limit is not None and self.checked_out >= self.limit

    @property
    def is_open(self) -> bool:
        """Whether it has any connection at all."""
        return self.checked_out + self.idle > 0


def _longest_hold(engine: Engine) -> float | None:
    counters = counters_of(engine)
    # as a list first, which no checkout can come between
    began = min(list(counters.out.values()), default=None) if counters else None
    return None if began is None else time.monotonic() - began
