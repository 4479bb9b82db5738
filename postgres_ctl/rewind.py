"""pg_rewind: bringing a diverged data directory back onto the leader's history (contract 2.9).

Theory. pg_rewind changes the directory in place and, once it copies, cannot be undone or resumed. So: a
crashed server was started and stopped as a standby first (not in single-user mode, which would write a
shutdown checkpoint into a history that is not its own any more, H14); the WAL to be discarded is copied aside
(safety rule 7, call `keep_diverged_wal` before `rewind`); and a marker beside the directory, with its device
and inode, tells a directory in which pg_rewind was interrupted: it must be rewound again or cloned,
never started. After success standby.signal is in place before the marker goes.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from postgres_ctl import restore
from postgres_ctl.api import Cancellation, ConnectionTarget, boottime, option_arguments, run_tool, tool
from postgres_ctl.config_files import read_text, remove_dynamic_cache, write_standby_signal
from postgres_ctl.datadir import Marker, end_orphaned_tools, fsync_dir, require_unused
from postgres_ctl.errors import DataDirError, PostgresError, ToolFailed
from postgres_ctl.facts import ControlData, Lsn
from postgres_ctl.tool_login import secrets_of, tool_login

#: Options of `postgresql.rewind` that are ours (contract 5.2).
FORBIDDEN_OPTIONS = frozenset(
    {
        "target-pgdata",
        "source-pgdata",
        "source-server",
        "write-recovery-conf",
        "dry-run",
        "restore-target-wal",
    }
    | {"config-file", "no-ensure-shutdown", "version", "help"}
)


#: The first version whose pg_rewind looks at WAL replayed since the last checkpoint, too.
_KNOWS_NEWEST = 16


@dataclass(frozen=True)
class Rewound:
    """The directory now follows the source's history; standby.signal is set, other settings are not."""

    #: WAL segments that were missing and were fetched: "name from where".
    fetched: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotNeeded:
    """The directory is on the source's history already; nothing was changed."""

    fetched: tuple[str, ...] = ()


@dataclass(frozen=True)
class RewindFailed:
    """`damaged`: pg_rewind had begun to change the directory: rewind again or clone, never start it."""

    reason: str
    output: str = ""
    cancelled: bool = False
    damaged: bool = False


RewindOutcome = Rewound | NotNeeded | RewindFailed


@dataclass(frozen=True)
class RewindSpec:
    """`source` is the leader (rewind role or superuser); `options` is `postgresql.rewind`."""

    data_dir: str
    bin_dir: str
    source: ConnectionTarget
    passfile: str
    options: Sequence[str | Mapping[str, object]] = ()
    #: True when the server's configuration has a restore_command pg_rewind can use.
    restore_target_wal: bool = False
    #: Given to pg_rewind 15 and newer when the configuration is outside PGDATA.
    config_file: str | None = None
    program: str = "pg_rewind"
    #: For WAL that pg_rewind misses and cannot fetch itself.
    restore_command: str | None = None
    #: Where the histories part: what is older may be fetched from the source, too. None: unknown.
    parted: Lsn | None = None
    segment_bytes: int = 16 * 1024 * 1024
    #: Where this server's own WAL was kept when an interrupted pg_rewind was begun.
    kept_dir: str | None = None
    #: By pg_control, an interrupted pg_rewind had written everything: it cannot be done again.
    was_written: bool = False


def has_program(bin_dir: str, program: str = "pg_rewind") -> bool:
    """Is the program installed?"""
    return shutil.which(tool(bin_dir, program)) is not None


def possible(control: ControlData, bin_dir: str, program: str = "pg_rewind") -> bool:
    """Can pg_rewind work here: the program exists, and hint bit changes were logged or checksummed?"""
    return has_program(bin_dir, program) and (control.wal_log_hints or control.data_checksums)


def sees_newest_timeline(control: ControlData, major_version: int) -> bool:
    """Does pg_rewind know which timeline this server is on?

    Before 16 it takes that of the last checkpoint: of a server that crashed between its promotion and the
    checkpoint after it, it would leave what was written on the new timeline in place, unseen."""
    return major_version >= _KNOWS_NEWEST or control.timeline == control.newest_timeline


def interrupted(data_dir: str) -> bool:
    """Was pg_rewind interrupted in this very directory while it changed it? Then never start it."""
    return _marker(data_dir).is_set()


