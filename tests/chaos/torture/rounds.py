"""One round: writers on every server, faults, healing, judgement.

Writers start before the first fault and stop after recovery, so their kept sessions are from before it. What
they saw is judged by `checker`. The table lives on from round to round, and what earlier rounds left in it
must stay there.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from tests.chaos.torture import checker
from tests.chaos.torture.checker import Facts, Limits, Violation
from tests.chaos.torture.plan import Round, Step
from tests.chaos.torture.stage import Stage
from tests.support.cluster import Node
from tests.support.wait import DEADLINE_S, pause, wait_for
from tests.support.writers import TABLE, Evidence, Writers

#: Acknowledged writes of each kind of client before the first fault and after recovery.
_WARM = {"any": 20, "old": 5, "new": 5, "open": 1, "call": 5}


@dataclass(frozen=True)
class Result:
    """What came of a round."""

    plan: Round
    violations: tuple[Violation, ...]
    acknowledged: int
    #: Not counted (0) when the cluster did not recover: nobody can say then what survives.
    lost_rows: int
    lost_bytes: int
    double_acknowledged: int
    #: Longest time without an acknowledgement for a client that may use any server, seconds.
    gap_s: float
    #: From the last fault healed to one primary with all others streaming, seconds; None: never.
    recovery_s: float | None
    #: (server, timeline) in the order of their first acknowledged write.
    tenures: tuple[tuple[str, int], ...]


class Runner:
    """Rounds on one stage, one after the other."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self.stage = stage
        self._dice = dice
        self._kept: frozenset[int] = frozenset()

    def run(self, plan: Round, until: Callable[[Writers, Node], None] | None = None) -> Result:
        """One round on a healthy stage. `until(writers, first leader)` may prolong the faults."""
        stage = self.stage
        with Writers(stage.cluster, sessions=True) as writers:
            for client, count in _WARM.items():
                writers.wait_acknowledged(count, client)
            began = time.monotonic()
            leader = stage.cluster.leader()
            self._break(plan, leader)
            if until is not None:
                until(writers, leader)
            healed_at = stage.heal()
            recovered_at = stage.wait_recovered()
            if recovered_at is not None:
                writers.wait_acknowledged(_WARM["any"], "any", DEADLINE_S)
        return self._judge(plan, writers.evidence(), began, healed_at, recovered_at)

    def _break(self, plan: Round, leader: Node) -> None:
        standbys = [node for node in self.stage.nodes if node is not leader]
        for step in plan.steps:
            step.fault.apply(self.stage, _target(step, leader, standbys), self._dice)
            pause(step.then_wait_s)

    def _limits(self, plan: Round) -> Limits:
        stage = self.stage
        lag = None if plan.planned or stage.synchronous else stage.maximum_lag_bytes
        return Limits(stage.recovery_s, lag, stage.status_age_s)

    def _judge(
        self, plan: Round, evidence: Evidence, began: float, healed_at: float, recovered_at: float | None
    ) -> Result:
        held = self._held() if recovered_at is not None else evidence.acknowledged | self._kept
        reports = self.stage.reports() if recovered_at is not None else None
        facts = Facts(evidence.writes, held, healed_at, recovered_at, reports)
        limits = self._limits(plan)
        violations = checker.check(facts, limits)
        gone = self._kept - held
        if gone:
            violations.append(Violation("lost", len(gone), f"rows of earlier rounds: {sorted(gone)[:5]}"))
        self._kept = held
        losses = checker.losses(facts, limits.status_age_s)
        return Result(
            plan=plan,
            violations=tuple(violations),
            acknowledged=len(evidence.writes),
            lost_rows=sum(loss.rows for loss in losses),
            lost_bytes=max((loss.size_bytes for loss in losses), default=0),
            double_acknowledged=checker.double_acknowledgements(evidence.writes),
            gap_s=evidence.write_gap_s("any", began - 1),
            recovery_s=None if recovered_at is None else recovered_at - healed_at,
            tenures=tuple(evidence.tenures()),
        )

    def _held(self) -> frozenset[int]:
        leader = self.stage.wait_caught_up()
        with contextlib.closing(psycopg.connect(leader.dsn, connect_timeout=10)) as session:
            return frozenset(row[0] for row in session.execute(f"SELECT id FROM {TABLE}".encode()))


def _target(step: Step, leader: Node, standbys: list[Node]) -> Node:
    return leader if step.standby is None else standbys[step.standby % len(standbys)]


def wait_successor(writers: Writers, old: Node) -> None:
    """Prolong the faults until another server than `old` acknowledges writes."""
    others = [node for node in old.cluster.nodes if node is not old]
    before = {node: writers.count(f"new:{node.name}") for node in others}

    def written() -> bool:
        return any(writers.count(f"new:{node.name}") >= before[node] + _WARM["new"] for node in others)

    wait_for(written, DEADLINE_S, f"a successor of {old.name}")


def wait_two_writable(writers: Writers, old: Node) -> None:
    """Until two servers acknowledge writes beside each other. Only without a fence."""
    wait_successor(writers, old)
    writers.wait_acknowledged(_WARM["old"], f"old:{old.name}")
