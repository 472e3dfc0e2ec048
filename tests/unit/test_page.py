"""The health page as a document, and its pictures."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sa_railway import Profile
from sa_railway.engine.leaks import Hold
from sa_railway.health.history import RoundTrip
from sa_railway.health.page import DatabaseView, render
from sa_railway.health.plots import (
    gauge,
    nice_ceiling,
    pool_picture,
    rate_floor,
    rate_plot,
    round_trip_plot,
)
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import ServerFacts
from sa_railway.health.report import HealthReport, Status
from sa_railway.health.rules import Recommendation, Severity
from sa_railway.metrics.snapshot import Processes, Window

VOID = {"meta", "link"}
POOL = PoolState(size=5, checked_out=3, idle=1, overflow=0, max_overflow=10, waiting=0)
REPORT = HealthReport(
    status=Status.HEALTHY,
    rule=None,
    recommendations=(),
    window=Window(300.0, successes=1999, failures=1),
    pool=POOL,
    server=ServerFacts("17.2", connection_limit=97, connections=14, idle_in_transaction=0),
    round_trip=0.0013,
    metrics={"queries": 12345},
    process=4711,
    time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)
SUBJECT = DatabaseView(REPORT, Profile(), (), ())


class Document(HTMLParser):
    """The elements of a document, its text, and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.words = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)


def draw(subject=SUBJECT, *, status=Status.HEALTHY, **others):
    return Document(render({"default": subject, **others}, status=status, nonce="n0nce"))


def with_report(**changes):
    return replace(SUBJECT, report=replace(REPORT, **changes))


# --- the document ---


def test_what_a_healthy_page_says():
    assert draw().text == (
        "Healthy: database Healthy No rule is broken. "
        "Success rate over 99.9% of 2,000 statements, 1 failed 100% 90% 5 minutes ago dashed: 95% "
        "now "
        "Round-trip time 1.3 ms 0.1 ms 0 5 minutes ago now "
        "Pool 3 in use, of 15 at most idle 1 beyond the size of 5 0 waiting for one 0 "
        "Server 14 connections, of 97 PostgreSQL 17.2 idle in a transaction for over 1 minute 0 "
        "Counters of this process reconnections, last 5 minutes 0 rollbacks, last 5 minutes 0 "
        "queries 12,345 "
        "Process 4711 answered at 03:04:05 UTC . Every worker process has its own pool and counts."
    )


def test_the_page_names_the_application_since_when_it_counts_and_what_holds_connections():
    subject = with_report(
        since=datetime(2026, 1, 1, 2, 3, 4, tzinfo=UTC),
        pool=replace(
            POOL,
            longest_hold=1234.56,
            holds=(Hold(1234.56, "shop.py", 42, "<lambda>"), Hold(7.0, "views.py", 5, "index")),
        ),
        processes=Processes(count=4, open=12, checked_out=7, waiting=1, limit=60),
    )

    page = Document(
        render(
            {"default": subject}, status=Status.HEALTHY, nonce="n0nce", application="<i>shop</i>"
        )
    )

    assert page.text.startswith("Healthy: <i>shop</i> Healthy <i>shop</i> No rule is broken. ")
    assert (
        "waiting for one 0 in use for the longest time 1,234.6 s "
        "in use by all 4 processes 7 of 60 at most open in all of them 12 "
        "waiting in all of them 1 What holds a connection <lambda>, shop.py, line 42 1,234.6 s "
        "index, views.py, line 5 7.0 s Server"
    ) in page.text
    assert page.text.endswith(
        "Process 4711 answered at 03:04:05 UTC . It has counted since 2026-01-01 02:03:04 UTC. "
        "Every worker process has its own pool and counts."
    )


