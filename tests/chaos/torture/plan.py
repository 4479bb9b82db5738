"""Rounds drawn from a seed. A seed repeats the plan; which millisecond a fault meets is the machine's.

Theory. Not every combination is survivable, and the harness must know which: a fence needs somebody who can
act. On one node that is the guardian; the agent, when the guardian is frozen or dead; the kernel, when the
guardian is dead and the postmaster can take its signal. With none of them left (agent and guardian frozen,
the whole host frozen) only a hardware watchdog helps: the control shows that, the draw leaves it out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.torture import faults
from tests.chaos.torture.faults import Effect, Fault

#: Between two faults of a round, seconds.
_BETWEEN_S = (0.0, 0.05, 0.5, 2.0)
#: How long the last fault lasts, in leases.
_LASTS_TTL = (0.0, 0.3, 1.0, 1.5, 2.0)
#: A round of its own kind is drawn this often; of those, this share are switchovers.
_PLANNED_SHARE = 0.15
_SWITCHOVER_SHARE = 0.5
_ON_LEADER_SHARE = 0.75


@dataclass(frozen=True)
class Step:
    """One fault, on the round's first leader or its standby number `standby`, and the wait after it."""

    fault: Fault
    standby: int | None
    then_wait_s: float

    def __str__(self) -> str:
        if self.fault.role == "etcd":
            return self.fault.name
        return f"{self.fault.name} ({'leader' if self.standby is None else 'standby'})"


@dataclass(frozen=True)
class Round:
    steps: tuple[Step, ...]

    @property
    def planned(self) -> bool:
        """Nothing but planned operations: no acknowledged write may be lost."""
        return all(step.fault.planned for step in self.steps)

    def __str__(self) -> str:
        return ", ".join(str(step) for step in self.steps)


def fenced(effects: Iterable[Effect]) -> bool:
    """Whether somebody on a node can still stop its PostgreSQL when all these have happened to it."""
    have = set(effects)
    guardian = not have & {"guardian dead", "guardian frozen"}
    agent = not have & {"agent dead", "agent frozen"}
    # A dead guardian may have had a successor since, which the second fault met.
    kernel = "guardian dead" in have and not have & {"guardian frozen", "postgres frozen"}
    return guardian or agent or kernel


def draw(dice: random.Random, ttl_s: float, standbys: int, *, disks: bool = True) -> Round:
    """One to three faults that leave every node's fence somebody to act; sometimes a lone planned operation.

    disks: the nodes have disks of their own, which can hang and fill up.
    """
    if dice.random() < _PLANNED_SHARE:
        return _planned(dice, standbys)
    choice = [fault for fault in faults.ALL.values() if not fault.planned and (disks or not fault.disk)]
    effects: dict[int | None, set[Effect]] = {}
    steps: list[Step] = []
    for _ in range(dice.choice((1, 1, 2, 2, 3))):
        fault = dice.choice(choice)
        leader = fault.role in ("leader", "etcd") or (
            fault.role == "any" and dice.random() < _ON_LEADER_SHARE
        )
        where = None if leader else dice.randrange(standbys)
        if not fenced(effects.get(where, set()) | fault.effects):
            continue
        effects.setdefault(where, set()).update(fault.effects)
        steps.append(Step(fault, where, dice.choice(_BETWEEN_S)))
    last = steps[-1]
    steps[-1] = Step(last.fault, last.standby, dice.choice(_LASTS_TTL) * ttl_s)
    return Round(tuple(steps))


def _planned(dice: random.Random, standbys: int) -> Round:
    """Half of the time the one operation whose promise is hardest to keep."""
    others = [fault for fault in faults.ALL.values() if fault.planned and fault.name != "switchover"]
    if dice.random() < _SWITCHOVER_SHARE:
        return single("switchover", lasts_s=0.0)
    fault = dice.choice(others)
    leader = fault.role == "leader" or dice.random() < _ON_LEADER_SHARE
    return single(fault.name, lasts_s=0.0, standby=None if leader else dice.randrange(standbys))


def single(*names: str, lasts_s: float, standby: int | None = None) -> Round:
    """A directed round: these faults at once, by name."""
    *first, last = (faults.ALL[name] for name in names)
    return Round((*(Step(fault, standby, 0.0) for fault in first), Step(last, standby, lasts_s)))
