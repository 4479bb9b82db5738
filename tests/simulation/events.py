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
import traceback
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, NamedTuple, NoReturn

from greenlet import GreenletExit, getcurrent, greenlet

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
        self.held: list[object] = []
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
        if current_process() not in (self, None):
            raise RuntimeError(f"a boundary of {self.name} in a task of another process")
        if not self.alive:
            raise GreenletExit
        engine, task = self.engine, getcurrent()
        if type(task) is not Task:
            return  # a callback finishes what it does
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
