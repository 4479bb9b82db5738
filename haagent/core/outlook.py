"""What losing this primary now would mean: who could take over, and how much WAL would be gone. Pure.

For metrics and people, decides nothing. It looks at what the primary itself can see (walsenders, member
keys); the election asks the members themselves and may still refuse.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcs.records import ClusterSnapshot, Member
from haagent.core.candidate import end_of_wal, flushed_by
from haagent.core.model import Observation, Unavailable
from postgres_ctl.facts import InstanceSample, Lsn


@dataclass(frozen=True)
class Outlook:
    """`loss_bytes`: WAL that the best candidate has not written yet; None while there is no candidate."""

    candidates: tuple[str, ...]
    loss_bytes: int | None


def outlook(obs: Observation) -> Outlook | None:
    """As seen by the primary; None on every other member, and while PostgreSQL or the DCS was not heard."""
    sample = obs.instance.sample
    if isinstance(obs.cluster, Unavailable) or not isinstance(sample, InstanceSample) or sample.in_recovery:
        return None
    behind = {m.name: _behind(obs, m) for m in obs.cluster.members if _able(obs, obs.cluster, m)}
    limit = obs.settings.maximum_lag_on_failover_bytes
    fit = {name: lag for name, lag in behind.items() if lag is not None and lag <= limit}
    return Outlook(tuple(sorted(fit)), min(fit.values(), default=None))


def _able(obs: Observation, cluster: ClusterSnapshot, member: Member) -> bool:
    """It says of nothing that it could not lead, and is on this primary's timeline."""
    other = cluster.leader is None or member.name != cluster.leader.name
    fit = not member.tags.nofailover and member.cannot_lead is None and member.api_url is not None
    same = member.timeline is None or member.timeline == obs.instance.timeline
    return other and member.name != obs.me.name and fit and same and member.state == "running"


def _behind(obs: Observation, member: Member) -> int | None:
    """Bytes of WAL it has not written, by its walsender, else by its own last word; None unknown."""
    end, flushed = end_of_wal(obs), flushed_by(obs, member.name)
    if flushed is None and member.xlog_location is not None:
        flushed = Lsn(member.xlog_location)
    return max(0, end.minus(flushed)) if flushed is not None else None
