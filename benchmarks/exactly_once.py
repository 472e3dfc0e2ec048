"""A COMMIT whose answer is lost: what is written twice, what is lost, what the caller sees.

    python benchmarks/exactly_once.py [--transactions 1000] [--kinds 60] [--peers 100]
                                      [--only KIND]... [--marker] [--json]

Each transaction goes through a proxy that cuts the connection at the next point of the protocol in
turn. There are several kinds of work, because not every write shows: a NOTIFY and an INSERT into a
foreign table get no transaction id, SQLAlchemy does not see a COPY by the driver's cursor, and a
text of several statements may begin like one that reads.

Peers do the work of the kind ``insert`` in the same run: a tenacity retry on OperationalError, and
``wrap_db_retry`` of oslo.db where that is installed (``pip install oslo.db``).

A transaction is lost if the call returned and nothing of it is there, doubled if it is there more
than once, and halved if only a part of it is there. Exceptions that reached the caller are errors.
The exit status is 1 if sa_railway lost, doubled or halved anything.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import inspect
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import psycopg2.extras
import psycopg2.sql
import sqlalchemy
import tenacity
from sqlalchemy import URL, Connection, Engine, text

import sa_railway
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.testing import ChaosProxy, TemporaryPostgres

Point = dict[str, Any]  # where to cut: arguments of ChaosProxy.cut()

ROWS = "INSERT INTO entry VALUES ({n}), ({n})"
INSERTS = (
    "SET LOCAL lock_timeout = '3s'; INSERT INTO entry VALUES ({n}); INSERT INTO entry VALUES ({n})"
)
PROGRAM = "SET LOCAL lock_timeout = '3s'; COPY entry FROM PROGRAM 'echo {n}; echo {n}'"


def around(*middle: Point) -> list[Point]:
    """Return the points of a transaction: before it, those in its middle, around its COMMIT."""
    commit = [{"before": "COMMIT"}, {"after": "COMMIT"}, answer_to("COMMIT")]
    return [{"before": "BEGIN"}, *middle, *commit]


def answer_to(command: str) -> Point:
    return {"before": "CommandComplete", "of": command}


def execute(connection: Connection, n: int, *, sql: str, times: int = 1) -> None:
    for _ in range(times):
        connection.execute(text(sql.format(n=n)), {"n": n})


def execute_as(connection: Connection, n: int, *, make: Callable[[str], Any], sql: str) -> None:
    """Execute what *make* makes of *sql*, past SQLAlchemy's compiler."""
    connection.exec_driver_sql(make(sql.format(n=n)))


def composed(sql: str) -> psycopg2.sql.Composed:
    return psycopg2.sql.Composed([psycopg2.sql.SQL(sql)])


def copy_expert(connection: Connection, n: int) -> None:
    with connection.connection.cursor() as cursor:
        cursor.copy_expert("COPY entry FROM STDIN", io.StringIO(f"{n}\n{n}\n"))


def execute_values(connection: Connection, n: int) -> None:
    with connection.connection.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, "INSERT INTO entry VALUES %s", [(n,), (n,)])


def copy_rows(connection: Connection, n: int) -> None:
    with connection.connection.cursor() as cursor, cursor.copy("COPY entry FROM STDIN") as copy:
        copy.write(f"{n}\n{n}\n")


async def copy_records(connection: Any, n: int) -> None:
    driver = await asyncpg_connection(connection)
    await driver.copy_records_to_table("entry", records=[(n,), (n,)])


async def execute_raw(connection: Any, n: int, *, sql: str) -> None:
    driver = await asyncpg_connection(connection)
    await driver.execute(sql.format(n=n))


async def asyncpg_connection(connection: Any) -> Any:
    """Return asyncpg's own connection, once SQLAlchemy has begun the transaction on it.

    It does so before the first statement that it executes itself.
    """
    await connection.execute(text("SELECT 1"))
    return (await connection.get_raw_connection()).driver_connection


@dataclass(frozen=True)
class Work:
    """What a transaction of a kind does with one driver, or with all if that is None."""

    kind: str
    driver: str | None
    name: str
    do: Callable[..., Any]
    points: list[Point]

    def callback(self, n: int, driver: str) -> Callable[[Any], Any]:
        """Return what ``run_transaction()`` calls for transaction *n*."""
        if driver != "asyncpg" or inspect.iscoroutinefunction(self.do):
            return partial(self.do, n=n)

        async def in_asyncio(connection: Any) -> None:
            await connection.run_sync(self.do, n)

        return in_asyncio


