"""The guardian's own decisions over a small operating system in memory: no process, no waiting, exact times.

`System` is another implementation of the `Kernel` port: a process table, and a clock that stands still until
`run_until` moves it from one timer to the next. `tests/integration/test_guardian_*.py` have the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGUSR1
from typing import Any, NoReturn

import pytest

from haagent.guardian_fence import IDLE_EXIT_S, LEFTOVER_REPORT_S
from haagent.guardian_kernel import ABOUT_TO_EXEC, Held, Message, StartOrder, WatchdogOrder
from haagent.guardian_logic import MAX_PEERS, GuardianLogic

INIT, GUARDIAN, WATCHDOG_CHILD = 1, 10, 60
DATA_DIR = "/data"
FENCE_AT, HARD_AT = 100.0, 101.0
QUIT_AT, KILL_AT = 100.4, 100.7


class Left(BaseException):
    """The guardian ended itself."""


@dataclass
class Process:
    """`obeys`: the signals that end it; `stuck`: in uninterruptible sleep, where none does."""

    system: System
    pid: int
    parent: int
    comm: str = "postgres"
    obeys: tuple[int, ...] = ()
    stopped: bool = False
    stuck: bool = False
    cwd: str | None = DATA_DIR
    start_ticks: int = 7
    on_death: Callable[[Held], None] | None = None

    def signal(self, signum: int) -> None:
        self.system.kill(self.pid, signum)

    def release(self) -> None:
        self.on_death = None


class System:
    """`sent` has every signal with its time. Who has died is told by `settle`, never inside a call."""

    pid = GUARDIAN

    def __init__(self) -> None:
        self.time = 0.0
        self.timer: float | None = None
        self.processes: dict[int, Process] = {}
        self.ending: dict[int, int] = {}
        self.zombies: list[tuple[int, int]] = []
        self.sent: list[tuple[float, int, int]] = []
        self.orders: list[StartOrder] = []
        self.report: Callable[[bytes], None] = lambda chunk: None
        #: Orders to children that work on the device, with their times.
        self.watchdog: list[tuple[float, WatchdogOrder]] = []
        self.watchdog_ended: Callable[[int, str], None]
        self.watchdog_problem = ""
        self.cannot_fork = False

    def add(self, pid: int, parent: int, **facts: Any) -> Process:
        self.processes[pid] = Process(self, pid, parent, **facts)
        return self.processes[pid]

    def end(self, pid: int, status: int) -> None:
        """Children of the guardian wait to be reaped; what a child leaves becomes the guardian's own."""
        process = self.processes.pop(pid)
        for orphan in self.processes.values():
            orphan.parent = process.parent if orphan.parent == pid else orphan.parent
        if process.parent == GUARDIAN:
            self.zombies.append((pid, status))
        elif process.on_death is not None:
            process.on_death(process)

    def now(self) -> float:
        return self.time

    def set_timer(self, at_s: float | None) -> None:
        self.timer = at_s

    def fork_postmaster(self, order: StartOrder, on_report: Callable[[bytes], None]) -> int:
        self.orders.append(order)
        self.report = on_report
        return self.add(20, GUARDIAN).pid

    def fork_promote_file(self, data_dir: str) -> int:
        return self.add(40, GUARDIAN, comm="haagent").pid

    def fork_watchdog(self, order: WatchdogOrder, on_end: Callable[[int, str], None]) -> int:
        if self.cannot_fork:
            raise OSError(12, "Cannot allocate memory")
        self.watchdog.append((self.time, order))
        self.watchdog_ended = on_end
        return self.add(WATCHDOG_CHILD, GUARDIAN, comm="haagent").pid

    def fork_note(self, text: str) -> int:
        return self.add(50, GUARDIAN, comm="haagent").pid

    def reap(self) -> tuple[int, int] | None:
        if not self.zombies:
            return None
        pid, status = self.zombies.pop(0)
        if pid == WATCHDOG_CHILD:
            self.watchdog_ended(pid, self.watchdog_problem)
        return pid, status

    def has_children(self) -> bool:
        return bool(self.zombies or self.children_of(GUARDIAN))

    def kill(self, pid: int, signum: int) -> None:
        self.sent.append((self.time, pid, signum))
        process = self.processes.get(pid)
        if process is None or process.stuck:
            return
        if signum == SIGSTOP:
            process.stopped = True
        elif signum == SIGKILL or (signum in process.obeys and not process.stopped):
            self.ending[pid] = 0 if signum == SIGINT else -signum

    def start_ticks(self, pid: int) -> int:
        return self.processes[pid].start_ticks

    def is_stopped(self, pid: int) -> bool:
        return self.processes[pid].stopped

    def children_of(self, pid: int) -> list[int]:
        alive = [process.pid for process in self.processes.values() if process.parent == pid]
        return alive + [zombie for zombie, _ in self.zombies if pid == GUARDIAN]

    def signal_children(self, pid: int, signum: int) -> None:
        for child in self.children_of(pid):
            self.kill(child, signum)

    def processes_in(self, directory: str, comm: str) -> list[int]:
        return [p.pid for p in self.processes.values() if p.cwd == directory and p.comm == comm]

    def hold(self, pid: int, on_death: Callable[[Held], None]) -> Held | None:
        process = self.processes.get(pid)
        if process is not None:
            process.on_death = on_death
        return process

    def leave(self, why: str, farewell: Callable[[], None]) -> NoReturn:
        farewell()
        raise Left(why)


