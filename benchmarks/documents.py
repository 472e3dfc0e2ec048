"""Put the table of a benchmark into the documents."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["put"]


def put(mark: str, table: str, *names: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in the documents."""
    for name in names:
        path = Path(__file__).parents[1] / name
        found, number = re.subn(
            rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)",
            lambda match: f"{match[1]}{table}\n{match[2]}",
            path.read_text(),
            flags=re.DOTALL,
        )
        if not number:
            raise SystemExit(f"{name} has no marks <!-- {mark} --> for the table")
        path.write_text(found)
