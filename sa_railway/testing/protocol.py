"""PostgreSQL's frontend/backend protocol, as far as a proxy must read it.

Bytes go in, named messages come out: where they begin and end, what they are called in the chapter
"Message Formats" of PostgreSQL's documentation, and which SQL command they belong to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FRONTEND = {
    "B": "Bind",
    "C": "Close",
    "D": "Describe",
    "E": "Execute",
    "F": "FunctionCall",
    "H": "Flush",
    "P": "Parse",
    "Q": "Query",
    "S": "Sync",
    "X": "Terminate",
    "c": "CopyDone",
    "d": "CopyData",
    "f": "CopyFail",
    "p": "PasswordMessage",
}
_BACKEND = {
    "1": "ParseComplete",
    "2": "BindComplete",
    "3": "CloseComplete",
    "A": "NotificationResponse",
    "C": "CommandComplete",
    "D": "DataRow",
    "E": "ErrorResponse",
    "G": "CopyInResponse",
    "H": "CopyOutResponse",
    "I": "EmptyQueryResponse",
    "K": "BackendKeyData",
    "N": "NoticeResponse",
    "R": "Authentication",
    "S": "ParameterStatus",
    "T": "RowDescription",
    "V": "FunctionCallResponse",
    "W": "CopyBothResponse",
    "Z": "ReadyForQuery",
    "c": "CopyDone",
    "d": "CopyData",
    "n": "NoData",
    "s": "PortalSuspended",
    "t": "ParameterDescription",
    "v": "NegotiateProtocolVersion",
}
# These have no type byte: a length, then a code where the protocol version would be.
_STARTUP = {80877102: "CancelRequest", 80877103: "SSLRequest", 80877104: "GSSENCRequest"}
_LONGEST_STARTUP = 10_000  # the server refuses more, too: MAX_STARTUP_PACKET_LENGTH
_TLS_HANDSHAKE = 0x16

ENCRYPTION_REQUESTS = frozenset({"SSLRequest", "GSSENCRequest"})
"""The messages that ask whether the connection may be encrypted."""

REFUSED_ENCRYPTION = b"N"
"""The answer to a request for encryption that lets the client go on in the clear."""

MESSAGE_NAMES = frozenset(
    {*_FRONTEND.values(), *_BACKEND.values(), *_STARTUP.values(), "StartupMessage"}
)
"""The names that messages can have, of both directions."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, or a piece of a stream that cannot be read as messages.

    Attributes:
        name: as in PostgreSQL's documentation; empty for what cannot be read.
        data: all its bytes, with type and length.
        of: the SQL command that it carries or answers, such as ``"COMMIT"``; the SQLSTATE of an
            ErrorResponse or NoticeResponse; empty for others.
    """

    name: str
    data: bytes
    of: str = ""

    @property
    def runs(self) -> str:
        """The SQL command that the server runs on this message; empty if it runs none."""
        return self.of if self.name in ("Query", "Execute") else ""


class Conversation:
    """Both streams of one connection, read together because each decides how the other goes on.

    Once the server has agreed to encrypt, and also when something is not of this protocol, all
    further bytes come out as they go in, as messages without a name. Not for several threads.

    Attributes:
        opaque: whether that has happened.
    """

    def __init__(self) -> None:
        self.opaque = False
        self._sent = bytearray()
        self._received = bytearray()
        self._started = False
        self._negotiating = False
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._answered = ""

    def frontend(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that *data* from the client completes."""
        return self._split(self._sent, data, self._take_frontend)

    def backend(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that *data* from the server completes."""
        return self._split(self._received, data, self._take_backend)

    def _split(
        self, buffer: bytearray, data: bytes, take: Callable[[bytearray], Message | None]
    ) -> Iterator[Message]:
        buffer += data
        while buffer:
            message = Message("", bytes(buffer)) if self.opaque else take(buffer)
            if message is None:
                return
            del buffer[: len(message.data)]
            yield message

    def _take_frontend(self, buffer: bytearray) -> Message | None:
        return self._typed(buffer, _FRONTEND) if self._started else self._startup(buffer)

    def _take_backend(self, buffer: bytearray) -> Message | None:
        if not self._negotiating:
            return self._typed(buffer, _BACKEND)
        self._negotiating = False
        answer = bytes(buffer[:1])
        self.opaque = answer != REFUSED_ENCRYPTION
        return Message("", answer)

    def _startup(self, buffer: bytearray) -> Message | None:
        """Take a message without a type, as they come until the StartupMessage."""
        if buffer[0] == _TLS_HANDSHAKE:
            return self._give_up(buffer)
        if len(buffer) < 8:
            return None
        size, code = struct.unpack_from("!ii", buffer)
        if not 8 <= size <= _LONGEST_STARTUP:
            return self._give_up(buffer)
        if len(buffer) < size:
            return None
        name = _STARTUP.get(code, "StartupMessage")
        self._negotiating = name in ENCRYPTION_REQUESTS
        self._started = name == "StartupMessage"
        return Message(name, bytes(buffer[:size]))

    def _typed(self, buffer: bytearray, names: dict[str, str]) -> Message | None:
        if len(buffer) < 5:
            return None
        (size,) = struct.unpack_from("!i", buffer, 1)
        name = names.get(chr(buffer[0]))
        if name is None or size < 4:
            return self._give_up(buffer)
        if len(buffer) < 1 + size:
            return None
        data = bytes(buffer[: 1 + size])
        return Message(name, data, self._belongs_to(name, data))

    def _give_up(self, buffer: bytearray) -> Message:
        self.opaque = True
        return Message("", bytes(buffer))

    def _belongs_to(self, name: str, data: bytes) -> str:
        """Return ``Message.of``, and note what later messages refer to."""
        match name:
            case "Query":
                return command(data[5:])
            case "Parse":
                statement, _, sql = data[5:].partition(b"\0")
                self._statements[statement] = command(sql)
                return self._statements[statement]
            case "Bind":
                portal, _, rest = data[5:].partition(b"\0")
                self._portals[portal] = self._statements.get(rest.partition(b"\0")[0], "")
                return self._portals[portal]
            case "Execute":
                return self._portals.get(data[5:].partition(b"\0")[0], "")
            case "CommandComplete":
                self._answered = command(data[5:])
                return self._answered
            case "ReadyForQuery":
                answered, self._answered = self._answered, ""
                return answered
            case "ErrorResponse" | "NoticeResponse":
                return _sqlstate(data[5:])
        return ""


_PRELUDE = re.compile(rb"(?:\s|;|\(|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
_WORDS = re.compile(rb"[A-Z_]\w*(?:\s+[A-Z_]\w*){0,2}")
_SYNONYMS = {"ABORT": "ROLLBACK", "END": "COMMIT", "START": "BEGIN"}


def command(text: bytes) -> str:
    """Return the SQL command that *text*, a statement or a command tag, begins with.

    It is the first word in capitals; what means the same has one name (``COMMIT`` for ``END``,
    ``ROLLBACK`` for ``ABORT``, ``BEGIN`` for ``START TRANSACTION``). Only what must not be taken
    for the end of a transaction keeps two words: ``ROLLBACK TO``, ``COMMIT PREPARED``,
    ``ROLLBACK PREPARED``, ``PREPARE TRANSACTION``.
    """
    prelude = _PRELUDE.match(text)
    start = prelude.end() if prelude else 0
    found = _WORDS.match(text[start : start + 64].upper())
    if found is None:
        return ""
    words = found[0].decode().split()
    first = _SYNONYMS.get(words[0], words[0])
    match [first, *words[1:]]:
        case ["COMMIT" | "ROLLBACK", "PREPARED", *_] | ["PREPARE", "TRANSACTION", *_]:
            return f"{first} {words[1]}"
        case ["ROLLBACK", "TO", *_] | ["ROLLBACK", "WORK" | "TRANSACTION", "TO"]:
            return "ROLLBACK TO"
    return first


def _sqlstate(fields: bytes) -> str:
    for field in fields.split(b"\0"):
        if field.startswith(b"C"):
            return field[1:].decode()
    return ""


def fatal_error(sqlstate: str, text: str) -> bytes:
    """Return an ErrorResponse of severity FATAL, as a server sends it before it hangs up."""
    fields = "".join(f"{field}\0" for field in ("SFATAL", "VFATAL", f"C{sqlstate}", f"M{text}"))
    body = fields.encode() + b"\0"
    return b"E" + struct.pack("!i", 4 + len(body)) + body
