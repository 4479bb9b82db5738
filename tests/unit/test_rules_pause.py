"""Paused means hands off: only what an operator asked for by name is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, Unfenced
from haagent.core.actions import (
    AnswerRequest,
    Checkpoint,
    ClearFailover,
    MarkUnfenced,
    Promote,
    PutInitialConfig,
    PutInitialize,
    ReleaseLeader,
    Restart,
    SetFencing,
    StartPrimary,
    StartStandby,
    TakeLeader,
)
from haagent.core.model import (
    Handover,
    Instance,
    JobFacts,
    Memory,
    Observation,
    OperatorRequest,
    Rejoin,
)
from haagent.core.restart import RestartWish
from postgres_ctl.facts import ControlState
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NO_LEASE,
    NOW,
    OPTIME,
    SYSTEM,
    answer,
    asked,
    cluster,
    crashed,
    empty,
    history,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    no_answer,
    obs,
    paused,
    primary,
    request,
    silent,
    standby,
    stopped,
)

OFF = lease(disarmed=True)
FREE = cluster(leader=None)


def leads(instance: Instance, view: Any = None, **changes: Any) -> Observation:
    return leading(instance, view, **{"settings": paused(), "lease": OFF, **changes})


def other(instance: Instance, view: Any = None, **changes: Any) -> Observation:
    """`pg1`, without the key."""
    return obs("pg1", instance, view, **{"settings": paused(), **changes})


# --- the holder of the key ------------------------------------------------------------------------


def test_a_pause_disarms_the_guardian() -> None:
    decision = judge(leads(primary(), lease=lease()))
    assert (decision.rule, decision.actions) == ("pause.disarm", (MarkUnfenced(True), SetFencing(False)))


def test_a_primary_without_a_fence_says_so_until_it_has_one_again() -> None:
    """H20: also when another one's word is there, or one that cannot be read."""
    mine, others = Unfenced("pg0", EPOCH), Unfenced("pg2", 3)
    for view, wanted in (
        (cluster(), True),
        (cluster(unfenced=others), True),
        (cluster(broken=(Broken("haagent_unfenced", "garbage"),)), True),
    ):
        assert MarkUnfenced(wanted) in judge(leads(primary(), view)).actions
    assert MarkUnfenced not in kinds(judge(leads(primary(), cluster(unfenced=mine))))
    for view in (cluster(unfenced=mine), cluster(unfenced=others)):
        assert MarkUnfenced(False) in judge(leading(primary(), view)).actions
    assert MarkUnfenced not in kinds(judge(leading(primary())))


def test_a_resume_arms_the_guardian() -> None:
    decision = judge(leading(primary(), lease=OFF))
    assert (decision.rule, decision.actions) == ("pause.arm", (SetFencing(True),))


def test_a_running_primary_keeps_its_key() -> None:
    assert judge(leads(primary())).rule == "pause.leader"


def test_a_stopped_primary_is_left_stopped_and_gives_its_key_away() -> None:
    decision = judge(leads(crashed()))
    assert (decision.rule, decision.actions) == ("pause.release", (ReleaseLeader(EPOCH),))


def test_a_primary_that_does_not_answer_keeps_its_key() -> None:
    assert judge(leads(silent(writable=True))).rule == "pause.leader"


def test_a_switchover_in_a_pause_needs_a_candidate() -> None:
    view = asked(cluster(), request(candidate=None))
    decision = judge(leads(primary(), view))
    assert (decision.rule, kinds(decision)) == ("pause.clear", (ClearFailover,))


def test_a_store_that_is_down_changes_nothing() -> None:
    assert judge(leads(primary(), DOWN)).rule == "outage.paused"


# --- everybody else -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instance", [primary(), standby(), lost_stream(), stopped(), crashed(), empty(), silent()]
)
@pytest.mark.parametrize("view", [cluster(), cluster(leader=None, initialize="1" * 19)])
def test_nobody_else_is_touched(instance: Instance, view: Any) -> None:
    decision = judge(other(instance, view))
    assert (decision.rule, decision.actions) == ("pause.other", ())


