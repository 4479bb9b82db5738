"""The lines of log type `plain` that tools and people know from Patroni (contract 7.3). Pure."""

from __future__ import annotations

from haagent.core.model import Decision, Observation, Unavailable

PAUSED = "PAUSE: "


def lock_owner(obs: Observation) -> str | None:
    """The line that stands before each one that says more than a heartbeat; None without a view."""
    if isinstance(obs.cluster, Unavailable):
        return None
    owner = obs.cluster.leader.name if obs.cluster.leader is not None else None
    return f"Lock owner: {owner}; I am {obs.me.name}"


def of_decision(obs: Observation, decision: Decision) -> str:
    """What the decision says; in a pause every line says so."""
    *before, last = (decision.line or decision.reason).split("\n")
    if obs.settings.pause and not last.startswith(PAUSED):
        last = PAUSED + last
    return "\n".join((*before, last))


def of_fence(obs: Observation | None) -> str:
    """The guardian stops PostgreSQL because the lease has run out."""
    if obs is not None and isinstance(obs.cluster, Unavailable):
        return "demoted self because DCS is not accessible and I was a leader"
    return "demoted self because failed to update leader lock in DCS"
