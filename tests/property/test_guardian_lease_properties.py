"""The deadline the guardian keeps, as a state machine: whatever is asked of it in whatever order.

Beside it runs the least one can say: which epochs are over, and until when the last accepted order goes.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haagent.guardian_lease import Lease, Refused
from tests.property.strategies import examples

epochs = st.integers(1, 6)
spans = st.floats(-5, 30)


class Guardian(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.lease = Lease()
        self.over: set[int] = set()
        #: Latest deadline accepted for each epoch since it was last disarmed or dropped.
        self.accepted: dict[int, float] = {}
        self.arm(1, 20.0, 1.0)

    def end(self, upto: int) -> None:
        self.over |= set(range(upto + 1))

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(epoch=epochs, ahead=spans, budget=st.floats(0.5, 5))
    def arm(self, epoch: int, ahead: float, budget: float) -> None:
        before, fence_at = (self.lease.epoch, self.lease.fence_at, self.lease.disarmed), self.now + ahead
        legal = epoch not in self.over and ahead > 0 and (before[0] is None or epoch >= before[0])
        try:
            self.lease.arm("s", epoch, fence_at, fence_at + budget, self.now)
        except Refused:
            assert not legal or fence_at <= self.now
            assert (self.lease.epoch, self.lease.fence_at, self.lease.disarmed) == before
            return
        assert legal
        if before[0] is not None and epoch > before[0]:
            self.end(before[0])
        if before[0] != epoch or before[2]:
            self.accepted[epoch] = fence_at
        self.accepted[epoch] = max(self.accepted[epoch], fence_at)
        assert (self.lease.epoch, self.lease.fence_at) == (epoch, self.accepted[epoch])
        assert not self.lease.disarmed

    @precondition(lambda self: self.lease.epoch is not None)
    @rule()
    def pause(self) -> None:
        self.lease.disarmed = True

    @rule(epoch=epochs)
    def close(self, epoch: int) -> None:
        deadline = self.lease.fence_at
        self.lease.close(epoch)
        self.end(epoch)
        assert self.lease.fence_at == deadline, "what may still write stays under its deadline"

    @precondition(lambda self: self.lease.due(self.now))
    @rule()
    def fire(self) -> None:
        armed = self.lease.epoch
        assert armed is not None
        epoch, budget_s = self.lease.expire()
        self.end(epoch)
        assert epoch == armed
        assert budget_s >= 0.5 - 1e-6

    @precondition(lambda self: self.lease.is_closed())
    @rule()
    def drop(self) -> None:
        self.lease.drop()
        self.accepted.clear()

    @precondition(lambda self: self.lease.epoch is not None)
    @rule()
    def ask_to_write_under_the_armed_epoch(self) -> None:
        assert self.lease.epoch is not None
        self.ask_to_write(self.lease.epoch)

    @rule(epoch=st.integers(0, 7))
    def ask_to_write(self, epoch: int) -> None:
        """H8: who may start a server that accepts writes."""
        try:
            deadline = self.lease.check_open(epoch, self.now)
        except Refused:
            good = epoch == self.lease.epoch and epoch not in self.over and not self.lease.disarmed
            assert not good or self.lease.fence_at is None or self.lease.fence_at <= self.now
            return
        assert epoch not in self.over
        assert not self.lease.disarmed
        assert not self.lease.due(self.now)
        assert self.now < deadline == self.accepted[epoch]

    @invariant()
    def a_closed_epoch_stays_closed(self) -> None:
        assert self.lease.closed_epoch == max(self.over, default=0)
        if self.lease.epoch is not None:
            assert self.lease.is_closed() == (self.lease.epoch in self.over)

    @invariant()
    def all_or_nothing_is_armed(self) -> None:
        told = self.lease.describe()
        if self.lease.epoch is None:
            assert (self.lease.fence_at, self.lease.hard_at, told) == (None, None, None)
            assert not self.lease.due(self.now)
            return
        assert self.lease.fence_at is not None
        assert self.lease.hard_at is not None
        assert told is not None
        assert self.lease.hard_at >= self.lease.fence_at + 0.5 - 1e-6
        assert self.lease.due(self.now) == (not self.lease.disarmed and self.lease.fence_at <= self.now)


TestGuardian = Guardian.TestCase
TestGuardian.settings = examples(200, steps=30)
