"""What one agent needs of the world, as ports. `haagent.system` fills them with the real things.

The agent's code (loop, act, jobs, lease keeper, instance, peers) talks to PostgreSQL, guardian, peers and
REST only through these, so that tests/simulation can run it unmodified in its own world. Words and errors
are those of `postgres_ctl` and `guardian_client`: a port adds no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dcs.api import Dcs
from haagent import guardian_types as guardian
from haagent.config.types import AgentConfig
from haagent.core.failsafe import Reply
from haagent.runtime import Runtime
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.archiving import ArchiveSpec
from postgres_ctl.basebackup import CloneSpec
from postgres_ctl.bootstrap import InitdbSpec
from postgres_ctl.commits import Counted, Span
from postgres_ctl.config_files import RecoveryConfig, ServerConfig
from postgres_ctl.custom_bootstrap import CustomSpec
from postgres_ctl.facts import (
    ControlData,
    CopyProgress,
    DataDirState,
    InstanceSample,
    Lsn,
    ProbeAnswer,
    TimelineSwitch,
)
from postgres_ctl.logical_slots import LogicalSlot, SlotState
from postgres_ctl.methods import MethodSpec
from postgres_ctl.queries import SystemIdentity
from postgres_ctl.rewind import DiscardReport, KeepPolicy, RewindOutcome, RewindSpec
from postgres_ctl.slots import SlotPlan


class Session(Protocol):
    """One connection to a server, made when needed (`postgres_ctl.queries.Session`)."""

    def aim(self, target: ConnectionTarget) -> None:
        """Connect there from the next time on."""

    def sample(self, deadline_s: float) -> InstanceSample: ...

    def checkpoint(self, deadline_s: float) -> None: ...

    def close(self) -> None: ...


class ServerProbe(Protocol):
    """`postgres_ctl.probe.ServerProbe`."""

    def look(self, target: ConnectionTarget, deadline_s: float) -> ProbeAnswer | None: ...


class DiskProbe(Protocol):
    """`postgres_ctl.probe.DiskProbe`."""

    def look(self, data_dir: str, deadline_s: float) -> ProbeAnswer | None: ...


class Postgres(Protocol):
    """PostgreSQL's servers, files and tools. Methods raise PostgresError as their namesakes do."""

    # --- servers

    def session(self, target: ConnectionTarget, application_name: str) -> Session: ...

    def server_probe(self) -> ServerProbe: ...

    def disk_probe(self) -> DiskProbe: ...

    def apply_slots(self, session: Session, plan: SlotPlan, deadline_s: float) -> tuple[str, ...]: ...

    def tend_logical_slots(
        self, target: ConnectionTarget, slots: Sequence[LogicalSlot], deadline_s: float
    ) -> tuple[str, ...]: ...

    def read_slots(
        self, target: ConnectionTarget, names: Sequence[str], deadline_s: float
    ) -> tuple[SlotState, ...]: ...

    def identify_system(self, target: ConnectionTarget, deadline_s: float) -> SystemIdentity: ...

    def is_in_recovery(self, target: ConnectionTarget, deadline_s: float) -> bool: ...

    def checkpoint_timeline(self, target: ConnectionTarget, deadline_s: float) -> int: ...

    def timeline_history(
        self, target: ConnectionTarget, timeline: int, deadline_s: float
    ) -> tuple[TimelineSwitch, ...]: ...

    # --- processes

    def find_postmaster(self, data_dir: str) -> tuple[int, int] | None:
        """pid and start time (clock ticks) of the postmaster that runs in `data_dir`."""

    def running_port(self, data_dir: str) -> int | None:
        """TCP port of the postmaster that runs in `data_dir`; None when none does, or it cannot be told."""

    def reload(self, data_dir: str) -> None:
        """SIGHUP to the postmaster that runs in `data_dir`."""

    def leftovers(self, data_dir: str) -> bool:
        """True while processes, or shared memory in use, of a dead postmaster are there (H9)."""

    # --- the data directory

    def data_dir_state(self, data_dir: str) -> DataDirState: ...

    def has_signal_file(self, data_dir: str) -> bool:
        """standby.signal or recovery.signal."""

    def control_data(self, bin_dir: str, data_dir: str, program: str = "pg_controldata") -> ControlData: ...

    def major_version(self, data_dir: str) -> int | None: ...

    def history(self, data_dir: str, timeline: int) -> tuple[TimelineSwitch, ...] | None: ...

    def history_mtime(self, data_dir: str, timeline: int) -> str | None: ...

    def hold_timelines(self, data_dir: str, above: int, wanted: int) -> None: ...

    def drop_held_timelines(self, data_dir: str, above: int) -> None: ...

    def free_timelines(self, data_dir: str, control: ControlData) -> None: ...

    def has_wal_from(self, data_dir: str, lsn: Lsn, segment_bytes: int) -> bool: ...

    def place_slots(self, data_dir: str, slots: Sequence[SlotState]) -> None: ...

    def wipe(self, data_dir: str) -> None: ...

    def end_orphaned_tools(self, data_dir: str) -> None: ...

    def directory_id(self, data_dir: str) -> str:
        """Tells this directory from one that was put in its place; "" when there is none."""

    def is_unclaimed(self, data_dir: str) -> bool:
        """A new cluster that was made here, and that no agent has led yet."""

    def claim(self, data_dir: str) -> None:
        """From now on it is the cluster's: only for a holder of the leader key."""

    def condemn(self, data_dir: str) -> None:
        """What is there counts as incomplete from now on, though all of it stays."""

    # --- the agent's own files

    def make_state_dir(self, path: str) -> None: ...

    def read_text(self, path: str) -> str | None: ...

    def write_synced(self, path: str, text: str) -> None: ...

    def log_tail(self, path: str) -> str: ...

    # --- configuration

    def check_parameters(
        self,
        bin_dir: str,
        parameters: Mapping[str, str],
        program: str = "postgres",
        section: str = "parameters",
    ) -> tuple[dict[str, str], tuple[str, ...]]: ...

    def write_config(self, server: ServerConfig, recovery: RecoveryConfig | None) -> frozenset[str]: ...

    def read_setting(self, data_dir: str, config_file: str, name: str) -> str | None:
        """As the file has it; None when it says nothing."""

    def write_pgpass(self, path: str, targets: Iterable[ConnectionTarget]) -> None: ...

    def write_standby_signal(self, data_dir: str) -> None: ...

    def remove_standby_signal(self, data_dir: str) -> None: ...

    def save_backups(self, server: ServerConfig) -> None: ...

    def restore_backups(self, server: ServerConfig) -> tuple[str, ...]: ...

    def append_hba(self, data_dir: str, lines: Sequence[str]) -> None: ...

    def read_dynamic_cache(self, data_dir: str) -> dict[str, Any] | None: ...

    def write_dynamic_cache(self, data_dir: str, dynamic: Mapping[str, Any]) -> None: ...

    # --- tools

    def bootstrap(self, spec: InitdbSpec, deadline_s: float, cancel: Cancellation) -> tuple[str, ...]: ...

    def custom_bootstrap(
        self, spec: CustomSpec, deadline_s: float, cancel: Cancellation, recovering: Callable[[], object]
    ) -> None: ...

    def watch_copy(
        self, data_dir: str, source: ConnectionTarget | None, report: Callable[[CopyProgress], object]
    ) -> AbstractContextManager[None]:
        """`report` is told now and then how far a copy into `data_dir` is, while the block runs."""

    def clone(self, spec: CloneSpec, deadline_s: float, cancel: Cancellation) -> tuple[str, ...]: ...

    def has_rewind(self, bin_dir: str, program: str) -> bool: ...

    def run_method(self, spec: MethodSpec, deadline_s: float, cancel: Cancellation) -> None:
        """Make a replica by a program of the user's."""

    def rewind_interrupted(self, data_dir: str) -> bool: ...

    def forget_rewind(self, data_dir: str) -> None: ...

    def archive_last(
        self, spec: ArchiveSpec, checkpoint: Lsn, deadline_s: float, cancel: Cancellation
    ) -> str | None:
        """Name of the archived segment; None where nothing is archived."""

    def newest_wal_timeline(self, data_dir: str) -> int: ...

    def count_commits(
        self, bin_dir: str, data_dir: str, spans: Sequence[Span], deadline_s: float, cancel: Cancellation
    ) -> Counted: ...

    def archive_ready(
        self, data_dir: str, archive_command: str, deadline_s: float, cancel: Cancellation
    ) -> int: ...

    def keep_diverged_wal(
        self, data_dir: str, control: ControlData, switch_lsn: Lsn, policy: KeepPolicy
    ) -> DiscardReport: ...

    def rewind(self, spec: RewindSpec, deadline_s: float, cancel: Cancellation) -> RewindOutcome: ...


