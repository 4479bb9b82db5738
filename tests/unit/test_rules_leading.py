"""The key is ours: promote, come back, hand over what cannot come back, keep the store in line."""

from __future__ import annotations

from dataclasses import replace

from dcs.records import Status, TimelineClaim
from haagent.core.actions import (
    AnswerRequest,
    AskPeers,
    Checkpoint,
    ClearFailover,
    Guard,
    Promote,
    PutInitialConfig,
    PutInitialize,
    ReleaseLeader,
    RunPrePromote,
    StartPrimary,
    StartStandby,
    StopInstance,
    SyncSlots,
    WriteClaim,
    WriteHistory,
    WriteStatus,
)
from haagent.core.model import JobFacts, LastExit, Memory, OperatorRequest, Unavailable
from postgres_ctl.facts import ControlState, InstanceSample, Lsn, TimelineSwitch
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NOW,
    OPTIME,
    SETTINGS,
    SYSTEM,
    answer,
    asked,
    cluster,
    control,
    crashed,
    empty,
    finished,
    following,
    history,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    no_answer,
    paused,
    primary,
    request,
    sample,
    silent,
    slot,
    standby,
    stopped,
)

SETTLED = Memory(checkpointed_epoch=EPOCH)


# --- the lease ------------------------------------------------------------------------------------


def test_a_key_whose_life_is_not_proven_yet_is_waited_for() -> None:
    decision = judge(leading(primary(), lease=lease(fence_at=None)))
    assert (decision.rule, decision.actions) == ("lease.unproven", ())


def test_a_primary_past_its_fence_waits_for_the_guardian() -> None:
    decision = judge(leading(primary(), lease=lease(fence_at=NOW - 1)))
    assert (decision.rule, decision.actions) == ("lease.fencing", ())


def test_a_primary_past_its_fence_without_guardian_is_stopped_by_the_agent() -> None:
    decision = judge(leading(primary(), lease=lease(fence_at=NOW - 1, guardian_ok=False)))
    assert decision.rule == "lease.fence-myself"
    assert decision.actions[0] == StopInstance("immediate", decision.reason)


def test_the_key_of_a_closed_epoch_goes_once_postgresql_is_stopped() -> None:
    decision = judge(leading(stopped(), lease=lease(fence_at=None, closed_epoch=EPOCH)))
    assert (decision.rule, decision.actions) == ("lease.release-closed", (ReleaseLeader(EPOCH),))


def test_the_key_of_a_closed_epoch_stays_while_postgresql_may_write() -> None:
    decision = judge(leading(silent(writable=True), lease=lease(fence_at=None, closed_epoch=EPOCH)))
    assert (decision.rule, decision.actions) == ("lease.fencing", ())


def test_a_standby_never_promotes_under_a_lease_that_ran_out() -> None:
    decision = judge(leading(lost_stream(), lease=lease(fence_at=NOW - 1)))
    assert (decision.rule, decision.actions) == ("lease.release-closed", (ReleaseLeader(EPOCH),))


def test_a_closed_epoch_counts_for_nothing_though_its_deadline_lies_ahead() -> None:
    """The guardian may have closed it without our hearing of it."""
    closed = lease(closed_epoch=EPOCH)
    assert judge(leading(crashed(), lease=closed)).rule == "lease.release-closed"
    assert judge(leading(lost_stream(), lease=closed)).rule == "lease.release-closed"
    assert judge(leading(primary(), lease=closed)).rule == "lease.fencing"


# --- stopped --------------------------------------------------------------------------------------


def test_without_a_data_directory_the_key_goes() -> None:
    assert judge(leading(empty())).rule == "leader.no-data"


def test_a_restored_cluster_is_claimed_before_it_is_written_to() -> None:
    """Also by an agent that was started after the one that made it, and still has its key (H15)."""
    restored = control(ControlState.SHUT_DOWN, timeline=3)
    made = replace(stopped(), control=restored, unfinished="bootstrap")
    for memory in (Memory(bootstrap="ready"), Memory()):
        decision = judge(leading(made), memory)
        assert decision.rule == "bootstrap.start"
        assert kinds(decision) == (WriteClaim, StartPrimary)
        assert isinstance(decision.actions[0], WriteClaim)
        assert decision.actions[0].timeline == 3


