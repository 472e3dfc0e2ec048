"""The demo: its table, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = (sys.executable, "examples/demo")
WITHOUT_POSTGRES = """
import runpy
from sa_railway.testing import binaries
binaries._USUAL_FOLDERS = ()
binaries._WHEEL = "no_such_wheel"
runpy.run_path("examples/demo", run_name="__main__")
"""
WITHOUT_FLASK = """
import importlib.util, runpy, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "flask" else find_spec(name)
sys.argv[1:] = ["--json"]
runpy.run_path("examples/demo", run_name="__main__")
"""


class Demo:
    """A demo that runs, in a folder of its own for what it may leave behind."""

    def __init__(
        self, folder: Path, *command: str, stderr: int = subprocess.STDOUT, **variables: str
    ) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": str(folder),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def output(self) -> str:
        return self.process.communicate(timeout=90)[0]

    def leftovers(self) -> list[object]:
        """The files and processes that there still are, where the system tells."""
        mark = f"TMPDIR={self._folder}".encode()
        return [*self._folder.iterdir(), *(p for p in environments() if mark in p)]


def environments() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue


# --- with PostgreSQL ---


@pytest.fixture(scope="module")
def demo(postgres_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"), *DEMO, "--quick")


@pytest.fixture(scope="module")
def output(demo: Demo) -> str:
    return demo.output()


@pytest.fixture(scope="module")
def table(output: str) -> dict[str, list[int]]:
    """The rows of numbers: for each variant those answered and those failed."""
    rows = re.findall(r"^(\S.*?)((?: +\d+){6})$", output, re.MULTILINE)
    return {title: [int(number) for number in numbers.split()] for title, numbers in rows}


FAULTS = [
    "connections terminated, 2x",
    "idle connections closed, 1x",
    "idle connections frozen",
    "server restarted, 1 s away",
]


def test_the_demo_ends_well(demo: Demo, output: str):
    assert demo.process.returncode == 0, output
    assert demo.leftovers() == []


def test_the_demo_says_what_it_does(output: str):
    steps = re.findall(r"^ *\d+\.\d s  ([^:\n]*)", output, re.MULTILINE)

    assert steps == ["starting the applications", "no fault", *FAULTS, "done"]


def test_every_variant_gets_the_same_requests(table: dict[str, list[int]]):
    for row in table.values():
        sent = {answered + failed for answered, failed in zip(row[::2], row[1::2], strict=True)}
        assert len(sent) == 1


def test_the_rows_add_up_to_the_total(table: dict[str, list[int]]):
    total = table.pop("total")

    assert list(table) == ["no fault", *FAULTS]
    assert [sum(column) for column in zip(*table.values(), strict=True)] == total


@pytest.mark.parametrize(
    ("fault", "plain", "pool_pre_ping"),
    [
        ("no fault", False, False),
        ("connections terminated, 2x", True, False),
        ("idle connections closed, 1x", True, False),
        ("idle connections frozen", True, True),
        ("server restarted, 1 s away", True, True),
    ],
)
def test_what_fails_without_sa_railway_does_not_fail_with_it(
    table: dict[str, list[int]], fault: str, *, plain: bool, pool_pre_ping: bool
):
    failed = table[fault][1::2]

    assert [bool(number) for number in failed] == [plain, pool_pre_ping, False]


def test_no_write_is_lost_or_doubled(output: str):
    assert re.search(r"^writes answered but lost +0 +0 +0$", output, re.MULTILINE)
    assert re.search(r"^writes stored twice +0 +0 +0$", output, re.MULTILINE)


def test_an_interrupted_demo_leaves_nothing_behind(postgres_binaries: Path, tmp_path: Path):
    demo = Demo(tmp_path, *DEMO, "--quick")
    assert demo.process.stdout is not None
    for line in demo.process.stdout:
        if line.endswith("no fault: only requests\n"):
            break
    demo.process.send_signal(signal.SIGINT)

    assert demo.output() == "\nInterrupted; everything is stopped and removed.\n"
    assert demo.process.returncode == 130
    assert demo.leftovers() == []


def test_for_machines_there_is_one_object_and_progress_elsewhere(
    postgres_binaries: Path, tmp_path: Path
):
    demo = Demo(tmp_path, *DEMO, "--quick", "--json", stderr=subprocess.PIPE)
    output, progress = demo.process.communicate(timeout=90)
    shown = json.loads(output)

    assert demo.process.returncode == 0
    assert list(shown) == ["plain", "pool_pre_ping", "sa_railway"]
    assert all(list(variant["steps"]) == ["no fault", *FAULTS] for variant in shown.values())
    failed = [sum(s["failed"] for s in v["steps"].values()) for v in shown.values()]
    assert failed[0] > failed[1] > failed[2] == 0
    assert [(v["lost"], v["twice"]) for v in shown.values()] == [(0, 0)] * 3
    assert progress.startswith("One small Flask application, three times")


# --- without ---


def test_without_postgresql_the_demo_uses_sqlite(tmp_path: Path):
    demo = Demo(tmp_path, sys.executable, "-c", WITHOUT_POSTGRES, PATH="")
    output = demo.output()

    assert demo.process.returncode == 1, output
    assert output.startswith("No PostgreSQL server was found: ")
    assert output.endswith(
        "\n\nSo there is no server to break. The application on the SQLite file it uses:\n\n"
        '  GET  /health/ready  200  {"status": "ready", "reason": null}\n'
        '  POST /notes         201  {"id":1,"text":"A file will do."}\n'
        '  GET  /notes         200  [{"id":1,"text":"A file will do."}]\n'
    )
    assert demo.leftovers() == []


def test_without_flask_the_demo_says_what_to_install(tmp_path: Path):
    demo = Demo(tmp_path, sys.executable, "-c", WITHOUT_FLASK, stderr=subprocess.PIPE)
    output, said = demo.process.communicate(timeout=90)
    reason = (
        "the application of the demonstration needs Flask and Gunicorn: "
        'pip install "sa-railway[flask,gunicorn]"'
    )

    assert json.loads(output) == {"error": reason}
    assert said == f"python examples/demo: {reason}\n"
    assert demo.process.returncode == 1
