"""A primary that holds the key and is of no use to clients: restart it in place, hand over, or stay.

probes fail ─ long enough ─► a restart may help, and was not tried too often ─► kill, start again
                                  │ no
                                  ▼
                   a standby is fit, the cluster was calm, the fault goes on ─ no ─► stay, say so
                                  │ yes
            ┌─────────────────────┴─────────────────────────┐
    it may stop cleanly (full                    it cannot, or did not: close the
    disk): a switchover like one                 epoch, kill; released when proven
    that was asked for                           stopped, else the lease runs out (H9)
"""

from __future__ import annotations

from dataclasses import replace

from haagent.core.actions import (
    Action,
    AskPeers,
    BeginSwitchover,
    CancelJob,
    CloseEpoch,
    Guard,
    StopInstance,
)
from haagent.core.candidate import best_successor, unanswered
from haagent.core.model import Decision, Memory, Observation, Unavailable, evolve
from haagent.core.rules import common
from haagent.core.rules.leading import clean_stop, not_answering, steady, stopped
from haagent.core.vitality import Illness, calm_at, fit, illness, may_restart, restarted, tried

#: What is left of a dead primary is waited for so long before its key is let go, seconds.
LEFTOVERS_S = 5.0


def unhealthy(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours, PostgreSQL is its primary, and probes say that nobody can use it."""
    sample = obs.instance.sample
    if obs.instance.ending and isinstance(sample, Unavailable):
        return _let_expire(obs, memory, sample.since)
    ill = illness(obs)
    if ill is None or not common.owns_key(obs) or not obs.lease.holds(obs.now):
        return None
    if obs.instance.stopped:
        return _did_not_stop_cleanly(obs, memory, ill)
    if not obs.instance.serves_as_primary or obs.request is not None:
        return None
    asked = common.view(obs).failover is not None or memory.handover is not None
    if asked and ill.stops_cleanly and obs.instance.answers:
        return None
    if ill.restart_may_help and may_restart(obs, memory):
        reason = f"killing PostgreSQL to start it again: {ill.text}"
        stop = StopInstance("kill", reason)
        return Decision("leader.unhealthy-restart", reason, restarted(obs, memory), (stop,), line=reason)
    return _hand_over(obs, memory, ill)


def _hand_over(obs: Observation, memory: Memory, ill: Illness) -> Decision:
    if not _somebody_might(obs):
        return _stay(obs, memory, ill, "no standby can take over")
    if obs.now < calm_at(obs, memory):
        return _stay(obs, memory, ill, "the leader has changed lately, or a hand-over has failed")
    ask = unanswered(obs, memory, common.view(obs))
    if ask:
        reason = f"looking for a successor: {ill.text}"
        return Decision(
            "leader.unhealthy-ask", reason, memory, (AskPeers(ask),), common.SOON_S, heartbeat=True
        )
    name = _successor(obs)
    if name is None:
        return _stay(obs, memory, ill, "no standby can take over")
    memory = fit(obs, memory, ill)
    if ill.seen_at <= (memory.remedies.fit_since or 0.0):
        # A fault that all have ends for one before the other: it must have outlasted the other's.
        reason = f"{name} is fit: waiting for one more probe; {ill.text}"
        return common.wait("leader.unhealthy-confirm", reason, memory, 1.0)
    begun = tried(obs, memory)
    if ill.stops_cleanly and obs.instance.answers and begun.remedies.tries == 1:
        return _cleanly(obs, begun, ill, name)
    reason = f"giving up leadership to {name}: {ill.text}"
    actions = (CloseEpoch(common.epoch_of(obs)), StopInstance("kill", reason))
    return Decision(
        "leader.unhealthy-hand-over",
        reason,
        evolve(begun, handover=None),
        actions,
        common.SOON_S,
        line=reason,
    )


def _cleanly(obs: Observation, memory: Memory, ill: Illness, name: str) -> Decision:
    guard = Guard(epoch=common.epoch_of(obs), pid=obs.instance.pid)
    version = common.view(obs).failover_version
    reason = f"switching over to {name}: {ill.text}"
    action = BeginSwitchover(guard, version, obs.me.name, name)
    return Decision("leader.unhealthy-switchover", reason, memory, (action,), 0.0, line=reason)


def _did_not_stop_cleanly(obs: Observation, memory: Memory, ill: Illness) -> Decision | None:
    """A switchover that failed for what was to be escaped from: not back to that, somebody else goes on."""
    begun = memory.handover
    if begun is None or not ill.of_the_disk or clean_stop(obs):
        return None
    return stopped(obs, evolve(memory, handover=None))


def _somebody_might(obs: Observation) -> bool:
    """By the member keys, so that nobody is asked in vain all the time."""
    others = (m for m in common.view(obs).members if m.name != obs.me.name)
    return any(m.api_url and m.cannot_lead is None and not m.tags.nofailover for m in others)


def _successor(obs: Observation) -> str | None:
    """A standby that has what it needs; where PostgreSQL does not say who streams, one that answers."""
    if obs.instance.answers:
        return best_successor(obs, common.view(obs))
    return "a standby" if common.fit_successor_answers(obs) else None


def _stay(obs: Observation, memory: Memory, ill: Illness, why: str) -> Decision:
    """As ever, with an alarm: whoever cannot be replaced is kept. Each probe that fails wakes the loop."""
    usual = steady(obs, memory) if obs.instance.answers else not_answering(obs, memory)
    assert usual is not None
    reason = f"unhealthy, and staying the leader: {why}; {ill.text}"
    remedies = memory.remedies
    told = remedies.told == reason
    return replace(
        usual,
        rule="leader.unhealthy",
        reason=reason,
        line=reason,
        memory=evolve(usual.memory, remedies=replace(remedies, told=reason, fit_since=None)),
        heartbeat=told,
    )


# --- what hung storage holds up ---------------------------------------------------------------------


def hopeless_job(obs: Observation, memory: Memory) -> Decision | None:
    """A CHECKPOINT on storage that hangs ends when that does: it keeps nobody from handing over."""
    ill, job = illness(obs), obs.job
    if ill is None or ill.stops_cleanly or job is None or job.kind != "checkpoint" or job.cancelled:
        return None
    return Decision("job.hopeless", ill.text, memory, (CancelJob(ill.text),))


def leftovers(obs: Observation, memory: Memory) -> Decision | None:
    """What cannot be ended keeps nobody else from leading: once somebody is there the lease runs out (H9)."""
    return _let_expire(obs, memory, memory.down_since)


def _let_expire(obs: Observation, memory: Memory, since: float | None) -> Decision | None:
    if isinstance(obs.cluster, Unavailable) or obs.settings.pause or not common.owns_key(obs):
        return None
    epoch = common.epoch_of(obs)
    if obs.lease.closed_epoch >= epoch or since is None or obs.now < since + LEFTOVERS_S:
        return None
    actions: tuple[Action, ...]
    if ask := unanswered(obs, memory, obs.cluster):
        rule, reason, actions = "guard.leftovers-ask", "looking for a successor", (AskPeers(ask),)
    elif common.fit_successor_answers(obs):
        rule, actions = "guard.leftovers-let-go", (CloseEpoch(epoch),)
        reason = "what is left of PostgreSQL cannot be ended: letting the lease run out"
    else:
        return None
    return Decision(rule, reason, memory, actions, common.SOON_S)