class GuardianLink(Protocol):
    """A connection to the guardian as its controller (`guardian_client.GuardianLink`)."""

    hello: guardian.GuardianState

    def arm(
        self,
        handle: guardian.Handle,
        fence_at: float,
        hard_at: float,
        deadline_s: float,
        spares_standby: bool = False,
    ) -> guardian.Armed | guardian.ArmRefused | guardian.NoAnswer: ...

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        writable: bool,
        epoch: int | None,
        deadline_s: float,
        log: str | None = None,
    ) -> guardian.Started | guardian.StartRefused | guardian.NoAnswer: ...

    def promote(self, epoch: int, deadline_s: float) -> guardian.Simple: ...

    def stop(self, mode: str, deadline_s: float) -> guardian.Simple: ...

    def close_epoch(self, epoch: int, deadline_s: float) -> guardian.Simple: ...

    def disarm(self, deadline_s: float) -> guardian.Simple: ...

    def watch(
        self, epoch: int, device: str, testing: bool, timeout_s: int, deadline_s: float
    ) -> guardian.Simple: ...

    def unwatch(self, device: str, testing: bool, deadline_s: float) -> guardian.Simple: ...

    def adopt(
        self, pid: int, start_ticks: int, deadline_s: float, writable: bool = True
    ) -> guardian.Simple: ...

    def exit(self, deadline_s: float, force: bool = False) -> guardian.Simple: ...

    def status(self, deadline_s: float) -> guardian.GuardianState | guardian.Refused | guardian.NoAnswer: ...

    def close(self) -> None: ...


