"""Nobody leads: a new cluster, a running primary without a key, a stopped node, the election."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import ConfigRecord, Status, TimelineClaim
from haagent.core.actions import (
    AskPeers,
    Clone,
    CreateInitialize,
    DeleteInitialize,
    Exit,
    Initdb,
    PutInitialConfig,
    PutInitialize,
    StartStandby,
    StopInstance,
    TakeLeader,
)
from haagent.core.model import Decision, Identity, LeaseFacts, Memory, Observation, Unavailable
from postgres_ctl.facts import ControlState, DataDirState, InstanceSample
from tests.unit.core_facts import (
    NO_LEASE,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    SYSTEM,
    answer,
    answers_as_primary,
    asked,
    cluster,
    empty,
    finished,
    history,
    judge,
    kinds,
    lost_stream,
    member,
    no_answer,
    obs,
    primary,
    racing,
    request,
    silent,
    slot,
    stopped,
    tags,
)

NEW = cluster(leader=None, initialize=None, config=None, members=(), status=None, history=None)
FREE = cluster(leader=None)
LIMIT = SETTINGS.maximum_lag_on_failover_bytes
LAST_ONE = cluster(leader=None, members=(member("pg1"),))


# --- a new cluster --------------------------------------------------------------------------------


def test_the_first_member_races_for_the_new_cluster() -> None:
    decision = judge(obs("pg0", empty(), NEW))
    assert (decision.rule, decision.actions) == ("bootstrap.race", (CreateInitialize(), Initdb()))
    assert decision.memory.bootstrap == "won"


def test_a_member_that_must_not_lead_does_not_make_a_new_cluster() -> None:
    tagged = Identity("pg0", "demo", tags(nofailover=True))
    assert judge(replace(obs("pg0", empty(), NEW), me=tagged)).rule == "bootstrap.wait"


def test_while_another_bootstraps_an_empty_member_waits() -> None:
    assert judge(obs("pg1", empty(), replace(NEW, initialize=""))).rule == "bootstrap.wait"


def test_an_empty_member_of_a_known_cluster_without_leader_waits() -> None:
    assert judge(obs("pg1", empty(), FREE)).rule == "bootstrap.wait"


def test_an_empty_member_of_a_known_cluster_without_leader_restores_a_backup_if_it_can() -> None:
    decision = judge(obs("pg1", empty(), FREE, copies_without_leader=True))
    assert (decision.rule, decision.actions) == ("bootstrap.without-leader", (Clone(None, None),))
    assert decision.reason == "trying to bootstrap (without leader)"
    failed = finished("clone", False, "restore: no backup")
    seen = obs("pg1", empty(), FREE, copies_without_leader=True, finished=failed)
    assert judge(seen).rule == "clone.pause"


def test_no_backup_is_restored_while_a_new_cluster_is_made_or_before() -> None:
    busy = (member("pg0", state="initializing new cluster"),)
    claimed = obs("pg1", empty(), replace(NEW, initialize="", members=busy), copies_without_leader=True)
    assert judge(claimed).rule == "bootstrap.wait"
    tagged = Identity("pg1", "demo", tags(nofailover=True))
    before = replace(obs("pg1", empty(), NEW, copies_without_leader=True), me=tagged)
    assert judge(before).rule == "bootstrap.wait"


#: A whole new cluster, whose agent died before it led.
NEVER_LED = replace(stopped(ControlState.SHUT_DOWN), unfinished="bootstrap")


def test_a_new_cluster_that_was_never_led_still_becomes_the_cluster() -> None:
    decision = judge(obs("pg0", NEVER_LED, NEW))
    assert (decision.rule, decision.actions) == ("bootstrap.go-on", (CreateInitialize(),))
    assert decision.memory.bootstrap == "ready"
    begun = judge(obs("pg0", NEVER_LED, replace(NEW, initialize=SYSTEM)))
    assert (begun.rule, begun.actions) == ("bootstrap.go-on", ())
    # Also where it held the key, and claimed the timeline of what it had restored, but did not start yet.
    claimed = replace(NEW, initialize=SYSTEM, claims=(TimelineClaim(2, "pg0", 7),))
    assert judge(obs("pg0", NEVER_LED, claimed), Memory(last_leader="pg0")).rule == "bootstrap.go-on"
    again = judge(obs("pg0", NEVER_LED, replace(NEW, initialize="")), decision.memory)
    assert again.actions == (PutInitialize(SYSTEM), PutInitialConfig(), TakeLeader())


@pytest.mark.parametrize(
    "view",
    [
        replace(NEW, initialize=""),
        replace(NEW, initialize="7999999999999999999"),
        replace(NEW, initialize=SYSTEM, claims=(TimelineClaim(2, "pg1", 7),)),
        replace(NEW, initialize=SYSTEM, status=Status(5)),
    ],
)
def test_a_new_cluster_that_another_one_has_overtaken_waits_to_be_given_up(view: Any) -> None:
    decision = judge(obs("pg0", NEVER_LED, view))
    assert (decision.rule, decision.actions) == ("bootstrap.overtaken", ())


def test_a_finished_bootstrap_takes_the_key() -> None:
    seen = obs(
        "pg0", stopped(ControlState.SHUT_DOWN), replace(NEW, initialize=""), finished=finished("initdb")
    )
    decision = judge(seen, Memory(bootstrap="won"))
    assert decision.rule == "bootstrap.take"
    assert decision.actions == (PutInitialize(SYSTEM), PutInitialConfig(), TakeLeader())


def test_a_failed_bootstrap_lets_others_try_and_ends_the_agent() -> None:
    seen = obs("pg0", empty(), replace(NEW, initialize=""), finished=finished("initdb", False, "disk full"))
    decision = judge(seen, Memory(bootstrap="won"))
    assert decision.rule == "bootstrap.failed"
    assert kinds(decision) == (DeleteInitialize, Exit)


def test_a_bootstrap_whose_end_nobody_saw_has_failed() -> None:
    decision = judge(obs("pg0", empty(), replace(NEW, initialize="")), Memory(bootstrap="won"))
    assert (decision.rule, kinds(decision)) == ("bootstrap.failed", (DeleteInitialize, Exit))


def test_a_failed_bootstrap_leaves_a_claim_that_is_not_its_own() -> None:
    """Our session ran out meanwhile, and somebody else has made the cluster."""
    failed = Memory(bootstrap="failed: disk full")
    assert kinds(judge(obs("pg0", empty(), FREE), failed)) == (Exit,)


def test_a_new_cluster_whose_control_file_cannot_be_read_just_now_is_not_given_up() -> None:
    """Else its maker would wait for ever for whoever holds the claim: itself."""
    unread = stopped(control=Unavailable(NOW, "Input/output error"))
    decision = judge(obs("pg0", unread, replace(NEW, initialize="")), Memory(bootstrap="ready"))
    assert (decision.rule, decision.actions) == ("bootstrap.unreadable", ())
    again = judge(obs("pg0", stopped(), replace(NEW, initialize="")), decision.memory)
    assert again.rule == "bootstrap.take"


def test_an_abandoned_claim_does_not_hold_up_a_member_that_has_data_for_ever() -> None:
    claimed = replace(NEW, initialize="", members=(member("pg0", state="stopped"),))
    first = judge(obs("pg0", stopped(), claimed))
    assert first.rule == "race.bootstrapping"
    later = judge(obs("pg0", stopped(), claimed, now=NOW + SETTINGS.ttl_s + 1), first.memory)
    assert (later.rule, later.actions) == ("bootstrap.abandoned", (DeleteInitialize(),))


def test_a_directory_that_is_not_ours_is_never_touched() -> None:
    decision = judge(obs("pg0", replace(empty(), data_dir=DataDirState.FOREIGN), NEW))
    assert (decision.rule, decision.actions) == ("bootstrap.foreign", ())


def test_an_abandoned_claim_on_the_new_cluster_is_cleared_after_a_ttl() -> None:
    """The claim was applied, its answer was lost: it hangs on our own session and would stay for ever."""
    claimed = replace(NEW, initialize="", members=(member("pg0", state="stopped", role="uninitialized"),))
    first = judge(obs("pg0", empty(), claimed))
    assert first.rule == "bootstrap.wait"
    later = judge(obs("pg0", empty(), claimed, now=NOW + SETTINGS.ttl_s + 1), first.memory)
    assert (later.rule, later.actions) == ("bootstrap.abandoned", (DeleteInitialize(),))


def test_a_claim_is_left_alone_while_somebody_works_on_the_new_cluster() -> None:
    busy = replace(NEW, initialize="", members=(member("pg0", state="initializing new cluster"),))
    first = judge(obs("pg1", empty(), busy))
    later = judge(obs("pg1", empty(), busy, now=NOW + 10 * SETTINGS.ttl_s), first.memory)
    assert later.rule == "bootstrap.wait"
    idle = replace(busy, members=(member("pg0", state="stopped"),))
    assert judge(obs("pg1", empty(), idle, now=NOW + 10 * SETTINGS.ttl_s + 1), later.memory).actions == ()


# --- a running primary without a key --------------------------------------------------------------

MISSING = Memory(leader_missing_since=NOW - 1)


def decided(seen: Observation) -> Decision:
    return judge(seen, MISSING)


def alone(**changes: Any) -> Observation:
    return obs(
        "pg0", primary(), FREE, **{"lease": NO_LEASE, "peers": (answer("pg1"), answer("pg2")), **changes}
    )


def test_a_running_primary_asks_the_others_before_it_takes_the_key() -> None:
    decision = decided(alone(peers=()))
    assert (decision.rule, decision.actions) == ("race.primary-ask", (AskPeers(("pg1", "pg2")),))


def test_a_running_primary_takes_a_key_that_was_deleted_by_hand() -> None:
    decision = decided(alone())
    assert (decision.rule, decision.actions) == ("race.primary-takes", (TakeLeader(),))


def test_silent_members_do_not_keep_a_running_primary_from_its_key() -> None:
    assert decided(alone(peers=(no_answer("pg1"), no_answer("pg2")))).rule == "race.primary-takes"


def test_a_running_primary_brings_its_cluster_into_an_empty_store() -> None:
    decision = judge(obs("pg0", primary(), NEW))
    assert decision.actions == (PutInitialize(SYSTEM, only_if_absent=True), TakeLeader())


def test_a_second_primary_is_stopped() -> None:
    decision = decided(alone(peers=(answers_as_primary("pg1"), answer("pg2"))))
    assert decision.rule == "race.two-primaries"
    assert decision.actions == (StopInstance("immediate", decision.reason),)


def test_a_second_primary_is_stopped_whatever_else_speaks_against_taking_the_key() -> None:
    """The other primary must be noticed although the election had refused for another reason already."""
    seen = alone(peers=(answers_as_primary("pg1"), answer("pg2")))
    resumed = replace(MISSING, resumed_at=NOW - 1)
    assert judge(seen, resumed).rule == "race.two-primaries"
    assert judge(alone(peers=()), resumed).rule == "race.primary-ask"


def test_a_primary_on_an_old_timeline_is_stopped() -> None:
    decision = decided(alone(cluster=replace(FREE, history=history(1, 2))))
    assert (decision.rule, kinds(decision)) == ("race.primary-stale", (StopInstance,))


def test_a_silent_primary_without_a_key_is_waited_for() -> None:
    assert judge(obs("pg0", silent(writable=True), FREE)).rule == "race.primary-no-answer"


# --- stopped --------------------------------------------------------------------------------------


def test_a_stopped_node_starts_read_only_before_it_races() -> None:
    decision = judge(obs("pg1", stopped(), FREE))
    assert (decision.rule, decision.actions) == ("race.start-readonly", (StartStandby(None),))


def test_a_stopped_node_brings_its_cluster_into_an_empty_store() -> None:
    decision = judge(obs("pg0", stopped(ControlState.SHUT_DOWN), NEW))
    assert decision.actions == (PutInitialize(SYSTEM, only_if_absent=True), StartStandby(None))


def test_a_primary_that_handed_over_waits_a_moment_for_its_successor() -> None:
    memory = replace(REMEMBERS, clean_release=True)
    assert judge(obs("pg0", stopped(ControlState.SHUT_DOWN), FREE), memory).rule == "race.released"
    late = obs("pg0", stopped(ControlState.SHUT_DOWN), FREE, now=NOW + 3)
    assert judge(late, memory).rule == "race.start-readonly"


def test_a_stopped_node_does_not_disturb_a_bootstrap() -> None:
    assert judge(obs("pg1", stopped(), replace(FREE, initialize=""))).rule == "race.bootstrapping"


def test_a_start_that_keeps_failing_is_spaced_out_however_often_it_is_looked_at() -> None:
    failing = obs("pg1", stopped(), FREE, finished=finished("start standby", False, "port in use"))
    decision = judge(failing, Memory(start_failures=3))
    assert (decision.rule, decision.actions) == ("race.start-pause", ())
    woken = replace(failing, now=NOW + 0.1, finished=())
    assert judge(woken, decision.memory).rule == "race.start-pause"
    assert judge(replace(woken, now=NOW + 11), decision.memory).rule == "race.start-readonly"


# --- the election ---------------------------------------------------------------------------------


def test_a_fit_standby_takes_the_key() -> None:
    decision = judge(racing(lost_stream()), REMEMBERS)
    assert (decision.rule, decision.actions) == ("race.take", (TakeLeader(),))


def test_nobody_takes_the_key_before_the_others_were_asked() -> None:
    decision = judge(racing(lost_stream(), peers=()), REMEMBERS)
    assert (decision.rule, decision.actions) == ("race.ask", (AskPeers(("pg2",)),))


def test_an_election_ends_although_every_answer_takes_the_longest_time_allowed() -> None:
    """An answer that arrives 2 seconds after it was asked for is still an answer."""
    slow = replace(answer("pg2"), asked_at=NOW - 1.99)
    decision = judge(racing(lost_stream(), peers=(slow,)), replace(REMEMBERS, leader_missing_since=NOW - 5))
    assert decision.rule == "race.take"


def test_a_silent_member_does_not_hold_the_election_up() -> None:
    assert judge(racing(lost_stream(), peers=(no_answer("pg2"),)), REMEMBERS).rule == "race.take"


def test_a_member_without_api_url_does_not_hold_the_election_up() -> None:
    bare = cluster(leader=None, members=(member("pg1"), member("pg2", api_url=None)))
    assert judge(racing(lost_stream(), bare, peers=()), REMEMBERS).rule == "race.take"


def test_a_member_of_the_old_agent_is_judged_by_its_position() -> None:
    old = replace(answer("pg2", OPTIME + 8), is_haagent=False, cannot_lead=None)
    decision = judge(racing(lost_stream(), peers=(old,)), REMEMBERS)
    assert (decision.rule, [r.rule for r in decision.refusals]) == ("race.refused", ["peer.ahead"])


def test_a_refused_standby_keeps_its_slots_in_line() -> None:
    here = lost_stream()
    assert isinstance(here.sample, InstanceSample)
    bare = replace(here, sample=replace(here.sample, slots=(slot("pg0", active=False),)))
    decision = judge(racing(bare, peers=(answer("pg2", OPTIME + 8),)), REMEMBERS)
    assert decision.rule == "race.refused"
    assert len(decision.actions) == 1


def test_a_standby_that_does_not_answer_does_not_race() -> None:
    assert judge(racing(silent()), REMEMBERS).rule == "race.no-answer"


def test_a_running_primary_keeps_standbys_from_the_key() -> None:
    decision = judge(racing(lost_stream(), peers=(answers_as_primary("pg2"),)), REMEMBERS)
    assert [r.rule for r in decision.refusals] == ["peer.primary"]


def test_when_the_whole_store_was_wiped_a_silent_old_leader_is_waited_for_one_ttl() -> None:
    """Its member key is gone like everybody's: that proves nothing about its lease."""
    memory = replace(REMEMBERS, last_members=tuple(member(n) for n in ("pg0", "pg1", "pg2")))
    wiped = racing(lost_stream(), NEW, peers=(no_answer("pg0"), answer("pg2")))
    assert [r.rule for r in judge(wiped, memory).refusals] == ["former-leader"]
    later = replace(wiped, now=NOW + SETTINGS.ttl_s)
    later = replace(later, peers={n: replace(p, asked_at=later.now - 0.1) for n, p in wiped.peers.items()})
    assert judge(later, memory).rule == "race.take"


