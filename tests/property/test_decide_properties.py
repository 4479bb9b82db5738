"""`decide` over arbitrary facts, also missing and contradictory ones: total, deterministic, and safe.

Each property is a safety rule of the design, checked on whatever comes out of the whole table of rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcs.records import (
    Broken,
    ClusterSnapshot,
    ConfigRecord,
    FailoverRequest,
    HistoryRow,
    Leader,
    Member,
    Status,
    Tags,
    TimelineClaim,
)
from haagent.core import actions as a
from haagent.core.decide import decide
from haagent.core.model import (
    Decision,
    Handover,
    Identity,
    Instance,
    JobFacts,
    JobResult,
    LastExit,
    LeaseFacts,
    Memory,
    Observation,
    OperatorRequest,
    PeerAnswer,
    PeerSilent,
    Rejoin,
    Unavailable,
)
from haagent.core.operations import explain
from haagent.core.publish import Addresses, member_record
from haagent.core.settings import Settings
from postgres_ctl.facts import ControlState, DataDirState, InstanceSample, Lsn, TimelineSwitch
from tests.unit.core_facts import (
    NOW,
    SYSTEM,
    answer,
    asked,
    cluster,
    control,
    crashed,
    empty,
    lost_stream,
    no_answer,
    obs,
    primary,
    request,
    sample,
    sender,
    silent,
    slot,
    standby,
    stopped,
)

NAMES = ("pg0", "pg1", "pg2")
WHERE = Addresses("postgres://10.0.0.1:5432/postgres", "http://10.0.0.1:8008/patroni", "4.1.5", "haagent/0.1")

booleans = st.booleans()
names = st.sampled_from(NAMES)
epochs = st.integers(3, 7)
times = st.sampled_from([0.0, NOW - 1e4, NOW - 31, NOW - 5, NOW - 0.5, NOW, NOW + 0.5, NOW + 25])
maybe_time = st.none() | times
positions = st.sampled_from([0, 1, 8192, 5_000_000, 5_000_008, 9_000_000])
maybe_lsn = st.none() | positions.map(Lsn)
timelines = st.none() | st.integers(0, 4)
tag_values = st.sampled_from([True, False, None, 0, 5, -1, "x", 1.5])
tag_names = st.sampled_from(["nofailover", "failover_priority", "clonefrom", "nostream", "replicatefrom"])
any_tags = st.just(Tags()) | st.dictionaries(tag_names, tag_values, max_size=2).map(Tags)
unavailable = st.builds(Unavailable, times, st.just("timeout"))

members = st.builds(
    Member,
    name=names,
    conn_url=st.sampled_from([None, "", "nonsense", "postgres://10.0.0.0:5432/postgres"]),
    api_url=st.sampled_from([None, "http://10.0.0.0:8008/patroni"]),
    state=st.sampled_from(["running", "stopped", "starting", "crashed", ""]),
    role=st.sampled_from(["primary", "replica", "demoted", "promoted", "uninitialized", "odd"]),
    agent=st.sampled_from([None, "haagent/0.1"]),
    xlog_location=st.none() | positions,
    timeline=timelines,
    tags=any_tags,
    checkpoint_after_promote=st.sampled_from([None, False, True]),
    cannot_lead=st.sampled_from([None, "disk full"]),
)

statuses = st.none() | st.builds(
    Status,
    positions,
    st.none() | st.dictionaries(names, positions),
    st.none() | st.lists(names, max_size=2).map(tuple),
)
failovers = st.none() | st.builds(
    FailoverRequest,
    st.none() | names,
    st.none() | st.sampled_from([*NAMES, "nobody"]),
    st.sampled_from([None, None, "2030-01-01T12:00:00+00:00"]),
    st.integers(8, 9),
)
histories = st.none() | st.lists(
    st.builds(HistoryRow, st.integers(1, 4), positions, st.just("x")), max_size=2
).map(tuple)
claims = st.lists(st.builds(TimelineClaim, st.integers(1, 4), names, epochs), max_size=2).map(tuple)
claimed = st.lists(st.tuples(st.integers(1, 4), epochs), max_size=2).map(tuple)

snapshots = st.builds(
    ClusterSnapshot,
    revision=st.sampled_from([0, 1, 100]),
    initialize=st.sampled_from([None, "", "x", SYSTEM, SYSTEM, SYSTEM, "7000000000000000001"]),
    config=st.sampled_from([None, ConfigRecord({}, 1)]),
    leader=st.none() | st.builds(Leader, names, st.just("s"), epochs),
    members=st.lists(members, max_size=3, unique_by=lambda m: m.name).map(tuple),
    status=statuses,
    failover=failovers,
    history=histories,
    claims=claims,
    broken=st.sampled_from([(), (Broken("status", "garbage"),), (Broken("sync", "garbage"),)]),
)


@st.composite
def samples(draw: st.DrawFn) -> InstanceSample:
    base = sample(primary=draw(booleans), position=draw(positions))
    return replace(
        base,
        timeline=draw(timelines),
        flush_lsn=draw(maybe_lsn),
        receive_lsn=draw(maybe_lsn),
        replay_lsn=draw(maybe_lsn),
        walreceiver_status=draw(st.sampled_from([None, "streaming", "waiting"])),
        startup_waits_for_wal=draw(booleans),
        primary_slot_name=draw(st.sampled_from([None, "", "pg0", "pg1"])),
        senders=tuple(draw(st.lists(st.builds(sender, names, positions), max_size=2))),
        slots=tuple(
            draw(
                st.lists(
                    st.builds(slot, names, st.none() | positions, active=booleans, xmin_set=booleans),
                    max_size=3,
                    unique_by=lambda s: s.name,
                )
            )
        ),
    )


controls = unavailable | st.builds(
    control,
    st.sampled_from(list(ControlState)),
    system_identifier=st.sampled_from([SYSTEM, SYSTEM, SYSTEM, "7000000000000000001"]),
    checkpoint_lsn=positions.map(Lsn),
    timeline=st.integers(1, 4),
    wal_log_hints=booleans,
)

instances = st.builds(
    Instance,
    data_dir=st.sampled_from([DataDirState.VALID, DataDirState.VALID, *DataDirState]),
    unfinished=st.sampled_from([None, None, "rewind"]),
    alive=booleans,
    leftovers=st.sampled_from([False, False, False, True]),
    writable=booleans,
    pid=st.sampled_from([None, 77]),
    control=controls,
    sample=unavailable | samples(),
    history=st.lists(
        st.builds(TimelineSwitch, st.integers(1, 3), positions.map(Lsn), st.just("x")), max_size=2
    ).map(tuple),
    last_exit=st.none() | st.builds(LastExit, booleans, booleans),
    claimed=claimed,
    config_outdated=booleans,
    follows=st.sampled_from([None, ("10.0.0.0", 5432)]),
)

leases = st.builds(
    LeaseFacts,
    session=st.sampled_from([None, "s"]),
    epoch=st.none() | epochs,
    fence_at=maybe_time,
    disarmed=booleans,
    closed_epoch=st.sampled_from([0, 0, 4, 5, 500]),
    refused=st.sampled_from([None, "gone"]),
    guardian_ok=booleans,
)

answers = st.builds(
    PeerAnswer,
    name=names,
    asked_at=times,
    in_recovery=booleans,
    role=st.sampled_from(["primary", "replica", "odd"]),
    state=st.sampled_from(["running", ""]),
    timeline=timelines,
    received=maybe_lsn,
    replayed=maybe_lsn,
    location=maybe_lsn,
    tags=any_tags,
    watchdog_failed=booleans,
    is_haagent=booleans,
    cannot_lead=st.sampled_from([None, "disk full"]),
)
peers = st.lists(answers | st.builds(PeerSilent, names, times, st.just("timeout")), max_size=3)

JOBS = (
    *("start primary", "start standby", "stop", "restart", "promote", "clone", "rewind", "initdb"),
    *("checkpoint", "compare histories", "unheard of"),
)


@st.composite
def results(draw: st.DrawFn) -> JobResult:
    data = {"epoch": draw(epochs), "background": draw(booleans), "diverged": draw(booleans)}
    return JobResult(draw(st.sampled_from(JOBS)), draw(booleans), "why", data)


any_settings = st.builds(
    Settings,
    primary_start_timeout_s=st.sampled_from([0, 300]),
    check_timeline=booleans,
    member_slots_ttl_s=st.sampled_from([0, 1800]),
    pause=st.sampled_from([False, False, True]),
    use_slots=booleans,
    use_pg_rewind=booleans,
    remove_data_directory_on_rewind_failure=booleans,
    remove_data_directory_on_diverged_timelines=booleans,
    unsupported=st.sampled_from([(), ("synchronous_mode",)]),
)

jobs = st.one_of(
    st.none(),
    st.none(),
    st.builds(JobFacts, st.sampled_from(JOBS), times, st.just(""), st.none() | epochs, booleans),
)
requests = st.none() | st.builds(
    OperatorRequest, st.just(3), st.sampled_from(["restart", "reinitialize"]), booleans
)

observations = st.builds(
    Observation,
    now=st.just(NOW),
    me=st.builds(Identity, names, st.just("demo"), any_tags, booleans),
    settings=any_settings,
    cluster=st.one_of(snapshots, snapshots, snapshots, unavailable),
    instance=instances,
    lease=leases,
    peers=peers.map(lambda ps: {p.name: p for p in ps}),
    job=jobs,
    background=st.sampled_from([(), ("checkpoint",)]),
    finished=st.lists(results(), max_size=2).map(tuple),
    request=requests,
    stopping=st.sampled_from([False, False, False, True]),
)

memories = st.just(Memory()) | st.builds(
    Memory,
    leader_missing_since=maybe_time,
    last_leader=st.none() | names,
    last_epoch=epochs,
    last_members=st.lists(members, max_size=2, unique_by=lambda m: m.name).map(tuple),
    handover_seen_at=maybe_time,
    handover_from=st.none() | names,
    bootstrap=st.sampled_from([None, None, None, "won", "ready", "failed: disk full"]),
    handover=st.none()
    | st.builds(Handover, st.integers(8, 9), names, times, booleans, maybe_time, maybe_time, epochs),
    start_failures=st.integers(0, 5),
    start_failed_at=maybe_time,
    rejoin=st.builds(
        Rejoin, st.integers(0, 50), times, st.just("why"), booleans, epochs, epochs, st.integers(0, 7)
    ),
    promote_failed_at=maybe_time,
    paused_seen=booleans,
    resumed_at=maybe_time,
    checkpointed_epoch=epochs,
    not_streaming_since=maybe_time,
    slot_wait_since=maybe_time,
    request_seen=st.none() | st.tuples(st.integers(8, 9), times),
    clean_release=booleans,
    slots_seen=st.dictionaries(names, times, max_size=2),
)


# --- plausible facts, spoilt --------------------------------------------------------------------------

#: Arbitrary facts rarely get past the first rules: so most examples are sound ones with a few spoilt.
VIEWS = (cluster(), cluster("pg1"), cluster("pg2"), cluster(None), cluster(None), asked(cluster(), request()))
INSTANCES = (
    primary(),
    standby(),
    lost_stream(),
    stopped(),
    stopped(ControlState.SHUT_DOWN),
    crashed(),
    silent(),
    empty(),
)
FIRST, SECOND = (answer("pg1"), no_answer("pg1"), answer("pg0")), (answer("pg2"), no_answer("pg2"))
PEERS = tuple((one, two) for one in FIRST for two in SECOND)
MEMORIES = (
    Memory(),
    Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=5),
    Memory(not_streaming_since=NOW - 9, last_leader="pg0", last_epoch=5),
    Memory(clean_release=True, leader_missing_since=NOW - 1),
    Memory(bootstrap="won"),
    Memory(bootstrap="ready"),
    Memory(start_failures=2, start_failed_at=NOW - 60),
    Memory(rejoin=Rejoin(diverged=True, reason="beyond the switch point", epoch=5), last_epoch=5),
    Memory(handover=Handover(9, "pg1", NOW - 2, True, NOW - 1, None, 5)),
    Memory(handover=Handover(9, "pg1", NOW - 2, epoch=5)),
)


@st.composite
def sound(draw: st.DrawFn) -> tuple[Observation, Memory]:
    """Facts that fit together, then up to three of them replaced by anything."""
    me, view = draw(names), draw(st.sampled_from(VIEWS))
    base = obs(me, draw(st.sampled_from(INSTANCES)), view, peers=draw(st.sampled_from(PEERS)))
    memory = draw(st.sampled_from(MEMORIES))
    for _ in range(draw(st.integers(0, 3))):
        strategy, where, field = draw(st.sampled_from(SPOILT))
        value = draw(strategy)
        if where == "observation":
            base = replace(base, **{field: value})
        elif where == "memory":
            memory = replace(memory, **{field: value})
        else:
            part = getattr(base, where)
            if not isinstance(part, Unavailable):
                base = replace(base, **{where: replace(part, **{field: value})})
    return base, memory


def _fields(
    where: str, **strategies: st.SearchStrategy[Any]
) -> list[tuple[st.SearchStrategy[Any], str, str]]:
    return [(strategy, where, field) for field, strategy in strategies.items()]


SPOILT = (
    *_fields(
        "observation",
        settings=any_settings,
        instance=instances,
        lease=leases,
        peers=peers.map(lambda ps: {p.name: p for p in ps}),
        finished=st.lists(results(), min_size=1, max_size=2).map(tuple),
        job=jobs,
        request=requests,
        stopping=booleans,
        cluster=unavailable,
    ),
    *_fields(
        "cluster",
        initialize=st.sampled_from([None, "", "x"]),
        members=st.lists(members, max_size=3, unique_by=lambda m: m.name).map(tuple),
        status=statuses,
        failover=failovers,
        claims=claims,
        leader=st.builds(Leader, names, st.just("s"), epochs),
        history=histories,
    ),
    *_fields(
        "instance",
        sample=unavailable | samples(),
        control=controls,
        leftovers=booleans,
        last_exit=st.none() | st.builds(LastExit, booleans, booleans),
        unfinished=st.just("rewind"),
        claimed=claimed,
        writable=booleans,
    ),
    *_fields("lease", fence_at=maybe_time, closed_epoch=st.sampled_from([4, 5, 500]), disarmed=booleans),
    *_fields("memory", start_failures=st.integers(0, 5), resumed_at=maybe_time, clean_release=booleans),
)

facts = st.one_of(sound(), sound(), sound(), st.tuples(observations, memories))
many = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


def of(kind: type[a.Action], decision: Decision) -> list[a.Action]:
    return [action for action in decision.actions if isinstance(action, kind)]


@given(facts)
@many
def test_every_decision_keeps_the_safety_rules(seen: tuple[Observation, Memory]) -> None:
    obs, memory = seen
    decision = decide(obs, memory)
    assert decision == decide(obs, memory), "not deterministic"
    assert decision.rule != "none", "a state no rule answers"
    assert decision.reason
    assert decision.again_in_s is None or decision.again_in_s >= 0
    for check in CHECKS:
        check(obs, decision)


def writable_only_under_a_held_lease(obs: Observation, decision: Decision) -> None:
    """Rules 1 and 2."""
    for action in of(a.StartPrimary, decision) + of(a.Promote, decision):
        assert isinstance(action, a.StartPrimary | a.Promote)
        assert action.guard.epoch is not None
        assert action.guard.epoch == obs.lease.epoch
        assert obs.lease.holds(obs.now) or obs.lease.disarmed
    for action in of(a.Restart, decision):
        assert isinstance(action, a.Restart)
        assert action.epoch is None or (action.epoch == obs.lease.epoch and obs.lease.holds(obs.now))
        if obs.instance.serves_as_primary:
            assert action.epoch is not None


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


def the_last_copy_is_never_wiped(obs: Observation, decision: Decision) -> None:
    """Rule 7."""
    for action in of(a.Clone, decision):
        assert isinstance(action, a.Clone)
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.leader is not None
        assert obs.cluster.leader.name != obs.me.name
        assert action.source != obs.me.name
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
    nobody_takes_a_key_that_is_held,
    the_key_goes_only_when_nothing_can_write,
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
BAD: dict[Callable[[Observation, Decision], None], tuple[Observation, tuple[a.Action, ...]]] = {
    writable_only_under_a_held_lease: (obs("pg1", stopped()), (a.StartPrimary(GUARD),)),
    nobody_takes_a_key_that_is_held: (obs("pg1", standby()), (a.TakeLeader(),)),
    the_key_goes_only_when_nothing_can_write: (HELD, (a.ReleaseLeader(5),)),
    the_last_copy_is_never_wiped: (obs("pg1", stopped(), cluster("pg1")), (a.Clone("pg0", True),)),
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
@many
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
