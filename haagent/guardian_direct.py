"""Fencing without the guardian: what the agent does itself when the guardian is frozen (hazard H10).

Theory. A frozen guardian reaps nobody, so the dead stay zombies; a pidfd tells death all the same.
PostgreSQL's processes are those of its name that work in the data directory, whoever their parent is by now.
"""

from __future__ import annotations

import os
import select
import signal

from haagent import guardian_os
from haagent.guardian_os import boottime

#: Between two rounds of SIGKILL of `fence_directly`, seconds.
KILL_RETRY_S = 0.1


def fence_directly(
    postmaster_pid: int, data_dir: str, grace_s: float = 0.2, deadline_s: float = 2.0
) -> list[int]:
    """End PostgreSQL without the guardian (frozen): SIGQUIT, after `grace_s` SIGKILL, to all of it.

    Only processes that work in `data_dir` are touched. Returns the pids that still
    live after `deadline_s`; an empty list proves that nothing writes any more. Zombies count as dead: their
    parent, the guardian, is the frozen one.
    """
    started = boottime()
    # As the kernel names it: under the name of a symbolic link nobody is found, which would look like proof.
    victims = _Victims(postmaster_pid, os.path.realpath(data_dir))
    try:
        victims.signal_all(signal.SIGQUIT)
        victims.wait(started + grace_s)
        while victims.living() and boottime() < started + deadline_s:
            victims.stop_postmaster()
            victims.signal_all(signal.SIGKILL)
            victims.wait(min(started + deadline_s, boottime() + KILL_RETRY_S))
        return victims.living()
    finally:
        victims.release()


class _Victims:
    """The processes that work in a data directory, each held by a pidfd."""

    def __init__(self, postmaster_pid: int, data_dir: str) -> None:
        info = guardian_os.read_stat(postmaster_pid)
        ours = info is not None and guardian_os.cwd_of(postmaster_pid) == data_dir
        self.comm = info.comm if ours and info is not None else "postgres"
        self.postmaster_pid = postmaster_pid
        self.data_dir = data_dir
        self.held: dict[int, int] = {}

    def living(self) -> list[int]:
        """Look again: PostgreSQL may have forked."""
        for pid in guardian_os.processes_in(self.data_dir, self.comm):
            if pid in self.held:
                continue
            fd = guardian_os.open_pidfd(pid)
            if fd is not None and guardian_os.cwd_of(pid) == self.data_dir:
                self.held[pid] = fd
            elif fd is not None:
                os.close(fd)
        return sorted(pid for pid, fd in self.held.items() if not guardian_os.has_died(fd))

    def signal_all(self, signum: int) -> None:
        for pid in self.living():
            guardian_os.send_signal(self.held[pid], signum)

    def stop_postmaster(self) -> None:
        """So that it forks nothing between the look and the kill."""
        if self.postmaster_pid in self.held:
            guardian_os.send_signal(self.held[self.postmaster_pid], signal.SIGSTOP)

    def wait(self, until: float) -> None:
        """Until all that are held are dead, or the time has come."""
        poll = select.poll()
        for fd in self.held.values():
            poll.register(fd, select.POLLIN)
        left = len(self.held)
        while left and (left_s := until - boottime()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                left -= 1

    def release(self) -> None:
        for fd in self.held.values():
            os.close(fd)
