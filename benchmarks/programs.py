"""Clusters of either program on the tests' harness: the same YAML, store, PostgreSQL and user for both.

Patroni comes from PyPI into an environment of its own, made on the first run with Debian's python (the agents
run as the user postgres, who may not read root's home).
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.network import Network
from tests.support import cluster as harness
from tests.support.cluster import Cluster, Node, merged
from tests.support.etcd import EtcdServer

Program = Literal["haagent", "patroni"]
PYTHON = "/usr/bin/python3"
#: A client takes a server that does not confirm its packets for so long, in milliseconds, for lost.
SILENCE_MS = 500
PACKAGES = ("patroni[etcd3]", "psycopg[binary]")


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    ttl: int
    loop_wait: int
    retry_timeout: int

    def __str__(self) -> str:
        return f"{self.ttl}/{self.loop_wait}/{self.retry_timeout}"


#: The shortest lease haagent permits with etcd.
SHORT = Timing(3, 1, 1)
#: The smallest values that Patroni takes.
PATRONI_MINIMUM = Timing(20, 2, 3)
#: What both do when nobody says anything.
DEFAULT = Timing(30, 10, 10)


def ensure_patroni(venv: Path) -> Path:
    """Python of an environment that holds Patroni; made when it is not there. CalledProcessError."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "patroni").exists():
        print(f"installing {', '.join(PACKAGES)} into {venv} ...", flush=True)
        os.umask(0o022)
        subprocess.run([PYTHON, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


class BenchNode(Node):
    """A node of either program, on the loopback or in a namespace of its own."""

    def __init__(self, cluster: BenchCluster, index: int) -> None:
        super().__init__(cluster, index)
        self.bench = cluster
        network = cluster.network
        if network is not None:
            network.add(self.name)
        self.address = network.address(self.name) if network else "127.0.0.1"

    # --- configuration ----------------------------------------------------------------------------

    def _base_config(self) -> dict[str, Any]:
        api, sql = f"{self.address}:{self.api_port}", f"{self.address}:{self.sql_port}"
        everywhere = "0.0.0.0/0"
        mine = {
            "restapi": {"listen": api, "connect_address": api},
            "postgresql": {
                "listen": sql,
                "connect_address": sql,
                "pg_hba": [
                    "local all all trust",
                    f"host all all {everywhere} trust",
                    f"host replication all {everywhere} trust",
                ],
            },
        }
        return merged(super()._base_config(), mine)

    def store_section(self) -> dict[str, Any]:
        network, etcd = self.bench.network, self.cluster.etcd
        assert etcd is not None
        return {"etcd3": {"host": f"{network.host if network else '127.0.0.1'}:{etcd.client_port}"}}

    # --- life -------------------------------------------------------------------------------------

    def start(self, *arguments: str) -> None:
        """Start the agent (again), and return at once."""
        self.write_config()
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if self.bench.program == "haagent":
            environment["PYTHONPATH"] = str(harness._code())
            command = [sys.executable, "-m", "haagent", "run", str(self.config_file)]
        else:
            command = [str(self.bench.patroni_python), "-m", "patroni", str(self.config_file)]
        network = self.bench.network
        entering = ["nsenter", f"--net={network.path(self.name)}"] if network else []
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                entering + harness._as_agent_user() + command + list(arguments),
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    # --- asking -----------------------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        return f"host={self.address} port={self.sql_port} user=postgres dbname=postgres"

    def rest(
        self,
        path: str,
        method: str = "GET",
        body: Any = None,
        *,
        timeout_s: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status, and the body as JSON where it is, else text. OSError when nobody answers."""
        connection = http.client.HTTPConnection(self.address, self.api_port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            status, text = answer.status, answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def program_pids(self) -> list[int]:
        """Agent, and guardian where there is one; their children count as theirs once they ended."""
        guardian = self.guardian_pid
        return [self.agent_pid] + ([] if guardian is None else [guardian])


class BenchCluster(Cluster):
    """Three nodes of one program. `network`: each in a namespace of its own, so that it can be cut off."""

    def __init__(
        self,
        program: Program,
        timing: Timing,
        *,
        fsync: bool,
        etcd: EtcdServer,
        scope: str,
        network: Network | None = None,
        patroni_python: Path | None = None,
        nodes: int = 3,
    ) -> None:
        super().__init__(
            nodes=0,
            etcd=etcd,
            ttl=timing.ttl,
            loop_wait=timing.loop_wait,
            retry_timeout=timing.retry_timeout,
            parameters={"fsync": "on" if fsync else "off"},
            scope=scope,
        )
        self.program, self.timing, self.fsync = program, timing, fsync
        self.network, self.patroni_python = network, patroni_python
        self.bench_nodes = [BenchNode(self, index) for index in range(nodes)]
        self.nodes = list(self.bench_nodes)
        #: Named last in `read_write_dsn`.
        self.tried_last: Node | None = None

    @property
    def read_write_dsn(self) -> str:
        """All nodes, libpq picks the writable one; a server that falls silent is given up soon."""
        order = sorted(self.bench_nodes, key=lambda node: node is self.tried_last)
        hosts = ",".join(node.address for node in order)
        ports = ",".join(str(node.sql_port) for node in order)
        session = "user=postgres dbname=postgres target_session_attrs=read-write"
        return f"host={hosts} port={ports} {session}" + (
            f" tcp_user_timeout={SILENCE_MS}" if self.network else ""
        )
