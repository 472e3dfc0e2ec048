"""A model of PostgreSQL around one COMMIT whose answer is lost, and every short history of it.

``python tests/commit_model.py [--length N]`` prints what the decision makes of all of them.

A ``World`` is what matters of a server at one moment. ``_events()`` yields what can come next, and
``explore()`` follows it all. The client may ask in every world. So a partition is a while in which
it does not, and a COMMIT that arrives late is one that arrives after a question.

What is taken as given of PostgreSQL 13 to 18 (xlog.c, xact.c, pgstat.c, syncrep.c):

* A crash loses the end of the log that was not flushed. The next id comes after all ids in the
  rest, and after those of its checkpoints. So an id is given out again only if the log has lost
  every record that bears it, and every checkpoint that came after it.
* Every crash recovery ends with a checkpoint, before the first connection. A clean start writes
  none: the last one is that of the shutdown, at the end of the log. A promotion writes a mere
  end-of-recovery record, and pg_control shows an old checkpoint until the next one is complete.
* Statistics have the time of their last reset. A crash recovery discards them; a clean stop, since
  PostgreSQL 15 also that of a standby, keeps them. So a standby that began as the copy of a stopped
  server has that server's statistics. (Tried on 15: equal to the microsecond after a promotion.)
* No process outlives a crash, but for the postmaster if another process has crashed.
* A standby gets the log once it is flushed. A promotion begins a new timeline.
* A COMMIT is flushed, waits for the synchronous standbys, and is visible only then. If the wait is
  broken off it is visible all the same.

Not in the model, for no look can tell them from a clean start: the copy of a stopped server that
goes on without a promotion, on the same timeline (a backup that was restored so, or a standby whose
standby.signal was removed), and a machine that was set back to a snapshot of its memory.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from sa_railway.commit.decision import (
    Outcome,
    Server,
    Status,
    Step,
    Ticket,
    decide,
    decide_by_marker,
)

# The records of the log, a letter each; a position is an index. Ours are small, a stranger's large.
OURS, MARKER, COMMIT, ABORT = "imca"
STRANGERS, STRANGERS_COMMIT, STRANGERS_ABORT = "ICA"
CHECKPOINT = "k"  # after which only later ids are given out
_BEARING = frozenset("imcaICAk")
OTHER = "x"  # what does not know of the id
TOMBSTONE, REMOVAL = "TR"  # of markers: the row that a question leaves, the removal of old rows

NO_CRASH, STOP, CRASH, CRASHES = "no crash", "clean stop", "one crash", "two crashes or more"
PROMOTION, ELSEWHERE = "promotion", "another cluster"
KINDS = (NO_CRASH, STOP, CRASH, CRASHES, PROMOTION, ELSEWHERE)
_AFTER_CRASH = {NO_CRASH: CRASH, STOP: CRASH, CRASH: CRASHES}


@dataclass(frozen=True)
class Setting:
    """What does not change during a history.

    Attributes:
        synchronous: whether a COMMIT waits for a standby.
        marker: whether the outcome is proved by a row, not by a ticket.
        look_is_older: whether the client looks at the server before the life of its backend begins.
        is_torn: whether a pooler may bring the confirmation to another server than the question.
        leaves_tombstone: whether the question leaves a row where there is none.
        question_writes: whether the question writes also where there is a row.
    """

    synchronous: bool = False
    marker: bool = False
    look_is_older: bool = False
    is_torn: bool = False
    leaves_tombstone: bool = True
    question_writes: bool = True


class World(NamedTuple):
    """The server that the client's address leads to, and what is left of the past.

    Attributes:
        log: all records, in memory or on disk. The first is the checkpoint of the first look.
        flushed: how many of them are on disk.
        synced: how many of them a synchronous standby has for certain.
        checkpoint: the position of the last one, as pg_control shows it.
        pending: the position of one that pg_control does not show yet; 0 if there is none.
        serving: "up", "crashed", "stopped", or "elsewhere" where another cluster answers.
        backend: of our transaction: "idle" before it, "open", "committing" or "gone".
        stranger: whether another transaction is at work with our id.
        ticket: the position that the client has read; 0 before.
        postmaster, checkpointer, timeline, resets: whether they are as in the client's first look.
        asked: what a question has seen that is yet to be confirmed; only where a pooler tears.
        heard_error: whether the client may have heard of a PANIC, instead of nothing.
        kind: of the history.
    """

    log: str = OTHER
    flushed: int = 1
    synced: int = 0
    checkpoint: int = 0
    pending: int = 0
    serving: str = "up"
    backend: str = "idle"
    stranger: bool = False
    ticket: int = 0
    postmaster: bool = True
    checkpointer: bool = True
    timeline: bool = True
    resets: tuple[bool, bool] = (True, True)
    asked: Sight | None = None
    heard_error: bool = False
    kind: str = NO_CRASH

    def write(self, records: str, **changes: object) -> World:
        """Return the world with *records* at the end of the log, in memory."""
        return self._replace(log=self.log + records, **changes)  # type: ignore[arg-type]

    def flush(self, *, is_synced: bool = False) -> World:
        """Return the world with all of the log on disk, and on the standby if *is_synced*."""
        end = len(self.log)
        return self._replace(flushed=end, synced=end if is_synced else self.synced)

    @property
    def is_at_work(self) -> bool:
        """Return whether our transaction is in progress."""
        return self.backend in ("open", "committing")

    @property
    def row(self) -> str:
        """Return what the marker's row says: COMMIT, TOMBSTONE, or "" for no row.

        Tombstones are never removed.
        """
        if TOMBSTONE in self.log:
            return TOMBSTONE
        at = self.log.find(COMMIT)
        return COMMIT if at >= 0 and REMOVAL not in self.log[at:] else ""


# --- events ---------------------------------------------------------------------------------------

Events = Iterator[tuple[str, World]]


def _events(world: World, setting: Setting) -> Events:
    """Yield what can happen next, each with the world after it."""
    if world.serving == "elsewhere":
        return
    is_begun = world.backend != "idle"
    if world.serving == "up":
        yield from _log_events(world)
        if not setting.marker:
            yield from _checkpoints(world)
            yield "some statistics are reset", world._replace(resets=(False, world.resets[1]))
            yield "all statistics are reset", world._replace(resets=(False, False))
            yield from _strangers(world, setting)
        yield from _our_events(world, setting) if is_begun else _tickets(world)
    if is_begun or setting.look_is_older:
        yield from _ends(world)
        yield from _beginnings(world)
        yield from _promotions(world)
    if is_begun:
        yield from _questions(world, setting)
        elsewhere = World(serving="elsewhere", backend="gone", kind=ELSEWHERE)
        yield "the address leads to another cluster", elsewhere


def _log_events(world: World) -> Events:
    """The walwriter, or the COMMIT of another transaction, flushes any part; others write, too."""
    for log in _parts(world.log, world.flushed + 1):
        yield f"flush {log}", world._replace(flushed=len(log))
    if len(world.log) <= world.ticket or world.log[-1] != OTHER:  # behind the ticket, one will do
        yield "others write", world.write(OTHER)


def _parts(log: str, least: int) -> Iterator[str]:
    """Yield the beginnings of *log* that end with a record that matters, and all of it."""
    for end in range(least, len(log) + 1):
        if log[end - 1] != OTHER or end == len(log):
            yield log[:end]


def _checkpoints(world: World) -> Events:
    """A checkpoint is in the log a moment before pg_control shows it."""
    if world.pending:
        shown = world._replace(checkpoint=world.pending, pending=0)
        yield "pg_control shows the checkpoint", shown
    else:
        logged = world.write(_checkpoint(world), pending=len(world.log))
        yield "a checkpoint is logged", logged.flush()


def _checkpoint(world: World) -> str:
    knows = world.is_at_work or not _BEARING.isdisjoint(world.log)
    return CHECKPOINT if knows else OTHER


def _tickets(world: World) -> Events:
    """The transaction has an id, mostly by a record in the log, and others may write after that."""
    for records in ("", OURS, OURS + 4 * OTHER):
        log = world.log + records
        yield f"ticket after {log}", world._replace(log=log, ticket=len(log), backend="open")


def _our_events(world: World, setting: Setting) -> Events:
    if world.backend == "open":
        if setting.marker and MARKER not in world.log:
            is_refused = world.row == TOMBSTONE  # by the unique key
            arrived = _end_backend(world) if is_refused else world.write(MARKER)
            yield "the marker's INSERT arrives", arrived
        else:
            yield "COMMIT arrives", world.write(COMMIT, backend="committing")
        yield "our backend ends", _end_backend(world)
    elif world.backend == "committing":
        ended = world.flush(is_synced=setting.synchronous)
        yield "COMMIT ends", ended._replace(backend="gone")
        if setting.synchronous:
            yield "the wait for the standby is broken off", _end_backend(world).flush()


def _end_backend(world: World) -> World:
    """By END_BACKEND, by an administrator, or because the client's connection has ended."""
    return world.write(ABORT if world.backend == "open" else "", backend="gone")


