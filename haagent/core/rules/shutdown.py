"""SIGTERM or SIGINT: stop PostgreSQL, then give the key away, then end (contract 2.12)."""

from __future__ import annotations

from haagent.core.actions import Exit, ReleaseLeader, StopInstance
from haagent.core.model import Decision, Memory, Observation
from haagent.core.rules import common
from postgres_ctl.facts import ControlData


def stopping(obs: Observation, memory: Memory) -> Decision | None:
    """Rule 2: the key goes only after PostgreSQL is proven stopped; rule 9: paused means hands off."""
    if not obs.stopping:
        return None
    if obs.settings.pause:
        return Decision(
            "stop.paused", "paused: PostgreSQL and the key are left alone", memory, (Exit(0, "paused"),)
        )
    if obs.instance.alive:
        return Decision("stop.postgres", "shutting down", memory, (StopInstance("fast", "shutdown"),))
    if common.owns_key(obs):
        control = obs.instance.control
        clean = isinstance(control, ControlData) and control.shut_down_cleanly
        optime = control.checkpoint_lsn if clean and isinstance(control, ControlData) else None
        action = ReleaseLeader(common.epoch_of(obs), optime)
        return Decision(
            "stop.release", "PostgreSQL is stopped: releasing the leader key", memory, (action,), 0.1
        )
    return Decision("stop.exit", "stopped", memory, (Exit(0, "stopped"),))
