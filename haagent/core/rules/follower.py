"""Somebody else leads: be a good standby, however this data directory came here."""

from __future__ import annotations

from dcs.records import Member
from haagent.core import logical_slots, rejoin, slots
from haagent.core.actions import (
    Action,
    AskPeers,
    CheckDivergence,
    Clone,
    Follow,
    RetryStream,
    Rewind,
    Source,
    StartStandby,
    StopInstance,
)
from haagent.core.candidate import interesting_peers, why_not_me
from haagent.core.memory import evolve_rejoin
from haagent.core.model import Decision, Memory, Observation, PeerSilent, evolve
from haagent.core.rules import common
from haagent.core.sync_leader import on_a_standby
from postgres_ctl.facts import ControlData, DataDirState, slot_name

#: A clone waits this long for its slot on the leader before it goes on without, seconds.
SLOT_WAIT_S = 5.0
#: A standby may take this long to stream before its history is compared with the leader's, seconds.
STREAM_WAIT_S = 3.0
#: While it does not stream, the other members are asked this often, so that a race knows who is silent.
ASK_EVERY_S = 3.0
#: A standby that lost its stream is told to look again for so long, seconds.
RETRY_FOR_S = 10.0


def name_taken(obs: Observation, memory: Memory) -> Decision | None:
    """The key has our name under a foreign handle: no owner, no follower, until it expires (H5)."""
    if not common.name_is_taken(obs):
        return None
    if obs.instance.serves_as_primary:
        reason = "demoted self because the leader key has my name under a handle that is not mine"
        return Decision("stranger.demote", reason, memory, (StopInstance("immediate", reason),))
    return common.wait(
        "stranger.wait", "the leader key has my name, but it is not mine: waiting for its end", memory, 1.0
    )


def primary_while_other_leads(obs: Observation, memory: Memory) -> Decision | None:
    """Rule 1: at once, whatever the old deadline was (contract 2.6, immediate-nolock)."""
    if not common.other_leads(obs) or not obs.instance.serves_as_primary:
        return None
    reason = "demoted self because failed to update leader lock in DCS"
    detail = f"{reason}: {obs.lease.refused or 'another member leads'}"
    return Decision("demote.lost", detail, memory, (StopInstance("immediate", reason),), line=reason)


# --- no data, or data that is not good ----------------------------------------------------------


def clone_source(obs: Observation) -> str:
    """A running `clonefrom` member, never the leader nor me; else the leader (contract 2.10).

    Among several, each member picks by its own name, so that clones spread without chance."""
    key = common.leader(obs)
    assert key is not None
    fit = sorted(m.name for m in common.view(obs).members if _may_be_cloned(obs, m, key.name))
    return fit[sum(obs.me.name.encode()) % len(fit)] if fit else key.name


def _may_be_cloned(obs: Observation, member: Member, leader_name: str) -> bool:
    running = member.tags.clonefrom and member.state == "running" and member.conn_url is not None
    return running and member.name not in (obs.me.name, leader_name) and member.role == "replica"


def no_data(obs: Observation, memory: Memory) -> Decision | None:
    """Empty, or a copy that was begun and not finished: clone, after the leader made our slot."""
    if not common.other_leads(obs) or obs.instance.alive or common.has_data(obs):
        return None
    if obs.instance.data_dir is DataDirState.FOREIGN:
        reason = "the data directory is not empty and holds no PostgreSQL cluster: not touched"
        return common.wait("clone.foreign", reason, evolve(memory, note=reason))
    if obs.instance.unfinished == "rewind" and obs.instance.data_dir is DataDirState.VALID:
        return rewind_again(obs, memory)
    # To wipe an empty directory forgets a rewind that was interrupted there.
    leftovers = obs.instance.data_dir is not DataDirState.MISSING_OR_EMPTY
    return _clone(obs, memory, wipe=leftovers or obs.instance.unfinished is not None)


def _clone(obs: Observation, memory: Memory, wipe: bool) -> Decision:
    """Rule 7: only while the leader runs as primary, so another good copy exists."""
    key, remote = common.leader(obs), common.remote_node(obs)
    assert key is not None
    if obs.now < memory.rejoin.not_before:
        return common.wait(
            "clone.pause", memory.note or "waiting to clone", memory, memory.rejoin.not_before - obs.now
        )
    if remote is not None and common.owns_key(obs):
        return Decision("clone.begin", f"cloning from the {remote}", memory, (Clone(remote, remote, wipe),))
    member = common.view(obs).member(key.name)
    usable = member is not None and member.conn_url is not None and common.serves(obs, member)
    if not usable or (wipe and not common.leader_is_ready(obs)):
        return common.wait("clone.no-leader", f"waiting for leader {key.name} to run as primary", memory, 1.0)
    since = memory.slot_wait_since if memory.slot_wait_since is not None else obs.now
    if not _slot_is_there(obs) and obs.now - since < SLOT_WAIT_S:
        waiting = evolve(memory, slot_wait_since=since)
        return common.wait("clone.slot", f"waiting for my slot on {key.name}", waiting, common.SOON_S)
    source = clone_source(obs)
    reason = f"trying to bootstrap from leader '{source}'" if source == key.name else f"cloning from {source}"
    begun = rejoin.begin(evolve(memory, bootstrap=None), rejoin.CLONE)
    # What goes is measured by whose line it has left: the leader of a standby cluster may yet leave it, too.
    by = common.whose_line(obs) if memory.rejoin.diverged else key.name
    return Decision("clone.begin", reason, begun, (Clone(source, by, wipe),))


