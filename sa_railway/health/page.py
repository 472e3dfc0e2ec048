"""The health page: one HTML document that needs nothing but itself.

It can be read without JavaScript, on a telephone and in the dark; with JavaScript it updates
itself. Style and script stand in page.css and page.js, and go into the document.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from urllib.parse import quote

from sa_railway.config.profile import Profile
from sa_railway.engine.leaks import Hold
from sa_railway.health.history import RoundTrip
from sa_railway.health.plots import (
    gauge,
    legend,
    milliseconds,
    nice_ceiling,
    pool_picture,
    rate_floor,
    rate_plot,
    round_trip_plot,
)
from sa_railway.health.pool import PoolState
from sa_railway.health.report import HealthReport, Status
from sa_railway.health.rules import Recommendation, in_words
from sa_railway.metrics.snapshot import Processes, Window

__all__ = ["Subject", "content_security_policy", "render"]

_RELOAD = 10  # seconds, without JavaScript

_SIGNS = {
    Status.HEALTHY: "M7 12.5l3.2 3.2L17 9",
    Status.DEGRADED: "M12 7v6M12 16.6v.1",
    Status.CRITICAL: "M8.5 8.5l7 7M15.5 8.5l-7 7",
}
# the tones of page.css, for the icon of a tab, which no style reaches
_TONES = {Status.HEALTHY: "#1c7c4a", Status.DEGRADED: "#a86400", Status.CRITICAL: "#c4302b"}


@dataclass(frozen=True)
class Subject:
    """One database of the application, as the page shows it."""

    report: HealthReport
    profile: Profile
    statements: Sequence[Window]
    round_trips: Sequence[RoundTrip]


def content_security_policy(nonce: str) -> str:
    """Return the policy that lets the page do what it must, and nothing else."""
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def render(
    subjects: Mapping[str, Subject], *, status: Status, nonce: str, application: str | None = None
) -> str:
    """Return the page.

    Args:
        subjects: by the names of the databases.
        status: the worst of theirs.
        application: its name, if that is known.
        nonce: of the ``content_security_policy()`` that it is sent with; new for each answer.
    """
    title = f"{status.value.capitalize()}: {escape(application or 'database')}"
    several = len(subjects) > 1
    body = "".join(_subject(name if several else "", each) for name, each in subjects.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="color-scheme" content="light dark">
<noscript><meta http-equiv="refresh" content="{_RELOAD}"></noscript>
<title>{title}</title>
<link rel="icon" href="{_icon(status)}">
<style nonce="{nonce}">{_resource("page.css")}</style>
</head>
<body>
<main>
{_headline(status, subjects, application)}
{body}
{_footer(subjects)}
</main>
<p id="live" class="soft" role="status"></p>
<script nonce="{nonce}">{_resource("page.js")}</script>
</body>
</html>
"""


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


def _headline(status: Status, subjects: Mapping[str, Subject], application: str | None) -> str:
    worst = next(each.report for each in subjects.values() if each.report.status is status)
    found = worst.recommendations
    reason = escape(found[0].message) if worst.rule else "No rule is broken."
    name = f" <small>{escape(application)}</small>" if application else ""
    return f"""<header class="status {status.value}">
<svg viewBox="0 0 24 24" aria-hidden="true"><circle class="disc" cx="12" cy="12" r="12"/>
<path class="sign" d="{_SIGNS[status]}"/></svg>
<div><h1>{status.value.capitalize()}{name}</h1><p class="soft">{reason}</p></div>
</header>"""


def _subject(name: str, subject: Subject) -> str:
    report = subject.report
    heading = (
        f'<h2>{escape(name)} <span class="badge {report.status.value}">'
        f"{report.status.value}</span></h2>"
    )
    cards = (
        _success_card(subject),
        _round_trip_card(subject),
        _pool_card(report.pool, report.processes),
        _server_card(report, subject.profile),
    )
    return f"""<section>
{heading if name else ""}
{_findings(report.recommendations)}
<div class="cards">
{"".join(cards)}
</div>
{_counters(report)}
</section>"""


def _findings(found: Sequence[Recommendation]) -> str:
    items = "".join(
        f'<li class="{each.severity.value}"><span class="badge">'
        f"{each.severity.value.capitalize()}</span> "
        f"<strong>{escape(each.message)}</strong> {escape(each.action)}</li>\n"
        for each in found
    )
    return f'<ul class="findings">\n{items}</ul>' if items else ""


def _card(title: str, content: str) -> str:
    return f'<article class="card"><h3>{title}</h3>\n{content}\n</article>\n'


def _success_card(subject: Subject) -> str:
    window, least = subject.report.window, subject.profile.health_success_rate
    floor = rate_floor(subject.statements)
    rate = window.success_rate
    figure = "&ndash;" if rate is None else _percent(rate)
    total = window.successes + window.failures
    plot = _axes(
        rate_plot(subject.statements, floor=floor, least=least),
        "100%",
        _percent(floor),
        window.seconds,
        note=f"dashed: {_percent(least)}",
    )
    return _card(
        "Success rate",
        f'<p class="figure">{figure} <small>of {total:,} statements, '
        f'{window.failures:,} failed</small></p>\n<div class="columns">{plot}</div>',
    )