def _strangers(world: World, setting: Setting) -> Events:
    """The id is given out again if no trace of ours is left."""
    if world.stranger:
        ended = world.write(STRANGERS_COMMIT, stranger=False)
        yield "a stranger commits", ended.flush(is_synced=setting.synchronous)
        yield "a stranger aborts", world.write(STRANGERS_ABORT, stranger=False)
    elif world.backend == "gone" and _BEARING.isdisjoint(world.log):
        yield "a stranger gets the id", world.write(STRANGERS, stranger=True)


def _ends(world: World) -> Events:
    """A crash of the server, a crash of one process, a clean stop."""
    if world.serving != "up":
        return
    crashed = world._replace(
        log=world.log[: world.flushed],
        pending=0,
        backend=_without_backend(world),
        stranger=False,
        heard_error=world.heard_error or world.backend == "committing",
        kind=_AFTER_CRASH.get(world.kind, world.kind),
    )
    yield "the server crashes", crashed._replace(serving="crashed")
    yield "a process crashes", _recover(crashed)
    # A fast stop breaks off the wait for a standby.
    last = (ABORT if world.backend == "open" else "") + (STRANGERS_ABORT if world.stranger else "")
    kind = STOP if world.kind == NO_CRASH else world.kind
    ended = world.write(last, backend=_without_backend(world), stranger=False, kind=kind)
    stopped = ended.write(_checkpoint(ended), checkpoint=len(ended.log), pending=0)
    yield "the server is stopped", stopped.flush()._replace(serving="stopped")


