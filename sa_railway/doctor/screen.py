"""A diagnosis on a terminal, with colours; needs the extra ``cli``."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sa_railway.doctor.findings import Diagnosis, Finding, Outcome
from sa_railway.doctor.text import SHOWN_TEXTS, more, rows, summary

_STYLES = {"good": "green", "error": "bold red", "warning": "yellow", "note": "cyan"}


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print *diagnosis*: a table of the checks, a panel for each finding, a sentence."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in ("check", "", "seen"):
        table.add_column(column, overflow="fold")
    for status, title, detail in rows(diagnosis):
        # as Text: what a server says may hold what rich takes for markup
        if status == Outcome.NOT_RUN:  # several share one reason
            table.add_row("", Text(status, "dim"), Text(f"{title}: {detail}", "dim"))
        else:
            table.add_row(title, Text(status, _STYLES[status]), Text(detail))
    console.print(table)
    for number, finding in enumerate(diagnosis.findings, 1):
        console.print(_panel(number, finding))
    console.print(Text(summary(diagnosis), "green" if diagnosis.is_healthy else "bold"))


def _panel(number: int, finding: Finding) -> Panel:
    style = _STYLES[finding.severity]
    parts = Table.grid(padding=(0, 2))
    parts.add_column(style="dim")
    parts.add_column(overflow="fold")
    parts.add_row("why", Text(finding.why))
    parts.add_row("fix", Text(finding.fix, "bold"))
    for text in finding.literal[:SHOWN_TEXTS]:
        parts.add_row("text", Text(text, "dim"))
    return Panel(
        Group(Text(finding.what, style), parts),
        title=f"{number}. {finding.severity}",
        title_align="left",
        subtitle=more(finding),
        subtitle_align="right",
        border_style=style,
    )
