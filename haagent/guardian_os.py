"""What the guardian asks of the Linux kernel: prctl, timerfd, memory locking, pidfds and /proc.

Theory. Everything here works without touching a disk: system calls and /proc entries that never wait for
another process's memory (`stat`, `children`, the `cwd` link; never `cmdline` or `environ`, which block behind
a process that hangs while holding its own memory map). Signals to processes that are not our children go
through a pidfd whose owner was looked at *after* it was opened, so that a reused pid is never hit.
Standard library only: ctypes stands in for `os.timerfd_create`, which Python has from 3.13 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

_CLOCK_BOOTTIME = 7
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_MCL_CURRENT = 1
_MCL_ONFAULT = 4
#: False on a kernel without CONFIG_PROC_CHILDREN.
_PROC_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
_O_PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME, which counts through suspend (hazard H10)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --- own process --------------------------------------------------------------------------------


def _check(result: int, what: str) -> None:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def become_subreaper() -> None:
    """Orphans below this process become its children, so that they can be seen, killed and reaped (H9)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")


def set_death_signal(signum: int) -> None:
    """This process gets `signum` when the thread that forked it dies. Survives exec, not a change of uid."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0), "PR_SET_PDEATHSIG")


def set_name(name: str) -> None:
    """The name `ps` and `top` show; the kernel keeps 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def lock_memory() -> bool:
    """Keep this process out of swap. False where the limit (LimitMEMLOCK) does not permit it."""
    return bool(_libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT) == 0)


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "value_s", "value_ns")]


class BootTimer:
    """One timer on CLOCK_BOOTTIME whose descriptor becomes readable when it fires."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(_CLOCK_BOOTTIME, _TFD_NONBLOCK_CLOEXEC)
        _check(self.fd, "timerfd_create")
        self._spec = _Itimerspec()

    def set(self, at_s: float | None) -> None:
        """Fire at `at_s` (at once when past), or not at all. On return the kernel holds the timer."""
        seconds, nanoseconds = 0, 0
        if at_s is not None:
            seconds, nanoseconds = divmod(max(int(at_s * 1e9), 1), 1_000_000_000)
        self._spec.value_s, self._spec.value_ns = seconds, nanoseconds
        _check(
            _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None),
            "timerfd_settime",
        )

    def drain(self) -> None:
        """Take note that it fired."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass


# --- other processes ----------------------------------------------------------------------------


class ProcStat(NamedTuple):
    """The fields of /proc/<pid>/stat used here; `start_ticks` since boot tells two users of one pid apart."""

    comm: str
    state: str
    ppid: int
    start_ticks: int


def _read(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def read_stat(pid: int) -> ProcStat | None:
    """None when there is no such process. A zombie is still a process here (state Z)."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    left, right = text.index("("), text.rindex(")")
    fields = text[right + 2 :].split()
    return ProcStat(text[left + 1 : right], fields[0], int(fields[1]), int(fields[19]))


def is_stopped(pid: int) -> bool:
    """True for a process held by SIGSTOP or a debugger: it acts on no signal but SIGKILL and SIGCONT."""
    stat = read_stat(pid)
    return stat is not None and stat.state in "Tt"


def is_alive(pid: int) -> bool:
    """False for a zombie too: it holds no memory and runs no code."""
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def cwd_of(pid: int) -> str | None:
    """Working directory as the kernel spells it; None for a zombie, a foreign or a vanished process."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def children_of(pid: int) -> list[int]:
    """Children (zombies too) of the main thread of `pid`, which is the one that forks in PostgreSQL.

    The kernel may leave one out while its siblings exit: repeat until nothing is left. ECHILD proves it.
    """
    if _PROC_CHILDREN:
        return [int(word) for word in (_read(f"/proc/{pid}/task/{pid}/children") or "").split()]
    return [child for child in _all_pids() if (stat := read_stat(child)) and stat.ppid == pid]


def processes_in(directory: str, comm: str) -> list[int]:
    """Living processes named `comm` whose working directory is `directory` (H9).

    By name too, so that an operator's shell in the data directory is neither killed nor in the way.
    """
    found = []
    for pid in _all_pids():
        if cwd_of(pid) == directory:
            stat = read_stat(pid)
            if stat is not None and stat.comm == comm and stat.state not in "ZX":
                found.append(pid)
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def open_pidfd(pid: int, start_ticks: int | None = None) -> int | None:
    """Readable once the process is dead; None when it is gone or another one has its pid."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    stat = read_stat(pid)
    if stat is None or (start_ticks is not None and stat.start_ticks != start_ticks):
        os.close(fd)
        return None
    return fd


def has_died(pidfd: int) -> bool:
    """True once the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send_signal(pidfd: int, signum: int) -> None:
    """Signal through a pidfd. One that is dead, or not ours to signal, is no fault: callers look again."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signum)


def kill(pid: int, signum: int) -> None:
    """The same by pid, for children of ours or of a stopped process: their pids cannot be reused."""
    with contextlib.suppress(OSError):
        os.kill(pid, signum)


def signal_children(pid: int, signum: int) -> list[int]:
    """Signal every direct child of `pid`; returns their pids. Never hits a reused pid."""
    told = []
    for child in children_of(pid):
        fd = open_pidfd(child)
        if fd is None:
            continue
        try:
            stat = read_stat(child)
            if stat is not None and stat.ppid == pid:
                send_signal(fd, signum)
                told.append(child)
        finally:
            os.close(fd)
    return told


# --- the state directory --------------------------------------------------------------------------


def open_directory(path: str) -> int:
    """A descriptor to reach sockets by, where their path would exceed the 107 bytes allowed."""
    return os.open(path, _O_PATH_DIRECTORY)


def path_in(directory_fd: int, name: str) -> str:
    """A short path to `name` in the directory, whatever the directory's own length."""
    return f"/proc/self/fd/{directory_fd}/{name}"
