"""Ask the server, within a deadline, on a connection that is not the pool's.

A probe through the pool waits while the pool is exhausted, and says of a pool what was asked of a
server. So each probe opens a separate connection, closes it, and lets all callers meanwhile and a
moment later share the answer. It runs in a separate thread, because nothing else bounds the
lookup of a name, or a connect to a host with several addresses; a caller waits for it until the
deadline, and not longer. A probe that is still stuck then is not doubled.

An engine of asyncio is asked in the event loop of the caller, where there is one: what connects it,
the application's own functions included, may belong to that loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, NullPool
from sqlalchemy.pool import PoolProxiedConnection

# Not in SQLAlchemy's documentation, as await_only() in sa_railway.engine.waiting.
from sqlalchemy.util import greenlet_spawn

from sa_railway.config.profile import Profile
from sa_railway.engine import process
from sa_railway.engine.native import Lock
from sa_railway.engine.state import profile_of
from sa_railway.engine.waiting import single_attempt, single_attempt_timeout
from sa_railway.engine.watchdog import Patience, limit
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.conditions import CONDITIONS

logger = logging.getLogger("sa_railway.health.probe")

# One a second at most, so this holds the last quarter of an hour or more.
_KEPT = 900

# A role that may not see the sessions of others gets NULL for all but their pids and databases.
_FACTS = """
    SELECT current_setting('server_version'),
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int,
        count(*) FILTER (
            WHERE coalesce(backend_type, 'client backend') = 'client backend'
            AND datid IS NOT NULL AND pid <> pg_backend_pid()),
        count(*) FILTER (
            WHERE state IN ('idle in transaction', 'idle in transaction (aborted)')
            AND clock_timestamp() - state_change > {idle} * interval '1 second')
    FROM pg_stat_activity
"""

_FAILURES = {
    FaultKind.CONNECT_TRANSIENT: "The server cannot be reached.",
    FaultKind.CONNECT_PERMANENT: "The server does not let this application in.",
    FaultKind.DISCONNECT: "The connection to the server was lost.",
}
_FULL = {CONDITIONS[condition].advice for condition in ("53300", "pooler-full")}
_NO_ANSWER = (
    "Look at the database service: whether it runs, lacks CPU or memory, or is being restarted."
)
_NO_CONNECTION = (
    f"{_NO_ANSWER} Look also at what the application itself does to connect, such as to fetch a "
    "password."
)
_NO_THREAD = "Raise the limit of processes and threads of the container, or run fewer of them."


@dataclass(frozen=True)
class ServerFacts:
    """What a PostgreSQL server says of itself.

    Attributes:
        version: such as ``"17.2"``.
        connection_limit: how many there may be, without those that are reserved.
        connections: how many clients are connected, without the one that asked.
        idle_in_transaction: sessions that have been idle in a transaction for longer than the
            profile's ``health_idle_in_transaction``; of other users only if that may be seen.
    """

    version: str
    connection_limit: int
    connections: int
    idle_in_transaction: int


@dataclass(frozen=True)
class Probe:
    """What came of asking the server.

    Attributes:
        failure: why there was no answer; None if there was one. Like the advice, it holds nothing
            that was in the error, and may be shown to any client.
        advice: what to do about it.
        is_full: whether the server, or a pooler before it, has no connection left to give.
        round_trip: seconds for a ``SELECT 1`` on the open connection.
        server: None if it did not answer, or tells nothing of itself, as all but PostgreSQL.
        time: when it was over, in seconds since the epoch.
    """

    failure: str | None = None
    advice: str = ""
    is_full: bool = False
    round_trip: float | None = None
    server: ServerFacts | None = None
    time: float = field(default_factory=time.time)


class PendingProbe:
    """A probe that is under way or over, and until when it is waited for."""

    def __init__(self, timeout: float) -> None:
        self.future: Future[Probe] = Future()
        self.connected_at = float("inf")
        self.deadline = time.monotonic() + timeout
        self._timeout = timeout

    def wait(self) -> Probe:
        """Return what came of it, at its deadline at the latest. Any thread may call it."""
        try:
            return self.future.result(self._left())
        except TimeoutError:
            return self.late()

    async def wait_async(self) -> Probe:
        """Do the same without blocking the event loop."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        patience = Patience(self._left(), loop.time())

        def wake(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the probe
                loop.call_soon_threadsafe(arrived.set)

        self.future.add_done_callback(wake)
        while not self.future.done() and not patience.is_over(loop.time()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), patience.step)
        return self.future.result() if self.future.done() else self.late()

    def late(self) -> Probe:
        """Return what there is to say of it at its deadline."""
        if self.connected_at <= self.deadline:
            return Probe(f"The server did not answer within {self._timeout:g} s.", _NO_ANSWER)
        failure = f"No connection to the server was made within {self._timeout:g} s."
        return Probe(failure, _NO_CONNECTION)

    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


def start_probe(engine: Engine) -> PendingProbe:
    """Ask the server of *engine*, or share the answer of another caller, now or a moment ago.

    Its deadline is the profile's ``probe_timeout``, whatever the server and the pool do. The engine
    may be one of asyncio. Any thread may call it, and a forked child.
    """
    return _prober(engine).ask(engine, None)


def start_probe_in_loop(engine: Engine) -> PendingProbe:
    """Do the same for a caller in an event loop, to be awaited by ``wait_async()``."""
    loop = asyncio.get_running_loop() if engine.dialect.is_async else None
    return _prober(engine).ask(engine, loop)


def recent_probes(engine: Engine) -> list[Probe]:
    """Return the last probes of *engine* in this process, the oldest first."""
    return list(_prober(engine).finished)


