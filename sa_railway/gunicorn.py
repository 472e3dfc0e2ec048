"""Gunicorn: server hooks that give each worker its own connections, and say how a worker ended.

In ``gunicorn.conf.py``::

    from sa_railway.gunicorn import child_exit, on_starting, post_fork
    from sa_railway.gunicorn import post_worker_init, worker_abort, worker_exit

or, without such a file, ``gunicorn -c python:sa_railway.gunicorn``. If you have a hook of the same
name already, write ``post_fork = combine(sa_railway.gunicorn.post_fork, my_post_fork)``.

A hook of this module that fails is logged and changes nothing for Gunicorn.

To import this module makes the memory in which the workers keep their metrics together. On Railway,
``logconfig_dict`` is a logging configuration for its log viewer; elsewhere it is empty, and so not
used by Gunicorn.
"""

# With "-c python:" Gunicorn reads every name in this module that is the name of a setting as that
# setting, so no name but logconfig_dict and those of the hooks may be one. A test compares them.

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import itertools
import logging
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sa_railway.config.profile import load_profile
from sa_railway.config.url import on_railway
from sa_railway.engine.fork import after_fork_in_child, engines
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.state import engine_name
from sa_railway.engine.stopping import watch
from sa_railway.exc import ConfigurationError
from sa_railway.logs import logging_config
from sa_railway.metrics import counters

__all__ = [
    "child_exit",
    "combine",
    "logconfig_dict",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "worker_abort",
    "worker_exit",
]

Hook = Callable[..., object]

logconfig_dict: dict[str, Any] = logging_config() if on_railway() else {}


def combine(*hooks: Hook) -> Hook:
    """Make one hook of several that are called in this order.

    All are called even if one of them raises. Gunicorn gets the exception, the last one if there
    are more, and does with it what it would have done with that hook alone.

    Raises:
        ConfigurationError: there is no hook, or they take different numbers of arguments.
    """
    arities = [_arity(hook) for hook in hooks]
    if len(set(arities)) != 1:
        raise ConfigurationError(
            f"hooks take {' and '.join(map(str, arities)) or 'no'} arguments; "
            "allowed: one or more hooks that take the same number"
        )

    @functools.wraps(hooks[0])  # Gunicorn refuses a hook by the arguments of its signature
    def call_all(*arguments: Any) -> None:
        with contextlib.ExitStack() as stack:
            for hook in reversed(hooks):
                stack.callback(hook, *arguments)

    return call_all


def _arity(hook: Hook) -> int:
    parameters = inspect.signature(hook).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


# --- what a worker says of itself ---


class _Word(enum.IntFlag):
    """The byte of a worker: written by the worker, read by the arbiter when it is gone."""

    STARTED = 1
    ABORTED = 2  # the handler of SIGABRT has run
    FAILED = 4  # it was leaving with an error
    LEFT = 8  # worker_exit has run to its end


# Gunicorn tells child_exit nothing of how a worker ended. This is made in the arbiter, where the
# configuration is read, and shared with every process forked from it. Workers are numbered; only
# one that outlives 65536 others would share its byte.
_words = mmap.mmap(-1, 65536)
counters.share()  # made here for the same reason


def _slot(worker: Any) -> int:
    return int(worker.age) % len(_words)


def _say(worker: Any, word: _Word) -> None:
    _words[_slot(worker)] |= word


# --- the hooks ---


@never_raises
def on_starting(server: Any) -> None:
    """Log what the configuration means for connections. Runs in the arbiter."""
    cfg = server.cfg
    kind = cfg.worker_class_str
    threads = f", threads in each: {cfg.threads}" if kind in ("sync", "gthread") else ""
    server.log.info(
        "sa_railway: workers: %d (%s)%s; every worker has its own connection pools",
        cfg.workers,
        kind,
        threads,
    )
    pool_timeout = load_profile("web", {}, os.environ).pool_timeout
    # the other classes of workers report to the arbiter while a request waits
    if kind == "sync" and 0 < cfg.timeout <= pool_timeout:
        server.log.warning(
            "sa_railway: timeout is %d s and pool_timeout %g s, so a request that waits for a "
            "connection ends as WORKER TIMEOUT before the pool can say that it is exhausted; "
            "raise timeout, or set SA_RAILWAY_POOL_TIMEOUT below it",
            cfg.timeout,
            pool_timeout,
        )


@never_raises
def post_fork(server: Any, worker: Any) -> None:
    """Cut the new worker off from the connections that the arbiter has opened."""
    _words[_slot(worker)] = _Word.STARTED
    after_fork_in_child()


