"""What listeners and callers learn of a ping that fails, beside SQLAlchemy's pool_pre_ping."""

import pytest
import sqlalchemy
from fix_engines import SYNC
from fix_waiting import wait_until
from sqlalchemy import event, text

import sa_railway
from sa_railway.engine.liveness import SocketState, socket_state
from sa_railway.testing import ChaosProxy

KINDS = ["pool_pre_ping", "sa_railway"]


def make(kind, url, **arguments):
    """Return an engine that pings at each checkout and gives connections back as they are."""
    arguments["pool_reset_on_return"] = None
    if kind == "pool_pre_ping":
        return sqlalchemy.create_engine(url, pool_pre_ping=True, **arguments)
    return sa_railway.create_engine(url, trust_idle=0, **arguments)


def terminate(postgres, engine):
    """End the backends, and wait until the idle connection of *engine* has heard of it."""
    (record,) = engine.pool._pool.queue
    driver_connection = record.driver_connection
    postgres.terminate_backends()
    wait_until(lambda: socket_state(driver_connection) is SocketState.CLOSED)


def fail_transaction(engine):
    """Leave a connection in the pool whose transaction has failed; return its backend's pid."""
    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    with pytest.raises(engine.dialect.dbapi.Error):
        cursor.execute("SELECT nothing")
    raw.close()
    return pid


def pid_of_next(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT pg_backend_pid()"))


@pytest.mark.parametrize("driver", SYNC)
def test_an_error_that_is_no_loss_passes_and_the_connection_is_replaced(postgres, driver):
    errors = []
    for kind in KINDS:
        engine = make(kind, postgres.url_for(driver))
        pid = fail_transaction(engine)
        with pytest.raises(sqlalchemy.exc.ProgrammingError) as raised:
            engine.connect()
        errors.append(str(raised.value))
        assert pid_of_next(engine) != pid
        engine.dispose()

    assert errors[0] == errors[1]


def be_terminated(postgres, engine):
    pid = pid_of_next(engine)
    terminate(postgres, engine)
    return pid


@pytest.mark.parametrize(
    ("spoil", "is_loss"),
    [(be_terminated, True), (lambda _, engine: fail_transaction(engine), False)],
    ids=["closed by the server", "failed transaction"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", SYNC)
def test_a_listener_learns_of_a_ping_that_failed_and_may_call_that_a_disconnect(
    postgres, driver, kind, spoil, is_loss
):
    engine = make(kind, postgres.url_for(driver))
    seen = []

    @event.listens_for(engine, "handle_error")
    def upgrade(context):
        seen.append((context.is_pre_ping, context.is_disconnect, context.engine))
        context.is_disconnect = context.is_pre_ping

    pid = spoil(postgres, engine)

    assert pid_of_next(engine) != pid
    assert seen == [(True, is_loss, None)]
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_loss_that_a_listener_denies_is_still_no_connection_to_hand_out(postgres, driver):
    errors = []
    for kind in KINDS:
        engine = make(kind, postgres.url_for(driver))

        @event.listens_for(engine, "handle_error")
        def deny(context):
            context.is_disconnect = False

        pid = pid_of_next(engine)
        terminate(postgres, engine)

        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            engine.connect()
        errors.append(str(raised.value))
        assert pid_of_next(engine) != pid
        engine.dispose()

    assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", SYNC)
def test_a_connection_that_the_application_has_closed_is_replaced(postgres, driver, kind):
    engine = make(kind, postgres.url_for(driver))
    pid = pid_of_next(engine)
    (record,) = engine.pool._pool.queue
    record.driver_connection.close()

    assert pid_of_next(engine) != pid
    engine.dispose()


def query(dbapi_connection, *_):
    dbapi_connection.cursor().execute("SELECT 1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", SYNC)
def test_a_listener_to_checkout_gets_a_connection_that_is_alive(postgres, driver, kind):
    """One of the class Pool, or in pool_events, comes before those that an engine gets later."""
    event.listen(sqlalchemy.pool.Pool, "checkout", query)
    try:
        engine = make(kind, postgres.url_for(driver), pool_events=[(query, "checkout")])
        pid = pid_of_next(engine)
        terminate(postgres, engine)

        assert pid_of_next(engine) != pid
        engine.dispose()
    finally:
        event.remove(sqlalchemy.pool.Pool, "checkout", query)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ping_that_the_holder_of_a_connection_asks_for_is_sent(postgres, kind):
    with ChaosProxy(postgres.url) as proxy:
        engine = make(kind, proxy.url)
        with engine.connect() as connection:
            before = proxy.round_trips
            assert engine.dialect.do_ping(connection.connection.dbapi_connection) is True
            assert proxy.round_trips == before + 1
        engine.dispose()
