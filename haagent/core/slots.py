"""Physical member slots: which ones should exist here, and how far they may move. Pure. Contract 6.2.

Every member keeps a slot for every other member it could serve, so that a standby finds its slot on
whoever leads next *before* it asks. On a standby these slots are inactive; they follow the positions
the leader publishes in `status.slots`, never beyond what this standby replayed.

A slot is dropped only when it once belonged to a member of this cluster that has been gone for
`member_slots_ttl`; slots of unknown origin are an administrator's and are left alone.
"""

from __future__ import annotations

from haagent.core.actions import SyncSlots
from haagent.core.model import Memory, Observation, Unavailable
from postgres_ctl.facts import InstanceSample, Lsn, Slot, slot_name


def wanted_slots(obs: Observation, memory: Memory) -> frozenset[str]:
    """Slots that should exist here: of all other members, and of those gone only a while ago."""
    if isinstance(obs.cluster, Unavailable) or not obs.settings.use_slots:
        return frozenset()
    members = {slot_name(m.name) for m in obs.cluster.members if not m.tags.nostream}
    return frozenset((members | retained(obs, memory)) - {slot_name(obs.me.name)})


def retained(obs: Observation, memory: Memory) -> frozenset[str]:
    """Slots of members seen less than `member_slots_ttl` ago; the leader publishes them."""
    kept_s = obs.settings.member_slots_ttl_s
    return frozenset(name for name, at in memory.slots_seen.items() if obs.now < at + kept_s)


def plan(obs: Observation, memory: Memory) -> SyncSlots | None:
    """What to change in the slots of the running instance; None when all is well."""
    sample = obs.instance.sample
    if not isinstance(sample, InstanceSample) or isinstance(obs.cluster, Unavailable):
        return None
    want = wanted_slots(obs, memory)
    have = {s.name: s for s in sample.slots if s.type == "physical" and not s.temporary}
    lost = {n for n in want & set(have) if _useless(have[n])}
    create = tuple(sorted((want - set(have)) | lost))
    known = frozenset(memory.slots_seen)
    gone = {n for n in have if n not in want and n in known and not have[n].active}
    drop = (
        tuple(sorted(gone - {slot_name(obs.me.name)} | lost))
        if not obs.settings.pause
        else tuple(sorted(lost))
    )
    advance = _advances(obs, have, want - lost) if sample.in_recovery else {}
    return SyncSlots(create, drop, advance) if create or drop or advance else None


def _useless(slot: Slot) -> bool:
    """It keeps no WAL any more, or holds back vacuum for nobody: make it anew."""
    return not slot.active and (slot.restart_lsn is None or slot.wal_status == "lost" or slot.xmin_set)


def _advances(obs: Observation, have: dict[str, Slot], want: frozenset[str]) -> dict[str, Lsn]:
    assert not isinstance(obs.cluster, Unavailable)
    assert isinstance(obs.instance.sample, InstanceSample)
    published = (obs.cluster.status.slots if obs.cluster.status else None) or {}
    limit = obs.instance.sample.replay_lsn or Lsn(0)
    moves = {}
    for name in want & set(have) & set(published):
        slot, target = have[name], min(Lsn(published[name]), limit)
        if not slot.active and slot.restart_lsn is not None and target > slot.restart_lsn:
            moves[name] = target
    return moves
