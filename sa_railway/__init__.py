"""Database connections that survive a hosted PostgreSQL. The public names, nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

from sa_railway import events, exc
from sa_railway.config.options import engine_options
from sa_railway.config.profile import Profile
from sa_railway.config.url import database_url, normalize_url
from sa_railway.faults import Fault, classify
from sa_railway.plugin import create_engine

if TYPE_CHECKING:
    from sa_railway.asyncio import create_async_engine
    from sa_railway.config.budget import ConnectionBudget, plan_budget
    from sa_railway.health import HealthReport, check_health
    from sa_railway.recovery.retry import retry
    from sa_railway.recovery.transaction import run_transaction
    from sa_railway.recovery.wait import wait_for_database

__version__ = "0.1.0"

__all__ = [
    "ConnectionBudget",
    "Fault",
    "HealthReport",
    "Profile",
    "check_health",
    "classify",
    "create_async_engine",
    "create_engine",
    "database_url",
    "engine_options",
    "events",
    "exc",
    "normalize_url",
    "plan_budget",
    "retry",
    "run_transaction",
    "wait_for_database",
]

# Not every program needs these, and what they import takes a while.
_LAZY = {
    "ConnectionBudget": "sa_railway.config.budget",
    "HealthReport": "sa_railway.health",
    "check_health": "sa_railway.health",
    "create_async_engine": "sa_railway.asyncio",
    "plan_budget": "sa_railway.config.budget",
    "retry": "sa_railway.recovery.retry",
    "run_transaction": "sa_railway.recovery.transaction",
    "wait_for_database": "sa_railway.recovery.wait",
}


def __getattr__(name: str) -> Any:
    """Load a name of ``_LAZY`` when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return globals()[name]