def two_inserts(kind: str, table: str) -> Work:
    do = partial(execute, sql=f"INSERT INTO {table} VALUES (:n)", times=2)
    return Work(kind, None, "two INSERTs", do, around({"before": "INSERT", "nth": 2}))


def copying(driver: str, name: str, do: Callable[..., Any]) -> Work:
    return Work("copy", driver, name, do, around({"before": "CopyDone"}, answer_to("COPY")))


def simple(kind: str, name: str, sql: str, command: str) -> Work:
    return Work(kind, None, name, partial(execute, sql=sql), around(answer_to(command)))


def no_string(driver: str, make: Callable[[str], Any]) -> Work:
    do = partial(execute_as, make=make, sql=ROWS)
    return Work("bytes", driver, make.__name__, do, around(answer_to("INSERT")))


def several(sql: str, command: str) -> list[Work]:
    """Return the works that execute *sql*, more than one statement, as one text."""
    sync = partial(execute_as, make=str, sql=sql)
    works: list[tuple[str, str, Callable[..., Any]]] = [
        ("psycopg2", sql, sync),
        ("psycopg", sql, sync),
        ("asyncpg", sql, partial(execute_raw, sql=sql)),
    ]
    return [Work("multi", *work, around(answer_to(command))) for work in works]


WORKS = [
    two_inserts("insert", "entry"),
    copying("psycopg2", "copy_expert()", copy_expert),
    Work("copy", "psycopg2", "execute_values()", execute_values, around(answer_to("INSERT"))),
    copying("psycopg", "copy()", copy_rows),
    copying("asyncpg", "copy_records_to_table()", copy_records),
    simple("notify", "NOTIFY", "NOTIFY heard, '{n}'", "NOTIFY"),
    simple("notify", "pg_notify()", "SELECT pg_notify('heard', '{n}')", "SELECT"),
    simple("function", "store()", "SELECT store(:n)", "SELECT"),
    two_inserts("foreign", "foreign_entry"),
    *several(INSERTS, "INSERT"),
    *several(PROGRAM, "COPY"),
    no_string("psycopg2", str.encode),
    no_string("psycopg2", composed),
    no_string("psycopg", str.encode),
    no_string("psycopg", psycopg.sql.SQL),
]
KINDS = list(dict.fromkeys(work.kind for work in WORKS))


@dataclass(frozen=True)
class Way:
    """A way to have transactions done, by one driver. It may return a coroutine."""

    name: str
    driver: str
    make: Callable[[URL], Any]
    transact: Callable[[Any, Callable[[Any], Any]], Any]

    def turns(self, kind: str) -> list[tuple[Work, Point]]:
        """Return each work of *kind* with each of its points."""
        works = [w for w in WORKS if w.kind == kind and w.driver in (None, self.driver)]
        return [(work, point) for work in works for point in work.points]


def railway_ways(*, marker: bool) -> list[Way]:
    options: dict[str, Any] = {"commit_marker": True} if marker else {}
    make = partial(sa_railway.create_engine, **options)
    make_async = partial(sa_railway.create_async_engine, **options)
    return [
        Way("run_transaction", "psycopg2", make, sa_railway.run_transaction),
        Way("run_transaction", "psycopg", make, sa_railway.run_transaction),
        Way("run_transaction", "asyncpg", make_async, run_async_transaction),
    ]


def in_transaction(engine: Engine, work: Callable[[Connection], None]) -> None:
    with engine.begin() as connection:
        work(connection)


def tenacity_way() -> Way:
    retry = tenacity.retry(
        retry=tenacity.retry_if_exception_type(sqlalchemy.exc.OperationalError),
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_random_exponential(0.05, max=1),
        reraise=True,
    )
    make = partial(sqlalchemy.create_engine, pool_pre_ping=True)
    return Way("tenacity", "psycopg2", make, retry(in_transaction))


def oslo_way() -> Way:
    from oslo_db import api
    from oslo_db.sqlalchemy import engines

    retry = api.wrap_db_retry(
        max_retries=5, retry_interval=0.05, retry_on_disconnect=True, jitter=True
    )

    def make(url: URL) -> Any:
        return engines.create_engine(url.render_as_string(hide_password=False))

    return Way("oslo.db", "psycopg2", make, retry(in_transaction))


