"""What is known of a driver's connections, each told from all others by its identity."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

Value = TypeVar("Value")


class Known(dict[int, Value]):
    """Values by the ``id()`` of a connection, for as long as the connection lives.

    An application's own class may compare its connections as it likes, and need not be hashable,
    so neither a ``WeakKeyDictionary`` nor a ``WeakSet`` can tell them apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, weakref.ref[Any]] = {}

    def add(self, connection: Any, value: Value) -> None:
        """Keep *value* for *connection*.

        Raises:
            TypeError: the class of *connection* allows no weak references to it.
        """
        key = id(connection)
        # called before the memory, and with it the id, can be another object's
        reference = weakref.ref(connection, lambda _: self._forget(key))
        self[key] = value  # first: another thread may fork between the two
        self._alive[key] = reference

    def living(self) -> Iterator[tuple[Any, Value]]:
        """Yield the connections that are alive, each with its value."""
        for key, reference in list(self._alive.items()):
            connection = reference()
            if connection is not None:
                yield connection, self[key]

    def clear(self) -> None:
        """Forget all connections."""
        super().clear()
        self._alive.clear()

    def _forget(self, key: int) -> None:
        self.pop(key, None)
        self._alive.pop(key, None)
