"""The life of a cluster on each supported major version of PostgreSQL (scripts/postgres-versions.sh).

What differs from version to version is the server: its catalogue, its settings, its programs and what
they print. So each version sees every way in which the agent uses them. `make test` takes the oldest and the
newest; `make test-all` all of them, and with each the tests of every part that speaks to PostgreSQL.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_cluster_crash import QUIET, diverge, timeline, wait_same_tables
from tests.integration.test_cluster_operate import ctl, wait_pending
from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster, Node
from tests.support.versions import MAIN, MATRIX
from tests.support.writers import Writers

EACH = [pytest.param(v, id=f"pg{v}", marks=() if v in MAIN else pytest.mark.slow) for v in MATRIX]
#: Settings that some versions know and others do not, and one that none does.
CHANGING = {
    "stats_temp_directory": "pg_stat_tmp",  # until 14
    "vacuum_defer_cleanup_age": "0",  # until 15
    "old_snapshot_threshold": "-1",  # until 16
    "recovery_prefetch": "try",  # from 15
    "summarize_wal": "on",  # from 17
    "io_method": "sync",  # from 18
    "no_such_setting": "1",
}
#: A recovery setting that is there until 15.
TRIGGER = "promote_trigger_file"
_KNOWN = {14: 3, 15: 3, 16: 2, 17: 2, 18: 3}


@pytest.mark.parametrize("version", EACH)
def test_life_on_each_version(version: int) -> None:
    # The lease is long enough for an agent to be started again in it on a busy machine.
    node_config = {
        "postgresql": {"recovery_conf": {TRIGGER: "/nonexistent/trigger"}},
        # Without data-checksums: each version makes what it makes by itself.
        "bootstrap": {"initdb": [{"encoding": "UTF8"}]},
    }
    parameters = {**QUIET, **CHANGING}
    with Cluster(2, version=version, ttl=10, parameters=parameters, node_config=node_config) as cluster:
        a = cluster.leader()
        (b,) = (node for node in cluster.nodes if node is not a)
        for node in (a, b):
            assert node.rest("/patroni")[1]["server_version"] // 10000 == version
            _settings(node, version)
            assert node.value("show data_checksums") == ("on" if version >= 18 else "off")
        trigger_unknown = f"postgresql.recovery_conf.{TRIGGER}: unknown parameter, ignored" in b.log()
        assert trigger_unknown is (version >= 16)
        _numbers(cluster, a, b)
        _synchronous(cluster, a, b)
        _pending_restart(cluster, a, b)
        _crash_and_adoption(cluster, a)
        # What comes waits for its end.
        assert a.rest("/config", "PATCH", {"ttl": 4})[0] == 200
        cluster.wait_for(lambda: cluster.lease_ttl("leader") == 4, 60, "the shorter lease")
        _handover(cluster, a, b)
        _reinit(cluster, a)
        _fence_and_rewind(cluster, b, a)


def _settings(node: Node, version: int) -> None:
    """What this version does not know is left out, with a warning: the server starts all the same."""
    known = {name for (name,) in node.sql("select name from pg_settings")} & CHANGING.keys()
    assert len(known) == _KNOWN[version]
    for name in CHANGING:
        warned = f"postgresql.parameters.{name}: unknown parameter, ignored" in node.log()
        assert warned is (name not in known), name
    for name in known:
        assert node.value(f"show {name}") == CHANGING[name]


def _numbers(cluster: Cluster, primary: Node, standby: Node) -> None:
    """Positions, timelines and receivers as the agents see them are those of the servers."""
    primary.sql("create table numbers as select generate_series(1, 1000)")
    lsn = primary.value("select (pg_current_wal_flush_lsn() - '0/0')::bigint")

    def caught_up() -> bool:
        xlog = standby.rest("/patroni")[1]["xlog"]
        return bool(min(xlog["received_location"], xlog["replayed_location"]) >= lsn)

    cluster.wait_for(caught_up, 60, "the standby's positions reach the primary's")
    assert standby.rest("/patroni")[1]["replication_state"] == "streaming"
    (sender,) = primary.rest("/patroni")[1]["replication"]
    assert (sender["application_name"], sender["state"]) == (standby.name, "streaming")
    number = primary.rest("/patroni")[1]["server_version"]
    metrics = str(primary.rest("/metrics")[1])
    for name, value in (("server_version", number), ("timeline", 1)):
        assert re.search(rf"^patroni_postgres_{name}\S* {value}(\.0)?$", metrics, re.MULTILINE), name
    asks = ("query", cluster.scope, "-U", "postgres", "-c", "select count(*) from numbers", "-r")
    assert [ctl(cluster, *asks, role) for role in ("leader", "replica")] == ["count\n1000\n"] * 2
    assert timeline(primary) == timeline(standby) == 1


def _synchronous(cluster: Cluster, primary: Node, standby: Node) -> None:
    assert primary.rest("/config", "PATCH", {"synchronous_mode": True})[0] == 200
    state = "select sync_state from pg_stat_replication"
    cluster.wait_for(lambda: standby.status("/sync") == 200, 60, "the standby is a synchronous one")
    assert json.loads(cluster.stored()["sync"])["sync_standby"] == standby.name
    assert primary.value(state) == "sync"
    assert primary.rest("/config", "PATCH", {"synchronous_mode": None})[0] == 200
    cluster.wait_for(lambda: primary.value(state) == "async", 60, "asynchronous again")


def _pending_restart(cluster: Cluster, primary: Node, standby: Node) -> None:
    change = {"postgresql": {"parameters": {"max_connections": 110, "work_mem": "7MB"}}}
    assert primary.rest("/config", "PATCH", change)[0] == 200
    for node in (standby, primary):
        wait_pending(cluster, node, True)
        assert node.member_key()["pending_restart_reason"] == {
            "max_connections": {"old_value": "100", "new_value": "110"}
        }
        assert node.value("show work_mem") == "7MB"
        assert node.rest("/restart", "POST", timeout_s=60) == (200, "restarted successfully")
        wait_pending(cluster, node, False)
        assert node.value("show max_connections") == "110"
    assert cluster.wait_streaming(1) is primary


def _crash_and_adoption(cluster: Cluster, primary: Node) -> None:
    """A dead postmaster is replaced in place; a new agent takes over one that runs, and no session ends."""
    with Writers(cluster, direct=True) as writers:
        writers.wait_acknowledged(20, f"old:{primary.name}")
        killed = primary.postmaster_pid()
        processes.send(killed, signal.SIGKILL)
        cluster.wait_for(lambda: primary.postmaster_pid() not in (None, killed), 60, "a new postmaster")
        writers.wait_acknowledged(20, f"old:{primary.name}")
        before = (primary.postmaster_pid(), primary.guardian_pid, cluster.stored()["leader"])
        primary.kill_agent()
        primary.start()
        cluster.wait_for(primary.is_primary, 60, "the new agent leads")
        writers.wait_acknowledged(20, f"old:{primary.name}")
        assert (primary.postmaster_pid(), primary.guardian_pid, cluster.stored()["leader"]) == before
    cluster.wait_streaming(1)
    assert timeline(primary) == 1
    assert writers.evidence().missing(primary.dsn) == []


def _handover(cluster: Cluster, old: Node, new: Node) -> None:
    with Writers(cluster) as writers:
        writers.wait_acknowledged(20)
        answer = ctl(cluster, "switchover", cluster.scope, "--candidate", new.name, "--force")
        assert "Successfully switched over" in answer
        writers.wait_acknowledged(20, f"new:{new.name}")
        assert cluster.wait_streaming(1) is new
    assert writers.evidence().overlaps() == []
    assert writers.evidence().missing(new.dsn) == []
    assert not list(old.root.glob("*diverged*"))


def _reinit(cluster: Cluster, standby: Node) -> None:
    (standby.data_dir / "left-over").touch()
    ctl(cluster, "reinit", cluster.scope, standby.name, "--force", "--wait")
    cluster.wait_streaming(1)
    assert not (standby.data_dir / "left-over").exists()
    assert timeline(standby) == 2


def _fence_and_rewind(cluster: Cluster, old: Node, new: Node) -> None:
    """The guardian ends what the dead agent's server would still write; what only it had is rewound."""
    with Writers(cluster) as writers:
        writers.wait_acknowledged(20, f"old:{old.name}")
        old.kill_agent()
        cluster.wait_for(lambda: old.postmaster_pid() is None, 60, "the guardian's fence")
        writers.wait_acknowledged(20, f"new:{new.name}")
    assert writers.evidence().overlaps() == []
    old.start()
    assert cluster.wait_streaming(1) is new
    assert diverge(cluster, new) is old
    new.start()
    assert cluster.wait_streaming(1) is old
    wait_same_tables(cluster, new, old)
    assert "pg_rewind from" in new.log()
    assert list(new.root.glob("*diverged*")), "the discarded WAL is kept nowhere"

    def on_newest() -> bool:
        return all(node.rest("/patroni")[1].get("timeline") == 4 for node in cluster.nodes)

    cluster.wait_for(on_newest, 60, "all on the newest timeline")


