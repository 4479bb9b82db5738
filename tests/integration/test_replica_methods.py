"""Replicas made by programs of the user's, on real clusters (contract 2.10, 6.4)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.support import processes
from tests.support.cluster import Cluster, Node, run_as_agent_user

QUIET = {"logging_collector": "off"}
#: Sets $datadir, $connstring, … from the arguments.
ARGUMENTS = 'for one in "$@"; do name=${one%%=*}; declare "${name#--}=${one#*=}"; done\n'


def program(directory: Path, name: str, text: str, arguments: str = ARGUMENTS) -> str:
    path = directory / name
    path.write_text("#!/bin/bash\nset -eu\n" + arguments + text)
    path.chmod(0o755)
    return str(path)


def methods(*names: str, **sections: Any) -> dict[str, Any]:
    return {"postgresql": {"create_replica_methods": list(names), **sections}}


def reinitialize(node: Node, **how: bool) -> None:
    assert node.rest("/reinitialize", "POST", how, timeout_s=60) == (200, "reinitialize started")


def reload(node: Node, changes: dict[str, Any]) -> None:
    said = node.log().count("configuration reloaded")
    node.write_config(changes)
    assert node.rest("/reload", "POST")[0] == 202
    node.cluster.wait_for(lambda: node.log().count("configuration reloaded") > said, 60, "the reload")


def test_methods_are_tried_in_their_order(shared: Path) -> None:
    broken = program(
        shared, "broken", f"mkdir -p $datadir/base; touch {shared}/tried; echo 'no tape' >&2; exit 3"
    )
    copy = program(
        shared,
        "copy",
        f"""
        printf '%s\\n' "$@" > {shared}/arguments
        stat -c %a "$PGPASSFILE" > {shared}/mode
        [ -e "$datadir/base" ] && echo "left by the method before" > {shared}/dirty
        pg_basebackup -X stream --checkpoint=fast --no-sync -w -D "$datadir" -d "$connstring"
        touch $datadir/promote $datadir/recovery.signal
        """,
    )
    config = methods(
        "broken", "copy", broken={"command": broken}, copy={"command": f"{copy} first", "pool": 2}
    )
    cluster = Cluster(nodes=2, store="local", node_config=config, parameters=QUIET)
    with cluster:
        a = cluster.leader()
        (b,) = cluster.replicas()
        assert (
            "a replica could not be created using broken: broken failed with exit code 3: no tape" in b.log()
        )
        assert "replica has been created using copy" in b.log()
        first, *arguments, conninfo = (shared / "arguments").read_text().splitlines()
        added = ["--scope=test", "--role=replica", f"--datadir={b.data_dir}"]
        assert (first, arguments) == ("first", ["--pool=2", *added])
        words = dict(word.split("=", 1) for word in conninfo.removeprefix("--connstring=").split())
        assert (words["user"], words["port"]) == ("replicator", str(a.sql_port))
        assert "secret" not in conninfo
        assert (shared / "mode").read_text() == "600\n"
        assert not (shared / "dirty").exists()
        assert not (b.data_dir / "promote").exists()
        assert not (b.data_dir / "recovery.signal").exists()

        # On request pg_basebackup and nothing else copies the leader; its second try counts as well.
        (shared / "tried").unlink()
        flaky = program(
            shared,
            "flaky",
            f"""
            [ -e {shared}/failed ] && exec {cluster.bin_dir}/pg_basebackup "$@"
            touch {shared}/failed; echo 'too many walsenders' >&2; exit 1
            """,
            arguments="",
        )
        reload(b, {"postgresql": {"bin_name": {"pg_basebackup": flaky}}})
        reinitialize(b, from_leader=True)
        cluster.wait_for(lambda: "created using basebackup" in b.log(), 60, "a base backup")
        cluster.wait_streaming(1)
        assert not (shared / "tried").exists()
        assert "pg_basebackup is tried again in 5 s: flaky failed with exit code 1: too many" in b.log()


def test_data_that_are_kept_are_never_started_half_made(shared: Path) -> None:
    """The agent dies while the program works on them: the program is ended, the next one goes on."""
    delta = program(
        shared,
        "delta",
        f"""
        ls "$datadir" > {shared}/found.$$
        echo $$ >> {shared}/runs
        if [ "$(wc -l < {shared}/runs)" = 1 ]; then
            rm -r "$datadir/base"
            setsid sleep 1000 &
            exec sleep 1000
        fi
        pg_basebackup -X stream --checkpoint=fast --no-sync -w -D {shared}/copy -d "$connstring"
        find "$datadir" -mindepth 1 -delete
        cp -a {shared}/copy/. "$datadir"
        """,
    )
    with Cluster(nodes=2, store="local", ttl=4, parameters=QUIET) as cluster:
        (b,) = cluster.replicas()
        runs = shared / "runs"
        (b.data_dir / "mine").touch()
        reload(b, methods("delta", delta={"command": delta, "keep_data": True}))
        reinitialize(b)
        cluster.wait_for(lambda: runs.exists() and not (b.data_dir / "base").exists(), 60, "it works")
        (first,) = runs.read_text().split()
        assert "mine" in (shared / f"found.{first}").read_text().split()
        b.kill_agent()
        assert processes.exists(int(first))
        b.start()
        cluster.wait_for(lambda: "created using delta" in b.log(), 60, "the next one is done")
        assert not processes.exists(int(first))
        _, second = runs.read_text().split()
        assert "mine" in (shared / f"found.{second}").read_text().split(), "nothing was wiped"
        cluster.wait_streaming(1)
        assert not [p for p in processes.processes_of(b.root) if b"sleep" in _program(p)]


def _program(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_backup_is_restored_without_a_leader_and_does_not_lead_when_it_is_behind(shared: Path) -> None:
    restore = program(
        shared, "restore", f'echo "${{connstring:-none}}" > {shared}/source; cp -a {shared}/backup "$datadir"'
    )
    config = methods("restore", "basebackup", restore={"command": restore, "no_leader": True})
    cluster = Cluster(
        nodes=2,
        store="local",
        ttl=4,
        dcs={"maximum_lag_on_failover": 0},
        node_config=config,
        parameters=QUIET,
    )
    a, b = cluster.nodes
    try:
        cluster.start_store()
        a.start()
        cluster.wait_for(a.leads_or_fails, 60, "a leads")
        copy = ("-X", "stream", "--checkpoint=fast", "-w", "-d", a.dsn, "-D", f"{shared}/backup")
        run_as_agent_user("pg_basebackup", *copy)
        a.sql("create table later as select 1 as n")
        a.stop()
        b.start()
        cluster.wait_for(lambda: b.postmaster_pid() is not None, 60, "b runs what it has restored")
        assert "trying to bootstrap (without leader)" in b.log()
        assert (shared / "source").read_text() == "none\n"
        cluster.wait_for(lambda: "not allowed to promote" in b.log(), 60, "b is judged")
        assert not b.is_writable()
        a.start()
        assert cluster.wait_streaming(1) is a
        assert b.value("select n from later") == 1
    finally:
        cluster.close()
        shutil.rmtree(shared / "backup", ignore_errors=True)
