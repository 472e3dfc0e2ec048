"""Connecting with patience, and the breaker that ends it, on a clock of the test's own."""

import itertools
import os
import threading
from types import SimpleNamespace

import psycopg2
import pytest

from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine import connect, waiting
from sa_railway.engine.connect import Breaker, Patience
from sa_railway.engine.waiting import backoff_delay
from sa_railway.exc import DatabaseUnavailableError

REFUSED = ConnectionRefusedError(111, "Connection refused")
WRONG_PASSWORD = 'connection to server failed: FATAL:  password authentication failed for user "u"'


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connect, "time", clock)
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture
def longest_pauses(monkeypatch):
    monkeypatch.setattr(waiting, "random", SimpleNamespace(uniform=lambda low, high: high))


def server(*outcomes):
    """A connect() that raises or returns one outcome after the other, the last one for ever."""
    remaining = itertools.chain(outcomes, itertools.repeat(outcomes[-1]))

    def connect(**kwargs):
        connect.calls.append(kwargs)
        outcome = next(remaining)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    connect.calls = []
    return connect


def test_a_server_that_comes_back_is_waited_for(clock, longest_pauses):
    patient = Patience(Profile(), is_async=False).wrap(server(REFUSED, REFUSED, "connection"))

    assert patient() == "connection"
    assert clock.sleeps == [0.05, 0.1]


