"""Connecting with patience, and the breaker that ends it, on a clock of the test's own."""

import asyncio
import ctypes
import faulthandler
import functools
import itertools
import os
import signal
import sqlite3
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg2
import pytest
import sqlalchemy
from fix_clock import Clock
from fix_events import hearing

import sa_railway
from sa_railway import events
from sa_railway.config.profile import Profile
from sa_railway.engine import breaker, connect, stopping, waiting
from sa_railway.engine.attempt import surround
from sa_railway.engine.breaker import Breaker
from sa_railway.engine.connect import Patience
from sa_railway.engine.waiting import backoff_delay
from sa_railway.exc import DatabaseUnavailableError

REFUSED = ConnectionRefusedError(111, "Connection refused")
WRONG_PASSWORD = 'connection to server failed: FATAL:  password authentication failed for user "u"'


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(breaker, "time", clock)
    monkeypatch.setattr(connect, "time", clock)
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture
def longest_pauses(monkeypatch):
    monkeypatch.setattr(waiting, "random", SimpleNamespace(uniform=lambda low, high: high))


def server(*outcomes):
    """A connect() that raises or returns one outcome after the other, then the last one again."""
    remaining = itertools.chain(outcomes, itertools.repeat(outcomes[-1]))
    calls = []

    def connect(**kwargs):
        calls.append(kwargs)
        outcome = next(remaining)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    counted: Any = connect
    counted.calls = calls
    return counted


def patient(connect, profile=None, *, is_async=False):
    """The function by which the pool of an engine connects, with *connect* for its dialect's."""
    engine: Any = SimpleNamespace(dialect=SimpleNamespace(connect=connect, driver="psycopg2"))
    surround(engine)
    patience = Patience(profile or Profile(), is_async=is_async)
    creator = patience.wrap(lambda record: engine.dialect.connect())
    return lambda: creator(None)


def test_a_server_that_comes_back_is_waited_for(clock, longest_pauses):
    assert patient(server(REFUSED, REFUSED, "connection"))() == "connection"
    assert clock.sleeps == pytest.approx([0.05, 0.1])


def test_pauses_double_up_to_the_cap_and_end_with_the_patience(clock, longest_pauses):
    with hearing(events.ConnectAttemptFailed) as heard, pytest.raises(ConnectionRefusedError):
        patient(server(REFUSED), Profile(connect_patience=4))()

    pauses = [event.delay for event in heard]
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert sum(clock.sleeps) == pytest.approx(4)


def test_pauses_are_drawn_from_the_whole_interval():
    delays = [backoff_delay(20, base=0.05, cap=1.0) for _ in range(300)]

    assert all(0 <= delay <= 1 for delay in delays)
    assert min(delays) < 0.1
    assert max(delays) > 0.9


def test_a_late_attempt_does_not_overflow():
    assert 0 <= backoff_delay(100_000, base=0.05, cap=1.0) <= 1


def test_every_attempt_has_the_whole_limit_of_the_driver(clock, longest_pauses):
    connect = server(REFUSED, REFUSED, REFUSED, "connection")
    engine: Any = SimpleNamespace(dialect=SimpleNamespace(connect=connect, driver="psycopg2"))
    surround(engine)
    arguments = {"connect_timeout": 10, "host": "h"}
    profile = Profile(connect_patience=1, breaker_pause=0)

    Patience(profile, is_async=False).wrap(lambda record: engine.dialect.connect(**arguments))(None)

    assert connect.calls == [arguments] * 4


@pytest.mark.parametrize("given", [{"connect_timeout": 10}, {"connect_timeout": "10"}, {}])
@pytest.mark.parametrize("unlimited", [{}, {"connect_timeout": 0}])
def test_a_limit_of_the_caller_bounds_what_the_driver_may_take(given, unlimited):
    connect = server("connection")
    engine: Any = SimpleNamespace(dialect=SimpleNamespace(connect=connect, driver="psycopg2"))
    surround(engine)

    def connect_within(seconds):
        engine.dialect.connect(**{**unlimited, **given})

    for seconds in (0.1, 3.5):
        token = waiting.single_attempt_timeout.set(seconds)
        connect_within(seconds)
        waiting.single_attempt_timeout.reset(token)

    assert [call["connect_timeout"] for call in connect.calls] == [2, 4]


