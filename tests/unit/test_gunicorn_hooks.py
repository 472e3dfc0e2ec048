"""Each Gunicorn hook by itself, with Gunicorn's own configuration object but no Gunicorn."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import sqlalchemy
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from marked import MARK
from sqlalchemy.ext.asyncio import create_async_engine

import sa_railway.gunicorn as hooks
from sa_railway.exc import ConfigurationError

LOGGER = logging.getLogger("test.gunicorn")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level("DEBUG", logger=LOGGER.name)
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records if r.name == LOGGER.name]


def make_server(**settings: object) -> SimpleNamespace:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return SimpleNamespace(cfg=cfg, log=LOGGER)


def make_worker(*, age: int = 1, pid: int | None = None, aborted: bool = False) -> SimpleNamespace:
    return SimpleNamespace(age=age, pid=pid or os.getpid(), aborted=aborted, log=LOGGER)


# --- as Gunicorn's configuration ---

HOOKS = {
    "child_exit",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "worker_abort",
    "worker_exit",
}


def test_no_other_name_of_the_module_is_a_setting():
    assert set(vars(hooks)) & set(Config().settings) == {*HOOKS, "logconfig_dict"}


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_gunicorn_accepts_each_hook_alone_and_combined(name: str):
    hook = getattr(hooks, name)
    cfg = Config()

    cfg.set(name, hook)
    cfg.set(name, hooks.combine(hook, hook))


# --- combine ---


def test_combined_hooks_are_called_in_order_with_the_same_arguments():
    calls = []
    combined = hooks.combine(
        lambda server, worker: calls.append(("first", server, worker)),
        lambda server, worker: calls.append(("second", server, worker)),
    )

    combined("server", "worker")

    assert calls == [("first", "server", "worker"), ("second", "server", "worker")]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
def test_a_hook_that_raises_does_not_stop_the_others_and_gunicorn_gets_the_error(
    error: BaseException,
):
    calls: list[str] = []

    def fail(worker: object) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        hooks.combine(calls.append, fail, calls.append)("worker")

    assert caught.value is error
    assert calls == ["worker", "worker"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "no"),
        ([lambda server: None, lambda server, worker: None], "1 and 2"),
    ],
)
def test_hooks_that_cannot_be_combined_are_refused(given: list[Callable], text: str):
    with pytest.raises(ConfigurationError) as caught:
        hooks.combine(*given)

    assert str(caught.value) == (
        f"hooks take {text} arguments; allowed: one or more hooks that take the same number"
    )


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_failing_hook_of_ours_is_logged_and_does_not_raise(
    name: str, caplog: pytest.LogCaptureFixture
):
    hook = getattr(hooks, name)
    arguments = [object()] * hooks._arity(hook)

    hook(*arguments)
    hook(*arguments)

    assert [r.getMessage() for r in caplog.records if r.name.startswith("sa_railway")] == [
        f"{name} failed and was passed over; its further failures are not logged"
    ]


# --- on_starting ---


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        ({"workers": 4}, "workers: 4 (sync), threads in each: 1"),
        ({"workers": 2, "threads": 8}, "workers: 2 (gthread), threads in each: 8"),
        ({"workers": 2, "worker_class": "gevent"}, "workers: 2 (gevent)"),
    ],
)
def test_the_start_describes_the_configuration(
    settings: dict[str, object], described: str, logged: Callable[[], list[tuple[str, str]]]
):
    hooks.on_starting(make_server(**settings))

    assert logged() == [
        ("INFO", f"sa_railway: {described}; every worker has its own connection pools")
    ]


@pytest.mark.parametrize("timeout", [15, 20])
def test_a_timeout_that_hides_an_exhausted_pool_is_warned_about(
    timeout: int, logged: Callable[[], list[tuple[str, str]]]
):
    hooks.on_starting(make_server(timeout=timeout))

    assert logged()[1:] == [
        (
            "WARNING",
            f"sa_railway: timeout is {timeout} s and pool_timeout 20 s, so a request that waits "
            "for a connection ends as WORKER TIMEOUT before the pool can say that it is exhausted; "
            "raise timeout, or set SA_RAILWAY_POOL_TIMEOUT below it",
        )
    ]


@pytest.mark.parametrize(
    ("settings", "pool_timeout"),
    [
        ({"timeout": 21}, None),
        ({"timeout": 0}, None),
        ({"timeout": 10, "threads": 2}, None),
        ({"timeout": 10}, "5"),
    ],
    ids=["longer", "none", "threads", "shorter pool_timeout"],
)
def test_a_timeout_that_hides_nothing_is_not_warned_about(
    settings: dict[str, object],
    pool_timeout: str | None,
    logged: Callable[[], list[tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
):
    if pool_timeout:
        monkeypatch.setenv("SA_RAILWAY_POOL_TIMEOUT", pool_timeout)

    hooks.on_starting(make_server(**settings))

    assert [level for level, _ in logged()] == ["INFO"]


# --- post_fork, post_worker_init ---


def test_post_fork_cuts_the_worker_off_from_the_connections_of_the_arbiter(
    monkeypatch: pytest.MonkeyPatch,
):
    calls = []
    monkeypatch.setattr(hooks, "after_fork_in_child", lambda: calls.append("cut off"))

    hooks.post_fork(make_server(), make_worker())

    assert calls == ["cut off"]


@pytest.fixture
def engine() -> Iterator[sqlalchemy.Engine]:
    """An engine that has a connection in its pool, and a secret in its URL."""
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg2://shop:{MARK}@db.example/shop",
        plugins=["railway"],
        module=FakeDriver(),
    )
    yield engine
    engine.dispose(close=False)


class FakeDriver:
    """As much of psycopg2 as an engine that never connects asks for."""

    paramstyle = "pyformat"
    __version__ = "2.9.9"
    Error = Exception


@pytest.fixture
def only_engine(engine: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch) -> sqlalchemy.Engine:
    monkeypatch.setattr(hooks, "engines", lambda: [engine])
    return engine


def test_the_engines_of_a_worker_are_named_without_their_passwords(
    only_engine: sqlalchemy.Engine, logged: Callable[[], list[tuple[str, str]]]
):
    hooks.post_worker_init(make_worker(pid=7))

    assert logged() == [
        (
            "DEBUG",
            "sa_railway: engines of worker (pid:7): postgresql+psycopg2://shop:***@db.example/shop",
        )
    ]


# --- worker_abort ---


def handle_abort(worker: SimpleNamespace) -> None:
    """Gunicorn's handler of SIGABRT has this name."""
    hooks.worker_abort(worker)


