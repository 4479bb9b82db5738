"""The lease keeper's threads over simulated time: what wakes them, and what they sleep through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dcs.memory import MemoryDcs, MemoryStore
from haagent import guardian_types as types
from haagent.core.settings import Settings
from haagent.lease_keeper import LeaseKeeper
from haagent.measures import Measures
from tests.simulation.engine import START_S, Engine, HostClock, Process, SimRuntime

SETTINGS = Settings(ttl_s=9.0, loop_wait_s=1.0, retry_timeout_s=3.0)
STATE = types.GuardianState(1, 1, 1, None, (), None, 0, False, False, None, None, False)


class Guardian:
    """A guardian that acknowledges everything, or nothing."""

    def __init__(self, state: types.GuardianState = STATE) -> None:
        self.frozen, self.state = False, state
        self.deadlines: list[float] = []

    def arm(
        self,
        handle: types.Handle,
        fence_at: float,
        hard_at: float,
        deadline_s: float,
        spares_standby: bool = False,
    ) -> types.Armed | types.ArmRefused | types.NoAnswer:
        self.deadlines.append(fence_at)
        return types.NoAnswer("frozen") if self.frozen else types.Armed(fence_at, hard_at)

    def disarm(self, deadline_s: float) -> types.Simple:
        return types.Done()

    def close_epoch(self, epoch: int, deadline_s: float) -> types.Simple:
        return types.Done()

    def status(self, deadline_s: float) -> types.GuardianState | types.Refused | types.NoAnswer:
        return types.NoAnswer("frozen") if self.frozen else self.state


class Stage:
    """One keeper with its store; `do` calls it as the loop would, then lets time pass."""

    def __init__(self) -> None:
        self.engine = Engine(1)
        clock = HostClock(self.engine)
        self.process = Process(self.engine, "agent")
        self.store = MemoryStore(clock.now)
        self.dcs = MemoryDcs(self.store)
        self.guardian = Guardian()
        self.fenced_at: list[float] = []
        runtime = SimRuntime(self.process, clock)
        self.measures = Measures(runtime)
        self.keeper = LeaseKeeper(
            runtime, self.dcs, "pg0", SETTINGS,
            lambda: None, lambda: self.fenced_at.append(self.engine.now), self.measures,
        )  # fmt: skip
        self.do(self.keeper.start)
        self.do(lambda: self.keeper.use_guardian(self.guardian, STATE))
        self.do(self.keeper.permit)

    def do(self, call: Callable[[], object], for_s: float = 0.1) -> None:
        self.process.spawn(call, "loop")
        self.run(for_s)

    def run(self, for_s: float, step_s: float = 0.0) -> None:
        """`step_s`: the loop gives a permit that often."""
        end = self.engine.now + for_s
        while step_s and self.engine.now + step_s <= end:
            self.process.spawn(self.keeper.permit, "loop")
            self.engine.run(self.engine.now + step_s)
        self.engine.run(end)

    @property
    def renewals(self) -> int:
        return self.measures.renewals["leader", "ok"]

    def events(self, for_s: float, step_s: float) -> int:
        before = self.engine.events
        self.run(for_s, step_s)
        return self.engine.events - before


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.engine.close()


def test_a_lapsed_permit_stops_renewals_and_the_next_one_goes_on_at_once(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(5.0, step_s=1.0)
    renewals = stage.renewals
    assert renewals >= 4
    stage.run(6.0)
    lapsed = stage.renewals
    assert lapsed <= renewals + 4
    stage.do(stage.keeper.permit, 0.0)
    stage.run(0.001)
    assert stage.renewals == lapsed + 1


def test_permits_that_come_in_time_wake_nobody(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    # Per second: ten loops of the agent, and the keeper's own renewal.
    assert stage.events(10.0, step_s=0.1) <= 100 + 15


def test_after_a_release_by_the_store_the_session_is_kept_again(stage: Stage) -> None:
    """A closed epoch is left to expire; once the key is seen gone, its session carries the member key on."""
    stage.do(lambda: stage.keeper.take(3.0))
    stage.do(lambda: stage.keeper.fenced(stage.keeper.facts().epoch or 0))
    stage.run(3.0, step_s=1.0)
    stage.do(lambda: stage.dcs.delete("leader", 3.0))
    stage.do(lambda: stage.keeper.recognise(None))
    stage.run(30.0, step_s=1.0)
    stage.store.expire()
    session = stage.keeper.session()
    assert session is not None
    assert stage.store.has_session(session)
    assert stage.keeper.facts().epoch is None


def test_the_backstop_fences_at_the_deadline_a_frozen_guardian_last_acknowledged(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    fence_at = stage.keeper.facts().fence_at
    assert fence_at is not None
    stage.guardian.frozen = True
    stage.run(20.0, step_s=1.0)
    assert len(stage.fenced_at) == 1
    assert fence_at <= stage.fenced_at[0] < fence_at + 0.001
    assert stage.keeper.facts().closed_epoch > 0


def test_the_backstop_fences_for_a_guardian_that_froze_unnoticed(stage: Stage) -> None:
    """The store is out of reach, so nothing has to be armed: only the deadline itself shows it."""
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    fence_at = stage.keeper.facts().fence_at
    assert fence_at is not None
    stage.guardian.frozen = True
    stage.run(20.0)  # no permits, no renewals
    assert len(stage.fenced_at) == 1
    assert fence_at <= stage.fenced_at[0] < fence_at + 0.001


RUNS = types.PostmasterState(7, 1, True, True, False, 1, False)


def test_a_guardian_in_the_place_of_another_is_told_the_deadline_at_once(stage: Stage) -> None:
    """What it found running may write until then, whether the store can be reached or not."""
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    second = Guardian(replace(STATE, postmaster=RUNS))
    stage.run(4.5)  # the permits lapse: nothing is renewed any more
    fence_at = stage.keeper.facts().fence_at
    stage.do(stage.keeper.guardian_lost)
    stage.do(lambda: stage.keeper.use_guardian(second, second.state))
    assert second.deadlines == [fence_at]


def test_the_backstop_fences_for_a_guardian_that_never_knew_the_deadline(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    second = Guardian(replace(STATE, postmaster=RUNS))
    stage.do(stage.keeper.guardian_lost)
    stage.do(lambda: stage.keeper.use_guardian(second, second.state))
    stage.run(20.0)
    assert len(stage.fenced_at) == 1


def test_a_sooner_deadline_wakes_the_backstop(stage: Stage) -> None:
    """A pause ended: the deadline of before counts again, while the backstop sleeps without one."""
    stage.do(lambda: stage.keeper.take(3.0))
    stage.do(lambda: stage.keeper.set_fencing(False))
    stage.run(12.0, step_s=1.0)
    stage.guardian.frozen = True
    stage.do(lambda: stage.keeper.set_fencing(True))
    stage.run(20.0)
    assert len(stage.fenced_at) == 1


def test_a_guardian_that_answers_again_keeps_the_backstop_from_fencing(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    stage.run(2.0, step_s=1.0)
    stage.guardian.frozen = True
    stage.run(2.0, step_s=1.0)
    assert not stage.keeper.facts().guardian_ok
    stage.guardian.frozen = False
    stage.run(30.0, step_s=1.0)
    assert stage.fenced_at == []
    assert stage.keeper.facts().guardian_ok
    assert stage.engine.now > START_S + 30.0


def test_a_key_that_went_while_the_ttl_changed_is_given_up(stage: Stage) -> None:
    """Found by seed 12200000155: it was to be moved onto a session of the new ttl, again and again."""
    stage.do(lambda: stage.keeper.take(3.0))
    session = stage.keeper.session()
    assert session is not None
    stage.store.end_session(session)
    stage.do(lambda: stage.keeper.use_settings(replace(SETTINGS, ttl_s=12.0)))
    stage.run(3.0, step_s=1.0)
    assert stage.keeper.facts().epoch is None
    assert stage.keeper.session() not in (None, session)


def test_the_same_facts_are_the_same_object(stage: Stage) -> None:
    stage.do(lambda: stage.keeper.take(3.0))
    first = stage.keeper.facts()
    assert stage.keeper.facts() is first
    stage.run(3.0, step_s=1.0)
    assert stage.keeper.facts() is not first
