"""Somebody else leads: clone, rewind, start, follow, and never discard the last good copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import ClusterSnapshot, Leader
from haagent.core.actions import (
    ApplyConfig,
    AskPeers,
    CheckDivergence,
    Clone,
    Follow,
    Rewind,
    StartStandby,
    StopInstance,
    SyncSlots,
)
from haagent.core.model import Identity, Instance, Memory, Observation, Peer, Rejoin, Unavailable
from postgres_ctl.facts import ControlState, DataDirState, InstanceSample
from tests.unit.core_facts import (
    EPOCH,
    NO_LEASE,
    NOW,
    OPTIME,
    SETTINGS,
    answer,
    cluster,
    control,
    empty,
    finished,
    following,
    judge,
    kinds,
    lost_stream,
    member,
    no_answer,
    obs,
    primary,
    silent,
    standby,
    stopped,
    tags,
)

EX_PRIMARY = stopped(ControlState.SHUT_DOWN)
NO_REWIND = replace(SETTINGS, use_pg_rewind=False)
MAY_DISCARD = replace(SETTINGS, remove_data_directory_on_diverged_timelines=True, use_pg_rewind=False)
DIVERGED = Memory(
    rejoin=Rejoin(diverged=True, reason="beyond the switch point", epoch=EPOCH), last_epoch=EPOCH
)


def leader_is(**changes: Any) -> ClusterSnapshot:
    """The view with `pg0` changed."""
    return cluster(members=(member("pg0", **changes), member("pg1"), member("pg2")))


def test_a_crashed_primary_recovers_as_a_standby_before_it_is_compared() -> None:
    """H14: single-user recovery would write behind WAL that the disk may have lost."""
    crashed = stopped(ControlState.IN_PRODUCTION)
    decision = judge(following(crashed))
    assert (decision.rule, decision.actions) == ("rejoin.recover-first", (StartStandby("pg0"),))
    failed = Memory(start_failures=2, start_failed_at=NOW - 0.1, rejoin=Rejoin(epoch=EPOCH))
    assert judge(following(crashed), failed).rule == "rejoin.rewind"


NEVER_LED = replace(EX_PRIMARY, unfinished="bootstrap")
HALF_REWOUND = replace(EX_PRIMARY, unfinished="rewind")


# --- the key under my name ------------------------------------------------------------------------


def test_a_key_with_my_name_under_a_foreign_handle_is_waited_out() -> None:
    decision = judge(obs("pg0", stopped(), cluster(), lease=NO_LEASE))
    assert (decision.rule, decision.actions) == ("stranger.wait", ())


def test_a_primary_is_stopped_when_a_stranger_holds_the_key_under_its_name() -> None:
    decision = judge(obs("pg0", primary(), cluster(), lease=NO_LEASE))
    assert (decision.rule, kinds(decision)) == ("stranger.demote", (StopInstance,))


# --- a primary while another leads ----------------------------------------------------------------


def test_a_primary_is_stopped_at_once_when_another_leads() -> None:
    decision = judge(following(primary()))
    assert decision.rule == "demote.lost"
    assert isinstance(decision.actions[0], StopInstance)
    assert decision.actions[0].mode == "immediate"


def test_a_silent_server_that_may_write_is_stopped_when_another_leads() -> None:
    assert judge(following(silent(writable=True))).rule == "demote.lost"


# --- clone ----------------------------------------------------------------------------------------


def test_an_empty_member_clones_from_the_leader() -> None:
    decision = judge(following(empty()))
    assert (decision.rule, decision.actions) == ("clone.begin", (Clone("pg0", "pg0", wipe=False),))


def test_a_member_that_offers_clones_is_preferred() -> None:
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(clonefrom=True))))
    assert judge(following(empty(), view)).actions == (Clone("pg2", "pg0", wipe=False),)


def test_a_clone_waits_for_its_slot_but_not_for_ever() -> None:
    view = cluster(status=None)
    first = judge(following(empty(), view))
    assert (first.rule, first.actions) == ("clone.slot", ())
    assert judge(following(empty(), view, now=NOW + 6), first.memory).rule == "clone.begin"


def test_a_clone_waits_for_a_leader_that_runs_as_primary() -> None:
    assert judge(following(empty(), leader_is(role="replica"))).rule == "clone.no-leader"
    bare = cluster(members=(member("pg1"),))
    assert judge(following(empty(), bare)).rule == "clone.no-leader"


def test_a_clone_waits_for_a_leader_that_has_published_no_address() -> None:
    assert judge(following(empty(), leader_is(conn_url=None))).rule == "clone.no-leader"


def test_failed_clones_are_spaced_out() -> None:
    failed = judge(following(empty(), finished=finished("clone", False, "disk full")))
    assert (failed.rule, failed.actions) == ("clone.pause", ())
    assert judge(following(empty(), now=NOW + 3), failed.memory).rule == "clone.begin"


@pytest.mark.parametrize(("source", "settled"), [("pg0", EPOCH), ("pg2", 0)])
def test_only_a_copy_of_the_leader_is_known_to_fit_its_history(source: str, settled: int) -> None:
    """Another member may have left the leader's line without knowing it yet."""
    led = Memory(last_leader="pg0", last_epoch=EPOCH)
    done = judge(following(stopped(), finished=finished("clone", source=source)), led)
    assert done.memory.rejoin.settled_epoch == settled


