"""The fence, and the end of a postmaster: what the guardian does by itself.

Theory. What has to happen later is a step with its time; the kernel's one timer is set to the earliest. When
`fence_at` passes: SIGINT at once, SIGQUIT to postmaster and backends after 40 % of the stop budget
(`hard_at - fence_at`), SIGKILL to all after 70 %, so that nothing is writable at `hard_at`.

Rules
- No file is opened here: a hung disk must not stop the fence. Disks are for forked children.
- The system is reached through the `Kernel` only, peers through `Peer`: a simulation drives this very code.
- "exited" means: the postmaster is gone and every process it left was killed and reaped to ECHILD (H9).
- Nothing waits for a peer: one that does not read is dropped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from haagent.guardian_kernel import ABOUT_TO_EXEC, Held, Kernel, Message, Peer
from haagent.guardian_lease import Lease
from haagent.guardian_server import Adopted, Postmaster
from haagent.guardian_watchdog import Watchdog

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


class Waiting:
    """A request whose answer comes later: a start, a promote."""

    def __init__(self, peer: Peer, request: Message, pid: int) -> None:
        self.peer = peer
        self.id = request.get("id")
        self.pid = pid
        self.epoch: int = request.get("epoch") or 0
        self.report = b""


class GuardianFence:
    """State and steps. All times are CLOCK_BOOTTIME seconds."""

    def __init__(
        self, kernel: Kernel, state_dir: str, data_dir: str, idle_exit_s: float = IDLE_EXIT_S
    ) -> None:
        self.kernel = kernel
        self.state_dir = state_dir
        self.data_dir = data_dir
        self.idle_exit_s = idle_exit_s
        self.memory_locked = False
        self.lease = Lease()
        self.server: Postmaster | None = None
        self.peers: list[Peer] = []
        self.controller: Peer | None = None
        self.instance: str | None = None
        self.generation = 0
        self.held: str | None = None
        self.last_exit: Message | None = None
        self.starting: Waiting | None = None
        self.promoting: Waiting | None = None
        self.steps: list[Step] = []
        self.fencing = False
        #: Children that belong to no postmaster.
        self.notes: set[int] = set()
        self.watchdog = Watchdog(kernel, self.lease, self.notes)
        self.idle_at: float | None = None
        self._consider_idle()
        self._set_timer()

    # --- time -------------------------------------------------------------------------------------

    def _run_due(self) -> None:
        """Do whatever the clock asks for: the fence first."""
        now = self.kernel.now()
        if not self.fencing and self.lease.due(now):
            self._begin_fence(now)
        while self.steps and self.steps[0][0] <= now:
            self.steps.pop(0)[1]()
        if self.idle_at is not None and self.idle_at <= now:
            self._leave("idle")

    def _set_timer(self) -> None:
        """Of the next thing to do. The watchdog follows what has become of the lease."""
        self.watchdog.look()
        times = [step[0] for step in self.steps]
        if not self.fencing and self.lease.fires_at is not None:
            times.append(self.lease.fires_at)
        if self.watchdog.next_at is not None and self.watchdog.child is None:
            times.append(self.watchdog.next_at)
        if self.idle_at is not None:
            times.append(self.idle_at)
        self.kernel.set_timer(min(times, default=None))

    def _at(self, when: float, step: Callable[[], None]) -> None:
        """Each step is scheduled once, at the earliest time asked for."""
        when = min([when, *(at for at, other in self.steps if other == step)])
        others = [entry for entry in self.steps if entry[1] != step]
        self.steps = sorted([*others, (when, step)], key=lambda entry: entry[0])

    # --- the fence --------------------------------------------------------------------------------

    def _begin_fence(self, now: float) -> None:
        """The deadline passed. Closes the epoch and stops the server, whatever its role is (H8).

        In a standby cluster one that was never let write stays: nothing promotes it under a closed epoch."""
        epoch, budget_s = self.lease.expire()
        if self._spares_the_server():
            self.lease.drop()
            self._consider_idle()
            self._tell({"event": "fencing", "epoch": epoch, "spared": True})
            return
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

    def _spares_the_server(self) -> bool:
        server = self.server
        reads_only = server is not None and not server.may_write and server.gone_at is None
        return self.lease.spares_standby and reads_only and self.promoting is None

    def _fence_quit(self) -> None:
        if self.server is not None:
            self.server.signal(signal.SIGQUIT)
            self.server.signal_children(signal.SIGQUIT)

    def _kill_all(self) -> None:
        """SIGKILL to postmaster and everything below it, again and again until it is gone."""
        if self.server is None:
            return
        self.server.kill_all(spare=self.notes)
        self._at(self.kernel.now() + RETRY_S, self._kill_all)

    def _fence_done(self) -> None:
        """Nothing is left to stop. A newer epoch that was armed meanwhile keeps its deadline."""
        self.fencing = False
        if self.lease.is_closed():
            self.lease.drop()
        self._consider_idle()

    # --- the end of a postmaster --------------------------------------------------------------------

    def _postmaster_gone(self, status: int | None) -> None:
        """An exit of its own leaves only the log collector; any other, backends that may write on."""
        server = self.server
        assert server is not None
        server.gone_at = self.kernel.now()
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
        now = self.kernel.now()
        left = server.leftovers(spare=self.notes)
        if not left:
            self._server_done(server)
            return
        if now >= server.spare_until:
            server.kill_all(spare=self.notes)
        if now >= server.gone_at + LEFTOVER_REPORT_S and not server.reported:
            server.reported = True
            self._tell(server.exit_event(left))
        self._at(max(now + RETRY_S, server.spare_until), self._sweep)

    def _server_done(self, server: Postmaster) -> None:
        self.server = None
        self.steps = []
        server.release()
        if self.fencing or self.lease.is_closed():
            self._fence_done()
        if self.starting is not None:
            self._start_refused(self.starting)
            return
        self.last_exit = {"pid": server.pid, "status": server.status, "fenced": server.fenced}
        self._tell(server.exit_event([]))
        self._consider_idle()
        if server.fenced:
            self._note(f"lease ended and was not renewed: PostgreSQL (pid {server.pid}) was stopped")

    def _start_refused(self, waiting: Waiting) -> None:
        """The child did not become postgres and is reaped: nothing of it is left."""
        self.starting = None
        reason = waiting.report.removeprefix(ABOUT_TO_EXEC).decode("utf-8", "replace")
        answer = {"ok": False, "refused": reason or "killed before it could start"}
        self._send(waiting.peer, {"id": waiting.id, **answer})
        self._consider_idle()

    def _victim_died(self, held: Held) -> None:
        """A process that we hold, and that is no child of ours, is dead."""
        server = self.server
        if isinstance(server, Adopted) and server.forget(held) and server.gone_at is None:
            self._postmaster_gone(None)
        self._sweep()
        self._set_timer()

    def _note(self, text: str) -> None:
        try:
            self.notes.add(self.kernel.fork_note(text))
        except OSError:
            pass  # the log is for people; nothing depends on it

    # --- peers --------------------------------------------------------------------------------------

    def _send(self, peer: Peer | None, message: Message) -> None:
        """Never waits: a peer that does not read is dropped and learns the state from its next hello."""
        if peer is not None:
            peer.send(message)
            if not peer.open:
                self._forget(peer)

    def _tell(self, event: Message) -> None:
        self._send(self.controller, event)

    def _drop(self, peer: Peer) -> None:
        peer.close()
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        if peer in self.peers:
            self.peers.remove(peer)
        if peer is self.controller:
            self.controller = None
            self._consider_idle()

    # --- leaving ----------------------------------------------------------------------------------------

    def _consider_idle(self) -> None:
        idle = self.server is None and self.controller is None and self.lease.epoch is None
        if idle and self.idle_at is None:
            self.idle_at = self.kernel.now() + self.idle_exit_s
        elif not idle:
            self.idle_at = None

    def _leave(self, why: str, peer: Peer | None = None, answer_id: object = None) -> None:
        """No server of ours lives here, so this may touch the disk."""
        self.kernel.leave(why, lambda: self._send(peer, {"id": answer_id, "ok": True}))
