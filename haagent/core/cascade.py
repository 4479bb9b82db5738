"""Standbys that stream from another standby, by their tag `replicatefrom` (contract 2.3, 6.5). Pure.

The leader sees no walsender of theirs. What it knows of how far they are is their own word, asked for over
REST; before a planned hand-over gives the key away, every candidate has to prove the shutdown checkpoint so,
whoever it streams from.
"""

from __future__ import annotations

from dcs.records import ClusterSnapshot, Member, Tags
from haagent.core.model import Observation, PeerAnswer, Unavailable
from postgres_ctl.facts import Lsn


def cascade_source(cluster: ClusterSnapshot, name: str, tags: Tags) -> str | None:
    """The member that `name` streams from by its tag `replicatefrom` (contract 2.3); None: the leader.

    Members that name each other in a circle would all stand still: those follow the leader."""
    source = tags.replicatefrom
    known = cluster.member(source) if source is not None else None
    if known is None or known.host_port is None or known.name == name:
        return None
    at: Member | None = known
    seen = {name}
    while at is not None and at.name not in seen:
        seen.add(at.name)
        onward = None if _leads(cluster, at.name) else at.tags.replicatefrom
        at = cluster.member(onward) if onward is not None else None
    return None if at is not None and at.name == name else source


def _leads(cluster: ClusterSnapshot, name: str) -> bool:
    return cluster.leader is not None and cluster.leader.name == name


def reached_through_another(obs: Observation, name: str) -> Lsn | None:
    """How far the standby `name` has come that streams from another one, on our timeline, by what it answered
    last; None of any other."""
    peer, cluster = obs.peers.get(name), obs.cluster
    member = cluster.member(name) if not isinstance(cluster, Unavailable) else None
    if member is None or isinstance(cluster, Unavailable) or not isinstance(peer, PeerAnswer):
        return None
    elsewhere = cascade_source(cluster, name, member.tags) not in (None, obs.me.name)
    streams = peer.in_recovery and peer.replication_state == "streaming"
    return peer.position if elsewhere and streams and peer.timeline == obs.instance.timeline else None
