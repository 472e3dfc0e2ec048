"""What sa_railway announces while a test looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from sa_railway import events


@contextlib.contextmanager
def hearing(*kinds: type[events.Event]) -> Iterator[list[Any]]:
    """Yield a list that gets the events of these *kinds*, or of all, until the block ends."""
    heard: list[Any] = []
    unsubscribe = events.subscribe(heard.append, *(kinds or (events.Event,)))
    try:
        yield heard
    finally:
        unsubscribe()


@pytest.fixture
def retried() -> Iterator[list[events.Retried]]:
    """The further attempts of ``retry()``."""
    with hearing(events.Retried) as heard:
        yield heard


@pytest.fixture
def outcomes() -> Iterator[list[str]]:
    """What became of the COMMITs whose answers were lost, in their order."""
    found: list[str] = []
    unsubscribe = events.subscribe(lambda event: found.append(event.outcome), events.CommitResolved)
    try:
        yield found
    finally:
        unsubscribe()
