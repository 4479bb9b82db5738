"""The primary's part of synchronous modes: the one next write to `/sync` or synchronous_standby_names. Pure.

Each step computes it anew from facts: `/sync` as the store has it, the setting as the running server shows
it and as its file has it, and the walsenders. What may be written is decided by `quorum`; here is who shall
be waited for. While the file and the server differ, the setting is on its way: nothing else is written then
but what makes `/sync` name fewer. While a write to `/sync` may still arrive (its answer was lost, or the
agent that sent it is gone), the setting does not change: first the key is written anew, so that the late
one is refused.

A standby that takes over writes both before it is promoted (`before_promotion`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dcs.records import Member, SyncState
from haagent.core import quorum, sync
from haagent.core.actions import Action, DeleteSync, Guard, PublishSync, SetSyncNames, WriteSync
from haagent.core.model import Memory, Observation
from haagent.core.quorum import State, Target, Voters, Waits
from haagent.core.roles import is_running
from haagent.core.rules import common
from haagent.core.settings import SyncMode
from postgres_ctl.facts import InstanceSample, Lsn, WalSender
from postgres_ctl.sync_standbys import SyncNames, nobody

#: Somebody has to catch up, or a setting to come in force: look again after this, seconds.
LOOK_S = 0.1
#: A setting that is not in force after this is written and told again, seconds.
TELL_AGAIN_S = 1.0
_SYNC_STATES = ("sync", "quorum")


@dataclass(frozen=True)
class Step:
    """What is next, in words; `action` None: only to look again soon."""

    reason: str
    action: Action | None = None
    again_in_s: float = 0.0


def next_step(obs: Observation, memory: Memory) -> Step | None:
    """None when all is as it should be. For a primary that answers and whose key is ours."""
    sample, cluster = obs.instance.sample, common.view(obs)
    if not isinstance(sample, InstanceSample) or sample.in_recovery or obs.instance.storage_hangs:
        return None
    if not sync.is_on(obs.settings):
        return _switched_off(obs, sample)
    key = cluster.sync
    if sync.unknown(obs.settings, cluster) is not None or key is None or not key.leader:
        return _write(
            obs, Voters(frozenset({_me(obs)})), "nobody but the leader has every acknowledged commit yet"
        )
    setting = sync.parsed(sample.sync_names)
    waits = sync.waits(setting)
    if key.leader.lower() != _me(obs):
        return _new_leader(obs, key, waits)
    voters = sync.voters(key)
    if not quorum.covers(voters, waits, _me(obs)):
        reason = f"commits do not wait for who is in sync: {sample.sync_names or 'nobody'} is in force"
        return _write(obs, Voters(frozenset({_me(obs)})), reason)
    if obs.instance.sync_names is None:
        return None  # the file cannot be read: what is in force stays
    if obs.instance.sync_names != sample.sync_names:
        return _on_its_way(obs, memory, obs.instance.sync_names)
    return _towards(obs, memory, sample, setting, voters)


def _me(obs: Observation) -> str:
    return obs.me.name.lower()


def _guard(obs: Observation) -> Guard:
    return Guard(epoch=common.epoch_of(obs), pid=obs.instance.pid)


def _switched_off(obs: Observation, sample: InstanceSample) -> Step | None:
    """The key goes first, then the setting, which lets go all that wait; then the user's own counts."""
    key, names = common.view(obs).sync, obs.instance.user_sync_names
    if key is not None and key.leader:
        reason = "synchronous mode is off: nobody is promised anything any more"
        return Step(reason, DeleteSync(_guard(obs), key.version))
    if obs.instance.sync_names is None or obs.instance.sync_names == names:
        return None
    return Step(
        f"synchronous mode is off: setting {names or 'nobody'}", SetSyncNames(_guard(obs), names), LOOK_S
    )


def _new_leader(obs: Observation, key: SyncState, waits: Waits) -> Step:
    """The key names another leader. By quorum he becomes a voter, if the setting protects that."""
    voters = Voters(sync.names(key) | {_me(obs)}, key.quorum)
    by_quorum = sync.takes_votes(obs.settings, key) and quorum.covers(voters, waits, _me(obs))
    alone = Voters(frozenset({_me(obs)}))
    return _write(obs, voters if by_quorum and waits.number else alone, f"{obs.me.name} leads now")


