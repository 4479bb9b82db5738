"""Lines of the log that tools and people know from Patroni (contract 7.3), word for word."""

from __future__ import annotations

import signal

from tests.support import processes
from tests.support.cluster import Cluster, Node


def said(cluster: Cluster, node: Node, *lines: str) -> None:
    """Each line is in the agent's log, whole, behind its time and level."""
    for line in lines:
        level, _, text = line.partition(": ")
        cluster.wait_for(lambda text=f" {level}: {text}": text in node.log(), 60, f"{node.name}: {line}")  # type: ignore[misc]


def test_lines_word_for_word() -> None:
    with Cluster(nodes=2, ttl=8, proxied=True) as cluster:
        a, b = cluster.nodes
        heartbeat = f"no action. I am ({a.name}), the leader with the lock"
        following = f"no action. I am ({b.name}), a secondary, and following a leader ({a.name})"
        said(cluster, a, "INFO: trying to bootstrap a new cluster", "INFO: initialized a new cluster")
        said(cluster, a, f"INFO: {heartbeat}\n")
        said(cluster, b, f"INFO: trying to bootstrap from leader '{a.name}'", f"INFO: {following}\n")
        said(cluster, b, "INFO: replica has been created using basebackup")
        said(cluster, b, f"INFO: Lock owner: {a.name}; I am {b.name}\n")
        assert f"Lock owner: {a.name}; I am {a.name}\n" in a.log()

        assert a.rest("/config", "PATCH", {"pause": True})[0] == 200
        said(cluster, a, f"INFO: PAUSE: {heartbeat}\n")
        said(cluster, b, f"INFO: PAUSE: {following}\n")
        cluster.delete("leader")
        said(cluster, a, "INFO: PAUSE: acquired session lock as a leader\n")
        assert a.rest("/config", "PATCH", {"pause": None})[0] == 200

        processes.send(a.postmaster_pid(), signal.SIGKILL)
        said(cluster, a, "INFO: starting primary after failure\n")
        cluster.wait_streaming(1)

        assert a.proxy is not None
        a.proxy.refuse()
        said(cluster, a, "ERROR: Error communicating with DCS", "INFO: DCS is not accessible")
        said(cluster, a, "INFO: demoted self because DCS is not accessible and I was a leader\n")
        said(cluster, b, "INFO: promoted self to leader by acquiring session lock\n")
        a.proxy.accept()
        cluster.wait_streaming(1)

        cluster.put("leader", "a stranger")
        said(cluster, b, "ERROR: failed to update leader lock")
        said(cluster, b, "INFO: demoted self because failed to update leader lock in DCS\n")
        cluster.delete("leader")
        leader = cluster.wait_streaming(1)
        other = next(node for node in cluster.nodes if node is not leader)
        other.write_config({"tags": {"nofailover": True}})
        processes.send(other.agent_pid, signal.SIGHUP)
        cluster.wait_for(lambda: other.member_key().get("tags") == {"nofailover": True}, 60, "the tag")
        assert leader.stop() == 0
        said(cluster, other, "INFO: following a different leader because I am not allowed to promote\n")

        # A store that knows nothing of the cluster: its primary's agent has to come first.
        other.kill_agent()
        for key in cluster.stored():
            cluster.delete(key)
        postmaster = other.postmaster_pid()
        other.start()
        cluster.wait_for(lambda: other.agent_exit is not None, 60, "the replica's agent ends")
        assert other.agent_exit == 1
        assert f"{other.name} is a replica without a known cluster" in other.log()
        assert other.postmaster_pid() == postmaster is not None
