"""Examine the way from an application to its database, and name the cause of what is wrong."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from sqlalchemy import URL

from sa_railway.config.budget import count_processes, plan_budget
from sa_railway.config.masking import masked
from sa_railway.config.profile import Profile, load_profile
from sa_railway.doctor.case import Case, NotRunError
from sa_railway.doctor.checks import CHECKS, Check
from sa_railway.doctor.checks.login import explain, is_lost
from sa_railway.doctor.findings import Diagnosis, Finding, Outcome, Result, Severity
from sa_railway.exc import ConfigurationError
from sa_railway.faults import first_line
from sa_railway.recovery.requirements import SchemaRequirements


def examine(
    url: str | URL | None = None,
    *,
    giver: str = "the argument",
    profile: str | Profile = "web",
    replicas: int = 1,
    processes: int | None = None,
    extra: int = 0,
    tables: Sequence[str] = (),
    timeout: float = 5.0,
    progress: Callable[[str], object] = lambda title: None,
) -> Diagnosis:
    """Make every check that can be made, and return what was found.

    Nothing is written to the database, and no statement of others is read. No password is in what
    is returned. Any thread may call it; a program with a running event loop calls it in a thread of
    its own. It takes a second as a rule. A server that has stopped answering is asked no further,
    so that even then it is over in a few times *timeout*.

    Args:
        url: the database; None looks for it in the environment as ``database_url()`` does.
        giver: where *url* came from, for people.
        profile: of the application; the environment overrules it as ever.
        replicas: containers of the application, for its connection budget.
        processes: processes in each; None takes what Gunicorn would, from ``WEB_CONCURRENCY``.
        extra: connections of others, for the budget.
        tables: that must be there.
        timeout: seconds for every single wait.
        progress: called with the title of each check as it begins.

    Raises:
        ConfigurationError: one of the arguments after the URL cannot be used. What is wrong with
            the URL and with ``SA_RAILWAY_*`` variables is a finding.
    """
    processes = count_processes(os.environ) if processes is None else processes
    # refuse what cannot be used before work begins
    load_profile(profile, {}, {})
    plan_budget(replicas, processes, 1, 0, extra=extra)
    SchemaRequirements(tables, None, "")
    if not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout is {timeout!r}; allowed: more than 0 seconds")
    case = Case(url, giver, profile, replicas, processes, extra, tuple(tables), timeout)
    try:
        results = _make_checks(case, progress)
    finally:
        case.close()
    return Diagnosis(masked(case.url) if case.source else "", tuple(results))


def _make_checks(case: Case, progress: Callable[[str], object]) -> list[Result]:
    results: list[Result] = []
    obstacle = ""
    for check in CHECKS:
        reason = obstacle or _why_not(check, case)
        if reason:
            results.append(Result(check.title, Outcome.NOT_RUN, reason))
            continue
        progress(check.title)
        started = time.monotonic()
        result, obstacle = _make(check, case)
        results.append(replace(result, seconds=time.monotonic() - started))
    return results


def _why_not(check: Check, case: Case) -> str:
    backend = case.url.get_backend_name()
    is_for_it = check.backends is None or backend in check.backends
    return "" if is_for_it else f"not for {backend}"


def _make(check: Check, case: Case) -> tuple[Result, str]:
    """Make one check; return its result, and the reason if none can be made after it."""
    try:
        detail, findings = case.run(check.examine)
    except NotRunError as reason:
        outcome = Outcome.FOUND if reason.findings else Outcome.NOT_RUN
        return Result(check.title, outcome, str(reason), tuple(reason.findings)), ""
    except Exception as error:  # noqa: BLE001 - drivers raise OSError, TimeoutError and their own
        if not (check.is_vital or is_lost(error)):
            return Result(check.title, Outcome.NOT_RUN, case.redact(first_line(error))), ""
        detail, findings = "", [case.run(partial(explain, error=error))]
        is_last = True
    else:
        is_last = check.is_vital and any(f.severity is Severity.ERROR for f in findings)
    outcome = Outcome.FOUND if _counts(findings) else Outcome.GOOD
    obstacle = f"{check.title} failed" if is_last else ""
    return Result(check.title, outcome, detail, tuple(findings)), obstacle


def _counts(findings: Sequence[Finding]) -> bool:
    """Return whether there is more in *findings* than notes."""
    return any(finding.severity is not Severity.NOTE for finding in findings)
