"""Subscribing to what happens."""

import logging
import pickle

from sa_railway import events
from sa_railway.exc import DatabaseUnavailableError


def test_a_subscriber_hears_until_it_unsubscribes():
    heard: list[events.Event] = []
    unsubscribe = events.subscribe(heard.append)
    events.publish(events.BreakerClosed("e"))
    unsubscribe()
    unsubscribe()
    events.publish(events.BreakerClosed("e"))

    assert heard == [events.BreakerClosed("e")]
    assert events.BreakerClosed not in events.subscribed_types


def test_a_subscriber_hears_the_kinds_that_it_has_named_and_nobody_pays_for_the_others():
    heard: list[events.Event] = []
    unsubscribe = events.subscribe(heard.append, events.BreakerClosed, events.CheckedOut)
    events.publish(events.BreakerClosed("e"))
    events.publish(events.IdleReleased("e", 1.0))

    assert heard == [events.BreakerClosed("e")]
    assert events.CheckedOut in events.subscribed_types
    assert events.IdleReleased not in events.subscribed_types
    unsubscribe()
    assert events.CheckedOut not in events.subscribed_types


def test_a_subscriber_that_fails_is_logged_once_and_does_not_silence_the_others(caplog):
    def broken(event):
        raise RuntimeError("a bug")

    heard: list[events.Event] = []
    ends = [events.subscribe(broken), events.subscribe(heard.append)]

    with caplog.at_level(logging.ERROR):
        events.publish(events.BreakerClosed("e"))
        events.publish(events.BreakerClosed("e"))

    assert len(heard) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "A subscriber failed; its further failures are not logged"
    ]
    for end in ends:
        end()


def test_the_failures_of_one_subscription_do_not_silence_the_next(caplog):
    def broken(event):
        raise RuntimeError("a bug")

    for _ in range(2):
        end = events.subscribe(broken)
        with caplog.at_level(logging.ERROR):
            events.publish(events.BreakerClosed("e"))
        end()

    assert [record.getMessage() for record in caplog.records] == [
        "A subscriber failed; its further failures are not logged",
        "A subscriber failed; its further failures are not logged",
    ]


def test_an_unavailable_database_survives_a_task_queue():
    error = DatabaseUnavailableError("away", retry_after=1.5, orig=OSError("refused"))
    copy = pickle.loads(pickle.dumps(error))

    assert (str(copy), copy.retry_after, str(copy.orig)) == ("away", 1.5, "refused")
