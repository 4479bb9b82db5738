"""What the store may do to a cluster: keys deleted, overwritten, full of garbage, another ttl. A healthy
primary is not stopped for any of it (H12), unless somebody else is named as leader."""

from __future__ import annotations

import json

import pytest

from tests.support.cluster import Cluster, Node
from tests.support.wait import holds_for
from tests.support.writers import Writers, replicated

TTL_S = 4


@pytest.mark.slow
def test_vandals_in_the_store() -> None:
    with Cluster(nodes=2, ttl=TTL_S, parameters={"log_min_messages": "log"}) as cluster:
        leader = cluster.wait_streaming(1)
        (standby,) = (node for node in cluster.nodes if node is not leader)
        postmaster, initialize = leader.postmaster_pid(), cluster.stored()["initialize"]
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20)
            for key in ("status", "history", "config", "failover", "members/ghost", "sync"):
                cluster.put(key, "{garbage")
            holds_for(lambda: leader.is_primary() and leader.is_writable(), 1.5 * TTL_S, "it leads on")
            assert json.loads(cluster.stored()["status"])["optime"] > 0, "the position is published again"
            for key in ("sync", "members/ghost"):
                cluster.delete(key)
            for key in ("config", "initialize", "leader", "history", "failover"):
                cluster.delete(key)
                cluster.wait_for(lambda key=key: _back(cluster, key, leader), 60, f"{key} is back")  # type: ignore[misc]
            assert cluster.stored()["initialize"] == initialize
            assert json.loads(cluster.stored()["config"])["ttl"] == TTL_S
            cluster.wait_streaming(1)
            assert leader.postmaster_pid() == postmaster, "PostgreSQL was stopped for a key"

            # Another ttl while it leads: the key moves to a new session, nothing else happens.
            assert leader.rest("/config", "PATCH", {"ttl": 2 * TTL_S})[0] == 200
            cluster.wait_for(
                lambda: cluster.lease_ttl("leader") == 2 * TTL_S, 60, "a lease of the new length"
            )
            holds_for(lambda: leader.is_primary() and leader.is_writable(), TTL_S, "it leads on")
            assert leader.postmaster_pid() == postmaster
            assert not writers.evidence().unknown, "a session was cut"

            # A garbage request does not keep a real one out.
            cluster.put("failover", "{garbage")
            body = {"leader": leader.name, "candidate": standby.name}
            status, text = leader.rest("/switchover", "POST", body, timeout_s=60)
            assert status == 200, text
            writers.wait_acknowledged(20)
            cluster.wait_streaming(1)
            leader = standby

            # Somebody else is named: whoever it is, this one must not write. It stops at once, so that what
            # no standby has yet may be lost.
            safe = replicated(writers, leader.dsn)
            cluster.put("leader", "stranger")
            cluster.wait_for(lambda: not leader.is_writable(), 60, "it steps down")
            assert leader.status("/primary") == 503, "whatever its own lease still promises"
            holds_for(lambda: not any(n.is_writable() for n in cluster.nodes), 1.5 * TTL_S, "nobody writes")
            cluster.delete("leader")
            cluster.wait_streaming(1)
            writers.wait_acknowledged(20)
        evidence = writers.evidence()
        assert evidence.overlaps() == []
        assert not safe & set(evidence.missing(cluster.leader().dsn))


def _back(cluster: Cluster, key: str, leader: Node) -> bool:
    """What the agents themselves keep is there again; a request is nobody's to make."""
    if key == "failover":
        return True
    held = cluster.stored().get(key)
    return held == leader.name if key == "leader" else held is not None


@pytest.mark.slow
def test_the_leader_key_deleted_under_a_primary_is_its_own_again() -> None:
    """H4: the key is gone, its holder is not fenced: standbys keep away, the primary takes it back."""
    with Cluster(nodes=3, ttl=TTL_S, parameters={"log_min_messages": "log"}) as cluster:
        leader = cluster.wait_streaming(2)
        postmaster = leader.postmaster_pid()
        with Writers(cluster) as writers:
            for _ in range(5):
                writers.wait_acknowledged(20)
                cluster.delete("leader")
                cluster.wait_for(lambda: cluster.stored().get("leader") is not None, 60, "a leader")
                assert cluster.stored()["leader"] == leader.name
        assert leader.postmaster_pid() == postmaster
        assert writers.evidence().overlaps() == []
        assert not writers.evidence().unknown
