"""The lease state machine: pure arithmetic over proofs of life. Hazards H1, H2, H6, H7; safety rule 1.

What holds
- A lease is proven only by `Renewed(sent_at, guaranteed_s)`; its deadline counts from before the sending.
- `Unknown` leaves the deadline where it was; `Refused` ends the lease at once.
- After `Unknown`, promises of all members prolong the lease in failsafe mode, counted from before the first
  of them was asked; `Refused` is never covered (H19).
- `hard_at`: nothing may be writable any more. `fence_at`: the guardian starts to stop PostgreSQL.
- A closed epoch is never renewed again: its session too is left alone until the key is released, so that a
  host that cannot release it (processes in uninterruptible sleep) lets it expire.

        open_session      taken             renewed (n times)             closed / refused / fenced
    none ────────► session ────► unproven ─────────► held ──────────────────────────► session or none
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from haagent.core.settings import Settings

#: Clocks of two hosts may run apart by this share of the ttl.
DRIFT_SHARE = 0.01
#: Time to stop PostgreSQL before the lease ends: this share of the ttl, never less than the second number.
STOP_BUDGET_SHARE, STOP_BUDGET_MIN_S = 1 / 6, 0.5
#: First pause after a renewal without a clear answer, then doubled up to the maximum; seconds.
RETRY_FIRST_S, RETRY_MAX_S = 0.1, 1.0


def stop_budget_s(settings: Settings) -> float:
    """Time kept before the end of the lease in which the guardian stops PostgreSQL, seconds."""
    return max(STOP_BUDGET_MIN_S, settings.ttl_s * STOP_BUDGET_SHARE)


def renew_interval_s(settings: Settings) -> float:
    """How often the keeper renews: min(loop_wait, (ttl - budget) / 2), seconds (H7)."""
    return min(settings.loop_wait_s, (settings.ttl_s - stop_budget_s(settings)) / 2)


def renew_attempt_s(settings: Settings) -> float:
    """Deadline of one renewal: two of them after an interval still end before the fence (H7), seconds."""
    kept = stop_budget_s(settings) + settings.ttl_s * DRIFT_SHARE + renew_interval_s(settings)
    return max(0.2, min(settings.retry_timeout_s, (settings.ttl_s - kept) / 2))


def permit_life_s(settings: Settings) -> float:
    """How long one permit of the loop lets the keeper go on; never beyond a lease, seconds."""
    return min(settings.loop_wait_s + settings.retry_timeout_s, settings.ttl_s - stop_budget_s(settings))


def deadlines(sent_at: float, guaranteed_s: float, settings: Settings) -> tuple[float, float]:
    """(fence_at, hard_at) of a renewal sent then: the backend keeps the key until after hard_at.

    While a changed ttl is not yet that of the session, the shorter of the two counts for everything."""
    life_s = min(guaranteed_s, settings.ttl_s)
    hard_at = sent_at + life_s * (1 - DRIFT_SHARE)
    return hard_at - max(STOP_BUDGET_MIN_S, life_s * STOP_BUDGET_SHARE), hard_at


def may_change_session(lease: Lease, now: float, life_s: float) -> bool:
    """May the key move onto a session, opened after `now`, that lives for `life_s`?

    Not while a deadline proven on a longer lived session reaches beyond the life of the new one: the key
    could vanish before the fence. A lowered ttl therefore waits until that deadline is near enough."""
    if lease.epoch is None or lease.hard_at is None:
        return True
    return lease.hard_at <= now + life_s * (1 - DRIFT_SHARE)


@dataclass(frozen=True)
class Lease:
    """State of this agent's session and leadership."""

    session: str | None = None
    #: Epoch under which the key is ours; None when we do not hold it.
    epoch: int | None = None
    fence_at: float | None = None
    hard_at: float | None = None
    #: The epoch was closed: no renewal, no writable server under it, ever (H6).
    closed: bool = False
    #: Why the store says that key or session are not ours; None while it has not.
    refused: str | None = None
    next_attempt_at: float = 0.0
    failures: int = 0
    #: Until when the fence rests on what the members promised (H19); None: on what the DCS has proven.
    failsafe_until: float | None = None

    def holds(self, now: float) -> bool:
        """True while the lease is provably valid."""
        return (
            self.epoch is not None and not self.closed and self.fence_at is not None and now < self.fence_at
        )


@dataclass(frozen=True)
class OpenSession:
    """The keeper should open a session now."""


