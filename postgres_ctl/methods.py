"""Filling a data directory by a program of the user's: a replica, or a new cluster (contract 6.4).

Theory. The program is the user's, and what it leaves is not believed before it is looked at: a data
directory, nothing living in it, of the cluster it should be of. Until then the directory is marked as
incomplete (`datadir.handed_over`), also where it is the same one as before (`keep_data`). The marker follows
a program that makes the directory, or makes it anew. If we die, the program may go on: it carries the
directory's name in its environment, by which whoever fills the directory next finds and ends it, with all it
has started.

Passwords are in the file that PGPASSFILE names, never among the arguments.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from postgres_ctl.api import Cancellation, ConnectionTarget, run_tool
from postgres_ctl.basebackup import forget_origin
from postgres_ctl.controldata import read_controldata
from postgres_ctl.datadir import WORKS_ON, Marker, handed_over, require_unused
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.tool_login import secrets_of, tool_login

#: How often it is looked whether the program has made the directory anew, seconds.
FOLLOW_EVERY_S = 0.2


@dataclass(frozen=True)
class MethodSpec:
    """A way to make a replica; `arguments` are the keys of its section as contract 6.4 passes them on."""

    name: str
    data_dir: str
    bin_dir: str
    #: Split like a shell line.
    command: str
    scope: str
    #: None: there is no leader.
    source: ConnectionTarget | None
    #: File with the source's password; the caller keeps it up to date.
    passfile: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    no_params: bool = False
    keep_data: bool = False
    #: What the copy has to be a copy of; None: nobody knows.
    system_identifier: str | None = None
    #: Files in the directory that would promote a standby.
    trigger_files: Sequence[str] = ()
    pg_controldata: str = "pg_controldata"


def method_arguments(spec: MethodSpec, connstring: str) -> list[str]:
    """The command line of contract 6.4. Raises ValueError on unbalanced quotes."""
    argv = shlex.split(spec.command) + [f"--{name}={value}" for name, value in spec.arguments.items()]
    if not spec.no_params:
        argv += [f"--scope={spec.scope}", "--role=replica", f"--datadir={spec.data_dir}"]
        argv += [f"--connstring={connstring}"]
    return argv


def run_method(spec: MethodSpec, deadline_s: float, cancel: Cancellation | None = None) -> None:
    """Make a replica by the user's program within `deadline_s` seconds.

    With `keep_data` the directory is not emptied, before or after a failure; it counts as incomplete then.
    Raises ToolFailed (non-zero exit, deadline, cancelled, or no copy of this cluster), DataDirError.
    """
    with _login(spec) as (connstring, env):
        argv = method_arguments(spec, connstring)
        hidden = secrets_of(spec.source) if spec.source is not None else []
        with handed_over(spec.data_dir, keep=spec.keep_data) as marker:
            fill(argv, spec.data_dir, marker, deadline_s, cancel, env, hidden)
            _look_at(spec)
            forget_origin(spec.data_dir, spec.trigger_files)


@contextlib.contextmanager
def _login(spec: MethodSpec) -> Iterator[tuple[str, Mapping[str, str]]]:
    passfile = {"PGPASSFILE": spec.passfile}
    if spec.source is None:
        yield "", passfile
        return
    with tool_login(spec.source, spec.passfile) as (dsn, env):
        yield dsn, {**passfile, **env}


def fill(
    argv: Sequence[str],
    data_dir: str,
    marker: Marker,
    deadline_s: float,
    cancel: Cancellation | None,
    env: Mapping[str, str],
    secrets: Sequence[str] = (),
) -> None:
    """Run the program that fills `data_dir`, with our own environment and `env`. Raises ToolFailed,
    DataDirError when it has left something running there."""
    mark = {WORKS_ON: os.path.realpath(data_dir)}
    with _followed(marker):
        run_tool(
            argv,
            deadline_s,
            cancel=cancel,
            env={**env, **mark},
            secrets=secrets,
            inherit=True,
        )
    require_unused(data_dir)
    if os.path.isdir(data_dir) and os.stat(data_dir).st_mode & 0o027:
        os.chmod(data_dir, 0o700)  # PostgreSQL would not start


@contextlib.contextmanager
def _followed(marker: Marker) -> Iterator[None]:
    """The marker stays with the directory, whatever the program makes of it."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(FOLLOW_EVERY_S):
            with contextlib.suppress(DataDirError):  # tried again, and at the end
                marker.follow()

    thread = threading.Thread(target=follow, name="follow-data-directory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    marker.follow()


def _look_at(spec: MethodSpec) -> None:
    """Raises ToolFailed when the program has left no data directory, or that of another cluster."""
    if not os.path.exists(os.path.join(spec.data_dir, "PG_VERSION")):
        raise ToolFailed(f"{spec.name} ended well, but {spec.data_dir} holds no PostgreSQL data directory")
    control = read_controldata(spec.bin_dir, spec.data_dir, program=spec.pg_controldata)
    wanted = spec.system_identifier
    if wanted is not None and control.system_identifier != wanted:
        raise ToolFailed(
            f"{spec.name} has made a copy of another cluster: {control.system_identifier} instead of {wanted}"
        )
