"""The connections of an application against those of the server."""

import pytest

import sa_railway
from sa_railway import exc
from sa_railway.config.budget import ConnectionBudget, count_processes, plan_budget


def test_a_budget_that_fits():
    assert plan_budget(1, 3, 5, 10, max_connections=100) == ConnectionBudget(
        peak=90,
        available=97,
        fits=True,
        recommended_pool_size=5,
        recommended_max_overflow=10,
        sentences=(
            "At peak 90: 1 replica x 3 processes x 15 connections x 2 deployments at once.",
            "The server allows 100 and reserves 3: 97 are left.",
            "That fits, with 7 to spare.",
        ),
    )


def test_a_budget_that_does_not_fit():
    assert plan_budget(2, 4, 5, 10, extra=6, max_connections=100) == ConnectionBudget(
        peak=246,
        available=97,
        fits=False,
        recommended_pool_size=5,
        recommended_max_overflow=0,
        sentences=(
            "At peak 246: 2 replicas x 4 processes x 15 connections x 2 deployments at once"
            " + 6 of others.",
            "The server allows 100 and reserves 3: 97 are left.",
            "That is 149 too many; pool_size=5 and max_overflow=0 would fit, with 86 at peak.",
        ),
    )


def test_more_processes_than_connections():
    assert plan_budget(10, 8, 1, 0, max_connections=100) == ConnectionBudget(
        peak=160,
        available=97,
        fits=False,
        recommended_pool_size=None,
        recommended_max_overflow=None,
        sentences=(
            "At peak 160: 10 replicas x 8 processes x 1 connection x 2 deployments at once.",
            "The server allows 100 and reserves 3: 97 are left.",
            "That is 63 too many, and not even one per process would fit: run fewer processes, or "
            "put PgBouncer before the server.",
        ),
    )


def test_the_limit_of_the_server_may_be_unknown():
    assert plan_budget(1, 1, 5, 10, overlap=1) == ConnectionBudget(
        peak=15,
        available=None,
        fits=None,
        recommended_pool_size=5,
        recommended_max_overflow=10,
        sentences=(
            "At peak 15: 1 replica x 1 process x 15 connections.",
            "The server's limit is not known; SHOW max_connections tells it.",
        ),
    )


@pytest.mark.parametrize("extra", [0, 1, 30, 60, 96, 97, 500])
@pytest.mark.parametrize("processes", [1, 2, 3, 7, 12, 48])
def test_what_is_recommended_is_the_most_that_fits(processes, extra):
    def plan(pool_size, max_overflow):
        return plan_budget(1, processes, pool_size, max_overflow, extra=extra, max_connections=100)

    budget = plan(5, 10)
    size, overflow = budget.recommended_pool_size, budget.recommended_max_overflow
    if size is None:
        assert not plan(1, 0).fits
        return
    assert plan(size, overflow).fits
    assert size <= 5
    assert overflow <= 10
    assert (size, overflow) == (5, 10) or not plan(size, overflow + 1).fits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"replicas": 0}, "replicas is 0; allowed: a whole number, 1 or more"),
        ({"processes": -1}, "processes is -1; allowed: a whole number, 1 or more"),
        ({"pool_size": 2.5}, "pool_size is 2.5; allowed: a whole number, 1 or more"),
        ({"pool_size": True}, "pool_size is True; allowed: a whole number, 1 or more"),
        ({"max_overflow": -1}, "max_overflow is -1; allowed: a whole number, 0 or more"),
        ({"overlap": 0}, "overlap is 0; allowed: a whole number, 1 or more"),
        ({"extra": "3"}, "extra is '3'; allowed: a whole number, 0 or more"),
        ({"reserved": -3}, "reserved is -3; allowed: a whole number, 0 or more"),
        ({"max_connections": 3}, "max_connections is 3; allowed: a whole number, 4 or more"),
    ],
)
def test_a_number_that_cannot_be_used(changed, message):
    arguments = {"replicas": 1, "processes": 1, "pool_size": 5, "max_overflow": 10, **changed}
    with pytest.raises(exc.ConfigurationError) as caught:
        plan_budget(**arguments)

    assert str(caught.value) == message


@pytest.mark.parametrize(("given", "processes"), [({}, 1), ("", 1), (" 3 ", 3)])
def test_processes_are_those_of_gunicorn(given, processes):
    environ = {} if given == {} else {"WEB_CONCURRENCY": given}

    assert count_processes(environ) == processes


@pytest.mark.parametrize("given", ["0", "-2", "auto", "2.5"])
def test_processes_that_are_no_number(given):
    with pytest.raises(exc.ConfigurationError) as caught:
        count_processes({"WEB_CONCURRENCY": given})

    assert str(caught.value) == f"WEB_CONCURRENCY is {given!r}; allowed: a whole number, 1 or more"


def test_the_public_names():
    assert sa_railway.plan_budget is plan_budget
    assert sa_railway.ConnectionBudget is ConnectionBudget