def hung_in_python(worker: SimpleNamespace) -> None:
    handle_abort(worker)


def test_an_aborted_worker_shows_its_pools_and_what_the_main_thread_was_doing(
    only_engine: sqlalchemy.Engine, logged: Callable[[], list[tuple[str, str]]]
):
    hung_in_python(make_worker(pid=7))

    ((level, text),) = logged()
    assert level == "CRITICAL"
    assert text.startswith(
        "sa_railway: worker (pid:7) is aborted.\n"
        "Connection pools:\n"
        "  postgresql+psycopg2://shop:***@db.example/shop: Pool size: 5  Connections in pool: 0 "
        "Current Overflow: -5 Current Checked out connections: 0\n"
        "Main thread:\n"
        "  File "
    )
    assert text.endswith(", in hung_in_python\n    handle_abort(worker)")


# --- worker_exit ---


def test_the_pools_of_a_leaving_worker_are_disposed_of(only_engine: sqlalchemy.Engine):
    pool = only_engine.pool

    hooks.worker_exit(make_server(), make_worker())

    assert only_engine.pool is not pool


def test_the_arbiter_does_not_dispose_of_its_own_pools(only_engine: sqlalchemy.Engine):
    pool = only_engine.pool

    hooks.worker_exit(make_server(), make_worker(pid=os.getpid() + 1))
    hooks.child_exit(make_server(), make_worker(pid=os.getpid() + 1))

    assert only_engine.pool is pool


def test_an_async_engine_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    engine = create_async_engine("sqlite+aiosqlite://").sync_engine
    monkeypatch.setattr(hooks, "engines", lambda: [engine])
    pool = engine.pool

    hooks.worker_exit(make_server(), make_worker())

    assert engine.pool is pool


# --- child_exit ---


def start(worker: SimpleNamespace) -> None:
    hooks.post_fork(make_server(), worker)


def leave(worker: SimpleNamespace, status: int = 0) -> None:
    """Call worker_exit as Gunicorn does, while the exception that ends the worker is on its way."""
    start(worker)
    with contextlib.suppress(SystemExit):
        try:
            sys.exit(status)
        finally:
            hooks.worker_exit(make_server(), worker)


def leave_with_an_error(worker: SimpleNamespace) -> None:
    leave(worker, status=-1)


def be_aborted(worker: SimpleNamespace) -> None:
    start(worker)
    hooks.worker_abort(worker)