def _without_backend(world: World) -> str:
    return "idle" if world.backend == "idle" else "gone"


def _recover(world: World) -> World:
    recovered = world.write(_checkpoint(world), checkpoint=len(world.log)).flush()
    return recovered._replace(serving="up", checkpointer=False, resets=(False, False))


def _beginnings(world: World) -> Events:
    if world.serving == "crashed":
        yield "the server recovers", _recover(world)._replace(postmaster=False)
    elif world.serving == "stopped":
        started = world._replace(serving="up", postmaster=False, checkpointer=False)
        yield "the server starts", started


def _promotions(world: World) -> Events:
    """A standby has any part of what was flushed; a synchronous one has one of the longer parts."""
    for log in _parts(world.log[: world.flushed], 1):
        promoted = world._replace(
            log=log + OTHER,  # the end-of-recovery record
            flushed=len(log) + 1,
            synced=0,
            checkpoint=0,  # as old as can be, until the next one is complete
            pending=0,
            serving="up",
            backend=_without_backend(world),
            stranger=False,
            postmaster=False,
            checkpointer=False,
            timeline=False,
            resets=(False, False),
            kind=PROMOTION,
        )
        yield f"a standby with {log} is promoted", promoted
        yield f"a cold copy with {log} is promoted", promoted._replace(resets=(True, True))


def _questions(world: World, setting: Setting) -> Events:
    """What a question changes: the marker's rows, or what is still to be confirmed."""
    if setting.marker:
        if not world.is_at_work:
            removed = world.write(REMOVAL).flush(is_synced=setting.synchronous)
            yield "old rows are removed", removed if REMOVAL not in world.log else world
        yield "a question", _answer(world, setting) or world
    elif setting.is_torn and world.serving == "up" and world.asked is None:
        yield "a question", world._replace(asked=_sight(world, setting))


def _answer(world: World, setting: Setting) -> World | None:
    """Return the world after the marker's question; None if it waits, or meets no server.

    It commits a write of its own. The standbys that it waits for then have all that came before.
    """
    if world.serving != "up" or (world.is_at_work and MARKER in world.log):
        return None
    writes = setting.question_writes if world.row else setting.leaves_tombstone
    if not writes:
        return world
    return world.write(OTHER if world.row else TOMBSTONE).flush(is_synced=setting.synchronous)


# --- what the client sees, and what is true -------------------------------------------------------


