"""Frozen records of what the DCS holds. Pure: no I/O, no clock.

Each record is what one key of contract section 1.3 means once parsed; `dcs.codec` turns bytes into
these and back. A value that cannot be parsed becomes `Broken`, never an exception and never a guess.
LSNs are absolute byte positions, as the DCS stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

#: JSON value as parsed: only used for content that is free by contract (dynamic configuration, tags).
Json = Any

_EMPTY: Mapping[str, Any] = MappingProxyType({})
#: Addresses of members are the same in every snapshot: so many are kept taken apart.
_KEPT_URLS = 256


@dataclass(frozen=True)
class Broken:
    """A key whose value could not be understood; `cause` says why, in one line."""

    key: str
    cause: str


def whole(value: object) -> int | None:
    """The whole number that a tag says, also as a text: Patroni publishes tags as they were written."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


@dataclass(frozen=True)
class Tags:
    """Member tags (contract 6.5). Unknown tags are kept and shown."""

    values: Mapping[str, Json] = field(default_factory=lambda: _EMPTY)

    @property
    def nofailover(self) -> bool:
        """True when this member may never lead; the bool wins over `failover_priority`."""
        if "nofailover" in self.values:
            return bool(self.values["nofailover"])
        return self.failover_priority <= 0

    @property
    def failover_priority(self) -> int:
        """Preference at equal LSN; 1 by default, 0 or less means never."""
        number = whole(self.values.get("failover_priority"))
        return 1 if number is None else number

    @property
    def noloadbalance(self) -> bool:
        return self.values.get("noloadbalance") is True

    @property
    def clonefrom(self) -> bool:
        return self.values.get("clonefrom") is True

    @property
    def nostream(self) -> bool:
        return self.values.get("nostream") is True

    @property
    def sync_priority(self) -> int:
        """Preference as a synchronous standby, 1 by default; 0 or less, or `nosync`: never one."""
        if self.values.get("nosync") is True:
            return 0
        number = whole(self.values.get("sync_priority"))
        return 1 if number is None or (self.values.get("nosync") is False and number <= 0) else number

    @property
    def replicatefrom(self) -> str | None:
        value = self.values.get("replicatefrom")
        return value if isinstance(value, str) and value else None


@dataclass(frozen=True)
class Member:
    """`members/<name>`: what one agent publishes about itself."""

    name: str
    conn_url: str | None = None
    api_url: str | None = None
    state: str = "unknown"
    role: str = "replica"
    version: str = ""
    #: `"haagent/<version>"` for ours, None for a Patroni member (design section 3).
    agent: str | None = None
    xlog_location: int | None = None
    replay_lsn: int | None = None
    receive_lsn: int | None = None
    replication_state: str | None = None
    timeline: int | None = None
    tags: Tags = Tags()
    pause: bool = False
    #: False until the CHECKPOINT after a promotion is done; None when absent.
    checkpoint_after_promote: bool | None = None
    pending_restart: bool = False
    #: guc -> (old value, new value)
    pending_restart_reason: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _EMPTY)
    scheduled_restart: Mapping[str, Json] | None = None
    proxy_url: str | None = None
    #: Ours only: why this member cannot take over right now, one line; None when it can or is unknown.
    cannot_lead: str | None = None
    #: Ours only: one line for people about a long or failing recovery ("pg_rewind 2/3 failed: …").
    note: str | None = None
    #: Session (etcd lease id, …) the key hangs on, as text; None when unknown.
    session: str | None = None

    @property
    def is_haagent(self) -> bool:
        return self.agent is not None and self.agent.startswith("haagent/")

    @property
    def host_port(self) -> tuple[str, int] | None:
        """Host and port of `conn_url`, None when it is missing or malformed."""
        return _host_port(self.conn_url or "")


@lru_cache(maxsize=_KEPT_URLS)
def _host_port(url: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url)
        return (parts.hostname, parts.port or 5432) if parts.hostname else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Leader:
    """`leader`: who holds the key, and under which handle."""

    name: str
    #: Session the key hangs on (etcd lease id in decimal, …).
    session: str
    #: Create revision of the key: grows with every new tenure, stays through renewals.
    epoch: int


@dataclass(frozen=True)
class Status:
    """`status`: last known position of the primary."""

    optime: int
    #: slot name -> position; None when the writer left it out.
    slots: Mapping[str, int] | None = None
    retain_slots: tuple[str, ...] | None = None
    #: Ours: the primary of this timeline stopped cleanly and released the key; `optime` is its shutdown
    #: checkpoint.
    final_timeline: int | None = None


