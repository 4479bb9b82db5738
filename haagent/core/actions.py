"""The union of everything `decide` may ask for, as data. `haagent.act` is the only interpreter.

Each action that could make a server writable, or give leadership away, carries a `Guard`: facts that must
still hold in the very moment of the effect. Quick actions return within a DCS or SQL deadline; actions
marked *job* run in the background, one at a time, and report as `JobResult`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dcs.records import Discard
from haagent.core.rejoin_state import Rejoin
from haagent.core.restart import ScheduledRestart
from haagent.core.slot_config import PermanentSlot
from haagent.core.standby_cluster import RemoteNode
from postgres_ctl.facts import Lsn

#: Where WAL or a copy comes from: a member, by its name, or the node a standby cluster follows.
Source = str | RemoteNode


@dataclass(frozen=True)
class Guard:
    """Checked again just before the effect; the first failure stops the decision.

    epoch: our lease must be held under exactly this epoch, and not past its fence.
    pid: the postmaster must still be this one (0: none may live).
    """

    epoch: int | None = None
    pid: int | None = None


# --- DCS ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateInitialize:
    """Race for a new cluster: `initialize` = "" on our session."""


@dataclass(frozen=True)
class PutInitialize:
    """Create or complete `initialize` with our system identifier. `only_if_absent` for joiners."""

    system_identifier: str
    only_if_absent: bool = False


@dataclass(frozen=True)
class DeleteInitialize:
    """Bootstrap failed: let somebody else try."""


@dataclass(frozen=True)
class PutInitialConfig:
    """`config` from `bootstrap.dcs`, or from the cached copy; only if absent."""


@dataclass(frozen=True)
class TakeLeader:
    """Create the leader key, prove it by a renewal, arm the guardian (H1, H8)."""


@dataclass(frozen=True)
class ReleaseLeader:
    """Close the epoch, write `status.optime` where known, delete the key (rule 2, H6).

    PostgreSQL must be proven stopped, or a standby, at that moment: the interpreter looks again."""

    epoch: int
    optime: Lsn | None = None


@dataclass(frozen=True)
class ClearFailover:
    """`failover` := {} at this version; `outcome` is told to whoever asked."""

    version: int
    outcome: str
    status: int = 503


@dataclass(frozen=True)
class BeginScheduled:
    """A scheduled switchover is due: the same for now in its place, at this version of `failover`."""

    guard: Guard
    version: int
    leader: str | None
    candidate: str | None


@dataclass(frozen=True)
class BeginSwitchover:
    """This primary asks for a switchover itself, where nobody has asked: at this version of `failover`."""

    guard: Guard
    version: int
    leader: str
    candidate: str


@dataclass(frozen=True)
class CloseEpoch:
    """Give leadership up while PostgreSQL may still live: nothing is renewed or released any more under this
    epoch, and the fence stays armed (H9)."""

    epoch: int


@dataclass(frozen=True)
class MarkUnfenced:
    """Tell everybody, before the guardian is disarmed, that we may stay writable without the key (H20); or
    that nobody does."""

    unfenced: bool


@dataclass(frozen=True)
class WriteFailsafe:
    """`failsafe` := these members and their addresses, while no promise of the old ones is relied on."""

    guard: Guard
    members: Mapping[str, str]


@dataclass(frozen=True)
class WriteClaim:
    """Claim the timeline we are about to create (H15), and the one we are on where its claim was lost."""

    timeline: int
    epoch: int
    version: int
    note: str | None = None
    mine: int | None = None


@dataclass(frozen=True)
class WriteStatus:
    """`status` under our leadership."""

    guard: Guard
    optime: Lsn
    slots: Mapping[str, int] = field(default_factory=dict)
    retain_slots: tuple[str, ...] = ()


@dataclass(frozen=True)
class WriteSync:
    """`sync` at this version: who may be promoted beside `leader`, and how many have to back him."""

    guard: Guard
    leader: str
    standbys: tuple[str, ...]
    quorum: int
    version: int


@dataclass(frozen=True)
class DeleteSync:
    """`sync` goes, at this version: no synchronous mode is on."""

    guard: Guard
    version: int


@dataclass(frozen=True)
class WriteHistory:
    """`history` from the local history file (contract 1.3). `by_me`: this member began the timeline."""

    guard: Guard
    timeline: int
    by_me: bool = True


# --- PostgreSQL, quick --------------------------------------------------------------------------


@dataclass(frozen=True)
class Follow:
    """Point a running standby at another upstream (None: at nobody) and reload."""

    upstream: Source | None


@dataclass(frozen=True)
class RetryStream:
    """Let a standby look for its upstream now: a reload ends the startup process's pause."""


