"""What happened to the connections of an engine: frozen records, and a place to subscribe to them.

Behaviours announce; metrics, logs and applications listen. What happens at every checkout is built
only while it has a subscriber.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

__all__ = [
    "BreakerClosed",
    "BreakerOpened",
    "CheckedOut",
    "CommitResolved",
    "ConnectAttemptFailed",
    "Connected",
    "DisconnectSeen",
    "Event",
    "IdleReleased",
    "Invalidated",
    "LeakReturned",
    "Leaked",
    "LeftoversRolledBack",
    "Pinged",
    "Replayed",
    "Retried",
    "StaleFound",
    "publish",
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
    """Connects fail at once for *seconds*, because *error* outlasted the patience.

    Where listeners or a creator may choose another server, each is one attempt instead.
    """

    seconds: float
    error: BaseException


@dataclass(frozen=True)
class BreakerClosed(Event):
    """The server can be reached again."""


@dataclass(frozen=True)
class CheckedOut(Event):
    """A connection was checked out of the pool, *seconds* after it had been asked for."""

    seconds: float


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
class Invalidated(Event):
    """A connection was given up and closed, because of *error* or at the application's request."""

    error: BaseException | None


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
    """A connection that had been idle for *seconds* was closed."""

    seconds: float


@dataclass(frozen=True)
class LeftoversRolledBack(Event):
    """What *where*, a request or a command, left uncommitted was rolled back.

    *failed* says whether it ended with an error, after which that is expected. The
    engine is nameless if the session had not yet used any, so that only objects were lost.
    """

    where: str
    failed: bool


@dataclass(frozen=True)
class Leaked(Event):
    """A connection has been held for *seconds* now; *stack* says where it was checked out."""

    seconds: float
    stack: str


@dataclass(frozen=True)
class LeakReturned(Event):
    """A connection that counted as leaked came back after *seconds*."""

    seconds: float


_Kind = TypeVar("_Kind", bound=Event)
Subscriber = Callable[[Any], object]
Subscription = tuple[Subscriber, tuple[type[Event], ...]]

_lock = threading.Lock()
_subscriptions: tuple[Subscription, ...] = ()
_subscribers: Mapping[type[Event], tuple[Subscriber, ...]] = {}
subscribed_types: set[type[Event]] = set()
"""The kinds that have a subscriber. What is costly to build is not built of the others."""
_failed: set[int] = set()


@overload
def subscribe(subscriber: Callable[[Event], object]) -> Callable[[], None]: ...


@overload
def subscribe(
    subscriber: Callable[[_Kind], object], kind: type[_Kind], /
) -> Callable[[], None]: ...


@overload
def subscribe(
    subscriber: Callable[[Any], object],
    first: type[Event],
    second: type[Event],
    /,
    *others: type[Event],
) -> Callable[[], None]: ...


def subscribe(subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
    """Call *subscriber* with the events of every engine in this process.

    It runs in the thread that the event happened in, often within a checkout, so it must be quick
    and must not use the database. If it raises, that is logged once and does not reach the caller.
    May be called from any thread; a forked child keeps the subscribers of its parent.

    Args:
        subscriber: takes the event.
        *kinds: the classes of the events it wants; none means all of them. ``CheckedOut`` comes
            with every checkout, so you save some microseconds each time if you do without it.

    Returns:
        A function that ends the subscription. It may be called twice.
    """
    subscription = (subscriber, kinds or (Event,))
    _failed.discard(id(subscriber))  # which may be that of one long gone
    _change(lambda now: (*now, subscription))
    return lambda: _change(lambda now: tuple(s for s in now if s is not subscription))


def _change(change: Callable[[tuple[Subscription, ...]], tuple[Subscription, ...]]) -> None:
    """Replace the subscriptions and the table of their kinds; their readers never lock."""
    global _subscriptions, _subscribers
    with _lock:
        _subscriptions = change(_subscriptions)
        _subscribers = {
            kind: tuple(hearer for hearer, kinds in _subscriptions if issubclass(kind, kinds))
            for kind in Event.__subclasses__()
        }
        for kind, subscribers in _subscribers.items():
            (subscribed_types.add if subscribers else subscribed_types.discard)(kind)


def publish(event: Event) -> None:
    """Hand *event* to all that listen to it. Never raises."""
    for subscriber in _subscribers.get(type(event), ()):
        try:
            subscriber(event)
        except Exception:
            if id(subscriber) not in _failed:
                _failed.add(id(subscriber))
                logger.exception("A subscriber failed; its further failures are not logged")