def test_when_the_whole_store_was_wiped_the_running_primary_wins() -> None:
    memory = replace(REMEMBERS, last_members=tuple(member(n) for n in ("pg0", "pg1", "pg2")))
    wiped = racing(lost_stream(), NEW, peers=(answers_as_primary("pg0"), answer("pg2")))
    assert judge(wiped, memory).rule == "race.refused"


# --- hand-over mark (H18) -------------------------------------------------------------------------


def test_after_a_hand_over_nobody_takes_over_with_wal_missing_even_when_the_request_is_cleared() -> None:
    """pg0 hands over to pg2, pg2 clears the request and dies; pg1 has not got everything."""
    view = asked(cluster(), request(candidate="pg2"))
    memory = judge(obs("pg1", lost_stream(OPTIME - 8), view)).memory
    memory = judge(obs("pg1", lost_stream(OPTIME - 8), cluster("pg2", 6), now=NOW + 0.2), memory).memory
    memory = judge(obs("pg1", lost_stream(OPTIME - 8), cluster("pg2", 6), now=NOW + 0.4), memory).memory
    gone = racing(lost_stream(OPTIME - 8), LAST_ONE, peers=(no_answer("pg0"), no_answer("pg2")))
    decision = judge(replace(gone, now=NOW + 1), memory)
    assert [r.rule for r in decision.refusals] == ["handover.incomplete"]
    silence = {n: replace(p, asked_at=NOW + SETTINGS.ttl_s + 2) for n, p in gone.peers.items()}
    late = judge(replace(gone, now=NOW + SETTINGS.ttl_s + 2, peers=silence), memory)
    assert late.rule == "race.take"


