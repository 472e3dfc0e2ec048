"""A connection that is held for too long is named, with the place where it was checked out."""

import logging
import threading

import sa_railway


def wait_until(condition):
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def test_who_holds_a_connection_is_logged_once_and_again_when_it_comes_back(database_url, caplog):
    engine = sa_railway.create_engine(database_url, leak_after=0.1)
    with caplog.at_level(logging.INFO, logger="sa_railway.engine.leaks"):
        with engine.connect():
            wait_until(lambda: caplog.records)
            held = caplog.records[0]
        wait_until(lambda: len(caplog.records) == 2)
    engine.dispose()

    assert held.levelname == "WARNING"
    assert "test_who_holds_a_connection_is_logged_once" in held.getMessage()
    assert "hunter2" not in caplog.text