def test_a_directory_that_is_not_ours_is_never_cloned_over() -> None:
    decision = judge(following(replace(empty(), data_dir=DataDirState.FOREIGN)))
    assert (decision.rule, decision.actions) == ("clone.foreign", ())


def test_a_clone_into_an_emptied_directory_forgets_the_rewind_that_was_interrupted_there() -> None:
    decision = judge(following(replace(empty(), unfinished="rewind")))
    assert decision.actions == (Clone("pg0", "pg0", wipe=True),)


def test_a_new_cluster_that_was_never_led_makes_way_for_the_one_that_is() -> None:
    """It may look like it: the same backup, the same system identifier, the same number of its timeline."""
    assert judge(following(NEVER_LED)).actions == (Clone("pg0", "pg0", wipe=True),)


def test_a_rewind_that_saw_nothing_to_do_settles_nothing() -> None:
    """pg_rewind goes by pg_control, which may not know the last timeline: compared if it does not stream."""
    saw_nothing = finished("rewind", needed=False)
    done = judge(following(EX_PRIMARY, finished=saw_nothing), Memory(last_epoch=EPOCH))
    assert (done.rule, done.actions) == ("follow.start", (StartStandby("pg0"),))
    assert done.memory.rejoin.settled_epoch == 0


# --- stopped --------------------------------------------------------------------------------------


def test_a_stopped_standby_starts() -> None:
    decision = judge(following(stopped()))
    assert (decision.rule, decision.actions) == ("follow.start", (StartStandby("pg0"),))


def test_a_start_that_keeps_failing_is_spaced_out() -> None:
    failed = judge(
        following(stopped(), finished=finished("start standby", False, "port in use")),
        Memory(start_failures=2, rejoin=Rejoin(settled_epoch=EPOCH, epoch=EPOCH), last_epoch=EPOCH),
    )
    assert (failed.rule, failed.actions) == ("follow.start-pause", ())
    woken = judge(following(stopped(), now=NOW + 0.1), failed.memory)
    assert woken.rule == "follow.start-pause"
    assert judge(following(stopped(), now=NOW + 11), failed.memory).rule == "follow.start"


