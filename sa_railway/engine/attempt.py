"""One attempt to connect: what the driver gets beside what the application asks for.

This surrounds the dialect's ``connect()``, where the arguments arrive as the listeners to
``do_connect`` have left them, and is not such a listener: the first that returns a connection ends
their list. A dialect is surrounded by setting one attribute, which other threads may be reading.
"""

from __future__ import annotations

import functools
import math
import os
import traceback
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine

from sa_railway.config.options import CONNECT_TIMEOUTS
from sa_railway.engine.waiting import single_attempt_timeout

_SHORTEST = 2  # what libpq takes a connect_timeout of 1 for; 0 would be no limit at all


def surround(engine: Engine) -> None:
    """Let every attempt of *engine* end in time, and reach each of several hosts."""
    dialect: Any = engine.dialect
    connect = dialect.connect
    name = CONNECT_TIMEOUTS.get(dialect.driver)

    @functools.wraps(connect)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        if name is not None:
            kwargs = _limited(kwargs, name, single_attempt_timeout.get())
        if dialect.driver == "asyncpg":
            kwargs = _for_each_host(kwargs, dialect.loaded_dbapi.asyncpg)
        return connect(*args, **kwargs)

    dialect.connect = attempt


def came_from_driver(error: BaseException) -> bool:
    """Return whether *error* has come through the ``connect()`` of a dialect.

    Some raise an ``OSError`` as it is, such as psycopg before 3.2.13 for a name that it cannot
    resolve, and so may a listener that asks another service for a token.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals is globals() for frame, _ in frames)


def limit_of(arguments: dict[str, Any], name: str) -> float | None:
    """Return the seconds of the argument *name*, infinity for no limit; None if it is not given.

    It may be the text of a URL's query, and for libpq 0 is no limit.
    """
    if name not in arguments:
        return None
    try:
        seconds = float(arguments[name] or 0)
    except (TypeError, ValueError):  # the driver will say what is wrong with it
        return None
    return seconds if seconds > 0 else math.inf


def _limited(arguments: dict[str, Any], name: str, most: float) -> dict[str, Any]:
    """Return *arguments* with a limit of at most *most* seconds, but no less than libpq's least."""
    if most == math.inf or (limit_of(arguments, name) or math.inf) <= most:
        return arguments
    return {**arguments, name: max(_SHORTEST, math.ceil(most))}


def _for_each_host(arguments: dict[str, Any], asyncpg: Any) -> dict[str, Any]:
    """Return *arguments* by which asyncpg gives each of several hosts the whole of its limit.

    As libpq does. By itself asyncpg has one limit for all, so a host that never answers takes the
    time of those behind it.
    """
    hosts, ports = arguments.get("host"), arguments.get("port")
    if not isinstance(hosts, list | tuple) or len(hosts) < 2 or _is_for_asyncpg_alone(arguments):
        return arguments
    if not isinstance(ports, list | tuple):
        ports = [ports] * len(hosts)
    if len(ports) != len(hosts):  # asyncpg has a text for this
        return arguments
    others = {k: v for k, v in arguments.items() if k not in ("host", "port")}
    connect = functools.partial(_connect_to_one_of, asyncpg, list(zip(hosts, ports, strict=True)))
    return {**others, "async_creator_fn": connect}


def _is_for_asyncpg_alone(arguments: dict[str, Any]) -> bool:
    """Return whether what is wanted of the hosts may stand where only asyncpg reads it."""
    return (
        any(arguments.get(name) for name in ("async_creator_fn", "dsn", "service"))
        or "PGSERVICE" in os.environ
    )


async def _connect_to_one_of(
    asyncpg: Any,
    addresses: Sequence[tuple[str, int | None]],
    target_session_attrs: str | None = None,
    **arguments: Any,
) -> Any:
    """Connect to the first host that answers and is as wanted, as asyncpg would."""
    wanted = target_session_attrs or os.environ.get("PGTARGETSESSIONATTRS") or "any"
    failure: BaseException | None = None
    for attributes in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        unsuited = []
        for host, port in addresses:
            try:
                return await asyncpg.connect(
                    host=host, port=port, target_session_attrs=attributes, **arguments
                )
            except asyncpg.exceptions.TargetServerAttributeNotMatched as error:
                unsuited.append((host, port))
                failure = failure or error
            except (OSError, asyncpg.exceptions.CannotConnectNowError) as error:
                failure = error
        addresses = unsuited
    raise failure or ValueError("there is no host to connect to")
