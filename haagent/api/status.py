"""The JSON bodies people and peers read: `/patroni`, `/history` (contract 3.4, 1.3). Pure.

`/patroni` renders what the agent published and nothing else: no query, no DCS call, no judgement. A
position is shown only where PostgreSQL answered, and never as a primary's once the epoch is closed
(hazard H13). Peers of a Patroni cluster need `role` and `xlog`; fields of ours stand under `haagent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcs.records import ClusterSnapshot, HistoryRow
from haagent import COMPATIBLE_VERSION, __version__
from haagent.api.view import Published
from haagent.core.cluster_view import (
    is_listed_in_sync,
    is_locked,
    is_quorum_mode,
    is_standby_cluster,
    restart_reasons,
)
from haagent.core.member_select import discard_json
from haagent.core.rejoin import NOT_NEEDED, RejoinView
from haagent.core.roles import is_demoted, shown_role, shown_state
from postgres_ctl.facts import InstanceSample, Lsn, WalSender

#: A longer queue of log records is told: the log hangs (contract 3.4).
SHORT_LOG_QUEUE = 2


def patroni_json(published: Published) -> dict[str, Any]:
    """The body of `GET /patroni` and of every health check."""
    sample = published.sample
    body: dict[str, Any] = {"state": shown_state(published.state, sample is not None)}
    if sample is not None:
        body["postmaster_start_time"] = sample.postmaster_start_time
    body["role"] = role_of(published)
    if sample is not None:
        body |= _version_and_position(sample, demoted=is_demoted(published.role))
    body |= _sync_flag(published)
    if sample is not None:
        body |= _replication(sample)
    body |= _cluster_flags(published)
    body |= _agent(published)
    return body


def role_of(published: Published) -> str:
    """The role shown to others: what PostgreSQL is, where it answers."""
    sample, cluster = published.sample, published.cluster
    standby_cluster = cluster is not None and is_standby_cluster(cluster)
    return shown_role(published.role, sample.in_recovery if sample is not None else None, standby_cluster)


def fresh_view(published: Published) -> ClusterSnapshot | None:
    """The last DCS view while it is younger than ttl."""
    return published.cluster if published.cluster_is_fresh else None


def history_json(rows: Sequence[HistoryRow] | None) -> list[list[Any]]:
    """Rows `[tl, lsn, reason, timestamp, new_leader]`; old rows end where knowledge ends."""
    return [_history_row(row) for row in rows or ()]


def _history_row(row: HistoryRow) -> list[Any]:
    cells: list[Any] = [row.timeline, row.lsn, row.reason]
    if row.timestamp is not None:
        cells.append(row.timestamp)
        if row.new_leader is not None:
            cells.append(row.new_leader)
    return cells


def _version_and_position(sample: InstanceSample, demoted: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"server_version": sample.server_version}
    if sample.in_recovery:
        fields["xlog"] = {
            "received_location": _bytes(sample.receive_lsn),
            "replayed_location": _bytes(sample.replay_lsn),
            "replayed_timestamp": sample.replay_timestamp,
            "paused": sample.replay_paused,
        }
    elif not demoted:
        fields["xlog"] = {"location": _bytes(sample.flush_lsn)}
    return fields


def _replication(sample: InstanceSample) -> dict[str, Any]:
    fields: dict[str, Any] = {"timeline": sample.timeline}
    if sample.in_recovery and sample.replication_state:
        fields["replication_state"] = sample.replication_state
    if sample.senders:
        fields["replication"] = [_sender(sender) for sender in sample.senders]
    return fields


def _sender(sender: WalSender) -> dict[str, Any]:
    return {
        "usename": sender.usename,
        "application_name": sender.application_name,
        "client_addr": sender.client_addr,
        "state": sender.state,
        "sync_state": sender.sync_state,
        "sync_priority": sender.sync_priority,
    }


def _sync_flag(published: Published) -> dict[str, Any]:
    view = fresh_view(published)
    if view is None or not is_listed_in_sync(view, published.name):
        return {}
    return {"quorum_standby" if is_quorum_mode(view) else "sync_standby": True}


def _cluster_flags(published: Published) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    view = fresh_view(published)
    if published.failsafe_active:
        flags["failsafe_mode_is_active"] = True
    if published.settings.pause:
        flags["pause"] = True
    if view is None or not is_locked(view):
        flags["cluster_unlocked"] = True
    return flags


def _agent(published: Published) -> dict[str, Any]:
    fields: dict[str, Any] = {"dcs_last_seen": published.dcs_last_seen}
    if published.tags.values:
        fields["tags"] = dict(published.tags.values)
    if published.system_identifier:
        fields["database_system_identifier"] = published.system_identifier
    if published.pending_restart_reason:
        fields["pending_restart"] = True
        fields["pending_restart_reason"] = restart_reasons(published.pending_restart_reason)
    fields["patroni"] = {"version": COMPATIBLE_VERSION, "scope": published.scope, "name": published.name}
    if published.watchdog_failed:
        fields["watchdog_failed"] = True
    if published.scheduled_restart is not None:
        fields["scheduled_restart"] = dict(published.scheduled_restart)
    if published.queued_log_records > SHORT_LOG_QUEUE:
        fields["logger_queue_size"] = published.queued_log_records
        fields["logger_records_lost"] = published.lost_log_records
    ours: dict[str, Any] = {
        "version": __version__,
        "note": published.note,
        "cannot_lead": published.cannot_lead,
    }
    if published.copied is not None:
        ours["copy"] = {
            "copied_bytes": published.copied.copied_bytes,
            "total_bytes": published.copied.total_bytes,
        }
    if published.rejoin != NOT_NEEDED:
        ours["rejoin"] = _rejoin(published.rejoin)
    if published.discards:
        ours["discarded"] = [discard_json(discard) for discard in published.discards[-1:]]
    if published.sample is not None:
        # Peers must not count a position before the standby has read all its own WAL (hazard H16).
        ours["position_is_proven"] = published.sample.position_is_proven
    return fields | {"haagent": ours}


def _rejoin(rejoin: RejoinView) -> dict[str, Any]:
    return {
        "state": rejoin.state,
        "tries": rejoin.tries,
        "reason": rejoin.reason,
        "next_try_in": round(rejoin.next_try_in_s, 1),
    }


def _bytes(lsn: Lsn | None) -> int:
    """Peers read numbers: a standby that never received anything says 0, as theirs do."""
    return lsn.value if lsn is not None else 0