def test_the_mark_asks_for_the_wal_of_the_old_primary_and_not_for_that_of_its_successor() -> None:
    """pg0 hands over to pg2, which leads, writes, publishes that, and dies at once: nobody has its WAL."""
    view = asked(cluster(), request(candidate="pg2"))
    memory = judge(obs("pg1", lost_stream(OPTIME), view)).memory
    final = Status(OPTIME, final_timeline=1)
    free = replace(view, leader=None, status=final)
    memory = judge(obs("pg1", lost_stream(OPTIME), free, now=NOW + 0.1), memory).memory
    later = replace(cluster("pg2", 6), status=Status(OPTIME + 4096))
    memory = judge(obs("pg1", lost_stream(OPTIME), later, now=NOW + 0.2), memory).memory
    silent_all = (no_answer("pg0"), no_answer("pg2"))
    gone = replace(racing(lost_stream(OPTIME), LAST_ONE, peers=silent_all), now=NOW + 1)
    assert not isinstance(gone.cluster, Unavailable)
    view = replace(gone.cluster, status=Status(OPTIME + 4096))
    assert judge(replace(gone, cluster=view), memory).rule == "race.take"
    without = racing(lost_stream(OPTIME - 8), view, peers=silent_all)
    refused = judge(replace(without, now=NOW + 1), memory)
    assert [r.rule for r in refused.refusals] == ["handover.incomplete"]


