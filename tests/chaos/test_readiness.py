"""Readiness and health while the pool is exhausted and the server is frozen, full or away."""

import asyncio
import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from fix_engines import ASYNC
from fix_waiting import wait_until
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from marked import MARK, MarkedPostgres, conninfo
from sqlalchemy import event, text

import sa_railway
from sa_railway import engine_options
from sa_railway.flask import Railway
from sa_railway.health.asgi import HealthApp
from sa_railway.health.endpoints import respond
from sa_railway.health.probe import recent_probes, start_probe, start_probe_in_loop
from sa_railway.health.report import Status, check_health, check_health_async
from sa_railway.testing import ChaosProxy

NO_CONNECTION = "No connection to the server was made within {} s."
FROZEN = {"status": "unavailable", "reason": NO_CONNECTION.format(2)}
READY = {"status": "ready", "reason": None}
SATURATED = {"status": "saturated", "reason": "All 2 connections of the pool are in use."}
PROBES = 200


@pytest.fixture
def proxy(postgres):
    with ChaosProxy(postgres.url) as proxy:
        yield proxy


@pytest.fixture
def make_engine():
    """Make an engine whose probes are never answered from memory, but for those at once."""
    with ExitStack() as stack:

        def make(url, **overrides):
            engine = sa_railway.create_engine(
                url, **{"probe_cache": 0.0, "metrics": True, **overrides}
            )
            stack.callback(engine.dispose)
            return engine

        yield make


@pytest.fixture
def make_app():
    """Make a Flask application with a pool of two connections."""
    with ExitStack() as stack:

        def make(url, **overrides):
            app: Any = Flask("shop")
            app.config["SQLALCHEMY_DATABASE_URI"] = url
            app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(
                url, **{"pool_size": 1, "max_overflow": 1, "probe_cache": 0.0, **overrides}
            )
            db = SQLAlchemy(app)
            Railway(app, db)
            app.debug = True
            with app.app_context():
                app.engine = db.engine
            stack.callback(app.engine.dispose)
            return app

        yield make


def get(app, path):
    response = app.test_client().get(path)
    return response.status_code, response.json


def get_many(app, path):
    with ThreadPoolExecutor(PROBES) as threads:
        return list(threads.map(lambda _: get(app, path), range(PROBES)))


def hold_all(engine, stack):
    for _ in range(2):
        stack.enter_context(engine.connect()).execute(text("SELECT 1"))


# --- a pool that is exhausted ---


def test_an_exhausted_pool_is_said_to_be_saturated(make_app, proxy):
    app = make_app(proxy.url)

    with ExitStack() as stack:
        hold_all(app.engine, stack)
        assert get(app, "/health/ready") == (200, SATURATED)
        status, body = get(app, "/health/database")

    assert (status, body["status"]) == (200, "degraded")
    report = body["databases"]["default"]
    assert report["rule"] == "pool"
    assert (report["pool"]["checked_out"], report["pool"]["overflow"]) == (2, 1)
    assert report["server"]["connections"] >= 2
    assert get(app, "/health/ready") == (200, READY)


def test_who_waits_for_a_connection_is_counted(make_app, proxy):
    app = make_app(proxy.url)

    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        hold_all(app.engine, stack)
        waiting = [threads.submit(lambda: app.engine.connect().close()) for _ in range(3)]
        wait_until(
            lambda: get(app, "/health/database")[1]["databases"]["default"]["pool"]["waiting"] == 3
        )
        stack.close()
        for each in waiting:
            each.result(10)


def test_a_probe_leaves_the_pool_and_the_server_as_they_were(make_engine, proxy):
    engine = make_engine(proxy.url)
    seen = []
    for name in ("connect", "checkout", "checkin", "close", "invalidate", "reset"):
        event.listen(engine, name, lambda *_: seen.append(1))

    assert check_health(engine).status is Status.HEALTHY

    assert seen == []
    assert engine.pool.checkedin() == 0
    proxy.wait_for(lambda: not proxy.connections)
    assert proxy.messages["ROLLBACK"] == 1  # a pooler would drop its server otherwise


