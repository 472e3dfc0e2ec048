"""What is counted of an engine, on SQLite; and how Prometheus is told."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import pytest
import sqlalchemy
from fix_events import hearing
from flask_sqlalchemy import SQLAlchemy
from marked import MARK
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import NullPool

import sa_railway
from sa_railway import engine_options, events
from sa_railway.exc import ConfigurationError
from sa_railway.flask import Railway
from sa_railway.metrics import counters as counters_module
from sa_railway.metrics import prometheus
from sa_railway.metrics.counters import Counters
from sa_railway.metrics.definitions import COUNTS, index_of
from sa_railway.metrics.snapshot import Histogram, Snapshot, Window, snapshot, window

Make = Callable[..., Engine]


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers without those of other tests, which may have taken all room there is."""
    monkeypatch.setattr(counters_module, "_shared", None)
    monkeypatch.setattr(counters_module, "_by_name", {})


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make engines for a database of their own, whose numbers begin at zero."""
    engines: list[Engine] = []

    def make(name: str = f"{tmp_path.name}.db", **options: Any) -> Engine:
        options = {"metrics": True, **options}
        engines.append(sa_railway.create_engine(f"sqlite:///{tmp_path / name}", **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def counted(engine: Engine) -> dict[str, int]:
    """What has been counted, without what is zero."""
    return {name: count for name, count in snapshot(engine).counters.items() if count}


def executes(engine: Engine, *statements: str) -> None:
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


# --- counters ---


def test_statements_are_counted_however_they_are_executed(make: Make):
    engine = make()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE tea (id INTEGER PRIMARY KEY, name TEXT)"))
        connection.execute(text("INSERT INTO tea VALUES (:id, 'a')"), [{"id": 1}, {"id": 2}])
        connection.exec_driver_sql("SELECT 1")
        connection.execution_options(no_parameters=True).exec_driver_sql("SELECT '%'")

    assert counted(engine) == {"queries": 4, "checkouts": 1}


def test_copies_of_an_engine_count_with_it(make: Make):
    engine = make()
    executes(engine.execution_options(isolation_level="AUTOCOMMIT"), "SELECT 1")

    assert counted(engine)["queries"] == 1


@pytest.mark.parametrize("create", [sqlalchemy.create_engine, sa_railway.create_engine])
def test_nothing_is_known_of_an_engine_that_nobody_wants_counted(create: Make):
    engine = create("sqlite://")
    engine.connect().close()

    assert snapshot(engine) == Snapshot()
    assert window(engine, 60) == Window(60)
    assert window(engine, 60).success_rate is None
    engine.dispose()


def test_failed_statements_are_counted_by_the_kind_of_their_fault(make: Make):
    engine = make()
    for _ in range(2):
        with pytest.raises(OperationalError):
            executes(engine, "SELECT nothing")

    now = snapshot(engine)
    assert now.counters["queries"] == now.counters["failed_queries"] == 2
    assert {kind: count for kind, count in now.failures.items() if count} == {"permanent": 2}


def test_a_violated_constraint_is_no_failure(make: Make):
    engine = make()
    with pytest.raises(IntegrityError):
        executes(engine, "CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1), (1)")

    assert counted(engine) == {"queries": 2, "checkouts": 1, "rollbacks": 1}
    assert window(engine, 60).success_rate == 1


def test_a_statement_that_cannot_be_sent_is_neither_executed_nor_failed(make: Make):
    engine = make()
    with pytest.raises(sqlalchemy.exc.StatementError):
        executes(engine, "SELECT :missing")

    assert "queries" not in counted(engine)
    assert "failed_queries" not in counted(engine)


def test_a_transaction_that_failed_is_one_rollback(make: Make):
    engine = make()
    with engine.connect() as connection:
        for _ in range(3):
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT nothing"))
        connection.rollback()
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT nothing"))

    assert counted(engine)["rollbacks"] == 2


def test_the_end_of_reading_is_no_rollback(make: Make):
    engine = make()
    executes(engine, "SELECT 1")

    assert "rollbacks" not in counted(engine)


@pytest.mark.parametrize(
    ("happened", "name"),
    [
        (lambda engine: events.StaleFound(engine, "socket"), "stale_connections"),
        (lambda engine: events.Retried(engine, 1, 0.0, OSError()), "retries"),
        (lambda engine: events.Replayed(engine, 1, 0.0, OSError()), "replays"),
        (lambda engine: events.BreakerOpened(engine, 2.0, OSError()), "breaker_openings"),
        (lambda engine: events.Leaked(engine, 30.0, "..."), "leaks"),
        (lambda engine: events.CommitResolved(engine, "aborted", 1.0), "commits_resolved"),
        (lambda engine: events.LeftoversRolledBack(engine, "GET /", failed=False), "rollbacks"),
    ],
)
def test_what_others_announce_is_counted(make: Make, happened: Callable, name: str):
    engine = make()
    events.publish(happened(str(engine.url)))

    assert counted(engine) == {name: 1}


def test_leftovers_of_a_failure_are_not_counted_again(make: Make):
    engine = make()
    events.publish(events.LeftoversRolledBack(str(engine.url), "GET /", failed=True))

    assert counted(engine) == {}


def test_the_outcomes_of_lost_commits_are_told_apart(make: Make):
    engine = make()
    for outcome in ("committed", "committed", "unknown"):
        events.publish(events.CommitResolved(str(engine.url), outcome, 1.0))

    assert snapshot(engine).outcomes == {"committed": 2, "aborted": 0, "unknown": 1}


def test_an_event_of_an_unknown_engine_is_passed_over(make: Make):
    engine = make()
    events.publish(events.Retried("", 1, 0.0, OSError()))

    assert counted(engine) == {}


def test_no_count_is_lost_between_threads(make: Make):
    engine = make(pool_size=4)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=executes, args=(engine, *["SELECT 1"] * 500)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert counted(engine) == {"queries": 2000, "checkouts": 4}
    assert snapshot(engine).gauges["checked_out"] == 0


# --- the pool ---


def test_the_pool_as_it_is_now(make: Make):
    engine = make(pool_size=1, max_overflow=1)
    with engine.connect(), engine.connect():
        assert snapshot(engine).gauges == {
            "size": 1,
            "limit": 2,
            "open": 2,
            "overflow": 1,
            "checked_out": 2,
            "waiting": 0,
        }

    assert snapshot(engine).gauges == {
        "size": 1,
        "limit": 2,
        "open": 1,
        "overflow": 0,
        "checked_out": 0,
        "waiting": 0,
    }
    engine.dispose()
    assert snapshot(engine).gauges["open"] == 0


def test_a_disposed_engine_goes_on_counting(make: Make):
    engine = make()
    executes(engine, "SELECT 1")
    engine.dispose()
    executes(engine, "SELECT 1")

    assert counted(engine) == {"queries": 2, "checkouts": 2}
    assert snapshot(engine).gauges["open"] == 1


def test_a_checkout_that_waits_is_seen_waiting_and_its_end_is_counted(make: Make):
    engine = make(pool_size=1, max_overflow=0, pool_timeout=60)
    with engine.connect():
        waiter = threading.Thread(target=executes, args=(engine, "SELECT 1"))
        waiter.start()
        while not snapshot(engine).gauges["waiting"]:
            assert waiter.is_alive()
        assert snapshot(engine).gauges["checked_out"] == 1
    waiter.join()

    assert snapshot(engine).gauges["waiting"] == 0
    assert snapshot(engine).histograms["checkout_wait"].count == 2


def test_a_checkout_in_vain_is_a_failure(make: Make):
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.001)
    with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError):
        engine.connect()

    assert counted(engine) == {"checkouts": 2, "failed_checkouts": 1}
    assert snapshot(engine).gauges["waiting"] == 0
    assert window(engine, 60).failures == 1


@pytest.mark.parametrize("leave", ["close", "invalidate", "detach", "forget"])
def test_a_connection_that_leaves_in_any_way_is_out_no_longer(make: Make, leave: str):
    engine = make()
    connection = engine.raw_connection()
    assert snapshot(engine).gauges["checked_out"] == 1
    if leave == "detach":
        detached: Any = connection.driver_connection
        connection.detach()
    elif leave != "forget":
        getattr(connection, leave)()
    gauges = snapshot(engine).gauges
    del connection
    gc.collect()

    now = snapshot(engine)
    assert now.gauges["checked_out"] == 0
    assert now.gauges["open"] == (1 if leave in ("close", "forget") else 0)
    assert now.histograms["hold"].count == 1
    assert leave == "forget" or gauges == now.gauges
    if leave == "detach":
        detached.close()


def test_a_connection_that_is_given_out_twice_counts_once():
    engine = sa_railway.create_engine("sqlite://", logging_name="twice", metrics=True)
    with engine.connect(), engine.connect():
        assert snapshot(engine).gauges["checked_out"] == 1
    engine.dispose()

    assert snapshot(engine).gauges["checked_out"] == 0
    assert snapshot(engine).gauges["waiting"] == 0
    assert snapshot(engine).histograms["hold"].count == 1


def test_engines_of_one_url_are_told_apart_by_their_logging_names(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    options = [engine_options(url, logging_name=name, metrics=True) for name in ("main", "audit")]
    engines = [sqlalchemy.create_engine(url, **each) for each in options]

    with engines[0].connect() as connection:
        connection.execute(text("SELECT 1"))

    assert [snapshot(engine).counters["queries"] for engine in engines] == [1, 0]
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("options", [{"max_overflow": -1}, {"poolclass": NullPool}])
def test_a_pool_that_may_have_any_number_of_connections_has_no_limit(
    make: Make, options: dict[str, object]
):
    engine = make(**options)

    assert snapshot(engine).gauges["limit"] == float("inf")
    page = prometheus.render()[1].decode()
    counters = counters_module.counters_of(engine)
    assert counters is not None
    assert f'sa_railway_pool_limit{{engine="{counters.label}"}} +Inf' in page.splitlines()


def test_a_pool_that_keeps_nothing_has_no_size(make: Make):
    engine = make(poolclass=NullPool)
    with engine.connect():
        assert snapshot(engine).gauges["open"] == 1

    assert snapshot(engine).gauges["open"] == snapshot(engine).gauges["size"] == 0


def test_an_engine_that_is_gone_leaves_no_pool_behind(make: Make, tmp_path: Path):
    engine = sa_railway.create_engine(f"sqlite:///{tmp_path / 'gone.db'}", metrics=True)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        left_open: Any = connection.connection.driver_connection
    del engine, connection
    gc.collect()
    again = make("gone.db")

    assert snapshot(again).gauges == {
        "size": 5,
        "limit": 15,
        "open": 0,
        "overflow": 0,
        "checked_out": 0,
        "waiting": 0,
    }
    assert counted(again) == {"queries": 1, "checkouts": 1}
    left_open.close()


def test_histograms_know_how_long_it_took(make: Make):
    engine = make()
    executes(engine, "SELECT 1")
    connect, hold = (snapshot(engine).histograms[name] for name in ("connect", "hold"))

    assert connect.count == hold.count == 1
    assert sum(hold.buckets.values()) == 1
    assert hold.mean == hold.sum > 0
    assert Histogram().mean is None


def test_a_checkout_is_announced_to_those_who_listen(make: Make):
    engine = make()
    with hearing(events.CheckedOut, events.Invalidated) as heard:
        engine.raw_connection().invalidate()
    executes(engine, "SELECT 1")

    assert [type(event).__name__ for event in heard] == ["CheckedOut", "Invalidated"]
    assert {event.engine for event in heard} == {str(engine.url)}
    assert heard[0].seconds > 0


# --- lately ---


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    time = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(counters_module, "time", time)
    return clock


@pytest.fixture
def lately(clock: SimpleNamespace, make: Make, tmp_path: Path) -> Counters:
    engine = make(health_window=100.0)
    found = Counters(f"{tmp_path}", f"lately of {tmp_path.name}")
    found.add(engine, 100.0)
    return found


def happens(counters: Counters, clock: SimpleNamespace, name: str) -> None:
    """Let it happen as it does within a checkout."""
    if clock.now >= counters.next_sample:
        counters.sample(clock.now)
    counters.values[index_of("queries")] += 1
    counters.values[index_of(name)] += name != "queries"
    counters.last = clock.now


def test_the_window_forgets_what_is_older(lately: Counters, clock: SimpleNamespace):
    for name in ("failed_permanent", "queries", "queries"):
        happens(lately, clock, name)
        clock.now += 10

    assert lately.window(40) == (2, 1, 0, 0)
    assert lately.window(25) == (2, 0, 0, 0)
    assert lately.window(15) == (1, 0, 0, 0)
    clock.now += 1000
    assert lately.window(40) == (0, 0, 0, 0)
    assert lately.window(10_000) == (2, 1, 0, 0)


def test_what_happened_before_a_long_pause_is_over(lately: Counters, clock: SimpleNamespace):
    happens(lately, clock, "queries")
    clock.now += 0.5
    happens(lately, clock, "failed_permanent")  # too early for another sample
    clock.now += 400
    happens(lately, clock, "queries")

    assert lately.window(100) == (1, 0, 0, 0)


def test_statements_of_a_connection_that_stays_out_are_of_now(
    lately: Counters, clock: SimpleNamespace
):
    lately.out[1] = clock.now  # the id() of a connection
    for _ in range(4):
        clock.now += 50
        lately.values[index_of("queries")] += 1
        lately.window(100)

    assert lately.window(75) == (2, 0, 0, 0)


def test_the_window_keeps_enough_for_twice_its_time(lately: Counters, clock: SimpleNamespace):
    for _ in range(1000):
        happens(lately, clock, "reconnections")
        clock.now += 1

    assert lately.window(149.5).reconnections == 149


def test_the_success_rate():
    assert Window(60, successes=3, failures=1).success_rate == 0.75


# --- names ---


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(counters_module, "_by_name", {})

    def label(url: str, **options: Any) -> str:
        engine = sa_railway.create_engine(url, metrics=True, **options)
        found = counters_module.counters_of(engine)
        assert found is not None
        return found.label

    return label


def test_engines_are_named_for_their_database(labels: Callable[..., str]):
    assert labels(f"postgresql://u:{MARK}@one.example/railway") == "railway"
    assert labels("sqlite:////var/lib/app.db") == "app.db"
    assert labels("sqlite://") == "sqlite"
    assert labels(f"postgresql://u:{MARK}@one.example/orders", logging_name="shop") == "shop"


def test_two_databases_of_one_name_are_told_apart(labels: Callable[..., str]):
    assert labels(f"postgresql://u:{MARK}@one.example/railway") == "railway"
    assert labels(f"postgresql://u:{MARK}@two.example/railway") == "railway-2"
    assert labels(f"postgresql://u:{MARK}@two.example/railway") == "railway-2"
    assert labels(f"postgresql://u:{MARK}@three.example/railway") == "railway-3"


# --- Prometheus ---


def page(body: bytes | None = None) -> dict[tuple[str, str], float]:
    """The samples of a page of metrics, by name and engine."""
    text = (prometheus.render()[1] if body is None else body).decode()
    return {
        (sample.name, sample.labels.get("engine", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.keys() <= {"engine"}
    }


def test_the_page_has_the_numbers_under_names_with_units(make: Make, tmp_path: Path):
    engine = make(pool_size=3)
    executes(engine, "SELECT 1", "SELECT 2")
    label = f"{tmp_path.name}.db"

    found = page()
    own = {name: value for (name, engine), value in found.items() if engine == label}
    sums = {name: own.pop(name) for name in list(own) if name.endswith("_sum")}
    assert own == {
        **{f"sa_railway_{name}_total": 0 for name in COUNTS if name != "checkouts"},
        "sa_railway_queries_total": 2,
        "sa_railway_pool_size": 3,
        "sa_railway_pool_limit": 13,
        "sa_railway_pool_open": 1,
        "sa_railway_pool_checked_out": 0,
        "sa_railway_pool_overflow": 0,
        "sa_railway_pool_waiting": 0,
        "sa_railway_connect_seconds_count": 1,
        "sa_railway_checkout_wait_seconds_count": 1,
        "sa_railway_hold_seconds_count": 1,
    }
    assert sums["sa_railway_hold_seconds_sum"] > 0


def test_the_page_tells_failures_and_outcomes_apart(make: Make, tmp_path: Path):
    engine = make()
    with pytest.raises(DBAPIError):
        executes(engine, "SELECT nothing")
    events.publish(events.CommitResolved(str(engine.url), "aborted", 1.0))
    body = prometheus.render()[1].decode()

    label = f'engine="{tmp_path.name}.db"'
    assert f'\nsa_railway_query_failures_total{{{label},kind="permanent"}} 1.0\n' in body
    assert f'\nsa_railway_query_failures_total{{{label},kind="disconnect"}} 0.0\n' in body
    assert f'\nsa_railway_commits_resolved_total{{{label},outcome="aborted"}} 1.0\n' in body


def test_buckets_add_up(make: Make, tmp_path: Path):
    engine = make()
    executes(engine, "SELECT 1")
    body = prometheus.render()[1].decode()

    label = f'engine="{tmp_path.name}.db"'
    assert f'\nsa_railway_hold_seconds_bucket{{{label},le="60.0"}} 1.0\n' in body
    assert f'\nsa_railway_hold_seconds_bucket{{{label},le="+Inf"}} 1.0\n' in body


def test_the_page_shows_no_host_and_no_password():
    url = f"postgresql://somebody:{MARK}@db.example/shown"
    engine = sa_railway.create_engine(url, metrics=True)
    body = prometheus.render()[1].decode()

    assert 'engine="shown"' in body
    assert not any(word in body for word in (MARK, "db.example", "somebody"))
    engine.dispose()


def test_the_page_has_the_metrics_of_the_application_too():
    counter = Counter("sold", "Tea sold")
    try:
        counter.inc(3)
        assert page()["sold_total", ""] == 3
    finally:
        REGISTRY.unregister(counter)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version="),
        ("application/openmetrics-text", "application/openmetrics-text;"),
    ],
)
def test_the_page_comes_in_the_format_that_is_asked_for(accept: str, kind: str):
    content_type, body = prometheus.render(accept)

    assert content_type.startswith(kind)
    assert b"sa_railway_queries" in body


def test_a_registry_may_be_given_the_metrics_twice(make: Make, tmp_path: Path):
    registry = CollectorRegistry()
    executes(make(), "SELECT 1")
    prometheus.expose(registry)
    prometheus.expose(registry)

    labels = {"engine": f"{tmp_path.name}.db"}
    assert registry.get_sample_value("sa_railway_queries_total", labels) == 1


PROGRAMS = {
    "the default registry": """
