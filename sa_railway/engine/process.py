"""What a forked child must renew before it uses anything of its parent's.

Python calls its hooks after its own ``os.fork()`` only. A server written in C, such as uWSGI, need
not tell Python of a fork, so every checkout compares the process id as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from sa_railway.engine.native import Lock

logger = logging.getLogger("sa_railway.engine")

pid = os.getpid()
"""The process that everything in this package belongs to."""

_lock = Lock()
_renewals: list[Callable[[], None]] = []


def at_fork(renewal: Callable[[], None]) -> None:
    """Call *renewal* in every forked child, once, before a connection is used there."""
    _renewals.append(renewal)


def renew() -> bool:
    """Renew what this process has inherited, if it is a child that has not done so; return whether.

    No connection can be used while it is under way.
    """
    global pid
    if pid == os.getpid():
        return False
    with _lock:
        if pid == os.getpid():
            return False
        for renewal in _renewals:
            try:
                renewal()
            except Exception:
                logger.exception("%s.%s failed", renewal.__module__, renewal.__qualname__)
        pid = os.getpid()
    return True


def _renew_in_child() -> None:
    global _lock
    _lock = Lock()  # a thread of the parent may have held it
    renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_in_child)
