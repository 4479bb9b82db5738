"""What is wrong with the slots as they are configured, for the log: one line each. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from haagent.core.model import Memory, Observation, Unavailable
from haagent.core.slot_config import PHYSICAL
from haagent.core.slots import member_slots, wanted
from postgres_ctl.facts import InstanceSample, slot_name

#: Where the dynamic configuration does not say (contract 5.4).
_DEFAULTS = {"max_replication_slots": "10", "wal_level": "replica"}


def complaints(obs: Observation, memory: Memory) -> Iterator[str]:
    """All that is seen now; who logs them says each once."""
    if isinstance(obs.cluster, Unavailable) or not obs.settings.use_slots:
        return
    yield from _shared_names(obs)
    of_members = member_slots(obs, obs.cluster)
    logical = [s for s in obs.settings.permanent_slots.values() if s.type != PHYSICAL]
    for slot in logical:
        if slot.name in of_members or slot.name == slot_name(obs.me.name):
            yield f"permanent logical slot {slot.name} has the name of a member's slot: it is not kept"
    if logical and _parameter(obs, "wal_level") != "logical":
        yield "permanent logical slots need postgresql.parameters.wal_level logical: they cannot be made"
    yield from _too_few(obs, memory)


def _shared_names(obs: Observation) -> Iterator[str]:
    assert not isinstance(obs.cluster, Unavailable)
    members = defaultdict(list)
    for member in obs.cluster.members:
        members[slot_name(member.name)].append(member.name)
    for slot, names in sorted(members.items()):
        if len(names) > 1:
            yield f"members share the replication slot {slot}, so only one can use it: {', '.join(names)}"


def _too_few(obs: Observation, memory: Memory) -> Iterator[str]:
    limit = _parameter(obs, "max_replication_slots")
    needed = {*wanted(obs, memory)}
    if isinstance(obs.instance.sample, InstanceSample):
        needed |= {s.name for s in obs.instance.sample.slots}
    if limit.isdigit() and len(needed) > int(limit):
        yield f"postgresql.parameters.max_replication_slots {limit} is too few: {len(needed)} are needed"


def _parameter(obs: Observation, name: str) -> str:
    return str(obs.settings.parameters.get(name, _DEFAULTS[name]))
