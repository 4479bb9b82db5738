"""What an agent sees of synchronous_standby_names as it comes into force. Pure; part of `absorb`.

Theory. Three moments, one after the other: the setting is in the file; a session of ours shows it, so the
postmaster has told everybody; the checkpointer has published it, so that backends wait (H17, proven by a
CHECKPOINT issued later; only from empty to set, for what was not empty before is published). The end of WAL
is noted then: what was acknowledged under the setting before lies below it. A standby that has flushed it has
all that.

All of it may be forgotten: it is noted again, further on in the WAL.
"""

from __future__ import annotations

from dataclasses import replace

from haagent.core import sync
from haagent.core.model import Observation, SyncSeen, Unavailable
from postgres_ctl.facts import InstanceSample, Lsn
from postgres_ctl.sync_standbys import ANYBODY


def follow(obs: Observation, seen: SyncSeen) -> SyncSeen:
    """`seen` with this observation."""
    sample, pid = obs.instance.sample, obs.instance.pid
    if not obs.instance.alive:
        return seen if seen.pid == 0 else SyncSeen(pid=0)
    if not isinstance(sample, InstanceSample) or pid is None:
        return seen
    seen = _same_setting(seen, pid, sample)
    if sample.in_recovery:
        nothing = seen.flushed is None and seen.primary_since is None
        return seen if nothing else replace(seen, flushed=None, primary_since=None, to_confirm=None)
    if seen.primary_since is None:
        promised = (
            isinstance(obs.cluster, Unavailable) or sync.in_force(obs.settings, obs.cluster) is not None
        )
        seen = replace(seen, primary_since=obs.now, to_confirm=sample.flush_lsn if promised else None)
    if not seen.published and sample.sync_names and _named_already(obs):
        seen = replace(seen, published=True)
    return _confirmed(obs, _note_end(seen, sample), sample)


def _named_already(obs: Observation) -> bool:
    """Whoever is in our own `/sync` was named because backends wait: an agent of before knew."""
    key = None if isinstance(obs.cluster, Unavailable) else sync.in_force(obs.settings, obs.cluster)
    return (
        key is not None
        and key.leader is not None
        and sync.voters(key).names > {obs.me.name.lower()}
        and (key.leader.lower() == obs.me.name.lower())
    )


def _same_setting(seen: SyncSeen, pid: int, sample: InstanceSample) -> SyncSeen:
    """Another server, or another setting: what was noted of the last one is over."""
    names = sample.sync_names
    if seen.pid != pid:
        # A server that was started under our eyes read its file before it let anybody in.
        return SyncSeen(pid=pid, names=names, published=bool(names) and seen.pid is not None)
    if seen.names != names:
        goes_on = seen.published and bool(seen.names) and bool(names)
        return replace(seen, names=names, published=goes_on, flushed=None)
    return seen


def _note_end(seen: SyncSeen, sample: InstanceSample) -> SyncSeen:
    too_early = not seen.published or sample.sampled_at < seen.not_before
    if seen.flushed is not None or too_early or not _all_have_read_it(sample):
        return seen
    return replace(seen, flushed=sample.flush_lsn, flushed_at=sample.sampled_at)


def _all_have_read_it(sample: InstanceSample) -> bool:
    """Each walsender that lets commits go on has read the setting, as far as it shows."""
    setting = sync.parsed(sample.sync_names)
    if setting is None:
        return False
    listed = {name.lower() for name in setting.names}
    shown = ((s.application_name.lower() in listed, s.sync_priority > 0) for s in sample.senders)
    return all(meant == waited_for for meant, waited_for in shown) or ANYBODY in listed


def _confirmed(obs: Observation, seen: SyncSeen, sample: InstanceSample) -> SyncSeen:
    """A listed standby has flushed where this server began to be a primary, or nobody has to."""
    end = seen.to_confirm
    if end is None:
        return seen
    if not (sync.is_on(obs.settings) and obs.settings.synchronous_mode_strict):
        return replace(seen, to_confirm=None)
    return replace(seen, to_confirm=None) if _listed_has(obs, sample, end) else seen


def _listed_has(obs: Observation, sample: InstanceSample, end: Lsn) -> bool:
    key = None if isinstance(obs.cluster, Unavailable) else obs.cluster.sync
    if key is None:
        return False
    flushed = (s.flush_lsn for s in sample.senders if sync.is_listed(key, s.application_name))
    return any(lsn is not None and lsn >= end for lsn in flushed)


def published(seen: SyncSeen, names: str, pid: int, at: float) -> SyncSeen:
    """A CHECKPOINT that was issued while the server showed `names` has returned, at that time."""
    if (seen.pid, seen.names) != (pid, names):
        return seen
    return replace(seen, published=True, flushed=None, not_before=at)


def is_quarantined(seen: SyncSeen) -> bool:
    """Strict mode: clients are not sent to a primary that came back, or was promoted, before a listed standby
    has all it begins with (H14)."""
    return seen.to_confirm is not None
