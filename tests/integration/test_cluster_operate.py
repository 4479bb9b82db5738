"""A running cluster in an operator's hands: REST while things hang, pause, and haagentctl for real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.wait import holds_for
from tests.support.writers import Writers

QUIET = {"log_min_messages": "log"}
#: An answer while PostgreSQL hangs may take this long, seconds: far below any health check's patience is the
#: goal, and far above what a busy machine needs.
QUICK_S = 3.0


def ctl(cluster: Cluster, *arguments: str, code: int = 0) -> str:
    """Run haagentctl with a node's file; its output. Fails when it ends with another code."""
    command = [sys.executable, "-m", "haagent.ctl", "-c", str(cluster.nodes[0].config_file), *arguments]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


def quick(node: Node, path: str) -> int:
    began = time.monotonic()
    status, _ = node.rest(path)
    assert time.monotonic() - began < QUICK_S, f"{path} took {time.monotonic() - began:.1f} s"
    return status


def test_rest_while_postgresql_hangs() -> None:
    with Cluster(nodes=2, parameters=QUIET) as cluster:
        leader = cluster.wait_streaming(1)
        (standby,) = (node for node in cluster.nodes if node is not leader)

        frozen = standby.postgres_pids()
        for pid in frozen:
            processes.send(pid, signal.SIGSTOP)
        cluster.wait_for(lambda: quick(standby, "/replica") == 503, 60, "a hung standby is taken out")
        assert quick(standby, "/health") == 503
        assert quick(standby, "/patroni") in (200, 503)
        assert quick(standby, "/liveness") == 200
        for pid in frozen:
            processes.send(pid, signal.SIGCONT)
        cluster.wait_for(lambda: quick(standby, "/replica") == 200, 60, "it is back")

        frozen = leader.postgres_pids()
        for pid in frozen:
            processes.send(pid, signal.SIGSTOP)
        cluster.wait_for(lambda: quick(leader, "/health") == 503, 60, "a hung primary is not healthy")
        # It still holds the lease, and nobody else may write (H12): that is what /primary says.
        assert quick(leader, "/primary") == 200
        assert quick(leader, "/patroni") in (200, 503)
        assert quick(leader, "/cluster") == 200
        assert cluster.leaders() == [leader]
        for pid in frozen:
            processes.send(pid, signal.SIGCONT)
        assert cluster.wait_streaming(1) is leader


def test_paused_means_hands_off() -> None:
    with Cluster(nodes=3, ttl=4, parameters=QUIET) as cluster:
        leader = cluster.wait_streaming(2)
        assert "Success" in ctl(cluster, "pause", "--wait")
        assert all(node.member_key().get("pause") is True for node in cluster.nodes)
        assert "Maintenance mode: on" in ctl(cluster, "list")

        # No fence: without its agent PostgreSQL lives on and stays writable, and nobody promotes.
        postmaster = leader.postmaster_pid()
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20, f"old:{leader.name}")
            leader.kill_agent()
            cluster.wait_for(lambda: "leader" not in cluster.stored(), 60, "the key runs out")
            holds_for(lambda: leader.is_writable() and not cluster.leaders(), 3, "no fence, no failover")
            writers.wait_acknowledged(20, f"old:{leader.name}")
            leader.start()
            cluster.wait_for(
                lambda: cluster.stored().get("leader") == leader.name, 60, "it takes its key again"
            )
        assert leader.postmaster_pid() == postmaster
        assert not writers.evidence().unknown

        # A dead PostgreSQL is left dead.
        processes.send(leader.postmaster_pid(), signal.SIGKILL)
        cluster.wait_for(lambda: leader.postmaster_pid() is None, 60, "PostgreSQL is dead")
        holds_for(
            lambda: leader.postmaster_pid() is None and not any(n.is_writable() for n in cluster.nodes),
            6,
            "nothing is started or promoted",
        )
        # Somebody deletes what says that the cluster is paused: with no leader either, a member puts it back.
        before = json.loads(cluster.stored()["config"])
        cluster.delete("config")
        cluster.wait_for(lambda: "config" in cluster.stored(), 60, "the configuration is back")
        assert json.loads(cluster.stored()["config"]) == before
        assert "Success" in ctl(cluster, "resume", "--wait", "--force")
        cluster.wait_streaming(2)

        # Resumed means fenced again.
        leader = cluster.leader()
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20)
            leader.kill_agent()
            cluster.wait_for(lambda: not leader.is_writable(), 60, "the fence is armed again")
            writers.wait_acknowledged(20)
            leader.start()
            cluster.wait_streaming(2)
        assert writers.evidence().overlaps() == []


