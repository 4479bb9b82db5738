"""The store does not answer: go on as long as the lease is proven, not a moment longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haagent.core.actions import AnswerRequest, Exit, Guard, StartPrimary, StartStandby, StopInstance
from haagent.core.model import Handover, Instance, LastExit, Memory, Observation, OperatorRequest
from postgres_ctl.facts import ControlState
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NO_LEASE,
    NOW,
    REMEMBERS,
    crashed,
    empty,
    finished,
    judge,
    kinds,
    lease,
    obs,
    paused,
    primary,
    silent,
    standby,
    stopped,
)


def cut_off(instance: Instance, **changes: Any) -> Observation:
    return obs("pg0", instance, DOWN, **{"lease": lease(), **changes})


def test_a_primary_goes_on_while_its_lease_is_proven() -> None:
    decision = judge(cut_off(primary()))
    assert (decision.rule, decision.actions) == ("outage.lease-holds", ())
    assert decision.again_in_s is not None
    assert decision.again_in_s <= 20


def test_stale_leader_with_unknown_lease_demotes() -> None:
    for unproven in (lease(fence_at=None), lease(fence_at=NOW - 1), NO_LEASE):
        decision = judge(cut_off(primary(), lease=unproven))
        assert (decision.rule, kinds(decision)) == ("outage.demote", (StopInstance,))


def test_a_silent_server_that_may_write_demotes_too() -> None:
    assert judge(cut_off(silent(writable=True), lease=NO_LEASE)).rule == "outage.demote"


def test_a_primary_that_crashes_under_a_proven_lease_is_started_again() -> None:
    decision = judge(cut_off(crashed()))
    assert decision.rule == "outage.restart-in-place"
    assert decision.actions == (StartPrimary(Guard(epoch=EPOCH, pid=0)),)


def test_a_primary_whose_end_nobody_watched_is_not_started_blindly() -> None:
    assert judge(cut_off(crashed(last_exit=None))).rule == "outage.lease-holds"
    unwatched = crashed(last_exit=LastExit(fenced=False, watched=False))
    assert judge(cut_off(unwatched)).rule == "outage.lease-holds"


def test_nothing_is_started_in_the_middle_of_a_hand_over() -> None:
    handover = Memory(handover=Handover(9, "pg1", NOW - 1, epoch=EPOCH))
    assert judge(cut_off(stopped(ControlState.SHUT_DOWN)), handover).actions == ()


def test_starts_that_fail_are_spaced_out() -> None:
    failed = judge(cut_off(crashed(), finished=finished("start primary", False)), Memory(start_failures=1))
    assert (failed.rule, failed.actions) == ("outage.lease-holds", ())
    later = cut_off(crashed(), now=NOW + 3, lease=lease(fence_at=NOW + 20))
    assert judge(later, failed.memory).rule == "outage.restart-in-place"


def test_a_fenced_primary_starts_read_only() -> None:
    decision = judge(cut_off(crashed(), lease=NO_LEASE), REMEMBERS)
    assert (decision.rule, decision.actions) == ("outage.start-readonly", (StartStandby(None),))


def test_a_member_that_never_saw_the_cluster_starts_nothing() -> None:
    assert judge(cut_off(stopped(), lease=NO_LEASE)).rule == "outage.wait"
    assert judge(cut_off(empty(), lease=NO_LEASE), REMEMBERS).rule == "outage.wait"


def test_a_standby_stays() -> None:
    assert judge(cut_off(standby(), lease=NO_LEASE)).rule == "outage.wait"


def test_paused_nothing_happens() -> None:
    decision = judge(cut_off(primary(), lease=NO_LEASE, settings=paused()))
    assert (decision.rule, decision.actions) == ("outage.paused", ())


def test_a_request_is_answered_and_not_kept_waiting() -> None:
    decision = judge(cut_off(primary(), request=OperatorRequest(3, "restart")))
    assert decision.rule == "outage.request"
    assert decision.actions == (AnswerRequest(3, 503, "restart failed: DCS is not accessible"),)


def test_told_to_stop_it_stops_postgresql_and_ends() -> None:
    first = judge(cut_off(primary(), stopping=True))
    assert (first.rule, kinds(first)) == ("outage.stop", (StopInstance,))
    last = judge(cut_off(stopped(ControlState.SHUT_DOWN), stopping=True))
    assert (last.rule, last.actions) == ("outage.exit", (Exit(0, "stopped"),))


def test_told_to_stop_while_paused_it_leaves_postgresql_alone() -> None:
    decision = judge(
        cut_off(primary(), stopping=True, settings=paused(), lease=replace(lease(), disarmed=True))
    )
    assert (decision.rule, kinds(decision)) == ("outage.exit", (Exit,))