@dataclass
class Tally:
    """What came of a number of transactions of one kind, done in one way."""

    kind: str
    way: Way
    transactions: int
    cuts: int = 0
    seconds: float = 0.0
    errors: dict[int, str] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def wrong(self) -> dict[str, list[int]]:
        """The numbers of the transactions that were not done once, by what became of them."""
        whole = 1 if self.kind == "notify" else 2
        found = {n: self.counts[n] for n in range(self.transactions)}
        return {
            "lost": [n for n, count in found.items() if not count and n not in self.errors],
            "doubled": [n for n, count in found.items() if count > whole],
            "halved": [n for n, count in found.items() if 0 < count < whole],
        }

    def __str__(self) -> str:
        lost, doubled, halved = map(len, self.wrong.values())
        name = f"{self.way.name}, {self.way.driver}, {self.kind}"
        return (
            f"{name:<35} {self.transactions:>6} {self.cuts:>6} {lost:>6} {doubled:>8} "
            f"{halved:>7} {len(self.errors):>7} {self.seconds / self.transactions * 1e3:>9.1f}"
        )

    def as_json(self) -> str:
        """Return the row as an object that also names the works and points that went wrong."""
        row: dict[str, Any] = {"way": self.way.name, "driver": self.way.driver, "kind": self.kind}
        row |= {"tried": self.transactions, "cuts": self.cuts, "seconds": round(self.seconds, 3)}
        turns = self.way.turns(self.kind)
        where: Counter[str] = Counter()
        for outcome, numbers in self.wrong.items():
            row[outcome] = len(numbers)
            for n in numbers:
                work, point = turns[n % len(turns)]
                where[f"{outcome}: {work.name}, cut {point}"] += 1
        row |= {"errors": len(self.errors), "where": where}
        return json.dumps(row | {"raised": Counter(self.errors.values())})


def run(server: TemporaryPostgres, kind: str, way: Way, count: int) -> Tally:
    """Have *count* transactions of *kind* done and cut, and count what is there afterwards."""
    tally = Tally(kind, way, count)
    turns = way.turns(kind)
    with direct(server) as listener:
        listener.execute("LISTEN heard")
        with ChaosProxy(server.url_for(way.driver)) as proxy, asyncio.Runner() as loop:
            engine = way.make(proxy.url)
            started = time.perf_counter()
            for n in range(count):
                work, point = turns[n % len(turns)]
                with proxy.cut(**point) as cut:
                    try:
                        finish(loop, way.transact(engine, work.callback(n, way.driver)))
                    except Exception as error:  # noqa: BLE001 - whatever reaches the caller
                        tally.errors[n] = type(error).__name__
                    tally.cuts += cut.happened
            tally.seconds = time.perf_counter() - started
            finish(loop, engine.dispose())
        tally.counts = take_counts(server, kind, listener)
    return tally


def finish(loop: asyncio.Runner, result: Any) -> None:
    if inspect.iscoroutine(result):
        loop.run(result)


def take_counts(server: TemporaryPostgres, kind: str, listener: psycopg.Connection) -> Counter[int]:
    """Return how often each number was stored, or heard by *listener*, and empty the table."""
    table = "foreign_entry" if kind == "foreign" else "entry"
    with direct(server) as connection:
        wait_for_backends(connection)
        if kind == "notify":
            connection.execute("NOTIFY heard, 'end'")
            return Counter(heard_by(listener))
        rows = connection.execute(f"SELECT n, count(*) FROM {table} GROUP BY n").fetchall()
        connection.execute(f"DELETE FROM {table}")
    return Counter(dict(rows))


def heard_by(listener: psycopg.Connection) -> Iterator[int]:
    for notification in listener.notifies(timeout=60):
        if notification.payload == "end":
            return
        yield int(notification.payload)
    raise TimeoutError("The listener has not heard the last notification within 60 seconds")


