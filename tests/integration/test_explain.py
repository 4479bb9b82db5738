"""GET /explain and the election give the same reasons, forced for real (pure rules: unit/test_candidate)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.wait import holds_for

TTL_S = 4


def explain(node: Node) -> dict[str, Any]:
    status, body = node.rest("/explain")
    assert status == 200
    assert isinstance(body, dict)
    return body


def refusals(node: Node) -> list[str]:
    return [rule["id"] for rule in explain(node)["rules"] if rule["passed"] is False]


def wait_refusals(cluster: Cluster, node: Node, wanted: list[str]) -> None:
    cluster.wait_for(lambda: refusals(node) == wanted, 60, f"{node.name} is refused for {wanted}")
    assert explain(node)["can_lead"] is (not wanted)


def reload_tags(node: Node, tags: dict[str, Any] | None) -> None:
    node.write_config({"tags": tags})
    processes.send(node.agent_pid, signal.SIGHUP)


def walreceivers(node: Node) -> list[int]:
    return [
        pid for pid in node.postgres_pids() if b"walreceiver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def signal_all(pids: list[int], signum: signal.Signals) -> None:
    assert pids
    for pid in pids:
        processes.send(pid, signum)


def test_explain_says_why_and_the_election_does_as_it_says() -> None:
    with Cluster(nodes=3, ttl=TTL_S, parameters={"log_min_messages": "log"}) as cluster:
        a = cluster.wait_streaming(2)
        b, c = (node for node in cluster.nodes if node is not a)
        assert (explain(a)["can_lead"], explain(a)["role"]) == (True, "leader")
        for node in (b, c):
            wait_refusals(cluster, node, [])

        _hung_server(cluster, c)
        reload_tags(b, {"nofailover": True})
        wait_refusals(cluster, b, ["tag.nofailover"])
        stuck = walreceivers(c)
        signal_all(stuck, signal.SIGSTOP)
        a.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 16000000))")
        wait_refusals(cluster, c, ["lag"])
        assert explain(c)["expected_loss_bytes"] > 1048576

        # Nobody leads: the election refuses both, for these very reasons, and says so.
        a.kill_all()
        cluster.wait_for(lambda: "leader" not in cluster.stored(), 60, "the key runs out")
        holds_for(
            lambda: not cluster.leaders() and "leader" not in cluster.stored(), 2 * TTL_S, "nobody is fit"
        )
        assert refusals(b) == ["tag.nofailover"]
        assert "lag" in refusals(c)
        text = haagentctl_explain(cluster, b)
        assert "nofailover" in text
        assert "lag" in text
        # With the last primary back there is one that may.
        signal_all(stuck, signal.SIGCONT)
        a.start()
        assert cluster.wait_streaming(2) is a

        _peer_with_more_wal(cluster, a, b, c)


def _hung_server(cluster: Cluster, node: Node) -> None:
    frozen = node.postgres_pids()
    signal_all(frozen, signal.SIGSTOP)
    cluster.wait_for(lambda: "postgres.answers" in refusals(node), 60, "a hung server may not lead")
    signal_all(frozen, signal.SIGCONT)
    wait_refusals(cluster, node, [])


def haagentctl_explain(cluster: Cluster, node: Node) -> str:
    command = [sys.executable, "-m", "haagent.ctl", "-c", str(node.config_file), "explain", cluster.scope]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _peer_with_more_wal(cluster: Cluster, a: Node, b: Node, c: Node) -> None:
    """A little behind is permitted, but the one with more WAL goes first."""
    reload_tags(b, None)
    wait_refusals(cluster, b, [])
    stuck = walreceivers(c)
    signal_all(stuck, signal.SIGSTOP)
    a.sql("create table more_wal as select generate_series(1, 100)")
    wait_refusals(cluster, c, ["peer.ahead"])
    wait_refusals(cluster, b, [])
    a.kill_all()
    cluster.wait_for(b.is_writable, 60, "the one with more WAL takes over")
    signal_all(stuck, signal.SIGCONT)
    a.start()
    assert cluster.wait_streaming(2) is b
    assert b.value("select count(*) from more_wal") == 100
