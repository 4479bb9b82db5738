"""The lease as a state machine: whatever answers come in whatever order, it never outlives its proof."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haagent.core import lease as core
from haagent.core.lease import Idle, Lease, OpenSession, RenewLeader, RenewSession
from haagent.core.settings import Settings, parse_settings
from tests.property.strategies import examples

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
@examples(100)
def test_interval_two_attempts_and_budget_fit_into_the_ttl(have: Settings) -> None:
    budget, interval = core.stop_budget_s(have), core.renew_interval_s(have)
    needed = interval + 2 * core.renew_attempt_s(have) + budget + have.ttl_s * core.DRIFT_SHARE
    assert needed <= have.ttl_s + 1e-6
    assert budget >= 0.5
    assert interval > 0
    assert 0 < core.permit_life_s(have) <= have.ttl_s - budget


@given(any_settings(), st.floats(0, 1e6), st.floats(1, 200))
@examples(100)
def test_deadlines_lie_within_what_was_guaranteed(
    have: Settings, sent_at: float, guaranteed_s: float
) -> None:
    fence_at, hard_at = core.deadlines(sent_at, guaranteed_s, have)
    assert fence_at < hard_at < sent_at + min(guaranteed_s, have.ttl_s)
    assert hard_at - fence_at >= 0.5 - 1e-6


@given(any_settings(), st.floats(0, 1e6))
@examples(100)
def test_a_full_renewal_always_lies_ahead(have: Settings, sent_at: float) -> None:
    """A healthy store with the ttl that was asked for leaves time for the next renewal."""
    fence_at, _ = core.deadlines(sent_at, have.ttl_s, have)
    assert fence_at >= sent_at + core.renew_interval_s(have) + 2 * core.renew_attempt_s(have) - 1e-6


class Keeper(RuleBasedStateMachine):
    """Time passes; answers come late, twice, for an earlier sending, or never; the ttl is changed meanwhile.

    Beside the lease runs what the store does: until when it surely keeps the key (`key_lives_until`), by a
    clock that may be faster than ours by the drift share."""

    @initialize(have=any_settings())
    def begin(self, have: Settings) -> None:
        self.settings = have
        self.now = 1000.0
        self.permit_until = 0.0
        self.lease = Lease()
        self.epoch = 0
        self.session_ttl_s = have.ttl_s
        self.key_lives_until = 0.0
        self.allowed_until = 0.0
        self.closed: set[int] = set()
        self.take_and_prove()

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

    @rule(have=any_settings())
    def the_ttl_is_changed(self, have: Settings) -> None:
        self.settings = have

    @precondition(lambda self: self.lease.session is None)
    @rule()
    def session_opens(self) -> None:
        self.session_ttl_s = self.settings.ttl_s
        self.become(core.opened(self.lease, "s1", self.now, self.settings))

    @rule(ttl_s=st.integers(3, 60))
    def session_is_changed_for_the_new_ttl(self, ttl_s: int) -> None:
        """The key moves onto a session opened now: its life is that of the new one, even if shorter."""
        wanted = parse_settings({"ttl": ttl_s, "loop_wait": 1, "retry_timeout": 1}, 3.0, False)[0]
        if not core.may_change_session(self.lease, self.now, float(wanted.ttl_s)):
            return
        self.settings = wanted
        self.session_ttl_s = self.settings.ttl_s
        if self.lease.epoch is not None:
            self.key_lives_until = self.now + self.session_ttl_s * (1 - core.DRIFT_SHARE)
        self.become(core.opened(self.lease, "s2", self.now, self.settings))

    @precondition(lambda self: self.lease.session is not None and self.lease.epoch is None)
    @rule()
    def take(self) -> None:
        self.epoch += 1
        self.key_lives_until = self.allowed_until = 0.0
        self.become(core.taken(self.lease, self.epoch))
        assert not self.lease.holds(self.now), "the taking proves nothing"

    @precondition(lambda self: self.lease.epoch is None)
    @rule()
    def take_and_prove(self) -> None:
        """The usual way, in one step: else few runs come as far as leading."""
        if self.lease.session is None:
            self.session_opens()
        self.take()
        self.an_answer_arrives(0.0)

    @precondition(lambda self: self.lease.epoch is not None)
    @rule(ago=st.floats(0, 50))
    def an_answer_arrives(self, ago: float) -> None:
        """The store prolonged it at some time after the sending: at least from then on it lives its ttl."""
        sent_at, have = self.now - ago, self.settings
        life_s = min(self.session_ttl_s, have.ttl_s)
        self.key_lives_until = max(
            self.key_lives_until, sent_at + self.session_ttl_s * (1 - core.DRIFT_SHARE)
        )
        fence_at = sent_at + life_s * (1 - core.DRIFT_SHARE) - max(0.5, life_s / 6)
        self.allowed_until = max(self.allowed_until, fence_at)
        self.become(core.renewed(self.lease, sent_at, self.session_ttl_s, self.now, have))
        if not self.lease.closed:
            assert self.lease.fence_at is not None
            assert self.lease.fence_at >= fence_at, "a proof counts"

    @rule()
    def no_answer(self) -> None:
        before = self.lease
        self.become(core.unknown(self.lease, self.now))
        same = (before.epoch, before.session, before.fence_at, before.hard_at, before.closed)
        now = self.lease
        assert (now.epoch, now.session, now.fence_at, now.hard_at, now.closed) == same
        assert self.now < now.next_attempt_at <= self.now + core.RETRY_MAX_S

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
        if self.lease.epoch is not None and self.lease.fence_at is not None:
            assert self.lease.hard_at is not None
            assert self.lease.fence_at <= self.allowed_until + 1e-6
            assert self.lease.fence_at + 0.5 <= self.lease.hard_at + 1e-6

    @invariant()
    def never_longer_than_the_key_lives(self) -> None:
        if self.lease.epoch is not None and self.lease.hard_at is not None:
            assert self.lease.hard_at <= self.key_lives_until + 1e-6

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
        if isinstance(asked, RenewSession):
            assert self.lease.epoch is None
        if isinstance(asked, OpenSession):
            assert self.lease.session is None
        if isinstance(asked, Idle) and asked.until is not None:
            assert asked.until > self.now


TestKeeper = Keeper.TestCase
TestKeeper.settings = examples(200, steps=30)
