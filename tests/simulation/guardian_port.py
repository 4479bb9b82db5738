"""The guardian's real logic on a simulated kernel, and the agent's way to it.

Theory. `GuardianLogic` is production's. `SimKernel` gives it time, children and signals of a `SimHost`; a
link is a peer on one side and `haagent.ports.GuardianLink` on the other, without bytes between them. What is
sent to a frozen guardian lies in its socket and is dealt with at the thaw, even if its asker gave up since.
Events reach the agent as tasks of its process.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from haagent import guardian_types as types
from haagent.guardian_client import GuardianSilent, GuardianUnavailable
from haagent.guardian_kernel import ABOUT_TO_EXEC, Held, Message, StartOrder, WatchdogOrder
from haagent.guardian_logic import GuardianLogic
from haagent.guardian_types import event_from, state_from
from tests.simulation.engine import TIMER_SLACK_S, Process, Task, Timer
from tests.simulation.machine import Proc

if TYPE_CHECKING:
    from tests.simulation.host import SimHost

CONNECT_S = 5.0
#: `fence_directly`: SIGQUIT, after the first SIGKILL again and again until the second, seconds.
GRACE_S, FENCE_S, KILL_RETRY_S = 0.2, 2.0, 0.1


class _Left(BaseException):
    """The guardian has ended itself: nothing of its logic may run on."""


class SimHeld:
    """A process held by the guardian that is no child of it."""

    def __init__(self, kernel: SimKernel, proc: Proc, on_death: Callable[[Held], None]) -> None:
        self._kernel, self._proc = kernel, proc
        self._on_death: Callable[[Held], None] | None = on_death
        self.pid, self.start_ticks, self.comm = proc.pid, proc.start_ticks, proc.comm
        self.cwd: str | None = proc.cwd
        proc.on_death.append(self._died)

    def signal(self, signum: int) -> None:
        if self._proc.alive:
            self._kernel.host.kill(self.pid, signum)

    def release(self) -> None:
        self._on_death = None

    def _died(self, proc: Proc, status: int) -> None:
        self._kernel.guardian.call(self._tell)

    def _tell(self) -> None:
        told, self._on_death = self._on_death, None
        if told is not None:
            told(self)


class SimKernel:
    """`haagent.guardian_kernel.Kernel` of one guardian process."""

    def __init__(self, guardian: GuardianProcess) -> None:
        self.guardian, self.host = guardian, guardian.host
        self.pid = guardian.proc.pid
        self.now = self.host.clock.now
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        #: Dead children that are not reaped yet: pid and status.
        self.dead: list[tuple[int, int]] = []
        self._reports: dict[int, Callable[[bytes], None]] = {}
        #: Of the child that works on the device: pid, what went wrong, whom to tell.
        self._watchdog_ended: tuple[int, str, Callable[[int, str], None]] | None = None

    # --- time

    def set_timer(self, at_s: float | None) -> None:
        if at_s == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at, self._timer = at_s, None
        if at_s is not None:
            when = self.host.clock.true(at_s) + TIMER_SLACK_S
            self._timer = self.guardian.process.at(when, self._fired)

    def _fired(self) -> None:
        self._timer_at = self._timer = None
        self.guardian.run(self.guardian.logic.due)

    # --- children

    def fork_postmaster(self, order: StartOrder, on_report: Callable[[bytes], None]) -> int:
        delay_s, fail = self.host.trouble("guardian.start")
        proc = self.host.spawn_proc("python3", "/", self.guardian.proc)
        self._reports[proc.pid] = on_report
        delay_s += self.host.takes("exec")
        self.host.later(delay_s, partial(self._exec, proc, order, fail))
        return proc.pid

    def _exec(self, proc: Proc, order: StartOrder, fail: bool) -> None:
        """In the child: the last looks of guardian_child, then postgres."""
        if not proc.alive:
            return
        reason = "postgres: No such file or directory" if fail else self._unfit(order)
        if reason is not None:
            self._report(proc.pid, reason.encode())
            self.host.end_proc(proc, 1)
            return
        self._report(proc.pid, ABOUT_TO_EXEC)
        proc.comm, proc.cwd = "postgres", order.cwd
        self.host.begin_server(proc)
        self._report(proc.pid, b"")

    def _unfit(self, order: StartOrder) -> str | None:
        standby = self.host.dd.standby_signal
        if order.writable and standby:
            return "writable start, but standby.signal is in the data directory"
        if not order.writable and not standby:
            return "standby start, but neither standby.signal nor recovery.signal is in the data directory"
        others = self.host.processes_in(order.data_dir, "postgres")
        if others:
            return f"process {others[0].pid} still runs in the data directory"
        if order.fence_at is not None and self.now() >= order.fence_at:
            return "the lease ended before the server could start"
        return None

    def _report(self, pid: int, chunk: bytes) -> None:
        told = self._reports.get(pid) if chunk else self._reports.pop(pid, None)
        if told is not None:
            self.guardian.call(partial(told, chunk))

    def fork_promote_file(self, data_dir: str) -> int:
        delay_s, fail = self.host.trouble("guardian.promote-file")
        proc = self.host.spawn_proc("haagent-guard", "/", self.guardian.proc)
        delay_s += self.host.takes("promote-file")
        self.host.later(delay_s, partial(self._write_promote_file, proc, fail))
        return proc.pid

    def _write_promote_file(self, proc: Proc, fail: bool) -> None:
        if proc.alive:
            self.host.dd.promote_file = self.host.dd.promote_file or not fail
            self.host.end_proc(proc, errno.ENOSPC if fail else 0)

    def fork_note(self, text: str) -> int:
        proc = self.host.spawn_proc("haagent-guard", "/", self.guardian.proc)
        self.host.log(text)
        self.host.later(self.host.takes("note"), partial(self.host.end_proc, proc, 0))
        return proc.pid

    def fork_watchdog(self, order: WatchdogOrder, on_end: Callable[[int, str], None]) -> int:
        delay_s, fail = self.host.trouble("guardian.watchdog")
        proc = self.host.spawn_proc("haagent-guard", "/", self.guardian.proc)
        self._watchdog_ended = proc.pid, "killed", on_end
        delay_s += self.host.takes("note")
        self.host.later(delay_s, partial(self._work_on_watchdog, proc, order, fail))
        return proc.pid

    def _work_on_watchdog(self, proc: Proc, order: WatchdogOrder, fail: bool) -> None:
        """In the child, with the last look of guardian_child."""
        assert self._watchdog_ended is not None
        pid, _, on_end = self._watchdog_ended
        if not proc.alive or self.host.watchdog is None:
            return
        late = order.timeout_s > 0 and self.now() >= order.before
        problem = "the lease ended" if late else "Input/output error" if fail else ""
        if not problem and order.timeout_s:
            self.host.watchdog.keep_alive(order.timeout_s)
        elif not problem:
            self.host.watchdog.switch_off()
        self._watchdog_ended = pid, problem, on_end
        self.host.end_proc(proc, 0)

    def reap(self) -> tuple[int, int] | None:
        if not self.dead:
            return None
        pid, status = self.dead.pop(0)
        watchdog = self._watchdog_ended
        if watchdog is not None and watchdog[0] == pid:
            self._watchdog_ended = None
            watchdog[2](pid, watchdog[1])
        told = self._reports.pop(pid, None)
        if told is not None:
            told(b"")
        return pid, status

    def has_children(self) -> bool:
        return bool(self.dead or self.guardian.proc.children)

    def kill(self, pid: int, signum: int) -> None:
        self.host.kill(pid, signum)

    # --- processes

    def start_ticks(self, pid: int) -> int:
        proc = self.host.procs.get(pid)
        return proc.start_ticks if proc is not None else 0

    def is_stopped(self, pid: int) -> bool:
        proc = self.host.procs.get(pid)
        return proc is not None and proc.stopped

    def children_of(self, pid: int) -> list[int]:
        proc = self.host.procs.get(pid)
        below = list(proc.children) if proc is not None else []
        return below + [dead for dead, _ in self.dead] if pid == self.pid else below

    def signal_children(self, pid: int, signum: int) -> None:
        for child in self.children_of(pid):
            self.host.kill(child, signum)

    def processes_in(self, directory: str, comm: str) -> list[int]:
        return [proc.pid for proc in self.host.processes_in(directory, comm)]

    def hold(self, pid: int, on_death: Callable[[Held], None]) -> Held | None:
        proc = self.host.procs.get(pid)
        return SimHeld(self, proc, on_death) if proc is not None else None

    def leave(self, why: str, farewell: Callable[[], None]) -> NoReturn:
        farewell()
        self.guardian.die()
        raise _Left(why)


class GuardianProcess:
    """A guardian on its host. It is the subreaper of what it started."""

    def __init__(self, host: SimHost, state_dir: str) -> None:
        self.host = host
        self.proc = host.spawn_proc("haagent-guard", "/", None)
        self.process = Process(host.engine, f"guardian:{host.name}")
        self.links: list[SimGuardianLink] = []
        self.stopped = self.stuck = False
        host.reaper = self
        host.guardian = self
        self.kernel = SimKernel(self)
        self.logic = GuardianLogic(self.kernel, state_dir, host.dd.path)

    # --- calls into the logic

    def run(self, call: Callable[[], None]) -> None:
        """Now, in its own turn or from a link."""
        if self.process.alive:
            try:
                call()
            except _Left:
                pass

    def call(self, call: Callable[[], None]) -> None:
        """As an event of its own loop: at the thaw while it is frozen."""
        self.process.at(self.host.engine.now, partial(self.run, call))

    def submit(self, call: Callable[[], None]) -> None:
        """A message on a socket: dealt with at once while the guardian runs."""
        if self.process.runs:
            self.run(call)
        else:
            self.call(call)

    def status_key(self) -> tuple[object, ...] | None:
        """Equal while `state` would say the same; None when it has to be asked."""
        logic = self.logic
        server, lease = logic.server, logic.lease
        if not self.process.runs or (server is not None and server.gone_at is not None):
            return None
        return (
            server, server is not None and server.writable_epoch, logic.starting, logic.fencing,
            lease.session, lease.epoch, lease.fence_at, lease.hard_at, lease.closed_epoch, lease.disarmed,
            logic.generation, logic.held, logic.last_exit is None or logic.last_exit["pid"],
            logic.watchdog.is_open, logic.watchdog.timeout_s, logic.watchdog.fault,
        )  # fmt: skip

    def child_died(self, pid: int, status: int) -> None:
        self.kernel.dead.append((pid, status))
        self.call(self._signalled)

    def _signalled(self) -> None:
        self.logic.signalled()

    # --- its fate

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        if not self.stopped and self.process.frozen:
            self.process.thaw()

    def stop(self, stuck: bool = False) -> None:
        """SIGSTOP."""
        self.stopped, self.stuck = True, stuck
        self.process.freeze()

    def resume(self) -> None:
        """SIGCONT."""
        self.stopped = self.stuck = False
        if not self.host.frozen:
            self.thaw()

    def wake(self) -> None:
        """SIGCONT from an agent that gets no answer."""
        if self.stopped and not self.stuck:
            self.resume()

    def die(self, power: bool = False) -> None:
        """Parent-death signals: SIGQUIT to its own postmaster, SIGKILL to its other children."""
        if not self.process.alive:
            return
        self.process.kill()
        host = self.host
        children = [] if power else list(self.proc.children.values())
        for child in children:
            number = signal.SIGQUIT if child.comm in ("postgres", "python3") else signal.SIGKILL
            host.later(0.0, partial(host.signal_now, child, int(number)))
        host.reaper = None
        host.end_proc(self.proc, -9)
        if host.guardian is self:
            host.guardian = None
        links, self.links = self.links, []
        for link in links:
            link.ended()

    def agent_died(self, process: Process) -> None:
        """The kernel closes that agent's connections."""
        for link in [link for link in self.links if link.process is process]:
            link.hang_up()


