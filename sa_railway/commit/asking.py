"""Ask a server what became of a COMMIT, on new connections, until it says so or time is up."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from sqlalchemy import Engine
from sqlalchemy.pool import PoolProxiedConnection

# Not in SQLAlchemy's documentation, but the only way to bound the time of what an asyncio engine
# does.
from sqlalchemy.util import await_only, greenlet_spawn

from sa_railway.commit.decision import Outcome, Step, Ticket, decide
from sa_railway.commit.harmless import FUNCTIONS
from sa_railway.commit.marker import Marker, MarkerTable
from sa_railway.commit.status import Inquiry
from sa_railway.engine.waiting import (
    backoff_delay,
    single_attempt,
    single_attempt_timeout,
    sleep_function,
)
from sa_railway.engine.watchdog import limit
from sa_railway.faults import FaultKind, classify, first_line

logger = logging.getLogger("sa_railway.commit")

# Seconds for an answer about one transaction, from a server that is there.
_ANSWER_TIMEOUT = 5.0

# Seconds that are enough for four addresses, each with libpq's shortest limit of two seconds.
_ROOMY = 10.0
_ADDRESSES = 4

# Whether a function with a name that is thought to be harmless may be the application's, and write:
# PostgreSQL chooses by the types of the arguments, log(text) before its own log(numeric).
_NAMESAKES = f"""SELECT EXISTS (SELECT FROM pg_catalog.pg_proc
    WHERE provolatile = 'v' AND pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
    AND proname = ANY ('{{{",".join(sorted(FUNCTIONS))}}}'))::text"""  # noqa: S608 - of our own words

# Attempts before a backend is ended that is still at work; most finish their COMMIT in no time.
_POLITE = 4


class Asker:
    """Asks the server of one engine. Safe from any thread."""

    def __init__(self, engine: Engine, inquiry: Inquiry, markers: MarkerTable) -> None:
        self._engine = engine
        self._is_async = engine.dialect.is_async
        self._inquiry = inquiry
        self._markers = markers
        self._sleep = sleep_function(is_async=engine.dialect.is_async)

    def resolve(self, proof: Ticket | Marker | None, deadline: float) -> Outcome:
        """Ask until there is an answer or the deadline has passed.

        Args:
            proof: what the transaction is known by; None for one that has only read, as far as the
                functions that it has called are those of the server that have these names.
            deadline: by the monotonic clock.
        """
        deadline = min(deadline, time.monotonic() + threading.TIMEOUT_MAX)
        for number in itertools.count(1):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            ask = functools.partial(self._ask, proof, deadline, is_patient=number < _POLITE)
            try:
                outcome = self._within(remaining, ask)
            except Exception as error:  # noqa: BLE001 - asyncpg raises OSError and TimeoutError
                fault = classify(error)
                is_full = fault.kind is FaultKind.POOL_EXHAUSTED
                if not (fault.transient or fault.server_unavailable or is_full):
                    logger.warning(
                        "%s: the outcome of a COMMIT cannot be asked for: %s",
                        *(self._inquiry.engine_name, first_line(error)),
                    )
                    break
                outcome = None
            if outcome is not None:
                return outcome
            delay = backoff_delay(number, base=0.04, cap=1.0)
            self._sleep(max(0.0, min(delay, deadline - time.monotonic())))
        return Outcome.UNKNOWN

    def _ask(
        self, proof: Ticket | Marker | None, deadline: float, *, is_patient: bool
    ) -> Outcome | None:
        """Ask the server on a new connection; None if it cannot say yet."""
        # a pool beside the engine's, which may be exhausted by those that wait for an outcome
        pool = self._engine.pool.recreate()
        impatient = single_attempt.set(True)
        # for each of the addresses that a name may have
        limited = single_attempt_timeout.set((deadline - time.monotonic()) / _ADDRESSES)
        try:
            proxied = pool.connect()
        finally:
            single_attempt_timeout.reset(limited)
            single_attempt.reset(impatient)
        try:
            if proof is None:
                return self._ask_for_namesakes(proxied)
            if isinstance(proof, Marker):
                seconds = max(0.0, deadline - time.monotonic())
                return self._markers.ask(proxied, proof, seconds=seconds, is_patient=is_patient)
            return self._ask_status(proxied, proof, deadline, is_patient=is_patient)
        finally:
            proxied.invalidate()  # closes it; a rollback would be one more thing to wait for
            pool.dispose()

    def _ask_for_namesakes(self, proxied: PoolProxiedConnection) -> Outcome:
        with limit(proxied.driver_connection, _ANSWER_TIMEOUT):
            (found,) = self._inquiry.wire.row(proxied, _NAMESAKES)
        return Outcome.COMMITTED if found == "false" else Outcome.UNKNOWN

    def _ask_status(
        self, proxied: PoolProxiedConnection, ticket: Ticket, deadline: float, *, is_patient: bool
    ) -> Outcome | None:
        with limit(proxied.driver_connection, _ANSWER_TIMEOUT):
            server, status = self._inquiry.look(proxied, ticket.xid)
            step = decide(ticket, server, status)
            if step is Step.END_BACKEND and not is_patient:
                self._inquiry.end_backend(proxied, ticket)
        if step is Step.CONFIRM:
            with limit(proxied.driver_connection, max(0.0, deadline - time.monotonic())):
                self._inquiry.confirm(proxied)
                server, status = self._inquiry.look(proxied, ticket.xid)
            step = decide(ticket, server, status, is_confirmed=True)
        return step if isinstance(step, Outcome) else None

    def _within(self, seconds: float, call: Callable[[], Outcome | None]) -> Outcome | None:
        """Return what *call* does, or raise once *seconds* have passed; it may go on for a while.

        No driver can be interrupted while it connects, and libpq's own limit begins at two seconds
        for each address. So near the deadline the caller waits for a thread, which ends by itself;
        before that it asks by itself, where listeners of the application's find what they expect.
        """
        if seconds >= _ROOMY and not self._is_async:
            return call()
        if self._is_async:
            outcome: Outcome | None = await_only(asyncio.wait_for(greenlet_spawn(call), seconds))
            return outcome
        future: Future[Outcome | None] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - result() raises it
                future.set_exception(error)

        run_here = functools.partial(contextvars.copy_context().run, run)
        threading.Thread(target=run_here, name="sa_railway-resolver", daemon=True).start()
        return future.result(seconds)