@dataclass(frozen=True, eq=False)  # each is made once, so that comparing is fast
class Sight:
    """What the client knows when it decides by a ticket."""

    ticket: Ticket
    now: Server
    status: Status
    is_confirmed: bool = False
    heard_error: bool = False


@dataclass(frozen=True)
class MarkerSight:
    """What the client knows when it decides by the marker."""

    is_committed: bool
    may_be_removed: bool


class Truth(NamedTuple):
    """What is true of our COMMIT on the server that answers, and on what it comes from."""

    is_there: bool
    is_replicated: bool  # or need not be
    may_come: bool
    is_elsewhere: bool


Seen = Sight | MarkerSight
Verdict = Outcome | Step


def is_wrong(verdict: Verdict, truth: Truth) -> bool:
    """Return whether *verdict* is an untruth; neither asking again nor UNKNOWN ever is."""
    if verdict not in (Outcome.COMMITTED, Outcome.ABORTED):
        return False
    if truth.is_elsewhere:
        return True
    if verdict is Outcome.COMMITTED:
        return not (truth.is_there and truth.is_replicated)
    return truth.is_there or truth.may_come


def _truth(world: World, setting: Setting) -> Truth:
    is_refused = setting.marker and MARKER not in world.log and world.row == TOMBSTONE
    return Truth(
        is_there=COMMIT in world.log and not world.is_at_work,
        is_replicated=not setting.synchronous or world.synced > world.log.find(COMMIT),
        may_come=world.is_at_work and not is_refused,
        is_elsewhere=world.serving == "elsewhere",
    )


def _sights(world: World, setting: Setting) -> Iterator[tuple[Seen, Truth]]:
    """Yield what a question can see in *world*, with the truth at the time of its answer."""
    truth = _truth(world, setting)
    if world.backend == "idle":
        return
    if setting.marker:
        answered = _answer(world, setting)
        if answered is not None:
            sight = MarkerSight(world.row == COMMIT, REMOVAL in world.log)
            yield sight, _truth(answered, setting)
    elif world.serving == "elsewhere":
        yield from ((sight, truth) for sight in _foreign_sights())
    else:
        yield from ((sight, truth) for sight in set(_standby_sights(world)))
        if world.serving == "up":
            yield _sight(world, setting), truth
            if setting.synchronous:
                asked = world.asked if world.asked is not None else _sight(world, setting)
                confirmed = _make_sight(asked.ticket, asked.now, asked.status, is_confirmed=True)
                yield confirmed, _truth(world.flush(is_synced=True), setting)


def _sight(world: World, setting: Setting) -> Sight:
    status = (
        Status.IN_PROGRESS
        if world.is_at_work or world.stranger
        else _status(world.log, otherwise=Status.ABORTED)
    )
    now = _make_server(
        postmaster="p" if world.postmaster else "later",
        system="s",
        timeline="1" if world.timeline else "2",
        checkpointer="c" if world.checkpointer else "later",
        checkpoint=world.checkpoint,
        resets=tuple("r" if is_same else "later" for is_same in world.resets),
        is_synchronous=setting.synchronous,
    )
    ticket = _ticket(world.ticket, is_synchronous=setting.synchronous)
    return _make_sight(ticket, now, status, heard_error=world.heard_error)


# Each is made once: the tests look for passwords in all that the package makes.
_make_server, _make_sight = functools.cache(Server), functools.cache(Sight)


@functools.cache
def _ticket(position: int, *, is_synchronous: bool = False) -> Ticket:
    look = Server("p", "s", "1", "c", 0, ("r", "r"), is_synchronous=is_synchronous)
    return Ticket(xid=7, server=look, position=position, pid=1)


def _status(log: str, *, otherwise: Status) -> Status:
    if COMMIT in log or STRANGERS_COMMIT in log:
        return Status.COMMITTED
    if ABORT in log or STRANGERS_ABORT in log:
        return Status.ABORTED
    return Status.NOT_ASSIGNED if _BEARING.isdisjoint(log) else otherwise


def _standby_sights(world: World) -> Iterator[Sight]:
    """Yield what a standby shows that has replayed any part of the log, and goes on with it."""
    now = _make_server("later", "s", "1", "later", 0, ("r", "r"), is_standby=True)
    for log in _parts(world.log[: world.flushed], 1):
        status = _status(log, otherwise=Status.IN_PROGRESS)
        yield _make_sight(_ticket(world.ticket), now, status)


