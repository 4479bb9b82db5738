"""Synchronous modes among the rules of the election: membership, votes, and whose WAL blocks (rule 4). Pure.

By priority whoever is in `/sync` has every acknowledged commit. By quorum a candidate needs so many votes of
others in `/sync`: each says that it is not ahead, so that one who has a commit would have been heard. A vote
counts only from a standby that has read all its own WAL (H16). Nobody else blocks, for WAL that no member of
`/sync` has was never acknowledged; nor does the last leader, whose WAL beyond it was not either.
"""

from __future__ import annotations

from collections.abc import Iterable

from dcs.records import ClusterSnapshot, SyncState
from haagent.core import sync
from haagent.core.model import Observation, PeerAnswer
from haagent.core.roles import same_member
from haagent.core.schedule import request_in_force
from haagent.core.settings import SyncMode
from haagent.core.timelines import position_in_my_history
from postgres_ctl.facts import InstanceSample

#: What a failover by hand to somebody who is not in `/sync` says of its loss.
WAIVED = "commits that were acknowledged to clients may be missing"


def is_member(obs: Observation, key: SyncState, name: str | None = None) -> bool:
    return (name or obs.me.name).lower() in sync.names(key)


def membership(obs: Observation, cluster: ClusterSnapshot) -> str | None:
    """Why this member may miss an acknowledged commit, as far as `/sync` tells; None when it does not."""
    broken = sync.unknown(obs.settings, cluster)
    if broken is not None:
        return f"who misses no acknowledged commit cannot be read from the store: {broken}"
    key = sync.in_force(obs.settings, cluster)
    if key is None:
        return None
    listed = ", ".join(name for name in (key.leader, *key.standbys) if name)
    if not is_member(obs, key) and not _may_come_from_outside(obs, cluster, key):
        return f"not a synchronous standby: {listed} may lead"
    return None


def _may_come_from_outside(obs: Observation, cluster: ClusterSnapshot, key: SyncState) -> bool:
    """By quorum anybody with the votes, but not where a switchover was asked for (contract 2.4)."""
    request = request_in_force(obs, cluster)
    planned = request is not None and request.is_switchover
    return obs.settings.synchronous_mode is SyncMode.QUORUM and not planned


def _is_leader(key: SyncState, name: str) -> bool:
    return same_member((key.leader or "").lower(), name.lower())


def votes(obs: Observation, cluster: ClusterSnapshot, answers: Iterable[PeerAnswer]) -> tuple[bool, str]:
    """Whether enough others back this member, in words."""
    key = sync.in_force(obs.settings, cluster)
    if key is None or not sync.takes_votes(obs.settings, key):
        return True, "no votes are needed"
    if _is_leader(key, obs.me.name):
        return True, "it led last, so it has every acknowledged commit"
    backing = sorted(p.name for p in answers if _backs(obs, key, p))
    counted = len(backing) - (0 if is_member(obs, key) else 1)
    said = f"{len(backing)} votes ({', '.join(backing) or 'nobody'}), needed are {key.quorum}"
    return counted >= key.quorum, said if is_member(
        obs, key
    ) else f"{said} and one more, being no voter itself"


def _backs(obs: Observation, key: SyncState, peer: PeerAnswer) -> bool:
    """A voter that has read all its WAL and is not ahead."""
    if not is_member(obs, key, peer.name) or not peer.in_recovery or not _is_proven(peer):
        return False
    mine, sample = obs.instance.timeline, obs.instance.sample
    older = mine is None or peer.timeline is None or peer.timeline <= mine
    known = isinstance(sample, InstanceSample) and peer.position.value > 0
    return (
        older
        and known
        and isinstance(sample, InstanceSample)
        and (position_in_my_history(obs, peer) <= sample.position)
    )


def _is_proven(peer: PeerAnswer) -> bool:
    """Patroni's do not say: what one has received since its start is (H16)."""
    if peer.position_is_proven is not None:
        return peer.position_is_proven
    return peer.received is not None


def counts(obs: Observation, cluster: ClusterSnapshot, peer: PeerAnswer) -> bool:
    """Its WAL, and its priority, can hold others up: what only it has may have been acknowledged."""
    key = sync.in_force(obs.settings, cluster)
    return key is None or (is_member(obs, key, peer.name) and not _is_leader(key, peer.name))


def handover_refusal(obs: Observation, cluster: ClusterSnapshot, name: str) -> str | None:
    """Why a running primary does not hand over to `name` (contract 2.7); None when it may."""
    if sync.unknown(obs.settings, cluster) is not None:
        return "who is a synchronous standby cannot be read from the store"
    key = sync.in_force(obs.settings, cluster)
    if key is None or sync.is_listed(key, name):
        return None
    return f"candidate name does not match with sync_standby: {name} is not a synchronous standby"


def may_succeed(obs: Observation, cluster: ClusterSnapshot, name: str) -> bool:
    """A key given away could be taken by `name`."""
    if sync.unknown(obs.settings, cluster) is not None:
        return False
    key = sync.in_force(obs.settings, cluster)
    by_quorum = obs.settings.synchronous_mode is SyncMode.QUORUM
    return key is None or by_quorum or is_member(obs, key, name)
