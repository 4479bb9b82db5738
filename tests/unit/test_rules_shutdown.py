"""Told to end: PostgreSQL first, then the key, then the agent."""

from __future__ import annotations

from dcs.records import HistoryRow
from haagent.core.actions import (
    Exit,
    Guard,
    MarkUnfenced,
    ReleaseLeader,
    SetFencing,
    StopInstance,
    WriteHistory,
)
from haagent.core.rules.common import SENDERS_GRACE_S
from postgres_ctl.facts import ControlState, Lsn, TimelineSwitch
from tests.unit.core_facts import (
    EPOCH,
    OPTIME,
    cluster,
    control,
    crashed,
    following,
    judge,
    kinds,
    leading,
    lease,
    paused,
    primary,
    silent,
    standby,
    stopped,
)


def test_a_running_server_is_stopped_first() -> None:
    for instance in (primary(), silent(writable=True)):
        decision = judge(leading(instance, stopping=True))
        assert decision.rule == "stop.postgres"
        # A standby that hangs must not hold the shutdown up.
        assert decision.actions == (StopInstance("fast", "shutdown", SENDERS_GRACE_S, before_stop=True),)
    assert judge(following(standby(), stopping=True)).rule == "stop.postgres"


def test_the_key_goes_with_the_last_position_once_postgresql_is_stopped() -> None:
    decision = judge(leading(stopped(ControlState.SHUT_DOWN), stopping=True))
    assert (decision.rule, decision.actions) == ("stop.release", (ReleaseLeader(EPOCH, Lsn(OPTIME)),))


def test_a_crashed_primary_releases_without_a_position() -> None:
    assert judge(leading(crashed(), stopping=True)).actions == (ReleaseLeader(EPOCH),)


def test_a_standby_that_never_promoted_says_nothing_of_the_last_position() -> None:
    """Its last restartpoint is not where the primary ended: others would count as whole that are not."""
    assert judge(leading(stopped(), stopping=True)).actions == (ReleaseLeader(EPOCH),)


def test_where_its_timeline_began_is_told_before_its_last_position() -> None:
    """A primary may end before its first step: others, on the old timeline, would count as whole (H15)."""
    own = stopped(
        control=control(ControlState.SHUT_DOWN, timeline=2), history=(TimelineSwitch(1, Lsn(90), ""),)
    )
    untold, told = cluster(), cluster(history=(HistoryRow(1, 90, "", "2030", "pg0"),))
    key = ReleaseLeader(EPOCH, Lsn(OPTIME))
    for stopping in (True, False):
        closed = lease() if stopping else lease(closed_epoch=EPOCH)
        for view, actions in ((untold, (WriteHistory(Guard(), 2), key)), (told, (key,))):
            assert judge(leading(own, view, lease=closed, stopping=stopping)).actions == actions


def test_without_a_key_it_just_ends() -> None:
    decision = judge(following(stopped(), stopping=True))
    assert (decision.rule, decision.actions) == ("stop.exit", (Exit(0, "stopped"),))


def test_paused_server_and_key_are_left_alone() -> None:
    decision = judge(leading(primary(), stopping=True, settings=paused(), lease=lease(disarmed=True)))
    assert (decision.rule, decision.actions) == ("stop.paused", (Exit(0, "paused"),))


def test_paused_the_fence_is_disarmed_before_the_agent_goes() -> None:
    """Else the guardian would stop the server that was to be left alone, once the lease runs out."""
    decision = judge(leading(primary(), stopping=True, settings=paused()))
    assert decision.rule == "stop.paused"
    assert kinds(decision) == (MarkUnfenced, SetFencing, Exit)


def test_without_a_guardian_there_is_no_fence_to_disarm() -> None:
    seen = leading(primary(), stopping=True, settings=paused(), lease=lease(guardian_ok=False))
    assert kinds(judge(seen)) == (Exit,)