def test_a_wrong_password_is_raised_at_once_with_the_fix(clock):
    error = psycopg2.OperationalError(WRONG_PASSWORD)
    connect = server(error)

    with pytest.raises(psycopg2.OperationalError) as caught:
        patient(connect)()

    assert caught.value is error
    assert len(connect.calls) == 1
    assert clock.sleeps == []
    assert "(1 attempt)" in caught.value.__notes__[0]


def test_the_last_error_says_how_long_was_tried(clock, longest_pauses):
    error = ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(ConnectionRefusedError) as caught:
        patient(server(error), Profile(connect_patience=1))()

    assert caught.value.__notes__[0].endswith("(6 attempts in 1.0 s)")


def test_no_patience_means_one_attempt(clock):
    connect = server(REFUSED)

    with pytest.raises(ConnectionRefusedError):
        patient(connect, Profile(connect_patience=0))()

    assert len(connect.calls) == 1


def test_after_an_outlasted_patience_connects_fail_at_once(clock, longest_pauses):
    connect = server(REFUSED)
    connects = patient(connect, Profile(connect_patience=1))
    with pytest.raises(ConnectionRefusedError):
        connects()
    tried = len(connect.calls)

    with pytest.raises(DatabaseUnavailableError) as caught:
        connects()

    assert str(caught.value) == (
        "the database could not be reached, and will be tried again in 2.0 s; "
        "the last attempt failed with: [Errno 111] Connection refused"
    )
    assert caught.value.retry_after == 2.0
    assert caught.value.orig is REFUSED
    assert len(connect.calls) == tried


AWAY = psycopg2.OperationalError("connection to server failed: Connection refused")


def listening(connect):
    engine = sa_railway.create_engine("sqlite://", connect_patience=1)
    sqlalchemy.event.listen(engine, "do_connect", lambda *_: connect())
    return engine


def creating(connect):
    return sa_railway.create_engine("sqlite://", connect_patience=1, creator=connect)


@pytest.mark.parametrize("make", [listening, creating])
def test_one_that_may_choose_another_server_is_always_asked(clock, longest_pauses, caplog, make):
    caplog.set_level("INFO", "sa_railway.engine.connect")
    connect = server(*[AWAY] * 8, sqlite3.connect(":memory:"))
    engine = make(connect)

    tried = []
    with hearing(events.BreakerOpened, events.BreakerClosed) as heard:
        for _ in range(3):
            with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
                engine.connect()
            tried.append(len(connect.calls))
        engine.connect().close()

    assert tried == [6, 7, 8]  # without a wait since the patience has run out
    assert sum(clock.sleeps) == pytest.approx(1)
    assert [type(event) for event in heard] == [events.BreakerOpened, events.BreakerClosed]
    assert [record.getMessage() for record in caplog.records] == [
        "sqlite://: connecting failed, trying again for 1.0 s: "
        "connection to server failed: Connection refused",
        "sqlite://: the server is away; until it is back, connects are one attempt each for 2 s at "
        "a time: connection to server failed: Connection refused",
        "sqlite://: the server can be reached again",
    ]
    engine.dispose()


def test_a_function_for_asyncpg_that_may_choose_another_server_is_always_asked():
    connect = server(asyncpg.CannotConnectNowError("the database system is starting up"))

    async def choose(*args, **kwargs):
        connect()

    async def main():
        engine = sa_railway.create_async_engine(
            "postgresql+asyncpg://", connect_patience=0, connect_args={"async_creator_fn": choose}
        )
        for _ in range(3):
            with pytest.raises((asyncpg.CannotConnectNowError, sqlalchemy.exc.DBAPIError)):
                await engine.connect()

    asyncio.run(main())

    assert len(connect.calls) == 3