def _slot_is_there(obs: Observation) -> bool:
    status = common.view(obs).status
    if not obs.settings.use_slots or obs.settings.member_slots_ttl_s <= 0:
        return True  # none is made, or none is told of
    return status is not None and slot_name(obs.me.name) in (status.slots or {})


# --- stopped ------------------------------------------------------------------------------------


def stopped(obs: Observation, memory: Memory) -> Decision | None:
    """Data is here and PostgreSQL does not run: rewind what needs it, then start as a standby."""
    if not common.other_leads(obs) or obs.instance.alive or not common.has_data(obs):
        return None
    key = common.leader(obs)
    assert key is not None
    if _needs_rewind(obs, memory, key.epoch):
        return mend(obs, memory, common.whose_line(obs))
    successor = common.view(obs).member(key.name)
    if memory.clean_release and successor is not None and not common.serves(obs, successor):
        # The machine may be shared: the promotion goes first, clients wait for it.
        return common.wait("follow.released", f"waiting for {key.name} to be promoted", memory, 0.5)
    if memory.start_failures >= common.QUICK_STARTS and _compare_now(obs, memory):
        reason = f"does not start: comparing histories with {key.name}"
        return Decision("follow.compare", reason, memory, (CheckDivergence(common.whose_line(obs)),))
    pause_s = common.start_pause_s(obs, memory)
    if pause_s > 0:
        return common.wait("follow.start-pause", memory.note or "does not start", memory, pause_s)
    source = common.upstream(obs)
    reason = f"starting as a standby of {source or 'nobody: nostream'}"
    return Decision("follow.start", reason, memory, (StartStandby(source),))


def _needs_rewind(obs: Observation, memory: Memory, epoch: int) -> bool:
    if memory.rejoin.diverged:
        return True
    if memory.clean_release or epoch in (memory.rejoin.settled_epoch, memory.rejoin.as_it_is_epoch):
        return False
    return common.was_primary(obs)


def mend(obs: Observation, memory: Memory, source: Source) -> Decision:
    """An ex-primary, or a standby known to have diverged: pg_rewind, a clone, or a try as it is."""
    if obs.now < memory.rejoin.not_before:
        pause = memory.rejoin.not_before - obs.now
        return common.wait("rejoin.pause", memory.note or "waiting to rejoin", memory, pause)
    if not common.is_ready(obs, source):
        return common.wait("rejoin.wait", f"waiting for {source} to be ready for pg_rewind", memory, 1.0)
    failed = rejoin.spent(memory)
    useless = memory.rejoin.unseen
    on_failure = (failed or useless) and obs.settings.remove_data_directory_on_rewind_failure
    allowed = _may_discard(obs) or on_failure
    no_other_way = memory.rejoin.diverged and not allowed
    if common.rewind_is_possible(obs) and not useless and (not failed or no_other_way):
        return _spent_pause(obs, memory) or _rewind(obs, memory, source)
    if allowed:
        return _clone(obs, memory, wipe=True)
    if memory.rejoin.diverged:
        return _stay_out(memory, memory.rejoin.reason)
    return _try_as_it_is(obs, memory, source)


def _rewind(obs: Observation, memory: Memory, source: Source) -> Decision:
    """pg_rewind wants a server that was shut down in good order: a crashed one runs once more first.

    As a standby, which writes nothing of its own behind WAL that the disk has lost (H14). What fits the
    leader's history streams; what does not is found by the comparison, stopped, and rewound."""
    control = obs.instance.control
    clean = isinstance(control, ControlData) and control.shut_down_cleanly
    if not clean and memory.start_failures < common.QUICK_STARTS:
        upstream = None if memory.rejoin.diverged else source
        reason = f"not shut down cleanly: starting as a standby of {upstream or 'nobody'} before pg_rewind"
        return Decision("rejoin.recover-first", reason, memory, (StartStandby(upstream),))
    begun = rejoin.begin(memory, rejoin.REWIND)
    return Decision("rejoin.rewind", f"running pg_rewind from {source}", begun, (Rewind(source),))


