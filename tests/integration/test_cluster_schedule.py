"""What is scheduled happens at its time, or is dropped and says so, on a real cluster (contract 2.7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.wait import holds_for
from tests.support.writers import Writers

QUIET = {"log_min_messages": "log"}
FAR = "2099-01-01T00:00:00+00:00"


def ctl(cluster: Cluster, *arguments: str, code: int = 0) -> str:
    """Run haagentctl with a node's file; its output. Fails when it ends with another code."""
    command = [sys.executable, "-m", "haagent.ctl", "-c", str(cluster.nodes[0].config_file), *arguments]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def wait_for_leader(cluster: Cluster, node: Node) -> None:
    cluster.wait_for(lambda: cluster.stored().get("leader") == node.name, 60, f"{node.name} takes the key")
    cluster.wait_streaming(len(cluster.nodes) - 1)
    assert cluster.stored()["failover"] == "{}"


def test_scheduled_switchovers() -> None:
    # The window is 1.5 loop_wait: wide enough for a busy machine.
    with Cluster(nodes=3, ttl=10, loop_wait=3, retry_timeout=2, parameters=QUIET) as cluster:
        a = cluster.leader()
        b, c = (node for node in cluster.nodes if node is not a)

        # Far away: shown everywhere, and dropped by whoever asks.
        wish = {"leader": a.name, "scheduled_at": FAR}
        assert b.rest("/switchover", "DELETE") == (404, "no switchover is scheduled")
        assert c.rest("/switchover", "POST", wish) == (202, "Switchover scheduled")
        assert json.loads(cluster.stored()["failover"]) == wish
        assert b.rest("/cluster")[1]["scheduled_switchover"] == {"at": FAR, "from": a.name}
        footer = f" Switchover scheduled at: {FAR}\n                    from: {a.name}\n"
        assert footer in ctl(cluster, "list")
        assert b.rest("/switchover", "DELETE") == (200, "scheduled switchover deleted")
        assert cluster.stored()["failover"] == "{}"
        assert "scheduled" in ctl(cluster, "switchover", "--scheduled", FAR, "--force")
        flush = ("flush", cluster.scope, "switchover", "--force")
        assert ctl(cluster, *flush).endswith("Success: scheduled switchover deleted\n")
        assert ctl(cluster, *flush).endswith("No pending scheduled switchover\n")

        # Soon: the named candidate leads from then on, not before, and nothing is lost.
        at = soon(4)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20)
            timed = {"leader": a.name, "candidate": b.name, "scheduled_at": at.isoformat()}
            assert a.rest("/switchover", "POST", timed)[0] == 202
            wait_for_leader(cluster, b)
            writers.wait_acknowledged(20)
        assert writers.evidence().missing(b.dsn) == []
        (row,) = json.loads(cluster.stored()["history"])
        assert datetime.fromisoformat(row[3]) >= at

        # As another tool writes it, straight into the store.
        text = {"leader": b.name, "member": c.name, "scheduled_at": soon(2).isoformat()}
        cluster.put("failover", json.dumps(text))
        wait_for_leader(cluster, c)

        # In a pause nothing begins; what it has delayed too long is dropped.
        assert "Success" in ctl(cluster, "pause", "--wait")
        refused = c.rest("/switchover", "POST", {"leader": c.name, "scheduled_at": FAR})
        assert refused == (400, "Can't schedule switchover in the paused state")
        late = json.dumps({"leader": c.name, "member": a.name, "scheduled_at": soon(0).isoformat()})
        cluster.put("failover", late)
        holds_for(lambda: cluster.stored().get("failover") == late and c.is_writable(), 6, "it is ignored")
        assert "Success" in ctl(cluster, "resume", "--wait", "--force")
        cluster.wait_for(lambda: cluster.stored()["failover"] == "{}", 60, "it is dropped")
        assert "could not begin in time: dropped" in c.log()
        assert cluster.leader() is c


def started(node: Node) -> str:
    return str(node.value("SELECT pg_postmaster_start_time()"))


def restarted(node: Node, before: str) -> bool:
    return started(node) != before