# --- the agent's side -------------------------------------------------------------------------------


class SimPeer:
    """The guardian's end of a connection."""

    def __init__(self, link: SimGuardianLink) -> None:
        self.open = True
        self._link = link

    def send(self, message: Message) -> None:
        if self.open:
            self._link.took(message)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._link.ended()


class SimGuardianLink:
    """`haagent.ports.GuardianLink`. Without an answer the guardian gets a SIGCONT, as from the real one."""

    def __init__(
        self, guardian: GuardianProcess, process: Process, on_event: Callable[[types.GuardianEvent], None]
    ) -> None:
        self.guardian, self.process = guardian, process
        self.peer = SimPeer(self)
        self.hello: types.GuardianState
        self._on_event = on_event
        self._lost: str | None = None
        self._closing = False
        self._cause = "the guardian closed the connection"
        self._last_id = 0
        self._answers: dict[int, Message | None] = {}
        self._waiting: dict[int, tuple[Task, int]] = {}
        self._status_key: tuple[object, ...] | None = None
        self._status: types.GuardianState | None = None
        guardian.links.append(self)
        guardian.submit(partial(guardian.logic.connected, self.peer))

    # --- from the guardian

    def took(self, message: Message) -> None:
        if "event" in message:
            if message["event"] == "replaced":
                self._cause = f"another agent took over ({message.get('by')})"
            else:
                self._deliver(event_from(message))
            return
        request_id = message["id"]
        if request_id in self._answers:  # else its asker has given up
            self._answers[request_id] = message
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None:
                waiting[0].resume(waiting[1])

    def ended(self) -> None:
        """The connection is gone, from the guardian's side."""
        if self._lost is not None:
            return
        self._disconnect()
        if not self._closing:
            self._deliver(types.GuardianLost(self._cause))

    def _disconnect(self) -> None:
        self._lost = self._cause
        self.peer.open = False
        if self in self.guardian.links:
            self.guardian.links.remove(self)
        waiting, self._waiting = list(self._waiting.values()), {}
        for task, token in waiting:
            task.resume(token)

    def _deliver(self, event: types.GuardianEvent | None) -> None:
        if event is not None:
            self.process.spawn(partial(self._on_event, event), "guardian-link")

    # --- to the guardian

    def close(self) -> None:
        self._closing = True
        self.hang_up()

    def hang_up(self) -> None:
        """The agent's end is closed, by itself or by its death."""
        if self._lost is None:
            self._closing = True
            self._disconnect()
            self.guardian.submit(partial(self.guardian.logic.disconnected, self.peer))

    def ask(self, op: str, deadline_s: float, **fields: object) -> Message | types.Refused | types.NoAnswer:
        kind = f"guardian.{op}"
        self.process.boundary(kind, "before")
        answer = self._ask(kind, op, deadline_s, fields)
        self.process.boundary(kind, "after")
        return answer

    def _ask(
        self, kind: str, op: str, deadline_s: float, fields: dict[str, object]
    ) -> Message | types.Refused | types.NoAnswer:
        if self._lost is not None:
            return types.NoAnswer(self._lost)
        host = self.guardian.host
        delay_s, fail = host.trouble(kind) if kind in host.knobs else (0.0, False)
        self._last_id += 1
        request_id = self._last_id
        self._answers[request_id] = None
        request = {"id": request_id, "op": op, **fields}
        submit = partial(self.guardian.logic.request, self.peer, request)
        if delay_s:
            self.process.engine.after(delay_s, partial(self.guardian.submit, submit))
        else:
            self.guardian.submit(submit)
        if fail or self._answers[request_id] is None:
            self._wait(kind, request_id, deadline_s)
        answer = self._answers.pop(request_id)
        if answer is None or fail:
            self.guardian.wake()
            return types.NoAnswer(self._lost or f"no answer to {op} within {deadline_s:g} s")
        if answer.get("ok") is True:
            return answer
        return types.Refused(str(answer.get("refused") or f"guardian: {answer.get('error')}"))

    def _wait(self, kind: str, request_id: int, deadline_s: float) -> None:
        engine = self.process.engine
        task = engine.running(kind)
        token = task.arm()
        if self._lost is None:
            self._waiting[request_id] = (task, token)
            engine.suspend(kind, engine.now + deadline_s * self.guardian.host.clock.true_s)
            self._waiting.pop(request_id, None)

    def watch(
        self, epoch: int, device: str, testing: bool, timeout_s: int, deadline_s: float
    ) -> types.Simple:
        fields: dict[str, object] = {"epoch": epoch, "device": device, "testing": testing}
        return self._simple("watch", deadline_s, timeout_s=timeout_s, **fields)

    def unwatch(self, device: str, testing: bool, deadline_s: float) -> types.Simple:
        return self._simple("unwatch", deadline_s, device=device, testing=testing)

    def _simple(self, op: str, deadline_s: float, **fields: object) -> types.Simple:
        answer = self.ask(op, deadline_s, **fields)
        return answer if isinstance(answer, types.Refused | types.NoAnswer) else types.Done()

    def arm(
        self,
        handle: types.Handle,
        fence_at: float,
        hard_at: float,
        deadline_s: float,
        spares_standby: bool = False,
    ) -> types.Armed | types.ArmRefused | types.NoAnswer:
        named = {"session": handle[0], "epoch": handle[1]}
        answer = self.ask(
            "arm",
            deadline_s,
            handle=named,
            fence_at=fence_at,
            hard_at=hard_at,
            spares_standby=spares_standby,
        )
        if isinstance(answer, types.NoAnswer):
            return answer
        if isinstance(answer, types.Refused):
            return types.ArmRefused(answer.reason)
        return types.Armed(answer["fence_at"], answer["hard_at"])

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        writable: bool,
        epoch: int | None,
        deadline_s: float,
        log: str | None = None,
    ) -> types.Started | types.StartRefused | types.NoAnswer:
        answer = self.ask(
            "start", deadline_s,
            argv=list(argv), env=dict(env), cwd=cwd, log=log, writable=writable, epoch=epoch,
        )  # fmt: skip
        if isinstance(answer, types.NoAnswer):
            return answer
        if isinstance(answer, types.Refused):
            return types.StartRefused(answer.reason)
        return types.Started(answer["pid"], answer["start_ticks"])

    def promote(self, epoch: int, deadline_s: float) -> types.Simple:
        return self._simple("promote", deadline_s, epoch=epoch)

    def stop(self, mode: str, deadline_s: float) -> types.Simple:
        return self._simple("stop", deadline_s, mode=mode)

    def close_epoch(self, epoch: int, deadline_s: float) -> types.Simple:
        return self._simple("close", deadline_s, epoch=epoch)

    def disarm(self, deadline_s: float) -> types.Simple:
        return self._simple("disarm", deadline_s)

    def adopt(self, pid: int, start_ticks: int, deadline_s: float, writable: bool = True) -> types.Simple:
        return self._simple("adopt", deadline_s, pid=pid, start_ticks=start_ticks, writable=writable)

    def exit(self, deadline_s: float, force: bool = False) -> types.Simple:
        self._closing = True
        answer = self._simple("exit", deadline_s, force=force)
        self._closing = isinstance(answer, types.Done)
        return answer

    def status(self, deadline_s: float) -> types.GuardianState | types.Refused | types.NoAnswer:
        """Asked several times in every step: while nothing changed, the same object."""
        key = self.guardian.status_key() if self._lost is None else None
        if key is not None and key == self._status_key and self._status is not None:
            self.process.boundary("guardian.status", "before")
            return self._status
        answer = self.ask("status", deadline_s)
        if isinstance(answer, types.Refused | types.NoAnswer):
            return answer
        # Whoever was frozen on the way holds an answer of before: kept only if nothing has changed since.
        unchanged = key is not None and key == self.guardian.status_key()
        self._status_key, self._status = (key if unchanged else None), state_from(answer)
        return self._status


