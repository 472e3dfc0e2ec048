"""``check_health()``: what its rules find in the facts, and what it reports."""

import asyncio
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import QueuePool, text

import sa_railway.asyncio
from sa_railway import Profile
from sa_railway.engine.leaks import Hold
from sa_railway.exc import ConfigurationError
from sa_railway.health import pool as pool_module
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import Probe, ServerFacts
from sa_railway.health.report import HealthReport, Status, check_health
from sa_railway.health.rules import Recommendation, RuleInput, Severity, humanize, judge
from sa_railway.metrics.counters import counters_of
from sa_railway.metrics.snapshot import Processes, Window

SERVER = ServerFacts(version="17.2", connection_limit=100, connections=10, idle_in_transaction=0)
POOL = PoolState(size=5, checked_out=3, idle=2, overflow=0, max_overflow=10)


def facts(profile=None, probe=None, pool=POOL, server=SERVER, **window):
    return RuleInput(
        profile=profile or Profile(),
        probe=probe or Probe(round_trip=0.001, server=server),
        pool=pool,
        window=Window(300.0, **window),
    )


# --- the rules ---


def test_nothing_is_found_where_nothing_is_wrong():
    assert judge(facts(successes=95, failures=5, reconnections=10, rollbacks=20)) == []


def test_a_server_that_does_not_answer_is_critical():
    probe = Probe("The server did not answer within 2 s.", "Look at it.")

    assert judge(facts(probe=probe)) == [
        Recommendation(
            Severity.CRITICAL,
            "server",
            "The server did not answer within 2 s.",
            "Look at it.",
        )
    ]


@pytest.mark.parametrize(
    ("connections", "severity"),
    [(69, None), (70, Severity.WARNING), (89, Severity.WARNING), (90, Severity.CRITICAL)],
)
def test_connections_of_the_server(connections, severity):
    found = judge(facts(server=replace(SERVER, connections=connections)))

    assert [each.severity for each in found] == ([severity] if severity else [])
    assert [each.rule for each in found] == ["connections"] * len(found)


def test_the_finding_about_connections_tells_how_many_and_what_to_do():
    (found,) = judge(facts(server=replace(SERVER, connection_limit=97, connections=73)))

    assert found.message == "73 of the server's 97 connections are in use (75%)."
    assert found.action == (
        "Run fewer processes, lower pool_size and max_overflow, or put a pooler in between. "
        "application_name in pg_stat_activity tells what holds them."
    )


def test_a_success_rate_below_the_threshold():
    assert judge(facts(successes=1898, failures=102)) == [
        Recommendation(
            Severity.WARNING,
            "success_rate",
            "102 of 2,000 statements failed in the last 5 minutes: 94.9% succeeded, and 95.0% "
            "should.",
            "Look for their errors in the application's log; what sa_railway adds to an error says "
            "what to do.",
        )
    ]


def test_reconnections_above_the_threshold():
    assert judge(facts(reconnections=11)) == [
        Recommendation(
            Severity.WARNING,
            "reconnections",
            "Connections were lost and replaced 11 times in the last 5 minutes.",
            "Look into the log of the database service for restarts. If it has none, a proxy or a "
            "timeout ends connections that are idle: lower pool_recycle below its limit.",
        )
    ]


def test_rollbacks_above_the_threshold():
    assert judge(facts(rollbacks=21)) == [
        Recommendation(
            Severity.WARNING,
            "rollbacks",
            "21 transactions were rolled back in the last 5 minutes.",
            "Look for the errors before them in the application's log, and commit what shall stay.",
        )
    ]