class Talker:
    """A peer; `timers` is what the kernel's timer was when each message was sent to it."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.open = True
        self.received: list[Message] = []
        self.timers: list[float | None] = []

    def send(self, message: Message) -> None:
        if self.open:
            self.received.append(message)
            self.timers.append(self.system.timer)

    def close(self) -> None:
        self.open = False


class Bench:
    """A guardian and the agent that said hello to it."""

    def __init__(self) -> None:
        self.system = System()
        self.logic = GuardianLogic(self.system, "/state", DATA_DIR)
        self.agent = Talker(self.system)
        self.logic.connected(self.agent)
        self.ask("hello", instance="agent")

    def send(self, op: str, **fields: Any) -> None:
        self.logic.request(self.agent, {"id": op, "op": op, **fields})

    def answers(self, op: str) -> list[Message]:
        return [message for message in self.agent.received if message.get("id") == op]

    def ask(self, op: str, **fields: Any) -> Message:
        known = len(self.answers(op))
        self.send(op, **fields)
        [answer] = self.answers(op)[known:]
        return answer

    def arm(self, epoch: int = 1, fence_at: float = FENCE_AT, hard_at: float = HARD_AT) -> Message:
        handle = {"session": "session", "epoch": epoch}
        return self.ask("arm", handle=handle, fence_at=fence_at, hard_at=hard_at)

    def order(self, writable: bool, epoch: int | None = 1) -> dict[str, Any]:
        return {"argv": ["postgres"], "env": {}, "cwd": DATA_DIR, "writable": writable, "epoch": epoch}

    def start(self, writable: bool = True) -> Process:
        """A postmaster (20) with two backends (30, 31)."""
        self.send("start", **self.order(writable))
        self.system.report(ABOUT_TO_EXEC)
        self.system.report(b"")
        assert self.answers("start")[-1] == {"id": "start", "ok": True, "pid": 20, "start_ticks": 7}
        self.system.add(30, 20)
        self.system.add(31, 20)
        return self.system.processes[20]

    def settle(self) -> None:
        """Whoever was ended is dead, and the guardian is told."""
        while self.system.ending:
            pid = next(iter(self.system.ending))
            self.system.end(pid, self.system.ending.pop(pid))
            if self.system.zombies:
                self.logic.signalled()

    def end(self, pid: int, status: int) -> None:
        """By itself, or by somebody else's hand."""
        self.system.ending[pid] = status
        self.settle()

    def run_until(self, time: float) -> None:
        """From timer to timer, each served when it fires."""
        while self.system.timer is not None and self.system.timer <= time:
            self.system.time = max(self.system.time, self.system.timer)
            self.logic.due()
            self.settle()
        self.system.time = time

    def signals_to(self, pid: int) -> list[tuple[float, int]]:
        """In order, each once: a kill is repeated."""
        sent = [(round(time, 3), signum) for time, to, signum in self.system.sent if to == pid]
        return list(dict.fromkeys(sent))

    def events(self, name: str) -> list[Message]:
        return [message for message in self.agent.received if message.get("event") == name]


@pytest.fixture(name="bench")
def bench_fixture() -> Bench:
    return Bench()


# --- the fence --------------------------------------------------------------------------------------


def test_the_fence_gets_harder_step_by_step(bench: Bench) -> None:
    bench.arm()
    bench.start()
    bench.run_until(HARD_AT)
    assert bench.signals_to(20) == [(FENCE_AT, SIGINT), (QUIT_AT, SIGQUIT), (KILL_AT, SIGKILL)]
    assert bench.signals_to(30) == [(QUIT_AT, SIGQUIT), (KILL_AT, SIGKILL)]
    assert [event["fenced"] for event in bench.events("exited")] == [True]
    assert bench.logic.server is None
    assert not bench.logic.fencing


