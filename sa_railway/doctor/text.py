"""A diagnosis as plain text, for a terminal or a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

from sa_railway.doctor.findings import Diagnosis, Finding, Kind, Outcome, Result, Severity

SHOWN_TEXTS = 3
"""How many of the texts that a finding stands for are shown; ``--explain`` shows them all."""

_STATUS = 9  # the width of "not run" and of the severities, with a gap


def render(diagnosis: Diagnosis, width: int = 80) -> str:
    """Return *diagnosis* as text of at most *width* columns, unless a word is longer."""
    titles = max(len(result.check) for result in diagnosis.results) + 2
    lines = []
    for status, title, detail in rows(diagnosis):
        if status == Outcome.NOT_RUN:  # several share one reason
            lines += _hang(f"{status:<{_STATUS}}", f"{title}: {detail}", width)
        else:
            lines += _hang(f"{status:<{_STATUS}}{title:<{titles}}", detail, width)
    for number, finding in enumerate(diagnosis.findings, 1):
        head = f"{number}. {finding.severity}: "
        lines += ["", *_describe(head, finding, width, SHOWN_TEXTS), f"   more  {more(finding)}"]
    return "\n".join([*lines, "", *textwrap.wrap(summary(diagnosis), width)])


def rows(diagnosis: Diagnosis) -> Iterator[tuple[str, str, str]]:
    """Yield status, title and detail of each check; those not run for one reason are joined."""
    numbers = {finding: number for number, finding in enumerate(diagnosis.findings, 1)}
    for (outcome, reason), group in groupby(diagnosis.results, _shared):
        results = list(group)
        if outcome is Outcome.NOT_RUN:
            yield outcome, ", ".join(result.check for result in results), reason
            continue
        for result in results:
            see = ", ".join(str(numbers[finding]) for finding in result.findings)
            seen = [result.detail, f"see {see}" if see else ""]
            yield _status(result), result.check, "; ".join(filter(None, seen))


def _shared(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.detail if result.outcome is Outcome.NOT_RUN else ""


def _status(result: Result) -> str:
    """Return ``good``, or how bad the worst finding is."""
    if result.outcome is Outcome.GOOD:
        return result.outcome
    found = {finding.severity for finding in result.findings}
    return next(severity for severity in Severity if severity in found)


def _describe(head: str, finding: Finding, width: int, texts: int | None) -> Iterator[str]:
    """Yield the lines about *finding*, with *texts* of the errors that it stands for, or all."""
    yield from _hang(head, finding.what, width, indent=3)
    yield from _hang("   why   ", finding.why, width)
    yield from _hang("   fix   ", finding.fix, width)
    for text in finding.literal[:texts]:
        yield from _hang("   text  ", text, width)


def more(finding: Finding) -> str:
    """Return the command that says all about findings of this kind."""
    return f"sa-railway doctor --explain {finding.code}"


def render_kinds(kinds: Iterable[Kind], width: int = 80) -> str:
    """Return all there is to say about *kinds* as text, with ``<name>`` for what each case has."""
    return "\n\n".join(
        "\n".join(_describe(f"{kind.code} ({kind.severity}): ", kind, width, None))
        for kind in kinds
    )


def _hang(head: str, text: str, width: int, *, indent: int | None = None) -> list[str]:
    """Wrap *text* behind *head*, its further lines below its first."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * (len(head) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]


def render_pairs(pairs: Iterable[tuple[str, str]], width: int = 80) -> str:
    """Return *pairs* of a word or two and a text as lines of at most *width* columns."""
    found = list(pairs)
    words = max(len(word) for word, _ in found) + 2
    return "\n".join(
        line for word, text in found for line in _hang(f"{word:<{words}}", text, width)
    )


def summary(diagnosis: Diagnosis) -> str:
    """Return the result in one sentence."""
    found = [finding.severity for finding in diagnosis.findings]
    counts = ", ".join(_count(found.count(s), s) for s in Severity if s in found)
    good, not_run = diagnosis.count(Outcome.GOOD), diagnosis.count(Outcome.NOT_RUN)
    checks = f"{good} of {len(diagnosis.results)} checks {'is' if good == 1 else 'are'} good"
    missing = f", {not_run} not run" if not_run else ""
    return f"{counts or 'No problem found'}; {checks}{missing}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
