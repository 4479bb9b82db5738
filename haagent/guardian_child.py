"""What the guardian does in forked children: everything that touches a disk.

Theory. A hung disk must hang a child, never the guardian. Each child first ties its life to the guardian's
(parent-death signal) and closes what it inherited, so that a child stuck in the kernel neither survives the
guardian nor keeps its connections open. The child that becomes the postmaster reports through a pipe: one
`X` just before exec, then nothing; or the reason why not. The pipe closes itself on exec.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Collection

from haagent import guardian_device, guardian_os
from haagent.guardian_kernel import ABOUT_TO_EXEC, StartOrder, WatchdogOrder

_SIGNALS_CHANGED = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD)
_STANDBY_SIGNALS = ("standby.signal", "recovery.signal")
_HIGHEST_FD = 65536


class _NotStarted(Exception):
    """Carries the reason to the guardian."""


def fork_postmaster(order: StartOrder) -> tuple[int, int]:
    """Fork the child that becomes the postmaster: its pid, and where its report is read. Raises OSError."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid = _fork(
            lambda: _become_postmaster(order, writer), keep_fds=(writer,), death_signal=signal.SIGQUIT
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return pid, reader


def fork_promote_file(data_dir: str) -> int:
    """Fork the child that writes the promote signal file; it exits with 0 or an errno. Raises OSError."""
    return _fork(lambda: _touch(os.path.join(data_dir, "promote")), keep_fds=(), death_signal=signal.SIGKILL)


def fork_note(text: str) -> int:
    """Fork the child that writes one line to the guardian's log. Raises OSError."""
    return _fork(lambda: _write_note(text), keep_fds=(), death_signal=signal.SIGKILL)


def fork_watchdog(order: WatchdogOrder, held_fd: int | None) -> tuple[int, socket.socket]:
    """Fork the child that works on the watchdog device; the guardian holds it open as `held_fd`, or not yet.

    Its pid, and where its report is found after its end: nothing when all went well, but the descriptor of a
    device that it has opened; or what went wrong. Raises OSError."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    keep = (writer.fileno(),) if held_fd is None else (writer.fileno(), held_fd)
    try:
        pid = _fork(lambda: _work_on(order, held_fd, writer), keep, death_signal=signal.SIGKILL)
    except OSError:
        reader.close()
        raise
    finally:
        writer.close()
    return pid, reader


def _fork(body: Callable[[], int], keep_fds: Collection[int], death_signal: int) -> int:
    guardian = os.getpid()
    # Blocked across the fork, so that a signal meant for the child waits for its handlers to be reset.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid
    code = 255
    try:
        signal.set_wakeup_fd(-1)
        guardian_os.set_death_signal(death_signal)
        if os.getppid() != guardian:
            os._exit(code)  # it died before the line above, so no signal will come
        _close_inherited(keep_fds)
        for signum in _SIGNALS_CHANGED:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        code = body()
    except OSError as fault:
        code = fault.errno or 255
    finally:
        os._exit(code & 0xFF)


def _close_inherited(keep_fds: Collection[int]) -> None:
    """Everything above stderr but these: a hung child must not hold the guardian's lock or sockets."""
    begin = 3
    for fd in sorted(keep_fds):
        os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, _HIGHEST_FD)


def _become_postmaster(order: StartOrder, report_fd: int) -> int:
    try:
        os.setsid()
        _restore_oom_score(order.env)
        _check_data_dir(order)
        _redirect(order.log)
        os.chdir(order.cwd)
        if order.fence_at is not None and guardian_os.boottime() >= order.fence_at:
            raise _NotStarted("the lease ended before the server could start")
        os.write(report_fd, ABOUT_TO_EXEC)
        os.execve(order.argv[0], order.argv, order.env)  # noqa: S606 - no shell is the point
    except _NotStarted as fault:
        os.write(report_fd, str(fault).encode())
    except OSError as fault:
        name = fault.filename if isinstance(fault.filename, str) else order.argv[0]
        os.write(report_fd, f"{name}: {os.strerror(fault.errno or 0)}".encode())
    return 1


def _restore_oom_score(env: dict[str, str]) -> None:
    """The guardian may be protected from the OOM killer, PostgreSQL is not, unless it sees to that itself."""
    if "PG_OOM_ADJUST_FILE" in env:
        return
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < 0:
            file.seek(0)
            file.write("0")


def _check_data_dir(order: StartOrder) -> None:
    """Rule 1: a server started without a lease must be a standby, one started with it must not."""
    present = [name for name in _STANDBY_SIGNALS if _exists(os.path.join(order.data_dir, name))]
    if order.writable and present:
        raise _NotStarted(f"writable start, but {present[0]} is in the data directory")
    if not order.writable and not present:
        raise _NotStarted(
            "standby start, but neither standby.signal nor recovery.signal is in the data directory"
        )
    others = guardian_os.processes_in(order.data_dir, os.path.basename(order.argv[0])[:15])
    if others:
        raise _NotStarted(f"process {others[0]} still runs in the data directory")


def _exists(path: str) -> bool:
    """Unlike os.path.exists, an I/O error is no "no"."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _redirect(log: str) -> None:
    """PostgreSQL writes to a file, never to a pipe that blocks it when the reader freezes (H10)."""
    null_fd = os.open("/dev/null", os.O_RDWR)
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for fd in {null_fd, log_fd} - {0, 1, 2}:
        os.close(fd)


def _touch(path: str) -> int:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return 0


def _write_note(text: str) -> int:
    os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {text}\n".encode())
    return 0


def _work_on(order: WatchdogOrder, held_fd: int | None, report: socket.socket) -> int:
    fd = held_fd
    try:
        if fd is None:
            fd = guardian_device.open_device(order.device, order.testing)
        if order.timeout_s == 0:
            guardian_device.switch_off(fd)
            return 0
        if guardian_os.boottime() >= order.before:
            raise guardian_device.Unusable("the lease ended before it could be kept alive")
        if order.program:
            guardian_device.program(fd, order.testing, order.timeout_s)
        guardian_device.keep_alive(fd)
        if held_fd is None:
            socket.send_fds(report, [b"+"], [fd])
    except (OSError, guardian_device.Unusable) as fault:
        if fd is not None and held_fd is None:
            with contextlib.suppress(OSError):
                guardian_device.switch_off(fd)  # it counts since it was opened
        why = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
        report.send(f"{order.device}: {why}".encode())
    return 0
