"""One connection through a ChaosProxy: two sockets and the streams between them.

Everything here runs in the proxy's thread and never blocks.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sa_railway.testing.protocol import (
    ENCRYPTION_REQUESTS,
    REFUSED_ENCRYPTION,
    Conversation,
    Message,
)
from sa_railway.testing.stream import END, End, Stream
from sa_railway.testing.toxics import Freeze, Toxics

_CHUNK = 65536


@dataclass
class Traffic:
    """What has passed; it goes on counting while you look.

    Attributes:
        round_trips: how often the client has waited for the server: bursts of data from the client
            that were followed by data from the server.
        messages: how many there were of each message by name, and of each SQL command that was
            run, such as ``messages["COMMIT"]``. What is encrypted is not seen.
    """

    round_trips: int = 0
    messages: Counter[str] = field(default_factory=Counter)

    def count(self, message: Message) -> None:
        """Add *message*."""
        for name in filter(None, (message.name, message.runs)):
            self.messages[name] += 1


class Link:
    """A client's connection, and the one to the server that is opened when data is due there.

    Args:
        number: how many connections the proxy had accepted before.
        client: the accepted socket.
        connect: gives a socket that is or will be connected to the server.
        toxics: the faults of the proxy.
        total: the traffic of the proxy.
        selector: where the sockets are watched; its data are functions to call when readable.
    """

    def __init__(
        self,
        number: int,
        client: socket.socket,
        connect: Callable[[], socket.socket],
        toxics: Toxics,
        total: Traffic,
        selector: selectors.BaseSelector,
    ) -> None:
        self.number = number
        self.traffic = Traffic()
        self._client: socket.socket | None = client
        self._server: socket.socket | None = None
        self._connect = connect
        self._toxics = toxics
        self._total = total
        self._selector = selector
        self._upstream = Stream("upstream", toxics)
        self._downstream = Stream("downstream", toxics)
        self._conversation = Conversation()
        self._awaited = False

    @property
    def live(self) -> bool:
        """Whether the client is connected."""
        return self._client is not None

    @property
    def gone(self) -> bool:
        """Whether both sides are closed."""
        return self._client is None and self._server is None

    @property
    def due(self) -> float | None:
        """When there is something to send next."""
        if not self.live or self._frozen:
            return None
        dues = (self._upstream.due, self._downstream.due)
        return min((due for due in dues if due is not None), default=None)

    def hurry(self) -> None:
        """Send what is delayed at the next ``pump()``."""
        self._upstream.hurry()
        self._downstream.hurry()

    def pump(self) -> None:
        """Send what is due, end the connection if that is due, and watch for what comes next."""
        if self._client is not None and not self._frozen:
            end = self._downstream.send(self._client.send) or self._upstream.send(self._to_server)
            if end:
                self.end(end)
        self._watch()

    def end(self, end: End) -> None:
        """Close the client's side; let the server read all that it was sent, and then the end.

        Closing the server's side while its answer is on the way would reset that connection, and a
        reset may make the server's kernel drop what the server has not read yet.
        """
        if self._client is None:
            return
        if self._server is not None:
            try:
                self._server.shutdown(socket.SHUT_WR)
            except OSError:
                self._close_server()
        # before the client can know, so that its error finds the trigger set
        if end.trigger is not None:
            end.trigger.record()
        self._close_client(reset=end.reset)
        self._watch()

    def close(self) -> None:
        """Close both sides at once."""
        self._close_client(reset=False)
        self._close_server()

    @property
    def _frozen(self) -> bool:
        return bool(self._toxics.of_connection(Freeze, self.number))

    def _to_server(self, data: bytes) -> int:
        if self._server is None:
            self._server = self._connect()
        return self._server.send(data)

    def _read_client(self) -> None:
        data = _receive(self._client)
        if data:
            self._awaited = True
            self._forward(self._upstream, self._unanswered(self._conversation.frontend(data)))
        elif data is not None:
            self._upstream.end(END)

    def _read_server(self) -> None:
        data = _receive(self._server)
        if data is None:
            return
        if not self.live:
            if not data:
                self._close_server()
        elif not data:
            self._downstream.end(END)
        else:
            if self._awaited:
                self._awaited = False
                self.traffic.round_trips += 1
                self._total.round_trips += 1
            self._forward(self._downstream, self._conversation.backend(data))

    def _forward(self, stream: Stream, messages: Iterator[Message]) -> None:
        """Put *messages* into the line of *stream*, up to where the connection is cut."""
        data = bytearray()
        cut = None
        for message in messages:
            self._count(message)
            cut = self._toxics.cut(message)
            if cut is None or cut.after:
                data += message.data
            if cut is not None:
                break
        stream.push(bytes(data))
        if cut is not None:
            stream.end(End(cut, cut.reset))

    def _unanswered(self, messages: Iterator[Message]) -> Iterator[Message]:
        """Yield what the server is to get, and answer the rest in its place."""
        for message in messages:
            if message.name in ENCRYPTION_REQUESTS and self._toxics.may_answer:
                # a request to cancel may follow as well, which is none of ours
                self._count(message)
                self._forward(self._downstream, self._conversation.backend(REFUSED_ENCRYPTION))
            elif message.name == "StartupMessage" and (answer := self._toxics.answer()):
                self._count(message)
                self._downstream.push(answer.data)
                self._downstream.end(END)
            else:
                yield message

    def _watch(self) -> None:
        """Tell the selector what this connection waits for."""
        reads, writes = selectors.EVENT_READ, selectors.EVENT_WRITE
        movable = not self._frozen
        if self._client is not None:
            events = reads * (not (self._upstream.ends or self._upstream.full))
            events |= writes * (self._downstream.blocked and movable)
            _register(self._selector, self._client, events, self._read_client)
        if self._server is not None:
            listens = not self.live or not (self._downstream.ends or self._downstream.full)
            events = reads * listens | writes * (self.live and self._upstream.blocked and movable)
            _register(self._selector, self._server, events, self._read_server)

    def _count(self, message: Message) -> None:
        self.traffic.count(message)
        self._total.count(message)

    def _close_client(self, *, reset: bool) -> None:
        # not live any more before the client can know
        client, self._client = self._client, None
        if client is not None:
            _register(self._selector, client, 0, self._read_client)
            _hang_up(client, reset=reset)

    def _close_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            _register(self._selector, server, 0, self._read_server)
            _hang_up(server, reset=False)


def _receive(sock: socket.socket | None) -> bytes | None:
    """Return what *sock* has to read: None if nothing yet, no bytes if it has ended in any way."""
    if sock is None:
        return None
    try:
        return sock.recv(_CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _hang_up(sock: socket.socket, *, reset: bool) -> None:
    """Close *sock*, with a TCP reset or in good order."""
    with contextlib.suppress(OSError):
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            # for copies of the descriptor in forked children, which would keep it open
            sock.shutdown(socket.SHUT_RDWR)
            # for the peer: a socket that is closed with unread data resets the connection
            while sock.recv(_CHUNK):
                pass
    sock.close()


def _register(
    selector: selectors.BaseSelector, sock: socket.socket, events: int, data: Callable[[], None]
) -> None:
    """Watch *sock* for *events*, which may be none; *data* is called when it is readable."""
    key = selector.get_map().get(sock)
    if key is None:
        if events:
            selector.register(sock, events, data)
    elif not events:
        selector.unregister(sock)
    elif key.events != events:
        selector.modify(sock, events, data)
