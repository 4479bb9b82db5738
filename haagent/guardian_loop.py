"""The guardian's process: the real kernel, and the event loop that feeds the logic.

Theory. One thread waits for one timer (CLOCK_BOOTTIME), SIGCHLD, pidfds, pipes and sockets, and calls the
logic's entry point for each. Nothing is decided here. No file is opened here before the end: disks are for
guardian_child. A fault in here ends in the guardian's death, and that in the postmaster's (parent-death
signal).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from haagent import guardian_child, guardian_os
from haagent.guardian_kernel import Held, Message, StartOrder, WatchdogOrder
from haagent.guardian_logic import GuardianLogic
from haagent.guardian_wire import MAX_MESSAGE_BYTES, PROTOCOL, SOCKET_NAME, BadMessage, parse

#: Connections the kernel keeps until the loop takes them: generous, so that nobody is turned away.
BACKLOG = 128


def log_line(text: str) -> None:
    """Only at start and at the end of the process: this writes to a disk."""
    print(time.strftime("%Y-%m-%d %H:%M:%S %z"), text, file=sys.stderr, flush=True)  # noqa: T201 - its log


class SocketPeer:
    """A connection of the guardian's socket."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self.sock = sock
        self.open = True
        self._selector = selector

    def send(self, message: Message) -> None:
        if not self.open:
            return
        try:
            self.sock.send(json.dumps({"v": PROTOCOL, **message}).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._selector.unregister(self.sock)
            self.sock.close()


class PidfdHeld:
    """A process held by a pidfd, looked at after that was opened."""

    def __init__(
        self, pid: int, fd: int, stat: guardian_os.ProcStat, release: Callable[[PidfdHeld], None]
    ) -> None:
        self.pid = pid
        self.start_ticks = stat.start_ticks
        self.comm = stat.comm
        self.cwd = guardian_os.cwd_of(pid)
        self.fd = fd
        self.released = False
        self._release = release

    def signal(self, signum: int) -> None:
        if not self.released:
            guardian_os.send_signal(self.fd, signum)

    def release(self) -> None:
        if not self.released:
            self.released = True
            self._release(self)


class LinuxKernel:
    """`guardian_kernel.Kernel` on Linux. Events that come through the selector call `data` of their key."""

    def __init__(self, directory_fd: int) -> None:
        self.pid = os.getpid()
        self.selector = selectors.DefaultSelector()
        self.timer = guardian_os.BootTimer()
        self._directory_fd = directory_fd
        self._reports: dict[int, tuple[int, Callable[[bytes], None]]] = {}
        self._watchdog_fd: int | None = None
        #: Of the child that works on it: pid, its report, whom to tell.
        self._watchdog_child: tuple[int, socket.socket, Callable[[int, str], None]] | None = None

    # --- time

    def now(self) -> float:
        return guardian_os.boottime()

    def set_timer(self, at_s: float | None) -> None:
        self.timer.set(at_s)

    # --- children

    def fork_postmaster(self, order: StartOrder, on_report: Callable[[bytes], None]) -> int:
        pid, reader = guardian_child.fork_postmaster(order)
        self._reports[pid] = reader, on_report
        self.selector.register(reader, selectors.EVENT_READ, lambda: self._read_report(pid))
        return pid

    def _read_report(self, pid: int) -> None:
        """Takes what is there; at the end of the pipe it is closed and the end is told."""
        while pid in self._reports:
            reader, on_report = self._reports[pid]
            try:
                chunk = os.read(reader, 4096)
            except BlockingIOError:
                return
            if not chunk:
                self.selector.unregister(reader)
                os.close(reader)
                del self._reports[pid]
            on_report(chunk)

    def fork_promote_file(self, data_dir: str) -> int:
        return guardian_child.fork_promote_file(data_dir)

    def fork_note(self, text: str) -> int:
        return guardian_child.fork_note(text)

    def fork_watchdog(self, order: WatchdogOrder, on_end: Callable[[int, str], None]) -> int:
        pid, report = guardian_child.fork_watchdog(order, self._watchdog_fd)
        self._watchdog_child = pid, report, on_end
        if order.timeout_s == 0 and self._watchdog_fd is not None:
            os.close(self._watchdog_fd)  # the child's is the last one: its end closes the device
            self._watchdog_fd = None
        return pid

    def _watchdog_ended(self, status: int) -> None:
        assert self._watchdog_child is not None
        (pid, report, on_end), self._watchdog_child = self._watchdog_child, None
        text, fds = b"", list[int]()
        with contextlib.suppress(BlockingIOError), report:
            text, fds, _, _ = socket.recv_fds(report, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            self._watchdog_fd = fds[0]
        killed = f"its child ended with {status}" if status else ""
        on_end(pid, "" if fds else text.decode("utf-8", "replace") or killed)

    def reap(self) -> tuple[int, int] | None:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        self._read_report(pid)
        code = os.waitstatus_to_exitcode(status)
        if self._watchdog_child is not None and self._watchdog_child[0] == pid:
            self._watchdog_ended(code)
        return pid, code

    def has_children(self) -> bool:
        try:
            # WNOWAIT only looks: reaping is `reap`'s.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def kill(self, pid: int, signum: int) -> None:
        guardian_os.kill(pid, signum)

    # --- processes, ours or not

    def start_ticks(self, pid: int) -> int:
        stat = guardian_os.read_stat(pid)
        return stat.start_ticks if stat is not None else 0

    def is_stopped(self, pid: int) -> bool:
        return guardian_os.is_stopped(pid)

    def children_of(self, pid: int) -> list[int]:
        return guardian_os.children_of(pid)

    def signal_children(self, pid: int, signum: int) -> None:
        guardian_os.signal_children(pid, signum)

    def processes_in(self, directory: str, comm: str) -> list[int]:
        return guardian_os.processes_in(directory, comm)

    def hold(self, pid: int, on_death: Callable[[Held], None]) -> Held | None:
        fd = guardian_os.open_pidfd(pid)
        stat = guardian_os.read_stat(pid)
        if fd is None or stat is None:
            if fd is not None:
                os.close(fd)
            return None
        held = PidfdHeld(pid, fd, stat, self._release)
        self.selector.register(fd, selectors.EVENT_READ, lambda: self._died(held, on_death))
        return held

    def _died(self, held: PidfdHeld, on_death: Callable[[Held], None]) -> None:
        if not held.released:  # since the selector looked
            held.release()
            on_death(held)

    def _release(self, held: PidfdHeld) -> None:
        self.selector.unregister(held.fd)
        os.close(held.fd)

    # --- the end

    def leave(self, why: str, farewell: Callable[[], None]) -> NoReturn:
        """The lock goes with the process."""
        with contextlib.suppress(OSError):
            os.unlink(SOCKET_NAME, dir_fd=self._directory_fd)
        log_line(f"guardian {self.pid} leaves: {why}")
        farewell()
        os._exit(0)


class GuardianLoop:
    """Waits, and tells the logic what happened."""

    def __init__(self, kernel: LinuxKernel, logic: GuardianLogic, listener: socket.socket) -> None:
        self.kernel = kernel
        self.logic = logic
        self.listener = listener
        self.selector = kernel.selector
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(kernel.timer.fd, selectors.EVENT_READ, self._timer_fired)
        self._watch_signals()

    def _watch_signals(self) -> None:
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(signum, signal.SIG_IGN)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, lambda *_: None)
        self.wake, writer = socket.socketpair()
        self.wake.setblocking(False)
        writer.setblocking(False)
        self._wake_writer = writer  # kept open: its descriptor is the signal module's
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.wake, selectors.EVENT_READ, self._signalled)

    def run(self) -> None:
        """For ever. An exception out of here is a bug: everything is killed before it ends the process."""
        try:
            while True:
                for key, _ in self.selector.select():
                    key.data()
        except BaseException:
            self.logic.give_up()
            raise

    def _timer_fired(self) -> None:
        self.kernel.timer.drain()
        self.logic.due()

    def _signalled(self) -> None:
        numbers = self.wake.recv(4096)
        if signal.SIGTERM in numbers:
            self.logic.terminate()
        self.logic.signalled()

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
            sock.setblocking(False)
            uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        except OSError:
            return
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        peer = SocketPeer(sock, self.selector)
        self.selector.register(sock, selectors.EVENT_READ, lambda: self._readable(peer))
        self.logic.connected(peer)

    def _readable(self, peer: SocketPeer) -> None:
        if not peer.open:
            return
        try:
            raw, _, flags, _ = peer.sock.recvmsg(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            raw, flags = b"", 0
        if not raw:
            self.logic.disconnected(peer)
            return
        try:
            request = parse(raw, bool(flags & socket.MSG_TRUNC))
        except BadMessage as fault:
            self.logic.garbage(peer, str(fault))
        else:
            self.logic.request(peer, request)
