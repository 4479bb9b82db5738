"""What operators scheduled begins in its window, by the wall clock, and is none before (contract 2.7)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dcs.records import ClusterSnapshot, FailoverRequest
from haagent.core.actions import (
    AnswerRequest,
    BeginScheduled,
    ClearFailover,
    DropScheduledRestart,
    Guard,
    Promote,
    Restart,
    ScheduleRestart,
    TakeLeader,
)
from haagent.core.model import (
    Decision,
    Handover,
    JobFacts,
    Memory,
    Observation,
    OperatorRequest,
    Unavailable,
)
from haagent.core.restart import RestartWish, ScheduledRestart
from tests.unit.core_facts import (
    EPOCH,
    REMEMBERS,
    SETTINGS,
    answer,
    asked,
    cluster,
    following,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    obs,
    paused,
    primary,
    racing,
    request,
    silent,
    standby,
)

#: The point in time, Unix seconds; loop_wait is 10 s, so it may begin until 15 s later.
AT = 2_000_000_000.0
TEXT = datetime.fromtimestamp(AT, UTC).isoformat()
LEFT = tuple(member(n) for n in ("pg1", "pg2"))


def scheduled(leader: str | None = "pg0", candidate: str | None = "pg1") -> FailoverRequest:
    return replace(request(leader, candidate), scheduled_at=TEXT, due_at=AT)


def at(seconds: float, wish: FailoverRequest | None = None, **changes: Any) -> Observation:
    """The primary, so long after the point in time."""
    view = asked(cluster(), wish or scheduled())
    return leading(primary(), view, wall=AT + seconds, peers=(answer("pg1"),), **changes)


def cleared(decision: Decision) -> tuple[int, str]:
    return next((a.status, a.outcome) for a in decision.actions if isinstance(a, ClearFailover))


# --- the leader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [scheduled(), scheduled(leader="pg2"), scheduled(candidate="pg0")])
def test_before_its_time_a_switchover_is_waited_for_to_the_second(wish: FailoverRequest) -> None:
    far, near = judge(at(-3600, wish)), judge(at(-0.75, wish))
    assert (far.rule, far.again_in_s) == ("leader.steady", None)
    assert (near.rule, near.again_in_s) == ("leader.steady", 0.75)


@pytest.mark.parametrize("seconds", [0.0, 14.9])
def test_in_its_window_it_becomes_a_switchover_for_now(seconds: float) -> None:
    decision = judge(at(seconds))
    assert decision.actions == (BeginScheduled(Guard(EPOCH, 77), 9, "pg0", "pg1"),)
    assert (decision.rule, decision.again_in_s) == ("switchover.due", 0.0)


def test_after_its_window_it_is_dropped() -> None:
    decision = judge(at(15.1))
    assert decision.rule == "switchover.cleared"
    assert cleared(decision) == (503, f"the switchover scheduled at {TEXT} could not begin in time: dropped")


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (scheduled(leader="pg2"), "leader name does not match"),
        (scheduled(candidate="pg0"), "Switchover target and source are the same"),
    ],
)
def test_one_that_makes_no_sense_is_dropped_when_it_is_due(wish: FailoverRequest, text: str) -> None:
    assert cleared(judge(at(1, wish))) == (412, text)


@pytest.mark.parametrize("seconds", [-0.5, 1.0, 3600.0])
@pytest.mark.parametrize("candidate", ["pg1", None])
def test_in_a_pause_it_neither_begins_nor_goes(seconds: float, candidate: str | None) -> None:
    disarmed = lease(disarmed=True)
    decision = judge(at(seconds, scheduled(candidate=candidate), settings=paused(), lease=disarmed))
    assert (decision.rule, decision.again_in_s) == ("pause.leader", None)
    assert ClearFailover not in kinds(decision)


def test_a_clock_that_is_set_back_makes_it_wait_again_and_one_set_forward_drops_it() -> None:
    assert judge(at(-5)).again_in_s == 5.0
    assert judge(at(-500)).again_in_s is None
    assert judge(at(500)).rule == "switchover.cleared"


# --- everybody else -------------------------------------------------------------------------------


def free(wish: FailoverRequest | None) -> ClusterSnapshot:
    """Nobody leads."""
    view = cluster(leader=None, members=LEFT)
    return asked(view, wish) if wish is not None else view


@pytest.mark.parametrize("candidate", ["pg1", "pg2", None])
def test_an_election_before_its_time_is_as_if_nothing_were_scheduled(candidate: str | None) -> None:
    wish = scheduled(candidate=candidate)
    for position in (5_000_000, 1_000_000):
        here = racing(lost_stream(position), free(wish), wall=AT - 60)
        plain = racing(lost_stream(position), free(None), wall=AT - 60)
        scheduled_so, as_ever = judge(here, REMEMBERS), judge(plain, REMEMBERS)
        assert (scheduled_so.rule, scheduled_so.refusals) == (as_ever.rule, as_ever.refusals)


def test_once_it_is_due_its_candidate_goes_first() -> None:
    """So it is when a leader of Patroni's, which leaves the time in the key, has stepped down by it."""
    wish = scheduled(candidate="pg2")
    decision = judge(racing(lost_stream(), free(wish), wall=AT + 1), REMEMBERS)
    assert [r.detail for r in decision.refusals] == ["pg2 was asked for and is fit"]
    mine = judge(racing(lost_stream(), free(scheduled()), wall=AT + 1), REMEMBERS)
    assert mine.actions == (TakeLeader(),)


def test_whoever_is_promoted_before_drops_it() -> None:
    view = asked(cluster(leader="pg1", members=LEFT), scheduled())
    seen = obs("pg1", lost_stream(), view, lease=lease(epoch=EPOCH), wall=AT - 60, peers=(answer("pg2"),))
    decision = judge(seen, REMEMBERS)
    assert Promote in kinds(decision)
    assert cleared(decision) == (412, "pg1 was promoted before the switchover was due: dropped")


