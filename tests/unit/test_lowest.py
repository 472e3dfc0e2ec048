"""The lowest versions that are allowed are those that are tested."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def lower_bounds():
    """Yield each dependency of the project that has a lower bound, with this bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        for one in requirement.specifier:
            if one.operator == ">=":
                yield canonicalize_name(requirement.name), one.version


def test_each_lower_bound_is_tested():
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pins = {pin.name: pin.specifier for pin in map(Requirement, lines[1:])}
    tested = {canonicalize_name(name): specifier for name, specifier in pins.items()}

    bounds = list(lower_bounds())
    assert [name for name, version in bounds if not tested[name].contains(version)] == []
    # the binaries of psycopg are a package of their own
    assert set(tested) == {name for name, _ in bounds} | {"psycopg-binary"}