@functools.cache
def _foreign_sights() -> list[Sight]:
    """Return what another cluster may show."""
    return [
        Sight(_ticket(1), Server("later", "another", "1", "later", at, ("later", "later")), status)
        for at in (0, 1_000)
        for status in Status
    ]


# --- every history --------------------------------------------------------------------------------


@dataclass
class Exploration:
    """What was found in all histories of a setting up to some length.

    Attributes:
        setting: of the histories.
        cases: in how many worlds of a kind a question sees this while that is true.
        examples: one of these worlds.
        histories: how many there are of each kind, as sequences of events. A shorter one counts,
            too; what comes before the ticket does not.
        origins: from where, and by what event, each world was reached first.
    """

    setting: Setting
    cases: Counter[tuple[str, Seen, Truth]] = field(default_factory=Counter)
    examples: dict[tuple[Seen, Truth], World] = field(default_factory=dict)
    histories: Counter[str] = field(default_factory=Counter)
    origins: dict[World, tuple[World, str] | None] = field(default_factory=dict)

    def observe(self, world: World) -> None:
        """Note what a question can see in a world that is met for the first time."""
        for seen, truth in _sights(world, self.setting):
            self.cases[world.kind, seen, truth] += 1
            self.examples.setdefault((seen, truth), world)

    def history(self, seen: Seen, truth: Truth) -> str:
        """Return the events that have led to an example."""
        events, origin = [], self.origins[self.examples[seen, truth]]
        while origin is not None:
            events.append(origin[1])
            origin = self.origins[origin[0]]
        return ", ".join(reversed(events))


@functools.cache
def explore(setting: Setting, length: int) -> Exploration:
    """Follow every history of up to *length* events; worlds that are equal are looked at once."""
    found = Exploration(setting)
    found.origins[World()] = None
    successors = functools.cache(lambda world: list(_events(world, setting)))
    layer = {World(): 1}
    for _ in range(length):
        following: Counter[World] = Counter()
        for world, count in layer.items():
            for event, after in successors(world):
                if after == world:
                    continue
                following[after] += count
                if after not in found.origins:
                    found.origins[after] = world, event
                    found.observe(after)
        for world, count in following.items():
            found.histories[world.kind] += count if world.backend != "idle" else 0
        layer = following
    return found


# --- judging a decision ---------------------------------------------------------------------------

FACTS = ("system", "timeline", "checkpointer", "checkpoint", "resets", "position")
# What a role may be kept from reading: every choice of facts, and those that are likely.
EVERY_CHOICE = [frozenset(c) for n in range(len(FACTS) + 1) for c in combinations(FACTS, n)]
LIKELY = [*EVERY_CHOICE[1 : len(FACTS) + 1], frozenset({"timeline", "position"}), EVERY_CHOICE[-1]]
TICKET_SETTINGS = (Setting(), Setting(synchronous=True))
MARKER_SETTINGS = (Setting(marker=True), Setting(marker=True, synchronous=True))


def decide_seen(seen: Seen) -> Verdict:
    """Return what the code under test makes of *seen*."""
    if isinstance(seen, MarkerSight):
        return decide_by_marker(is_committed=seen.is_committed, may_be_removed=seen.may_be_removed)
    return decide(seen.ticket, seen.now, seen.status, is_confirmed=seen.is_confirmed)


def hide(seen: Seen, names: frozenset[str]) -> Seen:
    """Return *seen* for a role that may not read the facts of these names, in either look."""
    if isinstance(seen, MarkerSight) or not names:
        return seen
    ticket, now = _hide_ticket(seen.ticket, names), _hide(seen.now, names)
    return Sight(ticket, now, seen.status, seen.is_confirmed, seen.heard_error)


@functools.cache
def _hide_ticket(ticket: Ticket, names: frozenset[str]) -> Ticket:
    position = None if "position" in names else ticket.position
    return replace(ticket, server=_hide(ticket.server, names), position=position)


@functools.cache
def _hide(server: Server, names: frozenset[str]) -> Server:
    blank: dict[str, Any] = {
        name: () if name == "resets" else None for name in names - {"position"}
    }
    return replace(server, **blank)


