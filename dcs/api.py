"""The port every DCS adapter implements, and the outcomes of its calls as values.

Theory. One agent has one *session* (an etcd lease, a ZooKeeper session, …) that carries its member key
and, when it leads, the leader key. A session lives only as long as it is renewed. The *handle* of the
leader key (`LeaseHandle`) names session and epoch: it is what the guardian keeps, and the only thing a
restarted agent may continue (hazard H5). The epoch is the create revision of the key.

Rules for adapters
- Every call returns or raises within its `deadline_s` (seconds), whatever the server does.
- A write whose answer was lost is `Unknown`, never retried blindly by the adapter.
- Reads that decide are linearizable.
- `sent_at` is CLOCK_BOOTTIME in seconds, taken *before* the request left (hazard H1).
- Adapters raise only `dcs.errors`; expected outcomes are the values below.
- Thread safe: the loop, the lease keeper and the REST server may call concurrently.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dcs.records import ClusterSnapshot


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME: counts through suspend, never set by an administrator."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class LeaseHandle:
    """Proof of one tenure of the leader key. Serialised into the guardian as JSON."""

    session: str
    epoch: int


# --- outcomes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ok:
    """The write was applied; `version` is the key's new version (0 where it has none)."""

    version: int = 0


@dataclass(frozen=True)
class Conflict:
    """The store answered that the condition does not hold; nothing was written."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """No trustworthy answer: the write may or may not have been applied."""

    cause: str


@dataclass(frozen=True)
class Renewed:
    """Session (and key, where asked) proven alive: valid at least until `sent_at + guaranteed_s`."""

    sent_at: float
    guaranteed_s: float


@dataclass(frozen=True)
class Refused:
    """The store answered that the session or the key is not ours any more."""

    reason: str


@dataclass(frozen=True)
class Taken:
    """The leader key is ours. It proves nothing about its life: renew once before relying on it (H1)."""

    handle: LeaseHandle


WriteOutcome = Ok | Conflict | Unknown
RenewOutcome = Renewed | Refused | Unknown
TakeOutcome = Taken | Conflict | Unknown


# --- watching -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyEvent:
    """One key changed. `key` is relative to the cluster ("leader", "members/pg0")."""

    key: str
    created: bool = False
    deleted: bool = False


@dataclass(frozen=True)
class WatchGap:
    """Events may have been missed (reconnected, compacted): read everything again."""

    cause: str


WatchEvent = KeyEvent | WatchGap


class Watch(Protocol):
    def close(self) -> None:
        """Stop calling back; returns at once, safe to call twice."""


# --- the port -----------------------------------------------------------------------------------


class Dcs(Protocol):
    """One cluster (`namespace`/`scope`) in one store."""

    #: "etcd3", "local", …
    backend: str
    #: Shortest ttl this backend keeps reliably, seconds (design section 3).
    minimum_ttl_s: float
    #: `move_leader` works; else a leader keeps the session it has when ttl changes.
    moves_leader: bool

    def guaranteed_s(self, ttl_s: float) -> float:
        """How long a renewal keeps a session of `ttl_s` at least, seconds (Consul: half of it)."""

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        """Linearizable read of the whole cluster. Raises DcsUnavailable, DcsLoginRefused."""

    def watch(self, on_event: Callable[[WatchEvent], None]) -> Watch:
        """Call `on_event` from a thread of the adapter for every change, until closed."""

    def open_session(self, ttl_s: float, deadline_s: float) -> str:
        """New session of `ttl_s` seconds. Raises DcsUnavailable."""

    def renew_session(self, session: str, deadline_s: float) -> RenewOutcome:
        """Keep the session alive; says nothing about the leader key."""

    def renew_leader(self, handle: LeaseHandle, name: str, deadline_s: float) -> RenewOutcome:
        """Keep the session alive, then prove that `leader` == name hangs on *our* session and epoch."""

    def sealed(self, session: str) -> str:
        """What another process of this member needs to continue the session. It may be a secret."""

    def unsealed(self, sealed: str) -> str:
        """The session of `sealed`, to be continued by the next renewal if it lives. Asks nobody."""

    def close_session(self, session: str, deadline_s: float) -> WriteOutcome:
        """End the session: its keys vanish at once. This IS a release: rule 2 applies (H4)."""

    def take_leader(self, session: str, name: str, deadline_s: float) -> TakeOutcome:
        """Create `leader` = name on our session, only if the key is absent."""

    def move_leader(self, handle: LeaseHandle, session: str, name: str, deadline_s: float) -> TakeOutcome:
        """Put our leader key onto another session of ours (changed ttl), atomically, same epoch."""

    def release_leader(
        self, handle: LeaseHandle, name: str, deadline_s: float, status: str | None = None
    ) -> WriteOutcome:
        """Delete `leader` only while it is ours under this very handle; with `status`, write that key in
        the same transaction, so that nobody sees the key free without the position to reach (H18)."""

    def put_member(self, session: str, name: str, value: str, deadline_s: float) -> WriteOutcome:
        """Write `members/<name>` on the session. A missing session is Conflict."""

    def create(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        """Create `key` only if absent; with `session` it vanishes with the session."""

    def put(self, key: str, value: str, deadline_s: float) -> WriteOutcome:
        """Write `key` unconditionally, without ttl (detaches it from any session)."""

    def compare_and_set(self, key: str, value: str, version: int, deadline_s: float) -> WriteOutcome:
        """Write `key` only at `version` (0: only if absent). It has another version then, also when it
        says the same as before."""

    def put_if_leader(
        self, handle: LeaseHandle, name: str, key: str, value: str, deadline_s: float
    ) -> WriteOutcome:
        """Write `key` in one transaction with the proof that `leader` is ours (status, history, …)."""

    def delete(self, key: str, deadline_s: float, version: int | None = None) -> WriteOutcome:
        """Delete `key`; with `version` only at that version. An absent key is Ok."""

    def delete_cluster(self, deadline_s: float) -> WriteOutcome:
        """Delete every key of the cluster (`haagentctl remove`)."""

    def close(self) -> None:
        """Close connections and watches. Never ends a session."""
