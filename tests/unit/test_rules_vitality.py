"""A primary of no use to clients: restarted, replaced or kept; who is fit to replace it; how often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from haagent.core.actions import (
    AskPeers,
    BeginSwitchover,
    CancelJob,
    CloseEpoch,
    Guard,
    ReleaseLeader,
    StopInstance,
)
from haagent.core.candidate import standing
from haagent.core.model import (
    Decision,
    Handover,
    Instance,
    JobFacts,
    Memory,
    Observation,
    OperatorRequest,
    Unavailable,
    evolve,
)
from haagent.core.publish import cannot_lead, note
from haagent.core.vitality import CALM_S, ILL_AFTER, RESTARTS, RETRY_S, UNREACHED_AFTER_S
from haagent.core.vitals import ProbeFacts, Remedies, Vitals
from postgres_ctl.facts import ControlState, ProbeFault
from tests.unit.core_facts import (
    EPOCH,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    answer,
    asked,
    cluster,
    control,
    following,
    judge,
    leading,
    lease,
    lost_stream,
    member,
    no_answer,
    paused,
    primary,
    racing,
    request,
    sample,
    sender,
    silent,
    standby,
    stopped,
)

FULL, HANGS = ProbeFault.FULL, ProbeFault.HANGS
UNREACHED, BROKEN = ProbeFault.UNREACHED, ProbeFault.BROKEN
FIT = (answer("pg1"), answer("pg2"))
SEEN = Remedies(fit_since=NOW - 2)
#: Somebody has been fit since before the last probe failed.
SETTLED = Memory(checkpointed_epoch=EPOCH, remedies=SEEN)


def failing(fault: ProbeFault, for_s: float = 100.0, in_a_row: int = 9) -> ProbeFacts:
    return ProbeFacts(NOW - 1.5, 1.0, fault, "why", NOW - for_s, in_a_row, in_a_row)


def disk(fault: ProbeFault, *more: float | int) -> Vitals:
    return Vitals(disk=failing(fault, *more))  # type: ignore[arg-type]


def server(fault: ProbeFault, *more: float | int) -> Vitals:
    return Vitals(server=failing(fault, *more))  # type: ignore[arg-type]


def sick(vitals: Vitals, instance: Instance | None = None, **changes: Any) -> Observation:
    here = instance if instance is not None else primary()
    return leading(here, changes.pop("view", None), vitals=vitals, **{"peers": FIT, **changes})


def let_go(decision: Decision) -> bool:
    """The epoch is closed first: were it the other way round, a failure in between would start it again."""
    return [type(a) for a in decision.actions] == [CloseEpoch, StopInstance]


# --- when it counts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vitals",
    [
        Vitals(),
        disk(HANGS, SETTINGS.ttl_s - 1),
        disk(HANGS, 100.0, ILL_AFTER - 1),
        server(UNREACHED, UNREACHED_AFTER_S - 1),
        server(UNREACHED, 100.0, ILL_AFTER - 1),
        Vitals(server=ProbeFacts(NOW - 1, 1.0, None, "too many clients")),
    ],
)
def test_what_may_be_load_changes_nothing(vitals: Vitals) -> None:
    assert judge(sick(vitals), SETTLED).rule == "leader.steady"


def test_a_storm_of_connections_is_given_more_time_than_hung_storage() -> None:
    """H12."""
    quick = replace(SETTINGS, ttl_s=5, loop_wait_s=1, retry_timeout_s=1)
    for_s = UNREACHED_AFTER_S - 1
    assert judge(sick(server(UNREACHED, for_s), settings=quick), SETTLED).rule == "leader.steady"
    assert judge(sick(disk(HANGS, for_s), settings=quick), SETTLED).rule == "leader.unhealthy-hand-over"


def test_a_paused_cluster_is_left_alone() -> None:
    decision = judge(sick(disk(HANGS), settings=paused(), lease=lease(disarmed=True)), SETTLED)
    assert decision.rule == "pause.leader"
    assert not {StopInstance, CloseEpoch} & {type(a) for a in decision.actions}


def test_a_primary_whose_lease_is_not_proven_is_the_fences_business() -> None:
    late = lease(fence_at=NOW - 1, closed_epoch=EPOCH)
    assert judge(sick(disk(HANGS), lease=late)).rule == "lease.fencing"


def test_an_operators_request_comes_first() -> None:
    decision = judge(sick(disk(HANGS), request=OperatorRequest(3, "restart")), SETTLED)
    assert decision.rule == "request.restart"


# --- a restart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [UNREACHED, HANGS])
def test_a_hung_server_on_good_storage_is_killed_and_started_again(fault: ProbeFault) -> None:
    decision = judge(sick(server(fault)), SETTLED)
    assert decision.rule == "leader.unhealthy-restart"
    (stop,) = decision.actions
    assert isinstance(stop, StopInstance)
    assert stop.mode == "kill"
    assert decision.memory.remedies.restarts == (NOW,)
    assert judge(sick(server(fault), silent(writable=True))).rule == "leader.unhealthy-restart"


def test_one_that_hangs_again_and_again_is_handed_over() -> None:
    used_up = evolve(SETTLED, remedies=replace(SEEN, restarts=(NOW - 9,) * RESTARTS))
    assert let_go(judge(sick(server(UNREACHED)), used_up))
    long_ago = evolve(SETTLED, remedies=replace(SEEN, restarts=(NOW - 9999,) * RESTARTS))
    assert judge(sick(server(UNREACHED)), long_ago).rule == "leader.unhealthy-restart"


def test_no_restart_helps_a_server_whose_storage_fails() -> None:
    both = Vitals(server=failing(UNREACHED), disk=failing(HANGS))
    assert judge(sick(both), SETTLED).rule == "leader.unhealthy-hand-over"
    assert judge(sick(server(FULL)), SETTLED).rule == "leader.unhealthy-switchover"


# --- a hand-over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [HANGS, BROKEN])
def test_storage_that_fails_gives_leadership_away_without_a_release(fault: ProbeFault) -> None:
    """H9: whoever waits for it cannot be ended, so nothing is proven stopped."""
    decision = judge(sick(disk(fault)), SETTLED)
    assert decision.rule == "leader.unhealthy-hand-over"
    assert let_go(decision)
    assert decision.actions[0] == CloseEpoch(EPOCH)
    assert decision.memory.remedies.tried_at == NOW
    assert let_go(judge(sick(disk(fault), silent(writable=True)), SETTLED))


def test_a_full_disk_is_handed_over_like_a_switchover_first() -> None:
    decision = judge(sick(disk(FULL), view=cluster(failover_version=4)), SETTLED)
    assert decision.rule == "leader.unhealthy-switchover"
    assert decision.actions == (BeginSwitchover(Guard(EPOCH, 77), 4, "pg0", "pg1"),)
    wish = asked(cluster(), request("pg0", "pg1"))
    assert judge(sick(disk(FULL), view=wish), decision.memory).rule == "switchover.begin"


def test_a_full_disk_on_which_that_failed_is_handed_over_like_a_crash() -> None:
    failed = evolve(SETTLED, remedies=replace(SEEN, tries=1, tried_at=NOW - RETRY_S))
    assert let_go(judge(sick(disk(FULL)), failed))
    mute = asked(cluster(), request("pg0", "pg1"))
    assert let_go(judge(sick(disk(FULL), silent(writable=True), view=mute), failed))


def test_a_primary_that_did_not_stop_cleanly_on_a_full_disk_does_not_come_back_there() -> None:
    died = stopped(ControlState.IN_PRODUCTION)
    begun = evolve(
        SETTLED, handover=Handover(9, "pg1", NOW - 3, True, NOW - 2, epoch=EPOCH), down_since=NOW - 1
    )
    view = asked(cluster(), request("pg0", "pg1"))
    decision = judge(sick(disk(FULL), died, view=view), begun)
    assert decision.rule == "leader.hand-over-crashed"
    assert decision.actions == (ReleaseLeader(EPOCH),)
    assert decision.memory.handover is None
    # One that did is handed over as it is meant to be.
    clean = stopped(ControlState.SHUT_DOWN, control=control(ControlState.SHUT_DOWN))
    assert judge(sick(disk(FULL), clean, view=view), begun).rule == "switchover.prove"


def test_hung_storage_does_not_wait_for_a_switchover_that_was_asked_for() -> None:
    wish = asked(cluster(), request("pg0", "pg1"))
    begun = evolve(SETTLED, handover=Handover(9, "pg1", NOW - 3, True, epoch=EPOCH))
    decision = judge(sick(disk(HANGS), view=wish), begun)
    assert let_go(decision)
    assert decision.memory.handover is None


def test_a_checkpoint_on_hung_storage_holds_nothing_up() -> None:
    job = JobFacts("checkpoint", NOW - 50, epoch=EPOCH)
    decision = judge(sick(disk(HANGS), job=job))
    assert decision.rule == "job.hopeless"
    assert [type(a) for a in decision.actions] == [CancelJob]
    assert judge(sick(disk(HANGS), job=replace(job, cancelled=True))).rule == "job.running"
    assert judge(sick(disk(FULL), job=job)).rule == "job.running"


def test_the_others_are_asked_first() -> None:
    decision = judge(sick(disk(HANGS), peers=()), SETTLED)
    assert (decision.rule, decision.actions) == ("leader.unhealthy-ask", (AskPeers(("pg1", "pg2")),))


def test_the_fault_has_to_outlast_that_of_the_successor() -> None:
    """A shared fault ends for one before the other; what was fit in an earlier illness says nothing."""
    for since in (None, NOW - 5000):
        before = evolve(SETTLED, remedies=Remedies(fit_since=since))
        first = judge(sick(disk(HANGS)), before)
        assert (first.rule, first.actions) == ("leader.unhealthy-confirm", ())
        assert first.memory.remedies.fit_since == NOW
        assert judge(sick(disk(HANGS)), first.memory).rule == "leader.unhealthy-confirm"
        later = failing(HANGS)
        seen = replace(sick(Vitals(disk=replace(later, began_at=NOW + 1))), now=NOW + 2.1)
        again = replace(seen, peers={p.name: replace(p, asked_at=NOW + 2.0) for p in FIT})
        assert let_go(judge(again, first.memory))


# --- nobody to go to ------------------------------------------------------------------------------


def shared_fault() -> Observation:
    ill = tuple(member(n, cannot_lead="vitality: full") for n in ("pg1", "pg2"))
    return sick(disk(FULL), view=cluster(members=(member("pg0"), *ill)))


@pytest.mark.parametrize(
    "seen",
    [
        shared_fault(),
        sick(disk(HANGS), view=cluster(members=(member("pg0"),)), peers=()),
        sick(disk(HANGS), peers=tuple(answer(n, cannot_lead="vitality: hangs") for n in ("pg1", "pg2"))),
        sick(disk(HANGS), peers=(no_answer("pg1"), no_answer("pg2"))),
        sick(disk(HANGS), silent(writable=True), peers=(no_answer("pg1"), no_answer("pg2"))),
        sick(disk(HANGS), primary(sample=sample(primary=True, senders=(sender("pg1", OPTIME - 2**30),)))),
    ],
    ids=["all full", "alone", "all hang", "silent", "silent here too", "far behind"],
)
def test_without_a_fit_standby_it_stays_and_says_so_once(seen: Observation) -> None:
    decision = judge(seen, SETTLED)
    assert decision.rule == "leader.unhealthy"
    assert "staying the leader" in decision.reason
    assert not {StopInstance, CloseEpoch, BeginSwitchover} & {type(a) for a in decision.actions}
    assert not decision.heartbeat
    # Its own writes to the store would wake it for ever.
    assert decision.again_in_s is None or not decision.actions
    assert judge(seen, decision.memory).heartbeat


# --- no storm -------------------------------------------------------------------------------------


def test_hand_overs_that_nobody_asked_for_come_at_growing_distances() -> None:
    def after(*changes: float) -> str:
        memory = evolve(SETTLED, remedies=replace(SEEN, changes=changes))
        return judge(sick(disk(HANGS)), memory).rule

    stays, goes = "leader.unhealthy", "leader.unhealthy-hand-over"
    assert after(NOW - CALM_S + 1) == stays
    assert after(NOW - CALM_S) == goes
    assert after(NOW - 500, NOW - CALM_S) == stays
    assert after(NOW - 500, NOW - 2 * CALM_S) == goes
    assert after(NOW - 900, NOW - 800, NOW - 700, NOW - 4 * CALM_S) == stays
    assert after(NOW - 9000, NOW - 8000, NOW - 7000, NOW - CALM_S) == goes


def test_a_hand_over_that_failed_is_tried_again_later() -> None:
    memory = evolve(SETTLED, remedies=replace(SEEN, tries=2, tried_at=NOW - RETRY_S))
    assert judge(sick(disk(HANGS)), memory).rule == "leader.unhealthy"
    memory = evolve(SETTLED, remedies=replace(SEEN, tries=2, tried_at=NOW - 2 * RETRY_S))
    assert let_go(judge(sick(disk(HANGS)), memory))


def test_each_change_of_the_leader_is_noted_by_everybody() -> None:
    before = Memory(last_leader="pg2", last_epoch=3, remedies=Remedies(tries=1, tried_at=NOW - 9))
    seen = judge(following(standby()), before).memory
    assert seen.remedies == Remedies(changes=(NOW,))
    assert judge(following(standby()), seen).memory.remedies == seen.remedies
    assert judge(following(standby()), Memory()).memory.remedies == Remedies()


# --- members that would be of no more use ---------------------------------------------------------


@pytest.mark.parametrize(
    "vitals", [disk(FULL, 1.0, 1), disk(HANGS, 1.0, 1), server(UNREACHED, 9.0, ILL_AFTER)]
)
def test_a_member_whose_probe_fails_is_no_candidate_and_says_so(vitals: Vitals) -> None:
    seen = racing(lost_stream(), vitals=vitals)
    assert [r.rule for r in standing(seen, REMEMBERS).refusals] == ["vitality"]
    assert (cannot_lead(seen, REMEMBERS) or "").startswith("vitality: ")
    assert "why" in (note(seen, REMEMBERS) or "")


def test_one_connection_that_took_too_long_is_no_reason() -> None:
    assert standing(racing(lost_stream(), vitals=server(UNREACHED, 9.0, 1)), REMEMBERS).may_lead


# --- what cannot be ended -------------------------------------------------------------------------


def left_over(since: float = NOW - 60, **changes: Any) -> tuple[Observation, Memory]:
    dead = stopped(ControlState.IN_PRODUCTION, leftovers=True)
    return leading(dead, **{"peers": FIT, **changes}), evolve(SETTLED, down_since=since)


def test_what_cannot_be_ended_lets_the_lease_run_out_once_somebody_can_take_over() -> None:
    """H9: never a release; and nobody is kept from leading."""
    decision = judge(*left_over())
    assert (decision.rule, decision.actions) == ("guard.leftovers-let-go", (CloseEpoch(EPOCH),))
    assert judge(*left_over(peers=())).rule == "guard.leftovers-ask"
    for kept in (
        left_over(since=NOW - 1),
        left_over(peers=(no_answer("pg1"), no_answer("pg2"))),
        left_over(lease=lease(closed_epoch=EPOCH)),
        left_over(settings=paused()),
    ):
        assert judge(*kept).rule == "guard.not-proven-stopped"


def test_the_same_while_the_guardian_is_still_at_ending_it() -> None:
    def ending(for_s: float) -> Observation:
        mute = replace(silent(writable=True), sample=Unavailable(NOW - for_s, "does not run"), ending=True)
        return leading(mute, peers=FIT)

    assert judge(ending(60.0), SETTLED).actions == (CloseEpoch(EPOCH),)
    assert judge(ending(1.0), SETTLED).rule == "leader.no-answer"