def be_aborted_and_leave(worker: SimpleNamespace) -> None:
    start(worker)
    with contextlib.suppress(SystemExit):
        try:
            hooks.worker_abort(worker)
            sys.exit(1)
        finally:
            hooks.worker_exit(make_server(), worker)


def say_nothing(worker: SimpleNamespace) -> None:
    pass


BLOCKED = (
    "timed out and was killed before Python could run, so it was blocked in a driver call or "
    "other C code; its query may still be running on the server; "
    "set statement_timeout below Gunicorn's timeout of 30 s"
)


@pytest.mark.parametrize(
    ("life", "aborted", "level", "end"),
    [
        (leave, False, "INFO", "left in good order"),
        (leave_with_an_error, False, "ERROR", "ended with an error"),
        (
            be_aborted_and_leave,
            True,
            "ERROR",
            "timed out and was unwound; its stack is logged above",
        ),
        (leave_with_an_error, True, "ERROR", "timed out and was unwound"),
        (
            be_aborted,
            True,
            "ERROR",
            "timed out and was killed before it had unwound; its stack is logged above",
        ),
        (start, True, "ERROR", BLOCKED),
        (
            be_aborted_and_leave,
            False,
            "ERROR",
            "was ended by a SIGABRT that Gunicorn had not sent",
        ),
        (
            start,
            False,
            "ERROR",
            "was killed without notice: by a SIGKILL (out of memory, or graceful_timeout was "
            "over), or by a crash",
        ),
        (
            say_nothing,
            False,
            "WARNING",
            "ended without notice; how it ended is known only if post_fork and worker_exit of "
            "sa_railway.gunicorn are hooks, too",
        ),
    ],
)
def test_the_arbiter_says_how_a_worker_ended(
    life: Callable[[SimpleNamespace], None],
    aborted: bool,
    level: str,
    end: str,
    logged: Callable[[], list[tuple[str, str]]],
):
    worker = make_worker(age=3)
    life(worker)
    worker.aborted = aborted

    hooks.child_exit(make_server(), worker)

    assert logged()[-1] == (level, f"sa_railway: worker (pid:{os.getpid()}) {end}")


def test_the_words_of_a_worker_cross_the_fork_and_are_kept_apart(
    logged: Callable[[], list[tuple[str, str]]],
):
    workers = [make_worker(age=age) for age in (5, 6)]
    for worker, life in zip(workers, (leave, start), strict=True):
        worker.pid = os.fork()
        if worker.pid == 0:
            worker.pid = os.getpid()
            life(worker)
            os._exit(0)
        os.waitpid(worker.pid, 0)

    for worker in workers:
        hooks.child_exit(make_server(), worker)

    assert [level for level, _ in logged()] == ["INFO", "ERROR"]


def test_a_worker_does_not_inherit_the_words_of_the_one_that_had_its_place(
    logged: Callable[[], list[tuple[str, str]]],
):
    leave(make_worker(age=7))

    hooks.post_fork(make_server(), make_worker(age=7 + 65536))
    hooks.child_exit(make_server(), make_worker(age=7 + 65536))

    assert [level for level, _ in logged()] == ["ERROR"]


# --- workers whose class lets a signal end the process ---


@pytest.mark.parametrize("known", ["STARTED", None])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_a_worker_that_the_signal_to_stop_has_ended_was_not_killed(
    name: str, known: str | None, logged: Callable[[], list[tuple[str, str]]]
):
    server, worker = make_server(), make_worker(pid=77)
    hooks._words[hooks._slot(worker)] = hooks._Word[known] if known else 0

    def reap_workers(status: int) -> None:
        hooks.child_exit(server, worker)

    reap_workers(int(signal.Signals[name]))

    text = f"was stopped by a {name} that its worker class lets end the process"
    assert logged() == [("INFO", f"sa_railway: worker (pid:77) {text}")]


def test_a_worker_that_a_sigkill_has_ended_was_killed(
    logged: Callable[[], list[tuple[str, str]]],
):
    server, worker = make_server(), make_worker(pid=77)
    hooks._words[hooks._slot(worker)] = hooks._Word.STARTED

    def reap_workers(status: int) -> None:
        hooks.child_exit(server, worker)

    reap_workers(int(signal.SIGKILL))

    ((level, text),) = logged()
    assert level == "ERROR"
    assert text.startswith("sa_railway: worker (pid:77) was killed without notice: by a SIGKILL")


def test_the_arbiter_still_has_the_status_of_a_worker_in_a_variable_of_that_name():
    assert "status" in Arbiter.reap_workers.__code__.co_varnames
