"""Replication slots: which should exist here, which go, and how far they may move. Pure. Contract 6.2, 6.3.

Every member keeps a slot for every other member it could serve, and one of each permanent slot, so that a
standby or another consumer finds its slot on whoever leads next *before* it asks. On a standby these slots
are inactive; they follow the positions the leader publishes in `status.slots`, never beyond what this standby
replayed: a slot that is ahead of its consumer has let go of what the consumer still needs.

A slot that nobody wants keeps WAL until the disk is full, so it is dropped; unless it is in use, named by
`ignore_slots`, kept by PostgreSQL itself (`failover`), or the cluster is paused. What is wanted has to be
known for that: with an unreadable `config`, `status` or `slots` nothing is called unknown.

Logical slots on standbys: `logical_slots`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dcs.records import ClusterSnapshot, Member, Tags
from haagent.core.actions import SyncSlots
from haagent.core.cascade import cascade_source
from haagent.core.model import Memory, Observation, Unavailable, unreadable
from haagent.core.settings import Settings
from haagent.core.slot_config import PHYSICAL, PermanentSlot
from postgres_ctl.facts import InstanceSample, Lsn, Slot, slot_name

# --- which --------------------------------------------------------------------------------------------


def wanted(obs: Observation, memory: Memory) -> dict[str, PermanentSlot]:
    """Slots that should exist here, by name: of members, of those gone a while ago, and permanent ones."""
    if isinstance(obs.cluster, Unavailable) or not obs.settings.use_slots:
        return {}
    names = member_slots(obs, obs.cluster) | _retained_here(obs, memory, obs.cluster)
    of_members = {name: PermanentSlot(name) for name in names - {slot_name(obs.me.name)}}
    return {n: s for n, s in _permanent(obs, obs.cluster).items() if n not in of_members} | of_members


def member_slots(obs: Observation, cluster: ClusterSnapshot) -> frozenset[str]:
    """Of members that could stream from here; with `member_slots_ttl` 0, of those that should do so now."""
    others = [m for m in cluster.members if m.name != obs.me.name and not m.tags.nostream]
    if obs.settings.member_slots_ttl_s > 0:
        serves_only = _never_leads(obs)
        return frozenset(
            slot_name(m.name) for m in others if not serves_only or m.tags.replicatefrom == obs.me.name
        )
    return frozenset(slot_name(m.name) for m in others if _should_stream_from_here(obs, cluster, m))


def _never_leads(obs: Observation) -> bool:
    return obs.me.tags.nofailover and not _serves_all(obs)


def _retained_here(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> frozenset[str]:
    """Of gone members; a present one has a slot by its tags or none."""
    if _never_leads(obs):
        return frozenset()
    return retained(obs, memory) - {slot_name(m.name) for m in cluster.members}


def retained(obs: Observation, memory: Memory) -> frozenset[str]:
    """Slots of members seen less than `member_slots_ttl` ago; the leader publishes them."""
    kept_s = obs.settings.member_slots_ttl_s
    return frozenset(name for name, at in memory.slots_seen.items() if obs.now < at + kept_s)


def _permanent(obs: Observation, cluster: ClusterSnapshot) -> dict[str, PermanentSlot]:
    """Of the configuration, those that belong here."""
    if _never_leads(obs):
        return {}
    standby_cluster = in_standby_cluster(obs)
    logical = obs.instance.serves_as_primary or feedback_slot(cluster, obs.me.name) is not None
    return {
        name: slot
        for name, slot in obs.settings.permanent_slots.items()
        if name != slot_name(obs.me.name)
        and slot.cluster_type in (None, "standby" if standby_cluster else "primary")
        and (slot.type == PHYSICAL or (logical and not standby_cluster))
    }


def in_standby_cluster(obs: Observation) -> bool:
    return obs.settings.standby_cluster is not None


def feedback_parameters(settings: Settings, tags: Tags) -> dict[str, str]:
    """Parameters that logical slots on standbys need: the leader has to hear what they still need."""
    logical = settings.use_slots and any(s.type != PHYSICAL for s in settings.permanent_slots.values())
    needed = logical and not tags.nostream and settings.standby_cluster is None
    return {"hot_standby_feedback": "on"} if needed else {}


def feedback_slot(cluster: ClusterSnapshot, name: str) -> str | None:
    """The slot on the leader through which it hears what `name` still needs: its own, or that of the member
    it streams through. None where somebody on the way takes WAL from the archive only."""
    while True:
        member = cluster.member(name)
        if member is None or member.tags.nostream:
            return None
        onward = cascade_source(cluster, name, member.tags)
        if onward is None or _leads(cluster, onward):
            return slot_name(name)
        name = onward


def _leads(cluster: ClusterSnapshot, name: str) -> bool:
    return cluster.leader is not None and cluster.leader.name == name


def _serves_all(obs: Observation) -> bool:
    """A primary, or the one that a standby cluster streams from."""
    return obs.instance.serves_as_primary or obs.leads_standby_cluster


def _should_stream_from_here(obs: Observation, cluster: ClusterSnapshot, member: Member) -> bool:
    """Now, by its tags and by who leads: then its slot here is in use, or soon will be."""
    source = cascade_source(cluster, member.name, member.tags)
    if _serves_all(obs):
        return source in (None, obs.me.name)
    return source == obs.me.name and not _leads(cluster, member.name)


# --- what to change -----------------------------------------------------------------------------------


def plan(obs: Observation, memory: Memory) -> SyncSlots | None:
    """What to change in the slots of the running instance; None when all is well."""
    sample = obs.instance.sample
    if not isinstance(sample, InstanceSample) or isinstance(obs.cluster, Unavailable):
        return None
    want = wanted(obs, memory)
    have = {s.name: s for s in sample.slots if not s.temporary}
    looked_at = {n: _why_drop(obs, memory, obs.cluster, want.get(n), s) for n, s in have.items()}
    why = {name: reason for name, reason in sorted(looked_at.items()) if reason is not None}
    physical = {n for n, slot in want.items() if slot.type == PHYSICAL}
    create = tuple(sorted(n for n in physical if n not in have or n in why))
    idle = {n: have[n] for n in physical & set(have) - set(why) if not have[n].active}
    advance = _advances(obs, obs.cluster, sample, idle) if on_the_leaders_line(obs, memory) else {}
    return SyncSlots(create, tuple(why), advance, why) if create or why or advance else None


def _why_drop(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, want: PermanentSlot | None, slot: Slot
) -> str | None:
    """Why this slot goes, to be made anew where it is wanted; None when it stays."""
    if slot.active or slot.synced or any(m.matches(slot) for m in obs.settings.ignore_slots):
        return None
    standby = not obs.instance.serves_as_primary
    if slot.failover:
        blocks = standby and not obs.settings.pause
        return "PostgreSQL can keep it in step only when it makes it itself" if blocks else None
    if want is None:
        return "unknown" if _may_drop_unknown(obs, memory, cluster, slot) else None
    if not want.is_like(slot):
        return None if obs.settings.pause else "type, database or plugin are configured otherwise"
    if slot.broken:
        return "what it should keep is gone"
    if want.type != PHYSICAL:
        return None
    if slot.restart_lsn is None:
        return "it keeps no WAL"
    return "it holds back vacuum for nobody" if slot.xmin_set and _idles(obs, cluster, slot) else None


def _may_drop_unknown(obs: Observation, memory: Memory, cluster: ClusterSnapshot, slot: Slot) -> bool:
    """Everything that could name it is known, and does not."""
    if obs.settings.pause:
        return False
    if not obs.settings.use_slots:  # then an administrator looks after slots
        return slot.name in memory.slots_seen
    unclear = obs.settings.slots_unclear or cluster.config is None
    return not (unclear or any(unreadable(cluster, key) for key in ("config", "status")))


def _idles(obs: Observation, cluster: ClusterSnapshot, slot: Slot) -> bool:
    """Nobody is expected to use it here, so what it holds back would stay so."""
    settled = cluster.leader is not None and (cluster.leader.name != obs.me.name or _serves_all(obs))
    member = _member_of(cluster, slot.name)
    if member is None:  # a permanent one: its consumer comes to the leader
        return settled and not _serves_all(obs)
    return settled and not _should_stream_from_here(obs, cluster, member)


def _member_of(cluster: ClusterSnapshot, slot: str) -> Member | None:
    return next((m for m in cluster.members if slot_name(m.name) == slot), None)


# --- positions ----------------------------------------------------------------------------------------


def published(cluster: ClusterSnapshot) -> Mapping[str, int]:
    """Positions of slots as the leader told them last."""
    return (cluster.status.slots if cluster.status else None) or {}


def on_the_leaders_line(obs: Observation, memory: Memory) -> bool:
    """Positions that the leader tells are positions in this server's history, too: it leads, or streams, or
    replays the leader's timeline from an archive. A number alone says nothing of WAL that diverged (H15)."""
    if isinstance(obs.cluster, Unavailable) or obs.cluster.leader is None:
        return False
    if _serves_all(obs) or memory.not_streaming_since is None:
        return True
    leader = obs.cluster.member(obs.cluster.leader.name)
    from_archive = obs.me.tags.nostream and leader is not None and leader.timeline is not None
    return from_archive and leader is not None and leader.timeline == obs.instance.timeline


