"""The postmaster as the guardian holds it: one it started itself, or one it adopted.

Theory. Our own child is known by its pid until it is reaped, and what it leaves comes to us as to a child
subreaper: ECHILD proves that nothing is left. An adopted one is no child: it is held (`Kernel.hold`), and
what it leaves is found by name and working directory and held too. No disk is touched here.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from typing import Any

from haagent.guardian_kernel import Held, Kernel


class Postmaster:
    """What both kinds share. Times are CLOCK_BOOTTIME seconds."""

    adopted = False

    def __init__(self, kernel: Kernel, pid: int, start_ticks: int, writable_epoch: int | None) -> None:
        self.kernel = kernel
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
        return self.kernel.is_stopped(self.pid)

    def signal_children(self, signum: int) -> None:
        """To every direct child: the backends and helpers of PostgreSQL."""
        self.kernel.signal_children(self.pid, signum)

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

    def release(self) -> None:
        """Nothing of it is left, or it is somebody else's from now on."""


class Owned(Postmaster):
    """Our child. Its pid cannot be reused before we reap it."""

    def __init__(self, kernel: Kernel, pid: int, writable_epoch: int | None) -> None:
        super().__init__(kernel, pid, kernel.start_ticks(pid), writable_epoch)

    def signal(self, signum: int) -> None:
        if self.gone_at is None:
            self.kernel.kill(self.pid, signum)

    def kill_all(self, spare: Collection[int]) -> None:
        # The postmaster first: a process that is being killed forks no more.
        self.signal(signal.SIGKILL)
        if self.gone_at is None:
            self.signal_children(signal.SIGKILL)
        for child in self.kernel.children_of(self.kernel.pid):
            if child not in spare:
                self.kernel.kill(child, signal.SIGKILL)

    def leftovers(self, spare: Collection[int]) -> list[int]:
        if not self.kernel.has_children():
            return []
        return [child for child in self.kernel.children_of(self.kernel.pid) if child not in spare]


class Adopted(Postmaster):
    """Somebody else's child: no parent-death signal, no exit status.

    `on_death` is told of each process found below it later; the postmaster itself was held by the caller.
    """

    adopted = True

    def __init__(
        self,
        kernel: Kernel,
        postmaster: Held,
        data_dir: str,
        writable: bool,
        on_death: Callable[[Held], None],
    ) -> None:
        super().__init__(kernel, postmaster.pid, postmaster.start_ticks, None)
        self.writes_unleased = writable
        self.postmaster = postmaster
        self.data_dir = data_dir
        self.on_death = on_death
        self._held = {postmaster.pid: postmaster}

    def signal(self, signum: int) -> None:
        if self.gone_at is None:
            self.postmaster.signal(signum)

    def kill_all(self, spare: Collection[int]) -> None:
        # Stopped first: it forks nothing between look and kill, and reaps nothing: no pid is reused.
        self.signal(signal.SIGSTOP)
        below = self.kernel.children_of(self.pid) if self.gone_at is None else []
        for pid in {*below, *self._processes()} - self._held.keys():
            held = self.kernel.hold(pid, self.on_death)
            if held is None:
                self.kernel.kill(pid, signal.SIGKILL)  # out of descriptors: kill now, look again later
            else:
                self._held[pid] = held
        for held in self._held.values():
            held.signal(signal.SIGKILL)

    def forget(self, held: Held) -> bool:
        """A process is dead; True when it was the postmaster itself."""
        self._held.pop(held.pid, None)
        return held is self.postmaster

    def leftovers(self, spare: Collection[int]) -> list[int]:
        below = {pid for pid, held in self._held.items() if held is not self.postmaster}
        return sorted(below | set(self._processes()))

    def release(self) -> None:
        for held in self._held.values():
            held.release()
        self._held = {}

    def _processes(self) -> list[int]:
        return self.kernel.processes_in(self.data_dir, self.postmaster.comm)