def forget_interruption(data_dir: str) -> None:
    """Remove the marker: the directory was cloned anew."""
    _marker(data_dir).clear()


def _marker(data_dir: str) -> Marker:
    return Marker(data_dir, ".rewinding")


def rewind(spec: RewindSpec, deadline_s: float, cancel: Cancellation | None = None) -> RewindOutcome:
    """Run pg_rewind on a cleanly stopped directory, at most `deadline_s` seconds. Raises nothing of ours."""
    marker = _marker(spec.data_dir)
    again = marker.is_set()
    try:
        end_orphaned_tools(spec.data_dir)
        require_unused(spec.data_dir)
        if again and spec.was_written:
            return _sync_what_was_written(spec, marker)
        arguments = rewind_arguments(spec.options)[0]
        marker.set(with_boot=True)
        output, fetched = _run_with_its_wal(spec, arguments, deadline_s, cancel)
        remove_dynamic_cache(spec.data_dir)
        write_standby_signal(spec.data_dir)
        marker.clear()
    except ToolFailed as e:
        damaged = again or _has_begun(e.output)
        if not damaged:
            marker.clear()
        return RewindFailed(str(e), e.output, e.cancelled, damaged)
    except PostgresError as e:
        return RewindFailed(str(e), damaged=again)
    return NotNeeded(fetched) if "no rewind required" in output else Rewound(fetched)


def _sync_what_was_written(spec: RewindSpec, marker: Marker) -> RewindOutcome:
    """pg_rewind writes pg_control last, and then syncs: only that was cut off.

    Raises PostgresError."""
    label = read_text(os.path.join(spec.data_dir, "backup_label")) or ""
    if "BACKUP METHOD: pg_rewind" not in label:
        return RewindFailed("pg_rewind was interrupted, and what it left cannot be rewound", damaged=True)
    if not marker.of_this_boot():
        reason = "pg_rewind was cut off before its files were on the disk, and the host was started since"
        return RewindFailed(f"{reason}: only a clone helps", damaged=True)
    os.sync()
    remove_dynamic_cache(spec.data_dir)
    write_standby_signal(spec.data_dir)
    marker.clear()
    return Rewound()


def rewind_arguments(options: Sequence[str | Mapping[str, object]]) -> tuple[list[str], list[str]]:
    """(arguments, warnings) from `postgresql.rewind`; options that are ours are left out."""
    return option_arguments("postgresql.rewind", options, FORBIDDEN_OPTIONS)


def _run_with_its_wal(
    spec: RewindSpec, arguments: list[str], deadline_s: float, cancel: Cancellation | None
) -> tuple[str, tuple[str, ...]]:
    """Run it again for each segment that it misses and that can be fetched (contract 2.9)."""
    until, fetched = boottime() + deadline_s, dict[str, str]()
    while True:
        try:
            output = _run(spec, arguments, max(0.0, until - boottime()), cancel)
            return output, tuple(f"{name} from {source}" for name, source in fetched.items())
        except ToolFailed as fault:
            name = restore.missing_segment(fault.output)
            if name is None or name in fetched or not (_is_common(spec, name) or spec.kept_dir):
                raise
        fetched[name] = _fetch(spec, name, cancel)


def _fetch(spec: RewindSpec, name: str, cancel: Cancellation | None) -> str:
    missing = _missing(spec, name)
    if _is_common(spec, name) or spec.kept_dir is None:
        return restore.restore(missing, cancel)
    return restore.bring_back(missing, spec.kept_dir)


def _missing(spec: RewindSpec, name: str) -> restore.Missing:
    return restore.Missing(spec.data_dir, name, spec.segment_bytes, spec.restore_command, spec.source)


def _is_common(spec: RewindSpec, name: str) -> bool:
    return spec.parted is not None and restore.starts_before(name, spec.segment_bytes, spec.parted)


def _run(spec: RewindSpec, arguments: list[str], deadline_s: float, cancel: Cancellation | None) -> str:
    argv = [tool(spec.bin_dir, spec.program), "-D", spec.data_dir, "--no-ensure-shutdown"]
    if spec.restore_target_wal:
        argv.append("--restore-target-wal")
        if spec.config_file:
            argv.append(f"--config-file={spec.config_file}")
    with tool_login(spec.source, spec.passfile) as (dsn, env):
        return run_tool(
            [*argv, f"--source-server={dsn}", *arguments],
            deadline_s,
            cancel=cancel,
            passfile=spec.passfile,
            env={"PGOPTIONS": "-c statement_timeout=0", **env},
            secrets=secrets_of(spec.source),
            # Found by `leftovers` even when we die and it lives on.
            cwd=spec.data_dir,
        ).output