def test_a_running_primary_takes_a_free_key() -> None:
    decision = judge(other(primary(), FREE))
    assert (decision.rule, decision.actions) == ("pause.take", (TakeLeader(),))


def test_a_running_primary_writes_a_missing_initialize() -> None:
    decision = judge(other(primary(), replace(FREE, initialize=None)))
    assert (decision.rule, decision.actions) == ("pause.initialize", (PutInitialize(SYSTEM, True),))


# --- a request that waits, and nobody leads -------------------------------------------------------


WAITING = asked(FREE, request(leader=None, candidate="pg1"))
MISSING = Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=EPOCH)
ALL_ANSWER = (answer("pg0"), answer("pg2"))


def test_the_named_candidate_takes_the_key() -> None:
    decision = judge(other(lost_stream(), WAITING, peers=ALL_ANSWER), MISSING)
    assert (decision.rule, decision.actions) == ("race.take", (TakeLeader(),))


def test_the_named_candidate_promotes_before_the_fence_is_disarmed() -> None:
    """The guardian promotes nobody without a fence, and gives nobody a key back who is to promote."""
    view = asked(cluster("pg1"), request(leader=None, candidate="pg1"))
    seen = other(lost_stream(), view, peers=ALL_ANSWER, lease=lease())
    decision = judge(seen)
    assert decision.rule == "promote.now"
    assert Promote in kinds(decision)
    disarmed = judge(replace(seen, lease=OFF))
    assert (disarmed.rule, disarmed.actions) == ("pause.arm-for-request", (SetFencing(True),))
    promoted = judge(replace(seen, instance=primary(), cluster=cluster("pg1")))
    assert promoted.rule == "pause.disarm"


def test_members_that_were_not_named_keep_their_hands_off() -> None:
    view = asked(FREE, request(leader=None, candidate="pg2"))
    for instance in (lost_stream(), stopped(), crashed(), empty()):
        decision = judge(other(instance, view, peers=ALL_ANSWER), MISSING)
        assert (decision.rule, decision.actions) == ("pause.other", ())


def test_a_stopped_candidate_is_not_started() -> None:
    assert judge(other(stopped(), WAITING, peers=ALL_ANSWER), MISSING).rule == "pause.other"


def test_a_running_primary_is_not_stopped_by_a_request_that_waits() -> None:
    old = replace(WAITING, history=history(1, 2))
    for view in (WAITING, old, asked(FREE, request(candidate="pg2"))):
        assert judge(other(primary(), view, peers=ALL_ANSWER), MISSING).rule == "pause.take"


# --- a switchover in a pause ----------------------------------------------------------------------


ASKED = asked(cluster(), request())


def test_a_switchover_arms_the_fence_before_it_begins() -> None:
    """If it fails the primary has to be started again, which the guardian does only under a fence."""
    seen = leads(primary(), ASKED, peers=(answer("pg1"),))
    decision = judge(seen)
    assert (decision.rule, decision.actions) == ("pause.arm-for-request", (SetFencing(True),))
    begun = judge(replace(seen, lease=lease()))
    assert (begun.rule, kinds(begun)) == ("switchover.begin", (Checkpoint,))


def test_a_switchover_that_fails_brings_the_primary_back() -> None:
    memory = Memory(handover=Handover(9, "pg1", NOW - 9, True, NOW - 8, proving_since=NOW - 5, epoch=EPOCH))
    seen = leads(stopped(ControlState.SHUT_DOWN), ASKED, peers=(no_answer("pg1"),), lease=lease())
    decision = judge(seen, memory)
    assert decision.rule == "switchover.come-back"
    assert StartPrimary in kinds(decision)
    disarmed = judge(replace(seen, lease=OFF), memory)
    assert disarmed.actions == (SetFencing(True),)


