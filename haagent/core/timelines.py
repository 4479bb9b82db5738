"""Lines of timelines: what number comes next, who made which, and whose WAL belongs to the cluster (H15).

Rules
- No number is used twice. Whoever promotes takes the next one after all that were ever claimed, and claims it
  in the store first. So two histories never hide behind one number, and PostgreSQL itself refuses to stream
  one over the other.
- The cluster's line is what `history` tells; the timeline after its last row is the one that this row's new
  leader claimed. WAL elsewhere is diverged from where it left the line: it never promotes and never blocks.
"""

from __future__ import annotations

from dcs.records import ClusterSnapshot, HistoryRow
from haagent.core.model import Observation, PeerAnswer, Unavailable, unreadable
from postgres_ctl.facts import InstanceSample, Lsn


def cluster_timeline(cluster: ClusterSnapshot) -> int:
    """Last ended timeline + 1; 0 when there is no history (contract 1.3)."""
    if cluster.history is None:
        return 0
    return cluster.history[-1].timeline + 1 if cluster.history else 1


def next_timeline(obs: Observation, cluster: ClusterSnapshot) -> int:
    """The number the next promotion here makes: one that nobody was ever told to make."""
    claimed = (claim.timeline for claim in cluster.claims)
    return 1 + max((obs.instance.timeline or 0, cluster_timeline(cluster), *claimed))


def claims_unknown(obs: Observation) -> str | None:
    """Why it is not known which timelines were claimed, and by whom."""
    cause = None if isinstance(obs.cluster, Unavailable) else unreadable(obs.cluster, "haagent_claims")
    return None if cause is None else f"which timelines were claimed cannot be read from the store: {cause}"


# --- the cluster's line ---------------------------------------------------------------------------


def leaves_the_line(obs: Observation, cluster: ClusterSnapshot) -> Lsn | None:
    """Up to where WAL of this member's timeline is the cluster's; None: all of it is, as far as is known."""
    mine, begun = obs.instance.timeline, None
    if mine is None:
        return None
    left = {s.timeline: s.switch_lsn for s in obs.instance.history if s.timeline < mine}
    for row in cluster.history or ():
        ended = Lsn(row.lsn)
        if row.timeline == mine:
            return ended
        if row.timeline not in left:
            # Rows may begin late: then we left before this one began, at the latest.
            return begun or ended
        if left[row.timeline] != ended:
            return min(left[row.timeline], ended)
        begun = ended
    return begun if cluster.history and _another_went_on(obs, cluster, cluster.history[-1]) else None


def _another_went_on(obs: Observation, cluster: ClusterSnapshot, last: HistoryRow) -> bool:
    """The timeline we took after the last row is none that its new leader claimed. Patroni claims none."""
    path = (*(s.timeline for s in obs.instance.history), obs.instance.timeline or 0)
    ours = next((t for t in path if t > last.timeline), None)
    theirs = [c.timeline for c in cluster.claims if c.name == last.new_leader and c.timeline > last.timeline]
    return bool(theirs) and ours not in theirs


def diverged_detail(obs: Observation) -> str | None:
    """Why this member's WAL is not the cluster's; None when it is. Needs a server that answers."""
    if isinstance(obs.cluster, Unavailable) or not isinstance(obs.instance.sample, InstanceSample):
        return None
    left_at, position = leaves_the_line(obs, obs.cluster), obs.instance.sample.position
    if left_at is None or position <= left_at:
        return None
    return f"WAL up to {position} on timeline {obs.instance.timeline} left the cluster's line at {left_at}"


def position_in_my_history(obs: Observation, peer: PeerAnswer) -> Lsn:
    """How far the peer got on *our* history: WAL beyond our switch point, or beyond the end that the cluster
    gave its timeline, is diverged.

    A timeline we never came along parted from ours at the latest where we left the one before it."""
    mine, rows = obs.instance.timeline, () if isinstance(obs.cluster, Unavailable) else obs.cluster.history
    ended = (Lsn(row.lsn) for row in rows or () if row.timeline == peer.timeline)
    position = min((peer.position, *ended))
    if mine is None or peer.timeline is None or peer.timeline >= mine:
        return position
    switch = next((s for s in reversed(obs.instance.history) if s.timeline <= peer.timeline), None)
    return min(position, switch.switch_lsn) if switch is not None else position
