"""A whole cluster that follows another one, on real servers: two clusters in one etcd (contract 6.7).

The remote cluster listens on addresses of its own and one port, so that a list of hosts names it.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.etcd import EtcdServer

PATHS = ("/primary", "/leader", "/standby-leader", "/replica", "/read-only", "/read-write", "/health")
LOOPBACK = {
    "pg_hba": [
        "local all all trust",
        "host all all 127.0.0.0/8 trust",
        "host replication all 127.0.0.0/8 trust",
    ]
}


OVERLAYS = {
    "parameters_standby_leader": {"work_mem": "7MB"},
    "pg_hba_standby_leader": [*LOOPBACK["pg_hba"], "host all of_the_leader 127.0.0.9/32 reject"],
    "pg_ident": ["of_everybody here there"],
    "pg_ident_standby_leader": ["of_the_leader here there"],
}
OF_THE_LEADER = ("7MB", 1, True)


def in_force(node: Node) -> tuple[Any, ...]:
    """What the overlays say: work_mem, lines of pg_hba.conf, and whether pg_ident.conf has its line."""
    lines = node.value("SELECT count(*) FROM pg_hba_file_rules WHERE user_name = '{of_the_leader}'")
    mapped = "of_the_leader" in (node.data_dir / "pg_ident.conf").read_text()
    return node.value("SHOW work_mem"), lines, mapped


@contextlib.contextmanager
def clusters(
    remote_nodes: int,
    nodes: int,
    *,
    section: Mapping[str, Any] | None = None,
    postgresql: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Cluster, Cluster]]:
    """(remote, ours): the remote runs; ours is a standby cluster of it, started."""
    with contextlib.ExitStack() as stack:
        etcd = EtcdServer()
        stack.callback(etcd.close)
        etcd.start()
        settings: dict[str, Any] = {
            "node_config": {"postgresql": {**LOOPBACK, **(postgresql or {})}},
            "ttl": 4,
        }
        slots = {"slots": {"west": {"type": "physical"}}}
        remote = Cluster(nodes=remote_nodes, etcd=etcd, scope="east", dcs=slots, **settings)
        stack.callback(remote.close)
        for node in remote.nodes:
            node.address, node.sql_port = f"127.0.0.{node.index + 2}", remote.nodes[0].sql_port
        remote.start()
        follow = {"standby_cluster": section or section_for(remote)}
        ours = Cluster(nodes=nodes, etcd=etcd, scope="west", dcs=follow, **settings)
        stack.callback(ours.close)
        for node in ours.nodes:
            node.name = node.name.replace("n", "w")
        try:
            start(ours)
            yield remote, ours
        except BaseException:
            remote.close(failed=True)
            ours.close(failed=True)
            raise


def section_for(remote: Cluster) -> dict[str, Any]:
    return {
        "host": ",".join(node.address for node in remote.nodes),
        "port": remote.nodes[0].sql_port,
        "primary_slot_name": "west",
    }


def start(ours: Cluster) -> None:
    first, *others = ours.nodes
    first.start()
    ours.wait_for(lambda: leads(first), 60, "the first one is the standby leader")
    for node in others:
        node.start()
    ours.wait_for(lambda: all(fed_by(first, node) for node in others), 60, "the others stream from it")


def leads(node: Node) -> bool:
    return node.status("/standby-leader") == 200 and node.rest("/patroni")[1]["role"] == "standby_leader"


def standby_leader(ours: Cluster) -> Node:
    found = ours.wait_for(lambda: [n for n in ours.nodes if leads(n)], 60, "a standby leader")
    assert len(found) == 1
    return found[0]


def fed_by(upstream: Node, standby: Node) -> bool:
    asked = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
    try:
        return (standby.name,) in upstream.sql(asked)
    except Exception:
        return False


def arrives(cluster: Cluster, node: Node, table: str) -> None:
    def there() -> bool:
        try:
            return node.value("SELECT to_regclass(%s) IS NOT NULL", table) is True
        except Exception:
            return False

    cluster.wait_for(there, 60, f"{table} arrives on {node.name}")


def ctl(cluster: Cluster, *arguments: str) -> str:
    """Run haagentctl with a node's file; its output."""
    command = [sys.executable, "-m", "haagent.ctl", "-c", str(cluster.nodes[0].config_file), *arguments]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


