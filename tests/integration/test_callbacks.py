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
        return {"callbacks": dict.fromkeys(ACTIONS, command)}

    def called(self, node: Node) -> list[str]:
        """Its calls so far, as "action role"; a hook's as its name."""
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

    programs.do(b, "on_stop", f"echo done > {programs.directory}/moved")
    assert b.stop() == 0
    moved = programs.directory / "moved"
    cluster.wait_for(moved.exists, 60, "the last callback outlives the agent")
    for pid in (*last, *of_reload):
        processes.send(pid, signal.SIGKILL)


def read_pids(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except FileNotFoundError:
        return []