def test_a_switchover_shortly_after_a_pause_waits_for_nothing() -> None:
    """One ttl after a pause nobody takes an empty key, except whom a living leader handed it to."""
    with Cluster(nodes=2, ttl=60, parameters=QUIET) as cluster:
        old = cluster.wait_streaming(1)
        (new,) = cluster.replicas()
        ctl(cluster, "pause", "--wait")
        ctl(cluster, "resume", "--wait")
        body = {"leader": old.name, "candidate": new.name}
        done = old.rest("/switchover", "POST", body, timeout_s=60)
        assert done == (200, f'Successfully switched over to "{new.name}"')
        cluster.wait_streaming(1)


def wait_pending(cluster: Cluster, node: Node, wanted: bool) -> None:
    """The member key shows whether a restart is due."""
    what = f"{node.name}: pending restart {wanted}"
    cluster.wait_for(lambda: node.member_key().get("pending_restart", False) is wanted, 60, what)


def test_haagentctl_on_a_living_cluster() -> None:
    with Cluster(nodes=2, parameters=QUIET) as cluster:
        leader = cluster.wait_streaming(1)
        (standby,) = (node for node in cluster.nodes if node is not leader)
        rows = json.loads(ctl(cluster, "list", "-f", "json"))
        assert {(row["Member"], row["Role"], row["State"]) for row in rows} == {
            (leader.name, "Leader", "running"),
            (standby.name, "Replica", "streaming"),
        }

        # SQL goes where the role says.
        asks = (
            "query",
            cluster.scope,
            "-U",
            "postgres",
            "-c",
            "select pg_is_in_recovery() as recovers",
            "-r",
        )
        assert [ctl(cluster, *asks, role) for role in ("leader", "replica")] == [
            "recovers\nFalse\n",
            "recovers\nTrue\n",
        ]
        idle = ctl(cluster, "restart", cluster.scope, "--pg-version", "10.1", "--force", code=1)
        assert idle.count(", status code=503, (restart conditions are not satisfied)") == 2
        assert leader.rest("/restart", "POST", {"restart_pending": True})[0] == 503

        # A setting of the cluster that needs restarts, the standby last because it shrinks.
        ctl(cluster, "edit-config", cluster.scope, "-p", "max_connections=60", "--force")
        for node in cluster.nodes:
            wait_pending(cluster, node, True)
        assert leader.member_key()["pending_restart_reason"] == {
            "max_connections": {"old_value": "100", "new_value": "60"}
        }
        # A standby cannot have less than its primary had: restarted too early, it stays flagged.
        ctl(cluster, "restart", cluster.scope, standby.name, "--force")
        assert standby.value("show max_connections") == "100"
        wait_pending(cluster, standby, True)
        for node in (leader, standby):
            ctl(cluster, "restart", cluster.scope, node.name, "--pending", "--force")
            assert node.value("show max_connections") == "60"
            wait_pending(cluster, node, False)
            cluster.wait_streaming(1)
        assert cluster.wait_streaming(1) is leader
        assert leader.value("select timeline_id from pg_control_checkpoint()") == 1

        # What makes no sense is refused before it is written.
        assert leader.rest("/config", "PATCH", {"standby_cluster": "yes"})[0] == 400
        assert "standby_cluster" not in cluster.stored()["config"]

        # Built anew.
        (standby.data_dir / "left-over").touch()
        ctl(cluster, "reinit", cluster.scope, standby.name, "--force", "--wait")
        cluster.wait_streaming(1)
        assert not (standby.data_dir / "left-over").exists()

        # Reload by command: the local file is read again, and PostgreSQL reads its own, changed or not.
        before = standby.value("select pg_conf_load_time()")
        standby.write_config({"tags": {"noloadbalance": True}})
        ctl(cluster, "reload", cluster.scope, standby.name, "--force")
        cluster.wait_for(lambda: standby.status("/replica") == 503, 60, "noloadbalance takes it out")
        cluster.wait_for(
            lambda: standby.value("select pg_conf_load_time()") > before, 60, "PostgreSQL reloads"
        )

        answer = ctl(cluster, "switchover", cluster.scope, "--candidate", standby.name, "--force")
        assert "Successfully switched over" in answer
        cluster.wait_streaming(1)
        assert standby.is_primary()
        assert len(json.loads(ctl(cluster, "history", cluster.scope, "-f", "json"))) == 1
