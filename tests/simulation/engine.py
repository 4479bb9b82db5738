"""True time, and who runs when: everything of a schedule happens here, one event at a time.

Theory. A thread of the code under test is a `Task`, a greenlet of a `Process`. It runs until it waits; then
the engine goes on with the next event of its heap. Time moves between events only, so a run is a function
of its seed: events of one instant happen in the order in which they were asked for.

A process can be frozen (what is due for it is kept and happens, in order, when it thaws) and killed (nothing
of it happens again). At the end `close` unwinds what still waits; a dead process's ports raise GreenletExit,
so no `finally` has an effect. Nobody may wait while holding a lock: with one thread that is either a deadlock
or a production lock held across a blocking call.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, cast

from greenlet import GreenletExit, getcurrent, greenlet

from postgres_ctl.api import Cancellation

#: True time at the start of every schedule, seconds.
START_S = 1000.0
#: Host time at true time 0 in seconds since 1970; for people only.
WALL_S = 1_700_000_000.0
#: A timer of a host fires this much late, never early by rounding, seconds.
TIMER_SLACK_S = 1e-6
#: More events than this in one instant means that somebody spins.
LIVELOCK_EVENTS = 100_000


class LockHeld(RuntimeError):
    """Somebody waits while holding a lock, or takes a lock twice."""


class Livelock(RuntimeError):
    """Time does not move any more."""


class Crash(NamedTuple):
    """An exception nobody caught in a task or callback of a process that was alive."""

    process: str
    task: str
    text: str


class Timer:
    """One call in the future; of `process`, or of the world when that is None."""

    __slots__ = ("call", "process")

    def __init__(self, call: Callable[[], object], process: Process | None = None) -> None:
        self.call: Callable[[], object] | None = call
        self.process = process

    def cancel(self) -> None:
        """It does not happen; no effect once it has."""
        self.call = None


class Engine:
    """One schedule's time and events."""

    def __init__(self, seed: int | str = 0) -> None:
        self.seed = seed
        self.now = START_S
        #: Called after every event: the place of invariants.
        self.after_event: Callable[[], None] | None = None
        self.crashes: list[Crash] = []
        self.processes: list[Process] = []
        #: Events that happened so far.
        self.events = 0
        #: Locks of the running task, outermost first; tasks that wait hold none.
        self.held: list[SimLock | SimCondition] = []
        self.hub = getcurrent()
        self.stopped = False
        self._rngs: dict[str, random.Random] = {}
        self._sequence = 0
        # What is due later: (when, sequence, Task, token) or (when, sequence, Timer, None).
        self._heap: list[tuple[float, int, Any, int | None]] = []
        # What is due now, in order.
        self._ready: deque[tuple[Any, int | None]] = deque()

    def rng(self, name: str) -> random.Random:
        """The stream of that name, independent of all others."""
        stream = self._rngs.get(name)
        if stream is None:
            stream = self._rngs[name] = random.Random(f"{self.seed}/{name}")
        return stream

    # --- asking for events ------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """Physics: `call` at true time `when` (at once when that is past), on nobody's behalf."""
        timer = Timer(call)
        self.push(when, timer, None)
        return timer

    def after(self, delay_s: float, call: Callable[[], object]) -> Timer:
        return self.at(self.now + delay_s, call)

    def push(self, when: float, item: Timer | Task, token: int | None) -> None:
        """A timer, or a task that resumes if it still waits under `token` then."""
        if when <= self.now:
            self._ready.append((item, token))
        else:
            self._sequence += 1
            heappush(self._heap, (when, self._sequence, item, token))

    # --- running ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """`run` returns after this event."""
        self.stopped = True

    def run(self, until: float) -> None:
        """Events in order up to true time `until`. Raises what physics or `after_event` raise."""
        assert getcurrent() is self.hub, "run() belongs to the greenlet that made the engine"
        ready, heap = self._ready, self._heap
        limit = self.events + LIVELOCK_EVENTS
        while not self.stopped:
            if ready:
                item, token = ready.popleft()
            elif heap and heap[0][0] <= until:
                when, _, item, token = heappop(heap)
                while heap and heap[0][0] == when:
                    ready.append(heappop(heap)[2:])
                self.now = when
                limit = self.events + LIVELOCK_EVENTS
            else:
                self.now = max(self.now, until)
                return
            process = item.process
            if token is None:
                call = item.call
                if call is None:
                    continue
                if process is None:
                    call()
                elif process.runs:
                    _call_for(process, call)
                else:
                    if process.alive:
                        process.due.append((item, None))
                    continue
                item.call = None
            elif item.token != token:
                continue
            elif process.runs:
                item.switch()
            else:
                if process.alive:
                    process.due.append((item, token))
                continue
            self.events += 1
            if self.events > limit:
                raise Livelock(f"{LIVELOCK_EVENTS} events at {self.now:.6f}; the last: {_shown(item)}")
            if self.after_event is not None:
                self.after_event()

    def close(self) -> None:
        """The end: every process dies, what waits is unwound, and nothing refers to anything any more."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            for task in list(process.tasks):
                if not task.dead:
                    task.throw(GreenletExit)
                task.release()
            process.tasks.clear()
            process.armed = None
        self._heap.clear()
        self._ready.clear()
        self.held.clear()
        self.processes.clear()
        self._rngs.clear()
        self.after_event = None

    # --- waiting ----------------------------------------------------------------------------------

    def suspend(self, what: str, until: float | None = None) -> Any:
        """The running task waits for `resume`, at most up to true time `until`; None after that.

        For ports that answer later: take `token = task.arm()` first and give both to whoever answers.
        Raises GreenletExit in a process that is dead, LockHeld under a lock.
        """
        task = self.running(what)
        if not task.process.alive:
            raise GreenletExit
        if self.held:
            self.refuse(what)
        if until is not None:
            self.push(until, task, task.token)
        self.hub.switch()
        return task.value

    def running(self, what: str) -> Task:
        """The running task, which is about to do `what`. Raises RuntimeError outside of tasks."""
        task = getcurrent()
        if type(task) is not Task:
            raise RuntimeError(f"{what} would block, but no task runs")
        return task

    def refuse(self, what: str) -> NoReturn:
        """`what` would wait while locks are held: a bug that must not depend on who catches it."""
        task = self.running(what)
        locks = ", ".join(str(lock) for lock in self.held)
        text = f"{what} would block while {task.process.name}/{task.name} holds {locks}"
        self.crashes.append(Crash(task.process.name, task.name, text))
        raise LockHeld(text)


class Task(greenlet):
    """One thread of a process. It resumes for the token it waits under; anything later is ignored."""

    __slots__ = ("joiners", "name", "process", "target", "token", "value")

    def __init__(self, process: Process, target: Callable[[], object], name: str) -> None:
        super().__init__(None, process.engine.hub)
        self.process = process
        self.target = target
        self.name = name
        self.token = 0
        #: What `resume` brought; None when the time was over.
        self.value: Any = None
        self.joiners: list[tuple[Task, int]] = []

    def arm(self) -> int:
        """A new token; whoever knows the last one is late."""
        self.token = token = self.token + 1
        self.value = None
        return token

    def resume(self, token: int, value: Any = True) -> bool:
        """Go on, with `value`, as the next event of this instant. False when it no longer waits for this."""
        if self.token != token:
            return False
        # From now on its timer, and other answers, are late.
        self.token = token + 1
        self.value = value
        self.process.engine._ready.append((self, token + 1))
        return True

    def resume_at(self, when: float, token: int, value: Any) -> bool:
        """As `resume`, at true time `when`: from now on nothing else can be the answer."""
        if self.token != token:
            return False
        self.token = token + 1
        self.value = value
        self.process.engine.push(when, self, token + 1)
        return True

    def release(self) -> None:
        """Refer to nothing: containers of greenlets that ran escape the collector, and would keep it all."""
        self.token += 1
        self.joiners.clear()
        del self.process, self.target

    def run(self) -> None:
        process = self.process
        try:
            self.target()
        except GreenletExit:
            pass
        except (Exception, SystemExit):
            if process.alive:
                process.engine.crashes.append(Crash(process.name, self.name, traceback.format_exc()))
        process.tasks.pop(self, None)
        self.token += 1
        for task, token in self.joiners:
            task.resume(token)
        self.joiners.clear()


class Process:
    """Tasks that live, freeze and die together."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.alive = True
        self.frozen = False
        #: alive and not frozen, as one look.
        self.runs = True
        #: Called with (kind, detail) at every boundary while set: triggered faults.
        self.armed: Callable[[str, str], None] | None = None
        self.tasks: dict[Task, None] = {}
        #: What came due while frozen, in order.
        self.due: list[tuple[Any, int | None]] = []
        engine.processes.append(self)

    def spawn(self, target: Callable[[], object], name: str) -> Task:
        """A thread of this process, from the engine's next turn on."""
        task = Task(self, target, name)
        if self.alive:
            self.tasks[task] = None
            self.engine._ready.append((task, 0))
        return task

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """`call` in this process's name: later when it is frozen then, never when it is dead then."""
        timer = Timer(call, self)
        self.engine.push(when, timer, None)
        return timer

    def sleep(self, seconds: float) -> None:
        """Let true time pass in a task of this process. Raises GreenletExit when it is dead."""
        if not self.alive:
            raise GreenletExit
        if seconds > 0.0:
            engine = self.engine
            engine.running("sleep").arm()
            engine.suspend("sleep", engine.now + seconds)

    def boundary(self, kind: str, detail: str = "") -> None:
        """Before and after every effect of a port: where faults strike. Raises GreenletExit when dead."""
        if self.armed is not None:
            self.armed(kind, detail)
        if not self.runs:
            self._stop_here()

    def kill(self) -> None:
        self.alive = self.runs = False
        self.due.clear()

    def freeze(self) -> None:
        self.frozen = True
        self.runs = False

    def thaw(self) -> None:
        self.frozen = False
        self.runs = self.alive
        self.engine._ready.extend(self.due)
        self.due.clear()

    def _stop_here(self) -> None:
        """Killed: the running task ends. Frozen: it goes on at the thaw, before all else of the process."""
        if not self.alive:
            raise GreenletExit
        engine, task = self.engine, getcurrent()
        if type(task) is not Task or task.process is not self:
            return
        # A freeze may well strike under a lock; nobody of this process runs who could want it.
        held = engine.held[:]
        engine.held.clear()
        self.due.insert(0, (task, task.arm()))
        try:
            engine.hub.switch()
        finally:
            engine.held.extend(held)