def _spent_pause(obs: Observation, memory: Memory) -> Decision | None:
    """All tries failed and nothing else is allowed: tried on, but seldom."""
    pause_s = rejoin.rewind_pause_s(memory, obs.now)
    if pause_s <= 0:
        return None
    return common.wait("rejoin.spent", memory.note or "waiting to rejoin", memory, pause_s)


def _may_discard(obs: Observation) -> bool:
    return obs.settings.remove_data_directory_on_diverged_timelines


def _try_as_it_is(obs: Observation, memory: Memory, source: Source) -> Decision:
    """pg_rewind cannot run here: start, and let the comparison of histories find a divergence."""
    epoch = memory.last_epoch
    settled = evolve(memory, rejoin=evolve_rejoin(memory.rejoin, as_it_is_epoch=epoch))
    reason = f"pg_rewind is not possible here: starting as a standby of {source} as it is"
    return Decision("rejoin.as-it-is", reason, settled, (StartStandby(common.upstream(obs)),))


def _stay_out(memory: Memory, reason: str) -> Decision:
    note = f"{reason}: run haagentctl reinit, or allow remove_data_directory_on_diverged_timelines"
    out = evolve(memory, note=note, rejoin=evolve_rejoin(memory.rejoin, stays_out=True))
    return common.wait("rejoin.stay-out", note, out)


def rewind_again(obs: Observation, memory: Memory) -> Decision:
    """pg_rewind was interrupted: the directory is half of two histories until it is done again."""
    source = common.whose_line(obs)
    if obs.now < memory.rejoin.not_before:
        pause = memory.rejoin.not_before - obs.now
        return common.wait("rejoin.pause", memory.note or "waiting to rejoin", memory, pause)
    if not common.is_ready(obs, source):
        return common.wait("rejoin.wait", f"waiting for {source} to be ready for pg_rewind", memory, 1.0)
    if rejoin.spent(memory) and obs.settings.remove_data_directory_on_rewind_failure:
        return _clone(obs, memory, wipe=True)
    seldom = _spent_pause(obs, memory)
    if seldom is not None:
        return seldom
    begun, reason = rejoin.begin(memory, rejoin.REWIND), "pg_rewind was interrupted: once more"
    return Decision("rejoin.rewind-again", reason, begun, (Rewind(source),))


# --- running ------------------------------------------------------------------------------------


def not_answering(obs: Observation, memory: Memory) -> Decision | None:
    """A standby lets nobody in before it has the WAL that a rewind, a backup or its own crash owes it.

    Only the leader can give it that, and one whose history has not got it never will."""
    if not common.other_leads(obs) or not obs.instance.alive or obs.instance.answers:
        return None
    if memory.rejoin.diverged:
        return leave_diverged(obs, memory)
    key = common.leader(obs)
    assert key is not None
    source = common.upstream(obs)
    target = common.address_of(obs, source)
    if source is not None and target is None:
        reason = f"PostgreSQL does not answer, and leader {source} has published no address yet"
        return common.wait("follow.no-answer", reason, memory, 1.0)
    if obs.instance.follows != target:
        if obs.instance.storage_hangs:
            return _storage_hangs(memory, source)
        reason = f"PostgreSQL does not answer yet: {_following(key.name, source)}"
        return Decision("follow.leader-unseen", reason, memory, (Follow(source),), 1.0)
    if _compare_now(obs, memory):
        reason = f"PostgreSQL does not answer: comparing histories with {key.name}"
        return Decision("follow.compare", reason, memory, (CheckDivergence(common.whose_line(obs)),))
    return common.wait("follow.no-answer", "PostgreSQL is starting, or does not answer", memory, 1.0)


def _compare_now(obs: Observation, memory: Memory) -> bool:
    """Nothing is known yet of how our history and this leader's fit, and it can be asked."""
    key = common.leader(obs)
    assert key is not None
    if obs.settings.standby_cluster is not None:
        return common.may_ask_remote(obs, memory)
    settled = memory.rejoin.settled_epoch == key.epoch
    return not settled and obs.now >= memory.rejoin.not_before and common.leader_is_ready(obs)


def wrong_upstream(obs: Observation, memory: Memory) -> Decision | None:
    """Follow the leader, or whom the tags say; the slot for us is there already (contract 2.3)."""
    if not common.other_leads(obs) or not obs.instance.serves_as_standby or memory.rejoin.diverged:
        return None
    key = common.leader(obs)
    assert key is not None
    source = common.upstream(obs)
    if source is not None and common.address_of(obs, source) is None:
        return common.wait("follow.no-address", f"leader {source} has published no address yet", memory, 1.0)
    if common.follows(obs, source):
        return None
    if obs.instance.storage_hangs:
        return _storage_hangs(memory, source)
    reason = _following(key.name, source)
    why = why_not_me(obs, key.name)
    line = f"{why}\n{reason}" if why is not None else None
    return Decision("follow.leader", reason, memory, (Follow(source),), 1.0, line=line)


