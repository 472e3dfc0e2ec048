"""Wait until the database answers, and until it holds what the application needs.

The connections are made as the engine makes them, but one attempt at a time: the patience of the
engine and its breaker, meant for work, would hide from the caller what is going on. The decisions
are here, once; the two ways to wait, with and without ``await``, are here and in
``sa_railway.asyncio``.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.pool import NullPool

from sa_railway.config.options import CONNECT_TIMEOUTS
from sa_railway.config.url import find_url
from sa_railway.engine.attempt import limit_of
from sa_railway.engine.state import engine_name, fault_kinds_of
from sa_railway.engine.stopping import is_stopping, watch
from sa_railway.engine.waiting import backoff_delay, single_attempt
from sa_railway.engine.watchdog import limit
from sa_railway.exc import ConfigurationError, NotReadyError
from sa_railway.faults import Fault, FaultKind, classify, first_line
from sa_railway.plugin import create_engine
from sa_railway.recovery.requirements import SchemaRequirements

logger = logging.getLogger("sa_railway.recovery.wait")

Progress = Callable[[str], object]

_DEFAULT_LIMIT = 10.0  # seconds for an answer, and for connecting if the engine has no limit
_BACKOFF_BASE = 0.1
_BACKOFF_CAP = 1.0  # a server that is back is found within this time


def wait_for_database(
    target: str | URL | Engine | None = None,
    *,
    timeout: float = 120.0,
    tables: Sequence[str] = (),
    revision: str | None = None,
    alembic_config: str = "alembic.ini",
    progress: Progress | None = None,
) -> None:
    """Return as soon as the database answers, and holds what is asked for.

    Waited for is what passes by itself: a refused or lost connection, a name that does not resolve
    yet, a server that is starting, stopping or full. A wrong password, a missing database or a bad
    certificate does not, and is raised at once. A process that is being stopped by SIGTERM, and
    handles it, waits no longer. May be called from any thread, any number of times.

    Args:
        target: a URL, or an Engine, which connects as it would for any other work; None looks for
            a URL in the environment as ``database_url()`` does. A URL with a driver for asyncio is
            reached by another one.
        timeout: no attempt begins later than after so many seconds. One that is under way has the
            whole of the engine's limit for connecting, or 10 seconds if the engine has none.
        tables: names of tables or views that must be there, with their schema if it is not in the
            search path: ``["orders", "billing.invoice"]``.
        revision: the Alembic revision that the database must have reached: an id in full, or
            ``"head"`` for the newest of the migrations that *alembic_config* leads to.
        alembic_config: path of an ``alembic.ini``; read for ``"head"`` only, which needs Alembic.
        progress: called with a line for people whenever there is something new to say. None prints
            it on standard error if that is a terminal, and logs it otherwise.

    Raises:
        ConfigurationError: an argument cannot be used.
        NotReadyError: the database answers, but a table or the revision has not come in time.
        Exception: that of the last attempt to connect, with a note on how long it was waited.
    """
    requirements = SchemaRequirements(tables, revision, alembic_config)
    with _engine_for(target) as engine:
        wait = Wait(engine, timeout, requirements, progress)
        while True:
            try:
                with wait.attempt(), engine.connect() as connection:
                    missing = wait.look(connection)
            except Exception as error:
                delay = wait.delay_after(error)
                if delay is None:
                    raise
            else:
                if not missing:
                    wait.end()
                    return
                delay = wait.delay_without(missing)
            time.sleep(delay)


@contextmanager
def _engine_for(target: str | URL | Engine | None) -> Iterator[Engine]:
    """Yield *target*, or a new engine, which is disposed of in the end."""
    if isinstance(target, Engine):
        yield target
        return
    if target is not None and not isinstance(target, str | URL):
        raise ConfigurationError(
            f"target is of type {type(target).__name__}; allowed: a URL or an Engine; for an "
            "AsyncEngine, sa_railway.asyncio.wait_for_database()"
        )
    url = find_url(target)
    if url.get_dialect().is_async:
        url = url.set(drivername=url.get_backend_name())
    engine = create_engine(url, profile="script", poolclass=NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


class Wait:
    """One wait: its deadline, what is asked of the database, and what has been said so far."""

    def __init__(
        self,
        engine: Engine,
        timeout: float,
        requirements: SchemaRequirements,
        progress: Progress | None,
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ConfigurationError(f"timeout is {timeout!r}; allowed: more than 0 seconds")
        _attach(engine)
        watch()
        self._name = engine_name(engine)
        self._kinds = fault_kinds_of(engine)
        self._timeout = timeout
        self._requirements = requirements
        self._say = progress or _default_progress()
        self._said: object = None
        self._started = time.monotonic()
        self._attempts = 0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let the engine connect within the block by a single attempt, without its breaker."""
        self._attempts += 1
        with ExitStack() as stack:
            stack.callback(single_attempt.reset, single_attempt.set(True))
            stack.callback(_current.reset, _current.set(_Attempt(stack)))
            yield

    def look(self, connection: Connection) -> list[str]:
        """Ask the server for a sign of life; return what is missing."""
        attempt = _current.get()
        if attempt is not None:
            attempt.guard(connection.connection.driver_connection)
        connection.execute(text("SELECT 1"))  # a pooler may have answered the connect by itself
        return self._requirements.missing(connection)

    def end(self) -> None:
        """Say that it is over, if anything has been said."""
        if self._said is not None:
            self._say(f"{self._name} is ready after {self._seconds():.1f} s")

    def delay_after(self, error: Exception) -> float | None:
        """Return the pause in seconds before the next attempt; None if *error* ends the wait."""
        fault = classify(error, kinds=self._kinds)
        if fault.kind is FaultKind.CONNECT_PERMANENT:
            error.add_note(f"sa_railway: {fault.advice}")
        if not fault.server_unavailable:
            return None
        delay = self._delay()
        if delay is None:
            attempts = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
            error.add_note(
                f"sa_railway: waited {self._seconds():.1f} s, with {attempts}: {fault.advice}"
            )
        else:
            self._report(fault, first_line(error))
        return delay

    def delay_without(self, missing: list[str]) -> float:
        """Return the pause in seconds before the next look, or raise ``NotReadyError``."""
        delay = self._delay()
        if delay is None:
            raise NotReadyError(
                f"{self._name} answers, but after {self._seconds():.1f} s it still lacks: "
                f"{', '.join(missing)}",
                missing=tuple(missing),
            )
        self._report(tuple(missing), f"it lacks: {', '.join(missing)}")
        return delay

    def _delay(self) -> float | None:
        left = self._timeout - self._seconds()
        if left <= 0 or is_stopping():
            return None
        return min(left, backoff_delay(self._attempts, base=_BACKOFF_BASE, cap=_BACKOFF_CAP))

    def _report(self, state: Fault | tuple[str, ...], line: str) -> None:
        """Say *line* if *state* is not what was said before."""
        if state != self._said:
            self._said = state
            left = max(self._timeout - self._seconds(), 0)
            self._say(f"waiting for {self._name}, {left:.0f} s more at most: {line}")

    def _seconds(self) -> float:
        return time.monotonic() - self._started


