"""How long to wait before something is tried again, and how to wait where an engine lives."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# Not in SQLAlchemy's documentation, but there is no other way to wait in an asyncio engine before
# it has a connection. tests/chaos/test_connect.py fails when it moves.
from sqlalchemy.util import await_only

from sa_railway.engine.stopping import is_stopping

single_attempt: ContextVar[bool] = ContextVar("single_attempt", default=False)
"""Set where the caller has its own rhythm: one attempt, and no breaker."""

single_attempt_timeout: ContextVar[float] = ContextVar(
    "single_attempt_timeout", default=float("inf")
)
"""Seconds that such an attempt may take, for each address of the server; from 2 on."""

_LONGEST_SLEEP = 0.25  # within which a process that is being stopped stops waiting


def backoff_delay(number: int, *, base: float, cap: float) -> float:
    """Return the pause in seconds after failed attempt *number*: full jitter, doubling ceiling.

    Clients that lost their server together come back spread over the whole interval ("Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        number: 1 for the first attempt.
        base: the ceiling after the first attempt, in seconds.
        cap: no pause is longer, in seconds.
    """
    # 2.0 ** 1024 overflows; no cap is reached later than by the 32nd doubling
    ceiling = min(cap, base * 2.0 ** min(number - 1, 32))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads load, guards nothing


def sleep_function(*, is_async: bool) -> Callable[[float], None]:
    """Return the ``sleep()`` of an engine: one of asyncio lets its event loop run meanwhile."""
    return _sleep_in_loop if is_async else _sleep


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # looked up here: gevent and eventlet may replace it at any time


def _sleep_in_loop(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def parts(seconds: float) -> Iterator[float]:
    """Yield what to sleep next until *seconds* have passed or the process is being stopped."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_stopping():
        yield min(left, _LONGEST_SLEEP)
