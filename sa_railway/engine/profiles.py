"""The profile that an engine was made with, for code that meets the engine later."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from sa_railway.config.profile import Profile, load_profile

__all__ = ["fault_kinds_of", "has_plugin", "profile_of", "remember_profile"]

# By the dialect, which an engine and its copies with other execution options have in common.
_profiles: weakref.WeakKeyDictionary[Any, Profile] = weakref.WeakKeyDictionary()


def remember_profile(engine: Engine, profile: Profile) -> None:
    """Note that *engine* was made with *profile*."""
    _profiles[engine.dialect] = profile


def has_plugin(engine: Engine) -> bool:
    """Return whether *engine* was made with the plugin, without which nothing protects it."""
    return engine.dialect in _profiles


def profile_of(engine: Engine) -> Profile:
    """Return the profile of *engine*; without the plugin, ``web`` as the environment changes it.

    Raises:
        ConfigurationError: there is no profile yet, and the environment holds a bad one.
    """
    return _profiles.get(engine.dialect) or load_profile("web", {}, os.environ)


def fault_kinds_of(engine: Engine) -> Mapping[str, str]:
    """Return what *engine* overrules of the meaning of errors; without the plugin, nothing."""
    profile = _profiles.get(engine.dialect)
    return profile.fault_kinds if profile else {}
