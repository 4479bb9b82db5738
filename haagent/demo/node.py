"""One member of the demo: its directory, its configuration, its agent, and how to hurt it.

Its processes are looked up anew at each call, because they come and go. What it says over REST is asked with
short deadlines: a member that is down must not hold up the picture of the others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from haagent.core.roles import is_primary
from haagent.demo.errors import Failed
from haagent.demo.processes import wait_gone

if TYPE_CHECKING:
    from haagent.demo.cluster import Cluster

#: REST answers come from memory; a member that needs longer counts as silent, seconds.
ASK_S = 1.0


class Node:
    """Made with its directory; nothing runs before `start`."""

    def __init__(self, cluster: Cluster, name: str, sql_port: int, api_port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.sql_port = sql_port
        self.api_port = api_port
        self.directory = cluster.directory / name
        self.data_dir = self.directory / "data"
        self.state_dir = self.directory / "data.haagent"
        self.config_file = self.directory / "haagent.yml"
        self.log_file = self.directory / "agent.log"
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    # --- files ------------------------------------------------------------------------------------

    def write_files(self) -> None:
        user = self.cluster.machine.user
        self.directory.mkdir(mode=0o700)
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(yaml.safe_dump(self._config(), sort_keys=False))
        user.give(self.config_file)
        user.give(self.directory)

    def _config(self) -> dict[str, Any]:
        cluster = self.cluster
        return {
            "scope": cluster.scope,
            "name": self.name,
            "local": {"path": str(cluster.store_file)},
            "restapi": {"listen": f"127.0.0.1:{self.api_port}"},
            "bootstrap": {"dcs": cluster.dynamic, "initdb": [{"encoding": "UTF8"}, "data-checksums"]},
            "postgresql": self._postgresql(),
        }

    def _postgresql(self) -> dict[str, Any]:
        cluster = self.cluster
        return {
            "listen": f"127.0.0.1:{self.sql_port}",
            "data_dir": str(self.data_dir),
            "bin_dir": str(cluster.machine.bin_dir),
            "pgpass": str(self.directory / "pgpass"),
            "authentication": {
                "superuser": {"username": "postgres", "password": cluster.password},
                "replication": {"username": "replicator", "password": cluster.password},
            },
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication replicator 127.0.0.1/32 scram-sha-256",
            ],
            "parameters": {
                "unix_socket_directories": str(self.directory),
                "shared_buffers": "16MB",
                # The gaps shall be the agent's, not this disk's: crash recovery fsyncs every file first.
                # Nothing the demo does needs it: killed processes leave what they wrote to the kernel.
                "fsync": "off",
                "max_wal_size": "128MB",
                # A standby whose primary was restarted tries again after this; the default is 5 s.
                "wal_retrieve_retry_interval": "1s",
                "log_line_prefix": "%m [%p] %b ",
            },
        }

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent, and return at once. It goes on when the demo ends."""
        machine = self.cluster.machine
        with self.log_file.open("ab") as log:
            self._agent = subprocess.Popen(
                [machine.python, "-m", "haagent", "run", str(self.config_file)],
                cwd=self.directory,
                env=machine.environment | {"HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **machine.user.for_popen(),
            )

    def check_agent(self) -> None:
        """Raises Failed when the agent ended by itself: to wait on would be in vain."""
        if self._agent is not None and self._agent.poll() is not None:
            raise Failed(f"the agent of {self.name} ended with status {self._agent.returncode}")

    def ask_to_stop(self) -> None:
        """SIGTERM to the agent: it stops PostgreSQL and the guardian."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.terminate()

    def wait_stopped(self, deadline_s: float) -> bool:
        """The agent ended within `deadline_s` seconds."""
        if self._agent is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._agent.wait(deadline_s)
        return self._agent.poll() is not None

    @property
    def agent_pid(self) -> int | None:
        alive = self._agent is not None and self._agent.poll() is None
        return self._agent.pid if alive and self._agent is not None else None

    def postmaster_pid(self) -> int | None:
        """Of the living postmaster of this data directory."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
            return pid if pid in self.cluster.owner.pids(self.directory) else None
        return None

    def guardian_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.state_dir / "guardian.lock").read_text())
            return pid if pid in self.cluster.owner.pids(self.directory) else None
        return None

    # --- faults -----------------------------------------------------------------------------------

    def kill_postmaster(self) -> int:
        """kill -9 of PostgreSQL's first process; returns its pid when it is gone. Raises Failed."""
        pid = self.postmaster_pid()
        if pid is None:
            raise Failed(f"{self.name} has no postmaster")
        self.cluster.owner.send(pid, signal.SIGKILL, self.directory)
        wait_gone([pid], 5.0)
        return pid

    def kill_all(self) -> None:
        """kill -9 of everything on this node, in one go: as if the machine were gone."""
        left = self.cluster.owner.kill_all(5.0, self.directory)
        if self._agent is not None:
            self._agent.wait(5.0)
            self._agent = None
        if left:
            raise Failed(f"processes of {self.name} cannot be ended: {left}")

    # --- asking -----------------------------------------------------------------------------------

    def rest(
        self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = ASK_S
    ) -> tuple[int, str]:
        """GET, or POST of `body`: status and text. OSError when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if data else {}
            connection.request("POST" if data else "GET", path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except http.client.HTTPException as fault:
            raise OSError(f"{path}: {fault!r}") from None
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """`GET /patroni`; {} when nobody answers."""
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(self.rest("/patroni")[1])
            return answer if isinstance(answer, dict) else {}
        return {}

    def leads(self) -> bool:
        """Its REST API would send writers here."""
        try:
            return self.rest("/primary")[0] == 200
        except OSError:
            return False


def is_streaming_on(status: Mapping[str, Any], timeline: int | None) -> bool:
    """This `/patroni` answer is that of a standby that streams on `timeline`."""
    return status.get("replication_state") == "streaming" and status.get("timeline") == timeline


def says_primary(status: Mapping[str, Any]) -> bool:
    """This `/patroni` answer is that of a primary."""
    return is_primary(str(status.get("role"))) and status.get("state") == "running"
