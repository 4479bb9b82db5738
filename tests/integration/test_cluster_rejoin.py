"""How a node that crashed comes back: pg_rewind and clones, interrupted and not (contract 2.9, rule 7)."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cluster_crash import QUIET, diverge, successor, wait_same_tables
from tests.integration.test_cluster_operate import ctl
from tests.integration.test_config_environment import program
from tests.support import processes
from tests.support.cluster import Cluster, Node
from tests.support.versions import bin_dir

#: A checkpoint removes all WAL that no slot keeps.
KEEPS_NOTHING: dict[str, Any] = {
    "maximum_lag_on_failover": 2**30,
    "postgresql": {"parameters": {"wal_keep_size": 0, "max_wal_size": "4GB", "min_wal_size": "32MB"}},
}

#: Runs the real program and stops it once it has printed what stands in the file `phase`.
STOPPING = """
import os, signal, subprocess, sys
from pathlib import Path

shared = Path({shared!r})
real = subprocess.Popen([{real!r}, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
os.chdir("/")  # not found in the data directory: only the real one is
phase = shared / "phase"
for line in real.stdout:
    try:
        os.write(1, line)
    except OSError:
        pass
    if phase.exists() and phase.read_bytes() in line:
        os.kill(real.pid, signal.SIGSTOP)
        phase.unlink()
        (shared / "reached").write_text(str(real.pid))
sys.exit(abs(real.wait()))
"""


class Phases:
    """pg_rewind and pg_basebackup as programs that can be stopped where a test wants."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("pg_rewind", "pg_basebackup"):
            path = program(directory, name, "")
            text = STOPPING.format(shared=str(directory), real=f"{bin_dir()}/{name}")
            path.write_text(f"#!{sys.executable}\n{text}")
        self.node_config = {
            "postgresql": {"bin_dir": str(directory), "rewind": ["progress"], "basebackup": ["verbose"]}
        }

    def stop_at(self, text: str) -> None:
        (self.directory / "reached").unlink(missing_ok=True)
        (self.directory / "phase").write_text(text)

    def reached(self, cluster: Cluster, what: str) -> int:
        """Pid of the program that stands there now."""

        def pid() -> int | None:
            path = self.directory / "reached"
            return int(path.read_text() or 0) if path.exists() else None

        found = cluster.wait_for(pid, 60, what)
        assert found is not None
        return found


@pytest.fixture
def phases(shared: Path) -> Phases:
    return Phases(shared)


def rejoin_of(node: Node) -> dict[str, Any]:
    """What REST says of its way back; {} when nothing does."""
    try:
        return dict(node.rest("/patroni")[1]["haagent"].get("rejoin", {}))
    except OSError:
        return {}


def discards(cluster: Cluster) -> list[dict[str, Any]]:
    """What the store knows of them."""
    return list(json.loads(cluster.key("haagent_discards") or "[]"))


def test_a_rewind_is_written_down_before_it_begins_and_survives_kills(phases: Phases) -> None:
    with Cluster(nodes=2, ttl=4, node_config=phases.node_config, parameters=QUIET) as cluster:
        old = cluster.leader()
        new = diverge(cluster, old)

        # Nothing is changed yet: what will go is known to the store, and its WAL lies beside the directory.
        phases.stop_at("servers diverged")
        old.start()
        tool = phases.reached(cluster, "pg_rewind begins")
        assert rejoin_of(old)["state"] == "rewinding"
        [gone] = cluster.wait_for(lambda: discards(cluster), 60, "the store knows what will go")
        assert gone["name"] == old.name
        assert gone["transactions"] >= 1
        assert gone["end"] > gone["start"]
        assert list(Path(gone["kept"]).iterdir())

        # The agent dies; the next one knows of the try, and ends what the first one left.
        old.kill_agent()
        phases.stop_at("need to copy")
        old.start()
        copying = phases.reached(cluster, "pg_rewind copies")
        assert not processes.exists(tool)
        assert rejoin_of(old)["tries"] == 2
        assert "cut off with its agent" in old.log()

        # It dies while it copies: half of two histories, which is never started, and rewound once more.
        processes.send(copying, signal.SIGKILL)
        cluster.wait_streaming(1)
        wait_same_tables(cluster, old, new)
        assert rejoin_of(old) == {}
        assert discards(cluster) == [gone]
        text = ctl(cluster, "history")
        assert f"{old.name} discarded" in text
        assert f"{gone['transactions']} transactions" in text
        assert gone["kept"] in text
        rows = json.loads(ctl(cluster, "history", "-f", "json"))
        assert [d["transactions"] for row in rows for d in row.get("Discarded", [])] == [gone["transactions"]]


#: What pg_rewind prints, in order, while it works.
REWINDING = ("servers diverged", "reading WAL in target", "need to copy", "syncing target data directory")
#: And pg_basebackup.
CLONING = ("initiating base backup", "write-ahead log start point", "syncing data to disk")


@pytest.mark.slow
@pytest.mark.parametrize("phase", REWINDING)
@pytest.mark.parametrize("fault", ["kill node", "freeze agent", "lose leader"])
def test_a_rewind_ends_well_whatever_happens_in_it(phases: Phases, phase: str, fault: str) -> None:
    with Cluster(nodes=3, ttl=4, node_config=phases.node_config, parameters=QUIET) as cluster:
        old = cluster.leader()
        new = diverge(cluster, old)
        phases.stop_at(phase)
        old.start()
        tool = phases.reached(cluster, phase)
        strike(cluster, fault, old, new, tool)
        cluster.wait_streaming(2, 180)
        wait_same_tables(cluster, *cluster.nodes[:2])
        assert [d["transactions"] >= 1 for d in discards(cluster) if d["name"] == old.name] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("phase", CLONING)
@pytest.mark.parametrize("fault", ["kill agent", "kill node", "kill tool", "freeze agent", "lose leader"])
def test_a_clone_ends_well_whatever_happens_in_it(phases: Phases, phase: str, fault: str) -> None:
    with Cluster(nodes=3, ttl=4, node_config=phases.node_config, parameters=QUIET) as cluster:
        leader = cluster.leader()
        (standby, _) = (node for node in cluster.nodes if node is not leader)
        leader.sql("create table kept (n int)")
        phases.stop_at(phase)
        ctl(cluster, "reinit", cluster.scope, standby.name, "--force")
        tool = phases.reached(cluster, phase)
        assert rejoin_of(standby)["state"] == "cloning"
        strike(cluster, fault, standby, leader, tool)
        cluster.wait_streaming(2, 180)
        wait_same_tables(cluster, *cluster.nodes[:2])
        assert discards(cluster) == [] or fault == "lose leader"


def strike(cluster: Cluster, fault: str, node: Node, leader: Node, tool: int) -> None:
    """In the middle of the work of `tool` on `node`; whoever went is back when this returns."""
    if fault == "kill tool":
        processes.send(tool, signal.SIGKILL)
    elif fault == "kill agent":
        node.kill_agent()
        node.start()
    elif fault == "kill node":
        node.kill_all()
        node.start()
    elif fault == "freeze agent":
        node.freeze_agent()
        processes.send(tool, signal.SIGCONT)
        cluster.wait_for(lambda: not processes.exists(tool), 60, "the work is done, and nobody looks")
        node.thaw_agent()
    else:
        leader.kill_all()
        processes.send(tool, signal.SIGCONT)
        successor(cluster, leader)
        leader.start()


@pytest.mark.slow
def test_discarded_wal_is_kept_as_configured() -> None:
    """And a clone that replaces diverged data reports as pg_rewind does."""
    dcs = {"postgresql": {"use_pg_rewind": False, "remove_data_directory_on_diverged_timelines": True}}
    cluster = Cluster(nodes=2, ttl=4, dcs=dcs, parameters=QUIET)
    first, second = cluster.nodes
    first.config_changes = {"postgresql": {"keep_diverged_wal": 0}}
    second.config_changes = {"postgresql": {"keep_diverged_wal_size": 1}}
    with cluster:
        assert cluster.leader() is first
        diverge(cluster, first)
        first.start()
        cluster.wait_streaming(1)
        second.sql("drop table kept")
        first.value("select pg_current_xact_id_if_assigned()")
        cluster.wait_for(lambda: first.value("select to_regclass('kept') is null"), 60, "it follows")
        diverge(cluster, second)
        second.start()
        cluster.wait_streaming(1)
        gone = cluster.wait_for(
            lambda: discards(cluster) if len(discards(cluster)) == 2 else None, 60, "both"
        )
        assert gone is not None
        assert [(d["name"], d["how"], "kept" in d) for d in gone] == [
            (first.name, "clone", False),
            (second.name, "clone", False),
        ]
        assert all(d["left_out"] >= 1 and d["transactions"] >= 1 for d in gone)
        for node in cluster.nodes:
            assert not [path for path in node.root.glob("*diverged*/*") if path.is_file()]


def write_wal(node: Node, megabytes: int) -> None:
    """So much of it, and little data."""
    message = "pg_logical_emit_message(false, 'haagent', repeat('x', 1048576))"
    for _ in range(megabytes // 8):
        node.sql(f"select count({message}) from generate_series(1, 8)")


@pytest.mark.slow
def test_the_archive_gets_what_a_dead_primary_had_ready_and_gives_what_pg_rewind_misses(shared: Path) -> None:
    """The archive was out of order until the primary died; no slot keeps WAL, and the archive has it all."""
    archive, broken = shared / "archive", shared / "broken"
    archive.mkdir(mode=0o777)
    archive.chmod(0o777)
    settings = {
        "use_slots": False,
        "parameters": {
            "wal_keep_size": 0,
            "archive_mode": "on",
            "archive_command": f"test ! -e {broken} && cp %p {archive}/%f",
        },
        "recovery_conf": {"restore_command": f"cp {archive}/%f %p"},
    }
    dcs = {"maximum_lag_on_failover": 2**30, "postgresql": settings}
    with Cluster(nodes=2, ttl=4, dcs=dcs, parameters=QUIET) as cluster:
        old = cluster.leader()
        broken.touch()
        old.sql("checkpoint")
        write_wal(old, 64)
        ready = [path.stem for path in (old.data_dir / "pg_wal" / "archive_status").glob("*.ready")]
        assert ready
        cluster.wait_streaming(1)
        new = diverge(cluster, old)
        broken.unlink()
        for _ in range(2):
            write_wal(new, 32)
            new.sql("checkpoint")
        old.start()
        cluster.wait_streaming(1, 120)
        assert "files that the server had not yet" in old.log()
        assert {path.name for path in archive.iterdir()} >= set(ready)
        wait_same_tables(cluster, old, new)


@pytest.mark.slow
def test_lots_of_wal_before_and_after_the_failover() -> None:
    """No setting keeps what pg_rewind needs: the new leader does, and gives it to whoever comes back."""
    with Cluster(
        nodes=2, ttl=4, parameters={**QUIET, "wal_keep_size": "0", "max_wal_size": "4GB"}
    ) as cluster:
        old = cluster.leader()
        old.sql("checkpoint")
        write_wal(old, 160)
        cluster.wait_streaming(1)
        new = diverge(cluster, old)
        for _ in range(3):
            write_wal(new, 160)
            new.sql("checkpoint")
        old.start()
        cluster.wait_streaming(1, 120)
        assert "pg_rewind from" in old.log()
        wait_same_tables(cluster, old, new)


@pytest.mark.slow
def test_fenced_behind_a_partition_with_checkpoints_on_both_sides() -> None:
    with Cluster(nodes=2, ttl=4, dcs=KEEPS_NOTHING, parameters=QUIET) as cluster:
        old = cluster.leader()
        old.sql("checkpoint")
        write_wal(old, 160)
        cluster.wait_streaming(1)
        new = part(cluster, old)
        for _ in range(3):
            write_wal(new, 64)
            new.sql("checkpoint")
        old.start()
        cluster.wait_streaming(1, 120)
        assert "pg_rewind from" in old.log()
        wait_same_tables(cluster, old, new)


def part(cluster: Cluster, old: Node) -> Node:
    """`old` is cut off, writes on, and is fenced in good order, with a checkpoint on its own line."""
    hba = old.data_dir / "pg_hba.conf"
    lines = [line for line in hba.read_text().splitlines() if "replication" not in line]
    hba.write_text("\n".join(lines) + "\n")
    old.sql("select pg_reload_conf()")
    old.sql("select pg_terminate_backend(pid) from pg_stat_replication")
    old.sql("create table lost_with_the_node as select generate_series(1, 1000)")
    write_wal(old, 48)
    old.kill_agent()
    new = successor(cluster, old)
    cluster.wait_for(new.is_writable, 60, "writes go on")
    new.sql("create table kept (n int)")
    cluster.wait_for(lambda: old.postmaster_pid() is None, 60, "the old one is fenced")
    return new
