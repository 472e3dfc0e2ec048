"""A soak: faults strike at random, and still every transaction happens exactly once.

    python benchmarks/soak.py [MINUTES] [SEED] [--driver psycopg2|psycopg|asyncpg]
                              [--workers 8] [--json] [--marker]

Workers run transactions through a ``ChaosProxy`` and remember how each one ended, while a nemesis
breaks the server and the network. In the end the tables must hold what the workers remember. The
same SEED gives the same sequence of faults; their timing differs from run to run. The exit status
is 1 if anything is lost, doubled, halved, wrong or hanging, else 0.

Every transaction writes two rows with a number of its own, half 1 and half 2. The kinds are

    insert    no more than that, by ``run_transaction()``
    transfer  between two accounts, whose balances the rows explain, by ``run_transaction()``
    counter   reads a value and writes the next one, SERIALIZABLE, by ``run_transaction()``
    commit    no more than that, by ``with Session.begin()`` on an engine with ``resolve_commit``.

It needs Linux, for it looks into ``/proc``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy
from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

import sa_railway
from sa_railway import events
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.testing import ChaosProxy, TemporaryPostgres

KINDS = ("insert", "transfer", "counter", "commit")
LEVELS = {"counter": "SERIALIZABLE"}
ACCOUNTS, BALANCE, COUNTERS = 10, 1000, 4
TABLES = f"""
    CREATE TABLE entry (n bigint, half int, kind text, account int, amount int);
    CREATE TABLE account (id int PRIMARY KEY, balance int);
    CREATE TABLE counter (id int PRIMARY KEY, value int);
    INSERT INTO account SELECT id, {BALANCE} FROM generate_series(0, {ACCOUNTS - 1}) AS id;
    INSERT INTO counter SELECT id, 0 FROM generate_series(0, {COUNTERS - 1}) AS id;
