"""How often, how long and how patiently work is run again: the presets of ``retry()``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sa_railway.config.profile import suggest
from sa_railway.exc import ConfigurationError

__all__ = ["PRESETS", "Limits", "find_limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers of one ``retry()``, which documents them. Times are seconds."""

    attempts: int
    deadline: float
    backoff_base: float
    backoff_cap: float

    def __post_init__(self) -> None:
        """Refuse what makes no attempt, or no end."""
        if type(self.attempts) is not int or self.attempts < 1:  # True is an int, too
            raise ConfigurationError(
                f"attempts is {self.attempts!r}; allowed: a whole number, 1 or more"
            )
        for name in ("deadline", "backoff_base", "backoff_cap"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigurationError(f"{name} is {value!r}; allowed: more than 0 seconds")


PRESETS: Mapping[str, Limits] = {
    # the deadline is below Gunicorn's worker timeout of 30: a client waits for the answer
    "query": Limits(attempts=3, deadline=20.0, backoff_base=0.5, backoff_cap=5.0),
    # the deadline is that of wait_for_database()
    "startup": Limits(attempts=5, deadline=120.0, backoff_base=2.0, backoff_cap=32.0),
}


def find_limits(preset: str, **overrides: Any) -> Limits:
    """Return the limits of *preset*, with those *overrides* that are not None.

    Raises:
        ConfigurationError: there is no such preset, or a number cannot be used.
    """
    if preset not in PRESETS:
        raise ConfigurationError(
            f"preset is {preset!r}; allowed: {', '.join(PRESETS)}{suggest(preset, PRESETS)}"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(PRESETS[preset], **given)
