"""`haagent.ports.Postgres` for one agent process on one simulated host.

Theory. Every call that has an effect passes two boundaries of the agent's process, before and after: where
faults strike. `knobs` of the host make a kind of call slow or failing; a server that hangs, or an address
that cannot be reached, costs the whole deadline. Reads of local files take no time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from haagent.ports import Session
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.archiving import ArchiveSpec
from postgres_ctl.basebackup import CloneSpec
from postgres_ctl.bootstrap import InitdbSpec
from postgres_ctl.commits import Counted, Span
from postgres_ctl.config_files import RecoveryConfig, ServerConfig
from postgres_ctl.custom_bootstrap import CustomSpec
from postgres_ctl.errors import ConfigFileError, DataDirError, PostgresUnavailable, QueryFailed, ToolFailed
from postgres_ctl.facts import ControlData, CopyProgress, DataDirState, InstanceSample, Lsn, TimelineSwitch
from postgres_ctl.logical_slots import LogicalSlot
from postgres_ctl.logical_slots import SlotState as PrimarysSlot
from postgres_ctl.methods import MethodSpec
from postgres_ctl.queries import CONNECT_TIMEOUT_S, SystemIdentity
from postgres_ctl.rewind import DiscardReport, KeepPolicy, RewindOutcome, RewindSpec
from postgres_ctl.slots import SlotPlan
from tests.simulation import pg_tools
from tests.simulation.engine import WALL_S, Process, Task
from tests.simulation.postgres import Connection, Server
from tests.simulation.probes import SimDiskProbe, SimServerProbe
from tests.simulation.wal import DATA, RECORD_BYTES, XMIN, DataDir, SlotState, count_until, end_of, lsn_at

if TYPE_CHECKING:
    from tests.simulation.host import SimHost

_STATES = {
    "empty": DataDirState.MISSING_OR_EMPTY,
    "incomplete": DataDirState.MISSING_OR_EMPTY,
    "valid": DataDirState.VALID,
    "foreign": DataDirState.FOREIGN,
}
MAJOR_VERSION = 15
T = TypeVar("T")


class SimSession:
    """One connection of the agent, made when needed."""

    def __init__(self, port: SimPostgres, target: ConnectionTarget, name: str) -> None:
        self._port, self._name = port, name
        self.aim(target)
        self._connection: Connection | None = None
        #: The task that waits for a long command.
        self._waiting: tuple[Task, int] | None = None

    def aim(self, target: ConnectionTarget) -> None:
        address = self._address = (target.host, target.port)
        self._local = target.is_socket or target.host == "localhost" or address == self._port.host.address

    def server(self, kind: str, deadline_s: float) -> Server:
        """Before every command: the server, on a connection that lives. Raises PostgresUnavailable."""
        port = self._port
        port.before(kind, deadline_s)
        host = port.host
        connection = self._connection
        found: Server | None
        if not self._local:
            found = port.reach(self._address, deadline_s)
        else:
            found = connection.server if connection is not None and connection.alive else host.server
        if found is None:
            raise PostgresUnavailable("connection refused")
        if connection is None or not connection.alive or connection.server is not found:
            if found.door() == "silent":
                port.silence(min(deadline_s, CONNECT_TIMEOUT_S))
            connection = found.connect(self._name)
            if connection is None:
                raise PostgresUnavailable(f"the database system is {found.phase}")
            self._connection = connection
            port.sessions[self] = None
        elif found.held_up or found.hung:
            self.close()
            port.silence(deadline_s)
        return found

    def sample(self, deadline_s: float) -> InstanceSample:
        sample = self.server("pg.sample", deadline_s).sample(self._port.host.clock.now())
        self._port.process.boundary("pg.sample", "after")
        return sample

    def checkpoint(self, deadline_s: float) -> None:
        server = self.server("pg.checkpoint", deadline_s)
        engine = self._port.process.engine
        task = engine.running("CHECKPOINT")
        token = task.arm()
        self._waiting = (task, token)
        connection = self._connection
        assert connection is not None
        connection.on_close = partial(task.resume, token, "lost")
        server.checkpoint(partial(task.resume, token, "done"))
        answer = engine.suspend("CHECKPOINT", engine.now + deadline_s)
        self._waiting = None
        connection.on_close = None
        self._port.process.boundary("pg.checkpoint", "after")
        if answer != "done":
            self.close()
            raise PostgresUnavailable("connection lost" if answer else "no answer in time")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._port.sessions.pop(self, None)
        if connection is not None and connection.alive:
            connection.close()
        if self._waiting is not None:
            task, token = self._waiting
            task.resume(token, "lost")


def _as_read(name: str, slot: SlotState) -> PrimarysSlot:
    at = lsn_at(slot.restart) if slot.restart is not None else None
    state = f"{slot.restart} {slot.made_at}".encode() if slot.plugin is not None else None
    return PrimarysSlot(name, slot.database, slot.plugin, at, at, XMIN, False, state)


class SimPostgres:
    """Deadlines are seconds; faults are `postgres_ctl`'s."""

    def __init__(self, host: SimHost, process: Process, endpoint: str) -> None:
        self.host, self.process, self.endpoint = host, process, endpoint
        #: Sessions with a connection: closed when the process dies.
        self.sessions: dict[SimSession, None] = {}
        self._checked: tuple[Mapping[str, str] | None, dict[str, str]] = (None, {})

    # --- what every call passes -------------------------------------------------------------------

    def before(self, kind: str, deadline_s: float | None = None) -> None:
        """The boundary before an effect, and the knob of this kind. Raises PostgresError."""
        self.process.boundary(kind, "before")
        if kind not in self.host.knobs:
            return
        delay_s, fail = self.host.trouble(kind)
        if deadline_s is not None and delay_s >= deadline_s:
            self.silence(deadline_s)
        self.process.sleep(delay_s)
        if fail and deadline_s is not None:
            raise PostgresUnavailable(f"{kind}: server closed the connection unexpectedly")
        if fail:
            raise DataDirError(f"{kind}: input/output error")

    def silence(self, deadline_s: float) -> None:
        """Nobody answers. Raises PostgresUnavailable."""
        self.process.sleep(max(0.0, deadline_s))
        raise PostgresUnavailable("no answer in time")

    def reach(self, address: tuple[str, int], deadline_s: float) -> Server:
        """There and back, to a server whose door is open. Raises PostgresUnavailable."""
        land, network = self.host.land, self.host.land.network
        host = land.host_at(address)
        if host is None:
            raise PostgresUnavailable(f"no route to {address[0]}")
        if host is not self.host:
            there = network.latency(self.endpoint, host.endpoint)
            back = network.latency(host.endpoint, self.endpoint)
            if there is None or back is None or there + back >= deadline_s or not host.powered:
                self.silence(deadline_s)
                raise AssertionError("unreachable")
            self.process.sleep(there + back)
        server = host.server
        if server is None or server.door() == "refused":
            raise PostgresUnavailable("connection refused")
        if server.door() == "silent":
            self.silence(deadline_s)
        return server

    def _dd(self, data_dir: str) -> DataDir:
        assert data_dir == self.host.dd.path, data_dir
        return self.host.dd

    def died(self) -> None:
        """The agent's process is gone: so are its connections."""
        for session in list(self.sessions):
            session.close()

    # --- servers ----------------------------------------------------------------------------------

    def session(self, target: ConnectionTarget, application_name: str) -> SimSession:
        return SimSession(self, target, application_name)

    def server_probe(self) -> SimServerProbe:
        return SimServerProbe(self.host, self.process)

    def disk_probe(self) -> SimDiskProbe:
        return SimDiskProbe(self.host, self.process)

    def apply_slots(self, session: Session, plan: SlotPlan, deadline_s: float) -> tuple[str, ...]:
        assert isinstance(session, SimSession)
        server = session.server("pg.slots", deadline_s)
        slots, failures = server.dd.slots, []
        active = [link.slot for link in server.walsenders]
        for name in plan.drop:
            if name in active:
                failures.append(f"drop slot {name}: replication slot is active")
            else:
                slots.pop(name, None)
        for name in plan.create:
            slots.setdefault(name, SlotState(server.dd.durable, made_at=server.dd.durable))
        for name, lsn in plan.advance:
            slot, count = slots.get(name), min(count_until(lsn.value), server.replay)
            if slot is not None and name not in active and (slot.restart or 0) < count:
                slot.restart = count
        server.dirty()
        self.process.boundary("pg.slots", "after")
        return tuple(failures)

    def tend_logical_slots(
        self, target: ConnectionTarget, slots: Sequence[LogicalSlot], deadline_s: float
    ) -> tuple[str, ...]:
        self.before("pg.logical-slots", deadline_s)
        server = self.reach((target.host, target.port), deadline_s)
        mine = server.dd.slots
        for slot in slots:
            known = mine.get(slot.name)
            if slot.to is None and known is None and not server.in_recovery:
                end = server.dd.durable
                mine[slot.name] = SlotState(end, slot.database, slot.plugin, made_at=end)
            elif slot.to is not None and known is not None and server.in_recovery:
                known.restart = max(known.restart or 0, min(count_until(slot.to.value), server.replay))
        server.dirty()
        self.process.boundary("pg.logical-slots", "after")
        return ()

    def read_slots(
        self, target: ConnectionTarget, names: Sequence[str], deadline_s: float
    ) -> tuple[PrimarysSlot, ...]:
        self.before("pg.read-slots", deadline_s)
        server = self.reach((target.host, target.port), deadline_s)
        found = {} if server.in_recovery else server.dd.slots
        rows = tuple(_as_read(name, found[name]) for name in names if name in found)
        self.process.boundary("pg.read-slots", "after")
        return rows

    def identify_system(self, target: ConnectionTarget, deadline_s: float) -> SystemIdentity:
        self.before("pg.identify", deadline_s)
        server = self.reach((target.host, target.port), deadline_s)
        self.process.boundary("pg.identify", "after")
        return SystemIdentity(server.dd.system_id, server.timeline, Lsn(end_of(server.dd.durable)))

    def is_in_recovery(self, target: ConnectionTarget, deadline_s: float) -> bool:
        self.before("pg.identify", deadline_s)
        server = self.reach((target.host, target.port), deadline_s)
        self.process.boundary("pg.identify", "after")
        return server.in_recovery

    def checkpoint_timeline(self, target: ConnectionTarget, deadline_s: float) -> int:
        self.before("pg.identify", deadline_s)
        server = self.reach((target.host, target.port), deadline_s)
        self.process.boundary("pg.identify", "after")
        return server.dd.control.timeline

    def archive_last(
        self, spec: ArchiveSpec, checkpoint: Lsn, deadline_s: float, cancel: Cancellation
    ) -> str | None:
        return None  # nothing is archived here

    def timeline_history(
        self, target: ConnectionTarget, timeline: int, deadline_s: float
    ) -> tuple[TimelineSwitch, ...]:
        if timeline <= 1:
            return ()
        self.before("pg.history", deadline_s)
        history = self.reach((target.host, target.port), deadline_s).dd.history(timeline)
        self.process.boundary("pg.history", "after")
        if history is None:
            raise QueryFailed(f"could not open file of timeline {timeline}", "58P01")
        return history

    # --- processes --------------------------------------------------------------------------------

    def find_postmaster(self, data_dir: str) -> tuple[int, int] | None:
        server = self.host.server
        if server is None or not server.proc.alive:
            return None
        return server.proc.pid, server.proc.start_ticks

    def running_port(self, data_dir: str) -> int | None:
        return None  # ports never change here

    def reload(self, data_dir: str) -> None:
        self.before("pg.reload")
        if not self.host.signal_postmaster(signal.SIGHUP):
            raise PostgresUnavailable("no postmaster to reload")
        self.process.boundary("pg.reload", "after")

    def leftovers(self, data_dir: str) -> bool:
        return bool(self.host.processes_in(data_dir))

    # --- the data directory -----------------------------------------------------------------------

    def data_dir_state(self, data_dir: str) -> DataDirState:
        return _STATES[self._dd(data_dir).state]

    def has_signal_file(self, data_dir: str) -> bool:
        return self._dd(data_dir).standby_signal

    def control_data(self, bin_dir: str, data_dir: str, program: str = "pg_controldata") -> ControlData:
        self.before("pg.control")
        dd = self._dd(data_dir)
        if dd.state != "valid":
            raise ToolFailed("pg_controldata failed with exit code 1: could not open pg_control")
        return dd.control_data()

    def major_version(self, data_dir: str) -> int | None:
        return MAJOR_VERSION if self._dd(data_dir).state == "valid" else None

    def history(self, data_dir: str, timeline: int) -> tuple[TimelineSwitch, ...] | None:
        return self._dd(data_dir).history(timeline)

    def history_mtime(self, data_dir: str, timeline: int) -> str | None:
        written = self._dd(data_dir).history_times.get(timeline)
        return None if written is None else datetime.fromtimestamp(WALL_S + written, UTC).isoformat()

    def hold_timelines(self, data_dir: str, above: int, wanted: int) -> None:
        self.before("pg.hold-timelines")
        self._dd(data_dir).hold_numbers(above, wanted)
        self.process.boundary("pg.hold-timelines", "after")

    def drop_held_timelines(self, data_dir: str, above: int) -> None:
        dd = self._dd(data_dir)
        dd.histories = {n: switches for n, switches in dd.histories.items() if switches or n <= above}

    def free_timelines(self, data_dir: str, control: ControlData) -> None:
        self._dd(data_dir).free_numbers()

    def has_wal_from(self, data_dir: str, lsn: Lsn, segment_bytes: int) -> bool:
        return True  # WAL is never removed here

    def place_slots(self, data_dir: str, slots: Sequence[PrimarysSlot]) -> None:
        for slot in slots:
            self.before("pg.place-slot")
            at, made_at = map(int, (slot.state or b"0 0").split())
            copy = SlotState(at, slot.database, slot.plugin, made_at=made_at)
            self._dd(data_dir).slots[slot.name] = copy
        self.process.boundary("pg.place-slot", "after")

    def wipe(self, data_dir: str) -> None:
        self.before("pg.wipe")
        dd = self._dd(data_dir)
        pg_tools.require_unused(self.host, dd)
        gone = tuple(dd.records) if dd.state == "valid" else ()
        dd.wipe()
        self.host.discard(gone, "wiped")
        self.process.boundary("pg.wipe", "after")

    def is_unclaimed(self, data_dir: str) -> bool:
        return self._dd(data_dir).unclaimed

    def claim(self, data_dir: str) -> None:
        self._dd(data_dir).unclaimed = False

    def condemn(self, data_dir: str) -> None:
        self.before("pg.wipe")
        dd = self._dd(data_dir)
        pg_tools.require_unused(self.host, dd)
        gone = tuple(dd.records) if dd.state == "valid" else ()
        dd.state = "incomplete"
        self.host.discard(gone, "wiped")
        self.process.boundary("pg.wipe", "after")

    # --- the agent's own files --------------------------------------------------------------------

    def make_state_dir(self, path: str) -> None:
        pass

    def read_text(self, path: str) -> str | None:
        return self.host.files.get(path)

    def write_synced(self, path: str, text: str) -> None:
        self.before("pg.state-file")
        self.host.files[path] = text
        self.process.boundary("pg.state-file", "after")

    def log_tail(self, path: str) -> str:
        return self.host.log_lines[-1] if self.host.log_lines else ""

    # --- configuration ----------------------------------------------------------------------------

    def check_parameters(
        self,
        bin_dir: str,
        parameters: Mapping[str, str],
        program: str = "postgres",
        section: str = "parameters",
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        if self._checked[0] is not parameters:
            self._checked = (parameters, dict(parameters))
        return self._checked[1], ()

    def write_config(self, server: ServerConfig, recovery: RecoveryConfig | None) -> frozenset[str]:
        self.before("pg.write-config")
        dd = self._dd(server.data_dir)
        if dd.state != "valid":
            raise ConfigFileError(f"cannot write {server.config_file}: No such file or directory")
        changed = set()
        old = dd.server
        if recovery != dd.recovery or old is None or (old is not server and old.gucs() != server.gucs()):
            changed.add("postgresql.conf")
        if old is None or old.hba != server.hba:
            changed.add("pg_hba.conf")
        if changed:
            dd.server, dd.recovery = server, recovery
        self.process.boundary("pg.write-config", "after")
        return frozenset(changed)

    def read_setting(self, data_dir: str, config_file: str, name: str) -> str | None:
        server = self._dd(data_dir).server
        return server.gucs().get(name) if server is not None else None

    def write_pgpass(self, path: str, targets: Iterable[ConnectionTarget]) -> None:
        pass

    def write_standby_signal(self, data_dir: str) -> None:
        self._set_signal(data_dir, True)

    def remove_standby_signal(self, data_dir: str) -> None:
        self._set_signal(data_dir, False)

    def _set_signal(self, data_dir: str, there: bool) -> None:
        self.before("pg.standby-signal")
        self._dd(data_dir).standby_signal = there
        self.process.boundary("pg.standby-signal", "after")

    def restore_backups(self, server: ServerConfig) -> tuple[str, ...]:
        return ()

    def save_backups(self, server: ServerConfig) -> None:
        pass

    def append_hba(self, data_dir: str, lines: Sequence[str]) -> None:
        self._dd(data_dir).hba.extend(lines)

    def read_dynamic_cache(self, data_dir: str) -> dict[str, Any] | None:
        return self._dd(data_dir).dynamic

    def write_dynamic_cache(self, data_dir: str, dynamic: Mapping[str, Any]) -> None:
        self.before("pg.dynamic-cache")
        self._dd(data_dir).dynamic = dict(dynamic)

    # --- tools ------------------------------------------------------------------------------------

    def bootstrap(self, spec: InitdbSpec, deadline_s: float, cancel: Cancellation) -> tuple[str, ...]:
        self._tool("pg.bootstrap", pg_tools.bootstrap, spec.data_dir, cancel)
        return ()

    def custom_bootstrap(
        self, spec: CustomSpec, deadline_s: float, cancel: Cancellation, recovering: Callable[[], object]
    ) -> None:
        self._tool("pg.bootstrap", pg_tools.custom_bootstrap, spec.data_dir, cancel)

    def watch_copy(
        self, data_dir: str, source: ConnectionTarget | None, report: Callable[[CopyProgress], object]
    ) -> AbstractContextManager[None]:
        return nullcontext(None)

    def clone(self, spec: CloneSpec, deadline_s: float, cancel: Cancellation) -> tuple[str, ...]:
        self._tool("pg.clone", pg_tools.clone, spec.data_dir, cancel, self._reacher(spec.source))
        return ()

    def has_rewind(self, bin_dir: str, program: str) -> bool:
        return True

    def run_method(self, spec: MethodSpec, deadline_s: float, cancel: Cancellation) -> None:
        reach = self._reacher(spec.source) if spec.source is not None else None
        self._tool("pg.method", pg_tools.run_method, spec.data_dir, cancel, reach, spec.keep_data)

    def rewind_interrupted(self, data_dir: str) -> bool:
        return self._dd(data_dir).rewinding

    def forget_rewind(self, data_dir: str) -> None:
        self._dd(data_dir).rewinding = False

    def newest_wal_timeline(self, data_dir: str) -> int:
        return self._dd(data_dir).timeline

    def end_orphaned_tools(self, data_dir: str) -> None:
        """There are none: here, a tool ends with its agent."""

    def directory_id(self, data_dir: str) -> str:
        return "1:1"

    def count_commits(
        self, bin_dir: str, data_dir: str, spans: Sequence[Span], deadline_s: float, cancel: Cancellation
    ) -> Counted:
        dd = self._dd(data_dir)
        beyond = dd.records[count_until(spans[0].start.value) :] if spans else []
        return Counted(sum(1 for record in beyond if record.kind == DATA), Lsn(dd.end))

    def archive_ready(
        self, data_dir: str, archive_command: str, deadline_s: float, cancel: Cancellation
    ) -> int:
        return 0

    def keep_diverged_wal(
        self, data_dir: str, control: ControlData, switch_lsn: Lsn, policy: KeepPolicy
    ) -> DiscardReport:
        self.before("pg.keep-wal")
        dd = self._dd(data_dir)
        end = max(control.checkpoint_lsn, control.min_recovery_end)
        kept = tuple(dd.records[count_until(switch_lsn.value) :]) if end > switch_lsn else ()
        if kept:
            dd.kept.append(kept)
        self.process.boundary("pg.keep-wal", "after")
        size = len(kept) * RECORD_BYTES
        return DiscardReport(switch_lsn, end, f"{data_dir}.diverged", 1 if kept else 0, size, 0)

    def rewind(self, spec: RewindSpec, deadline_s: float, cancel: Cancellation) -> RewindOutcome:
        return self._tool("pg.rewind", pg_tools.rewind, spec.data_dir, cancel, self._reacher(spec.source))

    def _tool(
        self, kind: str, tool: Callable[..., T], data_dir: str, cancel: Cancellation, *more: object
    ) -> T:
        """A piece of work begins at each boundary "during": the disk shows that the whole has begun."""

        def sleep(delay_s: float) -> None:
            self.process.boundary(kind, "during")
            self.process.sleep(delay_s)

        self.process.boundary(kind, "before")
        outcome: T = tool(self.host, self._dd(data_dir), sleep, cancel, *more)
        self.process.boundary(kind, "after")
        return outcome

    def _reacher(self, source: ConnectionTarget) -> Callable[[], Server]:
        return partial(self.reach, (source.host, source.port), CONNECT_TIMEOUT_S)