def test_a_switchover_that_was_called_off_does_not_delay_a_failover() -> None:
    view = asked(cluster(), request(candidate="pg2"))
    memory = judge(obs("pg1", lost_stream(OPTIME - 8), view)).memory
    memory = judge(obs("pg1", lost_stream(OPTIME - 8), cluster(), now=NOW + 0.2), memory).memory
    gone = racing(lost_stream(OPTIME - 8), LAST_ONE, peers=(no_answer("pg0"), no_answer("pg2")))
    assert judge(replace(gone, now=NOW + 1), memory).rule == "race.take"


# --- a store that went back in time ---------------------------------------------------------------


WENT_BACK = LeaseFacts(session="s", closed_epoch=5000)


def test_a_member_whose_epochs_the_store_forgot_does_not_take_the_key() -> None:
    decision = judge(racing(lost_stream(), lease=WENT_BACK), REMEMBERS)
    assert [r.rule for r in decision.refusals] == ["store.went-back"]
    assert decision.again_in_s == 1.0


def test_a_standby_whose_epochs_the_store_forgot_gets_a_new_guardian_if_nobody_else_leads() -> None:
    """Else a cluster whose members have all led would stay without a primary until an operator comes."""
    waited = replace(REMEMBERS, leader_missing_since=NOW - SETTINGS.ttl_s - 1)
    decision = judge(racing(lost_stream(), lease=WENT_BACK), waited)
    assert (decision.rule, kinds(decision)) == ("race.store-went-back", (StopInstance,))
    behind = racing(lost_stream(OPTIME - 2 * LIMIT), lease=WENT_BACK)
    assert judge(behind, waited).rule == "race.refused"


