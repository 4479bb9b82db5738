"""The deadline the guardian keeps, and which epochs are closed. Pure: no clock, no I/O.

Theory. At most one epoch is armed. A higher epoch replaces a lower one and closes it. A deadline only moves
forward. A closed epoch is closed for ever (H6), but while a server may still write under it its deadline
stays and fires. Disarmed (pause), the deadline is kept and does not fire. Times are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """The request is understood and not granted; the text says why."""


class Lease:
    """Nothing armed: `epoch`, `fence_at` and `hard_at` are None."""

    def __init__(self) -> None:
        self.session = ""
        self.epoch: int | None = None
        self.fence_at: float | None = None
        self.hard_at: float | None = None
        self.closed_epoch = 0
        self.disarmed = False
        #: In a standby cluster: a server that may not write is left running at the deadline.
        self.spares_standby = False

    @property
    def fires_at(self) -> float | None:
        """When the timer has to wake the guardian."""
        return None if self.disarmed else self.fence_at

    def due(self, now: float) -> bool:
        """True once the deadline has passed without a newer one."""
        fires_at = self.fires_at
        return fires_at is not None and fires_at <= now

    def is_closed(self) -> bool:
        """True while an epoch is armed that is already closed: only its fence is still wanted."""
        return self.epoch is not None and self.epoch <= self.closed_epoch

    def arm(
        self,
        session: str,
        epoch: int,
        fence_at: float,
        hard_at: float,
        now: float,
        spares_standby: bool = False,
    ) -> None:
        """Set or extend the deadline. Raises Refused."""
        if epoch <= self.closed_epoch:
            raise Refused(f"epoch {epoch} is closed (closed up to {self.closed_epoch})")
        if self.epoch is not None and epoch < self.epoch:
            raise Refused(f"epoch {epoch} is older than the armed epoch {self.epoch}")
        if fence_at <= now:
            raise Refused(f"the deadline passed {now - fence_at:.3f} s ago")
        if self.epoch is not None and epoch > self.epoch:
            self.close(self.epoch)
        elif not self.disarmed and self.fence_at is not None and fence_at < self.fence_at:
            fence_at, hard_at = self.fence_at, self.hard_at or hard_at
        self.session, self.epoch, self.fence_at, self.hard_at = session, epoch, fence_at, hard_at
        self.disarmed, self.spares_standby = False, spares_standby

    def check_open(self, epoch: int, now: float) -> float:
        """The deadline under which `epoch` may write. Raises Refused (H8)."""
        if epoch <= self.closed_epoch:
            raise Refused(f"epoch {epoch} is closed (closed up to {self.closed_epoch})")
        if self.epoch is None or self.fence_at is None:
            raise Refused("no lease is armed")
        if self.epoch != epoch:
            raise Refused(f"epoch {epoch} is not the armed epoch {self.epoch}")
        if self.disarmed:
            raise Refused("the fence is disarmed")
        if self.fence_at <= now:
            raise Refused(f"the deadline passed {now - self.fence_at:.3f} s ago")
        return self.fence_at

    def close(self, epoch: int) -> None:
        """`epoch` and all before it never count again."""
        self.closed_epoch = max(self.closed_epoch, epoch)

    def expire(self) -> tuple[int, float]:
        """The deadline passed: close the epoch; it and the stop budget in seconds."""
        assert self.epoch is not None
        assert self.fence_at is not None
        assert self.hard_at is not None
        self.close(self.epoch)
        return self.epoch, self.hard_at - self.fence_at

    def drop(self) -> None:
        """Nothing is armed any more."""
        self.session, self.epoch, self.fence_at, self.hard_at, self.disarmed = "", None, None, None, False

    def describe(self) -> dict[str, Any] | None:
        """The armed lease as in the messages."""
        if self.epoch is None:
            return None
        handle = {"session": self.session, "epoch": self.epoch}
        return {"handle": handle, "fence_at": self.fence_at, "hard_at": self.hard_at}
