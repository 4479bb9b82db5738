"""How memory follows the facts, before any rule is asked. Pure.

`absorb` only notes what was seen (since when the leader is missing, how the last job ended); it decides
nothing. Rules may then rely on it, and the simulator sees the same memory the live agent has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from dcs.records import ClusterSnapshot
from haagent.core import rejoin as way_back
from haagent.core import sync_seen
from haagent.core.logical_slots import remember
from haagent.core.model import (
    Handover,
    JobResult,
    Memory,
    Observation,
    Rejoin,
    Unavailable,
    evolve,
    unreadable,
)
from haagent.core.roles import is_at_rest
from haagent.core.schedule import request_in_force
from haagent.core.standby_cluster import RemoteNode
from haagent.core.vitality import leader_changed
from postgres_ctl.facts import ControlData, slot_name

#: Histories are compared again with the node of another cluster that gives no stream after this, seconds.
REMOTE_PAUSE_S = 10.0
#: And after this while a standby has not read all WAL it has.
WHOLE_PAUSE_S = 1.0
#: Names of gone members are remembered at least this long after their slots were given up, seconds.
SLOTS_FORGOTTEN_S = 600.0
#: Seen again within so long, a member is not noted anew, seconds.
SLOTS_NOTED_S = 5.0


def absorb(obs: Observation, memory: Memory) -> Memory:
    """Memory brought up to date with this observation."""
    for result in obs.finished:
        memory = _after_job(obs, memory, result)
    memory = way_back.cut_off(obs, memory)
    if not isinstance(obs.cluster, Unavailable):
        memory = _after_view(obs, memory, obs.cluster)
    memory = remember(obs, _after_instance(obs, _after_lease(obs, memory)))
    return evolve(memory, sync=sync_seen.follow(obs, memory.sync))


def _after_lease(obs: Observation, memory: Memory) -> Memory:
    """A hand-over is of one tenure: left over, it would keep the next one from promoting."""
    begun, lease = memory.handover, obs.lease
    if begun is None or (lease.epoch == begun.epoch and lease.closed_epoch < begun.epoch):
        return memory
    return evolve(memory, handover=None)


def _after_view(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Memory:
    if cluster.leader is None:
        if memory.leader_missing_since is None and not unreadable(cluster, "leader"):
            memory = evolve(memory, leader_missing_since=obs.now)
    else:
        if memory.last_leader not in (None, cluster.leader.name):
            memory = evolve(memory, remedies=leader_changed(obs, memory.remedies))
        # The holder serves only once it is promoted: a wait that ended in the race must not begin anew (H13).
        served = cluster.leader.name != obs.me.name or obs.serves_as_leader
        memory = evolve(
            memory,
            leader_missing_since=None if served else memory.leader_missing_since,
            last_leader=cluster.leader.name,
            last_epoch=cluster.leader.epoch,
            last_members=cluster.members,
        )
    if cluster.leader is not None and cluster.leader.name != obs.me.name:
        memory = evolve(memory, bootstrap=None)
    memory = _after_leader_change(obs, _after_request(obs, memory, cluster), cluster)
    idle = cluster.initialize == "" and cluster.leader is None and not _somebody_bootstraps(memory, cluster)
    since = obs.now if memory.idle_claim_since is None else memory.idle_claim_since
    memory = evolve(memory, idle_claim_since=since if idle else None)
    return _after_pause(obs, evolve(memory, slots_seen=_slots_seen(obs, memory, cluster)))


def _slots_seen(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Mapping[str, float]:
    """Members gone too long stay known for a second life time: their slots here must still be dropped.

    What the leader retains counts as seen now, when it is news: this agent may be younger than the member is
    gone."""
    old, lately = memory.slots_seen, obs.now - SLOTS_NOTED_S
    others = [m for m in cluster.members if m.name != obs.me.name]
    names = [slot_name(m.name) for m in others if not m.tags.nostream]
    seen = {n: at if (at := old.get(n, 0.0)) > lately else obs.now for n in names}
    told = cluster.status.retain_slots if cluster.status is not None else None
    news = {name: obs.now for name in told or () if name != slot_name(obs.me.name)}
    kept_s = 2 * obs.settings.member_slots_ttl_s + SLOTS_FORGOTTEN_S
    known = {n: at for n, at in old.items() if obs.now < at + kept_s}
    return news | known | seen


def _after_leader_change(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Memory:
    """What failed against an earlier leader, and a divergence from it, say nothing about the next one.

    Nor do starts as a primary say anything about those as a standby."""
    old, epoch = memory.rejoin, cluster.leader.epoch if cluster.leader is not None else None
    if cluster.leader is None or epoch is None or old.epoch == epoch:
        return memory
    if cluster.leader.name != obs.me.name:
        memory = evolve(memory, start_failures=0, start_failed_at=None)
    if old.epoch == 0:
        return evolve(memory, rejoin=evolve_rejoin(old, epoch=epoch))
    return evolve(memory, rejoin=Rejoin(settled_epoch=old.settled_epoch, epoch=epoch))


def _after_request(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Memory:
    """H18: the mark holds on after the successor cleared the request, unless the old leader simply stays.

    It counts from the old leader's release: else whoever takes the key after it, be it the old leader itself,
    would find it fresh, give the key back, take it again, and so on."""
    request, leader = request_in_force(obs, cluster), cluster.leader
    # Inside a standby cluster nothing can be lost: whom it follows has all of it.
    if request is not None and request.is_switchover and obs.settings.standby_cluster is None:
        steps_down = leader is not None and leader.name == request.leader
        seen_at = memory.leader_missing_since
        if seen_at is None:
            seen_at = obs.now if steps_down else memory.handover_seen_at
        memory = evolve(memory, handover_seen_at=seen_at, handover_from=request.leader)
        return evolve(memory, handover_optime=None if steps_down else _handed_over_at(memory, cluster))
    if request is None:
        memory = evolve(memory, request_seen=None)
    if leader is not None and leader.name == memory.handover_from:
        return evolve(memory, handover_seen_at=None, handover_from=None, handover_optime=None)
    return evolve(memory, handover_optime=_handed_over_at(memory, cluster))


def _handed_over_at(memory: Memory, cluster: ClusterSnapshot) -> int | None:
    """`status` of the release; whoever leads after it writes its own there."""
    status = cluster.status
    if memory.handover_seen_at is None or memory.handover_optime is not None or status is None:
        return memory.handover_optime
    return status.optime if status.final_timeline is not None else None


def _somebody_bootstraps(memory: Memory, cluster: ClusterSnapshot) -> bool:
    return memory.bootstrap is not None or not all(is_at_rest(m.state) for m in cluster.members)


def _after_pause(obs: Observation, memory: Memory) -> Memory:
    assert not isinstance(obs.cluster, Unavailable)
    if obs.cluster.leader is not None:
        memory = evolve(memory, lost_in_pause=None)
    elif obs.settings.pause and memory.last_leader != obs.me.name and not unreadable(obs.cluster, "leader"):
        memory = evolve(memory, lost_in_pause=memory.last_leader)
    if obs.settings.pause:
        return evolve(memory, paused_seen=True, resumed_at=None)
    if memory.paused_seen:
        return evolve(memory, paused_seen=False, resumed_at=obs.now)
    return memory


def _after_instance(obs: Observation, memory: Memory) -> Memory:
    instance = obs.instance
    down_since = obs.now if memory.down_since is None else memory.down_since
    memory = evolve(memory, down_since=None if instance.alive else down_since)
    if instance.answers and obs.job is None:
        memory = evolve(memory, reinitializing=False)
    if instance.serves_as_standby and not _streams(obs):
        since = memory.not_streaming_since
        return evolve(memory, not_streaming_since=obs.now if since is None else since)
    if instance.serves_as_standby:
        memory = evolve(memory, rejoin=_settled(memory, memory.rejoin.settled_epoch), note=None)
    return evolve(memory, not_streaming_since=None)


def _streams(obs: Observation) -> bool:
    """It receives the leader's WAL. A walreceiver that comes back again and again for the rest of an older
    timeline, because this data left the leader's history before its end, shows as streaming, too."""
    sample = obs.instance.sample
    if isinstance(sample, Unavailable) or sample.walreceiver_status != "streaming":
        return False
    cluster = obs.cluster
    if isinstance(cluster, Unavailable) or cluster.leader is None or sample.timeline is None:
        return True
    leader = cluster.member(cluster.leader.name)
    return leader is None or leader.timeline is None or sample.timeline >= leader.timeline