def test_a_standby_that_never_starts_is_compared_with_the_leader() -> None:
    """PostgreSQL refuses to start when the newest timeline has not got what it must reach."""
    stuck = Memory(start_failures=2, start_failed_at=NOW, last_epoch=EPOCH, rejoin=Rejoin(epoch=EPOCH))
    decision = judge(following(stopped()), stuck)
    assert (decision.rule, decision.actions) == ("follow.compare", (CheckDivergence("pg0"),))
    told = finished("compare histories", diverged=True, detail="beyond the switch point", whole=False)
    assert judge(following(stopped(), finished=told), decision.memory).rule == "rejoin.rewind"


def test_a_crashed_standby_is_shut_down_in_good_order_before_it_is_rewound() -> None:
    """pg_rewind refuses anything else, and single-user mode cannot recover a standby."""
    crashed = stopped(ControlState.IN_ARCHIVE_RECOVERY)
    decision = judge(following(crashed), DIVERGED)
    assert (decision.rule, decision.actions) == ("rejoin.recover-first", (StartStandby(None),))
    running = judge(following(lost_stream(follows=None), finished=finished("start standby")), decision.memory)
    assert (running.rule, kinds(running)) == ("follow.stop-diverged", (StopInstance,))
    assert judge(following(crashed), replace(DIVERGED, start_failures=2)).rule == "rejoin.rewind"


def test_a_divergence_that_pg_rewind_does_not_see_needs_a_clone() -> None:
    """Just promoted, pg_control names the timeline before: pg_rewind finds nothing to do, again and again."""
    unseen = finished("rewind", needed=False)
    kept = judge(following(stopped(), finished=unseen), DIVERGED)
    assert (kept.rule, kept.actions) == ("rejoin.stay-out", ())
    assert "beyond the switch point" in (kept.memory.note or "")
    allowed = replace(SETTINGS, remove_data_directory_on_rewind_failure=True)
    decision = judge(following(stopped(), settings=allowed, finished=unseen), DIVERGED)
    assert (decision.rule, decision.actions) == ("clone.begin", (Clone("pg0", "pg0", wipe=True),))


def test_a_former_primary_is_rewound_before_it_starts() -> None:
    decision = judge(following(EX_PRIMARY))
    assert (decision.rule, decision.actions) == ("rejoin.rewind", (Rewind("pg0"),))


def test_after_a_rewind_it_starts() -> None:
    decision = judge(following(EX_PRIMARY, finished=finished("rewind")), Memory(last_epoch=EPOCH))
    assert decision.rule == "follow.start"


def test_a_primary_that_handed_over_cleanly_just_starts() -> None:
    assert judge(following(EX_PRIMARY), Memory(clean_release=True)).rule == "follow.start"


def test_after_a_hand_over_the_promotion_goes_first() -> None:
    promoting = cluster(members=(member("pg0", role="promoted"), member("pg1"), member("pg2")))
    decision = judge(following(EX_PRIMARY, promoting), Memory(clean_release=True))
    assert decision.rule == "follow.released"
    assert not decision.actions
    assert decision.again_in_s is not None


def test_a_rewind_waits_until_the_leader_has_made_its_checkpoint() -> None:
    decision = judge(following(EX_PRIMARY, leader_is(checkpoint_after_promote=False)))
    assert (decision.rule, decision.actions) == ("rejoin.wait", ())


def test_failed_rewinds_are_spaced_out() -> None:
    failed = judge(following(EX_PRIMARY, finished=finished("rewind", False, "no route")))
    assert (failed.rule, failed.actions) == ("rejoin.pause", ())
    assert judge(following(EX_PRIMARY, now=NOW + 3), failed.memory).rule == "rejoin.rewind"


def test_when_rewinds_failed_the_directory_is_discarded_only_if_allowed() -> None:
    memory = Memory(rejoin=Rejoin(tries=3, epoch=EPOCH))
    allowed = replace(SETTINGS, remove_data_directory_on_rewind_failure=True)
    assert judge(following(EX_PRIMARY, settings=allowed), memory).actions == (Clone("pg0", "pg0", wipe=True),)
    assert judge(following(EX_PRIMARY), memory).rule == "rejoin.as-it-is"