def test_a_probe_that_fails_reopens_the_breaker_after_one_attempt(clock, longest_pauses):
    connect = server(REFUSED)
    connects = patient(connect, Profile(connect_patience=1))
    with pytest.raises(ConnectionRefusedError):
        connects()
    clock.now += 2
    tried = len(connect.calls)

    with pytest.raises(ConnectionRefusedError):
        connects()
    with pytest.raises(DatabaseUnavailableError):
        connects()

    assert len(connect.calls) == tried + 1


def test_a_probe_that_succeeds_lets_everybody_in_and_is_announced(clock, longest_pauses):
    connects = patient(server(REFUSED, "connection"), Profile(connect_patience=0))
    with hearing() as heard:
        with pytest.raises(ConnectionRefusedError):
            connects()
        clock.now += 2

        assert [connects(), connects()] == ["connection", "connection"]
    assert [type(event) for event in heard] == [
        events.BreakerOpened,
        events.BreakerClosed,
        events.Connected,
        events.Connected,
    ]


def test_an_answer_closes_the_breaker_even_if_it_is_a_refusal(clock, longest_pauses):
    connects = patient(
        server(REFUSED, psycopg2.OperationalError(WRONG_PASSWORD), "connection"),
        Profile(connect_patience=0),
    )
    with pytest.raises(ConnectionRefusedError):
        connects()
    clock.now += 2
    with pytest.raises(psycopg2.OperationalError):
        connects()

    assert connects() == "connection"


def test_only_one_probe_at_a_time(clock):
    breaker = Breaker(pause=2, probe_limit=12)
    breaker.open(REFUSED)
    clock.now += 2

    assert breaker.enter("first") is True
    with pytest.raises(DatabaseUnavailableError, match=r"tried again in 0\.0 s"):
        breaker.enter("second")


def test_a_patience_that_ends_late_does_not_let_a_second_probe_in(clock):
    breaker = Breaker(pause=2, probe_limit=12)
    breaker.open(REFUSED)
    clock.now += 2
    assert breaker.enter("first") is True

    breaker.open(REFUSED)
    clock.now += 2

    with pytest.raises(DatabaseUnavailableError):
        breaker.enter("second")
    breaker.leave("second")
    with pytest.raises(DatabaseUnavailableError):
        breaker.enter("second")
    breaker.leave("first")
    assert breaker.enter("second") is True


def test_a_probe_that_never_leaves_loses_its_turn(clock):
    breaker = Breaker(pause=2, probe_limit=12)
    breaker.open(REFUSED)
    clock.now += 2
    breaker.enter("first")
    clock.now += 12

    assert breaker.enter("second") is True


class AlarmError(Exception):
    """What a signal handler raises."""


def raise_at(line):
    """Trace the modules of the breaker, and raise at the *line*-th line that runs in them."""
    passed = itertools.count()

    def trace(frame, happened, argument):
        if frame.f_globals.get("__name__") not in (connect.__name__, breaker.__name__):
            return None
        if happened == "line" and next(passed) == line:
            sys.settrace(None)
            raise AlarmError
        return trace

    sys.settrace(trace)


def interrupted_at(line, clock):
    """Interrupt a probe at that line, then connect; return whether the probe ran to its end."""
    connects = patient(server(REFUSED, "connection"), Profile(connect_patience=0))
    with pytest.raises(ConnectionRefusedError):
        connects()
    clock.now += 2
    raise_at(line)
    try:
        connects()
        is_over = True
    except AlarmError:
        is_over = False
    finally:
        sys.settrace(None)
    clock.now += 12  # what one attempt may take
    assert connects() == "connection", line
    return is_over


def test_no_interruption_at_any_line_keeps_the_breaker_half_open(clock):
    """As by the handler of an alarm, a greenlet that is killed, or Ctrl-C."""

    def interrupt_at_every_line():
        return next(line for line in itertools.count() if interrupted_at(line, clock))

    with ThreadPoolExecutor(1) as thread:  # whose trace and pending exceptions are its own
        lines = thread.submit(interrupt_at_every_line).result()

    assert lines > 20


def test_a_signal_handler_may_connect_while_the_breaker_is_asked(clock):
    breaker = Breaker(pause=2, probe_limit=12)
    breaker.open(REFUSED)

    with breaker._lock, pytest.raises(DatabaseUnavailableError):
        breaker.enter("the handler")


