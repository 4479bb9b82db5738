"""Failsafe mode on real servers: the store is away, the primary goes on while every member agrees (H19)."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.cluster import Cluster, Node
from tests.support.wait import holds_for
from tests.support.writers import Writers

TTL_S = 4
#: So long an agent has to come back within its promise.
LONG_TTL_S = 15
GOES_ON = "continue to run as a leader because failsafe mode is enabled and all members are accessible"
PROMISED = "in failsafe mode not to lead"


def failsafe_cluster(nodes: int = 3, **more: object) -> Cluster:
    settings = {"ttl": TTL_S, **more}
    return Cluster(nodes=nodes, dcs={"failsafe_mode": True}, **settings)  # type: ignore[arg-type]


def wait_named(cluster: Cluster) -> None:
    """The leader has written down whom it would ask."""
    names = {node.name for node in cluster.nodes}
    cluster.wait_for(lambda: set(json.loads(cluster.key("failsafe") or "{}")) == names, 60, "all are named")


def is_active(node: Node) -> bool:
    return node.rest("/patroni")[1].get("failsafe_mode_is_active") is True


def only_writes(cluster: Cluster, leader: Node) -> bool:
    others = [node for node in cluster.nodes if node is not leader]
    return leader.is_primary() and leader.is_writable() and not any(n.is_writable() for n in others)


def test_the_primary_goes_on_without_the_store_as_long_as_all_members_agree() -> None:
    with failsafe_cluster() as cluster:
        leader = cluster.wait_streaming(2)
        wait_named(cluster)
        assert leader.rest("/failsafe") == (200, json.loads(cluster.key("failsafe") or ""))
        postmaster, etcd = leader.postmaster_pid(), cluster.etcd
        assert etcd is not None
        with Writers(cluster) as writers:
            etcd.kill(signal.SIGKILL)  # connections are refused
            cluster.wait_for(lambda: all(map(is_active, cluster.nodes)), 60, "failsafe mode is active")
            holds_for(lambda: only_writes(cluster, leader), 2 * TTL_S, "the primary goes on")
            writers.wait_acknowledged(20)
            assert GOES_ON in leader.log()
            for node in cluster.nodes:
                metrics = node.rest("/metrics")[1]
                for name in ("is_active", "enabled"):
                    assert f'patroni_failsafe_mode_{name}{{scope="test",name="{node.name}"}} 1' in metrics
                assert f'patroni_failsafe_member{{scope="test",name="{node.name}"}} 1' in metrics
                assert node.status("/readiness") == 200
            etcd.start()
            cluster.wait_for(lambda: not is_active(leader), 60, "the store carries the lease again")
            etcd.freeze()  # nothing is answered
            holds_for(lambda: only_writes(cluster, leader), 2 * TTL_S, "the primary goes on")
            etcd.thaw()
            cluster.wait_for(lambda: not any(map(is_active, cluster.nodes)), 60, "all is as before")
            assert leader.rest("/switchover", "POST", {"leader": leader.name}, timeout_s=60)[0] == 200
            cluster.wait_streaming(2)
        assert leader.postmaster_pid() != postmaster, "stopped for the switchover, and for nothing before"
        evidence = writers.evidence()
        assert evidence.overlaps() == []
        assert evidence.missing(cluster.leader().dsn) == []


@pytest.mark.slow
def test_one_member_that_does_not_answer_ends_it_before_the_lease_does() -> None:
    with failsafe_cluster() as cluster:
        leader = cluster.wait_streaming(2)
        wait_named(cluster)
        (silent, _) = (node for node in cluster.nodes if node is not leader)
        etcd = cluster.etcd
        assert etcd is not None
        with Writers(cluster) as writers:
            etcd.freeze()
            cluster.wait_for(lambda: is_active(leader), 60, "failsafe mode is active")
            writers.wait_acknowledged(20)
            silent.freeze_agent()
            cluster.wait_for(lambda: not leader.is_writable(), 60, "the primary is stopped")
            holds_for(lambda: not any(n.is_writable() for n in cluster.nodes), 1.5 * TTL_S, "nobody writes")
            silent.thaw_agent()
            holds_for(lambda: not any(n.is_writable() for n in cluster.nodes), TTL_S, "nobody writes")
            etcd.thaw()
            cluster.wait_streaming(2)
            writers.wait_acknowledged(20)
        assert writers.evidence().overlaps() == []


@pytest.mark.slow
def test_a_leader_that_alone_lost_the_store_keeps_the_others_out_of_the_race() -> None:
    """They see its key run out, and know that it goes on; a restarted one knows it, too."""
    with failsafe_cluster(proxied=True, ttl=LONG_TTL_S) as cluster:
        leader = cluster.wait_streaming(2)
        wait_named(cluster)
        others = [node for node in cluster.nodes if node is not leader]
        postmaster = leader.postmaster_pid()
        assert leader.proxy is not None
        with Writers(cluster) as writers:
            leader.proxy.refuse()
            cluster.wait_for(lambda: cluster.key("leader") is None, 60, "its key runs out")
            holds_for(lambda: only_writes(cluster, leader), LONG_TTL_S, "the primary goes on")
            assert all(PROMISED in node.log() for node in others)
            leader.proxy.accept()
            cluster.wait_for(lambda: cluster.key("leader") == leader.name, 60, "it takes its key again")
            assert leader.postmaster_pid() == postmaster
            writers.wait_acknowledged(20)
            # The promise outlives the agent that gave it, and the leader does not.
            leader.proxy.refuse()
            cluster.wait_for(lambda: cluster.key("leader") is None, 60, "its key runs out")
            assert is_active(leader)
            leader.kill_all()
            said = {node.name: len(node.log()) for node in others}
            for node in others:
                node.kill_agent()
                node.start()
            cluster.wait_streaming(1)
            assert all(PROMISED in node.log()[said[node.name] :] for node in others)
        assert writers.evidence().overlaps() == []


def test_a_single_node_needs_nobody() -> None:
    with failsafe_cluster(nodes=1) as cluster:
        (leader,) = cluster.nodes
        wait_named(cluster)
        assert cluster.etcd is not None
        cluster.etcd.freeze()
        holds_for(lambda: leader.is_primary() and leader.is_writable(), 2 * TTL_S, "it goes on")
        cluster.etcd.thaw()


def test_without_failsafe_mode_nobody_promises_anything() -> None:
    """The control: the same outage ends with the lease."""
    with Cluster(nodes=2, ttl=TTL_S) as cluster:
        leader = cluster.wait_streaming(1)
        (other,) = (node for node in cluster.nodes if node is not leader)
        assert cluster.etcd is not None
        assert other.rest("/failsafe", "POST", {"name": leader.name})[0] == 502
        cluster.etcd.freeze()
        cluster.wait_for(lambda: not leader.is_writable(), 60, "the primary is stopped")
        cluster.etcd.thaw()
