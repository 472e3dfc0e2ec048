"""What a command is doing, on a terminal and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def shown_progress() -> Iterator[Callable[[str], object]]:
    """Yield a function that shows, on standard error, the title of what is being examined."""
    if not sys.stderr.isatty():
        yield lambda title: None
    elif has_rich():
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield lambda title: status.update(f"examining: {title}")
    else:
        try:
            yield lambda title: _overwrite(f"examining: {title}")
        finally:
            _overwrite("")


def has_rich() -> bool:
    """Return whether the extra ``cli`` is installed."""
    return find_spec("rich") is not None


def _overwrite(line: str) -> None:
    """Put *line* in place of the terminal's last one, and stay there."""
    print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
