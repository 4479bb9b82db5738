"""The lease as a state machine: whatever answers come in whatever order, it never outlives its proof."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haagent.core import lease as core
from haagent.core.lease import Idle, Lease, OpenSession, RenewLeader, RenewSession
from haagent.core.settings import Settings, parse_settings

ODD = st.one_of(
    st.integers(-5, 200),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.none(),
    st.just("5min"),
    st.booleans(),
)
DYNAMIC = st.fixed_dictionaries({}, optional={"ttl": ODD, "loop_wait": ODD, "retry_timeout": ODD})


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Whatever the parser can make of whatever the store holds."""
    minimum = draw(st.sampled_from([3.0, 4.5, 10.0]))
    return parse_settings(draw(DYNAMIC), minimum, draw(st.booleans()))[0]


@given(any_settings())
def test_interval_two_attempts_and_budget_fit_into_the_ttl(have: Settings) -> None:
    budget, interval = core.stop_budget_s(have), core.renew_interval_s(have)
    needed = interval + 2 * core.renew_attempt_s(have) + budget + have.ttl_s * core.DRIFT_SHARE
    assert needed <= have.ttl_s + 1e-6
    assert budget >= 0.5
    assert interval > 0
    assert 0 < core.permit_life_s(have) <= have.ttl_s - budget


@given(any_settings(), st.floats(0, 1e6), st.floats(1, 200))
def test_deadlines_lie_within_what_was_guaranteed(
    have: Settings, sent_at: float, guaranteed_s: float
) -> None:
    fence_at, hard_at = core.deadlines(sent_at, guaranteed_s, have)
    assert fence_at < hard_at < sent_at + min(guaranteed_s, have.ttl_s)
    assert hard_at - fence_at >= 0.5 - 1e-6


@given(any_settings(), st.floats(0, 1e6))
def test_a_full_renewal_always_lies_ahead(have: Settings, sent_at: float) -> None:
    """A healthy store with the ttl that was asked for leaves time for the next renewal."""
    fence_at, _ = core.deadlines(sent_at, have.ttl_s, have)
    assert fence_at >= sent_at + core.renew_interval_s(have) + 2 * core.renew_attempt_s(have) - 1e-6


class Keeper(RuleBasedStateMachine):
    """Time passes; answers come late, twice, for the wrong tenure, or never."""

    @initialize(have=any_settings())
    def begin(self, have: Settings) -> None:
        self.settings = have
        self.now = 1000.0
        self.permit_until = 0.0
        self.lease = Lease()
        self.epoch = 0
        self.proven_until = 0.0
        self.fence_before: float | None = None
        self.closed: set[int] = set()

    def become(self, lease: Lease) -> None:
        if lease.epoch == self.lease.epoch and self.lease.fence_at is not None and not lease.closed:
            assert lease.fence_at is not None
            assert lease.fence_at >= self.lease.fence_at
        self.lease = lease

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def permit(self) -> None:
        self.permit_until = self.now + core.permit_life_s(self.settings)

    @rule(name=st.sampled_from(["s1", "s2"]))
    def session_opens(self, name: str) -> None:
        self.become(core.opened(self.lease, name, self.now, self.settings))

    @precondition(lambda self: self.lease.session is not None and self.lease.epoch is None)
    @rule()
    def take(self) -> None:
        self.epoch += 1
        self.proven_until = 0.0
        self.become(core.taken(self.lease, self.epoch))

    @precondition(lambda self: self.lease.epoch is not None)
    @rule(ago=st.floats(0, 50), guaranteed=st.floats(1, 120))
    def an_answer_arrives(self, ago: float, guaranteed: float) -> None:
        sent_at = self.now - ago
        self.proven_until = max(self.proven_until, sent_at + guaranteed)
        self.become(core.renewed(self.lease, sent_at, guaranteed, self.now, self.settings))

    @rule()
    def no_answer(self) -> None:
        self.become(core.unknown(self.lease, self.now))

    @rule(gone=st.booleans())
    def refused(self, gone: bool) -> None:
        self.become(core.refused(self.lease, "not yours", gone))
        assert not self.lease.holds(self.now)

    @precondition(lambda self: self.lease.epoch is not None)
    @rule()
    def close(self) -> None:
        assert self.lease.epoch is not None
        self.closed.add(self.lease.epoch)
        self.become(core.closed(self.lease))

    @precondition(lambda self: self.lease.closed)
    @rule()
    def release(self) -> None:
        self.become(core.released(self.lease))

    @invariant()
    def never_longer_than_proven(self) -> None:
        if self.lease.epoch is not None and self.lease.hard_at is not None:
            assert self.lease.hard_at <= self.proven_until
            assert self.lease.fence_at is not None
            assert self.lease.fence_at < self.lease.hard_at

    @invariant()
    def never_held_once_closed(self) -> None:
        if self.lease.epoch in self.closed:
            assert not self.lease.holds(self.now)

    @invariant()
    def wishes_keep_the_rules(self) -> None:
        asked = core.wish(self.lease, self.now, self.permit_until)
        if isinstance(asked, RenewLeader):
            assert asked.epoch == self.lease.epoch
            assert asked.epoch not in self.closed
        if isinstance(asked, RenewLeader | RenewSession):
            assert self.now < self.permit_until
            assert self.lease.session is not None
        if isinstance(asked, OpenSession):
            assert self.lease.session is None
        if isinstance(asked, Idle) and asked.until is not None:
            assert asked.until > self.now


TestKeeper = Keeper.TestCase
TestKeeper.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
