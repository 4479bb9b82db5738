"""The guardian: parent of the postmaster, and the one that stops it when the lease ends (rules 1 and 8).

Theory. A tiny single-threaded process, one per data directory, that outlives the agent. The agent *arms* it with
the deadline of its lease (`fence_at`, CLOCK_BOOTTIME) and renews that; if the deadline passes without a newer one,
the guardian stops PostgreSQL: SIGINT at once, SIGQUIT to postmaster and backends after 40 % of the stop budget
(`hard_at - fence_at`), SIGKILL to all after 70 %, so that nothing is writable at `hard_at`, agent or no agent.
Only the guardian starts a server or promotes it, and only under an armed, unexpired, open epoch (H8).

Rules of this file
- No file is opened here after the start: a hung disk must not stop the fence. Disks are for guardian_child.
- The deadline is looked at before every message, so that nothing queued behind it can overtake it.
- An epoch once closed, by the agent or by the fence, stays closed (H6).
- "exited" means: the postmaster is gone and every process it left was killed and reaped to ECHILD (H9).
- Whatever goes wrong in here ends in the guardian's death, and that in the postmaster's (parent-death signal).
docs/guardian.md describes the messages.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from haagent import guardian_child, guardian_os
from haagent.guardian_lease import Lease, Refused
from haagent.guardian_os import boottime
from haagent.guardian_server import Adopted, Owned, Postmaster

PROTOCOL = 1
SOCKET_NAME = "guardian.sock"
LOCK_NAME = "guardian.lock"
LOG_NAME = "guardian.log"
POSTGRES_LOG_NAME = "postgresql.log"
#: Longest message taken, bytes: a start order carries a whole environment.
MAX_MESSAGE_BYTES = 256 * 1024
#: The agent's blob (lease handle, session secrets) is small; this keeps the guardian so.
MAX_HELD_BYTES = 32 * 1024
#: Connections beside the controller's: people looking at `status`.
MAX_PEERS = 8
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

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

Message = dict[str, Any]
Step = tuple[float, Callable[[], None]]


class BadMessage(Exception):
    """The message is not one of the protocol; the text names the key."""


class Peer:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = True


class Waiting:
    """A request whose answer comes later: a start, a promote."""

    def __init__(self, peer: Peer, request: Message, pid: int) -> None:
        self.peer = peer
        self.id = request.get("id")
        self.pid = pid
        self.epoch: int = request.get("epoch") or 0
        self.report = b""


class Guardian:
    """The event loop and the messages. All times are CLOCK_BOOTTIME seconds."""

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
        self.handlers: dict[str, Callable[[Peer, Message], Message | None]] = {
            "hello": self._hello, "status": self._status, "arm": self._arm, "disarm": self._disarm,
            "close": self._close, "hold": self._hold, "start": self._start, "promote": self._promote,
            "stop": self._stop, "adopt": self._adopt, "exit": self._exit,
        }  # fmt: skip

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
                # It acts on no signal while its backends go on writing: start with the step that reaches them.
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
            self._promote_file_written(status)
        elif isinstance(self.server, Owned) and self.server.pid == pid and self.server.gone_at is None:
            if self.starting is not None:
                self._read_start_report()
            self._postmaster_gone(status)
        self._consider_idle()

    def _postmaster_gone(self, status: int | None) -> None:
        """A clean exit leaves nothing but the log collector; after any other, whoever is left may still write."""
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
            self._start_refused()
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
        except OSError:
            return
        sock.setblocking(False)
        uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
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
            request = _parse(raw, bool(flags & socket.MSG_TRUNC))
            answer = self._handle(peer, request)
        except Refused as refusal:
            answer = {"ok": False, "refused": str(refusal)}
        except BadMessage as fault:
            answer = {"ok": False, "error": str(fault)}
        except Exception as fault:  # a bug in a handler must not cost the server its guardian
            answer = {"ok": False, "error": f"internal: {type(fault).__name__}: {fault}"}
        if answer is not None:
            self._send(peer, {"id": request.get("id"), **answer})

    def _handle(self, peer: Peer, request: Message) -> Message | None:
        op = request.get("op")
        handler = self.handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            raise BadMessage(f"op: unknown request {str(op)[:40]!r}")
        if peer is not self.controller and op not in ("hello", "status"):
            raise BadMessage(f"op: {op} is for the controller, say hello first")
        answer = handler(peer, request)
        return None if answer is None else {"ok": True, **answer}

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

    # --- requests ------------------------------------------------------------------------------------

    def _hello(self, peer: Peer, request: Message) -> Message:
        """The newest connection is the controller: a frozen twin of the agent loses its say."""
        instance = _need(request, "instance", str)
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
            "postmaster": None if server is None else {**server.describe(), "starting": self.starting is not None},
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
        handle = _need(request, "handle", dict)
        session, epoch = _need(handle, "session", str), _epoch(handle)
        fence_at, hard_at = _seconds(request, "fence_at"), _seconds(request, "hard_at")
        if hard_at < fence_at:
            raise BadMessage("hard_at: lies before fence_at")
        replaced = self.lease.arm(session, epoch, fence_at, hard_at, boottime())
        if replaced and self.server is not None and self.server.writable_epoch is not None:
            self.server.writable_epoch = epoch
        self._set_timer()  # before the answer: acknowledged means that the kernel holds it
        return {"fence_at": self.lease.fence_at, "hard_at": self.lease.hard_at}

    def _disarm(self, peer: Peer, request: Message) -> Message:
        if self.fencing:
            raise Refused("the fence is under way")
        if self.lease.is_closed() and self.server is not None:
            raise Refused("the epoch is closed while the server runs: its fence stays")
        self.lease.disarmed = True
        return {}

    def _close(self, peer: Peer, request: Message) -> Message:
        """H6: before the leader key is released. The deadline stays for a server that may still write."""
        epoch = _epoch(request)
        server = self.server
        writes = server is not None and server.writable_epoch is not None and server.writable_epoch <= epoch
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
        writable = _need(request, "writable", bool)
        order = guardian_child.StartOrder(
            argv=_texts(request, "argv"),
            env=_environment(request),
            cwd=_need(request, "cwd", str),
            log=request.get("log") or f"{self.state_dir}/{POSTGRES_LOG_NAME}",
            data_dir=self.data_dir,
            writable=writable,
            fence_at=self.lease.check_open(_epoch(request), boottime()) if writable else None,
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
        self.selector.register(report, selectors.EVENT_READ, self._read_start_report)

    def _read_start_report(self) -> None:
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

    def _start_refused(self) -> None:
        """The child did not become postgres and is reaped: nothing of it is left."""
        waiting, self.starting = self.starting, None
        assert waiting is not None
        reason = waiting.report.removeprefix(guardian_child.ABOUT_TO_EXEC).decode("utf-8", "replace")
        answer = {"ok": False, "refused": reason or "killed before it could start"}
        self._send(waiting.peer, {"id": waiting.id, **answer})
        self._consider_idle()

    def _promote(self, peer: Peer, request: Message) -> None:
        epoch = _epoch(request)
        server = self.server
        if server is None or server.gone_at is not None or self.starting is not None:
            raise Refused("no postmaster runs")
        if server.writable_epoch is not None:
            raise Refused(f"already writable under epoch {server.writable_epoch}")
        if self.promoting is not None:
            raise Refused("a promotion is under way")
        self.lease.check_open(epoch, boottime())
        # From here any signal of a backend may make the postmaster find the file: count it as writable.
        server.writable_epoch = epoch
        try:
            pid = guardian_child.fork_promote_file(self.data_dir)
        except OSError as fault:
            server.writable_epoch = None
            raise Refused(f"cannot fork: {fault.strerror}") from None
        self.promoting = Waiting(peer, request, pid)

    def _promote_file_written(self, status: int) -> None:
        waiting, self.promoting = self.promoting, None
        assert waiting is not None
        server = self.server
        refused = None
        self._run_due()
        try:
            if server is None or server.gone_at is not None:
                raise Refused("the postmaster is gone")
            if status != 0:
                server.writable_epoch = None
                raise Refused(f"{self.data_dir}/promote: {os.strerror(status) if status > 0 else 'killed'}")
            self.lease.check_open(waiting.epoch, boottime())
            server.signal(signal.SIGUSR1)
        except Refused as refusal:
            refused = str(refusal)
        self._send(waiting.peer, {"id": waiting.id, "ok": refused is None, **({"refused": refused} if refused else {})})

    def _stop(self, peer: Peer, request: Message) -> Message:
        mode = _need(request, "mode", str)
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
        pid, start_ticks = _need(request, "pid", int), _need(request, "start_ticks", int)
        epoch = None if request.get("epoch") is None else _epoch(request)
        if self.server is not None:
            raise Refused(f"a postmaster or what it left still lives (pid {self.server.pid})")
        if epoch is not None:
            self.lease.check_open(epoch, boottime())
        fd = guardian_os.open_pidfd(pid, start_ticks)
        if fd is None:
            raise Refused(f"no process {pid} with this start time")
        stat, cwd = guardian_os.read_stat(pid), guardian_os.cwd_of(pid)
        if stat is None or cwd != self.data_dir:
            os.close(fd)
            raise Refused(f"process {pid} works in {cwd}, not in {self.data_dir}")
        self.server = Adopted(pid, start_ticks, stat.comm, fd, self.data_dir, epoch)
        self.idle_at = None
        self._watch_victims()
        return {}

    def _exit(self, peer: Peer, request: Message) -> None:
        server = self.server
        adopted_in_pause = isinstance(server, Adopted) and self.lease.disarmed and request.get("force") is True
        if server is not None and not adopted_in_pause:
            raise Refused(f"a postmaster or what it left still lives (pid {server.pid})")
        self._leave("asked to exit", peer, request.get("id"))

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
        print(f"guardian {os.getpid()} leaves: {why}", file=sys.stderr, flush=True)
        self._send(peer, {"id": answer_id, "ok": True})
        os._exit(0)


# --- parsing ------------------------------------------------------------------------------------------------


def _parse(raw: bytes, truncated: bool) -> Message:
    if truncated:
        raise BadMessage(f"message: longer than {MAX_MESSAGE_BYTES} bytes")
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadMessage("message: not JSON") from None
    if not isinstance(request, dict):
        raise BadMessage("message: not a JSON object")
    if request.get("v") != PROTOCOL:
        raise BadMessage(f"v: this guardian speaks {PROTOCOL}")
    return request


def _need(message: Message, key: str, kind: type) -> Any:
    value = message.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadMessage(f"{key}: must be {kind.__name__}")
    return value


def _epoch(message: Message) -> int:
    epoch: int = _need(message, "epoch", int)
    if epoch < 1:
        raise BadMessage("epoch: must be 1 or more")
    return epoch


def _seconds(message: Message, key: str) -> float:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadMessage(f"{key}: must be seconds on CLOCK_BOOTTIME")
    return float(value)


def _texts(message: Message, key: str) -> list[str]:
    value: list[str] = _need(message, key, list)
    if not value or not all(isinstance(text, str) and "\0" not in text for text in value):
        raise BadMessage(f"{key}: must be a list of texts")
    return value


def _environment(message: Message) -> dict[str, str]:
    value: dict[str, str] = _need(message, "env", dict)
    for name, text in value.items():
        if not name or "=" in name or not isinstance(text, str) or "\0" in name + text:
            raise BadMessage(f"env: {name[:40]!r} is not a variable")
    return value


# --- start --------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """`<state_dir> <data_dir> <ready_fd> <idle_exit_s>`: become the guardian, or say through `ready_fd` why not."""
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
    """Take the lock (one guardian per data directory), then the socket. BlockingIOError: another one has it."""
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
    listener.listen(MAX_PEERS)
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
    print(f"guardian {os.getpid()} watches {guardian.data_dir}, memory {locked}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