class GuardianPort(Protocol):
    """Reaching the guardian of a data directory, and doing without it."""

    def connect(
        self, state_dir: str, data_dir: str, on_event: Callable[[guardian.GuardianEvent], None]
    ) -> GuardianLink:
        """Find it, or start one. Raises GuardianUnavailable; GuardianSilent when it does not answer."""

    def device_problem(self, device: str, testing: bool) -> str | None:
        """Why this user cannot use the watchdog device, as far as can be seen without opening it."""

    def fence_directly(self, postmaster_pid: int, data_dir: str) -> list[int]:
        """End PostgreSQL without the guardian; pids that still live (H10)."""


class PeerFault(Exception):
    """A peer did not answer, or not usefully; the text says how."""


class PeerPort(Protocol):
    """Asking other agents over REST."""

    def get(self, url: str, deadline_s: float) -> object:
        """The JSON document at `url`. Raises PeerFault."""

    def post(self, url: str, body: Mapping[str, Any], deadline_s: float) -> Reply:
        """What the member at `url` says to `body`, whatever its status. Raises PeerFault."""

    def is_alive(self, url: str) -> bool:
        """Does an agent answer there?"""


class JournalPort(Protocol):
    """Where decisions and events are recorded (`haagent.journal.Journal`)."""

    def decision(self, rule: str, reason: str, **fields: Any) -> object: ...

    def event(self, kind: str, reason: str, **fields: Any) -> object: ...

    def recent(self) -> Sequence[Any]: ...

    def close(self, deadline_s: float) -> bool: ...


class RestPort(Protocol):
    """The REST server of an agent."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def reload(self, config: Any) -> None: ...


class ProgramsPort(Protocol):
    """The user's programs (`haagent.programs`)."""

    def call(self, slot: str, argv: Sequence[str]) -> None:
        """Start a callback; the one that still runs in `slot` is killed. Never waits, never raises."""

    def flush(self, deadline_s: float) -> None:
        """Wait until all that was asked for is started."""

    def run(self, argv: Sequence[str], deadline_s: float, cancel: Cancellation, grace_s: float) -> str | None:
        """Run a hook to its end: None when it succeeded, else why not. One that is cancelled or too slow gets
        SIGTERM, and `grace_s` later SIGKILL with its children."""


class ServicePort(Protocol):
    """The service manager that started us (`haagent.service`). Never blocks, never raises."""

    def ready(self) -> None: ...

    def reloading(self) -> None: ...

    def stopping(self) -> None: ...


@dataclass(frozen=True)
class Ports:
    """All of it, for one agent."""

    runtime: Runtime
    dcs: Dcs
    #: A second connection: the lease keeper never waits behind the loop.
    keeper_dcs: Dcs
    postgres: Postgres
    guardian: GuardianPort
    peers: PeerPort
    journal: JournalPort
    #: Given the agent's operations and the `restapi` section.
    rest: Callable[[Any, Any], RestPort]
    service: ServicePort
    programs: ProgramsPort
    #: Told the configuration after each reload: logs and whatever else reads it outside the agent.
    reconfigured: Callable[[AgentConfig], object] = lambda config: None
