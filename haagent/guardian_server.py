"""The postmaster as the guardian holds it: one it started itself, or one it adopted.

Theory. Our own child is known by its pid until it is reaped, and what it leaves comes to us as to a child
subreaper: ECHILD proves that nothing is left. An adopted one is no child: it is held by a pidfd, and what it
leaves is found by name and working directory and held by pidfds too. No disk is touched here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from typing import Any

from haagent import guardian_os


class Postmaster:
    """What both kinds share. Times are CLOCK_BOOTTIME seconds."""

    adopted = False

    def __init__(self, pid: int, start_ticks: int, writable_epoch: int | None) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.writable_epoch = writable_epoch
        self.writes_unleased = False  # adopted as a primary, and no lease armed since
        self.fenced = False
        self.gone_at: float | None = None
        self.status: int | None = None  # exit code, or minus the signal; None for an adopted one
        self.spare_until = 0.0
        self.reported = False

    def come_under(self, epoch: int) -> None:
        """A lease was armed: if the server may write, it does so under this epoch."""
        if self.may_write:
            self.writable_epoch, self.writes_unleased = epoch, False

    @property
    def may_write(self) -> bool:
        """Started as a primary, told to promote, or adopted as one."""
        return self.writable_epoch is not None or self.writes_unleased

    def is_stopped(self) -> bool:
        """True when SIGSTOP or a debugger holds it."""
        return guardian_os.is_stopped(self.pid)

    def signal_children(self, signum: int) -> None:
        """To every direct child: the backends and helpers of PostgreSQL."""
        guardian_os.signal_children(self.pid, signum)

    def describe(self) -> dict[str, Any]:
        """As in the messages."""
        return {
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "adopted": self.adopted,
            "running": self.gone_at is None,
            "writable_epoch": self.writable_epoch,
            "death_signal": not self.adopted,
        }

    def exit_event(self, leftovers: list[int]) -> dict[str, Any]:
        """Told to the controller; `leftovers` are killed but not dead (uninterruptible sleep)."""
        return {
            "event": "exited",
            "pid": self.pid,
            "status": self.status,
            "fenced": self.fenced,
            "leftovers": leftovers,
        }

    def signal(self, signum: int) -> None:
        """To the postmaster alone; nothing happens once it is gone."""
        raise NotImplementedError

    def kill_all(self, spare: Collection[int]) -> None:
        """SIGKILL to the postmaster and everything below it but `spare` (children of other purposes)."""
        raise NotImplementedError

    def leftovers(self, spare: Collection[int]) -> list[int]:
        """After the postmaster's end: pids of what is left of it."""
        raise NotImplementedError

    def new_pidfds(self) -> list[int]:
        """Descriptors to watch that were not handed out before; readable when the process is dead."""
        return []

    def release(self) -> list[int]:
        """Descriptors to close at the end."""
        return []


class Owned(Postmaster):
    """Our child. Its pid cannot be reused before we reap it."""

    def __init__(self, pid: int, writable_epoch: int | None, report_fd: int | None) -> None:
        stat = guardian_os.read_stat(pid)
        super().__init__(pid, stat.start_ticks if stat else 0, writable_epoch)
        self.report_fd = report_fd

    def signal(self, signum: int) -> None:
        if self.gone_at is None:
            guardian_os.kill(self.pid, signum)

    def kill_all(self, spare: Collection[int]) -> None:
        # The postmaster first: a process that is being killed forks no more.
        self.signal(signal.SIGKILL)
        if self.gone_at is None:
            self.signal_children(signal.SIGKILL)
        for child in guardian_os.children_of(os.getpid()):
            if child not in spare:
                guardian_os.kill(child, signal.SIGKILL)

    def leftovers(self, spare: Collection[int]) -> list[int]:
        try:
            # WNOWAIT only looks: reaping is the loop's.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []
        return [child for child in guardian_os.children_of(os.getpid()) if child not in spare]


class Adopted(Postmaster):
    """Somebody else's child: no parent-death signal, no exit status."""

    adopted = True

    def __init__(
        self, pid: int, start_ticks: int, comm: str, pidfd: int, data_dir: str, writable: bool
    ) -> None:
        super().__init__(pid, start_ticks, None)
        self.writes_unleased = writable
        self.comm = comm
        self.pidfd = pidfd
        self.data_dir = data_dir
        self._held = {pidfd: pid}
        self._new = [pidfd]

    def signal(self, signum: int) -> None:
        if self.gone_at is None:
            guardian_os.send_signal(self.pidfd, signum)

    def kill_all(self, spare: Collection[int]) -> None:
        # Stopped first: it forks nothing between look and kill, and reaps nothing: no pid is reused.
        self.signal(signal.SIGSTOP)
        below = guardian_os.children_of(self.pid) if self.gone_at is None else []
        for pid in {*below, *guardian_os.processes_in(self.data_dir, self.comm)} - set(self._held.values()):
            fd = guardian_os.open_pidfd(pid)
            if fd is None:
                guardian_os.kill(pid, signal.SIGKILL)  # out of descriptors: kill now, look again later
            else:
                self._held[fd] = pid
                self._new.append(fd)
        for fd in self._held:
            guardian_os.send_signal(fd, signal.SIGKILL)

    def is_dead(self, fd: int) -> bool:
        """True for a descriptor of ours whose process has died."""
        return fd in self._held and guardian_os.has_died(fd)

    def forget(self, fd: int) -> bool:
        """A process is dead; True when it was the postmaster itself."""
        del self._held[fd]
        os.close(fd)
        return fd == self.pidfd

    def leftovers(self, spare: Collection[int]) -> list[int]:
        held = {pid for fd, pid in self._held.items() if fd != self.pidfd}
        return sorted(held | set(guardian_os.processes_in(self.data_dir, self.comm)))

    def new_pidfds(self) -> list[int]:
        new, self._new = self._new, []
        return new

    def release(self) -> list[int]:
        held, self._held = list(self._held), {}
        return held