def wait_for_backends(connection: psycopg.Connection) -> None:
    """Wait for the transactions whose connections were cut: they may be under way still."""
    busy = (
        "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND state <> 'idle' AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + 60
    while connection.execute(busy).fetchone():
        if time.monotonic() > deadline:
            raise TimeoutError("A transaction is still under way after 60 seconds")
        time.sleep(0.01)


def direct(server: TemporaryPostgres, database: str = "postgres") -> psycopg.Connection:
    """Connect to *server*, past the proxy and SQLAlchemy."""
    url = server.url_for("psycopg").set(drivername="postgresql", database=database)
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def prepare(server: TemporaryPostgres) -> None:
    with direct(server) as connection:
        connection.execute("CREATE TABLE entry (n int)")
        connection.execute(
            "CREATE FUNCTION store(n int) RETURNS void LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO entry VALUES (n); INSERT INTO entry VALUES (n); END $$"
        )


def prepare_foreign(server: TemporaryPostgres) -> bool:
    """Make a table in another database, and a foreign one here; False if that is impossible."""
    with direct(server) as here:
        if not here.execute(
            "SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"
        ).fetchone():
            return False
        here.execute("CREATE DATABASE elsewhere")
        with direct(server, "elsewhere") as elsewhere:
            elsewhere.execute("CREATE TABLE entry (n int)")
        address = f"host '127.0.0.1', port '{server.port}', dbname 'elsewhere'"
        here.execute(
            f"""CREATE EXTENSION postgres_fdw;
            CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({address});
            CREATE USER MAPPING FOR postgres SERVER elsewhere OPTIONS (user 'postgres');
            CREATE FOREIGN TABLE foreign_entry (n int) SERVER elsewhere
                OPTIONS (table_name 'entry')"""
        )
    return True


def prepare_marker(server: TemporaryPostgres) -> None:
    """Make the table that an engine with ``commit_marker=True`` writes to."""
    url = server.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "sa_railway", "commit-marker", "--create", url]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tallies(server: TemporaryPostgres, arguments: argparse.Namespace) -> Iterator[Tally]:
    """Yield each row when it is finished."""
    kinds = dict.fromkeys(arguments.only or KINDS)
    for kind in kinds:
        if kind == "foreign" and not prepare_foreign(server):
            reason = "not measured: foreign, because the server has no extension postgres_fdw"
            print(reason, file=sys.stderr if arguments.json else sys.stdout, flush=True)
            continue
        for way in railway_ways(marker=arguments.marker):
            count = arguments.kinds
            if kind == "insert":
                count = arguments.transactions * (3 if way.driver == "asyncpg" else 10) // 10
            if count and way.turns(kind):
                yield run(server, kind, way, count)
    if "insert" in kinds and arguments.peers:
        yield run(server, "insert", tenacity_way(), arguments.peers)
        if importlib.util.find_spec("oslo_db"):
            yield run(server, "insert", oslo_way(), arguments.peers)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transactions", type=int, default=1000, help="of the kind insert")
    parser.add_argument("--kinds", type=int, default=60, help="transactions of each other kind")
    parser.add_argument("--peers", type=int, default=100, help="transactions of each peer")
    parser.add_argument("--only", action="append", choices=KINDS, help="this kind; repeatable")
    parser.add_argument("--marker", action="store_true", help="with commit_marker=True")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each row")
    parser.add_argument("--write", action="store_true", help="update docs/transactions.md")
    return parser.parse_args()


def write(lines: list[str]) -> None:
    """Put the table between its marks in the page."""
    page = Path(__file__).parents[1] / "docs" / "transactions.md"
    head, mark, rest = page.read_text().partition("<!-- exactly-once -->\n")
    _, end, tail = rest.partition("<!-- /exactly-once -->")
    page.write_text(
        "".join([head, mark, "```\n", *(f"{line}\n" for line in lines), "```\n", end, tail])
    )


def main() -> int:
    arguments = parse()
    titles = f"{'tried':>6} {'cuts':>6} {'lost':>6} {'doubled':>8} {'halved':>7} {'errors':>7}"
    lines = [f"{'':<35} {titles} {'ms each':>9}"]
    if not arguments.json:
        print(lines[0], flush=True)
    failed = False
    with TemporaryPostgres() as server:
        prepare(server)
        if arguments.marker:
            prepare_marker(server)
        for tally in tallies(server, arguments):
            lines.append(str(tally))
            print(tally.as_json() if arguments.json else tally, flush=True)
            failed |= tally.way.name == "run_transaction" and any(tally.wrong.values())
    if arguments.write:
        write(lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