def _advances(
    obs: Observation, cluster: ClusterSnapshot, sample: InstanceSample, idle: Mapping[str, Slot]
) -> dict[str, Lsn]:
    """Idle physical slots that nobody is expected at: as far as their consumers are known to have come."""
    limit = (sample.replay_lsn if sample.in_recovery else sample.flush_lsn) or Lsn(0)
    members = {slot_name(m.name): m for m in cluster.members}
    moves = {}
    for name, slot in idle.items():
        member = members.get(name)
        if member is not None and _should_stream_from_here(obs, cluster, member):
            continue
        target = min(_known_position(obs, cluster, sample, name, member), limit)
        target = min(target, _needed_by_a_rewind(cluster, sample, name) or target)
        if slot.restart_lsn is not None and target > slot.restart_lsn:
            moves[name] = target
    return moves


def _needed_by_a_rewind(cluster: ClusterSnapshot, sample: InstanceSample, name: str) -> Lsn | None:
    """On a standby: where the WAL begins that pg_rewind needs, if the leader of this slot is lost now.

    It begins before the last checkpoint that both have, and this one's own restartpoint is no newer."""
    leads = cluster.leader is not None and slot_name(cluster.leader.name) == name
    return sample.redo_lsn if sample.in_recovery and leads else None


def _known_position(
    obs: Observation, cluster: ClusterSnapshot, sample: InstanceSample, name: str, member: Member | None
) -> Lsn:
    """By the leader's word; of a member that streams from elsewhere also by its own."""
    elsewhere = member is not None and (
        cascade_source(cluster, member.name, member.tags) not in (None, obs.me.name)
        or (sample.in_recovery and (member.tags.replicatefrom is not None or _old_leader(cluster)))
    )
    own = (member.xlog_location or 0) if elsewhere and member is not None else 0
    told = published(cluster).get(name, 0) if not _serves_all(obs) else 0
    return Lsn(max(told, own))