def _following(leader_name: str, source: Source | None) -> str:
    if source is None:
        return "following nobody: nostream"
    return f"following new leader {source}" if source == leader_name else f"following {source}: replicatefrom"


def _storage_hangs(memory: Memory, source: Source | None) -> Decision:
    """An earlier write is under way: another one would only wait behind it."""
    reason = f"the storage does not answer: cannot follow {source or 'nobody'} yet"
    return common.wait("follow.storage-hangs", reason, memory, 1.0)


def diverged(obs: Observation, memory: Memory) -> Decision | None:
    """A standby that does not stream: is its WAL still part of the leader's history?"""
    if not common.other_leads(obs) or not obs.instance.serves_as_standby:
        return None
    key = common.leader(obs)
    assert key is not None
    if memory.rejoin.diverged:
        return leave_diverged(obs, memory)
    since = memory.not_streaming_since
    if since is None or obs.now < since + STREAM_WAIT_S or not _compare_now(obs, memory):
        return None
    reason = f"not streaming: comparing histories with {key.name}"
    return Decision("follow.compare", reason, memory, (CheckDivergence(common.whose_line(obs)),))


def leave_diverged(obs: Observation, memory: Memory) -> Decision:
    possible = _control_allows(obs) or _may_discard(obs)
    if not possible:
        return _stay_out(memory, memory.rejoin.reason or "diverged from the leader")
    reason = f"stopping to mend a diverged history: {memory.rejoin.reason}"
    return Decision(
        "follow.stop-diverged", reason, memory, (StopInstance("fast", "rejoin", before_stop=True),)
    )


def _control_allows(obs: Observation) -> bool:
    return obs.settings.use_pg_rewind and (
        not isinstance(obs.instance.control, ControlData) or common.rewind_is_possible(obs)
    )


def ask_while_not_streaming(obs: Observation, memory: Memory) -> Decision | None:
    """Peers are asked before the lease expires, so that a silent one does not delay the race."""
    if not common.other_leads(obs) or memory.not_streaming_since is None:
        return None
    names = interesting_peers(obs, memory, common.view(obs))
    due = tuple(n for n in names if _due(obs, n))
    if not due:
        return None
    return Decision(
        "follow.ask", "not streaming: asking the others", memory, (AskPeers(due),), 1.0, heartbeat=True
    )


def _due(obs: Observation, name: str) -> bool:
    peer = obs.peers.get(name)
    pause = ASK_EVERY_S if isinstance(peer, PeerSilent) or peer is None else obs.settings.loop_wait_s
    return peer is None or obs.now >= peer.asked_at + pause


def lacks_slots(obs: Observation, memory: Memory) -> Decision | None:
    """Permanent logical slots of the leader come with a restart (contract 6.3)."""
    if not common.other_leads(obs) or not obs.instance.serves_as_standby or not common.leader_is_ready(obs):
        return None
    copy = logical_slots.may_copy(obs, memory)
    if copy is None:
        return None
    names = ", ".join(slot.name for slot in copy.slots)
    reason = f"restarting to copy logical slots from {copy.leader}: {names}"
    return Decision("follow.copy-slots", reason, memory, (copy,))


def steady(obs: Observation, memory: Memory) -> Decision | None:
    """A healthy standby: slots and files in line, nothing else."""
    if not common.other_leads(obs):
        return None
    key = common.leader(obs)
    assert key is not None
    change = slots.plan(obs, memory)
    logical = logical_slots.tend(obs, memory) + logical_slots.check(obs, memory)
    actions = (
        *((change,) if change is not None else ()),
        *logical,
        *common.outdated_config(obs),
        *_retry(obs, memory),
        *on_a_standby(obs, memory),
    )
    line = f"no action. I am ({obs.me.name}), a secondary, and following a leader ({key.name})"
    return Decision("follow.steady", line, memory, actions, _next_look(memory), heartbeat=True)


def _retry(obs: Observation, memory: Memory) -> tuple[Action, ...]:
    """A walreceiver that was refused looks again only after wal_retrieve_retry_interval (5 s): told that the
    leader is back, it need not wait. After a while its own pace is right."""
    since = memory.not_streaming_since
    back = obs.instance.serves_as_standby and since is not None and obs.now < since + RETRY_FOR_S
    return (RetryStream(),) if back and common.leader_is_ready(obs) else ()


def _next_look(memory: Memory) -> float | None:
    return 1.0 if memory.not_streaming_since is not None else None
