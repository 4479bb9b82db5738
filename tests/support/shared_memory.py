"""Shared memory of PostgreSQL servers that were killed: what they left is taken away, and only that.

A postmaster that is killed cannot remove its System V segment; the next one in the same data directory would.
Which one it was stands in `postmaster.pid`. Test clusters keep dynamic shared memory in their data directory
(`dynamic_shared_memory_type = mmap`), so that it goes with the files.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

#: Line of postmaster.pid with key and id of the segment, counted from 0.
_SEGMENT_LINE = 6
_TOOL_S = 10.0


def remove_of(data_dir: Path) -> None:
    """Remove the segment that the last postmaster of `data_dir` left, once nobody is attached to it."""
    named = _named_in(data_dir / "postmaster.pid")
    if named is not None and _unused(*named):
        subprocess.run(["ipcrm", "-m", str(named[1])], timeout=_TOOL_S, capture_output=True, check=False)


def remove_below(root: Path) -> None:
    """The same for every node of a cluster whose directory is `root`."""
    for pattern in ("*/data/postmaster.pid", "*/*/data/postmaster.pid"):
        for pid_file in root.glob(pattern):
            remove_of(pid_file.parent)


def _named_in(pid_file: Path) -> tuple[int, int] | None:
    """(key, id); None when the file is gone or not that far."""
    try:
        key, number = pid_file.read_text().splitlines()[_SEGMENT_LINE].split()
        return int(key), int(number)
    except (OSError, ValueError, IndexError):
        return None


def _unused(key: int, number: int) -> bool:
    """The segment is there under this very key, and no process is attached."""
    try:
        _, *rows = Path("/proc/sysvipc/shm").read_text().splitlines()
    except OSError:
        return False
    # Columns: key shmid perms size cpid lpid nattch …
    return any((int(f[0]), int(f[1]), int(f[6])) == (key, number, 0) for f in map(str.split, rows))