def test_a_diverged_member_whose_rewinds_failed_keeps_trying_slowly() -> None:
    """Its cause may pass (a partition, a missing rule in pg_hba): nobody has to come and restart us."""
    tired = replace(DIVERGED, rejoin=replace(DIVERGED.rejoin, tries=7, not_before=NOW + 30))
    assert judge(following(EX_PRIMARY), tired).rule == "rejoin.pause"
    assert judge(following(EX_PRIMARY, now=NOW + 31), tired).rule == "rejoin.spent"
    assert judge(following(EX_PRIMARY, now=NOW + 631), tired).rule == "rejoin.rewind"


def test_an_interrupted_rewind_is_done_again() -> None:
    decision = judge(following(HALF_REWOUND))
    assert (decision.rule, decision.actions) == ("rejoin.rewind-again", (Rewind("pg0"),))


def test_an_interrupted_rewind_waits_for_its_pause_and_for_the_leader() -> None:
    pausing = Memory(rejoin=Rejoin(tries=1, not_before=NOW + 1, epoch=EPOCH))
    assert judge(following(HALF_REWOUND), pausing).rule == "rejoin.pause"
    assert judge(following(HALF_REWOUND, leader_is(checkpoint_after_promote=False))).rule == "rejoin.wait"


def test_an_interrupted_rewind_is_never_given_up() -> None:
    tired = Memory(rejoin=Rejoin(tries=9, not_before=NOW - 1, epoch=EPOCH))
    assert judge(following(HALF_REWOUND), tired).rule == "rejoin.spent"
    assert judge(following(HALF_REWOUND, now=NOW + 600), tired).rule == "rejoin.rewind-again"


def test_an_interrupted_rewind_that_fails_is_replaced_by_a_clone_if_allowed() -> None:
    allowed = replace(SETTINGS, remove_data_directory_on_rewind_failure=True)
    tired = Memory(rejoin=Rejoin(tries=3, epoch=EPOCH))
    assert judge(following(HALF_REWOUND, settings=allowed), tired).actions == (
        Clone("pg0", "pg0", wipe=True),
    )


def test_without_pg_rewind_a_former_primary_starts_as_it_is() -> None:
    decision = judge(following(EX_PRIMARY, settings=NO_REWIND))
    assert (decision.rule, decision.actions) == ("rejoin.as-it-is", (StartStandby("pg0"),))
    assert judge(following(EX_PRIMARY, settings=NO_REWIND), decision.memory).rule == "follow.start"


def test_without_the_program_a_former_primary_starts_as_it_is() -> None:
    decision = judge(following(replace(EX_PRIMARY, has_rewind=False)))
    assert (decision.rule, decision.actions) == ("rejoin.as-it-is", (StartStandby("pg0"),))


def test_a_former_primary_that_started_as_it_is_is_still_compared_with_the_leader() -> None:
    started = judge(following(EX_PRIMARY, settings=NO_REWIND))
    memory = judge(following(lost_stream(), settings=NO_REWIND), started.memory).memory
    decision = judge(following(lost_stream(), settings=NO_REWIND, now=NOW + 4), memory)
    assert (decision.rule, decision.actions) == ("follow.compare", (CheckDivergence("pg0"),))


def test_without_pg_rewind_a_diverged_member_stays_out_and_says_why() -> None:
    decision = judge(following(replace(EX_PRIMARY), settings=NO_REWIND), DIVERGED)
    assert (decision.rule, decision.actions) == ("rejoin.stay-out", ())
    assert "beyond the switch point" in (decision.memory.note or "")


def test_tries_against_an_earlier_leader_do_not_count_against_the_next_one() -> None:
    tired = replace(DIVERGED, rejoin=replace(DIVERGED.rejoin, tries=3, not_before=NOW + 50))
    view = cluster("pg2", EPOCH + 1, members=(member("pg1"), member("pg2", role="primary")))
    assert judge(following(EX_PRIMARY, view), tired).rule == "rejoin.rewind"
    assert judge(following(stopped(), view, settings=NO_REWIND), tired).rule == "follow.start"


