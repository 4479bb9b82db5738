"""A restart that an operator asks of one member, as data: now or at its time, under its conditions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RestartWish:
    """A restart: when it is wanted at all (contract 3.6), and at what time; without any: now, always."""

    #: Role of the member, as published.
    role: str | None = None
    #: Only a PostgreSQL older than this, as it counts itself: 170005.
    below_version: int | None = None
    #: Only while a parameter waits for a restart.
    pending: bool = False
    #: In the place of primary_start_timeout, seconds.
    timeout_s: float | None = None
    #: At this Unix second; None: now.
    due_at: float | None = None
    #: Time and filters as they were asked for, to be shown.
    shown: Mapping[str, Any] = field(default_factory=dict)


ALWAYS = RestartWish()


@dataclass(frozen=True)
class ScheduledRestart:
    """Waits for its time in this agent's memory only (contract 2.7)."""

    due_at: float
    wish: RestartWish
    #: Of the server it was asked for, in the server's words; None when it did not answer.
    postmaster_start_time: str | None = None

    @property
    def shown(self) -> Mapping[str, Any]:
        """As the member key has it (contract 1.3)."""
        known = self.postmaster_start_time
        return {**self.wish.shown, **({"postmaster_start_time": known} if known is not None else {})}
