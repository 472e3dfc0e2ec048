"""Threads, locks and poll() where gevent or eventlet has replaced those of Python."""

import _thread
import select
import threading
from types import SimpleNamespace

import pytest

from sa_railway.engine import native, watchdog
from sa_railway.engine.driver import is_pooled
from sa_railway.engine.liveness import SocketState, socket_state
from sa_railway.engine.native import Bell
from sa_railway.engine.watchdog import Deadline


@pytest.fixture
def patched(monkeypatch):
    """A process in which no new thread of Python's is one of the system's, as under gevent."""

    def refuse(*_, **__):
        raise AssertionError("this would be a greenlet")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    monkeypatch.setattr(_thread, "allocate_lock", refuse)
    monkeypatch.setattr(threading, "_start_new_thread", refuse)
    monkeypatch.setattr(threading, "_allocate_lock", refuse)
    monkeypatch.setattr(threading, "Lock", refuse)
    monkeypatch.setattr(threading, "RLock", refuse)
    monkeypatch.setattr(select, "poll", refuse)


def test_a_deadline_passes_whatever_has_become_of_threads(pair, patched, monkeypatch):
    ours, _ = pair
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())

    with Deadline(ours.fileno(), 0.01) as deadline:
        assert ours.recv(1) == b""

    assert deadline.expired


def test_a_socket_can_be_looked_at_without_select_poll(pair, monkeypatch):
    monkeypatch.delattr(select, "poll")  # as eventlet does
    ours, theirs = pair

    assert socket_state(ours) is SocketState.NOTHING_TO_READ
    theirs.send(b"x")
    assert socket_state(ours) is SocketState.READABLE
    theirs.close()
    assert socket_state(ours) is SocketState.CLOSED


def test_a_bell_that_rang_before_the_wait_ends_it(patched):
    bell = Bell()
    bell.ring()
    bell.ring()

    bell.wait()


def test_a_bell_wakes_another_thread():
    bell, woken = Bell(), threading.Event()

    def sleep():
        bell.wait(10)
        woken.set()

    native.start_thread(sleep, "sleep_function")
    bell.ring()

    assert woken.wait(10)


@pytest.mark.parametrize(
    ("pid", "expected"),
    [
        (1, False),
        (4_194_304, False),
        (4_194_305, True),
        (-17, True),
        (0, True),
        ("of a mock", False),
    ],
)
def test_a_pid_that_no_process_can_have_is_that_of_a_pooler(pid, expected):
    assert is_pooled(SimpleNamespace(info=SimpleNamespace(backend_pid=pid))) is expected
    assert is_pooled(SimpleNamespace(get_server_pid=lambda: pid)) is expected
    assert is_pooled(SimpleNamespace()) is False


def test_the_wait_for_a_bell_has_a_limit():
    Bell().wait(0.001)
    Bell().wait(-1.0)
