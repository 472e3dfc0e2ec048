"""Which numbers are kept of an engine, in which order, and how the state of its pool follows.

What is in use now is no number by itself: it is what was checked out and has not come back.
That spares the writes, and a count that only grows cannot go astray.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sa_railway.faults import FaultKind

COUNTS = (
    "queries",
    "checkouts",  # those that have begun
    "failed_checkouts",
    "reconnections",
    "rollbacks",
    "pool_resets",
    "stale_connections",
    "retries",
    "replays",
    "breaker_openings",
    "leaks",
)

# queries by the kind of their fault, and commits whose answer was lost by what became of them
FAILURES = {str(kind): f"failed_{kind}" for kind in FaultKind}
OUTCOMES = {outcome: f"commits_{outcome}" for outcome in ("committed", "aborted", "unknown")}

# Seconds. On loopback a checkout takes 10 us and a connect 5 ms; the longest are the deadlines of
# requests and the patience of workers.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
HISTOGRAMS = ("connect", "checkout_wait", "hold")


def bucket_fields(histogram: str) -> list[str]:
    """Return the fields of *histogram*: one for each of ``BOUNDS``, and one for what is longer."""
    return [f"{histogram}_{bound}" for bound in (*BOUNDS, "longer")]


def _fields_of(histogram: str) -> list[str]:
    return [f"{histogram}_sum", *bucket_fields(histogram)]


FIELDS = (
    # of the pools now: the connections that they keep, may have at most, and have open
    *("size", "limit", "open"),
    # connections that were not returned before the end of their process or engine
    "abandoned",
    *(*COUNTS, *FAILURES.values(), *OUTCOMES.values()),
    *itertools.chain.from_iterable(map(_fields_of, HISTOGRAMS)),
)
_INDEX = {name: index for index, name in enumerate(FIELDS)}


def index_of(name: str) -> int:
    """Return the index of the field *name*."""
    return _INDEX[name]


def _range(histogram: str) -> slice:
    names = bucket_fields(histogram)
    return slice(index_of(names[0]), index_of(names[-1]) + 1)


_SIZE, _LIMIT, _OPEN, _ABANDONED = map(index_of, ("size", "limit", "open", "abandoned"))
_CHECKOUTS, _FAILED_CHECKOUTS = map(index_of, ("checkouts", "failed_checkouts"))
_CHECKED_OUT, _RETURNED = map(_range, ("checkout_wait", "hold"))


def gauges(values: Sequence[float]) -> dict[str, float]:
    """Return how the pools are now, given the *values* of all fields in a process that is alive."""
    checked_out = sum(values[_CHECKED_OUT])
    return {
        "size": values[_SIZE],
        "limit": values[_LIMIT],
        "open": values[_OPEN],
        "overflow": max(0.0, values[_OPEN] - values[_SIZE]),
        "checked_out": checked_out - sum(values[_RETURNED]) - values[_ABANDONED],
        "waiting": values[_CHECKOUTS] - values[_FAILED_CHECKOUTS] - checked_out,
    }


def close_open_gauges(values: memoryview[float]) -> None:
    """Close what the end of a process or an engine has left open: all gauges become zero."""
    left = gauges(values)
    values[_SIZE] = values[_LIMIT] = values[_OPEN] = 0.0
    values[_ABANDONED] += left["checked_out"]
    values[_FAILED_CHECKOUTS] += left["waiting"]
