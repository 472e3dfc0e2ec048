"""Threads, locks and ``poll()`` of the operating system, under gevent and eventlet too.

Both replace these in Python's modules, at any time and in any order of imports. A thread that has
to act while all greenlets are blocked cannot be one of them, and a lock made before the replacement
does not fit a thread made after it. So this loads the C modules a second time. Greenlets may use
the locks as well, if they do not switch while they hold one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable
from types import BuiltinFunctionType, ModuleType
from typing import Any


def _copy(name: str) -> ModuleType:
    """Return another instance of the C module *name*, with its original functions."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module {name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_thread = _copy("_thread")
_FOREVER = -1
_LONGEST = _thread.TIMEOUT_MAX

Lock = _thread.RLock
"""The class of a lock that its holder may take again, as a signal handler may have to."""

poll: Callable[[], Any] | None = getattr(_copy("select"), "poll", None)
"""``select.poll``; None on Windows."""


def start_thread(run: Callable[[], None], name: str) -> None:
    """Start a daemon thread.

    Raises:
        RuntimeError: there may be no thread more.
    """
    import _thread as current

    if isinstance(current.start_new_thread, BuiltinFunctionType):
        threading.Thread(target=run, name=name, daemon=True).start()
    else:  # replaced: what threading.Thread starts would be a greenlet
        _thread.start_new_thread(run, ())


class Bell:
    """Wakes one thread that waits for it. Rung before, it ends the next wait at once."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def ring(self) -> None:
        """End a wait."""
        with contextlib.suppress(RuntimeError):  # it has been rung already
            self._lock.release()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it rings, but for no longer than *seconds*."""
        limit = _FOREVER if seconds is None else min(max(seconds, 0.0), _LONGEST)
        self._lock.acquire(timeout=limit)
