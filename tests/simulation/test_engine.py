"""The engine: order, time, freezing and killing, locks, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
from greenlet import GreenletExit

from haagent.runtime import Runtime
from tests.simulation import events
from tests.simulation.engine import (
    START_S,
    Engine,
    HostClock,
    Livelock,
    LockHeld,
    Process,
    SimCondition,
    SimRuntime,
    current_process,
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


def runtime(process: Process, rate: float = 1.0) -> SimRuntime:
    return SimRuntime(process, HostClock(process.engine, 50.0, rate))


def logged(engine: Engine, log: list[tuple[float, str]], word: str) -> Callable[[], None]:
    return lambda: log.append((engine.now - START_S, word))


# --- events ---------------------------------------------------------------------------------------


def test_events_happen_by_time_then_in_the_order_asked_for(engine: Engine) -> None:
    log: list[tuple[float, str]] = []
    engine.after(2.0, logged(engine, log, "c"))
    engine.after(1.0, logged(engine, log, "a"))
    engine.after(1.0, lambda: engine.after(0.0, logged(engine, log, "d")))
    engine.after(1.0, logged(engine, log, "b"))
    engine.after(1.5, logged(engine, log, "never")).cancel()
    engine.at(0.0, logged(engine, log, "past"))
    engine.run(START_S + 1.8)
    assert log == [(0.0, "past"), (1.0, "a"), (1.0, "b"), (1.0, "d")]
    assert engine.now == START_S + 1.8
    engine.run(START_S + 2.0)
    assert log[-1] == (2.0, "c")


def test_after_every_event_the_invariants_are_asked(engine: Engine) -> None:
    seen = []
    engine.after_event = lambda: seen.append(engine.now - START_S)
    process = Process(engine, "p")
    process.spawn(lambda: process.sleep(1.0), "t")
    engine.after(0.5, lambda: None)
    engine.run(START_S + 9)
    assert seen == [0.0, 0.5, 1.0]
    engine.after_event = lambda: engine.stop() if engine.now > START_S + 9.5 else None
    engine.after(1.0, lambda: None)
    engine.after(2.0, lambda: None)
    engine.run(START_S + 99)
    assert engine.now == START_S + 10


def test_streams_depend_on_seed_and_name_only() -> None:
    first, again, other = Engine(7), Engine(7), Engine(8)
    again.rng("b").random()
    assert first.rng("a").random() == again.rng("a").random()
    assert first.rng("a") is first.rng("a")
    assert first.rng("b").random() != other.rng("b").random()


def test_standing_time_is_noticed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LIVELOCK_EVENTS", 1000)
    event = runtime(process := Process(engine, "p")).event()

    def spin() -> None:
        while True:
            event.wait(0.0)

    process.spawn(spin, "spinner")
    with pytest.raises(Livelock, match="p/spinner"):
        engine.run(START_S + 1)


# --- waiting --------------------------------------------------------------------------------------


def test_a_condition_wakes_its_waiters_in_order_each_as_an_event_of_its_own(engine: Engine) -> None:
    process = Process(engine, "p")
    rt: Runtime = runtime(process)
    condition, log = rt.condition(), list[str]()

    def wait(name: str) -> None:
        with condition:
            woken = condition.wait(5.0)
            log.append(f"{name} {woken} {engine.now - START_S:.6f}")

    for name in ("a", "b"):
        process.spawn(lambda name=name: wait(name), name)  # type: ignore[misc]

    def notify() -> None:
        with condition:
            condition.notify_all()
            log.append("notified")

    process.at(START_S + 1, notify)
    process.at(START_S + 1.5, lambda: process.spawn(lambda: wait("c"), "c"))
    engine.run(START_S + 20)
    assert log == ["notified", "a True 1.000000", "b True 1.000000", "c False 6.500001"]
    assert not engine.crashes


def test_timeouts_are_of_the_hosts_clock_and_never_early(engine: Engine) -> None:
    process = Process(engine, "p")
    rt = runtime(process, rate=1.004)
    ends: list[float] = []

    def wait() -> None:
        end = rt.now() + 3.0
        with (condition := rt.condition()):
            assert not condition.wait_for(lambda: False, 3.0)
        assert rt.now() >= end
        ends.append(engine.now - START_S)

    process.spawn(wait, "t")
    engine.run(START_S + 10)
    assert ends == [pytest.approx(3.0 / 1.004, abs=1e-5)]
    assert rt.clock.true(rt.now()) == pytest.approx(engine.now)


def test_a_condition_is_waited_for_until_it_holds(engine: Engine) -> None:
    process = Process(engine, "p")
    rt = runtime(process)
    condition, values, found = rt.condition(), list[int](), list[float]()

    def add() -> None:
        with condition:
            values.append(len(values))
            condition.notify_all()

    def wait() -> None:
        with condition:
            assert condition.wait_for(lambda: len(values) == 3, 10.0)
        found.append(engine.now - START_S)

    process.spawn(wait, "t")
    for at in (1, 2, 3, 4):
        process.at(START_S + at, add)
    engine.run(START_S + 10)
    assert found == [3.0]


def test_an_event_stays_set_and_a_cancellation_is_one(engine: Engine) -> None:
    process = Process(engine, "p")
    cancel = runtime(process).cancellation()
    log: list[bool] = []

    def wait() -> None:
        log.extend((cancel.is_set(), cancel.wait(1.0), cancel.wait(), cancel.wait(), cancel.is_set()))

    process.spawn(wait, "t")
    process.at(START_S + 2, cancel.set)
    engine.run(START_S + 3)
    assert log == [False, False, True, True, True]


def test_a_thread_is_joined(engine: Engine) -> None:
    process = Process(engine, "p")
    rt = runtime(process)
    log: list[tuple[float, bool]] = []

    def main() -> None:
        thread = rt.thread(lambda: process.sleep(2.0), "worker")
        assert not thread.is_alive()
        thread.start()
        for timeout in (1.0, None, None):
            thread.join(timeout)
            log.append((round(engine.now - START_S, 3), thread.is_alive()))

    process.spawn(main, "main")
    engine.run(START_S + 5)
    assert log == [(1.0, True), (2.0, False), (2.0, False)]
    assert not engine.crashes


def test_a_late_answer_is_dropped(engine: Engine) -> None:
    process = Process(engine, "p")
    log: list[object] = []

    def ask(answer_after_s: float, deadline_s: float) -> None:
        task = engine.running("ask")
        token = task.arm()
        engine.after(answer_after_s, lambda: log.append(task.resume(token, "answer")))
        log.append(engine.suspend("ask", engine.now + deadline_s))

    def main() -> None:
        ask(1.0, 2.0)
        ask(2.0, 1.0)
        process.sleep(5.0)
        log.append(engine.now - START_S)

    process.spawn(main, "main")
    engine.run(START_S + 10)
    assert log == [True, "answer", None, False, 7.0]


def test_waiting_outside_of_a_task_is_refused(engine: Engine) -> None:
    process = Process(engine, "p")
    with pytest.raises(RuntimeError, match="no task runs"):
        process.sleep(1.0)
    assert current_process() is None
    seen: list[Process | None] = []
    process.at(START_S, lambda: seen.append(current_process()))
    process.spawn(lambda: seen.append(current_process()), "t")
    engine.after(0.0, lambda: seen.append(current_process()))
    engine.run(START_S)
    assert seen == [process, process, None]


# --- freezing and killing -------------------------------------------------------------------------


def test_what_comes_due_in_a_freeze_happens_in_order_after_it(engine: Engine) -> None:
    process, log = Process(engine, "p"), list[tuple[float, str]]()

    def main() -> None:
        process.sleep(2.0)
        logged(engine, log, "slept")()

    process.spawn(main, "t")
    for at in (3, 1, 6):
        process.at(START_S + at, logged(engine, log, f"at {at}"))
    engine.after(0.5, process.freeze)
    engine.after(5.0, process.thaw)
    engine.run(START_S + 9)
    assert log == [(5.0, "at 1"), (5.0, "slept"), (5.0, "at 3"), (6.0, "at 6")]


def test_an_answer_that_came_in_a_freeze_is_read_before_the_deadline_is_noticed(engine: Engine) -> None:
    process, log = Process(engine, "p"), list[object]()

    def main() -> None:
        task = engine.running("ask")
        token = task.arm()
        engine.after(3.0, lambda: log.append(task.resume(token, "answer")))
        log.append(engine.suspend("ask", engine.now + 2.0))

    process.spawn(main, "t")
    engine.after(1.0, process.freeze)
    engine.after(4.0, process.thaw)
    engine.run(START_S + 9)
    assert log == [True, "answer"]


def test_nothing_of_a_killed_process_happens_again(engine: Engine) -> None:
    process, log = Process(engine, "p"), list[str]()
    rt = runtime(process)

    def port(word: str) -> None:
        process.boundary(word)
        log.append(word)

    def main() -> None:
        try:
            with (condition := rt.condition()):
                condition.wait(2.0)
            port("after")
        finally:
            port("finally")

    process.spawn(main, "t")
    process.at(START_S + 3, lambda: port("at"))
    engine.after(1.0, process.kill)
    engine.run(START_S + 9)
    process.spawn(main, "late")
    engine.run(START_S + 19)
    engine.close()
    assert not log
    assert not engine.crashes


def test_a_fault_strikes_at_a_boundary(engine: Engine) -> None:
    log: list[object] = []

    def main(process: Process) -> None:
        process.sleep(1.0)
        process.boundary("dcs.put", "before")
        log.append((process.name, engine.now - START_S))
        process.boundary("dcs.put", "after")
        log.append((process.name, "end"))

    def fault(process: Process, strike: Callable[[], None]) -> Callable[[str, str], None]:
        def armed(kind: str, detail: str) -> None:
            if (kind, detail) == ("dcs.put", "after"):
                process.armed = None
                strike()

        return armed

    killed, frozen = Process(engine, "killed"), Process(engine, "frozen")
    killed.armed = fault(killed, killed.kill)
    frozen.armed = fault(frozen, frozen.freeze)
    for process in (killed, frozen):
        process.spawn(lambda p=process: main(p), "main")  # type: ignore[misc]
    engine.run(START_S + 5)
    assert log == [("killed", 1.0), ("frozen", 1.0)]
    frozen.thaw()
    engine.run(START_S + 6)
    assert log[2:] == [("frozen", "end")]


def test_a_freeze_under_a_lock_lets_others_take_theirs_and_comes_back_first(engine: Engine) -> None:
    frozen, other, log = Process(engine, "frozen"), Process(engine, "other"), list[str]()
    lock, others = runtime(frozen).lock(), runtime(other).lock()

    def armed(_kind: str, _detail: str) -> None:
        frozen.armed = None
        frozen.freeze()

    def main() -> None:
        frozen.sleep(1.0)
        with lock:
            frozen.boundary("journal.event")
            log.append("released")

    def second() -> None:
        frozen.sleep(1.5)
        with lock:
            log.append("second")

    def neighbour() -> None:
        other.sleep(2.0)
        with others:
            log.append("neighbour")

    frozen.armed = armed
    frozen.spawn(main, "main")
    frozen.spawn(second, "second")
    other.spawn(neighbour, "main")
    engine.after(3.0, frozen.thaw)
    engine.run(START_S + 5)
    assert log == ["neighbour", "released", "second"]
    assert not engine.crashes


def test_nobody_dies_at_the_boundary_of_another(engine: Engine) -> None:
    dead, caller = Process(engine, "dead"), Process(engine, "caller")
    dead.kill()
    caller.spawn(lambda: dead.boundary("rest.get"), "main")
    engine.run(START_S + 1)
    assert [crash.process for crash in engine.crashes] == ["caller"]
    assert "a boundary of dead in a task of another process" in engine.crashes[0].text


# --- mistakes -------------------------------------------------------------------------------------


def test_waiting_under_a_lock_is_a_crash_even_when_caught(engine: Engine) -> None:
    process = Process(engine, "p")
    rt = runtime(process)
    the_lock, condition = rt.lock(), rt.condition()
    waits: list[Callable[[], object]] = [
        lambda: process.sleep(1.0),
        lambda: rt.event().wait(1.0),
        lambda: engine.suspend("a port"),
        the_lock.__enter__,
    ]

    def main() -> None:
        for wait in waits:
            with the_lock, pytest.raises(LockHeld):
                wait()
        with the_lock, condition, pytest.raises(LockHeld):
            condition.wait(1.0)

    process.spawn(main, "main")
    engine.run(START_S + 5)
    assert len(engine.crashes) == len(waits) + 1, engine.crashes
    assert engine.crashes[0].text.startswith("sleep would block while p/main holds the lock of test_waiting_")
    assert not engine.held


def test_notifying_without_the_lock_is_an_error(engine: Engine) -> None:
    condition = runtime(Process(engine, "p")).condition()
    with pytest.raises(RuntimeError, match="notify_all without the lock of test_notifying"):
        condition.notify_all()


def test_an_uncaught_exception_is_kept_with_its_place(engine: Engine) -> None:
    process = Process(engine, "p")

    def broken() -> None:
        process.sleep(1.0)
        raise ValueError("as planted")

    process.spawn(broken, "main")
    process.at(START_S, broken)
    engine.run(START_S + 2)
    assert [(c.process, c.task) for c in engine.crashes] == [("p", "callback"), ("p", "main")]
    assert "as planted" in engine.crashes[1].text
    assert not process.tasks


def test_a_mistake_of_physics_ends_the_run(engine: Engine) -> None:
    def broken() -> None:
        raise ValueError("as planted")

    engine.after(1.0, broken)
    with pytest.raises(ValueError, match="as planted"):
        engine.run(START_S + 2)


# --- the end --------------------------------------------------------------------------------------


def busy_schedule(seed: int) -> Engine:
    """Tasks in every state a task can end in."""
    engine = Engine(seed)
    for name in ("a", "b"):
        process = Process(engine, name)
        rt = runtime(process)
        condition = rt.condition()

        def wait(condition: SimCondition = condition) -> None:
            with condition:
                while True:
                    condition.wait(3.0)

        def notify(process: Process = process, condition: SimCondition = condition) -> None:
            while True:
                process.sleep(0.5)
                with condition:
                    condition.notify_all()

        process.spawn(wait, "wait")
        process.spawn(notify, "notify")
        process.spawn(lambda process=process: process.sleep(1.0), "short")  # type: ignore[misc]
    engine.after(5.0, engine.processes[0].kill)
    engine.after(6.0, engine.processes[1].freeze)
    engine.run(START_S + 9)
    engine.processes[1].spawn(lambda: None, "never started")
    return engine


def test_close_unwinds_what_waits(engine: Engine) -> None:
    process, log = Process(engine, "p"), list[str]()

    def main() -> None:
        try:
            process.sleep(99)
        except GreenletExit:
            log.append("unwound")
            process.sleep(1.0)
            log.append("not here")

    task = process.spawn(main, "main")
    engine.run(START_S + 1)
    engine.close()
    assert log == ["unwound"]
    assert task.dead


def test_schedules_leave_nothing_behind() -> None:
    refs: list[weakref.ref[object]] = []
    counts = []
    for seed in range(300):
        engine = busy_schedule(seed)
        refs.append(weakref.ref(engine))
        refs.extend(weakref.ref(process) for process in engine.processes)
        refs.extend(weakref.ref(task) for process in engine.processes for task in process.tasks)
        engine.close()
        del engine
        if seed % 100 == 99:
            gc.collect()
            assert not [ref for ref in refs if ref() is not None]
            refs.clear()
            counts.append(len(gc.get_objects()))
    assert counts[-1] <= counts[0] + 50


def test_events_make_no_garbage_for_the_collector() -> None:
    engine = busy_schedule(1)
    process = engine.processes[1]
    process.thaw()
    gc.collect()
    gc.disable()
    try:
        before = engine.events
        engine.run(START_S + 1000)
        assert engine.events > before + 3000
        assert gc.collect() == 0
    finally:
        gc.enable()
        engine.close()
