"""Every check of `check_patroni`, from PyPI: OK while all is well, and an alarm when it is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.acceptance.programs import call, check_patroni, patronictl
from tests.support.cluster import Cluster, Node


def roles(cluster: Cluster) -> tuple[Node, Node]:
    leader = cluster.leader()
    return leader, next(node for node in cluster.nodes if node is not leader)


def wait_for_check(cluster: Cluster, wanted: str, node: Node, *arguments: str) -> None:
    what = f"{arguments[0]} is {wanted}"
    cluster.wait_for(lambda: check_patroni(node, *arguments) == wanted, 60, what)


def test_the_checks_here_are_all_there_are() -> None:
    listed = call(["check_patroni", "--help"]).stdout.partition("Commands:")[2].split("\n")
    commands = {line.split()[0] for line in listed if line.strip()}
    told = Path(__file__).read_text()
    assert commands
    assert [name for name in commands if f'"{name}"' not in told] == []


def test_of_a_node(cluster: Cluster) -> None:
    leader, replica = roles(cluster)
    assert check_patroni(leader, "node_is_alive") == "OK"
    assert check_patroni(leader, "node_is_leader") == "OK"
    assert check_patroni(replica, "node_is_leader") == "CRITICAL"
    assert check_patroni(leader, "node_is_leader", "--is-standby-leader") == "CRITICAL"
    assert check_patroni(leader, "node_is_primary") == "OK"
    assert check_patroni(replica, "node_is_primary") == "CRITICAL"
    assert check_patroni(replica, "node_is_replica") == "OK"
    assert check_patroni(replica, "node_is_replica", "--max-lag", "1MB") == "OK"
    assert check_patroni(replica, "node_is_replica", "--is-async") == "OK"
    assert check_patroni(replica, "node_is_replica", "--is-sync") == "CRITICAL"
    assert check_patroni(leader, "node_is_replica") == "CRITICAL"
    assert check_patroni(leader, "node_patroni_version", "--patroni-version", "4.1.5") == "OK"
    assert check_patroni(leader, "node_patroni_version", "--patroni-version", "3.0.0") == "CRITICAL"
    _, shown = leader.rest("/patroni")
    assert check_patroni(leader, "node_tl_has_changed", "--timeline", str(shown["timeline"])) == "OK"
    assert check_patroni(leader, "node_tl_has_changed", "--timeline", "99") == "CRITICAL"


def test_of_the_cluster(cluster: Cluster) -> None:
    _, node = roles(cluster)
    assert check_patroni(node, "cluster_has_leader") == "OK"
    assert check_patroni(node, "cluster_has_replica", "-w", "2:", "-c", "1:", "--max-lag", "1MB") == "OK"
    assert check_patroni(node, "cluster_has_replica", "-w", "3:", "-c", "1:") == "WARNING"
    counts = ("-w", "3:", "-c", "2:", "--healthy-warning", "3:", "--healthy-critical", "2:")
    assert check_patroni(node, "cluster_node_count", *counts) == "OK"
    assert check_patroni(node, "cluster_node_count", "-w", "4:", "-c", "2:") == "WARNING"
    assert check_patroni(node, "cluster_is_in_maintenance") == "OK"
    assert check_patroni(node, "cluster_has_scheduled_action") == "OK"


def test_a_changed_configuration_and_the_restart_it_needs(cluster: Cluster) -> None:
    _, node = roles(cluster)
    state = str(cluster.root / "check_patroni.state")
    has_changed = ("cluster_config_has_changed", "--state-file", state)
    check_patroni(node, *has_changed, "--save")
    assert check_patroni(node, *has_changed) == "OK"
    assert check_patroni(node, "node_is_pending_restart") == "OK"
    patronictl(cluster, "edit-config", "--force", "-s", "postgresql.parameters.max_locks_per_transaction=70")
    assert check_patroni(node, *has_changed) == "CRITICAL"
    wait_for_check(cluster, "CRITICAL", node, "node_is_pending_restart")
    patronictl(cluster, "restart", "demo", "--pending", "--force")
    wait_for_check(cluster, "OK", node, "node_is_pending_restart")


def test_a_scheduled_action(cluster: Cluster) -> None:
    leader, node = roles(cluster)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for schedule, flush in (
        (("switchover", "--leader", leader.name), ("switchover",)),
        (("restart", "demo", node.name), (node.name, "restart", "--force")),
    ):
        patronictl(cluster, *schedule, "--force", "--scheduled", later)
        assert check_patroni(node, "cluster_has_scheduled_action") == "CRITICAL"
        patronictl(cluster, "flush", "demo", *flush)
        assert check_patroni(node, "cluster_has_scheduled_action") == "OK"


def test_a_pause_without_a_leader(cluster: Cluster) -> None:
    leader, node = roles(cluster)
    patronictl(cluster, "pause", "--wait")
    assert check_patroni(node, "cluster_is_in_maintenance") == "CRITICAL"
    leader.kill_agent()
    assert check_patroni(leader, "node_is_alive") == "UNKNOWN"  # its word for "no answer"
    wait_for_check(cluster, "CRITICAL", node, "cluster_has_leader")
    assert check_patroni(node, "cluster_node_count", "-w", "3:", "-c", "1:") == "WARNING"
    leader.start()
    wait_for_check(cluster, "OK", node, "cluster_has_leader")
    patronictl(cluster, "resume", "--wait")


def test_a_lost_replica(cluster: Cluster) -> None:
    leader, node = roles(cluster)
    node.kill_all()
    wait_for_check(cluster, "WARNING", leader, "cluster_has_replica", "-w", "2:", "-c", "1:")
    assert check_patroni(leader, "cluster_has_replica", "-c", "2:") == "CRITICAL"
    assert check_patroni(leader, "cluster_node_count", "--healthy-critical", "3:") == "CRITICAL"
    node.start()
