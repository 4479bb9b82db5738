"""Words that several rules share. Each is a plain question about an observation."""

from __future__ import annotations

from dcs.records import ClusterSnapshot, Leader
from haagent.core import sync_candidate
from haagent.core.actions import Action, ApplyConfig
from haagent.core.cascade import cascade_source
from haagent.core.model import Decision, Memory, Observation, PeerAnswer, Unavailable, unreadable
from postgres_ctl.facts import ControlData, ControlState, DataDirState

#: Starts that may fail one after the other without a pause, then at most this long between two, seconds.
QUICK_STARTS, START_PAUSE_S = 2, 10.0
#: Look again after this long where PostgreSQL or a peer cannot tell us by itself, seconds.
SOON_S = 0.25
#: After the shutdown checkpoint a standby that hangs, the candidate or any other, holds the stop up so long
#: at most, seconds: nobody can write meanwhile, and a healthy one has it within milliseconds.
SENDERS_GRACE_S = 2.0


def view(obs: Observation) -> ClusterSnapshot:
    """The cluster view; only for rules behind `outage`, which answers when there is none."""
    assert not isinstance(obs.cluster, Unavailable)
    return obs.cluster


def leader(obs: Observation) -> Leader | None:
    return view(obs).leader


def owns_key(obs: Observation) -> bool:
    """The key is ours under the handle the guardian keeps (H5: the name alone proves nothing)."""
    key = leader(obs)
    return key is not None and key.name == obs.me.name and key.epoch == obs.lease.epoch


def left_by_a_leader(cluster: ClusterSnapshot) -> str | None:
    """What only the leader of a cluster leaves in the store, also where `initialize` was deleted.

    None in the store of a new cluster (it may hold `config`), or of servers that no agent has led yet."""
    keys = (
        ("status", cluster.status is not None),
        ("history", bool(cluster.history)),
        ("haagent_claims", bool(cluster.claims)),
    )
    return next((f"the key {key}" for key, there in keys if there or unreadable(cluster, key)), None)


def name_is_taken(obs: Observation) -> bool:
    """The key carries our name under a handle that is not ours: a stranger, or an epoch we closed."""
    key = leader(obs)
    return key is not None and key.name == obs.me.name and key.epoch != obs.lease.epoch


def other_leads(obs: Observation) -> bool:
    key = leader(obs)
    return key is not None and key.name != obs.me.name


def key_is_anothers(obs: Observation) -> bool:
    """As far as the store could be read: the key is there, and it is not ours."""
    return not isinstance(obs.cluster, Unavailable) and (other_leads(obs) or name_is_taken(obs))


def epoch_of(obs: Observation) -> int:
    assert obs.lease.epoch is not None
    return obs.lease.epoch


def upstream(obs: Observation) -> str | None:
    """Whom a standby follows while somebody leads (contract 2.3); None: nobody, by its tag nostream."""
    if obs.me.tags.nostream:
        return None
    key = leader(obs)
    assert key is not None
    return cascade_source(view(obs), obs.me.name, obs.me.tags) or key.name


def leader_is_ready(obs: Observation) -> bool:
    """The leader runs as primary and pg_control on it already shows its timeline (contract 1.3)."""
    key = leader(obs)
    member = view(obs).member(key.name) if key is not None else None
    return (
        member is not None
        and member.role == "primary"
        and member.state == "running"
        and member.checkpoint_after_promote is not False
    )


def was_primary(obs: Observation) -> bool:
    """pg_control was last written by a primary, in whatever way it ended."""
    control = obs.instance.control
    return isinstance(control, ControlData) and control.state in (
        ControlState.SHUT_DOWN,
        ControlState.SHUTTING_DOWN,
        ControlState.IN_PRODUCTION,
        ControlState.IN_CRASH_RECOVERY,
    )


def has_data(obs: Observation) -> bool:
    return obs.instance.data_dir is DataDirState.VALID and obs.instance.unfinished is None


def rewind_is_possible(obs: Observation) -> bool:
    control = obs.instance.control
    hints = isinstance(control, ControlData) and (control.wal_log_hints or control.data_checksums)
    return obs.settings.use_pg_rewind and hints


def fit_successor_answers(obs: Observation) -> bool:
    """A reachable standby could take over after us: nobody releases a key into the void."""
    return any(
        isinstance(p, PeerAnswer)
        and p.in_recovery
        and not p.tags.nofailover
        and p.cannot_lead is None
        and not p.watchdog_failed
        and sync_candidate.may_succeed(obs, view(obs), p.name)
        for p in obs.peers.values()
    )


def start_pause_s(obs: Observation, memory: Memory) -> float:
    """How long to wait before the next try of a start that keeps failing; 0 when it may be tried now."""
    if memory.start_failures < QUICK_STARTS or memory.start_failed_at is None:
        return 0.0
    pause = min(START_PAUSE_S, 2.0 ** min(memory.start_failures - QUICK_STARTS + 1, 10))
    return max(0.0, memory.start_failed_at + pause - obs.now)


def outdated_config(obs: Observation) -> tuple[Action, ...]:
    instance = obs.instance
    due = instance.config_outdated and instance.answers and not instance.storage_hangs
    return (ApplyConfig(),) if due else ()


def wait(rule: str, reason: str, memory: Memory, again_in_s: float | None = None) -> Decision:
    """Nothing to do but to look again."""
    return Decision(rule, reason, memory, again_in_s=again_in_s, heartbeat=True)