@never_raises
def post_worker_init(worker: Any) -> None:
    """Log, for debugging, which engines the application has made. Runs in the worker.

    What waits for a server in one of its threads ends when the worker is stopped.
    """
    watch()
    names = ", ".join(map(engine_name, engines())) or "none yet"
    worker.log.debug("sa_railway: engines of worker (pid:%s): %s", worker.pid, names)


@never_raises
def worker_abort(worker: Any) -> None:
    """Log what hung: the state of every pool, and the stack of the main thread.

    Runs in the worker, which has timed out and is about to be stopped by ``SystemExit``; but only
    if the interpreter gets to run, which it does not while a driver written in C waits.
    """
    _say(worker, _Word.ABORTED)
    pools = [f"  {engine_name(engine)}: {engine.pool.status()}" for engine in engines()]
    stack = traceback.extract_stack()
    hung = itertools.takewhile(lambda frame: frame.name != "handle_abort", stack)
    worker.log.critical(
        "sa_railway: worker (pid:%s) is aborted.\nConnection pools:\n%s\nMain thread:\n%s",
        worker.pid,
        "\n".join(pools) or "  none",
        "".join(traceback.format_list(list(hung))).rstrip(),
    )


@never_raises
def worker_exit(server: Any, worker: Any) -> None:
    """Close the connections of the worker, so that the server need not find out that it is gone."""
    # The arbiter calls this in its own process for a worker that it cannot find any more.
    if worker.pid != os.getpid():
        return
    if _is_failure(sys.exc_info()[1]):
        _say(worker, _Word.FAILED)
    for engine in engines():
        # The event loop of an async engine is closed by now, and nothing of it can be awaited.
        if not engine.dialect.is_async:
            engine.dispose()
    _say(worker, _Word.LEFT)


@never_raises
def child_exit(server: Any, worker: Any) -> None:
    """Log how a worker ended. Runs in the arbiter, whose own connections it leaves alone."""
    word = _Word(_words[_slot(worker)])
    _words[_slot(worker)] = 0
    if worker.aborted:
        level, end = logging.ERROR, _timeout(word, server.cfg.timeout)
    else:
        level, end = _end(word, _status())
    server.log.log(level, "sa_railway: worker (pid:%s) %s", worker.pid, end)
    _forget_metrics(worker.pid)


def _forget_metrics(pid: int) -> None:
    """Forget the dead worker's part in the application's own metrics; ours know by themselves."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        with contextlib.suppress(ImportError):  # the variable may be meant for others
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(pid)  # type: ignore[no-untyped-call]


# --- how a worker ended ---


def _is_failure(leaving: BaseException | None) -> bool:
    """Return whether Gunicorn ends the worker for an error; it always does so by an exception."""
    if isinstance(leaving, SystemExit):
        return leaving.code not in (None, 0)
    return leaving is not None


def _timeout(word: _Word, timeout: int) -> str:
    """Describe the end of a worker that Gunicorn's timeout has ended."""
    stack = "; its stack is logged above" if word & _Word.ABORTED else ""
    if word & _Word.LEFT:
        return f"timed out and was unwound{stack}"
    if word & _Word.ABORTED:
        return f"timed out and was killed before it had unwound{stack}"
    return (
        "timed out and was killed before Python could run, so it was blocked in a driver call or "
        "other C code; its query may still be running on the server; "
        f"set statement_timeout below Gunicorn's timeout of {timeout} s"
    )


def _status() -> int | None:
    """Return the status of the process that the arbiter has just waited for.

    The arbiter keeps it in a local variable and gives it to no hook. A test fails when this moves.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "reap_workers":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("status")


def _end(word: _Word, status: int | None) -> tuple[int, str]:
    """Describe the end of a worker that has not timed out, and say at which level to log it."""
    ended_by = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
    if ended_by in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):  # as with uvicorn's class
        name = signal.Signals(ended_by).name
        return logging.INFO, f"was stopped by a {name} that its worker class lets end the process"
    if word & _Word.ABORTED:
        return logging.ERROR, "was ended by a SIGABRT that Gunicorn had not sent"
    if word & _Word.FAILED:
        return logging.ERROR, "ended with an error"
    if word & _Word.LEFT:
        return logging.INFO, "left in good order"
    if word & _Word.STARTED:
        return logging.ERROR, (
            "was killed without notice: by a SIGKILL (out of memory, or graceful_timeout was "
            "over), or by a crash"
        )
    return logging.WARNING, (
        "ended without notice; how it ended is known only if post_fork and worker_exit of "
        "sa_railway.gunicorn are hooks, too"
    )
