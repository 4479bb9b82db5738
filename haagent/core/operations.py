"""Operator requests to the cluster, judged before anything is written: contract 3.6. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dcs.records import ClusterSnapshot
from haagent.core import sync, sync_seen
from haagent.core.candidate import (
    expected_loss_bytes,
    expected_loss_text,
    interesting_peers,
    standing,
)
from haagent.core.model import Memory, Observation, Unavailable
from haagent.core.rules import common
from haagent.core.settings import Settings, SyncMode


@dataclass(frozen=True)
class Verdict:
    """HTTP status and text of an answer."""

    status: int
    text: str


def refuse_request(
    cluster: ClusterSnapshot, settings: Settings, leader: str | None, candidate: str | None
) -> Verdict | None:
    """Why this switchover (`leader` given) or failover cannot even be asked for; None when it can."""
    paused = settings.pause
    action = "switchover" if leader is not None else "failover"
    if leader is not None and leader == candidate:
        return Verdict(400, "Switchover target and source are the same")
    if leader is not None and paused and candidate is None:
        return Verdict(400, "Switchover is possible only to a specific candidate in a paused state")
    if leader is not None and (cluster.leader is None or cluster.leader.name != leader):
        return Verdict(412, "leader name does not match")
    holder = cluster.leader.name if cluster.leader is not None else None
    if candidate is None and not any(m.name != holder for m in cluster.members):
        return Verdict(412, f"{action} is not possible: cluster does not have members except leader")
    if leader is not None and settings.synchronous_mode is SyncMode.PRIORITY:
        refused = _refuse_asynchronous(cluster, settings, candidate)
        if refused is not None:
            return refused
    if candidate is not None and cluster.member(candidate) is None:
        return Verdict(412, "candidate does not exists")
    return _refuse_members(cluster, action, holder, candidate)


def _refuse_asynchronous(
    cluster: ClusterSnapshot, settings: Settings, candidate: str | None
) -> Verdict | None:
    """A switchover goes to a synchronous standby; by quorum, whoever it is, the leader judges it."""
    key = sync.in_force(settings, cluster)
    if key is None:
        return None
    if candidate is not None and not sync.is_listed(key, candidate):
        return Verdict(412, "candidate name does not match with sync_standby")
    if candidate is None and not any(sync.is_listed(key, m.name) for m in cluster.members):
        return Verdict(412, "switchover is not possible: can not find sync_standby")
    return None


def _refuse_members(
    cluster: ClusterSnapshot, action: str, holder: str | None, candidate: str | None
) -> Verdict | None:
    asked = [m for m in cluster.members if m.name != holder and candidate in (None, m.name)]
    if candidate is not None and candidate == holder:
        return Verdict(503, f"{action.capitalize()} failed")
    fit = [m for m in asked if not m.tags.nofailover and m.api_url]
    if not fit:
        return Verdict(412, f"{action} is not possible: no good candidates have been found")
    return None


def outcome_of(
    cluster: ClusterSnapshot, version: int, former: str | None, candidate: str | None, switchover: bool
) -> Verdict | None:
    """How the request under `version` of `failover` ended, as the store shows it; None while it has not."""
    told = cluster.outcome if cluster.outcome is not None and cluster.outcome.version == version else None
    pending = cluster.failover is not None and cluster.failover.version == version
    if pending:
        return None
    if told is not None and told.status != 200:
        return Verdict(told.status, told.text)
    now = cluster.leader.name if cluster.leader is not None else None
    if now is not None and now != former:
        return Verdict(200, _success(now, candidate, switchover, told.text if told is not None else ""))
    if now is not None:
        return Verdict(503, f"{'Switchover' if switchover else 'Failover'} failed")
    return None


def _success(now: str, candidate: str | None, switchover: bool, told: str) -> str:
    if candidate is not None and now != candidate:
        verb = "Switched" if switchover else "Failed"
        return f'{verb} over to "{now}" instead of "{candidate}"'
    if switchover:
        return f'Successfully switched over to "{now}"'
    loss = told.partition("; ")[2]
    return f'Successfully failed over to "{now}"' + (f" ({loss})" if loss else "")


# --- explain --------------------------------------------------------------------------------------


def as_if_key_were_free(obs: Observation, memory: Memory) -> tuple[Observation, Memory]:
    """The same facts with the leader gone: what the election would see, or sees when nobody leads."""
    if isinstance(obs.cluster, Unavailable) or obs.cluster.leader is None:
        return obs, memory
    gone = obs.cluster.leader.name
    members = tuple(m for m in obs.cluster.members if m.name != gone or m.name == obs.me.name)
    cluster = replace(obs.cluster, leader=None, members=members, failover=None)
    free = replace(
        memory,
        leader_missing_since=None,
        last_leader=None,
        last_members=tuple(m for m in memory.last_members if m.name != gone),
    )
    return replace(obs, cluster=cluster), free


def peers_to_ask(obs: Observation, memory: Memory) -> tuple[str, ...]:
    """Whom an explanation has to ask first."""
    obs, memory = as_if_key_were_free(obs, memory)
    return () if isinstance(obs.cluster, Unavailable) else interesting_peers(obs, memory, obs.cluster)


def explain(obs: Observation, memory: Memory) -> Mapping[str, Any]:
    """Could this member take over now, rule by rule, by the very checks of the election."""
    base: dict[str, Any] = {"name": obs.me.name}
    if isinstance(obs.cluster, Unavailable):
        rule = {"id": "dcs", "passed": False, "detail": f"the DCS is not accessible: {obs.cluster.cause}"}
        return base | {"can_lead": False, "role": "unknown", "rules": [rule], "expected_loss_bytes": None,
                       "expected_loss_text": "unknown"}  # fmt: skip
    key = obs.cluster.leader
    if key is not None and key.name == obs.me.name:
        rule = {"id": "leader", "passed": True, "detail": "this member holds the leader key"}
        return base | {"can_lead": True, "role": "leader", "rules": [rule], "expected_loss_bytes": 0,
                       "expected_loss_text": "none"}  # fmt: skip
    seen, free = as_if_key_were_free(obs, memory)
    assert not isinstance(seen.cluster, Unavailable)
    judged = standing(seen, free)
    known = any(c.passed is None for c in judged.checks)
    return base | {
        "can_lead": None if known and not judged.refusals else judged.may_lead,
        "role": "replica",
        "rules": [{"id": c.rule, "passed": c.passed, "detail": c.detail} for c in judged.checks],
        "expected_loss_bytes": expected_loss_bytes(seen, seen.cluster),
        "expected_loss_text": expected_loss_text(seen, seen.cluster),
    }


# --- what clients are told --------------------------------------------------------------------------


def hides_leadership(obs: Observation | None, memory: Memory) -> bool:
    """No client may be sent here as to the leader, whatever the lease still promises: the cluster is being
    made, and its key is taken before its server listens; or the key was seen to be another's; or in strict
    synchronous mode no synchronous standby has yet what a restarted or promoted primary began with (H14).
    """
    if memory.bootstrap is not None or sync_seen.is_quarantined(memory.sync):
        return True
    return obs is not None and common.key_is_anothers(obs)
