"""A server that restarts while eight threads use it."""

import threading
import time

import pytest
import sqlalchemy
from sqlalchemy import text

import sa_railway

THREADS = 8


class Load:
    """Threads that check out, select and return, and remember what failed and when it began."""

    def __init__(self, engine):
        self._engine = engine
        self._stop = threading.Event()
        self.answers = []
        self.failures = []
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self):
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                with self._engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
            except sqlalchemy.exc.SQLAlchemyError as error:
                self.failures.append((began, error))
            else:
                self.answers.append(began)

    def wait_for_answers_after(self, moment, count=THREADS):
        deadline = time.monotonic() + 30
        while sum(began > moment for began in self.answers[-1000:]) < count:
            assert time.monotonic() < deadline, self.failures[-1:]
            self._stop.wait(0.01)

    def run_for(self, seconds):
        self._stop.wait(seconds)


@pytest.mark.parametrize(("driver", "seconds"), [("psycopg2", 20), ("psycopg", 6)])
def test_no_checkout_that_begins_after_the_stop_fails(own_postgres, driver, seconds):
    engine = sa_railway.create_engine(own_postgres.url_for(driver), pool_size=THREADS)
    started = time.monotonic()

    with Load(engine) as load:
        load.wait_for_answers_after(started)
        own_postgres.stop()
        stopped = time.monotonic()
        load.run_for(1.0)
        own_postgres.start()
        load.wait_for_answers_after(time.monotonic())
        load.run_for(max(0.0, seconds - (time.monotonic() - started)))

    assert [error for began, error in load.failures if began > stopped] == []
    engine.dispose()


def test_plain_pre_ping_fails_while_the_server_is_away(own_postgres):
    engine = sqlalchemy.create_engine(own_postgres.url, pool_pre_ping=True, pool_size=THREADS)

    with Load(engine) as load:
        load.wait_for_answers_after(0)
        own_postgres.stop()
        stopped = time.monotonic()
        load.run_for(0.2)
        own_postgres.start()
        load.wait_for_answers_after(time.monotonic())

    assert [error for began, error in load.failures if began > stopped] != []
    engine.dispose()
