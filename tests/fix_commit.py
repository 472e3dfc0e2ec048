"""Where a COMMIT may be lost, and what is then said of it."""

from __future__ import annotations

from typing import Any

# arguments of ChaosProxy.cut()
NEVER_ARRIVED: dict[str, Any] = {"before": "COMMIT"}
ARRIVED: dict[str, Any] = {"after": "COMMIT"}
ANSWER_LOST: dict[str, Any] = {"before": "CommandComplete", "of": "COMMIT"}

UNDONE = (
    "sa_railway: the transaction was rolled back and has changed nothing; "
    "it can safely be run again"
)


def unknown(xid: int) -> str:
    """Return the message of a CommitOutcomeUnknownError."""
    return (
        f"it is unknown whether transaction {xid} was committed: the connection was lost during "
        "COMMIT, and the outcome could not be proved; "
        f"SELECT txid_status({xid}) says 'committed', 'aborted', 'in progress', or NULL if the "
        "server has forgotten; after a crash it may mean another transaction; do not run the work "
        "again before you know"
    )
