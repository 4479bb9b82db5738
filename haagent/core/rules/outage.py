"""The DCS does not answer: a primary goes on exactly as long as its lease is proven, a standby stays."""

from __future__ import annotations

from haagent.core import watchdog
from haagent.core.actions import AnswerRequest, Exit, Guard, StartPrimary, StartStandby, StopInstance
from haagent.core.model import Decision, Memory, Observation, Unavailable
from haagent.core.rules import common


def dcs_unreachable(obs: Observation, memory: Memory) -> Decision | None:
    """Contract 2.11, with the guardian's deadline instead of a guess."""
    if not isinstance(obs.cluster, Unavailable):
        return None
    cause = obs.cluster.cause
    if obs.request is not None:
        refused = AnswerRequest(obs.request.id, 503, f"{obs.request.kind} failed: DCS is not accessible")
        return Decision("outage.request", "DCS is not accessible", memory, (refused,), 0.0)
    if obs.stopping:
        return _stopping(obs, memory)
    if obs.settings.pause:
        return common.wait("outage.paused", "PAUSE: DCS is not accessible", memory)
    if obs.lease.holds(obs.now):
        return _leading(obs, memory, cause)
    if obs.instance.serves_as_primary:
        reason = "demoted self because DCS is not accessible and I was a leader"
        return Decision(
            "outage.demote", f"{reason}: {cause}", memory, (StopInstance("fast", reason),), line=reason
        )
    known = memory.last_leader is not None and obs.instance.stopped and common.has_data(obs)
    if known and common.start_pause_s(obs, memory) == 0:
        return _start_readonly(obs, memory)
    return common.wait("outage.wait", f"DCS is not accessible: {cause}", memory)


def _start_readonly(obs: Observation, memory: Memory) -> Decision:
    """Following nobody; the standby leader goes on with what it followed."""
    remote = common.remote_node(obs) if memory.last_leader == obs.me.name else None
    source = remote if common.may_follow(memory, remote) and not memory.rejoin.diverged else None
    named = "nobody" if source is None else f"the {source}"
    reason = f"DCS is not accessible: starting read-only, following {named}"
    return Decision(
        "outage.start-readonly", reason, memory, (StartStandby(source),), line="DCS is not accessible"
    )


def _leading(obs: Observation, memory: Memory, cause: str) -> Decision:
    left = (obs.lease.fence_at or obs.now) - obs.now
    crashed = obs.instance.stopped and common.has_data(obs) and common.was_primary(obs)
    watched = obs.instance.last_exit is not None and obs.instance.last_exit.watched
    may_start = memory.handover is None and common.start_pause_s(obs, memory) == 0
    if obs.settings.standby_cluster is not None:
        may_start = False
        if obs.instance.stopped and common.has_data(obs) and common.start_pause_s(obs, memory) == 0:
            return _start_readonly(obs, memory)
    if crashed and watched and may_start and not watchdog.missing(obs):
        action = StartPrimary(Guard(epoch=common.epoch_of(obs), pid=0))
        reason = "starting primary after failure"
        return Decision("outage.restart-in-place", reason, memory, (action,))
    reason = f"DCS is not accessible ({cause}); the lease is proven for {left:.1f} s more"
    return common.wait("outage.lease-holds", reason, memory, max(0.1, left))


def _stopping(obs: Observation, memory: Memory) -> Decision:
    if obs.settings.pause or obs.instance.stopped:
        return Decision(
            "outage.exit", "stopped while the DCS is not accessible", memory, (Exit(0, "stopped"),)
        )
    return Decision(
        "outage.stop", "shutting down", memory, (StopInstance("fast", "shutdown", before_stop=True),)
    )
