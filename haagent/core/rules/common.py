"""Words that several rules share. Each is a plain question about an observation."""

from __future__ import annotations

from dcs.records import ClusterSnapshot, Leader, Member
from haagent.core import sync_candidate
from haagent.core.actions import Action, ApplyConfig, Source, WriteClaim
from haagent.core.cascade import cascade_source
from haagent.core.model import Decision, Memory, Observation, PeerAnswer, Unavailable, unreadable
from haagent.core.roles import is_standby_leader
from haagent.core.standby_cluster import RemoteNode
from postgres_ctl.facts import ControlData, ControlState, DataDirState, InstanceSample, slot_name

#: Starts that may fail one after the other without a pause, then at most this long between two, seconds.
QUICK_STARTS, START_PAUSE_S = 2, 10.0
#: Look again after this long where PostgreSQL or a peer cannot tell us by itself, seconds.
SOON_S = 0.25
#: At least so many numbers of timelines are left to a cluster that is followed.
NUMBERS_APART = 8
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


def upstream(obs: Observation) -> Source | None:
    """Whom a standby follows (contract 2.3): the leader, or the member its tags name; in a standby cluster
    its leader, and everybody while nobody leads, the node of the other cluster.

    None: nobody, by its tag nostream or because there is none."""
    if obs.me.tags.nostream:
        return None
    key = leader(obs)
    if key is None or owns_key(obs):
        return remote_node(obs)
    return cascade_source(view(obs), obs.me.name, obs.me.tags) or key.name


def remote_node(obs: Observation) -> RemoteNode | None:
    """The node that this standby cluster follows; None of another cluster, or one that follows an archive."""
    section = obs.settings.standby_cluster
    return section.remote if section is not None else None


def may_follow(memory: Memory, source: Source | None) -> bool:
    """The node of another cluster only once its history was compared with ours: one timeline number there
    and here may be two histories, which PostgreSQL would not notice (H15)."""
    return not isinstance(source, RemoteNode) or memory.remote_fits == source


def keep_numbers_apart(obs: Observation) -> tuple[Action, ...]:
    """In a standby cluster: the numbers that the other one may make next are claimed, so that a promotion
    here takes one beyond.

    Else both could make the same one, from the same position even, and nothing would tell their histories
    apart (H15). How many differs, for two clusters that follow one and are both promoted. Before the key is
    taken, and before a primary stops: whoever is promoted one day finds the claim."""
    cluster, mine = view(obs), obs.instance.timeline or 0
    taken = max((claim.timeline for claim in cluster.claims), default=0)
    known = taken >= mine + NUMBERS_APART or unreadable(cluster, "haagent_claims") is not None
    if known or obs.settings.standby_cluster is None:
        return ()
    epoch = obs.lease.epoch or 0
    number = mine + NUMBERS_APART + (sum(obs.me.name.encode()) + cluster.revision) % NUMBERS_APART
    return (WriteClaim(number, epoch, cluster.claims_version, "left to the remote cluster"),)


def may_ask_remote(obs: Observation, memory: Memory) -> bool:
    """There is a node of another cluster, and it was not asked a moment ago."""
    return remote_node(obs) is not None and obs.now >= memory.remote_not_before


def address_of(obs: Observation, source: Source | None) -> tuple[str, int] | None:
    """Host and port; None of a member that has published none, and of nobody."""
    if isinstance(source, RemoteNode):
        return source.address
    member = view(obs).member(source) if source is not None else None
    return member.host_port if member is not None else None


def slot_on(obs: Observation, source: Source) -> str | None:
    """Slot that this member uses there; None: none."""
    if isinstance(source, RemoteNode):
        section = obs.settings.standby_cluster
        return section.primary_slot_name if section is not None else None
    return slot_name(obs.me.name) if obs.settings.use_slots else None


def follows(obs: Observation, source: Source | None) -> bool:
    """The running server follows exactly there."""
    if source is None:
        return obs.instance.follows is None
    sample = obs.instance.sample
    same_slot = not isinstance(sample, InstanceSample) or (
        (sample.primary_slot_name or None) == slot_on(obs, source)
    )
    return obs.instance.follows == address_of(obs, source) and same_slot


def serves(obs: Observation, member: Member | None) -> bool:
    """It has the role of a leader: primary, in a standby cluster standby leader."""
    if member is None:
        return False
    return member.role == "primary" or (
        obs.settings.standby_cluster is not None and is_standby_leader(member.role)
    )


def leader_is_ready(obs: Observation) -> bool:
    """The leader runs as primary and pg_control on it already shows its timeline (contract 1.3)."""
    key = leader(obs)
    member = view(obs).member(key.name) if key is not None else None
    return (
        member is not None
        and serves(obs, member)
        and member.state == "running"
        and member.checkpoint_after_promote is not False
    )


def whose_line(obs: Observation) -> Source:
    """Whose history this member's has to be part of: the leader's; of a standby cluster, the other's, which
    may move on while one leader here stays."""
    key, remote = leader(obs), remote_node(obs)
    assert key is not None
    return key.name if remote is None else remote


def is_ready(obs: Observation, source: Source) -> bool:
    """pg_rewind may read from there, as far as the store tells; the job asks a remote node itself."""
    return isinstance(source, RemoteNode) or leader_is_ready(obs)


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


def was_never_led(obs: Observation) -> bool:
    """A whole new cluster is here that no agent has led yet: no member's data before one does."""
    return obs.instance.data_dir is DataDirState.VALID and obs.instance.unfinished == "bootstrap"


def rewind_is_possible(obs: Observation) -> bool:
    control = obs.instance.control
    hints = isinstance(control, ControlData) and (control.wal_log_hints or control.data_checksums)
    return obs.settings.use_pg_rewind and hints and obs.instance.has_rewind


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
