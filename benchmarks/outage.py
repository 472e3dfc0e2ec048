"""An outage of the server: what reaches the caller, and how long after its return the answer comes.

    python benchmarks/outage.py [--seconds 5] [--rounds 3]

Each contender asks again and again, in a thread of its own, while the server is stopped as by a
crash and started again. Peers do the same work in the same outage: a tenacity retry on
OperationalError, and ``wrap_db_retry`` of oslo.db where that is installed
(``pip install oslo.db``), both on an engine with ``pool_pre_ping`` and with their usual settings.
"""

from __future__ import annotations

import argparse
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy
import tenacity
from sqlalchemy import Connection, Engine, text

import sa_railway
from sa_railway.testing import TemporaryPostgres

Ask = Callable[[], object]


def select(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))


def ask(engine: Engine) -> Ask:
    """Return what is run again; ``run_transaction()`` opens the connection itself."""

    def once() -> None:
        with engine.connect() as connection:
            select(connection)

    return once


def with_tenacity(engine: Engine) -> Ask:
    again = tenacity.retry(
        retry=tenacity.retry_if_exception_type(sqlalchemy.exc.OperationalError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_delay(60),
        reraise=True,
    )
    return again(ask(engine))


def with_oslo(engine: Engine) -> Ask:
    from oslo_db import api

    again: Callable[[Ask], Ask] = api.wrap_db_retry(max_retries=20, retry_on_disconnect=True)
    return again(ask(engine))


@dataclass
class Tally:
    """What one contender has seen of an outage: when each answer came, and which errors."""

    answers: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def run(self, work: Ask, stop: threading.Event) -> None:
        """Ask until *stop* is set."""
        while not stop.is_set():
            try:
                work()
                self.answers.append(time.monotonic())
            except Exception as error:  # noqa: BLE001 - whatever reaches the caller is counted
                self.errors.append(type(error).__name__)
                stop.wait(0.05)


def measure(server: TemporaryPostgres, contenders: dict[str, Ask], seconds: float) -> list[str]:
    """Return a line for each contender about one outage."""
    stop = threading.Event()
    tallies = {name: Tally() for name in contenders}
    threads = [
        threading.Thread(target=tallies[name].run, args=(work, stop))
        for name, work in contenders.items()
    ]
    for thread in threads:
        thread.start()
    stop.wait(0.5)
    server.stop("immediate")
    stop.wait(seconds)
    server.start()
    returned = time.monotonic()
    give_up = returned + 60
    while time.monotonic() < give_up and not all(
        tally.answers and tally.answers[-1] > returned for tally in tallies.values()
    ):
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    return [line(name, tally, returned) for name, tally in tallies.items()]


def line(name: str, tally: Tally, returned: float) -> str:
    lag = min((t - returned for t in tally.answers if t > returned), default=float("inf"))
    return f"{name:<18} {len(tally.errors):>7} {lag:>8.2f} s"


@contextmanager
def contending(server: TemporaryPostgres) -> Iterator[dict[str, Ask]]:
    """Yield what each contender asks with, on an engine of its own."""
    railway = sa_railway.create_engine(server.url)
    pinging = sqlalchemy.create_engine(server.url, pool_pre_ping=True)
    contenders: dict[str, Ask] = {
        "retry": sa_railway.retry(ask(railway)),
        "run_transaction": lambda: sa_railway.run_transaction(railway, select),
        "tenacity": with_tenacity(pinging),
    }
    engines = [railway, pinging]
    if importlib.util.find_spec("oslo_db"):
        from oslo_db.sqlalchemy import engines as oslo_engines

        engines.append(oslo_engines.create_engine(server.url.render_as_string(hide_password=False)))
        contenders["oslo.db"] = with_oslo(engines[-1])
    yield contenders
    for engine in engines:
        engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{'':<18} {'errors':>7} {'lag':>10}")
    with TemporaryPostgres() as server, contending(server) as contenders:
        for number in range(arguments.rounds):
            print(f"outage {number + 1}, {arguments.seconds:g} s")
            print("\n".join(measure(server, contenders, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
