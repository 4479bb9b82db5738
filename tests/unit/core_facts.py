"""Facts by hand for tests of the pure core: a healthy cluster of three, unless told otherwise.

`pg0` leads under epoch 5 on timeline 1 and has written up to 5000000; `pg1` and `pg2` stream from it. Times
are CLOCK_BOOTTIME seconds; the tests look at second 1000.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dcs.records import (
    ClusterSnapshot,
    ConfigRecord,
    FailoverRequest,
    HistoryRow,
    Leader,
    Member,
    Status,
    Tags,
)
from haagent.core.actions import Action, KeepRejoin, TellDiscards
from haagent.core.decide import decide
from haagent.core.model import (
    Decision,
    Identity,
    Instance,
    JobResult,
    LastExit,
    LeaseFacts,
    Memory,
    Observation,
    PeerAnswer,
    PeerSilent,
    Unavailable,
)
from haagent.core.settings import Settings
from postgres_ctl.facts import ControlData, ControlState, DataDirState, InstanceSample, Lsn, Slot, WalSender

NOW = 1000.0
EPOCH = 5
SYSTEM = "7277694203142172922"
OPTIME = 5_000_000
NAMES = ("pg0", "pg1", "pg2")
SETTINGS = Settings(use_pg_rewind=True)
DOWN = Unavailable(NOW - 5, "connection refused")
WATCHED_EXIT = LastExit(fenced=False, watched=True)


def member(name: str, **changes: Any) -> Member:
    """`pg0` as a running primary, everybody else as a streaming replica."""
    number = name[-1]
    base = Member(
        name=name,
        conn_url=f"postgres://10.0.0.{number}:5432/postgres",
        api_url=f"http://10.0.0.{number}:8008/patroni",
        state="running",
        role="primary" if name == "pg0" else "replica",
        version="4.1.5",
        agent="haagent/0.1",
        xlog_location=OPTIME,
        timeline=1,
    )
    return replace(base, **changes)


def cluster(leader: str | None = "pg0", epoch: int = EPOCH, **changes: Any) -> ClusterSnapshot:
    """The store's view; `leader` None means that nobody holds the key."""
    base = ClusterSnapshot(
        revision=100,
        initialize=SYSTEM,
        config=ConfigRecord({}, 3),
        leader=Leader(leader, "session-" + leader, epoch) if leader is not None else None,
        members=tuple(member(n) for n in NAMES),
        status=Status(OPTIME, dict.fromkeys(NAMES, OPTIME), NAMES),
        history=(),
    )
    return replace(base, **changes)


def control(state: ControlState = ControlState.IN_PRODUCTION, **changes: Any) -> ControlData:
    base = ControlData(
        system_identifier=SYSTEM,
        state=state,
        checkpoint_lsn=Lsn(OPTIME),
        redo_lsn=Lsn(OPTIME),
        timeline=1,
        min_recovery_end=Lsn(0),
        min_recovery_end_timeline=0,
        wal_log_hints=True,
        data_checksums=False,
        pg_control_version=1300,
        max_connections=100,
        max_worker_processes=8,
        max_wal_senders=10,
        max_prepared_transactions=0,
        max_locks_per_transaction=64,
    )
    return replace(base, **changes)


def slot(name: str, restart: int | None = OPTIME, **changes: Any) -> Slot:
    base = Slot(
        name, "physical", True, Lsn(restart) if restart is not None else None, None, False, "reserved", False
    )
    return replace(base, **changes)


def sender(name: str, flushed: int = OPTIME, **changes: Any) -> WalSender:
    at = Lsn(flushed)
    base = WalSender(7, "replicator", name, "10.0.0.9", "streaming", "async", 0, at, at, at, at)
    return replace(base, **changes)


def sample(primary: bool = False, position: int = OPTIME, **changes: Any) -> InstanceSample:
    """What a running server says: a primary with two standbys, or a standby that streams."""
    base = InstanceSample(
        sampled_at=NOW - 0.01,
        postmaster_start_time="2030-01-01 10:00:00.000001+00:00",
        server_version=150005,
        system_identifier=SYSTEM,
        in_recovery=not primary,
        timeline=1,
        flush_lsn=Lsn(position) if primary else None,
        receive_lsn=None if primary else Lsn(position),
        replay_lsn=None if primary else Lsn(position),
        replay_timestamp=None,
        replay_paused=False,
        walreceiver_status=None if primary else "streaming",
        walreceiver_latest_end_lsn=None,
        walreceiver_slot=None,
        walreceiver_conninfo=None,
        startup_waits_for_wal=not primary,
        senders=(sender("pg1"), sender("pg2")) if primary else (),
        slots=(slot("pg1"), slot("pg2")) if primary else (),
        pending_restart=(),
        primary_conninfo=None if primary else "host=10.0.0.0",
        primary_slot_name=None if primary else "pg1",
        restore_command=None,
        replication_state=None if primary else "streaming",
    )
    return replace(base, **changes)


def primary(**changes: Any) -> Instance:
    base = Instance(alive=True, writable=True, pid=77, control=control(), sample=sample(primary=True))
    return replace(base, **changes)