@dataclass(frozen=True)
class SyncState:
    """`sync`: who may be missing no acknowledged commit."""

    leader: str | None
    standbys: tuple[str, ...]
    quorum: int
    version: int


@dataclass(frozen=True)
class FailoverRequest:
    """`failover`: an operator's wish. `leader` set means switchover, only `candidate` a manual failover."""

    leader: str | None
    candidate: str | None
    scheduled_at: str | None
    version: int
    #: `scheduled_at` as Unix time, seconds; None of a request for now.
    due_at: float | None = None

    @property
    def is_switchover(self) -> bool:
        return self.leader is not None


@dataclass(frozen=True)
class HistoryRow:
    """One ended timeline (contract 1.3). Timestamp and new leader are unknown for old rows."""

    timeline: int
    lsn: int
    reason: str
    timestamp: str | None = None
    new_leader: str | None = None
    #: Ours: what the operation that ended the timeline may have lost or proved, for people. Kept in a
    #: separate key, because peers of contract 1.3 expect exactly five columns.
    note: str | None = None


@dataclass(frozen=True)
class TimelineClaim:
    """`haagent_claims`: member `name` set out to create `timeline` in `epoch` (hazard H15)."""

    timeline: int
    name: str
    epoch: int
    #: Expected loss of the promotion, for people ("at most 1048576 bytes", "none"); None when unknown.
    note: str | None = None


@dataclass(frozen=True)
class OperationOutcome:
    """`haagent_outcome`: how the request under version `version` of `failover` ended, for whoever asked."""

    version: int
    status: int
    text: str


@dataclass(frozen=True)
class Unfenced:
    """`haagent_unfenced`: `name` holds the key in `epoch` with its fence off, as the cluster is paused; so it
    may stay writable when the key is gone (hazard H20). It stands until the fence is on, or the next holder
    leads with one."""

    name: str
    epoch: int


@dataclass(frozen=True)
class Discard:
    """Of `haagent_discards`: WAL of member `name` that left the cluster's line and was discarded (rule 7).

    Written down before it goes. None is "unknown", and `note` says why."""

    name: str
    #: LSN where it left the line; None unknown.
    start: int | None
    #: LSN where it ended.
    end: int | None
    #: Transactions that committed in there.
    transactions: int | None
    #: "rewind", "clone" or "reinitialize".
    how: str
    #: When, ISO 8601 with offset.
    at: str
    #: Directory on that member where its WAL is kept; None: nowhere.
    kept: str | None = None
    #: Bytes of WAL kept there, and how many segments did not fit.
    kept_bytes: int = 0
    left_out: int = 0
    note: str | None = None

    @property
    def key(self) -> tuple[str, int | None, str]:
        """The same discard, written down again by a later try, has the same."""
        return self.name, self.start, self.at


@dataclass(frozen=True)
class ConfigRecord:
    """`config`: the dynamic configuration, a JSON object."""

    data: Mapping[str, Json]
    version: int


@dataclass(frozen=True)
class ClusterSnapshot:
    """Everything under `/<namespace>/<scope>` at one revision of the store."""

    revision: int = 0
    #: None: absent; "": somebody is bootstrapping; else the system identifier.
    initialize: str | None = None
    config: ConfigRecord | None = None
    leader: Leader | None = None
    members: tuple[Member, ...] = ()
    status: Status | None = None
    failover: FailoverRequest | None = None
    #: Version of the `failover` key even when it holds no request; 0 when absent.
    failover_version: int = 0
    sync: SyncState | None = None
    #: Version of the `sync` key, also when it cannot be understood; 0 when absent.
    sync_version: int = 0
    history: tuple[HistoryRow, ...] | None = None
    claims: tuple[TimelineClaim, ...] = ()
    #: Version of the claims key; 0 when absent.
    claims_version: int = 0
    failsafe: Mapping[str, str] | None = None
    outcome: OperationOutcome | None = None
    unfenced: Unfenced | None = None
    discards: tuple[Discard, ...] = ()
    #: Version of the discards key; 0 when absent.
    discards_version: int = 0
    broken: tuple[Broken, ...] = ()

    def member(self, name: str) -> Member | None:
        """The member of that name, None when it has no key."""
        return next((m for m in self.members if m.name == name), None)
