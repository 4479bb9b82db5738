"""Health checks over HTTP: paths and queries in, a status out (contract 3.3). Pure.

What a check means is in `haagent.core.health`; this file only knows how it is asked for.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from haagent.api.view import Published
from haagent.core.cluster_view import is_listed_in_sync, is_quorum_mode, is_standby_cluster
from haagent.core.health import Check, HealthFacts, HealthQuery, is_alive, is_ready, passes
from haagent.core.roles import shown_role, shown_state
from haagent.core.settings import parse_bytes
from postgres_ctl.facts import Lsn

OK = 200
UNAVAILABLE = 503

#: First match wins; a path that merely contains the word matches (contract 3.3).
_BY_SUBSTRING: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("standby_leader", "standby-leader"), Check.STANDBY_LEADER),
    (("leader",), Check.LEADER),
    (("master", "primary", "read-write"), Check.PRIMARY),
    (("replica",), Check.REPLICA),
)
_BY_NAME = {
    "/sync": Check.SYNC,
    "/synchronous": Check.SYNC,
    "/async": Check.ASYNC,
    "/asynchronous": Check.ASYNC,
    "/quorum": Check.QUORUM,
    "/read-only-sync": Check.READ_ONLY_SYNC,
    "/read-only-synchronous": Check.READ_ONLY_SYNC,
    "/read-only-quorum": Check.READ_ONLY_QUORUM,
}

#: Paths with a handler of their own: as a health check (HEAD, OPTIONS) they answer 503.
OWN_HANDLERS = frozenset(
    ("patroni", "cluster", "config", "history", "metrics", "failsafe", "liveness", "readiness",
     "explain", "events", "dashboard", "openapi.json")
)  # fmt: skip

#: A query with more fields than this is nobody's health check.
_MAX_QUERY_FIELDS = 100


def check_of_path(path: str) -> Check | None:
    """The check a path (without query) asks for, None when it asks for none."""
    if path in ("", "/"):
        return Check.PRIMARY
    for words, check in _BY_SUBSTRING:
        if any(word in path for word in words):
            return check
    if "read-only" in path and "sync" not in path and "quorum" not in path:
        return Check.READ_ONLY
    if "health" in path:
        return Check.HEALTH
    return _BY_NAME.get(path)


def parse_query(query: str) -> HealthQuery:
    """Conditions of a raw query string; what cannot be read sets no condition."""
    try:
        fields = parse_qs(query, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        return HealthQuery()
    first = {key: values[0] for key, values in fields.items()}
    return HealthQuery(
        lag_bytes=parse_bytes(first.get("lag")),
        replication_state=first.get("replication_state"),
        tags={key.removeprefix("tag_"): value for key, value in first.items() if key.startswith("tag_")},
        mode_write=first.get("mode") == "write",
    )


def facts_of(published: Published, leader_until: float | None, now: float) -> HealthFacts:
    """The facts the checks look at; `leader_until` and `now` in seconds on CLOCK_BOOTTIME."""
    sample, cluster = published.sample, published.cluster
    standby_cluster = cluster is not None and is_standby_cluster(cluster)
    listed = cluster is not None and is_listed_in_sync(cluster, published.name)
    quorum = cluster is not None and is_quorum_mode(cluster)
    in_recovery = sample.in_recovery if sample is not None else None
    status = cluster.status if cluster is not None else None
    return HealthFacts(
        role=shown_role(published.role, in_recovery, standby_cluster),
        state=shown_state(published.state, sample is not None),
        leads=leader_until is not None and now < leader_until,
        paused=published.settings.pause,
        standby_cluster=standby_cluster,
        view_is_fresh=cluster is not None and published.cluster_is_fresh,
        failsafe_active=published.failsafe_active,
        listed_as_sync=listed and not quorum,
        listed_as_quorum=listed and quorum,
        tags=published.tags.values,
        noloadbalance=published.tags.noloadbalance,
        replication_state=sample.replication_state if sample is not None else None,
        optime=status.optime if status is not None else None,
        upstream_end=_bytes(sample.walreceiver_latest_end_lsn) if sample is not None else None,
        received=_bytes(sample.receive_lsn) if sample is not None else None,
        replayed=_bytes(sample.replay_lsn) if sample is not None else None,
    )


def health_status(path: str, query: str, published: Published, leader_until: float | None, now: float) -> int:
    """Status of a health check: 200 or 503, for unknown paths 503."""
    check = check_of_path(path)
    if check is None:
        return UNAVAILABLE
    return _status(passes(check, facts_of(published, leader_until, now), parse_query(query)))


def bare_status(path: str, query: str, published: Published, leader_until: float | None, now: float) -> int:
    """Status of HEAD and OPTIONS, which know the health checks only (contract 3.1)."""
    first = path.lstrip("/").split("/", 1)[0]
    if first in OWN_HANDLERS:
        return UNAVAILABLE
    return health_status(path, query, published, leader_until, now)


def liveness_status(published: Published, now: float) -> int:
    return _status(is_alive(published.settings.pause, published.alive_until, now))


def readiness_status(query: str, published: Published, leader_until: float | None, now: float) -> int:
    """`/readiness`, with `lag=` and `mode=write|apply`."""
    facts = facts_of(published, leader_until, now)
    default_lag_bytes = published.settings.maximum_lag_on_failover_bytes
    return _status(is_ready(facts, parse_query(query), default_lag_bytes))


def _status(good: bool) -> int:
    return OK if good else UNAVAILABLE


def _bytes(lsn: Lsn | None) -> int | None:
    return lsn.value if lsn is not None else None
