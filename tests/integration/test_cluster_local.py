"""Three agents on one machine with the embedded store, from bootstrap to the loss of a node."""

from __future__ import annotations

from tests.support.cluster import Cluster
from tests.support.writers import Writers


def test_local_store_carries_a_cluster() -> None:
    with Cluster(nodes=3, store="local", ttl=4, parameters={"log_min_messages": "log"}) as cluster:
        a = cluster.wait_streaming(2)
        b = next(node for node in cluster.nodes if node is not a)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            body = {"leader": a.name, "candidate": b.name}
            assert a.rest("/switchover", "POST", body, timeout_s=60)[0] == 200
            writers.wait_acknowledged(50)
            cluster.wait_streaming(2)
            assert writers.evidence().missing(b.dsn) == []

            b.kill_all()
            writers.wait_acknowledged(50)
            assert cluster.leader() is not b
            b.start()
            cluster.wait_streaming(2)

            leader = cluster.leader()
            leader.kill_agent()
            cluster.wait_for(lambda: any(n is not leader for n in cluster.leaders()), 60, "a successor")
            writers.wait_acknowledged(50)
            leader.start()
            cluster.wait_streaming(2)
        assert writers.evidence().overlaps() == []
