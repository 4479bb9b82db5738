"""The guardian's logic: the requests, and where the outside comes in.

Theory. Every public method is an entry point: something happened outside, it is dealt with, and on return the
kernel's timer is that of the next thing to do. An acknowledged deadline is one the kernel holds already. What
is due comes before a message, so that nothing queued behind a deadline overtakes it. The process
(guardian_loop) and a simulation call the same entry points; there is no clock, socket or process here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

from haagent.guardian_fence import IDLE_EXIT_S, GuardianFence, Waiting
from haagent.guardian_kernel import ABOUT_TO_EXEC, Kernel, Message, Peer, StartOrder
from haagent.guardian_lease import Refused
from haagent.guardian_server import Adopted, Owned
from haagent.guardian_watchdog import LEAST_S
from haagent.guardian_wire import (
    POSTGRES_LOG_NAME,
    PROTOCOL,
    BadMessage,
    environment_in,
    epoch_in,
    need,
    seconds_in,
    texts_in,
)

#: Connections beside the controller's: people looking at `status`.
MAX_PEERS = 8
#: The agent's blob (lease handle, session secrets) is small; this keeps the guardian so.
MAX_HELD_BYTES = 32 * 1024
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def _device_in(request: Message) -> tuple[str, bool]:
    """Path of a watchdog device, and whether it is a FIFO for tests. Raises BadMessage."""
    device = need(request, "device", str)
    if not device.startswith("/") or "\0" in device:
        raise BadMessage("device: must be an absolute path")
    return device, need(request, "testing", bool)


class GuardianLogic(GuardianFence):
    """The guardian of one data directory. Readable at any time: `lease`, `server`, `fencing`, `state()`."""

    def __init__(
        self, kernel: Kernel, state_dir: str, data_dir: str, idle_exit_s: float = IDLE_EXIT_S
    ) -> None:
        super().__init__(kernel, state_dir, data_dir, idle_exit_s)
        self.handlers: dict[str, Callable[[Peer, Message], Message | None]] = {
            "hello": self._hello, "status": self._status, "arm": self._arm, "disarm": self._disarm,
            "close": self._close, "hold": self._hold, "start": self._start, "promote": self._promote,
            "stop": self._stop, "adopt": self._adopt, "exit": self._exit, "watch": self._watch,
            "unwatch": self._unwatch,
        }  # fmt: skip

    # --- entry points -----------------------------------------------------------------------------

    def due(self) -> None:
        """The timer fired."""
        self._run_due()
        self._set_timer()

    def signalled(self) -> None:
        """Children of ours died (SIGCHLD), one or many."""
        while (dead := self.kernel.reap()) is not None:
            self._reaped(*dead)
        if self.server is not None and self.server.gone_at is not None:
            self._sweep()
        self._set_timer()

    def terminate(self) -> None:
        """Asked to end (SIGTERM); heard only while no postmaster lives."""
        if self.server is None:
            self._leave_watched("SIGTERM")
            self._set_timer()

    def give_up(self) -> None:
        """A fault of our own is about to end this process: take the postmaster and its backends with it."""
        if not self.lease.disarmed:
            self._kill_all()

    def connected(self, peer: Peer) -> None:
        """Somebody came; one who never says hello gives way to later ones."""
        strangers = [other for other in self.peers if other is not self.controller]
        if len(strangers) >= MAX_PEERS:
            self._drop(strangers[0])
        self.peers.append(peer)
        self._set_timer()

    def disconnected(self, peer: Peer) -> None:
        """The other side hung up."""
        self._drop(peer)
        self._set_timer()

    def request(self, peer: Peer, message: Message) -> None:
        """A message of the protocol came; its answer is sent now, or later for `start` and `promote`."""
        self._run_due()  # what came too late must not overtake the deadline
        try:
            answer = self._handle(peer, message)
        except Refused as refusal:
            answer = {"ok": False, "refused": str(refusal)}
        except BadMessage as fault:
            answer = {"ok": False, "error": str(fault)}
        except Exception as fault:  # a bug in a handler must not cost the server its guardian
            answer = {"ok": False, "error": f"internal: {type(fault).__name__}: {fault}"}
        if answer is not None:
            self._send(peer, {"id": message.get("id"), **answer})
        self._set_timer()

    def garbage(self, peer: Peer, why: str) -> None:
        """Something came that is not of the protocol."""
        self._send(peer, {"id": None, "ok": False, "error": why})
        self._set_timer()

    def state(self) -> Message:
        """As in the answers to `hello` and `status`."""
        server = self.server
        gone = server is not None and server.gone_at is not None
        return {
            "guardian": self.kernel.pid,
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
            "watchdog": self.watchdog.describe(),
            "memory_locked": self.memory_locked,
        }

    # --- requests -----------------------------------------------------------------------------------

    def _handle(self, peer: Peer, request: Message) -> Message | None:
        """The answer, or None when it comes later. Raises BadMessage, Refused."""
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
        return self.state()

    def _status(self, peer: Peer, request: Message) -> Message:
        return self.state()

    def _arm(self, peer: Peer, request: Message) -> Message:
        handle = need(request, "handle", dict)
        session, epoch = need(handle, "session", str), epoch_in(handle)
        fence_at, hard_at = seconds_in(request, "fence_at"), seconds_in(request, "hard_at")
        if hard_at < fence_at:
            raise BadMessage("hard_at: lies before fence_at")
        spares = need({"spares_standby": False, **request}, "spares_standby", bool)
        self.lease.arm(session, epoch, fence_at, hard_at, self.kernel.now(), spares)
        if self.server is not None:
            self.server.come_under(epoch)
        self.watchdog.proven()
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
        order = StartOrder(
            argv=texts_in(request, "argv"),
            env=environment_in(request),
            cwd=need(request, "cwd", str),
            log=request.get("log") or f"{self.state_dir}/{POSTGRES_LOG_NAME}",
            data_dir=self.data_dir,
            writable=writable,
            fence_at=self.lease.check_open(epoch_in(request), self.kernel.now()) if writable else None,
        )
        if not isinstance(order.log, str):
            raise BadMessage("log: must be a path")
        if self.server is not None:
            raise Refused(f"a postmaster or what it left still lives (pid {self.server.pid})")
        if self.promoting is not None or self.fencing:
            raise Refused("an earlier promotion or fence has not ended yet")
        try:
            pid = self.kernel.fork_postmaster(order, self._start_report)
        except OSError as fault:
            raise Refused(f"cannot fork: {fault.strerror}") from None
        self.server = Owned(self.kernel, pid, request["epoch"] if writable else None)
        self.starting = Waiting(peer, request, pid)
        self.idle_at = None

    def _start_report(self, chunk: bytes) -> None:
        """At its end the child has become postgres, or is dead and will be reaped."""
        server, waiting = self.server, self.starting
        if server is None or waiting is None:
            return
        waiting.report += chunk
        if not chunk and waiting.report == ABOUT_TO_EXEC:
            self.starting = None
            answer = {"ok": True, "pid": server.pid, "start_ticks": server.start_ticks}
            self._send(waiting.peer, {"id": waiting.id, **answer})
            self._set_timer()

    def _promote(self, peer: Peer, request: Message) -> None:
        epoch = epoch_in(request)
        server = self.server
        if server is None or server.gone_at is not None or self.starting is not None:
            raise Refused("no postmaster runs")
        if server.may_write and not server.adopted:  # an adopted one only counts as writable, to be safe
            raise Refused(f"already writable under epoch {server.writable_epoch}")
        if self.promoting is not None:
            raise Refused("a promotion is under way")
        self.lease.check_open(epoch, self.kernel.now())
        # From here any signal of a backend may make the postmaster find the file: count it as writable.
        server.writable_epoch = epoch
        try:
            pid = self.kernel.fork_promote_file(self.data_dir)
        except OSError as fault:
            server.writable_epoch = server.writable_epoch if server.adopted else None
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
                server.writable_epoch = server.writable_epoch if server.adopted else None
                raise Refused(f"{self.data_dir}/promote: {os.strerror(status) if status > 0 else 'killed'}")
            self.lease.check_open(waiting.epoch, self.kernel.now())
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
        held = self.kernel.hold(pid, self._victim_died)
        if held is None:
            raise Refused(f"no process {pid} with this start time")
        if held.start_ticks != start_ticks or held.cwd != self.data_dir:
            held.release()
            if held.start_ticks != start_ticks:
                raise Refused(f"no process {pid} with this start time")
            raise Refused(f"process {pid} works in {held.cwd}, not in {self.data_dir}")
        self.server = Adopted(self.kernel, held, self.data_dir, writable, self._victim_died)
        if self.lease.epoch is not None:
            self.server.come_under(self.lease.epoch)
        self.idle_at = None
        return {}

    def _exit(self, peer: Peer, request: Message) -> None:
        server = self.server
        hands_off = self.lease.disarmed and request.get("force") is True
        if server is not None and not (hands_off and isinstance(server, Adopted)):
            raise Refused(f"a postmaster or what it left still lives (pid {server.pid})")
        self._leave_watched("asked to exit", peer, request.get("id"))

    # --- the watchdog -------------------------------------------------------------------------------

    def _watch(self, peer: Peer, request: Message) -> None:
        """Before a server becomes writable under this epoch, and again when the timeout is another one."""
        self.lease.check_open(epoch_in(request), self.kernel.now())
        timeout_s = need(request, "timeout_s", int)
        if timeout_s < LEAST_S:
            raise BadMessage(f"timeout_s: must be {LEAST_S} or more")
        self.watchdog.watch(*_device_in(request), timeout_s, partial(self._watchdog_done, peer, request))

    def _unwatch(self, peer: Peer, request: Message) -> None:
        self.watchdog.switch_off(*_device_in(request), partial(self._watchdog_done, peer, request))

    def _watchdog_done(self, peer: Peer, request: Message, problem: str | None) -> None:
        self._send(peer, {"id": request.get("id"), "ok": problem is None, "refused": problem})

    def _leave_watched(self, why: str, peer: Peer | None = None, answer_id: object = None) -> None:
        """Nothing runs here: a watchdog that is on is switched off first."""
        self.watchdog.when_off(partial(self._leave, why, peer, answer_id))

    # --- the end of children ------------------------------------------------------------------------

    def _reaped(self, pid: int, status: int) -> None:
        self.notes.discard(pid)
        if self.promoting is not None and self.promoting.pid == pid:
            self._promote_file_written(status)
        elif isinstance(self.server, Owned) and self.server.pid == pid and self.server.gone_at is None:
            self._postmaster_gone(status)
        self._consider_idle()
