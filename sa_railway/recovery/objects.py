"""Give new objects of a session back what a transaction that was rolled back has taken from them.

A flush writes into a new object what the database has made: its key, defaults, a version; and it
takes what the relations of the object say as saved. A rollback makes the object new again, but
SQLAlchemy leaves all that in it. The next flush would insert those values, and a key that the
database insists on making itself is an error then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import Session


class NewObjects:
    """The new objects of one session, as they were before their first flush.

    Args:
        object_to_replay: called with a reason why the work cannot be run again: an object that was
            changed before it came into the session loses the change with the rollback.
    """

    def __init__(self, object_to_replay: Callable[[str], None]) -> None:
        self._object_to_replay = object_to_replay
        # with the object, whose id() would otherwise pass to another one
        self._before: dict[int, tuple[object, dict[str, Any]]] = {}
        self._restored: list[object] = []

    def listeners(self) -> dict[str, Callable[..., None]]:
        """Return the listeners for a session's events."""
        return {
            "before_flush": self._before_flush,
            "detached_to_persistent": self._detached_to_persistent,
            "persistent_to_transient": self._persistent_to_transient,
            "after_soft_rollback": self._after_soft_rollback,
        }

    def _before_flush(self, session: Session, _context: object, _instances: object) -> None:
        for instance in session.new:
            self._before.setdefault(id(instance), (instance, _columns_of(instance)))

    def _detached_to_persistent(self, _session: Session, instance: object) -> None:
        if inspect(instance).modified:
            self._object_to_replay(
                f"a {type(instance).__name__} was changed before it was added to the session, and "
                "has lost the change with the rollback; change it in the callback"
            )

    def _persistent_to_transient(self, _session: Session, instance: object) -> None:
        _, before = self._before.pop(id(instance), (None, None))
        if before is None:
            return
        values = inspect(instance).dict
        for name in _columns_of(instance):
            if name in before:
                values[name] = before[name]
            else:
                del values[name]
        self._restored.append(instance)

    def _after_soft_rollback(self, _session: Session, _transaction: object) -> None:
        """Set the relations once more, now that all of the objects are new again."""
        relations = [found for instance in self._restored for found in _take_relations(instance)]
        self._restored.clear()
        for instance, name, value in relations:
            setattr(instance, name, value)


def _take_relations(instance: object) -> Iterator[tuple[object, str, Any]]:
    """Remove what *instance* holds for its relations, and yield it."""
    state: Any = inspect(instance)
    for relation in state.mapper.relationships:
        if relation.key in state.dict and not relation.viewonly:
            value = state.dict.pop(relation.key)
            # a collection of the instance's own class could not be set once more
            plain = next((t for t in (list, set, dict) if isinstance(value, t)), lambda v: v)
            yield instance, relation.key, plain(value)


def _columns_of(instance: object) -> dict[str, Any]:
    """Return what *instance* holds for the columns of its table."""
    state: Any = inspect(instance)
    names = state.mapper.column_attrs.keys()
    return {name: state.dict[name] for name in names if name in state.dict}
