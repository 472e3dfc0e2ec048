"""What a user reads is plain: words that this project does not use."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
MODULES = [*(ROOT / "sa_railway").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
SOURCES = sorted([*PAGES, *MODULES])
AVOIDED = re.compile(
    r"\b(who|whoever|whose it is|nobody|somebody|anybody|everybody|anew|for ever"
    r"|of (?:its|their|your|our|his|her)\s+own\b(?! \w)|(?:is|are) told)\b",
    re.IGNORECASE,
)
# not words but the names of a user of the machine, and of a query
NAMES = re.compile(r'"nobody"|`nobody`|nobody\.|nobody =')


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_word_is_used_that_the_project_avoids(path):
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if AVOIDED.search(NAMES.sub("", line))
    ]

    assert found == []


def test_the_words_are_found_where_they_stand():
    for text in ("a user who waits", "Nobody knows", "draws itself anew", "a port of its own."):
        assert AVOIDED.search(text), text
