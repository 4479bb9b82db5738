"""When does a node promote, demote, start, stop, clone or give up the key? Here, in this order.

`decide` asks the rules below from top to bottom; the first that answers decides. Each rule lives in the
file of its situation (`haagent/core/rules/`) and returns a `Decision` with a stable id and the facts that
led to it, or None. Nothing in here reads a clock, draws a number or has an effect.

    a node promotes    rules/leading.py `in_recovery`, after rules/race.py `standby_races` took the key,
                       both by the checks of `haagent/core/candidate.py`
    a node demotes     rules/follower.py `primary_while_other_leads`, rules/leading.py `lease_not_valid`,
                       rules/outage.py, rules/switchover.py, rules/vitality.py; and the guardian at its
                       deadline, undecided
"""

from __future__ import annotations

from collections.abc import Callable

from haagent.core.memory import absorb
from haagent.core.model import Decision, Memory, Observation
from haagent.core.rejoin import recorded
from haagent.core.rules import (
    follower,
    guards,
    leading,
    outage,
    pause,
    race,
    requests,
    shutdown,
    standby_cluster,
    switchover,
    vitality,
)
from haagent.core.schedule import in_time

Rule = Callable[[Observation, Memory], Decision | None]

RULES: tuple[Rule, ...] = (
    requests.about_schedule,
    guards.foreign_cluster,
    guards.replica_without_cluster,
    guards.job_running,
    guards.not_proven_stopped,
    outage.dcs_unreachable,
    shutdown.stopping,
    guards.leader_unreadable,
    leading.being_promoted,
    pause.paused,
    leading.lease_not_valid,
    requests.operator_request,
    requests.scheduled_restart,
    # the key is ours
    standby_cluster.holder,
    vitality.unhealthy,
    switchover.on_the_primary,
    leading.stopped,
    leading.in_recovery,
    leading.not_answering,
    leading.steady,
    # nobody leads
    race.bootstrap,
    race.primary_without_key,
    race.stopped_without_leader,
    race.standby_races,
    # somebody else leads
    follower.name_taken,
    follower.primary_while_other_leads,
    follower.no_data,
    standby_cluster.member,
    follower.stopped,
    follower.not_answering,
    follower.wrong_upstream,
    follower.diverged,
    follower.ask_while_not_streaming,
    follower.lacks_slots,
    follower.steady,
)


def decide(obs: Observation, memory: Memory) -> Decision:
    """The one decision for this observation. Total: some rule always answers."""
    memory = absorb(obs, memory)
    for rule in RULES:
        decision = rule(obs, memory)
        if decision is not None:
            return recorded(obs, in_time(obs, decision))
    return Decision("none", "no rule applies: waiting", memory, heartbeat=True)
