"""Sources of the configuration and the keys of the cluster, seen by what agents and servers do with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.integration.test_cluster_crash import diverge
from tests.integration.test_cluster_operate import ctl
from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.versions import bin_dir
from tests.support.wait import holds_for

QUIET = {"logging_collector": "off"}


def haagent(*arguments: str, **variables: str) -> tuple[int, str]:
    """The agent's program as somebody types it: (exit code, all output)."""
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        [sys.executable, "-m", "haagent", *arguments],
        check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def program(directory: Path, name: str, text: str) -> Path:
    """A program in `directory`, beside links to PostgreSQL's own ones."""
    for real in Path(bin_dir()).iterdir():
        if not (directory / real.name).exists() and real.name != name:
            (directory / real.name).symlink_to(real)
    path = directory / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_agents_own_command_line() -> None:
    code, output = haagent("--version")
    assert code == 0
    assert "Patroni 4.1" in output
    assert haagent("--no-such-option")[0] == 2
    code, output = haagent("/nonexistent/agent.yml")
    assert code == 1
    assert "/nonexistent/agent.yml" in output
    assert "Traceback" not in output
    code, output = haagent()
    assert code == 1
    assert "usage: haagent" in output
    code, output = haagent(PATRONI_CONFIGURATION="scope: only")
    assert code == 1
    assert "name" in output
    assert "is missing" in output


def test_a_whole_document_in_a_variable_runs_an_agent() -> None:
    """Without a file; every other variable is ignored then."""
    cluster = Cluster(nodes=1, store="local", parameters=QUIET)
    node = cluster.nodes[0]
    cluster.environment = {"PATRONI_CONFIGURATION": yaml.safe_dump(node.config()), "PATRONI_NAME": "ignored"}
    node.by_variables_only = True
    with cluster:
        assert node.rest("/patroni")[1]["patroni"]["name"] == node.name


def test_timings_of_the_file_are_ignored() -> None:
    timings = {"ttl": 3600, "loop_wait": 3600, "retry_timeout": 3600}
    with Cluster(nodes=1, node_config=timings, parameters=QUIET) as cluster:
        node = cluster.nodes[0]
        assert cluster.lease_ttl("leader") == 6
        answer = ctl(cluster, "reload", cluster.scope, "--force")
        assert "will be processed within 1 seconds" in answer
        assert "counts in the dynamic configuration only" in node.log()


def test_a_file_alone_runs_the_agent() -> None:
    with Cluster(nodes=1, store="local", parameters=QUIET) as cluster:
        node = cluster.nodes[0]
        node.write_config()
        code, output = haagent(str(node.config_file))
        assert code == 1
        wanted = "does not run as root" if os.geteuid() == 0 else "there is already a node named"
        assert wanted in output


def test_the_cached_configuration_is_used_when_the_store_has_none() -> None:
    with Cluster(nodes=1, parameters=QUIET) as cluster:
        node = cluster.nodes[0]
        assert node.rest("/config", "PATCH", {"ttl": 7, "my_tool": {"x": 1}})[0] == 200
        cached = node.data_dir / "patroni.dynamic.json"
        cluster.wait_for(lambda: '"my_tool"' in cached.read_text(), 60, "the copy is written")
        node.stop()
        cluster.delete("config")
        node.start()
        cluster.wait_for(lambda: cluster.key("config"), 60, "the leader writes it again")
        assert json.loads(cluster.key("config") or "")["my_tool"] == {"x": 1}
        cluster.wait_for(lambda: cluster.lease_ttl("leader") == 7, 60, "it is in force")


def test_unknown_dynamic_keys_are_kept() -> None:
    with Cluster(nodes=1, store="local", parameters=QUIET) as cluster:
        node = cluster.nodes[0]
        status, shown = node.rest(
            "/config", "PATCH", {"maximum_lag_on_failovr": 5, "other": {"a": [1, None]}}
        )
        assert status == 200
        assert shown == node.rest("/config")[1]
        assert shown["other"] == {"a": [1, None]}
        assert "maximum_lag_on_failover" in node.log(), "the nearest known name is told"