@pytest.mark.parametrize(
    ("waiting", "waits"),
    [(0, ""), (1, ", and 1 checkout waiting"), (4, ", and 4 checkouts waiting")],
)
def test_an_exhausted_pool(waiting, waits):
    pool = PoolState(5, checked_out=15, idle=0, overflow=10, max_overflow=10, waiting=waiting)

    (found,) = judge(facts(pool=pool))

    assert (found.severity, found.rule) == (Severity.WARNING, "pool")
    assert found.message == f"The pool is exhausted: 15 of 15 connections are in use{waits}."
    assert found.action == (
        "Return connections sooner: no slow work while one is held; with leak_after, the report "
        "says what holds them. Then raise pool_size or max_overflow, as far as the server's "
        "connections allow."
    )


def test_a_pool_without_a_limit_is_never_exhausted():
    assert judge(facts(pool=replace(POOL, checked_out=500, max_overflow=None))) == []


def test_sessions_idle_in_a_transaction_are_told_and_decide_nothing():
    assert judge(facts(server=replace(SERVER, idle_in_transaction=2))) == [
        Recommendation(
            Severity.INFO,
            "idle_in_transaction",
            "Idle in a transaction for more than 1 minute: 2 sessions.",
            "They hold locks and keep VACUUM from its work. Commit before slow work, and set "
            "idle_in_transaction_session_timeout on the server.",
        )
    ]


def test_the_worst_comes_first():
    busy = ServerFacts("17.2", connection_limit=100, connections=95, idle_in_transaction=1)

    found = judge(facts(server=busy, rollbacks=21))

    assert [each.rule for each in found] == ["connections", "rollbacks", "idle_in_transaction"]


def test_the_thresholds_are_those_of_the_profile():
    profile = Profile(
        health_success_rate=0.5,
        health_reconnections=1,
        health_rollbacks=2,
        health_connections_warn=0.05,
        health_connections_critical=0.5,
    )
    counted = {"successes": 50, "failures": 50, "reconnections": 2, "rollbacks": 3}

    found = judge(facts(profile, **counted))

    assert [each.rule for each in found] == ["connections", "reconnections", "rollbacks"]


@pytest.mark.parametrize("field", ["health_success_rate", "health_connections_warn"])
def test_a_share_is_at_most_the_whole(field):
    with pytest.raises(ConfigurationError, match=rf"^{field} is 95; allowed: 1 or less$"):
        Profile(**{field: 95})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(300, "5 minutes"), (60, "1 minute"), (7200, "2 hours"), (90, "90 seconds")],
)
def test_times_in_words(seconds, words):
    assert humanize(seconds) == words


# --- the report ---


def pool_of(engine):
    """What the report says of the pool."""
    pool = check_health(engine).pool
    assert pool is not None
    return pool


def test_a_healthy_engine(engine):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    report = check_health(engine)

    assert (report.status, report.rule, report.recommendations) == (Status.HEALTHY, None, ())
    assert report.success_rate == 1.0
    assert report.window == Window(300.0, successes=1)
    assert report.pool == PoolState(5, checked_out=0, idle=1, overflow=0, max_overflow=10)
    assert report.server is None  # only PostgreSQL tells
    assert report.round_trip is not None
    assert report.round_trip > 0
    assert report.metrics["queries"] == 1


def test_a_server_that_cannot_be_used_decides(tmp_path):
    engine = sa_railway.create_engine(f"sqlite:///{tmp_path / 'missing' / 'shop.db'}")

    report = check_health(engine)

    assert (report.status, report.rule) == (Status.CRITICAL, "server")
    assert report.recommendations[0].message == "The server cannot be used."
    assert report.round_trip is None


def test_an_engine_of_asyncio():
    engine = sa_railway.create_async_engine("sqlite+aiosqlite://")

    assert check_health(engine).status is Status.HEALTHY
    assert asyncio.run(sa_railway.asyncio.check_health(engine)).status is Status.HEALTHY


def test_the_report_says_for_how_long_a_connection_has_been_in_use(engine, monkeypatch):
    check_health(engine)  # counts from now on
    with engine.connect():
        now = time.monotonic()
        with engine.connect(), monkeypatch.context() as patch:
            patch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: now + 60))
            report = check_health(engine)
    assert report.pool is not None
    assert report.pool.longest_hold is not None
    assert 60 <= report.pool.longest_hold < 120
    assert pool_of(engine).longest_hold is None


