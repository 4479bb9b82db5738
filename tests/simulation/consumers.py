"""Consumers of permanent slots: each goes to whoever leads, takes what is new, and confirms it.

`slots.never-ahead`: where a consumer comes to a leader, its slot there has not let go of what the consumer
has not got. A slot begins where it was made, on whoever led with it: only what it was moved by since counts.
`liveness.slots-kept`: once all faults are over, every member that may lead has all permanent slots, and none
has one that nobody wants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dcs import codec
from tests.simulation.plan import may_lead
from tests.simulation.wal import Record, SlotState, in_common

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.postgres import Server
    from tests.simulation.world import World

#: Made by somebody by hand, and in nobody's configuration.
STRANGER = "stranger"


class Consumer:
    """Of one slot."""

    def __init__(self, world: World, slot: str) -> None:
        self._world, self._slot = world, slot
        self._rng = world.engine.rng(f"consumer {slot}")
        #: What it has: the first so many of these records.
        self._records: list[Record] = []
        self._count = 0
        self._again()

    def _again(self) -> None:
        self._world.engine.after(self._rng.random() * 4 * self._world.plan.pace, self._tick)

    def _tick(self) -> None:
        self._again()
        holder = self._world.store.leader()
        server = self._world.server_of(holder.name) if holder is not None else None
        if server is None or not server.writable_now or server.door() != "open":
            return
        network = self._world.network
        endpoint = f"pg:{server.member}"
        slot = server.dd.slots.get(self._slot)
        if slot is not None and network.up("client", endpoint) and network.up(endpoint, "client"):
            self._take(server, slot)

    def _take(self, server: Server, slot: SlotState) -> None:
        dd, at = server.dd, slot.restart or 0
        has = in_common(self._records[: self._count], dd.records)
        begun = max(slot.made_at, self._world.invariants.slots_begun.get(self._slot, 0))
        # A disk that lost what it had flushed has lost what the slot was about.
        if at > max(has, begun) and not self._world.node(server.member).lost_wal:
            text = f"{self._slot} on {server.member} is at {at}, its consumer has {has}"
            self._world.invariants.violated("slots.never-ahead", text)
        self._records, self._count = dd.records, dd.durable
        slot.restart = max(at, dd.durable)
        server.dirty()


def begin(world: World) -> None:
    """Consumers for the slots of the plan, and a slot that nobody wants."""
    for name in _permanent(world.plan.dynamic):
        Consumer(world, name)
    if _permanent(world.plan.dynamic) and not world.plan.fresh:
        first = next(iter(world.nodes.values()))
        first.host.dd.slots[STRANGER] = SlotState(1)


def not_kept(world: World) -> str:
    """What is wrong with the slots of a cluster that is whole; "" when nothing is."""
    try:
        data = json.loads(world.store.raw_get(codec.CONFIG) or "{}")
    except ValueError:
        return ""
    permanent = _permanent(data) if isinstance(data, dict) else {}
    if not permanent or not data.get("postgresql", {}).get("use_slots", True):
        return ""
    if data.get("standby_cluster"):
        permanent = {name: slot for name, slot in permanent.items() if slot.get("type") == "physical"}
    wrong = (_wrong_on(world, node, set(permanent)) for node in world.nodes.values() if not node.stays_out)
    return next((text for text in wrong if text), "")


def _wrong_on(world: World, node: Node, permanent: set[str]) -> str:
    slots = set(node.host.dd.slots)
    leads = node.name == getattr(world.store.leader(), "name", None)
    lacks = permanent - slots if leads or may_lead(node.tags) else set()
    more = slots - permanent - set(world.nodes)
    if lacks or more:
        return f"slots-kept: {node.name} lacks {sorted(lacks)}, should not have {sorted(more)}"
    return ""


def _permanent(dynamic: Mapping[str, Any]) -> Mapping[str, Any]:
    found = dynamic.get("slots")
    return found if isinstance(found, dict) else {}