def test_a_postmaster_that_obeys_gets_nothing_harder(bench: Bench) -> None:
    bench.arm()
    bench.start().obeys = (SIGINT,)
    bench.system.processes.pop(30)
    bench.system.processes.pop(31)
    bench.run_until(HARD_AT)
    assert bench.system.sent == [(FENCE_AT, 20, SIGINT)]
    assert bench.logic.last_exit == {"pid": 20, "status": 0, "fenced": True}


def test_behind_a_stopped_postmaster_the_backends_are_ended_first(bench: Bench) -> None:
    bench.arm()
    bench.start().stopped = True
    bench.system.processes[30].obeys = (SIGQUIT,)
    bench.run_until(FENCE_AT)
    assert 30 not in bench.system.processes
    assert 20 in bench.system.processes
    bench.run_until(HARD_AT)
    assert bench.signals_to(20) == [(FENCE_AT, SIGQUIT), (QUIT_AT, SIGKILL)]
    assert bench.logic.server is None


def test_a_deadline_is_the_kernels_before_it_is_acknowledged(bench: Bench) -> None:
    bench.arm()
    assert bench.agent.timers[-1] == FENCE_AT
    bench.arm(fence_at=110.0, hard_at=111.0)
    assert bench.agent.timers[-1] == 110.0
    assert bench.arm(fence_at=105.0, hard_at=106.0)["fence_at"] == 110.0


def test_a_renewal_queued_behind_the_deadline_comes_too_late(bench: Bench) -> None:
    bench.arm()
    bench.start()
    bench.system.time = FENCE_AT  # the message is there before the timer is served
    assert "is closed" in bench.arm(fence_at=200.0, hard_at=201.0)["refused"]
    assert bench.signals_to(20) == [(FENCE_AT, SIGINT)]


def test_a_fence_ends_with_its_server_though_a_newer_epoch_was_armed_meanwhile(bench: Bench) -> None:
    """Frozen over the deadline: the agent has released the key and taken it again. A fence that never ends
    would refuse every start, and no later deadline would ever fire."""
    bench.arm()
    bench.start()
    bench.system.time = FENCE_AT
    assert bench.arm(epoch=2, fence_at=200.0, hard_at=201.0)["ok"]
    bench.run_until(HARD_AT)
    assert bench.logic.server is None
    assert not bench.logic.fencing
    assert bench.system.timer == 200.0
    bench.start(writable=False)
    bench.run_until(200.0)
    assert bench.signals_to(20)[-1] == (200.0, SIGINT)


def test_an_epoch_closed_before_the_release_keeps_the_deadline_of_a_writable_server(bench: Bench) -> None:
    bench.arm()
    bench.start()
    assert bench.ask("close", epoch=1) == {"id": "close", "ok": True, "closed_epoch": 1}
    assert "is closed" in bench.arm(fence_at=200.0, hard_at=201.0)["refused"]
    assert "its fence stays" in bench.ask("disarm")["refused"]
    bench.run_until(FENCE_AT)
    assert bench.signals_to(20) == [(FENCE_AT, SIGINT)]


def test_a_closed_epoch_drops_the_deadline_of_a_standby(bench: Bench) -> None:
    bench.arm()
    bench.start(writable=False)
    bench.ask("close", epoch=1)
    assert bench.logic.state()["armed"] is None
    assert bench.system.timer is None


# --- starting and promoting ---------------------------------------------------------------------------


def test_a_writable_start_needs_an_open_armed_unexpired_epoch(bench: Bench) -> None:
    assert bench.ask("start", **bench.order(True))["refused"] == "no lease is armed"
    bench.arm(epoch=2)
    assert "is not the armed epoch" in bench.ask("start", **bench.order(True, epoch=3))["refused"]
    bench.ask("close", epoch=2)
    assert "is closed" in bench.ask("start", **bench.order(True, epoch=2))["refused"]
    bench.arm(epoch=3)
    bench.system.time = FENCE_AT
    assert "is closed" in bench.ask("start", **bench.order(True, epoch=3))["refused"]
    assert bench.system.orders == []


def test_a_start_is_answered_by_exec_or_by_the_end_of_the_child(bench: Bench) -> None:
    bench.arm()
    bench.send("start", **bench.order(True))
    assert bench.system.orders[0].fence_at == FENCE_AT
    bench.system.report(ABOUT_TO_EXEC)
    assert bench.answers("start") == []
    bench.system.report(b"postgres: No such file or directory")
    bench.system.report(b"")
    assert bench.answers("start") == []
    bench.end(20, 1)
    refusal = {"id": "start", "ok": False, "refused": "postgres: No such file or directory"}
    assert bench.answers("start") == [refusal]
    assert bench.events("exited") == []


