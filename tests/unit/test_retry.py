"""The judgement of retry(), on a clock of the test's own."""

import asyncio
import functools
import inspect
import logging
import os
from types import SimpleNamespace
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
import tenacity
from fix_clock import Clock
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, scoped_session, sessionmaker

from sa_railway import events, retry
from sa_railway.commit.ambiguity import is_ambiguous
from sa_railway.engine import stopping
from sa_railway.exc import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    DatabaseUnavailableError,
)
from sa_railway.recovery import retry_loop


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retry_loop, "time", clock)
    monkeypatch.setattr(tenacity, "time", clock)
    monkeypatch.setattr(retry_loop, "asyncio", SimpleNamespace(sleep=clock.sleep_async))
    return clock


@pytest.fixture(autouse=True)
def longest_waits(monkeypatch):
    monkeypatch.setattr(retry_loop, "random", SimpleNamespace(uniform=lambda low, high: high))


def deadlock():
    return OperationalError("UPDATE t SET n = 1", {}, psycopg.errors.DeadlockDetected("deadlock"))


def lost():
    driver = psycopg2.OperationalError("server closed the connection unexpectedly\n")
    return OperationalError("SELECT 1", {}, driver, connection_invalidated=True)


def refused():
    driver = psycopg2.OperationalError("connection to server failed: Connection refused")
    return OperationalError(None, None, driver)


def duplicate():
    return IntegrityError("INSERT", {}, psycopg.errors.UniqueViolation("duplicate key"))


def failing(*errors):
    """A function that raises one error after the other, and then returns how often it ran."""

    def run():
        work.calls += 1
        if work.calls <= len(errors):
            raise errors[work.calls - 1]
        return work.calls

    work: Any = run
    work.calls = 0
    return work


def in_all_forms(how, work):
    """Run *work* under *how* as a function, a coroutine function and both loops."""

    async def coroutine():
        return work()

    def loop():
        for attempt in how:
            with attempt:
                result = work()
        return result

    async def async_loop():
        async for attempt in how:
            with attempt:
                result = work()
        return result

    return [
        lambda: how(work)(),
        lambda: asyncio.run(how(coroutine)()),
        loop,
        lambda: asyncio.run(async_loop()),
    ]


FORMS = pytest.mark.parametrize("form", range(4), ids=["def", "async def", "for", "async for"])


@FORMS
@pytest.mark.parametrize("fault", [deadlock, lost, refused])
def test_a_fault_that_passes_is_retried(form, fault, clock):
    run = in_all_forms(retry(), failing(fault(), fault()))[form]

    assert run() == 3
    assert clock.sleeps == [0.5, 1.0]


@FORMS
def test_the_last_exception_passes_through_with_one_note(form, clock):
    errors = [deadlock(), deadlock(), lost()]
    run = in_all_forms(retry(), failing(*errors))[form]

    with pytest.raises(OperationalError) as caught:
        run()

    assert caught.value is errors[-1]
    assert caught.value.__notes__ == ["sa_railway: retry() gave up after 3 attempts in 1.5 s"]
    assert clock.sleeps == [0.5, 1.0]


