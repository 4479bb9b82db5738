"""Who takes over when several could, and what the others say about it (contract 6.5, 7.3)."""

from __future__ import annotations

from tests.support.cluster import Cluster

QUIET = {"logging_collector": "off"}


def test_the_higher_priority_wins_and_the_other_tells_why_it_did_not() -> None:
    cluster = Cluster(nodes=3, ttl=4, parameters=QUIET)
    first, low, high = cluster.nodes
    low.config_changes = {"tags": {"failover_priority": 1}}
    high.config_changes = {"tags": {"failover_priority": 2}}
    with cluster:
        first.kill_all()
        cluster.wait_for(high.is_primary, 60, "the higher priority leads")
        cluster.wait_for(low.is_streaming, 60, "the other one follows")
        said = (
            f"{high.name} has equally tolerable WAL position and priority 2, while this node has priority 1",
            f"Wal position of {high.name} is ahead of my wal position",
        )
        assert any(f"INFO: {line}\n" in low.log() for line in said)
        assert not any(line in high.log() for line in said)
        first.start()
        cluster.wait_streaming(2)