def test_after_a_switchover_the_old_primary_starts_as_a_standby() -> None:
    view = cluster("pg1", 6, members=(member("pg0"), member("pg1", role="primary")))
    seen = obs("pg0", stopped(ControlState.SHUT_DOWN), view, settings=paused(), lease=NO_LEASE)
    assert judge(seen).rule == "pause.other"
    decision = judge(seen, Memory(clean_release=True))
    assert (decision.rule, decision.actions) == ("follow.start", (StartStandby("pg1"),))


def test_after_a_switchover_nothing_is_cloned_or_mended_in_a_pause() -> None:
    view = cluster("pg1", 6, members=(member("pg0"), member("pg1", role="primary")))
    memory = Memory(clean_release=True)
    seen = obs("pg0", empty(), view, settings=paused(), lease=NO_LEASE)
    assert judge(seen, memory).rule == "pause.other"
    diverged = replace(memory, rejoin=Rejoin(diverged=True, epoch=6))
    ended = replace(seen, instance=stopped(ControlState.SHUT_DOWN))
    assert judge(ended, diverged).rule == "pause.other"


# --- operator requests ----------------------------------------------------------------------------


RESTART = OperatorRequest(3, "restart")


def test_a_restart_of_the_primary_arms_the_fence_first() -> None:
    seen = leads(primary(), request=RESTART)
    armed = judge(seen)
    assert (armed.rule, armed.actions) == ("pause.arm-for-request", (SetFencing(True),))
    decision = judge(replace(seen, lease=lease()))
    assert (decision.rule, decision.actions) == ("request.restart", (Restart(3, EPOCH, None, 300),))


def test_a_restart_that_is_not_wanted_leaves_the_fence_alone() -> None:
    unwanted = replace(RESTART, wish=RestartWish(role="replica"))
    decision = judge(leads(primary(), request=unwanted))
    assert (decision.rule, kinds(decision)) == ("request.refused", (AnswerRequest,))


def test_a_restart_of_a_standby_is_done() -> None:
    assert judge(other(standby(), request=RESTART)).actions == (Restart(3, None, "pg0"),)


def test_a_restart_of_a_primary_without_a_key_is_refused() -> None:
    decision = judge(other(primary(), request=RESTART))
    assert kinds(decision) == (AnswerRequest,)


def test_a_resume_is_remembered() -> None:
    memory = judge(other(standby())).memory
    assert judge(obs("pg1", standby(OPTIME)), memory).memory.resumed_at == NOW


def test_a_standby_that_is_built_anew_in_a_pause_ends_as_one_that_serves() -> None:
    """Allowed by contract 2.13; without an operator's word a stopped standby stays as it is."""
    wish = OperatorRequest(4, "reinitialize")
    began = judge(other(standby(), request=wish))
    assert (began.rule, began.memory.reinitializing) == ("request.reinitialize", True)
    working = judge(other(stopped(), job=JobFacts("clone", NOW - 1)), began.memory)
    assert judge(other(stopped()), working.memory).rule == "follow.start"
    assert (
        judge(other(empty(), now=NOW + 9), judge(other(empty()), working.memory).memory).rule == "clone.begin"
    )
    assert judge(other(standby()), working.memory).memory.reinitializing is False
    assert judge(other(stopped())).rule == "pause.other"


def test_a_deleted_configuration_is_put_back_when_nobody_leads_who_would() -> None:
    """Else nobody could resume: what says that the cluster is paused would be gone for good."""
    nobody, somebody = cluster(leader=None, config=None), cluster(config=None)
    decision = judge(other(standby(), nobody))
    assert (decision.rule, decision.actions) == ("pause.config", (PutInitialConfig(),))
    assert judge(other(standby(), somebody)).rule == "pause.other"
    garbage = replace(nobody, broken=(Broken("config", "not JSON"),))
    assert judge(other(standby(), garbage)).rule == "pause.other"
