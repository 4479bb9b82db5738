"""`decide` over arbitrary facts, also missing and contradictory ones: total, deterministic, pure, and safe.

Each property is a safety rule of the design, checked on whatever comes out of the whole table of rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcs.records import ClusterSnapshot
from haagent.core import actions as a
from haagent.core.decide import RULES, decide
from haagent.core.memory import absorb
from haagent.core.model import Decision, JobFacts, Memory, Observation, Unavailable
from haagent.core.operations import explain
from haagent.core.publish import Addresses, member_record
from haagent.core.restart import RestartWish, ScheduledRestart
from haagent.core.settings import Settings
from haagent.core.timelines import cluster_timeline
from postgres_ctl.facts import DataDirState
from tests.property.strategies import examples, facts
from tests.unit.core_facts import NOW, obs, primary, standby, stopped
from tests.unit.core_facts import cluster as view

WHERE = Addresses("postgres://10.0.0.1:5432/postgres", "http://10.0.0.1:8008/patroni", "4.1.5", "haagent/0.1")

#: Writes to the store: none of them is even tried while it does not answer.
STORE_WRITES = (
    a.CreateInitialize,
    a.PutInitialize,
    a.DeleteInitialize,
    a.PutInitialConfig,
    a.TakeLeader,
    a.ReleaseLeader,
    a.ClearFailover,
    a.BeginScheduled,
    a.BeginSwitchover,
    a.WriteClaim,
    a.WriteSync,
    a.DeleteSync,
    a.WriteStatus,
    a.WriteHistory,
)


def of(kind: type[a.Action], decision: Decision) -> list[a.Action]:
    return [action for action in decision.actions if isinstance(action, kind)]


@given(facts)
@examples(400)
def test_every_decision_keeps_the_safety_rules(seen: tuple[Observation, Memory]) -> None:
    obs, memory = seen
    decision = decide(obs, memory)
    assert decision.rule != "none", "a state no rule answers"
    assert decision.reason
    assert decision.again_in_s is None or decision.again_in_s >= 0
    for check in CHECKS:
        check(obs, decision)


@given(facts)
@examples(150)
def test_the_same_facts_give_the_same_decision_and_stay_as_they_were(
    seen: tuple[Observation, Memory],
) -> None:
    obs, memory = seen
    before = repr((obs, memory))
    assert decide(obs, memory) == decide(obs, memory)
    assert repr((obs, memory)) == before


@given(facts)
@examples(60)
def test_every_rule_of_the_table_is_total_once_a_view_is_there(seen: tuple[Observation, Memory]) -> None:
    """A rule must not lean on an earlier one but for the view of the store, which `outage` vouches for."""
    obs, memory = seen
    if isinstance(obs.cluster, Unavailable):
        return
    memory = absorb(obs, memory)
    for rule in RULES:
        found = rule(obs, memory)
        assert found is None or found.rule


#: What time alone moves, and only forward: the rest of the memory must not change while the facts do not.
CLOCKED = ("slots_seen", "handover_seen_at")


@given(facts, st.sampled_from([0.0, 0.01, 5.0, 100.0, 1e5]))
@examples(200)
def test_the_same_facts_seen_again_teach_nothing_new(
    seen: tuple[Observation, Memory], later_s: float
) -> None:
    """Absorbed once more, at the same time or later: no "since" moves, nothing is counted twice."""
    obs = replace(seen[0], finished=())
    once = absorb(obs, seen[1])
    again = absorb(replace(obs, now=obs.now + later_s), once)
    if later_s == 0.0:
        assert again == once
    for part in fields(Memory):
        if part.name not in CLOCKED:
            assert getattr(again, part.name) == getattr(once, part.name), part.name
    if once.handover_seen_at is not None and again.handover_seen_at is not None:
        assert again.handover_seen_at >= once.handover_seen_at
    for name in again.slots_seen:
        assert again.slots_seen[name] >= once.slots_seen.get(name, again.slots_seen[name])


def writable_only_under_a_held_lease(obs: Observation, decision: Decision) -> None:
    """Rules 1 and 2."""
    for action in of(a.StartPrimary, decision) + of(a.Promote, decision):
        assert isinstance(action, a.StartPrimary | a.Promote)
        assert action.guard.epoch is not None
        assert action.guard.epoch == obs.lease.epoch
        assert obs.lease.holds(obs.now)
    for action in of(a.Restart, decision):
        assert isinstance(action, a.Restart)
        assert action.epoch is None or (action.epoch == obs.lease.epoch and obs.lease.holds(obs.now))
        if obs.instance.serves_as_primary:
            assert action.epoch is not None


def every_guard_names_our_tenure(obs: Observation, decision: Decision) -> None:
    for action in decision.actions:
        guard = getattr(action, "guard", None)
        if guard is not None:
            assert guard.epoch is not None
            assert guard.epoch == obs.lease.epoch


def promotion_is_claimed_first(obs: Observation, decision: Decision) -> None:
    """H15: the claim on the timeline stands before the promotion, for the timeline that comes next."""
    kinds = [type(action) for action in decision.actions]
    if a.Promote not in kinds:
        return
    assert a.WriteClaim in kinds[: kinds.index(a.Promote)]
    for claim in of(a.WriteClaim, decision):
        assert isinstance(claim, a.WriteClaim)
        assert claim.epoch == obs.lease.epoch
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert claim.timeline == max(obs.instance.timeline or 0, cluster_timeline(obs.cluster)) + 1


def without_the_store_nothing_new(obs: Observation, decision: Decision) -> None:
    """Rule 10: no new leadership, no write; a lease that is proven may still bring its server back."""
    if not isinstance(obs.cluster, Unavailable):
        return
    for kind in (*STORE_WRITES, a.Promote, a.Clone, a.Rewind, a.Initdb):
        assert not of(kind, decision)
    if obs.lease.holds(obs.now) and not obs.stopping:
        assert not of(a.StopInstance, decision), "a healthy primary goes on until its fence"


def what_is_scheduled_begins_in_its_window(obs: Observation, decision: Decision) -> None:
    """Contract 2.7: neither before its time nor much later, and not in a pause."""
    begun = []
    if of(a.BeginScheduled, decision):
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.failover is not None
        assert obs.lease.holds(obs.now)
        begun.append(obs.cluster.failover.due_at)
    for action in of(a.Restart, decision):
        assert isinstance(action, a.Restart)
        if action.request_id is None:
            assert obs.scheduled_restart is not None
            begun.append(obs.scheduled_restart.due_at)
    for at in begun:
        assert at is not None
        assert at <= obs.wall <= at + 1.5 * obs.settings.loop_wait_s
        assert not obs.settings.pause


def nothing_starts_beside_a_living_server(obs: Observation, decision: Decision) -> None:
    """H9: fenced is not stopped."""
    for kind in (a.StartPrimary, a.StartStandby, a.Rewind):
        assert obs.instance.stopped or not of(kind, decision)


def nobody_takes_a_key_that_is_held(obs: Observation, decision: Decision) -> None:
    if of(a.TakeLeader, decision):
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.leader is None


def the_key_goes_only_when_nothing_can_write(obs: Observation, decision: Decision) -> None:
    """Rule 2 and H9."""
    for action in of(a.ReleaseLeader, decision):
        assert isinstance(action, a.ReleaseLeader)
        assert not obs.instance.serves_as_primary
        assert not obs.instance.leftovers
        assert action.epoch == obs.lease.epoch


def leadership_is_given_up_only_with_the_server(obs: Observation, decision: Decision) -> None:
    """H9: an epoch that is closed while PostgreSQL lives is closed to end it."""
    for action in of(a.CloseEpoch, decision):
        assert isinstance(action, a.CloseEpoch)
        assert action.epoch == obs.lease.epoch
        assert obs.instance.leftovers or obs.instance.ending or of(a.StopInstance, decision)
        assert not obs.settings.pause


def the_last_copy_is_never_wiped(obs: Observation, decision: Decision) -> None:
    """Rule 7."""
    for action in of(a.Clone, decision):
        assert isinstance(action, a.Clone)
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.leader is not None
        assert obs.cluster.leader.name != obs.me.name
        assert action.source != obs.me.name
        assert action.leader == obs.cluster.leader.name
        assert not obs.instance.serves_as_primary
        assert obs.instance.data_dir is not DataDirState.FOREIGN or obs.request is not None
        leader = obs.cluster.member(obs.cluster.leader.name)
        assert leader is not None
        assert leader.role == "primary"
        if action.wipe:
            assert leader.state == "running"
            assert leader.checkpoint_after_promote is not False


def data_is_rewound_only_from_another_primary(obs: Observation, decision: Decision) -> None:
    for action in of(a.Rewind, decision):
        assert isinstance(action, a.Rewind)
        assert not obs.instance.alive
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.leader is not None
        assert action.source == obs.cluster.leader.name != obs.me.name


def paused_means_hands_off(obs: Observation, decision: Decision) -> None:
    """Rule 9: nothing but what an operator asked for by name."""
    if not obs.settings.pause:
        return
    pending = isinstance(obs.cluster, ClusterSnapshot) and obs.cluster.failover is not None
    hand_over = pending or decision.rule.startswith("switchover.") or decision.rule == "follow.start"
    for kind in (a.StartPrimary, a.StopInstance, a.Promote, a.StartStandby):
        assert hand_over or not of(kind, decision), decision.rule
    assert not of(a.Initdb, decision) + of(a.Rewind, decision)
    if of(a.Clone, decision):
        assert obs.request is not None


def nothing_new_under_a_running_job(obs: Observation, decision: Decision) -> None:
    if obs.job is not None and decision.rule.startswith("job."):
        assert not of(a.TakeLeader, decision) + of(a.ReleaseLeader, decision)
    if obs.job is not None:
        assert not [x for x in decision.actions if isinstance(x, a.JOBS)], decision.rule


def one_job_at_a_time(obs: Observation, decision: Decision) -> None:
    jobs = [x for x in decision.actions if isinstance(x, a.JOBS)]
    assert len([x for x in jobs if not (isinstance(x, a.Checkpoint) and x.background)]) <= 1


def no_busy_loop(obs: Observation, decision: Decision) -> None:
    """Looking again at once is for decisions that changed something."""
    if decision.again_in_s == 0.0:
        assert decision.actions or decision.rule == "switchover.withdrawn"


def nobody_waits_for_members_that_cannot_be_asked(obs: Observation, decision: Decision) -> None:
    for action in of(a.AskPeers, decision):
        assert isinstance(action, a.AskPeers)
        assert action.names
        # A hand-over to oneself is a memory nobody has; all others are chosen by the rules.
        assert obs.me.name not in action.names or decision.rule.startswith("switchover.")


CHECKS = (
    writable_only_under_a_held_lease,
    every_guard_names_our_tenure,
    promotion_is_claimed_first,
    without_the_store_nothing_new,
    what_is_scheduled_begins_in_its_window,
    nothing_starts_beside_a_living_server,
    nobody_takes_a_key_that_is_held,
    the_key_goes_only_when_nothing_can_write,
    leadership_is_given_up_only_with_the_server,
    the_last_copy_is_never_wiped,
    data_is_rewound_only_from_another_primary,
    paused_means_hands_off,
    nothing_new_under_a_running_job,
    one_job_at_a_time,
    no_busy_loop,
    nobody_waits_for_members_that_cannot_be_asked,
)


HELD = obs("pg0", primary())
GUARD = a.Guard(epoch=5)
DOWN = Unavailable(NOW - 5, "connection refused")
BAD: dict[Callable[[Observation, Decision], None], tuple[Observation, tuple[a.Action, ...]]] = {
    writable_only_under_a_held_lease: (obs("pg1", stopped()), (a.StartPrimary(GUARD),)),
    every_guard_names_our_tenure: (HELD, (a.Checkpoint(a.Guard(epoch=4), background=True),)),
    promotion_is_claimed_first: (HELD, (a.Promote(GUARD, 1, 2), a.WriteClaim(2, 5, 0))),
    without_the_store_nothing_new: (replace(HELD, cluster=DOWN), (a.TakeLeader(),)),
    what_is_scheduled_begins_in_its_window: (
        replace(HELD, scheduled_restart=ScheduledRestart(1.0, RestartWish())),
        (a.Restart(None, 5, None),),
    ),
    nothing_starts_beside_a_living_server: (HELD, (a.StartStandby(None),)),
    nobody_takes_a_key_that_is_held: (obs("pg1", standby()), (a.TakeLeader(),)),
    the_key_goes_only_when_nothing_can_write: (HELD, (a.ReleaseLeader(5),)),
    leadership_is_given_up_only_with_the_server: (HELD, (a.CloseEpoch(5),)),
    the_last_copy_is_never_wiped: (obs("pg1", stopped(), view("pg1")), (a.Clone("pg0", "pg0", True),)),
    data_is_rewound_only_from_another_primary: (obs("pg1", standby()), (a.Rewind("pg0"),)),
    paused_means_hands_off: (
        replace(HELD, settings=Settings(pause=True)),
        (a.StopInstance("fast"),),
    ),
    nothing_new_under_a_running_job: (
        replace(HELD, job=JobFacts("stop", NOW)),
        (a.StopInstance("fast"),),
    ),
    one_job_at_a_time: (HELD, (a.StopInstance("fast"), a.StartStandby(None))),
    no_busy_loop: (HELD, ()),
    nobody_waits_for_members_that_cannot_be_asked: (HELD, (a.AskPeers(()),)),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_property_can_fail(check: Callable[[Observation, Decision], None]) -> None:
    seen, actions = BAD[check]
    with pytest.raises(AssertionError):
        check(seen, Decision("planted", "a bad decision", Memory(), actions, 0.0))


@given(facts)
@examples(400)
def test_what_is_published_and_explained_is_total_and_modest(seen: tuple[Observation, Memory]) -> None:
    obs, memory = seen
    published = member_record(obs, memory, WHERE)
    epoch = obs.lease.epoch
    if epoch is not None and obs.lease.closed_epoch >= epoch and obs.job is None:
        assert published.role != "primary"
        if obs.instance.serves_as_primary:
            assert published.xlog_location is None
    told = explain(obs, memory)
    assert told["can_lead"] in (True, False, None)
    if told["can_lead"]:
        assert all(rule["passed"] for rule in told["rules"])
