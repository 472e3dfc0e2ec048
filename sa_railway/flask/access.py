"""Who may see the endpoints of an application that are not for everybody."""

from __future__ import annotations

from flask import Response, current_app, request

from sa_railway.observe.access import (
    TOKEN_SETTING,
    carries_token,
    configured_token,
    refusal_text,
)

__all__ = ["allowed", "refusal"]


def allowed() -> bool:
    """Return whether the current request may see what is not for everybody.

    It may if it carries the token, or if the application is in debug. The token is
    ``RAILWAY_HEALTH_TOKEN`` of the application's configuration, or else the environment variable
    of that name; it is read at every call.
    """
    return current_app.debug or carries_token(_token(), request.headers.items(), request.args)


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
