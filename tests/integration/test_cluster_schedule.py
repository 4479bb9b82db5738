"""What is scheduled happens at its time, or is dropped and says so, on a real cluster (contract 2.7)."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

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
