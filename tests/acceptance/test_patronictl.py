"""Patroni's own `patronictl`, from PyPI, against a cluster of ours: its configuration is a node's file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from tests.acceptance.programs import patronictl
from tests.support.cluster import Cluster, Node


def rows(cluster: Cluster, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(patronictl(cluster, *arguments, "-f", "json"))
    return found


def row(cluster: Cluster, node: Node) -> dict[str, Any]:
    return next(row for row in rows(cluster, "list", "-e") if row["Member"] == node.name)


def others(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.nodes if node is not leader]


def shows(node: Node, setting: str, value: str) -> bool:
    return bool(node.value(f"show {setting}") == value)


def after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


# --- reading ------------------------------------------------------------------------------------


def test_the_cluster_is_listed(cluster: Cluster) -> None:
    leader = cluster.leader()
    listed = rows(cluster, "list")
    assert [row["Member"] for row in listed] == ["n0", "n1", "n2"]
    assert {row["Host"] for row in listed} == {f"127.0.0.1:{node.sql_port}" for node in cluster.nodes}
    for row in listed:
        leads = row["Member"] == leader.name
        assert (row["Role"], row["State"]) == (("Leader", "running") if leads else ("Replica", "streaming"))
        assert leads or (row["Receive Lag"], row["Replay Lag"]) == (0, 0)
    assert patronictl(cluster, "topology").count("+ n") == 2
    assert "Maintenance" not in patronictl(cluster, "list")
    versions = patronictl(cluster, "version", "demo")
    assert all(f"{node.name}: Patroni 4.1.5 PostgreSQL" in versions for node in cluster.nodes)


def test_servers_are_found_and_asked(cluster: Cluster) -> None:
    leader = cluster.leader()
    assert patronictl(cluster, "dsn").strip() == f"host=127.0.0.1 port={leader.sql_port}"
    ports = {f"host=127.0.0.1 port={node.sql_port}" for node in others(cluster, leader)}
    assert patronictl(cluster, "dsn", "-r", "replica").strip() in ports
    ask = ("query", "-U", "postgres", "-c", "select inet_server_port(), pg_is_in_recovery()")
    assert str(leader.sql_port) in patronictl(cluster, *ask)
    assert "True" in patronictl(cluster, *ask, "-r", "replica")


# --- configuration ------------------------------------------------------------------------------


def test_the_configuration_is_edited(cluster: Cluster) -> None:
    assert "ttl: 6" in patronictl(cluster, "show-config")
    done = patronictl(cluster, "edit-config", "--force", "-s", "postgresql.parameters.work_mem=7MB")
    assert "Configuration changed" in done
    for node in cluster.nodes:
        cluster.wait_for(partial(shows, node, "work_mem", "7MB"), 60, "it reaches PostgreSQL")
    patronictl(cluster, "edit-config", "--force", "-s", "postgresql.parameters.work_mem=null")
    assert "work_mem" not in patronictl(cluster, "show-config")
    assert "Not changed" in patronictl(cluster, "edit-config")


def test_what_needs_a_restart_is_shown_and_done_by_a_restart(cluster: Cluster) -> None:
    node = others(cluster, cluster.leader())[0]
    patronictl(cluster, "edit-config", "--force", "-s", "postgresql.parameters.max_worker_processes=9")
    cluster.wait_for(lambda: row(cluster, node).get("Pending restart") == "*", 60, "the restart is shown due")
    assert "max_worker_processes: 8->9" in patronictl(cluster, "list", "-e")
    done = patronictl(cluster, "restart", "demo", "--pending", "--force")
    assert done.count("Success: restart on member") == 3
    assert {node.value("show max_worker_processes") for node in cluster.nodes} == {"9"}
    cluster.wait_for(lambda: not row(cluster, node).get("Pending restart"), 60, "nothing is due any more")


# --- members ------------------------------------------------------------------------------------


def test_members_are_restarted_reloaded_and_made_anew(cluster: Cluster) -> None:
    leader = cluster.leader()
    node = others(cluster, leader)[0]
    old = node.postmaster_pid()
    assert "Success" in patronictl(cluster, "restart", "demo", node.name, "--force")
    assert node.postmaster_pid() not in (None, old)
    assert "processed within" in patronictl(cluster, "reload", "demo", node.name, "--force")

    (node.data_dir / "left-over").touch()
    done = patronictl(cluster, "reinit", "demo", node.name, "--force", "--wait")
    assert "Reinitialize is completed on" in done
    assert not (node.data_dir / "left-over").exists()
    assert "No replica" in patronictl(cluster, "reinit", "demo", leader.name, "--force", code=1)


def test_a_restart_is_scheduled_flushed_and_done_in_time(cluster: Cluster) -> None:
    node = others(cluster, cluster.leader())[0]
    old = node.postmaster_pid()
    patronictl(cluster, "restart", "demo", node.name, "--force", "--scheduled", after(3600))
    assert row(cluster, node)["Scheduled restart"]
    assert "Success" in patronictl(cluster, "flush", "demo", node.name, "restart", "--force")
    assert not row(cluster, node).get("Scheduled restart")
    patronictl(cluster, "restart", "demo", node.name, "--force", "--scheduled", after(4))
    cluster.wait_for(lambda: node.postmaster_pid() not in (None, old), 60, "it is restarted in time")


# --- leadership ---------------------------------------------------------------------------------


def test_a_pause_is_seen_by_all_and_ends(cluster: Cluster) -> None:
    assert "cluster management is paused" in patronictl(cluster, "pause", "--wait")
    assert "Maintenance mode: on" in patronictl(cluster, "list")
    assert "already paused" in patronictl(cluster, "pause", code=1)
    assert "400, Switchover is possible only to a specific" in patronictl(cluster, "switchover", "--force")
    assert "cluster management is resumed" in patronictl(cluster, "resume", "--wait")
    assert "not paused" in patronictl(cluster, "resume", code=1)


def test_switchovers_by_option_and_by_answers(cluster: Cluster) -> None:
    leader = cluster.leader()
    first, second = others(cluster, leader)
    options = ("--leader", leader.name, "--candidate", first.name, "--force")
    assert f'Successfully switched over to "{first.name}"' in patronictl(cluster, "switchover", *options)
    assert cluster.wait_streaming(2) is first
    answers = f"{first.name}\n{second.name}\nnow\ny\n"
    assert f'switched over to "{second.name}"' in patronictl(cluster, "switchover", stdin=answers)
    assert cluster.wait_streaming(2) is second
    timeline = second.value("select timeline_id from pg_control_checkpoint()")
    last = rows(cluster, "history")[-1]
    assert (last["TL"], last["New Leader"]) == (timeline - 1, second.name)
    refused = patronictl(cluster, "switchover", "--leader", first.name, "--force", code=1)
    assert "is not the leader" in refused


def test_a_failover_is_asked_for_by_name(cluster: Cluster) -> None:
    node = others(cluster, cluster.leader())[0]
    done = patronictl(cluster, "failover", "--candidate", node.name, "--force")
    assert f'Successfully failed over to "{node.name}"' in done
    assert cluster.wait_streaming(2) is node
    assert "does not exist" in patronictl(cluster, "failover", "--candidate", "nobody", "--force", code=1)


def test_a_switchover_is_scheduled_flushed_and_done_in_time(cluster: Cluster) -> None:
    leader = cluster.leader()
    node = others(cluster, leader)[0]
    options = ("--leader", leader.name, "--candidate", node.name, "--force")
    patronictl(cluster, "switchover", *options, "--scheduled", after(3600))
    assert "Switchover scheduled at" in patronictl(cluster, "list")
    assert "scheduled switchover deleted" in patronictl(cluster, "flush", "demo", "switchover")
    assert "Switchover scheduled at" not in patronictl(cluster, "list")
    patronictl(cluster, "switchover", *options, "--scheduled", after(4))
    cluster.wait_for(node.is_primary, 60, "it is switched over in time")
    assert cluster.wait_streaming(2) is node


def test_a_living_cluster_survives_its_removal_from_the_store(cluster: Cluster) -> None:
    leader, before = cluster.leader(), patronictl(cluster, "show-config")
    old = [node.postmaster_pid() for node in cluster.nodes]
    patronictl(cluster, "remove", "demo", stdin=f"demo\nYes I am aware\n{leader.name}\n")
    cluster.wait_for(lambda: len(rows(cluster, "list")) == 3, 60, "all members are there again")
    assert cluster.wait_streaming(2) is leader
    assert patronictl(cluster, "show-config") == before
    assert [node.postmaster_pid() for node in cluster.nodes] == old