def _on_its_way(obs: Observation, memory: Memory, names: str) -> Step:
    """Written, and not in force yet. What nobody told the server, it is told (again)."""
    told_lately = obs.instance.config_outdated or obs.now < memory.sync.set_at + TELL_AGAIN_S
    reason = f"waiting for {names or 'nobody'} to come in force"
    return Step(reason, None if told_lately else SetSyncNames(_guard(obs), names), LOOK_S)


def _towards(
    obs: Observation, memory: Memory, sample: InstanceSample, setting: SyncNames | None, voters: Voters
) -> Step | None:
    target = _target(obs, memory, sample, voters, sync.waits(setting))
    if target is None:
        return None
    state = State(
        me=_me(obs),
        voters=voters,
        waits=sync.waits(setting),
        caught_up=_caught_up(obs, memory, sample),
        in_force=_backends_wait(obs, memory, voters),
    )
    write = quorum.next_write(state, target)
    if isinstance(write, Voters):
        return _write(obs, write, _said(obs, write))
    wanted = _setting(obs, write or state.waits)
    if write is None and (setting is None) == (wanted is None) and (wanted is None or wanted.like(setting)):
        return _catching_up(obs, memory, sample, state, target)
    if obs.sync_in_doubt:
        return _write(obs, voters, "an earlier write may still arrive: writing the same again")
    text = wanted.text if wanted is not None else ""
    return Step(_reason_of_setting(text, target), SetSyncNames(_guard(obs), text), LOOK_S)


def _catching_up(
    obs: Observation, memory: Memory, sample: InstanceSample, state: State, target: Target
) -> Step | None:
    """The setting is as it should be; is everybody named who shall be?"""
    named = state.voters.names >= target.names and state.voters.quorum <= len(target.names) - target.number
    if named or not target.names:
        return None
    if not state.in_force and "publish sync" not in obs.background:
        reason = "making sure that backends wait: CHECKPOINT"
        return Step(reason, PublishSync(_guard(obs), sample.sync_names), LOOK_S)
    return Step("waiting for a standby to catch up", None, LOOK_S)


# --- who shall be waited for ----------------------------------------------------------------------


def _target(
    obs: Observation, memory: Memory, sample: InstanceSample, voters: Voters, waits: Waits
) -> Target | None:
    """None: whoever is waited for is waited for on."""
    picked = _candidates(obs, sample)
    count, by_priority = (
        obs.settings.synchronous_node_count,
        obs.settings.synchronous_mode is SyncMode.PRIORITY,
    )
    if by_priority:
        chosen = [m for m, _ in picked][:count]
        target = Target(_folded(chosen), len(chosen), True)
    else:
        sure = [m for m, _ in picked if not m.tags.nofailover]
        spare = [m for m, _ in picked if m.tags.nofailover]
        chosen = sure + spare[: max(0, count - len(sure))]
        target = Target(_folded(chosen), min(count, len(chosen)), False)
    if not chosen and obs.settings.synchronous_mode_strict:
        return _last_known(obs, voters, waits, count)
    return None if not by_priority and _reconnecting(obs, memory, target, waits) else target


def _last_known(obs: Observation, voters: Voters, waits: Waits, count: int) -> Target:
    """Strict mode, and nobody streams: commits wait for who has everything, or for nobody."""
    names = (voters.names - {_me(obs)}) or waits.names
    if not names:
        return Target(names, 1, obs.settings.synchronous_mode is SyncMode.PRIORITY)
    if obs.settings.synchronous_mode is SyncMode.PRIORITY:
        return Target(names, len(names), True)
    return Target(names, min(count, len(names)), False)


def _reconnecting(obs: Observation, memory: Memory, target: Target, waits: Waits) -> bool:
    """Just promoted: who was waited for is given time to find the new leader, if it is there at all."""
    since = memory.sync.primary_since
    if since is None or obs.now >= since + obs.settings.loop_wait_s or target.names & waits.names:
        return False
    running = {m.name.lower() for m in common.view(obs).members if is_running(m.state)}
    return bool(waits.names & running - {_me(obs)})


