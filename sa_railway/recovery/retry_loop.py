"""One use of ``retry()``: which error passes, what may be done twice, and how long to wait.

The loop is tenacity's; here is the judgement that it asks for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import tenacity
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from sa_railway import events
from sa_railway.commit.ambiguity import engine_of, is_ambiguous, kinds_of
from sa_railway.engine.stopping import is_stopping
from sa_railway.exc import CommitOutcomeUnknownError, ConfigurationError
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.origin import is_database_error, members

if TYPE_CHECKING:
    from sa_railway.recovery.sessions import OpenSession

logger = logging.getLogger("sa_railway.recovery.retry")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The numbers of one ``retry()``, which documents them. Times are seconds."""

    attempts: int
    deadline: float
    backoff_base: float
    backoff_cap: float

    def __post_init__(self) -> None:
        """Refuse what makes no attempt, or no end."""
        if type(self.attempts) is not int or self.attempts < 1:  # True is an int, too
            raise ConfigurationError(
                f"attempts is {self.attempts!r}; allowed: a whole number, 1 or more"
            )
        for name in ("deadline", "backoff_base", "backoff_cap"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigurationError(f"{name} is {value!r}; allowed: more than 0 seconds")


class Attempt:
    """One attempt of a loop, to be used as ``with attempt:`` around all of the work.

    Attributes:
        number: 1 for the first attempt.
    """

    def __init__(self, attempt: tenacity.AttemptManager) -> None:
        self._attempt = attempt
        self.number: int = attempt.retry_state.attempt_number

    @property
    def is_over(self) -> bool:
        """Whether its block has ended, in one way or another."""
        return self._attempt.retry_state.outcome is not None

    def __enter__(self) -> Attempt:
        """Begin the attempt."""
        self._attempt.__enter__()
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        """Keep what was raised if another attempt is to follow; the loop raises it otherwise."""
        return self._attempt.__exit__(*raised)


class RetryLoop:
    """One use of a ``Retry``: what tenacity asks on the way, and what has happened so far."""

    def __init__(self, name: str, policy: RetryPolicy, sessions: list[OpenSession]) -> None:
        self._name = name
        self._policy = policy
        self._sessions = sessions
        self._handled_before = sys.exception()
        self._started = time.monotonic()
        self._attempts = 0
        self._error: Exception | None = None  # of the last attempt, if it is the database's
        self._cause: Exception | None = None  # of the last attempt that was not just a consequence
        self._objection: str | None = None

    def loop(self) -> tenacity.Retrying:
        """Return the loop for a function or a block; for one use."""
        return tenacity.Retrying(**self._strategies(), after=self._roll_back, sleep=time.sleep)

    def async_loop(self) -> tenacity.AsyncRetrying:
        """Return the same for a coroutine."""
        return tenacity.AsyncRetrying(
            **self._strategies(), after=self._roll_back_async, sleep=asyncio.sleep
        )

    def _strategies(self) -> dict[str, Any]:
        policy = self._policy
        return {
            "retry": self._is_worthwhile,
            "wait": self._delay,
            "stop": tenacity.stop_after_attempt(policy.attempts)
            | tenacity.stop_before_delay(policy.deadline),
            "before_sleep": self._log_retry,
            "reraise": True,
        }

    def _is_worthwhile(self, state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        if not isinstance(error, Exception) or not is_database_error(error):
            return False
        self._attempts = state.attempt_number
        self._error = error
        if not self._is_consequence(error):
            self._cause = error
            if not all(map(_passes, members(error))):
                return False
        self._objection = self._reason_not_to_retry(error)
        return self._objection is None

    def _is_consequence(self, error: Exception) -> bool:
        """Return whether *error* only says that an earlier failure was not rolled back."""
        return all(
            isinstance(one, PendingRollbackError)
            or (self._cause is not None and classify(one).sqlstate == "25P02")
            for one in members(error)
        )

    def _reason_not_to_retry(self, error: Exception) -> str | None:
        """Return what speaks against running the work again, although the fault may pass."""
        if is_ambiguous(error, since=self._handled_before):
            return "the work may have been committed, and would then be done twice"
        if any(session.had_transaction for session in self._sessions):
            return "the session held earlier work when this began, and a rollback would lose it"
        kinds = {classify(one).kind for one in members(error)}
        if FaultKind.CONNECT_TRANSIENT in kinds and is_stopping():
            return "the process is being stopped"
        if self._is_consequence(error) and not self._sessions:
            return "the transaction was begun elsewhere, and can only be rolled back there"
        return None

    def _delay(self, state: tenacity.RetryCallState) -> float:
        policy = self._policy
        ceiling = tenacity.wait_exponential(policy.backoff_base, policy.backoff_cap)(state)
        # the lower half is kept: a few attempts that come all at once are wasted on an outage
        delay = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads load, guards nothing
        # a DatabaseUnavailableError knows when it makes sense to ask again
        error = cast("BaseException", _error_of(state))
        return max(delay, *(getattr(one, "retry_after", 0.0) for one in members(error)))

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = cast("BaseException", _error_of(state))
        logger.info(
            "%s: attempt %d failed, next one in %.2f s: %s",
            self._name,
            state.attempt_number,
            state.upcoming_sleep,
            type(error).__name__,
        )
        events.publish(
            events.Retried(engine_of(error), state.attempt_number, state.upcoming_sleep, error)
        )

    def _roll_back(self, _: tenacity.RetryCallState) -> None:
        for session in self._sessions:
            session.roll_back()

    async def _roll_back_async(self, _: tenacity.RetryCallState) -> None:
        for session in self._sessions:
            await session.roll_back_async()

    @contextmanager
    def annotate_failure(self) -> Iterator[None]:
        """Let the database's exception that ends the block say what was tried, if anything was."""
        try:
            yield
        except Exception as error:
            if error is not self._error:
                raise
            cause = self._cause or error
            if self._attempts > 1 or self._objection:
                cause.add_note(self._summary())
            if cause is error:
                raise
            raise cause from cause.__cause__

    def _summary(self) -> str:
        attempts = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
        seconds = time.monotonic() - self._started
        reason = f": {self._objection}" if self._objection else ""
        return f"sa_railway: retry() gave up after {attempts} in {seconds:.1f} s{reason}"


def _passes(error: BaseException) -> bool:
    """Return whether the work may succeed if it is run again after *error*."""
    if isinstance(error, CommitOutcomeUnknownError):
        return True  # it is objected to, which the note then says
    fault = classify(error, kinds=kinds_of(error))
    if fault.kind is FaultKind.READ_ONLY and isinstance(error, DBAPIError):
        return error.connection_invalidated  # else the next one would meet the same server
    return fault.transient


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
