"""Keep a hook that fails from breaking the checkout it was called in."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.exc import DisconnectionError

logger = logging.getLogger("sa_railway.engine")

Hook = TypeVar("Hook", bound=Callable[..., Any])


def never_raises(hook: Hook) -> Hook:
    """Log the first failure of *hook* and swallow all of them.

    ``DisconnectionError`` passes: by it a pool listener says that a connection must be replaced.
    """
    failed = False

    @functools.wraps(hook)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        try:
            return hook(*args, **kwargs)
        except DisconnectionError:
            raise
        except Exception:
            if not failed and not sys.is_finalizing():  # when nothing can be imported any more
                failed = True
                logger.exception(
                    "%s failed and was passed over; its further failures are not logged",
                    hook.__qualname__,
                )
            return None

    return call  # type: ignore[return-value]  # wraps() keeps the signature, which mypy cannot see