def test_a_new_cluster_is_started_as_primary() -> None:
    decision = judge(leading(stopped(ControlState.SHUT_DOWN)), Memory(bootstrap="ready"))
    assert decision.rule == "bootstrap.start"
    assert decision.actions == (StartPrimary(Guard(epoch=EPOCH, pid=0)),)


def test_a_crashed_primary_is_started_again_in_place() -> None:
    decision = judge(leading(crashed()))
    assert decision.rule == "leader.restart-in-place"
    assert decision.actions == (StartPrimary(Guard(epoch=EPOCH, pid=0)),)


def test_a_primary_whose_end_nobody_watched_starts_read_only() -> None:
    decision = judge(leading(crashed(last_exit=None)))
    assert (decision.rule, decision.actions) == ("leader.start-readonly", (StartStandby(None),))


def test_a_fenced_primary_is_not_started_in_place() -> None:
    decision = judge(leading(crashed(last_exit=LastExit(fenced=True, watched=True))))
    assert (decision.rule, decision.actions) == ("leader.start-readonly", (StartStandby(None),))


def test_a_crashed_primary_that_failed_to_start_asks_for_a_successor() -> None:
    decision = judge(leading(crashed()), Memory(start_failures=2))
    assert (decision.rule, decision.actions) == ("leader.ask-successors", (AskPeers(("pg1", "pg2")),))


def test_a_crashed_primary_that_cannot_start_is_handed_over() -> None:
    seen = leading(crashed(), peers=(answer("pg1"), no_answer("pg2")))
    decision = judge(seen, Memory(start_failures=2, down_since=NOW - 1))
    assert (decision.rule, decision.actions) == ("leader.hand-over-crashed", (ReleaseLeader(EPOCH),))


def test_who_was_silent_before_the_crash_is_asked_again() -> None:
    """Seconds after a switchover the other one was still starting; now it may take over."""
    at_once = replace(SETTINGS, primary_start_timeout_s=0)
    seen = leading(crashed(), settings=at_once, peers=(no_answer("pg1"), no_answer("pg2")))
    decision = judge(seen)
    assert (decision.rule, decision.actions) == ("leader.ask-successors", (AskPeers(("pg1", "pg2")),))
    still = replace(seen, peers={n: replace(p, asked_at=NOW) for n, p in seen.peers.items()})
    assert judge(still, decision.memory).rule == "leader.restart-in-place"


def test_with_start_timeout_zero_a_crashed_primary_is_handed_over_at_once() -> None:
    at_once = replace(SETTINGS, primary_start_timeout_s=0)
    seen = leading(crashed(), settings=at_once, peers=(answer("pg1"), answer("pg2")))
    assert judge(seen).rule == "leader.hand-over-crashed"


def test_a_crashed_primary_without_successor_is_tried_again() -> None:
    seen = leading(crashed(), peers=(no_answer("pg1"), no_answer("pg2")))
    decision = judge(seen, Memory(start_failures=1, start_failed_at=NOW - 60))
    assert decision.rule == "leader.restart-again"
    assert kinds(decision) == (StartPrimary,)


def test_tries_of_a_start_that_keeps_failing_are_spaced_out() -> None:
    seen = leading(
        crashed(), peers=(no_answer("pg1"), no_answer("pg2")), finished=finished("start primary", False)
    )
    decision = judge(seen, Memory(start_failures=4, down_since=NOW - 1))
    assert (decision.rule, decision.actions) == ("leader.start-pause", ())
    later = replace(seen, now=NOW + 11, finished=(), lease=lease(fence_at=NOW + 30))
    later = replace(later, peers={n: replace(p, asked_at=NOW + 10.9) for n, p in seen.peers.items()})
    assert judge(later, decision.memory).rule == "leader.restart-again"


def test_a_node_that_cannot_even_start_read_only_is_handed_over() -> None:
    seen = leading(crashed(last_exit=None), peers=(answer("pg1"), answer("pg2")))
    decision = judge(seen, Memory(start_failures=2))
    assert decision.rule == "leader.hand-over-crashed"


