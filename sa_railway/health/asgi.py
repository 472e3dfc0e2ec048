"""The health endpoints as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from sa_railway.health.endpoints import Answer, by_name, route
from sa_railway.health.probe import start_probe_in_loop

if TYPE_CHECKING:
    from sa_railway.health.endpoints import Engines

Message = Mapping[str, Any]


class HealthApp:
    """``HealthApp(engine)``, to be mounted anywhere; it answers whatever ends with their names.

    It neither blocks the event loop nor uses the pool. Nothing has to be started or stopped.

    Args:
        engines: one engine, of asyncio or not, or several by the names they shall have.
        token: a client that sends it may see ``database``; None takes the environment variable
            ``RAILWAY_HEALTH_TOKEN``.
        debug: whether every client may; on Railway, none may without the token.
    """

    def __init__(self, engines: Engines, *, token: str | None = None, debug: bool = False) -> None:
        self._engines = by_name(engines)
        self._token = token
        self._debug = debug

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"HealthApp answers HTTP only; this is of type {scope['type']!r}")
        answer = await self._answer(scope)
        body = answer.body.encode()
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(body)),
            **answer.headers,
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Message) -> Answer:
        found = route(
            self._engines,
            scope["path"],
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            dict(parse_qsl(scope["query_string"].decode("latin-1"))),
            token=self._token,
            debug=self._debug,
        )
        if isinstance(found, Answer):
            return found
        pending = {name: start_probe_in_loop(engine) for name, engine in self._engines.items()}
        return found({name: await probe.wait_async() for name, probe in pending.items()})
