"""The draw of chaos rounds: repeatable, and never what only a watchdog could survive."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from tests.chaos.torture import faults, plan
from tests.chaos.torture.faults import Effect

ROUNDS = 3000


def rounds(seed: int = 1) -> list[plan.Round]:
    dice = random.Random(seed)
    return [plan.draw(dice, ttl_s=5, standbys=2) for _ in range(ROUNDS)]


@pytest.mark.parametrize(
    ("effects", "fenced"),
    [
        ((), True),
        (("agent dead",), True),
        (("agent frozen", "postgres frozen"), True),
        (("guardian frozen",), True),
        (("guardian dead", "postgres frozen"), True),
        (("agent dead", "guardian dead"), True),
        (("agent frozen", "guardian frozen"), False),
        (("agent dead", "guardian frozen"), False),
        (("guardian dead", "guardian frozen", "agent frozen"), False),
        (("agent dead", "guardian dead", "postgres frozen"), False),
        (("agent frozen", "guardian dead", "postgres frozen"), False),
        (get_args(Effect), False),
    ],
)
def test_a_fence_needs_guardian_agent_or_the_kernel(effects: tuple[Effect, ...], fenced: bool) -> None:
    assert plan.fenced(effects) is fenced


def test_every_fault_alone_leaves_a_fence() -> None:
    assert all(plan.fenced(fault.effects) for fault in faults.ALL.values())


def test_drawn_rounds_leave_each_node_a_fence() -> None:
    for drawn in rounds():
        for where in {step.standby for step in drawn.steps}:
            effects = [e for step in drawn.steps if step.standby == where for e in step.fault.effects]
            assert plan.fenced(effects), drawn


def test_a_seed_repeats_its_rounds_and_another_one_differs() -> None:
    assert rounds(seed=5) == rounds(seed=5)
    assert rounds(seed=5) != rounds(seed=6)


def test_every_fault_is_drawn_and_only_where_it_can_act() -> None:
    steps = [step for drawn in rounds() for step in drawn.steps]
    assert {step.fault.name for step in steps} == set(faults.ALL)
    roles = {(step.fault.role, step.standby is None) for step in steps}
    everywhere = {("any", True), ("any", False)}
    assert roles == everywhere | {("leader", True), ("standby", False), ("etcd", True)}


def test_without_disks_nothing_is_done_to_them() -> None:
    dice = random.Random(1)
    drawn = [plan.draw(dice, ttl_s=5, standbys=2, disks=False) for _ in range(ROUNDS)]
    assert not any(step.fault.disk for a_round in drawn for step in a_round.steps)


def test_a_round_promises_to_lose_nothing_only_when_all_of_it_was_planned() -> None:
    assert plan.single("switchover", lasts_s=0).planned
    assert not plan.single("switchover", "kill agent", lasts_s=0).planned
    assert {drawn.planned for drawn in rounds()} == {True, False}
    assert all(len(drawn.steps) == 1 for drawn in rounds() if drawn.planned)
