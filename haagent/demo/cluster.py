"""Three members in one directory, the writer beside them, and the end of all their processes.

Theory of the end: whatever happened before, the same steps. The standbys' agents are asked to leave, then the
primary's (so that nobody takes over from it), then what is left is killed, then the files go. Each step has
a deadline, and none needs a process to help.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from haagent.demo.errors import Unable
from haagent.demo.machine import Machine, User, free_ports
from haagent.demo.node import Node
from haagent.demo.processes import Owner, wait_gone
from postgres_ctl.api import ConnectionTarget

NAMES = ("n1", "n2", "n3")
#: The lease lives this long, seconds: a lost node is replaced about that long after its last renewal.
TTL_S = 5
LOOP_WAIT_S = 1
RETRY_TIMEOUT_S = 1
#: A standby that is further behind does not take over, bytes.
MAXIMUM_LAG_BYTES = 1048576
CONNECTIONS = 4
#: All connections together.
ROWS_PER_S = 240
#: For the agents of one step to stop their PostgreSQL, seconds.
STOP_S = 15.0
KILL_S = 10.0

#: In the directory: says that it is a demo's, and with which programs.
_MARK = "haagent-demo.json"
#: PostgreSQL's socket lies below it, and the kernel allows 107 bytes.
_LONGEST_DIRECTORY = 70


class Cluster:
    """Made with its files; nothing runs before its nodes are started."""

    scope = "demo"

    def __init__(self, directory: Path, machine: Machine) -> None:
        self.directory = directory
        self.machine = machine
        self.owner = Owner(directory, machine.bin_dir)
        self.password = secrets.token_urlsafe(18)
        self.store_file = directory / "store" / "dcs.db"
        self.notes_file = directory / "writer.notes"
        ports = free_ports(2 * len(NAMES))
        self.nodes = [Node(self, name, ports.pop(), ports.pop()) for name in NAMES]
        self._writer: subprocess.Popen[bytes] | None = None
        self._write_files()

    @property
    def dynamic(self) -> dict[str, object]:
        """The cluster's first dynamic configuration."""
        return {
            "ttl": TTL_S,
            "loop_wait": LOOP_WAIT_S,
            "retry_timeout": RETRY_TIMEOUT_S,
            "maximum_lag_on_failover": MAXIMUM_LAG_BYTES,
            "postgresql": {"use_pg_rewind": True, "parameters": {"wal_keep_size": "128MB"}},
        }

    def _write_files(self) -> None:
        user = self.machine.user
        mark_directory(self.directory, self.machine)
        self.store_file.parent.mkdir(mode=0o700)
        user.give(self.store_file.parent)
        for node in self.nodes:
            node.write_files()

    # --- connections ------------------------------------------------------------------------------

    @property
    def ports(self) -> str:
        """Of all servers, as libpq takes them."""
        return ",".join(str(node.sql_port) for node in self.nodes)

    @property
    def target(self) -> ConnectionTarget:
        """All servers; the keywords `read_write` belong to it.

        By their sockets, which lie in directories of the servers' user: so no password is needed. Over TCP
        each connection would cost milliseconds of SCRAM, and the writer opens many while nobody can write.
        """
        hosts = ",".join(str(node.directory) for node in self.nodes)
        return ConnectionTarget(hosts, self.nodes[0].sql_port, "postgres")

    @property
    def read_write(self) -> dict[str, str]:
        return {"port": self.ports, "target_session_attrs": "read-write"}

    def node_at(self, sql_port: int) -> Node:
        return next(node for node in self.nodes if node.sql_port == sql_port)

    # --- the writer -------------------------------------------------------------------------------

    def start_writer(self) -> None:
        arguments = {
            "--ports": self.ports,
            "--hosts": self.target.host,
            "--notes": str(self.notes_file),
            "--connections": str(CONNECTIONS),
            "--rows-per-s": str(ROWS_PER_S),
        }
        command = [self.machine.python, "-m", "haagent.demo.writer"]
        command += [word for pair in arguments.items() for word in pair]
        with (self.directory / "writer.log").open("ab") as log:
            self._writer = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.machine.environment | {"HOME": str(self.directory)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_writer(self) -> None:
        """Its input ends, so it ends; every note is in the file on return."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        stdin: IO[bytes] | None = writer.stdin
        if stdin is not None:
            stdin.close()
        try:
            writer.wait(KILL_S)
        except subprocess.TimeoutExpired:
            writer.kill()
            writer.wait()

    # --- the end ----------------------------------------------------------------------------------

    def stop_all(self) -> list[int]:
        """End every process. Returns the pids that could not be ended."""
        self.stop_writer()
        leading = [node for node in self.nodes if node.leads()]
        for group in ([node for node in self.nodes if node not in leading], leading):
            for node in group:
                node.ask_to_stop()
            for node in group:
                node.wait_stopped(STOP_S)
        left = self.owner.kill_all(KILL_S)
        for node in self.nodes:
            node.wait_stopped(KILL_S)
        return left


# --- the directory --------------------------------------------------------------------------------


def make_directory(chosen: str | None, user: User) -> Path:
    """A new directory, or the chosen one, which must be new or empty. Raises Unable."""
    try:
        if chosen is None:
            path = Path(tempfile.mkdtemp(prefix="haagent-demo-"))
        else:
            path = Path(chosen)
            path.mkdir(mode=0o700, exist_ok=True)
            if any(path.iterdir()):
                raise Unable(f"--dir {chosen}: is not empty")
        path = path.resolve()
        # Ours; another user that runs the servers only passes through, to its own directories in here.
        path.chmod(0o711 if user.lent else 0o700)
    except OSError as fault:
        raise Unable(f"{chosen or 'scratch directory'}: {fault.strerror}") from None
    if len(os.fsencode(path)) > _LONGEST_DIRECTORY:
        raise Unable(f"{path}: PostgreSQL's socket needs a path of at most {_LONGEST_DIRECTORY} bytes")
    return path


def mark_directory(directory: Path, machine: Machine) -> None:
    (directory / _MARK).write_text(json.dumps({"bin_dir": str(machine.bin_dir)}))


def end_of(directory: Path) -> list[int]:
    """Stop a cluster that `--keep` left running in `directory`, and remove it. Raises Unable.

    Returns the pids that could not be ended; then the files stay.
    """
    directory = directory.resolve()
    try:
        bin_dir = Path(json.loads((directory / _MARK).read_text())["bin_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Unable(f"{directory}: there is no demo in here") from None
    owner = Owner(directory, bin_dir)
    agents = owner.agents()
    for pid in agents:
        owner.terminate(pid)
    wait_gone(agents, STOP_S)
    left = owner.kill_all(KILL_S)
    if not left:
        remove(directory)
    return left


def remove(directory: Path) -> None:
    """The files too; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory)
