"""The health endpoints of an application: ``live``, ``ready`` and ``database`` below a prefix."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flask import Response, request
from werkzeug.routing import Map

from sa_railway.exc import ConfigurationError
from sa_railway.flask.access import allowed, refusal
from sa_railway.health import endpoints

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine
    from werkzeug.routing import Rule

__all__ = ["PREFIX_SETTING", "add_routes", "checked_prefix"]

logger = logging.getLogger("sa_railway.flask")

PREFIX_SETTING = "RAILWAY_HEALTH"
_WAY_OUT = f"set {PREFIX_SETTING} to another prefix, or to None for no health endpoints"
_ENDPOINT = "railway_health_"

View = Callable[[], Response]


def checked_prefix(name: str, value: object) -> str | None:
    """Return *value* if the setting *name* may have it; None if it says that nothing is wanted.

    Raises:
        ConfigurationError: it is no path.
    """
    if value is None or value is False:
        return None
    if isinstance(value, str) and value.startswith("/"):
        return value.rstrip("/")
    raise ConfigurationError(
        f"{name} is {value!r}; allowed: a path that begins with a slash, or None for no health "
        "endpoints"
    )


def add_routes(app: Flask, prefix: str, engines: Callable[[], Mapping[str, Engine]]) -> None:
    """Add the endpoints to *app*.

    Args:
        app: an application that has not answered a request yet.
        prefix: as ``checked_prefix()`` gives it.
        engines: returns the engines by their names; called within each request.

    Raises:
        ConfigurationError: *app* has a view for one of the paths already.
    """
    views: dict[str, View] = {
        "live": lambda: _response(endpoints.live()),
        "ready": lambda: _ready(engines()),
        "database": lambda: _database(engines(), app.name) if allowed() else refusal(),
    }
    for name in views:
        path = f"{prefix}/{name}"
        other = _other_rule(app, path)
        if other is not None and other.rule == path:
            raise ConfigurationError(
                f"Flask app {app.name!r} answers {path} already, with its view "
                f"{other.endpoint!r}; {_WAY_OUT}"
            )
    for name, view in views.items():
        path = f"{prefix}/{name}"
        app.add_url_rule(path, _ENDPOINT + name, _warning(app, path, view), methods=["GET"])


def _ready(engines: Mapping[str, Engine]) -> Response:
    return _response(endpoints.ready(engines, endpoints.ask(engines)))


def _database(engines: Mapping[str, Engine], application: str) -> Response:
    html = endpoints.wants_html(request.headers.get("Accept", ""))
    probes = endpoints.ask(engines)
    return _response(endpoints.database(engines, probes, html=html, application=application))


def _response(answer: endpoints.Answer) -> Response:
    return Response(
        answer.body, answer.status, dict(answer.headers), content_type=answer.content_type
    )


def _warning(app: Flask, path: str, view: View) -> View:
    """Return *view*, which logs once that it hides a view: one added later, or one for any path."""

    @functools.cache
    def warn() -> None:
        hidden = _other_rule(app, path)
        if hidden is None:
            return
        text = "%s is answered by sa_railway, and so never by the view %r"
        if hidden.rule == path:
            logger.error(f"{text}; {_WAY_OUT}", path, hidden.endpoint)
        elif PREFIX_SETTING not in app.config:
            logger.warning(
                f"{text} of %s; if that is right, set {PREFIX_SETTING} to this prefix; otherwise "
                "to another one, or to None for no health endpoints",
                path,
                hidden.endpoint,
                hidden.rule,
            )

    def warning_view() -> Response:
        warn()
        return view()

    return warning_view


def _other_rule(app: Flask, path: str) -> Rule | None:
    """Return the application's own rule by which it would answer *path*, if it has one."""
    rules, given = app.url_map.iter_rules(), app.url_map
    others = Map(
        [rule.empty() for rule in rules if not rule.endpoint.startswith(_ENDPOINT)],
        default_subdomain=given.default_subdomain,
        converters=given.converters,
        host_matching=given.host_matching,
    )
    # nothing matches, or it redirects; or a converter of the application's own has failed
    with contextlib.suppress(Exception):
        return others.bind("").match(path, "GET", return_rule=True)[0]
    return None
