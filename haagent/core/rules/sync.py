"""Synchronous modes among the rules: what the primary keeps in line, and what a promotion waits for."""

from __future__ import annotations

from dataclasses import replace

from haagent.core.actions import SetSyncNames
from haagent.core.model import Decision, Memory, Observation, evolve
from haagent.core.sync_leader import Step, before_promotion, next_step


def keep_in_line(obs: Observation, decision: Decision) -> Decision:
    """A healthy primary's decision, with the next write of its synchronous mode behind all others."""
    step = next_step(obs, decision.memory)
    if step is None:
        return decision
    if step.action is None:
        return replace(decision, again_in_s=step.again_in_s)
    return replace(
        decision,
        rule="leader.sync",
        reason=step.reason,
        line=step.reason,
        memory=_told(obs, decision.memory, step),
        actions=(*decision.actions, step.action),
        again_in_s=step.again_in_s,
        heartbeat=False,
    )


def before_the_promotion(obs: Observation, memory: Memory) -> Decision | None:
    """The key is ours and we may lead: `/sync` and the setting first (contract 1.10)."""
    step = before_promotion(obs, memory)
    if step is None:
        return None
    if step.action is None:
        return Decision("promote.sync-wait", step.reason, memory, again_in_s=step.again_in_s, heartbeat=True)
    return Decision("promote.sync", step.reason, _told(obs, memory, step), (step.action,), step.again_in_s)


def _told(obs: Observation, memory: Memory, step: Step) -> Memory:
    if not isinstance(step.action, SetSyncNames):
        return memory
    return evolve(memory, sync=replace(memory.sync, set_at=obs.now))
