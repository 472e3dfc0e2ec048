"""The circuit breaker of an engine: while the server is away, connects fail at once."""

from __future__ import annotations

import os
import threading
import time

from sa_railway.exc import DatabaseUnavailableError
from sa_railway.faults import first_line


class Breaker:
    """Lets connects fail at once while the server is known to be away; one probe at a time may try.

    A probe has its turn for a limited time, so no probe that was interrupted, at whatever line, can
    keep the breaker half-open. Safe from any thread, from a signal handler and after a fork.
    """

    def __init__(self, pause: float, probe_limit: float) -> None:
        """Make a closed breaker.

        Args:
            pause: seconds for which connects fail at once after each failure.
            probe_limit: seconds that a probe takes at most, as a rule. Another one may try later.
        """
        self._pause = pause
        self._probe_limit = probe_limit
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # one that a signal handler can take, which connects while this thread holds it
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._open_until = 0.0
        self._probe: object = None
        self._probe_until = 0.0

    def enter(self, caller: object) -> bool:
        """Ask to connect; return whether *caller* is now the one probe of an open breaker.

        Raises:
            DatabaseUnavailableError: the breaker is open, and it is not yet time to try, or another
                caller does.
        """
        if self._pid != os.getpid():
            # what a thread of the parent has taken is never released in a forked child
            self._reset()
        with self._lock:
            if self._error is None:
                return False
            now = time.monotonic()
            is_probed = self._probe is not None and now < self._probe_until
            if is_probed or now < self._open_until:
                raise _unavailable(max(self._open_until - now, 0.0), self._error)
            self._probe_until = now + self._probe_limit
            self._probe = caller
            return True

    def leave(self, caller: object) -> None:
        """End the turn of *caller*, if it is the probe, whatever became of it."""
        if self._probe is caller:
            self._probe = None

    def open(self, error: BaseException) -> bool:
        """Let connects fail at once for the pause; return whether the breaker had been closed."""
        with self._lock:
            was_closed = self._error is None
            self._error = error
            self._open_until = time.monotonic() + self._pause
            return was_closed

    def close(self) -> bool:
        """Let every caller connect; return whether the breaker had been open."""
        with self._lock:
            was_open = self._error is not None
            self._error = None
            return was_open


def _unavailable(retry_after: float, error: BaseException) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"the database could not be reached, and will be tried again in {retry_after:.1f} s; "
        f"the last attempt failed with: {first_line(error)}",
        retry_after=retry_after,
        orig=error,
    )
