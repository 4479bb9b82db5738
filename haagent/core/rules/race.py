"""No leader key: take it, make a new cluster, or say exactly why not."""

from __future__ import annotations

from dataclasses import replace

from dcs.records import ClusterSnapshot
from haagent.core import slots, watchdog
from haagent.core.actions import (
    AskPeers,
    CheckDivergence,
    Clone,
    CreateInitialize,
    DeleteInitialize,
    Exit,
    Follow,
    Initdb,
    PutInitialConfig,
    PutInitialize,
    StartStandby,
    StopInstance,
    TakeLeader,
)
from haagent.core.candidate import Standing, other_primaries, standing, store_went_back, unanswered
from haagent.core.model import Decision, Memory, Observation, Refusal, evolve, unreadable
from haagent.core.rules import common
from haagent.core.timelines import cluster_timeline
from postgres_ctl.facts import DataDirState

#: Refusals whose words are those of contract 7.3.
_SAID_BY_PATRONI = ("peer.ahead", "peer.priority")
#: A successor gets so long to appear before a released primary starts read-only, or a member of a standby
#: cluster follows the remote node; seconds.
SUCCESSOR_S = 2.0


def bootstrap(obs: Observation, memory: Memory) -> Decision | None:
    """Nobody leads and there is no data here (contract 2.10), or our own bootstrap is under way.

    The `initialize` race value hangs on our session: if we die, it vanishes and somebody else may try."""
    if common.leader(obs) is not None or obs.instance.alive:
        return None
    if memory.bootstrap is not None:
        return _finish_bootstrap(obs, memory, memory.bootstrap)
    if obs.instance.data_dir is DataDirState.FOREIGN:
        reason = "the data directory is not empty and holds no PostgreSQL cluster: not touched"
        return common.wait("bootstrap.foreign", reason, memory)
    if common.has_data(obs):
        return None
    return _race_for_new_cluster(obs, memory)


def _race_for_new_cluster(obs: Observation, memory: Memory) -> Decision:
    initialize = common.view(obs).initialize
    allowed = obs.me.may_bootstrap and not obs.me.tags.nofailover and not obs.settings.pause
    allowed = allowed and watchdog.forbids(obs) is None
    free = initialize is None and not unreadable(common.view(obs), "initialize")
    trace = _trace_of_a_cluster(common.view(obs), memory) if free else None
    if trace is not None:
        reason = (
            f"initialize is gone, but a cluster was here ({trace}): a member with its data has to come first"
        )
        return common.wait("bootstrap.known-cluster", reason, evolve(memory, note=reason))
    if common.was_never_led(obs):
        return _go_on(obs, memory, allowed)
    if free and allowed and obs.instance.unfinished is None:
        won = evolve(memory, bootstrap="won")
        remote = common.remote_node(obs)
        if obs.settings.standby_cluster is not None and remote is None:
            reason = "a standby cluster needs a copy of the other one, and no node to copy is configured"
            return common.wait("bootstrap.no-remote", reason, evolve(memory, note=reason))
        if remote is not None:
            reason = f"trying to bootstrap a new standby cluster from the {remote}"
            copy = Clone(remote, remote)
            return Decision("bootstrap.race-remote", reason, won, (CreateInitialize(), copy))
        return Decision(
            "bootstrap.race", "trying to bootstrap a new cluster", won, (CreateInitialize(), Initdb())
        )
    cloned = _copy_of_remote(obs, memory) if allowed and not free else None
    if cloned is not None:
        return cloned
    abandoned = _abandoned(obs, memory) if allowed else None
    restored = _copy_without_leader(obs, memory, initialize)
    return abandoned or restored or common.wait("bootstrap.wait", "waiting for leader to bootstrap", memory)


def _go_on(obs: Observation, memory: Memory, allowed: bool) -> Decision:
    """An agent before this one made a new cluster here, and died before it led. Nobody has written to it, so
    it may still become the cluster, if no other one has: else it is given up as soon as that one is led."""
    mine, initialize = obs.instance.system_identifier, common.view(obs).initialize
    begun = initialize is not None and initialize == mine
    free = initialize is None and not unreadable(common.view(obs), "initialize")
    # Who only held the key has changed nothing: what is written to is claimed first, and unmarked.
    claims = common.view(obs).claims
    mine_only = bool(claims) and all(claim.name == obs.me.name for claim in claims)
    trace = _left_in_the_store(replace(common.view(obs), claims=()) if mine_only else common.view(obs))
    if mine is None or not allowed or not (begun or free) or trace is not None:
        reason = "the new cluster that was made here is not led: waiting for the leader of another one"
        return common.wait("bootstrap.overtaken", reason, evolve(memory, note=reason))
    claim = () if begun else (CreateInitialize(),)
    ready = evolve(memory, bootstrap="ready")
    reason = "a new cluster was made here and never led: going on with it"
    return Decision("bootstrap.go-on", reason, ready, claim, 0.0)


