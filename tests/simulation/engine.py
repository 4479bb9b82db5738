"""The engine as others use it: `events.py`, the clock of a host, and `haagent.runtime.Runtime` for a process.

Theory. Locks are never contended, because nobody waits while holding one; the engine's list of held locks is
there to notice who does. Waiting takes a new token of the task; whoever wakes it gives the token back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import cast

from greenlet import GreenletExit, getcurrent

from postgres_ctl.api import Cancellation
from tests.simulation.events import (
    START_S,
    TIMER_SLACK_S,
    WALL_S,
    Crash,
    Engine,
    Livelock,
    LockHeld,
    Process,
    Task,
    Timer,
    current_process,
)

__all__ = [
    "START_S",
    "TIMER_SLACK_S",
    "WALL_S",
    "Crash",
    "Engine",
    "HostClock",
    "Livelock",
    "LockHeld",
    "Process",
    "SimCondition",
    "SimEvent",
    "SimLock",
    "SimRuntime",
    "SimThread",
    "Task",
    "Timer",
    "current_process",
]


class HostClock:
    """CLOCK_BOOTTIME of one host: `rate` seconds on it per true second, within 1 +- 0.004."""

    __slots__ = ("_engine", "offset_s", "rate", "true_s", "wall_skew_s")

    def __init__(self, engine: Engine, offset_s: float = 0.0, rate: float = 1.0) -> None:
        assert 0.996 <= rate <= 1.004, rate
        self._engine = engine
        self.offset_s = offset_s
        self.rate = rate
        #: True seconds per second of this clock.
        self.true_s = 1.0 / rate
        #: The clock on the wall stands so far beside the true time.
        self.wall_skew_s = 0.0

    def now(self) -> float:
        return self.offset_s + self._engine.now * self.rate

    def true(self, at: float) -> float:
        """The true time of `at` on this clock."""
        return (at - self.offset_s) * self.true_s


class _Guard:
    """What locks and conditions share: to be held by the running task, and to know where they were made."""

    __slots__ = ("_engine", "_held", "_made_at")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held = engine.held
        # Asked for through SimRuntime; named only when something is wrong.
        frame = sys._getframe(2)
        while frame.f_globals is globals() and frame.f_back is not None:
            frame = frame.f_back
        self._made_at = (frame.f_code, frame.f_lineno)

    def __str__(self) -> str:
        code, line = self._made_at
        return f"the lock of {code.co_qualname} line {line}"


class SimLock(_Guard):
    """As `threading.Lock`. Never contended, because nobody waits while holding one."""

    __slots__ = ()

    def __enter__(self) -> SimLock:
        if self in self._held:
            self._engine.refuse("taking it again")
        self._held.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop()


class SimCondition(_Guard):
    """As `threading.Condition` over an RLock; timeouts in seconds of the host's clock."""

    __slots__ = ("_clock", "_waiters")

    def __init__(self, engine: Engine, clock: HostClock) -> None:
        super().__init__(engine)
        self._clock = clock
        self._waiters: dict[Task, int] = {}

    def __enter__(self) -> SimCondition:
        self._held.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop()

    def wait(self, timeout: float | None = None) -> bool:
        engine, held, task = self._engine, self._held, getcurrent()
        if type(task) is not Task or len(held) != 1 or held[0] is not self:
            self._check_alone()
            raise AssertionError("unreachable")
        if not task.process.alive:
            raise GreenletExit
        task.token = token = task.token + 1
        task.value = None
        self._waiters[task] = token
        if timeout is not None:
            late = timeout * self._clock.true_s + TIMER_SLACK_S if timeout > 0.0 else 0.0
            engine.push(engine.now + late, task, token)
        held.pop()
        try:
            engine.hub.switch()
        except GreenletExit:
            self._waiters.pop(task, None)
            raise
        finally:
            held.append(self)
        if task.value is None:
            self._waiters.pop(task, None)
            return False
        return True

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        clock = self._clock
        end = None if timeout is None else clock.now() + timeout
        result = predicate()
        while not result:
            left = None if end is None else end - clock.now()
            if left is not None and left <= 0.0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify_all(self) -> None:
        if self not in self._held:
            raise RuntimeError(f"notify_all without {self}")
        if self._waiters:
            for task, token in self._waiters.items():
                task.resume(token)
            self._waiters.clear()

    def _check_alone(self) -> None:
        self._engine.running("wait on a condition")
        if self not in self._held:
            raise RuntimeError(f"wait without {self}")
        self._engine.refuse(f"wait on {self}")


class SimEvent:
    """As `threading.Event`, and as `postgres_ctl.api.Cancellation` without its file descriptor."""

    __slots__ = ("_clock", "_engine", "_set", "_waiters")

    def __init__(self, engine: Engine, clock: HostClock) -> None:
        self._engine = engine
        self._clock = clock
        self._set = False
        self._waiters: dict[Task, int] = {}

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        if not self._set:
            self._set = True
            for task, token in self._waiters.items():
                task.resume(token)
            self._waiters.clear()

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        engine = self._engine
        task = engine.running("wait for an event")
        self._waiters[task] = task.arm()
        until = None
        if timeout is not None:
            late = timeout * self._clock.true_s + TIMER_SLACK_S if timeout > 0.0 else 0.0
            until = engine.now + late
        if engine.suspend("wait for an event", until) is None:
            self._waiters.pop(task, None)
        return self._set


class SimThread:
    """As `threading.Thread`, of one process."""

    def __init__(self, process: Process, clock: HostClock, target: Callable[[], None], name: str) -> None:
        self._process, self._clock, self._target, self._name = process, clock, target, name
        self._task: Task | None = None

    def start(self) -> None:
        if self._task is not None:
            raise RuntimeError("threads can only be started once")
        self._task = self._process.spawn(self._target, self._name)

    def is_alive(self) -> bool:
        return self._task is not None and self._task in self._process.tasks

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if task is None:
            raise RuntimeError("cannot join a thread before it is started")
        if task not in self._process.tasks:
            return
        engine = self._process.engine
        me = engine.running("join")
        if me is task:
            raise RuntimeError("cannot join the current thread")
        task.joiners.append((me, me.arm()))
        until = None
        if timeout is not None:
            until = engine.now + max(0.0, timeout) * self._clock.true_s + TIMER_SLACK_S
        engine.suspend(f"join of {task.name}", until)


class SimRuntime:
    """`haagent.runtime.Runtime` of one process on a host with that clock."""

    def __init__(self, process: Process, clock: HostClock, boot: str = "boot") -> None:
        self.process = process
        self.clock = clock
        self._boot = boot
        #: As in the port: seconds on CLOCK_BOOTTIME of this host.
        self.now = clock.now

    def wall(self) -> float:
        return WALL_S + self.process.engine.now + self.clock.wall_skew_s

    def boot_id(self) -> str:
        return self._boot

    def lock(self) -> SimLock:
        return SimLock(self.process.engine)

    def condition(self) -> SimCondition:
        return SimCondition(self.process.engine, self.clock)

    def event(self) -> SimEvent:
        return SimEvent(self.process.engine, self.clock)

    def cancellation(self) -> Cancellation:
        return cast(Cancellation, SimEvent(self.process.engine, self.clock))

    def thread(self, target: Callable[[], None], name: str) -> SimThread:
        return SimThread(self.process, self.clock, target, name)