def test_scheduled_restarts() -> None:
    with Cluster(nodes=2, ttl=10, loop_wait=3, retry_timeout=2, parameters=QUIET) as cluster:
        a = cluster.leader()
        (b,) = (node for node in cluster.nodes if node is not a)

        # Far away: shown everywhere, only one at a time, and dropped on request.
        wish = {
            "schedule": "2099-01-01T00:00Z",
            "role": "replica",
            "restart_pending": True,
            "timeout": "1min",
        }
        shown = {**wish, "schedule": FAR, "timeout": 60}
        assert b.rest("/restart", "POST", wish) == (202, "Restart scheduled")
        assert b.rest("/patroni")[1]["scheduled_restart"] == shown
        key = {**shown, "postmaster_start_time": b.rest("/patroni")[1]["postmaster_start_time"]}
        assert b.member_key()["scheduled_restart"] == key
        rows = {row["name"]: row.get("scheduled_restart") for row in a.rest("/cluster")[1]["members"]}
        assert rows == {a.name: None, b.name: key}
        assert b.rest("/restart", "POST", {"schedule": FAR}) == (409, "Another restart is already scheduled")
        assert b.rest("/restart", "DELETE") == (200, "scheduled restart deleted")
        assert "scheduled_restart" not in b.member_key()
        assert b.rest("/restart", "DELETE") == (404, "no restarts are scheduled")
        answer = ctl(
            cluster, "restart", cluster.scope, b.name, "--scheduled", FAR, "--pg-version", "99.1", "--force"
        )
        assert answer.endswith(f"Success: restart scheduled on member {b.name}\n")
        rows = json.loads(ctl(cluster, "list", "-f", "json"))
        assert [row.get("Scheduled restart") for row in rows] == [None, f"{FAR} if version < 99.1"]
        flushed = ctl(cluster, "flush", cluster.scope, "restart", "--force")
        assert f"Success: flush scheduled restart for member {b.name}" in flushed
        assert f"No scheduled restart for member {a.name}" in flushed

        # Soon: not before, on the leader as on a standby, without a new timeline.
        at, before = soon(3), [started(node) for node in (a, b)]
        for node in (a, b):
            assert node.rest("/restart", "POST", {"schedule": at.isoformat()})[0] == 202
        for node, old in zip((a, b), before, strict=True):
            cluster.wait_for(partial(restarted, node, old), 60, f"{node.name} is restarted")
            assert datetime.fromisoformat(started(node)) >= at
        assert cluster.wait_streaming(1) is a
        assert a.value("SELECT timeline_id FROM pg_control_checkpoint()") == 1

        # Restarted meanwhile, or not wanted when it is due: dropped.
        assert b.rest("/restart", "POST", {"schedule": FAR})[0] == 202
        assert b.rest("/restart", "POST", {}, timeout_s=60) == (200, "restarted successfully")
        cluster.wait_for(lambda: "scheduled_restart" not in b.member_key(), 60, "it is overtaken")
        last = started(b)
        assert b.rest("/restart", "POST", {"schedule": soon(1).isoformat(), "role": "primary"})[0] == 202
        cluster.wait_for(lambda: "scheduled_restart" not in b.member_key(), 60, "it is not wanted")
        assert started(b) == last


def gated(cluster: Cluster) -> None:
    """From now on every server waits for a gate of its node, when there is one, before it starts."""
    for node in cluster.nodes:
        program = node.root / "postgres-behind-a-gate"
        gate = node.root / "gate"
        program.write_text(
            "#!/bin/sh\n"
            f'case " $* " in *" -D "*) [ -p {gate} ] && read x < {gate} ;; esac\n'
            f'exec {cluster.bin_dir}/postgres "$@"\n'
        )
        program.chmod(0o755)
        node.config_changes = {"postgresql": {"bin_name": {"postgres": str(program)}}}


def shut(node: Node) -> None:
    os.mkfifo(node.root / "gate")
    (node.root / "gate").chmod(0o666)


def open_gate(node: Node) -> None:
    gate = os.open(node.root / "gate", os.O_RDWR)
    (node.root / "gate").unlink()
    os.write(gate, b"\n")
    os.close(gate)


def test_a_restart_that_takes_longer_than_its_timeout() -> None:
    cluster = Cluster(nodes=2, parameters=QUIET)
    gated(cluster)
    with cluster:
        a = cluster.leader()
        (b,) = (node for node in cluster.nodes if node is not a)

        shut(b)
        answer = b.rest("/restart", "POST", {"timeout": 1}, timeout_s=60)
        assert answer == (503, "postgres is still starting")
        assert b.rest("/restart", "POST", {}, timeout_s=60) == (503, "postgres is still starting")
        open_gate(b)
        cluster.wait_streaming(1)

        # A primary is handed over, if somebody can take over.
        shut(a)
        answer = a.rest("/restart", "POST", {"timeout": 1}, timeout_s=60)
        assert answer == (503, "postgres is still starting")
        (a.root / "gate").unlink()
        cluster.wait_for(b.is_primary, 60, "the standby takes over")
        assert cluster.wait_streaming(1) is b
