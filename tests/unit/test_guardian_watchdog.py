"""When the guardian opens, feeds and switches off the watchdog device: exact times, no device."""

from __future__ import annotations

import itertools
from signal import SIGINT

import pytest

from tests.unit.test_guardian_logic import WATCHDOG_CHILD, Bench, Left

#: As ttl 30 and safety_margin 5 have it, of a renewal that was sent at 0.
FENCE_AT, HARD_AT, TIMEOUT_S = 24.7, 29.7, 25
DEVICE = {"device": "/dev/watchdog", "testing": False}


class Watched(Bench):
    """With the device on, unless `open_it` is False."""

    def __init__(self, open_it: bool = True) -> None:
        super().__init__()
        self.arm(fence_at=FENCE_AT, hard_at=HARD_AT)
        if open_it:
            self.watch()

    def watch(self, problem: str = "", timeout_s: int = TIMEOUT_S) -> dict[str, object]:
        known = len(self.answers("watch"))
        self.send("watch", epoch=1, timeout_s=timeout_s, **DEVICE)
        self.child(problem)
        [answer] = self.answers("watch")[known:]
        return answer

    def child(self, problem: str = "") -> None:
        """What works on the device is done; nothing happens when nothing does."""
        if WATCHDOG_CHILD in self.system.processes:
            self.system.watchdog_problem = problem
            self.end(WATCHDOG_CHILD, 0)

    def settle(self) -> None:
        super().settle()
        self.child()

    def orders(self) -> list[tuple[float, int]]:
        """Time and timeout of each order so far; 0 switches off."""
        return [(round(time, 3), order.timeout_s) for time, order in self.system.watchdog]

    def reset_at(self) -> float:
        """When the device resets the host, should nobody write to it any more."""
        time, order = self.system.watchdog[-1]
        return time + order.timeout_s


@pytest.fixture(name="bench")
def bench_fixture() -> Watched:
    return Watched()


def test_each_proof_is_a_keepalive_and_nothing_else_is(bench: Watched) -> None:
    bench.start()
    for sent_at in (10.0, 20.0, 30.0):
        bench.run_until(sent_at)
        bench.arm(fence_at=FENCE_AT + sent_at, hard_at=HARD_AT + sent_at)
        bench.child()
    assert bench.orders() == [(0.0, 25), (10.0, 25), (20.0, 25), (30.0, 25)]
    assert [order.program for _, order in bench.system.watchdog] == [True, False, False, False]
    assert bench.logic.state()["watchdog"] == {"timeout_s": 25, "fault": None}


def test_a_lease_that_ends_resets_no_host(bench: Watched) -> None:
    """The agent is dead: the last keepalives last until `hard_at`, PostgreSQL is stopped before."""
    bench.start().obeys = (SIGINT,)
    bench.run_until(FENCE_AT - 0.1)
    assert bench.orders() == [(0.0, 25), (18.75, 10)]
    assert FENCE_AT < bench.reset_at() <= HARD_AT
    bench.run_until(FENCE_AT)
    assert bench.logic.server is None
    assert bench.orders()[-1] == (FENCE_AT, 0)
    assert bench.logic.state()["watchdog"] is None


def test_what_cannot_be_stopped_is_reset_when_the_lease_ends(bench: Watched) -> None:
    bench.start().stuck = True
    for pid in (30, 31):
        bench.system.processes[pid].stuck = True
    bench.run_until(HARD_AT + 60.0)
    assert all(timeout_s > 0 for _, timeout_s in bench.orders())
    assert HARD_AT - 1.0 <= bench.reset_at() <= HARD_AT


@pytest.mark.parametrize("late_s", [5.0, 12.0, 24.0])
def test_a_slow_proof_does_not_reach_beyond_its_lease(late_s: float) -> None:
    bench = Watched(open_it=False)
    bench.run_until(late_s)
    assert bench.watch()["ok"]
    assert bench.reset_at() <= HARD_AT
    [(_, order)] = bench.system.watchdog
    assert order.before == HARD_AT - order.timeout_s


def test_a_short_timeout_is_kept_alive_in_between() -> None:
    bench = Watched(open_it=False)
    bench.watch(timeout_s=5)
    bench.start()
    bench.run_until(FENCE_AT - 0.1)
    times = [time for time, _ in bench.orders()]
    assert all(later - earlier < 5 for earlier, later in itertools.pairwise(times))
    assert bench.reset_at() > FENCE_AT


