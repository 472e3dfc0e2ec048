"""Database connections that survive a hosted PostgreSQL. The public names, nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

from sa_railway import events, exc
from sa_railway.config.options import engine_options
from sa_railway.config.profile import Profile
from sa_railway.config.url import database_url, normalize_url
from sa_railway.engine.plugin import create_engine
from sa_railway.faults import Fault, classify

if TYPE_CHECKING:
    from sa_railway.asyncio import create_async_engine
    from sa_railway.recovery.transaction import run_transaction

__version__ = "0.1.0"

__all__ = [
    "Fault",
    "Profile",
    "classify",
    "create_async_engine",
    "create_engine",
    "database_url",
    "engine_options",
    "events",
    "exc",
    "normalize_url",
    "run_transaction",
]

# Not every program needs these, and what they import takes a while.
_LAZY = {
    "create_async_engine": "sa_railway.asyncio",
    "run_transaction": "sa_railway.recovery.transaction",
}


def __getattr__(name: str) -> Any:
    """Load a name of ``_LAZY`` when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return globals()[name]
