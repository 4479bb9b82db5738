"""Facts for the properties of the core: whole observations and memories, any combination, also absurd ones.

Arbitrary facts rarely get past the first rules, so `facts` mixes them with sound situations of which a few
facts are spoilt. HAAGENT_EXAMPLES in the environment asks for so many examples of every property.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
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
    SyncState,
    Tags,
    TimelineClaim,
    Unfenced,
)
from haagent.core.model import (
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
from haagent.core.restart import RestartWish, ScheduledRestart
from haagent.core.settings import Settings, SyncMode
from haagent.core.vitals import ProbeFacts, Remedies, Vitals
from postgres_ctl.facts import ControlState, DataDirState, InstanceSample, Lsn, ProbeFault, TimelineSwitch
from postgres_ctl.sync_standbys import nobody
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


def examples(usual: int, steps: int = 50) -> settings:
    """So many examples, or as many as HAAGENT_EXAMPLES says; slow machines are no failure.

    `steps`: the length of one run of a state machine."""
    return settings(
        max_examples=int(os.environ.get("HAAGENT_EXAMPLES", "0")) or usual,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


NAMES = ("pg0", "pg1", "pg2")

#: Keys whose value may be unreadable; what stands in the view beside it is then contradictory, on purpose.
BROKEN_KEYS = (
    *("leader", "status", "history", "initialize", "haagent_claims", "haagent_unfenced"),
    *("members/pg1", "sync"),
)

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
#: A point in time that something is scheduled for, and clocks on the wall before, at and after it.
AT, AT_S = "2030-01-01T12:00:00+00:00", 1893499200.0
walls = st.sampled_from([0.0, AT_S - 3600, AT_S - 0.5, AT_S, AT_S + 10, AT_S + 3600])
failovers = st.none() | st.builds(
    FailoverRequest,
    st.none() | names,
    st.none() | st.sampled_from([*NAMES, "nobody"]),
    st.sampled_from([None, None, AT]),
    st.integers(8, 9),
).map(lambda wish: replace(wish, due_at=AT_S) if wish.scheduled_at else wish)
histories = st.none() | st.lists(
    st.builds(HistoryRow, st.integers(1, 4), positions, st.just("x")), max_size=2
).map(tuple)
claims = st.lists(st.builds(TimelineClaim, st.integers(1, 4), names, epochs), max_size=2).map(tuple)

sync_states = st.builds(
    SyncState,
    st.sampled_from([None, *NAMES]),
    st.lists(st.sampled_from([*NAMES, "gone"]), max_size=3, unique=True).map(tuple),
    st.integers(0, 3),
    st.just(6),
)
sync_names = st.sampled_from(
    [
        "",
        "pg0",
        "pg1",
        "2 (pg0,PG1)",
        "ANY 1 (pg1,pg2)",
        "ANY 1 (gone)",
        "*",
        "1 (pg1,pg2)",
        "((",
        nobody(True).text,
    ]
)

snapshots = st.builds(
    ClusterSnapshot,
    sync=st.none() | sync_states,
    sync_version=st.sampled_from([0, 6]),
    revision=st.sampled_from([0, 1, 100]),
    initialize=st.sampled_from([None, "", "x", SYSTEM, SYSTEM, SYSTEM, "7000000000000000001"]),
    config=st.sampled_from([None, ConfigRecord({}, 1)]),
    leader=st.none() | st.builds(Leader, names, st.just("s"), epochs),
    members=st.lists(members, max_size=3, unique_by=lambda m: m.name).map(tuple),
    status=statuses,
    failover=failovers,
    history=histories,
    claims=claims,
    unfenced=st.sampled_from([None, None, *(Unfenced(name, 4) for name in NAMES)]),
    broken=st.sampled_from([(), (), *((Broken(key, "garbage"),) for key in BROKEN_KEYS)]),
)


senders = st.builds(
    sender,
    names,
    positions,
    state=st.sampled_from(["streaming", "streaming", "catchup"]),
    sync_state=st.sampled_from(["async", "sync", "quorum", "potential"]),
    sync_priority=st.integers(0, 2),
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
        sync_names=draw(sync_names),
        senders=tuple(draw(st.lists(senders, max_size=2))),
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
    config_outdated=booleans,
    ending=st.sampled_from([False, False, False, True]),
    storage_hangs=booleans,
    sync_names=st.none() | sync_names,
    user_sync_names=st.sampled_from(["", "other"]),
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
    unsupported=st.sampled_from([(), ("failsafe_mode",)]),
    synchronous_mode=st.sampled_from(SyncMode),
    synchronous_mode_strict=booleans,
    synchronous_node_count=st.integers(1, 3),
    maximum_lag_on_syncnode_bytes=st.sampled_from([-1, 100]),
)

jobs = st.one_of(
    st.none(),
    st.none(),
    st.builds(JobFacts, st.sampled_from(JOBS), times, st.just(""), st.none() | epochs, booleans),
)
wishes = st.builds(
    RestartWish, st.sampled_from([None, "replica"]), st.none(), booleans, st.sampled_from([None, 5.0])
)
schedules = st.none() | st.builds(
    ScheduledRestart,
    st.just(AT_S),
    wishes,
    st.sampled_from([None, "2030-01-01 10:00:00.000001+00:00", "2029-01-01 10:00:00.000001+00:00"]),
)
requests = (
    st.none()
    | st.builds(OperatorRequest, st.just(3), st.sampled_from(["restart", "reinitialize"]), booleans, booleans)
    | st.builds(
        OperatorRequest,
        st.just(3),
        st.sampled_from(["schedule restart", "delete scheduled restart"]),
        wish=wishes.map(lambda wish: replace(wish, due_at=AT_S)),
    )
)

probe_facts = st.builds(
    ProbeFacts,
    fault=st.sampled_from([None, None, *ProbeFault]),
    cause=st.sampled_from(["", "why"]),
    failing_since=maybe_time,
    in_a_row=st.integers(0, 5),
)
vitals = st.just(Vitals()) | st.builds(Vitals, probe_facts, probe_facts)
remedies = st.builds(
    Remedies,
    restarts=st.lists(times, max_size=3).map(tuple),
    tries=st.integers(0, 3),
    tried_at=maybe_time,
    changes=st.lists(times, max_size=3).map(tuple),
    fit_since=maybe_time,
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
    scheduled_restart=schedules,
    stopping=st.sampled_from([False, False, False, True]),
    vitals=vitals,
    wall=walls,
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
    remedies=remedies,
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
        scheduled_restart=schedules,
        stopping=booleans,
        wall=walls,
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
        writable=booleans,
    ),
    *_fields("lease", fence_at=maybe_time, closed_epoch=st.sampled_from([4, 5, 500]), disarmed=booleans),
    *_fields("memory", start_failures=st.integers(0, 5), resumed_at=maybe_time, clean_release=booleans),
)

facts = st.one_of(sound(), sound(), sound(), st.tuples(observations, memories))
