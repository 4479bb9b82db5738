"""The life of a cluster without faults, and of its agents: what is made, published, kept and taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.writers import Writers

#: Contract 1.3: fields of a member key in their order; ours adds `agent` at the end.
PRIMARY_FIELDS = ["conn_url", "api_url", "state", "role", "version", "xlog_location", "timeline", "agent"]
REPLICA_FIELDS = [
    *("conn_url", "api_url", "state", "role", "version", "xlog_location", "replay_lsn", "receive_lsn"),
    *("replication_state", "timeline", "agent"),
]


def grow(cluster: Cluster, **changes: Any) -> Node:
    """One more node, not started."""
    node = Node(cluster, len(cluster.nodes))
    node.config_changes = changes
    cluster.nodes.append(node)
    return node


def reload(node: Node, changes: dict[str, Any]) -> None:
    node.write_config(changes)
    processes.send(node.agent_pid, signal.SIGHUP)


def test_life_of_a_cluster() -> None:
    # A lease long enough for an agent to be started again in it on a busy machine.
    with Cluster(nodes=2, ttl=20, parameters={"log_min_messages": "log"}) as cluster:
        a, b = cluster.nodes
        reload(b, {"tags": {"clonefrom": True}})
        cluster.wait_for(lambda: b.member_key().get("tags") == {"clonefrom": True}, 30, "the tag")
        c = grow(cluster)
        c.start()
        cluster.wait_streaming(2)
        assert f"cloning from {b.name}" in c.log()
        reload(b, {"tags": None})
        cluster.wait_for(lambda: "tags" not in b.member_key(), 30, "the tag is gone")

        _keys(cluster, a, [b, c])
        _roles_and_passwords(a)
        _slots(a, [b, c])
        _files(a, b)
        _reload_of_a_parameter(cluster, a)
        _second_agent_of_the_same_name(cluster, b)
        _agent_killed_and_started(cluster, a)
        _agent_leaves(cluster, a)


def _keys(cluster: Cluster, primary: Node, standbys: list[Node]) -> None:
    cluster.wait_for(lambda: list(primary.member_key()) == PRIMARY_FIELDS, 30, "checkpoint after promote")
    keys = cluster.stored()
    names = {f"members/{node.name}" for node in cluster.nodes}
    assert set(keys) - {"history"} == {"config", "initialize", "leader", "status"} | names
    assert keys["leader"] == primary.name
    assert keys["initialize"] == str(primary.value("select system_identifier from pg_control_system()"))
    assert keys["config"] == json.dumps(cluster.dynamic, separators=(",", ":"))
    assert keys.get("history", "[]") == "[]"
    status = json.loads(keys["status"])
    assert list(status) == ["optime", "slots", "retain_slots"]
    assert set(status["slots"]) == {node.name for node in cluster.nodes}
    assert status["retain_slots"] == sorted(node.name for node in cluster.nodes)
    member = json.loads(keys[f"members/{primary.name}"])
    assert member["conn_url"] == f"postgres://127.0.0.1:{primary.sql_port}/postgres"
    assert member["api_url"] == f"http://127.0.0.1:{primary.api_port}/patroni"
    assert (member["state"], member["role"], member["timeline"]) == ("running", "primary", 1)
    for node in standbys:
        cluster.wait_for(lambda node=node: list(node.member_key()) == REPLICA_FIELDS, 30, node.name)  # type: ignore[misc]
        assert node.member_key()["replication_state"] == "streaming"
    for text in keys.values():
        assert ": " not in text
        assert "secret" not in text


def _roles_and_passwords(primary: Node) -> None:
    roles = dict(primary.sql("select rolname, rolreplication from pg_roles where rolname !~ '^pg_'"))
    assert roles == {"postgres": True, "replicator": True, "rewind_user": False}
    hashed = "select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolname !~ '^pg_'"
    assert primary.sql(hashed) == [(True,)] * 3
    rights = "select has_function_privilege('rewind_user', 'pg_read_binary_file(text)', 'execute')"
    assert primary.value(rights) is True


def _slots(primary: Node, standbys: list[Node]) -> None:
    for node in standbys:
        conninfo = node.value("select conninfo || ' slot=' || slot_name from pg_stat_wal_receiver")
        assert f"slot={node.name}" in conninfo
        assert f"application_name={node.name}" in conninfo
    slots = primary.sql("select slot_name, slot_type, active from pg_replication_slots order by 1")
    assert slots == [(node.name, "physical", True) for node in standbys]


def _files(primary: Node, standby: Node) -> None:
    """Contract 5.4 and 5.5."""
    for node in (primary, standby):
        conf = (node.data_dir / "postgresql.conf").read_text()
        assert "include 'postgresql.base.conf'" in conf
        assert f"port = '{node.sql_port}'" in conf or f"port = {node.sql_port}" in conf
        assert "host all all 127.0.0.1/32 trust" in (node.data_dir / "pg_hba.conf").read_text()
        cached = json.loads((node.data_dir / "patroni.dynamic.json").read_text())
        assert cached["maximum_lag_on_failover"] == 1048576
        assert "secret" not in conf
    assert (standby.data_dir / "standby.signal").exists()
    assert not (primary.data_dir / "standby.signal").exists()
    assert (standby.root / "pgpass").stat().st_mode & 0o077 == 0


def _reload_of_a_parameter(cluster: Cluster, node: Node) -> None:
    started = node.value("select pg_postmaster_start_time()")
    reload(node, {"postgresql": {"parameters": {"work_mem": "12MB", "max_connections": 50}}})
    cluster.wait_for(lambda: node.value("show work_mem") == "12MB", 30, "the parameter is in force")
    # max_connections is the cluster's, not the node's (contract 5.3): the local file does not change it.
    assert node.value("show max_connections") == "100"
    assert node.value("select pg_postmaster_start_time()") == started


def _second_agent_of_the_same_name(cluster: Cluster, node: Node) -> None:
    twin = Node(cluster, node.index + 100)
    twin.name = node.name
    twin.start()
    cluster.wait_for(lambda: twin.agent_exit is not None, 30, "the second agent gives up")
    assert twin.agent_exit == 1
    assert f"there is already a node named '{node.name}' running" in twin.log()
    assert node.agent_running


def _agent_killed_and_started(cluster: Cluster, primary: Node) -> None:
    """Within the lease: same postmaster, the session from before goes on, nobody else leads."""
    before = (primary.postmaster_pid(), primary.guardian_pid)
    epoch = cluster.stored()["leader"]
    with Writers(cluster, direct=True) as writers:
        writers.wait_acknowledged(20, f"old:{primary.name}")
        primary.kill_agent()
        primary.start()
        cluster.wait_for(primary.is_primary, 30, "the agent leads again")
        writers.wait_acknowledged(200, f"old:{primary.name}")
    assert (primary.postmaster_pid(), primary.guardian_pid) == before
    assert cluster.stored()["leader"] == epoch
    assert cluster.leaders() == [primary]
    assert not writers.evidence().unknown, "a session was cut"
    cluster.wait_streaming(2)


def _agent_leaves(cluster: Cluster, old: Node) -> None:
    """SIGTERM: PostgreSQL is stopped, the key is released, somebody takes over without waiting for a ttl."""
    with Writers(cluster) as writers:
        writers.wait_acknowledged(50)
        assert old.stop() == 0
        assert old.postmaster_pid() is None
        assert old.member_key().get("state", "stopped") == "stopped"
        writers.wait_acknowledged(50)
        gap_s = writers.evidence().write_gap_s("any")
        new = cluster.leader()
        assert new is not old
        # Beside a stopped instance: it comes back as a standby, with nothing to mend.
        old.start()
        cluster.wait_streaming(2)
    assert writers.evidence().missing(new.dsn) == []
    assert gap_s < cluster.dynamic["ttl"] - 1, f"the key ran out instead of being released: {gap_s:.2f} s"
    assert not list(old.root.glob("*diverged*")), "it was told to hand over, so it had nothing to mend"
    assert processes.exists(old.guardian_pid or 0)


@pytest.mark.slow
def test_agent_beside_a_foreign_start_and_a_foreign_cluster() -> None:
    with Cluster(nodes=1) as cluster:
        (node,) = cluster.nodes
        node.sql("create table mine as select 1 as n")
        assert node.stop() == 0

        # Somebody starts PostgreSQL by hand; the agent takes it over without a restart.
        log = str(node.root / "by-hand.log")
        run_as_owner(f"{cluster.bin_dir}/pg_ctl", "-D", str(node.data_dir), "-w", "-l", log, "start")
        by_hand = node.postmaster_pid()
        assert by_hand is not None
        node.start()
        cluster.wait_for(node.is_primary, 60, "the agent leads beside the running primary")
        assert node.postmaster_pid() == by_hand
        session = node.connect()
        # Fenced like its own.
        node.kill_agent()
        cluster.wait_for(lambda: node.postmaster_pid() is None, 60, "the adopted postmaster is fenced")
        with pytest.raises(psycopg.OperationalError):
            session.execute("insert into mine values (2)")
        session.close()
        node.start()
        cluster.wait_for(node.is_primary, 60, "it leads again")
        assert node.value("select count(*) from mine") == 1
        assert node.stop() == 0

        # Data of another cluster is not touched, and the agent says so.
        cluster.put("initialize", "7000000000000000001")
        node.start()
        cluster.wait_for(lambda: node.agent_exit is not None, 60, "the agent refuses")
        assert node.agent_exit == 1
        assert "system ID mismatch" in node.log()
        assert (node.data_dir / "PG_VERSION").exists()


def run_as_owner(*command: str) -> None:
    prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *command], check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/")


def test_root_is_told_how_to_start_it() -> None:
    if os.geteuid() != 0:
        return  # PostgreSQL's own rule; there is nothing to see as another user
    cluster = Cluster(nodes=1)
    try:
        (node,) = cluster.nodes
        node.write_config()
        command = [sys.executable, "-m", "haagent", "run", str(node.config_file)]
        done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 1
        assert "setpriv --reuid=postgres" in done.stderr
        assert str(node.config_file) in done.stderr
        assert not node.data_dir.exists()
    finally:
        cluster.close()
