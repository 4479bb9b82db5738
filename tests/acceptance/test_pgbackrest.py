"""pgBackRest makes replicas and new clusters, with a repository on this machine (docs/backup.md)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import Cluster, Node, run_as_agent_user

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "haagent-pgbackrest.yml"
RESTORE_S = 120.0


@pytest.fixture
def repository() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="haagent-pgbackrest-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def configuration(repository: Path, node: Node) -> str:
    """Each host has its own file: the same repository, its own data directory."""
    path = repository / f"{node.cluster.scope}-{node.name}.conf"
    path.write_text(
        f"""
[global]
repo1-path={repository}/repo
lock-path={repository}/{node.cluster.scope}-{node.name}.lock
log-level-file=off
log-level-console=warn
start-fast=y
archive-timeout=60

[main]
pg1-path={node.data_dir}
pg1-port={node.sql_port}
pg1-socket-path={node.root}
pg1-user=postgres
"""
    )
    return str(path)


def as_in_the_example(config: str, section: str) -> dict[str, Any]:
    """A section of the example file, for the stanza and the pgBackRest configuration of a test."""
    text = EXAMPLE.read_text().replace(
        "pgbackrest --stanza=main", f"pgbackrest --config={config} --stanza=main"
    )
    return dict(yaml.safe_load(text)[section])


def prepare(repository: Path, node: Node, *, archives: bool) -> str:
    config = configuration(repository, node)
    postgresql = as_in_the_example(config, "postgresql")
    names = ("create_replica_methods", "pgbackrest", "recovery_conf")
    node.config_changes = {"postgresql": {name: postgresql[name] for name in names}}
    if archives:
        settings = {name: postgresql["parameters"][name] for name in ("archive_mode", "archive_command")}
        node.config_changes["postgresql"]["parameters"] = {**settings, "logging_collector": "off"}
    return config


def pgbackrest(config: str, *arguments: str) -> str:
    argv = ("pgbackrest", f"--config={config}", "--stanza=main", *arguments)
    return run_as_agent_user(*argv, deadline_s=RESTORE_S)


def test_pgbackrest_makes_replicas_and_a_cluster_of_the_past(repository: Path) -> None:
    cluster = Cluster(nodes=2, store="local")
    restored = Cluster(nodes=1, store="local", scope="past")
    a, b = cluster.nodes
    try:
        config, _ = (prepare(repository, node, archives=True) for node in cluster.nodes)
        cluster.start_store()
        a.start()
        cluster.wait_for(a.leads_or_fails, 60, "a leads")
        pgbackrest(config, "stanza-create")
        a.sql("create table kept as select 1 as n")
        pgbackrest(config, "backup")
        a.sql("insert into kept values (2)")

        # A replica comes from the repository, and follows the leader from there.
        b.start()
        cluster.wait_streaming(1, RESTORE_S)
        assert "replica has been created using pgbackrest" in b.log()
        assert [n for (n,) in b.sql("select n from kept order by n")] == [1, 2]

        # Once more, over what is there: pgBackRest changes what differs.
        (b.data_dir / "of no use").touch()
        made = b.log().count("created using pgbackrest")
        assert b.rest("/reinitialize", "POST", {}, timeout_s=60) == (200, "reinitialize started")
        cluster.wait_for(lambda: b.log().count("created using pgbackrest") > made, RESTORE_S, "the delta")
        cluster.wait_streaming(1, RESTORE_S)
        assert not (b.data_dir / "of no use").exists()
        assert "Wiping" not in b.log()

        # Another cluster, of the same data as they were at one point in time.
        a.sql("select pg_create_restore_point('here')")
        a.sql("insert into kept values (3)")
        segment = a.value("select pg_walfile_name(pg_current_wal_insert_lsn())")
        a.sql("select pg_switch_wal()")
        archived = "select last_archived_wal >= %s from pg_stat_archiver"
        cluster.wait_for(lambda: a.value(archived, segment), 60, "the WAL is in the repository")
        (past,) = restored.nodes
        method = as_in_the_example(prepare(repository, past, archives=False), "bootstrap")
        method["pgbackrest"]["command"] = method["pgbackrest"]["command"].replace(
            '--type=time "--target=2030-01-01 12:00:00+00"', "--type=name --target=here"
        )
        past.config_changes["bootstrap"] = {"method": "pgbackrest", "pgbackrest": method["pgbackrest"]}
        restored.start()
        assert [n for (n,) in past.sql("select n from kept order by n")] == [1, 2]
        assert past.value("select timeline_id from pg_control_checkpoint()") == 2
    except BaseException:
        restored.close(failed=True)
        cluster.close(failed=True)
        raise
    finally:
        restored.close()
        cluster.close()