"""
INSERT = text("INSERT INTO entry VALUES (:n, :half, :kind, :account, :amount)")
MOVE = text("UPDATE account SET balance = balance + :amount WHERE id = :id")
READ = text("SELECT value FROM counter WHERE id = :id")
WRITE = text("UPDATE counter SET value = :value WHERE id = :id")
HALVES = text("SELECT n, sum((half = 1)::int), sum((half = 2)::int) FROM entry GROUP BY n")
BALANCES = text(
    "SELECT id, balance, coalesce(sum(amount), 0) FROM account"
    " LEFT JOIN entry ON kind = 'transfer' AND account = id GROUP BY id"
)
BACKENDS = text(
    "SELECT pid FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
)
# Deadlocks need not take a second each. A kill may tear a page, which fsync=off alone does not.
SETTINGS = {"deadlock_timeout": "100ms", "full_page_writes": "on"}

COLUMNS = "open acknowledged unknown failed lost doubled halved wrongly_failed".split()
OPEN, ACKNOWLEDGED, UNKNOWN, FAILED = range(4)  # how a transaction ends, by the index in COLUMNS
JOIN = 120.0  # seconds for the workers to end
CALM = 5.0  # seconds of load without faults before the first measurement and the last


@dataclass(frozen=True)
class Operation:
    """One transaction, and how long to rest after it."""

    number: int
    kind: str
    accounts: tuple[int, ...]
    amounts: tuple[int, ...]
    terms: dict[str, Any]  # for run_transaction()
    by_session: bool
    pause: float

    def work(self, connection: Any) -> None:
        """Do it on a Connection or a Session, as often as it takes."""
        self._insert(connection, 0)
        if self.kind == "transfer":
            for account, amount in zip(self.accounts, self.amounts, strict=True):
                connection.execute(MOVE, {"id": account, "amount": amount})
        elif self.kind == "counter":
            counter = self.number % COUNTERS
            value = connection.scalar(READ, {"id": counter})
            connection.execute(WRITE, {"id": counter, "value": value + 1})
        self._insert(connection, 1)

    async def work_async(self, connection: Any) -> None:
        """Do it on an AsyncConnection or an AsyncSession."""
        await connection.run_sync(self.work)

    def _insert(self, connection: Any, index: int) -> None:
        row = {"account": self.accounts[index], "amount": self.amounts[index]}
        connection.execute(INSERT, {"n": self.number, "half": index + 1, "kind": self.kind, **row})


def draw_operation(seed: int, number: int) -> Operation:
    """Return the operation *number*: always the same, so that it need not be remembered."""
    draw = random.Random(seed * 2**40 + number)
    kind, amount = draw.choice(KINDS), draw.randint(1, 100)
    return Operation(
        number,
        kind,
        accounts=tuple(draw.sample(range(ACCOUNTS), 2)),
        amounts=(-amount, amount),
        terms={"timeout": 30.0, "isolation_level": LEVELS.get(kind)},
        by_session=draw.random() < 0.5,
        pause=draw.expovariate(50),
    )


class Crew:
    """The workers, threads or, with asyncpg, tasks of one event loop; and what they remember.

    Attributes:
        endings: how each operation ended, by its number; a byte each, so that they do not count.
        times: when, on the clock of ``time.monotonic()``.
        events: transactions run again, lost COMMITs by their outcome, errors of the failed.
    """

    def __init__(self, url: URL, options: argparse.Namespace) -> None:
        self.endings = bytearray()
        self.times = array("d")
        self.events: Counter[str] = Counter()
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._url = url
        self._size = options.workers
        self._seed = options.seed
        self._options: dict[str, Any] = {"pool_size": 4, "max_overflow": self._size}
        if options.marker:
            self._options["commit_marker"] = True
        events.subscribe(self._listen)
        in_tasks = url.drivername.endswith("asyncpg")
        work = (lambda: asyncio.run(self._use_tasks())) if in_tasks else self._use_threads
        # a daemon, as are its threads: one that hangs must not keep the process
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def join(self) -> int:
        """Let the workers end what they are at; return how many hang."""
        self.stop.set()
        self._thread.join(JOIN)
        if not self._thread.is_alive():
            return 0
        faulthandler.dump_traceback(sys.stderr)
        return max(1, self.endings.count(OPEN))

    def _listen(self, event: events.Event) -> None:
        if isinstance(event, events.CommitResolved):
            self._count(f"lost COMMIT was {event.outcome}")
        elif isinstance(event, events.Replayed):
            self._count("run again")

    def _count(self, event: str) -> None:
        with self._lock:
            self.events[event] += 1

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[Operation]:
        """Yield the next operation and remember how it ends in the block; no error leaves it."""
        with self._lock:
            number = len(self.endings)
            self.endings.append(OPEN)
            self.times.append(0.0)
        try:
            yield draw_operation(self._seed, number)
            ending = ACKNOWLEDGED
        except CommitOutcomeUnknownError:
            ending = UNKNOWN
        except Exception as error:  # noqa: BLE001 - whatever reaches the caller is counted
            ending = FAILED
            self._count(f"failed by {type(error).__name__}")
        self.endings[number] = ending
        self.times[number] = time.monotonic()

    def _use_threads(self) -> None:
        engine = sa_railway.create_engine(self._url, **self._options)
        resolving = sa_railway.create_engine(self._url, resolve_commit=True, **self._options)
        factory, resolving_factory = sessionmaker(engine), sessionmaker(resolving)

        def work() -> None:
            while not self.stop.is_set():
                with self._remembered() as operation:
                    if operation.kind == "commit":
                        with resolving_factory.begin() as session:
                            operation.work(session)
                    else:
                        transactor = factory if operation.by_session else engine
                        sa_railway.run_transaction(transactor, operation.work, **operation.terms)
                time.sleep(operation.pause)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        engine.dispose()
        resolving.dispose()

    async def _use_tasks(self) -> None:
        engine = sa_railway.create_async_engine(self._url, **self._options)
        resolving = sa_railway.create_async_engine(self._url, resolve_commit=True, **self._options)
        factory, resolving_factory = async_sessionmaker(engine), async_sessionmaker(resolving)

        async def work() -> None:
            while not self.stop.is_set():
                with self._remembered() as operation:
                    if operation.kind == "commit":
                        async with resolving_factory.begin() as session:
                            await operation.work_async(session)
                    else:
                        transactor = factory if operation.by_session else engine
                        await run_async_transaction(
                            transactor, operation.work_async, **operation.terms
                        )
                await asyncio.sleep(operation.pause)

        await asyncio.gather(*(work() for _ in range(self._size)))
        await engine.dispose()
        await resolving.dispose()


# the names of the faults; each has its turn before one comes again
CUTS: dict[str, dict[str, Any]] = {
    "cut before BEGIN": {"before": "BEGIN"},
    "cut before INSERT": {"before": "INSERT"},
    "cut before COMMIT": {"before": "COMMIT"},
    "cut after COMMIT": {"after": "COMMIT"},
    "cut before the answer to COMMIT": {"before": "CommandComplete", "of": "COMMIT"},
    "cut anywhere": {"before": "ReadyForQuery"},  # with an nth that is drawn
}
FAULTS = (
    *("terminate one", "terminate all", "restart fast", "restart immediate", "kill postmaster"),
    *("halt one", "halt all", "freeze", "down", "answer 57P03", "answer 53300", *CUTS),
)


def draw_faults(seed: int) -> Iterator[tuple[str, random.Random]]:
    """Yield faults without end, each with what to draw its parameters from."""
    draw = random.Random(seed)
    while True:
        for name in draw.sample(FAULTS, len(FAULTS)):
            yield name, random.Random(draw.getrandbits(64))


class Nemesis(threading.Thread):
    """Makes one fault after another, and removes each before the next."""

    def __init__(self, server: TemporaryPostgres, proxy: ChaosProxy, seed: int) -> None:
        super().__init__(name="nemesis", daemon=True)
        self.counts: Counter[str] = Counter()
        self.end = threading.Event()
        self._server = server
        self._proxy = proxy
        self._seed = seed
        self._history: list[tuple[float, str]] = []
        self._error: Exception | None = None

    def run(self) -> None:
        """Strike until the end, which comes early if the nemesis itself fails."""
        try:
            for name, draw in draw_faults(self._seed):
                # half of them without a pause, so that it strikes amid the recovery from the last
                if self.end.wait(draw.choice((0.0, draw.expovariate(0.7)))):
                    return
                self._history.append((time.monotonic(), name))
                self.counts[name] += self._strike(name, draw)
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error
            self.end.set()

    def finish(self) -> None:
        """Wait until the last fault is removed, so that the server is up; raise if one failed."""
        self.end.set()
        if self.ident:
            self.join()
        if self._error:
            raise self._error

    def before(self, moment: float) -> str:
        """Return the last faults before *moment*."""
        last = [(when, name) for when, name in self._history if when < moment][-4:]
        return ", ".join(f"{name} {moment - when:.1f} s before" for when, name in last)

    def _strike(self, name: str, draw: random.Random) -> int:
        """Make the fault *name* and remove it; return how often it has happened."""
        match name:
            case "terminate one" | "halt one":
                return self._strike_one(name, draw)
            case "terminate all":
                self._server.terminate_backends()
            case "restart fast" | "restart immediate" | "kill postmaster":
                return self._restart(name, draw)
            case "halt all":
                self._server.freeze()
                self._stay_halted(draw)
                self._server.thaw()
            case "freeze":
                with self._proxy.freeze():
                    self.end.wait(draw.uniform(0, 4))
            case "down":
                with self._proxy.down():
                    self.end.wait(draw.uniform(0, 3))
            case _:
                return self._lie_in_wait(name, draw)
        return 1

    def _strike_one(self, name: str, draw: random.Random) -> int:
        with plain(self._server) as connection:
            backends = connection.scalars(BACKENDS).all()
            if not backends:
                return 0
            pid = backends[int(draw.random() * len(backends))]
            if name == "terminate one":
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                return 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._stay_halted(draw)
            os.kill(pid, signal.SIGCONT)
        return 1

    def _stay_halted(self, draw: random.Random) -> None:
        if draw.random() < 0.5:  # a COMMIT may then lie unread before a backend without a client
            self._proxy.down(new=False).remove()
        self.end.wait(draw.uniform(0, 3))

    def _restart(self, name: str, draw: random.Random) -> int:
        """Restart up to three times, with little or no time between."""
        times, pause = draw.choice((1, 1, 1, 2, 3)), draw.uniform(0, 0.5)
        if draw.random() < 0.5:  # right at a COMMIT
            seen = self._proxy.messages["COMMIT"]
            with contextlib.suppress(TimeoutError):
                self._proxy.wait_for(lambda: self._proxy.messages["COMMIT"] > seen, timeout=2.0)
        for _ in range(times):
            if name == "kill postmaster":
                kill(self._server)
            else:
                self._server.stop("fast" if name == "restart fast" else "immediate")
            self._server.start()
            self.end.wait(pause)
        return times

    def _lie_in_wait(self, name: str, draw: random.Random) -> int:
        """Cut connections, or turn new ones away, for two seconds at the most."""
        times = draw.choice((1, 1, 1, 2, 3))
        trigger: Any
        if name in CUTS:
            point = {"nth": draw.choice((1, 1, 2, 7, 30)), **CUTS[name]}
            trigger = self._proxy.cut(**point, times=times, reset=draw.random() < 0.3)
        else:
            trigger = self._proxy.answer(name.split()[1], times=3 * times)
            self._proxy.down(new=False).remove()  # so that there are new ones
        with trigger, contextlib.suppress(TimeoutError):
            self._proxy.wait_for(lambda: trigger.spent, timeout=2.0)
        count: int = trigger.count
        return count


def kill(server: TemporaryPostgres) -> None:
    """SIGKILL the postmaster, and wait until its orphans have noticed and left."""
    postmaster = server.pid
    os.kill(postmaster, signal.SIGSTOP)  # it must not have another child meanwhile
    time.sleep(0.05)
    orphans = {pid for pid, parent in processes().items() if parent == postmaster}
    os.kill(postmaster, signal.SIGKILL)
    server.stop()  # which is left to collect it
    deadline = time.monotonic() + 30
    while orphans & processes().keys():
        if time.monotonic() > deadline:
            raise TimeoutError("Children of a killed postmaster still run after 30 seconds")
        time.sleep(0.01)


def processes() -> dict[int, int]:
    """Return every process of the machine with its parent, but for zombies."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # after the name, which is in parentheses and may hold anything
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


