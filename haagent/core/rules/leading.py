"""The key is ours: promote, come back after a crash, hand over, or carry on."""

from __future__ import annotations

from dataclasses import replace

from dcs.records import ClusterSnapshot, Status
from haagent.core import failsafe, logical_slots, slots, watchdog
from haagent.core.actions import (
    Action,
    AnswerRequest,
    AskPeers,
    Checkpoint,
    ClearFailover,
    Guard,
    MarkUnfenced,
    Promote,
    PutInitialConfig,
    PutInitialize,
    ReleaseLeader,
    RunPrePromote,
    StartPrimary,
    StartStandby,
    StopInstance,
    WriteClaim,
    WriteFailsafe,
    WriteHistory,
    WriteStatus,
)
from haagent.core.candidate import (
    expected_loss_text,
    has_last_record,
    interesting_peers,
    manual_failover_to_me,
    standing,
    unanswered,
)
from haagent.core.model import Decision, Memory, Observation, PeerSilent, evolve, unreadable
from haagent.core.rules import common, sync
from haagent.core.schedule import request_in_force
from haagent.core.timelines import next_timeline
from haagent.core.vitality import illness
from postgres_ctl.facts import ControlData, InstanceSample, Lsn

#: Starts of a crashed primary that may fail before it is handed over.
START_TRIES = 2


