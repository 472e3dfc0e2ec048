"""Numbers in the memory of several processes, each of which may end at any moment.

Forking happens in programs of their own, because the one that runs the tests has threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sa_railway.metrics import shared_memory
from sa_railway.metrics.shared_memory import SharedNumbers

FIELDS = ("open", "count")


def end(values: memoryview[float]) -> None:
    values[0] = 0.0


def numbers() -> SharedNumbers:
    return SharedNumbers(FIELDS, end)


PREAMBLE = """
import json, os, signal, sys

class Child:
    '''Runs a function in a forked child, which then waits to be told to end, or to be killed.'''

    def __init__(self, function):
        ready, self.ready = os.pipe()
        self.go, go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(go)  # so that the end of the parent is seen
            function()
            os.write(self.ready, b"x")
            os.read(self.go, 1)
            os._exit(0)
        os.read(ready, 1)
        self.go = go

    def end(self, how=signal.SIGKILL):
        os.kill(self.pid, how)
        os.waitpid(self.pid, 0)
"""
NUMBERS = """
from sa_railway.metrics.shared_memory import SharedNumbers

def end(values):
    values[0] = 0.0

numbers = SharedNumbers(("open", "count"), end)

def count():
    numbers.forget_parent()
    values = numbers.claim("a")
    values[0] += 1
    values[1] += 1

def show():
    blocks = list(numbers.read())
    print(json.dumps([[b.name, b.values, b.is_alive] for b in blocks]))
"""


def run(program: str, **environment: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_child_has_numbers_of_its_own_and_all_see_them():
    shown = run(
        NUMBERS
        + """
first, second = Child(count), Child(count)
show()
first.end()
show()
"""
    )

    assert shown == [
        [["a", [1, 1], True], ["a", [1, 1], True]],
        [["a", [1, 1], False], ["a", [1, 1], True]],
    ]


def test_a_successor_counts_on_where_the_dead_one_has_stopped():
    shown = run(
        NUMBERS
        + """
count()
for _ in range(3):
    child = Child(count)
    show()
    child.end()
"""
    )

    assert shown == [[["a", [1, 1], True], ["a", [1, count], True]] for count in (1, 2, 3)]


def test_two_who_look_at_once_do_not_take_each_other_for_the_owner():
    shown = run(
        NUMBERS
        + """
Child(count).end()

def look():
    numbers.forget_parent()
    import fcntl
    fcntl.lockf(numbers._descriptor, fcntl.LOCK_SH, 1, 0)  # as within read()

child = Child(look)
show()
child.end()
"""
    )

    assert shown == [[["a", [1, 1], False]]]


def test_processes_share_a_directory_if_there_is_one(tmp_path: Path):
    directory = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        run(NUMBERS + "count()", **directory)

    assert run(NUMBERS + "show()", **directory) == [[["a", [1, 2], False]]]
    assert [path.suffix for path in tmp_path.iterdir()] == [".mmap"]  # what Prometheus passes over
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_other_fields_are_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    numbers()
    SharedNumbers((*FIELDS, "more"), end)

    assert len(list(tmp_path.iterdir())) == 2


def test_without_the_directory_the_numbers_are_those_of_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    missing = tmp_path / "missing"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(missing))
    own = numbers()
    own.claim("a")[1] += 1

    assert [block.values for block in own.read()] == [[0, 1]]
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("Metrics are not shared in PROMETHEUS_MULTIPROC_DIR: ")
    assert f"{str(missing)!r}"[:-1] in message


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
def test_a_link_that_was_put_in_the_place_of_the_file_is_not_written_through(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    plant: str,
):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    numbers()
    (file,) = tmp_path.iterdir()
    file.unlink()
    diary = tmp_path / "diary.txt"
    diary.write_text("mine")
    getattr(file, plant)(diary)

    own = numbers()
    own.claim("a")[1] += 1

    assert [block.values for block in own.read()] == [[0, 1]]
    assert diary.read_text() == "mine"
    reason = {
        "symlink_to": "[Errno 40] Too many levels of symbolic links",
        "hardlink_to": "[Errno 17] it is a link, or not a regular file",
    }[plant]
    assert [record.getMessage() for record in caplog.records] == [
        f"Metrics are not shared in PROMETHEUS_MULTIPROC_DIR: {reason}: {str(file)!r}"
    ]


def test_a_pipe_in_the_place_of_the_file_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    numbers()
    (file,) = tmp_path.iterdir()
    file.unlink()
    os.mkfifo(file)

    numbers()

    assert [record.getMessage() for record in caplog.records] == [
        "Metrics are not shared in PROMETHEUS_MULTIPROC_DIR: "
        f"[Errno 17] it is a link, or not a regular file: {str(file)!r}"
    ]


SPAWNED = """
import multiprocessing
import sqlalchemy
import sa_railway
from sa_railway.metrics.snapshot import snapshot


def query(path):
    engine = sa_railway.create_engine(f"sqlite:///{path}", metrics=True)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    return engine


