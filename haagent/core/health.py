"""What each health check of contract 3.3 means: pure functions over published facts.

Theory. A check answers "may a client be sent here for this purpose?". It presents facts, it decides
nothing. Two sources, and no more: `leads` (our proven lease has not reached its fence, design
section 2) and the last sample of PostgreSQL. The DCS view counts only while it is fresh.

One difference to Patroni, on the strict side: a view older than ttl may still show that a replica lags,
because `status.optime` only grows; so `lag=` uses that position although nothing else of the old view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from haagent.core.roles import is_primary, is_replica, is_running, is_standby_leader


class Check(Enum):
    """Purpose a client may ask for; the value is its canonical path."""

    STANDBY_LEADER = "/standby-leader"
    LEADER = "/leader"
    PRIMARY = "/primary"
    REPLICA = "/replica"
    READ_ONLY = "/read-only"
    HEALTH = "/health"
    SYNC = "/synchronous"
    ASYNC = "/asynchronous"
    QUORUM = "/quorum"
    READ_ONLY_SYNC = "/read-only-sync"
    READ_ONLY_QUORUM = "/read-only-quorum"


@dataclass(frozen=True)
class HealthFacts:
    """What the checks look at. Positions are absolute bytes, None where unknown."""

    role: str
    state: str
    #: Our lease is provably valid now.
    leads: bool
    paused: bool = False
    standby_cluster: bool = False
    #: The DCS view is younger than ttl.
    view_is_fresh: bool = True
    #: Failsafe mode keeps the primary, as far as this member knows.
    failsafe_active: bool = False
    listed_as_sync: bool = False
    listed_as_quorum: bool = False
    tags: Mapping[str, Any] = field(default_factory=dict)
    noloadbalance: bool = False
    replication_state: str | None = None
    #: `status.optime` of the last view, fresh or not.
    optime: int | None = None
    #: What the walreceiver last heard of its upstream.
    upstream_end: int | None = None
    received: int | None = None
    replayed: int | None = None


@dataclass(frozen=True)
class HealthQuery:
    """The conditions a client adds to a check."""

    lag_bytes: int | None = None
    replication_state: str | None = None
    #: tag -> wanted value as text
    tags: Mapping[str, str] = field(default_factory=dict)
    #: `/readiness` measures what was received instead of what was replayed.
    mode_write: bool = False


def passes(check: Check, facts: HealthFacts, query: HealthQuery) -> bool:
    """True when the check answers 200."""
    if check is Check.STANDBY_LEADER:
        return _standby_leader(facts)
    if check is Check.LEADER:
        return _primary(facts) or _leads(facts) or _standby_leader(facts)
    if check is Check.PRIMARY:
        return _primary(facts)
    return _passes_below_leader(check, facts, query) and _tags_match(facts, query)


def _passes_below_leader(check: Check, facts: HealthFacts, query: HealthQuery) -> bool:
    if check is Check.HEALTH:
        return is_running(facts.state)
    replica = _replica(facts, query)
    led = _primary(facts) or _standby_leader(facts)
    if check is Check.REPLICA:
        return replica
    if check is Check.READ_ONLY:
        return led or replica
    # The rest asks who is synchronous, which only a fresh view can tell.
    if not facts.view_is_fresh:
        return False
    return {
        Check.SYNC: replica and facts.listed_as_sync,
        Check.QUORUM: replica and facts.listed_as_quorum,
        Check.ASYNC: replica and not (facts.listed_as_sync or facts.listed_as_quorum),
        Check.READ_ONLY_SYNC: led or (replica and facts.listed_as_sync),
        Check.READ_ONLY_QUORUM: led or (replica and facts.listed_as_quorum),
    }[check]


def is_ready(facts: HealthFacts, query: HealthQuery, default_lag_bytes: int) -> bool:
    """`/readiness`: leads, or streams within the allowed lag of a position that is known."""
    if _leads(facts):
        return True
    if not is_running(facts.state) or facts.replication_state != "streaming":
        return False
    if not (facts.view_is_fresh or facts.failsafe_active) and facts.upstream_end is None:
        return False
    allowed = default_lag_bytes if query.lag_bytes is None else query.lag_bytes
    return not _lags(facts, facts.received if query.mode_write else facts.replayed, allowed)


def is_alive(paused: bool, alive_until: float, now: float) -> bool:
    """`/liveness`: the loop is on time; both times in seconds on CLOCK_BOOTTIME."""
    return paused or now < alive_until


def _leads(facts: HealthFacts) -> bool:
    return facts.leads


def _by_role(facts: HealthFacts) -> bool:
    """Paused without a view of the DCS, nobody may act on the lock, so the role has to answer."""
    return facts.paused and not facts.view_is_fresh


def _primary(facts: HealthFacts) -> bool:
    if _by_role(facts) and is_primary(facts.role):
        return True
    return facts.leads and not facts.standby_cluster


def _standby_leader(facts: HealthFacts) -> bool:
    if _by_role(facts) and is_standby_leader(facts.role):
        return True
    follows = is_replica(facts.role) or is_standby_leader(facts.role)
    return facts.leads and facts.standby_cluster and follows


def _replica(facts: HealthFacts, query: HealthQuery) -> bool:
    if not (is_replica(facts.role) and is_running(facts.state)) or facts.noloadbalance:
        return False
    if query.replication_state is not None and query.replication_state != facts.replication_state:
        return False
    return query.lag_bytes is None or not _lags(facts, facts.replayed, query.lag_bytes)


def _lags(facts: HealthFacts, position: int | None, allowed_bytes: int) -> bool:
    known_end = max(facts.optime or 0, facts.upstream_end or 0)
    return known_end > (position or 0) + allowed_bytes


def _tags_match(facts: HealthFacts, query: HealthQuery) -> bool:
    return all(key in facts.tags and _tag_text(facts.tags[key]) == want for key, want in query.tags.items())


def _tag_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower()
