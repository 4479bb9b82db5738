"""Configuration that shows on real servers: settings per role, programs under other names, reload."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cluster_crash import QUIET, diverge
from tests.support.cluster import Cluster, Node
from tests.support.etcd import free_port
from tests.support.versions import bin_dir

WRAPPED = ("initdb", "pg_basebackup", "pg_controldata", "pg_rewind", "postgres")


@pytest.fixture
def programs() -> Iterator[Path]:
    """A directory in which `my-<program>` notes its arguments in `my-<program>.log` and runs the real one."""
    directory = Path(tempfile.mkdtemp(prefix="haagent-programs-"))
    directory.chmod(0o755)
    for real in Path(bin_dir()).iterdir():
        if real.name not in WRAPPED:
            (directory / real.name).symlink_to(real)
    for name in WRAPPED:
        noted = directory / f"my-{name}.log"
        noted.touch()
        noted.chmod(0o666)
        script = directory / f"my-{name}"
        script.write_text(f'#!/bin/sh\necho "$*" >> {noted}\nexec {bin_dir()}/{name} "$@"\n')
        script.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def settings(node: Node) -> tuple[object, list[str]]:
    """(work_mem, users named in pg_hba.conf) as the running server has them."""
    users = node.sql("select unnest(user_name) from pg_hba_file_rules where database = '{nowhere}'")
    return node.value("select current_setting('work_mem')"), [name for (name,) in users]


AS_PRIMARY = ("11MB", ["at_primary"])
AS_REPLICA = ("12MB", ["at_replica"])


def test_settings_follow_the_role_and_programs_their_names(programs: Path) -> None:
    cluster = Cluster(nodes=2, ttl=4, parameters={**QUIET, "work_mem": "10MB"})
    for node in cluster.nodes:
        lines = node.config()["postgresql"]["pg_hba"]
        node.config_changes = {
            "postgresql": {
                "bin_dir": str(programs),
                "bin_name": {name: f"my-{name}" for name in WRAPPED},
                "rewind": ["progress"],
                "parameters_primary": {"work_mem": "11MB", "max_connections": 500},
                "parameters_replica": {"work_mem": "12MB"},
                "pg_hba_primary": [*lines, "host nowhere at_primary 192.0.2.1/32 reject"],
                "pg_hba_replica": [*lines, "host nowhere at_replica 192.0.2.1/32 reject"],
            }
        }
    with cluster:
        old = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        assert settings(old) == AS_PRIMARY
        assert settings(standby) == AS_REPLICA
        assert old.value("select current_setting('max_connections')") == "100"

        new = diverge(cluster, old)
        cluster.wait_for(lambda: settings(new) == AS_PRIMARY, 60, "the promoted one has a primary's settings")
        old.start()
        cluster.wait_streaming(1)
        cluster.wait_for(lambda: settings(old) == AS_REPLICA, 60, "the old primary has a replica's settings")
        for name in WRAPPED:
            assert (programs / f"my-{name}.log").read_text(), f"{name} was never run under its name"
        assert "--progress" in (programs / "my-pg_rewind.log").read_text()


def test_a_reload_reaches_logs_and_moves_no_data_directory() -> None:
    with Cluster(nodes=1, store="local", parameters=QUIET) as cluster:
        node = cluster.leader()
        node.write_config(
            {
                "log": {"type": "json", "static_fields": {"place": "here"}},
                "postgresql": {
                    "data_dir": str(node.root / "elsewhere"),
                    "parameters_primary": {"work_mem": "13MB"},
                },
            }
        )
        assert node.rest("/reload", "POST")[0] == 202
        cluster.wait_for(lambda: settings(node)[0] == "13MB", 60, "PostgreSQL has read the new settings")
        assert "postgresql.data_dir" in node.log()
        assert "change only when the agent is started again" in node.log()
        cluster.wait_for(lambda: json_lines(node), 60, "the log is JSON")
        assert all(line["place"] == "here" for line in json_lines(node))
        assert node.is_writable()
        assert not (node.root / "elsewhere").exists()


def json_lines(node: Node) -> list[dict[str, object]]:
    return [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]


def test_another_port_takes_effect_with_the_restart_of_postgresql() -> None:
    """Between reload and restart the server is where it was; afterwards the agent finds it where it is."""
    with Cluster(nodes=1, store="local", parameters=QUIET) as cluster:
        node = cluster.leader()
        old, new = node.sql_port, free_port()
        address = f"127.0.0.1:{new}"
        node.write_config({"postgresql": {"listen": address, "connect_address": address}})
        assert node.rest("/reload", "POST")[0] == 202
        cluster.wait_for(lambda: "pending_restart_reason" in node.rest("/patroni")[1], 60, "a restart is due")
        assert node.status("/primary") == 200
        assert node.sql("select inet_server_port()") == [(old,)]

        node.kill_agent()
        node.start()
        cluster.wait_for(lambda: node.status("/primary") == 200, 60, "a new agent finds it as well")
        assert node.sql("select inet_server_port()") == [(old,)]

        node.sql_port = new
        assert node.rest("/restart", "POST", timeout_s=60)[0] == 200
        cluster.wait_for(lambda: node.rest("/patroni")[1].get("state") == "running", 60, "it is found")
        assert node.sql("select inet_server_port()") == [(new,)]
        cluster.wait_for(lambda: "pending_restart" not in node.rest("/patroni")[1], 60, "nothing is pending")


def test_nobody_waits_for_the_next_tick() -> None:
    """Who changes `max_connections` looks at `list` right away; who stops an agent waits for its end."""
    slow = {"ttl": 300, "loop_wait": 100, "retry_timeout": 10}
    with Cluster(nodes=1, store="local", dcs=slow, parameters=QUIET) as cluster:
        node = cluster.leader()
        buffers = node.value("show wal_buffers")
        change = {"postgresql": {"parameters": {"max_connections": 111, "wal_buffers": "8MB"}}}
        assert node.rest("/config", "PATCH", change)[0] == 200
        (member,) = cluster.wait_for(lambda: pending(node), 40, "the member key tells of it")
        assert member["pending_restart_reason"]["max_connections"]["new_value"] == "111"
        assert member["pending_restart_reason"]["wal_buffers"] == {"old_value": buffers, "new_value": "8MB"}
        assert node.rest("/config", "PATCH", {"pause": True})[0] == 200
        cluster.wait_for(lambda: node.rest("/patroni")[1].get("pause"), 40, "the agent has seen the pause")
        assert node.stop(40) == 0
        node.start()
        cluster.wait_for(node.leads_or_fails, 40, "it leads again")
        assert node.rest("/config", "PATCH", {"pause": None})[0] == 200
        cluster.wait_for(lambda: not node.rest("/patroni")[1].get("pause"), 40, "the pause is over")
        assert node.stop(40) == 0


def pending(node: Node) -> list[dict[str, Any]]:
    """Members that wait for a restart, as the store has them."""
    return [member for member in node.rest("/cluster")[1]["members"] if member.get("pending_restart")]
