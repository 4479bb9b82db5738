"""The key of a standby cluster is ours: follow the other cluster for all, and never be written to (6.7).

    primary ─► fast stop ─► status = shutdown checkpoint ─► last segment archived ─► histories compared
                                                                                          │
       the section is gone: `leading.in_recovery` promotes      follow the remote node ◄──┴──► rewind, clone

The key is kept all the way: nobody else has to begin anew. Whoever takes it in a race comes here, too, and
promotes nothing. The stream is not begun before the histories were compared once (`common.may_follow`).
"""

from __future__ import annotations

from dataclasses import replace

from dcs.records import ClusterSnapshot, FailoverRequest, Status
from haagent.core import slots
from haagent.core.actions import (
    Action,
    ArchiveLast,
    AskPeers,
    CheckDivergence,
    ClearFailover,
    DeleteSync,
    Follow,
    Guard,
    ReleaseLeader,
    Source,
    StartStandby,
    StopInstance,
    WriteHistory,
    WriteStatus,
)
from haagent.core.model import Decision, Memory, Observation, PeerAnswer, evolve, unreadable
from haagent.core.rules import common, follower, leading, switchover
from haagent.core.schedule import Timing, timing
from postgres_ctl.facts import ControlData, InstanceSample


def holder(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours in a standby cluster."""
    if obs.settings.standby_cluster is None or not common.owns_key(obs):
        return None
    if obs.instance.serves_as_primary:
        reason = "demoting cluster: this is a standby cluster now"
        stop = StopInstance("fast", "demote-cluster", common.SENDERS_GRACE_S, before_stop=True)
        begun = evolve(memory, handover=None, request_seen=None, remote_fits=None, archived=None)
        return Decision("standby-cluster.demote", reason, begun, (*common.keep_numbers_apart(obs), stop))
    if not obs.instance.alive:
        return _stopped(obs, memory)
    if not obs.instance.answers:
        return _not_answering(obs, memory)
    return _running(obs, memory)


def member(obs: Observation, memory: Memory) -> Decision | None:
    """Somebody else leads it, and our WAL went through a promotion in this very cluster: timeline numbers may
    be there and in the other cluster, so it follows nobody before histories were compared (H15)."""
    remote = common.remote_node(obs)
    if remote is None or not common.other_leads(obs) or not common.has_data(obs):
        return None
    if memory.remote_fits == remote or memory.rejoin.diverged or not _was_promoted_here(obs):
        return None
    if obs.instance.serves_as_primary:
        return None
    if obs.instance.alive and obs.instance.follows is not None and not obs.instance.storage_hangs:
        reason = f"following nobody until histories are compared with the {remote}"
        return Decision("standby-cluster.member-lets-go", reason, memory, (Follow(None),), 0.0)
    if common.may_ask_remote(obs, memory):
        reason = f"before anybody is followed: comparing histories with the {remote}"
        return Decision("standby-cluster.member-compares", reason, memory, (CheckDivergence(remote),))
    if not obs.instance.alive and common.start_pause_s(obs, memory) == 0:
        reason = f"starting read-only: histories cannot be compared with the {remote} yet"
        return Decision("standby-cluster.member-starts", reason, memory, (StartStandby(None),))
    reason = memory.note or f"histories cannot be compared with the {remote} yet"
    return common.wait("standby-cluster.member-waits", reason, memory, 1.0)


def _was_promoted_here(obs: Observation) -> bool:
    """A timeline that a member of this cluster claimed is in our history, as far as numbers tell."""
    cluster = common.view(obs)
    if unreadable(cluster, "haagent_claims"):
        return True
    ours = {s.timeline for s in obs.instance.history} | {obs.instance.timeline}
    return any(claim.timeline in ours for claim in cluster.claims)


def paused(obs: Observation, memory: Memory) -> Decision | None:
    """The standby leader keeps the key, and only what an operator asked for is done (contract 2.3, 2.13)."""
    if not (is_holder(obs) and obs.instance.alive and obs.instance.answers):
        return None
    return _request(obs, memory) or _steady(obs, memory, "PAUSE: ")


def is_holder(obs: Observation) -> bool:
    """The key of a standby cluster is ours, and our server is not writable."""
    section = obs.settings.standby_cluster
    return section is not None and common.owns_key(obs) and not obs.instance.serves_as_primary


# --- stopped, or coming up ------------------------------------------------------------------------


def _stopped(obs: Observation, memory: Memory) -> Decision | None:
    half_rewound = obs.instance.unfinished == "rewind"
    if half_rewound and common.remote_node(obs) is not None:
        return follower.rewind_again(obs, memory)
    if not common.has_data(obs):
        return None  # `leading.stopped` gives the key away
    last_words = _last_words(obs, memory)
    if last_words is not None:
        return last_words
    remote = None if obs.me.tags.nostream else common.remote_node(obs)
    if memory.rejoin.diverged and remote is not None:
        return follower.mend(obs, memory, remote)
    unknown = remote is not None and not common.may_follow(memory, remote)
    if remote is not None and unknown and common.may_ask_remote(obs, memory):
        reason = f"before it is followed: comparing histories with the {remote}"
        return Decision("standby-cluster.compare", reason, memory, (CheckDivergence(remote),))
    if memory.start_failures >= leading.START_TRIES:
        successor = leading.look_for_successor(obs, memory)
        if successor is not None:
            return successor
    pause_s = common.start_pause_s(obs, memory)
    if pause_s > 0:
        reason = memory.note or "PostgreSQL does not start, and no other member can follow for the cluster"
        return common.wait("standby-cluster.start-pause", reason, memory, min(pause_s, 1.0))
    source = remote if common.may_follow(memory, remote) else None
    reason = f"starting as the standby leader, following {_named(source)}"
    return Decision("standby-cluster.start", reason, memory, (StartStandby(source),))


def _last_words(obs: Observation, memory: Memory) -> Decision | None:
    """Of a primary that has stopped for good: its last position, its last WAL (contract 1.3, 2.6)."""
    control = obs.instance.control
    if not isinstance(control, ControlData) or not leading.clean_stop(obs):
        return None
    end, guard = control.checkpoint_lsn, Guard(epoch=common.epoch_of(obs), pid=0)
    old = common.view(obs).status
    if old is None or old.optime != end.value:
        known = (old.slots or {}, old.retain_slots or ()) if old is not None else ({}, ())
        reason = f"demoted: the last position of this primary is {end}"
        return Decision("standby-cluster.status", reason, memory, (WriteStatus(guard, end, *known),), 0.0)
    if memory.archived != end:
        reason = "demoted: archiving the segment with the shutdown checkpoint"
        return Decision("standby-cluster.archive", reason, memory, (ArchiveLast(end),))
    return None


def _not_answering(obs: Observation, memory: Memory) -> Decision:
    """A copy of another server lets nobody in before it has the WAL that its remote node owes it."""
    remote = common.upstream(obs)
    if memory.rejoin.diverged:
        return follower.leave_diverged(obs, memory)
    if remote is not None and obs.instance.follows != common.address_of(obs, remote):
        found = _begin_to_follow(obs, memory, remote)
        if found is not None:
            return found
    if remote is not None and common.may_ask_remote(obs, memory):
        reason = f"PostgreSQL does not answer: comparing histories with the {remote}"
        return Decision("standby-cluster.compare", reason, memory, (CheckDivergence(remote),))
    return common.wait("standby-cluster.no-answer", "PostgreSQL is starting, or does not answer", memory, 1.0)


# --- running --------------------------------------------------------------------------------------


def _running(obs: Observation, memory: Memory) -> Decision:
    if memory.rejoin.diverged and common.remote_node(obs) is not None:
        return follower.leave_diverged(obs, memory)
    asked = _request(obs, memory)
    if asked is not None:
        return asked
    remote = common.upstream(obs)
    if not common.follows(obs, remote):
        found = _begin_to_follow(obs, memory, remote)
        if found is not None:
            return found
    since = memory.not_streaming_since
    silent = since is not None and obs.now >= since + follower.STREAM_WAIT_S
    if remote is not None and silent and common.may_ask_remote(obs, memory):
        reason = f"not streaming: comparing histories with the {remote}"
        return Decision("standby-cluster.compare", reason, memory, (CheckDivergence(remote),))
    return _steady(obs, memory, "")


def _begin_to_follow(obs: Observation, memory: Memory, remote: Source | None) -> Decision | None:
    """None while its history cannot be compared with ours; then nobody is followed: whom it followed before
    follows us now, perhaps."""
    if not common.may_follow(memory, remote):
        if obs.instance.follows is not None and not obs.instance.storage_hangs:
            reason = f"following nobody until histories are compared with the {remote}"
            return Decision("standby-cluster.let-go", reason, memory, (Follow(None),), 0.0)
        if remote is None or not common.may_ask_remote(obs, memory):
            return None
        reason = f"before it is followed: comparing histories with the {remote}"
        return Decision("standby-cluster.compare", reason, memory, (CheckDivergence(remote),))
    if obs.instance.storage_hangs:
        reason = f"the storage does not answer: cannot follow {_named(remote)} yet"
        return common.wait("standby-cluster.storage-hangs", reason, memory, 1.0)
    return Decision("standby-cluster.follow", f"following {_named(remote)}", memory, (Follow(remote),), 1.0)


def _named(source: Source | None) -> str:
    return f"the {source}" if source is not None else "nobody"


def _steady(obs: Observation, memory: Memory, prefix: str) -> Decision:
    line = f"{prefix}no action. I am ({obs.me.name}), the standby leader with the lock"
    again_s = 1.0 if memory.not_streaming_since is not None else None
    if memory.note is None and _is_cut_off(obs, memory):
        memory = evolve(memory, note=f"no stream from the {common.upstream(obs)}")
    return Decision(
        "standby-cluster.steady", line, memory, _maintenance(obs, memory), again_s, heartbeat=True
    )


def _is_cut_off(obs: Observation, memory: Memory) -> bool:
    since = memory.not_streaming_since
    late = since is not None and obs.now >= since + follower.STREAM_WAIT_S
    return late and common.upstream(obs) is not None


# --- maintenance ----------------------------------------------------------------------------------


def _maintenance(obs: Observation, memory: Memory) -> tuple[Action, ...]:
    """What the leader of a standby cluster writes, each only when something changed (contract 1.2)."""
    sample = obs.instance.sample
    if not isinstance(sample, InstanceSample) or not sample.in_recovery:
        return ()
    cluster, guard = common.view(obs), Guard(epoch=common.epoch_of(obs), pid=obs.instance.pid)
    change = slots.plan(obs, memory)
    return (
        *leading.initialise(obs, cluster),
        *((change,) if change is not None else ()),
        *common.keep_numbers_apart(obs),
        *_history(obs, cluster, guard),
        *_status(obs, memory, cluster, sample, guard),
        *_no_sync(cluster, guard),
        *common.outdated_config(obs),
    )


def _no_sync(cluster: ClusterSnapshot, guard: Guard) -> tuple[Action, ...]:
    """Nothing is committed here: nobody is promised anything by a key from before (contract 6.1)."""
    key = cluster.sync
    return (DeleteSync(guard, key.version),) if key is not None and key.leader else ()


def _history(obs: Observation, cluster: ClusterSnapshot, guard: Guard) -> tuple[Action, ...]:
    """The line of the cluster is that of the other one now: who began its timelines is not known here, but
    whoever is promoted one day is judged by them (H15)."""
    rows, path, timeline = cluster.history or (), obs.instance.history, obs.instance.timeline or 0
    if timeline > 1 and not path:
        return ()  # its history file has not arrived yet
    told = [(r.timeline, r.lsn) for r in rows]
    due = [(s.timeline, s.switch_lsn.value) for s in path if s.timeline < timeline]
    same = due[-len(told) :] == told if told else not due
    return () if same else (WriteHistory(guard, timeline, by_me=False),)


def _status(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, sample: InstanceSample, guard: Guard
) -> tuple[Action, ...]:
    """How far this cluster has come, and the slots that its members find here."""
    positions, retained = slots.positions(obs, memory, sample), slots.to_retain(obs, memory)
    old = cluster.status
    now = Status(sample.position.value, positions, retained)
    if old is not None and replace(old, slots=dict(old.slots or {})) == now:
        return ()
    return (WriteStatus(guard, sample.position, positions, retained),)


# --- switchover -----------------------------------------------------------------------------------


def _request(obs: Observation, memory: Memory) -> Decision | None:
    """A switchover inside the standby cluster: nothing is writable, so nothing has to be stopped for it."""
    request = common.view(obs).failover
    if request is None:
        return None
    if request.leader is not None and request.leader != obs.me.name:
        return _clear(memory, request, 200, f'Successfully switched over to "{obs.me.name}"')
    if request.candidate == obs.me.name:
        if request.leader is None:
            return _clear(memory, request, 200, f'Successfully failed over to "{obs.me.name}"')
        return _clear(memory, request, 412, "Switchover target and source are the same")
    when = timing(obs, request.due_at) if request.due_at is not None else Timing.DUE
    if when is Timing.EARLY or (request.due_at is not None and obs.settings.pause):
        return None
    if when is Timing.LATE:
        text = f"the switchover scheduled at {request.scheduled_at} could not begin in time: dropped"
        return _clear(memory, request, 503, text)
    return _hand_over(obs, memory, request)


def _clear(memory: Memory, request: FailoverRequest, status: int, text: str) -> Decision:
    action = ClearFailover(request.version, text, status)
    cleared = evolve(memory, request_seen=None)
    return Decision("standby-cluster.cleared", text, cleared, (action,), 0.0)


def _hand_over(obs: Observation, memory: Memory, request: FailoverRequest) -> Decision:
    ask = tuple(n for n in switchover.candidates(obs, request) if switchover.stale(obs, n))
    if ask:
        reason = f"asking {', '.join(ask)}"
        return Decision("standby-cluster.ask", reason, memory, (AskPeers(ask),), common.SOON_S)
    fit = [n for n in switchover.candidates(obs, request) if _is_fit(obs, n)]
    if not fit:
        named = request.candidate or "any other member"
        return switchover.wait_for_candidate(obs, memory, request, f"{named} cannot lead now")
    reason = f"handing over, {fit[0]} is fit: releasing the leader key"
    return Decision("standby-cluster.release", reason, memory, (ReleaseLeader(common.epoch_of(obs)),))


def _is_fit(obs: Observation, name: str) -> bool:
    peer = obs.peers.get(name)
    answers = isinstance(peer, PeerAnswer) and peer.in_recovery and not peer.watchdog_failed
    return answers and isinstance(peer, PeerAnswer) and not (peer.tags.nofailover or peer.cannot_lead)
