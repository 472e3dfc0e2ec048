"""A server that restarts under load: what fails, and how long after its return the first answer is.

    python benchmarks/restart.py [--seconds 20]

Eight threads check out, SELECT and return without a pause, once with ``pool_pre_ping`` and once
with sa_railway; in between the server is stopped and started again.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import sqlalchemy
from sqlalchemy import URL, Engine, text

import sa_railway
from sa_railway.testing import TemporaryPostgres

THREADS = 8
AWAY = 2.0  # seconds that the server is away
KINDS: dict[str, Callable[[URL], Engine]] = {
    "pool_pre_ping": lambda url: sqlalchemy.create_engine(url, pool_pre_ping=True, pool_size=8),
    "sa_railway": lambda url: sa_railway.create_engine(url, pool_size=8),
}


def work(
    engine: Engine, stop: threading.Event, answers: list[float], failures: list[float]
) -> None:
    """Note when each answer came, and when each checkout that failed had begun."""
    while not stop.is_set():
        began = time.monotonic()
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            answers.append(time.monotonic())
        except sqlalchemy.exc.SQLAlchemyError:
            failures.append(began)
            stop.wait(0.05)


def measure(server: TemporaryPostgres, engine: Engine, seconds: float) -> str:
    stop, answers, failures = threading.Event(), [0.0], [0.0]
    arguments = (engine, stop, answers, failures)
    threads = [threading.Thread(target=work, args=arguments) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    stop.wait((seconds - AWAY) / 2)
    server.stop()
    stopped = time.monotonic()
    stop.wait(AWAY)
    server.start()
    returned = time.monotonic()
    stop.wait((seconds - AWAY) / 2)
    stop.set()
    for thread in threads:
        thread.join()
    engine.dispose()
    failed = sum(began > stopped for began in failures)
    lag = min(answer for answer in answers if answer > stopped) - returned
    return (
        f"{len(answers):>8} answered, {failed:>4} failed after the stop, first answer {lag:+.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    with TemporaryPostgres() as server:
        for driver in ("psycopg2", "psycopg"):
            for kind, make in KINDS.items():
                line = measure(server, make(server.url_for(driver)), seconds)
                print(f"{driver + ', ' + kind:<24} {line} from the server's return", flush=True)


if __name__ == "__main__":
    main()
