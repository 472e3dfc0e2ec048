"""How soon a readiness check answers: SELECT 1 through the pool, as most do it, and sa_railway's.

    python benchmarks/readiness.py [--limit 40]

Prints the seconds of one check while the server is well, while the pool is exhausted, and while the
server is frozen, the longest of 200 checks at once, and how many connections these have opened.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

import sa_railway
from sa_railway.health import respond
from sa_railway.testing import ChaosProxy, TemporaryPostgres

PROBES = 200


def through_the_pool(engine: Engine) -> str:
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "503"
    return "200"


def by_sa_railway(engine: Engine) -> str:
    return str(respond(engine, "/health/ready").status)


Check = Callable[[Engine], str]
CHECKS: dict[str, tuple[Callable[..., Engine], Check]] = {
    "SELECT 1 through the pool": (
        lambda url: sqlalchemy.create_engine(url, pool_pre_ping=True),
        through_the_pool,
    ),
    "sa_railway": (sa_railway.create_engine, by_sa_railway),
}


def timed(check: Check, engine: Engine, limit: float) -> str:
    """Return the answer and its time; after *limit* seconds nobody waits any more."""
    found: list[str] = []
    started = time.perf_counter()
    thread = threading.Thread(target=lambda: found.append(check(engine)), daemon=True)
    thread.start()
    thread.join(limit)
    seconds = time.perf_counter() - started
    return f"{found[0]} after {seconds:7.3f} s" if found else f"nothing in {limit:5.0f} s"


def at_once(check: Check, engine: Engine) -> str:
    started = time.perf_counter()
    with ThreadPoolExecutor(PROBES) as threads:
        answers = set(threads.map(lambda _: check(engine), range(PROBES)))
    return f"{'/'.join(answers)} after {time.perf_counter() - started:7.3f} s"


@contextlib.contextmanager
def exhausted(engine: Engine) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(15):  # SQLAlchemy's default, and ours
            stack.enter_context(engine.connect())
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=40.0)
    limit = parser.parse_args().limit
    with TemporaryPostgres() as server:
        for name, (make, check) in CHECKS.items():
            with ChaosProxy(server.url) as proxy:
                engine = make(proxy.url)
                print(name, flush=True)
                print(f"  the server is well     {timed(check, engine, limit)}", flush=True)
                with exhausted(engine):
                    print(f"  the pool is exhausted  {timed(check, engine, limit)}", flush=True)
                time.sleep(1.1)  # what was found out is not asked for again within a second
                with proxy.freeze():
                    print(f"  the server is frozen   {timed(check, engine, limit)}", flush=True)
            with ChaosProxy(server.url) as proxy:
                done = at_once(check, make(proxy.url))
                print(f"  {PROBES} checks at once     {done}, {proxy.accepted} connections")


if __name__ == "__main__":
    main()
