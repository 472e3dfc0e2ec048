"""Know that this process is being stopped, so that nothing in it waits for a server any longer.

A server such as Gunicorn or uvicorn takes SIGTERM for a request to finish what is under way. Work
that waits for a database would hold it up, where without the wait it fails at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

__all__ = ["is_stopping", "watch"]

_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep

_stopped_pid: int | None = None


def is_stopping() -> bool:
    """Return whether this process was sent SIGTERM while it was watched."""
    return _stopped_pid == os.getpid()


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
            signal.signal(signal.SIGTERM, _Noticing(handler))
        elif (loop := _main_loop()) is not None:
            loop.call_soon_threadsafe(watch)


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
    """A signal handler that does what *handler* does, and remembers that it was called.

    Each holds its own *handler*: a program may put one of its own before it, and keep this one.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        global _stopped_pid
        _stopped_pid = os.getpid()
        self._handler(number, frame)