@dataclass(frozen=True)
class ApplyConfig:
    """Rewrite PostgreSQL's files from the configuration and reload; recovery settings stay."""


@dataclass(frozen=True)
class SetSyncNames:
    """synchronous_standby_names of the running server: written and read by it, in force a little later."""

    guard: Guard
    names: str


@dataclass(frozen=True)
class PublishSync:
    """Background: a CHECKPOINT, after which backends wait by these names (H17)."""

    guard: Guard
    names: str


@dataclass(frozen=True)
class SyncSlots:
    """Bring slots in line: drop, then create and move physical ones."""

    create: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    #: slot -> position
    advance: Mapping[str, Lsn] = field(default_factory=dict)
    #: Dropped slot -> why, for the log.
    why: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class TendLogicalSlots:
    """Create missing logical slots (on the primary) or move them forward (on a standby), in the background:
    both may have to wait for transactions, or read much WAL."""

    create: tuple[PermanentSlot, ...] = ()
    #: Of these, those whose consumers lose what they had not confirmed: there is no copy here.
    anew: tuple[str, ...] = ()
    #: slot -> its database and how far it may go
    advance: Mapping[str, tuple[str, Lsn]] = field(default_factory=dict)


@dataclass(frozen=True)
class CopySlots:
    """Copy logical slots from the leader: the standby is stopped, given their files, and started."""

    slots: tuple[PermanentSlot, ...]
    leader: str
    upstream: Source


@dataclass(frozen=True)
class CheckSlots:
    """Ask the leader which catalog rows it keeps, for these logical slots and for this standby."""

    names: tuple[str, ...]
    leader: str
    #: Physical slot on the leader through which it knows what this standby needs.
    feedback: str


@dataclass(frozen=True)
class OpenWatchdog:
    """Have the guardian open the watchdog device under this epoch, or set it to another timeout."""

    guard: Guard
    timeout_s: int


@dataclass(frozen=True)
class CloseWatchdog:
    """Switch the watchdog off: the configuration wants none any more."""


@dataclass(frozen=True)
class AskPeers:
    """GET <api_url> of these members in parallel; answers arrive as facts."""

    names: tuple[str, ...]


# --- PostgreSQL, jobs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Initdb:
    """Job: new data directory with its roles; nothing listens (contract 2.10, our order)."""


@dataclass(frozen=True)
class Clone:
    """Job: a copy of `source`, or of what a backup holds where nobody leads (None).

    `wipe` gives up what is there first, once `leader` has answered: the store may know only later that it is
    gone (rule 7). `asked`: by an operator; `from_leader`: by pg_basebackup only."""

    source: Source | None
    leader: Source | None
    wipe: bool = False
    asked: bool = False
    from_leader: bool = False


@dataclass(frozen=True)
class StartPrimary:
    """Job: start accepting writes under this epoch. Only the guardian does it (H8)."""

    guard: Guard


@dataclass(frozen=True)
class StartStandby:
    """Job: start in recovery, streaming from `upstream`, or from nobody."""

    upstream: Source | None


@dataclass(frozen=True)
class RunPrePromote:
    """Job: the user's program that may forbid the promotion under this epoch."""

    guard: Guard


@dataclass(frozen=True)
class Promote:
    """Job: promote from timeline `above` to `timeline` under this epoch, wait until out of recovery."""

    guard: Guard
    above: int
    timeline: int


