"""Failsafe mode, checked over the truth: what its exception from rule 1 allows, and that it works.

A primary may go on without the key while every member that the store's own `failsafe` names has accepted
within one ttl, counted from when the question was sent. Whoever accepted does not begin to write meanwhile.
And in a plan in which nothing but the store is ever down, its outage stops no primary that all members know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.store import Holder

if TYPE_CHECKING:
    from tests.simulation.invariants import Invariants
    from tests.simulation.postgres import Server

#: Two clocks of one cluster differ by less than this share.
_DRIFT = 0.01
STORE_DOWN = "store-down"


@dataclass(frozen=True)
class Accepted:
    """When it was asked for, when it was given, and for how long; true seconds."""

    sent_at: float
    at: float
    ttl_s: float


class FailsafeTruth:
    """The checks `failsafe.*`, and the exception from rule 1, of one world."""

    def __init__(self, invariants: Invariants) -> None:
        self._inv, self._world = invariants, invariants.world
        self._engine, self._store = invariants.engine, invariants.store
        #: (who leads, who promised) -> the last promise.
        self._accepted: dict[tuple[str, str], Accepted] = {}

    def accepted(self, asker: str, member: str, sent_at: float, ttl_s: float) -> None:
        """`member` is about to answer: its promise counts from now on, and for `asker` from `sent_at`."""
        promise = Accepted(sent_at, self._engine.now, ttl_s)
        self._accepted[asker, member] = promise
        self._engine.at(max(self._engine.now, sent_at + ttl_s), self._inv.look)

    def key_gone(self, released: bool, holder: Holder | None) -> None:
        """Who gives the key away needs no promise any more; and that it led shows that those given to others
        before did not carry anybody."""
        if released and holder is not None:
            since = self._inv.taken_at
            self._accepted = {
                pair: promise
                for pair, promise in self._accepted.items()
                if pair[0] != holder.name and promise.at >= since
            }

    def carries(self, server: Server) -> bool:
        """Promises of all that the key names make up for the leader key."""
        named = _named(self._store.raw_get("failsafe"))
        return server.member in named and all(
            name == server.member or self._in_time(server.member, name) for name in named
        )

    def _in_time(self, asker: str, member: str) -> bool:
        promise = self._accepted.get((asker, member))
        return promise is not None and self._engine.now < promise.sent_at + promise.ttl_s

    def begins(self, server: Server) -> None:
        """It is writable: it has promised nobody to stay out. (Whether a key that somebody deleted by hand
        was released before, nobody can tell.)"""
        if self._world.key_deleted_by_hand:
            return
        for (asker, member), promise in self._accepted.items():
            ends_at = promise.at + promise.ttl_s * (1 - _DRIFT)
            if member == server.member and self._engine.now < ends_at:
                text = f"{server!r} is writable, promised to {asker} until {ends_at:.3f}"
                self._inv.violated("failsafe.promise-kept", text)

    def ends(self, server: Server) -> None:
        """It is not writable any more: was it the outage of the store alone?"""
        plan, named = self._world.plan, _named(self._store.raw_get("failsafe"))
        alone = self._store.down and all(fault.kind == STORE_DOWN for fault in plan.faults)
        holder = self._inv.holder
        if alone and holder is not None and holder.name == server.member and named == set(plan.names):
            self._inv.violated("failsafe.kept-primary", f"{server!r} ended while only the store was down")


def _named(text: str | None) -> frozenset[str]:
    """Whom the key names."""
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return frozenset()
    return frozenset(data) if isinstance(data, dict) else frozenset()
