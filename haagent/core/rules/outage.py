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
    if obs.instance.serves_as_primary and _still_promised(obs):
        reason = f"the leader key is gone ({obs.lease.refused}), the members keep out of the race for now"
        return common.wait("outage.refused", reason, memory, common.SOON_S)
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
    if obs.lease.failsafe_until is not None:
        return _carried(obs, memory, cause, left)
    reason = f"DCS is not accessible ({cause}); the lease is proven for {left:.1f} s more"
    return common.wait("outage.lease-holds", reason, memory, max(0.1, left))


def _carried(obs: Observation, memory: Memory, cause: str, left: float) -> Decision:
    """The members have promised not to lead (H19). They are asked under the permits of this loop, whose step
    may wait for the store as long as retry_timeout: so it looks again earlier than usual."""
    line = "continue to run as a leader because failsafe mode is enabled and all members are accessible"
    reason = f"{line}: DCS is not accessible ({cause}); they keep out of the race for {left:.1f} s more"
    again_in_s = max(0.1, min(left, obs.settings.loop_wait_s / 2))
    return Decision("outage.failsafe", reason, memory, again_in_s=again_in_s, line=line, heartbeat=True)


def _still_promised(obs: Observation) -> bool:
    """The key ran out in the outage, as the keeper has just heard, but this step has not: it may be free to
    be taken again. Not beyond what was promised before, where the guardian's deadline stands."""
    return obs.lease.epoch is None and obs.now < (obs.lease.failsafe_until or 0.0)


def _stopping(obs: Observation, memory: Memory) -> Decision:
    if obs.settings.pause or obs.instance.stopped:
        return Decision(
            "outage.exit", "stopped while the DCS is not accessible", memory, (Exit(0, "stopped"),)
        )
    return Decision(
        "outage.stop", "shutting down", memory, (StopInstance("fast", "shutdown", before_stop=True),)
    )