def test_a_member_known_to_have_diverged_is_mended_even_when_it_was_settled_before() -> None:
    """Else it would be stopped to be mended, started as settled, stopped again, for ever."""
    both = replace(DIVERGED, rejoin=replace(DIVERGED.rejoin, settled_epoch=EPOCH))
    assert judge(following(stopped()), both).rule == "rejoin.rewind"


# --- rule 7 ---------------------------------------------------------------------------------------


def test_nothing_is_wiped_while_the_leader_itself_does_not_run() -> None:
    for state in ("crashed", "starting", "stopped"):
        decision = judge(following(stopped(), leader_is(state=state), settings=MAY_DISCARD), DIVERGED)
        assert (decision.rule, decision.actions) == ("rejoin.wait", ())


# --- running --------------------------------------------------------------------------------------


SILENT = replace(silent(), follows=("10.0.0.0", 5432))


def test_a_server_that_does_not_answer_is_waited_for() -> None:
    settled = Memory(rejoin=Rejoin(settled_epoch=EPOCH, epoch=EPOCH), last_epoch=EPOCH)
    assert judge(following(SILENT), settled).rule == "follow.no-answer"


def test_a_standby_that_lets_nobody_in_hears_of_a_new_leader() -> None:
    """It may wait for WAL which only the leader has: following nobody, it would wait for ever."""
    decision = judge(following(silent()))
    assert (decision.rule, decision.actions) == ("follow.leader-unseen", (Follow("pg0"),))
    assert not judge(following(silent(), leader_is(conn_url=None))).actions


def test_a_standby_that_lets_nobody_in_is_compared_with_the_leader() -> None:
    decision = judge(following(SILENT))
    assert (decision.rule, decision.actions) == ("follow.compare", (CheckDivergence("pg0"),))
    assert judge(following(SILENT, leader_is(role="replica"))).rule == "follow.no-answer"


def test_a_comparison_of_what_pg_control_names_is_not_the_last_word() -> None:
    told = finished("compare histories", diverged=False, whole=False)
    waits = judge(following(SILENT, finished=told), Memory(last_epoch=EPOCH))
    assert waits.rule == "follow.no-answer"
    assert waits.memory.rejoin.settled_epoch == 0
    assert judge(following(SILENT, now=NOW + 61), waits.memory).rule == "follow.compare"


def test_a_comparison_of_a_standby_that_still_reads_its_own_wal_is_not_the_last_word() -> None:
    """Behind what it has replayed may come WAL that the leader never had."""
    told = finished("compare histories", diverged=False, whole=False)
    memory = Memory(not_streaming_since=NOW - 9, last_epoch=EPOCH)
    waits = judge(following(lost_stream(), finished=told), memory)
    assert CheckDivergence not in kinds(waits)
    assert judge(following(lost_stream(), now=NOW + 61), waits.memory).rule == "follow.compare"


def test_a_standby_that_lets_nobody_in_and_has_diverged_is_stopped_to_be_mended() -> None:
    decision = judge(following(SILENT), DIVERGED)
    assert (decision.rule, kinds(decision)) == ("follow.stop-diverged", (StopInstance,))


def test_a_diverged_standby_does_not_follow_the_leader() -> None:
    decision = judge(following(lost_stream(follows=None)), DIVERGED)
    assert decision.rule == "follow.stop-diverged"