def test_a_probe_goes_the_way_that_the_engine_goes(make_engine, proxy):
    """Listeners that fetch a fresh password for every connect must be asked."""
    engine = make_engine(proxy.url.set(username="nobody"))
    event.listen(engine, "do_connect", lambda d, r, args, kwargs: kwargs.update(user="postgres"))

    assert start_probe(engine).wait().failure is None


# --- a server that is frozen ---


@pytest.mark.parametrize("live", [True, False], ids=["with a pool", "from the start"])
def test_a_frozen_server_is_unavailable(make_app, proxy, live):
    app = make_app(proxy.url)
    if live:
        with app.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    with proxy.freeze():
        assert get(app, "/health/ready") == (503, FROZEN)
        status, body = get(app, "/health/database")
    assert (status, body["status"]) == (503, "critical")
    report = body["databases"]["default"]
    assert (report["rule"], report["server"], report["round_trip"]) == ("server", None, None)
    assert report["recommendations"][0]["action"] == (
        "Look at the database service: whether it runs, lacks CPU or memory, or is being "
        "restarted. Look also at what the application itself does to connect, such as to fetch a "
        "password."
    )


def test_a_server_that_hangs_up_within_a_probe_is_unavailable(make_app, proxy):
    app = make_app(proxy.url)
    proxy.cut(after="BEGIN")

    assert get(app, "/health/ready") == (
        503,
        {"status": "unavailable", "reason": "The connection to the server was lost."},
    )


def test_a_server_that_answers_too_late_is_unavailable(make_engine, proxy):
    engine = make_engine(proxy.url, probe_timeout=0.2, probe_cache=60.0)

    with proxy.latency(0.1):
        for _ in range(2):  # also once the answer is there
            answer = respond(engine, "/ready")
            assert json.loads(answer.body)["reason"] == NO_CONNECTION.format(0.2)
            wait_until(lambda: recent_probes(engine))


def test_a_server_that_is_frozen_and_thaws_is_ready_again(make_app, proxy):
    app = make_app(proxy.url)
    with proxy.freeze():
        assert get(app, "/health/ready")[0] == 503

    wait_until(lambda: get(app, "/health/ready") == (200, READY))


def test_a_probe_that_is_stuck_is_not_doubled(make_engine, proxy):
    engine = make_engine(proxy.url, connect_timeout=60.0, probe_timeout=0.2)

    with proxy.freeze():
        for _ in range(5):
            answer = respond(engine, "/ready")
            assert json.loads(answer.body)["reason"] == NO_CONNECTION.format(0.2)
        assert proxy.accepted == 1


def test_a_probe_that_is_stuck_gives_up_whatever_limit_the_application_has(make_engine, proxy):
    engine = make_engine(proxy.url, connect_timeout=60.0, probe_timeout=0.2)

    with proxy.freeze():
        wait_until(lambda: respond(engine, "/ready") and proxy.accepted == 2)


def test_a_probe_that_is_stuck_in_a_query_gives_up(make_engine, proxy):
    engine = make_engine(proxy.url, probe_timeout=1.0)

    with proxy.latency(0.1):
        pending = start_probe(engine)
        proxy.wait_for(lambda: proxy.messages["BEGIN"])
        with proxy.freeze():
            assert pending.wait().failure == "The server did not answer within 1 s."
            wait_until(lambda: recent_probes(engine))


# --- many at once ---


@pytest.mark.parametrize("path", ["/health/ready", "/health/database"])
def test_many_probes_at_once_are_one_connection(make_app, proxy, path):
    app = make_app(proxy.url, probe_cache=60.0)

    assert {status for status, _ in get_many(app, path)} == {200}
    assert proxy.accepted == 1


def test_many_probes_at_once_of_a_frozen_server_are_one_connection(make_app, proxy):
    app = make_app(proxy.url, probe_cache=60.0)

    with proxy.freeze():
        answers = get_many(app, "/health/ready")

        assert {status for status, _ in answers} == {503}
        assert proxy.accepted <= 2


# --- a server that says no ---


def test_a_server_that_is_away(make_engine, proxy):
    engine = make_engine(proxy.url)
    proxy.down()

    assert json.loads(respond(engine, "/ready").body) == {
        "status": "unavailable",
        "reason": "The server cannot be reached.",
    }