def _folded(members: list[Member]) -> frozenset[str]:
    return frozenset(m.name.lower() for m in members)


def _candidates(obs: Observation, sample: InstanceSample) -> list[tuple[Member, WalSender]]:
    """Members that run and stream from here, best first (contract 1.10)."""
    senders = {s.application_name.lower(): s for s in sample.senders if s.state == "streaming"}
    others = [m for m in common.view(obs).members if m.name != obs.me.name and m.tags.sync_priority > 0]
    able = [(m, senders[m.name.lower()]) for m in others if is_running(m.state) and m.name.lower() in senders]
    able = _not_behind(obs, sample, able)
    return sorted(able, key=lambda pair: _rank(obs, *pair))


def _rank(obs: Observation, member: Member, sender: WalSender) -> tuple[object, ...]:
    waited_for = sender.sync_state not in _SYNC_STATES, sender.sync_state != "potential"
    position = _position(obs, sender)
    return (member.tags.nofailover, -member.tags.sync_priority, *waited_for, -position.value, member.name)


def _position(obs: Observation, sender: WalSender) -> Lsn:
    """How far it is in what commits wait for."""
    columns = {"remote_apply": sender.replay_lsn, "remote_write": sender.write_lsn}
    return columns.get(obs.instance.synchronous_commit, sender.flush_lsn) or Lsn(0)


def _not_behind(
    obs: Observation, sample: InstanceSample, able: list[tuple[Member, WalSender]]
) -> list[tuple[Member, WalSender]]:
    """Without those further behind the best one (or behind me, if it is the only one) than they may be."""
    limit = obs.settings.maximum_lag_on_syncnode_bytes
    if limit <= 0 or not able:
        return able
    positions = [_position(obs, sender) for _, sender in able]
    best = max(positions) if len(able) > 1 else sample.flush_lsn or Lsn(0)
    return [pair for pair, at in zip(able, positions, strict=True) if best.minus(at) <= limit]


# --- what is known of them ------------------------------------------------------------------------


def _backends_wait(obs: Observation, memory: Memory, voters: Voters) -> bool:
    """H17. Whoever is named was named because they did."""
    if voters.names - {_me(obs)}:
        return True
    return sync.is_published(obs, memory.sync.pid, memory.sync.published)


def _caught_up(obs: Observation, memory: Memory, sample: InstanceSample) -> frozenset[str]:
    """Standbys that are waited for and have all that was acknowledged before they were."""
    seen = memory.sync
    if seen.flushed is None or seen.names != sample.sync_names or sample.sampled_at <= seen.flushed_at:
        return frozenset()
    waited_for = [s for s in sample.senders if s.state == "streaming" and s.sync_state in _SYNC_STATES]
    there = (s.application_name.lower() for s in waited_for if s.flush_lsn and s.flush_lsn >= seen.flushed)
    return frozenset(there)


# --- writes ---------------------------------------------------------------------------------------


def _spelled(obs: Observation, names: frozenset[str]) -> tuple[str, ...]:
    """As their members spell them."""
    cluster, key = common.view(obs), common.view(obs).sync
    known = (*(key.standbys if key is not None else ()), *((key.leader or "",) if key is not None else ()))
    spelling = {name.lower(): name for name in known} | {m.name.lower(): m.name for m in cluster.members}
    return tuple(sorted(spelling.get(name, name) for name in names))


def _setting(obs: Observation, waits: Waits) -> SyncNames | None:
    by_quorum = obs.settings.synchronous_mode is SyncMode.QUORUM
    if waits.names:
        return SyncNames(_spelled(obs, waits.names), waits.number, by_quorum)
    return nobody(by_quorum) if waits.number else None


def _write(obs: Observation, voters: Voters, reason: str) -> Step:
    others = _spelled(obs, voters.names - {_me(obs)})
    action = WriteSync(_guard(obs), obs.me.name, others, voters.quorum, common.view(obs).sync_version)
    return Step(reason, action)


def _said(obs: Observation, voters: Voters) -> str:
    others = _spelled(obs, voters.names - {_me(obs)})
    votes = f", quorum {voters.quorum}" if obs.settings.synchronous_mode is SyncMode.QUORUM else ""
    return f"synchronous standbys: {', '.join(others) or 'none'}{votes}"


