"""What a proof for every COMMIT costs: round trips counted on the wire, and ratios of times.

    python benchmarks/transaction.py [--rounds 30] [--write]

Beside ``with engine.begin()``, which can neither run a transaction again nor tell what became of a
lost COMMIT. ``--write`` puts the table into docs/transactions.md and docs/behaviour.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy
from documents import put
from sqlalchemy import URL, text

import sa_railway
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.commit.marker_schema import create_sql
from sa_railway.testing import ChaosProxy, TemporaryPostgres

STATEMENTS = {
    "reads": text("SELECT count(*) FROM entry WHERE n = 1"),
    "writes": text("INSERT INTO entry VALUES (1)"),
}
DRIVERS = ("psycopg2", "psycopg", "asyncpg")
WARM_UP = 8  # psycopg prepares a statement at its sixth use
CALLS = 20

Call = Callable[[], Awaitable[None]]


def ways(url: URL, statement: Any) -> dict[str, tuple[Any, Call]]:
    """Return the ways to execute *statement* in a transaction, each with its engine."""
    make = sa_railway.create_async_engine if url.get_driver_name() == "asyncpg" else None
    plain, ticket, marker = (
        (make or sa_railway.create_engine)(url, **options)
        for options in ({}, {}, {"commit_marker": True})
    )

    async def sync_plain() -> None:
        with plain.begin() as connection:
            connection.execute(statement)

    async def async_plain() -> None:
        async with plain.begin() as connection:
            await connection.execute(statement)

    def replayed(engine: Any) -> Call:
        async def execute(connection: Any) -> None:
            await connection.execute(statement)

        async def sync() -> None:
            sa_railway.run_transaction(engine, lambda connection: connection.execute(statement))

        async def asynchronous() -> None:
            await run_async_transaction(engine, execute)

        return asynchronous if make else sync

    return {
        "plain": (plain, async_plain if make else sync_plain),
        "ticket": (ticket, replayed(ticket)),
        "marker": (marker, replayed(marker)),
    }


async def round_trips(proxy: ChaosProxy, call: Call) -> int:
    for _ in range(WARM_UP):
        await call()
    before = proxy.round_trips
    await call()
    return proxy.round_trips - before


async def medians(calls: list[Call], rounds: int) -> list[float]:
    """Return the median time of each call; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, measured in zip(calls, times, strict=True):
            started = time.perf_counter()
            for _ in range(CALLS):
                await call()
            measured.append(time.perf_counter() - started)
    return [statistics.median(measured) for measured in times]


async def measure(driver: str, url: URL, kind: str, rounds: int) -> str:
    """Return one row of the table."""
    statement = STATEMENTS[kind]
    with ChaosProxy(url) as proxy:
        counted = ways(proxy.url, statement)
        trips = [await round_trips(proxy, call) for _, call in counted.values()]
        await dispose(counted)
    timed = ways(url, statement)
    plain, *others = await medians([call for _, call in timed.values()], rounds)
    await dispose(timed)
    cells = [
        f"{count - trips[0]:+d}, {seconds / plain:.2f}"
        for count, seconds in zip(trips[1:], others, strict=True)
    ]
    return f"| {driver}, {kind} | {trips[0]}, 1.00 | {' | '.join(cells)} |"


async def dispose(used: dict[str, tuple[Any, Call]]) -> None:
    for engine, _ in used.values():
        result = engine.dispose()
        if asyncio.iscoroutine(result):
            await result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="update the documents")
    options = parser.parse_args()
    rows = ["| | plain | `run_transaction()` | with commit markers |", "|---|---|---|---|"]
    print(*rows, sep="\n")
    with TemporaryPostgres() as server:
        engine = sqlalchemy.create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE entry (n int)"))
            for statement in create_sql():
                connection.execute(text(statement))
        engine.dispose()
        for driver in DRIVERS:
            for kind in STATEMENTS:
                url = server.url_for(driver)
                rows.append(asyncio.run(measure(driver, url, kind, options.rounds)))
                print(rows[-1], flush=True)
    if options.write:
        put("cost", "\n".join(rows), "docs/transactions.md", "docs/behaviour.md")


if __name__ == "__main__":
    main()