def test_a_new_leader_is_followed() -> None:
    view = cluster("pg2", 6, members=(member("pg1"), member("pg2", role="primary")))
    decision = judge(following(standby(), view))
    assert (decision.rule, decision.actions) == ("follow.leader", (Follow("pg2"),))


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (
            answer("pg2", tags=tags(failover_priority=2)),
            "pg2 has equally tolerable WAL position and priority 2, while this node has priority 1",
        ),
        (answer("pg2", OPTIME + 8), "Wal position of pg2 is ahead of my wal position"),
        (answer("pg2"), None),
        (no_answer("pg2"), None),
    ],
)
def test_who_lost_a_race_tells_why(peer: Peer, said: str | None) -> None:
    view = cluster("pg2", 6, members=(member("pg1"), member("pg2", role="primary")))
    decision = judge(following(standby(), view, peers=(peer,)))
    assert decision.rule == "follow.leader"
    assert decision.line == (f"{said}\nfollowing new leader pg2" if said else None)


def test_on_storage_that_hangs_no_further_write_is_tried() -> None:
    view = cluster("pg2", 6, members=(member("pg1"), member("pg2", role="primary")))
    decision = judge(following(standby(storage_hangs=True), view))
    assert (decision.rule, decision.actions, decision.again_in_s) == ("follow.storage-hangs", (), 1.0)
    assert judge(following(replace(silent(), storage_hangs=True), view)).rule == "follow.storage-hangs"
    assert judge(following(standby(storage_hangs=True, config_outdated=True))).actions == ()


def test_a_leader_without_address_is_waited_for() -> None:
    assert judge(following(standby(), leader_is(conn_url=None))).rule == "follow.no-address"


def test_a_standby_takes_its_own_slot() -> None:
    here = standby()
    assert isinstance(here.sample, InstanceSample)
    bare = replace(here, sample=replace(here.sample, primary_slot_name=None))
    assert judge(following(bare)).actions == (Follow("pg0"),)


def test_a_standby_that_does_not_stream_compares_histories() -> None:
    first = judge(following(lost_stream(), peers=(answer("pg0"), answer("pg2"))))
    assert first.memory.not_streaming_since == NOW
    decision = judge(following(lost_stream(), now=NOW + 4), first.memory)
    assert (decision.rule, decision.actions) == ("follow.compare", (CheckDivergence("pg0"),))


def test_a_walreceiver_that_only_reaches_the_end_of_an_older_timeline_does_not_stream() -> None:
    ahead = leader_is(timeline=9)
    first = judge(following(standby(), ahead))
    decision = judge(following(standby(), ahead, now=NOW + 4), first.memory)
    assert (decision.rule, decision.actions) == ("follow.compare", (CheckDivergence("pg0"),))


def test_histories_that_agree_are_not_compared_again_under_this_leader() -> None:
    memory = Memory(not_streaming_since=NOW - 9, last_epoch=EPOCH)
    agreed = judge(following(lost_stream(), finished=finished("compare histories", diverged=False)), memory)
    assert agreed.rule == "follow.ask"
    assert agreed.memory.rejoin.settled_epoch == EPOCH


def test_a_diverged_standby_is_stopped_to_be_mended() -> None:
    memory = Memory(not_streaming_since=NOW - 9, last_epoch=EPOCH)
    told = finished("compare histories", diverged=True, detail="beyond the switch point")
    decision = judge(following(lost_stream(), finished=told), memory)
    assert (decision.rule, kinds(decision)) == ("follow.stop-diverged", (StopInstance,))
    assert judge(following(stopped()), decision.memory).rule == "rejoin.rewind"


def test_a_diverged_standby_that_cannot_be_mended_goes_on_serving_what_it_has() -> None:
    decision = judge(following(lost_stream(), settings=NO_REWIND), DIVERGED)
    assert (decision.rule, decision.actions) == ("rejoin.stay-out", ())


def test_a_diverged_standby_without_wal_log_hints_is_not_stopped() -> None:
    bare = lost_stream(control=control(ControlState.IN_ARCHIVE_RECOVERY, wal_log_hints=False))
    assert judge(following(bare), DIVERGED).rule == "rejoin.stay-out"