@pytest.mark.parametrize(
    ("count", "limit", "says"),
    [(1, 15, "waiting for one 0 Server"), (2, None, "in use by all 2 processes 7 open in all")],
)
def test_what_all_processes_have_is_not_said_of_one_and_may_have_no_limit(count, limit, says):
    sums = Processes(count=count, open=12, checked_out=7, waiting=1, limit=limit)

    assert says in draw(with_report(processes=sums)).text


def test_the_counters_say_whether_they_are_of_several_engines():
    text = draw(with_report(engines=2)).text

    assert " Counters of this process, of 2 engines of one name reconnections, " in text


def test_recommendations_stand_first():
    found = (
        Recommendation(Severity.CRITICAL, "server", "It is gone.", "Fetch it."),
        Recommendation(Severity.INFO, "other", "By the way.", "SocketState."),
    )
    subject = with_report(status=Status.CRITICAL, rule="server", recommendations=found)

    text = draw(subject, status=Status.CRITICAL).text

    assert text.startswith(
        "Critical: database Critical It is gone. "
        "Critical It is gone. Fetch it. Info By the way. SocketState. Success rate"
    )


def test_a_recommendation_that_decides_nothing_is_no_headline():
    subject = with_report(
        recommendations=(Recommendation(Severity.INFO, "other", "By the way.", "SocketState."),)
    )

    assert "Healthy No rule is broken. Info By the way. SocketState." in draw(subject).text


def test_several_databases_are_told_apart_and_their_names_are_text():
    degraded = with_report(
        status=Status.DEGRADED,
        rule="pool",
        recommendations=(Recommendation(Severity.WARNING, "pool", "It is full.", "Wait."),),
    )

    text = draw(status=Status.DEGRADED, **{"<b>audit</b>": degraded}).text

    assert text.startswith("Degraded: database Degraded It is full. default healthy Success rate")
    assert "<b>audit</b> degraded Warning It is full. Wait. Success rate" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pool": None}, "Pool This engine keeps no pool of a fixed size."),
        (
            {"pool": replace(POOL, max_overflow=None, waiting=2)},
            "Pool 3 in use, no limit idle 1 beyond the size of 5 0 waiting for one 2",
        ),
        ({"server": None, "round_trip": None}, "Server It did not answer."),
        ({"server": None}, "Server It tells nothing of itself."),
        ({"round_trip": None}, "Round-trip time no answer"),
        ({"round_trip": 0.00014}, "Round-trip time 0.14 ms"),
        ({"window": Window(300.0)}, "Success rate \N{EN DASH} of 0 statements, 0 failed"),
        ({"window": Window(300.0, successes=9)}, "Success rate 100% of 9 statements"),
    ],
)
def test_what_is_not_known_is_said(changes, says):
    assert says in draw(with_report(**changes)).text


def test_the_replica_is_named_where_there_is_one(monkeypatch):
    monkeypatch.setenv("RAILWAY_REPLICA_ID", "0123456789abcdef")

    assert "Process 4711 of replica 01234567 answered" in draw().text


def test_nothing_is_loaded_from_anywhere_and_nothing_needs_a_laxer_policy():
    document = draw()

    for tag, attributes in document.elements:
        assert not {"style", "src", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "data:").startswith("data:")
        if tag in ("style", "script"):
            assert attributes == {"nonce": "n0nce"}
    html = render({"default": SUBJECT}, status=Status.HEALTHY, nonce="n0nce")
    assert re.findall(r"url\(|@import|https?://[^\"'%]*", html) == []


def test_without_a_script_the_page_loads_itself_anew():
    html = render({"default": SUBJECT}, status=Status.HEALTHY, nonce="n0nce")

    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in html


# --- the pictures ---


def shapes(svg):
    return [dict(element.attrib, tag=element.tag) for element in ElementTree.fromstring(svg)]


def classes(svg):
    return [shape["class"] for shape in shapes(svg)]


def label(svg):
    return ElementTree.fromstring(svg).get("aria-label")