class _Prober:
    """The probes of one engine: one at a time, each for all callers."""

    def __init__(self) -> None:
        self.finished: deque[Probe] = deque(maxlen=_KEPT)
        self._lock = Lock()
        self._last: PendingProbe | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None  # an event loop keeps no reference
        self._ended = float("-inf")

    def ask(self, engine: Engine, loop: asyncio.AbstractEventLoop | None) -> PendingProbe:
        profile = profile_of(engine)
        with self._lock:
            last = self._last
            if last is not None and self._counts(last, profile):
                return last
            pending = self._last = PendingProbe(profile.probe_timeout)
            self._loop = loop
        if loop is not None:
            work = self._ask_in_loop(engine, profile, pending)
            self._task = loop.create_task(work, name="sa_railway-probe")
        else:
            self._start_thread(engine, profile, pending)
        return pending

    def _counts(self, last: PendingProbe, profile: Profile) -> bool:
        """Return whether *last* is under way in a loop that runs, or was over a moment ago."""
        if not last.future.done():
            return self._loop is None or self._loop.is_running()
        return time.monotonic() - self._ended < profile.probe_cache

    def _start_thread(self, engine: Engine, profile: Profile, pending: PendingProbe) -> None:
        thread = threading.Thread(
            target=self._ask, args=(engine, profile, pending), name="sa_railway-probe", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the container allows no thread more
            failure = "No thread could be started to ask the server."
            self._finish(pending, Probe(failure, _NO_THREAD))

    def _ask(self, engine: Engine, profile: Profile, pending: PendingProbe) -> None:
        _be_impatient(profile)
        result = pending.late()
        try:
            if engine.dialect.is_async:
                result = asyncio.run(greenlet_spawn(_ask, engine, profile, pending))
            else:
                result = _ask(engine, profile, pending)
        except Exception as error:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError
            result = _failed(error, profile)
        finally:
            is_late = time.monotonic() > pending.deadline
            self._finish(pending, pending.late() if is_late else result)

    async def _ask_in_loop(self, engine: Engine, profile: Profile, pending: PendingProbe) -> None:
        _be_impatient(profile)
        result = pending.late()
        patience = Patience(profile.probe_timeout, time.monotonic())
        work = asyncio.ensure_future(greenlet_spawn(_ask, engine, profile, pending))
        late: Probe | None = None
        try:
            while not (await asyncio.wait([work], timeout=patience.step))[0]:
                if late is None and patience.is_over(time.monotonic()):
                    late = pending.late()
            result = work.result()
        except Exception as error:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError
            result = _failed(error, profile)
        finally:
            work.cancel()
            self._finish(pending, late or result)

    def _finish(self, pending: PendingProbe, result: Probe) -> None:
        self.finished.append(result)
        self._ended = time.monotonic()
        pending.future.set_result(result)


def _be_impatient(profile: Profile) -> None:
    """Connect once; for the thread or the task of a probe."""
    single_attempt.set(True)
    # no caller waits for longer, and each shall be given the cause
    single_attempt_timeout.set(profile.probe_timeout + 1)


def _ask(engine: Engine, profile: Profile, pending: PendingProbe) -> Probe:
    """Open a connection, ask, and close it."""
    # The engine's own way to connect, and nothing else of its pool: no listener shall take this
    # for a connection of the application, or initialise the dialect while a checkout needs it.
    # ``_creator`` is not public; tests/chaos/test_readiness.py fails when it moves.
    pool = NullPool(engine.pool._creator, dialect=engine.dialect)
    proxied = pool.connect()
    pending.connected_at = time.monotonic()
    try:
        with limit(proxied.driver_connection, profile.probe_timeout):
            result = _converse(engine, proxied, profile)
            proxied.rollback()  # a pooler would drop its server with a transaction open
        return result
    finally:
        proxied.invalidate()


def _converse(engine: Engine, proxied: PoolProxiedConnection, profile: Profile) -> Probe:
    _row(proxied, "SELECT 1")  # the first statement may begin a transaction on its way
    started = time.perf_counter()
    _row(proxied, "SELECT 1")
    round_trip = time.perf_counter() - started
    is_postgresql = engine.dialect.name == "postgresql"
    return Probe(round_trip=round_trip, server=_facts(proxied, profile) if is_postgresql else None)


def _facts(proxied: PoolProxiedConnection, profile: Profile) -> ServerFacts | None:
    """Ask the server about itself; None if it is one of those that only speak like PostgreSQL."""
    try:
        row = _row(proxied, _FACTS.format(idle=profile.health_idle_in_transaction))
    except Exception as error:
        if classify(error).connection_lost:
            raise
        return None
    version, *numbers = row
    return ServerFacts(version.split()[0], *numbers)


def _row(proxied: PoolProxiedConnection, sql: str) -> Any:
    cursor = proxied.cursor()
    try:
        cursor.execute(sql)
        return cursor.fetchone()
    finally:
        cursor.close()


def _failed(error: Exception, profile: Profile) -> Probe:
    logger.debug("A probe failed: %s", type(error).__name__)
    fault = profile.classify(error)
    if fault.advice in _FULL:
        return Probe("The server takes no more connections.", fault.advice, is_full=True)
    return Probe(_FAILURES.get(fault.kind, "The server cannot be used."), fault.advice)


_lock = Lock()
# By the dialect, which an engine and its copies with other execution options have in common.
_probers: weakref.WeakKeyDictionary[Any, _Prober] = weakref.WeakKeyDictionary()


def _prober(engine: Engine) -> _Prober:
    process.renew()
    with _lock:
        return _probers.setdefault(engine.dialect, _Prober())


def _forget_parent() -> None:
    """Begin afresh in a forked child: the threads, and a lock that is held, exist in the parent."""
    global _lock, _probers
    _lock, _probers = Lock(), weakref.WeakKeyDictionary()


process.at_fork(_forget_parent)
