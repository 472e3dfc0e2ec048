"""The page of metrics that Prometheus reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response, request

from sa_railway.exc import ConfigurationError
from sa_railway.flask.access import allowed, refusal

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["PATH_SETTING", "add_route", "checked_path"]

PATH_SETTING = "RAILWAY_METRICS"


def checked_path(name: str, value: object) -> str | None:
    """Return *value* if the setting *name* may have it; None if no page is wanted.

    Raises:
        ConfigurationError: it is no path.
    """
    if value is None or value is False:
        return None
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise ConfigurationError(
        f"{name} is {value!r}; allowed: a path that begins with a slash, such as '/metrics', or "
        "None for no page of metrics"
    )


def add_route(app: Flask, path: str) -> None:
    """Let *app* answer *path* with its own metrics and those of all engines.

    Raises:
        ConfigurationError: *app* has a view for it already.
        ImportError: ``prometheus_client`` is not installed.
    """
    from sa_railway.metrics import prometheus  # an extra

    if any(rule.rule == path for rule in app.url_map.iter_rules()):
        raise ConfigurationError(
            f"Flask app {app.name!r} answers {path} already; set {PATH_SETTING} to another path, "
            "or add the metrics to your own page with sa_railway.metrics.prometheus.expose()"
        )

    def metrics() -> Response:
        if not allowed():
            return refusal()
        content_type, body = prometheus.render(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type, headers={"Cache-Control": "no-store"})

    app.add_url_rule(path, "railway_metrics", metrics, methods=["GET"])