def wrong_answers(
    found: Exploration,
    decision: Callable[..., Verdict] = decide_seen,
    names: frozenset[str] = frozenset(),
) -> list[str]:
    """Return the wrong answers of *decision*, each with a history that leads to it."""
    judged = ((seen, truth, decision(hide(seen, names))) for seen, truth in found.examples)
    return [
        f"{verdict} after: {found.history(seen, truth)}"
        for seen, truth, verdict in judged
        if is_wrong(verdict, truth)
    ]


class Tally(Counter[tuple[str, str]]):
    """How many looks, wrong answers, outcomes and unknown ones there are in histories of a kind."""

    def __init__(self, explorations: list[Exploration], choices: list[frozenset[str]]) -> None:
        super().__init__()
        for names in choices:
            judged = functools.cache(lambda seen, names=names: decide_seen(hide(seen, names)))
            for found in explorations:
                for (kind, seen, truth), count in found.cases.items():
                    if isinstance(seen, MarkerSight) and seen.may_be_removed:
                        continue  # which may well be unknown
                    verdict = judged(seen)
                    self[kind, "looks"] += count
                    self[kind, "wrong"] += count * is_wrong(verdict, truth)
                    self[kind, "outcomes"] += count * isinstance(verdict, Outcome)
                    self[kind, "unknown"] += count * (verdict is Outcome.UNKNOWN)

    def share(self, kind: str) -> str:
        """Return how many of the outcomes are unknown."""
        outcomes = self[kind, "outcomes"]
        return f"{self[kind, 'unknown'] / outcomes:.1%}" if outcomes else "-"


_HEADS = (
    *("history", "histories", "looks", "wrong", "unknown", "some facts hidden"),
    *("marker: histories", "questions", "wrong", "unknown"),
)


def table(length: int) -> str:
    """Return the rows in columns."""
    return "\n".join(map(_line, rows(length)))


def markdown(length: int) -> str:
    """Return the rows as docs/transactions.md shows them."""
    lines = [
        "| history | histories | wrong | unknown | some facts hidden | marker: wrong | unknown |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, histories, _, wrong, unknown, hidden, _, _, marked, undecided in rows(length)[1:]:
        cells = (kind, f"{histories:,}", wrong, unknown, hidden, marked, undecided)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def rows(length: int) -> list[tuple[object, ...]]:
    """Return what the decision makes of every history of up to *length* events.

    A look is a question in a world. An answer that asks again is no outcome; *unknown* is the share
    of the outcomes. With a marker, the questions are those before old rows are removed.
    """
    tickets = [explore(setting, length) for setting in TICKET_SETTINGS]
    markers = [explore(setting, length) for setting in MARKER_SETTINGS]
    full, hidden = Tally(tickets, [frozenset()]), Tally(tickets, LIKELY)
    asked = Tally(markers, [frozenset()])
    found: list[tuple[object, ...]] = [_HEADS]
    for kind in KINDS:
        wrong = full[kind, "wrong"] + hidden[kind, "wrong"]
        left = (kind, _histories(tickets, kind), full[kind, "looks"], wrong, full.share(kind))
        right = (_histories(markers, kind), asked[kind, "looks"], asked[kind, "wrong"])
        found.append((*left, hidden.share(kind), *right, asked.share(kind)))
    unasked = (_histories(tickets, *KINDS), 0, 0, "100.0%", "100.0%")
    found.append(("partition to the end", *unasked, _histories(markers, *KINDS), 0, 0, "100.0%"))
    return found


def _histories(explorations: list[Exploration], *kinds: str) -> int:
    return sum(found.histories[kind] for found in explorations for kind in kinds)


def _line(row: tuple[object, ...]) -> str:
    cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
    first, *others = zip(cells, _HEADS, strict=True)
    return f"{first[0]:21}" + "".join(f"{cell:>{max(len(head), 9) + 2}}" for cell, head in others)


def main() -> None:
    """Print the table for a length of one's own."""
    parser = argparse.ArgumentParser(description="Print what is decided in every history.")
    parser.add_argument("--length", type=int, default=8, help="events in a history (default: 8)")
    parser.add_argument("--write", action="store_true", help="update docs/transactions.md")
    options = parser.parse_args()
    print(table(options.length))
    if options.write:
        page = Path(__file__).parents[1] / "docs" / "transactions.md"
        head, _, rest = page.read_text().partition("<!-- model -->\n")
        _, end, tail = rest.partition("<!-- /model -->")
        page.write_text(f"{head}<!-- model -->\n{markdown(options.length)}\n{end}{tail}")


if __name__ == "__main__":
    main()
