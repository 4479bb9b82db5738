"""Cloning a data directory by pg_basebackup (contract 6.4). Other ways: `methods`.

Theory. A clone goes only into an empty directory and is one construction (`datadir.under_construction`):
what a failed or cancelled one copied is removed, and what a killed agent left is known to be incomplete. The
checkpoint is fast by default: a spread one lets a lost node wait minutes for its first byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from postgres_ctl.api import Cancellation, ConnectionTarget, option_arguments, run_tool, tool
from postgres_ctl.config_files import DYNAMIC_CACHE, write_standby_signal
from postgres_ctl.datadir import link_targets, under_construction, wipe
from postgres_ctl.tool_login import secrets_of, tool_login

__all__ = ["CloneSpec", "clone", "copied_bytes", "forget_origin", "wipe"]

#: Options of `postgresql.basebackup` that are ours (contract 6.4), and those of newer versions whose copy is
#: elsewhere or cannot be started.
FORBIDDEN_OPTIONS = frozenset(
    {"pgdata", "format", "wal-method", "xlog-method", "gzip", "version", "help", "dbname", "host", "port"}
    | {"username", "password", "no-password", "target", "incremental"}
)


@dataclass(frozen=True)
class CloneSpec:
    """`options` is contract 6.4's list: each `"name"` or `{"name": value}`; a mapping counts as one entry."""

    data_dir: str
    bin_dir: str
    source: ConnectionTarget
    #: File with the source's password; the caller keeps it up to date (`config_files.write_pgpass`).
    passfile: str
    options: Sequence[str | Mapping[str, object]] = ()
    #: So that several clones of one source can be told apart in pg_stat_replication.
    application_name: str = "pg_basebackup"
    program: str = "pg_basebackup"


def basebackup_arguments(
    options: Sequence[str | Mapping[str, object]],
) -> tuple[list[str], list[str]]:
    """(arguments, warnings) from contract 6.4's options; `--checkpoint=fast` unless they choose."""
    arguments, warnings = option_arguments("postgresql.basebackup", options, FORBIDDEN_OPTIONS)
    for argument in [a for a in arguments if a.startswith("--compress=") and "=server-" not in a]:
        # The copy has to be a directory that can be started: only the way may be compressed.
        arguments.remove(argument)
        warnings.append("postgresql.basebackup.compress: only server-side compression, ignored")
    if not any(argument.startswith("--checkpoint") for argument in arguments):
        arguments.append("--checkpoint=fast")
    return arguments, warnings


def clone(spec: CloneSpec, deadline_s: float, cancel: Cancellation | None = None) -> tuple[str, ...]:
    """pg_basebackup into an absent or empty directory; returns warnings.

    standby.signal is set, recovery settings are not written.

    On failure everything copied is removed. Raises ToolFailed, DataDirError.
    """
    arguments, warnings = basebackup_arguments(spec.options)
    argv = [tool(spec.bin_dir, spec.program), f"--pgdata={spec.data_dir}", "-X", "stream", "--no-password"]
    login = tool_login(spec.source, spec.passfile, application_name=spec.application_name)
    with under_construction(spec.data_dir), login as (dsn, env):
        run_tool(
            [*argv, f"--dbname={dsn}", *arguments],
            deadline_s,
            cancel=cancel,
            passfile=spec.passfile,
            env=env,
            secrets=secrets_of(spec.source),
            cwd=spec.data_dir,
        )
        forget_origin(spec.data_dir)
    return tuple(warnings)


#: Of the source's life, not of the copy's. Its dynamic configuration may even be another cluster's.
_NOT_OURS = (
    "recovery.signal", "postmaster.pid", "postmaster.opts", "promote", "fallback_promote", DYNAMIC_CACHE,
)  # fmt: skip


def forget_origin(data_dir: str, trigger_files: Sequence[str] = ()) -> None:
    """Before the copy counts as whole: it must never start as anything but a standby (hazard H8).

    `trigger_files`: more files, inside the directory, that would promote it."""
    write_standby_signal(data_dir)
    forget_life(data_dir, trigger_files)


def forget_life(data_dir: str, trigger_files: Sequence[str] = ()) -> None:
    """Remove what tells of a running server, or would promote a standby."""
    home = os.path.realpath(data_dir) + os.sep
    for name in (*_NOT_OURS, *trigger_files):
        path = os.path.join(data_dir, name)
        inside = os.path.realpath(os.path.dirname(path)) + os.sep
        if inside.startswith(home) and os.path.lexists(path):
            os.unlink(path)


def copied_bytes(data_dir: str) -> int:
    """Bytes in the directory and in its tablespaces, without WAL, as far as they can be seen: a progress
    value."""
    seen: dict[tuple[int, int], int] = {}
    wal = os.path.realpath(os.path.join(data_dir, "pg_wal"))
    for root in (data_dir, *link_targets(data_dir)):
        for directory, below, files in os.walk(root):
            below[:] = [name for name in below if os.path.join(directory, name) != wal]
            if directory == wal:
                break
            for name in files:
                try:
                    found = os.lstat(os.path.join(directory, name))
                except OSError:
                    continue
                seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())
