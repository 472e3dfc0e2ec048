"""Connect with patience: try again while the server is away, and stop when it stays away.

Patience bounds whether another attempt begins. An attempt has the whole of its ``connect_timeout``.
It surrounds the pool's creator, so every attempt asks the listeners to ``do_connect`` again, and a
creator of the application's: for a fresh token, another host, a password that was changed.

Such a function may choose among servers, and the breaker cannot know which one is meant. There an
open breaker refuses nothing and ends the patience: each connect is one attempt, as SQLAlchemy's is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.attempt import came_from_driver
from sa_railway.engine.breaker import Breaker
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.state import engine_name
from sa_railway.engine.stopping import is_stopping, watch
from sa_railway.engine.waiting import (
    backoff_delay,
    parts,
    running_loop,
    single_attempt,
    sleep_function,
)
from sa_railway.exc import DatabaseUnavailableError
from sa_railway.faults import Fault, first_line
from sa_railway.faults.origin import is_driver_error

logger = logging.getLogger("sa_railway.engine.connect")


class Patience:
    """The attempts to connect of one engine, and the breaker that ends them.

    An engine whose listeners or creator may choose another server is not refused by the breaker.

    Safe from any thread and after a fork. No lock of the pool is held while it waits.
    """

    def __init__(self, profile: Profile, *, is_async: bool, has_creator: bool = False) -> None:
        """Read *profile*; *has_creator* says whether the application connects by itself."""
        self._profile = profile
        self._has_creator = has_creator
        self._dialect: Any = None
        self._is_async = is_async
        self._is_asyncpg = False
        self._sleep = sleep_function(is_async=is_async)
        self._breaker = Breaker(
            profile.breaker_pause, probe_limit=profile.connect_timeout + profile.breaker_pause
        )
        self._engine = ""
        self._driver_errors: tuple[type[Exception], ...] = ()

    def listen(self, engine: Engine) -> None:
        """Surround the way in which *engine* makes its connections, and explain what fails."""
        self._engine = engine_name(engine)
        self._is_asyncpg = engine.dialect.driver == "asyncpg"
        self._dialect = engine.dialect
        # those of listeners and creators that connect by themselves, too
        dbapi_error = getattr(engine.dialect.loaded_dbapi, "Error", None)
        self._driver_errors = (dbapi_error,) if dbapi_error else ()
        # Private attributes, because what is surrounded must include SQLAlchemy's own function that
        # asks the listeners, which is no argument of create_engine(). Pools that replace this one
        # take it over. tests/chaos/test_connect.py fails when they move.
        pool: Any = engine.pool
        pool._creator = self.wrap(pool._invoke_creator)
        event.listen(engine, "handle_error", _explain)
        watch()

    def wrap(self, creator: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return *creator*, which gets the record of the pool, with patience."""

        # SQLAlchemy knows a function that may be given the record by this name and default
        def patient(connection_record: Any = None) -> Any:
            return self._connect(lambda: creator(connection_record))

        return patient

    def _connect(self, attempt: Callable[[], Any]) -> Any:
        # in an event loop, a wait of a blocking engine would stop all of its tasks
        if single_attempt.get() or (not self._is_async and running_loop() is not None):
            return attempt()
        watch()  # again: a server may have set its handler since
        this_call = object()
        try:
            patience = self._patience_of(this_call)
            return self._once(attempt) if patience is None else self._try_for(patience, attempt)
        finally:
            self._breaker.leave(this_call)

    def _patience_of(self, call: object) -> float | None:
        """Return how long *call* may try again; None for one attempt past an open breaker."""
        try:
            is_probe = self._breaker.enter(call)
        except DatabaseUnavailableError:
            if not self._may_choose():
                raise
            return None
        return 0.0 if is_probe else self._profile.connect_patience

    def _may_choose(self) -> bool:
        """Return whether a function of the application may connect to one server or another."""
        # asked each time, because listeners may be added later
        return self._has_creator or bool(self._dialect and self._dialect.dispatch.do_connect)

    def _once(self, attempt: Callable[[], Any]) -> Any:
        started = time.monotonic()
        connection = attempt()
        self._succeeded(1, time.monotonic() - started)
        return connection

    def _try_for(self, patience: float, attempt: Callable[[], Any]) -> Any:
        started = time.monotonic()
        deadline = started + patience
        number = 0
        while True:
            number += 1
            try:
                connection = attempt()
            except Exception as error:
                if not self._is_of_connect(error):
                    raise
                fault = self._profile.classify(error)
                delay = self._delay(number, deadline, fault, error)
                if delay is None:
                    _add_note(error, fault, number, time.monotonic() - started)
                    raise
                events.publish(events.ConnectAttemptFailed(self._engine, number, delay, error))
                for part in parts(delay):
                    self._sleep(part)
            else:
                self._succeeded(number, time.monotonic() - started)
                return connection

    def _is_of_connect(self, error: Exception) -> bool:
        """Return whether *error* says something of the server.

        Another one is of the application's own function, such as a listener or a creator that asks
        a service for a token. asyncpg calls such functions, too, so what has come through it may
        be theirs.
        """
        if isinstance(error, self._driver_errors) or is_driver_error(error):
            return True
        return not self._is_asyncpg and came_from_driver(error)

    def _delay(self, number: int, deadline: float, fault: Fault, error: Exception) -> float | None:
        """Return how long to wait before the next attempt, or None when there is none to come."""
        if not fault.server_unavailable:
            self._breaker.close()  # the server answered, so it is there
            return None
        if is_stopping():
            return None
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            pause = self._profile.breaker_pause
            if self._breaker.open(error):
                logger.warning(
                    "%s: the server is away; until it is back, connects %s for %g s at a time: %s",
                    self._engine,
                    "are one attempt each" if self._may_choose() else "fail at once",
                    *(pause, first_line(error)),
                )
            events.publish(events.BreakerOpened(self._engine, pause, error))
            return None
        if number == 1:
            logger.warning(
                "%s: connecting failed, trying again for %.1f s: %s",
                *(self._engine, remaining, first_line(error)),
            )
        profile = self._profile
        delay = backoff_delay(number, base=profile.backoff_base, cap=profile.backoff_cap)
        return min(delay, remaining)

    def _succeeded(self, attempts: int, seconds: float) -> None:
        if self._breaker.close():
            logger.info("%s: the server can be reached again", self._engine)
            events.publish(events.BreakerClosed(self._engine))
        if attempts > 1:
            logger.info(
                "%s: connected at attempt %d, after %.1f s", self._engine, attempts, seconds
            )
        if events.Connected in events.subscribed_types:
            events.publish(events.Connected(self._engine, attempts, seconds))


def _add_note(error: BaseException, fault: Fault, attempts: int, seconds: float) -> None:
    tried = f"{attempts} attempts in {seconds:.1f} s" if attempts > 1 else "1 attempt"
    error.add_note(f"sa_railway: {fault.advice} ({tried})")


@never_raises
def _explain(context: ExceptionContext) -> None:
    """Carry the note of the driver's exception over to SQLAlchemy's, which people see."""
    if context.connection is None and context.sqlalchemy_exception is not None:
        for note in getattr(context.original_exception, "__notes__", ()):
            context.sqlalchemy_exception.add_note(note)