@contextlib.contextmanager
def plain(server: TemporaryPostgres) -> Iterator[Connection]:
    """Yield a connection that knows neither the proxy nor sa_railway."""
    with sqlalchemy.create_engine(server.url, poolclass=NullPool).begin() as connection:
        yield connection


def create_marker_table(url: URL) -> None:
    """Create the table that ``commit_marker`` needs."""
    target = url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "sa_railway", "commit-marker", "--create", target]
    subprocess.run(command, stdout=sys.stderr, check=True)


@dataclass
class Report:
    """What the soak has shown.

    Attributes:
        operations: of each kind, how many ended in which way, and what is wrong with how many.
        sizes: of this process, under load: at the start and the end without faults.
        wrong: a sentence for each thing that is.
    """

    driver: str
    minutes: float
    seed: int
    workers: int
    marker: bool
    operations: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    hanging: int = 0
    wrong_balances: int = 0
    wrong_counters: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether the exit status is 0."""
        return not self.wrong and not self.hanging

    def measure(self, moment: str) -> None:
        """Note how large this process is now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        size = {"megabytes": pages * os.sysconf("SC_PAGE_SIZE") // 2**20}
        self.sizes[moment] = {"descriptors": len(os.listdir("/proc/self/fd")), **size}

    def check(self, connection: Connection, crew: Crew, nemesis: Nemesis) -> None:
        """Compare what the tables hold with what the workers remember."""
        self.operations = {kind: dict.fromkeys(COLUMNS, 0) for kind in KINDS}
        rows = {n: (first, second) for n, first, second in connection.execute(HALVES)}
        counters = [0] * COUNTERS
        for number, ending in enumerate(crew.endings):
            halves = rows.pop(number, (0, 0))
            kind = draw_operation(self.seed, number).kind
            counters[number % COUNTERS] += kind == "counter" and any(halves)
            faults = judge(ending, *halves)
            for column in (COLUMNS[ending], *faults):
                self.operations[kind][column] += 1
            if faults:
                self.wrong.append(
                    f"{kind} {number} {COLUMNS[ending]}, {halves[0]} + {halves[1]} rows: "
                    f"{', '.join(faults)} ({nemesis.before(crew.times[number])})"
                )
        self.wrong += [f"no worker has had the number {number}" for number in rows]
        self._check_sums(connection, counters)

    def _check_sums(self, connection: Connection, counters: list[int]) -> None:
        for id_, value in connection.execute(text("SELECT id, value FROM counter")):
            if value != counters[id_]:
                self.wrong_counters += 1
                self.wrong.append(f"counter {id_} is {value}, but {counters[id_]} have counted")
        for id_, balance, moved in connection.execute(BALANCES):
            if balance != BALANCE + moved:
                self.wrong_balances += 1
                self.wrong.append(f"account {id_} has {balance}, its rows say {BALANCE + moved}")
        total = connection.scalar(text("SELECT sum(balance) FROM account"))
        if total != ACCOUNTS * BALANCE:
            self.wrong.append(f"the accounts have {total}, not {ACCOUNTS * BALANCE}")

    def print(self) -> None:
        """Print it as tables."""
        for title, rows in (("operations", self.operations), ("size", self.sizes)):
            print(f"\n{title:<12}" + "".join(f"{name:>16}" for name in next(iter(rows.values()))))
            for name, cells in rows.items():
                print(f"{name:<12}" + "".join(f"{cell:>16}" for cell in cells.values()))
        for title, counts in (("faults", self.faults), ("events", self.events)):
            print(f"\n{title}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
        print(f"\nwrong balances: {self.wrong_balances} of {ACCOUNTS}")
        print(f"wrong counters: {self.wrong_counters} of {COUNTERS}")
        print(f"hanging workers: {self.hanging}")
        print("\n".join(["all is right"] if self.is_right else self.wrong[:20]))


def judge(ending: int, first: int, second: int) -> list[str]:
    """Return what is wrong with an operation that has so many rows of each half."""
    verdicts = {
        "lost": ending == ACKNOWLEDGED and not (first and second),
        "doubled": max(first, second) > 1,
        "halved": (first == 0) != (second == 0),
        "wrongly_failed": ending == FAILED and first + second > 0,
    }
    return [name for name, is_so in verdicts.items() if is_so]


def soak(server: TemporaryPostgres, options: argparse.Namespace, output: TextIO) -> Report:
    """Let the workers work and the nemesis strike, and report what has become of it."""
    report = Report(options.driver, options.minutes, options.seed, options.workers, options.marker)
    with plain(server) as connection:
        connection.execute(text(TABLES))
    if options.marker:
        create_marker_table(server.url)
    half, calm = options.minutes * 30, min(CALM, options.minutes * 10)
    with ChaosProxy(server.url_for(options.driver)) as proxy:
        crew = Crew(proxy.url, options)
        nemesis = Nemesis(server, proxy, options.seed)
        threading.Thread(target=show_progress, args=(crew, nemesis, output), daemon=True).start()
        try:
            nemesis.end.wait(calm)
            report.measure("start")
            nemesis.start()
            nemesis.end.wait(half - calm)
            report.measure("middle")
            nemesis.end.wait(half - calm)
            nemesis.finish()
            time.sleep(calm)
            report.measure("end")
        finally:
            crew.stop.set()
            nemesis.finish()
        report.hanging = crew.join()
    report.faults = dict(nemesis.counts.most_common())
    report.events = dict(crew.events.most_common())
    with plain(server) as connection:
        report.check(connection, crew, nemesis)
    return report


def show_progress(crew: Crew, nemesis: Nemesis, output: TextIO) -> None:
    """Print a line every ten seconds until the crew is to stop."""
    for seconds in itertools.count(10, 10):
        if crew.stop.wait(10):
            return
        unknown = crew.endings.count(UNKNOWN)
        print(
            f"{seconds:>5} s  {len(crew.endings):>7} operations  {nemesis.counts.total():>5} faults"
            f"  {unknown:>4} unknown",
            file=output,
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", metavar="MINUTES", nargs="?", type=float, default=1.0)
    parser.add_argument("seed", metavar="SEED", nargs="?", type=int, default=1)
    parser.add_argument("--driver", choices=("psycopg2", "psycopg", "asyncpg"), default="psycopg2")
    parser.add_argument("--workers", metavar="N", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and no more")
    parser.add_argument("--marker", action="store_true", help="use commit_marker")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        parser.error(f"MINUTES is {options.minutes:g}; allowed: more than 0")
    if not 1 <= options.workers <= 32:
        parser.error(f"--workers is {options.workers}; allowed: 1 to 32")
    # whatever goes wrong: the server's guard ends it with this process
    faulthandler.dump_traceback_later(options.minutes * 60 + 180, exit=True)
    try:
        with TemporaryPostgres(settings=SETTINGS) as server:
            report = soak(server, options, sys.stderr if options.json else sys.stdout)
    except KeyboardInterrupt:
        return 130
    faulthandler.cancel_dump_traceback_later()
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        report.print()
    return 0 if report.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
