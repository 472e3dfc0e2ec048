"""The faults of a ChaosProxy: what each does, and to which connections.

They decide and do not act: no sockets, no clock. Toxiproxy's words are used where it has one.
"""

from __future__ import annotations

import difflib
import random
import re
import threading
from collections.abc import Callable
from typing import Literal, Self, TypeVar, get_args

from sa_railway.exc import ConfigurationError
from sa_railway.testing.protocol import MESSAGE_NAMES, Message, command, fatal_error

Direction = Literal["upstream", "downstream"]
"""From client to server, or from server to client."""

StreamName = Literal[Direction, "both"]
"""What a fault of a stream is given."""

_TEXTS = {
    "53300": "sorry, too many clients already",
    "57P03": "the database system is starting up",
}


class Toxic:
    """A fault that is on until it is removed; as a context manager, until the end of the block.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self.on_remove: Callable[[], None] = lambda: None
        """What ``remove()`` does."""
        self.since = 0
        """How many connections there had been when it began."""

    def remove(self) -> None:
        """End the fault, for live connections as well. May be called twice."""
        self.on_remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _StreamToxic(Toxic):
    """A fault of one direction, or of both, of every connection."""

    def __init__(self, stream: StreamName) -> None:
        super().__init__()
        if stream not in get_args(StreamName):
            raise ConfigurationError(
                f"stream is {stream!r}; allowed: {', '.join(get_args(StreamName))}"
            )
        self._stream = stream

    def touches(self, stream: Direction) -> bool:
        """Return whether it is a fault of *stream*."""
        return self._stream in (stream, "both")


class Latency(_StreamToxic):
    """Data arrives later by *seconds*, give or take up to *jitter* seconds."""

    def __init__(self, seconds: float, jitter: float, stream: StreamName) -> None:
        super().__init__(stream)
        self._seconds = _at_least("seconds", seconds, 0)
        self._jitter = _at_least("jitter", jitter, 0)

    def draw(self) -> float:
        """Return the delay of the next piece of data, in seconds."""
        return max(0.0, self._seconds + random.uniform(-self._jitter, self._jitter))  # noqa: S311


class Timeout(_StreamToxic):
    """Data is swallowed."""


class SlowClose(_StreamToxic):
    """The end of a stream arrives later by *seconds*."""

    def __init__(self, seconds: float, stream: StreamName) -> None:
        super().__init__(stream)
        self.seconds = _at_least("seconds", seconds, 0)


class LimitData(_StreamToxic):
    """A connection ends after *size* more bytes of a stream."""

    def __init__(self, size: int, stream: StreamName) -> None:
        super().__init__(stream)
        self._size = _at_least("size", size, 0)
        self._passed: dict[object, int] = {}

    def take(self, stream: object, size: int) -> int | None:
        """Return how many of the next *size* bytes of *stream* pass before its end; None if all."""
        passed = self._passed.get(stream, 0)
        self._passed[stream] = passed + size
        return None if passed + size < self._size else self._size - passed


class _ConnectionToxic(Toxic):
    """A fault of connections that were there when it began (*live*), of later ones (*new*)."""

    def __init__(self, *, live: bool, new: bool) -> None:
        super().__init__()
        if not (live or new):
            raise ConfigurationError("live and new are False; allowed: at least one of them True")
        self._live = live
        self._new = new

    def touches(self, connection: int) -> bool:
        """Return whether it is a fault of the connection with the number *connection*."""
        return self._new if connection >= self.since else self._live


class Freeze(_ConnectionToxic):
    """Data is accepted and held back."""


class ResetPeer(_ConnectionToxic):
    """The client is sent a TCP reset."""


class Down(_ConnectionToxic):
    """Connections are closed, and new ones are refused."""


class Trigger(Toxic):
    """A fault that lies in wait until something happens, *times* times or (None) every time."""

    def __init__(self, times: int | None) -> None:
        super().__init__()
        self._left = None if times is None else _at_least("times", times, 1)
        self._happened = threading.Event()
        self.count = 0
        """How many times it has happened."""

    @property
    def happened(self) -> bool:
        """Whether it has happened at least once."""
        return self._happened.is_set()

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until it has happened at least once.

        Raises:
            TimeoutError: *timeout* seconds have passed.
        """
        if not self._happened.wait(timeout):
            raise TimeoutError(f"{self!r} has not happened within {timeout:g} seconds")

    @property
    def spent(self) -> bool:
        """Whether it will not happen any more."""
        return self._left == 0

    def pull(self) -> bool:
        """Return whether it may happen (once more), and reckon that it will."""
        if self.spent:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def record(self) -> None:
        """Say that it has happened."""
        self.count += 1
        self._happened.set()


