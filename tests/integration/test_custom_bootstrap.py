"""New clusters by a program of the user's, recovered from a backup, on real servers (contract 2.10, 5.6)."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node, run_as_agent_user

QUIET = {"logging_collector": "off"}


@pytest.fixture(scope="module")
def backup() -> Iterator[Path]:
    """A base backup of another cluster with a table, and its WAL up to a second row, as an archive."""
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="haagent-backup-"))
    directory.chmod(0o777)
    archive = directory / "archive"
    archive.mkdir()
    archive.chmod(0o777)
    archiving = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f", **QUIET}
    with Cluster(nodes=1, store="local", scope="old", parameters=archiving) as cluster:
        old = cluster.leader()
        old.sql("create table kept as select 1 as n")
        old.sql("create role old_hand login")
        copy = ("-X", "fetch", "--checkpoint=fast", "-w", "-d", old.dsn, "-D", str(directory / "base"))
        run_as_agent_user("pg_basebackup", *copy)
        old.sql("insert into kept values (2)")
        old.sql("select pg_create_restore_point('here')")
        old.sql("insert into kept values (3)")
        old.sql("select pg_switch_wal()")
        segment = old.value("select pg_walfile_name(pg_current_wal_lsn())")
        last = old.value("select last_archived_wal from pg_stat_archiver")
        archived = "select last_archived_wal from pg_stat_archiver"
        cluster.wait_for(
            lambda: len(list(archive.glob("0*"))) >= 2 and old.value(archived), 60, "the archive"
        )
        assert last is None or last <= segment
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def script(directory: Path, text: str) -> str:
    path = directory / "restore.sh"
    path.write_text("#!/bin/bash\nset -eu\n" + text)
    path.chmod(0o755)
    return str(path)


def restoring(backup: Path, command: str, **section: Any) -> dict[str, Any]:
    return {"bootstrap": {"method": "restore", "restore": {"command": command, **section}}}


def rows(node: Node) -> list[int]:
    return [n for (n,) in node.sql("select n from kept order by n")]


def test_a_cluster_is_recovered_to_a_point_in_time(shared: Path, backup: Path) -> None:
    command = script(
        shared, f'printf "%s\\n" "$@" > {shared}/arguments; cp -a {backup}/base "${{2#--datadir=}}"\n'
    )
    recovery = {
        "restore_command": f"cp {backup}/archive/%f %p",
        "recovery_target_name": "here",
        "recovery_target_action": "pause",
    }
    program = shared / "post.sh"
    program.write_text(f"#!/bin/sh\npsql -XAtd \"$1\" -c 'select pg_is_in_recovery()' > {shared}/post\n")
    program.chmod(0o755)
    config = restoring(backup, f"{command}", recovery_conf=recovery, speed=7)
    config["bootstrap"]["post_bootstrap"] = str(program)
    archived = shared / "archived"
    archived.mkdir()
    archived.chmod(0o777)
    parameters = {**QUIET, "archive_mode": "on", "archive_command": f"cp %p {archived}/%f"}
    with Cluster(nodes=2, node_config=config, parameters=parameters) as cluster:
        primary = cluster.wait_streaming(1)
        (standby,) = cluster.replicas()
        assert (shared / "arguments").read_text().splitlines() == [
            "--scope=test",
            f"--datadir={primary.data_dir}",
            "--speed=7",
        ]
        assert rows(primary) == rows(standby) == [1, 2]
        assert (shared / "post").read_text() == "f\n"
        # A timeline of its own, claimed and told.
        assert primary.value("select timeline_id from pg_control_checkpoint()") == 2
        (claim,) = json.loads(cluster.key("haagent_claims") or "[]")
        assert (claim["timeline"], claim["name"]) == (2, primary.name)
        cluster.wait_for(lambda: cluster.key("history") not in (None, "[]"), 60, "the history")
        assert [row[0] for row in json.loads(cluster.key("history") or "[]")] == [1]
        assert cluster.key("initialize") == str(
            primary.value("select system_identifier from pg_control_system()")
        )
        # The roles of the configuration, and those of the backup; the real server's own rules.
        assert primary.value("select count(*) from pg_roles where rolname in ('replicator', 'old_hand')") == 2
        assert primary.value("show archive_command") == f"cp %p {archived}/%f"
        assert primary.value("show hot_standby") == "on"
        assert not list(primary.data_dir.glob("*.signal"))
        # What was written before the server was the cluster's is archived by it now.
        cluster.wait_for((archived / "00000002.history").exists, 60, "the history file is archived")
        # And the next promotion takes the next number.
        switched = primary.rest(
            "/switchover", "POST", {"leader": primary.name, "candidate": standby.name}, timeout_s=60
        )
        assert switched == (200, f'Successfully switched over to "{standby.name}"')
        cluster.wait_streaming(1)
        assert standby.value("select timeline_id from pg_control_checkpoint()") == 3


def test_what_the_program_says_about_recovery_is_kept_where_asked_for(shared: Path, backup: Path) -> None:
    """Its own settings, in postgresql.auto.conf: they would pause at the target, which no cluster can do."""
    command = script(
        shared,
        f"""
        [ $# = 1 ]
        data=$1
        cp -a {backup}/base "${{data#--where=}}"
        cd "${{data#--where=}}"
        echo "restore_command = 'cp {backup}/archive/%f %p'" >> postgresql.auto.conf
        echo "recovery_target_name = 'here'" >> postgresql.auto.conf
        touch recovery.signal
        """,
    )
    cluster = Cluster(nodes=1, store="local", parameters=QUIET)
    (node,) = cluster.nodes
    section = {"no_params": True, "keep_existing_recovery_conf": True, "where": str(node.data_dir)}
    cluster.node_config = restoring(backup, command, **section)
    with cluster:
        assert rows(node) == [1, 2]
        assert node.value("select timeline_id from pg_control_checkpoint()") == 2


def test_a_restore_that_fails_leaves_no_cluster(shared: Path, backup: Path) -> None:
    command = script(shared, f'cp -a {backup}/base "${{2#--datadir=}}"\n')
    recovery = {"restore_command": "false", "recovery_target_name": "nowhere"}
    config = restoring(backup, command, recovery_conf=recovery)
    cluster = Cluster(nodes=1, node_config=config, parameters=QUIET)
    (node,) = cluster.nodes
    try:
        cluster.start(wait=False)
        cluster.wait_for(lambda: node.agent_exit is not None, 60, "the agent ends")
        assert node.agent_exit == 1
        assert "recovery ended before configured recovery target was reached" in node.log()
        assert not node.data_dir.exists()
        assert (node.root / "data.failed" / "PG_VERSION").exists()
        assert cluster.key("initialize") is None
        assert not processes.working_in(node.root / "data.failed")
    finally:
        cluster.close()


def test_who_restored_the_same_too_late_becomes_a_standby(shared: Path, backup: Path) -> None:
    """Its agent hangs between the restore and the leader key. The other one makes the same timeline of the
    same backup, with the same system identifier: only that nobody led it tells its data apart (H15)."""
    command = script(shared, f'cp -a {backup}/base "${{2#--datadir=}}"\n')
    program = shared / "post.sh"
    program.write_text(
        f'#!/bin/sh\npsql -XAtd "$1" -c "create table made_by as select \'$PGPORT\' as port"\n'
        f"[ -e {shared}/first ] || {{ touch {shared}/first; kill -STOP $(cat {shared}/agent); }}\n"
    )
    program.chmod(0o755)
    recovery = {"restore_command": f"cp {backup}/archive/%f %p"}
    config = restoring(backup, command, recovery_conf=recovery)
    config["bootstrap"]["post_bootstrap"] = str(program)
    cluster = Cluster(nodes=2, ttl=4, node_config=config, parameters=QUIET)
    a, b = cluster.nodes
    try:
        cluster.start_store()
        a.start()
        (shared / "agent").write_text(str(a.agent_pid))
        cluster.wait_for((shared / "first").exists, 60, "a has restored")
        cluster.wait_for(lambda: cluster.key("initialize") is None, 60, "the claim of a frozen agent ends")
        b.start()
        cluster.wait_for(b.leads_or_fails, 60, "b has restored the same, and leads")
        processes.send(a.agent_pid, signal.SIGCONT)
        cluster.wait_for(lambda: (a.root / "data.unclaimed").exists() or a.is_streaming(), 60, "a is done")
        assert cluster.wait_streaming(1) is b
        assert rows(a) == [1, 2, 3]
        assert a.value("select port from made_by") == str(b.sql_port)
        assert "bootstrap from leader 'n1'" in a.log()
    finally:
        cluster.close()