def test_a_standby_that_streams_again_forgets_its_troubles() -> None:
    trouble = replace(DIVERGED, note="x", not_streaming_since=NOW - 9)
    decision = judge(following(standby()), trouble)
    assert decision.rule == "follow.steady"
    assert decision.memory.rejoin == Rejoin(epoch=EPOCH)
    assert (decision.memory.note, decision.memory.not_streaming_since) == (None, None)


def test_a_standby_that_does_not_stream_asks_the_others_in_advance() -> None:
    decision = judge(following(lost_stream()))
    assert (decision.rule, decision.actions) == ("follow.ask", (AskPeers(("pg0", "pg2")),))
    lately = following(lost_stream(), peers=(no_answer("pg0"), answer("pg2")))
    assert judge(lately).rule == "follow.steady"


def test_a_healthy_standby_does_nothing() -> None:
    decision = judge(following(standby()))
    assert (decision.rule, decision.actions, decision.again_in_s) == ("follow.steady", (), None)


def test_a_standby_applies_a_changed_configuration() -> None:
    assert judge(following(standby(config_outdated=True))).actions == (ApplyConfig(),)


def test_a_standby_makes_slots_for_the_members_it_may_serve_one_day() -> None:
    here = standby()
    assert isinstance(here.sample, InstanceSample)
    bare = replace(here, sample=replace(here.sample, slots=()))
    assert judge(following(bare)).actions == (SyncSlots(create=("pg0", "pg2")),)


def test_a_patroni_leader_is_followed_like_any_other() -> None:
    view = leader_is(agent=None)
    assert judge(following(standby(), view)).rule == "follow.steady"
    assert judge(following(EX_PRIMARY, view)).rule == "rejoin.rewind"
    assert judge(following(empty(), view)).rule == "clone.begin"


def test_a_leader_whose_member_key_is_gone_is_waited_for() -> None:
    bare = replace(cluster(members=(member("pg1"),)), leader=Leader("pg0", "s", EPOCH))
    assert judge(following(standby(), bare)).rule == "follow.no-address"
    assert judge(following(EX_PRIMARY, bare)).rule == "rejoin.wait"


def test_a_control_file_that_cannot_be_read_counts_as_a_standby() -> None:
    unread = Instance(control=Unavailable(NOW, "no such file"), sample=Unavailable(NOW, "stopped"))
    assert judge(following(unread)).rule == "follow.start"


# --- somebody else than the leader ----------------------------------------------------------------

PG2 = ("10.0.0.2", 5432)


def tagged(instance: Instance, **mine: Any) -> Observation:
    return following(instance, me=Identity("pg1", "demo", tags(**mine)))


def test_a_standby_follows_whom_its_tag_names() -> None:
    here = tagged(standby(), replicatefrom="pg2")
    assert (judge(here).rule, judge(here).actions) == ("follow.leader", (Follow("pg2"),))
    assert judge(tagged(standby(follows=PG2), replicatefrom="pg2")).rule == "follow.steady"
    assert judge(tagged(standby(follows=PG2))).actions == (Follow("pg0"),)
    assert judge(tagged(silent(), replicatefrom="pg2")).actions == (Follow("pg2"),)
    assert judge(tagged(stopped(), replicatefrom="pg2")).actions == (StartStandby("pg2"),)


def test_when_the_named_one_is_gone_it_follows_the_leader() -> None:
    gone = cluster(members=(member("pg0"), member("pg1")))
    here = following(standby(follows=PG2), gone, me=Identity("pg1", "demo", tags(replicatefrom="pg2")))
    assert judge(here).actions == (Follow("pg0"),)


def test_a_standby_that_is_not_to_stream_follows_nobody() -> None:
    assert judge(tagged(standby(), nostream=True)).actions == (Follow(None),)
    assert judge(tagged(standby(follows=None), nostream=True)).rule == "follow.steady"
    assert judge(tagged(stopped(), nostream=True)).actions == (StartStandby(None),)
