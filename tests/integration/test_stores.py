"""The same cluster on each store: bootstrap, switchover, a lost node, an outage of the store (contract 1, 2).

What the stores promise one by one is in tests/contract; here whole agents rely on it."""

from __future__ import annotations

import signal
from typing import Literal

import pytest

from tests.support.cluster import Cluster
from tests.support.writers import Writers


@pytest.mark.parametrize("store", ["consul", "zookeeper"])
def test_switchover_failover_and_outage(store: Literal["consul", "zookeeper"]) -> None:
    with Cluster(nodes=3, store=store, ttl=20) as cluster:
        first = cluster.wait_streaming(2)
        second = next(node for node in cluster.nodes if node is not first)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            body = {"leader": first.name, "candidate": second.name}
            assert first.rest("/switchover", "POST", body, timeout_s=60)[0] == 200
            assert cluster.wait_streaming(2) is second
            writers.wait_acknowledged(50)
            assert writers.evidence().missing(second.dsn) == []

        second.kill_all()
        third = cluster.wait_for(
            lambda: next((n for n in cluster.nodes if n is not second and n.leads_or_fails()), None),
            60,
            "another leader after the host was lost",
        )
        second.start()
        assert cluster.wait_streaming(2) is third

        # The agent alone dies, and comes back within the lease: PostgreSQL notices nothing.
        postmaster = third.postmaster_pid()
        third.kill_agent()
        third.start()
        cluster.wait_for(third.leads_or_fails, 60, "the agent continues its leadership")
        assert third.postmaster_pid() == postmaster

        # Nobody is writable once the store is gone for longer than the lease; it comes back with the store.
        assert cluster.other_store is not None
        cluster.other_store.kill(signal.SIGKILL)
        cluster.wait_for(lambda: not any(n.is_writable() for n in cluster.nodes), 60, "nobody is writable")
        cluster.other_store.start()
        cluster.wait_streaming(2)
