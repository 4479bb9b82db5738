"""Real Consul servers for tests, as `tests.support.etcd` has them for etcd.

    with ConsulServer() as server:          # one node
        server.hostport                     # "127.0.0.1:23017"
        server.freeze(); server.thaw(); server.kill(); server.start()
    with ConsulCluster(3) as cluster:
        cluster.leader().kill()

scripts/setup.sh says where the program comes from; `program()` finds it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support.etcd import START_DEADLINE_S, _clean_env, _on_main_thread, free_port
from tests.support.wait import pause, wait_for


def program() -> str:
    """The consul on the PATH, or the one that set-up fetched beside the environment. The test is skipped
    where set-up could not fetch it."""
    beside = Path(sys.prefix).parent / "consul" / "usr" / "bin" / "consul"
    found = shutil.which("consul") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None and (Path(sys.prefix).parent / "consul" / "none").exists():
        pytest.skip("there is no Consul for this system")
    assert found, f"no consul on the PATH and none at {beside}: make setup fetches it"
    return found


class ConsulServer:
    """One consul agent in server mode. Not started by the constructor; `with` starts and stops it."""

    def __init__(
        self, name: str = "c0", extra: Mapping[str, Any] | None = None, token: str | None = None
    ) -> None:
        """token: of the calls that tests make."""
        self.name = name
        self.ports = {kind: free_port() for kind in ("http", "server", "serf_lan", "serf_wan")}
        self.bootstrap_expect = 1
        self.join: list[str] = []
        self.data_dir = Path(tempfile.mkdtemp(prefix="haagent-consul-", dir=_ram()))
        self._extra = dict(extra or {})
        self._headers = {"X-Consul-Token": token} if token else {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hostport(self) -> str:
        return f"127.0.0.1:{self.ports['http']}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, wait: bool = True) -> None:
        """Start (again) on the same ports and data; with `wait` return once it has a leader."""
        assert not self.running, "already running"
        config = self.data_dir / "consul.json"
        config.write_text(json.dumps(self._config()))
        launcher = ["setpriv", "--pdeathsig", "KILL"] if _on_main_thread() else []
        with (self.data_dir / "consul.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, program(), "agent", f"-config-file={config}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_clean_env(),
            )
        if wait:
            self.wait_ready()

    def _config(self) -> dict[str, Any]:
        base: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": self.bootstrap_expect,
            "node_name": self.name,
            "data_dir": str(self.data_dir / "data"),
            "bind_addr": "127.0.0.1",
            "ports": {**self.ports, "dns": -1, "grpc": -1},
            "performance": {"raft_multiplier": 1},
            # Short sessions, so that tests need not wait for the usual 20 seconds.
            "session_ttl_min": "1s",
            # Its limit is half a megabyte; whoever needs larger values raises it like this.
            "limits": {"kv_max_value_size": 4194304, "txn_max_req_len": 4194304},
            "log_level": "warn",
            "disable_update_check": True,
            "retry_join": self.join,
            "retry_interval": "1s",
        }
        return base | self._extra

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Return when it knows a leader and can write; AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            assert self.running, f"consul {self.name} ended:\n{self.log_tail()}"
            if self._ready():
                return
            pause()
        raise AssertionError(f"consul {self.name} not ready after {deadline_s} s:\n{self.log_tail()}")

    def _ready(self) -> bool:
        try:
            return bool(self.get("/v1/status/leader")) and self.get("/v1/catalog/nodes") != []
        except (OSError, ValueError):
            return False

    def get(self, path: str) -> Any:
        """One call, independent of the code under test."""
        request = urllib.request.Request(f"http://{self.hostport}{path}", headers=self._headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def is_leader(self) -> bool:
        return bool(self.get("/v1/status/leader") == f"127.0.0.1:{self.ports['server']}")

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
        wait_for(self._all_threads_stopped, START_DEADLINE_S, f"consul {self.name} is frozen")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _all_threads_stopped(self) -> bool:
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def log_tail(self, size_bytes: int = 4000) -> str:
        try:
            return (self.data_dir / "consul.log").read_bytes()[-size_bytes:].decode(errors="replace")
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


class ConsulCluster:
    """Several servers that form one cluster."""

    def __init__(self, size: int = 3) -> None:
        self.servers = tuple(ConsulServer(f"c{i}") for i in range(size))
        addresses = [f"127.0.0.1:{server.ports['serf_lan']}" for server in self.servers]
        for server in self.servers:
            server.bootstrap_expect, server.join = size, addresses

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait_ready()

    def leader(self, deadline_s: float = START_DEADLINE_S) -> ConsulServer:
        """The running server that leads; AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            for server in self.servers:
                try:
                    if server.running and server.is_leader():
                        return server
                except (OSError, ValueError):
                    continue
            pause()
        raise AssertionError(f"no consul leader after {deadline_s} s")

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
