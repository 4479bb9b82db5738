"""systemd: the unit file is clean by systemd's own judgement, and the agent tells it what it does."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support import processes
from tests.support.cluster import REPOSITORY, Cluster

UNIT = REPOSITORY / "configs" / "haagent.service"


def settings() -> dict[str, str]:
    lines = UNIT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_file_is_clean(tmp_path: Path) -> None:
    """By `systemd-analyze verify`, with the program at a place where it exists."""
    verify = shutil.which("systemd-analyze")
    assert verify is not None, "run `make setup`"
    program = settings()["ExecStart"].split()[0]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    done = subprocess.run(
        [verify, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_is_told_how_the_agent_does(tmp_path: Path) -> None:
    """READY before PostgreSQL runs, RELOADING with its time, STOPPING; no child may speak for the agent."""
    assert settings()["Type"] == "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + tmp_path.name)
        listener.settimeout(60)
        cluster = Cluster(nodes=1, environment={"NOTIFY_SOCKET": f"@{tmp_path.name}"})
        try:
            (node,) = cluster.nodes
            cluster.start(wait=False)
            assert next_message(listener) == ["READY=1"]
            cluster.wait_for(node.is_writable, 60, "PostgreSQL runs")
            environments = [processes.environment_of(pid) for pid in node.postgres_pids()]
            assert environments
            assert not any("NOTIFY_SOCKET" in environment for environment in environments)

            processes.send(node.agent_pid, signal.SIGHUP)
            name, stamp = next_message(listener, but="READY=1")
            assert name == "RELOADING=1"
            assert stamp.removeprefix("MONOTONIC_USEC=").isdigit()
            assert next_message(listener) == ["READY=1"]

            assert node.stop() == 0
            assert next_message(listener, but="READY=1") == ["STOPPING=1"]
        finally:
            cluster.close()


def next_message(listener: socket.socket, but: str = "") -> list[str]:
    """The next one that does not say `but`."""
    while True:
        lines = listener.recv(4096).decode().splitlines()
        if lines != [but]:
            return lines