def test_a_cancelled_slow_start_is_handed_over_and_not_tried_again() -> None:
    answers = (answer("pg1"), answer("pg2"))
    job = JobFacts("start primary", NOW - 301, epoch=EPOCH)
    cancelled = judge(leading(silent(writable=True), job=job, peers=answers))
    assert cancelled.rule == "job.slow-start"
    ended = leading(crashed(), peers=answers, finished=finished("start primary", False, "cancelled"))
    assert judge(ended, cancelled.memory).rule == "leader.hand-over-crashed"


# --- in recovery ----------------------------------------------------------------------------------


def test_the_holder_of_the_key_asks_before_it_promotes() -> None:
    decision = judge(leading(lost_stream()))
    assert (decision.rule, decision.actions) == ("promote.ask", (AskPeers(("pg1", "pg2")),))


def test_a_fit_standby_with_the_key_claims_its_timeline_and_promotes() -> None:
    decision = judge(leading(lost_stream(), peers=(answer("pg1"), answer("pg2"))))
    assert decision.rule == "promote.now"
    assert kinds(decision) == (WriteClaim, Promote)
    claim, promote = decision.actions
    assert isinstance(claim, WriteClaim)
    assert (claim.timeline, claim.epoch) == (2, EPOCH)
    assert isinstance(promote, Promote)
    assert promote.guard == Guard(epoch=EPOCH, pid=77)


def test_a_program_that_has_to_agree_is_asked_first_and_again_by_the_next_epoch() -> None:
    seen = leading(lost_stream(), peers=(answer("pg1"), answer("pg2")), asks_before_promotion=True)
    asking = judge(seen)
    assert (asking.rule, asking.actions) == ("promote.ask-program", (RunPrePromote(Guard(EPOCH, 77)),))
    agreed = replace(seen, finished=finished("pre_promote", epoch=EPOCH))
    assert judge(agreed).rule == "promote.now"
    assert judge(seen, Memory(agreed_epoch=EPOCH - 1)).rule == "promote.ask-program"


def test_a_program_that_does_not_agree_costs_the_key() -> None:
    peers = (answer("pg1"), answer("pg2"))
    refused = finished("pre_promote", ok=False, reason="hook failed with exit code 1")
    decision = judge(leading(lost_stream(), peers=peers, asks_before_promotion=True, finished=refused))
    assert (decision.rule, decision.actions) == ("promote.refused", (ReleaseLeader(EPOCH),))
    assert [r.rule for r in decision.refusals] == ["promote.failed"]
    assert decision.memory.note == "pre_promote: hook failed with exit code 1"


def test_the_request_is_cleared_once_the_promotion_has_begun() -> None:
    view = asked(cluster(), request(candidate="pg0", leader="pg9"))
    decision = judge(leading(lost_stream(), view, peers=(answer("pg1"), answer("pg2"))))
    assert kinds(decision) == (WriteClaim, Promote, ClearFailover)


def test_only_a_proven_hand_over_is_called_without_loss() -> None:
    """A switchover was asked for, but its leader was lost before it handed over anything, or another one led
    since."""
    last = Status(OPTIME, final_timeline=1)
    handed = asked(cluster(members=(member("pg0"), member("pg9"))), request(leader="pg9"))
    final = replace(handed, status=last)
    between = replace(final, claims=(TimelineClaim(2, "pg1", EPOCH - 1),))
    notes = []
    for view, end in ((final, OPTIME + 1), (final, OPTIME), (handed, OPTIME + 1), (between, OPTIME + 1)):
        decision = judge(leading(lost_stream(end), view, peers=(answer("pg9", end - 1), answer("pg1", 1))))
        claim = decision.actions[0]
        assert isinstance(claim, WriteClaim)
        notes.append((claim.note or "").partition(":")[0])
    assert notes == ["planned", "expected loss", "expected loss", "expected loss"]


def test_the_next_primary_takes_back_that_a_position_is_final() -> None:
    settled = judge(leading(primary(), cluster(status=None)), SETTLED)
    written = settled.actions[0]
    assert isinstance(written, WriteStatus)
    final = replace(_status(written), final_timeline=1)
    assert kinds(judge(leading(primary(), cluster(status=final)), settled.memory)) == (WriteStatus,)


def test_the_holder_of_the_key_gives_it_back_when_another_has_more_wal() -> None:
    seen = leading(lost_stream(), peers=(answer("pg1", OPTIME + 8), answer("pg2")))
    decision = judge(seen)
    assert (decision.rule, decision.actions) == ("promote.refused", (ReleaseLeader(EPOCH),))
    assert [r.rule for r in decision.refusals] == ["peer.ahead"]


