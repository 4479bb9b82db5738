"""The guardian's event loop: the fence, the end of a postmaster, the connections.

Theory. One thread waits for one timer (CLOCK_BOOTTIME), SIGCHLD, pidfds and sockets. What has to happen later
is a step with its time. When `fence_at` passes: SIGINT at once, SIGQUIT to postmaster and backends after
40 % of the stop budget (`hard_at - fence_at`), SIGKILL to all after 70 %, so that nothing is writable at
`hard_at`.

Rules
- No file is opened here: a hung disk must not stop the fence. Disks are for guardian_child.
- The deadline is looked at before every message, so that nothing queued behind it can overtake it.
- "exited" means: the postmaster is gone and every process it left was killed and reaped to ECHILD (H9).
- Nothing waits for a peer: one that does not read is dropped.
- A fault in here ends in the guardian's death, and that in the postmaster's (parent-death signal).
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

from haagent import guardian_child, guardian_os
from haagent.guardian_lease import Lease, Refused
from haagent.guardian_os import boottime
from haagent.guardian_server import Adopted, Owned, Postmaster
from haagent.guardian_wire import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    SOCKET_NAME,
    BadMessage,
    Message,
    Peer,
    Waiting,
    parse,
)

#: Connections beside the controller's: people looking at `status`.
MAX_PEERS = 8
#: Connections the kernel keeps until the loop takes them: generous, so that nobody is turned away.
BACKLOG = 128
#: Without postmaster, controller or lease the guardian leaves after this, seconds.
IDLE_EXIT_S = 60.0
#: Shares of the stop budget after which the fence gets harder.
QUIT_SHARE, KILL_SHARE = 0.4, 0.7
#: A kill is repeated this often until all are dead: a postmaster may fork while it is being killed, seconds.
RETRY_S = 0.05
#: A postmaster that exited by itself leaves only its log collector, which needs a moment to write the rest.
COLLECTOR_GRACE_S = 0.3
#: Processes still there this long after the postmaster are reported as leftovers (uninterruptible sleep).
LEFTOVER_REPORT_S = 1.0

Step = tuple[float, Callable[[], None]]


def log_line(text: str) -> None:
    """Only at start and at the end of the process: this writes to a disk."""
    print(time.strftime("%Y-%m-%d %H:%M:%S %z"), text, file=sys.stderr, flush=True)  # noqa: T201 - its log


class GuardianLoop:
    """`handle` answers the messages. All times are CLOCK_BOOTTIME seconds."""

    def __init__(self, state_dir: str, data_dir: str, listener: socket.socket, directory_fd: int) -> None:
        self.state_dir = state_dir
        self.data_dir = data_dir
        self.directory_fd = directory_fd
        self.idle_exit_s = IDLE_EXIT_S
        self.memory_locked = False
        self.lease = Lease()
        self.server: Postmaster | None = None
        self.controller: Peer | None = None
        self.instance: str | None = None
        self.generation = 0
        self.held: str | None = None
        self.last_exit: Message | None = None
        self.starting: Waiting | None = None
        self.promoting: Waiting | None = None
        self.steps: list[Step] = []
        self.fencing = False
        self.notes: set[int] = set()
        self.idle_at: float | None = boottime() + self.idle_exit_s
        self.timer = guardian_os.BootTimer()
        self.peers: list[Peer] = []
        self.selector = selectors.DefaultSelector()
        self.listener = listener
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.timer.fd, selectors.EVENT_READ, self.timer.drain)
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

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """For ever. An exception out of here is a bug: everything is killed before it ends the process."""
        try:
            while True:
                self._run_due()
                self._set_timer()
                for key, _ in self.selector.select():
                    key.data()
        except BaseException:
            if not self.lease.disarmed:
                self._kill_all()
            raise

    def _run_due(self) -> None:
        """Do whatever the clock asks for: the fence first."""
        now = boottime()
        if not self.fencing and self.lease.due(now):
            self._begin_fence(now)
        while self.steps and self.steps[0][0] <= now:
            self.steps.pop(0)[1]()
        if self.idle_at is not None and self.idle_at <= now:
            self._leave("idle")

    def _set_timer(self) -> None:
        times = [step[0] for step in self.steps]
        if not self.fencing and self.lease.fires_at is not None:
            times.append(self.lease.fires_at)
        if self.idle_at is not None:
            times.append(self.idle_at)
        self.timer.set(min(times, default=None))

    def _at(self, when: float, step: Callable[[], None]) -> None:
        """Each step is scheduled once, at the earliest time asked for."""
        when = min([when, *(at for at, other in self.steps if other == step)])
        others = [entry for entry in self.steps if entry[1] != step]
        self.steps = sorted([*others, (when, step)], key=lambda entry: entry[0])

    def _signalled(self) -> None:
        numbers = self.wake.recv(4096)
        if signal.SIGTERM in numbers and self.server is None:
            self._leave("SIGTERM")
        self._reap()

    # --- the fence --------------------------------------------------------------------------------

    def _begin_fence(self, now: float) -> None:
        """The deadline passed. Closes the epoch and stops the server, whatever its role is (H8)."""
        epoch, budget_s = self.lease.expire()
        fence_at = self.lease.fence_at or now
        self.fencing = True
        if self.server is None:
            self._fence_done()
        elif self.server.gone_at is not None:
            self.server.fenced, self.server.spare_until = True, now
            self._at(now, self._sweep)
        else:
            self.server.fenced = True
            if self.server.is_stopped():
                # It acts on no signal while its backends go on writing: begin with them.
                self._at(now, self._fence_quit)
                self._at(fence_at + QUIT_SHARE * budget_s, self._kill_all)
            else:
                self.server.signal(signal.SIGINT)
                self._at(fence_at + QUIT_SHARE * budget_s, self._fence_quit)
                self._at(fence_at + KILL_SHARE * budget_s, self._kill_all)
        self._tell({"event": "fencing", "epoch": epoch})

    def _fence_quit(self) -> None:
        if self.server is not None:
            self.server.signal(signal.SIGQUIT)
            self.server.signal_children(signal.SIGQUIT)

    def _kill_all(self) -> None:
        """SIGKILL to postmaster and everything below it, again and again until it is gone."""
        if self.server is None:
            return
        self.server.kill_all(spare=self.notes)
        self._watch_victims()
        self._at(boottime() + RETRY_S, self._kill_all)

    def _fence_done(self) -> None:
        self.fencing = False
        self.lease.drop()
        self._consider_idle()

    # --- the end of a postmaster --------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._reaped(pid, os.waitstatus_to_exitcode(status))
        if self.server is not None and self.server.gone_at is not None:
            self._sweep()

    def _reaped(self, pid: int, status: int) -> None:
        self.notes.discard(pid)
        if self.promoting is not None and self.promoting.pid == pid:
            self.promote_file_written(status)
        elif isinstance(self.server, Owned) and self.server.pid == pid and self.server.gone_at is None:
            if self.starting is not None:
                self.read_start_report()
            self._postmaster_gone(status)
        self._consider_idle()

    def _postmaster_gone(self, status: int | None) -> None:
        """An exit of its own leaves only the log collector; any other, backends that may write on."""
        server = self.server
        assert server is not None
        server.gone_at = boottime()
        server.status = status
        self.steps = []
        clean = status is not None and status >= 0 and not server.fenced
        self._at(server.gone_at + (COLLECTOR_GRACE_S if clean else 0.0), self._sweep)
        server.spare_until = server.gone_at + COLLECTOR_GRACE_S if clean else 0.0

    def _sweep(self) -> None:
        """The postmaster is gone: kill what it left, and tell the controller once nothing is left (H9)."""
        server = self.server
        if server is None or server.gone_at is None:
            return
        now = boottime()
        left = server.leftovers(spare=self.notes)
        if not left:
            self._server_done(server)
            return
        if now >= server.spare_until:
            server.kill_all(spare=self.notes)
            self._watch_victims()
        if now >= server.gone_at + LEFTOVER_REPORT_S and not server.reported:
            server.reported = True
            self._tell(server.exit_event(left))
        self._at(max(now + RETRY_S, server.spare_until), self._sweep)

    def _server_done(self, server: Postmaster) -> None:
        self.server = None
        self.steps = []
        self._unwatch(server)
        if self.lease.is_closed():
            self._fence_done()
        if self.starting is not None:
            self.start_refused()
            return
        self.last_exit = {"pid": server.pid, "status": server.status, "fenced": server.fenced}
        self._tell(server.exit_event([]))
        self._consider_idle()
        if server.fenced:
            self._note(f"lease ended and was not renewed: PostgreSQL (pid {server.pid}) was stopped")

    def _watch_victims(self) -> None:
        """Processes that are not our children tell their death through pidfds."""
        for fd in self.server.new_pidfds() if self.server is not None else ():
            self.selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self._victim_died(fd))

    def _victim_died(self, fd: int) -> None:
        server = self.server
        if not isinstance(server, Adopted) or not server.is_dead(fd):
            return  # a descriptor closed, and its number used again, since the selector looked
        self.selector.unregister(fd)
        if server.forget(fd) and server.gone_at is None:
            self._postmaster_gone(None)
        self._sweep()

    def _unwatch(self, server: Postmaster) -> None:
        for fd in server.release():
            try:
                self.selector.unregister(fd)
            except KeyError:
                pass
            os.close(fd)

    def _note(self, text: str) -> None:
        try:
            self.notes.add(guardian_child.fork_note(text))
        except OSError:
            pass  # the log is for people; nothing depends on it

    # --- connections --------------------------------------------------------------------------------

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
        strangers = [peer for peer in self.peers if peer is not self.controller]
        if len(strangers) >= MAX_PEERS:
            self._drop(strangers[0])
        peer = Peer(sock)
        self.peers.append(peer)
        self.selector.register(sock, selectors.EVENT_READ, lambda: self._readable(peer))

    def _drop(self, peer: Peer) -> None:
        if not peer.open:
            return
        peer.open = False
        self.selector.unregister(peer.sock)
        peer.sock.close()
        self.peers.remove(peer)
        if peer is self.controller:
            self.controller = None
            self._consider_idle()

    def _readable(self, peer: Peer) -> None:
        if not peer.open:
            return
        try:
            raw, _, flags, _ = peer.sock.recvmsg(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            raw, flags = b"", 0
        if not raw:
            self._drop(peer)
            return
        self._run_due()  # what came too late must not overtake the deadline
        request: Message = {}
        try:
            request = parse(raw, bool(flags & socket.MSG_TRUNC))
            answer = self.handle(peer, request)
        except Refused as refusal:
            answer = {"ok": False, "refused": str(refusal)}
        except BadMessage as fault:
            answer = {"ok": False, "error": str(fault)}
        except Exception as fault:  # a bug in a handler must not cost the server its guardian
            answer = {"ok": False, "error": f"internal: {type(fault).__name__}: {fault}"}
        if answer is not None:
            self._send(peer, {"id": request.get("id"), **answer})

    def handle(self, peer: Peer, request: Message) -> Message | None:
        """The answer, or None when it comes later. Raises BadMessage, Refused."""
        raise NotImplementedError

    def read_start_report(self) -> None:
        """The child that becomes the postmaster wrote to its pipe, or is dead."""
        raise NotImplementedError

    def start_refused(self) -> None:
        """The child did not become a postmaster and is reaped: nothing of it is left."""
        raise NotImplementedError

    def promote_file_written(self, status: int) -> None:
        """The child that writes the signal file is reaped; `status` as of `waitstatus_to_exitcode`."""
        raise NotImplementedError

    def _send(self, peer: Peer | None, message: Message) -> None:
        """Never waits: a peer that does not read is dropped and learns the state from its next hello."""
        if peer is None or not peer.open:
            return
        try:
            peer.sock.send(json.dumps({"v": PROTOCOL, **message}).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            self._drop(peer)

    def _tell(self, event: Message) -> None:
        self._send(self.controller, event)

    # --- leaving ----------------------------------------------------------------------------------------

    def _consider_idle(self) -> None:
        idle = self.server is None and self.controller is None and self.lease.epoch is None
        if idle and self.idle_at is None:
            self.idle_at = boottime() + self.idle_exit_s
        elif not idle:
            self.idle_at = None

    def _leave(self, why: str, peer: Peer | None = None, answer_id: object = None) -> None:
        """No server of ours lives here, so this may touch the disk. The lock goes with the process."""
        with contextlib.suppress(OSError):
            os.unlink(SOCKET_NAME, dir_fd=self.directory_fd)
        log_line(f"guardian {os.getpid()} leaves: {why}")
        self._send(peer, {"id": answer_id, "ok": True})
        os._exit(0)