def test_history_is_cut_and_ident_lines_follow_the_role() -> None:
    cluster = Cluster(nodes=2, store="local", ttl=4, dcs={"max_timelines_history": 1}, parameters=QUIET)
    ident = {"pg_ident_primary": ["m root as_primary"], "pg_ident_replica": ["m root as_replica"]}
    cluster.node_config = {"postgresql": ident}

    def lines(node: Node) -> list[str]:
        return (node.data_dir / "pg_ident.conf").read_text().splitlines()[2:]

    with cluster:
        for _ in range(2):
            old = cluster.wait_streaming(1)
            (new,) = cluster.replicas()
            cluster.wait_for(lambda n=new: lines(n) == ident["pg_ident_replica"], 60, "a replica's lines")  # type: ignore[misc]
            assert lines(old) == ident["pg_ident_primary"]
            body = {"leader": old.name, "candidate": new.name}
            assert old.rest("/switchover", "POST", body, timeout_s=60) == (
                200,
                f'Successfully switched over to "{new.name}"',
            )
            cluster.wait_for(lambda n=new: lines(n) == ident["pg_ident_primary"], 60, "a primary's lines")  # type: ignore[misc]
        leader = cluster.wait_streaming(1)
        rows = cluster.wait_for(lambda: leader.rest("/history")[1], 60, "the history")
        assert [row[0] for row in rows] == [2]


def test_the_slot_of_a_member_that_left_is_kept_for_a_while() -> None:
    with Cluster(nodes=2, ttl=4, dcs={"member_slots_ttl": "4s"}, parameters=QUIET) as cluster:
        primary = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        standby.stop()
        slots = "select slot_name from pg_replication_slots"
        cluster.wait_for(lambda: not standby.member_key(), 60, "its key has run out")
        assert primary.sql(slots) == [(standby.name,)]
        cluster.wait_for(lambda: primary.sql(slots) == [], 60, "its slot is dropped")
        standby.start()
        cluster.wait_streaming(1)


def test_with_start_timeout_zero_a_crashed_primary_is_handed_over() -> None:
    with Cluster(nodes=2, store="local", dcs={"primary_start_timeout": 0}, parameters=QUIET) as cluster:
        old = cluster.wait_streaming(1)
        (new,) = cluster.replicas()
        processes.send(old.postmaster_pid(), signal.SIGKILL)
        assert cluster.wait_for(cluster.leaders, 60, "a leader")
        cluster.wait_for(new.is_primary, 60, "the other one takes over, though the agent lives")
        cluster.wait_streaming(1)


def test_a_failed_rewind_may_be_cloned_again(shared: Path) -> None:
    program(shared, "pg_rewind", "echo 'pg_rewind: fatal: no luck' >&2; exit 1")
    allowed = {"bin_dir": str(shared), "remove_data_directory_on_rewind_failure": True}
    cluster = Cluster(nodes=2, store="local", ttl=4, parameters=QUIET)
    cluster.node_config = {"postgresql": allowed}
    with cluster:
        old = cluster.wait_streaming(1)
        new = diverge(cluster, old)
        old.start()
        assert cluster.wait_streaming(1) is new
        assert "no luck" in old.log()
        cluster.wait_for(
            lambda: old.value("select to_regclass('kept') is not null"), 60, "a copy of the new one"
        )
        assert old.value("select to_regclass('lost_with_the_node') is null")


def test_a_start_that_takes_longer_goes_on_by_itself(shared: Path) -> None:
    """Until pg_ctl_timeout the start is a job; then the server is one that starts, and the agent is free."""
    waiting = shared / "wait"
    real = f"{bin_dir()}/postgres"
    wait = f'case "$*" in *-D*) while [ -e {waiting} ]; do sleep 0.1; done;; esac'
    program(shared, "postgres", f'{wait}\nexec {real} "$@"')
    settings = {"bin_dir": str(shared), "pg_ctl_timeout": 2}
    cluster = Cluster(nodes=1, store="local", ttl=4, node_config={"postgresql": settings}, parameters=QUIET)
    with cluster:
        node = cluster.leader()
        node.stop()
        waiting.touch()
        node.start()
        cluster.wait_for(lambda: "start standby in progress" in node.log(), 60, "the start is a job")
        starting = (503, "postgres is still starting")
        cluster.wait_for(lambda: node.rest("/restart", "POST") == starting, 60, "the agent is free")
        holds_for(lambda: node.rest("/restart", "POST") == starting, 1, "the server still starts")
        waiting.unlink()
        assert cluster.leader() is node
