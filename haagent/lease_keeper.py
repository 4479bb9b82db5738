"""The lease keeper: its own thread and its own DCS connection; it never touches SQL (design section 2).

It renews the session, and the leader key with it, only under fresh permits of the loop, so that a hung
loop loses the lease. Each proof of life is worth something only once the guardian has acknowledged its
deadline: `facts()` shows a deadline that the kernel holds. All arithmetic is in `haagent.core.lease`.

In failsafe mode promises of all members prolong the lease while renewals get no clear answer
(`haagent.failsafe`): by the same arithmetic, under the same permits, armed and acknowledged the same way. A
refusal ends it at once, whatever was promised (H19).

Locks guard the state only; no DCS or guardian call is made while one is held. An answer is applied to the
state it belongs to: when the epoch has changed meanwhile, it is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from dcs.api import (
    Conflict,
    Dcs,
    LeaseHandle,
    Ok,
    Refused,
    Renewed,
    RenewOutcome,
    Taken,
    TakeOutcome,
    Unknown,
    WriteOutcome,
)
from dcs.errors import DcsError
from dcs.records import Leader
from haagent import guardian_types as guardian
from haagent.core import lease as core
from haagent.core.model import LeaseFacts
from haagent.core.settings import Settings
from haagent.failsafe import Failsafe, Need
from haagent.measures import Lease, Measures
from haagent.runtime import Runtime

log = logging.getLogger(__name__)

#: The guardian answers from memory; longer than this means it is frozen, seconds.
GUARDIAN_ANSWER_S = 1.0
#: The same at the deadline, when the stop budget (0.5 s and more) runs already, seconds.
FENCING_ANSWER_S = 0.1


class Fence(Protocol):
    """What the keeper needs of the guardian (`ports.GuardianLink`)."""

    def arm(
        self,
        handle: guardian.Handle,
        fence_at: float,
        hard_at: float,
        deadline_s: float,
        spares_standby: bool = False,
    ) -> guardian.Armed | guardian.ArmRefused | guardian.NoAnswer: ...

    def disarm(self, deadline_s: float) -> guardian.Simple: ...

    def close_epoch(self, epoch: int, deadline_s: float) -> guardian.Simple: ...

    def status(self, deadline_s: float) -> guardian.GuardianState | guardian.Refused | guardian.NoAnswer: ...


class LeaseKeeper:
    """Keeps session and leader key of one agent. Thread safe."""

    def __init__(
        self,
        runtime: Runtime,
        dcs: Dcs,
        name: str,
        settings: Settings,
        on_change: Callable[[], None],
        fence_directly: Callable[[], None],
        measures: Measures,
        failsafe: Failsafe | None = None,
    ) -> None:
        self._now = runtime.now
        self._failsafe = failsafe
        self._dcs, self._name, self._on_change = dcs, name, on_change
        self._fence_directly, self._measures = fence_directly, measures
        #: The last deadline a guardian acknowledged: ours to enforce when it cannot (H10).
        self._acknowledged_fence_at: float | None = None
        self._settings = settings
        self._fence: Fence | None = None
        self._lease = core.Lease()
        self._session_ttl_s = settings.ttl_s
        self._permit_until = 0.0
        self._closed_epoch = 0
        self._disarmed = False
        self._guardian_ok = True
        self._ended = False
        self._facts = LeaseFacts()
        #: Guards the state, and wakes the keeper's own thread.
        self._changed = runtime.condition()
        #: Wakes the backstop, which otherwise sleeps through all that goes well.
        self._alarm = runtime.condition()
        self._thread = runtime.thread(self._run, "lease-keeper")
        self._backstop = runtime.thread(self._stand_in, "fence-backstop")

    # --- wiring -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._backstop.start()
        if self._failsafe is not None:
            self._failsafe.start(self)

    def stop(self) -> None:
        """No renewal is begun after this; the session is left to expire, or to be closed by rule."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._wake_backstop()
        if self._failsafe is not None:
            self._failsafe.stop()
        if self._thread.is_alive():
            self._thread.join(self._settings.retry_timeout_s + 1)

    def use_guardian(self, fence: Fence, state: guardian.GuardianState) -> None:
        """A guardian was reached; continue the one tenure it keeps, if there is one (H5)."""
        self._tell_deadline(fence, state)
        continued = "" if state.armed is None else self._dcs.unsealed(state.armed.handle.session)
        with self._changed:
            self._fence, self._guardian_ok = fence, True
            self._closed_epoch = max(self._closed_epoch, state.closed_epoch)
            self._disarmed = state.disarmed
            armed = state.armed
            if armed is not None and self._lease.epoch is None and armed.handle.epoch > state.closed_epoch:
                held = core.taken(replace(self._lease, session=continued), armed.handle.epoch)
                self._lease = replace(held, fence_at=armed.fence_at, hard_at=armed.hard_at)
                self._acknowledged_fence_at = armed.fence_at
            else:
                self._lease = replace(self._lease, next_attempt_at=0.0)
            self._changed.notify_all()
        self._wake_backstop()

    def _tell_deadline(self, fence: Fence, state: guardian.GuardianState) -> None:
        """The one before it died. What the new one found running may write until the proven deadline: it has
        to end it then, also when no renewal comes to tell a later one, and this agent is no more."""
        with self._changed:
            lease, due = self._lease, self._acknowledged_fence_at
            told = state.armed is not None or self._disarmed
            if told or due is None or lease.epoch is None or lease.epoch <= self._closed_epoch:
                return
            fence_at, hard_at = core.deadlines(0.0, self._settings.ttl_s, self._timings())
            handle = guardian.Handle(self._dcs.sealed(lease.session or ""), lease.epoch)
        fence.arm(handle, due, due + hard_at - fence_at, GUARDIAN_ANSWER_S, self._spares_standby())

    def _spares_standby(self) -> bool:
        """The lease of a standby cluster says who follows the other one: read only, nothing to fence."""
        return self._settings.standby_cluster is not None

    def permit(self) -> None:
        """The loop is alive and wants to keep what it has.

        Wakes the keeper only when the last permit had lapsed: else nobody waits for this one."""
        with self._changed:
            now, lapsed_at = self._now(), self._permit_until
            self._permit_until = now + core.permit_life_s(self._timings())
            if lapsed_at <= now:
                self._changed.notify_all()

    def use_settings(self, settings: Settings) -> None:
        with self._changed:
            self._settings = settings
            self._changed.notify_all()

    def _timings(self) -> Settings:
        """The settings, with what a renewal of our session really proves as the ttl (Consul: half of it)."""
        life_s = min(self._settings.ttl_s, self._dcs.guaranteed_s(self._session_ttl_s))
        return replace(self._settings, ttl_s=life_s) if life_s < self._settings.ttl_s else self._settings

    # --- facts ------------------------------------------------------------------------------------

    def facts(self) -> LeaseFacts:
        """The same object until something in it changes."""
        with self._changed:
            lease = self._lease
            facts = LeaseFacts(
                session=lease.session,
                epoch=lease.epoch,
                fence_at=lease.fence_at,
                disarmed=self._disarmed,
                closed_epoch=self._closed_epoch,
                refused=lease.refused,
                guardian_ok=self._guardian_ok,
                failsafe_until=lease.failsafe_until,
            )
            if facts != self._facts:
                self._facts = facts
            return self._facts

    def leader_until(self) -> float | None:
        """Until when "I am leader" holds, CLOCK_BOOTTIME seconds."""
        lease = self._lease
        return lease.fence_at if lease.epoch is not None and not lease.closed else None

    def session(self) -> str | None:
        return self._lease.session

    def handle(self) -> LeaseHandle | None:
        lease = self._lease
        if lease.session is None or lease.epoch is None:
            return None
        return LeaseHandle(lease.session, lease.epoch)

    def holds(self, epoch: int) -> bool:
        """The guard of every dangerous action: this very epoch, proven, not past its fence."""
        lease = self._lease
        return lease.epoch == epoch and (lease.holds(self._now()))

    # --- what the loop asks for -------------------------------------------------------------------

    def take(self, deadline_s: float) -> TakeOutcome:
        """Take the leader key, prove it, arm the guardian: in this order (H1, H8)."""
        session = self._lease.session
        if session is None:
            return Unknown("no session with the DCS yet")
        outcome = self._dcs.take_leader(session, self._name, deadline_s)
        if isinstance(outcome, Taken):
            self._transition(lambda lease: core.taken(lease, outcome.handle.epoch))
            self._renew_leader(outcome.handle)
        return outcome

    def recognise(self, leader: Leader | None) -> None:
        """Settle unknown outcomes: the key on our own session is ours, a missing one is released."""
        with self._changed:
            lease = self._lease
            if leader is None or leader.session != lease.session:
                if lease.closed and (leader is None or leader.epoch != lease.epoch):
                    self._lease = core.released(lease)
                    self._changed.notify_all()
            elif lease.epoch is None and leader.epoch > self._closed_epoch:
                self._lease = core.taken(lease, leader.epoch)
                self._changed.notify_all()

    def close_epoch(self, epoch: int) -> bool:
        """H6: acknowledged by the guardian before the release is sent."""
        fence = self._fence
        answer = fence.close_epoch(epoch, GUARDIAN_ANSWER_S) if fence is not None else None
        if not isinstance(answer, guardian.Done):
            log.warning("the guardian did not close epoch %s: %s", epoch, answer)
            return False
        self._acknowledged_fence_at = None  # what runs is harmless
        self.fenced(epoch)
        return True

    def release(self, epoch: int, deadline_s: float, status: str | None = None) -> WriteOutcome:
        """Delete the key, and leave the last position; only for a closed epoch."""
        handle = self.handle()
        if handle is None or handle.epoch != epoch or not self._lease.closed:
            return Conflict(f"epoch {epoch} is not a closed epoch of ours")
        outcome = self._dcs.release_leader(handle, self._name, deadline_s, status)
        if isinstance(outcome, Ok | Conflict):
            self._transition(lambda lease: core.released(lease) if lease.epoch == epoch else lease)
        return outcome

    def set_fencing(self, armed: bool) -> bool:
        """Pause (H20): the caller has just read `pause` linearizably. True when the guardian agreed."""
        fence = self._fence
        if fence is None:
            return False
        if not armed:
            done = isinstance(fence.disarm(GUARDIAN_ANSWER_S), guardian.Done)
            with self._changed:
                self._disarmed = self._disarmed or done
            return done
        with self._changed:
            self._disarmed = False
        self._wake_backstop()
        handle = self.handle()
        if handle is None:
            return True
        self._renew_leader(handle)
        return self._guardian_ok and self.holds(handle.epoch)

    def fenced(self, epoch: int) -> None:
        """The epoch is closed: by the guardian's fence, or by us before a release."""
        with self._changed:
            self._closed_epoch = max(self._closed_epoch, epoch)
            if self._lease.epoch is not None and self._lease.epoch <= epoch:
                self._lease = core.closed(self._lease)
            self._changed.notify_all()

    # --- standing in for the guardian ---------------------------------------------------------------

    def _stand_in(self) -> None:
        """The agent is the fence of a guardian that is frozen or dead: at the deadline it last acknowledged.

        A thread of its own: neither a slow store nor a slow step may hold it up."""
        while True:
            with self._alarm:
                if self._ended:
                    return
                due = None if self._disarmed else self._acknowledged_fence_at
                now = self._now()
                if due is None or now < due:
                    self._alarm.wait(None if due is None else due - now)
                    continue
            with self._changed:
                if self._disarmed or self._acknowledged_fence_at != due:
                    continue  # a proof, or a pause, came just now
                self._acknowledged_fence_at = None
                epoch, fence = self._lease.epoch, self._fence if self._guardian_ok else None
            if fence is None or not self._guardian_fences(fence, epoch):
                self._fence_ourselves(epoch)

    def _guardian_fences(self, fence: Fence, epoch: int | None) -> bool:
        """It is at work on the deadline that passed, or has done it; one that never knew of it does nothing.
        While nothing had to be armed (the store was out of reach), nobody could notice that it is frozen; so
        it is asked, until it is done."""
        state = fence.status(FENCING_ANSWER_S)
        with self._changed:
            if isinstance(state, guardian.NoAnswer):
                self._guardian_ok = self._acknowledged_fence_at is not None  # acknowledged meanwhile
                return self._guardian_ok
            at_work = isinstance(state, guardian.GuardianState) and state.fencing
            if at_work and self._acknowledged_fence_at is None:
                self._acknowledged_fence_at = self._now() + FENCING_ANSWER_S
        return at_work or not isinstance(state, guardian.GuardianState) or _knows(state, epoch)

    def _fence_ourselves(self, epoch: int | None) -> None:
        log.critical("the lease ran out and the guardian does not answer: fencing PostgreSQL directly")
        self._fence_directly()
        self._measures.fenced("agent")
        if epoch is not None:
            self.fenced(epoch)
        self._on_change()

    def _wake_backstop(self) -> None:
        """Its deadline is new, or sooner than the one it sleeps until; or this is the end."""
        with self._alarm:
            self._alarm.notify_all()

    def guardian_lost(self) -> None:
        """Nobody holds the deadline any more: it is unproven until another guardian has it (H10)."""
        with self._changed:
            self._guardian_ok, self._fence = False, None
            self._lease = replace(self._lease, fence_at=None, hard_at=None, next_attempt_at=0.0)
            self._changed.notify_all()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            wish = self._next_wish()
            if wish is None:
                return
            try:
                self._fulfil(wish)
            except Exception:
                log.exception("lease keeper: unexpected failure")
                self._no_answer()

    def _next_wish(self) -> core.Wish | None:
        """Wait until there is something to do; None at the end."""
        with self._changed:
            while not self._ended:
                now = self._now()
                if self._fence is None:
                    wish: core.Wish = core.Idle(None)
                else:
                    wish = core.wish(self._lease, now, self._permit_until)
                if self._wants_new_ttl(now):
                    return core.OpenSession()
                if not isinstance(wish, core.Idle):
                    return wish
                self._changed.wait(None if wish.until is None else max(0.0, wish.until - now))
            return None

    def _wants_new_ttl(self, now: float) -> bool:
        """A changed ttl needs a new session; never for a closed epoch, never faster than retries go, and
        never while the guardian holds a deadline that reaches beyond the life of the new one."""
        lease = self._lease
        if self._session_ttl_s == self._settings.ttl_s or lease.session is None or lease.closed:
            return False
        if self._fence is None or now < lease.next_attempt_at:
            return False
        if lease.epoch is not None and not self._dcs.moves_leader:
            return False
        return core.may_change_session(lease, now, self._dcs.guaranteed_s(self._settings.ttl_s))

    def _fulfil(self, wish: core.Wish) -> None:
        if isinstance(wish, core.OpenSession):
            self._open_session()
        elif isinstance(wish, core.RenewSession):
            self._renew_session()
        elif isinstance(wish, core.RenewLeader):
            handle = self.handle()
            if handle is not None:
                self._renew_leader(handle)

    def _no_answer(self) -> None:
        """The store gave no clear answer: soon again, and the members are asked meanwhile (H19)."""
        self._transition(lambda lease: core.unknown(lease, self._now()))
        if self._failsafe is not None and self._lease.epoch is not None:
            self._failsafe.wake()

    def _transition(self, change: Callable[[core.Lease], core.Lease]) -> None:
        with self._changed:
            self._lease = change(self._lease)
            self._changed.notify_all()

    def _attempt_s(self) -> float:
        return core.renew_attempt_s(self._timings())

    def _open_session(self) -> None:
        settings = self._settings
        try:
            session = self._dcs.open_session(settings.ttl_s, self._attempt_s())
        except DcsError as fault:
            log.warning("no session with the DCS: %s", fault)
            self._no_answer()
            return
        handle = self.handle()
        if handle is not None and not self._move_key(handle, session):
            return
        with self._changed:
            self._session_ttl_s = settings.ttl_s
            self._lease = core.opened(self._lease, session, self._now(), self._timings())
            if handle is not None:
                self._lease = replace(self._lease, next_attempt_at=0.0)
        self._on_change()

    def _move_key(self, handle: LeaseHandle, session: str) -> bool:
        """The ttl changed while we lead: the key moves onto the new session in one transaction."""
        if self._lease.closed:
            return False
        outcome = self._dcs.move_leader(handle, session, self._name, self._attempt_s())
        if isinstance(outcome, Taken):
            return True
        log.warning("the leader key could not be moved onto a session with the new ttl: %s", outcome)
        if isinstance(outcome, Conflict):
            self._renew_leader(handle)  # is it ours at all?
        else:
            self._no_answer()
        return False

    def _renew_session(self) -> None:
        session = self._lease.session
        if session is None:
            return
        outcome = self._dcs.renew_session(session, self._attempt_s())
        now, settings = self._now(), self._timings()
        self._measure("session", outcome, now)
        if isinstance(outcome, Renewed):
            self._transition(
                lambda lease: core.renewed(lease, outcome.sent_at, outcome.guaranteed_s, now, settings)
            )
        elif isinstance(outcome, Refused):
            self._transition(lambda lease: core.refused(lease, outcome.reason, session_gone=True))
        else:
            self._transition(lambda lease: core.unknown(lease, now))

    def _renew_leader(self, handle: LeaseHandle) -> None:
        outcome = self._dcs.renew_leader(handle, self._name, self._attempt_s())
        now = self._now()
        self._measure("leader", outcome, now)
        if isinstance(outcome, Renewed):
            self._proven(handle, outcome)
        elif isinstance(outcome, Refused):
            log.error("failed to update leader lock: %s", outcome.reason)
            self._transition(
                lambda lease: (
                    core.refused(lease, outcome.reason, False) if lease.epoch == handle.epoch else lease
                )
            )
            self._on_change()
        else:
            log.warning("renewal of the leader key without a clear answer: %s", outcome.cause)
            self._no_answer()

    def _measure(self, lease: Lease, outcome: RenewOutcome, now: float) -> None:
        if isinstance(outcome, Renewed):
            self._measures.renewed(lease, "ok")
            self._measures.round_trip("renew", now - outcome.sent_at)
        else:
            self._measures.renewed(lease, "refused" if isinstance(outcome, Refused) else "unknown")

    def _proven(self, handle: LeaseHandle, proof: Renewed) -> None:
        """Arm first, believe afterwards: a deadline counts once the kernel holds it."""

        def renewed(lease: core.Lease) -> core.Lease:
            return core.renewed(lease, proof.sent_at, proof.guaranteed_s, self._now(), self._timings())

        first = self._lease.fence_at is None
        if not self._arm(handle, proof.sent_at, proof.guaranteed_s, renewed) or first:
            self._on_change()

    def _arm(
        self, handle: LeaseHandle, sent_at: float, life_s: float, proven: Callable[[core.Lease], core.Lease]
    ) -> bool:
        """The guardian gets the deadlines of what was sent then and lasts `life_s` seconds; when it has
        acknowledged them, the lease is what `proven` says."""
        fence_at, hard_at = core.deadlines(sent_at, life_s, self._timings())
        fence, disarmed = self._fence, self._disarmed
        answer: guardian.Armed | guardian.ArmRefused | guardian.NoAnswer
        if disarmed:
            answer = guardian.Armed(fence_at, hard_at)
        elif fence is None:
            answer = guardian.NoAnswer("no guardian")
        else:
            kept = guardian.Handle(self._dcs.sealed(handle.session), handle.epoch)
            answer = fence.arm(kept, fence_at, hard_at, GUARDIAN_ANSWER_S, self._spares_standby())
        if isinstance(answer, guardian.Armed):
            self._accept(handle, answer.fence_at, proven)
            return True
        if isinstance(answer, guardian.ArmRefused):
            log.error("the guardian refused the deadline of epoch %s: %s", handle.epoch, answer.reason)
            self.fenced(handle.epoch)
        else:
            log.error("the guardian does not acknowledge: %s", answer.cause)
            with self._changed:
                self._guardian_ok = False
                self._lease = core.unknown(self._lease, self._now())
                self._changed.notify_all()
        return False

    def _accept(
        self, handle: LeaseHandle, fence_at: float, proven: Callable[[core.Lease], core.Lease]
    ) -> None:
        with self._changed:
            before = self._acknowledged_fence_at
            self._guardian_ok = True
            if self._lease.epoch == handle.epoch:
                self._lease = proven(self._lease)
                # Of two acknowledgements at the same time the guardian keeps the later deadline.
                fence_at = max(fence_at, self._lease.fence_at or fence_at)
            self._acknowledged_fence_at = fence_at
            self._changed.notify_all()
        if before is None or fence_at < before:
            self._wake_backstop()

    # --- failsafe mode (H19) ------------------------------------------------------------------------

    def needs_promises(self) -> Need | None:
        """Whether the members have to be asked now; None when the DCS answers, or promises cannot help."""
        with self._changed:
            lease, settings, now = self._lease, self._timings(), self._now()
            if self._ended or self._disarmed or not (settings.failsafe_mode and self._guardian_ok):
                return None
            if not core.needs_promises(lease, now, self._permit_until):
                return None
            if lease.session is None or lease.epoch is None or lease.fence_at is None:
                return None
            return Need(LeaseHandle(lease.session, lease.epoch), lease.fence_at - now, settings)

    def promised(self, handle: LeaseHandle, sent_at: float, promised_s: float) -> None:
        """All members stay out of the race for so long from `sent_at` on, or longer."""

        def carried(lease: core.Lease) -> core.Lease:
            return core.promised(lease, sent_at, promised_s, self._timings())

        with self._changed:
            lease = self._lease
            if lease.epoch != handle.epoch or not lease.holds(self._now()) or carried(lease) is lease:
                return  # refused or fenced meanwhile, which nothing covers; or renewed
        begins = lease.failsafe_until is None
        if not self._arm(handle, sent_at, promised_s, carried) or begins:
            self._on_change()

    def rests_on_promises(self) -> bool:
        """The deadline in force lies beyond what the DCS has proven."""
        return self._lease.failsafe_until is not None


def _knows(state: guardian.GuardianState, epoch: int | None) -> bool:
    """It holds a deadline, or has closed this epoch, or there is nothing to end."""
    nothing_runs = state.postmaster is None and not state.leftovers
    return state.armed is not None or nothing_runs or (epoch is not None and state.closed_epoch >= epoch)
