"""What logs and events call an engine."""

from __future__ import annotations

from sqlalchemy import Engine

__all__ = ["engine_name"]


def engine_name(engine: Engine) -> str:
    """Return the engine's ``logging_name``, or its URL without the password."""
    return engine.logging_name or engine.url.render_as_string(hide_password=True)
