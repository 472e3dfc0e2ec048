"""What run_transaction() costs: round trips counted on the wire, and the ratio of the times.

    python benchmarks/transaction.py [--rounds 30]

Beside ``with Session.begin()``, which can neither run a transaction again nor tell what became of a
lost COMMIT.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from sqlalchemy import URL, text
from sqlalchemy.orm import Session, sessionmaker

import sa_railway
from sa_railway.testing import ChaosProxy, TemporaryPostgres

READ = text("SELECT count(*) FROM entry WHERE n = 1")
WRITE = text("INSERT INTO entry VALUES (1)")
WARM_UP = 8  # psycopg prepares a statement at its sixth use
CALLS = 20


def plain(factory: sessionmaker[Session], work: Callable[[Session], object]) -> None:
    with factory.begin() as session:
        work(session)


def replayed(factory: sessionmaker[Session], work: Callable[[Session], object]) -> None:
    sa_railway.run_transaction(factory, work)


def round_trips(proxy: ChaosProxy, call: Callable[[], None]) -> int:
    for _ in range(WARM_UP):
        call()
    before = proxy.round_trips
    call()
    return proxy.round_trips - before


def ratio(calls: dict[str, Callable[[], None]], rounds: int) -> float:
    """Return the time of the second call over that of the first; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append(time.perf_counter() - started)
    first, second = (statistics.median(measured) for measured in times.values())
    return second / first


def measure(driver: str, url: URL, rounds: int) -> None:
    with ChaosProxy(url) as proxy:
        counted = sa_railway.create_engine(proxy.url)
        timed = sa_railway.create_engine(url)
        for kind, statement in (("reader", READ), ("writer", WRITE)):

            def work(session: Session, statement: object = statement) -> None:
                session.execute(statement)  # type: ignore[call-overload]

            trips = [
                round_trips(proxy, lambda way=way, work=work: way(sessionmaker(counted), work))
                for way in (plain, replayed)
            ]
            times = ratio(
                {
                    way.__name__: lambda way=way, work=work: way(sessionmaker(timed), work)
                    for way in (plain, replayed)
                },
                rounds,
            )
            print(
                f"{driver}, {kind}: {trips[0]} round trips plain, {trips[1] - trips[0]:+d} with "
                f"run_transaction(); time ratio {times:.2f}",
                flush=True,
            )
        counted.dispose()
        timed.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with TemporaryPostgres() as server:
        engine = sa_railway.create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE entry (n int)"))
        engine.dispose()
        for driver in ("psycopg2", "psycopg"):
            measure(driver, server.url_for(driver), rounds)


if __name__ == "__main__":
    main()