# --- a promotion that an agent before this one began ----------------------------------------------


def test_a_promotion_under_way_is_neither_begun_again_nor_given_up() -> None:
    promoting = lost_stream(writable=True)
    decision = judge(leading(promoting))
    assert (decision.rule, decision.actions) == ("promote.under-way", ())
    failed_lately = Memory(promote_failed_at=NOW - 1)
    assert judge(leading(promoting), failed_lately).rule == "promote.under-way"


def test_nothing_is_done_to_a_server_that_is_being_promoted() -> None:
    wish = OperatorRequest(3, "restart")
    decision = judge(leading(lost_stream(writable=True), request=wish))
    assert decision.rule == "promote.busy"
    assert decision.actions == (AnswerRequest(3, 503, decision.reason),)


def test_a_server_being_promoted_counts_as_writable_once_the_lease_is_gone() -> None:
    promoting = lost_stream(writable=True)
    late = judge(leading(promoting, lease=lease(fence_at=NOW - 1, closed_epoch=EPOCH)))
    assert (late.rule, late.actions) == ("lease.fencing", ())
    assert judge(following(promoting)).rule == "demote.lost"


def test_a_server_being_promoted_in_a_pause_writes_nothing_into_the_store_yet() -> None:
    seen = leading(
        lost_stream(writable=True), lease=lease(fence_at=NOW - 1, disarmed=True), settings=paused()
    )
    decision = judge(seen)
    assert (decision.rule, decision.actions) == ("pause.leader", ())


# --- alive ----------------------------------------------------------------------------------------


def test_a_silent_primary_keeps_its_lease() -> None:
    decision = judge(leading(silent(writable=True)))
    assert (decision.rule, decision.actions) == ("leader.no-answer", ())


def test_a_healthy_primary_does_nothing() -> None:
    view = cluster(status=None)
    decision = judge(leading(primary(), view), SETTLED)
    assert decision.rule == "leader.steady"
    assert kinds(decision) == (WriteStatus,)
    written = decision.actions[0]
    assert isinstance(written, WriteStatus)
    again = judge(leading(primary(), cluster(status=_status(written))), decision.memory)
    assert (again.rule, again.actions, again.again_in_s) == ("leader.steady", (), None)


def _status(action: WriteStatus) -> Status:
    return Status(action.optime.value, action.slots, action.retain_slots)


def test_a_new_primary_makes_its_checkpoint_in_the_background_once() -> None:
    seen = leading(primary())
    assert Checkpoint(Guard(epoch=EPOCH, pid=77), background=True) in judge(seen).actions
    assert Checkpoint not in kinds(judge(replace(seen, background=("checkpoint",))))
    done = replace(seen, finished=finished("checkpoint", epoch=EPOCH, background=True))
    assert Checkpoint not in kinds(judge(done))


def test_a_failed_checkpoint_after_promotion_is_tried_again() -> None:
    seen = leading(primary(), finished=finished("checkpoint", False, "connection lost"))
    assert Checkpoint in kinds(judge(seen))


def test_a_deleted_initialize_is_written_again_by_the_leader() -> None:
    decision = judge(leading(primary(), cluster(initialize=None)), SETTLED)
    assert PutInitialize(SYSTEM) in decision.actions


def test_garbage_in_initialize_is_replaced_by_the_leader() -> None:
    decision = judge(leading(primary(), cluster(initialize="x")), SETTLED)
    assert PutInitialize(SYSTEM) in decision.actions


def test_a_deleted_config_is_written_again_by_the_leader() -> None:
    assert PutInitialConfig() in judge(leading(primary(), cluster(config=None)), SETTLED).actions


def test_history_of_the_last_promotion_is_written_once() -> None:
    two = primary(sample=sample(primary=True, timeline=2))
    assert WriteHistory in kinds(judge(leading(two), SETTLED))
    assert WriteHistory not in kinds(judge(leading(two, cluster(history=history(1))), SETTLED))


