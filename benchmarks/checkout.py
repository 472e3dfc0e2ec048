"""What a checkout costs: no check, SQLAlchemy's pre-ping, and sa_railway, in one run.

    python benchmarks/checkout.py [--rounds 30]

Prints the median time of a checkout with its checkin, as a ratio to an engine with no check at all,
for each driver, on loopback and through a proxy that adds 2 ms to every round trip.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import sqlalchemy
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


def measure(url: URL, work: Callable[[Engine], None], rounds: int, calls: int) -> dict[str, float]:
    """Return the median seconds of one call per kind of engine.

    The kinds take turns within every round, so that what else the machine does meets all alike.
    """
    engines = {kind: make(url) for kind, make in KINDS.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for engine in engines.values():
        checkout_and_query(engine)
    for _ in range(rounds):
        for kind, engine in engines.items():
            started = time.perf_counter()
            for _ in range(calls):
                work(engine)
            times[kind].append((time.perf_counter() - started) / calls)
    for engine in engines.values():
        engine.dispose()
    return {kind: statistics.median(measured) for kind, measured in times.items()}


def report(title: str, medians: dict[str, float]) -> None:
    base = medians["no check"]
    cells = "  ".join(f"{kind} {value / base:6.2f}" for kind, value in medians.items())
    print(f"{title:<42} {cells}   ({base * 1e6:.1f} us without a check)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with TemporaryPostgres() as server:
        for driver in DRIVERS:
            url = server.url_for(driver)
            report(f"{driver}, checkout", measure(url, checkout, rounds, 500))
            report(f"{driver}, SELECT 1", measure(url, checkout_and_query, rounds, 100))
            with ChaosProxy(url) as proxy, proxy.latency(0.001):
                report(f"{driver} + 2 ms, checkout", measure(proxy.url, checkout, rounds, 100))
                report(
                    f"{driver} + 2 ms, SELECT 1", measure(proxy.url, checkout_and_query, rounds, 5)
                )


if __name__ == "__main__":
    main()