def test_a_part_of_the_time_with_failures_has_a_top_of_another_colour():
    parts = [Window(10, successes=10), Window(10), Window(10, successes=95, failures=5)]

    good, first, last, limit = shapes(rate_plot(parts, floor=0.9, least=0.95))

    assert (good["class"], good["y"], good["height"]) == ("good", "0.0", "100.0")
    assert (first["class"], first["height"]) == ("good", "50.0")
    assert (last["class"], last["y"], last["height"]) == ("bad", "0.0", "50.0")
    assert first["x"] == last["x"] == "401.0"  # the second third is empty
    assert (limit["class"], limit["d"]) == ("limit", "M0.0 50.0H600.0")


def test_the_success_rate_in_words_for_who_cannot_see_it():
    parts = [Window(10, successes=95, failures=5), Window(10, successes=1)]

    assert label(rate_plot(parts, floor=0.9, least=0.95)) == "Success rate, lowest 95.0%"
    assert label(rate_plot([Window(10)], floor=0.9, least=0.95)) == "Success rate, no statements"


@pytest.mark.parametrize(("failures", "floor"), [(0, 0.9), (10, 0.9), (11, 0.0)])
def test_the_scale_shows_a_small_loss(failures, floor):
    assert rate_floor([Window(10, successes=100 - failures, failures=failures)]) == floor


def test_round_trips_are_a_line_with_gaps_where_nobody_asked():
    trips = [RoundTrip(age, 0.001) for age in (300, 290, 200, 190)]

    assert [shape["d"] for shape in shapes(round_trip_plot(trips, seconds=300, ceiling=0.002))] == [
        "M0.0 50.0L20.0 50.0L20.0 50.0",
        "M200.0 50.0L220.0 50.0L220.0 50.0",
    ]


def test_a_probe_without_an_answer_is_a_bar_that_ends_the_line():
    trips = [RoundTrip(20, 0.001), RoundTrip(10, None), RoundTrip(0, 0.002)]
    plot = round_trip_plot(trips, seconds=300, ceiling=0.002)

    assert classes(plot) == ["bad", "trace dot", "trace dot"]
    assert label(plot) == "Round-trip time, highest 2.0 ms"


def test_no_round_trip_at_all():
    assert label(round_trip_plot([], seconds=300, ceiling=0.002)) == "Round-trip time, no answers"


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0, 0.0001), (0.0011, 0.002), (0.03, 0.05), (0.05, 0.05), (7000, 7000)]
)
def test_the_ceiling_is_a_round_number(value, ceiling):
    assert nice_ceiling(value) == pytest.approx(ceiling)


def test_the_pool_has_a_cell_for_each_connection_there_may_be():
    pool = PoolState(size=2, checked_out=3, idle=0, overflow=1, max_overflow=2)
    calm = PoolState(size=3, checked_out=1, idle=1, overflow=0, max_overflow=1)

    assert classes(pool_picture(pool)) == ["used", "used", "used beyond", "free beyond"]
    assert classes(pool_picture(calm)) == ["used", "idle", "free", "free beyond"]
    assert label(pool_picture(calm)) == "Connections in use: 1, idle: 1"


def test_a_large_pool_fits_on_a_telephone():
    pool = PoolState(size=1000, checked_out=900, idle=0, overflow=0, max_overflow=None)
    picture = ElementTree.fromstring(pool_picture(pool))

    assert len(picture) == 150
    assert int(picture.attrib["width"]) < 300


@pytest.mark.parametrize(
    ("share", "kind"), [(0.69, "good"), (0.7, "fair"), (0.9, "bad"), (2, "bad")]
)
def test_the_bar_of_the_connections_tells_how_bad_it_is(share, kind):
    _, bar, warn, critical = shapes(gauge(share, warn=0.7, critical=0.9, label="in use"))

    assert (bar["class"], bar["width"]) == (kind, f"{min(share, 1) * 600:.1f}")
    assert (warn["x"], critical["x"]) == ("419.0", "539.0")