def test_an_interrupted_probe_leaves_its_place_to_the_next(clock):
    connects = patient(
        server(REFUSED, KeyboardInterrupt(), "connection"), Profile(connect_patience=0)
    )
    with pytest.raises(ConnectionRefusedError):
        connects()
    clock.now += 2
    with pytest.raises(KeyboardInterrupt):
        connects()

    assert connects() == "connection"


def test_a_forked_child_is_not_bound_by_the_breaker_of_its_parent(clock, monkeypatch):
    breaker = Breaker(pause=2, probe_limit=12)
    breaker.open(REFUSED)
    # a thread of the parent is within the breaker when it forks
    thread = threading.Thread(target=breaker._lock.acquire)
    thread.start()
    thread.join()
    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert breaker.enter("the child") is False


def test_threads_wait_side_by_side(clock, longest_pauses):
    waiting = threading.Barrier(2, timeout=10)
    attempts = itertools.count()

    def connect():
        if next(attempts) < 2:
            waiting.wait()  # both threads are within their first attempt
            raise REFUSED
        return "connection"

    connects = patient(connect)
    results = []
    threads = [threading.Thread(target=lambda: results.append(connects())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert results == ["connection", "connection"]


def test_an_error_of_a_listener_is_none_of_the_server(clock):
    """Such as of the service that it asks for a token."""
    outcomes = iter([ConnectionRefusedError(111, "no token"), "token"])

    def creator(record):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    connects = Patience(Profile(), is_async=False).wrap(creator)

    with pytest.raises(ConnectionRefusedError, match="no token") as caught:
        connects(None)
    assert not hasattr(caught.value, "__notes__")
    assert connects(None) == "token"
    assert clock.sleeps == []


def test_an_error_of_a_creator_is_none_of_the_server(clock):
    """As with plain SQLAlchemy: it may be one of the service that the creator asks for a token."""
    error = ConnectionRefusedError(111, "no token")
    creator = server(error)
    engine = sa_railway.create_engine("postgresql+psycopg2://", creator=creator)

    for calls in (1, 2):
        with pytest.raises(ConnectionRefusedError) as caught:
            engine.connect()
        assert caught.value is error
        assert len(creator.calls) == calls

    assert not hasattr(error, "__notes__")
    assert clock.sleeps == []


def test_an_error_of_another_database_in_a_creator_is_none_of_the_server(clock):
    other = sqlalchemy.create_engine(
        "postgresql+psycopg2://", creator=server(psycopg2.OperationalError("Connection refused"))
    )
    engine = sa_railway.create_engine("postgresql+psycopg2://", creator=other.connect)

    with pytest.raises(sqlalchemy.exc.OperationalError, match="Connection refused") as caught:
        engine.connect()

    assert not hasattr(caught.value, "__notes__")
    assert clock.sleeps == []


def test_the_drivers_error_in_a_creator_is_one_of_the_server(clock, longest_pauses):
    refused = psycopg2.OperationalError("Connection refused")
    creator = server(refused, refused, psycopg2.OperationalError(WRONG_PASSWORD))
    engine = sa_railway.create_engine("postgresql+psycopg2://", creator=creator)

    with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
        engine.connect()

    assert clock.sleeps == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("way", ["async_creator", "async_creator_fn", "password"])
def test_an_error_of_a_function_for_asyncpg_is_none_of_the_server(way):
    calls = []

    async def ask(*args, **kwargs):
        calls.append(args)
        raise ConnectionRefusedError(111, "no token")

    async def main():
        options = {way: ask} if way == "async_creator" else {"connect_args": {way: ask}}
        engine = sa_railway.create_async_engine("postgresql+asyncpg://u@127.0.0.1/d", **options)
        with pytest.raises(ConnectionRefusedError, match="no token") as caught:
            await engine.connect()
        await engine.dispose()
        return caught.value

    assert not hasattr(asyncio.run(main()), "__notes__")
    assert len(calls) == 1


def test_an_error_of_a_listener_leaves_the_breaker_open(clock):
    engine: Any = SimpleNamespace(
        dialect=SimpleNamespace(connect=server(REFUSED), driver="psycopg2")
    )
    surround(engine)
    tokens = iter(["token", LookupError("no token")])

    def creator(record):
        token = next(tokens)
        if isinstance(token, LookupError):
            raise token
        return engine.dialect.connect(password=token)

    patience = Patience(Profile(connect_patience=0, breaker_pause=2), is_async=False)
    connects = patience.wrap(creator)
    with pytest.raises(ConnectionRefusedError):
        connects(None)
    clock.now += 2
    with pytest.raises(LookupError):  # of the probe
        connects(None)

    assert patience._breaker.enter("the next probe") is True


def test_a_running_event_loop_is_not_stopped_by_a_wait(clock):
    connect = server(REFUSED)
    connects = patient(connect)

    async def main():
        with pytest.raises(ConnectionRefusedError):
            connects()
        with pytest.raises(ConnectionRefusedError):  # and not one of an open breaker
            connects()

    asyncio.run(main())

    assert len(connect.calls) == 2
    assert clock.sleeps == []


@pytest.fixture
def sigterm():
    """Put a handler in the place of SIGTERM's; yield what it was called with."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *call: calls.append(call))
    yield calls
    signal.signal(signal.SIGTERM, before)
    calls.clear()  # of the frames, which hold what the test has set


@pytest.fixture
def running(monkeypatch):
    """Let a SIGTERM of this test be forgotten after it."""
    monkeypatch.setattr(stopping, "_stopped_pid", None)
    monkeypatch.setattr(stopping, "_notes", [])


def test_a_process_that_is_being_stopped_does_not_wait(clock, sigterm, running):
    attempts = itertools.count(1)

    def connect():
        if next(attempts) == 3:
            signal.raise_signal(signal.SIGTERM)
        raise REFUSED

    connects = patient(connect)
    with pytest.raises(ConnectionRefusedError):
        connects()
    assert next(attempts) == 4
    assert len(sigterm) == 1

    with pytest.raises(ConnectionRefusedError):  # the breaker is not open
        connects()
    assert next(attempts) == 6


def test_a_wait_ends_when_the_process_is_being_stopped(clock, sigterm, running, longest_pauses):
    def sleep(seconds):
        clock.sleeps.append(seconds)
        clock.now += seconds
        if len(clock.sleeps) == 2:
            signal.raise_signal(signal.SIGTERM)

    clock.sleep = sleep
    connect = server(REFUSED)

    with pytest.raises(ConnectionRefusedError):
        patient(connect, Profile(backoff_base=30, backoff_cap=30, connect_patience=100))()

    assert clock.sleeps == [0.25, 0.25]
    assert len(connect.calls) == 2


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_without_a_handler_is_left_alone(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        stopping.watch()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_watched_once_and_again_when_its_handler_is_replaced(sigterm, running):
    stopping.watch()
    watched = signal.getsignal(signal.SIGTERM)
    assert callable(watched)
    stopping.watch()
    assert signal.getsignal(signal.SIGTERM) is watched

    order = []

    def outer(*call):
        order.append("outer")
        watched(*call)

    signal.signal(signal.SIGTERM, outer)
    stopping.watch()
    signal.raise_signal(signal.SIGTERM)

    assert order == ["outer"]
    assert len(sigterm) == 1
    assert stopping.is_stopping()


class Disposition(ctypes.Structure):
    """What Linux knows of a signal."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong),
        ("rest_of_mask", ctypes.c_byte * (128 - ctypes.sizeof(ctypes.c_ulong))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def disposition():
    found = Disposition()
    assert ctypes.CDLL(None).sigaction(signal.SIGTERM, None, ctypes.byref(found)) == 0
    return found.handler, found.mask, found.flags


@pytest.mark.parametrize("interrupts", [True, False])
def test_the_signal_interrupts_what_it_has_interrupted(sigterm, running, interrupts):
    """Such as asyncio and Gunicorn ask for: siginterrupt() with False."""
    signal.siginterrupt(signal.SIGTERM, interrupts)
    before = disposition()

    stopping.watch()
    assert disposition() == before

    signal.raise_signal(signal.SIGTERM)
    assert stopping.is_stopping()


def test_a_handler_in_c_before_that_of_python_stays(sigterm, running, tmp_path):
    with open(tmp_path / "dump", "w+") as dump:
        faulthandler.register(signal.SIGTERM, file=dump, all_threads=False, chain=True)
        try:
            stopping.watch()
            signal.raise_signal(signal.SIGTERM)
        finally:
            faulthandler.unregister(signal.SIGTERM)
        dump.seek(0)
        assert "most recent call first" in dump.read()

    assert len(sigterm) == 1
    assert stopping.is_stopping()


def test_a_signal_is_left_alone_where_its_flags_cannot_be_kept(sigterm, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctypes", None)
    handler = signal.getsignal(signal.SIGTERM)

    stopping.watch()

    assert signal.getsignal(signal.SIGTERM) is handler


class Server:
    """One whose handler is a method, as those of Gunicorn and uvicorn are."""

    def stop(self, number, frame):
        """Stop."""


@pytest.mark.parametrize("handler", [Server().stop, functools.partial(print), print])
def test_a_program_knows_its_handler_again(sigterm, handler):
    signal.signal(signal.SIGTERM, handler)
    stopping.watch()
    watched = signal.getsignal(signal.SIGTERM)
    assert isinstance(watched, stopping._Noticing)

    assert watched == handler
    assert handler == watched
    assert hash(watched) == hash(handler)
    assert watched != sys.exit
    assert watched.__wrapped__ is handler
    for name in ("__self__", "__func__", "__name__", "__qualname__", "args"):
        assert getattr(watched, name, None) == getattr(handler, name, None)

    signal.signal(signal.SIGTERM, sys.exit)  # type: ignore[arg-type]
    stopping.watch()
    assert signal.getsignal(signal.SIGTERM) != watched
    signal.signal(signal.SIGTERM, handler)
    stopping.watch()
    assert signal.getsignal(signal.SIGTERM) == watched


def test_a_handler_that_is_called_in_another_way_gets_what_it_takes(sigterm, running):
    signal.signal(signal.SIGTERM, lambda *args, **options: sigterm.append((args, options)))
    stopping.watch()

    handler: Any = signal.getsignal(signal.SIGTERM)
    handler(signal.SIGTERM, frame=None)

    assert sigterm == [((signal.SIGTERM,), {"frame": None})]


def test_a_program_that_always_puts_its_handler_before_makes_no_endless_chain(sigterm, running):
    """Such as a library that looks again and again whether its own is still the one in place."""
    mine = None
    for _ in range(100):
        if (current := signal.getsignal(signal.SIGTERM)) is not mine:
            mine = functools.partial(lambda inner, *call: inner(*call), current)
            signal.signal(signal.SIGTERM, mine)
        stopping.watch()

    depth = 0
    handler = signal.getsignal(signal.SIGTERM)
    while isinstance(handler, functools.partial | stopping._Noticing):
        depth += isinstance(handler, stopping._Noticing)
        handler = handler.args[0] if isinstance(handler, functools.partial) else handler.__wrapped__
    assert 0 < depth <= 32
    signal.raise_signal(signal.SIGTERM)
    assert len(sigterm) == 1
    assert stopping.is_stopping()


def test_a_program_that_sets_and_restores_its_handlers_is_always_watched(sigterm):
    """Such as one test after the other that starts a server."""
    stopping.watch()
    watched = signal.getsignal(signal.SIGTERM)
    for _ in range(100):
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        stopping.watch()
        assert isinstance(signal.getsignal(signal.SIGTERM), stopping._Noticing)
        signal.signal(signal.SIGTERM, before)

    assert signal.getsignal(signal.SIGTERM) is watched


def test_a_handler_is_not_kept_alive(sigterm):
    server = Server()
    gone = weakref.ref(server)
    signal.signal(signal.SIGTERM, server.stop)
    stopping.watch()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    del server

    assert gone() is None


def test_a_thread_leaves_the_signal_to_the_main_thread(sigterm):
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stopping.watch)
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_forked_child_of_a_process_that_stops_goes_on(running, monkeypatch, sigterm):
    stopping.watch()
    signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert not stopping.is_stopping()