def test_older_versions_are_refused(shared: Path) -> None:
    """Before anything is started or asked, in one line that says what is wrong."""
    old = shared / "postgres"
    old.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 13.22'\n")
    old.chmod(0o755)
    cluster = Cluster(nodes=1, store="local")
    try:
        (node,) = cluster.nodes
        _refused(node, "postgresql.bin_dir", {"bin_dir": str(shared)})
        assert not node.data_dir.exists()

        data = shared / "data"
        data.mkdir()
        (data / "PG_VERSION").write_text("13\n")
        _refused(node, "postgresql.data_dir", {"bin_dir": cluster.bin_dir, "data_dir": str(data)})
        assert [path.name for path in data.iterdir()] == ["PG_VERSION"]
    finally:
        cluster.close()


def _refused(node: Node, key: str, changes: dict[str, str]) -> None:
    node.write_config({"postgresql": changes})
    node.start()
    node.cluster.wait_for(lambda: node.agent_exit is not None, 60, "the agent ends")
    assert node.agent_exit == 1
    wanted = f"{key} '{changes[key.partition('.')[2]]}' must be of PostgreSQL 14 or newer, and is of 13"
    assert wanted in node.log().splitlines()[-1]


# --- every part -----------------------------------------------------------------------------------

#: Tests of all that speaks to PostgreSQL, and among them those of other matters.
PARTS = (
    "integration/test_postgres_*", "integration/test_cluster_*", "integration/test_guardian_fence*",
    "integration/test_post_bootstrap*", "integration/test_*replica*", "integration/test_*slots*",
    "integration/test_ctl_query*", "integration/test_config_generate*", "unit/test_gucs*",
)  # fmt: skip
LEFT_OUT = ("local", "store", "harness", "priority", "schedule")


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("version", MATRIX)
def test_every_part_on_each_version(version: int) -> None:
    tests = Path(__file__).parents[1]
    found = {path for part in PARTS for path in tests.glob(f"{part}.py")}
    files = sorted(str(path) for path in found if not path.stem.endswith(LEFT_OUT))
    options = ("-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "HAAGENT_PG_VERSION": str(version)},
        capture_output=True,
        text=True,
        timeout=2400,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
