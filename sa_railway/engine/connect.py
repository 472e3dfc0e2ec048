"""Connect with patience: try again while the server is away, and stop when it stays away.

This surrounds the dialect's ``connect()`` and is not a ``do_connect`` listener: the first listener
that returns a connection ends the list, so one of ours would hide those that come after it, such
as the one that fetches a fresh password for every connect.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name
from sa_railway.engine.waiting import attempt_limit, backoff_delay, is_impatient, sleeper
from sa_railway.exc import DatabaseUnavailableError
from sa_railway.faults import Fault, FaultKind, classify, first_line

__all__ = ["Breaker", "Patience"]

logger = logging.getLogger("sa_railway.engine.connect")


# what a driver reports while the server is away, or still full from those who came back first
_AWAY = {FaultKind.CONNECT_TRANSIENT, FaultKind.DISCONNECT, FaultKind.RESOURCE}


class Patience:
    """The attempts to connect of one engine, and the breaker that ends them.

    Safe from any thread and after a fork. No lock of the pool is held while it waits.
    """

    def __init__(self, profile: Profile, *, is_async: bool) -> None:
        self._profile = profile
        self._sleep = sleeper(is_async=is_async)
        self._breaker = Breaker(profile.breaker_pause)
        self._engine = ""

    def wrap(self, connect: Callable[..., Any], *, has_limit: bool = True) -> Callable[..., Any]:
        """Return *connect* with patience, under the signature that it has.

        *has_limit* says whether a ``timeout`` among its arguments is one for connecting.
        """

        @functools.wraps(connect)
        def patient(*args: Any, **kwargs: Any) -> Any:
            return self._connect(
                lambda left: connect(*args, **(_limited(kwargs, left) if has_limit else kwargs))
            )

        return patient

    def wrap_creator(self, creator: Callable[..., Any]) -> Callable[..., Any]:
        """Return *creator* with patience, and as many arguments as before: the pool counts them."""
        patient = self.wrap(creator)
        if _takes_record(creator):
            return lambda record: patient(record)
        return lambda: patient()

    def listen(self, engine: Engine) -> None:
        """Surround the ``connect()`` of this engine's own dialect, and explain what still fails."""
        self._engine = engine_name(engine)
        dialect: Any = engine.dialect
        # SQLite's is how long a statement waits for another writer
        dialect.connect = self.wrap(dialect.connect, has_limit=dialect.name != "sqlite")
        event.listen(engine, "handle_error", _explain)

    def _connect(self, attempt: Callable[[float], Any]) -> Any:
        if is_impatient.get():
            return attempt(attempt_limit.get())
        probing = self._breaker.enter()
        try:
            return self._try_for(0.0 if probing else self._profile.connect_patience, attempt)
        finally:
            if probing:
                self._breaker.leave()

    def _try_for(self, patience: float, attempt: Callable[[float], Any]) -> Any:
        started = time.monotonic()
        deadline = started + patience
        number = 0
        while True:
            number += 1
            try:
                connection = attempt(deadline - time.monotonic())
            except Exception as error:
                fault = classify(error, kinds=self._profile.fault_kinds)
                delay = self._delay(number, deadline, fault, error)
                if delay is None:
                    _add_note(error, fault, number, time.monotonic() - started)
                    raise
                events.announce(events.ConnectAttemptFailed(self._engine, number, delay, error))
                self._sleep(delay)
            else:
                self._succeeded(number, time.monotonic() - started)
                return connection

    def _delay(self, number: int, deadline: float, fault: Fault, error: Exception) -> float | None:
        """Return how long to wait before the next attempt, or None when there is none to come."""
        if fault.kind not in _AWAY:
            self._breaker.close()  # the server answered, so it is there
            return None
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            pause = self._profile.breaker_pause
            if self._breaker.open(error):
                logger.warning(
                    "%s: the server is away; until it is back, connects fail at once for %g s at a "
                    "time: %s",
                    *(self._engine, pause, first_line(error)),
                )
            events.announce(events.BreakerOpened(self._engine, pause, error))
            return None
        if number == 1:
            logger.info(
                "%s: connecting failed, trying again for %.1f s: %s",
                *(self._engine, remaining, first_line(error)),
            )
        profile = self._profile
        delay = backoff_delay(number, base=profile.backoff_base, cap=profile.backoff_cap)
        return min(delay, remaining)

    def _succeeded(self, attempts: int, seconds: float) -> None:
        if self._breaker.close():
            logger.info("%s: the server can be reached again", self._engine)
            events.announce(events.BreakerClosed(self._engine))
        if attempts > 1:
            logger.info(
                "%s: connected at attempt %d, after %.1f s", self._engine, attempts, seconds
            )
        if events.Connected in events.heard:
            events.announce(events.Connected(self._engine, attempts, seconds))


class Breaker:
    """Lets connects fail at once while the server is known to be away; one probe at a time may try.

    Safe from any thread and after a fork.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._closed_until = 0.0
        self._probing = False

    def enter(self) -> bool:
        """Ask to connect; return whether this is the one probe of an open breaker.

        Raises:
            DatabaseUnavailableError: the breaker is open, and it is not yet time to try, or
                somebody else does.
        """
        if self._pid != os.getpid():
            # in a forked child nobody will ever release what a thread of the parent has taken
            self._reset()
        with self._lock:
            if self._error is None:
                return False
            wait = self._closed_until - time.monotonic()
            if wait <= 0 and not self._probing:
                self._probing = True
                return True
            raise _unavailable(max(wait, 0.0), self._error)

    def open(self, error: BaseException) -> bool:
        """Let connects fail at once for the pause; return whether the breaker had been closed."""
        with self._lock:
            was_closed = self._error is None
            self._error = error
            self._closed_until = time.monotonic() + self._pause
            return was_closed

    def close(self) -> bool:
        """Let everybody connect; return whether the breaker had been open."""
        with self._lock:
            was_open = self._error is not None
            self._error = None
            return was_open

    def leave(self) -> None:
        """Give the probe back, whatever became of it."""
        with self._lock:
            self._probing = False


def _unavailable(retry_after: float, error: BaseException) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"the database could not be reached, and will be tried again in {retry_after:.1f} s; "
        f"the last attempt failed with: {first_line(error)}",
        retry_after=retry_after,
        orig=error,
    )


def _add_note(error: BaseException, fault: Fault, attempts: int, seconds: float) -> None:
    tried = f"{attempts} attempts in {seconds:.1f} s" if attempts > 1 else "1 attempt"
    error.add_note(f"sa_railway: {fault.advice} ({tried})")


@guarded
def _explain(context: ExceptionContext) -> None:
    """Carry the note of the driver's exception over to SQLAlchemy's, which people see."""
    if context.connection is None and context.sqlalchemy_exception is not None:
        for note in getattr(context.original_exception, "__notes__", ()):
            context.sqlalchemy_exception.add_note(note)


def _limited(arguments: dict[str, Any], left: float) -> dict[str, Any]:
    """Return *arguments* with the driver's own limit for an attempt cut to *left* seconds.

    Never below 2: libpq takes a ``connect_timeout`` of 1 for 2, and 0 for no limit at all.
    """
    for name in ("connect_timeout", "timeout"):  # libpq's drivers, asyncpg
        limit = arguments.get(name)
        if isinstance(limit, int | float) and limit > left:
            return {**arguments, name: min(limit, max(2, math.ceil(left)))}
    return arguments


def _takes_record(creator: Callable[..., Any]) -> bool:
    """Return whether *creator* wants the connection record: SQLAlchemy accepts both kinds."""
    try:
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):  # builtins may have no signature
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )
