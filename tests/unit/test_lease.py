"""The lease by example: what proves it, what ends it, what the keeper does next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haagent.core import lease as core
from haagent.core.lease import Idle, Lease, OpenSession, RenewLeader, RenewSession
from haagent.core.settings import Settings

SETTINGS = Settings()
HELD = core.renewed(core.taken(Lease(session="s"), 5), 1000.0, 30.0, 1000.1, SETTINGS)
LONG = 2000.0  # a permit that lasts


def test_a_taken_key_proves_nothing_yet() -> None:
    lease = core.taken(Lease(session="s"), 5)
    assert not lease.holds(1000.0)
    assert core.wish(lease, 1000.0, LONG) == RenewLeader(5)


def test_a_renewal_counts_from_its_sending_and_keeps_time_to_stop() -> None:
    assert HELD.hard_at == pytest.approx(1029.7)
    assert HELD.fence_at == pytest.approx(1024.7)
    assert HELD.holds(1024.6)
    assert not HELD.holds(1024.8)


def test_the_last_proof_of_an_earlier_tenure_is_worth_nothing() -> None:
    assert core.taken(HELD, 6).fence_at is None


def test_without_an_answer_the_deadline_stays_and_tries_slow_down() -> None:
    lease, pauses = HELD, []
    for _ in range(6):
        lease = core.unknown(lease, 1000.0)
        pauses.append(lease.next_attempt_at - 1000.0)
    assert (lease.fence_at, lease.epoch) == (HELD.fence_at, 5)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_refusal_ends_it_at_once() -> None:
    lease = core.refused(HELD, "the key is gone", session_gone=False)
    assert not lease.holds(1000.2)
    assert (lease.epoch, lease.session, lease.refused) == (None, "s", "the key is gone")
    assert core.refused(HELD, "the session is gone", session_gone=True).session is None


def test_a_closed_epoch_is_left_to_expire() -> None:
    lease = core.closed(HELD)
    assert not lease.holds(1000.2)
    assert core.wish(lease, 1500.0, LONG) == Idle(None)
    late = core.renewed(lease, 1001.0, 30.0, 1001.1, SETTINGS)
    assert (late.closed, late.fence_at) == (True, None)


def test_a_released_key_leaves_the_session() -> None:
    lease = core.released(core.closed(HELD))
    assert core.wish(lease, 1500.0, LONG) == RenewSession()


def test_without_a_session_one_is_opened() -> None:
    assert core.wish(Lease(), 1000.0, 0.0) == OpenSession()


def test_a_hung_loop_loses_the_lease() -> None:
    assert core.wish(HELD, 1500.0, permit_until=1499.0) == Idle(None)
    assert core.wish(replace(HELD, epoch=None), 1500.0, permit_until=1499.0) == Idle(None)


def test_between_two_renewals_it_rests() -> None:
    assert core.wish(HELD, 1005.0, LONG) == Idle(1010.0)
    assert core.wish(HELD, 1010.0, LONG) == RenewLeader(5)


def test_an_opened_session_waits_for_its_first_renewal() -> None:
    lease = core.opened(Lease(), "s", 1000.0, SETTINGS)
    assert core.wish(lease, 1000.0, LONG) == Idle(1010.0)


# --- a ttl that changes while we lead -------------------------------------------------------------


def test_a_raised_ttl_does_not_end_a_lease_whose_session_is_still_short() -> None:
    """The old session lives 5 seconds; a budget reckoned from 30 would leave a deadline in the past."""
    fence_at, hard_at = core.deadlines(1000.0, 5.0, Settings(ttl_s=30))
    assert 1004.0 < fence_at < hard_at < 1005.0


def test_a_lowered_ttl_shortens_the_deadline_though_the_session_is_still_long() -> None:
    """The next session lives 5 seconds: a deadline that counts on 30 would outlive the key."""
    _, hard_at = core.deadlines(1000.0, 30.0, Settings(ttl_s=5, loop_wait_s=1, retry_timeout_s=2))
    assert hard_at < 1005.0


def test_the_key_moves_to_a_shorter_session_only_when_the_old_deadline_is_that_near() -> None:
    short = 5.0
    assert not core.may_change_session(HELD, 1000.2, short)
    assert not core.may_change_session(HELD, 1024.0, short)
    assert core.may_change_session(HELD, 1025.0, short)
    assert core.may_change_session(HELD, 1000.2, 60.0)
    assert core.may_change_session(Lease(session="s"), 1000.2, short)
