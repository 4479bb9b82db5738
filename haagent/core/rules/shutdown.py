"""SIGTERM or SIGINT: stop PostgreSQL, then give the key away, then end (contract 2.12)."""

from __future__ import annotations

from haagent.core.actions import Action, Exit, MarkUnfenced, SetFencing, StopInstance
from haagent.core.model import Decision, Memory, Observation
from haagent.core.rules import common
from haagent.core.rules.leading import last_position, release


def stopping(obs: Observation, memory: Memory) -> Decision | None:
    """Rule 2: the key goes only after PostgreSQL is proven stopped; rule 9: paused means hands off."""
    if not obs.stopping:
        return None
    if obs.settings.pause:
        return _leave_alone(obs, memory)
    if obs.instance.alive:
        return Decision(
            "stop.postgres",
            "shutting down",
            memory,
            (StopInstance("fast", "shutdown", common.SENDERS_GRACE_S, before_stop=True),),
        )
    if common.owns_key(obs):
        actions = release(obs, last_position(obs))
        return Decision(
            "stop.release", "PostgreSQL is stopped: releasing the leader key", memory, actions, 0.1
        )
    return Decision("stop.exit", "stopped", memory, (Exit(0, "stopped"),))


def _leave_alone(obs: Observation, memory: Memory) -> Decision:
    """An armed fence would stop the server once the lease runs out, with no agent to renew it."""
    armed = obs.lease.epoch is not None and not obs.lease.disarmed and obs.lease.guardian_ok
    disarm: tuple[Action, ...] = (MarkUnfenced(True), SetFencing(False)) if armed else ()
    reason = "paused: PostgreSQL and the key are left alone"
    return Decision("stop.paused", reason, memory, (*disarm, Exit(0, "paused")))