@dataclass(frozen=True)
class RenewSession:
    """The keeper should keep the session alive now (we do not lead)."""


@dataclass(frozen=True)
class RenewLeader:
    """The keeper should prove and prolong our leadership now."""

    epoch: int


@dataclass(frozen=True)
class Idle:
    """Nothing to do before `until` (None: until told)."""

    until: float | None


Wish = OpenSession | RenewSession | RenewLeader | Idle


def wish(lease: Lease, now: float, permit_until: float) -> Wish:
    """What the lease keeper should do at `now`.

    Leadership is renewed only under a fresh permit of the loop: a hung loop loses the lease. A session
    without leadership carries only the member key and is renewed the same way, so that a hung agent is
    seen as gone."""
    if now < lease.next_attempt_at:
        return Idle(lease.next_attempt_at)
    if lease.closed and lease.epoch is not None:
        return Idle(None)
    if lease.session is None:
        return OpenSession()
    if now >= permit_until:
        return Idle(None)
    if lease.epoch is None:
        return RenewSession()
    return RenewLeader(lease.epoch)


def opened(lease: Lease, session: str, now: float, settings: Settings) -> Lease:
    """A session was opened, or continued by handle after a restart."""
    return replace(lease, session=session, next_attempt_at=now + renew_interval_s(settings), failures=0)


def taken(lease: Lease, epoch: int) -> Lease:
    """The key was created by us; proves nothing about its life yet (H1)."""
    return replace(
        lease,
        epoch=epoch,
        fence_at=None,
        hard_at=None,
        failsafe_until=None,
        closed=False,
        refused=None,
        next_attempt_at=0.0,
    )


def renewed(lease: Lease, sent_at: float, guaranteed_s: float, now: float, settings: Settings) -> Lease:
    """A proof of life arrived; deadlines never move backwards."""
    fence_at, hard_at = deadlines(sent_at, guaranteed_s, settings)
    proven = replace(lease, next_attempt_at=max(now, sent_at + renew_interval_s(settings)), failures=0)
    if lease.epoch is None or lease.closed:
        return proven
    proves_more = fence_at >= (lease.failsafe_until or 0.0)
    return replace(
        proven,
        fence_at=max(fence_at, lease.fence_at or fence_at),
        hard_at=max(hard_at, lease.hard_at or hard_at),
        failsafe_until=None if proves_more else lease.failsafe_until,
    )


def needs_promises(lease: Lease, now: float, permit_until: float) -> bool:
    """A proven lease whose last renewal got no clear answer: the members are asked at once, not when the
    retries have run out (H19). Like a renewal it needs a fresh permit of the loop."""
    return lease.failures > 0 and lease.holds(now) and now < permit_until


def promised(lease: Lease, sent_at: float, promised_s: float, settings: Settings) -> Lease:
    """All members stay out of the race for so long from when they got what was sent then, or later.

    The arithmetic is that of a renewal. Tries to renew go on as they were."""
    fence_at, hard_at = deadlines(sent_at, promised_s, settings)
    if lease.fence_at is None or lease.hard_at is None or lease.closed or fence_at <= lease.fence_at:
        return lease
    return replace(lease, fence_at=fence_at, hard_at=max(hard_at, lease.hard_at), failsafe_until=fence_at)


def unknown(lease: Lease, now: float) -> Lease:
    """No clear answer: the deadline stays, try again soon."""
    pause = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(lease.failures, 10))
    return replace(lease, next_attempt_at=now + pause, failures=lease.failures + 1)


def refused(lease: Lease, reason: str, session_gone: bool) -> Lease:
    """The store says it is not ours: leadership ends now, whatever the deadline was.

    Until when the members have promised to stay out is remembered: nothing is added to it any more."""
    return replace(
        lease,
        session=None if session_gone else lease.session,
        epoch=None,
        fence_at=None,
        hard_at=None,
        closed=False,
        refused=reason,
        next_attempt_at=0.0,
    )


def closed(lease: Lease) -> Lease:
    """The epoch was closed by the guardian (fence fired) or before a release."""
    return replace(lease, closed=True, fence_at=None, hard_at=None, failsafe_until=None)


def released(lease: Lease) -> Lease:
    """The key is deleted: only the session is left."""
    return replace(
        lease,
        epoch=None,
        closed=False,
        fence_at=None,
        hard_at=None,
        failsafe_until=None,
        next_attempt_at=0.0,
    )
