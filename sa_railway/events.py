"""What happened to the connections of an engine: frozen records, and a place to subscribe to them.

Behaviours announce; metrics, logs and applications listen. Nothing is built while nobody listens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "BreakerClosed",
    "BreakerOpened",
    "CommitResolved",
    "ConnectAttemptFailed",
    "Connected",
    "DisconnectSeen",
    "Event",
    "IdleReleased",
    "Pinged",
    "Replayed",
    "Retried",
    "StaleFound",
    "announce",
    "has_subscribers",
    "subscribe",
]

logger = logging.getLogger("sa_railway.events")


@dataclass(frozen=True)
class Event:
    """Something that happened to a connection of the engine named *engine*."""

    engine: str


@dataclass(frozen=True)
class Connected(Event):
    """A connection was opened after *attempts* attempts that took *seconds* altogether."""

    attempts: int
    seconds: float


@dataclass(frozen=True)
class ConnectAttemptFailed(Event):
    """Attempt number *attempt* failed with *error*; the next one follows in *delay* seconds."""

    attempt: int
    delay: float
    error: BaseException


@dataclass(frozen=True)
class BreakerOpened(Event):
    """Connects fail at once for *seconds*, because *error* outlasted the patience."""

    seconds: float
    error: BaseException


@dataclass(frozen=True)
class BreakerClosed(Event):
    """The server can be reached again."""


@dataclass(frozen=True)
class Pinged(Event):
    """A pooled connection answered a ping after *seconds*."""

    seconds: float


@dataclass(frozen=True)
class StaleFound(Event):
    """A pooled connection was found dead at checkout.

    *how* is ``"socket"`` (at no round trip), ``"ping"``, or ``"deadline"``: no answer in time.
    """

    how: str


@dataclass(frozen=True)
class DisconnectSeen(Event):
    """A statement failed with *error*, which says that the connection or its server is lost."""

    error: BaseException


@dataclass(frozen=True)
class CommitResolved(Event):
    """The answer to a COMMIT was lost; *seconds* later it was known to be *outcome*.

    That is ``"committed"``, ``"aborted"`` or ``"unknown"``.
    """

    outcome: str
    seconds: float


@dataclass(frozen=True)
class Replayed(Event):
    """Attempt number *attempt* at a transaction failed with *error*; the next is in *delay* s."""

    attempt: int
    delay: float
    error: BaseException


@dataclass(frozen=True)
class Retried(Event):
    """Attempt number *attempt* of ``retry()`` failed with *error*; the next is in *delay* s.

    The engine is the one that *error* came from; it is nameless if it could not even be asked.
    """

    attempt: int
    delay: float
    error: BaseException


@dataclass(frozen=True)
class IdleReleased(Event):
    """A connection that nobody had used for *seconds* was closed."""

    seconds: float


Subscriber = Callable[[Event], object]

_lock = threading.Lock()
_subscribers: tuple[Subscriber, ...] = ()
_failed: set[int] = set()


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Call *subscriber* with every event of every engine in this process.

    It runs in the thread that the event happened in, often within a checkout, so it must be quick
    and must not use the database. If it raises, that is logged once and does not reach the caller.
    May be called from any thread; a forked child keeps the subscribers of its parent.

    Returns:
        A function that ends the subscription. It may be called twice.
    """
    global _subscribers
    with _lock:
        _subscribers = (*_subscribers, subscriber)

    def unsubscribe() -> None:
        global _subscribers
        with _lock:
            _subscribers = tuple(s for s in _subscribers if s is not subscriber)

    return unsubscribe


def has_subscribers() -> bool:
    """Return whether anybody listens: what is costly to build need not be built otherwise."""
    return bool(_subscribers)


def announce(event: Event) -> None:
    """Hand *event* to every subscriber. Never raises."""
    for subscriber in _subscribers:
        try:
            subscriber(event)
        except Exception:
            if id(subscriber) not in _failed:
                _failed.add(id(subscriber))
                logger.exception("A subscriber failed; its further failures are not logged")