def test_it_is_off_in_a_pause_and_after_a_release(bench: Watched) -> None:
    assert bench.ask("disarm")["ok"]
    bench.child()
    assert bench.orders()[-1] == (0.0, 0)
    assert bench.watch()["refused"] == "the fence is disarmed"
    bench.arm(fence_at=FENCE_AT, hard_at=HARD_AT)
    assert bench.watch()["ok"]
    assert bench.ask("close", epoch=1)["ok"]
    bench.child()
    assert [timeout_s for _, timeout_s in bench.orders()] == [25, 0, 25, 0]


def test_a_closed_epoch_keeps_it_on_until_postgresql_is_stopped(bench: Watched) -> None:
    bench.start().obeys = (SIGINT,)
    for pid in (30, 31):
        bench.system.processes.pop(pid)
    assert bench.ask("close", epoch=1)["ok"]
    bench.child()
    assert bench.orders() == [(0.0, 25)]
    bench.send("stop", mode="fast")
    bench.settle()
    bench.run_until(1.0)
    assert [timeout_s for _, timeout_s in bench.orders()] == [25, 0]


def test_a_device_that_cannot_be_used_is_refused_and_asked_for_again() -> None:
    bench = Watched(open_it=False)
    assert bench.watch("/dev/watchdog: Permission denied")["refused"] == "/dev/watchdog: Permission denied"
    assert bench.logic.state()["watchdog"] is None
    bench.run_until(20.0)
    assert len(bench.orders()) == 1
    assert bench.watch()["ok"]


def test_a_keepalive_that_fails_is_tried_again_and_told(bench: Watched) -> None:
    bench.run_until(5.0)
    bench.arm(fence_at=FENCE_AT + 5, hard_at=HARD_AT + 5)
    bench.child("/dev/watchdog: Input/output error")
    assert bench.logic.state()["watchdog"] == {"timeout_s": 25, "fault": "/dev/watchdog: Input/output error"}
    bench.run_until(5.5)
    assert bench.orders() == [(0.0, 25), (5.0, 25), (5.5, 25)]
    assert bench.logic.state()["watchdog"] == {"timeout_s": 25, "fault": None}


def test_without_memory_for_a_child_it_is_tried_again(bench: Watched) -> None:
    """Else a device that nobody feeds any more would count as switched off."""
    bench.system.cannot_fork = True
    assert bench.ask("disarm")["ok"]
    bench.run_until(2.0)
    assert bench.logic.state()["watchdog"] == {
        "timeout_s": 25,
        "fault": "cannot fork: Cannot allocate memory",
    }
    bench.system.cannot_fork = False
    bench.run_until(3.0)
    assert bench.orders() == [(0.0, 25), (2.5, 0)]
    assert bench.logic.state()["watchdog"] is None


def test_a_child_that_hangs_holds_up_neither_fence_nor_renewals(bench: Watched) -> None:
    bench.start().obeys = (SIGINT,)
    bench.arm(fence_at=FENCE_AT + 1, hard_at=HARD_AT + 1)
    assert WATCHDOG_CHILD in bench.system.processes
    bench.arm(fence_at=FENCE_AT + 2, hard_at=HARD_AT + 2)
    Bench.settle(bench)
    while bench.system.timer is not None and bench.system.timer <= FENCE_AT + 2:
        bench.system.time = bench.system.timer
        bench.logic.due()
        Bench.settle(bench)
    assert bench.signals_to(20) == [(FENCE_AT + 2, SIGINT)]
    assert len(bench.orders()) == 2
    bench.child()
    assert bench.orders()[-1][1] == 0, "and then it is switched off"


def test_a_guardian_that_leaves_switches_it_off_first(bench: Watched) -> None:
    """The agent ends while the store is away: PostgreSQL is stopped, the lease is not over."""
    bench.send("exit")
    assert bench.orders()[-1] == (0.0, 0)
    assert not bench.answers("exit")
    with pytest.raises(Left):
        bench.child()
    assert bench.answers("exit")[-1]["ok"]


def test_one_that_a_dead_guardian_left_on_is_switched_off() -> None:
    bench = Watched(open_it=False)
    bench.send("unwatch", **DEVICE)
    assert bench.orders() == [(0.0, 0)]
    bench.child()
    assert bench.answers("unwatch")[-1]["ok"]
    assert bench.logic.state()["watchdog"] is None


@pytest.mark.parametrize(
    "wrong", [{"device": "watchdog"}, {"testing": "yes"}, {"timeout_s": 0}, {"epoch": 2}]
)
def test_a_wrong_request_changes_nothing(bench: Watched, wrong: dict[str, object]) -> None:
    before = bench.logic.state()
    bench.send("watch", **{"epoch": 1, "timeout_s": 9, **DEVICE, **wrong})
    assert bench.answers("watch")[-1]["ok"] is False
    assert bench.logic.state() == before
