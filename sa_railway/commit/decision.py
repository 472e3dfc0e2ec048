"""What is proved of a COMMIT whose answer was lost, by what the client has seen. Decisions only.

PostgreSQL remembers what became of a transaction's id, so the client reads the id before the COMMIT
and asks for its status after it. The status is worth something only where the id cannot have passed
to another transaction. PostgreSQL gives an id out again in one case: a crash lost every trace of
it.

* *aborted*, or an id that the server has not given out: the COMMIT has not happened. Had it
  survived, the status would be *committed*, whatever has happened since.
* *committed*: the COMMIT has happened if no crash came between. Otherwise the id may be a
  stranger's.

That no crash came between is proved by any of these, because none of them survives one:

* the same postmaster, with the same checkpointer process: a crash ends them all;
* the same postmaster, with the same last checkpoint: every recovery writes one;
* statistics that were not reset since: a recovery discards them, a clean stop keeps them. Across a
  change of the postmaster the timeline must be the same, too: a promoted standby may have been
  copied together with its statistics.

No clock takes part. A time is compared with another for being the same, never for being later.
``tests/unit/test_commit_model.py`` runs this code through every short history of a server.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.Enum):
    """What is known of a COMMIT."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class Status(enum.Enum):
    """What the server says of a transaction's id."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    NOT_ASSIGNED = "not assigned"  # an id from the future
    FORGOTTEN = "forgotten"  # too old


class Step(enum.Enum):
    """What to do before there can be an outcome."""

    ASK_AGAIN = "ask again"
    END_BACKEND = "end backend"  # it is still at work; then ask again
    CONFIRM = "confirm"  # that the synchronous standbys have it, and then ask again


@dataclass(frozen=True)
class Server:
    """What one look at a server shows of its life. None where it was not allowed to look.

    Attributes:
        postmaster: when the postmaster started.
        system: the identifier of the cluster; a standby has that of its primary.
        timeline: of the log; a promotion begins another one.
        checkpointer: the process that ends with every crash.
        checkpoint: the position of the last checkpoint in the log.
        resets: when several kinds of statistics were last reset.
        is_standby: whether it replays the log of another server, or is still recovering.
        is_synchronous: whether a COMMIT waits for a standby.
    """

    postmaster: str
    system: str | None = None
    timeline: str | None = None
    checkpointer: str | None = None
    checkpoint: int | None = None
    resets: tuple[str | None, ...] = ()
    is_standby: bool = False
    is_synchronous: bool = False


@dataclass(frozen=True)
class Ticket:
    """What the client has read before a COMMIT, so that its outcome can be asked for after it.

    Attributes:
        xid: the transaction's id, with its epoch.
        server: a look at the server, from the life of this backend.
        position: where the log ended when the ticket was read.
        pid: of the backend; None behind a pooler, which may have given it to others since.
    """

    xid: int
    server: Server
    position: int | None = None
    pid: int | None = None


def decide(
    ticket: Ticket, now: Server, status: Status, *, is_confirmed: bool = False
) -> Outcome | Step:
    """Return the outcome that is proved, or what to do before there can be one.

    Args:
        ticket: read before the COMMIT was sent.
        now: a look at the server after the connection was lost.
        status: of the ticket's id, from the same connection as *now*.
        is_confirmed: whether a COMMIT that was made after *status* has reached the synchronous
            standbys, and with it all that came before.
    """
    before = ticket.server
    if now.is_standby or _differ(before.system, now.system):
        return Step.ASK_AGAIN  # it may lack what was committed, or is another database
    has_restarted = now.postmaster != before.postmaster
    is_untouched = _is_untouched(before, now)
    if has_restarted and not (is_untouched or _agree(before.system, now.system)):
        return Outcome.UNKNOWN  # nothing says that this is the same database
    if status in (Status.ABORTED, Status.NOT_ASSIGNED):
        return Outcome.ABORTED
    if status is Status.FORGOTTEN:
        return Outcome.UNKNOWN
    # All backends of that time are gone.
    is_gone = has_restarted or _differ(before.checkpointer, now.checkpointer)
    if status is Status.IN_PROGRESS:
        return Outcome.ABORTED if is_gone else Step.END_BACKEND  # a stranger's, if it is not ours
    if is_gone and _has_lost(ticket, now):
        return Outcome.ABORTED
    if not is_untouched:
        return Outcome.UNKNOWN
    if now.is_synchronous and not is_confirmed:
        # A wait for the standbys that was broken off leaves the COMMIT standing here alone;
        # PostgreSQL itself would not acknowledge it then.
        return Step.CONFIRM
    return Outcome.COMMITTED


def _is_untouched(before: Server, now: Server) -> bool:
    """Return whether it is proved that no crash came between the two looks."""
    if now.postmaster == before.postmaster:
        if _agree(before.checkpointer, now.checkpointer) or _agree(
            before.checkpoint, now.checkpoint
        ):
            return True
    elif not _agree(before.timeline, now.timeline):
        return False
    return any(map(_agree, before.resets, now.resets))


def _has_lost(ticket: Ticket, now: Server) -> bool:
    """Return whether a server that has restarted since has lost the log behind the ticket.

    Every start leaves a checkpoint at the end of the log that it has found, and later ones lie
    behind it. So a last checkpoint that lies no later than the ticket means that the log ended
    there, before our COMMIT.
    """
    if ticket.position is None or now.checkpoint is None:
        return False
    return _agree(ticket.server.timeline, now.timeline) and now.checkpoint <= ticket.position


def _agree(one: object, other: object) -> bool:
    return one is not None and one == other


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def decide_by_marker(*, is_committed: bool, may_be_removed: bool) -> Outcome:
    """Return what the row of a marker proves, which the transaction wrote before its COMMIT.

    The question is a write itself: where there is no row it leaves one that says *not committed*.
    So a transaction that is still at work, or whose statements are still under way, cannot commit
    any more.

    Args:
        is_committed: what the row says, after the question.
        may_be_removed: whether rows as old as this one have been removed already.
    """
    if is_committed:
        return Outcome.COMMITTED
    return Outcome.UNKNOWN if may_be_removed else Outcome.ABORTED