def lease_not_valid(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours in the store, but the proof ran out: never writable again under this epoch (H6)."""
    if not common.owns_key(obs) or obs.lease.holds(obs.now) or obs.lease.disarmed:
        return None
    epoch = common.epoch_of(obs)
    fenced = obs.lease.closed_epoch >= epoch or (obs.lease.fence_at or obs.now + 1) <= obs.now
    if not fenced:
        return common.wait(
            "lease.unproven", "the leader key is ours, its life is not proven yet", memory, 0.2
        )
    if obs.instance.stopped or obs.instance.serves_as_standby:
        reason = "the lease ran out and PostgreSQL is not writable: releasing the leader key"
        return Decision("lease.release-closed", reason, memory, release(obs, last_position(obs)), 0.0)
    if not obs.lease.guardian_ok:
        reason = "the lease ran out and the guardian does not answer"
        return Decision("lease.fence-myself", reason, memory, (StopInstance("immediate", reason),))
    return common.wait(
        "lease.fencing", "the lease ran out: the guardian stops PostgreSQL", memory, common.SOON_S
    )


def stopped(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours and PostgreSQL does not run."""
    if not common.owns_key(obs) or obs.instance.alive:
        return None
    new = memory.bootstrap == "ready" or common.was_never_led(obs)
    if not common.has_data(obs) and not new:
        reason = "released leader key voluntarily as there is no usable data directory here"
        return Decision("leader.no-data", reason, memory, (ReleaseLeader(common.epoch_of(obs)),))
    guard = Guard(epoch=common.epoch_of(obs), pid=0)
    if new and memory.start_failures < START_TRIES:
        line = "initialized a new cluster"
        actions = (*_claim_of_restored(obs), StartPrimary(guard))
        return _watchdog_first(obs, memory) or Decision(
            "bootstrap.start", "starting the new cluster", memory, actions, line=line
        )
    return _start_or_hand_over(obs, memory, guard)


def _claim_of_restored(obs: Observation) -> tuple[Action, ...]:
    """A restored cluster begins on a timeline that another member may have made of the same backup: the claim
    says whose it is, before anything is written on it (H15)."""
    cluster, mine = common.view(obs), obs.instance.timeline or 0
    if _lost_claim(obs, cluster) is None:
        return ()
    note = "restored from a backup"
    return (WriteClaim(mine, common.epoch_of(obs), cluster.claims_version, note),)


def _start_or_hand_over(obs: Observation, memory: Memory, guard: Guard) -> Decision:
    """What cannot be started here goes to a standby that can take over; without one, it is tried on."""
    in_place = _came_down_under_our_eyes(obs)
    no_time = in_place and obs.settings.primary_start_timeout_s <= 0
    ill = illness(obs)
    if memory.start_failures >= START_TRIES or no_time or (ill is not None and ill.of_the_disk):
        successor = look_for_successor(obs, memory)
        if successor is not None:
            return successor
    pause_s = common.start_pause_s(obs, memory)
    if pause_s > 0:
        reason = memory.note or "PostgreSQL does not start, and no standby can take over"
        return common.wait("leader.start-pause", reason, memory, min(pause_s, 1.0))
    if in_place:
        return _watchdog_first(obs, memory) or _restart(memory, guard)
    reason = "holding the key on a stopped node: starting read-only first, its end of WAL is not known"
    return Decision("leader.start-readonly", reason, memory, (StartStandby(None),))


def _watchdog_first(obs: Observation, memory: Memory) -> Decision | None:
    """Before anything is written: the watchdog is on, or the key goes where it can be."""
    switch = watchdog.change(obs)
    if switch:
        return Decision("leader.watchdog", "opening the watchdog", memory, switch, 0.0)
    why = watchdog.forbids(obs)
    if why is None:
        return None
    reason = f"released leader key voluntarily as the required watchdog cannot be used: {why}"
    return Decision(
        "leader.no-watchdog", reason, memory, (ReleaseLeader(common.epoch_of(obs), last_position(obs)),)
    )


def _came_down_under_our_eyes(obs: Observation) -> bool:
    """H14: in this boot, watched from start to end, so nothing written to the page cache is lost."""
    last = obs.instance.last_exit
    return last is not None and last.watched and not last.fenced and common.was_primary(obs)


def _restart(memory: Memory, guard: Guard) -> Decision:
    if memory.start_failures == 0:
        reason = "starting primary after failure"
        return Decision("leader.restart-in-place", reason, memory, (StartPrimary(guard),))
    reason = (
        f"starting primary after failure, try {memory.start_failures + 1}: {memory.note or 'unknown cause'}"
    )
    return Decision("leader.restart-again", reason, memory, (StartPrimary(guard),))


def look_for_successor(obs: Observation, memory: Memory) -> Decision | None:
    """Somebody must be there to take over before we let go of the key; None when nobody is."""
    ask = unanswered(obs, memory, common.view(obs)) or _silent_before(obs, memory)
    if ask:
        return Decision(
            "leader.ask-successors", "looking for a successor", memory, (AskPeers(ask),), common.SOON_S
        )
    if not common.fit_successor_answers(obs):
        return None
    reason = "demoted self because PostgreSQL could not be started here and a standby can take over"
    return Decision(
        "leader.hand-over-crashed", reason, memory, (ReleaseLeader(common.epoch_of(obs)),), line=reason
    )


def _silent_before(obs: Observation, memory: Memory) -> tuple[str, ...]:
    """Who did not answer when PostgreSQL still ran here (then perhaps starting) may well do so now."""
    known = (obs.peers.get(name) for name in interesting_peers(obs, memory, common.view(obs)))
    silent = (peer for peer in known if isinstance(peer, PeerSilent))
    return tuple(peer.name for peer in silent if peer.asked_at < (memory.down_since or 0.0))


def being_promoted(obs: Observation, memory: Memory) -> Decision | None:
    """An agent before this one told PostgreSQL to promote: that cannot be taken back, so neither is the key
    released nor the promotion tried again (rule 2)."""
    if not common.owns_key(obs) or not obs.instance.promoting or not obs.lease.holds(obs.now):
        return None
    reason = "PostgreSQL was told to promote and is not done yet"
    if obs.request is not None:
        return Decision("promote.busy", reason, memory, (AnswerRequest(obs.request.id, 503, reason),))
    return common.wait("promote.under-way", reason, memory, common.SOON_S)


def in_recovery(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours and PostgreSQL is a standby: promote, if every rule of the election still holds."""
    if not common.owns_key(obs) or not obs.instance.serves_as_standby:
        return None
    epoch = common.epoch_of(obs)
    judged = standing(obs, memory)
    if judged.ask:
        return Decision(
            "promote.ask", "asking the other members", memory, (AskPeers(judged.ask),), common.SOON_S
        )
    if not judged.may_lead:
        why = "; ".join(f"{r.rule}: {r.detail}" for r in judged.refusals)
        reason = f"holding the key but not allowed to promote: {why}"
        action = ReleaseLeader(epoch)
        return Decision("promote.refused", reason, memory, (action,), 1.0, judged.refusals)
    switch = watchdog.change(obs)
    if switch:
        return Decision("promote.watchdog", "opening the watchdog", memory, switch, 0.0)
    if obs.asks_before_promotion and memory.agreed_epoch != epoch:
        guard = Guard(epoch=epoch, pid=obs.instance.pid)
        return Decision("promote.ask-program", "running pre_promote", memory, (RunPrePromote(guard),))
    first = sync.before_the_promotion(obs, memory)
    return first or logical_slots.with_doubts(obs, memory, _promote(obs, memory, epoch))


def _promote(obs: Observation, memory: Memory, epoch: int) -> Decision:
    """Rule 2, in this order: claim the timeline, promote (H15); the request is cleared while it promotes."""
    cluster, timeline = common.view(obs), next_timeline(obs, common.view(obs))
    loss = "expected loss: " + expected_loss_text(obs, cluster)
    request = request_in_force(obs, cluster)
    if request is not None and request.is_switchover and has_last_record(obs, cluster):
        loss = "planned: nothing lost"
    claim = WriteClaim(timeline, epoch, cluster.claims_version, loss, _lost_claim(obs, cluster))
    clear: tuple[Action, ...] = ()
    if request is not None:
        done = "failed over" if manual_failover_to_me(obs, cluster) else "switched over"
        clear = (ClearFailover(request.version, f'Successfully {done} to "{obs.me.name}"; {loss}', 200),)
    elif cluster.failover is not None:
        text = f"{obs.me.name} was promoted before the switchover was due: dropped"
        clear = (ClearFailover(cluster.failover.version, text, 412),)
    guard = Guard(epoch=epoch, pid=obs.instance.pid)
    action = Promote(guard, above=obs.instance.timeline or 0, timeline=timeline)
    line = "promoted self to leader by acquiring session lock"
    reason = f"{line}; timeline {timeline}, {loss}"
    return Decision("promote.now", reason, memory, (claim, action, *clear), line=line)


def _lost_claim(obs: Observation, cluster: ClusterSnapshot) -> int | None:
    """The timeline we come from, where its claim is not in the store any more: with only the next one there,
    our own WAL would count as diverged if the promotion fails (H15)."""
    mine = obs.instance.timeline or 0
    known = mine <= 1 or any(claim.timeline == mine for claim in cluster.claims)
    return None if known else mine


def not_answering(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours and PostgreSQL lives without answering: the lease is kept (rule 10, H12)."""
    if not common.owns_key(obs) or obs.instance.answers:
        return None
    return common.wait("leader.no-answer", "PostgreSQL does not answer; the lease is kept", memory, 1.0)


def steady(obs: Observation, memory: Memory) -> Decision | None:
    """A healthy primary: keep store, slots and files in line."""
    if not common.owns_key(obs) or not obs.instance.serves_as_primary:
        return None
    why = watchdog.forbids(obs)
    if why is not None:
        reason = f"demoted self because the required watchdog cannot be used: {why}"
        stop = StopInstance("fast", reason, common.SENDERS_GRACE_S)
        return Decision("leader.watchdog-failed", reason, memory, (stop,))
    actions = maintenance(obs, memory)
    line = f"no action. I am ({obs.me.name}), the leader with the lock"
    steady = Decision("leader.steady", line, evolve(memory, clean_release=False), actions, heartbeat=True)
    return sync.keep_in_line(obs, steady)


# --- maintenance --------------------------------------------------------------------------------


def maintenance(obs: Observation, memory: Memory) -> tuple[Action, ...]:
    """Writes of contract 1.2 that are due, each only when something changed."""
    sample = obs.instance.sample
    if not isinstance(sample, InstanceSample) or sample.in_recovery or obs.lease.epoch is None:
        return ()
    cluster, guard = common.view(obs), Guard(epoch=obs.lease.epoch, pid=obs.instance.pid)
    slot_change = slots.plan(obs, memory)
    return (
        *watchdog.change(obs),
        *initialise(obs, cluster),
        *_unfenced(obs, cluster),
        *((slot_change,) if slot_change is not None else ()),
        *logical_slots.tend(obs, memory),
        *_claim(cluster, obs, sample),
        *_history(obs, cluster, sample, guard),
        *_status(obs, memory, cluster, sample, guard),
        *_failsafe(obs, guard),
        *_checkpoint(obs, memory, guard),
        *common.outdated_config(obs),
    )


def initialise(obs: Observation, cluster: ClusterSnapshot) -> tuple[Action, ...]:
    mine, known = obs.instance.system_identifier, cluster.initialize
    broken = known is None or not known.isdigit() or len(known) < 10
    write: tuple[Action, ...] = (PutInitialize(mine),) if broken and mine is not None else ()
    return write + ((PutInitialConfig(),) if cluster.config is None else ())


def _unfenced(obs: Observation, cluster: ClusterSnapshot) -> tuple[Action, ...]:
    """H20: the mark is ours while our fence is off, and nobody's otherwise: we are primary, and fenced."""
    marked = cluster.unfenced.name if cluster.unfenced is not None else None
    broken = unreadable(cluster, "haagent_unfenced") is not None
    wanted = obs.me.name if obs.lease.disarmed else None
    return (MarkUnfenced(obs.lease.disarmed),) if marked != wanted or broken else ()


def _status(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, sample: InstanceSample, guard: Guard
) -> tuple[Action, ...]:
    if sample.flush_lsn is None:
        return ()
    positions, retained = slots.positions(obs, memory, sample), slots.to_retain(obs, memory)
    old = cluster.status
    now = Status(sample.flush_lsn.value, positions, retained)
    if old is not None and replace(old, slots=dict(old.slots or {})) == now:
        return ()
    return (WriteStatus(guard, sample.flush_lsn, positions, retained),)


def _failsafe(obs: Observation, guard: Guard) -> tuple[Action, ...]:
    members = failsafe.members_to_write(obs)
    return (WriteFailsafe(guard, members),) if members is not None else ()


def _claim(cluster: ClusterSnapshot, obs: Observation, sample: InstanceSample) -> tuple[Action, ...]:
    """A timeline that Patroni made, or whose claim was lost, is claimed late."""
    timeline = sample.timeline or 0
    known = timeline <= 1 or any(claim.timeline >= timeline for claim in cluster.claims)
    if known and not unreadable(cluster, "haagent_claims"):
        return ()
    return (WriteClaim(timeline, common.epoch_of(obs), cluster.claims_version),)


def _history(
    obs: Observation, cluster: ClusterSnapshot, sample: InstanceSample, guard: Guard
) -> tuple[Action, ...]:
    """Rewritten when the last row is not the timeline before ours, ended where we left it, with our name as
    the new leader (contract 1.3): somebody else may have gone on from the same place, and died.

    Before `status`: whoever sees a position on our timeline can also see where it began (H15)."""
    timeline = sample.timeline or 0
    return () if _history_is_told(cluster, obs, timeline) else (WriteHistory(guard, timeline),)


def _history_is_told(cluster: ClusterSnapshot, obs: Observation, timeline: int) -> bool:
    rows, path = cluster.history, obs.instance.history
    if timeline <= 1:
        return rows is not None and not rows
    last = rows[-1] if rows else None
    before = path[-1].timeline if path else timeline - 1
    same_place = last is not None and (not path or last.lsn == path[-1].switch_lsn.value)
    return last is not None and same_place and (last.timeline, last.new_leader) == (before, obs.me.name)


def _checkpoint(obs: Observation, memory: Memory, guard: Guard) -> tuple[Action, ...]:
    if memory.checkpointed_epoch == guard.epoch or "checkpoint" in obs.background:
        return ()
    return (Checkpoint(guard, background=True),)


def release(obs: Observation, optime: Lsn | None) -> tuple[Action, ...]:
    """Give the key away, with the last position where it is known (rule 2).

    Where its timeline began is told before, as ever (`_history`): a primary may end before its first step."""
    action, timeline = ReleaseLeader(common.epoch_of(obs), optime), obs.instance.timeline or 0
    if optime is None or timeline <= 1 or _history_is_told(common.view(obs), obs, timeline):
        return (action,)
    return (WriteHistory(Guard(), timeline), action)


def last_position(obs: Observation) -> Lsn | None:
    """The shutdown checkpoint of a primary that is stopped cleanly; None of any other instance."""
    control = obs.instance.control
    known = obs.instance.stopped and isinstance(control, ControlData) and clean_stop(obs)
    return control.checkpoint_lsn if known and isinstance(control, ControlData) else None


def clean_stop(obs: Observation) -> bool:
    """pg_control says the primary wrote its shutdown checkpoint."""
    control = obs.instance.control
    return isinstance(control, ControlData) and control.state.value == "shut down"
