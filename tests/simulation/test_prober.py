"""The threads of the probes over simulated time: when they look, what becomes of what they find."""

from __future__ import annotations

from haagent.core.vitals import ProbeFacts
from haagent.prober import AGAIN_S, EVERY_S, SLOWEST_S, SOON, Probe
from postgres_ctl.facts import ProbeAnswer, ProbeFault
from tests.simulation.engine import Engine, HostClock, Process, SimRuntime

DEADLINE_S = 3.0
WELL = ProbeAnswer()


class Stage:
    """One probe of something that may be given another name, and what a look finds there."""

    def __init__(self) -> None:
        self.engine = Engine(1)
        process = Process(self.engine, "agent")
        runtime = SimRuntime(process, HostClock(self.engine))
        self.subject: object = "first"
        self.finds: ProbeAnswer | Exception | None = WELL
        self.lasts_s, self.looks, self.woken = 0.0, list[float](), 0
        self._process = process
        self.probe = Probe(
            runtime, "server", self._look, lambda: self.subject, lambda: DEADLINE_S, self._wake
        )
        process.spawn(self.probe.start, "loop")

    def _look(self, deadline_s: float) -> ProbeAnswer | None:
        assert deadline_s == DEADLINE_S
        self.looks.append(self.engine.now)
        self._process.sleep(self.lasts_s)
        if isinstance(self.finds, Exception):
            raise self.finds
        return self.finds

    def _wake(self) -> None:
        self.woken += 1

    def run(self, for_s: float) -> ProbeFacts:
        self.engine.run(self.engine.now + for_s)
        return self.probe.facts()

    def last_pause_s(self) -> float:
        return self.looks[-1] - self.looks[-2]


def test_all_is_well_and_the_loop_sleeps() -> None:
    stage = Stage()
    facts = stage.run(3.5 * EVERY_S)
    assert len(stage.looks) == 3
    assert (facts.fault, facts.in_a_row, facts.failing_since) == (None, 0, None)
    assert facts.began_at is not None
    assert stage.woken == 0


def test_failures_in_a_row_are_counted_from_the_first_and_wake_the_loop() -> None:
    stage = Stage()
    stage.run(EVERY_S + 0.5)
    stage.finds = ProbeAnswer(ProbeFault.FULL, "no space")
    facts = stage.run(EVERY_S + 3 * AGAIN_S)
    assert facts.fault is ProbeFault.FULL
    assert facts.in_a_row == facts.failures == len(stage.looks) - 1 == stage.woken
    assert facts.in_a_row >= 3
    assert facts.cause == "no space"
    first = facts.failing_since
    stage.finds = WELL
    woken = stage.woken
    facts = stage.run(2 * AGAIN_S)
    assert (facts.fault, facts.in_a_row, facts.failing_since) == (None, 0, None)
    assert facts.failures >= 3
    assert stage.woken == woken + 1
    assert first is not None


def test_hung_storage_is_looked_at_all_the_time_and_a_silent_server_ever_less_often() -> None:
    """Each new connection to it may be one more process that hangs."""
    stage = Stage()
    stage.finds = ProbeAnswer(ProbeFault.HANGS, "hangs")
    stage.run(100 * AGAIN_S)
    assert stage.last_pause_s() < 2 * AGAIN_S
    stage.finds = ProbeAnswer(ProbeFault.UNREACHED, "silent")
    stage.run(4 * SLOWEST_S + SOON * AGAIN_S)
    assert SLOWEST_S <= stage.last_pause_s() < 2 * SLOWEST_S


def test_what_was_found_about_one_server_says_nothing_of_the_next() -> None:
    stage = Stage()
    stage.finds = ProbeAnswer(ProbeFault.HANGS, "hangs")
    assert stage.run(EVERY_S + 5 * AGAIN_S).in_a_row >= 3
    stage.subject = "second"
    facts = stage.probe.facts()
    assert (facts.fault, facts.in_a_row) == (None, 0)
    assert stage.run(1.5 * AGAIN_S).in_a_row <= 2
    stage.subject = None
    looks = len(stage.looks)
    assert stage.run(2 * EVERY_S).fault is None
    assert len(stage.looks) == looks


def test_a_result_about_a_server_that_went_meanwhile_is_dropped() -> None:
    stage = Stage()
    stage.finds, stage.lasts_s = ProbeAnswer(ProbeFault.UNREACHED, "silent"), 2.0
    stage.run(EVERY_S + 1.0)
    stage.subject = "second"
    assert stage.run(1.5).fault is None
    assert stage.woken == 0


def test_a_look_that_breaks_leaves_no_old_result_standing() -> None:
    stage = Stage()
    stage.finds = ProbeAnswer(ProbeFault.HANGS, "hangs")
    stage.run(EVERY_S + 0.5)
    stage.finds = ValueError("bug")
    assert stage.run(2 * AGAIN_S).fault is None
    stage.finds = ProbeAnswer(ProbeFault.HANGS, "hangs")
    assert stage.run(EVERY_S + 0.5).fault is ProbeFault.HANGS