def test_a_full_server_does_not_take_a_process_out_of_service_that_has_connections(
    make_engine, proxy
):
    engine = make_engine(proxy.url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    proxy.answer("53300", times=None)
    reason = "The server takes no more connections."

    assert respond(engine, "/ready").status == 200
    assert json.loads(respond(engine, "/ready").body) == {"status": "saturated", "reason": reason}
    engine.dispose()
    assert json.loads(respond(engine, "/ready").body) == {"status": "unavailable", "reason": reason}
    assert check_health(engine).recommendations[0].action == (
        "The server has no connection left: lower pool_size, max_overflow, workers or replicas, "
        "or put a pooler such as PgBouncer before it."
    )


def test_a_server_that_lets_nobody_in_and_what_is_not_told(postgres_binaries, make_engine):
    with MarkedPostgres(password=f"right-{MARK}") as server:
        wrong = server.url.set(username="marked_user", password=f"wrong-{MARK}")
        engine = make_engine(wrong)
        said = [
            respond(engine, path, headers, debug=True).body
            for path in ("/ready", "/database")
            for headers in ([], [("Accept", "text/html")])
        ]

    assert json.loads(said[0])["reason"] == "The server does not let this application in."
    for body in said:
        for secret in ("marked_", MARK, "127.0.0.1", f":{server.port}", "SELECT", "pg_stat"):
            assert secret not in body


# --- what the server tells ---


def test_the_connections_of_the_server_are_counted(own_postgres, make_engine):
    engine = make_engine(own_postgres.url, health_idle_in_transaction=0.001)
    dsn = conninfo(own_postgres.url)

    with psycopg.connect(dsn) as idle, psycopg.connect(dsn, autocommit=True) as other:
        idle.execute("SELECT 1")
        other.execute("SELECT pg_sleep(0.01)")
        server = check_health(engine).server

    assert server is not None
    assert server.version.split(".")[0].isdigit()
    assert server.connection_limit == 97  # 100, of which 3 are reserved
    assert server.connections == 2
    assert server.idle_in_transaction == 1


def test_a_server_with_few_connections_left_is_critical(postgres_binaries, make_engine):
    settings = {"max_connections": 8, "superuser_reserved_connections": 3}
    with MarkedPostgres(settings=settings) as server, ExitStack() as stack:
        engine = make_engine(server.url)
        for _ in range(5):
            stack.enter_context(engine.connect()).execute(text("SELECT 1"))

        report = check_health(engine)

    assert (report.status, report.rule) == (Status.CRITICAL, "connections")
    assert report.recommendations[0].message == (
        "5 of the server's 5 connections are in use (100%)."
    )


def test_who_may_not_see_the_sessions_of_others_counts_them_all_the_same(own_postgres, make_engine):
    admin = make_engine(own_postgres.url)
    with admin.connect() as connection:
        connection.execute(text("CREATE ROLE plain LOGIN"))
        connection.commit()
        server = check_health(make_engine(own_postgres.url.set(username="plain"))).server

    assert server is not None
    assert server.connections == 1


def test_a_server_that_tells_nothing_of_itself_is_still_healthy(own_postgres, make_engine):
    admin = make_engine(own_postgres.url)
    with admin.connect() as connection:
        connection.execute(text("CREATE ROLE plain LOGIN"))
        connection.execute(text("REVOKE SELECT ON pg_stat_activity FROM PUBLIC"))
        connection.commit()

    report = check_health(make_engine(own_postgres.url.set(username="plain")))

    assert (report.status, report.server) == (Status.HEALTHY, None)
    assert report.round_trip is not None
    assert report.round_trip > 0


# --- asyncio ---


@pytest.mark.parametrize("driver", ASYNC)
def test_an_engine_of_asyncio(postgres, driver):
    engine = sa_railway.create_async_engine(postgres.url_for(driver))

    report = check_health(engine)

    assert (report.status, report.recommendations) == (Status.HEALTHY, ())
    assert report.server is not None
    assert report.server.connection_limit == 97


async def request(app, path):
    """Ask the ASGI application; return the status and the body."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, None, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize("driver", ASYNC)
def test_asgi_answers_for_a_frozen_server_while_the_event_loop_runs(postgres, driver):
    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url, probe_cache=60.0)
        app = HealthApp(engine)
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        with proxy.freeze():
            answers = await asyncio.gather(*(request(app, "/ready") for _ in range(PROBES)))
        ticking.cancel()
        return answers, ticks

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        answers, ticks = asyncio.run(main(proxy))
        assert answers == [(503, FROZEN)] * PROBES
        assert ticks > 20  # of the 200 that there is time for
        assert proxy.accepted <= 2


def test_without_the_plugin_it_works_as_well(proxy):
    engine = sqlalchemy.create_engine(proxy.url)

    assert json.loads(respond(engine, "/ready").body) == READY
    assert check_health(engine).success_rate is None
    engine.dispose()


# --- what the application has bound to its event loop ---


async def connect_by_hand(url):
    return await asyncpg.connect(
        host=url.host, port=url.port, user=url.username, database=url.database
    )


def test_a_creator_is_called_in_the_event_loop_that_asks(postgres):
    async def main():
        loop, callers = asyncio.get_running_loop(), []

        async def creator():
            callers.append(asyncio.get_running_loop())
            return await connect_by_hand(postgres.url)

        engine = sa_railway.create_async_engine("postgresql+asyncpg://", async_creator=creator)
        assert await request(HealthApp(engine), "/ready") == (200, READY)
        assert (await check_health_async(engine)).status is Status.HEALTHY
        assert set(callers) == {loop}
        await engine.dispose()

    asyncio.run(main())


def test_a_lock_of_the_application_is_not_bound_to_another_loop(postgres):
    """A credential that is fetched under an asyncio.Lock, for which the probe has to wait."""

    async def main():
        lock, is_held = asyncio.Lock(), asyncio.Event()

        async def password():
            async with lock:
                return "secret"

        async def hold():
            async with lock:
                is_held.set()
                while not lock._waiters:
                    await asyncio.sleep(0.001)

        engine = sa_railway.create_async_engine(
            postgres.url_for("asyncpg"), connect_args={"password": password}, probe_cache=0.0
        )
        for _ in range(2):
            is_held.clear()
            holder = asyncio.create_task(hold())
            await is_held.wait()
            assert await request(HealthApp(engine), "/ready") == (200, READY)
            await holder
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    asyncio.run(main())


def test_a_server_is_not_blamed_for_a_password_that_does_not_come(postgres):
    async def main():
        async def password():
            await asyncio.Event().wait()

        engine = sa_railway.create_async_engine(
            postgres.url_for("asyncpg"), connect_args={"password": password}, probe_timeout=0.2
        )
        assert await request(HealthApp(engine), "/ready") == (
            503,
            {"status": "unavailable", "reason": NO_CONNECTION.format(0.2)},
        )
        await engine.dispose()

    asyncio.run(main())


# what is left of a connection when its event loop is closed says so, with plain SQLAlchemy as well
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ASYNC)
def test_a_probe_whose_event_loop_has_ended_does_not_stop_later_ones(postgres, driver):
    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_async_engine(proxy.url, probe_cache=0.0)

        async def leave():
            start_probe_in_loop(engine.sync_engine)
            await asyncio.sleep(0.01)

        with proxy.freeze():
            asyncio.run(leave())

        assert asyncio.run(request(HealthApp(engine), "/ready")) == (200, READY)
        assert start_probe(engine.sync_engine).wait().failure is None
    gc.collect()  # so that it is said here


@pytest.mark.parametrize("driver", ASYNC)
def test_an_event_loop_that_was_blocked_does_not_make_a_server_unavailable(postgres, driver):
    async def main():
        engine = sa_railway.create_async_engine(postgres.url_for(driver), probe_timeout=1.0)
        asked = asyncio.create_task(request(HealthApp(engine), "/ready"))
        for _ in range(5):
            await asyncio.sleep(0)
        time.sleep(1.5)
        assert await asked == (200, READY)
        await engine.dispose()

    asyncio.run(main())
