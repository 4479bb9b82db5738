"""`GET /metrics` (contract 3.7): the picture of the agent in Prometheus' text format.

The `patroni_*` part is written by hand, because existing dashboards need what prometheus_client does not
write: counters without `_total`, whole numbers, the version `040105`, the line that names the states, `scope`
before `name`. `haagent_*` is prometheus_client's, by a collector of our own: the values are at hand in the
agent's `Numbers` and picture, and nothing is counted twice. docs/metrics.md lists them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from math import nan

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from haagent import COMPATIBLE_VERSION, __version__
from haagent.api.health import facts_of
from haagent.api.status import fresh_view, role_of
from haagent.api.view import Numbers, Published
from haagent.core.cluster_view import is_locked
from haagent.core.rejoin import STATES as REJOIN_STATES
from haagent.core.roles import is_primary, is_replica, is_running, is_standby_leader, shown_state
from haagent.measures import BUCKETS_S, Measures
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
class _Sample:
    """One metric of Patroni with its one value."""

    name: str
    help: str
    value: float | str
    type: str = _GAUGE
    comment: str | None = None


def metrics_text(published: Published, leader_until: float | None, now: float, numbers: Numbers) -> str:
    """The whole page. `leader_until` and `now` in seconds on CLOCK_BOOTTIME."""
    labels = f'{{scope="{_escape_label(published.scope)}",name="{_escape_label(published.name)}"}}'
    own = CollectorRegistry(auto_describe=False)
    own.register(_Own(published, leader_until, now, numbers))
    contract = "".join(_render(sample, labels) for sample in _patroni_metrics(published))
    return contract + generate_latest(own).decode() + generate_latest(_process).decode()


def _patroni_metrics(published: Published) -> Iterator[_Sample]:
    sample, role = published.sample, role_of(published)
    state = shown_state(published.state, sample is not None)
    facts = facts_of(published, None, 0.0)
    view = fresh_view(published)
    yield _Sample("patroni_version", "Compatible Patroni version, two digits per part.", _version_digits())
    yield _flag("patroni_postgres_running", "1 when PostgreSQL runs and answers.", is_running(state))
    start = sample.postmaster_start_time if sample is not None else None
    yield _Sample("patroni_postmaster_start_time", "Start of the postmaster, epoch seconds.", _epoch(start))
    yield _flag("patroni_primary", "1 when this member is a primary.", is_primary(role))
    yield _primary_location(sample, is_primary(role))
    yield _flag("patroni_standby_leader", "1 when it leads a standby cluster.", is_standby_leader(role))
    yield _flag("patroni_replica", "1 when this member is a replica.", is_replica(role))
    sync, quorum = (fact and view is not None for fact in (facts.listed_as_sync, facts.listed_as_quorum))
    yield _flag("patroni_sync_standby", "1 when listed as synchronous standby.", sync)
    yield _flag("patroni_quorum_standby", "1 when listed as quorum standby.", quorum)
    yield from _standby_metrics(sample)
    version = sample.server_version if sample is not None else 0
    yield _Sample("patroni_postgres_server_version", "server_version_num, 0 if unknown.", version)
    unlocked = view is None or not is_locked(view)
    yield _flag("patroni_cluster_unlocked", "1 when no leader is known.", unlocked)
    yield _flag(
        "patroni_failsafe_mode_is_active", "1 while failsafe mode keeps a primary.", published.failsafe_active
    )
    timeline = sample.timeline or 0 if sample is not None else 0
    yield _Sample("patroni_postgres_timeline", "Timeline of PostgreSQL, 0 if unknown.", timeline)
    yield _Sample("patroni_dcs_last_seen", "Last DCS contact, epoch seconds.", published.dcs_last_seen)
    pending = bool(published.pending_restart_reason)
    yield _flag("patroni_pending_restart", "1 when a parameter waits for a restart.", pending)
    yield _flag("patroni_is_paused", "1 while automatic failover is paused.", published.settings.pause)
    index = _STATE_INDEX.get(state, -1)
    yield _Sample("patroni_postgres_state", "State of PostgreSQL as a number.", index, comment=_STATE_COMMENT)
    tags = published.tags
    priority = 0 if tags.nofailover else tags.failover_priority
    yield _Sample("patroni_failover_priority", "Failover priority, 0 when it may not lead.", priority)
    on, cluster = published.settings.failsafe_mode, published.cluster
    listed = cluster is not None and published.name in (cluster.failsafe or {})
    yield _flag("patroni_failsafe_mode_enabled", "1 when failsafe mode is switched on.", on)
    yield _flag("patroni_failsafe_member", "1 when listed for failsafe mode.", on and listed)


def _primary_location(sample: InstanceSample | None, primary: bool) -> _Sample:
    # Role `demoted` shows no position: its epoch is closed (hazard H13).
    location = _bytes(sample.flush_lsn) if sample is not None and primary else 0
    return _Sample("patroni_xlog_location", "End of flushed WAL of a primary, else 0.", location, _COUNTER)


def _standby_metrics(sample: InstanceSample | None) -> Iterator[_Sample]:
    standby = sample if sample is not None and sample.in_recovery else None
    received = _bytes(standby.receive_lsn) if standby is not None else 0
    replayed = _bytes(standby.replay_lsn) if standby is not None else 0
    timestamp = _epoch(standby.replay_timestamp) if standby is not None else 0
    paused = standby is not None and standby.replay_paused
    yield _Sample("patroni_xlog_received_location", "WAL received by a standby, else 0.", received, _COUNTER)
    yield _Sample("patroni_xlog_replayed_location", "WAL replayed by a standby, else 0.", replayed, _COUNTER)
    yield _Sample("patroni_xlog_replayed_timestamp", "Last replayed commit, epoch seconds or 0.", timestamp)
    yield _flag("patroni_xlog_paused", "1 while replay is paused.", paused)
    if sample is not None:
        state = sample.replication_state if sample.in_recovery else None
        yield _flag("patroni_postgres_streaming", "1 while WAL is streamed.", state == "streaming")
        archive = state == "in archive recovery"
        yield _flag("patroni_postgres_in_archive_recovery", "1 while WAL comes from the archive.", archive)


class _Own(Collector):
    """`haagent_*` of one moment, each with `scope` and `name` as in `patroni_*`."""

    def __init__(
        self, published: Published, leader_until: float | None, now: float, numbers: Numbers
    ) -> None:
        self._published, self._leader_until, self._now, self._numbers = published, leader_until, now, numbers
        self._who = (published.scope, published.name)

    def collect(self) -> Iterable[Metric]:
        yield self._gauge("build_info", "Version of the agent.", 1, "version", __version__)
        yield from self._moment()
        yield from self._outlook()
        yield from self._copy()
        yield from self._slots()
        yield from self._probes()
        yield from self._counts(self._numbers.measures)
        yield from self._durations(self._numbers.measures)

    def _moment(self) -> Iterator[Metric]:
        published, now = self._published, self._now
        left_s = max(0.0, self._leader_until - now) if self._leader_until is not None else 0.0
        yield self._gauge("lease_left_seconds", "Proven life of our leader lease, 0 without one.", left_s)
        ttl_s = published.settings.ttl_s
        yield self._gauge("lease_ttl_seconds", "Life of a lease from its renewal on, as set.", ttl_s)
        decided_at = self._numbers.measures.decided_at
        if decided_at is not None:
            age_s = max(0.0, now - decided_at)
            yield self._gauge("decision_age_seconds", "Time since the main loop decided last.", age_s)
        alive_s = max(0.0, published.alive_until - now)
        yield self._gauge("liveness_left_seconds", "Time until the main loop counts as stuck.", alive_s)
        if published.sample is not None:
            age_s = max(0.0, now - published.sample.sampled_at)
            yield self._gauge("sample_age_seconds", "Age of what PostgreSQL answered last.", age_s)
        cannot = bool(published.cannot_lead)
        yield self._gauge("cannot_lead", "1 when this member could not take over.", int(cannot))
        yield from self._rejoin()

    def _rejoin(self) -> Iterator[Metric]:
        way, gone = self._published.rejoin, self._published.discards
        states = GaugeMetricFamily(
            "haagent_rejoin_state", "1 for where it is on its way back.", labels=_labels("state")
        )
        for state in REJOIN_STATES:
            states.add_metric((*self._who, state), int(state == way.state))
        yield states
        yield self._gauge("rejoin_tries", "Tries of pg_rewind and clone under this leader.", way.tries)
        yield self._gauge("rejoin_next_try_seconds", "Time until the next try.", way.next_try_in_s)
        yield self._gauge("rejoin_discards", "Discards of WAL that are remembered here.", len(gone))
        if gone:
            last = gone[-1]
            size = max(0, last.end - last.start) if last.end is not None and last.start is not None else nan
            lost = last.transactions if last.transactions is not None else nan
            yield self._gauge("rejoin_discarded_bytes", "WAL thrown away last.", size)
            yield self._gauge("rejoin_discarded_transactions", "Transactions thrown away last.", lost)

    def _outlook(self) -> Iterator[Metric]:
        seen = self._numbers.outlook
        if seen is None:
            return
        help_text = "Members that could take over from this primary now."
        yield self._gauge("failover_candidates", help_text, len(seen.candidates))
        if seen.loss_bytes is not None:
            help_text = "WAL the best candidate lacks: lost if this primary were lost now."
            yield self._gauge("failover_expected_loss_bytes", help_text, seen.loss_bytes)

    def _copy(self) -> Iterator[Metric]:
        copied = self._published.copied
        if copied is None:
            return
        yield self._gauge("copied_bytes", "Of a copy into the data directory, so far.", copied.copied_bytes)
        if copied.total_bytes is not None:
            yield self._gauge("copy_total_bytes", "What it will have, about.", copied.total_bytes)

    def _slots(self) -> Iterator[Metric]:
        """Who makes this server keep WAL, and how much (contract 6.2: the disk must not fill)."""
        sample = self._published.sample
        if sample is None:
            return
        kept = GaugeMetricFamily(
            "haagent_slot_retained_bytes", "WAL a slot keeps here.", labels=_labels("slot", "type")
        )
        active = GaugeMetricFamily(
            "haagent_slot_active", "1 while a slot is in use.", labels=_labels("slot", "type")
        )
        for slot in sample.slots:
            who = (*self._who, slot.name, slot.type)
            active.add_metric(who, int(slot.active))
            if slot.restart_lsn is not None:
                kept.add_metric(who, max(0, sample.position.minus(slot.restart_lsn)))
        yield from (kept, active)

    def _probes(self) -> Iterator[Metric]:
        """Each with the label `probe`."""
        kinds, vitals = ("age", "duration", "failing"), self._numbers.vitals
        texts = ("Time since the last probe began.", "How long it took.", "Since when probes fail, 0 if not.")
        age, duration, failing = (
            GaugeMetricFamily(f"haagent_probe_{kind}_seconds", text, labels=_labels("probe"))
            for kind, text in zip(kinds, texts, strict=True)
        )
        failures = self._counter("probe_failures", "Probes that failed.", "probe")
        for name, facts in (("server", vitals.server), ("disk", vitals.disk)):
            who, since = (*self._who, name), facts.failing_since
            if facts.began_at is not None:
                age.add_metric(who, max(0.0, self._now - facts.began_at))
                duration.add_metric(who, facts.took_s)
            failing.add_metric(who, max(0.0, self._now - since) if since is not None else 0.0)
            failures.add_metric(who, facts.failures)
        yield from (age, duration, failing, failures)

    def _counts(self, measures: Measures) -> Iterator[Metric]:
        renewals = self._counter("lease_renewals", "Renewals of our lease.", "lease", "result")
        for (lease, result), count in measures.renewals.items():
            renewals.add_metric((*self._who, lease, result), count)
        failovers = self._counter("failovers", "Times this member became the primary of others.", "kind")
        for kind, count in measures.failovers.items():
            failovers.add_metric((*self._who, kind), count)
        fencings = self._counter("fencings", "Times PostgreSQL was stopped as its lease ran out.", "by")
        for fencer, count in measures.fencings.items():
            fencings.add_metric((*self._who, fencer), count)
        yield from (renewals, failovers, fencings)
        yield self._count("failed_promotions", "Promotions that failed here.", measures.failed_promotions)
        yield self._count("failed_steps", "Steps of the main loop that failed.", measures.failed_steps)
        lost = self._published.lost_log_records
        yield self._count("lost_log_records", "Log records dropped, as the log was too slow.", lost)

    def _durations(self, measures: Measures) -> Iterator[Metric]:
        trips = HistogramMetricFamily(
            "haagent_dcs_round_trip_seconds", "Answered requests to the DCS.", labels=_labels("operation")
        )
        bounds = (*(str(bound) for bound in BUCKETS_S), "+Inf")
        for kind, timing in measures.round_trips().items():
            buckets = list(zip(bounds, accumulate(timing.buckets), strict=True))
            trips.add_metric((*self._who, kind), buckets, timing.total_s)
        phases = SummaryMetricFamily(
            "haagent_failover_phase_seconds", "Phases of failovers.", labels=_labels("phase")
        )
        for phase, (count, total_s) in measures.phases.items():
            phases.add_metric((*self._who, phase), count, total_s)
        yield from (trips, phases)

    def _gauge(self, name: str, help_text: str, value: float, *label: str) -> Metric:
        """`label`: name and value of one more label."""
        family = GaugeMetricFamily(f"haagent_{name}", help_text, labels=_labels(*label[:1]))
        family.add_metric((*self._who, *label[1:]), value)
        return family

    def _counter(self, name: str, help_text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"haagent_{name}", help_text, labels=_labels(*labels))

    def _count(self, name: str, help_text: str, value: int) -> Metric:
        family = self._counter(name, help_text)
        family.add_metric(self._who, value)
        return family


def _labels(*more: str) -> tuple[str, ...]:
    return ("scope", "name", *more)


def _flag(name: str, help_text: str, value: bool) -> _Sample:
    return _Sample(name, help_text, int(value))


def _render(metric: _Sample, labels: str) -> str:
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
