"""The delay line of a stream, on a clock that only moves when told."""

import random

import pytest
from fix_clock import Clock

from sa_railway.testing import stream as module
from sa_railway.testing.stream import END, RESET, Stream
from sa_railway.testing.toxics import Latency, LimitData, SlowClose, Timeout, Toxics


class Peer:
    """Takes *room* bytes at most; gone when that is None."""

    def __init__(self, room=10**9):
        self.taken = b""
        self.room = room

    def send(self, data):
        if self.room is None:
            raise BrokenPipeError
        if self.room == 0:
            raise BlockingIOError
        taken = data[: self.room]
        self.taken += taken
        self.room -= len(taken)
        return len(taken)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def toxics():
    return Toxics()


@pytest.fixture
def stream(clock, toxics):
    return Stream("downstream", toxics)


def test_without_faults_data_passes_at_once_and_in_order(stream):
    peer = Peer()
    stream.push(b"one ")
    stream.push(b"two")
    stream.end(RESET)

    assert stream.send(peer.send) is RESET
    assert peer.taken == b"one two"
    assert stream.due is None


def test_latency_delays_each_piece_by_the_same_time(stream, toxics, clock):
    toxics.append(Latency(0.5, 0.0, "downstream"))
    peer = Peer()
    stream.push(b"one ")
    clock.now += 0.25
    stream.push(b"two")

    assert stream.send(peer.send) is None
    assert (peer.taken, stream.due) == (b"", 1000.5)
    clock.now = 1000.5
    stream.send(peer.send)
    assert (peer.taken, stream.due) == (b"one ", 1000.75)
    clock.now = 1000.75
    stream.send(peer.send)
    assert (peer.taken, stream.due) == (b"one two", None)


def test_latencies_add_up_and_those_of_the_other_stream_do_not_count(stream, toxics):
    toxics.append(Latency(0.5, 0.0, "downstream"))
    toxics.append(Latency(0.25, 0.0, "both"))
    toxics.append(Latency(4.0, 0.0, "upstream"))
    stream.push(b"one")

    assert stream.due == 1000.75


def test_jitter_never_lets_a_piece_overtake_another(stream, toxics, clock):
    random.seed(7)
    toxics.append(Latency(1.0, 1.0, "downstream"))
    peer = Peer()
    dues = []
    for number in range(50):
        stream.push(b"%02d" % number)
    while stream.due is not None:
        clock.now = stream.due
        dues.append(stream.due)
        stream.send(peer.send)

    assert peer.taken == b"".join(b"%02d" % number for number in range(50))
    assert len(dues) > 1
    assert 1000.0 <= dues[0] <= dues[-1] <= 1002.0


def test_hurry_makes_everything_due(stream, toxics):
    toxics.append(Latency(60.0, 0.0, "downstream"))
    peer = Peer()
    stream.push(b"one")
    stream.end(END)
    toxics.clear()
    stream.hurry()
    assert stream.send(peer.send) is END
    assert peer.taken == b"one"


def test_timeout_swallows_data_and_not_the_end(stream, toxics):
    timeout = Timeout("downstream")
    toxics.append(timeout)
    peer = Peer()
    stream.push(b"lost")
    assert stream.due is None
    toxics.remove(timeout)
    stream.push(b"found")
    toxics.append(timeout)
    stream.end(END)

    assert stream.send(peer.send) is END
    assert peer.taken == b"found"


def test_slow_close_delays_the_end_alone(stream, toxics, clock):
    toxics.append(SlowClose(0.5, "downstream"))
    peer = Peer()
    stream.push(b"one")
    stream.end(END)

    assert stream.send(peer.send) is None
    assert (peer.taken, stream.due) == (b"one", 1000.5)
    clock.now = 1000.5
    assert stream.send(peer.send) is END


@pytest.mark.parametrize("pieces", [[b"12345"], [b"12", b"345"], [b"1234567"], [b"123", b"4567"]])
def test_limit_data_ends_the_connection_after_exactly_so_many_bytes(stream, toxics, pieces):
    toxics.append(LimitData(5, "downstream"))
    peer = Peer()
    for piece in pieces:
        stream.push(piece)
    stream.push(b"more")

    assert stream.send(peer.send) is END
    assert peer.taken == b"12345"


def test_limit_data_counts_each_stream_for_itself(stream, toxics, clock):
    toxics.append(LimitData(5, "both"))
    other = Stream("upstream", toxics)
    stream.push(b"1234")
    other.push(b"1234")

    assert not stream.ends
    assert not other.ends
    other.push(b"5")
    assert not stream.ends
    assert other.ends


def test_what_the_other_side_has_no_room_for_waits(stream):
    peer = Peer(room=4)
    stream.push(b"one ")
    stream.push(b"two")
    stream.end(END)

    assert stream.send(peer.send) is None
    assert (peer.taken, stream.blocked, stream.due) == (b"one ", True, None)
    peer.room = 1
    assert stream.send(peer.send) is None
    assert (peer.taken, stream.blocked) == (b"one t", True)
    peer.room = 100
    assert stream.send(peer.send) is END
    assert (peer.taken, stream.blocked) == (b"one two", False)


def test_a_stream_is_full_until_enough_has_been_sent(stream):
    stream.push(bytes(16 * 1024 * 1024 - 1))
    assert not stream.full
    stream.push(b"1")
    assert stream.full
    stream.send(Peer(room=1).send)
    assert not stream.full


def test_when_the_other_side_is_gone_the_end_is_still_reached(stream):
    stream.push(b"one")
    stream.push(b"two")
    stream.end(END)

    assert stream.send(Peer(room=None).send) is END


def test_nothing_follows_the_end(stream):
    peer = Peer()
    stream.end(RESET)
    stream.push(b"late")
    stream.end(END)

    assert stream.send(peer.send) is RESET
    assert stream.due is None
    assert peer.taken == b""