def test_pauses_double_up_to_the_cap_and_end_with_the_patience(clock, longest_pauses):
    patient = Patience(Profile(connect_patience=4), is_async=False).wrap(server(REFUSED))

    with pytest.raises(ConnectionRefusedError):
        patient()

    assert clock.sleeps[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert sum(clock.sleeps) == pytest.approx(4)


def test_pauses_are_drawn_from_the_whole_interval():
    delays = [backoff_delay(20, base=0.05, cap=1.0) for _ in range(300)]

    assert all(0 <= delay <= 1 for delay in delays)
    assert min(delays) < 0.1
    assert max(delays) > 0.9


def test_a_late_attempt_does_not_overflow():
    assert 0 <= backoff_delay(100_000, base=0.05, cap=1.0) <= 1


def test_the_driver_is_not_given_more_time_than_is_left(clock, longest_pauses):
    connect = server(REFUSED, REFUSED, REFUSED, "connection")
    patient = Patience(Profile(connect_patience=6), is_async=False).wrap(connect)

    patient(connect_timeout=10, host="h")

    assert [call["connect_timeout"] for call in connect.calls] == [6, 6, 6, 6]
    assert {call["host"] for call in connect.calls} == {"h"}


def test_a_wrong_password_is_raised_at_once_with_the_fix(clock):
    error = psycopg2.OperationalError(WRONG_PASSWORD)
    connect = server(error)
    patient = Patience(Profile(), is_async=False).wrap(connect)

    with pytest.raises(psycopg2.OperationalError) as caught:
        patient()

    assert caught.value is error
    assert len(connect.calls) == 1
    assert clock.sleeps == []
    assert "(1 attempt)" in caught.value.__notes__[0]


def test_the_last_error_says_how_long_was_tried(clock, longest_pauses):
    patient = Patience(Profile(connect_patience=1), is_async=False).wrap(
        server(ConnectionRefusedError(111, "Connection refused"))
    )

    with pytest.raises(ConnectionRefusedError) as caught:
        patient()

    assert caught.value.__notes__[0].endswith("(6 attempts in 1.0 s)")


def test_no_patience_means_one_attempt(clock):
    connect = server(REFUSED)

    with pytest.raises(ConnectionRefusedError):
        Patience(Profile(connect_patience=0), is_async=False).wrap(connect)()

    assert len(connect.calls) == 1


def test_after_an_outlasted_patience_connects_fail_at_once(clock, longest_pauses):
    connect = server(REFUSED)
    patient = Patience(Profile(connect_patience=1), is_async=False).wrap(connect)
    with pytest.raises(ConnectionRefusedError):
        patient()
    tried = len(connect.calls)

    with pytest.raises(DatabaseUnavailableError) as caught:
        patient()

    assert str(caught.value) == (
        "the database could not be reached, and will be tried again in 2.0 s; "
        "the last attempt failed with: [Errno 111] Connection refused"
    )
    assert caught.value.retry_after == 2.0
    assert caught.value.orig is REFUSED
    assert len(connect.calls) == tried


def test_a_probe_that_fails_reopens_the_breaker_after_one_attempt(clock, longest_pauses):
    connect = server(REFUSED)
    patient = Patience(Profile(connect_patience=1), is_async=False).wrap(connect)
    with pytest.raises(ConnectionRefusedError):
        patient()
    clock.now += 2
    tried = len(connect.calls)

    with pytest.raises(ConnectionRefusedError):
        patient()
    with pytest.raises(DatabaseUnavailableError):
        patient()

    assert len(connect.calls) == tried + 1


def test_a_probe_that_succeeds_lets_everybody_in_and_is_announced(clock, longest_pauses):
    seen = []
    unsubscribe = events.subscribe(seen.append)
    patient = Patience(Profile(connect_patience=0), is_async=False).wrap(
        server(REFUSED, "connection")
    )
    with pytest.raises(ConnectionRefusedError):
        patient()
    clock.now += 2

    assert [patient(), patient()] == ["connection", "connection"]
    unsubscribe()
    assert [type(event) for event in seen] == [
        events.BreakerOpened,
        events.BreakerClosed,
        events.Connected,
        events.Connected,
    ]


def test_an_answer_closes_the_breaker_even_if_it_is_a_refusal(clock, longest_pauses):
    patient = Patience(Profile(connect_patience=0), is_async=False).wrap(
        server(REFUSED, psycopg2.OperationalError(WRONG_PASSWORD), "connection")
    )
    with pytest.raises(ConnectionRefusedError):
        patient()
    clock.now += 2
    with pytest.raises(psycopg2.OperationalError):
        patient()

    assert patient() == "connection"


def test_only_one_probe_at_a_time(clock):
    breaker = Breaker(pause=2)
    breaker.open(REFUSED)
    clock.now += 2

    assert breaker.enter() is True
    with pytest.raises(DatabaseUnavailableError, match=r"tried again in 0\.0 s"):
        breaker.enter()


def test_a_patience_that_ends_late_does_not_let_a_second_probe_in(clock):
    breaker = Breaker(pause=2)
    breaker.open(REFUSED)
    clock.now += 2
    assert breaker.enter() is True

    breaker.open(REFUSED)
    clock.now += 2

    with pytest.raises(DatabaseUnavailableError):
        breaker.enter()
    breaker.leave()
    assert breaker.enter() is True


def test_an_interrupted_probe_leaves_its_place_to_the_next(clock):
    patient = Patience(Profile(connect_patience=0), is_async=False).wrap(
        server(REFUSED, KeyboardInterrupt(), "connection")
    )
    with pytest.raises(ConnectionRefusedError):
        patient()
    clock.now += 2
    with pytest.raises(KeyboardInterrupt):
        patient()

    assert patient() == "connection"


def test_a_forked_child_is_not_bound_by_the_breaker_of_its_parent(clock, monkeypatch):
    breaker = Breaker(pause=2)
    breaker.open(REFUSED)
    breaker._lock.acquire()  # a thread of the parent is within the breaker when it forks
    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert breaker.enter() is False


def test_threads_wait_side_by_side(clock, longest_pauses):
    waiting = threading.Barrier(2, timeout=10)
    attempts = itertools.count()

    def connect():
        if next(attempts) < 2:
            waiting.wait()  # both threads are within their first attempt
            raise REFUSED
        return "connection"

    patient = Patience(Profile(), is_async=False).wrap(connect)
    results = []
    threads = [threading.Thread(target=lambda: results.append(patient())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert results == ["connection", "connection"]


def test_a_creator_keeps_the_number_of_arguments_it_had():
    patience = Patience(Profile(), is_async=False)

    assert patience.wrap_creator(lambda: "plain")() == "plain"
    assert patience.wrap_creator(lambda record: record)("record") == "record"
    assert patience.wrap_creator(lambda dsn="x": dsn)() == "x"
