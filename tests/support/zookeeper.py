"""Real ZooKeeper servers for tests, as `tests.support.etcd` has them for etcd.

with ZooKeeperServer() as server:       # one node
    server.hostport
    server.freeze(); server.thaw(); server.kill(); server.start()
with ZooKeeperCluster(3) as cluster:
    cluster.leader().kill()
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.etcd import START_DEADLINE_S, _clean_env, _on_main_thread, free_port
from tests.support.wait import pause, wait_for

_JARS = "/usr/share/java/zookeeper.jar"
TICK_MS = 500


class ZooKeeperServer:
    """One server. Not started by the constructor; `with` starts and stops it."""

    def __init__(self, number: int = 1, extra: Sequence[str] = ()) -> None:
        self.number = number
        self.client_port, self.peer_port, self.election_port = free_port(), free_port(), free_port()
        self.peers: list[str] = []
        self.data_dir = Path(tempfile.mkdtemp(prefix="haagent-zookeeper-", dir=_ram()))
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hostport(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def quorum_line(self) -> str:
        return f"server.{self.number}=127.0.0.1:{self.peer_port}:{self.election_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, wait: bool = True) -> None:
        """Start (again) on the same ports and data; with `wait` return once it serves."""
        assert not self.running, "already running"
        (self.data_dir / "myid").write_text(f"{self.number}\n")
        config = self.data_dir / "zoo.cfg"
        config.write_text("\n".join(self._config()) + "\n")
        launcher = ["setpriv", "--pdeathsig", "KILL"] if _on_main_thread() else []
        command = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += ["-Dzookeeper.jmx.log4j.disable=true", "-Djute.maxbuffer=8388608"]
        command += ["-cp", f"/etc/zookeeper/conf:{_JARS}"]
        command += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", str(config)]
        with (self.data_dir / "zookeeper.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_clean_env(),
                cwd=self.data_dir,
            )
        if wait:
            self.wait_ready()

    def _config(self) -> list[str]:
        return [
            f"tickTime={TICK_MS}",
            "initLimit=20",
            "syncLimit=4",
            "maxSessionTimeout=120000",
            f"dataDir={self.data_dir}",
            f"clientPort={self.client_port}",
            "clientPortAddress=127.0.0.1",
            "admin.enableServer=false",
            "4lw.commands.whitelist=*",
            *self.peers,
            *self._extra,
        ]

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Return when it serves requests; AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            assert self.running, f"zookeeper {self.number} ended:\n{self.log_tail()}"
            if self.mode() in ("standalone", "leader", "follower"):
                return
            pause()
        raise AssertionError(f"zookeeper {self.number} not ready after {deadline_s} s:\n{self.log_tail()}")

    def command(self, word: str) -> str:
        """One of its four-letter words."""
        with socket.create_connection(("127.0.0.1", self.client_port), timeout=5) as connection:
            connection.sendall(word.encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def mode(self) -> str:
        """leader, follower or standalone; "" while it does not serve."""
        try:
            lines = self.command("srvr").splitlines()
        except OSError:
            return ""
        return next((line.partition(": ")[2] for line in lines if line.startswith("Mode: ")), "")

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal the process and reap it; a frozen one is woken first, one that lingers is killed."""
        process = self._process
        if process is None:
            return
        process.send_signal(signum)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: connections stay open and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(self._all_threads_stopped, START_DEADLINE_S, f"zookeeper {self.number} is frozen")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _all_threads_stopped(self) -> bool:
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def log_tail(self, size_bytes: int = 4000) -> str:
        try:
            return (self.data_dir / "zookeeper.log").read_bytes()[-size_bytes:].decode(errors="replace")
        except OSError:
            return "(no log)"

    def close(self) -> None:
        """Kill the process and delete its data."""
        self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ZooKeeperCluster:
    """Several servers that form one ensemble."""

    def __init__(self, size: int = 3) -> None:
        self.servers = tuple(ZooKeeperServer(i + 1) for i in range(size))
        lines = [server.quorum_line for server in self.servers]
        for server in self.servers:
            server.peers = lines

    @property
    def hosts(self) -> str:
        return ",".join(server.hostport for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait_ready()

    def leader(self, deadline_s: float = START_DEADLINE_S) -> ZooKeeperServer:
        """The running server that leads; AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            for server in self.servers:
                if server.running and server.mode() == "leader":
                    return server
            pause()
        raise AssertionError(f"no zookeeper leader after {deadline_s} s")

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ram() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
