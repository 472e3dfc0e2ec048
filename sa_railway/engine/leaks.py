"""What has held a connection for too long, and where it was checked out.

A leaked connection is one less for all other work, and the error of an exhausted pool names the
code that waits, not the code that holds. So the stack of every checkout is kept while the
connection is out: as code and position only, since lines and texts are needed for the few that are
ever shown.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event

from sa_railway import events
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.rounds import rounds
from sa_railway.engine.state import engine_name

logger = logging.getLogger("sa_railway.engine.leaks")

_OWN = 4  # frames at least from here to the code that asks the pool for a connection
_DEPTH = range(60)  # frames; a view of Flask under Gunicorn has 30, and the ORM adds 15

# the code between an application and the pool: SQLAlchemy's, also what it makes up, and this
_INNER = (
    *(str(Path(file).parent) + os.sep for file in (sqlalchemy.__file__, events.__file__)),
    "<sqlalchemy ",
)

# Code and the position in it, the innermost first: code, position, code, position. It is flat
# because a tuple for each frame would take half as long again.
Stack = list[Any]

Place = tuple[CodeType, int]

# since when a connection is out, and the stack of its checkout
Held = tuple[float, Stack]


@dataclass(frozen=True)
class Hold:
    """A connection that is checked out, and by what.

    Attributes:
        seconds: for how long.
        file: the name of the file whose code has checked it out, without its folder.
        line: in that file.
        function: the function there.
    """

    seconds: float
    file: str
    line: int | None
    function: str


def listen(engine: Engine, leak_after: float) -> None:
    """Say what has held a connection of *engine* for longer than *leak_after* seconds."""
    holdings = _of_dialect[engine.dialect] = _Holdings(engine, leak_after)
    checkin = _checkin(holdings)
    event.listen(engine, "checkout", _checkout(holdings, is_async=engine.dialect.is_async))
    event.listen(engine, "checkin", checkin)
    event.listen(engine, "detach", checkin)
    rounds.add(holdings)


def longest_holds(engine: Engine, most: int) -> tuple[Hold, ...]:
    """Return what has held connections of *engine* for longest, *most* of them at most.

    That is known with ``leak_after`` only.
    """
    holdings = _of_dialect.get(engine.dialect)
    if holdings is None:
        return ()
    now = time.monotonic()
    oldest = sorted(holdings.held.values(), key=itemgetter(0))[:most]
    return tuple(_hold(now - since, _summaries(stack)[-1]) for since, stack in oldest)


def _hold(seconds: float, place: traceback.FrameSummary) -> Hold:
    return Hold(seconds, Path(place.filename).name, place.lineno, place.name)


# --- what happens at every checkout: written for speed, and never_raises only where it can fail ---


def _checkout(holdings: _Holdings, *, is_async: bool) -> Callable[..., None]:
    held, get_frame, monotonic = holdings.held, sys._getframe, time.monotonic

    def checkout(dbapi_connection: object, record: object, proxy: object) -> None:
        stack: Stack = []
        append = stack.append
        try:
            frame: FrameType | None = get_frame(_OWN)
        except ValueError:  # a thread or greenlet that does nothing but the checkout
            frame = None
        for _ in _DEPTH:
            if frame is None:
                break
            append(frame.f_code)
            append(frame.f_lasti)
            frame = frame.f_back
        if is_async:
            stack += _awaiting()
        held[id(record)] = (monotonic(), stack)
        if rounds.is_asleep:
            rounds.wake()

    return checkout


def _checkin(holdings: _Holdings) -> Callable[..., None]:
    held, reported = holdings.held, holdings.reported

    def checkin(dbapi_connection: object, record: object) -> None:
        was_held = held.pop(id(record), None)
        if reported:
            holdings.tell_of_return(id(record), was_held)

    return checkin


@never_raises
def _awaiting() -> Stack:
    """Return where the coroutine waits: the driver runs in a greenlet, which has its own stack."""
    from greenlet import getcurrent  # SQLAlchemy needs it for asyncio only

    parent = getcurrent().parent
    stack: Stack = []
    frame = None if parent is None else parent.gr_frame
    for _ in _DEPTH:
        if frame is None:
            break
        stack += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return stack


# --- what happens to those that are held for too long ---


class _Holdings:
    """The connections of one engine that are checked out, by the id of their place in the pool.

    Attributes:
        held: all of them.
        reported: those that were held for too long, and what they were called then.
    """

    def __init__(self, engine: Engine, leak_after: float) -> None:
        self.leak_after = leak_after
        self.period = leak_after / 4  # a leak is logged at most that much later than promised
        self.held: dict[int, Held] = {}
        self.reported: dict[int, Held] = {}
        self._engine = engine_name(engine)

    def look(self) -> None:
        """Report those that have been held for too long, once each."""
        now = time.monotonic()
        for key, held in list(self.held.items()):
            if now - held[0] > self.leak_after and self.reported.get(key) is not held:
                self.reported[key] = held
                self._tell(held, now - held[0])

    @never_raises
    def _tell(self, held: Held, seconds: float) -> None:
        stack = "".join(_summaries(held[1]).format()).rstrip()
        logger.warning(
            "%s: a connection has been held for %.1f s, and leak_after is %g s. "
            "It was checked out here:\n%s",
            *(self._engine, seconds, self.leak_after, stack),
        )
        events.publish(events.Leaked(self._engine, seconds, stack))

    @never_raises
    def tell_of_return(self, key: int, was_held: Held | None) -> None:
        """Say that a connection is back, if it is one that was reported."""
        if was_held is None or self.reported.pop(key, None) is not was_held:
            return
        seconds = time.monotonic() - was_held[0]
        place = _summaries(was_held[1])[-1]
        logger.warning(
            "%s: a connection came back after %.1f s; it was checked out in %s, line %s, in %s",
            *(self._engine, seconds, place.filename, place.lineno, place.name),
        )
        events.publish(events.LeakReturned(self._engine, seconds))

    def forget_parent(self) -> None:
        """Begin afresh in a forked child, whose pool is empty."""
        self.held.clear()
        self.reported.clear()


def _summaries(stack: Stack) -> traceback.StackSummary:
    """Return *stack* for people: the outermost first, and without what led from there to here."""
    places = list(zip(stack[::2], stack[1::2], strict=True))
    return traceback.StackSummary.from_list(
        traceback.FrameSummary(code.co_filename, _line(code, position), code.co_name)
        for code, position in reversed(_outside(places) or places)
    )


def _outside(places: list[Place]) -> list[Place]:
    """Return *places* from the first one that is the application's."""
    is_inner = [code.co_filename.startswith(_INNER) for code, _ in places]
    for index, (code, _) in enumerate(places):
        # what SQLAlchemy 2.0 makes up has no name, and only SQLAlchemy calls it
        is_made_up = code.co_filename == "<string>" and any(is_inner[index + 1 : index + 2])
        if not is_inner[index] and not is_made_up:
            return places[index:]
    return []


def _line(code: CodeType, position: int) -> int | None:
    return next(itertools.islice(code.co_positions(), position // 2, None))[0]


# By the dialect, which an engine and its copies with other execution options have in common.
_of_dialect: weakref.WeakKeyDictionary[Any, _Holdings] = weakref.WeakKeyDictionary()
