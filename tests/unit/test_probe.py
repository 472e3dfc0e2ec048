"""What a health report is made of: the pool, the probes of the server, and what is remembered."""

import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
import sqlalchemy
from sqlalchemy import NullPool, event, text
from sqlalchemy.pool import QueuePool

import sa_railway
from sa_railway.engine.state import profile_of
from sa_railway.health.history import round_trips, statements
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import recent_probes, start_probe
from sa_railway.metrics.snapshot import Window

# --- the pool ---


@pytest.mark.parametrize(
    ("max_overflow", "held", "expected"),
    [
        (1, 0, PoolState(2, checked_out=0, idle=0, overflow=0, max_overflow=1)),
        (1, 1, PoolState(2, checked_out=1, idle=0, overflow=0, max_overflow=1)),
        (1, 3, PoolState(2, checked_out=3, idle=0, overflow=1, max_overflow=1)),
        (-1, 3, PoolState(2, checked_out=3, idle=0, overflow=1, max_overflow=None)),
    ],
)
def test_the_state_of_a_pool(tmp_path, max_overflow, held, expected):
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}",
        poolclass=QueuePool,
        pool_size=2,
        max_overflow=max_overflow,
    )
    with ExitStack() as stack:
        for _ in range(held):
            stack.enter_context(engine.connect())

        state = PoolState.of(engine)

    assert state == expected
    assert state is not None
    assert state.is_saturated is (held == 3 and max_overflow == 1)
    engine.dispose()


def test_a_pool_without_a_size_has_no_state():
    assert PoolState.of(sqlalchemy.create_engine("sqlite://")) is None
    assert PoolState.of(sqlalchemy.create_engine("sqlite://", poolclass=NullPool)) is None


# --- probes ---


def connects(engine):
    """The list that every connect of *engine*, by whomever, adds to."""
    found = []
    event.listen(engine, "do_connect", lambda *_: found.append(threading.current_thread().name))
    return found


def test_an_answer_serves_all_who_ask_within_a_moment(engine):
    found = connects(engine)

    assert start_probe(engine).wait() is start_probe(engine).wait()
    assert found == ["sa_railway-probe"]


def test_after_that_moment_the_server_is_asked_again(tmp_path):
    engine = sa_railway.create_engine(f"sqlite:///{tmp_path / 'shop.db'}", probe_cache=0.0)
    found = connects(engine)

    assert start_probe(engine).wait() is not start_probe(engine).wait()
    assert len(found) == 2
    assert len(recent_probes(engine)) == 2


def test_a_probe_uses_the_pool_no_more_than_its_listeners_know(engine):
    seen = []
    for name in ("connect", "checkout", "checkin", "close", "invalidate"):
        event.listen(engine, name, lambda *_: seen.append(1))

    assert start_probe(engine).wait().failure is None
    assert seen == []
    assert engine.pool.checkedin() == 0


def test_a_copy_with_other_options_shares_probes_and_profile(engine):
    copy = engine.execution_options(isolation_level="AUTOCOMMIT")

    assert start_probe(copy).wait() is start_probe(engine).wait()
    assert profile_of(copy) is profile_of(engine)


def test_a_container_that_allows_no_thread_is_told(engine, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    probe = start_probe(engine).wait()

    assert probe.failure == "No thread could be started to ask the server."
    assert probe.advice == (
        "Raise the limit of processes and threads of the container, or run fewer of them."
    )


FORK = """
import os, sys
import sa_railway
from sa_railway.health.probe import recent_probes, start_probe

engine = sa_railway.create_engine(f"sqlite:///{sys.argv[1]}", probe_cache=3600.0, metrics=True)
parents = start_probe(engine).wait()
if os.fork() == 0:
    known = recent_probes(engine)
    own = start_probe(engine).wait()
    os._exit(0 if known == [] and own.failure is None and own is not parents else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_asks_for_itself(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FORK, tmp_path / "shop.db"]

    assert subprocess.run(command, capture_output=True, check=True).stdout == b"0\n"


# --- the history ---


def test_the_statements_of_the_last_minutes_in_parts(engine):
    with engine.connect() as connection:
        for _ in range(3):
            connection.execute(text("SELECT 1"))
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(text("SELECT * FROM nowhere"))

    parts = statements(engine, 300.0)

    assert len(parts) == 30
    assert parts[-1] == Window(10.0, successes=3, failures=1)
    assert set(parts[:-1]) == {Window(10.0)}


def test_the_round_trips_of_the_last_minutes(engine, monkeypatch):
    probe = start_probe(engine).wait()
    monkeypatch.setattr("sa_railway.health.history.time.time", lambda: probe.time + 100)

    (trip,) = round_trips(engine, 300.0)

    assert (trip.age, trip.seconds) == (100, probe.round_trip)
    assert round_trips(engine, 99.0) == []