def _copy_without_leader(obs: Observation, memory: Memory, initialize: str | None) -> Decision | None:
    """From a backup, of a cluster that is known: one that is just being made ("") has none yet (contract
    2.10). What is restored is an ordinary member: whether it may lead is judged as of any other."""
    if not initialize or not obs.copies_without_leader or obs.instance.unfinished is not None:
        return None
    if obs.now < memory.rejoin.not_before:
        pause = memory.rejoin.not_before - obs.now
        return common.wait("clone.pause", memory.note or "waiting to clone", memory, pause)
    reason = "trying to bootstrap (without leader)"
    return Decision("bootstrap.without-leader", reason, memory, (Clone(None, None),))


def _copy_of_remote(obs: Observation, memory: Memory) -> Decision | None:
    """Nobody has led this standby cluster for a while, perhaps nobody has its data any more: the other one
    has."""
    remote, known = common.remote_node(obs), common.view(obs).initialize or ""
    since = memory.leader_missing_since
    waited = since is not None and obs.now > since + obs.settings.ttl_s
    if remote is None or not known.isdigit() or not waited or obs.now < memory.rejoin.not_before:
        return None
    wipe = obs.instance.data_dir is not DataDirState.MISSING_OR_EMPTY or obs.instance.unfinished is not None
    reason = f"nobody leads, and there is no data here: cloning from the {remote}"
    return Decision("race.clone-remote", reason, memory, (Clone(remote, remote, wipe),))


def _trace_of_a_cluster(cluster: ClusterSnapshot, memory: Memory) -> str | None:
    """Signs of a cluster that is or was here: a new one would lock out all who have its data (rule 7)."""
    if memory.last_leader is not None:
        return f"{memory.last_leader} was its leader"
    return _left_in_the_store(cluster)


def _left_in_the_store(cluster: ClusterSnapshot) -> str | None:
    has_data = next((m.name for m in cluster.members if m.xlog_location is not None), None)
    return common.left_by_a_leader(cluster) or (f"{has_data} has its data" if has_data is not None else None)


def _abandoned(obs: Observation, memory: Memory) -> Decision | None:
    """A claim whose answer was lost hangs on a living session, perhaps ours, and would stay for ever."""
    idle_since = memory.idle_claim_since
    if idle_since is None or obs.now <= idle_since + obs.settings.ttl_s:
        return None
    reason = "nobody works on the new cluster that was claimed: clearing the claim"
    again = evolve(memory, idle_claim_since=None)
    return Decision("bootstrap.abandoned", reason, again, (DeleteInitialize(),), 0.5)


def _finish_bootstrap(obs: Observation, memory: Memory, stage: str) -> Decision:
    if stage != "ready":
        why = "its end was not seen" if stage == "won" else stage.removeprefix("failed: ")
        reason = f"bootstrap failed: {why}"
        # A claim that is not there any more, or a cluster that somebody else made, is not ours to delete.
        clear = (DeleteInitialize(),) if common.view(obs).initialize == "" else ()
        return Decision("bootstrap.failed", reason, memory, (*clear, Exit(1, reason)))
    mine = obs.instance.system_identifier
    if mine is None:
        reason = "the new cluster is made, but its pg_control cannot be read"
        return common.wait("bootstrap.unreadable", reason, memory, 1.0)
    actions = (PutInitialize(mine), PutInitialConfig(), *common.keep_numbers_apart(obs), TakeLeader())
    return Decision("bootstrap.take", "initialized a new cluster, taking the key", memory, actions, 0.0)


def primary_without_key(obs: Observation, memory: Memory) -> Decision | None:
    """We run as primary and nobody holds the key: an agent beside a running primary, or a deleted key."""
    cluster = common.view(obs)
    if cluster.leader is not None or not obs.instance.serves_as_primary:
        return None
    if not obs.instance.answers:
        return common.wait("race.primary-no-answer", "PostgreSQL does not answer", memory, 1.0)
    unknown = unreadable(cluster, "history")
    if unknown is not None:
        reason = f"running as primary, but the cluster's timelines cannot be read from the store: {unknown}"
        return common.wait("race.history-unreadable", reason, memory, 1.0)
    mine, known = obs.instance.timeline or 0, cluster_timeline(cluster)
    if mine < known or obs.me.tags.nofailover:
        reason = f"demoted self: on timeline {mine} while the cluster is on {known}, or tagged nofailover"
        return Decision("race.primary-stale", reason, memory, (StopInstance("immediate", reason),))
    if store_went_back(obs, cluster):
        reason = "demoted self: the store is older than epochs this member has led in, no lease is possible"
        return Decision("race.store-went-back", reason, memory, (StopInstance("fast", reason),))
    return _ask_and_take(obs, memory)


def _ask_and_take(obs: Observation, memory: Memory) -> Decision:
    """Of the election's rules only one binds a running primary: that no other one runs (rule 6)."""
    ask = unanswered(obs, memory, common.view(obs))
    if ask:
        return Decision(
            "race.primary-ask", "asking the other members", memory, (AskPeers(ask),), common.SOON_S
        )
    others = other_primaries(obs, memory)
    if others:
        detail = f"{', '.join(others)} runs as primary"
        reason = f"demoted self because {detail}"
        stop = StopInstance("immediate", reason)
        return Decision(
            "race.two-primaries", reason, memory, (stop,), None, (Refusal("peer.primary", detail),)
        )
    return _take_as_primary(obs, memory)


