"""What the doctor can find: the form of a finding, of a check's result, and of a diagnosis."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

_PLACEHOLDER = re.compile(r"<(\w+)>")


class Severity(StrEnum):
    """How bad a finding is, the worst first."""

    ERROR = "error"  # it does not work, or loses data
    WARNING = "warning"  # it works, and will fail or cost
    NOTE = "note"  # nothing is wrong, but it explains an error that people see


class Outcome(StrEnum):
    """What became of a check."""

    GOOD = "good"
    FOUND = "found"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        code: a stable name, which ``--explain`` takes.
        severity: how bad it is.
        what: what is the matter, in one line.
        why: where it comes from and what follows from it.
        fix: what to do.
        literal: texts of the errors that it stands for.
    """

    code: str
    severity: Severity
    what: str
    why: str
    fix: str
    literal: tuple[str, ...] = ()


class Kind(Finding):
    """All findings of one kind, with ``<name>`` in their texts where each finding has a value."""

    def found(self, **values: object) -> Finding:
        """Return a finding with *values* in its texts; what has no value stays ``<name>``."""

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda m: str(values.get(m[1], m[0])), text)

        what, why, fix = map(fill, (self.what, self.why, self.fix))
        literal = tuple(map(fill, self.literal))
        return Finding(self.code, self.severity, what, why, fix, literal)


@dataclass(frozen=True)
class Result:
    """What one check has shown.

    Attributes:
        check: its title.
        outcome: ``good`` only if all of it was examined and nothing but notes was found.
        detail: what was seen, or why the check, or a part of it, was not run.
        findings: what was found.
        seconds: how long it took.
    """

    check: str
    outcome: Outcome
    detail: str
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks, in the order in which they were made.

    Attributes:
        database: the URL without passwords; "" if none could be read.
        results: one for every check, also for those that were not run.
    """

    database: str
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the worst first; among equals, the cause comes before its consequences."""
        found = dict.fromkeys(finding for result in self.results for finding in result.findings)
        return tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found but notes. What could not be examined may still be bad."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)

    def count(self, outcome: Outcome) -> int:
        """Return how many checks had this *outcome*."""
        return sum(result.outcome is outcome for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints; ``docs/doctor.schema.json`` describes it."""
        return {
            "format": 1,
            "healthy": self.is_healthy,
            "database": self.database,
            "findings": [asdict(finding) for finding in self.findings],
            "checks": [
                {
                    "check": result.check,
                    "outcome": result.outcome,
                    "detail": result.detail,
                    "findings": [finding.code for finding in result.findings],
                    "seconds": round(result.seconds, 3),
                }
                for result in self.results
            ],
        }
