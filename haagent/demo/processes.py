"""Which processes are the demo's, found in /proc, and their end.

Theory. A pid that was noted may belong to somebody else by now, and half of the demo's processes are not its
children: guardians and postmasters outlive their agents on purpose. So a process is recognised by what it
is, each time anew: a program of the chosen PostgreSQL that works in or on our directory, or one of ours with
a path below it as an argument. A shell or an editor that happens to be in there is not touched. The signal
goes through a pid file descriptor taken before the look, so it cannot hit a later process of the same pid.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from dcs.api import boottime

#: Arguments by which our own programs are told from others that name the directory.
_OURS = (b"haagent", b"haagent-guardian", b"haagent.demo.writer")
#: While some are left they are looked for again after this, seconds: they may have forked meanwhile.
_ROUND_S = 0.2


@dataclass(frozen=True)
class Owner:
    """The demo in `directory`, with PostgreSQL's programs in `bin_dir` (both resolved)."""

    directory: Path
    bin_dir: Path

    def pids(self, below: Path | None = None) -> list[int]:
        """Living processes of the demo; with `below` only those of that node's directory."""
        where = os.fsencode(below or self.directory)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and self._owns(pid, where)]

    def _owns(self, pid: int, where: bytes) -> bool:
        try:
            program = Path(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
            place = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False  # gone, a zombie, or somebody else's
        values = [argument.partition(b"=")[2] for argument in arguments]
        names_it = any(_is_below(text, where) for text in (*arguments, *values))
        if program.parent == self.bin_dir:
            return names_it or _is_below(place, where)
        return names_it and any(word in arguments for word in _OURS) and b"demo" not in arguments

    def send(self, pid: int, signum: signal.Signals, below: Path | None = None) -> None:
        """Signal a process of ours; one that is gone, or not ours any more, is left alone."""
        fd = _pidfd(pid)
        if fd is None:
            return
        try:
            if self._owns(pid, os.fsencode(below or self.directory)):
                signal.pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def agents(self) -> list[int]:
        """Of the agents only."""
        return [pid for pid in self.pids() if _is_agent(pid)]

    def terminate(self, pid: int) -> None:
        self.send(pid, signal.SIGTERM)

    def kill_all(self, deadline_s: float, below: Path | None = None) -> list[int]:
        """SIGKILL all of them, again until none is left. Returns those left at the deadline."""
        end = boottime() + deadline_s
        while pids := self.pids(below):
            for pid in pids:
                self.send(pid, signal.SIGKILL, below)
            if boottime() > end:
                return pids
            wait_gone(pids, _ROUND_S)
        return []


def wait_gone(pids: list[int], deadline_s: float) -> bool:
    """Wait until all of them ended; False when some did not within `deadline_s` seconds."""
    end = boottime() + deadline_s
    gone = [_wait_one(pid, end) for pid in pids]
    return all(gone)


def _wait_one(pid: int, end: float) -> bool:
    fd = _pidfd(pid)
    if fd is None:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, end - boottime()) * 1000))
    finally:
        os.close(fd)


def _is_agent(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"haagent" in arguments and b"run" in arguments


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _is_below(path: bytes, where: bytes) -> bool:
    return path == where or path.startswith(where + b"/")