@FORMS
@pytest.mark.parametrize(
    "error",
    [
        duplicate(),
        ValueError("not the database's"),
        ConnectionRefusedError("an HTTP client's"),
        KeyboardInterrupt(),
        CommitOutcomeUnknownError(transaction_id=7, orig=lost().orig),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_does_not_pass_is_raised_at_once(form, error, clock):
    work = failing(error)

    with pytest.raises(type(error)) as caught:
        in_all_forms(retry(), work)[form]()

    assert caught.value is error
    assert work.calls == 1
    assert clock.sleeps == []


def test_a_permanent_error_at_a_later_attempt_ends_it():
    work = failing(deadlock(), duplicate())

    with pytest.raises(IntegrityError) as caught:
        retry(work)()

    assert caught.value.__notes__ == ["sa_railway: retry() gave up after 2 attempts in 0.5 s"]


def test_a_permanent_error_at_the_first_attempt_is_left_as_it_is():
    with pytest.raises(IntegrityError) as caught:
        retry(failing(duplicate()))()

    assert not hasattr(caught.value, "__notes__")


def test_what_somebody_raised_from_a_database_error_is_not_the_databases():
    class PaymentError(Exception):
        pass

    def work():
        raise PaymentError from deadlock()

    with pytest.raises(PaymentError):
        retry(work)()


def test_a_database_error_of_the_driver_itself_is_retried():
    assert retry(failing(psycopg.errors.SerializationFailure("could not serialize")))() == 2


def test_waits_double_up_to_the_cap(clock):
    how = retry(attempts=7, backoff_base=1.0, backoff_cap=10.0, deadline=1000)

    how(failing(*(deadlock() for _ in range(6))))()

    assert clock.sleeps == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_wait_is_drawn_from_its_upper_half(monkeypatch, clock):
    monkeypatch.setattr(retry_loop, "random", SimpleNamespace(uniform=lambda low, high: low))

    retry("startup")(failing(*(deadlock() for _ in range(4))))()

    assert clock.sleeps == [1.0, 2.0, 4.0, 8.0]


def test_no_wait_begins_that_would_end_past_the_deadline(clock):
    how = retry(attempts=100, backoff_base=4.0, backoff_cap=4.0, deadline=11.0)

    with pytest.raises(OperationalError):
        how(failing(*(deadlock() for _ in range(100))))()

    assert clock.sleeps == [4.0, 4.0]


def test_the_time_of_the_attempts_counts(clock):
    work = failing(*(deadlock() for _ in range(100)))

    def slow():
        clock.now += 6
        return work()

    with pytest.raises(OperationalError) as caught:
        retry(deadline=10.0, backoff_base=2.0)(slow)()

    assert clock.sleeps == [2.0]
    assert caught.value.__notes__ == ["sa_railway: retry() gave up after 2 attempts in 14.0 s"]


def test_the_preset_startup(clock):
    with pytest.raises(OperationalError):
        retry("startup")(failing(*(refused() for _ in range(9))))()

    assert clock.sleeps == [2.0, 4.0, 8.0, 16.0]


def test_an_open_breaker_is_asked_again_when_it_says_so(clock):
    error = DatabaseUnavailableError("away", retry_after=1.75, orig=OSError())

    assert retry(failing(error))() == 2
    assert clock.sleeps == [1.75]


def test_a_process_that_is_being_stopped_does_not_wait_for_the_server(clock, monkeypatch):
    monkeypatch.setattr(stopping, "_stopped_pid", os.getpid())

    with pytest.raises(OperationalError) as caught:
        retry(failing(refused()))()

    assert clock.sleeps == []
    (note,) = caught.value.__notes__
    assert note.endswith(": the process is being stopped")


def test_a_process_that_is_being_stopped_still_ends_its_work(clock, monkeypatch):
    monkeypatch.setattr(stopping, "_stopped_pid", os.getpid())

    assert retry(failing(deadlock()))() == 2


def test_one_attempt_is_no_retry(clock):
    work = failing(deadlock())

    with pytest.raises(OperationalError):
        retry(attempts=1)(work)()

    assert work.calls == 1
    assert clock.sleeps == []


def test_each_retry_is_announced_and_logged_before_the_wait(clock, retried, caplog):
    caplog.set_level(logging.INFO, "sa_railway.recovery.retry")
    error = deadlock()
    seen_at = []
    unsubscribe = events.subscribe(lambda event: seen_at.append(clock.now))

    @retry
    def report():
        return work()

    work = failing(error)
    report()
    unsubscribe()

    assert retried == [events.Retried("", 1, 0.5, error)]
    assert seen_at == [1000.0]
    assert caplog.messages == [
        "test_each_retry_is_announced_and_logged_before_the_wait.<locals>.report: "
        "attempt 1 failed, next one in 0.50 s: OperationalError"
    ]


def test_an_attempt_knows_its_number():
    numbers = []
    for attempt in retry():
        with attempt:
            numbers.append(attempt.number)
            if len(numbers) < 3:
                raise deadlock()

    assert numbers == [1, 2, 3]


@pytest.mark.parametrize("form", ["for", "async for"])
def test_a_loop_may_be_left_by_return(form):
    def first():
        for attempt in retry():
            with attempt:
                return 1
        return 0

    async def first_async():
        async for attempt in retry():
            with attempt:
                return 1
        return 0

    assert (first() if form == "for" else asyncio.run(first_async())) == 1


def test_an_attempt_that_is_not_entered_is_refused():
    message = "an attempt of retry() was not used; write `with attempt:` around the work"

    async def forgetful():
        async for _ in retry():
            pass

    with pytest.raises(ConfigurationError) as caught:
        for _ in retry():
            pass
    assert str(caught.value) == message
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(forgetful())
    assert str(caught.value) == message


# functions


class Reports:
    @retry
    def method(self, n: int, *, twice: bool = False) -> int:
        """Return a number."""
        return n * (2 if twice else 1)

    @retry("startup")
    async def coroutine(self, n: int) -> int:
        return n

    @staticmethod
    @retry
    def static(n):
        return n

    @classmethod
    @retry
    def of_class(cls, n):
        return cls, n


def test_methods_of_every_kind():
    reports = Reports()

    assert reports.method(2, twice=True) == 4
    assert asyncio.run(reports.coroutine(3)) == 3
    assert reports.static(4) == 4
    assert reports.of_class(5) == (Reports, 5)


def test_the_signature_is_kept():
    assert str(inspect.signature(Reports.method)) == (
        "(self, n: int, *, twice: bool = False) -> int"
    )
    assert Reports.method.__doc__ == "Return a number."
    assert inspect.iscoroutinefunction(Reports.coroutine)
    assert not inspect.iscoroutinefunction(Reports.method)


def test_objects_that_can_be_called():
    class Job:
        def __init__(self, *errors):
            self.work = failing(*errors)

        def __call__(self, n):
            return n, self.work()

    class AsyncJob(Job):
        async def __call__(self, n):
            return n, self.work()

    assert retry(Job(deadlock()))(7) == (7, 2)
    assert asyncio.run(retry(AsyncJob(deadlock()))(7)) == (7, 2)
    assert retry(functools.partial(Job(deadlock()), 8))() == (8, 2)


def test_one_object_serves_many():
    how = retry(attempts=2)

    assert how(failing(deadlock()))() == 2
    assert how(failing(deadlock()))() == 2


def test_retries_within_retries():
    inner = retry(attempts=2)(failing(*(deadlock() for _ in range(5))))

    assert retry(attempts=3)(inner)() == 6


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            generator,
            "function is a generator function: what it has yielded before it failed cannot be "
            "taken back; allowed: a function that returns all of its result",
        ),
        (
            async_generator,
            "function is a generator function: what it has yielded before it failed cannot be "
            "taken back; allowed: a function that returns all of its result",
        ),
        (
            Reports,
            "function is a class; allowed: a function, a method or a coroutine function",
        ),
        (
            3,
            "function is of type int; allowed: a function, a method or a coroutine function",
        ),
        (
            classmethod(generator),  # type: ignore[arg-type]
            "function is a classmethod; write @retry below @classmethod",
        ),
        (
            staticmethod(generator),
            "function is a staticmethod; write @retry below @staticmethod",
        ),
    ],
)
def test_what_cannot_be_run_again_is_refused(function, message):
    with pytest.raises(ConfigurationError) as caught:
        retry(function)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("positional", "arguments", "message"),
    [
        (["startap"], {}, "preset is 'startap'; allowed: query, startup (did you mean 'startup'?)"),
        ([], {"attempts": 0}, "attempts is 0; allowed: a whole number, 1 or more"),
        ([], {"attempts": 2.5}, "attempts is 2.5; allowed: a whole number, 1 or more"),
        ([], {"attempts": True}, "attempts is True; allowed: a whole number, 1 or more"),
        ([], {"deadline": 0}, "deadline is 0; allowed: more than 0 seconds"),
        ([], {"deadline": -1.0}, "deadline is -1.0; allowed: more than 0 seconds"),
        ([], {"deadline": float("inf")}, "deadline is inf; allowed: more than 0 seconds"),
        ([], {"deadline": float("nan")}, "deadline is nan; allowed: more than 0 seconds"),
        ([], {"deadline": "20"}, "deadline is '20'; allowed: more than 0 seconds"),
        ([], {"backoff_base": 0.0}, "backoff_base is 0.0; allowed: more than 0 seconds"),
        ([], {"backoff_cap": -5}, "backoff_cap is -5; allowed: more than 0 seconds"),
        (
            [],
            {"session": sessionmaker()},
            "session is of type sessionmaker; allowed: a Session, a scoped_session, or their "
            "asyncio twins",
        ),
        (
            [],
            {"session": create_async_engine("sqlite+aiosqlite://").connect()},
            "session is of type AsyncConnection; allowed: a Session, a scoped_session, or their "
            "asyncio twins",
        ),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(positional, arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        retry(*positional, **arguments)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "session",
    [AsyncSession(), async_scoped_session(async_sessionmaker(), asyncio.current_task)],
    ids=["AsyncSession", "async_scoped_session"],
)
def test_a_function_cannot_roll_back_an_asyncio_session(session):
    message = (
        f"session is of type {type(session).__name__}, which only a coroutine function or an "
        "`async for` can roll back; allowed here: a Session or a scoped_session"
    )

    with pytest.raises(ConfigurationError) as caught:
        retry(session=session)(failing())
    assert str(caught.value) == message
    with pytest.raises(ConfigurationError) as caught:
        next(iter(retry(session=session)))
    assert str(caught.value) == message


# what must not be run again


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "row"
    id = mapped_column(sqlalchemy.Integer, primary_key=True)
    n = mapped_column(sqlalchemy.Integer)


@pytest.fixture
def engine():
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_a_session_is_rolled_back_after_every_attempt(engine):
    session = Session(engine)
    errors = [deadlock(), deadlock(), deadlock()]
    states = []

    @retry(session=session)
    def add():
        states.append(session.in_transaction())
        session.add(Row())
        session.flush()
        raise errors.pop()

    with pytest.raises(OperationalError):
        add()

    assert states == [False, False, False]
    assert not session.in_transaction()
    session.close()


def test_a_scoped_session_is_the_one_of_the_caller(engine):
    scope = scoped_session(sessionmaker(engine))
    errors = [deadlock()]

    @retry(session=scope)
    def add():
        scope.add(Row())
        scope.flush()
        if errors:
            raise errors.pop()
        scope.commit()

    add()

    assert scope.query(Row).count() == 1
    scope.remove()


def add_object(session):
    session.add(Row(id=2))


def change_object(session):
    session.info["row"].n = 7


def delete_object(session):
    session.delete(session.info["row"])


def begin(session):
    session.execute(sqlalchemy.text("SELECT 1"))


@pytest.mark.parametrize("before", [add_object, change_object, delete_object, begin])
def test_earlier_work_of_a_session_is_not_rolled_back(engine, before):
    session = Session(engine, expire_on_commit=False)
    session.info["row"] = Row(id=1)
    session.add(session.info["row"])
    session.commit()
    before(session)
    work = failing(deadlock())

    with pytest.raises(OperationalError) as caught:
        retry(session=session)(work)()

    assert work.calls == 1
    assert session.in_transaction()
    assert caught.value.__notes__ == [
        "sa_railway: retry() gave up after 1 attempt in 0.0 s: the session held earlier work when "
        "this began, and a rollback would lose it"
    ]
    session.close()


def test_an_inner_retry_leaves_the_work_to_the_outer_one(engine):
    session = Session(engine)
    calls = []
    errors = [deadlock()]

    @retry(session=session)
    def inner():
        calls.append("inner")
        if errors:
            raise errors.pop()

    @retry(session=session)
    def outer():
        calls.append("outer")
        session.add(Row())
        inner()
        session.commit()

    outer()

    assert calls == ["outer", "inner", "outer", "inner"]
    assert session.query(Row).count() == 1
    session.close()


@pytest.mark.parametrize("how", ["positional", "keyword", "scoped"])
def test_a_session_among_the_arguments_is_rolled_back(engine, how):
    session = Session(engine)
    errors = [deadlock()]

    @retry
    def add(session, row):
        session.add(row)
        session.flush()
        if errors:
            raise errors.pop()
        session.commit()

    if how == "positional":
        add(session, Row(id=1))
    elif how == "keyword":
        add(row=Row(id=1), session=session)
    else:
        add(scoped_session(lambda: session), Row(id=1))  # type: ignore[arg-type]

    assert session.query(Row).count() == 1
    session.close()


def test_arguments_that_are_no_sessions_are_left_alone():
    from flask import request  # a proxy, for nothing outside of a request

    assert retry(lambda argument: argument is request)(request)


def test_an_asyncio_session_among_the_arguments_is_rolled_back():
    rolled_back = []

    class Recording(AsyncSession):
        async def rollback(self):
            rolled_back.append(self)

    async def work(session):
        if not rolled_back:
            raise deadlock()

    session = Recording()
    asyncio.run(retry(work)(session))

    assert rolled_back == [session]


@pytest.mark.parametrize(
    "consequence",
    [
        PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        OperationalError("SELECT", {}, psycopg.errors.InFailedSqlTransaction("aborted")),
    ],
    ids=["PendingRollbackError", "25P02"],
)
@FORMS
def test_the_failure_is_raised_and_not_its_consequence(form, consequence):
    """What runs in a transaction of somebody else can only be repeated by them."""
    error = deadlock()

    with pytest.raises(OperationalError) as caught:
        in_all_forms(retry(), failing(error, consequence))[form]()

    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__notes__ == [
        "sa_railway: retry() gave up after 2 attempts in 0.5 s: the transaction was begun "
        "elsewhere, and can only be rolled back there"
    ]


def test_a_transaction_of_somebody_else_is_not_run_into_again():
    error = PendingRollbackError(
        "Can't reconnect until invalid transaction is rolled back. Please rollback() fully before "
        "proceeding"
    )
    work = failing(error)

    with pytest.raises(PendingRollbackError) as caught:
        retry(work)()

    assert work.calls == 1
    assert caught.value.__notes__ == [
        "sa_railway: retry() gave up after 1 attempt in 0.0 s: the transaction was begun "
        "elsewhere, and can only be rolled back there"
    ]


IN_DOUBT = [
    "sa_railway: retry() gave up after 1 attempt in 0.0 s: the work may have been committed, and "
    "would then be done twice"
]


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.OperationalError("server closed the connection unexpectedly\n"),
        DBAPIError(None, None, lost().orig),
        CommitOutcomeUnknownError(transaction_id=7, orig=lost().orig),
    ],
    ids=["driver", "unseen", "unknown"],
)
def test_a_loss_that_may_be_that_of_a_commit_is_not_retried(error):
    """Of a driver that is used by itself, or another process, nobody knows what it was doing."""
    work = failing(error)

    with pytest.raises(type(error)) as caught:
        retry(work)()

    assert work.calls == 1
    assert caught.value.__notes__ == IN_DOUBT


def test_the_failed_report_of_a_lost_commit_is_a_lost_commit():
    unknown = CommitOutcomeUnknownError(transaction_id=7, orig=OSError())

    def run():
        work.calls += 1
        try:
            raise unknown
        except CommitOutcomeUnknownError:
            raise refused()  # noqa: B904 - as a program that writes the failure to its database

    work: Any = run
    work.calls = 0
    with pytest.raises(OperationalError) as caught:
        retry(work)()

    assert work.calls == 1
    assert caught.value.__notes__ == IN_DOUBT


def test_what_went_wrong_before_the_work_began_does_not_count():
    work = failing(deadlock())
    try:
        raise CommitOutcomeUnknownError(transaction_id=7, orig=OSError())
    except CommitOutcomeUnknownError:
        assert retry(work)() == 2


def test_exceptions_may_go_round_in_circles():
    first, second = ValueError(), ValueError()
    first.__context__, second.__context__ = second, first

    assert not is_ambiguous(first)