def test_history_tells_of_the_living_primary_not_of_one_that_went_on_from_the_same_place_and_died() -> None:
    """H15: else the cluster's line would be the dead one's, and ours diverged: nobody could lead after us."""
    path = (TimelineSwitch(1, Lsn(OPTIME), "no recovery target specified"),)
    three = primary(sample=sample(primary=True, timeline=3), history=path)
    row = history(1)[0]
    for other in (
        replace(row, new_leader="pg1"),
        replace(row, lsn=OPTIME - 8),
        replace(row, new_leader=None),
    ):
        assert WriteHistory in kinds(judge(leading(three, cluster(history=(other,))), SETTLED))
    assert WriteHistory not in kinds(judge(leading(three, cluster(history=(row,))), SETTLED))


def test_rows_of_an_older_cluster_are_removed_on_timeline_one() -> None:
    assert WriteHistory in kinds(judge(leading(primary(), cluster(history=history(3))), SETTLED))


def test_a_member_waited_for_in_the_race_is_not_waited_for_again_under_the_key() -> None:
    """H13: else the winner gives the key back for an unable peer that is ahead, once per ttl, for ever."""
    unable = answer("pg2", OPTIME + 8, cannot_lead="disk full")
    waited = Memory(leader_missing_since=NOW - SETTINGS.ttl_s - 1, last_leader="pg1", last_epoch=EPOCH - 1)
    peers = (answer("pg1"), unable)
    assert judge(leading(lost_stream(), peers=peers), waited).rule == "promote.now"
    assert judge(leading(lost_stream(), peers=peers)).rule == "promote.refused"


def test_a_hand_over_waited_for_in_the_race_is_not_waited_for_again_under_the_key() -> None:
    """H18: the mark counts from the release; found fresh by the winner, the key would go round and round."""
    since = NOW - SETTINGS.ttl_s - 1
    waited = Memory(
        leader_missing_since=since, handover_seen_at=since, handover_from="pg1", last_leader="pg1"
    )
    view = asked(cluster(), request("pg1", "pg2"))
    behind = tuple(answer(name, OPTIME - 1) for name in ("pg1", "pg2"))
    assert judge(leading(lost_stream(OPTIME - 1), view, peers=behind), waited).rule == "promote.now"


def test_an_old_leader_that_takes_the_key_again_does_not_wait_for_its_own_hand_over() -> None:
    """H18: it lost WAL it had published, and nobody came: one ttl after the release it may lead again."""
    since = NOW - SETTINGS.ttl_s - 1
    waited = Memory(
        leader_missing_since=since, handover_seen_at=since, handover_from="pg0", last_leader="pg0"
    )
    view = asked(cluster(), request("pg0", "pg2"))
    here = leading(lost_stream(OPTIME - 1), view, peers=tuple(answer(n, OPTIME - 1) for n in ("pg1", "pg2")))
    assert judge(here, waited).rule == "promote.now"
    lately = replace(waited, leader_missing_since=NOW - 1, handover_seen_at=NOW - 1)
    assert judge(here, lately).rule == "promote.refused"


def test_a_primary_makes_a_slot_for_each_member() -> None:
    bare = primary(sample=sample(primary=True, slots=(slot("pg1"),)))
    assert SyncSlots(create=("pg2",)) in judge(leading(bare), SETTLED).actions


def test_a_standby_with_the_key_that_misses_wal_facts_does_not_promote() -> None:
    here = lost_stream()
    assert isinstance(here.sample, InstanceSample)
    unread = replace(here, sample=replace(here.sample, startup_waits_for_wal=False))
    decision = judge(leading(unread, peers=(answer("pg1"), answer("pg2"))))
    assert decision.rule == "promote.refused"
    assert decision.refusals[0].rule == "postgres.wal-read"


def test_the_store_being_down_does_not_touch_a_primary_with_a_proven_lease() -> None:
    decision = judge(leading(primary(), DOWN))
    assert decision.actions == ()


def test_a_sample_that_cannot_be_had_leaves_the_store_alone() -> None:
    mute = primary(sample=Unavailable(NOW, "timeout"))
    assert judge(leading(mute)).rule == "leader.no-answer"


def test_a_streaming_standby_with_the_key_promotes_only_without_another_primary() -> None:
    seen = leading(
        standby(), peers=(answer("pg1"), replace(answer("pg2"), location=Lsn(1), in_recovery=False))
    )
    decision = judge(seen)
    assert decision.rule == "promote.refused"
    assert decision.refusals[0].rule == "peer.primary"
