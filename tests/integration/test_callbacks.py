"""Callbacks and hooks on real servers (contract 6.6): which program runs when, and whom nobody waits for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node

ACTIONS = ("on_start", "on_stop", "on_restart", "on_reload", "on_role_change")
#: Writes what it was called with and by whom, then does what a test has put beside it.
PROGRAM = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/$1.called"
env > "$here/$1.env"
[ ! -e "$here/$1.$2.do" ] || . "$here/$1.$2.do"
"""


class Programs:
    """One program for all callbacks and hooks of all nodes; its first word is the node's name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        directory.chmod(0o777)
        self.path = directory / "program"
        self.path.write_text(PROGRAM)
        self.path.chmod(0o755)

    def section(self, node: Node) -> dict[str, object]:
        command = f"{self.path} {node.name}"
        hooks = {name: f"{command} {name}" for name in ("pre_promote", "before_stop")}
        return {"callbacks": dict.fromkeys(ACTIONS, command), **hooks}

    def called(self, node: Node) -> list[str]:
        """Its callbacks so far, as "action role"."""
        return [call for call in self.all_called(node) if " " in call]

    def all_called(self, node: Node) -> list[str]:
        """With hooks: those by their name alone."""
        try:
            lines = (self.directory / f"{node.name}.called").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.removeprefix(f"{node.name} ").removesuffix(" test") for line in lines]

    def environment(self, node: Node) -> dict[str, str]:
        """Of the last call."""
        lines = (self.directory / f"{node.name}.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def do(self, node: Node, what: str, script: str) -> None:
        """The next `what` (an action, or the word of a hook) runs this as well."""
        (self.directory / f"{node.name}.{what}.do").write_text(script)

    def forget(self, cluster: Cluster) -> None:
        for node in cluster.nodes:
            (self.directory / f"{node.name}.called").unlink(missing_ok=True)

    def wait(self, cluster: Cluster, node: Node, *calls: str) -> None:
        """Until exactly these were made."""
        wanted = list(calls)
        cluster.wait_for(lambda: self.called(node) == wanted, 60, f"{node.name}: {wanted}")


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    # Not in tmp_path, which the agents' user may not reach.
    made = Programs(Path("/tmp") / f"haagent-programs-{os.getpid()}")
    yield made
    shutil.rmtree(made.directory)


@pytest.fixture
def cluster(programs: Programs) -> Iterator[Cluster]:
    """Two nodes with every program set, running."""
    found = Cluster(nodes=2, ttl=20)
    try:
        for node in found.nodes:
            node.config_changes = {"postgresql": programs.section(node)}
        found.start()
        yield found
    except BaseException:
        found.close(failed=True)
        raise
    finally:
        found.close()


def test_each_event_calls_its_program(programs: Programs, cluster: Cluster) -> None:
    """As Patroni does, call for call: seen beside it on the same events."""
    a, b = cluster.nodes
    programs.wait(cluster, a, "on_start primary")
    programs.wait(cluster, b, "on_start replica")
    for name, value in programs.environment(a).items():
        assert "secret" not in value, name
        assert not name.startswith("PATRONI_")

    programs.forget(cluster)
    assert a.rest("/reload", "POST")[0] == 202
    assert b.rest("/restart", "POST", {}, timeout_s=60)[0] == 200
    programs.wait(cluster, a, "on_reload primary")
    programs.wait(cluster, b, "on_restart replica")

    programs.forget(cluster)
    cluster.wait_streaming(1)
    assert a.rest("/switchover", "POST", {"leader": a.name, "candidate": b.name}, timeout_s=60)[0] == 200
    programs.wait(cluster, a, "on_stop demoted", "on_role_change replica")
    programs.wait(cluster, b, "on_role_change primary")

    programs.forget(cluster)
    cluster.wait_streaming(1)
    processes.send(b.postmaster_pid(), signal.SIGKILL)
    programs.wait(cluster, b, "on_start primary")  # back in place: its address has not moved

    programs.forget(cluster)
    b.kill_agent()
    b.start()
    programs.wait(cluster, b, "on_start primary")  # found running by a new agent

    programs.forget(cluster)
    cluster.wait_streaming(1)
    assert b.stop() == 0
    programs.wait(cluster, b, "on_stop primary")
    cluster.wait_for(lambda: "on_role_change primary" in programs.called(a), 60, "the other takes over")
    b.start()
    cluster.wait_streaming(1)
    cluster.wait_for(lambda: "on_start replica" in programs.called(b), 60, "the last call of this part")
    _hooks_of_a_switchover(programs, cluster)


def test_nobody_waits_for_a_callback_and_the_next_one_kills_it(programs: Programs, cluster: Cluster) -> None:
    a, b = cluster.nodes
    pids = programs.directory / "pids"
    programs.do(b, "on_restart", f"sleep 1000 & one=$!; setsid sleep 1000 & echo $$ $one $! > {pids}; wait")
    programs.do(b, "on_reload", f"echo $$ > {pids}.reload; sleep 1000")
    programs.do(b, "on_role_change", f"echo $$ > {pids}.last; trap '' TERM; sleep 1000")
    assert b.rest("/restart", "POST", {}, timeout_s=60)[0] == 200
    assert b.rest("/reload", "POST")[0] == 202
    hanging = cluster.wait_for(lambda: read_pids(pids), 60, "it hangs")
    of_reload = cluster.wait_for(lambda: read_pids(programs.directory / "pids.reload"), 60, "this one, too")
    assert len(hanging) == 3
    assert all(processes.exists(pid) for pid in (*hanging, *of_reload))

    assert a.stop() == 0  # b takes over, whatever hangs there
    last = cluster.wait_for(lambda: read_pids(programs.directory / "pids.last"), 60, "the next one runs")
    cluster.wait_for(
        lambda: not any(map(processes.exists, hanging)), 60, "the one before is gone, and its children"
    )
    assert all(map(processes.exists, of_reload)), "on_reload is apart from the others"
    assert b.is_primary()
    for pid in (*last, *of_reload):
        processes.send(pid, signal.SIGKILL)
    for action in ("on_restart", "on_reload", "on_role_change"):
        programs.do(b, action, "true")
    a.start()
    cluster.wait_streaming(1)
    _hooks_that_hang(programs, cluster, b, a)


def _hooks_of_a_switchover(programs: Programs, cluster: Cluster) -> None:
    """before_stop while PostgreSQL still serves, pre_promote before the other one does."""
    a, b = cluster.nodes
    wrote = programs.directory / "wrote"
    programs.do(
        a, "before_stop", f"psql -w -h {a.root} -p {a.sql_port} -U postgres -c 'create table t()' > {wrote}"
    )
    programs.do(b, "pre_promote", "echo 'not today' >&2; exit 3")
    programs.forget(cluster)
    status, text = a.rest("/switchover", "POST", {"leader": a.name, "candidate": b.name}, timeout_s=60)
    assert (status, text) == (503, "Switchover failed")
    assert wrote.read_text() == "CREATE TABLE\n"
    assert programs.all_called(b) == ["pre_promote"]
    assert "exit code 3: not today" in b.log()
    cluster.wait_for(a.is_primary, 60, "the old leader comes back")
    assert a.rest("/switchover", "POST", {"leader": a.name, "candidate": b.name}, timeout_s=60)[0] == 412
    cannot = cluster.wait_for(lambda: b.member_key().get("cannot_lead"), 60, "it says that it cannot lead")
    assert "promotion failed" in str(cannot)

    programs.do(b, "pre_promote", "true")
    cluster.wait_streaming(1)
    programs.forget(cluster)
    assert b.rest("/restart", "POST", {}, timeout_s=60)[0] == 200
    programs.wait(cluster, b, "on_restart replica")
    assert programs.all_called(b) == ["before_stop", "on_restart replica"]


def _hooks_that_hang(programs: Programs, cluster: Cluster, a: Node, b: Node) -> None:
    """They delay no fence, and are ended. `a` leads."""
    hangs = programs.directory / "hangs"
    programs.do(a, "before_stop", f"echo $$ > {hangs}; sleep 1000")
    processes.send(a.agent_pid, signal.SIGTERM)
    hanging = cluster.wait_for(lambda: read_pids(hangs), 60, "before_stop runs")
    assert a.is_writable()
    cluster.delete("leader")  # the lease is lost while it waits
    cluster.wait_for(lambda: not a.is_writable(), 10, "PostgreSQL is stopped at once")
    cluster.wait_for(lambda: not any(map(processes.exists, hanging)), 30, "the hook is gone")
    cluster.wait_for(lambda: a.agent_exit == 0, 60, "and so is the agent")
    cluster.wait_for(b.is_primary, 60, "the other one leads")

    # One may take pg_ctl_timeout, no longer.
    a.config_changes = {"postgresql": {**programs.section(a), "pg_ctl_timeout": 1}}
    programs.do(a, "pre_promote", f"echo $$ > {hangs}; sleep 1000")
    programs.do(a, "before_stop", "true")
    programs.do(b, "on_stop", f"echo done > {programs.directory}/moved")
    a.start()
    cluster.wait_streaming(1)
    assert b.stop() == 0
    moved = programs.directory / "moved"
    cluster.wait_for(moved.exists, 60, "the last callback outlives the agent")
    cluster.wait_for(lambda: "pre_promote: program: not finished within 1 s" in a.log(), 60, "it is given up")
    cluster.wait_for(lambda: cluster.key("leader") is None, 60, "the key is given back")
    assert not a.is_writable()
    assert not any(map(processes.exists, read_pids(hangs)))


def read_pids(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except FileNotFoundError:
        return []
