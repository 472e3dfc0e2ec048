"""Database connections that survive a hosted PostgreSQL. The public names, nothing else."""

from typing import TYPE_CHECKING, Any

from sa_railway import events, exc
from sa_railway.config.options import engine_options
from sa_railway.config.profile import Profile
from sa_railway.config.url import database_url, normalize_url
from sa_railway.engine.plugin import create_engine
from sa_railway.faults import Fault, classify

if TYPE_CHECKING:
    from sa_railway.asyncio import create_async_engine

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
]


def __getattr__(name: str) -> Any:
    """Load what not every program needs when it is first asked for."""
    if name == "create_async_engine":
        from sa_railway.asyncio import create_async_engine

        return create_async_engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