class _Attempt:
    """One attempt: how long the server may take for each answer, until *stack* is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self._seconds = _DEFAULT_LIMIT
        self._stack = stack
        self._guarded: object = None

    def limit(self, arguments: dict[str, Any], name: str) -> dict[str, Any]:
        """Return *arguments* with a limit for connecting: their own, if they have one."""
        given = limit_of(arguments, name)
        if given is None:
            return {**arguments, name: math.ceil(self._seconds)}
        if given < math.inf:
            self._seconds = max(self._seconds, given)
        return arguments

    def guard(self, driver_connection: object) -> None:
        """End what waits on the connection when the time is over; once for each connection."""
        if driver_connection is not self._guarded:
            self._guarded = driver_connection
            self._stack.enter_context(limit(driver_connection, self._seconds))


_current: ContextVar[_Attempt | None] = ContextVar("attempt to connect", default=None)


def _attach(engine: Engine) -> None:
    """Let the connects of *engine* end in time, if they belong to a wait; once for each dialect.

    The dialect's ``connect()`` is surrounded, because a listener would be added to a list that
    other threads may be on their way through. It is never taken away, and what the application
    listens to with ``do_connect``, now or later, comes before it.
    """
    dialect: Any = engine.dialect
    connect = dialect.connect
    if getattr(connect, "knows_waits", False):
        return
    name = CONNECT_TIMEOUTS.get(dialect.driver)

    @functools.wraps(connect)
    def connect_in_time(*args: Any, **kwargs: Any) -> Any:
        attempt = _current.get()
        if attempt is None:
            return connect(*args, **kwargs)
        connection = connect(*args, **(attempt.limit(kwargs, name) if name else kwargs))
        # now, because SQLAlchemy asks the server for its version before any caller gets it
        attempt.guard(dialect.get_driver_connection(connection))
        return connection

    connect_in_time.knows_waits = True  # type: ignore[attr-defined]
    dialect.connect = connect_in_time


def _default_progress() -> Progress:
    if sys.stderr.isatty():
        return lambda line: print(line, file=sys.stderr, flush=True)
    return logger.info
