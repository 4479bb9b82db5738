"""Synchronous modes on real servers and etcd (contract 1.10, 2.4, 6.1; rule 4)."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

from tests.support.cluster import Cluster, Node
from tests.support.writers import Writers

PLACEHOLDER = "__patroni_strict_sync_replica_placeholder__"
LONG_S = 60


def sync(cluster: Cluster) -> dict[str, Any]:
    """`/sync` as the store has it; {} when there is none."""
    found = json.loads(cluster.stored().get("sync", "{}"))
    return dict(found)


def standbys(cluster: Cluster) -> set[str]:
    return set(filter(None, (sync(cluster).get("sync_standby") or "").split(",")))


def wait_sync(cluster: Cluster, leader: Node, names: set[str], quorum: int = 0) -> None:
    def so() -> bool:
        key = sync(cluster)
        return (key.get("leader"), key.get("quorum"), standbys(cluster)) == (leader.name, quorum, names)

    cluster.wait_for(so, LONG_S, f"/sync of {leader.name} to name {names}")


def patch(node: Node, **settings: Any) -> None:
    assert node.rest("/config", "PATCH", settings)[0] == 200


def roles(cluster: Cluster, node: Node) -> dict[str, str]:
    return {m["name"]: m["role"] for m in node.rest("/cluster")[1]["members"]}


def names_in_force(node: Node) -> str:
    return str(node.value("show synchronous_standby_names"))


def _shows(node: Node, names: str) -> bool:
    return names_in_force(node) == names


def _another_leads(cluster: Cluster, old: Node) -> bool:
    return cluster.leaders() not in ([], [old])


def test_by_priority() -> None:
    """Switched on while it runs; a lost standby is replaced, a lost primary is followed by the standby in
    `/sync` and by nobody else, and no acknowledged row is missing."""
    with Cluster(nodes=3) as cluster:
        a = cluster.wait_streaming(2)
        assert "sync" not in cluster.stored()
        patch(a, synchronous_mode=True)
        cluster.wait_for(lambda: len(standbys(cluster)) == 1, LONG_S, "a synchronous standby")
        b = cluster.node(standbys(cluster).pop())
        (c,) = (node for node in cluster.nodes if node not in (a, b))
        assert names_in_force(a) == b.name
        waited_for = "select application_name from pg_stat_replication where sync_state = 'sync'"
        assert a.sql(waited_for) == [(b.name,)]
        assert roles(cluster, c) == {a.name: "leader", b.name: "sync_standby", c.name: "replica"}
        cluster.wait_for(lambda: b.rest("/sync")[0] == 200, LONG_S, "health of the synchronous standby")
        assert (c.rest("/sync")[0], c.rest("/async")[0], b.rest("/async")[0]) == (503, 200, 503)
        text = "candidate name does not match with sync_standby"
        assert a.rest("/switchover", "POST", {"leader": a.name, "candidate": c.name}) == (412, text)

        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            b.kill_all()
            wait_sync(cluster, a, {c.name})
            writers.wait_acknowledged(50)
            a.kill_all()
            cluster.wait_for(lambda: c in cluster.leaders(), LONG_S, f"{c.name} to take over")
            writers.wait_acknowledged(50)
            b.start()
            wait_sync(cluster, c, {b.name})
            a.start()
            cluster.wait_streaming(2)
            c.kill_all()
            cluster.wait_for(lambda: b in cluster.leaders(), LONG_S, f"{b.name} to take over")
            writers.wait_acknowledged(50)
        evidence = writers.evidence()
        assert evidence.missing(b.dsn) == []
        assert evidence.overlaps() == []

        patch(b, synchronous_mode=False)
        cluster.wait_for(lambda: "sync" not in cluster.stored(), LONG_S, "the key to go")
        cluster.wait_for(lambda: names_in_force(b) == "", LONG_S, "commits to wait for nobody")


def test_strict_and_several() -> None:
    """Commits wait while there is no standby, and for two where two are asked for; by quorum instead of by
    order."""
    with Cluster(nodes=3, dcs={"synchronous_mode": True, "synchronous_mode_strict": True}) as cluster:
        a = cluster.wait_streaming(2)
        b, c = (node for node in cluster.nodes if node is not a)
        cluster.wait_for(lambda: len(standbys(cluster)) == 1, LONG_S, "a synchronous standby")
        for standby in (b, c):
            cluster.wait_for(partial(_shows, standby, PLACEHOLDER), LONG_S, "the place holder")
        cluster.wait_for(lambda: a.rest("/primary")[0] == 200, LONG_S, "the primary to be shown to clients")
        patch(a, synchronous_node_count=2)
        wait_sync(cluster, a, {b.name, c.name})
        assert names_in_force(a) == f"2 ({b.name},{c.name})"

        a.sql("create table t (n int)")
        patch(a, synchronous_mode="quorum", synchronous_node_count=1)
        wait_sync(cluster, a, {b.name, c.name}, quorum=1)
        by_quorum = f"ANY 1 ({b.name},{c.name})"  # behind `/sync`, for fewer are waited for
        cluster.wait_for(partial(_shows, a, by_quorum), LONG_S, "commits to wait by quorum")
        assert roles(cluster, b) == {a.name: "leader", b.name: "quorum_standby", c.name: "quorum_standby"}
        cluster.wait_for(lambda: b.rest("/quorum")[0] == 200, LONG_S, "health of a quorum standby")

        b.kill_all()
        wait_sync(cluster, a, {c.name})
        c.kill_all()
        streams = "select count(*) from pg_stat_replication"
        cluster.wait_for(lambda: a.value(streams) == 0, LONG_S, "nobody to stream")
        _waits_in_vain(cluster, a)
        assert standbys(cluster) == {c.name}
        c.start()
        cluster.wait_streaming(1)
        a.sql("insert into t values (2)")


def _waits_in_vain(cluster: Cluster, node: Node) -> None:
    """A commit is in the WAL of the primary alone, and its client is told nothing."""
    writer = threading.Thread(target=node.sql, args=("insert into t values (1)",), daemon=True)
    writer.start()
    waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
    (pid,) = cluster.wait_for(lambda: node.sql(waiting), LONG_S, "the commit to wait")[0]
    node.sql("select pg_cancel_backend(%s)", pid)  # which ends the wait, with a warning (H22)
    writer.join(LONG_S)
    assert not writer.is_alive()


def test_by_quorum_a_lost_primary_is_followed_by_whoever_has_the_votes() -> None:
    with Cluster(nodes=3, dcs={"synchronous_mode": "quorum"}) as cluster:
        a = cluster.wait_streaming(2)
        others = {node.name for node in cluster.nodes if node is not a}
        wait_sync(cluster, a, others, quorum=1)
        with Writers(cluster) as writers:
            for _ in range(2):
                leader = cluster.leader()
                others = {node.name for node in cluster.nodes if node is not leader}
                wait_sync(cluster, leader, others, quorum=1)
                writers.wait_acknowledged(50)
                leader.kill_all()
                cluster.wait_for(partial(_another_leads, cluster, leader), LONG_S, "another leader")
                writers.wait_acknowledged(50)
                leader.start()
                cluster.wait_streaming(2)
            # Alone nobody knows what the others have.
            leader = cluster.leader()
            last, other = (node for node in cluster.nodes if node is not leader)
            wait_sync(cluster, leader, {last.name, other.name}, quorum=1)
            other.kill_all()
            leader.kill_all()
            refused = "sync.votes: 0 votes"
            cluster.wait_for(lambda: refused in last.log() or last in cluster.leaders(), LONG_S, "a refusal")
            other.start()
            cluster.wait_for(partial(_another_leads, cluster, leader), LONG_S, "a leader")
            writers.wait_acknowledged(50)
        evidence = writers.evidence()
        assert evidence.missing(cluster.leader().dsn) == []
        assert evidence.overlaps() == []
