"""When the watchdog device is opened, kept alive and switched off (contract 7.4): the guardian's part.

Theory. The device resets the host when guardian and agent cannot act both (a frozen host). It belongs to the
guardian because the guardian stops PostgreSQL when the agent is dead or frozen: as long as it can, nobody has
to reset a host. It is open exactly while a deadline is armed: a keepalive follows each deadline that the
agent has proven, and the device is switched off once the lease is dropped, which means that nothing is
writable under it any more. PostgreSQL that cannot be stopped keeps it on.

What holds: the device fires at `hard_at` at the latest. Each keepalive therefore programs what is left until
then, if that is less than the timeout wanted. When no newer deadline comes, one more is given shortly before
the device would fire, so that the guardian stops PostgreSQL first: an expired lease alone resets no host.

A device may hang: children work on it, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from haagent.guardian_kernel import Kernel, WatchdogOrder
from haagent.guardian_lease import Lease, Refused

#: Without news a keepalive is given when this share of the timeout is left.
SPARE_SHARE = 0.25
#: A keepalive that failed is tried again after this, seconds.
RETRY_S = 0.5
#: A device knows whole seconds.
LEAST_S = 1

#: Told None when it is done, or why it is not.
Done = Callable[[str | None], None]


class Watchdog:
    """The device of one guardian. `children` gets the pids of what works on it. Times are CLOCK_BOOTTIME."""

    def __init__(self, kernel: Kernel, lease: Lease, children: set[int]) -> None:
        self.kernel, self.lease, self.children = kernel, lease, children
        self.device, self.testing, self.timeout_s = "", False, 0
        self.is_open = False
        #: What it is set to now, and when it fires at the earliest without another keepalive.
        self.programmed_s = 0
        self.fires_at = 0.0
        #: What went wrong last; None while all is well.
        self.fault: str | None = None
        self.next_at: float | None = None
        self.child: int | None = None
        self._asked: Done | None = None
        self._off: Done | None = None
        self._then: Callable[[], None] | None = None
        self._proven = False
        self._begun = 0.0, 0

    def describe(self) -> dict[str, Any] | None:
        """As in the messages."""
        return {"timeout_s": self.timeout_s, "fault": self.fault} if self.is_open else None

    # --- what the logic tells

    def watch(self, device: str, testing: bool, timeout_s: int, done: Done) -> None:
        """Open it, or set it to another timeout. Raises Refused."""
        if self._asked is not None or self._off is not None:
            raise Refused("the watchdog is being worked on")
        if self.is_open and device != self.device:
            raise Refused(f"{self.device} is open: switch it off first")
        self.device, self.testing, self.timeout_s = device, testing, timeout_s
        self._asked = done

    def switch_off(self, device: str, testing: bool, done: Done) -> None:
        """Also one that is not open, but runs because the guardian before this one died. Raises Refused."""
        if self._asked is not None or self._off is not None:
            raise Refused("the watchdog is being worked on")
        if not self.is_open:
            self.device, self.testing = device, testing
        self._off = done

    def when_off(self, then: Callable[[], None]) -> None:
        """Switch it off if it is on, and go on when nothing works on it any more."""
        self._then = then

    def proven(self) -> None:
        """A newer deadline is armed."""
        self._proven = self.is_open

    def ended(self, pid: int, problem: str) -> None:
        """The child is done; `problem` is "" when all went well."""
        if pid == self.child:
            self.child = None
            self._settle(problem)

    def look(self) -> None:
        """After each thing that happened, and at `next_at`: begin what is to be done."""
        if self.child is not None:
            return
        if self._then is not None and not self.is_open:
            then, self._then = self._then, None
            then()
            return
        now = self.kernel.now()
        needed = self.lease.epoch is not None and not self.lease.disarmed and self._then is None
        if self._off is not None or (self.is_open and not needed):
            self._fork(now, 0)
        elif self._asked is not None and not needed:
            done, self._asked = self._asked, None
            done("no lease is armed")
        elif self._asked is not None or self._proven or (self.next_at is not None and self.next_at <= now):
            self._keep_alive(now)

    # --- inside

    def _keep_alive(self, now: float) -> None:
        self._proven, self.next_at = False, None
        left_s = int((self.lease.hard_at or now) - now)
        timeout_s = min(self.timeout_s, left_s)
        if timeout_s >= LEAST_S:
            self._fork(now, timeout_s)
        elif self._asked is not None:
            done, self._asked = self._asked, None
            done("the lease is about to end")

    def _fork(self, now: float, timeout_s: int) -> None:
        """`timeout_s` 0 switches it off."""
        before = (self.lease.hard_at or now) - timeout_s
        change = timeout_s != self.programmed_s or not self.is_open or self._asked is not None
        order = WatchdogOrder(self.device, self.testing, timeout_s, change, before)
        self._begun = now, timeout_s
        try:
            self.child = self.kernel.fork_watchdog(order, self.ended)
        except OSError as fault:
            self.fault, self.next_at = f"cannot fork: {fault.strerror}", now + RETRY_S
            return
        self.children.add(self.child)

    def _settle(self, problem: str) -> None:
        began_at, timeout_s = self._begun
        done = self._off if timeout_s == 0 else self._asked
        if timeout_s == 0:
            # Its descriptor is closed, whatever became of the rest.
            self.is_open, self.programmed_s, self._off, self.next_at = False, 0, None, None
        elif problem and not self.is_open:
            self._asked = None
        elif problem:
            self._asked, self.next_at = None, self.kernel.now() + RETRY_S
        else:
            self._asked, self.is_open = None, True
            self.programmed_s, self.fires_at = timeout_s, began_at + timeout_s
            more = self.fires_at + LEAST_S <= (self.lease.hard_at or 0.0)
            self.next_at = self.fires_at - SPARE_SHARE * timeout_s if more else None
        self.fault = problem or None
        if done is not None:
            done(self.fault)
