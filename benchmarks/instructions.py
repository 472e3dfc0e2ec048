"""What a checkout and a request cost in instructions, which a busy machine does not change.

    python benchmarks/instructions.py [NAME ...]

Counts those of the client with Valgrind's callgrind and prints them as ratios to the same work
without the package. The server's are not counted, so the ratio of a query is higher than in time.
NAME is a part of the names of the rows to count, such as "request" or "psycopg2, checkout".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import checkout
import request
import sqlalchemy
from sqlalchemy import URL

from sa_railway.testing import TemporaryPostgres

CALLS = (100, 600)  # the second less the first is counted, without what comes before and after


def unit(kind: str, work: str, url: URL) -> Callable[[], object]:
    """Return the work of one row, as a function to call again and again."""
    if work in checkout.WORK:
        engine = checkout.KINDS[kind](url)
        return lambda: checkout.WORK[work](engine)
    app = request.make_app(url, has_railway=kind == "sa_railway")
    return request.caller(app, *request.REQUESTS[work.removeprefix("request, ")])


def count(url: URL, kind: str, work: str) -> float:
    """Return the client's instructions for one call of *work*."""
    totals = []
    for calls in CALLS:
        arguments = (url.render_as_string(hide_password=False), kind, work, str(calls))
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                *(sys.executable, __file__, "--call", *arguments),
            ],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{work} failed:\n{done.stderr}")
        (line,) = [line for line in done.stderr.splitlines() if "Collected" in line]
        totals.append(int(line.split(":")[1]))
    return (totals[1] - totals[0]) / (CALLS[1] - CALLS[0])


def call(url: str, kind: str, work: str, calls: str) -> None:
    """Be the client whose instructions are counted."""
    once = unit(kind, work, sqlalchemy.make_url(url))
    once()
    for _ in range(int(calls)):
        once()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the names of the rows")
    parser.add_argument("--call", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        call(*arguments.call)
        return
    works = [*checkout.WORK, *(f"request, {name}" for name in request.REQUESTS)]
    print("| | without | `sa_railway` | ratio |", "|---|---|---|---|", sep="\n")
    with TemporaryPostgres() as server:
        for driver, work in product(checkout.DRIVERS, works):
            title = f"{driver}, {work}"
            if arguments.names and not any(name in title for name in arguments.names):
                continue
            url = server.url_for(driver)
            plain, ours = (count(url, kind, work) for kind in ("no check", "sa_railway"))
            print(f"| {title} | {plain:,.0f} | {ours:,.0f} | {ours / plain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
