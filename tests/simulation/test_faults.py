"""Faults that wait for their moment, or spare what nobody could bring back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.engine import START_S
from tests.simulation.plan import Fault, Plan, draw_plan
from tests.simulation.store import SQUATTER
from tests.simulation.world import World

NONSENSE = SQUATTER.decode("utf-8", "replace")


@pytest.fixture
def world() -> Iterator[World]:
    """Three members; pg0 leads after ten seconds."""
    timings = {"ttl": 10, "loop_wait": 1, "retry_timeout": 3}
    made = World(Plan(1, dynamic={**draw_plan(1).dynamic, **timings}))
    made.engine.run(START_S + 10.0)
    assert made.store.leader() is not None
    yield made
    made.close()


def strike(world: World, kind: str, node: str = "", seconds: float = 0.0, **fields: object) -> None:
    world.strike(Fault(world.engine.now, kind, node, duration=seconds, **fields))  # type: ignore[arg-type]


def run(world: World, seconds: float) -> None:
    world.engine.run(world.engine.now + seconds)


def test_nonsense_over_nonsense_leaves_what_was_there_before(world: World) -> None:
    before = world.store.raw_get("config")
    strike(world, "garbage", "config", 5.0, detail="{")
    strike(world, "garbage", "config", 9.0, detail="null")
    run(world, 10.0)
    assert world.store.raw_get("config") == before


def test_nonsense_waits_for_the_leader_key_to_be_free(world: World) -> None:
    strike(world, "squat-leader", seconds=30.0)
    run(world, 1.0)
    assert world.store.raw_get("leader") != NONSENSE
    strike(world, "power-cut", "leader", 60.0)
    run(world, 15.0)
    assert world.store.raw_get("leader") == NONSENSE
    run(world, 20.0)
    assert world.store.raw_get("leader") != NONSENSE


def test_the_volume_of_the_leader_is_lost_and_another_one_leads(world: World) -> None:
    holder = world.store.leader()
    assert holder is not None
    strike(world, "lose-data", "leader", 20.0, value=1.0)
    assert world.nodes[holder.name].host.dd.state == "foreign"
    run(world, 15.0)
    assert world.store.leader() is not None
    run(world, 60.0)
    assert not world.not_whole()


def test_the_last_copy_is_never_lost(world: World) -> None:
    for name in world.nodes:
        strike(world, "lose-data", name, 1000.0)
    assert [node.host.dd.state for node in world.nodes.values()].count("valid") == 1
