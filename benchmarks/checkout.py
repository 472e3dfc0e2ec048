"""What a checkout costs: no check, SQLAlchemy's pre-ping, and sa_railway, in one run.

    python benchmarks/checkout.py [--rounds 30] [--write]

Prints the median time of a checkout with its checkin, as a ratio to an engine with no check at all,
for each driver, on loopback and through a proxy that adds 2 ms to every round trip. Client and
server have a core each, and every round has new connections: where the kernel puts a server's
process changes a time more than what is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import sqlalchemy
from documents import put
from sqlalchemy import URL, Engine, text

import sa_railway
from sa_railway.testing import ChaosProxy, TemporaryPostgres

DRIVERS = ("psycopg2", "psycopg")
KINDS: dict[str, Callable[[URL], Engine]] = {
    "no check": sqlalchemy.create_engine,
    "pre-ping": lambda url: sqlalchemy.create_engine(url, pool_pre_ping=True),
    "sa_railway": sa_railway.create_engine,
}


def checkout(engine: Engine) -> None:
    engine.connect().close()


def checkout_and_query(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


WORK: dict[str, Callable[[Engine], None]] = {
    "checkout": checkout,
    "SELECT 1": checkout_and_query,
}


def measure(url: URL, work: Callable[[Engine], None], rounds: int, calls: int) -> dict[str, float]:
    """Return the median seconds of one call per kind of engine.

    The kinds take turns within every round, so that what else the machine does meets all alike.
    """
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        engines = {kind: make(url) for kind, make in KINDS.items()}
        for engine in engines.values():
            checkout_and_query(engine)
        turns = list(engines.items())
        for kind, engine in turns[number % 3 :] + turns[: number % 3]:
            started = time.perf_counter()
            for _ in range(calls):
                work(engine)
            times[kind].append((time.perf_counter() - started) / calls)
        for engine in engines.values():
            engine.dispose()
    return {kind: statistics.median(measured) for kind, measured in times.items()}


def row(title: str, values: dict[str, float]) -> str:
    """Return a row of the table: the *values* as ratios to the first one."""
    base = values["no check"]
    cells = f"| {title} | {' | '.join(f'{value / base:.2f}' for value in values.values())} |"
    print(cells, flush=True)
    return cells


def measure_all(rounds: int) -> list[str]:
    rows = ["| | no check | `pool_pre_ping` | `sa_railway` |", "|---|---|---|---|"]
    print(*rows, sep="\n")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    with TemporaryPostgres() as server:
        os.sched_setaffinity(0, cores[:1])
        for driver in DRIVERS:
            url = server.url_for(driver)
            rows.append(row(f"{driver}, checkout", measure(url, checkout, rounds, 500)))
            rows.append(row(f"{driver}, SELECT 1", measure(url, checkout_and_query, rounds, 300)))
            with ChaosProxy(url) as proxy, proxy.latency(0.001):
                slow = f"{driver} + 2 ms, "
                rows.append(row(f"{slow}checkout", measure(proxy.url, checkout, rounds, 100)))
                rows.append(
                    row(f"{slow}SELECT 1", measure(proxy.url, checkout_and_query, rounds, 5))
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="update docs/behaviour.md")
    arguments = parser.parse_args()
    rows = measure_all(arguments.rounds)
    if arguments.write:
        put("checkout", "\n".join(rows), "docs/behaviour.md")


if __name__ == "__main__":
    main()