class SimGuardianPort:
    """`haagent.ports.GuardianPort` of one agent process."""

    def __init__(self, host: SimHost, process: Process) -> None:
        self.host, self.process = host, process

    def connect(
        self, state_dir: str, data_dir: str, on_event: Callable[[types.GuardianEvent], None]
    ) -> SimGuardianLink:
        self.process.boundary("guardian.connect", "before")
        end = self.host.engine.now + CONNECT_S
        while True:
            guardian = self.host.guardian or self._spawn(state_dir)
            link = SimGuardianLink(guardian, self.process, on_event)
            hello = self._greet(link)
            if hello is not None:
                link.hello = hello
                self.process.boundary("guardian.connect", "after")
                return link
            link.close()
            if guardian.process.alive or self.host.engine.now >= end:
                raise GuardianSilent(f"the guardian (pid {guardian.proc.pid}) does not answer")

    def _spawn(self, state_dir: str) -> GuardianProcess:
        delay_s, fail = self.host.trouble("guardian.spawn")
        self.process.sleep(self.host.takes("guardian") + delay_s)
        if fail:
            raise GuardianUnavailable("the guardian did not start: Resource temporarily unavailable")
        # Another one may have been faster: the lock is its.
        return self.host.guardian or GuardianProcess(self.host, state_dir)

    def _greet(self, link: SimGuardianLink) -> types.GuardianState | None:
        """Twice, with the SIGCONT in between."""
        for _ in range(2):
            answer = link.ask("hello", CONNECT_S / 2, instance=f"{self.process.name}")
            if not isinstance(answer, types.Refused | types.NoAnswer):
                return state_from(answer)
        return None

    def device_problem(self, device: str, testing: bool) -> str | None:
        return None

    def fence_directly(self, postmaster_pid: int, data_dir: str) -> list[int]:
        host, process = self.host, self.process
        process.boundary("guardian.fence-directly", "before")
        end = host.engine.now + FENCE_S
        self._signal_all(data_dir, signal.SIGQUIT)
        process.sleep(GRACE_S)
        while host.processes_in(data_dir, "postgres") and host.engine.now < end:
            if any(p.pid == postmaster_pid for p in host.processes_in(data_dir, "postgres")):
                host.kill(postmaster_pid, signal.SIGSTOP)
            self._signal_all(data_dir, signal.SIGKILL)
            process.sleep(KILL_RETRY_S)
        process.boundary("guardian.fence-directly", "after")
        return [p.pid for p in host.processes_in(data_dir, "postgres")]

    def _signal_all(self, data_dir: str, signum: int) -> None:
        for proc in self.host.processes_in(data_dir, "postgres"):
            self.host.kill(proc.pid, signum)
