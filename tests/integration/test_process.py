"""The agent as a process (contract 7.1): signals, exit codes, and being process 1 of a container."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import processes
from tests.support.cluster import Cluster
from tests.support.wait import wait_for


def test_waits_for_its_store_and_ends_by_the_first_signal_only() -> None:
    """No store: it waits. SIGINT ends it then, SIGTERM in good order later; more of them change nothing."""
    cluster = Cluster(nodes=1)
    try:
        (node,) = cluster.nodes
        node.start()
        cluster.wait_for(lambda: "waiting on etcd" in node.log(), 60, "it waits for etcd")
        assert node.agent_running
        processes.send(node.agent_pid, signal.SIGINT)
        cluster.wait_for(lambda: node.agent_exit is not None, 60, "it ends")
        assert node.agent_exit == 0

        cluster.start()
        stuck = node.connect()
        processes.send(node.agent_pid, signal.SIGTERM)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            processes.send(node.agent_pid, signum)
        cluster.wait_for(lambda: node.agent_exit is not None, 60, "it ends")
        assert node.agent_exit == 0
        assert node.postmaster_pid() is None
        assert node.log().count("shutting down") >= 1
        stuck.close()
        assert cluster.key("leader") is None
    finally:
        cluster.close()


def test_wrong_words_and_wrong_files() -> None:
    def run(*arguments: str) -> int:
        command = [sys.executable, "-m", "haagent", *arguments]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    assert run("--version") == 0
    assert run("no", "such", "command") == 2
    assert run("run", "/nonexistent.yml") == 1


# --- process 1 ------------------------------------------------------------------------------------

#: A mock of nothing: the real `become_init`, in a process 1 of its own, around a shell in the agent's place.
_AGENT = """
import os, sys
sys.path.insert(0, {root!r})
from haagent.init import become_init
become_init()
os.execvp("sh", ["sh", "-c", {script!r}])
"""
ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def as_process_1(script: str) -> Iterator[subprocess.Popen[str]]:
    """`script` in the place of the agent, under a real process 1 in a pid namespace of its own."""
    code = _AGENT.format(root=str(ROOT), script=script)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    if os.geteuid() != 0:
        command.insert(1, "--map-root-user")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def init_of(process: subprocess.Popen[str]) -> int:
    """Pid, as we see it, of the namespace's process 1: unshare's child."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def test_process_1_passes_signals_on_and_ends_as_the_agent_does() -> None:
    script = """
    echo "agent $$"
    for s in HUP USR1 USR2; do trap "echo $s" $s; done
    trap 'echo TERM; exit 7' TERM
    echo ready
    while :; do read -r line || wait; done
    """
    with as_process_1(script) as process:
        assert lines(process, 2) == ["agent 2", "ready"]
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(init_of(process), signum)
            assert lines(process, 1) == [signum.name.removeprefix("SIG")]
        assert process.wait(30) == 7


def test_process_1_reaps_orphans_and_starts_a_killed_agent_again() -> None:
    """PostgreSQL would die with the container: an agent that crashed is started beside it."""
    script = """
    (sh -c 'sleep 0.01 & echo orphan $!') | cat
    echo "agent $$"
    read -r line
    exit 3
    """
    with as_process_1(script) as process:
        orphan, agent = lines(process, 2)
        init = init_of(process)
        children = Path(f"/proc/{init}/task/{init}/children")
        wait_for(lambda: len(children.read_text().split()) == 1, 30, "the orphan is reaped")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        orphan, again = lines(process, 2)
        assert agent == "agent 2"
        assert again.startswith("agent ")
        assert again != agent
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(30) == 3
        assert orphan.startswith("orphan ")
