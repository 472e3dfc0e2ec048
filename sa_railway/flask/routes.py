"""What an application answers for us: the health endpoints, and the page for Prometheus."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flask import Flask, Response, current_app, request
from werkzeug.routing import Map

from sa_railway.config.token import (
    TOKEN_SETTING,
    configured_token,
    may_see,
    refusal_text,
    warn_if_short,
)
from sa_railway.exc import ConfigurationError
from sa_railway.health import endpoints

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from werkzeug.routing import Rule


logger = logging.getLogger("sa_railway.flask")

HEALTH_SETTING = "RAILWAY_HEALTH"
METRICS_SETTING = "RAILWAY_METRICS"

_WAY_OUT = f"set {HEALTH_SETTING} to another prefix, or to None for no health endpoints"
_ENDPOINT = "railway_health_"
_DEVELOPMENT_SERVER = "Werkzeug"

View = Callable[[], Response]


def checked_path(name: str, value: object, what: str) -> str | None:
    """Return *value* if the setting *name* may have it; None if it says that *what* is not wanted.

    Raises:
        ConfigurationError: it is no path.
    """
    if value is None or value is False:
        return None
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise ConfigurationError(
        f"{name} is {value!r}; allowed: a path that begins with a slash, or None for no {what}"
    )


def add_health(app: Flask, prefix: str, engines: Callable[[], Mapping[str, Engine]]) -> None:
    """Let *app* answer ``live``, ``ready`` and ``database`` below *prefix*.

    Args:
        app: an application that has not answered a request yet.
        prefix: begins with a slash.
        engines: returns the engines by their names; called within each request.

    Raises:
        ConfigurationError: *app* has a view for one of the paths already.
    """
    prefix = prefix.rstrip("/")
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
        elif HEALTH_SETTING not in app.config:
            logger.warning(
                f"{text} of %s; if that is right, set {HEALTH_SETTING} to this prefix; otherwise "
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


logger = logging.getLogger("sa_railway.flask")


def check_token(app: Flask) -> None:
    """Say that the token of *app* can be guessed, if it can."""
    warn_if_short(configured_token(app.config.get(TOKEN_SETTING)))


def allowed() -> bool:
    """Return whether the current request may see what is not public.

    It may if it carries the token, or if the application is in debug and not on Railway. The token
    is ``RAILWAY_HEALTH_TOKEN`` of the application's configuration, or else the environment variable
    of that name; it is read at every call.
    """
    token, query = _token(), request.args
    is_allowed = may_see(token, request.headers.items(), query, debug=current_app.debug)
    if is_allowed and current_app.debug:
        server = str(request.environ.get("SERVER_SOFTWARE", _DEVELOPMENT_SERVER))
        if not server.startswith(_DEVELOPMENT_SERVER):
            _warn_of_debug(current_app.name, server)
    return is_allowed


@functools.cache
def _warn_of_debug(app: str, server: str) -> None:
    logger.warning(
        "Flask app %r is in debug mode under %s, so every client may see its health report and "
        "metrics; unset FLASK_DEBUG",
        *(app, server),
    )


def refusal() -> Response:
    """Return the answer to a request that is not ``allowed()``: 403, and how to change that."""
    return Response(
        refusal_text(_token()),
        status=403,
        mimetype="text/plain",
        headers={"Cache-Control": "no-store"},
    )


def _token() -> str | None:
    return configured_token(current_app.config.get(TOKEN_SETTING))


def add_metrics(app: Flask, path: str) -> None:
    """Let *app* answer *path* with its own metrics and those of all engines.

    Raises:
        ConfigurationError: *app* has a view for it already.
        ImportError: ``prometheus_client`` is not installed.
    """
    from sa_railway.metrics import prometheus  # an extra

    if any(rule.rule == path for rule in app.url_map.iter_rules()):
        raise ConfigurationError(
            f"Flask app {app.name!r} answers {path} already; set {METRICS_SETTING} to another "
            "path, or add the metrics to your own page with sa_railway.metrics.prometheus.expose()"
        )

    def metrics() -> Response:
        if not allowed():
            return refusal()
        content_type, body = prometheus.render(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type, headers={"Cache-Control": "no-store"})

    app.add_url_rule(path, "railway_metrics", metrics, methods=["GET"])
