"""`GET /metrics` (contract 3.7): the picture of the agent in Prometheus' text format.

The `patroni_*` part is written by hand, because existing dashboards need what prometheus_client does not
write: counters without `_total`, whole numbers, the version `040105`, the line that names the states.
`haagent_*` carries our numbers the same way; the library adds its process metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from haagent import COMPATIBLE_VERSION, __version__
from haagent.api.health import facts_of
from haagent.api.status import fresh_view, role_of
from haagent.api.view import Published
from haagent.core.cluster_view import is_locked
from haagent.core.roles import is_primary, is_replica, is_running, is_standby_leader, shown_state
from postgres_ctl.facts import InstanceSample, Lsn

CONTENT_TYPE = "text/plain"

#: State texts of contract 1.3 with the short names of the `# Values:` line; the index is the value.
_STATES = (
    ("initializing new cluster", "initdb"),
    ("initdb failed", "initdb_failed"),
    ("running custom bootstrap script", "custom_bootstrap"),
    ("custom bootstrap failed", "custom_bootstrap_failed"),
    ("creating replica", "creating_replica"),
    ("running", "running"),
    ("starting", "starting"),
    ("starting after custom bootstrap", "bootstrap_starting"),
    ("start failed", "start_failed"),
    ("restarting", "restarting"),
    ("restart failed", "restart_failed"),
    ("stopping", "stopping"),
    ("stopped", "stopped"),
    ("stop failed", "stop_failed"),
    ("crashed", "crashed"),
)
_STATE_INDEX = {text: index for index, (text, _) in enumerate(_STATES)}
_STATE_COMMENT = "Values: " + ", ".join(f"{index}={name}" for index, (_, name) in enumerate(_STATES))

_GAUGE, _COUNTER = "gauge", "counter"

_process = CollectorRegistry()
ProcessCollector(namespace="haagent", registry=_process)


@dataclass(frozen=True)
class _Metric:
    name: str
    help: str
    value: float | str
    type: str = _GAUGE
    comment: str | None = None


def metrics_text(published: Published, leader_until: float | None, now: float) -> str:
    """The whole page. `leader_until` and `now` in seconds on CLOCK_BOOTTIME."""
    labels = f'{{scope="{_escape_label(published.scope)}",name="{_escape_label(published.name)}"}}'
    metrics = [*_patroni_metrics(published), *_haagent_metrics(published, leader_until, now)]
    return "".join(_render(metric, labels) for metric in metrics) + generate_latest(_process).decode()


def _patroni_metrics(published: Published) -> Iterator[_Metric]:
    sample, role = published.sample, role_of(published)
    state = shown_state(published.state, sample is not None)
    facts = facts_of(published, None, 0.0)
    view = fresh_view(published)
    yield _Metric("patroni_version", "Compatible Patroni version, two digits per part.", _version_digits())
    yield _flag("patroni_postgres_running", "1 when PostgreSQL runs and answers.", is_running(state))
    start = sample.postmaster_start_time if sample is not None else None
    yield _Metric("patroni_postmaster_start_time", "Start of the postmaster, epoch seconds.", _epoch(start))
    yield _flag("patroni_primary", "1 when this member is a primary.", is_primary(role))
    yield _primary_location(sample, is_primary(role))
    yield _flag("patroni_standby_leader", "1 when it leads a standby cluster.", is_standby_leader(role))
    yield _flag("patroni_replica", "1 when this member is a replica.", is_replica(role))
    sync, quorum = (fact and view is not None for fact in (facts.listed_as_sync, facts.listed_as_quorum))
    yield _flag("patroni_sync_standby", "1 when listed as synchronous standby.", sync)
    yield _flag("patroni_quorum_standby", "1 when listed as quorum standby.", quorum)
    yield from _standby_metrics(sample)
    version = sample.server_version if sample is not None else 0
    yield _Metric("patroni_postgres_server_version", "server_version_num, 0 if unknown.", version)
    unlocked = view is None or not is_locked(view)
    yield _flag("patroni_cluster_unlocked", "1 when no leader is known.", unlocked)
    yield _flag("patroni_failsafe_mode_is_active", "1 while failsafe mode keeps the primary.", False)
    timeline = sample.timeline or 0 if sample is not None else 0
    yield _Metric("patroni_postgres_timeline", "Timeline of PostgreSQL, 0 if unknown.", timeline)
    yield _Metric("patroni_dcs_last_seen", "Last DCS contact, epoch seconds.", published.dcs_last_seen)
    pending = bool(published.pending_restart_reason)
    yield _flag("patroni_pending_restart", "1 when a parameter waits for a restart.", pending)
    yield _flag("patroni_is_paused", "1 while automatic failover is paused.", published.settings.pause)
    index = _STATE_INDEX.get(state, -1)
    yield _Metric("patroni_postgres_state", "State of PostgreSQL as a number.", index, comment=_STATE_COMMENT)
    tags = published.tags
    priority = 0 if tags.nofailover else tags.failover_priority
    yield _Metric("patroni_failover_priority", "Failover priority, 0 when it may not lead.", priority)


def _primary_location(sample: InstanceSample | None, primary: bool) -> _Metric:
    # Role `demoted` shows no position: its epoch is closed (hazard H13).
    location = _bytes(sample.flush_lsn) if sample is not None and primary else 0
    return _Metric("patroni_xlog_location", "End of flushed WAL of a primary, else 0.", location, _COUNTER)


def _standby_metrics(sample: InstanceSample | None) -> Iterator[_Metric]:
    standby = sample if sample is not None and sample.in_recovery else None
    received = _bytes(standby.receive_lsn) if standby is not None else 0
    replayed = _bytes(standby.replay_lsn) if standby is not None else 0
    timestamp = _epoch(standby.replay_timestamp) if standby is not None else 0
    paused = standby is not None and standby.replay_paused
    yield _Metric("patroni_xlog_received_location", "WAL received by a standby, else 0.", received, _COUNTER)
    yield _Metric("patroni_xlog_replayed_location", "WAL replayed by a standby, else 0.", replayed, _COUNTER)
    yield _Metric("patroni_xlog_replayed_timestamp", "Last replayed commit, epoch seconds or 0.", timestamp)
    yield _flag("patroni_xlog_paused", "1 while replay is paused.", paused)
    if sample is not None:
        state = sample.replication_state if sample.in_recovery else None
        yield _flag("patroni_postgres_streaming", "1 while WAL is streamed.", state == "streaming")
        archive = state == "in archive recovery"
        yield _flag("patroni_postgres_in_archive_recovery", "1 while WAL comes from the archive.", archive)


def _haagent_metrics(published: Published, leader_until: float | None, now: float) -> Iterator[_Metric]:
    yield _Metric("haagent_up", f"haagent {__version__} answers.", 1)
    left_s = max(0.0, leader_until - now) if leader_until is not None else 0.0
    yield _Metric("haagent_lease_seconds_left", "Proven life of our leader lease.", round(left_s, 3))
    alive_s = max(0.0, published.alive_until - now)
    yield _Metric("haagent_liveness_seconds_left", "Time until the loop counts as stuck.", round(alive_s, 3))
    if published.sample is not None:
        age_s = max(0.0, now - published.sample.sampled_at)
        yield _Metric("haagent_sample_age_seconds", "Age of PostgreSQL's last answer.", round(age_s, 3))
    yield _flag("haagent_cannot_lead", "1 when this member could not take over.", bool(published.cannot_lead))
    for name, (help_text, value) in sorted(published.metrics.items()):
        full_name = name if name.startswith("haagent_") else f"haagent_{name}"
        yield _Metric(full_name, help_text, value, _COUNTER if name.endswith("_total") else _GAUGE)


def _flag(name: str, help_text: str, value: bool) -> _Metric:
    return _Metric(name, help_text, int(value))


def _render(metric: _Metric, labels: str) -> str:
    help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    comment = f"# {metric.comment}\n" if metric.comment else ""
    return (
        f"# HELP {metric.name} {help_text}\n{comment}# TYPE {metric.name} {metric.type}\n"
        f"{metric.name}{labels} {_number(metric.value)}\n"
    )


def _number(value: float | str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(value)


def _escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _version_digits() -> str:
    return "".join(part.zfill(2) for part in COMPATIBLE_VERSION.split("."))


def _epoch(text: str | None) -> float:
    """Epoch seconds of a PostgreSQL timestamp with offset; 0 when there is none."""
    if not text:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _bytes(lsn: Lsn | None) -> int:
    return lsn.value if lsn is not None else 0
