"""Is this primary still one that clients can use, and what may be done about it when not. Pure.

Theory. A lease proves that nobody else writes, not that anybody can: a primary whose disk is full or hangs,
or whose postmaster lets nobody in, keeps its lease for ever. Probes that write tell (`haagent.prober`). They
may be wrong under load, so several in a row have to fail, for longer than a lease lives: a primary that is
only busy is worth more than any failover. A fault may be everybody's, too, and whoever takes over meet it in
turn: so members whose own probe fails are no candidates, and hand-overs that nobody asked for come at growing
distances, however often the fault comes and goes (H12, H13).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from haagent.core.model import Memory, Observation, evolve
from haagent.core.vitals import ProbeFacts, Remedies
from postgres_ctl.facts import ProbeFault

#: So many probes in a row have to fail, for so long, and not less than ttl; seconds.
ILL_AFTER, ILL_AFTER_S = 3, 10.0
#: The same for new connections alone: a storm of them looks like a hung postmaster (H12), seconds.
UNREACHED_AFTER_S = 30.0
#: So often PostgreSQL is restarted for its health in so long, seconds.
RESTARTS, RESTARTS_IN_S = 2, 600.0
#: From one change of the leader to the next that nobody asked for: this after the first in a while, doubled
#: with each more up to that; seconds.
CALM_S, CALM_MAX_S = 30.0, 600.0
#: Changes of the leader are remembered so long, seconds.
CHANGES_IN_S = 3600.0
#: From one try of a hand-over to the next, doubled with each, seconds.
RETRY_S = 10.0

_WORDS = {
    ProbeFault.UNREACHED: "PostgreSQL lets nobody in",
    ProbeFault.HANGS: "PostgreSQL does not write",
    ProbeFault.FULL: "no space is left",
    ProbeFault.BROKEN: "its storage fails",
}


@dataclass(frozen=True)
class Illness:
    """What makes a primary useless. Clients may still read from it."""

    fault: ProbeFault
    #: The storage itself was found wanting: no restart helps, and if it hangs, no clean stop is possible.
    of_the_disk: bool
    text: str
    #: When the first of the probes began that have failed in a row, and when the last of them ended.
    since: float
    seen_at: float

    @property
    def restart_may_help(self) -> bool:
        return not self.of_the_disk and self.fault in (ProbeFault.UNREACHED, ProbeFault.HANGS)

    @property
    def stops_cleanly(self) -> bool:
        """A shutdown checkpoint may be written: WAL is made in advance, and overwritten in place."""
        return self.fault is ProbeFault.FULL


def illness(obs: Observation) -> Illness | None:
    """Of the storage first: it explains the other."""
    disk, server = obs.vitals.disk, obs.vitals.server
    for facts, of_the_disk in ((disk, True), (server, False)):
        if facts.fault is not None and _long_enough(obs, facts):
            storage = of_the_disk or facts.fault in (ProbeFault.FULL, ProbeFault.BROKEN)
            ended_at = (facts.began_at or 0.0) + facts.took_s
            return Illness(
                facts.fault, storage, _text(facts, of_the_disk), facts.failing_since or 0.0, ended_at
            )
    return None


def _long_enough(obs: Observation, facts: ProbeFacts) -> bool:
    least_s = UNREACHED_AFTER_S if facts.fault is ProbeFault.UNREACHED else ILL_AFTER_S
    since = facts.failing_since
    return (
        facts.in_a_row >= ILL_AFTER
        and since is not None
        and obs.now >= since + max(least_s, obs.settings.ttl_s)
    )


def _text(facts: ProbeFacts, of_the_disk: bool) -> str:
    assert facts.fault is not None
    words = (
        "its storage does not answer"
        if of_the_disk and facts.fault is ProbeFault.HANGS
        else _WORDS[facts.fault]
    )
    return f"{words}: {facts.cause}"


def unfit(obs: Observation) -> str | None:
    """Why this member had better not take over: it would be of no more use than whom it follows."""
    disk, server = obs.vitals.disk, obs.vitals.server
    if disk.fault is not None:
        return _text(disk, True)
    return _text(server, False) if server.fault is not None and server.in_a_row >= ILL_AFTER else None


def note(obs: Observation) -> str | None:
    """One line for people while a probe fails, however short; without numbers that change all the time."""
    for facts, of_the_disk in ((obs.vitals.disk, True), (obs.vitals.server, False)):
        if facts.fault is not None:
            return _text(facts, of_the_disk)
    return None


# --- remedies ---------------------------------------------------------------------------------------


def may_restart(obs: Observation, memory: Memory) -> bool:
    """The budget of restarts is not used up."""
    lately = [at for at in memory.remedies.restarts if at > obs.now - RESTARTS_IN_S]
    return len(lately) < RESTARTS


def calm_at(obs: Observation, memory: Memory) -> float:
    """When the next hand-over may begin that nobody asked for, by what was seen of the last ones."""
    remedies = memory.remedies
    changes = [at for at in remedies.changes if at > obs.now - CHANGES_IN_S]
    times = [0.0]
    if changes:
        times.append(changes[-1] + _distance_s(CALM_S, len(changes)))
    if remedies.tried_at is not None:
        times.append(remedies.tried_at + _distance_s(RETRY_S, remedies.tries))
    return max(times)


def _distance_s(first_s: float, count: int) -> float:
    return min(CALM_MAX_S, first_s * 2.0 ** min(max(count, 1) - 1, 10))


def restarted(obs: Observation, memory: Memory) -> Memory:
    """PostgreSQL is being restarted for its health."""
    lately = tuple(at for at in memory.remedies.restarts if at > obs.now - RESTARTS_IN_S)
    return evolve(memory, remedies=replace(memory.remedies, restarts=(*lately, obs.now)))


def tried(obs: Observation, memory: Memory) -> Memory:
    """A hand-over for the primary's health is being begun."""
    remedies = replace(memory.remedies, tries=memory.remedies.tries + 1, tried_at=obs.now)
    return evolve(memory, remedies=remedies)


def fit(obs: Observation, memory: Memory, ill: Illness) -> Memory:
    """A standby is fit to take over."""
    since = memory.remedies.fit_since
    known = since is not None and since >= ill.since
    return evolve(memory, remedies=replace(memory.remedies, fit_since=since if known else obs.now))


def leader_changed(obs: Observation, remedies: Remedies) -> Remedies:
    """Another member leads now."""
    lately = tuple(at for at in remedies.changes if at > obs.now - CHANGES_IN_S)
    return replace(remedies, changes=(*lately, obs.now), tries=0, tried_at=None)
