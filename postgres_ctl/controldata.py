"""What a data directory says about itself while nothing runs: pg_control, history files, its kind.

pg_control is read by the server's own `pg_controldata` (its binary layout changes with every version).
"""

from __future__ import annotations

import datetime
import os
import re

from postgres_ctl.api import run_tool, tool
from postgres_ctl.datadir import data_dir_state
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.facts import ControlData, ControlState, Lsn, TimelineSwitch

__all__ = [
    "data_dir_state",
    "history_mtime",
    "history_path",
    "major_version",
    "parse_controldata",
    "parse_history",
    "read_controldata",
    "read_history",
    "shutdown_checkpoint_lsn",
]

#: pg_controldata only reads one file; a disk that cannot deliver it in this time is broken, seconds.
CONTROLDATA_DEADLINE_S = 5.0


def read_controldata(
    bin_dir: str, data_dir: str, deadline_s: float = CONTROLDATA_DEADLINE_S, program: str = "pg_controldata"
) -> ControlData:
    """Run pg_controldata. Raises ToolFailed, DataDirError (unknown output)."""
    argv = [tool(bin_dir, program), "-D", data_dir]
    return parse_controldata(run_tool(argv, deadline_s, keep_stdout=True).stdout)


def parse_controldata(output: str) -> ControlData:
    """Output of pg_controldata (LC_ALL=C) -> ControlData. Raises DataDirError naming the missing line."""
    lines: dict[str, str] = dict(re.findall(r"^([^:\n]+):[ \t]*(.*)$", output, re.MULTILINE))

    def text(name: str) -> str:
        try:
            return lines[name].strip()
        except KeyError:
            raise DataDirError(f"pg_controldata printed no {name!r}") from None

    try:
        return ControlData(
            system_identifier=text("Database system identifier"),
            state=_state(text("Database cluster state")),
            checkpoint_lsn=Lsn.parse(text("Latest checkpoint location")),
            redo_lsn=Lsn.parse(text("Latest checkpoint's REDO location")),
            timeline=int(text("Latest checkpoint's TimeLineID")),
            min_recovery_end=Lsn.parse(text("Minimum recovery ending location")),
            min_recovery_end_timeline=int(text("Min recovery ending loc's timeline")),
            wal_log_hints=text("wal_log_hints setting") == "on",
            data_checksums=int(text("Data page checksum version")) > 0,
            pg_control_version=int(text("pg_control version number")),
            max_connections=int(text("max_connections setting")),
            max_worker_processes=int(text("max_worker_processes setting")),
            max_wal_senders=int(text("max_wal_senders setting")),
            max_prepared_transactions=int(text("max_prepared_xacts setting")),
            max_locks_per_transaction=int(text("max_locks_per_xact setting")),
            wal_segment_bytes=int(text("Bytes per WAL segment")),
        )
    except ValueError as e:
        raise DataDirError(f"pg_controldata printed something unexpected: {e}") from None


def _state(text: str) -> ControlState:
    try:
        return ControlState(text)
    except ValueError:
        return ControlState.UNKNOWN


def major_version(data_dir: str) -> int | None:
    """Contents of PG_VERSION, None when it is missing or strange."""
    try:
        with open(os.path.join(data_dir, "PG_VERSION"), encoding="ascii") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


# --- history files --------------------------------------------------------------------------------


def history_path(data_dir: str, timeline: int) -> str:
    """Where the history file of `timeline` is, or would be."""
    return os.path.join(data_dir, "pg_wal", f"{timeline:08X}.history")


def parse_history(content: str) -> tuple[TimelineSwitch, ...]:
    """Text of a `.history` file, oldest switch first. Comments and blank lines are skipped.

    Raises ValueError on a line that is neither.
    """
    switches = []
    for line in content.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        timeline, lsn, *reason = line.split(None, 2)
        switches.append(TimelineSwitch(int(timeline), Lsn.parse(lsn), reason[0].strip() if reason else ""))
    return tuple(switches)


def read_history(data_dir: str, timeline: int) -> tuple[TimelineSwitch, ...] | None:
    """History of `timeline` as this data directory knows it; () for timeline 1, None when unknown.

    Raises DataDirError on a file that cannot be understood.
    """
    if timeline <= 1:
        return ()
    path = history_path(data_dir, timeline)
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return parse_history(f.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise DataDirError(f"cannot read {path}: {e}") from None


def history_mtime(data_dir: str, timeline: int) -> str | None:
    """When the history file was written, ISO with the local offset (contract 1.3); None without a file."""
    try:
        written = os.stat(history_path(data_dir, timeline)).st_mtime
    except OSError:
        return None
    return datetime.datetime.fromtimestamp(written).astimezone().isoformat()


# --- shutdown checkpoint --------------------------------------------------------------------------

_RECORD = re.compile(r"rmgr: (\S+).*?lsn: ([0-9A-F]+/[0-9A-F]+), prev ([0-9A-F]+/[0-9A-F]+), desc: (\S+)")


def shutdown_checkpoint_lsn(
    bin_dir: str, data_dir: str, control: ControlData, archive_mode: bool, deadline_s: float
) -> Lsn | None:
    """Value of `status.optime` for a cleanly stopped primary (contract 1.3); None if it is not that.

    With archiving on, shutdown ends the segment with a switch record first, and a standby may report
    just that one as received: then its location counts. Without pg_waldump the checkpoint's counts.
    """
    if not control.shut_down_cleanly:
        return None
    if not archive_mode:
        return control.checkpoint_lsn
    try:
        checkpoint = _wal_record(bin_dir, data_dir, control.timeline, control.checkpoint_lsn, deadline_s)
        if checkpoint is None or checkpoint[0] != "XLOG":
            return control.checkpoint_lsn
        before = _wal_record(bin_dir, data_dir, control.timeline, checkpoint[2], deadline_s)
    except ToolFailed:
        return control.checkpoint_lsn
    if before is not None and before[0] == "XLOG" and before[3] == "SWITCH":
        return before[1]
    return control.checkpoint_lsn


def _wal_record(
    bin_dir: str, data_dir: str, timeline: int, lsn: Lsn, deadline_s: float
) -> tuple[str, Lsn, Lsn, str] | None:
    """(resource manager, location, previous location, kind) of the record at `lsn`, by pg_waldump."""
    argv = [tool(bin_dir, "pg_waldump"), "-p", os.path.join(data_dir, "pg_wal")]
    argv += ["-t", str(timeline), "-s", str(lsn), "-n", "1"]
    match = _RECORD.search(run_tool(argv, deadline_s, keep_stdout=True).stdout)
    return (match[1], Lsn.parse(match[2]), Lsn.parse(match[3]), match[4]) if match else None
