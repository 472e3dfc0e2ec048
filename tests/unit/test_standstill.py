"""Readiness when the pool is exhausted: a queue that moves, and one that does not."""

import time
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

import sa_railway
from sa_railway.health.probe import Probe
from sa_railway.health.readiness import Readiness, readiness


@pytest.fixture
def exhausted(tmp_path):
    engine: Any = sa_railway.create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}",
        poolclass=QueuePool,
        pool_size=2,
        max_overflow=0,
        metrics=True,
    )
    with engine.connect(), engine.connect() as second:
        engine.second = second
        yield engine
    engine.dispose()


@pytest.fixture
def clock(monkeypatch):
    """The hands of the clock that readiness looks at, to be moved by hand."""
    hands = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: hands[0])
    return hands


ANSWERED = Probe(round_trip=0.001)


def test_a_pool_with_something_left_is_ready(engine):
    assert readiness(engine, ANSWERED) == (Readiness.READY, "")


def test_an_exhausted_pool_is_said_to_be_saturated(exhausted):
    assert readiness(exhausted, ANSWERED) == (
        Readiness.SATURATED,
        "All 2 connections of the pool are in use.",
    )


def test_an_exhausted_pool_that_nothing_comes_back_to_is_unavailable(exhausted, clock):
    readiness(exhausted, ANSWERED)
    clock[0] += 21

    assert readiness(exhausted, ANSWERED) == (
        Readiness.UNAVAILABLE,
        "All 2 connections of the pool are in use, and none has come back for 21 s.",
    )


def test_an_exhausted_pool_that_is_moving_stays_saturated(exhausted, clock):
    readiness(exhausted, ANSWERED)
    clock[0] += 21
    exhausted.second.close()
    with exhausted.connect():
        state, _ = readiness(exhausted, ANSWERED)

    assert state is Readiness.SATURATED


def test_a_server_that_cannot_be_reached_is_unavailable(exhausted):
    failed = Probe("The server cannot be reached.")

    assert readiness(exhausted, failed) == (
        Readiness.UNAVAILABLE,
        "The server cannot be reached.",
    )


def test_a_full_server_serves_who_has_connections(engine):
    full = Probe("The server takes no more connections.", is_full=True)

    assert readiness(engine, full)[0] is Readiness.UNAVAILABLE
    with engine.connect():
        assert readiness(engine, full) == (
            Readiness.SATURATED,
            "The server takes no more connections.",
        )