from prometheus_client import REGISTRY, generate_latest
from sa_railway.metrics import prometheus
prometheus.expose()
for body in (generate_latest(REGISTRY), prometheus.render()[1]):
    print(body.count(b"# TYPE sa_railway_queries_total counter"))
""",
    "without prometheus_client": """
import sys
sys.modules["prometheus_client"] = None
try:
    import sa_railway.metrics.prometheus
except ImportError as error:
    print(*error.__notes__)
import sa_railway.metrics.snapshot
""",
}


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("the default registry", "1\n1\n"),
        (
            "without prometheus_client",
            'sa_railway: install it with pip install "sa-railway[prometheus]"\n',
        ),
    ],
)
def test_in_a_process_of_its_own(program: str, printed: str):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAMS[program]], capture_output=True, text=True, check=True
    )

    assert run.stdout == printed


COUNT_ORDERS = """
from prometheus_client import Counter
Counter("shop_orders", "Orders").inc()
"""


def test_the_metrics_of_all_processes_are_shown_though_one_of_them_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", COUNT_ORDERS], check=True)
    (tmp_path / "counter_0.db").touch()  # which the client cannot read
    (tmp_path / "gauge_livesum_0.db").symlink_to("gone")

    page = prometheus.render()[1].decode()

    assert "\nshop_orders_total 1.0\n" in page
    assert "\n# TYPE sa_railway_queries_total counter\n" in page


# --- in Flask ---


def make_app(path: Any = "/metrics", **config: object) -> flask.Flask:
    app = flask.Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", **config)
    Railway(app, SQLAlchemy(app), metrics=path)
    return app


@pytest.mark.parametrize(
    "config", [{"DEBUG": True}, {"RAILWAY_METRICS": "/elsewhere", "DEBUG": True}]
)
def test_the_page_of_an_application(config: dict[str, object]):
    answer = make_app(**config).test_client().get(config.get("RAILWAY_METRICS", "/metrics"))

    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    assert answer.headers["Cache-Control"] == "no-store"
    assert b"# TYPE sa_railway_queries_total counter" in answer.data


def test_the_page_is_not_for_everybody():
    client = make_app(RAILWAY_HEALTH_TOKEN="let me in").test_client()

    assert client.get("/metrics").status_code == 403
    assert client.get("/metrics?token=let+me+in").status_code == 200
    bearer = {"Authorization": "Bearer let me in"}
    assert client.get("/metrics", headers=bearer).status_code == 200


@pytest.mark.parametrize("path", [None, False])
def test_there_is_no_page_unless_it_is_asked_for(path: object):
    assert make_app(path, DEBUG=True).test_client().get("/metrics").status_code == 404


@pytest.mark.parametrize("path", ["metrics", True, 1])
def test_a_path_that_is_none_is_refused(path: object):
    with pytest.raises(ConfigurationError) as caught:
        make_app(path)
    assert str(caught.value) == (
        f"metrics is {path!r}; allowed: a path that begins with a slash, or None for no page "
        "of metrics"
    )
    with pytest.raises(ConfigurationError) as caught:
        make_app(RAILWAY_METRICS=path)
    assert str(caught.value).startswith(f"RAILWAY_METRICS is {path!r}; allowed: ")


def test_a_page_of_the_applications_own_is_not_hidden():
    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = SQLAlchemy(app)
    app.add_url_rule("/metrics", "mine", lambda: "mine")

    with pytest.raises(ConfigurationError) as caught:
        Railway(app, db, metrics="/metrics")

    assert str(caught.value) == (
        "Flask app 'shop' answers /metrics already; set RAILWAY_METRICS to another path, or add "
        "the metrics to your own page with sa_railway.metrics.prometheus.expose()"
    )
