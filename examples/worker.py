"""A worker that takes jobs from a table, one after the other, until it gets a SIGTERM.

    export DATABASE_URL=postgresql://...
    python worker.py add Ada Grace    # make the tables if they are missing, and two jobs
    python worker.py                  # work; several may do so at once

A job is taken, done and ticked off in one transaction. When the server restarts meanwhile, all of
that is rolled back and the job waits for its next turn, so what a job writes to this database is
there exactly once. What it does elsewhere, such as sending a mail, may happen again.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from sa_railway import classify, create_engine

PAUSE = 1.0  # seconds until an empty table, or a server that was away, is looked at again

logger = logging.getLogger("worker")
metadata = MetaData()
jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("state", String, nullable=False, default="waiting", index=True),
)
greetings = Table(
    "greetings",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), nullable=False),
    Column("text", String, nullable=False),
)


def perform(connection: Connection, job: Row[Any]) -> None:
    """Do the work of *job*, which takes its time."""
    time.sleep(job.seconds)
    connection.execute(insert(greetings).values(job_id=job.id, text=f"Hello {job.name}"))


class Worker:
    """Takes jobs until it is stopped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._in_transaction = False
        self._stopping = False

    def stop(self, *_signal: object) -> None:
        """Finish the job in hand; without one, leave at once, whatever is being waited for."""
        self._stopping = True
        if not self._in_transaction:
            sys.exit()

    def run(self) -> None:
        """Work until ``stop()``."""
        while not self._stopping:
            try:
                found = self._work_off_one()
            except DBAPIError as error:
                fault = classify(error)
                if not fault.transient:
                    raise
                logger.warning("%s A job that was in hand waits for its next turn.", fault.advice)
                found = False
            if not found and not self._stopping:
                time.sleep(PAUSE)

    def _work_off_one(self) -> bool:
        """Do the oldest job that no other worker has in hand; return whether there was one."""
        with self._engine.connect() as connection:  # waits while the server is away
            self._in_transaction = True
            try:
                with connection.begin():
                    return _do_next(connection)
            finally:
                self._in_transaction = False


def _do_next(connection: Connection) -> bool:
    waiting = select(jobs).where(jobs.c.state == "waiting").order_by(jobs.c.id).limit(1)
    job = connection.execute(waiting.with_for_update(skip_locked=True)).first()
    if job is None:
        return False
    try:
        with connection.begin_nested():  # what a failed job wrote is rolled back
            perform(connection, job)
    except Exception:
        if connection.invalidated:  # the server is away: not the fault of the job
            raise
        logger.exception("Job %d failed", job.id)
        state = "failed"
    else:
        logger.info("Job %d is done", job.id)
        state = "done"
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(state=state))
    return True


def add(engine: Engine, names: list[str]) -> None:
    metadata.create_all(engine)
    with engine.begin() as connection:
        for name in names:
            connection.execute(insert(jobs).values(name=name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    subcommand = parser.add_subparsers(dest="command").add_parser("add", help="add jobs")
    subcommand.add_argument("name", nargs="*", help="whom to greet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    engine = create_engine(profile="worker")
    if arguments.command == "add":
        add(engine, arguments.name)
        return
    worker = Worker(engine)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.stop)
    worker.run()


if __name__ == "__main__":
    main()
