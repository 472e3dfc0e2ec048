"""The README and the book say what the code does."""

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import sa_railway
from sa_railway import Profile
from sa_railway.config.profile import PROFILES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_options_is_that_of_the_profile():
    attributes = (inspect.getdoc(Profile) or "").split("Attributes:")[1]
    reasons = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", attributes, re.S | re.M))
    expected = [
        f"| `{knob.name}` | {getattr(Profile(), knob.name)!r} "
        f"| {' '.join(reasons[knob.name].split()).replace('``', '`')} |"
        for knob in fields(Profile)
        if knob.name != "name"
    ]
    table = CONFIGURATION.split("<!-- options -->")[1].split("<!-- /options -->")[0]

    assert table.strip().splitlines()[2:] == expected


@pytest.mark.parametrize("path", PAGES)
def test_no_table_waits_to_be_written(path):
    """Those between marks are written by benchmarks and by tests/commit_model.py."""
    for name, content in re.findall(
        r"<!-- ([\w-]+) -->\n(.*?)<!-- /\1 -->", path.read_text(), re.S
    ):
        assert content.strip(), name
    marks = re.findall(r"<!-- (/?)([\w-]+) -->", path.read_text())
    assert [name for end, name in marks if end] == [name for end, name in marks if not end]


def test_every_profile_is_named():
    table = CONFIGURATION.split("| profile | differs from `web` |")[1].split("\n\n")[0]

    assert {name for name in PROFILES if f"`{name}`" in table} == set(PROFILES)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_files_it_names_exist(page):
    for path in re.findall(
        r"(?<![\w/])(?:tests|benchmarks|examples|docs)/[\w./]+", page.read_text()
    ):
        assert (ROOT / path.rstrip(".")).exists(), path


def test_every_page_is_in_the_book():
    listed = re.findall(r"^([a-z]+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)

    assert sorted(listed) == sorted(page.stem for page in PAGES[1:] if page.stem != "index")


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "api.md").read_text()
    named = re.findall(
        r"auto(?:function|class|module):: sa_railway\.(\w+)$", reference, re.MULTILINE
    )

    assert set(sa_railway.__all__) <= set(named)


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert sa_railway.__version__ == project["version"]


def test_the_changelog_has_an_entry():
    assert re.search(
        r"^## \[(Unreleased|\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
