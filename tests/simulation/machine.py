"""A host's hardware and kernel: processes and signals, its clock, freezing, power, and how long things take.

Theory. What happens on a host later happens through `later`: kept while the host is frozen, never after a
power cut. Processes are only what others can see of them: pid, parent, name, working directory, whether they
are stopped (SIGSTOP) or stuck (uninterruptible sleep: SIGKILL is pending, they do not run and are not gone).

Durations are drawn from the host's own stream. `knobs` bend them: `knobs[kind] = (times, delay_s, fail)`,
with `times` an int (the next so many) or a float (each with that probability).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.simulation.engine import Engine, HostClock, Timer

#: A signal takes this long at most, seconds.
SIGNAL_S = 0.001
TICKS_PER_S = 100

#: kind: (least, most, chance of a slow one, most then), seconds. Kinds not named here take no time.
DURATIONS: dict[str, tuple[float, float, float, float]] = {
    "exec": (0.001, 0.01, 0.0, 0.0),
    "start": (0.02, 0.3, 0.1, 3.0),
    "crash-recovery": (0.05, 0.8, 0.1, 6.0),
    "replay-local": (0.0, 0.2, 0.2, 3.0),
    "shutdown": (0.01, 0.2, 0.1, 4.0),
    "immediate": (0.001, 0.02, 0.0, 0.0),
    "promote": (0.01, 0.3, 0.1, 5.0),
    "checkpoint": (0.01, 0.3, 0.1, 5.0),
    "timed-checkpoint": (5.0, 60.0, 0.0, 0.0),
    "publish-sync": (0.0, 0.05, 0.2, 1.0),
    "orphans": (0.0, 0.1, 0.5, 5.0),
    "promote-file": (0.0005, 0.005, 0.0, 0.0),
    "note": (0.0005, 0.002, 0.0, 0.0),
    "guardian": (0.03, 0.1, 0.0, 0.0),
    "boot": (5.0, 40.0, 0.0, 0.0),
    "bootstrap": (0.3, 2.0, 0.0, 0.0),
    "clone": (0.2, 2.0, 0.2, 20.0),
    "method": (0.2, 2.0, 0.2, 20.0),
    "rewind": (0.1, 1.0, 0.2, 5.0),
}

Knob = tuple[int | float, float, bool]


class Proc:
    """One process. `on_signal` is told signals but SIGKILL, SIGSTOP, SIGCONT; `on_kill` that it is killed."""

    __slots__ = (
        "alive", "children", "comm", "cwd", "killed", "on_death", "on_kill", "on_signal", "on_stop", "parent",
        "pending", "pid", "start_ticks", "stopped", "stuck",
    )  # fmt: skip

    def __init__(self, pid: int, start_ticks: int, comm: str, cwd: str, parent: Proc | None) -> None:
        self.pid, self.start_ticks, self.comm, self.cwd, self.parent = pid, start_ticks, comm, cwd, parent
        self.alive, self.stopped, self.stuck, self.killed = True, False, False, False
        self.children: dict[int, Proc] = {}
        self.pending: list[int] = []
        self.on_signal: Callable[[int], None] | None = None
        self.on_kill: Callable[[], None] | None = None
        #: Told when it was stopped, or goes on.
        self.on_stop: Callable[[], None] | None = None
        #: Told once, with the exit code or minus the signal.
        self.on_death: list[Callable[[Proc, int], None]] = []


class Reaper(Protocol):
    """A process that takes the orphans below it, and is told of dead children."""

    proc: Proc

    def child_died(self, pid: int, status: int) -> None: ...


class Machine:
    """Times are true seconds unless they come from `clock`."""

    def __init__(self, engine: Engine, name: str, clock: HostClock) -> None:
        self.engine, self.name, self.clock = engine, name, clock
        self.rng = engine.rng(f"host:{name}")
        self.knobs: dict[str, Knob] = {}
        self.frozen = False
        self.powered = True
        #: Changes with every boot.
        self.boot = 1
        self.procs: dict[int, Proc] = {}
        self.reaper: Reaper | None = None
        self._last_pid = 100
        self._held: list[tuple[int, Callable[[], None]]] = []

    # --- time -------------------------------------------------------------------------------------

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """`call` on this host: at the thaw while it is frozen, never after a power cut."""
        return self.engine.after(delay_s, partial(self._run, self.boot, call))

    def _run(self, boot: int, call: Callable[[], None]) -> None:
        if boot != self.boot or not self.powered:
            return
        if self.frozen:
            self._held.append((boot, call))
        else:
            call()

    def release_held(self) -> None:
        held, self._held = self._held, []
        for boot, call in held:
            self.engine.after(0.0, partial(self._run, boot, call))

    def trouble(self, kind: str) -> tuple[float, bool]:
        """(extra seconds, fails) of this one, as the knobs have it."""
        knob = self.knobs.get(kind)
        if knob is None:
            return 0.0, False
        times, delay_s, fail = knob
        if isinstance(times, int):
            if times <= 1:
                del self.knobs[kind]
            else:
                self.knobs[kind] = (times - 1, delay_s, fail)
        elif self.rng.random() >= times:
            return 0.0, False
        return delay_s, fail

    def takes(self, kind: str) -> float:
        """How long this one takes without trouble, seconds."""
        entry = DURATIONS.get(kind)
        if entry is None:
            return 0.0
        least, most, slow_chance, slow_most = entry
        if slow_chance and self.rng.random() < slow_chance:
            least, most = most, slow_most
        return least + (most - least) * self.rng.random()

    # --- processes --------------------------------------------------------------------------------

    def new_pid(self) -> int:
        self._last_pid += 1
        return self._last_pid

    def spawn_proc(self, comm: str, cwd: str, parent: Proc | None) -> Proc:
        ticks = int((self.engine.now + self.boot * 1000.0) * TICKS_PER_S)
        proc = Proc(self.new_pid(), ticks, comm, cwd, parent)
        self.procs[proc.pid] = proc
        if parent is not None:
            parent.children[proc.pid] = proc
        return proc

    def end_proc(self, proc: Proc, status: int) -> None:
        """It is dead. Its children go to the reaper if they descend from that, else to init."""
        if not proc.alive:
            return
        proc.alive = False
        self.procs.pop(proc.pid, None)
        heir = self.reaper if self._below_reaper(proc) else None
        for child in proc.children.values():
            child.parent = heir.proc if heir is not None else None
            if heir is not None:
                heir.proc.children[child.pid] = child
        proc.children.clear()
        if proc.parent is not None:
            proc.parent.children.pop(proc.pid, None)
        if heir is not None and proc.parent is heir.proc:
            heir.child_died(proc.pid, status)
        for told in proc.on_death:
            told(proc, status)
        proc.on_death.clear()

    def _below_reaper(self, proc: Proc) -> bool:
        if self.reaper is None or not self.reaper.proc.alive:
            return False
        above = proc.parent
        while above is not None and above is not self.reaper.proc:
            above = above.parent
        return above is not None

    def kill(self, pid: int, signum: int) -> None:
        """As kill(2), a moment later. A pid nobody has is no fault."""
        proc = self.procs.get(pid)
        if proc is not None:
            self.later(self.rng.random() * SIGNAL_S, partial(self.signal_now, proc, signum))

    def signal_now(self, proc: Proc, signum: int) -> None:
        if not proc.alive or proc.killed:
            return
        if signum == signal.SIGKILL:
            proc.killed = True
            if proc.on_kill is not None:
                proc.on_kill()
            if not proc.stuck:
                self.end_proc(proc, -int(signal.SIGKILL))
        elif signum == signal.SIGSTOP:
            proc.stopped = True
            self._stop_changed(proc)
        elif signum == signal.SIGCONT:
            # As the kernel does it: what waits is delivered before one more instruction of its own runs.
            proc.stopped = False
            waiting, proc.pending = proc.pending, []
            for number in waiting:
                self.signal_now(proc, number)
            if proc.alive:
                self._stop_changed(proc)
        elif proc.stopped or proc.stuck:
            proc.pending.append(signum)
        elif proc.on_signal is not None:
            proc.on_signal(signum)
        else:
            self.end_proc(proc, -int(signum))

    def _stop_changed(self, proc: Proc) -> None:
        if proc.on_stop is not None:
            proc.on_stop()

    def stick(self, proc: Proc) -> None:
        """Uninterruptible sleep."""
        proc.stuck = True

    def unstick(self, proc: Proc) -> None:
        """It goes on, or is gone at last."""
        proc.stuck = False
        if proc.killed:
            self.end_proc(proc, -int(signal.SIGKILL))
        else:
            self.signal_now(proc, signal.SIGCONT)

    def processes_in(self, directory: str, comm: str | None = None) -> list[Proc]:
        """Living ones that work in `directory`, by pid."""
        return [p for p in self.procs.values() if p.cwd == directory and comm in (None, p.comm)]
