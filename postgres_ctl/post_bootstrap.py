"""The user's program that completes a new cluster, `bootstrap.post_bootstrap` (contract 5.6).

Theory. It needs a running, writable server, and at this time nobody holds the leader key. So the server is
one that nobody but the program can reach: it listens on no address, and its socket lies in a directory that
only our user can enter. It has the parameters of the real one. Should we die, the kernel ends it with us
(its parent-death signal); the data directory is under construction then, and the next attempt starts anew.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from postgres_ctl.api import Cancellation, ConnectionTarget, boottime, run_tool
from postgres_ctl.config_files import ServerConfig, quote_value, write_if_changed, write_pgpass
from postgres_ctl.errors import PostgresUnavailable, ToolFailed
from postgres_ctl.libpq import Connection
from postgres_ctl.process import find_postmaster, read_postmaster_pid

#: The server has this long to start and to stop, seconds.
SERVER_S = 60.0
#: Session settings of the program, by way of libpq (contract 5.6).
_PGOPTIONS = "-c synchronous_commit=local -c statement_timeout=0"
#: execv in a process that the kernel kills when the thread that made it is gone.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class PostBootstrap:
    """`command` is split like a shell line; it gets the conninfo of the superuser as its last argument."""

    command: str
    #: What the new cluster will run with.
    server: ServerConfig
    passfile: str
    database: str = "postgres"
    #: The cluster goes on in an archive that older backups need: what it writes now will be archived later.
    archived: bool = False


def complete(
    spec: PostBootstrap,
    postgres: str,
    superuser: str,
    password: str | None,
    deadline_s: float,
    cancel: Cancellation | None = None,
) -> None:
    """Run the program on a private server in the data directory. `postgres`: path of the server's program.

    The server is stopped cleanly afterwards, whatever the program said. Raises ToolFailed, ConfigFileError.
    """
    end = boottime() + deadline_s
    private = tempfile.mkdtemp(prefix="haagent-")
    try:
        target = ConnectionTarget(private, spec.server.port, superuser, password, spec.database)
        write_pgpass(spec.passfile, [target])
        data_dir = spec.server.data_dir
        config = private_config(spec.server, private, archived=spec.archived)
        argv = [postgres, "-D", data_dir, f"--config-file={config}"]
        with _server(argv, data_dir, deadline_s + 2 * SERVER_S, target, cancel):
            environment = {"PGOPTIONS": _PGOPTIONS, "PGHOST": private, "PGPORT": str(spec.server.port)}
            run_tool(
                [*shlex.split(spec.command), target.dsn()],
                max(0.0, end - boottime()),
                cancel=cancel,
                passfile=spec.passfile,
                env=environment,
                secrets=(password or "",),
            )
    finally:
        shutil.rmtree(private, ignore_errors=True)


def private_config(
    server: ServerConfig,
    private: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    archived: bool = False,
) -> str:
    """A configuration file in `private`: those of `server`, and `settings`, reachable from in there only.

    Nothing goes into an archive now; with `archived` it does as soon as the real server runs."""
    hba = os.path.join(private, "pg_hba.conf")
    write_if_changed(hba, "local all all trust\n")
    gucs = server.gucs() | {
        "listen_addresses": "",
        "unix_socket_directories": private,
        "unix_socket_permissions": "0700",
        "hba_file": hba,
        "synchronous_standby_names": "",
        **archive_settings(server, archived),
        **settings,
    }
    gucs.pop("ident_file", None)
    lines = "".join(f"{name} = {quote_value(value)}\n" for name, value in sorted(gucs.items()))
    included = os.path.join(server.data_dir, server.custom_conf or "postgresql.conf")
    if os.path.exists(server.base_file):  # of a server that an agent has run before
        included = server.base_file
    path = os.path.join(private, "postgresql.conf")
    write_if_changed(path, f"include {quote_value(included)}\n{lines}")
    return path


def archive_settings(server: ServerConfig, archived: bool) -> dict[str, str]:
    """Of a server that archives nothing yet. One that only fails to keeps for later what it has."""
    mode = server.gucs().get("archive_mode", "off")
    if not archived or mode not in ("on", "always"):
        return {"archive_mode": "off"}
    library = {"archive_library": ""} if server.gucs().get("archive_library") else {}
    return {"archive_mode": mode, "archive_command": "false", **library}


@contextmanager
def _server(
    argv: list[str], data_dir: str, limit_s: float, target: ConnectionTarget, cancel: Cancellation | None
) -> Iterator[None]:
    """A postmaster that lets `target` in, for the block. Raises ToolFailed when it does not come up."""
    running = PrivateServer(argv, data_dir, limit_s)
    try:
        running.await_login(target, cancel)
        yield
    finally:
        running.stop()


class PrivateServer:
    """A postmaster that the kernel ends with us. `stop` it, in any case."""

    def __init__(self, argv: list[str], data_dir: str, limit_s: float) -> None:
        self._argv = [sys.executable, "-I", "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv]
        self._data_dir, self._limit_s = data_dir, limit_s
        self._over = Cancellation()
        self._fault: ToolFailed | None = None
        self._thread = threading.Thread(target=self._run, name="post-bootstrap-server", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_tool(self._argv, self._limit_s, cancel=self._over, cwd=self._data_dir)
        except ToolFailed as fault:
            self._fault = fault

    def await_login(self, target: ConnectionTarget, cancel: Cancellation | None) -> None:
        end, pause_s = boottime() + SERVER_S, 0.02
        cancel = cancel or Cancellation()
        while True:
            try:
                Connection.open(replace(target, dbname="postgres"), 2.0).close()
                return
            except PostgresUnavailable as fault:
                if not self._thread.is_alive():
                    raise self._fault or ToolFailed("the server ended while it started") from None
                if boottime() > end:
                    raise ToolFailed(f"the server does not let the superuser in: {fault}") from None
            # No file or signal tells when a server lets users in: asked again, less and less often.
            if cancel.wait(pause_s):
                raise ToolFailed("cancelled", cancelled=True)
            pause_s = min(1.0, 2 * pause_s)

    def await_writable(self, deadline_s: float, cancel: Cancellation | None) -> None:
        """Until recovery is over, by the postmaster's own word: no user is known that could log in.

        Raises ToolFailed: it has ended before, deadline, cancelled."""
        end, pause_s = boottime() + deadline_s, 0.02
        cancel = cancel or Cancellation()
        while True:
            said = read_postmaster_pid(self._data_dir)
            if said is not None and said.status == "ready" and self._thread.is_alive():
                return
            if not self._thread.is_alive():
                raise self._why_ended()
            if boottime() > end:
                raise ToolFailed(f"not recovered within {deadline_s:g} s")
            if cancel.wait(pause_s):
                raise ToolFailed("cancelled", cancelled=True)
            pause_s = min(1.0, 2 * pause_s)

    def _why_ended(self) -> ToolFailed:
        output = self._fault.output if self._fault is not None else ""
        lines = [line for line in output.splitlines() if "FATAL" in line or "PANIC" in line]
        why = lines[-1] if lines else self._fault or "no reason is known"
        return ToolFailed(f"the server ended while it recovered: {why}", output)

    def stop(self, limit_s: float = SERVER_S) -> None:
        """Clean, ending every session that the program left; the last checkpoint gets `limit_s` seconds."""
        found = find_postmaster(self._data_dir)
        if found is not None:
            os.kill(found.pid, signal.SIGINT)
            self._thread.join(limit_s)
        self._over.set()
        self._thread.join(SERVER_S)
