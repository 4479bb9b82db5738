"""Physical member slots: which ones should exist here, and how far they may move. Pure. Contract 6.2.

Every member keeps a slot for every other member it could serve, so that a standby finds its slot on
whoever leads next *before* it asks. On a standby these slots are inactive; they follow the positions
the leader publishes in `status.slots`, never beyond what this standby replayed.

A slot is dropped only when it once belonged to a member of this cluster that has been gone for
`member_slots_ttl`; slots of unknown origin are an administrator's and are left alone.
"""

from __future__ import annotations

from dcs.records import Member
from haagent.core.actions import SyncSlots
from haagent.core.cascade import cascade_source
from haagent.core.model import Memory, Observation, Unavailable
from postgres_ctl.facts import InstanceSample, Lsn, Slot, slot_name


def _may_serve(obs: Observation, member: Member) -> bool:
    """It may once stream from here: one that never leads serves those only that name it."""
    if member.tags.nostream:
        return False
    only_named = obs.me.tags.nofailover and not obs.instance.serves_as_primary
    return member.tags.replicatefrom == obs.me.name or not only_named


def wanted_slots(obs: Observation, memory: Memory) -> frozenset[str]:
    """Slots that should exist here: of all other members, and of those gone only a while ago."""
    if isinstance(obs.cluster, Unavailable) or not obs.settings.use_slots:
        return frozenset()
    served = {slot_name(m.name) for m in obs.cluster.members if _may_serve(obs, m)}
    others = {slot_name(m.name) for m in obs.cluster.members} - served
    return frozenset((served | retained(obs, memory) - others) - {slot_name(obs.me.name)})


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
    moving = {n: s for n, s in have.items() if n in want - lost and not s.active}
    advance = _advances(obs, moving) if sample.in_recovery else _of_cascades(obs, sample, moving)
    return SyncSlots(create, drop, advance) if create or drop or advance else None


def _useless(slot: Slot) -> bool:
    """It keeps no WAL any more, or holds back vacuum for nobody: make it anew."""
    return not slot.active and (slot.restart_lsn is None or slot.wal_status == "lost" or slot.xmin_set)


def _advances(obs: Observation, have: dict[str, Slot]) -> dict[str, Lsn]:
    """On a standby: as far as the leader has published, and this standby has replayed."""
    assert not isinstance(obs.cluster, Unavailable)
    assert isinstance(obs.instance.sample, InstanceSample)
    published = (obs.cluster.status.slots if obs.cluster.status else None) or {}
    limit = obs.instance.sample.replay_lsn or Lsn(0)
    wanted = {name: min(Lsn(published[name]), limit) for name in set(have) & set(published)}
    return _forward(have, wanted)


def _of_cascades(obs: Observation, sample: InstanceSample, have: dict[str, Slot]) -> dict[str, Lsn]:
    """On the leader: as far as the members have come that stream from others, for whenever they come here."""
    assert not isinstance(obs.cluster, Unavailable)
    cluster, limit = obs.cluster, sample.flush_lsn or Lsn(0)
    elsewhere = [
        m for m in cluster.members if cascade_source(cluster, m.name, m.tags) not in (None, obs.me.name)
    ]
    return _forward(have, {slot_name(m.name): min(Lsn(m.xlog_location or 0), limit) for m in elsewhere})


def _forward(have: dict[str, Slot], wanted: dict[str, Lsn]) -> dict[str, Lsn]:
    return {
        name: target
        for name, target in wanted.items()
        if name in have and (at := have[name].restart_lsn) is not None and target > at
    }
