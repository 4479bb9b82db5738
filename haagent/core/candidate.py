"""Who may become leader: every rule as data, used by the election, by `explain`, REST and the simulator.

`standing` judges this member as if the key were free and returns each check with its verdict: True passed,
False refused, None not known yet. Safety rule 6: no check is waived but those a manual failover may waive
(lag, timeline, a peer that is ahead), and never "another primary is running".

Positions are compared as (history, LSN): WAL of a peer beyond the point where our history left its timeline
is diverged and never blocks; a peer on a newer timeline is ahead (H15).
"""

from __future__ import annotations

from dataclasses import dataclass

from dcs.records import ClusterSnapshot, FailoverRequest, Member
from haagent.core import failsafe, sync_candidate, vitality, watchdog
from haagent.core.cascade import reached_through_another
from haagent.core.model import (
    Memory,
    Observation,
    Peer,
    PeerAnswer,
    PeerSilent,
    Refusal,
    Unavailable,
    unreadable,
)
from haagent.core.roles import is_at_rest
from haagent.core.schedule import request_in_force
from haagent.core.timelines import (
    claims_unknown,
    cluster_timeline,
    diverged_detail,
    leaves_the_line,
    position_in_my_history,
)
from postgres_ctl.facts import InstanceSample, Lsn

#: An answer asked for longer ago than this is asked for again, seconds. More than a peer may take to answer
#: (2 seconds, contract 2.1): else one that is always slow would never count, and no election would end.
ANSWER_LIFE_S = 2.5
#: A member whose session ran out is waited for so long in a race, seconds.
LOST_WAIT_S = 0.2
#: A peer that stayed silent when asked this long before the race need not be waited for again, seconds.
SILENCE_LIFE_S = 6.0


@dataclass(frozen=True)
class Check:
    """One rule applied: `passed` is None while a fact is missing."""

    rule: str
    passed: bool | None
    detail: str


def _check(rule: str, passed: bool, good: str, bad: str) -> Check:
    return Check(rule, passed, good if passed else bad)


