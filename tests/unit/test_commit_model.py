"""The decision about lost COMMITs, in every history of a server with up to ``LENGTH`` events.

That is 6, of which one is the ticket: enough for an id that is given out again while the log grows
past the ticket, for two crashes, for a failover after a crash, and for all faults planted here.
``pytest -s`` prints a table; ``python tests/commit_model.py --length 8`` goes further.
``commit_model.py`` says what is modelled, and what is taken as given of PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import commit_model as model
import pytest
from commit_model import MarkerSight, Setting, Sight, Verdict, decide_seen, explore, wrong_answers

from sa_railway.commit.decision import Outcome, Status

LENGTH = 6
FEWER = 5  # events until a setting misleads that has a fault of its own

COMMITTED, ABORTED, UNKNOWN = Outcome.COMMITTED, Outcome.ABORTED, Outcome.UNKNOWN


@pytest.mark.parametrize("setting", model.TICKET_SETTINGS, ids=repr)
def test_no_history_has_a_wrong_outcome_whatever_cannot_be_read(setting):
    found = explore(setting, LENGTH)

    for names in model.EVERY_CHOICE:
        assert wrong_answers(found, decide_seen, names) == []


def test_another_cluster_is_not_taken_for_ours_where_its_system_cannot_be_read():
    assert wrong_answers(explore(Setting(), LENGTH), _without_system_now) == []


def _without_system_now(sight: Sight) -> Verdict:
    return decide_seen(replace(sight, now=replace(sight.now, system=None)))


def test_everything_is_decided_as_long_as_no_crash_came_and_some_statistics_were_kept():
    for kind, seen, _ in explore(Setting(), LENGTH).cases:
        assert isinstance(seen, Sight)
        if kind in (model.NO_CRASH, model.STOP) and seen.now.resets != ("later", "later"):
            assert decide_seen(seen) is not UNKNOWN


@pytest.mark.parametrize("setting", model.MARKER_SETTINGS, ids=repr)
def test_a_marker_decides_every_history_unless_its_row_may_have_been_removed(setting):
    found = explore(setting, LENGTH)

    assert wrong_answers(found) == []
    unknown = {seen for seen, _ in found.examples if decide_seen(seen) is UNKNOWN}
    assert unknown == {MarkerSight(is_committed=False, may_be_removed=True)}


def test_the_table_has_a_row_for_every_kind_of_history():
    table = model.table(LENGTH)

    print(f"\n{table}")  # for pytest -s
    for kind in model.KINDS:
        assert f"\n{kind} " in table


# --- planted faults: the model must be strong enough to find them ---------------------------------

FAULTS: dict[str, Callable[[Sight], Verdict]] = {}


def fault(decide: Callable[[Sight], Verdict]) -> Callable[[Sight], Verdict]:
    FAULTS[decide.__name__] = decide
    return decide


def _is_checkpointed(sight: Sight) -> bool:
    """Whether the last checkpoint is behind the ticket."""
    assert sight.now.checkpoint is not None
    assert sight.ticket.position is not None
    return sight.now.checkpoint > sight.ticket.position


@fault
def a_last_checkpoint_behind_the_ticket_is_taken_for_a_proof(sight: Sight) -> Verdict:
    has_grown = _is_checkpointed(sight)
    return COMMITTED if has_grown and _is_unproved(sight) else decide_seen(sight)


@fault
def changed_statistics_are_taken_for_a_crash(sight: Sight) -> Verdict:
    is_changed = sight.now.resets == ("later", "later")
    return ABORTED if is_changed and _is_in_progress(sight) else decide_seen(sight)


@fault
def a_changed_checkpoint_is_taken_for_a_crash(sight: Sight) -> Verdict:
    is_changed = sight.now.checkpoint != sight.ticket.server.checkpoint
    return ABORTED if is_changed and _is_in_progress(sight) else decide_seen(sight)


@fault
def a_transaction_in_progress_is_taken_for_a_strangers(sight: Sight) -> Verdict:
    return ABORTED if _is_in_progress(sight) else decide_seen(sight)


@fault
def a_panic_at_commit_is_taken_for_an_answer(sight: Sight) -> Verdict:
    return ABORTED if sight.heard_error else decide_seen(sight)


@fault
def statistics_are_trusted_on_every_timeline(sight: Sight) -> Verdict:
    same = replace(sight.now, timeline=sight.ticket.server.timeline)
    is_trusted = decide_seen(replace(sight, now=same)) is COMMITTED
    return COMMITTED if is_trusted else decide_seen(sight)


@fault
def positions_are_compared_without_a_restart(sight: Sight) -> Verdict:
    is_same = sight.now.timeline == sight.ticket.server.timeline
    has_lost = is_same and not _is_checkpointed(sight)
    return ABORTED if has_lost and _is_unproved(sight) else decide_seen(sight)


@fault
def positions_are_compared_across_timelines(sight: Sight) -> Verdict:
    has_restarted = sight.now.postmaster != sight.ticket.server.postmaster
    has_lost = has_restarted and not _is_checkpointed(sight)
    return ABORTED if has_lost and _is_unproved(sight) else decide_seen(sight)


@fault
def the_same_postmaster_is_taken_for_the_same_life(sight: Sight) -> Verdict:
    is_same = sight.now.postmaster == sight.ticket.server.postmaster
    return COMMITTED if is_same and _is_unproved(sight) else decide_seen(sight)


@fault
def the_same_timeline_is_taken_for_the_same_life(sight: Sight) -> Verdict:
    is_same = sight.now.timeline == sight.ticket.server.timeline
    return COMMITTED if is_same and _is_unproved(sight) else decide_seen(sight)


@fault
def a_standby_that_replays_is_believed(sight: Sight) -> Verdict:
    return decide_seen(replace(sight, now=replace(sight.now, is_standby=False)))


@fault
def another_cluster_is_believed(sight: Sight) -> Verdict:
    return decide_seen(replace(sight, now=replace(sight.now, system=sight.ticket.server.system)))


def _is_in_progress(sight: Sight) -> bool:
    is_ours = not sight.now.is_standby and sight.now.system == sight.ticket.server.system
    return is_ours and sight.status is Status.IN_PROGRESS


def _is_unproved(sight: Sight) -> bool:
    return sight.status is Status.COMMITTED and decide_seen(sight) is UNKNOWN


@pytest.mark.parametrize("faulty", FAULTS.values(), ids=list(FAULTS))
def test_the_model_finds_a_decision_in_which(faulty):
    found = explore(Setting(), LENGTH)

    assert wrong_answers(found, faulty) or wrong_answers(found, faulty, frozenset({"checkpointer"}))


def test_the_model_finds_a_decision_that_trusts_a_broken_wait_for_the_standbys():
    def trust(sight: Sight) -> Verdict:
        return decide_seen(replace(sight, is_confirmed=True))

    assert wrong_answers(explore(Setting(synchronous=True), LENGTH), trust)


def test_the_model_finds_a_marker_whose_question_leaves_no_tombstone():
    setting = Setting(marker=True, leaves_tombstone=False)

    assert wrong_answers(explore(setting, FEWER))


def test_the_model_finds_a_marker_whose_question_does_not_wait_for_the_standbys():
    setting = Setting(marker=True, synchronous=True, question_writes=False)

    assert wrong_answers(explore(setting, FEWER))


def test_the_model_finds_a_marker_that_forgets_the_removal_of_old_rows():
    def forget(seen: MarkerSight) -> Verdict:
        return decide_seen(replace(seen, may_be_removed=False))

    assert wrong_answers(explore(Setting(marker=True), LENGTH), forget)


def test_a_look_from_before_the_life_of_the_backend_misleads():
    # So a look is kept for a direct connection only, which no crash and no restart outlives.
    assert wrong_answers(explore(Setting(look_is_older=True), FEWER))


def test_a_confirmation_by_another_server_than_the_one_that_was_asked_misleads():
    # So the server must be looked at again after the confirmation, where a pooler may be between.
    setting = Setting(synchronous=True, is_torn=True)

    assert wrong_answers(explore(setting, FEWER))
