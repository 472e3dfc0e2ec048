"""Who has held a connection for too long, and where it was checked out.

A leaked connection is one less for everybody else, and the error of an exhausted pool names those
who wait, not those who hold. So the stack of every checkout is kept while the connection is out:
as code and position only, since lines and texts are needed for the few that are ever shown.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine.guard import guarded
from sa_railway.engine.naming import engine_name

__all__ = ["listen"]

logger = logging.getLogger("sa_railway.engine.leaks")

_DEPTH = 60  # frames; a view of Flask under Gunicorn has 30, and the ORM adds 15

# the code between an application and the pool: SQLAlchemy's, also what it makes up, and this
_INNER = (
    *(str(Path(file).parent) + os.sep for file in (sqlalchemy.__file__, events.__file__)),
    "<sqlalchemy ",
)

# a piece of code, and the position in it
Stack = list[tuple[CodeType, int]]


def listen(engine: Engine, profile: Profile) -> None:
    """Watch how long the connections of *engine* are held, if the profile asks for it."""
    if profile.leak_after is None:
        return
    holdings = _Holdings(engine, profile.leak_after)
    event.listen(engine, "checkout", guarded(holdings.checkout))
    event.listen(engine, "checkin", guarded(holdings.checkin))
    event.listen(engine, "detach", guarded(holdings.checkin))
    _watch.add(holdings)


class _Held:
    """One connection that is checked out."""

    __slots__ = ("is_reported", "since", "stack")

    def __init__(self, stack: Stack) -> None:
        self.since = time.monotonic()
        self.stack = stack
        self.is_reported = False


class _Holdings:
    """The connections of one engine that are checked out."""

    def __init__(self, engine: Engine, leak_after: float) -> None:
        self.leak_after = leak_after
        self._engine = engine_name(engine)
        self._is_async = engine.dialect.is_async
        self._held: dict[int, _Held] = {}

    def checkout(
        self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        frames = _frames(sys._getframe(), is_async=self._is_async)
        stack = [(frame.f_code, frame.f_lasti) for frame in itertools.islice(frames, _DEPTH)]
        self._held[id(record)] = _Held(stack)
        _watch.start()

    def checkin(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        held = self._held.pop(id(record), None)
        if held is None or not held.is_reported:
            return
        seconds = time.monotonic() - held.since
        place = _summaries(held.stack)[-1]
        logger.warning(
            "%s: a connection came back after %.1f s; it was checked out in %s, line %s, in %s",
            *(self._engine, seconds, place.filename, place.lineno, place.name),
        )
        events.announce(events.LeakReturned(self._engine, seconds))

    def look(self) -> None:
        """Report those who have been held for too long, once each."""
        now = time.monotonic()
        for held in list(self._held.values()):
            if not held.is_reported and now - held.since > self.leak_after:
                held.is_reported = True
                self._report(held, now - held.since)

    @guarded
    def _report(self, held: _Held, seconds: float) -> None:
        stack = "".join(_summaries(held.stack).format()).rstrip()
        logger.warning(
            "%s: a connection has been held for %.1f s, and leak_after is %g s. "
            "It was checked out here:\n%s",
            *(self._engine, seconds, self.leak_after, stack),
        )
        events.announce(events.Leaked(self._engine, seconds, stack))

    def forget_parent(self) -> None:
        """Begin anew in a forked child, whose pool is empty."""
        self._held.clear()


def _frames(frame: FrameType | None, *, is_async: bool) -> Iterator[FrameType]:
    """Yield *frame* and those that it was called from, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back
    if is_async:  # the driver runs in a greenlet, whose parent is the one that awaits it
        from greenlet import getcurrent  # SQLAlchemy needs it for asyncio only

        awaiting = getcurrent().parent
        if awaiting is not None:
            yield from _frames(awaiting.gr_frame, is_async=False)


def _summaries(stack: Stack) -> traceback.StackSummary:
    """Return *stack* for people: the outermost first, and without what led from there to here."""
    outside = itertools.dropwhile(lambda place: place[0].co_filename.startswith(_INNER), stack)
    return traceback.StackSummary.from_list(
        traceback.FrameSummary(code.co_filename, _line(code, position), code.co_name)
        for code, position in reversed(list(outside) or stack)
    )


def _line(code: CodeType, position: int) -> int | None:
    return next(itertools.islice(code.co_positions(), position // 2, None))[0]


class _Watch:
    """One daemon thread for all engines of the process, started by the first checkout."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holdings: weakref.WeakSet[_Holdings] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, holdings: _Holdings) -> None:
        with self._lock:
            self._holdings.add(holdings)

    def start(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="sa_railway-leaks", daemon=True
                    )
                    self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                holdings = list(self._holdings)
                if not holdings:
                    self._thread = None
                    return
            for each in holdings:
                each.look()
            # a quarter: a leak is logged at most that much later than promised
            pause = min(each.leak_after for each in holdings) / 4
            del each, holdings  # an engine that is gone must not live on in a sleeping thread
            time.sleep(pause)

    def forget_parent(self) -> None:
        """Begin anew in a forked child: the thread exists in the parent only."""
        self._lock = threading.Lock()
        self._thread = None
        for holdings in self._holdings:
            holdings.forget_parent()


_watch = _Watch()

if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_watch.forget_parent)
