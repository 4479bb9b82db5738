"""The cluster harness: it starts real nodes, and leaves nothing behind whatever a test did to them."""

from __future__ import annotations

import pytest

from tests.support import processes
from tests.support.cluster import Cluster
from tests.support.wait import DEADLINE_S
from tests.support.writers import Writers


def test_a_cluster_serves_writers_and_its_end_leaves_no_process_and_no_file() -> None:
    with Cluster(nodes=2, store="local") as cluster:
        leader = cluster.leader()
        with Writers(cluster) as writers:
            writers.wait_acknowledged(20)
        evidence = writers.evidence()
        assert evidence.tenures() == [(leader.name, 1)]
        assert evidence.missing(leader.dsn) == []

        pids = {leader.agent_pid, leader.guardian_pid, leader.postmaster_pid()}
        assert pids <= set(leader.all_pids())
        assert leader.postmaster_pid() in leader.postgres_pids()
        assert leader.guardian_pid not in leader.postgres_pids()
        leader.kill_agent()
        cluster.node(1).freeze_agent()
        cluster.wait_for(lambda: not leader.agent_running, DEADLINE_S, "agent gone")
    assert not cluster.root.exists()
    assert processes.processes_of(cluster.root) == []


def test_an_agent_that_refuses_its_file_fails_the_start_at_once_with_its_log() -> None:
    cluster = Cluster(nodes=1, store="local", node_config={"postgresql": {"bin_dir": "/nowhere"}})
    try:
        with pytest.raises(pytest.fail.Exception, match=r"n0: the agent exited with (?s:.*)/nowhere"):
            cluster.start()
    finally:
        cluster.close()
