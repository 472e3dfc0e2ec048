"""What counting costs: a query with metrics and without, in one run, on loopback.

    python benchmarks/metrics.py [--rounds 300]

Prints, for each driver, the ratio to an engine that counts nothing: with ``metrics``, and with a
watch for leaks as well. A query is a checkout, one statement, and the return of the connection. It
is made in three ways: the smallest that there is, a row by its
primary key, and the same through a session, as an application does it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Engine, column, select, table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sa_railway
from sa_railway.testing import TemporaryPostgres

DRIVERS = ("psycopg2", "psycopg")
CALLS = 20  # of each kind in a round: few enough for all kinds to meet the same weather


class Base(DeclarativeBase):
    """The base of the one model."""


class Item(Base):
    """A row to look for."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


SELECT_1 = text("SELECT 1")
ITEM = table("item", column("id"), column("name"))


def smallest(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(SELECT_1)


def by_key(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(select(ITEM).where(ITEM.c.id == 7)).one()


def by_session(engine: Engine) -> None:
    with Session(engine) as session:
        session.get_one(Item, 7)


QUERIES = {"SELECT 1": smallest, "by key": by_key, "by session": by_session}


def make_engines(url: URL) -> dict[str, Engine]:
    """Make an engine of each kind. They share one connection, and so a backend and its luck."""
    arguments = sqlalchemy.create_engine(url).dialect.create_connect_args(url)
    shared = sa_railway.create_engine(url).dialect.connect(*arguments[0], **arguments[1])

    def make(**options: Any) -> Engine:
        return sa_railway.create_engine(url, creator=lambda: shared, **options)

    return {
        "without": make(),
        "metrics": make(metrics=True),
        "metrics, leak_after": make(metrics=True, leak_after=30.0),
    }


def measure(query: Callable[[Engine], None], engine: Engine) -> float:
    """Return the seconds of one query."""
    started = time.perf_counter()
    for _ in range(CALLS):
        query(engine)
    return (time.perf_counter() - started) / CALLS


def compare(
    query: Callable[[Engine], None], engines: Mapping[str, Engine], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of a query for each kind and round, all kinds taking turns."""
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for number in range(rounds):
        # every other round the other way round, so that none is always the first
        for kind in list(engines)[:: 1 if number % 2 else -1]:
            times[kind].append(measure(query, engines[kind]))
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    without = times.pop("without")
    cells = "  ".join(
        f"{kind} {statistics.median(a / b for a, b in zip(seen, without, strict=True)):.3f}"
        for kind, seen in times.items()
    )
    base = statistics.median(without) * 1e6
    print(f"{title:<22} {cells}   ({base:.0f} us without)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    with TemporaryPostgres() as server:
        plain = sqlalchemy.create_engine(server.url)
        Base.metadata.create_all(plain)
        with Session(plain) as session, session.begin():
            session.add_all(Item(id=number, name="tea") for number in range(100))
        plain.dispose()
        for driver in DRIVERS:
            engines = make_engines(server.url_for(driver))
            for name, query in QUERIES.items():
                compare(query, engines, 5)
                report(f"{driver}, {name}", compare(query, engines, rounds))


if __name__ == "__main__":
    main()
