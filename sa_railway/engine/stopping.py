"""Know that this process is being stopped, so that nothing in it waits for a server any longer.

A server such as Gunicorn or uvicorn takes SIGTERM for a request to finish what is under way. Work
that waits for a database would hold it up, where without the wait it fails at once.

A pool of forked workers, such as Celery's, gets the signal in its parent alone, which then waits
for the children. So a parent leaves a note of it in memory that they share.

Python lets nothing but the handler itself know of a signal, so the program's is wrapped. The
wrapper is equal to what it wraps and has its attributes; ``is`` and its type tell the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep

_MOST = 32  # wrappers at a time, each of which the program may have wrapped in turn

_stopped_pid: int | None = None

# A byte of shared memory for this process and each of its ancestors, if that has forked while it
# was watched: 1 from its SIGTERM on.
_notes: list[tuple[int, mmap.mmap]] = []


def is_stopping() -> bool:
    """Return whether this process, or one that has forked it, was sent SIGTERM while watched."""
    pid = os.getpid()
    return _stopped_pid == pid or any(note[0] for owner, note in _notes if owner != pid)


def watch() -> None:
    """Notice the next SIGTERM, if the program handles it, and hand it on to its handler.

    Python lets the main thread alone do that. From another one it is done there, if an event loop
    runs there; otherwise this has no effect. May be called again and again: servers set their
    handlers when they like.
    """
    handler = signal.getsignal(signal.SIGTERM)
    # the default ends the process at once, and one that is ignored stops nothing
    if not callable(handler) or isinstance(handler, _Noticing):
        return
    with contextlib.suppress(ValueError, RuntimeError):  # a subinterpreter; a loop that was closed
        if threading.current_thread() is threading.main_thread():
            if len(_Noticing.alive) < _MOST:
                _replace(handler)
        elif (loop := _main_loop()) is not None:
            loop.call_soon_threadsafe(watch)


def _replace(handler: Callable[..., Any]) -> None:
    """Wrap *handler*; for the operating system nothing changes.

    After ``signal.signal()`` alone the signal would end system calls with EINTR that asyncio and
    Gunicorn protect by ``siginterrupt()``, and pass by a handler in C that calls Python's.
    """
    if os.name == "nt":  # where a signal interrupts no system call
        signal.signal(signal.SIGTERM, _Noticing(handler))
        return
    try:
        import ctypes

        sigaction = ctypes.CDLL(None).sigaction
    except (ImportError, OSError, AttributeError):
        return
    action = (ctypes.c_long * 64)()  # larger than a struct sigaction is anywhere
    if sigaction(signal.SIGTERM, None, action) == 0:
        signal.signal(signal.SIGTERM, _Noticing(handler))
        sigaction(signal.SIGTERM, action, None)


def _prepare_fork() -> None:
    """Let the child that is about to be forked learn of a SIGTERM of this process."""
    watch()
    pid = os.getpid()
    is_watched = isinstance(signal.getsignal(signal.SIGTERM), _Noticing)
    if is_watched and all(owner != pid for owner, _ in _notes):
        with contextlib.suppress(OSError):  # there is no memory left
            _notes.append((pid, mmap.mmap(-1, 1)))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_prepare_fork)


def _main_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in the main thread."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    while frame is not None:
        # of asyncio's own frames only: to read the locals of another one changes what it does
        is_asyncio = frame.f_code.co_filename.startswith(_ASYNCIO)
        owner: Any = frame.f_locals.get("self") if is_asyncio else None
        kind = type(owner)  # and not what a proxy says of itself
        if issubclass(kind, asyncio.AbstractEventLoop):
            return cast("asyncio.AbstractEventLoop", owner)
        if issubclass(kind, asyncio.Runner):  # uvloop's own loop has no frames
            return cast("asyncio.AbstractEventLoop", owner.get_loop())
        frame = frame.f_back
    return None


class _Noticing:
    """A signal handler that does what another one does, and remembers that it was called.

    Each has one handler for good: a program may set a handler later that calls this one.
    """

    alive: ClassVar[weakref.WeakValueDictionary[int, _Noticing]] = weakref.WeakValueDictionary()

    __slots__ = ("__weakref__", "__wrapped__")

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.__wrapped__ = handler
        self.alive[id(self)] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global _stopped_pid
        _stopped_pid = pid = os.getpid()
        for owner, note in _notes:
            if owner == pid:
                note[0] = 1
        return self.__wrapped__(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Noticing):
            other = other.__wrapped__
        return self.__wrapped__ == other

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # of a copy that has none yet
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)