def _round_trip_card(subject: Subject) -> str:
    trips, seconds = subject.round_trips, subject.report.window.seconds
    ceiling = nice_ceiling(max((t.seconds for t in trips if t.seconds is not None), default=0.0))
    now = subject.report.round_trip
    figure = "no answer" if now is None else f"{milliseconds(now)} <small>ms</small>"
    plot = _axes(
        round_trip_plot(trips, seconds=seconds, ceiling=ceiling),
        f"{ceiling * 1000:g} ms",
        "0",
        seconds,
    )
    return _card("Round-trip time", f'<p class="figure">{figure}</p>\n{plot}')


def _axes(plot: str, top: str, bottom: str, seconds: float, note: str = "") -> str:
    return (
        f'<div class="axes"><div class="scale"><span>{top}</span><span>{bottom}</span></div>'
        f'{plot}<div class="ages"><span>{in_words(seconds)} ago</span><span>{note}</span>'
        "<span>now</span></div></div>"
    )


def _pool_card(pool: PoolState | None, processes: Processes | None) -> str:
    if pool is None:
        return _card("Pool", '<p class="soft">This engine keeps no pool of a fixed size.</p>')
    most = "no limit" if pool.limit is None else f"of {pool.limit:,} at most"
    return _card(
        "Pool",
        f'<p class="figure">{pool.checked_out:,} <small>in use, {most}</small></p>\n'
        f"{pool_picture(pool)}\n<dl>"
        f"<dt>{legend('idle')} idle</dt><dd>{pool.idle:,}</dd>"
        f"<dt>{legend('used beyond')} beyond the size of {pool.size:,}</dt>"
        f"<dd>{pool.overflow:,}</dd>"
        f"<dt>waiting for one</dt><dd>{pool.waiting:,}</dd>"
        f"{_longest_hold(pool)}{_all_processes(processes)}</dl>{_holds(pool.holds)}",
    )


def _longest_hold(pool: PoolState) -> str:
    if pool.longest_hold is None:
        return ""
    return f"<dt>in use for the longest time</dt><dd>{pool.longest_hold:,.1f} s</dd>"


def _holds(holds: Sequence[Hold]) -> str:
    rows = "".join(
        f"<dt>{escape(hold.function)}, {escape(hold.file)}, line {hold.line}</dt>"
        f"<dd>{hold.seconds:,.1f} s</dd>"
        for hold in holds
    )
    if not rows:
        return ""
    return f"<details><summary>What holds a connection</summary><dl>{rows}</dl></details>"


def _all_processes(found: Processes | None) -> str:
    if found is None or found.count < 2:
        return ""
    most = "" if found.limit is None else f" of {found.limit:,} at most"
    return (
        f"<dt>in use by all {found.count:,} processes</dt><dd>{found.checked_out:,}{most}</dd>"
        f"<dt>open in all of them</dt><dd>{found.open:,}</dd>"
        f"<dt>waiting in all of them</dt><dd>{found.waiting:,}</dd>"
    )


def _server_card(report: HealthReport, profile: Profile) -> str:
    server = report.server
    if server is None:
        why = "It did not answer." if report.round_trip is None else "It tells nothing of itself."
        return _card("Server", f'<p class="soft">{why}</p>')
    share = server.connections / server.max_connections
    label = f"{_percent(share)} of the server's connections are in use"
    bar = gauge(
        share,
        warn=profile.health_connections_warn,
        critical=profile.health_connections_critical,
        label=label,
    )
    return _card(
        "Server",
        f'<p class="figure">{server.connections:,} <small>connections, of '
        f'{server.max_connections:,}</small></p>\n<div class="gauge">{bar}</div>\n'
        f"<dl><dt>PostgreSQL</dt><dd>{escape(server.version)}</dd>"
        f"<dt>idle in a transaction for over {in_words(profile.health_idle_in_transaction)}</dt>"
        f"<dd>{server.idle_in_transaction:,}</dd></dl>",
    )


def _counters(report: HealthReport) -> str:
    window = report.window
    recent = (
        f"<dt>reconnections, last {in_words(window.seconds)}</dt><dd>{window.reconnections:,}</dd>"
        f"<dt>rollbacks, last {in_words(window.seconds)}</dt><dd>{window.rollbacks:,}</dd>"
    )
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{value:,g}</dd>"
        for name, value in sorted(report.metrics.items())
    )
    whose = f", of {report.engines:,} engines of one name" if report.engines > 1 else ""
    return (
        f"<details><summary>Counters of this process{whose}</summary>"
        f"<dl>{recent}{rows}</dl></details>"
    )


def _footer(subjects: Mapping[str, Subject]) -> str:
    report = next(iter(subjects.values())).report
    replica = os.environ.get("RAILWAY_REPLICA_ID", "")
    since = f"It has counted since {report.since:%Y-%m-%d %H:%M:%S} UTC. " if report.since else ""
    where = f" of replica {escape(replica[:8])}" if replica else ""
    return (
        f'<footer class="soft"><p>Process {report.process}{where} answered at '
        f'<time datetime="{report.time.isoformat()}">{report.time:%H:%M:%S} UTC</time>. '
        f"{since}Every worker process has its own pool and counts.</p></footer>"
    )


def _percent(share: float) -> str:
    """Return a share in words that never round a loss away."""
    percent = share * 100
    text = f"{percent:.1f}" if percent < 99.95 or share == 1 else "over 99.9"
    return f"{text.removesuffix('.0')}%"
