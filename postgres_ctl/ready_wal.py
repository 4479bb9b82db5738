"""WAL that a dead primary had not archived yet: archived before pg_rewind removes it (contract 2.9).

Nobody else will: a standby archives nothing that it received, and the new primary only its own timeline. So a
segment that was ready and is gone would be a hole in the archive.
"""

from __future__ import annotations

import os

from postgres_ctl.api import Cancellation, boottime, run_tool
from postgres_ctl.datadir import fsync_dir
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.restore import command_line

_READY, _DONE = ".ready", ".done"


def ready_segments(data_dir: str) -> tuple[str, ...]:
    """Names of files in pg_wal that wait to be archived, oldest first. Raises DataDirError."""
    directory = _status_dir(data_dir)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    except OSError as e:
        raise DataDirError(f"cannot read {directory}: {e.strerror}") from None
    return tuple(sorted(n.removesuffix(_READY) for n in names if n.endswith(_READY)))


def archive_ready(
    data_dir: str, archive_command: str, deadline_s: float, cancel: Cancellation | None = None
) -> int:
    """Run `archive_command` for each ready file, as the archiver would; how many there were.

    All have `deadline_s` seconds together. Raises ToolFailed at the first that fails, DataDirError."""
    until, names = boottime() + deadline_s, ready_segments(data_dir)
    for name in names:
        path = os.path.join("pg_wal", name)
        if os.path.exists(os.path.join(data_dir, path)):
            command = command_line(archive_command, path, name)
            left_s = until - boottime()
            if left_s <= 0:
                raise ToolFailed(f"archive_command: {name} and later not archived within {deadline_s:g} s")
            run_tool(["/bin/sh", "-c", command], left_s, cancel=cancel, cwd=data_dir, inherit=True)
        _mark_done(data_dir, name)
    return len(names)


def _mark_done(data_dir: str, name: str) -> None:
    directory = _status_dir(data_dir)
    try:
        os.rename(os.path.join(directory, name + _READY), os.path.join(directory, name + _DONE))
        fsync_dir(directory)
    except OSError as e:
        raise DataDirError(f"cannot mark {name} as archived: {e.strerror}") from None


def _status_dir(data_dir: str) -> str:
    return os.path.join(data_dir, "pg_wal", "archive_status")
