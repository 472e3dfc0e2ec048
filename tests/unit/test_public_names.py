"""What ``import sa_railway`` offers, and what it costs."""

import importlib
import inspect
import json
import os
import pkgutil
import pydoc
import subprocess
import sys
import types

import pytest
from marked import MARK

import sa_railway
from sa_railway import events, exc

PUBLIC = [
    "ConnectionBudget",
    "Fault",
    "HealthReport",
    "Profile",
    "check_health",
    "classify",
    "create_async_engine",
    "create_engine",
    "database_url",
    "engine_options",
    "events",
    "exc",
    "normalize_url",
    "plan_budget",
    "retry",
    "run_transaction",
    "wait_for_database",
]
FOREIGN = """
import json, sys, sqlalchemy
before = set(sys.modules)
import sa_railway
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(loaded - sys.stdlib_module_names)))
"""


def test_the_public_names():
    assert sorted(sa_railway.__all__) == sorted(PUBLIC)
    assert [name for name in PUBLIC if not hasattr(sa_railway, name)] == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"^module 'sa_railway' has no attribute 'no_such_name'$"
    ):
        _ = sa_railway.no_such_name


def test_importing_loads_no_framework_driver_or_cli():
    """It must bring nothing but itself: who imports it may use none of them."""
    run = subprocess.run([sys.executable, "-c", FOREIGN], capture_output=True, check=True)

    assert json.loads(run.stdout) == ["sa_railway"]


@pytest.mark.parametrize("module", [exc, events])
def test_a_module_lists_all_that_it_defines(module):
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }

    assert defined - {"Subscriber"} == set(module.__all__) - {"Subscriber"}


def functions(owner):
    """The functions that a module or a class defines, those of its classes included."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for member in vars(owner).values():
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        if type(member) is types.FunctionType and member.__module__ == module:
            yield member
        elif issubclass(type(member), type) and member.__module__ == module:
            yield from functions(member)


MODULES = [m.name for m in pkgutil.walk_packages(sa_railway.__path__, "sa_railway.")]


@pytest.mark.parametrize("name", [n for n in MODULES if not n.endswith("__main__")])
def test_no_signature_holds_the_environment(name):
    for function in functions(importlib.import_module(name)):
        defaults = [p.default for p in inspect.signature(function).parameters.values()]
        assert not any(default is os.environ for default in defaults), function


def test_help_shows_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", MARK)
    for subject in [sa_railway, *(getattr(sa_railway, name) for name in PUBLIC)]:
        assert "SECRET_KEY" not in pydoc.render_doc(subject)
