"""What every application of this folder shares: two sides, and what each of them reports."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy import URL, text

from sa_railway.testing import TemporaryPostgres


@dataclass
class Report:
    """What one side of an application has seen.

    Attributes:
        did: what was done, in a few words.
        tried: how many requests, tasks, trials or commands.
        failures: the first line of each failure, and how often it came.
        lost: what was acknowledged, or there before, and is missing, changed or doubled now.
    """

    did: str
    tried: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def fail(self, error: object) -> None:
        """Count *error*, which is an exception or a text."""
        kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
        self.failures[f"{kind}{error}".strip().partition("\n")[0][:160]] += 1


def engine_arguments(*, plugin: bool) -> dict[str, Any]:
    """Return what a side gives to ``create_engine()``: one argument, on either side."""
    return {"plugins": ["railway"]} if plugin else {"pool_pre_ping": True}


def environment(*, plugin: bool, url: URL | str, **others: object) -> dict[str, str]:
    """Return the variables for a process of the application."""
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    given = {"DATABASE_URL": url, "PLUGIN": "1" if plugin else "", **others}
    return {**os.environ, **{name: str(value) for name, value in given.items()}}


def end(report: Report, process: subprocess.Popen[bytes]) -> None:
    """Ask a server or a worker to stop; that it does not is a failure as well."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        report.fail("the process does not stop")
        process.kill()
        process.wait()


def last_error(output: str) -> str:
    """Return the line of *output* that names the last exception, or its last line."""
    lines = output.strip().splitlines() or [""]
    return next(
        (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)", line)), lines[-1]
    )


def wrong_rows(server: TemporaryPostgres, written: Iterable[int]) -> list[str]:
    """Return a line for each number of *written* that has not one row in the table ``entry``."""
    engine = sqlalchemy.create_engine(server.url)
    with engine.connect() as connection:
        found = Counter(connection.scalars(text("SELECT number FROM entry")))
    engine.dispose()
    return [f"{number} has {found[number]} rows" for number in written if found[number] != 1]


def main(run: Callable[[bool], Report]) -> None:
    """Run the side that the command line names, and print its report as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("plain", "plugin"))
    print(json.dumps(vars(run(parser.parse_args().side == "plugin"))))