# --- jobs ---------------------------------------------------------------------------------------


def _after_job(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    handler = _HANDLERS.get(result.kind)
    return handler(obs, memory, result) if handler is not None else memory


def _initdb(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    return evolve(memory, bootstrap="ready" if result.ok else f"failed: {result.reason}")


def _started(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if result.ok:
        return evolve(
            memory, start_failures=0, start_failed_at=None, bootstrap=None, clean_release=False, note=None
        )
    failures = memory.start_failures + 1
    note = f"start failed ({failures}): {result.reason}"
    return evolve(memory, start_failures=failures, start_failed_at=obs.now, note=note)


def _promoted(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if result.ok:
        return evolve(memory, promote_failed_at=None, note=None)
    return evolve(memory, promote_failed_at=obs.now, note=f"promotion failed: {result.reason}")


def _asked(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if result.ok:
        return evolve(memory, agreed_epoch=int(result.data["epoch"]))
    return evolve(memory, promote_failed_at=obs.now, note=f"pre_promote: {result.reason}")


def _checkpointed(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if memory.handover is not None and not result.data.get("background"):
        return evolve(memory, handover=replace(memory.handover, checkpointed=True))
    return evolve(memory, checkpointed_epoch=int(result.data["epoch"])) if result.ok else memory


def _settled(memory: Memory, epoch: int) -> Rejoin:
    return Rejoin(settled_epoch=epoch, epoch=memory.rejoin.epoch)


def _as_it_is(memory: Memory) -> Rejoin:
    return Rejoin(as_it_is_epoch=memory.last_epoch, epoch=memory.rejoin.epoch)


def _cloned(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    """A copy of the leader, or of the node that a standby cluster follows, fits its history; that of another
    member, or of a backup, may have diverged.

    Such a one is started as it is: pg_control may be that of a primary, but nothing here was ever its own."""
    first = memory.bootstrap == "won"
    if not result.ok and first:
        return evolve(memory, bootstrap=f"failed: {result.reason}")
    if not result.ok:
        return way_back.failed(memory, way_back.CLONE, obs.now, result.reason)
    source = result.data.get("source")
    remote = source if isinstance(source, RemoteNode) else None
    of_the_leader = result.data.get("source") == memory.last_leader
    fits = of_the_leader or remote is not None
    rejoin = _settled(memory, memory.last_epoch) if fits else _as_it_is(memory)
    if first:
        memory = evolve(memory, bootstrap="ready")
    return evolve(memory, rejoin=rejoin, remote_fits=remote, slot_wait_since=None, note=None)


def _rewound(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if not result.ok:
        return way_back.failed(memory, way_back.REWIND, obs.now, result.reason)
    if memory.rejoin.diverged and result.data.get("needed") is False:
        note = f"pg_rewind sees no divergence, but: {memory.rejoin.reason}"
        unseen = evolve_rejoin(memory.rejoin, unseen=True, under_way="", reason=note)
        return evolve(memory, rejoin=unseen, note=note)
    source = result.data.get("source")
    if result.data.get("needed") is False and not isinstance(source, RemoteNode):
        # By what pg_control tells: it is compared all the same when it does not stream.
        return evolve(memory, rejoin=_as_it_is(memory), note=None)
    fits = source if isinstance(source, RemoteNode) else memory.remote_fits
    return evolve(memory, rejoin=_settled(memory, memory.last_epoch), remote_fits=fits, note=None)


def _compared(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if obs.settings.standby_cluster is not None:
        memory = evolve(memory, remote_not_before=obs.now + REMOTE_PAUSE_S)
    if not result.ok:
        return way_back.silent(memory, obs.now, f"could not compare histories: {result.reason}")
    source = result.data.get("source")
    if isinstance(source, RemoteNode):
        return _compared_with_remote(obs, memory, source, result)
    if result.data.get("diverged"):
        detail, old = str(result.data.get("detail", "")), memory.rejoin
        not_before = old.not_before if way_back.spent(memory) else 0.0
        rejoin = evolve_rejoin(old, diverged=True, reason=detail, unanswered=0, not_before=not_before)
        return evolve(memory, rejoin=rejoin, note=f"diverged from the leader: {detail}")
    if result.data.get("whole") is False:
        # Nothing against it, but it has not read all it has: looked at again later.
        later = evolve_rejoin(memory.rejoin, not_before=obs.now + way_back.PAUSE_MAX_S)
        return evolve(memory, rejoin=later)
    return evolve(memory, rejoin=_settled(memory, memory.last_epoch))


def _compared_with_remote(obs: Observation, memory: Memory, remote: RemoteNode, result: JobResult) -> Memory:
    """It may fail over at any time, under one leader here: a verdict holds until the stream ends."""
    detail = str(result.data.get("detail", ""))
    if result.data.get("diverged"):
        unseen = bool(result.data.get("unseen"))
        rejoin = evolve_rejoin(
            memory.rejoin, diverged=True, unseen=unseen, reason=detail, tries=0, not_before=0.0
        )
        note = f"diverged from the {remote}: {detail}"
        return evolve(memory, rejoin=rejoin, remote_fits=None, note=note)
    if result.data.get("unknown") and not result.data.get("whole", True):
        return evolve(memory, remote_not_before=obs.now + WHOLE_PAUSE_S)
    if result.data.get("unknown"):
        return evolve(memory, note=f"the {remote}: {detail}")
    return evolve(memory, rejoin=_settled(memory, memory.last_epoch), remote_fits=remote, note=None)


def _archived(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    """Tried once: what failed is in the log."""
    control = obs.instance.control
    return evolve(memory, archived=control.checkpoint_lsn if isinstance(control, ControlData) else None)


def _stopped(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if result.ok or memory.handover is None:
        return memory
    return evolve(memory, note=f"stop failed: {result.reason}")


def _published(obs: Observation, memory: Memory, result: JobResult) -> Memory:
    if not result.ok:
        return memory
    seen = sync_seen.published(memory.sync, result.data["names"], result.data["pid"], result.data["at"])
    return evolve(memory, sync=seen)


_HANDLERS: dict[str, Callable[[Observation, Memory, JobResult], Memory]] = {
    "initdb": _initdb,
    "custom bootstrap": _initdb,
    "start primary": _started,
    "start standby": _started,
    "restart": _started,
    "pre_promote": _asked,
    "promote": _promoted,
    "checkpoint": _checkpointed,
    "publish sync": _published,
    "clone": _cloned,
    "rewind": _rewound,
    "compare histories": _compared,
    "archive": _archived,
    "stop": _stopped,
}


def evolve_rejoin(rejoin: Rejoin, **changes: object) -> Rejoin:
    """A changed copy of the rejoin state."""
    return replace(rejoin, **changes)  # type: ignore[arg-type]


def begin_handover(obs: Observation, memory: Memory, version: int, candidate: str) -> Memory:
    """A switchover passed its checks: from now on PostgreSQL is being stopped."""
    return evolve(memory, handover=Handover(version, candidate, obs.now, epoch=obs.lease.epoch or 0))
