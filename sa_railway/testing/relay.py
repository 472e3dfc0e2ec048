"""The thread of a ChaosProxy: it owns the listening socket, the connections and the faults."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from sa_railway.testing.link import Link, Traffic
from sa_railway.testing.stream import END, RESET
from sa_railway.testing.toxics import Down, Latency, ResetPeer, SlowClose, Toxic, Toxics

HOST = "127.0.0.1"
Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""The family of a socket, and what it may connect to."""


class Relay:
    """Accepts connections on a free port of ``HOST`` and links each to the server at *address*.

    One thread does everything, so a change of the faults is never half seen. The methods and
    attributes here are for other threads; what is private runs in the relay's own.

    Attributes:
        port: where it listens.
        accepted: how many connections there have been.
        links: the connections, the oldest first; replaced rather than changed when one goes.
        total: what has passed on all connections.
    """

    def __init__(self, address: Address) -> None:
        self.accepted = 0
        self.links: list[Link] = []
        self.total = Traffic()
        self._address = address
        self._toxics = Toxics()
        self._listener: socket.socket | None = None
        # Bound to the port without listening: while down, nothing else can get it.
        self._reservation = _bind(0)
        self.port: int = self._reservation.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._selector.register(self._wakened, selectors.EVENT_READ, self._obey)
        self._orders: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._open = True
        self._gate = threading.Lock()
        self._turned = threading.Condition()
        self._turns = 0
        self._apply()
        self._thread = threading.Thread(
            target=self._serve, name=f"chaos-proxy-{self.port}", daemon=True
        )
        self._thread.start()

    def add(self, toxic: Toxic) -> None:
        """Switch *toxic* on.

        Raises:
            RuntimeError: the relay is closed, or belongs to the process that this one is a fork of.
        """
        if not self._order(lambda: self._add(toxic)):
            raise RuntimeError("This proxy is closed, or belongs to the parent of this process")

    def remove(self, toxic: Toxic) -> None:
        """Switch *toxic* off, if it is on."""
        self._order(lambda: self._remove([toxic]))

    def remove_all(self) -> None:
        """Switch every fault off."""
        self._order(lambda: self._remove(self._toxics))

    def close(self) -> None:
        """Close all sockets and end the thread. May be called twice; does nothing after a fork."""
        self._order(self._stop)
        self._thread.join()

    def wait_for(self, condition: Callable[[], object], timeout: float) -> bool:
        """Call *condition* after each turn of the thread until it is true; return whether it is."""
        deadline = time.monotonic() + timeout
        while True:
            # taken first, or what happens while the condition is looked at would be missed
            seen = self._turns
            if condition():
                return True
            with self._turned:
                while self._turns == seen:
                    if not self._turned.wait(deadline - time.monotonic()):
                        return False

    def _order(self, action: Callable[[], None]) -> bool:
        """Wait until the thread has run *action*; return False if there is no thread any more."""
        done: Future[None] = Future()
        if not self._thread.is_alive():
            return False
        with self._gate:
            if not self._open:
                return False
            self._orders.append((done, action))
            self._waker.send(b"\0")
        done.result()
        return True

    def _serve(self) -> None:
        try:
            while self._open:
                self._turn()
        finally:
            self._shut()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._pause()):
            if events & selectors.EVENT_READ:
                key.data()
        for link in self.links:
            link.pump()
        self.links = [link for link in self.links if not link.gone]
        with self._turned:
            self._turns += 1
            self._turned.notify_all()

    def _pause(self) -> float | None:
        """Return the seconds until something is due, or None."""
        dues = [due for link in self.links if (due := link.due) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _obey(self) -> None:
        self._wakened.recv(4096)
        while self._orders:
            done, action = self._orders.popleft()
            try:
                action()
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)

    def _add(self, toxic: Toxic) -> None:
        toxic.since = self.accepted
        self._toxics.append(toxic)
        self._apply()

    def _remove(self, toxics: Iterable[Toxic]) -> None:
        removed = [toxic for toxic in toxics if toxic in self._toxics]
        self._toxics[:] = [toxic for toxic in self._toxics if toxic not in removed]
        if any(isinstance(toxic, Latency | SlowClose) for toxic in removed):
            for link in self.links:
                link.hurry()
        self._apply()

    def _apply(self) -> None:
        """Bring the listener and the connections into the state that the faults ask for."""
        if self._toxics.of_connection(Down, self.accepted):
            self._deafen()
        elif self._listener is None:
            self._listen()
        for link in self.links:
            if self._toxics.of_connection(Down, link.number):
                link.end(END)
            elif self._toxics.of_connection(ResetPeer, link.number):
                link.end(RESET)

    def _listen(self) -> None:
        self._listener = _bind(self.port)
        self._listener.listen(128)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _deafen(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            with contextlib.suppress(OSError):
                # for copies of the descriptor in forked children, which would go on listening
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        try:
            client = self._listener and self._listener.accept()[0]
        except OSError:  # the client has given up already
            return
        if client is None:  # an order of the same turn has closed the listener
            return
        _prepare(client)
        self.links.append(
            Link(self.accepted, client, self._connect, self._toxics, self.total, self._selector)
        )
        self.accepted += 1
        self._apply()

    def _connect(self) -> socket.socket:
        family, address = self._address
        server = socket.socket(family, socket.SOCK_STREAM)
        _prepare(server)
        server.connect_ex(address)  # the first send or receive shows how that went
        return server

    def _stop(self) -> None:
        self._open = False

    def _shut(self) -> None:
        with self._gate:
            self._open = False
            for done, _ in self._orders:
                done.set_result(None)
        self._deafen()
        for link in self.links:
            link.close()
        self._selector.close()
        for sock in (self._reservation, self._waker, self._wakened):
            sock.close()


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    return sock


def _prepare(sock: socket.socket) -> None:
    sock.settimeout(0)
    # a message is often several segments, and must not wait for an acknowledgement
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
