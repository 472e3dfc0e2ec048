"""What listeners and callers learn of a ping that fails, beside SQLAlchemy's pool_pre_ping."""

import pytest
import sqlalchemy
from sqlalchemy import event, text

import sa_railway

SYNC = ["psycopg2", "psycopg"]


def make(kind, url):
    """Return an engine that pings at each checkout and gives connections back as they are."""
    if kind == "pool_pre_ping":
        return sqlalchemy.create_engine(url, pool_pre_ping=True, pool_reset_on_return=None)
    return sa_railway.create_engine(url, trust_idle=0, pool_reset_on_return=None)


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
    for kind in ("pool_pre_ping", "sa_railway"):
        engine = make(kind, postgres.url_for(driver))
        pid = fail_transaction(engine)
        with pytest.raises(sqlalchemy.exc.ProgrammingError) as raised:
            engine.connect()
        errors.append(str(raised.value))
        assert pid_of_next(engine) != pid
        engine.dispose()

    assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", ["pool_pre_ping", "sa_railway"])
@pytest.mark.parametrize("driver", SYNC)
def test_a_listener_may_call_a_ping_that_failed_a_disconnect(postgres, driver, kind):
    engine = make(kind, postgres.url_for(driver))
    seen = []

    @event.listens_for(engine, "handle_error")
    def upgrade(context):
        seen.append((context.is_pre_ping, context.is_disconnect, context.engine))
        context.is_disconnect = context.is_pre_ping

    pid = fail_transaction(engine)

    assert pid_of_next(engine) != pid
    assert seen == [(True, False, None)]
    engine.dispose()


@pytest.mark.parametrize("driver", SYNC)
def test_a_loss_that_a_listener_denies_is_still_no_connection_to_hand_out(postgres, driver):
    engine = make("sa_railway", postgres.url_for(driver))
    event.listen(engine, "handle_error", lambda context: setattr(context, "is_disconnect", False))
    pid = pid_of_next(engine)
    postgres.terminate_backends()

    assert pid_of_next(engine) != pid
    engine.dispose()