class Cut(Trigger):
    """A connection ends right before or right after a message is passed on."""

    def __init__(
        self,
        before: str | None,
        after: str | None,
        of: str | None,
        *,
        nth: int,
        times: int | None,
        reset: bool,
    ) -> None:
        super().__init__(times)
        if (before is None) == (after is None):
            raise ConfigurationError(
                f"before is {before!r} and after is {after!r}; allowed: one of them"
            )
        self.after = after is not None
        self.reset = reset
        self._point = _point("before" if after is None else "after", before or after or "")
        self._of = of if of is None else command(of.encode()) or of
        self._nth = _at_least("nth", nth, 1)
        self._seen = 0

    def __repr__(self) -> str:
        of = f", of={self._of!r}" if self._of else ""
        return f"<cut {'after' if self.after else 'before'}={self._point!r}{of}>"

    def strikes(self, message: Message) -> bool:
        """Return whether the connection of *message* is to be cut here."""
        if self._point not in (message.name, message.runs):
            return False
        if self._of not in (None, message.of):
            return False
        self._seen += 1
        return self._seen % self._nth == 0 and self.pull()


class Answer(Trigger):
    """A connection gets an error instead of a server."""

    def __init__(self, sqlstate: str, text: str | None, times: int | None) -> None:
        super().__init__(times)
        if not re.fullmatch("[0-9A-Z]{5}", sqlstate):
            raise ConfigurationError(
                f"sqlstate is {sqlstate!r}; allowed: five digits or capitals, such as '57P03'"
            )
        if text is None and sqlstate not in _TEXTS:
            raise ConfigurationError(
                f"text is None, and there is no usual text for {sqlstate}; allowed: a string"
            )
        self._sqlstate = sqlstate
        self.data = fatal_error(sqlstate, _TEXTS[sqlstate] if text is None else text)

    def __repr__(self) -> str:
        return f"<answer {self._sqlstate!r}>"


_OfStream = TypeVar("_OfStream", bound=_StreamToxic)
_OfConnection = TypeVar("_OfConnection", bound=_ConnectionToxic)


class Toxics(list[Toxic]):
    """The faults of a proxy that are on, the oldest first."""

    def of_stream(self, kind: type[_OfStream], stream: Direction) -> list[_OfStream]:
        """Return those of *kind* that *stream* has."""
        return [toxic for toxic in self if isinstance(toxic, kind) and toxic.touches(stream)]

    def of_connection(self, kind: type[_OfConnection], number: int) -> list[_OfConnection]:
        """Return those of *kind* that the connection with *number* has."""
        return [toxic for toxic in self if isinstance(toxic, kind) and toxic.touches(number)]

    def cut(self, message: Message) -> Cut | None:
        """Return the cut that the connection of *message* gets here; it counts as spent."""
        cuts = (toxic for toxic in self if isinstance(toxic, Cut))
        return next((cut for cut in cuts if cut.strikes(message)), None)

    @property
    def may_answer(self) -> bool:
        """Whether ``answer()`` would return one."""
        return any(isinstance(toxic, Answer) and not toxic.spent for toxic in self)

    def answer(self) -> Answer | None:
        """Return the answer that a new connection gets; it counts as given."""
        answers = (toxic for toxic in self if isinstance(toxic, Answer))
        answer = next((answer for answer in answers if answer.pull()), None)
        if answer is not None:
            answer.record()
        return answer


def _point(name: str, value: str) -> str:
    """Return the point of a cut: a name of a message as it is, or an SQL command."""
    if value in MESSAGE_NAMES:
        return value
    if value.isupper() and command(value.encode()):
        return command(value.encode())
    close = difflib.get_close_matches(value, MESSAGE_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigurationError(
        f"{name} is {value!r}{hint}; allowed: an SQL command in capitals, such as 'COMMIT', or "
        f"a message: {', '.join(sorted(MESSAGE_NAMES))}"
    )


_Number = TypeVar("_Number", int, float)


def _at_least(name: str, value: _Number, least: int) -> _Number:
    if not value >= least:
        raise ConfigurationError(f"{name} is {value!r}; allowed: {least} or more")
    return value
