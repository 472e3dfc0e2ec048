"""Which requests may see the endpoints of an application that are not public."""

from __future__ import annotations

import functools
import logging

from flask import Flask, Response, current_app, request

from sa_railway.config.token import (
    TOKEN_SETTING,
    configured_token,
    may_see,
    refusal_text,
    warn_if_short,
)

__all__ = ["allowed", "check_token", "refusal"]

logger = logging.getLogger("sa_railway.flask")

_DEVELOPMENT_SERVER = "Werkzeug"


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
