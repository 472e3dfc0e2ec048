"""What an engine was made with, for code that meets the engine later."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Engine

from sa_railway.config.masking import masked
from sa_railway.config.profile import Profile, load_profile


class _State(NamedTuple):
    name: str
    profile: Profile


# By the dialect, which an engine and its copies with other execution options have in common.
_states: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()


def remember(engine: Engine, profile: Profile) -> None:
    """Note that *engine* was made with *profile*."""
    _states[engine.dialect] = _State(_name(engine), profile)


def engine_name(engine: Engine) -> str:
    """Return what logs and events call *engine*: its ``logging_name``, or its URL, masked."""
    state = _states.get(engine.dialect)
    return state.name if state else _name(engine)


def _name(engine: Engine) -> str:
    return engine.logging_name or masked(engine.url)


def has_plugin(engine: Engine) -> bool:
    """Return whether *engine* was made with the plugin, without which nothing protects it."""
    return engine.dialect in _states


def profile_of(engine: Engine) -> Profile:
    """Return the profile of *engine*; without the plugin, ``web`` as the environment changes it.

    Raises:
        ConfigurationError: there is no profile yet, and the environment holds a bad one.
    """
    state = _states.get(engine.dialect)
    return state.profile if state else load_profile("web", {}, os.environ)


def fault_kinds_of(engine: Engine) -> Mapping[str, str]:
    """Return what *engine* overrules of the meaning of errors; without the plugin, nothing."""
    state = _states.get(engine.dialect)
    return state.profile.fault_kinds if state else {}