def test_a_primary_that_can_hold_no_lease_any_more_is_stopped() -> None:
    decision = judge(obs("pg0", primary(), FREE, lease=replace(WENT_BACK, closed_epoch=0, epoch=5000)))
    assert (decision.rule, kinds(decision)) == ("race.store-went-back", (StopInstance,))


def test_a_stopped_member_whose_epochs_the_store_forgot_ends_so_that_its_guardian_is_renewed() -> None:
    decision = judge(obs("pg0", stopped(), FREE, lease=WENT_BACK))
    assert (decision.rule, kinds(decision)) == ("race.store-went-back", (Exit,))


TRACES = {
    "status": replace(NEW, status=Status(OPTIME)),
    "history": replace(NEW, history=history(1)),
    "haagent_claims": replace(NEW, claims=(TimelineClaim(2, "pg1", 4),)),
    "pg1 has its data": replace(NEW, members=(member("pg1"),)),
}


@pytest.mark.parametrize("trace", TRACES)
def test_no_new_cluster_is_made_over_the_traces_of_another(trace: str) -> None:
    """Somebody deleted `initialize`: an empty member would lock out all who have the data."""
    decision = judge(obs("pg0", empty(), TRACES[trace]))
    assert (decision.rule, decision.actions) == ("bootstrap.known-cluster", ())
    assert trace in decision.reason


def test_no_new_cluster_is_made_by_a_member_that_has_seen_a_leader() -> None:
    assert judge(obs("pg0", empty(), NEW), REMEMBERS).rule == "bootstrap.known-cluster"


def test_config_alone_does_not_make_a_known_cluster() -> None:
    view = replace(NEW, config=ConfigRecord({}, 1))
    assert judge(obs("pg0", empty(), view)).rule == "bootstrap.race"
