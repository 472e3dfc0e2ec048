"""What logs and events call an engine."""

from __future__ import annotations

from sqlalchemy import Engine

from sa_railway.config.masking import masked

__all__ = ["engine_name"]


def engine_name(engine: Engine) -> str:
    """Return the engine's ``logging_name``, or its URL without what is secret."""
    return engine.logging_name or masked(engine.url)
