"""A COMMIT whose answer is lost: what is written twice, what is lost, what the caller sees.

    python benchmarks/exactly_once.py [--transactions 1000] [--peers 100]

Each transaction makes two inserts through a proxy that cuts the connection at the next point of the
protocol in turn. Peers do the same work in the same run: a tenacity retry on OperationalError, and
``wrap_db_retry`` of oslo.db where that is installed (``pip install oslo.db``).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
import tenacity
from sqlalchemy import Connection, Engine, text
from sqlalchemy.pool import NullPool

import sa_railway
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.testing import ChaosProxy, TemporaryPostgres

POINTS: list[dict[str, Any]] = [
    {"before": "BEGIN"},
    {"before": "INSERT", "nth": 2},
    {"before": "COMMIT"},
    {"after": "COMMIT"},
    {"before": "CommandComplete", "of": "COMMIT"},
]
INSERT = text("INSERT INTO entry VALUES (:n)")

Runner = Callable[[Engine, Callable[[Connection], None]], None]


@dataclass
class Tally:
    """What came of a number of transactions."""

    transactions: int
    errors: int = 0
    cuts: int = 0
    seconds: float = 0.0
    counts: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lost = sum(n not in self.counts for n in range(self.transactions))
        doubled = sum(count > 2 for count in self.counts.values())
        halved = sum(count == 1 for count in self.counts.values())
        return (
            f"{self.transactions:>6} {self.cuts:>6} {lost:>6} {doubled:>8} {halved:>7} "
            f"{self.errors:>7} {self.seconds / self.transactions * 1e3:>9.1f}"
        )


def with_railway(engine: Engine, work: Callable[[Connection], None]) -> None:
    sa_railway.run_transaction(engine, work)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(sqlalchemy.exc.OperationalError),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random_exponential(0.05, max=1),
    reraise=True,
)
def with_tenacity(engine: Engine, work: Callable[[Connection], None]) -> None:
    with engine.begin() as connection:
        work(connection)


def with_oslo() -> Runner:
    from oslo_db import api

    @api.wrap_db_retry(  # type: ignore[misc]
        max_retries=5, retry_interval=0.05, retry_on_disconnect=True, jitter=True
    )
    def run(engine: Engine, work: Callable[[Connection], None]) -> None:
        with engine.begin() as connection:
            work(connection)

    return run


def run(server: TemporaryPostgres, driver: str, count: int, runner: Runner, make: Any) -> Tally:
    """Do *count* transactions with *runner* and count what is in the table afterwards."""
    tally = Tally(count)
    with ChaosProxy(server.url_for(driver)) as proxy:
        engine = make(proxy.url)
        started = time.perf_counter()
        for n in range(count):

            def work(connection: Connection, n: int = n) -> None:
                connection.execute(INSERT, {"n": n})
                connection.execute(INSERT, {"n": n})

            with proxy.cut(**POINTS[n % len(POINTS)]) as cut:
                try:
                    runner(engine, work)
                except Exception:  # noqa: BLE001 - whatever reaches the caller is counted
                    tally.errors += 1
                tally.cuts += cut.happened
        tally.seconds = time.perf_counter() - started
        engine.dispose()
    tally.counts = take_counts(server)
    return tally


async def run_async(server: TemporaryPostgres, count: int) -> Tally:
    """The same with asyncpg."""
    tally = Tally(count)
    with ChaosProxy(server.url_for("asyncpg")) as proxy:
        engine = sa_railway.create_async_engine(proxy.url)
        started = time.perf_counter()
        for n in range(count):

            async def work(connection: Any, n: int = n) -> None:
                await connection.execute(INSERT, {"n": n})
                await connection.execute(INSERT, {"n": n})

            with proxy.cut(**POINTS[n % len(POINTS)]) as cut:
                try:
                    await run_async_transaction(engine, work)
                except Exception:  # noqa: BLE001 - whatever reaches the caller is counted
                    tally.errors += 1
                tally.cuts += cut.happened
        tally.seconds = time.perf_counter() - started
        await engine.dispose()
    tally.counts = take_counts(server)
    return tally


def take_counts(server: TemporaryPostgres) -> dict[int, int]:
    """Return how often each number was inserted, and empty the table."""
    engine = sqlalchemy.create_engine(server.url, poolclass=NullPool)
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT n, count(*) FROM entry GROUP BY n")).all()
        connection.execute(text("TRUNCATE entry"))
    return {row[0]: row[1] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transactions", type=int, default=1000)
    parser.add_argument("--peers", type=int, default=100)
    arguments = parser.parse_args()
    header = f"{'tried':>6} {'cuts':>6} {'lost':>6} {'doubled':>8} {'halved':>7} {'errors':>7}"
    print(f"{'':<28} {header} {'ms each':>9}")
    with TemporaryPostgres() as server:
        with sqlalchemy.create_engine(server.url, poolclass=NullPool).begin() as connection:
            connection.execute(text("CREATE TABLE entry (n int)"))
        count = arguments.transactions
        for driver in ("psycopg2", "psycopg"):
            tally = run(server, driver, count, with_railway, sa_railway.create_engine)
            print(f"{'run_transaction, ' + driver:<28} {tally}", flush=True)
        tally = asyncio.run(run_async(server, count * 3 // 10))
        print(f"{'run_transaction, asyncpg':<28} {tally}", flush=True)
        peers: dict[str, Runner] = {"tenacity, psycopg2": with_tenacity}
        if importlib.util.find_spec("oslo_db"):
            peers["oslo.db, psycopg2"] = with_oslo()
        for name, runner in peers.items():
            make = oslo_engine if name.startswith("oslo") else pinging_engine
            tally = run(server, "psycopg2", arguments.peers, runner, make)
            print(f"{name:<28} {tally}", flush=True)


def pinging_engine(url: sqlalchemy.URL) -> Engine:
    return sqlalchemy.create_engine(url, pool_pre_ping=True)


def oslo_engine(url: sqlalchemy.URL) -> Engine:
    from oslo_db.sqlalchemy import engines

    engine: Engine = engines.create_engine(url.render_as_string(hide_password=False))
    return engine


if __name__ == "__main__":
    main()
