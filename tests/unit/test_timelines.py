"""Numbers of timelines are used once; WAL beside the cluster's line neither promotes nor blocks (H15)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import HistoryRow, Status, TimelineClaim
from haagent.core.actions import Promote, WriteClaim, WriteHistory, WriteStatus
from haagent.core.candidate import expected_loss_bytes, standing
from haagent.core.member_select import history_note
from haagent.core.model import Instance, Observation, evolve
from haagent.core.timelines import leaves_the_line, next_timeline, position_in_my_history
from postgres_ctl.facts import InstanceSample, Lsn, TimelineSwitch, parting
from tests.unit.core_facts import (
    EPOCH,
    NOW,
    OPTIME,
    REMEMBERS,
    answer,
    cluster,
    judge,
    kinds,
    leading,
    lost_stream,
    member,
    primary,
    racing,
)

Path = tuple[TimelineSwitch, ...]
BEFORE, SWITCH = Lsn(OPTIME - 2000), Lsn(OPTIME - 1000)


def path(*switches: tuple[int, Lsn]) -> Path:
    return tuple(TimelineSwitch(timeline, lsn, "promoted") for timeline, lsn in switches)


def rows(*ended: tuple[int, Lsn, str]) -> tuple[HistoryRow, ...]:
    return tuple(
        HistoryRow(timeline, lsn.value, "promoted", "2030", leader) for timeline, lsn, leader in ended
    )


def on(instance: Instance, timeline: int, history: Path = ()) -> Instance:
    assert isinstance(instance.sample, InstanceSample)
    return replace(instance, sample=replace(instance.sample, timeline=timeline), history=history)


def voter(timeline: int, path: Path, position: int = OPTIME, **view: Any) -> Observation:
    free = cluster(leader=None, members=(member("pg1"), member("pg2")), **view)
    return racing(on(lost_stream(position), timeline, path), free)


# --- numbers --------------------------------------------------------------------------------------


def test_the_next_number_is_one_that_nobody_was_told_to_make() -> None:
    claims = (TimelineClaim(5, "pg0", 3), TimelineClaim(6, "pg2", 4))
    assert next_timeline(voter(4, (), claims=claims), cluster(claims=claims)) == 7
    assert next_timeline(voter(4, ()), cluster()) == 5
    ended = cluster(history=rows((8, BEFORE, "pg0")))
    assert next_timeline(voter(4, ()), ended) == 10


def test_a_promotion_claims_the_number_it_makes() -> None:
    view = cluster(claims=(TimelineClaim(2, "pg2", 3),))
    decision = judge(leading(lost_stream(), view, peers=(answer("pg1"), answer("pg2"))))
    claim, promote = decision.actions
    assert isinstance(claim, WriteClaim)
    assert isinstance(promote, Promote)
    assert (claim.timeline, promote.above, promote.timeline) == (3, 1, 3)


def test_a_timeline_made_without_a_claim_is_claimed_late_and_told_before_the_position() -> None:
    view = cluster(history=rows((1, BEFORE, "pg9")), status=None)
    decision = judge(leading(on(primary(), 3, path((2, SWITCH))), view))
    assert kinds(decision)[:3] == (WriteClaim, WriteHistory, WriteStatus)
    assert decision.actions[0] == WriteClaim(3, EPOCH, 0)


def test_a_gap_in_the_numbers_is_no_reason_to_write_the_history_again() -> None:
    view = cluster(history=rows((2, SWITCH, "pg0")), claims=(TimelineClaim(6, "pg0", EPOCH),))
    decision = judge(leading(on(primary(), 6, path((2, SWITCH))), view))
    assert WriteHistory not in kinds(decision)
    assert WriteClaim not in kinds(decision)


def test_the_note_of_a_promotion_is_found_behind_a_gap() -> None:
    told = rows((1, BEFORE, "pg1"), (4, SWITCH, "pg2"))
    claims = (
        TimelineClaim(2, "pg0", 3, "lost to nobody"),
        TimelineClaim(3, "pg1", 4, "failed"),
        TimelineClaim(4, "pg1", 5, "7 bytes"),
        TimelineClaim(5, "pg2", 6, "9 bytes"),
    )
    view = cluster(history=told, claims=claims)
    assert [history_note(view, row) for row in told] == ["7 bytes", "9 bytes"]


# --- lines ----------------------------------------------------------------------------------------

FORK = path((1, BEFORE))


@pytest.mark.parametrize(
    ("ours", "mine", "theirs", "their", "expected"),
    [
        (FORK, 2, FORK, 2, None),
        ((), 1, FORK, 2, BEFORE),
        (FORK, 2, (), 1, BEFORE),
        (FORK, 2, FORK, 3, BEFORE),
        (FORK, 2, path((1, SWITCH)), 3, BEFORE),
        (path((1, BEFORE), (2, SWITCH)), 4, path((1, BEFORE), (2, SWITCH)), 5, SWITCH),
        ((), 7, path((2, SWITCH)), 8, Lsn(0)),
    ],
)
def test_where_two_lines_part(ours: Path, mine: int, theirs: Path, their: int, expected: Lsn | None) -> None:
    assert parting(ours, mine, theirs, their) == expected
    assert parting(theirs, their, ours, mine) == expected


def test_wal_beyond_the_end_of_its_timeline_never_promotes_unless_an_operator_says_so() -> None:
    seen = voter(1, (), history=rows((1, SWITCH, "pg2")))
    assert [r.rule for r in standing(seen, REMEMBERS).refusals] == ["timeline.diverged"]
    behind = voter(1, (), SWITCH.value, history=rows((1, SWITCH, "pg2")))
    assert standing(behind, REMEMBERS).may_lead


def test_a_timeline_that_another_member_than_the_last_leader_made_has_diverged() -> None:
    told = rows((4, SWITCH, "pg2"))
    claims = (TimelineClaim(5, "pg0", 3), TimelineClaim(6, "pg2", 4))
    lost = voter(5, path((4, SWITCH)), history=told, claims=claims)
    good = voter(6, path((4, SWITCH)), history=told, claims=claims)
    assert [r.rule for r in standing(lost, REMEMBERS).refusals] == ["timeline.diverged"]
    assert standing(good, REMEMBERS).may_lead
    assert leaves_the_line(lost, cluster(history=told, claims=claims)) == SWITCH


def test_a_leader_that_claims_nothing_is_followed_all_the_same() -> None:
    """Patroni's: another member's claim on the number it made came to nothing."""
    told, claims = rows((4, SWITCH, "pg9")), (TimelineClaim(5, "pg0", 3),)
    assert standing(voter(5, path((4, SWITCH)), history=told, claims=claims), REMEMBERS).may_lead


def test_the_expected_loss_counts_from_where_the_line_was_left() -> None:
    view: dict[str, Any] = {"history": rows((1, SWITCH, "pg2")), "status": Status(OPTIME)}
    seen = voter(1, (), **view)
    assert expected_loss_bytes(seen, cluster(**view)) == 1000


def test_a_history_that_begins_late_still_bounds_what_is_ours() -> None:
    cut_short = voter(1, (), history=rows((3, SWITCH, "pg2")))
    assert leaves_the_line(cut_short, cluster(history=rows((3, SWITCH, "pg2")))) == SWITCH


def test_diverged_wal_of_a_peer_does_not_count() -> None:
    told = rows((1, SWITCH, "pg2"))
    seen = voter(1, (), SWITCH.value, history=told)
    peer = answer("pg2", OPTIME)
    assert position_in_my_history(seen, peer) == SWITCH
    long_ago = evolve(REMEMBERS, leader_missing_since=NOW - 31)
    assert standing(replace(seen, peers={"pg2": peer}), long_ago).may_lead