def standby(position: int = OPTIME, **changes: Any) -> Instance:
    """`pg1`, streaming from `pg0`."""
    own = control(ControlState.IN_ARCHIVE_RECOVERY)
    says = sample(position=position, slots=(slot("pg0", active=False), slot("pg2", active=False)))
    base = Instance(alive=True, pid=77, control=own, sample=says, follows=("10.0.0.0", 5432))
    return replace(base, **changes)


def lost_stream(position: int = OPTIME, **changes: Any) -> Instance:
    """A standby whose upstream is gone: all its WAL is replayed."""
    here = standby(position)
    assert isinstance(here.sample, InstanceSample)
    return replace(
        here, sample=replace(here.sample, walreceiver_status=None, replication_state=None), **changes
    )


def stopped(state: ControlState = ControlState.SHUT_DOWN_IN_RECOVERY, **changes: Any) -> Instance:
    return replace(Instance(control=control(state), sample=Unavailable(NOW - 1, "does not run")), **changes)


def crashed(**changes: Any) -> Instance:
    """A primary that died under the guardian's eyes."""
    return stopped(ControlState.IN_PRODUCTION, **{"last_exit": WATCHED_EXIT, **changes})


def silent(writable: bool = False, epoch: int | None = None) -> Instance:
    """A postmaster that lives and does not answer."""
    known = Instance(alive=True, writable=writable, writable_epoch=epoch, pid=77, control=control())
    return replace(known, sample=Unavailable(NOW - 2, "timeout"))


def empty() -> Instance:
    return Instance(data_dir=DataDirState.MISSING_OR_EMPTY, control=Unavailable(NOW, "no data directory"))


def lease(**changes: Any) -> LeaseFacts:
    """Held and proven for twenty more seconds."""
    return replace(LeaseFacts(session="session-pg0", epoch=EPOCH, fence_at=NOW + 20), **changes)


NO_LEASE = LeaseFacts(session="session-me")


def answer(name: str, position: int = OPTIME, **changes: Any) -> PeerAnswer:
    at = Lsn(position)
    base = PeerAnswer(name, NOW - 0.1, True, "replica", "running", 1, at, at, None, is_haagent=True)
    return replace(base, **changes)


def answers_as_primary(name: str, position: int = OPTIME) -> PeerAnswer:
    return answer(
        name, in_recovery=False, role="primary", received=None, replayed=None, location=Lsn(position)
    )


def no_answer(name: str) -> PeerSilent:
    return PeerSilent(name, NOW - 0.1, "timeout")


def obs(
    me: str, instance: Instance, view: ClusterSnapshot | Unavailable | None = None, /, **changes: Any
) -> Observation:
    """What `me` sees; it has the lease when the view says that it leads."""
    seen = view if view is not None else cluster()
    holds = not isinstance(seen, Unavailable) and seen.leader is not None and seen.leader.name == me
    peers = changes.pop("peers", ())
    base = Observation(
        now=NOW,
        me=Identity(me, "demo"),
        settings=SETTINGS,
        cluster=seen,
        instance=instance,
        lease=lease() if holds else NO_LEASE,
        peers={p.name: p for p in peers},
    )
    return replace(base, **changes)


def leading(
    instance: Instance, view: ClusterSnapshot | Unavailable | None = None, **changes: Any
) -> Observation:
    """`pg0` with the key."""
    return obs("pg0", instance, view, **{"lease": lease(), **changes})


def following(instance: Instance, view: ClusterSnapshot | None = None, **changes: Any) -> Observation:
    """`pg1` while `pg0` leads."""
    return obs("pg1", instance, view, **changes)


def racing(instance: Instance, view: ClusterSnapshot | None = None, **changes: Any) -> Observation:
    """`pg1` when `pg0` and its key are gone and `pg2` has answered."""
    left = tuple(member(n) for n in ("pg1", "pg2"))
    seen = view if view is not None else cluster(leader=None, members=left)
    return obs("pg1", instance, seen, **{"peers": (answer("pg2"),), **changes})


#: What `pg1` remembers once it has seen `pg0` lead, and the key go a second ago.
REMEMBERS = Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=EPOCH)


def request(leader: str | None = "pg0", candidate: str | None = "pg1", version: int = 9) -> FailoverRequest:
    return FailoverRequest(leader, candidate, None, version)


def asked(view: ClusterSnapshot, wish: FailoverRequest) -> ClusterSnapshot:
    """The view with a switchover or failover request in it."""
    return replace(view, failover=wish, failover_version=wish.version)


def finished(kind: str, ok: bool = True, reason: str = "", **data: Any) -> tuple[JobResult, ...]:
    return (JobResult(kind, ok, reason, data),)


def tags(**values: Any) -> Tags:
    return Tags(values)


def history(*ended: int) -> tuple[HistoryRow, ...]:
    return tuple(HistoryRow(t, OPTIME, "no recovery target specified", "2030", "pg0") for t in ended)


def paused(**changes: Any) -> Settings:
    return replace(SETTINGS, pause=True, **changes)


def judge(seen: Observation, memory: Memory | None = None) -> Decision:
    """The decision; what only writes it down is left out (`test_rejoin` looks at that)."""
    decision = decide(seen, memory if memory is not None else Memory())
    told = tuple(a for a in decision.actions if not isinstance(a, KeepRejoin | TellDiscards))
    return replace(decision, actions=told)


def kinds(decision: Decision) -> tuple[type[Action], ...]:
    """The types of the actions, in order."""
    return tuple(type(action) for action in decision.actions)