def _take_as_primary(obs: Observation, memory: Memory) -> Decision:
    mine = obs.instance.system_identifier
    join = (PutInitialize(mine, only_if_absent=True),) if mine and not common.view(obs).initialize else ()
    line = "acquired session lock as a leader"
    return Decision("race.primary-takes", line, memory, (*join, TakeLeader()), 0.0, line=line)


def stopped_without_leader(obs: Observation, memory: Memory) -> Decision | None:
    """Nobody leads and PostgreSQL is stopped: read-only first, positions must be known before a race."""
    cluster = common.view(obs)
    if cluster.leader is not None or obs.instance.alive or not common.has_data(obs):
        return None
    waited = obs.now - (memory.leader_missing_since or obs.now)
    if memory.clean_release and waited < SUCCESSOR_S:
        return common.wait(
            "race.released", "waiting for the successor to take the key", memory, SUCCESSOR_S - waited
        )
    mine = obs.instance.system_identifier
    if cluster.initialize == "":
        waiting = common.wait("race.bootstrapping", "waiting for leader to bootstrap", memory)
        return _abandoned(obs, memory) or waiting
    if store_went_back(obs, cluster):
        reason = "the store is older than epochs this member has led in: ending, for a new guardian to begin"
        return Decision("race.store-went-back", reason, memory, (Exit(1, reason),))
    pause_s = common.start_pause_s(obs, memory)
    if pause_s > 0:
        return common.wait("race.start-pause", memory.note or "PostgreSQL does not start", memory, pause_s)
    join = (PutInitialize(mine, only_if_absent=True),) if mine and cluster.initialize is None else ()
    reason = "nobody leads: starting read-only"
    source = common.upstream(obs)
    start = StartStandby(source if common.may_follow(memory, source) else None)
    return Decision("race.start-readonly", reason, memory, (*join, start))


def _only_a_new_guardian_helps(obs: Observation, memory: Memory, judged: Standing) -> bool:
    """The others have had one ttl to take the key: a standby stops, ends with its guardian, and returns."""
    since = memory.leader_missing_since
    waited = since is not None and obs.now > since + obs.settings.ttl_s
    return waited and {r.rule for r in judged.refusals} == {"store.went-back"}


def standby_races(obs: Observation, memory: Memory) -> Decision | None:
    """The election itself: every rule of `candidate.standing`, each refusal as data."""
    if common.leader(obs) is not None or not obs.instance.alive:
        return None
    if not obs.instance.answers:
        return common.wait("race.no-answer", "PostgreSQL does not answer", memory, common.SOON_S)
    judged = standing(obs, memory)
    if judged.ask:
        return Decision(
            "race.ask", "asking the other members", memory, (AskPeers(judged.ask),), common.SOON_S
        )
    if judged.may_lead:
        reason = "nobody leads and every rule lets me: taking the key"
        return Decision("race.take", reason, memory, (*common.keep_numbers_apart(obs), TakeLeader()), 0.0)
    if _only_a_new_guardian_helps(obs, memory, judged):
        reason = (
            "the store is older than epochs this member has led in, and nobody else leads: a new guardian"
        )
        return Decision(
            "race.store-went-back", reason, memory, (StopInstance("fast", reason, before_stop=True),)
        )
    why = "; ".join(f"{r.rule}: {r.detail}" for r in judged.refusals)
    told = [r.detail if r.rule in _SAID_BY_PATRONI else f"{r.rule}: {r.detail}" for r in judged.refusals]
    remote = _follow_remote(obs, memory)
    if remote is not None:
        return remote
    change = slots.plan(obs, memory)
    return Decision(
        "race.refused",
        f"following a different leader because I am not allowed to promote: {why}",
        memory,
        (change,) if change is not None else (),
        1.0,
        judged.refusals,
        line="\n".join((*told, "following a different leader because I am not allowed to promote")),
        heartbeat=True,
    )


def _follow_remote(obs: Observation, memory: Memory) -> Decision | None:
    """While nobody leads a standby cluster, everybody follows the other one (contract 6.7)."""
    remote = common.upstream(obs)
    if obs.settings.pause or remote is None or common.follows(obs, remote) or obs.instance.storage_hangs:
        return None
    if obs.now < (memory.leader_missing_since or obs.now) + SUCCESSOR_S:
        return None  # somebody is about to lead, and will be followed
    if common.may_follow(memory, remote):
        reason = f"nobody leads: following the {remote}"
        return Decision("race.follow-remote", reason, memory, (Follow(remote),), 1.0)
    if not common.may_ask_remote(obs, memory):
        return None
    reason = f"nobody leads: comparing histories with the {remote}"
    return Decision("race.compare", reason, memory, (CheckDivergence(remote),))
