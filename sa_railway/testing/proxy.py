"""A TCP proxy in front of PostgreSQL that disturbs the connections through it, for tests."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from typing import Self, TypeVar

from sqlalchemy import URL, make_url

from sa_railway.exc import ConfigurationError
from sa_railway.testing.link import Traffic
from sa_railway.testing.relay import HOST, Address, Relay
from sa_railway.testing.toxics import (
    Answer,
    Cut,
    Down,
    Freeze,
    Latency,
    LimitData,
    ResetPeer,
    SlowClose,
    StreamName,
    Timeout,
    Toxic,
)

_Fault = TypeVar("_Fault", bound=Toxic)


class ChaosProxy:
    """A proxy on a free port of 127.0.0.1, in front of the server that *upstream* names.

    ::

        with ChaosProxy("postgresql://user:secret@localhost/db") as proxy:
            engine = create_engine(proxy.url)
            with proxy.cut(before="COMMIT"), pytest.raises(OperationalError):
                save_order(engine)

    It listens from the moment it is made, in its own daemon thread, until ``close()`` or the
    end of the ``with`` block. Each fault is a method that switches it on and returns a handle; the
    fault ends with ``handle.remove()``, with the ``with`` block that the handle is used in, or with
    ``restore()``. Faults add up. When a method returns, the fault is on for all connections that it
    concerns. All methods may be called from any thread of this process, but not in a forked child.

    Faults come in three kinds:

    * of a *stream*, which is ``"downstream"`` (to the client), ``"upstream"`` (to the server) or
      ``"both"``: ``latency``, ``timeout``, ``slow_close``, ``limit_data``;
    * of a connection, which is *live* or *new*: ``freeze``, ``reset_peer``, ``down``;
    * of a message of PostgreSQL's protocol, *times* times or, with None, every time: ``cut``,
      ``answer``. A connection that encrypts (TLS or GSSAPI) passes through, but its messages
      cannot be seen: these faults, and the counting of messages, need ``sslmode=disable``.

    A call that waits for the server without releasing Python's global lock never ends, since
    the proxy is a thread of the same process: ``cancel()`` of psycopg2 and psycopg does.

    Args:
        upstream: a URL of a PostgreSQL database that is reached by TCP, or a pair of host and port.
            If the host has several addresses, IPv4 goes first, and only the first one is used.

    Raises:
        ConfigurationError: the URL is not one of PostgreSQL, or has no host.
        OSError: the name of the host does not resolve.
    """

    def __init__(self, upstream: str | URL | tuple[str, int]) -> None:
        self._url = _parse(upstream)
        self._relay = Relay(_resolve(self._url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ChaosProxy {self.host}:{self.port} for {self._url.host}:{self._url.port}>"

    def close(self) -> None:
        """Close all sockets and end the thread. May be called twice; does nothing after a fork."""
        self._relay.close()

    @property
    def host(self) -> str:
        """Where it listens."""
        return HOST

    @property
    def port(self) -> int:
        """Where it listens; the same for all its life."""
        return self._relay.port

    @property
    def url(self) -> URL:
        """The URL that was given, with the host and port of the proxy."""
        return self._url.set(host=self.host, port=self.port)

    @property
    def connections(self) -> tuple[Traffic, ...]:
        """What has passed on each connection that is open to a client, the oldest first."""
        return tuple(link.traffic for link in tuple(self._relay.links) if link.live)

    @property
    def accepted(self) -> int:
        """How many connections there have been, those that are open included."""
        return self._relay.accepted

    @property
    def round_trips(self) -> int:
        """How often clients have waited for the server, on all connections there have been.

        One round trip is a burst of data from the client that is followed by data from the server;
        connecting takes some, too. It is counted before the client gets the data.
        """
        return self._relay.total.round_trips

    @property
    def messages(self) -> Counter[str]:
        """How many messages of each name there have been, and how often each SQL command was run.

        ``messages["Query"]`` and ``messages["COMMIT"]`` count the same message, if a COMMIT is sent
        as a Query. They are counted when they reach the proxy, whatever then becomes of them.
        """
        return self._relay.total.messages.copy()

    def wait_for(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait until *condition* is true, such as ``lambda: len(proxy.connections) == 2``.

        It is called in this thread, whenever something has happened in the proxy.

        Raises:
            TimeoutError: it is still false after *timeout* seconds.
        """
        if not self._relay.wait_for(condition, timeout):
            raise TimeoutError(
                f"The condition is still false after {timeout:g} seconds, with "
                f"{len(self.connections)} connections and these messages: {dict(self.messages)}"
            )

    def latency(
        self, seconds: float, *, jitter: float = 0.0, stream: StreamName = "downstream"
    ) -> Toxic:
        """Delay all data of *stream* by *seconds*, give or take up to *jitter* seconds at random.

        It delays without limiting: data that comes meanwhile is not held up by it. The system's
        timer may add up to a millisecond. When removed, what is on its way arrives at once.
        """
        return self._add(Latency(seconds, jitter, stream))

    def timeout(self, *, stream: StreamName = "downstream") -> Toxic:
        """Swallow all data of *stream*, which stays open: a black hole.

        What was swallowed stays lost after removal.
        """
        return self._add(Timeout(stream))

    def slow_close(self, seconds: float, *, stream: StreamName = "downstream") -> Toxic:
        """Delay the end of *stream* by *seconds*: the other side learns so much later of it."""
        return self._add(SlowClose(seconds, stream))

    def limit_data(self, size: int, *, stream: StreamName = "downstream") -> Toxic:
        """Close each connection when *size* more bytes have passed on its *stream*."""
        return self._add(LimitData(size, stream))

    def freeze(self, *, live: bool = True, new: bool = True) -> Toxic:
        """Hold everything back: connects succeed, data is acknowledged, no answer ever comes.

        No TCP setting of the client notices that. When removed, what was held is delivered.
        """
        return self._add(Freeze(live=live, new=new))

    def reset_peer(self, *, live: bool = True, new: bool = True) -> Toxic:
        """Send the client a TCP reset at once, and end the connection to the server in good order.

        ``reset_peer(new=False)`` does it once to all that are connected.
        """
        return self._add(ResetPeer(live=live, new=new))

    def down(self, *, live: bool = True, new: bool = True) -> Toxic:
        """Close the connections, and refuse new ones (``ECONNREFUSED``): the server is away.

        ``down(new=False)`` closes all that are connected, once.
        """
        return self._add(Down(live=live, new=new))

    def cut(
        self,
        *,
        before: str | None = None,
        after: str | None = None,
        of: str | None = None,
        nth: int = 1,
        times: int | None = 1,
        reset: bool = False,
    ) -> Cut:
        """End a connection right *before* or right *after* a message is passed on.

        All that goes before that point is delivered, nothing after it is, in neither direction. The
        server is given the time to read what it was sent, and then the end of the connection; so a
        COMMIT that was passed on is executed. The handle knows whether it has ``happened``.

        ================================================  =========================================
        ``cut(before="COMMIT")``                          the COMMIT never reaches the server
        ``cut(after="COMMIT")``                           the server gets it, the client no answer
        ``cut(before="CommandComplete", of="COMMIT")``    the server has committed, the answer is
                                                          lost
        ``cut(after="Query", of="INSERT", nth=2)``        the second INSERT is executed, its answer
                                                          is lost
        ================================================  =========================================

        Args:
            before: the name of a message as in PostgreSQL's documentation (``"Query"``,
                ``"Parse"``, ``"Execute"``, ``"ReadyForQuery"``), or the first word of an SQL
                command in capitals (``"BEGIN"``, ``"COMMIT"``, ``"INSERT"``), which stands for the
                Query or the Execute that runs it.
            after: the same. Exactly one of the two must be given.
            of: only messages of this SQL command: those that bring it to the server, its
                CommandComplete and the ReadyForQuery that follows; or the SQLSTATE of an
                ErrorResponse.
            nth: cut at every *nth* such message, counted over all connections.
            times: how many connections to cut; None for no end.
            reset: send the client a TCP reset; what its kernel had no room for yet is then lost.
        """
        return self._add(Cut(before, after, of, nth=nth, times=times, reset=reset))

    def answer(self, sqlstate: str, text: str | None = None, *, times: int | None = 1) -> Answer:
        """Answer the next *times* connects with the error *sqlstate*, without asking the server.

        Known texts are those of ``"57P03"`` (the database system is starting up) and ``"53300"``
        (sorry, too many clients already); others need a *text*. Clients that ask for encryption are
        told that there is none, so one that requires it (``sslmode=require``) gets no answer.
        """
        return self._add(Answer(sqlstate, text, times))

    def restore(self) -> None:
        """Remove all faults."""
        self._relay.remove_all()

    def _add(self, toxic: _Fault) -> _Fault:
        self._relay.add(toxic)
        toxic.on_remove = lambda: self._relay.remove(toxic)
        return toxic


def _parse(upstream: str | URL | tuple[str, int]) -> URL:
    if isinstance(upstream, tuple) and not isinstance(upstream, URL):  # a URL is a tuple, too
        return URL.create("postgresql", host=upstream[0], port=upstream[1])
    url = make_url(upstream)
    if not url.get_backend_name().startswith("postgres"):
        raise ConfigurationError(
            f"upstream is a URL for {url.get_backend_name()!r}; allowed: one for PostgreSQL"
        )
    if url.host is None or "host" in url.query:
        raise ConfigurationError(
            "upstream is a URL without a single host for TCP; allowed: one such as "
            "postgresql://user@host:5432/database"
        )
    return url.set(port=url.port or 5432)


def _resolve(url: URL) -> Address:
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    # "localhost" is ::1 first, where a server for tests seldom listens
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address
