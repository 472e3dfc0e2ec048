"""What the doctor knows of a finding by its name, or of the text of an error."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict

from sa_railway.doctor.checks import KINDS
from sa_railway.doctor.findings import Kind
from sa_railway.doctor.text import render_kinds

_SHORTEST = 6  # characters; what is shorter is in too many texts
_VALUE = re.compile(r"<\w+>")


def explain(wanted: str, width: int, *, as_json: bool) -> bool:
    """Print what is known of *wanted*; return whether there is anything."""
    kinds = find_kinds(wanted)
    if as_json:
        print(json.dumps({"findings": [asdict(kind) for kind in kinds]}, indent=2))
    elif kinds:
        print(render_kinds(kinds, width))
    else:
        print("no finding has this name or stands for this text", file=sys.stderr)
    return bool(kinds)


def find_kinds(wanted: str) -> list[Kind]:
    """Return the kinds of findings that *wanted* names, or that stand for it as an error's text."""
    named = [kind for kind in KINDS if kind.code == wanted]
    return named or [kind for kind in KINDS if any(_fits(text, wanted) for text in kind.literal)]


def _fits(text: str, wanted: str) -> bool:
    """Return whether *text* is a part of *wanted*, as in a whole log, or the reverse."""
    if len(wanted) >= _SHORTEST and wanted.lower() in text.lower():
        return True
    pattern = ".+?".join(re.escape(part) for part in _VALUE.split(text))
    return re.search(pattern, wanted, re.IGNORECASE) is not None
