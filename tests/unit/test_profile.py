"""Profiles: what is refused, what the environment may say, and what wins."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from sa_railway.config.profile import PROFILES, Profile, load_profile
from sa_railway.exc import ConfigurationError

FIELDS = ", ".join(knob.name for knob in fields(Profile))
VARIABLES = ", ".join(
    sorted(
        {"SA_RAILWAY_PROFILE"}
        | {f"SA_RAILWAY_{knob.name.upper()}" for knob in fields(Profile)}
        - {"SA_RAILWAY_NAME", "SA_RAILWAY_FAULT_KINDS"}
    )
)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("pool_size", 0, "1 or more"),
        ("pool_size", -1, "1 or more"),
        ("pool_size", True, "a whole number"),
        ("pool_size", 2.5, "a whole number"),
        ("pool_size", "5", "a whole number"),
        ("pool_size", None, "a whole number"),
        ("max_overflow", -2, "-1 or more"),
        ("pool_timeout", 0, "more than 0"),
        ("pool_timeout", -20.0, "more than 0"),
        ("pool_timeout", float("inf"), "a finite number"),
        ("pool_timeout", float("nan"), "a finite number"),
        ("pool_timeout", "20", "a number of seconds"),
        ("pool_recycle", -1, "more than 0"),
        ("recycle_jitter", -0.1, "0 or more"),
        ("recycle_jitter", 1.0, "0 or more and less than 1"),
        ("idle_release", 0, "more than 0"),
        ("pre_ping", 1, "True or False"),
        ("trust_idle", -1.0, "0 or more"),
        ("ping_timeout", 0.0, "more than 0"),
        ("connect_timeout", 0.5, "1 or more"),
        ("connect_patience", -1, "0 or more"),
        ("backoff_base", 0, "more than 0"),
        ("backoff_cap", 0, "more than 0"),
        ("breaker_pause", -1, "0 or more"),
        ("keepalives", "yes", "True or False"),
        ("keepalives_idle", 0, "1 or more"),
        ("keepalives_interval", 0, "1 or more"),
        ("keepalives_count", 0, "1 or more"),
        ("tcp_user_timeout", -1, "0 or more"),
        ("application_name", 5, "a string"),
        ("transaction_pooler", "no", "True or False"),
        ("fault_kinds", ["40001"], "a mapping of SQLSTATE to fault kind"),
    ],
)
def test_value_that_no_engine_could_work_with_is_refused(
    field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Profile(**{field: value})
    assert str(caught.value) == f"{field} is {value!r}; allowed: {allowed}"


def test_profile_is_a_value() -> None:
    profile = Profile()
    with pytest.raises(FrozenInstanceError):
        profile.pool_size = 2  # type: ignore[misc]
    assert replace(profile, pool_size=2) == Profile(pool_size=2)


def test_none_stands_for_off_or_derived() -> None:
    profile = Profile(idle_release=None, application_name=None)
    assert (profile.idle_release, profile.application_name) == (None, None)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("web", {}),
        ("worker", {"connect_patience": 60.0}),
        ("script", {"connect_patience": 60.0}),
        ("serverless", {"keepalives": False, "idle_release": 30.0}),
    ],
)
def test_named_profiles(name: str, differs: dict[str, Any]) -> None:
    assert load_profile(name, {}, {}) == Profile(name=name, **differs)
    assert name in PROFILES


def test_unknown_profile_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_profile("wep", {}, {})
    assert str(caught.value) == (
        "profile is 'wep'; allowed: web, worker, script, serverless (did you mean 'web'?)"
    )


@pytest.mark.parametrize("profile", [None, 3, ["web"]])
def test_profile_of_another_type_is_refused(profile: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_profile(profile, {}, {})
    assert str(caught.value) == (
        f"profile is {profile!r}; allowed: web, worker, script, serverless, or a Profile"
    )


def test_unknown_field_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_profile("web", {"pool_sise": 2}, {})
    assert str(caught.value) == (
        f"pool_sise is not a field of a profile (did you mean 'pool_size'?); allowed: {FIELDS}"
    )


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SA_RAILWAY_POOL_SIZE", "2", "pool_size", 2),
        ("SA_RAILWAY_POOL_TIMEOUT", " 2.5 ", "pool_timeout", 2.5),
        ("SA_RAILWAY_IDLE_RELEASE", "None", "idle_release", None),
        ("SA_RAILWAY_IDLE_RELEASE", "60", "idle_release", 60.0),
        ("SA_RAILWAY_PRE_PING", "off", "pre_ping", False),
        ("SA_RAILWAY_TRANSACTION_POOLER", "True", "transaction_pooler", True),
        ("SA_RAILWAY_APPLICATION_NAME", "shop", "application_name", "shop"),
        ("SA_RAILWAY_POOL_SIZE", " ", "pool_size", 5),
    ],
)
def test_environment_overrules_a_field(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(load_profile("web", {}, {variable: text}), field) == value
    assert getattr(load_profile(Profile(), {}, {variable: text}), field) == value


def test_environment_overrules_the_name_of_a_profile_but_not_one_built_by_hand() -> None:
    environ = {"SA_RAILWAY_PROFILE": " worker\n"}
    assert load_profile("web", {}, environ) == PROFILES["worker"]
    assert load_profile(Profile(name="mine"), {}, environ).name == "mine"


def test_override_wins_over_the_environment() -> None:
    assert load_profile("web", {"pool_size": 3}, {"SA_RAILWAY_POOL_SIZE": "2"}).pool_size == 3


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        (
            "SA_RAILWAY_POOL_SIZE",
            "many",
            "SA_RAILWAY_POOL_SIZE is 'many'; allowed: a whole number",
        ),
        (
            "SA_RAILWAY_POOL_TIMEOUT",
            "none",
            "SA_RAILWAY_POOL_TIMEOUT is 'none'; allowed: a number of seconds",
        ),
        ("SA_RAILWAY_PRE_PING", "maybe", "SA_RAILWAY_PRE_PING is 'maybe'; allowed: True or False"),
        ("SA_RAILWAY_POOL_SIZE", "0", "SA_RAILWAY_POOL_SIZE is 0; allowed: 1 or more"),
        (
            "SA_RAILWAY_RECYCLE_JITTER",
            "1",
            "SA_RAILWAY_RECYCLE_JITTER is 1.0; allowed: 0 or more and less than 1",
        ),
        (
            "SA_RAILWAY_PROFILE",
            "wbe",
            "SA_RAILWAY_PROFILE is 'wbe'; allowed: web, worker, script, serverless "
            "(did you mean 'web'?)",
        ),
        (
            "SA_RAILWAY_POOLSIZE",
            "5",
            "SA_RAILWAY_POOLSIZE is set, but there is no such setting "
            f"(did you mean 'SA_RAILWAY_POOL_SIZE'?); allowed: {VARIABLES}",
        ),
        (
            "SA_RAILWAY_PROFIL",
            "web",
            "SA_RAILWAY_PROFIL is set, but there is no such setting "
            f"(did you mean 'SA_RAILWAY_PROFILE'?); allowed: {VARIABLES}",
        ),
        (
            "SA_RAILWAY_NAME",
            "x",
            f"SA_RAILWAY_NAME is set, but there is no such setting; allowed: {VARIABLES}",
        ),
    ],
)
def test_variable_that_cannot_be_used_is_refused(variable: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_profile("web", {}, {variable: text})
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"RAILWAY_SERVICE_NAME": "shop"}, "shop"),
        ({"RAILWAY_SERVICE_NAME": "shop", "RAILWAY_REPLICA_ID": "1f0c"}, "shop-1f0c"),
        ({"RAILWAY_SERVICE_NAME": "shop", "PGAPPNAME": "cart"}, "cart"),
        ({"RAILWAY_SERVICE_NAME": "shop", "SA_RAILWAY_APPLICATION_NAME": "till"}, "till"),
    ],
)
def test_application_name_is_derived_from_the_service(
    environ: dict[str, str], expected: str | None
) -> None:
    assert load_profile("web", {}, environ).application_name == expected


def test_application_name_of_the_caller_is_kept() -> None:
    environ = {"RAILWAY_SERVICE_NAME": "shop"}
    assert load_profile("web", {"application_name": ""}, environ).application_name == ""
    assert load_profile(Profile(application_name="x"), {}, environ).application_name == "x"
