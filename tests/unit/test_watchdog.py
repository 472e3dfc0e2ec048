"""Deadlines of blocking calls, on socket pairs."""

import os
import socket
import threading
from typing import Any

import pytest

from sa_railway.engine import watchdog
from sa_railway.engine.watchdog import Deadline


def test_a_call_that_is_never_answered_returns(pair):
    ours, _ = pair

    with Deadline(ours.fileno(), 0.01) as deadline:
        assert ours.recv(1) == b""

    assert deadline.expired


def test_a_call_that_is_answered_in_time_is_left_alone(pair):
    ours, theirs = pair

    with Deadline(ours.fileno(), 60) as deadline:
        theirs.send(b"x")
        assert ours.recv(1) == b"x"

    assert not deadline.expired
    theirs.send(b"y")
    assert ours.recv(1) == b"y"


def test_the_earlier_deadline_comes_first_whenever_it_was_set(pair):
    ours, _ = pair
    other, peer = socket.socketpair()
    with other, peer, Deadline(other.fileno(), 60) as late:
        with Deadline(ours.fileno(), 0.01) as early:
            ours.recv(1)

        assert early.expired
        assert not late.expired


def test_a_descriptor_that_changed_hands_is_not_touched(pair):
    """The driver closes its socket just before the deadline, and somebody else gets the number."""
    ours, _ = pair
    duplicate = os.dup(ours.fileno())
    innocent, peer = socket.socketpair()
    peer.settimeout(10)
    with innocent, peer, Deadline(duplicate, 0.01) as deadline:
        os.dup2(innocent.fileno(), duplicate)
        ours.recv(1)  # the original socket is what ends

        assert deadline.expired
        innocent.send(b"alive")
        assert peer.recv(5) == b"alive"
    os.close(duplicate)


def test_a_duplicate_that_others_have_closed_costs_neither_this_deadline_nor_the_next(pair):
    """As a daemon does that closes descriptors which it did not open."""
    ours, _ = pair
    with Deadline(ours.fileno(), 0.01) as deadline:
        assert deadline._duplicate is not None
        os.close(deadline._duplicate)
        assert ours.recv(1) == b""
    assert deadline.expired

    other, peer = socket.socketpair()
    other.settimeout(10)
    with other, peer, Deadline(other.fileno(), 0.01) as later:
        assert other.recv(1) == b""
    assert later.expired


@pytest.mark.parametrize("seconds", [0.01, 60])
def test_what_others_have_opened_under_the_number_of_the_duplicate_is_left_alone(pair, seconds):
    ours, _ = pair
    innocent, peer = socket.socketpair()
    peer.settimeout(10)
    with innocent, peer:
        with Deadline(ours.fileno(), seconds) as deadline:
            number = deadline._duplicate
            assert number is not None
            os.dup2(innocent.fileno(), number)
            if seconds < 1:
                assert ours.recv(1) == b""
        os.write(number, b"alive")
        assert peer.recv(5) == b"alive"
        os.close(number)


def test_the_watchdog_outlives_a_deadline_that_fails(pair, caplog):
    ours, _ = pair

    class Failing(Deadline):
        expire: Any = None

    failing = Failing(ours.fileno(), 0)
    told = threading.Event()

    def tell(record):
        told.set()
        return True

    caplog.handler.addFilter(tell)
    watchdog._watchdog.add(failing, 0)
    watchdog._watchdog.wake()
    assert told.wait(10)

    test_a_call_that_is_never_answered_returns(pair)
    assert [record.getMessage() for record in caplog.records] == ["A deadline could not be kept"]


def test_an_answer_that_has_arrived_is_no_silence(pair):
    """The process had no turn to read it, as after it was suspended."""
    ours, theirs = pair
    clock, peer = socket.socketpair()
    clock.settimeout(10)
    theirs.send(b"x")
    with clock, peer, Deadline(ours.fileno(), 0.01) as answered:
        with Deadline(clock.fileno(), 0.02):
            clock.recv(1)

        assert not answered.expired
        assert ours.recv(1) == b"x"
        assert ours.recv(1) == b""  # and now there is silence
        assert answered.expired


def test_no_descriptor_is_left_behind(pair):
    ours, _ = pair
    before = len(os.listdir("/dev/fd"))

    for seconds in (0.001, 60):
        with Deadline(ours.fileno(), seconds) as deadline:
            if seconds < 1:
                ours.recv(1)
                assert deadline.expired

    assert len(os.listdir("/dev/fd")) == before


def test_many_threads_share_one_watchdog(monkeypatch):
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())
    before = set(threading.enumerate())

    def wait(results):
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        with ours, theirs, Deadline(ours.fileno(), 0.01) as deadline:
            ours.recv(1)
            results.append(deadline.expired)

    results: list[bool] = []
    threads = [threading.Thread(target=wait, args=(results,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert results == [True] * 8
    names = [t.name for t in threading.enumerate() if t not in {*before, *threads}]
    assert names == ["sa_railway-watchdog"]


def test_a_forked_child_drops_the_sockets_of_pending_deadlines_and_has_a_watchdog_of_its_own(pair):
    ours, theirs = pair
    with Deadline(ours.fileno(), 60):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                inherited = watchdog._watchdog._heap
                mine, _peer = socket.socketpair()
                mine.settimeout(10)
                with Deadline(mine.fileno(), 0.01) as deadline:
                    mine.recv(1)
                ours.close()
                # the parent's socket has no holder here any more, and was not shut down
                status = 0 if deadline.expired and not inherited else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def test_a_fork_in_the_middle_of_an_end_leaves_the_child_no_socket_of_its_parent(pair):
    ours, _ = pair
    other, peer = socket.socketpair()
    with (
        other,
        peer,
        Deadline(ours.fileno(), 60) as ending,
        Deadline(other.fileno(), 60) as pending,
    ):
        assert ending._duplicate is not None
        os.close(ending._duplicate)  # and has not been able to say so yet
        child = os.fork()
        if child == 0:
            os._exit(0 if not os.path.exists(f"/dev/fd/{pending._duplicate}") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_where_threads_run_out_nothing_is_left_behind_and_the_next_one_tries_again(
    pair, monkeypatch
):
    ours, _ = pair
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())
    before = len(os.listdir("/dev/fd"))
    size = threading.stack_size(2**46)  # more than there is
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Deadline(ours.fileno(), 0.01).__enter__()
    finally:
        threading.stack_size(size)
    assert len(os.listdir("/dev/fd")) == before

    with Deadline(ours.fileno(), 0.01) as deadline:
        assert ours.recv(1) == b""

    assert deadline.expired
