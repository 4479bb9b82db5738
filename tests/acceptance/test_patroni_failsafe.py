"""Failsafe mode in a cluster of one haagent and one Patroni, each asking the other (contract 2.11)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, Node, as_agent_user
from tests.support.wait import holds_for
from tests.support.writers import Writers

#: Patroni's shortest.
TTL_S = 20


@pytest.fixture
def mixed() -> Iterator[tuple[Cluster, Node, Node]]:
    """The cluster, its haagent, which leads, and its Patroni, which streams."""
    cluster = Cluster(nodes=2, ttl=TTL_S, loop_wait=2, retry_timeout=3, dcs={"failsafe_mode": True})
    ours, theirs = cluster.nodes
    try:
        cluster.start_store()
        ours.start()
        cluster.wait_for(ours.leads_or_fails, 60, f"{ours.name} leads")
        start_patroni(theirs)
        cluster.wait_streaming(1)
        names = {node.name for node in cluster.nodes}
        cluster.wait_for(lambda: set(json.loads(cluster.key("failsafe") or "{}")) == names, 60, "both named")
        yield cluster, ours, theirs
    except BaseException:
        cluster.close(failed=True)
        raise
    cluster.close()


def start_patroni(node: Node) -> None:
    """On the same file; it ends with the cluster, as all that work in its directory."""
    node.write_config()
    with node.log_file.open("ab") as log:
        subprocess.Popen(
            [*as_agent_user(), sys.executable, "-m", "patroni", str(node.config_file)],
            cwd=node.root,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(node.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def is_active(node: Node) -> bool:
    return node.rest("/patroni")[1].get("failsafe_mode_is_active") is True


def goes_on(cluster: Cluster, leader: Node, other: Node) -> None:
    """The store is away for longer than a lease; the leader stays one, and both say why."""
    assert cluster.etcd is not None
    cluster.etcd.kill(signal.SIGKILL)
    for node in (leader, other):
        cluster.wait_for(lambda node=node: is_active(node), 60, f"{node.name} says that it is active")  # type: ignore[misc]
    holds_for(lambda: leader.is_primary() and leader.is_writable(), TTL_S + 5, f"{leader.name} goes on")
    assert not other.is_writable()
    cluster.etcd.start()
    cluster.wait_for(lambda: cluster.key("leader") == leader.name, 60, "the store is back")


@pytest.mark.slow
def test_each_keeps_out_of_the_race_for_the_other(mixed: tuple[Cluster, Node, Node]) -> None:
    cluster, ours, theirs = mixed
    with Writers(cluster) as writers:
        goes_on(cluster, ours, theirs)
        body = {"leader": ours.name, "candidate": theirs.name}
        status, text = ours.rest("/switchover", "POST", body, timeout_s=90)
        assert (status, "keeps out of the race" in text) == (412, True), text
        cluster.wait_for(lambda: not is_active(theirs), 2 * TTL_S, "its promise is over")
        assert ours.rest("/switchover", "POST", body, timeout_s=90)[0] == 200
        cluster.wait_streaming(1)
        assert theirs.is_primary()
        goes_on(cluster, theirs, ours)
        writers.wait_acknowledged(20)
    assert writers.evidence().overlaps() == []