def test_the_report_says_what_holds_a_connection_where_leaks_are_watched():
    engine = sa_railway.create_engine("sqlite://", poolclass=QueuePool, leak_after=60)
    assert pool_of(engine).holds == ()

    with engine.connect():
        (hold,) = pool_of(engine).holds
    assert (hold.file, hold.function) == (
        "test_health.py",
        "test_the_report_says_what_holds_a_connection_where_leaks_are_watched",
    )
    assert hold.line == sys._getframe().f_lineno - 6
    assert 0 <= hold.seconds < 60
    assert pool_of(engine).holds == ()


def test_the_report_says_how_many_engines_are_counted_together(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    engines = [sa_railway.create_engine(url) for _ in range(2)]
    engines.append(sa_railway.create_engine(url, logging_name="audit"))
    for engine in engines:
        check_health(engine)

    with engines[0].connect():
        reports = [check_health(engine) for engine in engines]
        pools = [pool_of(engine) for engine in engines]
    assert [report.engines for report in reports] == [2, 2, 1]
    assert [pool.longest_hold is None for pool in pools] == [False, True, True]


def test_the_report_says_since_when_it_counts(engine):
    check_health(engine)
    counters = counters_of(engine)
    assert counters is not None
    counters.began -= 3600
    began = datetime.now(UTC) - timedelta(hours=1)

    since = check_health(engine).since

    assert since is not None
    assert began - timedelta(minutes=1) < since < began + timedelta(minutes=1)


def test_the_report_sums_up_the_pools_of_all_processes(engine):
    check_health(engine)
    with engine.connect():
        report = check_health(engine)

    assert report.processes == Processes(count=1, open=1, checked_out=1, waiting=0, limit=15)


def test_without_statements_there_is_no_success_rate(engine):
    assert check_health(engine).success_rate is None


def test_the_report_as_json():
    report = HealthReport(
        status=Status.DEGRADED,
        rule="pool",
        recommendations=(Recommendation(Severity.WARNING, "pool", "It is exhausted.", "Return."),),
        window=Window(300.0, successes=3, failures=1),
        pool=replace(POOL, holds=(Hold(3.5, "views.py", 42, "checkout"),)),
        server=SERVER,
        round_trip=0.001,
        metrics={"queries": 4},
        process=7,
        time=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
        since=datetime(2026, 1, 1, 3, 4, 5, 678, UTC),
        processes=Processes(count=2, open=3, checked_out=1, waiting=0, limit=None),
    )

    assert json.loads(json.dumps(report.to_dict())) == {
        "status": "degraded",
        "rule": "pool",
        "recommendations": [
            {
                "severity": "warning",
                "rule": "pool",
                "message": "It is exhausted.",
                "action": "Return.",
            }
        ],
        "window": {
            "seconds": 300.0,
            "successes": 3,
            "failures": 1,
            "reconnections": 0,
            "rollbacks": 0,
        },
        "pool": {
            "size": 5,
            "checked_out": 3,
            "idle": 2,
            "overflow": 0,
            "max_overflow": 10,
            "waiting": 0,
            "longest_hold": None,
            "holds": [{"seconds": 3.5, "file": "views.py", "line": 42, "function": "checkout"}],
        },
        "server": {
            "version": "17.2",
            "connection_limit": 100,
            "connections": 10,
            "idle_in_transaction": 0,
        },
        "round_trip": 0.001,
        "metrics": {"queries": 4},
        "process": 7,
        "time": "2026-01-02T03:04:05+00:00",
        "since": "2026-01-01T03:04:05+00:00",
        "processes": {"count": 2, "open": 3, "checked_out": 1, "waiting": 0, "limit": None},
        "engines": 1,
        "success_rate": 0.75,
    }