if __name__ == "__main__":
    import json, sys
    from sa_railway.metrics.counters import read_all
    from sa_railway.metrics.definitions import FIELDS

    query(sys.argv[1])
    child = multiprocessing.get_context(sys.argv[2]).Process(target=query, args=(sys.argv[1],))
    child.start()
    child.join()
    print(json.dumps(sum(block.values[FIELDS.index("queries")] for block in read_all())))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_are_not_forked_from_us_are_counted_by_the_directory(
    tmp_path: Path, method: str
):
    program, directory = tmp_path / "program.py", tmp_path / "metrics"
    program.write_text(SPAWNED)
    directory.mkdir()

    done = subprocess.run(
        [sys.executable, program, tmp_path / "app.db", method],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == ("2.0\n", "")


def test_a_name_is_found_again():
    own = numbers()
    own.claim("a")[1] += 1
    own.claim("b")[1] += 5

    assert own.claim("a").tolist() == [0, 1]
    assert [(block.name, block.values) for block in own.read()] == [("a", [0, 1]), ("b", [0, 5])]


def test_a_long_name_is_cut():
    own = numbers()
    own.claim("ä" * 40)

    assert [block.name for block in own.read()] == ["ä" * 32]


def test_more_names_than_there_is_room_for_count_in_private(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    monkeypatch.setattr(shared_memory, "_BLOCKS", 2)
    own = numbers()
    for name in "abc":
        own.claim(name)[1] += 1

    assert [block.name for block in own.read()] == ["a", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        "c: not in the metrics, which have room for 2 engines"
    ]


def test_more_processes_than_there_is_room_for_count_in_private():
    shown = run(
        """
import logging
logging.basicConfig(format='"%(message)s"', stream=sys.stdout)
from sa_railway.metrics import shared_memory
shared_memory._SLOTS = 1
"""
        + NUMBERS
        + """
count()

def count_and_show():
    count()
    show()

Child(count_and_show).end()
"""
    )

    assert shown == [
        "The metrics of this process are its own: none of 1 slots free",
        [["a", [1, 1], True]],
    ]


def test_where_nothing_can_be_locked_the_numbers_are_private():
    shown = run(
        "sys.modules['fcntl'] = None\n"
        + NUMBERS
        + """
count()
show()

def count_and_show():
    count()
    show()
    sys.stdout.flush()

sys.stdout.flush()
Child(count_and_show).end()
show()
"""
    )

    assert shown == [[["a", [1, 1], True]]] * 3


ENGINE = """
import sqlalchemy
import sa_railway
from sa_railway.metrics.counters import read_all
from sa_railway.metrics.definitions import FIELDS, gauges
from sa_railway.metrics.snapshot import snapshot

engine = sa_railway.create_engine(f"sqlite:///{sys.argv[1]}", pool_size=2, metrics=True)

def query():
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))

def show():
    now = snapshot(engine)
    print(json.dumps([now.counters["queries"], now.gauges["checked_out"], now.gauges["open"]]))

def show_all():
    queries = FIELDS.index("queries")
    print(json.dumps([
        [block.values[queries], gauges(block.values), block.is_alive] for block in read_all()
    ]))
"""


@pytest.fixture
def engine_program(tmp_path: Path) -> str:
    return f"import sys; sys.argv.append({str(tmp_path / 'app.db')!r})\n" + PREAMBLE + ENGINE


@pytest.mark.parametrize("drop", ["del held", "held.close()", "held.invalidate()", "held.detach()"])
def test_a_child_begins_at_zero_and_takes_nothing_from_its_parent(engine_program: str, drop: str):
    shown = run(
        engine_program
        + f"""
import gc
query()
held = engine.raw_connection()

def child():
    global held
    show()
    query()
    {drop}  # it is not the child's own
    gc.collect()
    show()
    sys.stdout.flush()

Child(child).end()
show()
"""
    )

    assert shown == [[0, 0, 0], [1, 0, 1], [1, 1, 1]]


def test_the_pools_of_all_living_processes_are_summed_up(engine_program: str):
    shown = run(
        engine_program
        + """
from dataclasses import asdict
from sa_railway.metrics.snapshot import processes

query()

def hold():
    global held
    held = engine.connect()

first, second = Child(hold), Child(hold)
print(json.dumps(asdict(processes(engine))))
first.end()
print(json.dumps(asdict(processes(engine))))
"""
    )

    assert shown == [
        {"count": 3, "open": 3, "checked_out": 2, "waiting": 0, "limit": 36},
        {"count": 2, "open": 2, "checked_out": 1, "waiting": 0, "limit": 24},
    ]


def test_a_child_that_is_killed_leaves_its_counts_and_nothing_else(engine_program: str):
    shown = run(
        engine_program
        + """
query()

def hold():
    global held
    query()
    held = engine.connect()

for _ in range(2):
    child = Child(hold)
    child.end()
show_all()
child = Child(query)
show_all()
"""
    )
    own = {"size": 2, "limit": 12, "open": 1, "overflow": 0, "checked_out": 0, "waiting": 0}

    assert [[queries, is_alive] for queries, _, is_alive in shown[0]] == [[1, True], [2, False]]
    assert shown[1] == [[1, own, True], [3, own, True]]
