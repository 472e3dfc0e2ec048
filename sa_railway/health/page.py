"""The health page: one HTML document that needs nothing but itself.

It can be read without JavaScript, on a telephone and in the dark; with JavaScript it updates
itself. The document is page.html, a template of Jinja2; page.css and page.js go into it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote

from sa_railway.config.profile import Profile
from sa_railway.health import plots
from sa_railway.health.history import RoundTrip
from sa_railway.health.report import HealthReport, Status
from sa_railway.health.rules import humanize
from sa_railway.metrics.snapshot import Window

if TYPE_CHECKING:
    from jinja2 import Template

_RELOAD = 10  # seconds, without JavaScript

_SIGNS = {
    Status.HEALTHY: "M7 12.5l3.2 3.2L17 9",
    Status.DEGRADED: "M12 7v6M12 16.6v.1",
    Status.CRITICAL: "M8.5 8.5l7 7M15.5 8.5l-7 7",
}
# the tones of page.css, for the icon of a tab, which no style reaches
_TONES = {Status.HEALTHY: "#1c7c4a", Status.DEGRADED: "#a86400", Status.CRITICAL: "#c4302b"}

_PICTURES = (plots.rate_plot, plots.round_trip_plot, plots.pool_picture, plots.legend, plots.gauge)


@dataclass(frozen=True)
class DatabaseView:
    """One database of the application, as the page shows it."""

    report: HealthReport
    profile: Profile
    statements: Sequence[Window]
    round_trips: Sequence[RoundTrip]

    @property
    def ceiling(self) -> float:
        """The highest round-trip time that its plot shows, in seconds."""
        seconds = (trip.seconds for trip in self.round_trips if trip.seconds is not None)
        return plots.nice_ceiling(max(seconds, default=0.0))


def content_security_policy(nonce: str) -> str:
    """Return the policy that lets the page do what it must, and nothing else."""
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def render(
    subjects: Mapping[str, DatabaseView],
    *,
    status: Status,
    nonce: str,
    application: str | None = None,
) -> str:
    """Return the page.

    Args:
        subjects: by the names of the databases.
        status: the worst of theirs.
        application: its name, if that is known.
        nonce: of the ``content_security_policy()`` that it is sent with; new for each answer.

    Raises:
        ImportError: Jinja2 is not installed, which comes with Flask and the extra ``health``.
    """
    return _template().render(
        subjects=subjects,
        status=status,
        worst=next(each.report for each in subjects.values() if each.report.status is status),
        nonce=nonce,
        application=application,
        sign=_SIGNS[status],
        icon=_icon(status),
        reload=_RELOAD,
        replica=os.environ.get("RAILWAY_REPLICA_ID", "")[:8],
    )


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def as_markup(draw: Callable[..., str]) -> Callable[..., Markup]:
        return lambda *args, **kwargs: Markup(draw(*args, **kwargs))  # noqa: S704 - ours

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "count": "{:,}".format,
        "milliseconds": plots.milliseconds,
        "number": "{:,g}".format,
        "percent": _percent,
        "seconds": "{:,.1f} s".format,
        "words": humanize,
    }
    # they return markup, and escape what they are given
    pictures = {draw.__name__: as_markup(draw) for draw in _PICTURES}
    environment.globals |= {
        "rate_floor": plots.rate_floor,
        "resource": as_markup(_resource),
        **pictures,
    }
    return environment.from_string(_resource("page.html"))


@functools.cache
def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _icon(status: Status) -> str:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">'
        f'<circle cx="12" cy="12" r="12" fill="{_TONES[status]}"/>'
        f'<path d="{_SIGNS[status]}" fill="none" stroke="#fff" stroke-width="2.4"/></svg>'
    )
    return f"data:image/svg+xml,{quote(svg)}"


def _percent(share: float) -> str:
    """Return a share in words that never round a loss away."""
    percent = share * 100
    text = f"{percent:.1f}" if percent < 99.95 or share == 1 else "over 99.9"
    return f"{text.removesuffix('.0')}%"