def test_a_promotion_is_signalled_once_the_file_is_there(bench: Bench) -> None:
    bench.start(writable=False)
    bench.arm()
    bench.send("promote", epoch=1)
    assert bench.answers("promote") == []
    bench.end(40, 0)
    assert bench.answers("promote")[0]["ok"]
    assert bench.signals_to(20) == [(0.0, SIGUSR1)]


def test_a_promotion_whose_deadline_passes_while_the_file_is_written_is_refused(bench: Bench) -> None:
    bench.start(writable=False)
    bench.arm()
    bench.send("promote", epoch=1)
    bench.system.time = FENCE_AT
    bench.end(40, 0)
    assert "is closed" in bench.answers("promote")[0]["refused"]
    assert bench.signals_to(20) == [(FENCE_AT, SIGINT)]
    bench.run_until(HARD_AT)
    assert bench.logic.server is None


# --- the end of a postmaster ----------------------------------------------------------------------------


def test_exited_is_told_once_everything_is_reaped(bench: Bench) -> None:
    bench.arm()
    bench.start()
    bench.system.processes[30].stuck = True
    bench.end(20, -SIGKILL)
    bench.run_until(LEFTOVER_REPORT_S / 2)
    assert bench.signals_to(30)[0] == (0.0, SIGKILL)
    assert 31 not in bench.system.processes
    assert bench.events("exited") == []
    bench.run_until(LEFTOVER_REPORT_S + 0.1)
    assert [event["leftovers"] for event in bench.events("exited")] == [[30]]
    assert "still lives" in bench.ask("start", **bench.order(True))["refused"]
    bench.end(30, -SIGKILL)
    assert [event["leftovers"] for event in bench.events("exited")] == [[30], []]
    assert bench.logic.lease.epoch == 1  # the epoch is still open: it may start again
    bench.start()


def test_an_adopted_primary_is_fenced_with_all_that_works_beside_it(bench: Bench) -> None:
    bench.system.add(20, INIT, stopped=True)
    bench.system.add(30, 20)
    bench.system.add(31, INIT)  # an orphan of a child of it
    shell = bench.system.add(60, INIT, comm="bash")
    shell.cwd = "/home"
    assert "start time" in bench.ask("adopt", pid=20, start_ticks=8)["refused"]
    assert "works in /home" in bench.ask("adopt", pid=60, start_ticks=7)["refused"]
    shell.cwd = DATA_DIR
    assert bench.ask("adopt", pid=20, start_ticks=7)["ok"]
    assert "no fence is armed" in bench.ask("close", epoch=1)["refused"]
    bench.arm()
    bench.run_until(HARD_AT)
    assert next(iter(bench.system.processes.values())) is shell
    assert bench.signals_to(60) == []
    assert bench.logic.server is None
    assert bench.logic.last_exit == {"pid": 20, "status": None, "fenced": True}


def test_the_end_of_an_adopted_one_is_told_once_its_last_process_is_dead(bench: Bench) -> None:
    bench.system.add(20, INIT)
    bench.system.add(30, 20, stuck=True)
    bench.ask("adopt", pid=20, start_ticks=7)
    bench.end(20, -SIGKILL)
    bench.run_until(LEFTOVER_REPORT_S + 0.1)
    bench.end(30, -SIGKILL)
    assert [event["leftovers"] for event in bench.events("exited")] == [[30], []]


# --- who is heard, and when it ends -----------------------------------------------------------------------


def test_the_newest_controller_replaces_its_twin(bench: Bench) -> None:
    twin, bench.agent = bench.agent, Talker(bench.system)
    bench.logic.connected(bench.agent)
    assert "say hello first" in bench.ask("disarm")["error"]
    assert bench.ask("hello", instance="second")["generation"] == 2
    assert twin.received[-1] == {"event": "replaced", "by": "second"}
    assert not twin.open


def test_many_who_never_speak_shut_nobody_out(bench: Bench) -> None:
    silent = [Talker(bench.system) for _ in range(MAX_PEERS + 1)]
    for peer in silent:
        bench.logic.connected(peer)
    assert [peer.open for peer in silent] == [False] + [True] * MAX_PEERS
    assert bench.agent.open


def test_it_leaves_when_idle_and_never_a_server(bench: Bench) -> None:
    bench.start(writable=False)
    bench.logic.disconnected(bench.agent)
    bench.logic.terminate()
    bench.run_until(10 * IDLE_EXIT_S)
    bench.end(30, 0)
    bench.end(31, 0)
    bench.end(20, 0)
    with pytest.raises(Left, match="idle"):
        bench.run_until(12 * IDLE_EXIT_S)
    with pytest.raises(Left, match="SIGTERM"):
        bench.logic.terminate()
