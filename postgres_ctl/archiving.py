"""Handing one WAL segment of a stopped server to its archive_command, as the archiver would (contract 2.6).

A shutdown archives all segments that are complete; the one with the shutdown checkpoint is not. The command
runs like PostgreSQL runs it: by the shell, in the data directory, with %p, %f and %% replaced.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from postgres_ctl.api import Cancellation, run_tool, tool
from postgres_ctl.controldata import read_controldata
from postgres_ctl.errors import DataDirError
from postgres_ctl.facts import ControlData, Lsn

#: Reading one setting of a stopped server, seconds.
SETTING_S = 10.0


def segment_name(control: ControlData, at: Lsn) -> str:
    """Name of the segment that holds `at` on the timeline of the last checkpoint."""
    size = control.wal_segment_bytes
    number, per_file = at.value // size, 0x1_0000_0000 // size
    return f"{control.timeline:08X}{number // per_file:08X}{number % per_file:08X}"


@dataclass(frozen=True)
class ArchiveSpec:
    """A stopped server and its programs."""

    data_dir: str
    bin_dir: str
    config_file: str
    program: str = "postgres"


def archive_last(
    spec: ArchiveSpec, checkpoint: Lsn, deadline_s: float, cancel: Cancellation | None = None
) -> str | None:
    """Archive the segment that holds the shutdown checkpoint. Its name; None where nothing is archived, or
    by a library. Raises ToolFailed, DataDirError."""
    mode, command = _setting(spec, "archive_mode"), _setting(spec, "archive_command")
    if mode not in ("on", "always") or command in ("", "(disabled)"):
        return None
    control = read_controldata(spec.bin_dir, spec.data_dir)
    name = segment_name(control, checkpoint)
    archive_segment(spec.data_dir, command, name, deadline_s, cancel)
    return name


def _setting(spec: ArchiveSpec, name: str) -> str:
    argv = [tool(spec.bin_dir, spec.program), "-D", spec.data_dir, f"--config-file={spec.config_file}"]
    return run_tool([*argv, "-C", name], SETTING_S, keep_stdout=True, cwd=spec.data_dir).stdout.strip()


def archive_segment(
    data_dir: str, command: str, name: str, deadline_s: float, cancel: Cancellation | None = None
) -> None:
    """Run the command for one segment. Raises ToolFailed, DataDirError when the segment is not there."""
    if not os.path.exists(os.path.join(data_dir, "pg_wal", name)):
        raise DataDirError(f"pg_wal/{name} does not exist")
    line = expanded(command, f"pg_wal/{name}", name)
    run_tool(["/bin/sh", "-c", line], deadline_s, cancel=cancel, cwd=data_dir, inherit=True)


def expanded(command: str, path: str, name: str) -> str:
    """`command` with %p, %f and %% replaced; any other % stays."""
    words = {"%p": path, "%f": name, "%%": "%"}
    out, rest = "", command
    while "%" in rest:
        before, _, after = rest.partition("%")
        pair = "%" + after[:1]
        out += before + words.get(pair, pair)
        rest = after[1:]
    return out + rest