def _old_leader(cluster: ClusterSnapshot) -> bool:
    """A Patroni before 4.0.0 leads: it publishes positions of permanent slots only (contract 8.1)."""
    leader = cluster.member(cluster.leader.name) if cluster.leader is not None else None
    if leader is None or not leader.version:
        return False
    first = leader.version.split(".")[0]
    return first.isdigit() and int(first) < 4


def positions(obs: Observation, memory: Memory, sample: InstanceSample) -> dict[str, int]:
    """`status.slots` (contract 1.3): of every slot this leader looks after, and by its name its end of WAL.

    With `member_slots_ttl` 0 only of permanent ones: the other members keep no slots to be moved then."""
    want = wanted(obs, memory)
    kept = obs.settings.member_slots_ttl_s > 0
    told = {
        s.name: at.value
        for s in sample.slots
        if (at := s.position) is not None
        and not s.temporary
        and s.name in want
        and want[s.name].is_like(s)
        and (kept or s.name in obs.settings.permanent_slots)
    }
    if kept and obs.settings.use_slots and sample.position.value:
        told[slot_name(obs.me.name)] = sample.position.value
    return told


def to_retain(obs: Observation, memory: Memory) -> tuple[str, ...]:
    """`status.retain_slots`: member slots that are no permanent ones, this leader's own among them."""
    if obs.settings.member_slots_ttl_s <= 0:
        return ()
    names = retained(obs, memory) | {slot_name(obs.me.name)}
    return tuple(sorted(names - set(obs.settings.permanent_slots)))
