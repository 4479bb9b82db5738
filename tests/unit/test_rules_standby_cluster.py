"""A standby cluster: whoever holds its key follows the other cluster, and nobody of it is ever promoted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, ClusterSnapshot, HistoryRow, TimelineClaim
from haagent.core.actions import (
    ArchiveLast,
    AskPeers,
    CheckDivergence,
    ClearFailover,
    Clone,
    CreateInitialize,
    Follow,
    Promote,
    PutInitialize,
    ReleaseLeader,
    Rewind,
    StartPrimary,
    StartStandby,
    StopInstance,
    TakeLeader,
    WriteClaim,
    WriteHistory,
    WriteStatus,
)
from haagent.core.callbacks import Called, due
from haagent.core.memory import absorb
from haagent.core.model import Instance, Memory, Observation, OperatorRequest, Rejoin
from haagent.core.publish import role_text
from haagent.core.standby_cluster import RemoteNode, StandbyCluster
from postgres_ctl.facts import ControlState, InstanceSample, Lsn, TimelineSwitch
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    answer,
    asked,
    cluster,
    control,
    empty,
    finished,
    history,
    judge,
    kinds,
    lease,
    lost_stream,
    member,
    obs,
    primary,
    racing,
    request,
    silent,
    standby,
    stopped,
)

REMOTE = RemoteNode("10.9.0.1,10.9.0.2", 6000)
SECTION = StandbyCluster(remote=REMOTE, primary_slot_name="west")
ARCHIVE = StandbyCluster(restore_command="cp /a/%f %p")
FOLLOWS = replace(SETTINGS, standby_cluster=SECTION)
ARCHIVE_ONLY = replace(SETTINGS, standby_cluster=ARCHIVE)
FITS = Memory(remote_fits=REMOTE, last_leader="pg0", last_epoch=EPOCH)
DIVERGED = replace(FITS, remote_fits=None, rejoin=Rejoin(diverged=True, reason="elsewhere", epoch=EPOCH))
KEPT_APART = (TimelineClaim(9, "pg0", EPOCH),)
MEMBERS = (member("pg0", role="standby_leader"), member("pg1"), member("pg2"))
VIEW = cluster(claims=KEPT_APART, members=MEMBERS)
EX_PRIMARY = stopped(ControlState.SHUT_DOWN)


def follower(instance: Instance | None = None) -> Instance:
    """`pg0`, which streams from the remote node by its slot there."""
    here = instance if instance is not None else standby()
    says = here.sample
    if isinstance(says, InstanceSample):
        slots = tuple(replace(s, name=n) for s, n in zip(says.slots, ("pg1", "pg2"), strict=True))
        here = replace(here, sample=replace(says, primary_slot_name="west", slots=slots))
    return replace(here, follows=REMOTE.address)


def holder(instance: Instance, view: ClusterSnapshot | None = None, **changes: Any) -> Observation:
    """`pg0` with the key of the standby cluster."""
    return obs("pg0", instance, view or VIEW, **{"settings": FOLLOWS, **changes})


def member_of(instance: Instance, **changes: Any) -> Observation:
    """`pg1` in it."""
    return obs("pg1", instance, VIEW, **{"settings": FOLLOWS, **changes})


# --- a running cluster becomes one ----------------------------------------------------------------


def test_a_primary_of_it_is_stopped_and_keeps_the_key() -> None:
    decision = judge(holder(primary()), replace(FITS, archived=Lsn(1)))
    assert (decision.rule, kinds(decision)) == ("standby-cluster.demote", (StopInstance,))
    assert (decision.memory.remote_fits, decision.memory.archived) == (None, None)


def test_the_last_position_then_the_last_segment_then_the_histories() -> None:
    """In this order, before it follows anybody: what it wrote must be known and kept."""
    old = replace(VIEW, status=replace(VIEW.status, optime=OPTIME - 9) if VIEW.status else None)
    first = judge(holder(EX_PRIMARY, old))
    assert first.rule == "standby-cluster.status"
    (status,) = first.actions
    assert isinstance(status, WriteStatus)
    assert (status.optime, status.guard.epoch) == (Lsn(OPTIME), EPOCH)
    second = judge(holder(EX_PRIMARY))
    assert (second.rule, second.actions) == ("standby-cluster.archive", (ArchiveLast(Lsn(OPTIME)),))
    done = absorb(replace(holder(EX_PRIMARY), finished=finished("archive", ok=False)), Memory())
    assert done.archived == Lsn(OPTIME)
    third = judge(holder(EX_PRIMARY), done)
    assert (third.rule, third.actions) == ("standby-cluster.compare", (CheckDivergence(REMOTE),))
    fits = replace(holder(EX_PRIMARY), finished=finished("compare histories", source=REMOTE, diverged=False))
    fourth = judge(fits, done)
    assert (fourth.rule, fourth.actions) == ("standby-cluster.start", (StartStandby(REMOTE),))


def test_a_remote_node_that_cannot_be_asked_is_not_followed_yet() -> None:
    failed = replace(
        holder(EX_PRIMARY), finished=finished("compare histories", ok=False, reason="no route to host")
    )
    decision = judge(failed, Memory(archived=Lsn(OPTIME)))
    assert (decision.rule, decision.actions) == ("standby-cluster.start", (StartStandby(None),))
    assert "no route to host" in (decision.memory.note or "")
    nobody = replace(lost_stream(), follows=None)
    waiting = judge(holder(nobody), decision.memory)
    assert waiting.rule == "standby-cluster.steady"
    later = judge(replace(holder(nobody), now=NOW + 60, lease=lease(fence_at=NOW + 80)), decision.memory)
    assert (later.rule, later.actions) == ("standby-cluster.compare", (CheckDivergence(REMOTE),))


def test_a_remote_node_still_behind_is_looked_at_again() -> None:
    behind = finished("compare histories", source=REMOTE, diverged=False, unknown=True, detail="behind")
    memory = absorb(replace(holder(EX_PRIMARY), finished=behind), Memory())
    assert memory.remote_fits is None
    assert memory.remote_not_before > NOW
    assert "behind" in (memory.note or "")


@pytest.mark.parametrize("unseen", [False, True])
def test_what_diverged_is_rewound_from_the_remote_node(unseen: bool) -> None:
    told = finished("compare histories", source=REMOTE, diverged=True, unseen=unseen, detail="left at 0/1")
    memory = Memory(archived=Lsn(OPTIME))
    decision = judge(replace(holder(EX_PRIMARY), finished=told), memory)
    if unseen:
        assert (decision.rule, decision.actions) == ("rejoin.stay-out", ())
        assert "left at 0/1" in (decision.memory.note or "")
        discards = replace(FOLLOWS, remove_data_directory_on_diverged_timelines=True)
        decision = judge(replace(holder(EX_PRIMARY, settings=discards), finished=told), memory)
        assert decision.actions == (Clone(REMOTE, REMOTE, wipe=True),)
    else:
        assert (decision.rule, decision.actions) == ("rejoin.rewind", (Rewind(REMOTE),))
        rewound = replace(holder(stopped()), finished=finished("rewind", source=REMOTE, needed=True))
        assert judge(rewound, decision.memory).actions == (StartStandby(REMOTE),)
    assert judge(holder(follower(lost_stream())), DIVERGED).rule == "follow.stop-diverged"
    assert judge(holder(silent()), DIVERGED).rule == "follow.stop-diverged"
    half = replace(stopped(), unfinished="rewind")
    assert judge(holder(half), DIVERGED).actions == (Rewind(REMOTE),)


def test_one_that_does_not_start_goes_to_a_member_that_can() -> None:
    failing = replace(FITS, start_failures=2, start_failed_at=NOW - 1, note="start failed")
    gone = judge(holder(stopped(), peers=(answer("pg1"), answer("pg2"))), failing)
    assert kinds(gone) == (ReleaseLeader,)
    alone = replace(VIEW, members=(member("pg0", role="standby_leader"),))
    assert judge(holder(stopped(), alone), failing).rule == "standby-cluster.start-pause"


def test_no_data_no_key() -> None:
    assert kinds(judge(holder(empty()), FITS)) == (ReleaseLeader,)


# --- the standby leader ---------------------------------------------------------------------------


def test_the_holder_follows_and_is_never_promoted() -> None:
    wrong = judge(holder(standby()), FITS)
    assert (wrong.rule, wrong.actions) == ("standby-cluster.follow", (Follow(REMOTE),))
    first = judge(holder(standby()))
    assert (first.rule, first.actions) == ("standby-cluster.let-go", (Follow(None),))
    then = judge(holder(standby(follows=None)))
    assert then.actions == (CheckDivergence(REMOTE),)
    right = judge(holder(follower()), FITS)
    assert (right.rule, right.line or right.reason) == (
        "standby-cluster.steady",
        "no action. I am (pg0), the standby leader with the lock",
    )
    assert Promote not in kinds(right)
    hangs = judge(holder(replace(standby(), storage_hangs=True)), FITS)
    assert hangs.rule == "standby-cluster.storage-hangs"


def test_another_slot_is_a_reason_to_follow_anew() -> None:
    other = replace(FOLLOWS, standby_cluster=replace(SECTION, primary_slot_name="other"))
    assert judge(holder(follower(), settings=other), FITS).actions == (Follow(REMOTE),)


def test_its_role_and_its_callbacks() -> None:
    seen = holder(follower())
    assert role_text(seen) == "standby_leader"
    assert role_text(replace(seen, lease=lease(fence_at=NOW - 1))) == "replica"
    assert role_text(replace(seen, settings=SETTINGS)) == "replica"
    assert role_text(member_of(standby())) == "replica"
    assert role_text(holder(primary())) == "primary"
    calls, _ = due(Called(), seen, Memory(), 0)
    assert [(call.action, call.role) for call in calls] == [("on_start", "standby_leader")]


def test_it_publishes_how_far_the_cluster_has_come() -> None:
    path = (TimelineSwitch(1, Lsn(OPTIME - 5), ""), TimelineSwitch(2, Lsn(OPTIME - 3), ""))
    here = replace(follower(standby(OPTIME + 7)), history=path)
    assert isinstance(here.sample, InstanceSample)
    here = replace(here, sample=replace(here.sample, timeline=3))
    decision = judge(holder(here, replace(VIEW, history=history(1), initialize=None)), FITS)
    assert set(kinds(decision)) == {WriteStatus, WriteHistory, PutInitialize, WriteClaim}
    status = next(action for action in decision.actions if isinstance(action, WriteStatus))
    assert (status.optime, status.slots["pg0"]) == (Lsn(OPTIME + 7), OPTIME + 7)
    told = next(action for action in decision.actions if isinstance(action, WriteHistory))
    assert (told.timeline, told.by_me) == (3, False)
    rows = tuple(HistoryRow(s.timeline, s.switch_lsn.value, "", None, None) for s in path)
    again = judge(holder(here, replace(VIEW, history=rows)), FITS)
    assert WriteHistory not in kinds(again)
    trimmed = judge(holder(here, replace(VIEW, history=rows[-1:])), FITS)
    assert WriteHistory not in kinds(trimmed)
    unknown = judge(holder(replace(here, history=()), replace(VIEW, history=rows[:1])), FITS)
    assert WriteHistory not in kinds(unknown)


def test_numbers_of_timelines_are_left_to_the_remote_cluster() -> None:
    """Else both could make the same one from the same position."""
    decision = judge(holder(follower(), replace(VIEW, claims=())), FITS)
    claim = next(action for action in decision.actions if isinstance(action, WriteClaim))
    assert 9 <= claim.timeline <= 16
    demoted = judge(holder(primary(), replace(VIEW, claims=())), FITS)
    assert kinds(demoted) == (WriteClaim, StopInstance)
    taken = judge(racing(lost_stream(), settings=FOLLOWS), REMEMBERS)
    assert kinds(taken) == (WriteClaim, TakeLeader)
    assert WriteClaim not in kinds(judge(holder(follower()), FITS))
    promoted = judge(holder(follower(), settings=SETTINGS, peers=(answer("pg1"), answer("pg2"))), FITS)
    assert [a.timeline for a in promoted.actions if isinstance(a, Promote)] == [10]


def test_a_lost_stream_is_told_and_its_reason_looked_for() -> None:
    cut = follower(lost_stream())
    memory = replace(FITS, not_streaming_since=NOW - 10)
    decision = judge(holder(cut), memory)
    assert (decision.rule, decision.actions) == ("standby-cluster.compare", (CheckDivergence(REMOTE),))
    paused = replace(memory, remote_not_before=NOW + 5)
    waiting = judge(holder(cut), paused)
    assert waiting.rule == "standby-cluster.steady"
    assert waiting.memory.note == "no stream from the remote node 10.9.0.1,10.9.0.2:6000"
    quiet = replace(silent(), follows=REMOTE.address)
    assert judge(holder(silent()), FITS).rule == "standby-cluster.follow"
    assert judge(holder(quiet), FITS).rule == "standby-cluster.compare"
    assert judge(holder(quiet), paused).rule == "standby-cluster.no-answer"
    assert judge(holder(silent(), settings=ARCHIVE_ONLY), FITS).rule == "standby-cluster.no-answer"


def test_only_an_archive_is_followed_by_nobody_at_all() -> None:
    here = replace(standby(), follows=None)
    assert isinstance(here.sample, InstanceSample)
    here = replace(here, sample=replace(here.sample, primary_slot_name=None))
    decision = judge(holder(here, settings=ARCHIVE_ONLY))
    assert decision.rule == "standby-cluster.steady"


def test_the_section_is_gone_and_the_holder_is_promoted() -> None:
    decision = judge(holder(follower(), settings=SETTINGS, peers=(answer("pg1"), answer("pg2"))), FITS)
    assert decision.rule == "promote.now"


def test_without_the_store_it_goes_on_and_never_starts_as_a_primary() -> None:
    away = obs("pg0", follower(), DOWN, settings=FOLLOWS, lease=lease())
    assert judge(away, FITS).rule == "outage.lease-holds"
    down = obs("pg0", replace(EX_PRIMARY, last_exit=None), DOWN, settings=FOLLOWS, lease=lease())
    decision = judge(down, FITS)
    assert (decision.rule, decision.actions) == ("outage.start-readonly", (StartStandby(REMOTE),))
    unknown = judge(down, replace(FITS, remote_fits=None))
    assert unknown.actions == (StartStandby(None),)


# --- members --------------------------------------------------------------------------------------


def test_the_others_follow_the_standby_leader() -> None:
    assert judge(member_of(standby()), FITS).rule == "follow.steady"
    assert judge(member_of(stopped()), FITS).actions == (StartStandby("pg0"),)
    assert judge(member_of(empty()), FITS).actions == (Clone("pg0", "pg0"),)
    released = replace(FITS, clean_release=True)
    assert judge(member_of(EX_PRIMARY), released).actions == (StartStandby("pg0"),)


def test_a_member_is_measured_by_the_remote_history() -> None:
    cut = replace(FITS, not_streaming_since=NOW - 10)
    assert judge(member_of(lost_stream()), cut).actions == (CheckDivergence(REMOTE),)
    assert judge(member_of(EX_PRIMARY), FITS).actions == (Rewind(REMOTE),)
    settled = replace(cut, rejoin=Rejoin(settled_epoch=EPOCH, epoch=EPOCH))
    assert judge(member_of(lost_stream()), settled).actions == (CheckDivergence(REMOTE),)


def test_a_member_promoted_here_once_follows_nobody_unseen() -> None:
    """One number may be another timeline in the other cluster: PostgreSQL would stream it over ours."""
    path = (TimelineSwitch(1, Lsn(OPTIME - 5), ""),)
    view = replace(VIEW, claims=(TimelineClaim(2, "pg1", 3), *KEPT_APART))

    def here(instance: Instance, memory: Memory | None = None) -> Any:
        seen = replace(member_of(replace(instance, history=path)), cluster=view)
        says = instance.sample
        if isinstance(says, InstanceSample):
            seen = replace(seen, instance=replace(seen.instance, sample=replace(says, timeline=2)))
        elif not instance.alive:
            now = control(ControlState.SHUT_DOWN, timeline=2)
            seen = replace(seen, instance=replace(seen.instance, control=now))
        return judge(seen, memory)

    let_go = here(standby())
    assert (let_go.rule, let_go.actions) == ("standby-cluster.member-lets-go", (Follow(None),))
    asks = here(standby(follows=None))
    assert (asks.rule, asks.actions) == ("standby-cluster.member-compares", (CheckDivergence(REMOTE),))
    asked = Memory(remote_not_before=NOW + 5)
    assert here(standby(follows=None), asked).rule == "standby-cluster.member-waits"
    started = here(stopped(), asked)
    assert (started.rule, started.actions) == ("standby-cluster.member-starts", (StartStandby(None),))
    assert here(standby(), FITS).rule == "follow.steady"
    unreadable = replace(view, claims=(), broken=(Broken("haagent_claims", "not a list"),))
    assert judge(replace(member_of(standby()), cluster=unreadable)).rule == "standby-cluster.member-lets-go"


# --- nobody leads ---------------------------------------------------------------------------------


def test_the_race_has_no_timeline_check() -> None:
    behind = cluster(leader=None, history=history(1, 2), members=(member("pg1"), member("pg2")))
    strict = replace(SETTINGS, check_timeline=True)
    assert judge(racing(lost_stream(), behind, settings=strict), REMEMBERS).rule == "race.refused"
    follows = replace(strict, standby_cluster=SECTION)
    assert kinds(judge(racing(lost_stream(), behind, settings=follows), REMEMBERS))[-1] is TakeLeader


def test_while_nobody_leads_all_follow_the_remote_node() -> None:
    ahead = (answer("pg2", OPTIME + 10),)
    refused = racing(lost_stream(), settings=FOLLOWS, peers=ahead)
    assert judge(refused, REMEMBERS).rule == "race.refused"
    waited = replace(REMEMBERS, leader_missing_since=NOW - 3)
    compared = judge(refused, waited)
    assert (compared.rule, compared.actions) == ("race.compare", (CheckDivergence(REMOTE),))
    fits = replace(waited, remote_fits=REMOTE)
    decision = judge(refused, fits)
    assert (decision.rule, decision.actions) == ("race.follow-remote", (Follow(REMOTE),))
    there = racing(follower(lost_stream()), settings=FOLLOWS, peers=ahead)
    assert judge(there, fits).rule == "race.refused"
    start = judge(racing(stopped(), settings=FOLLOWS), fits)
    assert start.actions == (StartStandby(REMOTE),)


def test_a_new_standby_cluster_is_a_copy() -> None:
    nothing = replace(cluster(leader=None), initialize=None, members=(), status=None, history=None)
    first = obs("pg0", empty(), nothing, settings=FOLLOWS)
    decision = judge(first)
    assert (decision.rule, decision.actions) == (
        "bootstrap.race-remote",
        (CreateInitialize(), Clone(REMOTE, REMOTE)),
    )
    archive = judge(obs("pg0", empty(), nothing, settings=ARCHIVE_ONLY))
    assert (archive.rule, archive.actions) == ("bootstrap.no-remote", ())
    claimed = replace(nothing, initialize="")
    copied = finished("clone", source=REMOTE)
    done = judge(replace(obs("pg0", stopped(), claimed, settings=FOLLOWS), finished=copied), decision.memory)
    assert (done.rule, kinds(done)[-1]) == ("bootstrap.take", TakeLeader)
    started = judge(holder(stopped(), replace(VIEW, initialize="")), done.memory)
    assert started.actions == (StartStandby(REMOTE),)
    assert StartPrimary not in kinds(started)
    failed = finished("clone", ok=False, reason="connection refused")
    lost = judge(replace(obs("pg0", empty(), claimed, settings=FOLLOWS), finished=failed), decision.memory)
    assert lost.rule == "bootstrap.failed"
    assert "connection refused" in lost.reason


def test_the_last_copy_here_is_gone_and_the_other_cluster_has_one() -> None:
    alone = replace(cluster(leader=None), members=())
    seen = obs("pg0", empty(), alone, settings=FOLLOWS)
    assert judge(seen, REMEMBERS).rule == "bootstrap.wait"
    long_ago = replace(REMEMBERS, leader_missing_since=NOW - 31)
    decision = judge(seen, long_ago)
    assert (decision.rule, decision.actions) == ("race.clone-remote", (Clone(REMOTE, REMOTE),))
    assert judge(replace(seen, settings=SETTINGS), long_ago).rule == "bootstrap.wait"


def test_a_running_standby_of_it_joins() -> None:
    nothing = replace(cluster(leader=None), initialize=None, members=(), status=None, history=None)
    assert judge(obs("pg1", follower(), nothing, settings=FOLLOWS)).rule == "race.take"
    assert judge(obs("pg1", follower(), nothing)).rule == "start.replica-first"


# --- requests -------------------------------------------------------------------------------------


def switchover(candidate: str | None = "pg1", leader: str | None = "pg0") -> ClusterSnapshot:
    return asked(VIEW, request(leader, candidate))


def test_a_switchover_inside_stops_nothing() -> None:
    ask = judge(holder(follower(), switchover()), FITS)
    assert (ask.rule, ask.actions) == ("standby-cluster.ask", (AskPeers(("pg1",)),))
    given = judge(holder(follower(), switchover(), peers=(answer("pg1"),)), FITS)
    assert (given.rule, given.actions) == ("standby-cluster.release", (ReleaseLeader(EPOCH),))
    unfit = judge(holder(follower(), switchover(), peers=(answer("pg1", cannot_lead="disk full"),)), FITS)
    assert unfit.rule == "switchover.wait"


@pytest.mark.parametrize(
    ("leader", "candidate", "status", "text"),
    [
        ("pg2", "pg0", 200, 'Successfully switched over to "pg0"'),
        (None, "pg0", 200, 'Successfully failed over to "pg0"'),
        ("pg0", "pg0", 412, "Switchover target and source are the same"),
    ],
)
def test_the_one_who_took_over_answers(leader: str | None, candidate: str, status: int, text: str) -> None:
    decision = judge(holder(follower(), switchover(candidate, leader)), FITS)
    assert decision.rule == "standby-cluster.cleared"
    (action,) = decision.actions
    assert isinstance(action, ClearFailover)
    assert (action.status, action.outcome) == (status, text)


def test_a_scheduled_one_waits_for_its_time() -> None:
    wish = replace(request(), due_at=5000.0, scheduled_at="2030")
    view = asked(VIEW, wish)
    assert judge(replace(holder(follower(), view), wall=4000.0), FITS).rule == "standby-cluster.steady"
    assert judge(replace(holder(follower(), view), wall=5001.0), FITS).rule == "standby-cluster.ask"
    assert judge(replace(holder(follower(), view), wall=6000.0), FITS).rule == "standby-cluster.cleared"


def test_the_candidate_needs_no_last_record_of_a_server_that_goes_on() -> None:
    """The remote node has it all: a switchover inside does not wait for what the former leader has."""
    view = asked(cluster(leader=None), request("pg0", "pg1"))
    little = racing(lost_stream(OPTIME - 8), view, settings=FOLLOWS, peers=(answer("pg2", OPTIME - 8),))
    assert judge(little, REMEMBERS).rule == "race.ask"
    knows = replace(little, peers={p.name: p for p in (answer("pg0", OPTIME - 8), answer("pg2", OPTIME - 8))})
    assert judge(knows, REMEMBERS).rule == "race.take"
    ordinary = replace(little, settings=SETTINGS)
    assert judge(ordinary, REMEMBERS).rule == "race.refused"


def test_a_restart_of_the_standby_leader_follows_as_before() -> None:
    wish = OperatorRequest(7, "restart")
    (job,) = judge(holder(follower(), request=wish), FITS).actions
    assert getattr(job, "upstream", None) == REMOTE


# --- pause ----------------------------------------------------------------------------------------


def test_a_pause_takes_nothing_from_the_standby_leader() -> None:
    calm = replace(FOLLOWS, pause=True)
    decision = judge(holder(follower(), settings=calm), FITS)
    assert (decision.rule, decision.reason) == (
        "standby-cluster.steady",
        "PAUSE: no action. I am (pg0), the standby leader with the lock",
    )
    assert judge(holder(stopped(), settings=calm), FITS).rule == "pause.standby-leader"
    assert judge(holder(primary(), settings=calm, lease=lease(disarmed=True)), FITS).rule == "pause.leader"
