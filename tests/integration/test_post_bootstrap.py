"""The user's program that completes a new cluster (contract 5.6), on real servers."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support import processes
from tests.support.cluster import Cluster

QUIET = {"logging_collector": "off"}


def script(directory: Path, text: str) -> Path:
    path = directory / "setup.sh"
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


def test_the_program_finds_a_server_that_nobody_else_can_reach(shared: Path) -> None:
    cluster = Cluster(nodes=2, store="local", parameters={**QUIET, "work_mem": "9MB"})
    node = cluster.nodes[0]
    api, sql = node.api_port, node.sql_port
    program = script(
        shared,
        f"""
        set -eu
        cd {shared}
        printf '%s\\n' "$@" > arguments
        stat -c %a "$PGPASSFILE" > mode
        psql -XAtd "${{!#}}" -c 'create role application login' -c 'create database application'
        psql -XAtd "${{!#}}" > seen <<'SQL'
            select current_setting('synchronous_commit'), current_setting('statement_timeout'),
                   current_setting('work_mem'), pg_is_in_recovery(),
                   exists (select from pg_roles where rolname = 'replicator')
SQL
        timeout 5 bash -c '</dev/tcp/127.0.0.1/{sql}' && echo reachable > tcp || echo refused > tcp
        curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{api}/primary > primary || true
        """,
    )
    cluster.node_config = {"bootstrap": {"post_bootstrap": f"{program} 'first word'"}}
    with cluster:
        primary = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        first, conninfo = (shared / "arguments").read_text().splitlines()
        words = dict(word.split("=", 1) for word in conninfo.split())
        assert first == "first word"
        assert words["user"] == words["dbname"] == "postgres"
        assert words["port"] == str(sql)
        assert "super-secret" not in conninfo
        assert not Path(words["host"]).exists(), "its socket directory is gone"
        assert (shared / "mode").read_text().strip() == "600"
        assert (shared / "seen").read_text().strip() == "local|0|9MB|f|f"
        assert (shared / "tcp").read_text().strip() == "refused"
        assert (shared / "primary").read_text() == "503"
        for one in (primary, standby):
            assert one.value("select count(*) from pg_database where datname = 'application'") == 1
        assert primary.value("select rolreplication from pg_roles where rolname = 'replicator'") is True
        assert primary.value("select timeline_id from pg_control_checkpoint()") == 1


def test_a_program_that_fails_leaves_no_cluster(shared: Path) -> None:
    program = script(shared, "echo 'no licence for this' >&2; exit 3\n")
    cluster = Cluster(nodes=1, node_config={"bootstrap": {"post_init": str(program)}}, parameters=QUIET)
    node = cluster.nodes[0]
    try:
        cluster.start(wait=False)
        cluster.wait_for(lambda: node.agent_exit is not None, 60, "the agent ends")
        assert node.agent_exit == 1
        assert "setup.sh failed with exit code 3: no licence for this" in node.log()
        assert not (node.data_dir / "PG_VERSION").exists()
        assert (node.root / "data.failed" / "PG_VERSION").exists()
        assert cluster.key("initialize") is None
        assert not processes.working_in(node.root / "data.failed")
    finally:
        cluster.close()


def test_an_agent_killed_under_the_program_begins_anew(shared: Path) -> None:
    program = script(
        shared,
        f"""
        echo "$$" >> {shared}/runs
        [ "$(wc -l < {shared}/runs)" -gt 1 ] || exec sleep 1000
        """,
    )
    cluster = Cluster(
        nodes=1, store="local", ttl=4, node_config={"bootstrap": {"post_bootstrap": str(program)}},
        parameters=QUIET,
    )  # fmt: skip
    node, runs = cluster.nodes[0], shared / "runs"
    try:
        cluster.start_store()
        node.start()
        cluster.wait_for(lambda: runs.exists() and runs.read_text(), 60, "the program runs")
        assert node.postmaster_pid() is not None
        node.kill_agent()
        cluster.wait_for(lambda: node.postmaster_pid() is None, 30, "its server dies with the agent")
        node.start()
        cluster.wait_for(node.leads_or_fails, 60, "the cluster is made by the second agent")
        first, _ = runs.read_text().splitlines()
        processes.send(int(first), signal.SIGKILL)
    finally:
        cluster.close()
