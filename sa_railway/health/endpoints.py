"""The health endpoints without a web framework.

``live`` asks nothing, ``ready`` asks the server, ``database`` tells all that is known, as JSON or,
to a browser, as a page. ``respond()`` finds out by the last part of a path which one is meant, so
they may be put below any prefix.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from sa_railway.config.token import configured_token, may_see, refusal_text
from sa_railway.engine.state import profile_of
from sa_railway.health.history import round_trips, statements
from sa_railway.health.page import DatabaseView, content_security_policy, render
from sa_railway.health.probe import Probe, start_probe
from sa_railway.health.readiness import Readiness, readiness
from sa_railway.health.report import HealthReport, Status, build_report, counted_sync_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    Engines = Engine | AsyncEngine | Mapping[str, Engine | AsyncEngine]


_QUALITY = re.compile(r"[01](\.\d*)?")


@dataclass(frozen=True)
class Answer:
    """What to send back.

    Attributes:
        status: of HTTP.
        body: text, to be encoded as UTF-8.
        content_type: of the body.
        headers: what else to send.
    """

    status: int
    body: str
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=lambda: {"Cache-Control": "no-store"})


Probes = Mapping[str, Probe]


def respond(
    engines: Engines,
    path: str,
    headers: Iterable[tuple[str, str]] = (),
    query: Mapping[str, str] | None = None,
    *,
    token: str | None = None,
    debug: bool = False,
) -> Answer:
    """Answer a GET for one of the endpoints; 404 if *path* ends with none of them.

    It returns within the profile's ``probe_timeout``, whatever the server and the pool do. Any
    thread may call it, and a forked child.

    Args:
        engines: one engine, or several by the names they shall have.
        path: of the URL.
        headers: of the request, as pairs.
        query: the parameters of the URL.
        token: a client that sends it may see ``database``; None takes the environment variable
            ``RAILWAY_HEALTH_TOKEN``.
        debug: whether every client may; on Railway, none may without the token.
    """
    named = by_name(engines)
    found = route(named, path, headers, query or {}, token=token, debug=debug)
    return found if isinstance(found, Answer) else found(ask(named))


def route(
    engines: Mapping[str, Engine],
    path: str,
    headers: Iterable[tuple[str, str]],
    query: Mapping[str, str],
    *,
    token: str | None,
    debug: bool,
) -> Answer | Callable[[Probes], Answer]:
    """Return the answer, or what makes one once the servers have been asked."""
    headers, token = list(headers), configured_token(token)
    match path.rstrip("/").rpartition("/")[2]:
        case "live":
            return live()
        case "ready":
            return lambda probes: ready(engines, probes)
        case "database" if may_see(token, headers, query, debug=debug):
            accept = next((value for name, value in headers if name.lower() == "accept"), "")
            return lambda probes: database(engines, probes, html=wants_html(accept))
        case "database":
            return Answer(403, refusal_text(token))
        case _:
            return Answer(404, "There are live, ready and database here.\n")


def wants_html(accept: str) -> bool:
    """Return whether the header Accept, as *accept*, is that of a browser.

    A browser names HTML; a client that names neither, or both alike, gets JSON.
    """
    return _quality(accept, "text/html") > _quality(accept, "application/json")


def _quality(accept: str, wanted: str) -> float:
    """Return how much the header Accept wants the media type *wanted*, which it must name."""
    for part in accept.lower().split(","):
        media, *parameters = (word.strip() for word in part.split(";"))
        if media == wanted:
            given = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            return float(given) if _QUALITY.fullmatch(given) else 0.0
    return 0.0


def by_name(engines: Engines) -> dict[str, Engine]:
    """Return *engines* by their names; a single one is ``default``."""
    if not isinstance(engines, Mapping):
        engines = {"default": engines}
    return {name: counted_sync_engine(engine) for name, engine in engines.items()}


def ask(engines: Mapping[str, Engine]) -> dict[str, Probe]:
    """Ask the servers of all *engines* at once."""
    pending = {name: start_probe(engine) for name, engine in engines.items()}
    return {name: probe.wait() for name, probe in pending.items()}


def live() -> Answer:
    """Say that the process answers. Nothing else is asked."""
    return _json(200, {"status": "live"})


def ready(engines: Mapping[str, Engine], probes: Probes) -> Answer:
    """Say whether requests can be served: 200, or 503 if they cannot.

    With 200, the status ``saturated`` says that they have to wait for a connection.
    """
    found = {name: readiness(engine, probes[name]) for name, engine in engines.items()}
    worst = min((state for state, _ in found.values()), key=list(Readiness).index)
    reasons = [
        f"{name}: {reason}" if len(found) > 1 else reason
        for name, (state, reason) in found.items()
        if state is worst and reason
    ]
    return _json(
        503 if worst is Readiness.UNAVAILABLE else 200,
        {"status": worst.value, "reason": " ".join(reasons) or None},
    )


def database(
    engines: Mapping[str, Engine], probes: Probes, *, html: bool, application: str | None = None
) -> Answer:
    """Tell all that is known, as JSON or, with Jinja2, as a page. Not public.

    On Railway the *application* is called by the name of its service.

    A critical status is 503 as JSON, for monitors. The page is always 200: it is there.
    """
    reports = {name: build_report(engine, probes[name]) for name, engine in engines.items()}
    status = min((report.status for report in reports.values()), key=list(Status).index)
    application = os.environ.get("RAILWAY_SERVICE_NAME") or application
    if html and find_spec("jinja2") is not None:
        return _page(engines, reports, status, application)
    return _json(
        503 if status is Status.CRITICAL else 200,
        {
            "status": status.value,
            "application": application,
            "databases": {name: report.to_dict() for name, report in reports.items()},
        },
    )


def _page(
    engines: Mapping[str, Engine],
    reports: Mapping[str, HealthReport],
    status: Status,
    application: str | None,
) -> Answer:
    subjects = {
        name: DatabaseView(
            report,
            profile_of(engines[name]),
            statements(engines[name], report.window.seconds),
            round_trips(engines[name], report.window.seconds),
        )
        for name, report in reports.items()
    }
    nonce = secrets.token_urlsafe(16)
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": content_security_policy(nonce),
        "Referrer-Policy": "no-referrer",  # the URL may hold the token
        "X-Content-Type-Options": "nosniff",
    }
    page = render(subjects, status=status, nonce=nonce, application=application)
    return Answer(200, page, "text/html; charset=utf-8", headers)


def _json(status: int, value: Mapping[str, Any]) -> Answer:
    return Answer(status, json.dumps(value) + "\n", "application/json")
