"""Real etcd servers for tests: started in a fraction of a second, frozen, killed, restarted at will.

Theory. Each server gets ports that no other test process on this machine takes (`free_port` holds a
reservation for the life of the process), a data directory of its own on a RAM disk where there is one
(so fsync costs nothing), and short election timeouts. The server dies with the test process.

    with EtcdServer() as server:            # one node
        server.url                          # "http://127.0.0.1:23017"
        server.freeze(); server.thaw()      # SIGSTOP, SIGCONT: looks like a silent partition
        server.kill(); server.start()       # same ports, same data
    with EtcdCluster(3) as cluster:
        cluster.urls; cluster.leader().kill()
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.netns import Host
from tests.support.wait import pause, wait_for

#: Below the kernel's ephemeral range, so that an outgoing connection never takes a port from us.
_PORTS = range(20000, 32000)
#: Generous: a loaded machine may need long, a healthy one needs 0.2 s.
START_DEADLINE_S = 30.0

_reservations: list[socket.socket] = []
_reservations_lock = threading.Lock()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free and stays reserved for this process.

    The reservation is an abstract Unix socket: other test processes see it, the kernel ends it with us.
    """
    with _reservations_lock:
        for port in random.sample(_PORTS, len(_PORTS)):
            guard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                guard.bind(f"\0haagent-test-port-{port}")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                guard.close()
                continue
            _reservations.append(guard)
            return port
    raise RuntimeError("no free port")


@dataclass(frozen=True)
class EtcdTls:
    """PEM files: server certificate and key, the CA that signed both sides."""

    cert: str
    key: str
    ca: str
    client_cert_auth: bool = False


def _new_data_dir() -> Path:
    ram = "/dev/shm"
    base = ram if os.access(ram, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="haagent-etcd-", dir=base))


class EtcdServer:
    """One etcd process. Not started by the constructor; `with` starts and stops it."""

    def __init__(
        self,
        name: str = "e0",
        *,
        tls: EtcdTls | None = None,
        election_timeout_ms: int = 300,
        extra_args: Sequence[str] = (),
        client_port: int | None = None,
        peer_port: int | None = None,
        address: str = "127.0.0.1",
        launcher: Sequence[str] = (),
    ) -> None:
        """address, launcher: the host it runs on and the command prefix that gets there."""
        self.name = name
        self.address = address
        self._launcher = tuple(launcher)
        self.tls = tls
        self.client_port = client_port or free_port()
        self.peer_port = peer_port or free_port()
        self.initial_cluster = f"{name}={self.peer_url}"
        self.data_dir = _new_data_dir()
        self._election_timeout_ms = election_timeout_ms
        self._extra_args = tuple(extra_args)
        self._process: subprocess.Popen[bytes] | None = None

    # --- addresses --------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.client_port}"

    @property
    def hostport(self) -> str:
        return f"{self.address}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.address}:{self.peer_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- life -------------------------------------------------------------------------------------

    def start(self, wait: bool = True) -> None:
        """Start (again) on the same ports and data; with `wait` return once it serves requests."""
        assert not self.running, "already running"
        log = (self.data_dir / "etcd.log").open("ab")
        try:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_clean_env()
            )
        finally:
            log.close()
        if wait:
            self.wait_ready()

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Return when the server answers /health with a leader; AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            assert self.running, f"etcd {self.name} ended:\n{self.log_tail()}"
            if self._healthy():
                return
            pause()
        raise AssertionError(f"etcd {self.name} not ready after {deadline_s} s:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process, keep the data (see `close`)."""
        self.kill(signal.SIGTERM)

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
        # The signal reaches the threads one by one: one of them may still answer a request.
        wait_for(self._all_threads_stopped, START_DEADLINE_S, f"etcd {self.name} is frozen")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

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

    # --- what tests ask it ------------------------------------------------------------------------

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        """One raw gateway call, independent of the code under test, for example "/v3/kv/range"."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout_s, context=self._ssl_context()) as answer:
            parsed = json.load(answer)
        assert isinstance(parsed, dict)
        return parsed

    def is_leader(self) -> bool:
        status = self.post("/v3/maintenance/status", {})
        return "leader" in status and status["leader"] == status["header"]["member_id"]

    def log_tail(self, size_bytes: int = 4000) -> str:
        try:
            return (self.data_dir / "etcd.log").read_bytes()[-size_bytes:].decode(errors="replace")
        except OSError:
            return "(no log)"

    # --- inside -----------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        election = self._election_timeout_ms
        command = [*self._launcher]
        command += ["setpriv", "--pdeathsig", "KILL"] if _on_main_thread() else []
        command += [
            "etcd",
            f"--name={self.name}",
            f"--data-dir={self.data_dir / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial_cluster}",
            f"--initial-cluster-token={self.initial_cluster}",
            f"--heartbeat-interval={max(election // 6, 10)}",
            f"--election-timeout={election}",
        ]
        if self.tls:
            command += [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
            command += [f"--trusted-ca-file={self.tls.ca}"]
            if self.tls.client_cert_auth:
                command.append("--client-cert-auth")
        return command + list(self._extra_args)

    def _ssl_context(self) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=self.tls.ca)
        if self.tls.client_cert_auth:
            context.load_cert_chain(self.tls.cert, self.tls.key)
        return context

    def _all_threads_stopped(self) -> bool:
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def _healthy(self) -> bool:
        try:
            url = self.url + "/health"
            with urllib.request.urlopen(url, timeout=2, context=self._ssl_context()) as answer:
                return b"true" in answer.read()
        except (OSError, ValueError):
            return False


class EtcdCluster:
    """Several servers that form one cluster."""

    def __init__(self, size: int = 3, *, election_timeout_ms: int = 300, hosts: Sequence[Host] = ()) -> None:
        """hosts: where the servers run, one each (a network namespace); without them on 127.0.0.1."""
        places = [(host.address, host.launcher) for host in hosts] or [("127.0.0.1", ())] * size
        self.servers = tuple(
            EtcdServer(f"e{i}", election_timeout_ms=election_timeout_ms, address=address, launcher=launcher)
            for i, (address, launcher) in enumerate(places)
        )
        peers = ",".join(f"{s.name}={s.peer_url}" for s in self.servers)
        for server in self.servers:
            server.initial_cluster = peers

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait_ready()

    def leader(self, deadline_s: float = START_DEADLINE_S) -> EtcdServer:
        """The running server that leads; waits for an election, AssertionError after `deadline_s`."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            for server in self.servers:
                try:
                    if server.running and server.is_leader():
                        return server
                except (OSError, ValueError):
                    continue
            pause()
        raise AssertionError(f"no etcd leader after {deadline_s} s")

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


def _on_main_thread() -> bool:
    # The parent-death signal follows the thread that forked: only safe when that is the main one.
    return threading.current_thread() is threading.main_thread()


def _clean_env() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
