"""Threads, locks and poll() where gevent or eventlet has replaced those of Python."""

import _thread
import select
import socket
import threading

import pytest

from sa_railway.engine import native, watchdog
from sa_railway.engine.liveness import Look, look
from sa_railway.engine.native import Bell
from sa_railway.engine.watchdog import Deadline


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


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

    assert look(ours) is Look.QUIET
    theirs.send(b"x")
    assert look(ours) is Look.READABLE
    theirs.close()
    assert look(ours) is Look.CLOSED


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

    native.start_thread(sleep, "sleeper")
    bell.ring()

    assert woken.wait(10)


def test_the_wait_for_a_bell_has_a_limit():
    Bell().wait(0.001)
    Bell().wait(-1.0)
