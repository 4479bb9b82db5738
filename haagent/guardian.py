"""The guardian: parent of the postmaster, and the one that stops it when the lease ends (rules 1 and 8).

Theory. A tiny single-threaded process, one per data directory, that outlives the agent. The agent *arms* it
with the deadline of its lease (`fence_at`, CLOCK_BOOTTIME) and renews that; if the deadline passes without a
newer one, the guardian stops PostgreSQL so that nothing is writable at `hard_at`, agent or no agent. Only the
guardian starts a server or promotes it, and only under an armed, unexpired, open epoch (H8).

This file has the requests and the start of the process. The rest, by file:
guardian_loop (events, fence, end of a postmaster), guardian_lease (deadline and epochs, pure),
guardian_server (the postmaster, our own or adopted), guardian_child (whatever touches a disk, in forked
children), guardian_wire (messages), guardian_os (the kernel), guardian_client, guardian_spawn,
guardian_types and guardian_direct (the agent's side). docs/guardian.md has the protocol.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable

from haagent import guardian_child, guardian_os
from haagent.guardian_lease import Refused
from haagent.guardian_loop import BACKLOG, GuardianLoop, log_line
from haagent.guardian_os import boottime
from haagent.guardian_server import Adopted, Owned
from haagent.guardian_wire import (
    LOCK_NAME,
    LOG_NAME,
    POSTGRES_LOG_NAME,
    PROTOCOL,
    SOCKET_NAME,
    BadMessage,
    Message,
    Peer,
    Waiting,
    environment_in,
    epoch_in,
    need,
    seconds_in,
    texts_in,
)

#: The agent's blob (lease handle, session secrets) is small; this keeps the guardian so.
MAX_HELD_BYTES = 32 * 1024
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Guardian(GuardianLoop):
    """The requests."""

    def __init__(self, state_dir: str, data_dir: str, listener: socket.socket, directory_fd: int) -> None:
        super().__init__(state_dir, data_dir, listener, directory_fd)
        self.handlers: dict[str, Callable[[Peer, Message], Message | None]] = {
            "hello": self._hello, "status": self._status, "arm": self._arm, "disarm": self._disarm,
            "close": self._close, "hold": self._hold, "start": self._start, "promote": self._promote,
            "stop": self._stop, "adopt": self._adopt, "exit": self._exit,
        }  # fmt: skip

    def handle(self, peer: Peer, request: Message) -> Message | None:
        """Answer at once, or None when the answer comes later. Raises BadMessage, Refused."""
        op = request.get("op")
        handler = self.handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            raise BadMessage(f"op: unknown request {str(op)[:40]!r}")
        if peer is not self.controller and op not in ("hello", "status"):
            raise BadMessage(f"op: {op} is for the controller, say hello first")
        answer = handler(peer, request)
        return None if answer is None else {"ok": True, **answer}

    def _hello(self, peer: Peer, request: Message) -> Message:
        """The newest connection is the controller: a frozen twin of the agent loses its say."""
        instance = need(request, "instance", str)
        old = self.controller
        if old is not None and old is not peer:
            self._send(old, {"event": "replaced", "by": instance})
            self._drop(old)
        self.controller, self.instance = peer, instance
        self.generation += 1
        self.idle_at = None
        return self._state()

    def _status(self, peer: Peer, request: Message) -> Message:
        return self._state()

    def _state(self) -> Message:
        server = self.server
        gone = server is not None and server.gone_at is not None
        return {
            "guardian": os.getpid(),
            "protocol": PROTOCOL,
            "generation": self.generation,
            "instance": self.instance,
            "postmaster": None
            if server is None
            else {**server.describe(), "starting": self.starting is not None},
            "leftovers": server.leftovers(spare=self.notes) if server is not None and gone else [],
            "armed": self.lease.describe(),
            "closed_epoch": self.lease.closed_epoch,
            "disarmed": self.lease.disarmed,
            "fencing": self.fencing,
            "last_exit": self.last_exit,
            "held": self.held,
            "memory_locked": self.memory_locked,
        }

    def _arm(self, peer: Peer, request: Message) -> Message:
        handle = need(request, "handle", dict)
        session, epoch = need(handle, "session", str), epoch_in(handle)
        fence_at, hard_at = seconds_in(request, "fence_at"), seconds_in(request, "hard_at")
        if hard_at < fence_at:
            raise BadMessage("hard_at: lies before fence_at")
        self.lease.arm(session, epoch, fence_at, hard_at, boottime())
        if self.server is not None:
            self.server.come_under(epoch)
        self._set_timer()  # before the answer: acknowledged means that the kernel holds it
        return {"fence_at": self.lease.fence_at, "hard_at": self.lease.hard_at}

    def _disarm(self, peer: Peer, request: Message) -> Message:
        if self.fencing or self.promoting is not None:
            raise Refused("a fence or a promotion is under way")
        if self.lease.is_closed() and self.server is not None:
            raise Refused("the epoch is closed while the server runs: its fence stays")
        self.lease.disarmed = True
        return {}

    def _close(self, peer: Peer, request: Message) -> Message:
        """H6: before the leader key is released. The deadline stays for a server that may still write."""
        epoch = epoch_in(request)
        server = self.server
        writes = server is not None and server.may_write and (server.writable_epoch or 0) <= epoch
        if writes and (self.lease.disarmed or self.lease.epoch is None):
            raise Refused("the server is writable under this epoch and no fence is armed")
        self.lease.close(epoch)
        if self.lease.is_closed() and not writes and not self.fencing:
            self.lease.drop()
        self._consider_idle()
        return {"closed_epoch": self.lease.closed_epoch}

    def _hold(self, peer: Peer, request: Message) -> Message:
        held = request.get("held")
        if held is not None and (not isinstance(held, str) or len(held) > MAX_HELD_BYTES):
            raise BadMessage(f"held: must be null or text of at most {MAX_HELD_BYTES} bytes")
        self.held = held
        return {}

    def _start(self, peer: Peer, request: Message) -> None:
        writable = need(request, "writable", bool)
        order = guardian_child.StartOrder(
            argv=texts_in(request, "argv"),
            env=environment_in(request),
            cwd=need(request, "cwd", str),
            log=request.get("log") or f"{self.state_dir}/{POSTGRES_LOG_NAME}",
            data_dir=self.data_dir,
            writable=writable,
            fence_at=self.lease.check_open(epoch_in(request), boottime()) if writable else None,
        )
        if not isinstance(order.log, str):
            raise BadMessage("log: must be a path")
        if self.server is not None:
            raise Refused(f"a postmaster or what it left still lives (pid {self.server.pid})")
        if self.promoting is not None or self.fencing:
            raise Refused("an earlier promotion or fence has not ended yet")
        try:
            pid, report = guardian_child.fork_postmaster(order)
        except OSError as fault:
            raise Refused(f"cannot fork: {fault.strerror}") from None
        self.server = Owned(pid, request["epoch"] if writable else None, report)
        self.starting = Waiting(peer, request, pid)
        self.idle_at = None
        self.selector.register(report, selectors.EVENT_READ, self.read_start_report)

    def read_start_report(self) -> None:
        """The pipe is at its end once the child has become postgres, or is dead."""
        server, waiting = self.server, self.starting
        if not isinstance(server, Owned) or waiting is None:
            return  # the reaper was here first
        ended = server.report_fd is None
        while server.report_fd is not None and not ended:
            try:
                chunk = os.read(server.report_fd, 4096)
            except BlockingIOError:
                return
            waiting.report += chunk
            ended = not chunk
        if server.report_fd is not None:
            self.selector.unregister(server.report_fd)
            os.close(server.report_fd)
            server.report_fd = None
        if waiting.report == guardian_child.ABOUT_TO_EXEC:
            self.starting = None
            answer = {"ok": True, "pid": server.pid, "start_ticks": server.start_ticks}
            self._send(waiting.peer, {"id": waiting.id, **answer})

    def start_refused(self) -> None:
        """The child did not become postgres and is reaped: nothing of it is left."""
        waiting, self.starting = self.starting, None
        assert waiting is not None
        reason = waiting.report.removeprefix(guardian_child.ABOUT_TO_EXEC).decode("utf-8", "replace")
        answer = {"ok": False, "refused": reason or "killed before it could start"}
        self._send(waiting.peer, {"id": waiting.id, **answer})
        self._consider_idle()

    def _promote(self, peer: Peer, request: Message) -> None:
        epoch = epoch_in(request)
        server = self.server
        if server is None or server.gone_at is not None or self.starting is not None:
            raise Refused("no postmaster runs")
        if server.may_write and not server.adopted:  # an adopted one only counts as writable, to be safe
            raise Refused(f"already writable under epoch {server.writable_epoch}")
        if self.promoting is not None:
            raise Refused("a promotion is under way")
        self.lease.check_open(epoch, boottime())
        # From here any signal of a backend may make the postmaster find the file: count it as writable.
        server.writable_epoch = epoch
        try:
            pid = guardian_child.fork_promote_file(self.data_dir)
        except OSError as fault:
            server.writable_epoch = server.writable_epoch if server.adopted else None
            raise Refused(f"cannot fork: {fault.strerror}") from None
        self.promoting = Waiting(peer, request, pid)

    def promote_file_written(self, status: int) -> None:
        waiting, self.promoting = self.promoting, None
        assert waiting is not None
        server = self.server
        refused = None
        self._run_due()
        try:
            if server is None or server.gone_at is not None:
                raise Refused("the postmaster is gone")
            if status != 0:
                server.writable_epoch = server.writable_epoch if server.adopted else None
                raise Refused(f"{self.data_dir}/promote: {os.strerror(status) if status > 0 else 'killed'}")
            self.lease.check_open(waiting.epoch, boottime())
            server.signal(signal.SIGUSR1)
        except Refused as refusal:
            refused = str(refusal)
        self._send(waiting.peer, {"id": waiting.id, "ok": refused is None, "refused": refused})

    def _stop(self, peer: Peer, request: Message) -> Message:
        mode = need(request, "mode", str)
        if mode != "kill" and mode not in STOP_SIGNALS:
            raise BadMessage(f"mode: {mode[:20]!r} is not smart, fast, immediate or kill")
        if self.server is None:
            raise Refused("no postmaster runs")
        if mode == "kill":
            self._kill_all()
        elif self.server.gone_at is None:
            self.server.signal(STOP_SIGNALS[mode])
        return {}

    def _adopt(self, peer: Peer, request: Message) -> Message:
        """Watch a postmaster somebody else started, known by pid, start time and working directory (H10)."""
        pid, start_ticks = need(request, "pid", int), need(request, "start_ticks", int)
        writable = need({"writable": True, **request}, "writable", bool)
        if self.server is not None:
            raise Refused(f"a postmaster or what it left still lives (pid {self.server.pid})")
        fd = guardian_os.open_pidfd(pid, start_ticks)
        if fd is None:
            raise Refused(f"no process {pid} with this start time")
        stat, cwd = guardian_os.read_stat(pid), guardian_os.cwd_of(pid)
        if stat is None or cwd != self.data_dir:
            os.close(fd)
            raise Refused(f"process {pid} works in {cwd}, not in {self.data_dir}")
        self.server = Adopted(pid, start_ticks, stat.comm, fd, self.data_dir, writable)
        if self.lease.epoch is not None:
            self.server.come_under(self.lease.epoch)
        self.idle_at = None
        self._watch_victims()
        return {}

    def _exit(self, peer: Peer, request: Message) -> None:
        server = self.server
        hands_off = self.lease.disarmed and request.get("force") is True
        if server is not None and not (hands_off and isinstance(server, Adopted)):
            raise Refused(f"a postmaster or what it left still lives (pid {server.pid})")
        self._leave("asked to exit", peer, request.get("id"))


def main(argv: list[str]) -> None:
    """`<state_dir> <data_dir> <ready_fd> <idle_exit_s>`: become the guardian, or tell `ready_fd` why not."""
    state_dir, data_dir, ready_fd, idle_exit_s = argv[0], argv[1], int(argv[2]), float(argv[3])
    if os.fork():
        os._exit(0)  # the agent is not our parent: its death and its terminal do not reach us
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    try:
        guardian = _set_up(state_dir, data_dir)
    except BlockingIOError:
        os.write(ready_fd, b"busy")
        os._exit(1)
    except OSError as fault:
        os.write(ready_fd, str(fault).encode())
        os._exit(1)
    guardian.idle_exit_s = idle_exit_s
    guardian.idle_at = boottime() + idle_exit_s
    _settle(guardian)
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    guardian.run()


def _set_up(state_dir: str, data_dir: str) -> Guardian:
    """Take the lock (one guardian per data directory), then the socket. BlockingIOError: it is taken."""
    directory_fd = guardian_os.open_directory(state_dir)
    lock_fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock_fd, 0)
    os.write(lock_fd, f"{os.getpid()}\n".encode())
    try:
        os.unlink(SOCKET_NAME, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(guardian_os.path_in(directory_fd, SOCKET_NAME))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    log_fd = os.open(LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600, dir_fd=directory_fd)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    guardian_os.become_subreaper()
    return Guardian(state_dir, os.path.realpath(data_dir), listener, directory_fd)


def _settle(guardian: Guardian) -> None:
    """Touch what the fence will need, then keep it: out of swap, out of the OOM killer's sight, out of gc."""
    guardian_os.set_name("haagent-guard")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")
    except OSError:
        pass  # only root may; the unit file can (OOMScoreAdjust)
    json.dumps(guardian._state())
    guardian_os.children_of(os.getpid())
    gc.collect()
    gc.freeze()
    guardian.memory_locked = guardian_os.lock_memory()
    locked = "locked" if guardian.memory_locked else "not locked (LimitMEMLOCK)"
    log_line(f"guardian {os.getpid()} watches {guardian.data_dir}, memory {locked}")


if __name__ == "__main__":
    main(sys.argv[1:])