@dataclass(frozen=True)
class Checkpoint:
    """CHECKPOINT under our leadership. After a promotion in the background, so that pg_rewind sees the new
    timeline in pg_control; before a switchover as a job, so that the stop is quick."""

    guard: Guard
    background: bool


@dataclass(frozen=True)
class StopInstance:
    """Job: stop PostgreSQL. `mode`: fast | immediate; fast becomes immediate when it takes too long.

    `senders_grace_s`: a server that has written its shutdown checkpoint waits no longer than this for
    standbys to receive it, seconds; None: as long as for the rest of the stop."""

    mode: str
    purpose: str = ""
    senders_grace_s: float | None = None
    #: The user's program `before_stop` comes first: only where nothing is lost by waiting for it.
    before_stop: bool = False


@dataclass(frozen=True)
class Restart:
    """Job: stop fast and start in the same role. `epoch` None: as a standby.

    request_id: who is told how it ended; None: nobody waits.
    timeout_s: a start that takes longer is answered "still starting", seconds; None: the usual time."""

    request_id: int | None
    epoch: int | None
    upstream: Source | None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Rewind:
    """Job: keep aside what would be discarded, then pg_rewind from `source` (rule 7)."""

    source: Source


@dataclass(frozen=True)
class KeepRejoin:
    """Write the state of the way back beside the data directory; `required`: what follows waits for it."""

    rejoin: Rejoin
    required: bool = False


@dataclass(frozen=True)
class TellDiscards:
    """CAS on `haagent_discards`: `discards` are all that stand there then, `news` those that were not."""

    discards: tuple[Discard, ...]
    version: int
    news: tuple[Discard, ...]


@dataclass(frozen=True)
class CheckDivergence:
    """Job: ask `source` for its timeline history and compare with ours."""

    source: Source


@dataclass(frozen=True)
class ArchiveLast:
    """Job: hand the segment with the shutdown checkpoint to archive_command, where archiving is on: who
    follows the archive has to see all that this primary wrote (contract 2.6)."""

    checkpoint: Lsn


@dataclass(frozen=True)
class CancelJob:
    """Cancel the running job."""

    reason: str


# --- answers and the end ------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerRequest:
    """Answer an operator's request to this member."""

    request_id: int
    status: int
    text: str


@dataclass(frozen=True)
class ScheduleRestart:
    """Remember this restart until its time."""

    restart: ScheduledRestart


@dataclass(frozen=True)
class DropScheduledRestart:
    """Forget the restart that was scheduled."""


@dataclass(frozen=True)
class SetFencing:
    """Pause disarms the guardian, resume arms it again (only after a linearizable read, H20)."""

    armed: bool


@dataclass(frozen=True)
class Exit:
    """End the agent with this code."""

    code: int
    reason: str


Action = (
    CreateInitialize
    | PutInitialize
    | DeleteInitialize
    | PutInitialConfig
    | TakeLeader
    | ReleaseLeader
    | ClearFailover
    | BeginScheduled
    | BeginSwitchover
    | CloseEpoch
    | MarkUnfenced
    | WriteClaim
    | WriteFailsafe
    | WriteStatus
    | WriteSync
    | DeleteSync
    | WriteHistory
    | Follow
    | RetryStream
    | ApplyConfig
    | SetSyncNames
    | PublishSync
    | SyncSlots
    | TendLogicalSlots
    | CopySlots
    | CheckSlots
    | OpenWatchdog
    | CloseWatchdog
    | AskPeers
    | Initdb
    | Clone
    | StartPrimary
    | StartStandby
    | RunPrePromote
    | Promote
    | Checkpoint
    | StopInstance
    | Restart
    | Rewind
    | KeepRejoin
    | TellDiscards
    | CheckDivergence
    | ArchiveLast
    | CancelJob
    | AnswerRequest
    | ScheduleRestart
    | DropScheduledRestart
    | SetFencing
    | Exit
)

#: Kinds that run in the background, one at a time.
JOBS = (
    Initdb,
    Clone,
    StartPrimary,
    StartStandby,
    RunPrePromote,
    Promote,
    Checkpoint,
    StopInstance,
    Restart,
    Rewind,
    CheckDivergence,
    ArchiveLast,
)
