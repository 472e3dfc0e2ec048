"""What became of the requests of the demonstration, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from load import LIMIT, Results

__all__ = ["as_dict", "render"]


def render(
    steps: Sequence[str], results: Mapping[str, Results], stored: Mapping[str, int]
) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        steps: the titles of its rows.
        results: by the names of its columns.
        stored: how often each note is in the database.
    """
    lost, twice = _lost(results, stored), _twice(stored)
    yield _row("", [f"{variant:>18}" for variant in results])
    yield _row("", ["  answered  failed"] * len(results))
    for step in steps:
        yield _row(step, [f"{r.answered[step]:10}{r.failed[step]:8}" for r in results.values()])
    yield _row("total", [f"{r.answered.total():10}{r.failed.total():8}" for r in results.values()])
    yield ""
    yield _row("slowest answer, in seconds", [f"{r.slowest:18.1f}" for r in results.values()])
    yield _row("writes answered but lost", [f"{lost[name]:18}" for name in results])
    yield _row("writes stored twice", [f"{twice[name]:18}" for name in results])
    yield ""
    yield f"Failed: an error, or no answer within {LIMIT:g} s. Each fault strikes while no"
    yield "request is under way; one that is cut off midway may fail in every column."


def as_dict(
    steps: Sequence[str], results: Mapping[str, Results], stored: Mapping[str, int]
) -> dict[str, Any]:
    """Return the same as ``render()`` shows, in types that JSON knows, by the variant."""
    lost, twice = _lost(results, stored), _twice(stored)
    return {
        name: {
            "steps": {
                step: {"answered": result.answered[step], "failed": result.failed[step]}
                for step in steps
            },
            "slowest": round(result.slowest, 3),
            "lost": lost[name],
            "twice": twice[name],
        }
        for name, result in results.items()
    }


def _lost(results: Mapping[str, Results], stored: Mapping[str, int]) -> dict[str, int]:
    """Count the notes that a variant says it has stored, but that are not there."""
    return {name: sum(not stored[note] for note in r.stored) for name, r in results.items()}


def _twice(stored: Mapping[str, int]) -> Counter[str]:
    """Count the notes that are there more than once; they begin with the name of the variant."""
    return Counter(note.split()[0] for note, times in stored.items() if times > 1)


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<27}{''.join(cells)}".rstrip()
