"""Processes that belong to a directory of a test, found in /proc, and ended by pid.

Everything a test cluster starts works inside its own directory or names it in its arguments: agents,
guardians, postmasters and their children. So what is left can be found without any of them helping.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.wait import pause

_ROUNDS = 250


def exists(pid: int) -> bool:
    """A process of that pid runs or is stopped; a zombie is gone."""
    return state(pid) not in ("", "Z", "X")


def state(pid: int) -> str:
    """The letter of /proc/<pid>/stat: R, S, D, T (stopped), Z; "" when there is none."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def environment_of(pid: int) -> dict[str, str]:
    """What it was started with; {} when it is gone."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def works_in(pid: int, directory: Path) -> bool:
    """The working directory is `directory` or lies in it: true for PostgreSQL's processes and its PGDATA."""
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False
    return f"{cwd}/".startswith(f"{directory}/")


def belongs_to(pid: int, directory: Path) -> bool:
    """It works in `directory`, or an argument names a path of it."""
    if works_in(pid, directory):
        return True
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    name = os.fsencode(directory)
    return name + b"/" in arguments or name + b"\0" in arguments


def working_in(directory: Path) -> list[int]:
    """Every living process whose working directory lies in `directory`, except this one."""
    return [pid for pid in _others() if works_in(pid, directory) and exists(pid)]


def processes_of(directory: Path) -> list[int]:
    """Every living process that belongs to `directory`, except this one."""
    return [pid for pid in _others() if belongs_to(pid, directory) and exists(pid)]


def _others() -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]


def send(pid: int | None, signum: signal.Signals) -> None:
    """Signal a process; one that is gone is fine."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def sleeps(pid: int) -> bool:
    """In uninterruptible sleep: a signal, SIGKILL too, is heard when what it waits for has come."""
    return state(pid) == "D"


def kill_all_of(directory: Path, *, but_sleepers: bool = False) -> None:
    """SIGKILL every process of `directory`, again and again until none is left (they fork meanwhile).

    but_sleepers: those in uninterruptible sleep are killed, and not waited for."""
    for _ in range(_ROUNDS):
        pids = processes_of(directory)
        if not pids or (but_sleepers and all(map(sleeps, pids))):
            return
        for pid in pids:
            send(pid, signal.SIGKILL)
        pause()
    raise RuntimeError(f"could not end processes {processes_of(directory)} of {directory}")
