"""Observation, Memory, Decision: everything `decide` sees, remembers and returns. Frozen, pure.

Rules of the room
- A fact that could not be read is `Unavailable`, never None (design section 2).
- Times are seconds on CLOCK_BOOTTIME; `Observation.now` is the only clock a rule may look at. What people
  scheduled is compared with `Observation.wall`, by `haagent.core.schedule` alone.
- `Memory` is what one agent remembers between two steps; it is lost when the agent dies, so nothing that
  safety needs may live only here: leases live in DCS and guardian, positions in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dcs.records import ClusterSnapshot, Discard, Member, Tags
from haagent.core.actions import Action
from haagent.core.rejoin_state import AFRESH
from haagent.core.rejoin_state import Rejoin as Rejoin
from haagent.core.restart import ALWAYS, RestartWish, ScheduledRestart
from haagent.core.settings import Settings
from haagent.core.slot_memory import SlotMemory
from haagent.core.standby_cluster import RemoteNode
from haagent.core.vitals import Remedies, Vitals
from postgres_ctl.facts import ControlData, CopyProgress, DataDirState, InstanceSample, Lsn, TimelineSwitch


@dataclass(frozen=True)
class Unavailable:
    """A fact that could not be read, since when, and why."""

    since: float
    cause: str


@dataclass(frozen=True)
class Identity:
    """What this agent is: fixed for its life, except the tags."""

    name: str
    scope: str
    tags: Tags = field(default_factory=Tags)
    #: `bootstrap` may create a new cluster here (contract 2.10.1).
    may_bootstrap: bool = True


# --- the local instance -------------------------------------------------------------------------


@dataclass(frozen=True)
class LastExit:
    """How the postmaster went the last time the guardian saw one go, in this boot of the host."""

    fenced: bool
    #: The guardian watched it from start to end: no WAL written to the page cache is lost (H14).
    watched: bool


@dataclass(frozen=True)
class Instance:
    """The PostgreSQL beside this agent."""

    data_dir: DataDirState = DataDirState.VALID
    #: "rewind" while pg_rewind was begun and not finished; "bootstrap" while a new cluster that was made here
    #: was never led; None otherwise. (A half made initdb or clone counts as an empty directory.)
    unfinished: str | None = None
    #: A postmaster process lives.
    alive: bool = False
    #: Processes or shared memory of a dead postmaster are still there: fenced, but not stopped (H9).
    leftovers: bool = False
    #: The guardian saw the postmaster end, and is still at ending what that left: it counts as alive.
    ending: bool = False
    #: The postmaster was started, or promoted, to accept writes (or nobody can exclude it).
    writable: bool = False
    #: Epoch under which the guardian let it; None of a standby, and where nobody knows.
    writable_epoch: int | None = None
    pid: int | None = None
    control: ControlData | Unavailable = Unavailable(0.0, "never read")
    sample: InstanceSample | Unavailable = Unavailable(0.0, "never asked")
    #: Timelines of the newest history file at hand, oldest first.
    history: tuple[TimelineSwitch, ...] = ()
    last_exit: LastExit | None = None
    #: Settings of the instance differ from the wanted files: ApplyConfig would change something.
    config_outdated: bool = False
    #: Host and port a standby follows now; None when nobody.
    follows: tuple[str, int] | None = None
    #: A write of this agent to the storage is overdue, and still under way.
    storage_hangs: bool = False
    #: synchronous_standby_names as postgresql.conf has it, in force or soon to be; None: it cannot be read.
    sync_names: str | None = ""
    #: The same as the user wants it while no synchronous mode is on.
    user_sync_names: str = ""
    #: synchronous_commit of sessions that ask for nothing else.
    synchronous_commit: str = "on"
    #: The program pg_rewind is installed.
    has_rewind: bool = True
    #: What the state file beside the data directory says of the way back.
    kept_rejoin: Rejoin = AFRESH
    #: WAL that was thrown away here, and of which the store does not know yet.
    untold_discards: tuple[Discard, ...] = ()

    @property
    def stopped(self) -> bool:
        """Proven stopped: no postmaster and nothing left of one."""
        return not self.alive and not self.leftovers

    @property
    def answers(self) -> bool:
        return self.alive and isinstance(self.sample, InstanceSample)

    @property
    def promoting(self) -> bool:
        """Told to promote and still in recovery: it will accept writes, only a stop prevents that."""
        return self.writable and self._in_recovery

    @property
    def serves_as_primary(self) -> bool:
        """Accepts writes or is about to, as far as we can tell: an unanswering writable postmaster counts."""
        if self.alive and isinstance(self.sample, InstanceSample) and not self.sample.in_recovery:
            return True
        return self.alive and self.writable

    @property
    def serves_as_standby(self) -> bool:
        """Read-only, and nobody told it to be otherwise."""
        return self._in_recovery and not self.writable

    @property
    def _in_recovery(self) -> bool:
        return self.alive and isinstance(self.sample, InstanceSample) and self.sample.in_recovery

    @property
    def timeline(self) -> int | None:
        """Timeline this instance is on, from the server, else from pg_control."""
        if isinstance(self.sample, InstanceSample) and self.sample.timeline:
            return self.sample.timeline
        if isinstance(self.control, ControlData):
            return self.control.newest_timeline
        return None

    @property
    def system_identifier(self) -> str | None:
        if isinstance(self.control, ControlData):
            return self.control.system_identifier
        return self.sample.system_identifier if isinstance(self.sample, InstanceSample) else None


# --- lease and guardian -------------------------------------------------------------------------


@dataclass(frozen=True)
class LeaseFacts:
    """What the lease keeper and the guardian prove about our leadership."""

    #: Session of this agent; None until the DCS has been reached.
    session: str | None = None
    #: Epoch under which we hold the key; None when we do not, or closed it.
    epoch: int | None = None
    #: Until when the lease is proven *and* the guardian armed; None before the first proof.
    fence_at: float | None = None
    #: The guardian does not fire (pause).
    disarmed: bool = False
    #: Highest epoch the guardian has closed.
    closed_epoch: int = 0
    #: Why the store said the key is not ours; None while it has not.
    refused: str | None = None
    #: The guardian lives and acknowledges.
    guardian_ok: bool = True
    #: Until when promises of all members carry the lease beyond what the DCS has proven; None: they do not.
    failsafe_until: float | None = None

    def holds(self, now: float) -> bool:
        """ "I am leader": the lease is provably valid now (rule 1), and its epoch not closed (H6)."""
        if self.epoch is None or self.fence_at is None or self.closed_epoch >= self.epoch:
            return False
        return now < self.fence_at


@dataclass(frozen=True)
class PromiseFacts:
    """What this member has promised to a leader without a DCS (failsafe mode, H19)."""

    #: It stays out of the race until then.
    until: float = 0.0
    #: To whom; None: to nobody known, the record of it was lost.
    to: str | None = None
    #: How many were given: whoever decides by this one must not overlook a later one.
    count: int = 0


@dataclass(frozen=True)
class WatchdogFacts:
    """The watchdog device of this host, and what the configuration wants of it."""

    mode: str = "off"
    #: -1: half of the ttl.
    safety_margin_s: int = 5
    #: The timeout it is on with; None while it is off.
    on_s: int | None = None
    #: Why it cannot be used, as far as can be seen without opening it.
    device_problem: str | None = None
    #: When the last try to switch it on failed, and why; None when it did not.
    failed: tuple[float, str] | None = None


# --- peers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerAnswer:
    """`GET <api_url>` of a peer (contract 3.4)."""

    name: str
    asked_at: float
    in_recovery: bool
    role: str
    state: str
    timeline: int | None
    received: Lsn | None
    replayed: Lsn | None
    #: Primary's `xlog.location`; None when not reported (H13: a closed epoch reports none).
    location: Lsn | None
    tags: Tags = field(default_factory=Tags)
    watchdog_failed: bool = False
    #: It has promised not to lead (failsafe mode); Patroni's members keep that also after a hand-over.
    failsafe_active: bool = False
    is_haagent: bool = False
    cannot_lead: str | None = None
    replication_state: str | None = None
    #: It has read all WAL it may have acknowledged; None: it does not say (Patroni's).
    position_is_proven: bool | None = None

    @property
    def position(self) -> Lsn:
        if self.location is not None:
            return self.location
        return max(self.received or Lsn(0), self.replayed or Lsn(0))

    @property
    def runs_as_primary(self) -> bool:
        return self.location is not None and self.location.value > 0


@dataclass(frozen=True)
class PeerSilent:
    """A peer that was asked and did not answer usefully."""

    name: str
    asked_at: float
    cause: str


Peer = PeerAnswer | PeerSilent


# --- work and wishes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class JobFacts:
    """The one long work that runs now."""

    kind: str
    started_at: float
    detail: str = ""
    #: Epoch under which it was begun; None when it needs none.
    epoch: int | None = None
    cancelled: bool = False
    #: What it is called in answers (contract 2.8), where that is not its kind.
    title: str = ""
    #: A restart has stopped PostgreSQL and starts it since then.
    starting_since: float | None = None
    #: Of a clone or a restore: how far it is.
    copied: CopyProgress | None = None
    #: A restarted primary that needs longer is handed over, seconds; None: it may take as long as it does.
    start_timeout_s: float | None = None

    @property
    def words(self) -> str:
        return self.title or self.kind


@dataclass(frozen=True)
class JobResult:
    """How the last job ended; delivered to exactly one step."""

    kind: str
    ok: bool
    reason: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatorRequest:
    """A wish that concerns this member only.

    `kind`: restart | reinitialize | schedule restart | delete scheduled restart."""

    id: int
    kind: str
    from_leader: bool = False
    #: Cancel what runs first.
    force: bool = False
    wish: RestartWish = ALWAYS


@dataclass(frozen=True)
class Observation:
    """All facts of one step, gathered once."""

    now: float
    me: Identity
    settings: Settings
    cluster: ClusterSnapshot | Unavailable
    instance: Instance
    lease: LeaseFacts
    peers: Mapping[str, Peer] = field(default_factory=dict)
    job: JobFacts | None = None
    #: Kinds of background work (CHECKPOINT after promotion) under way beside the job.
    background: tuple[str, ...] = ()
    finished: tuple[JobResult, ...] = ()
    request: OperatorRequest | None = None
    scheduled_restart: ScheduledRestart | None = None
    #: SIGTERM or SIGINT was received.
    stopping: bool = False
    #: A replica can be made from a backup, without anybody to copy from (`no_leader`).
    copies_without_leader: bool = False
    #: A program has to agree to each promotion (`pre_promote`).
    asks_before_promotion: bool = False
    watchdog: WatchdogFacts = WatchdogFacts()
    vitals: Vitals = field(default_factory=Vitals)
    promise: PromiseFacts = PromiseFacts()
    #: Unix time of this host: only for what an operator scheduled for a point in time.
    wall: float = 0.0
    #: A write of this agent, or of one before it, to `/sync` as it is now may still arrive.
    sync_in_doubt: bool = False

    @property
    def serves_as_leader(self) -> bool:
        """What the holder of the key is to be: a primary, in a standby cluster a standby."""
        follows = self.settings.standby_cluster is not None and self.instance.serves_as_standby
        return follows or self.instance.serves_as_primary

    @property
    def leads_standby_cluster(self) -> bool:
        """This member holds a proven lease of a standby cluster: it follows the other one for all."""
        holds = self.lease.holds(self.now) or (self.lease.disarmed and self.lease.epoch is not None)
        return self.settings.standby_cluster is not None and holds and not self.instance.serves_as_primary


def unreadable(cluster: ClusterSnapshot, key: str) -> str | None:
    """Why the value of this key cannot be understood; None when it can, or is absent.

    Such a fact is unknown, not absent: the record beside it is None all the same."""
    return next((b.cause for b in cluster.broken if b.key == key), None)


# --- memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handover:
    """A planned switchover in progress on the primary."""

    #: Version of the `failover` key that asked for it.
    version: int
    candidate: str
    began_at: float
    checkpointed: bool = False
    #: PostgreSQL was told to stop then.
    stopping_since: float | None = None
    #: PostgreSQL was first seen stopped then; the candidate's proof is waited for from here.
    proving_since: float | None = None
    #: Epoch it began under: with the lease the hand-over ends.
    epoch: int = 0
    #: End of WAL behind the CHECKPOINT, which the candidate has to write before anything is stopped, and
    #: since when that is waited for.
    to_write: tuple[Lsn, float] | None = None


@dataclass(frozen=True)
class SyncSeen:
    """What was seen of synchronous_standby_names in the server that runs (`haagent.core.sync_seen`).

    Forgotten with the agent, it is seen anew, at the price of some time."""

    #: The postmaster it is about; 0: none runs; None: nothing was seen yet.
    pid: int | None = None
    names: str = ""
    #: Backends wait by `names`, or by what it was before without being empty: published (H17).
    published: bool = False
    #: End of WAL when the names were first seen in force and published, and when that was.
    flushed: Lsn | None = None
    flushed_at: float = 0.0
    #: Only samples taken since then tell anything of that.
    not_before: float = 0.0
    #: When this agent last wrote the setting and told the server.
    set_at: float = 0.0
    #: A primary since then, as far as was seen.
    primary_since: float | None = None
    #: End of WAL where this server began to be a primary, until a listed standby has it (strict mode, H14).
    to_confirm: Lsn | None = None


@dataclass(frozen=True)
class Memory:
    """What this agent remembers between two steps."""

    leader_missing_since: float | None = None
    #: Last leader seen: name and epoch.
    last_leader: str | None = None
    last_epoch: int = 0
    #: Members when the cluster last had a leader (contract 2.4.12).
    last_members: tuple[Member, ...] = ()
    #: A hand-over mark (`failover.leader`) was last seen then; it outlives the request (H18).
    handover_seen_at: float | None = None
    #: Who was to step down by it.
    handover_from: str | None = None
    #: Its last position, as its release said; None until then. The successor's own writes lie beyond it.
    handover_optime: int | None = None
    #: initialize race won by this process: "won" -> "ready" (or "failed: why") -> None once it runs.
    bootstrap: str | None = None
    #: Somebody's claim on a new cluster (`initialize` = "") is there since then, and nobody works on it.
    idle_claim_since: float | None = None
    handover: Handover | None = None
    #: PostgreSQL is not running, seen first then; None while it runs.
    down_since: float | None = None
    start_failures: int = 0
    #: The last failed start ended then: tries are spaced out.
    start_failed_at: float | None = None
    rejoin: Rejoin = AFRESH
    #: `pre_promote` agreed to a promotion under this epoch.
    agreed_epoch: int = 0
    #: Own promotion failed then: stay out of the race for ttl.
    promote_failed_at: float | None = None
    paused_seen: bool = False
    resumed_at: float | None = None
    #: Owner of the key that vanished while fencing was off: it may still be writable (H20).
    lost_in_pause: str | None = None
    #: The CHECKPOINT after promotion in this epoch is done.
    checkpointed_epoch: int = 0
    #: Standby without stream since then; None while it streams.
    not_streaming_since: float | None = None
    #: Clone waits for its slot on the leader since then.
    slot_wait_since: float | None = None
    #: Failover request waiting for its candidate: key version, since when.
    request_seen: tuple[int, float] | None = None
    #: We released the key after the successor had proven to have everything: nothing to rewind.
    clean_release: bool = False
    #: An operator had this data directory built anew, and it does not serve yet.
    reinitializing: bool = False
    #: The node of the other cluster whose history was compared with ours, and fits (standby clusters).
    remote_fits: RemoteNode | None = None
    #: It is not asked again before this.
    remote_not_before: float = 0.0
    #: The last segment of the primary that stopped here is in its archive: location of its checkpoint.
    archived: Lsn | None = None
    #: Slot name -> when its member was last seen (contract 6.2, member_slots_ttl); also of those given up.
    slots_seen: Mapping[str, float] = field(default_factory=dict)
    sync: SyncSeen = SyncSeen()
    logical: SlotMemory = field(default_factory=SlotMemory)
    remedies: Remedies = field(default_factory=Remedies)
    #: One line for people about what goes wrong or takes long; published with the member.
    note: str | None = None


def evolve(memory: Memory, **changes: Any) -> Memory:
    """`memory` with these values; itself when it has them already, which is the usual case and costs
    nothing."""
    for name, value in changes.items():
        old = getattr(memory, name)
        if old is not value and old != value:
            return replace(memory, **changes)
    return memory


@dataclass(frozen=True)
class Refusal:
    """Why somebody may not lead: a stable rule id, and the facts."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Decision:
    """What to do now. `actions` are done in order and stop at the first failure."""

    rule: str
    reason: str
    memory: Memory
    actions: tuple[Action, ...] = ()
    #: Look again after so many seconds even if nothing happens; None means the usual loop_wait.
    again_in_s: float | None = None
    refusals: tuple[Refusal, ...] = ()
    #: Line of contract 7.3 for log type `plain`, or several; defaults to `reason`.
    line: str | None = None
    #: A heartbeat says nothing new: it is not an event.
    heartbeat: bool = False
