"""The cluster as people see it: the JSON of `GET /cluster`, shared with `haagentctl list`. Pure.

One function turns a DCS snapshot into plain data (contract 3.5). Positions become text, lags are bytes behind
`status.optime` and never negative, what nobody knows is the text `unknown`. Fields of ours stand under
`haagent` and only when there is something to tell, so that the rest stays what existing readers expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcs.records import ClusterSnapshot, Member
from haagent.core.settings import parse_bool
from postgres_ctl.facts import Lsn

LEADER = "leader"
STANDBY_LEADER = "standby_leader"
SYNC_STANDBY = "sync_standby"
QUORUM_STANDBY = "quorum_standby"
REPLICA = "replica"

UNKNOWN = "unknown"


def cluster_view(snapshot: ClusterSnapshot, scope: str) -> dict[str, Any]:
    """`{"members": [… sorted by name …], "scope": …}` plus `pause` and `scheduled_switchover` where set."""
    optime = snapshot.status.optime if snapshot.status is not None else None
    members = sorted(snapshot.members, key=lambda member: member.name)
    view: dict[str, Any] = {
        "members": [_member_view(member, member_role(snapshot, member.name), optime) for member in members]
    }
    if is_paused(snapshot):
        view["pause"] = True
    request = snapshot.failover
    if request is not None and request.scheduled_at:
        wish = {"at": request.scheduled_at, "from": request.leader, "to": request.candidate}
        view["scheduled_switchover"] = {key: value for key, value in wish.items() if value}
    view["scope"] = scope
    return view


def member_role(snapshot: ClusterSnapshot, name: str) -> str:
    """leader, standby_leader, sync_standby, quorum_standby or replica, by the DCS alone."""
    if snapshot.leader is not None and snapshot.leader.name == name:
        return STANDBY_LEADER if is_standby_cluster(snapshot) else LEADER
    if is_listed_in_sync(snapshot, name):
        return QUORUM_STANDBY if is_quorum_mode(snapshot) else SYNC_STANDBY
    return REPLICA


def is_listed_in_sync(snapshot: ClusterSnapshot, name: str) -> bool:
    """`/sync` names this member as one that misses no acknowledged commit; names ignore case."""
    sync = snapshot.sync
    if sync is None or not sync.leader:
        return False
    return name.lower() in (standby.lower() for standby in sync.standbys)


def is_locked(snapshot: ClusterSnapshot) -> bool:
    """Somebody holds the leader key."""
    return snapshot.leader is not None and bool(snapshot.leader.name)


def is_standby_cluster(snapshot: ClusterSnapshot) -> bool:
    """`standby_cluster` in the dynamic configuration names somewhere to follow."""
    section = _config(snapshot).get("standby_cluster")
    if not isinstance(section, Mapping):
        return False
    return any(section.get(key) for key in ("host", "port", "restore_command"))


def is_quorum_mode(snapshot: ClusterSnapshot) -> bool:
    return str(_config(snapshot).get("synchronous_mode", "")).lower() == "quorum"


def is_paused(snapshot: ClusterSnapshot) -> bool:
    return parse_bool(_config(snapshot).get("pause")) is True


def _config(snapshot: ClusterSnapshot) -> Mapping[str, Any]:
    return snapshot.config.data if snapshot.config is not None else {}


def _member_view(member: Member, role: str, optime: int | None) -> dict[str, Any]:
    state = member.state if role == LEADER else member.replication_state or member.state
    view: dict[str, Any] = {"name": member.name, "role": role, "state": state}
    if member.api_url:
        view["api_url"] = member.api_url
    if member.host_port is not None:
        view["host"], view["port"] = member.host_port
    view |= _optional_fields(member)
    if role not in (LEADER, STANDBY_LEADER):
        view |= _positions(member, optime)
    told = {"note": member.note, "cannot_lead": member.cannot_lead}
    if any(told.values()):
        view["haagent"] = {key: value for key, value in told.items() if value}
    return view


def _optional_fields(member: Member) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if member.timeline is not None:
        fields["timeline"] = member.timeline
    if member.pending_restart:
        fields["pending_restart"] = True
    if member.pending_restart_reason:
        fields["pending_restart_reason"] = restart_reasons(member.pending_restart_reason)
    if member.scheduled_restart:
        fields["scheduled_restart"] = dict(member.scheduled_restart)
    if member.tags.values:
        fields["tags"] = dict(member.tags.values)
    return fields


def restart_reasons(reasons: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """GUC -> old and new value, in the shape of the member key (contract 1.3)."""
    return {guc: {"old_value": old, "new_value": new} for guc, (old, new) in reasons.items()}


def _positions(member: Member, optime: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for prefix, position in (
        ("receive_", member.receive_lsn),
        ("replay_", member.replay_lsn),
        ("", member.xlog_location),
    ):
        fields[f"{prefix}lag"] = max(0, optime - position) if position and optime is not None else UNKNOWN
        fields[f"{prefix}lsn"] = str(Lsn(position)) if position else UNKNOWN
    return fields
