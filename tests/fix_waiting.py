"""Waiting for what comes by and by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Result = TypeVar("Result")


def wait_until(
    condition: Callable[[], Result | Literal[False] | None], seconds: float = 30
) -> Result:
    """Return what *condition* returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not become true within {seconds:g} s")
        time.sleep(0.01)
    return result