def _reason_of_setting(text: str, target: Target) -> str:
    if not target.names and target.number:
        return (
            "No active replication connections from Patroni members and synchronous_mode_strict is requested"
        )
    return f"commits wait for {text or 'nobody'}"


# --- before a promotion ---------------------------------------------------------------------------


def before_promotion(obs: Observation, memory: Memory) -> Step | None:
    """What `/sync` and this standby's setting have to say before it is promoted; None: they do.

    `/sync` is written even where it says the right thing, unless this agent is sure that no other write is on
    its way: the last leader's may be (rule 4)."""
    if not sync.is_on(obs.settings):
        return None
    cluster, sample = common.view(obs), obs.instance.sample
    key = cluster.sync if sync.in_force(obs.settings, cluster) is not None else None
    voters, setting = _after_promotion(obs, key)
    mine = key is not None and key.leader is not None and key.leader.lower() == _me(obs)
    if not mine or (key is not None and sync.voters(key) != voters) or obs.sync_in_doubt:
        return _write(obs, voters, f"before the promotion: {_said(obs, voters)}")
    if obs.instance.sync_names is None or not isinstance(sample, InstanceSample):
        return Step("synchronous_standby_names cannot be read here", None, LOOK_S)
    if not _is_set(obs.instance.sync_names, setting):
        text = setting.text if setting is not None else ""
        return Step(
            f"before the promotion: commits wait for {text or 'nobody'}", SetSyncNames(_guard(obs), text)
        )
    if obs.instance.sync_names != sample.sync_names:
        return _on_its_way(obs, memory, obs.instance.sync_names)
    return _publish(obs, memory, sample) if setting is not None else None


def _is_set(text: str, setting: SyncNames | None) -> bool:
    found = sync.parsed(text)
    return found is None and not text if setting is None else setting.like(found)


def _after_promotion(obs: Observation, key: SyncState | None) -> tuple[Voters, SyncNames | None]:
    """By priority and not strict: nobody is promised anything until somebody has caught up. Else who was in
    `/sync` stays in it, and commits wait for so many of them that the next candidate has every one."""
    alone, me = Voters(frozenset({_me(obs)})), _me(obs)
    strict = obs.settings.synchronous_mode_strict
    by_quorum = obs.settings.synchronous_mode is SyncMode.QUORUM
    if key is None or not (strict or by_quorum):
        return alone, nobody(by_quorum) if strict else None
    old = sync.voters(key)
    if not sync.takes_votes(obs.settings, key):
        standbys = frozenset(name.lower() for name in key.standbys) - {me}
        return Voters(standbys | {me}), _setting(obs, Waits(standbys, max(1, len(standbys))))
    number = len(old.names) - old.quorum - 1 + (me not in old.names)
    waits = Waits(old.names - {me}, max(number, int(strict)))
    return Voters(old.names | {me}, old.quorum), _setting(obs, waits if waits.number else Waits())


def _publish(obs: Observation, memory: Memory, sample: InstanceSample) -> Step | None:
    """A standby whose setting was empty when it started may let the first commits go on without waiting."""
    if sync.is_published(obs, memory.sync.pid, memory.sync.published):
        return None
    if "publish sync" in obs.background:
        return Step("waiting for the CHECKPOINT after which backends wait", None, LOOK_S)
    return Step(
        "making sure that backends will wait: CHECKPOINT", PublishSync(_guard(obs), sample.sync_names), LOOK_S
    )


def on_a_standby(obs: Observation, memory: Memory) -> tuple[Action, ...]:
    """It gets ready in time: a promotion must not wait for a CHECKPOINT."""
    sample = obs.instance.sample
    if not sync.never_empty(obs.settings) or not isinstance(sample, InstanceSample) or not sample.sync_names:
        return ()
    ready = obs.instance.sync_names == sample.sync_names and "publish sync" not in obs.background
    if not ready or sync.is_published(obs, memory.sync.pid, memory.sync.published):
        return ()
    return (PublishSync(Guard(pid=obs.instance.pid), sample.sync_names),)
