"""The pictures of the health page: inline SVG, without a script, a font or a style.

A plot is stretched to the width of the page, so it holds no text; what is written beside it is
HTML. Colours are those of the page: every shape has a class and no ``style``, which the page's
Content-Security-Policy would refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sa_railway.health.history import RoundTrip
from sa_railway.health.pool import PoolState
from sa_railway.metrics.snapshot import Window

_WIDTH, _HEIGHT = 600, 100
_CELL, _STEP, _PER_ROW = 14, 19, 15
_DRAWN = 150  # of more, the numbers below the picture tell

# Seconds. Probers ask every 5 to 30; after a longer pause it is unknown what was in between.
_GAP = 45.0


def rate_plot(intervals: Sequence[Window], *, floor: float, least: float) -> str:
    """Draw the share of statements that succeeded, as a column for each interval.

    Args:
        intervals: the oldest first.
        floor: the share at the lower edge; 1 is at the upper one.
        least: the share that is still good, drawn as a line.
    """
    width = _WIDTH / max(1, len(intervals))
    shapes = []
    for number, interval in enumerate(intervals):
        if interval.success_rate is None:
            continue
        lost = min(1.0, (1 - interval.success_rate) / (1 - floor)) * _HEIGHT
        x, w = number * width + 1, width - 2
        shapes.append(_rect("good", x, lost, w, _HEIGHT - lost))
        shapes.append(_rect("bad", x, 0, w, lost) if lost else "")
    if least > floor:
        shapes.append(_line("limit", 0, (1 - least) / (1 - floor) * _HEIGHT, _WIDTH))
    rates = [i.success_rate for i in intervals if i.success_rate is not None]
    label = f"Success rate, lowest {min(rates):.1%}" if rates else "Success rate, no statements"
    return _stretched(label, shapes)


def rate_floor(intervals: Sequence[Window]) -> float:
    """Return the share to begin the plot with: 90 % shows a small loss, 0 a great one."""
    rates = [i.success_rate for i in intervals if i.success_rate is not None]
    return 0.9 if min(rates, default=1.0) >= 0.9 else 0.0


def round_trip_plot(trips: Sequence[RoundTrip], *, seconds: float, ceiling: float) -> str:
    """Draw round-trip times as a line, and probes without an answer as bars.

    Args:
        trips: the oldest first.
        seconds: the age at the left edge; now is at the right one.
        ceiling: the time at the upper edge, in seconds.
    """
    shapes = []
    runs: list[list[str]] = []
    last = float("inf")
    for trip in trips:
        x = (1 - min(1.0, trip.age / seconds)) * _WIDTH
        if trip.seconds is None:
            shapes.append(_rect("bad", min(x, _WIDTH - 4), 0, 4, _HEIGHT))
            last = float("inf")
            continue
        if last - trip.age > _GAP:
            runs.append([])
        last = trip.age
        runs[-1].append(f"{x:.1f} {(1 - trip.seconds / ceiling) * _HEIGHT:.1f}")
    # a line to where it stands is a dot, which no stretching distorts
    shapes += [
        f'<path class="{"trace" if run[1:] else "trace dot"}" d="M{"L".join(run)}L{run[-1]}"/>'
        for run in runs
    ]
    answered = [trip.seconds for trip in trips if trip.seconds is not None]
    most = f"highest {milliseconds(max(answered))} ms" if answered else "no answers"
    return _stretched(f"Round-trip time, {most}", shapes)


def nice_ceiling(value: float) -> float:
    """Return the next of 0.1, 0.2, 0.5, 1, ... ms that is not below *value* seconds."""
    steps = (step * 10.0**exponent for exponent in range(-4, 3) for step in (1, 2, 5))
    return next((ceiling for ceiling in steps if ceiling >= value), value)


def milliseconds(seconds: float) -> str:
    """Return a time in ms, with as many digits as matter."""
    return f"{seconds * 1000:.1f}" if seconds >= 0.001 else f"{seconds * 1000:.2f}"


def gauge(share: float, *, warn: float, critical: float, label: str) -> str:
    """Draw a bar that is filled up to *share*, with marks at the two thresholds."""
    kind = "bad" if share >= critical else "fair" if share >= warn else "good"
    shapes = [
        _rect("track", 0, 0, _WIDTH, 20),
        _rect(kind, 0, 0, min(1.0, share) * _WIDTH, 20),
        *(_rect("mark", at * _WIDTH - 1, 0, 2, 20) for at in (warn, critical)),
    ]
    return _stretched(label, shapes, height=20)


def pool_picture(pool: PoolState) -> str:
    """Draw a cell for each connection of the pool: in use, idle, or not open."""
    beyond = pool.overflow if pool.max_overflow is None else pool.max_overflow
    cells = []
    for number in range(min(pool.size + beyond, _DRAWN)):
        if number < pool.checked_out:
            kind = "used" if number < pool.size else "used beyond"
        elif number < pool.checked_out + pool.idle:
            kind = "idle"
        else:
            kind = "free" if number < pool.size else "free beyond"
        row, column = divmod(number, _PER_ROW)
        cells.append(_cell(kind, column, row))
    columns, rows = min(len(cells), _PER_ROW), -(-len(cells) // _PER_ROW)
    width, height = max(1, columns) * _STEP - 3, max(1, rows) * _STEP - 3
    label = f"Connections in use: {pool.checked_out:,}, idle: {pool.idle:,}"
    return (
        f'<svg class="pool" role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(cells)}</svg>'
    )


def legend(kind: str) -> str:
    """Draw a single cell of ``pool_picture()``, to stand before a word."""
    side = _CELL + 2
    return (
        f'<svg class="legend" aria-hidden="true" width="{side}" height="{side}">'
        f"{_cell(kind, 0, 0)}</svg>"
    )


def _cell(kind: str, column: int, row: int) -> str:
    return (
        f'<rect class="{kind}" x="{column * _STEP + 1}" y="{row * _STEP + 1}" '
        f'width="{_CELL}" height="{_CELL}" rx="3"/>'
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _line(kind: str, x: float, y: float, until: float) -> str:
    return f'<path class="{kind}" d="M{x:.1f} {y:.1f}H{until:.1f}"/>'


def _stretched(label: str, shapes: Sequence[str], *, height: int = _HEIGHT) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
    )