#: The process in whose name a callback outside of tasks runs.
_acting: Process | None = None


def current_process() -> Process | None:
    """Of the running task or callback; None for physics."""
    task = getcurrent()
    return task.process if type(task) is Task else _acting


def _call_for(process: Process, call: Callable[[], object]) -> None:
    global _acting
    _acting = process
    try:
        call()
    except GreenletExit:
        pass
    except Exception:
        process.engine.crashes.append(Crash(process.name, "callback", traceback.format_exc()))
    finally:
        _acting = None


def _shown(item: Timer | Task) -> str:
    if isinstance(item, Task):
        return f"{item.process.name}/{item.name}"
    return f"{item.process.name if item.process else 'physics'} {item.call}"


# --- clocks ---------------------------------------------------------------------------------------


class HostClock:
    """CLOCK_BOOTTIME of one host: `rate` seconds on it per true second, within 1 +- 0.004."""

    __slots__ = ("_engine", "offset_s", "rate", "true_s")

    def __init__(self, engine: Engine, offset_s: float = 0.0, rate: float = 1.0) -> None:
        assert 0.996 <= rate <= 1.004, rate
        self._engine = engine
        self.offset_s = offset_s
        self.rate = rate
        #: True seconds per second of this clock.
        self.true_s = 1.0 / rate

    def now(self) -> float:
        return self.offset_s + self._engine.now * self.rate

    def true(self, at: float) -> float:
        """The true time of `at` on this clock."""
        return (at - self.offset_s) * self.true_s


# --- the runtime of the code under test -----------------------------------------------------------


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

    def __init__(self, process: Process, clock: HostClock) -> None:
        self.process = process
        self.clock = clock
        #: As in the port: seconds on CLOCK_BOOTTIME of this host.
        self.now = clock.now

    def wall(self) -> float:
        return WALL_S + self.process.engine.now

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