def test_the_window_follows_loop_wait() -> None:
    quick = replace(SETTINGS, loop_wait_s=1)
    assert judge(at(2.0, settings=quick)).rule == "switchover.cleared"


# --- restarts -------------------------------------------------------------------------------------

START = "2030-01-01 10:00:00.000001+00:00"
SHOWN = {"schedule": TEXT, "role": "primary"}
WISH = RestartWish(role="primary", due_at=AT, shown=SHOWN)
PLANNED = ScheduledRestart(AT, WISH, START)
SCHEDULE = OperatorRequest(5, "schedule restart", wish=WISH)
DELETE = OperatorRequest(6, "delete scheduled restart")


def planned(seconds: float, restart: ScheduledRestart = PLANNED, **changes: Any) -> Observation:
    return leading(primary(), wall=AT + seconds, scheduled_restart=restart, **changes)


def test_a_restart_is_scheduled_with_the_server_it_is_meant_for() -> None:
    decision = judge(leading(primary(), request=SCHEDULE))
    assert decision.rule == "restart.scheduled"
    assert decision.actions == (ScheduleRestart(PLANNED), AnswerRequest(5, 202, "Restart scheduled"))
    assert PLANNED.shown == {**SHOWN, "postmaster_start_time": START}


def test_there_is_one_scheduled_restart_at_most() -> None:
    twice = judge(planned(-60, request=SCHEDULE))
    assert twice.actions == (AnswerRequest(5, 409, "Another restart is already scheduled"),)


def test_a_scheduled_restart_is_deleted_once() -> None:
    decision = judge(planned(-60, request=DELETE))
    assert decision.rule == "restart.deleted"
    assert decision.actions == (DropScheduledRestart(), AnswerRequest(6, 200, "scheduled restart deleted"))
    nothing = judge(leading(primary(), request=DELETE))
    assert nothing.actions == (AnswerRequest(6, 404, "no restarts are scheduled"),)


@pytest.mark.parametrize("wish", [SCHEDULE, DELETE])
def test_scheduling_waits_for_nobody(wish: OperatorRequest) -> None:
    """Neither for the store nor for what runs here."""
    down = Unavailable(1000.0, "timeout")
    for seen in (
        obs("pg0", primary(), down, request=wish),
        leading(silent(writable=True), job=JobFacts("restart", 990.0, epoch=EPOCH), request=wish),
    ):
        (answered,) = (a for a in judge(seen).actions if isinstance(a, AnswerRequest))
        assert answered.status in (202, 404)


def test_a_scheduled_restart_begins_in_its_window() -> None:
    assert (judge(planned(-3)).rule, judge(planned(-3)).again_in_s) == ("leader.steady", 3.0)
    for seconds in (0.0, 14.9):
        decision = judge(planned(seconds))
        assert decision.rule == "restart.due"
        assert decision.actions == (Restart(None, EPOCH, None, 300), DropScheduledRestart())
    assert (judge(planned(15.1)).rule, judge(planned(15.1)).actions) == (
        "restart.late",
        (DropScheduledRestart(),),
    )


def test_a_standby_restarts_by_its_schedule_too() -> None:
    own = ScheduledRestart(AT, RestartWish(due_at=AT), START)
    decision = judge(following(standby(), wall=AT, scheduled_restart=own))
    assert decision.actions == (Restart(None, None, "pg0"), DropScheduledRestart())


def test_the_conditions_of_a_scheduled_restart_are_judged_when_it_is_due() -> None:
    as_replica = replace(PLANNED, wish=replace(WISH, role="replica"))
    assert judge(planned(-60, as_replica)).rule == "leader.steady"
    decision = judge(planned(1, as_replica))
    assert (decision.rule, decision.actions) == ("restart.unwanted", (DropScheduledRestart(),))


def test_a_server_that_was_restarted_since_is_not_restarted_again() -> None:
    older = replace(PLANNED, postmaster_start_time="2029-01-01 10:00:00.000001+00:00")
    for seconds in (-3600.0, 1.0):
        decision = judge(planned(seconds, older))
        assert (decision.rule, decision.actions) == ("restart.overtaken", (DropScheduledRestart(),))
    in_a_pause = judge(planned(1, older, settings=paused(), lease=lease(disarmed=True)))
    assert in_a_pause.rule == "restart.overtaken"


@pytest.mark.parametrize("seconds", [-0.5, 1.0, 3600.0])
def test_in_a_pause_a_scheduled_restart_neither_begins_nor_goes(seconds: float) -> None:
    decision = judge(planned(seconds, settings=paused(), lease=lease(disarmed=True)))
    assert (decision.rule, decision.again_in_s) == ("pause.leader", None)


def test_an_election_is_not_delayed_by_a_scheduled_restart() -> None:
    own = ScheduledRestart(AT, RestartWish(due_at=AT), START)
    here = racing(lost_stream(), wall=AT + 1, scheduled_restart=own)
    assert judge(here, REMEMBERS).actions == (TakeLeader(),)
    won = obs("pg1", lost_stream(), cluster("pg1", members=LEFT), wall=AT + 1, scheduled_restart=own,
              peers=(answer("pg2"),))  # fmt: skip
    assert judge(won, REMEMBERS).rule == "promote.now"


def test_a_scheduled_restart_waits_for_a_proven_lease_and_for_a_hand_over() -> None:
    unproven = judge(planned(1, lease=lease(fence_at=None)))
    assert Restart not in kinds(unproven)
    handing_over = Memory(handover=Handover(9, "pg1", 999.0, epoch=EPOCH))
    assert Restart not in kinds(judge(planned(1), handing_over))