@dataclass(frozen=True)
class Standing:
    """The whole judgement of one member."""

    checks: tuple[Check, ...]
    #: Peers whose answer is needed first.
    ask: tuple[str, ...]

    @property
    def may_lead(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(Refusal(c.rule, c.detail) for c in self.checks if c.passed is False)


def standing(obs: Observation, memory: Memory) -> Standing:
    """Judge this member as if the leader key were free. `obs.cluster` must be known."""
    assert not isinstance(obs.cluster, Unavailable)
    local = local_checks(obs, memory)
    cluster = _cluster_checks(obs, memory, obs.cluster)
    refused = [check.rule for check in local + cluster if check.passed is False]
    if refused:
        again = _to_ask_again(obs, memory, obs.cluster) if refused == ["request"] else ()
        return Standing(local + cluster, again)
    unknown = any(check.passed is None for check in local + cluster)
    if not unknown and _is_handed_over(obs, memory, obs.cluster):
        nobody = Check("peers.asked", True, "the key was handed over with all WAL: nobody needs to be asked")
        return Standing((*local, *cluster, nobody), ())
    ask = unanswered(obs, memory, obs.cluster)
    if ask:
        waiting = Check("peers.asked", None, "waiting for answers of " + ", ".join(ask))
        return Standing((*local, *cluster, waiting), ask)
    return Standing(local + cluster + _peer_checks(obs, memory, obs.cluster), ())


def _is_handed_over(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> bool:
    """Nobody needs to be asked: whoever has the last record is behind nobody, and no primary is left.

    It saves the slowest part of a switchover."""
    request = request_in_force(obs, cluster)
    if request is None or request.candidate not in (None, obs.me.name) or request.leader == obs.me.name:
        return False
    if unreadable(cluster, "haagent_unfenced") or unfenced_owners(obs, memory, cluster) - {request.leader}:
        return False
    if any(_was_primary_lately(obs, peer) for peer in obs.peers.values() if peer.name != request.leader):
        return False
    return has_last_record(obs, cluster)


def has_last_record(obs: Observation, cluster: ClusterSnapshot) -> bool:
    """The last primary, on our timeline, stopped cleanly before it released the key, and we replayed beyond
    its shutdown checkpoint (rules 2 and 3). Nobody else was told to make a timeline since: he may have led.
    """
    mine, status = obs.instance.timeline or 0, cluster.status
    others = any(claim.timeline > mine and claim.name != obs.me.name for claim in cluster.claims)
    final = status is not None and status.final_timeline == mine and my_position(obs).value > status.optime
    return final and not others


# --- what this member knows of itself -----------------------------------------------------------


def local_checks(obs: Observation, memory: Memory) -> tuple[Check, ...]:
    """Checks that need neither DCS nor peers; their first refusal is published as `cannot_lead`."""
    instance = obs.instance
    sample = instance.sample if isinstance(instance.sample, InstanceSample) else None
    failed = memory.promote_failed_at
    recently = failed is not None and obs.now < failed + obs.settings.ttl_s
    return (
        _check(
            "tag.nofailover",
            not obs.me.tags.nofailover,
            "this member carries no tag nofailover",
            "this member carries the tag nofailover",
        ),
        _check(
            "storage.answers",
            not instance.storage_hangs,
            "its storage takes what is written to it",
            "its storage does not answer: a write to it is overdue",
        ),
        _vitality_check(obs),
        _check(
            "postgres.answers",
            instance.answers,
            "PostgreSQL runs and answers",
            "PostgreSQL does not run, or does not answer",
        ),
        _check(
            "postgres.wal-read",
            sample is None or sample.position_is_proven,
            "all its own WAL is read",
            "it has not yet read all WAL it may have acknowledged (H16)",
        ),
        _check(
            "promote.failed",
            not recently,
            "no promotion failed here lately",
            f"its own promotion failed less than {obs.settings.ttl_s:g} s ago",
        ),
        _check(
            "settings.supported",
            not obs.settings.unsupported,
            "the cluster asks for nothing this agent does not keep",
            f"the cluster asks for what this agent does not keep yet: {', '.join(obs.settings.unsupported)}",
        ),
        _watchdog_check(obs),
        _diverged_check(obs),
        _store_check(obs),
    )


def _vitality_check(obs: Observation) -> Check:
    why = vitality.unfit(obs)
    return _check("vitality", why is None, "its probes find nothing wrong", f"a probe fails: {why}")


def _watchdog_check(obs: Observation) -> Check:
    why = watchdog.forbids(obs)
    needed = "it has its watchdog, or leads without one"
    return _check("watchdog", why is None, needed, f"its watchdog is required and cannot be used: {why}")


def _diverged_check(obs: Observation) -> Check:
    """H15: diverged WAL never promotes, unless an operator names this member."""
    rule, detail = "timeline.diverged", diverged_detail(obs)
    if detail is None:
        return Check(rule, True, "its WAL is the cluster's")
    if obs.settings.standby_cluster is not None:
        return Check(rule, True, f"{detail}, but this cluster's line is that of the one it follows")
    waived = not isinstance(obs.cluster, Unavailable) and manual_failover_to_me(obs, obs.cluster)
    return Check(rule, waived, detail + (", waived by a manual failover" if waived else ""))


# --- what the DCS says --------------------------------------------------------------------------


def manual_failover_to_me(obs: Observation, cluster: ClusterSnapshot) -> bool:
    """An operator named this member, without naming the leader: lag and timeline are waived."""
    request = request_in_force(obs, cluster)
    return request is not None and not request.is_switchover and request.candidate == obs.me.name


def expected_loss_bytes(obs: Observation, cluster: ClusterSnapshot) -> int | None:
    """Bytes of WAL that the last published position has and this member has not; None unknown."""
    if cluster.status is None or not isinstance(obs.instance.sample, InstanceSample):
        return None
    position, left_at = obs.instance.sample.position, leaves_the_line(obs, cluster)
    return max(0, cluster.status.optime - min(position, left_at or position).value)


def expected_loss_text(obs: Observation, cluster: ClusterSnapshot) -> str:
    """One line for people: what taking over now may lose (rule 5)."""
    text, missing = _wal_loss_text(obs, cluster), sync_candidate.membership(obs, cluster)
    return text if missing is None else f"{text}; {sync_candidate.WAIVED} ({missing})"


def _wal_loss_text(obs: Observation, cluster: ClusterSnapshot) -> str:
    known = expected_loss_bytes(obs, cluster)
    if known is None:
        return "unknown"
    if known == 0:
        return "at most what the last primary wrote after its last status; all WAL it published is here"
    return f"{known} bytes of WAL, and at most what the last primary wrote after its last status"


def _cluster_checks(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> tuple[Check, ...]:
    return (
        _lag_check(obs, memory, cluster),
        _sync_check(obs, cluster),
        _timeline_check(obs, cluster),
        _claims_check(obs, cluster),
        _request_check(obs, memory, cluster),
        _resume_check(obs, memory, cluster),
        _former_leader_check(obs, memory, cluster),
        _failsafe_member_check(obs, memory, cluster),
        _promise_check(obs, memory, cluster),
    )


def _lag_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    """Rule 5; after a hand-over mark nobody below the position of the release for one ttl (H18)."""
    broken = unreadable(cluster, "status")
    if broken is not None and not manual_failover_to_me(obs, cluster):
        return Check("lag", False, f"the last position cannot be read from the store: {broken}")
    if not isinstance(obs.instance.sample, InstanceSample) or cluster.status is None:
        return Check("lag", True, "no position published by the last primary")
    position = obs.instance.sample.position.value
    lag = cluster.status.optime - position
    marked, handed_over = memory.handover_seen_at, memory.handover_optime
    missing = (cluster.status.optime if handed_over is None else handed_over) - position
    if marked is not None and obs.now < marked + obs.settings.ttl_s and missing > 0:
        return Check(
            "handover.incomplete", False, f"a planned switchover is on and {missing} bytes of WAL are missing"
        )
    if manual_failover_to_me(obs, cluster):
        return Check("lag", True, f"{lag} bytes behind, waived by a manual failover")
    limit = obs.settings.maximum_lag_on_failover_bytes
    return Check(
        "lag", lag <= limit, f"{lag} bytes behind the last primary, maximum_lag_on_failover is {limit}"
    )


def _sync_check(obs: Observation, cluster: ClusterSnapshot) -> Check:
    """Rule 4; only a failover by hand waives it."""
    rule, missing = "sync.member", sync_candidate.membership(obs, cluster)
    if missing is None:
        return Check(rule, True, "it misses no acknowledged commit, as far as the store tells")
    waived = manual_failover_to_me(obs, cluster)
    return Check(rule, waived, missing + (", waived by a manual failover" if waived else ""))


def _timeline_check(obs: Observation, cluster: ClusterSnapshot) -> Check:
    mine, theirs = obs.instance.timeline, cluster_timeline(cluster)
    waived, broken = manual_failover_to_me(obs, cluster), unreadable(cluster, "history")
    if broken is not None and not waived:
        return Check("timeline", False, f"the timelines cannot be read from the store: {broken}")
    if not obs.settings.check_timeline or waived or obs.settings.standby_cluster is not None:
        return Check("timeline", True, f"on timeline {mine}, not compared")
    fine = mine is not None and mine >= theirs
    return Check("timeline", fine, f"on timeline {mine}, the cluster is on {theirs}")


def _claims_check(obs: Observation, cluster: ClusterSnapshot) -> Check:
    """H15: whoever cannot tell which timelines were claimed might make one a second time."""
    unknown = None if manual_failover_to_me(obs, cluster) else claims_unknown(obs)
    return Check("timeline.claims", unknown is None, unknown or "known which timelines were claimed")


def _request_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    """A requested candidate that is fit goes first; the former leader comes back last (2.7)."""
    request = request_in_force(obs, cluster)
    if request is None or request.candidate == obs.me.name:
        return Check("request", True, "nobody else was asked for")
    if request.candidate is not None and _fit(obs, memory, cluster, request.candidate):
        return Check("request", False, f"{request.candidate} was asked for and is fit")
    if _to_ask_again(obs, memory, cluster):
        return Check("request", False, f"{request.candidate} was asked for, and may have come up by now")
    if request.leader == obs.me.name and _others_fit(obs, memory, cluster, request):
        return Check("request", False, "this member was asked to step down and another one is fit")
    return Check("request", True, "the member that was asked for is not fit")


def _fit(obs: Observation, memory: Memory, cluster: ClusterSnapshot, name: str) -> bool:
    """The named member can be expected to take the key: present, able, and not known to be silent."""
    peer = obs.peers.get(name)
    silent = isinstance(peer, PeerSilent) and _fresh(obs, memory, peer)
    return _able(obs, memory, cluster, name) and not silent


def _able(obs: Observation, memory: Memory, cluster: ClusterSnapshot, name: str) -> bool:
    """By its own word. A candidate may not hold the others up for ever: one ttl after the key went, the race
    is free."""
    member = cluster.member(name)
    missing = memory.leader_missing_since
    late = missing is not None and obs.now > missing + obs.settings.ttl_s
    return member is not None and not (member.tags.nofailover or member.cannot_lead or late)


def _to_ask_again(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> tuple[str, ...]:
    """The candidate that was asked for, when it was silent before the key went: it may have been starting
    then, after an earlier switchover, and the last leader found it fit."""
    request, since = request_in_force(obs, cluster), memory.leader_missing_since
    name = request.candidate if request is not None else None
    peer = obs.peers.get(name) if name is not None else None
    if not isinstance(peer, PeerSilent) or since is None or peer.asked_at >= since:
        return ()
    return (peer.name,) if _able(obs, memory, cluster, peer.name) else ()


def _others_fit(obs: Observation, memory: Memory, cluster: ClusterSnapshot, request: FailoverRequest) -> bool:
    return any(_fit(obs, memory, cluster, m.name) for m in cluster.members if m.name != request.leader)


def _resume_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    """H20: for one ttl after a pause only a running primary may take an empty key, or whoever it was handed
    to: its last owner is proven stopped."""
    since = memory.resumed_at
    grace = since is not None and obs.now < since + obs.settings.ttl_s
    return _check(
        "resume.grace",
        not grace or _is_handed_over(obs, memory, cluster),
        "no pause ended lately, or the key was handed over",
        "the cluster was resumed less than one ttl ago",
    )


def _former_leader_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    """H4: the key went but its holder's member key is there: it may still be writable."""
    rule, name, missing = "former-leader", memory.last_leader, memory.leader_missing_since
    member = _last_seen(memory, cluster, name) if name is not None and name != obs.me.name else None
    if member is None or missing is None:
        return Check(rule, True, "the last leader is gone, or it is this member")
    if obs.now > missing + obs.settings.ttl_s or _stepped_down(obs, member, cluster):
        return Check(rule, True, f"{member.name} is not writable any more")
    peer = obs.peers.get(member.name)
    if peer is None or not _fresh(obs, memory, peer):
        return Check(rule, True, f"{member.name} will be asked")
    if isinstance(peer, PeerSilent):
        return Check(rule, False, f"{member.name} may still be writable: {peer.cause}")
    return Check(rule, True, f"{member.name} answers")


def _failsafe_member_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    why = failsafe.not_a_member(obs, memory, cluster)
    return Check("failsafe.member", why is None, why or "no leader can go on without asking this member")


def _promise_check(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> Check:
    """H19: never waived. Void only when somebody has handed the key over: if that was whoever it was given
    to, he is stopped; if it was another, who had to be asked as well, it carried nobody."""
    why = failsafe.promise_in_force(obs)
    if why is None or _is_handed_over(obs, memory, cluster):
        return Check("failsafe.promise", True, "no promise to a leader without a DCS binds it")
    return Check("failsafe.promise", False, why)


def _last_seen(memory: Memory, cluster: ClusterSnapshot, name: str) -> Member | None:
    """Its member key; as it was when that cannot be read, or when the whole store has been emptied, which
    says nothing about its lease."""
    wiped = cluster.initialize is None and cluster.config is None
    unclear = wiped or unreadable(cluster, f"members/{name}")
    old = next((m for m in memory.last_members if m.name == name), None) if unclear else None
    return cluster.member(name) or old


def store_went_back(obs: Observation, cluster: ClusterSnapshot) -> bool:
    """The store is older than epochs this host has seen: restored from a backup, or made anew.

    The guardian never opens an epoch below one it closed (H6), so a key taken now could never be used."""
    seen = max(obs.lease.closed_epoch, obs.lease.epoch or 0)
    return 0 < cluster.revision < seen


def _store_check(obs: Observation) -> Check:
    rule = "store.went-back"
    if isinstance(obs.cluster, Unavailable) or not store_went_back(obs, obs.cluster):
        return Check(rule, True, "the store knows every epoch this member has led in")
    detail = (
        f"the store is at revision {obs.cluster.revision}, this member has led in a later epoch: "
        "stop PostgreSQL and the agent here and start them again (while nobody leads, they do it themselves)"
    )
    return Check(rule, False, detail)


def _stepped_down(obs: Observation, member: Member, cluster: ClusterSnapshot) -> bool:
    request = request_in_force(obs, cluster)
    marked = request is not None and request.leader == member.name
    return marked or member.role != "primary" or member.state != "running"


# --- what the peers say -------------------------------------------------------------------------


def interesting_peers(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> tuple[str, ...]:
    """Members now and when the cluster was last healthy, without me and without those we cannot ask."""
    known = {m.name: m for m in memory.last_members} | {m.name: m for m in cluster.members}
    return tuple(sorted(n for n, m in known.items() if n != obs.me.name and m.api_url))


def unanswered(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> tuple[str, ...]:
    """Peers without a fresh enough answer or silence, whose word is waited for."""
    names = interesting_peers(obs, memory, cluster)
    missing = (n for n in names if n not in obs.peers or not _fresh(obs, memory, obs.peers[n]))
    return tuple(n for n in missing if not _expired_in_silence(obs, memory, cluster, n))


def _expired_in_silence(obs: Observation, memory: Memory, cluster: ClusterSnapshot, name: str) -> bool:
    """Its session ran out with the leader key, so its own fence has passed: a lost host is asked as well,
    but its silence (2 seconds, contract 2.1) does not hold the race up.

    Not for Patroni's members, which have no such fence, and not in a store that was emptied."""
    since, wiped = memory.leader_missing_since, cluster.initialize is None and cluster.config is None
    old = next((m for m in memory.last_members if m.name == name), None)
    there = cluster.member(name) is not None or unreadable(cluster, f"members/{name}") is not None
    if since is None or wiped or old is None or there:
        return False
    return old.is_haagent and obs.now >= since + LOST_WAIT_S


def _fresh(obs: Observation, memory: Memory, peer: Peer) -> bool:
    if isinstance(peer, PeerSilent):
        return peer.asked_at >= obs.now - SILENCE_LIFE_S
    since = memory.leader_missing_since or 0.0
    return peer.asked_at >= max(since, obs.now - ANSWER_LIFE_S)


def _peer_checks(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> tuple[Check, ...]:
    answers = _answers(obs, memory)
    return (
        _votes_check(obs, cluster, answers),
        _no_other_primary(other_primaries(obs, memory)),
        _owner_lost_in_pause(obs, memory, cluster, answers),
        _nobody_ahead(obs, memory, cluster, answers),
        _nobody_preferred(obs, memory, cluster, answers),
    )


def _votes_check(obs: Observation, cluster: ClusterSnapshot, answers: list[PeerAnswer]) -> Check:
    if manual_failover_to_me(obs, cluster):
        return Check("sync.votes", True, "waived by a manual failover")
    return Check("sync.votes", *sync_candidate.votes(obs, cluster, answers))


def _answers(obs: Observation, memory: Memory) -> list[PeerAnswer]:
    """What still counts: a lost host that is not waited for may have said something else long ago.

    Also of a member whose key went since it answered: what it said is as true as before."""
    return [p for p in obs.peers.values() if isinstance(p, PeerAnswer) and _fresh(obs, memory, p)]


def other_primaries(obs: Observation, memory: Memory) -> list[str]:
    """Who answered as a running primary."""
    return [p.name for p in _answers(obs, memory) if p.runs_as_primary]


def _was_primary_lately(obs: Observation, peer: Peer) -> bool:
    """It said so a moment ago, before the key went or after: somebody put it beside the leader by hand."""
    recent = peer.asked_at >= obs.now - ANSWER_LIFE_S
    return isinstance(peer, PeerAnswer) and peer.runs_as_primary and recent


def _no_other_primary(alive: list[str]) -> Check:
    """Rule 6: never waived."""
    return Check(
        "peer.primary", not alive, f"{', '.join(alive)} runs as primary" if alive else "no other primary"
    )


def _owner_lost_in_pause(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, answers: list[PeerAnswer]
) -> Check:
    """H20: fencing was off when it vanished, so its PostgreSQL may run on: only an operator may go ahead."""
    rule, lost = "pause.owner-lost", unfenced_owners(obs, memory, cluster)
    broken = unreadable(cluster, "haagent_unfenced")
    reads_only = obs.settings.standby_cluster is not None
    if manual_failover_to_me(obs, cluster) or not (lost or broken) or reads_only:
        return Check(rule, True, "no owner of the key vanished during a pause, or an operator decided")
    if broken is not None:
        return Check(rule, False, f"who vanished during a pause cannot be read from the store: {broken}")
    good = f"{', '.join(sorted(lost))} vanished during a pause, and answers or is stopped"
    # Its agent is back: whatever ran without a fence, it says that nothing does any more.
    down = {m.name for m in cluster.members if is_at_rest(m.state)}
    silent = ", ".join(sorted(lost - {p.name for p in answers} - down))
    bad = "vanished while the cluster was paused and does not answer: only a manual failover may go on"
    return _check(rule, not silent, good, f"{silent} {bad}")


def unfenced_owners(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> frozenset[str]:
    """Others that may be writable although the key is gone: by their own word, which outlives this agent's
    memory, or because this agent saw them vanish in a pause (Patroni's members leave no word)."""
    owner = cluster.unfenced
    told = owner.name if owner is not None and owner.name != obs.me.name else None
    return frozenset(n for n in (memory.lost_in_pause, told) if n is not None)


def _nobody_ahead(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, answers: list[PeerAnswer]
) -> Check:
    """A member with more WAL goes first; one that cannot lead holds us up for at most one ttl (H13)."""
    if manual_failover_to_me(obs, cluster):
        return Check("peer.ahead", True, "waived by a manual failover")
    counted = [p for p in answers if sync_candidate.counts(obs, cluster, p)]
    ahead = [p for p in counted if _blocks(obs, memory, p) and _is_ahead(obs, p)]
    return Check("peer.ahead", not ahead, "; ".join(map(_ahead, ahead)) or "nobody has more WAL")


def _ahead(peer: PeerAnswer) -> str:
    """In the words of contract 7.3."""
    return f"Wal position of {peer.name} is ahead of my wal position"


def _blocks(obs: Observation, memory: Memory, peer: PeerAnswer) -> bool:
    if peer.tags.nofailover or peer.watchdog_failed or _may_be_behind(obs, memory):
        return False
    unable = peer.cannot_lead is not None or failsafe.leaves_out(obs.cluster, peer.name)
    return not (unable and _waited(obs, memory))


def _waited(obs: Observation, memory: Memory) -> bool:
    """One ttl for whoever should go first and does not: it cannot, for whatever reason."""
    missing = memory.leader_missing_since
    return missing is not None and obs.now > missing + obs.settings.ttl_s


def _may_be_behind(obs: Observation, memory: Memory) -> bool:
    """Whoever leads a standby cluster follows the remote node: nothing is lost by being behind. For one ttl
    the others go first all the same."""
    since = memory.leader_missing_since
    late = since is not None and obs.now > since + obs.settings.ttl_s
    return late and obs.settings.standby_cluster is not None


def _is_ahead(obs: Observation, peer: PeerAnswer) -> bool:
    mine = obs.instance.timeline
    if mine is not None and peer.timeline is not None and peer.timeline > mine:
        return True
    return position_in_my_history(obs, peer) > my_position(obs)


def my_position(obs: Observation) -> Lsn:
    """End of our own WAL; 0 when PostgreSQL does not answer."""
    return obs.instance.sample.position if isinstance(obs.instance.sample, InstanceSample) else Lsn(0)


def _nobody_preferred(
    obs: Observation, memory: Memory, cluster: ClusterSnapshot, answers: list[PeerAnswer]
) -> Check:
    """At equal WAL the higher failover_priority goes first; for one ttl, since it may not be able to."""
    if _waited(obs, memory):
        return Check("peer.priority", True, "whoever is preferred has not come in one ttl")
    request = request_in_force(obs, cluster)
    if request is not None and request.candidate == obs.me.name:
        return Check("peer.priority", True, "this member was asked for")
    able = [p for p in answers if p.cannot_lead is None and not p.watchdog_failed]
    better = [p for p in able if sync_candidate.counts(obs, cluster, p) and _is_preferred(obs, p)]
    said = "; ".join(_preferred(obs, p) for p in better)
    return Check("peer.priority", not better, said or "nobody preferred")


def _is_preferred(obs: Observation, peer: PeerAnswer) -> bool:
    higher = peer.tags.failover_priority > obs.me.tags.failover_priority and not peer.tags.nofailover
    return higher and position_in_my_history(obs, peer) == my_position(obs)


def _preferred(obs: Observation, peer: PeerAnswer) -> str:
    """In the words of contract 7.3."""
    theirs, mine = peer.tags.failover_priority, obs.me.tags.failover_priority
    return (
        f"{peer.name} has equally tolerable WAL position and priority {theirs}, "
        f"while this node has priority {mine}"
    )


def why_not_me(obs: Observation, winner: str) -> str | None:
    """What spoke for the member that has just taken the key, as far as it was asked; for people."""
    peer = obs.peers.get(winner)
    asked_lately = peer is not None and peer.asked_at >= obs.now - ANSWER_LIFE_S
    if (
        not isinstance(peer, PeerAnswer)
        or not asked_lately
        or not isinstance(obs.instance.sample, InstanceSample)
    ):
        return None
    if _is_ahead(obs, peer):
        return _ahead(peer)
    return _preferred(obs, peer) if _is_preferred(obs, peer) else None


# --- the primary looks for a successor ----------------------------------------------------------


def handover_refusal(obs: Observation, cluster: ClusterSnapshot, name: str, forced: bool) -> str | None:
    """Why `name` cannot take over from this running primary without loss; None when it can (rule 3).

    Looks at what *we* see of it: the walsender that feeds it, its flush position, its own answer. `forced`
    (manual failover): streaming and lag are waived."""
    member = cluster.member(name)
    if member is None:
        return f"candidate {name} does not exist"
    if member.tags.nofailover:
        return f"{name} is tagged nofailover"
    if member.api_url is None:
        return f"{name} publishes no REST address to ask it at"
    peer = obs.peers.get(name)
    if isinstance(peer, PeerSilent):
        return f"{name} does not answer: {peer.cause}"
    if isinstance(peer, PeerAnswer) and (peer.watchdog_failed or peer.cannot_lead):
        return f"{name} cannot lead: {peer.cannot_lead or 'its watchdog failed'}"
    if isinstance(peer, PeerAnswer) and peer.failsafe_active and not peer.is_haagent:
        return f"{name} keeps out of the race for up to one ttl, as it was asked in failsafe mode"
    return (
        None if forced else sync_candidate.handover_refusal(obs, cluster, name) or _stream_refusal(obs, name)
    )


def _stream_refusal(obs: Observation, name: str) -> str | None:
    if not isinstance(obs.instance.sample, InstanceSample):
        return "PostgreSQL does not answer here"
    flush = flushed_by(obs, name)
    if flush is None:
        return f"{name} does not stream from this primary"
    lag = end_of_wal(obs).minus(flush)
    limit = obs.settings.maximum_lag_on_failover_bytes
    return f"{name} is {lag} bytes behind, maximum_lag_on_failover is {limit}" if lag > limit else None


def flushed_by(obs: Observation, name: str) -> Lsn | None:
    """How far the standby `name`, which streams from this primary, also through others, has written; None
    when none does."""
    if not isinstance(obs.instance.sample, InstanceSample):
        return None
    senders = [s for s in obs.instance.sample.senders if s.application_name.lower() == name.lower()]
    flushed = (s.flush_lsn for s in senders if s.state == "streaming" and s.flush_lsn is not None)
    return max(flushed, default=reached_through_another(obs, name))


def end_of_wal(obs: Observation) -> Lsn:
    """End of this primary's own WAL; 0 while it is not known."""
    sample = obs.instance.sample
    return (sample.flush_lsn or Lsn(0)) if isinstance(sample, InstanceSample) else Lsn(0)


def best_successor(obs: Observation, cluster: ClusterSnapshot, forced: bool = False) -> str | None:
    """The fit standby with the most WAL, then the highest priority, then the first name."""
    fit = [m for m in cluster.members if m.name != obs.me.name]
    fit = [m for m in fit if handover_refusal(obs, cluster, m.name, forced) is None]
    if not fit:
        return None
    return min(fit, key=lambda m: (-_flushed(obs, m), -m.tags.failover_priority, m.name)).name


def _flushed(obs: Observation, member: Member) -> int:
    if not isinstance(obs.instance.sample, InstanceSample):
        return member.xlog_location or 0
    flushed = [
        s.flush_lsn.value
        for s in obs.instance.sample.senders
        if s.application_name.lower() == member.name.lower() and s.flush_lsn is not None
    ]
    return max(flushed, default=0)


def another_could_lead(obs: Observation) -> bool:
    """Another member runs and says of nothing that it could not lead: an agent that cannot decide any more
    lets its lease run out only then (H12)."""
    if isinstance(obs.cluster, Unavailable):
        return False
    cluster = obs.cluster
    others = (m for m in cluster.members if m.name != obs.me.name)
    others = (m for m in others if sync_candidate.may_succeed(obs, cluster, m.name))
    return any(m.state == "running" and m.cannot_lead is None for m in others)


def has_received(peer: Peer | None, checkpoint: Lsn, timeline: int | None) -> bool:
    """The peer provably has the whole shutdown checkpoint record that begins at `checkpoint` (rule 3), of the
    primary's `timeline`: elsewhere an equal position is another history (H15).

    Replay positions lie only at ends of records: replayed > start means the record was replayed. A received
    position on a page boundary might cut the record in two, so it proves nothing by itself."""
    if not isinstance(peer, PeerAnswer) or peer.timeline != timeline:
        return False
    if peer.replayed is not None and peer.replayed > checkpoint:
        return True
    received = peer.received
    return received is not None and received > checkpoint and received.value % 8192 != 0
