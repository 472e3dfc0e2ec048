"""The asyncio twins of the public functions, under the same names."""

from __future__ import annotations

from typing import Any

import sqlalchemy.ext.asyncio
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from sa_railway.config.drivers import choose_driver
from sa_railway.config.options import engine_options
from sa_railway.config.profile import Profile
from sa_railway.config.url import find_url

__all__ = ["create_async_engine"]


def create_async_engine(
    url: str | URL | None = None, *, profile: str | Profile = "web", **overrides: Any
) -> AsyncEngine:
    """Create an asyncio engine whose connections survive.

    A URL that names no driver, or one that cannot be used with asyncio, gets asyncpg, or psycopg
    where asyncpg is not installed.

    Args:
        url: the database; None looks for it in the environment as ``database_url()`` does.
        profile: a named profile or one of your own.
        **overrides: fields of the profile, and arguments of
            ``sqlalchemy.ext.asyncio.create_async_engine()``.

    Returns:
        SQLAlchemy's own ``AsyncEngine``. Nothing is connected yet. For one event loop; a forked
        child may use it in a loop of its own.

    Raises:
        ConfigurationError: the URL, the profile or an override cannot be used.
    """
    target = choose_driver(find_url(url), asyncio=True)
    options = engine_options(target, profile=profile, **overrides)
    return sqlalchemy.ext.asyncio.create_async_engine(target, **options)
