"""Points in time that operators named, held against the clock on the wall (contract 2.7). Pure.

    ── early ──┬─ due ──────────────┬─ late: dropped ──
               at                   at + 1.5 loop_wait

The leader alone judges when a scheduled switchover is due, each member its own restart, all by the clock of
their host; nobody waits in vain for a clock: a step is woken for the very second, and every step looks again.
So when the clock is set forward beyond the point, it is acted on or, later than the window, dropped as after
a long outage; when it is set back, it is waited for again. What has begun is not put off again: a switchover
that is due becomes one for now in the store. In a pause nothing that was scheduled begins, nor is it dropped.

Until it is due a scheduled switchover is none, for the election and for everybody but its leader.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from dcs.records import ClusterSnapshot, FailoverRequest
from haagent.core.model import Decision, Observation, Unavailable

#: The window of contract 2.7, in loop_wait.
WINDOW_LOOPS = 1.5


class Timing(Enum):
    EARLY = "early"
    DUE = "due"
    LATE = "late"


def timing(obs: Observation, at: float) -> Timing:
    """Where this host's clock stands to the Unix second `at`."""
    if obs.wall < at:
        return Timing.EARLY
    late = obs.wall > at + WINDOW_LOOPS * obs.settings.loop_wait_s
    return Timing.LATE if late else Timing.DUE


def request_in_force(obs: Observation, cluster: ClusterSnapshot) -> FailoverRequest | None:
    """The switchover or failover that is asked for now.

    One that was scheduled counts from its time on, for as long as a leader that is Patroni's may need to
    carry it out: haagent's own puts one for now in its place."""
    request = cluster.failover
    if request is None or request.due_at is None:
        return request
    end = request.due_at + WINDOW_LOOPS * obs.settings.loop_wait_s + obs.settings.ttl_s
    return request if request.due_at <= obs.wall <= end and not obs.settings.pause else None


def in_time(obs: Observation, decision: Decision) -> Decision:
    """The decision, with the next look no later than what was scheduled for the time until the usual one."""
    usual_s = obs.settings.loop_wait_s if decision.again_in_s is None else decision.again_in_s
    left_s = [at - obs.wall for at in _moments(obs) if 0.0 < at - obs.wall <= usual_s]
    return replace(decision, again_in_s=min(left_s)) if left_s else decision


def _moments(obs: Observation) -> tuple[float, ...]:
    if obs.settings.pause:
        return ()
    restart = obs.scheduled_restart
    request = obs.cluster.failover if not isinstance(obs.cluster, Unavailable) else None
    known = (restart.due_at if restart else None, request.due_at if request else None)
    return tuple(at for at in known if at is not None)
