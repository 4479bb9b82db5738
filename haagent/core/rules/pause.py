"""Paused means hands off (rule 9, contract 2.13): no automatic promote, demote, start or stop."""

from __future__ import annotations

from haagent.core.actions import (
    ClearFailover,
    MarkUnfenced,
    PutInitialConfig,
    PutInitialize,
    ReleaseLeader,
    SetFencing,
    TakeLeader,
)
from haagent.core.model import Decision, Memory, Observation, unreadable
from haagent.core.rules import common, leading, standby_cluster, sync
from haagent.core.rules.requests import operator_request, restart_is_wanted, scheduled_restart
from haagent.core.rules.switchover import on_the_primary
from haagent.core.schedule import request_in_force


def paused(obs: Observation, memory: Memory) -> Decision | None:
    """Only what an operator asked for by name is done; the key is kept by a running primary."""
    if not obs.settings.pause:
        return _armed_again(obs, memory)
    if _needs_the_fence(obs, memory):
        if obs.lease.disarmed:
            reason = "PAUSE: fencing is on while what was asked for is done"
            return Decision("pause.arm-for-request", reason, memory, (SetFencing(True),), 0.0)
    elif not obs.lease.disarmed and obs.lease.epoch is not None:
        actions = (MarkUnfenced(True), SetFencing(False))
        return Decision("pause.disarm", "PAUSE: fencing is off", memory, actions)
    asked = operator_request(obs, memory) or scheduled_restart(obs, memory)
    if asked is not None:
        return asked
    if common.owns_key(obs):
        return _leading(obs, memory)
    return _not_leading(obs, memory)


def _needs_the_fence(obs: Observation, memory: Memory) -> bool:
    """The guardian starts and promotes a server only under an armed fence, in a pause as well."""
    if not common.owns_key(obs):
        return False
    if standby_cluster.is_holder(obs):
        return True  # it stops no standby there, and nobody has to be told that it is off
    restart = _is_to_restart(obs) and obs.instance.serves_as_primary
    request = request_in_force(obs, common.view(obs))
    named = request.candidate if request is not None else None
    hand_over = named not in (None, obs.me.name) and obs.instance.serves_as_primary
    return restart or hand_over or memory.handover is not None or _is_to_promote(obs)


def _is_to_restart(obs: Observation) -> bool:
    """An operator asked for a restart, and its conditions hold."""
    return (
        obs.request is not None and obs.request.kind == "restart" and restart_is_wanted(obs, obs.request.wish)
    )


def _is_to_promote(obs: Observation) -> bool:
    """An operator named this standby."""
    request = request_in_force(obs, common.view(obs))
    return request is not None and request.candidate == obs.me.name and obs.instance.serves_as_standby


def _ends_a_switchover(obs: Observation, memory: Memory) -> bool:
    """Stopped for a switchover that somebody asked for, with data that needs no mending."""
    down = common.other_leads(obs) and obs.instance.stopped and memory.clean_release
    return down and common.has_data(obs) and not memory.rejoin.diverged


def _is_built_anew(obs: Observation, memory: Memory) -> bool:
    """An operator had it reinitialized: that ends with a standby that serves (contract 2.13)."""
    return memory.reinitializing and common.other_leads(obs) and not obs.instance.alive


def _armed_again(obs: Observation, memory: Memory) -> Decision | None:
    if obs.lease.disarmed and obs.lease.epoch is not None:
        return Decision("pause.arm", "resumed: fencing is on again", memory, (SetFencing(True),), 0.0)
    return None


def _leading(obs: Observation, memory: Memory) -> Decision | None:
    request = request_in_force(obs, common.view(obs))
    if request is not None and request.candidate is None:
        text = "Switchover is possible only to a specific candidate in a paused state"
        return Decision("pause.clear", text, memory, (ClearFailover(request.version, text, 400),))
    if standby_cluster.is_holder(obs):
        kept = "PAUSE: the key of the standby cluster is kept"
        return standby_cluster.paused(obs, memory) or common.wait("pause.standby-leader", kept, memory)
    manual = on_the_primary(obs, memory)
    if manual is not None:
        return manual
    if obs.instance.serves_as_primary:
        actions = leading.maintenance(obs, memory)
        line = f"PAUSE: no action. I am ({obs.me.name}), the leader with the lock"
        return sync.keep_in_line(obs, Decision("pause.leader", line, memory, actions, heartbeat=True))
    if _is_to_promote(obs):
        return None  # by the rules of the leader
    reason = "PAUSE: released leader key voluntarily as PostgreSQL is not running as primary here"
    return Decision("pause.release", reason, memory, (ReleaseLeader(common.epoch_of(obs)),))


def _not_leading(obs: Observation, memory: Memory) -> Decision | None:
    cluster, mine = common.view(obs), obs.instance.system_identifier
    if cluster.leader is None and cluster.config is None and not unreadable(cluster, "config"):
        # Without it there would be nothing to resume by; a leader puts it back as part of its maintenance.
        reason = "PAUSE: somebody deleted the dynamic configuration: the last one known is put back"
        return Decision("pause.config", reason, memory, (PutInitialConfig(),), 0.0)
    if cluster.leader is None and _is_to_promote(obs):
        return None  # by the rules of the race
    if _ends_a_switchover(obs, memory) or _is_built_anew(obs, memory):
        return None  # it starts as a standby
    if cluster.leader is None and obs.instance.serves_as_primary and mine is not None:
        if not cluster.initialize:
            return Decision("pause.initialize", "PAUSE: joining", memory, (PutInitialize(mine, True),), 0.0)
        if cluster.initialize == mine:
            reason = "PAUSE: acquired session lock as a leader"
            return Decision("pause.take", reason, memory, (TakeLeader(),), line=reason)
    who = cluster.leader.name if cluster.leader is not None else "nobody"
    line = f"PAUSE: no action. I am ({obs.me.name}), a secondary, and following a leader ({who})"
    return common.wait("pause.other", line, memory)