def last_row(cluster: Cluster) -> list[Any]:
    rows = json.loads(cluster.key("history") or "[]")
    return list(rows[-1]) if rows else []


def answers(node: Node, *expected: int) -> None:
    """Wait until the health checks of PATHS answer so."""
    node.cluster.wait_for(
        lambda: tuple(node.status(path) for path in PATHS) == expected, 60, f"{node.name} answers {expected}"
    )


def other(ours: Cluster, node: Node) -> Node:
    return next(n for n in ours.nodes if n is not node)


def test_life_of_a_standby_cluster() -> None:
    with clusters(2, 2, postgresql=OVERLAYS) as (remote, ours):
        east, a = remote.leader(), standby_leader(ours)
        b = other(ours, a)
        answers(a, 503, 200, 200, 503, 200, 503, 200)
        answers(b, 503, 503, 503, 200, 200, 503, 200)
        assert a.member_key()["role"] == "standby_leader"
        assert '\npatroni_standby_leader{scope="west",name="w0"} 1' in a.rest("/metrics")[1]
        assert re.search(r"\| w0 +\|.*\| Standby Leader \| streaming", ctl(ours, "list", "west"))
        assert "| + w1" in ctl(ours, "topology", "west")
        assert (in_force(a), in_force(b)) == (OF_THE_LEADER, ("4MB", 0, False))
        assert ours.key("initialize") == remote.key("initialize")
        east.sql("CREATE TABLE one (id int)")
        arrives(ours, b, "one")
        assert "west" in dict(east.sql("SELECT slot_name, active FROM pg_replication_slots WHERE active"))

        # The remote cluster has another primary, on another timeline.
        assert east.rest("/switchover", "POST", {"leader": east.name}, timeout_s=60)[0] == 200
        east = remote.wait_streaming(1)
        east.sql("CREATE TABLE two (id int)")
        arrives(ours, b, "two")
        ours.wait_for(lambda: last_row(ours)[:1] == [1], 60, "the history is that of the remote cluster")

        # A switchover inside: nothing is stopped for it.
        servers = [node.postmaster_pid() for node in ours.nodes]
        done = (200, f'Successfully switched over to "{b.name}"')
        assert a.rest("/switchover", "POST", {"leader": a.name, "candidate": b.name}, timeout_s=60) == done
        ours.wait_for(lambda: fed_by(b, a), 60, "the former standby leader streams from the next one")
        assert [node.postmaster_pid() for node in ours.nodes] == servers
        ours.wait_for(lambda: in_force(b) == OF_THE_LEADER, 60, "the overlays go with the role")

        # And a failover.
        b.kill_all()
        ours.wait_for(lambda: leads(a), 60, "the survivor is the standby leader")
        east.sql("CREATE TABLE three (id int)")
        arrives(ours, a, "three")
        b.start()
        ours.wait_for(lambda: fed_by(a, b), 60, "the lost one streams from it")

        # Promoted, it is a cluster of its own.
        assert "cluster is successfully promoted" in ctl(ours, "promote-cluster", "west", "--force")
        assert ours.wait_streaming(1) is a
        a.sql("CREATE TABLE ours (id int)")
        arrives(ours, b, "ours")
        answers(a, 200, 200, 503, 503, 200, 200, 200)
        ours.wait_for(lambda: last_row(ours)[4:] == [a.name], 60, "the history tells who was promoted")

        # Demoted again: what it wrote meanwhile is not the other cluster's, and kept aside.
        east.sql("CREATE TABLE four (id int)")
        section = section_for(remote)
        asked = ("--host", section["host"], "--port", str(section["port"]), "--primary-slot-name", "west")
        told = ctl(ours, "demote-cluster", "west", "--force", *asked)
        assert "cluster is successfully demoted" in told
        for node in ours.nodes:
            arrives(ours, node, "four")
            assert node.value("SELECT to_regclass('ours')") is None
        assert leads(a)
        assert list(a.root.glob("data.diverged-*"))
