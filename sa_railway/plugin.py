"""The one place that knows all behaviours of an engine and their order."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import sqlalchemy
from sqlalchemy import URL, Engine, event
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin

from sa_railway.commit.tracking import track
from sa_railway.config.drivers import (
    choose_driver,
    has_driver,
    is_foreign,
    naming_extras,
    translate_query,
)
from sa_railway.config.options import engine_arguments, options_for
from sa_railway.config.parse import parse_url, plugin_parameters, profile_named_in
from sa_railway.config.profile import Profile, load_profile
from sa_railway.config.settings import ProfileName, Settings
from sa_railway.config.url import find_url
from sa_railway.engine import attempt, disconnect, fork, keepalive, lifetime, liveness
from sa_railway.engine.connect import Patience
from sa_railway.engine.state import engine_name, remember
from sa_railway.exc import ConfigurationError

__all__ = ["RailwayPlugin", "create_engine"]

logger = logging.getLogger("sa_railway.plugin")

# SQLAlchemy would find the plugin by its entry point; this spares the search through all
# installed distributions, and works where the package was not installed.
plugins.register("railway", "sa_railway.plugin", "RailwayPlugin")

_LEADER = "railway_leader"
_ARGUMENTS = ("railway_profile", "railway_generated")  # the second is between us only
_YES = ("true", "yes", "on", "y", "t", "1")  # what engine_from_config() takes for true


class RailwayPlugin(CreateEnginePlugin):
    """``create_engine(url, plugins=["railway"])``, or ``?plugin=railway`` in the URL.

    Both take ``railway_profile`` as well, in the same place. Naming the plugin twice does no harm.
    What the caller passes to ``create_engine()`` wins over the profile.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._kwargs = kwargs
        # Named both in the URL and in the arguments, a plugin is made twice; one does the work.
        self._leads = kwargs.setdefault(_LEADER, self) is self
        if self._leads:
            self._configure(url, kwargs)

    def _configure(self, url: URL, kwargs: dict[str, Any]) -> None:
        is_async = bool(kwargs.get("_is_async"))  # all that create_async_engine() says of itself
        _check_arguments(kwargs)
        profile: Any = kwargs.pop("railway_profile", None)
        generated = kwargs.pop("railway_generated", {})
        if is_foreign(url):  # SQLAlchemy and the dialect do all, errors included
            self._leads = False
            kwargs.pop(_LEADER)
            return
        target = parse_url("url", url)
        if "module" not in kwargs and not has_driver(url, asyncio=is_async):
            target = choose_driver(target, asyncio=is_async)
        profile = profile or profile_named_in(target) or "web"
        if not isinstance(profile, Profile):
            profile = load_profile(profile, {}, os.environ)
        target = target.difference_update_query(plugin_parameters(target))
        target = translate_query(target)
        self._url = url if target == url else target
        arguments = engine_arguments(
            target, profile, kwargs, generated=generated, is_async=is_async
        )
        self._profile = _as_asked(profile, arguments)
        self._connects_itself = not any(
            arguments.get(name) for name in ("pool", "creator", "async_creator")
        )
        has_creator = any(
            (arguments.get("creator"), arguments.get("connect_args", {}).get("async_creator_fn"))
        )
        # a pool that the caller made connects as it was made to, perhaps for another engine, too
        self._patience = (
            Patience(self._profile, is_async=is_async, has_creator=has_creator)
            if arguments.get("pool") is None
            else None
        )
        self._pool_pings = "pool_pre_ping" in arguments
        if self._pool_pings and target.get_backend_name() != "sqlite":
            arguments["pool_pre_ping"] = self._profile.pre_ping
        kwargs.clear()
        kwargs.update(arguments)

    def update_url(self, url: URL) -> URL:
        """Return the URL with a driver and without the plugin's own settings."""
        if not self._leads:
            return url.difference_update_query(plugin_parameters(url))
        self._kwargs.pop(_LEADER, None)
        return self._url

    def engine_created(self, engine: Engine) -> None:
        """Attach the behaviours."""
        if not self._leads:
            return
        remember(engine, self._profile)
        fork.listen(engine)
        if engine.dialect.driver == "asyncpg":  # several hosts are joined beneath the statements
            attempt.surround(engine)
            track(engine)
        else:  # psycopg's own connect() is known only if nothing has surrounded it
            track(engine)
            attempt.surround(engine)
        if self._patience is not None:
            self._patience.listen(engine)
        if self._connects_itself:
            keepalive.listen(engine, self._profile)
        disconnect.listen(engine, self._profile)
        lifetime.listen(engine, self._profile)
        liveness.listen(engine, self._profile, pool_pings=self._pool_pings)
        _listen_if_asked(engine, self._profile)
        _say_at_first_connect(engine_name(engine), engine, self._profile.name)


def _listen_if_asked(engine: Engine, profile: Profile) -> None:
    """Attach what few programs ask for; it is imported by those only."""
    if profile.metrics:
        from sa_railway.metrics import collect

        collect.listen(engine, profile)
    if profile.resolve_commit or profile.commit_marker:
        from sa_railway.commit import resolver

        resolver.listen(engine, profile)
    if profile.leak_after is not None:
        from sa_railway.engine import leaks

        leaks.listen(engine, profile.leak_after)


def _say_at_first_connect(name: str, engine: Engine, profile: str) -> None:
    """Log that the engine is protected: not when it is made, which is before logging is set up."""

    def say(*args: object) -> None:
        logger.info("%s: protected by sa_railway, profile %s", name, profile)

    event.listen(engine, "connect", say, once=True)


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    """Refuse a misspelt argument of ours; SQLAlchemy would not say what is allowed."""
    for name in kwargs:
        if name.startswith("railway_") and name not in (_LEADER, *_ARGUMENTS):
            raise ConfigurationError(
                f"{name} is not an argument of the plugin; allowed: railway_profile"
            )


def create_engine(
    url: str | URL | None = None,
    *,
    profile: ProfileName | Profile | None = None,
    **overrides: Unpack[Settings],
) -> Engine:
    """Create an engine whose connections survive.

    Args:
        url: the database; None looks for it in the environment as ``database_url()`` does.
        profile: as for ``engine_options()``.
        **overrides: fields of the profile, and arguments of ``sqlalchemy.create_engine()``.

    Returns:
        SQLAlchemy's own ``Engine``. Nothing is connected yet. Share one per process; it may be
        used from any thread, and in a forked child.

    Raises:
        ConfigurationError: the URL, the profile or an override cannot be used.
    """
    target = choose_driver(find_url(url))
    with naming_extras():
        options = options_for(target, profile, os.environ, overrides)
        return sqlalchemy.create_engine(target, **options)


def _as_asked(profile: Profile, arguments: Mapping[str, Any]) -> Profile:
    """Return *profile* with what the caller's own arguments say about pinging and recycling."""
    pre_ping = arguments.get("pool_pre_ping", profile.pre_ping)
    recycle = float(arguments.get("pool_recycle", -1))
    # engine_from_config() hands over what stands in the .ini file
    profile = replace(profile, pre_ping=str(pre_ping).lower() in _YES)
    if recycle <= 0:  # SQLAlchemy's way to say that nothing is recycled
        return replace(profile, recycle_jitter=0.0)
    return replace(profile, pool_recycle=recycle)