def _has_begun(output: str) -> bool:
    """pg_rewind prints this just before it changes the first file; a cut tail counts as begun."""
    return "rewinding from last common checkpoint" in output or len(output) > 4096


# --- what will be discarded -----------------------------------------------------------------------

#: Never more than this share of the free space: a full disk stops the next server too.
_FREE_SHARE = 4
_SEGMENT_NAME = re.compile(r"^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})$")


@dataclass(frozen=True)
class KeepPolicy:
    """Of how many discards WAL is kept beside the data directory, the newest, and how much of each.

    A node that diverged by more keeps its first part: WAL can only be read from its beginning on."""

    directories: int = 3
    limit_bytes: int = 1024**3


@dataclass(frozen=True)
class DiscardReport:
    """What a rewind discards: WAL from the switch point to this server's end, and what was kept of it."""

    lsn_from: Lsn
    lsn_to: Lsn
    kept_dir: str
    segments_kept: int
    bytes_kept: int
    segments_left_out: int

    @property
    def discarded_bytes(self) -> int:
        return max(0, self.lsn_to.minus(self.lsn_from))


def diverged_dir(data_dir: str, timeline: int, switch_lsn: Lsn) -> str:
    """Where to keep the WAL beside the data directory."""
    return f"{os.path.normpath(data_dir)}.diverged-{timeline}-{switch_lsn.value:X}"


def keep_diverged_wal(
    data_dir: str, control: ControlData, switch_lsn: Lsn, keep_dir: str, policy: KeepPolicy | None = None
) -> DiscardReport:
    """Copy the WAL segments from `switch_lsn` to the end of a stopped server's WAL into `keep_dir`.

    Oldest first until the policy's limit (or a quarter of the free space) is used; the report says what was
    left out. Nothing is copied when nothing diverged. Older kept directories than the policy wants are
    removed. Raises DataDirError.
    """
    policy = policy or KeepPolicy()
    end = max(control.checkpoint_lsn, control.min_recovery_end)
    if end <= switch_lsn:
        return DiscardReport(switch_lsn, end, keep_dir, 0, 0, 0)
    names = _segments_between(data_dir, control, switch_lsn, end)
    if policy.directories == 0:
        return DiscardReport(switch_lsn, end, keep_dir, 0, 0, len(names))
    try:
        os.makedirs(keep_dir, mode=0o700, exist_ok=True)
        room = min(policy.limit_bytes, shutil.disk_usage(keep_dir).free // _FREE_SHARE)
        fitting = names[: room // control.wal_segment_bytes]
        for name in fitting:
            _copy_synced(os.path.join(data_dir, "pg_wal", name), os.path.join(keep_dir, name))
        fsync_dir(keep_dir)
    except OSError as e:
        raise DataDirError(f"cannot keep diverged WAL in {keep_dir}: {e.strerror}") from None
    _forget_oldest(data_dir, keep_dir, policy.directories)
    kept = len(fitting)
    return DiscardReport(switch_lsn, end, keep_dir, kept, kept * control.wal_segment_bytes, len(names) - kept)


def _segments_between(data_dir: str, control: ControlData, start: Lsn, end: Lsn) -> list[str]:
    size = control.wal_segment_bytes
    per_file = 0x1_0000_0000 // size
    first, last = start.value // size, end.value // size
    found = []
    for name in os.listdir(os.path.join(data_dir, "pg_wal")):
        match = _SEGMENT_NAME.match(name)
        if match and first <= int(match[2], 16) * per_file + int(match[3], 16) <= last:
            found.append((match[2] + match[3], name))
    return [name for _, name in sorted(found)]


def _copy_synced(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _forget_oldest(data_dir: str, current: str, directories: int) -> None:
    pattern = glob.escape(os.path.normpath(data_dir)) + ".diverged-*"
    others = [path for path in glob.glob(pattern) if os.path.normpath(path) != os.path.normpath(current)]
    others.sort(key=os.path.getmtime, reverse=True)
    for path in others[directories - 1 :]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
