"""The agent dies by kill -9 right after each single write of contract 1.10, on real PostgreSQL and etcd.

Whoever comes next finds `/sync` and synchronous_standby_names between two steps, and nothing else that
remembers. No acknowledged row may be lost, whoever leads then, and both have to come to rest again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from haagent.failpoints import VARIABLE
from tests.integration.test_sync_modes import LONG_S, names_in_force, patch, standbys, sync
from tests.support.cluster import Cluster, Node
from tests.support.writers import Writers


class Killing:
    """A cluster whose agents end themselves after an action, when told to: each by a file of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        for node in cluster.nodes:
            self.arm(node, "")
            node.kill_agent()
            self.start(node)

    def arm(self, node: Node, action: str) -> None:
        file = self._file(node)
        file.write_text(action)
        file.chmod(0o644)

    def _file(self, node: Node) -> Path:
        return self.cluster.root / f"failpoint-{node.name}"

    def start(self, node: Node) -> None:
        self.arm(node, "")
        self.cluster.environment[VARIABLE] = str(self._file(node))
        node.start()

    def after(self, action: str, node: Node, cause: Callable[[], object]) -> None:
        """`cause` makes the agent of `node` do `action`, which is its end; another one is started."""
        self.arm(node, action)
        cause()
        self.cluster.wait_for(lambda: not node.agent_running, LONG_S, f"{node.name} to die of {action}")
        self.start(node)

    def at_rest(self) -> Node:
        """Somebody leads, everybody streams, and whom `/sync` names is whom commits wait for."""
        leader = self.cluster.wait_streaming(2)
        self.cluster.wait_for(lambda: _agrees(self.cluster, leader), LONG_S, "/sync and the server to agree")
        return leader


def _agrees(cluster: Cluster, leader: Node) -> bool:
    key, mode = sync(cluster), json.loads(cluster.stored()["config"]).get("synchronous_mode")
    names = names_in_force(leader)
    if not mode:
        return key == {} and names == ""
    listed = standbys(cluster)
    return key.get("leader") == leader.name and bool(listed) and all(name in names for name in listed)


def _dead(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if not node.agent_running]


MODES: dict[str, dict[str, Any]] = {
    "priority": {"synchronous_mode": True},
    "quorum": {"synchronous_mode": "quorum", "synchronous_node_count": 1},
}


@pytest.mark.parametrize("mode", ["priority", pytest.param("quorum", marks=pytest.mark.slow)])
def test_killed_after_each_write(mode: str) -> None:
    with Cluster(nodes=3, ttl=20) as cluster:
        killing = Killing(cluster)
        leader = killing.at_rest()
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20)
            for action in ("WriteSync", "SetSyncNames", "PublishSync"):  # switching it on
                killing.after(action, leader, lambda: patch(leader, **MODES[mode]))
                assert killing.at_rest() is leader
                patch(leader, synchronous_mode=None)
                assert killing.at_rest() is leader
            patch(leader, **MODES[mode])
            leader = killing.at_rest()

            for action in ("WriteSync", "SetSyncNames"):  # a synchronous standby is lost, and comes back
                lost = cluster.node(min(standbys(cluster)))
                killing.after(action, leader, lost.kill_all)
                writers.wait_acknowledged(20)
                if mode == "quorum":  # by priority another one has taken its place
                    killing.after(action, leader, partial(killing.start, lost))
                else:
                    killing.start(lost)
                assert killing.at_rest() is leader

            for action in ("DeleteSync", "SetSyncNames"):  # switching it off
                killing.after(action, leader, lambda: patch(leader, synchronous_mode=None))
                assert killing.at_rest() is leader
                patch(leader, **MODES[mode])
                assert killing.at_rest() is leader

            # Before a promotion: whoever was to lead dies in the middle of it.
            writers.wait_acknowledged(20)
            old, others = leader, [node for node in cluster.nodes if node is not leader]
            for node in others:
                killing.arm(node, "WriteSync")
            old.kill_all()
            died = cluster.wait_for(partial(_dead, others), LONG_S, "a successor to die before its promotion")
            for node in others:
                killing.arm(node, "")
            for node in (*died, old):
                killing.start(node)
            leader = killing.at_rest()
            writers.wait_acknowledged(20)
        evidence = writers.evidence()
        assert evidence.missing(leader.dsn) == []
        assert evidence.overlaps() == []
