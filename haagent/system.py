"""The real things behind `haagent.ports`: this host's threads, PostgreSQL, guardian, network. No logic."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import urllib3

from dcs.factory import make_dcs
from haagent import guardian_client, guardian_device, guardian_types, log
from haagent.api import RestServer
from haagent.config.types import AgentConfig
from haagent.core.failsafe import Reply, reply_of
from haagent.journal import Journal
from haagent.ports import PeerFault, Ports, Session
from haagent.programs import SystemPrograms
from haagent.runtime import SystemRuntime
from haagent.service import SystemdService
from haagent.useragent import user_agent
from postgres_ctl import (
    archiving,
    basebackup,
    bootstrap,
    commits,
    config_files,
    controldata,
    copy_progress,
    custom_bootstrap,
    datadir,
    gucs,
    logical_slots,
    methods,
    probe,
    process,
    queries,
    ready_wal,
    rewind,
    timelines,
)
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.errors import DataDirError, PostgresError
from postgres_ctl.facts import ControlData, CopyProgress, DataDirState, Lsn, TimelineSwitch
from postgres_ctl.slots import SlotPlan, apply_plan

#: An answer of a peer is never larger, bytes.
_BODY_MAX = 1 << 20
#: Nor is its answer to a question that is answered by a text.
_TEXT_MAX = 1 << 12
#: Is somebody there? Longer silence means no, seconds (contract 7.1).
_ALIVE_S = 3.0


def system_ports(config: AgentConfig) -> Ports:
    """Everything an agent needs on this machine. Raises DcsConfigError, OSError."""
    dcs, peers = config.dcs, HttpPeers(config)
    return Ports(
        runtime=SystemRuntime(),
        dcs=make_dcs(dcs.backend, dcs.section, config.namespace, config.scope, config.name),
        keeper_dcs=make_dcs(dcs.backend, dcs.section, config.namespace, config.scope, config.name),
        postgres=SystemPostgres(),
        guardian=SystemGuardian(),
        peers=peers,
        journal=Journal(config.postgresql.state_dir, secrets=config.secrets),
        rest=RestServer,
        service=SystemdService(),
        programs=SystemPrograms(),
        reconfigured=partial(_reconfigure, peers),
    )


def _reconfigure(peers: HttpPeers, config: AgentConfig) -> None:
    """After a reload: what reads the configuration outside the agent's loop."""
    log.configure(config.log, config.secrets)
    peers.use(config)


class SystemPostgres:
    """`postgres_ctl` by its own words."""

    # --- servers

    def session(self, target: ConnectionTarget, application_name: str) -> queries.Session:
        return queries.Session(target, application_name)

    def server_probe(self) -> probe.ServerProbe:
        return probe.ServerProbe()

    def disk_probe(self) -> probe.DiskProbe:
        return probe.DiskProbe()

    def apply_slots(self, session: Session, plan: SlotPlan, deadline_s: float) -> tuple[str, ...]:
        assert isinstance(session, queries.Session)
        return apply_plan(session, plan, deadline_s)

    def tend_logical_slots(
        self, target: ConnectionTarget, slots: Sequence[logical_slots.LogicalSlot], deadline_s: float
    ) -> tuple[str, ...]:
        return logical_slots.tend(target, slots, deadline_s)

    def read_slots(
        self, target: ConnectionTarget, names: Sequence[str], deadline_s: float
    ) -> tuple[logical_slots.SlotState, ...]:
        return logical_slots.read(target, names, deadline_s)

    def identify_system(self, target: ConnectionTarget, deadline_s: float) -> queries.SystemIdentity:
        return queries.identify_system(target, deadline_s)

    def is_in_recovery(self, target: ConnectionTarget, deadline_s: float) -> bool:
        return queries.is_in_recovery(target, deadline_s)

    def checkpoint_timeline(self, target: ConnectionTarget, deadline_s: float) -> int:
        return queries.checkpoint_timeline(target, deadline_s)

    def timeline_history(
        self, target: ConnectionTarget, timeline: int, deadline_s: float
    ) -> tuple[TimelineSwitch, ...]:
        return queries.timeline_history(target, timeline, deadline_s)

    # --- processes

    def find_postmaster(self, data_dir: str) -> tuple[int, int] | None:
        found = process.find_postmaster(data_dir)
        ticks = process.start_ticks(found.pid) if found is not None else None
        return None if found is None or ticks is None else (found.pid, ticks)

    def running_port(self, data_dir: str) -> int | None:
        try:
            found = process.find_postmaster(data_dir)
        except PostgresError:
            return None
        return found.port if found is not None else None

    def reload(self, data_dir: str) -> None:
        process.reload(data_dir)

    def leftovers(self, data_dir: str) -> bool:
        return bool(process.leftovers(data_dir))

    # --- the data directory

    def data_dir_state(self, data_dir: str) -> DataDirState:
        return datadir.data_dir_state(data_dir)

    def has_signal_file(self, data_dir: str) -> bool:
        return any(os.path.exists(f"{data_dir}/{name}") for name in ("standby.signal", "recovery.signal"))

    def control_data(self, bin_dir: str, data_dir: str, program: str = "pg_controldata") -> ControlData:
        return controldata.read_controldata(bin_dir, data_dir, program=program)

    def major_version(self, data_dir: str) -> int | None:
        return controldata.major_version(data_dir)

    def history(self, data_dir: str, timeline: int) -> tuple[TimelineSwitch, ...] | None:
        return controldata.read_history(data_dir, timeline)

    def history_mtime(self, data_dir: str, timeline: int) -> str | None:
        return controldata.history_mtime(data_dir, timeline)

    def hold_timelines(self, data_dir: str, above: int, wanted: int) -> None:
        timelines.hold_numbers(data_dir, above, wanted)

    def drop_held_timelines(self, data_dir: str, above: int) -> None:
        timelines.drop_held(data_dir, above)

    def free_timelines(self, data_dir: str, control: ControlData) -> None:
        timelines.free_numbers(data_dir, control)

    def has_wal_from(self, data_dir: str, lsn: Lsn, segment_bytes: int) -> bool:
        return logical_slots.has_wal_from(data_dir, lsn, segment_bytes)

    def place_slots(self, data_dir: str, slots: Sequence[logical_slots.SlotState]) -> None:
        logical_slots.place(data_dir, slots)

    def wipe(self, data_dir: str) -> None:
        datadir.wipe(data_dir)

    def end_orphaned_tools(self, data_dir: str) -> None:
        datadir.end_orphaned_tools(data_dir)

    def directory_id(self, data_dir: str) -> str:
        return datadir.directory_id(data_dir)

    def is_unclaimed(self, data_dir: str) -> bool:
        return datadir.is_unclaimed(data_dir)

    def claim(self, data_dir: str) -> None:
        datadir.claim(data_dir)

    def condemn(self, data_dir: str) -> None:
        datadir.condemn(data_dir)

    # --- the agent's own files

    def make_state_dir(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def read_text(self, path: str) -> str | None:
        return config_files.read_text(path)

    def write_synced(self, path: str, text: str) -> None:
        try:
            datadir.write_synced(path, text)
        except OSError as e:
            raise DataDirError(f"cannot write {path}: {e.strerror}") from None

    def log_tail(self, path: str) -> str:
        """Last FATAL or PANIC line at the end of a log, else its last line; "" when there is none."""
        try:
            with open(path, "rb") as f:
                f.seek(0, os.SEEK_END)
                f.seek(max(0, f.tell() - 4096))
                lines = f.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((x for x in reversed(lines) if "FATAL" in x or "PANIC" in x), lines[-1] if lines else "")

    # --- configuration

    def check_parameters(
        self,
        bin_dir: str,
        parameters: Mapping[str, str],
        program: str = "postgres",
        section: str = "parameters",
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        known = gucs.describe_gucs(bin_dir, program)
        exists = functools.partial(gucs.guc_exists, bin_dir, program=program)
        return gucs.check_parameters(parameters, known, exists, section)

    def write_config(
        self, server: config_files.ServerConfig, recovery: config_files.RecoveryConfig | None
    ) -> frozenset[str]:
        return config_files.write_config(server, recovery)

    def read_setting(self, data_dir: str, config_file: str, name: str) -> str | None:
        return config_files.read_setting(config_file, name)

    def write_pgpass(self, path: str, targets: Iterable[ConnectionTarget]) -> None:
        config_files.write_pgpass(path, targets)

    def write_standby_signal(self, data_dir: str) -> None:
        config_files.write_standby_signal(data_dir)

    def remove_standby_signal(self, data_dir: str) -> None:
        config_files.remove_standby_signal(data_dir)

    def save_backups(self, server: config_files.ServerConfig) -> None:
        config_files.save_backups(server)

    def restore_backups(self, server: config_files.ServerConfig) -> tuple[str, ...]:
        return config_files.restore_backups(server)

    def append_hba(self, data_dir: str, lines: Sequence[str]) -> None:
        path = f"{data_dir}/pg_hba.conf"
        old = config_files.read_text(path) or ""
        config_files.write_if_changed(path, old + "".join(f"{line}\n" for line in lines))

    def read_dynamic_cache(self, data_dir: str) -> dict[str, Any] | None:
        return config_files.read_dynamic_cache(data_dir)

    def write_dynamic_cache(self, data_dir: str, dynamic: Mapping[str, Any]) -> None:
        config_files.write_dynamic_cache(data_dir, dynamic)

    # --- tools

    def bootstrap(
        self, spec: bootstrap.InitdbSpec, deadline_s: float, cancel: Cancellation
    ) -> tuple[str, ...]:
        return bootstrap.bootstrap(spec, deadline_s, cancel)

    def custom_bootstrap(
        self,
        spec: custom_bootstrap.CustomSpec,
        deadline_s: float,
        cancel: Cancellation,
        recovering: Callable[[], object],
    ) -> None:
        custom_bootstrap.custom_bootstrap(spec, deadline_s, cancel, recovering)

    def watch_copy(
        self, data_dir: str, source: ConnectionTarget | None, report: Callable[[CopyProgress], object]
    ) -> AbstractContextManager[None]:
        return copy_progress.watched(data_dir, source, report)

    def clone(self, spec: basebackup.CloneSpec, deadline_s: float, cancel: Cancellation) -> tuple[str, ...]:
        return basebackup.clone(spec, deadline_s, cancel)

    def has_rewind(self, bin_dir: str, program: str) -> bool:
        return rewind.has_program(bin_dir, program)

    def run_method(self, spec: methods.MethodSpec, deadline_s: float, cancel: Cancellation) -> None:
        methods.run_method(spec, deadline_s, cancel)

    def rewind_interrupted(self, data_dir: str) -> bool:
        return rewind.interrupted(data_dir)

    def forget_rewind(self, data_dir: str) -> None:
        rewind.forget_interruption(data_dir)

    def archive_last(
        self, spec: archiving.ArchiveSpec, checkpoint: Lsn, deadline_s: float, cancel: Cancellation
    ) -> str | None:
        return archiving.archive_last(spec, checkpoint, deadline_s, cancel)

    def newest_wal_timeline(self, data_dir: str) -> int:
        return commits.newest_wal_timeline(data_dir)

    def count_commits(
        self,
        bin_dir: str,
        data_dir: str,
        spans: Sequence[commits.Span],
        deadline_s: float,
        cancel: Cancellation,
    ) -> commits.Counted:
        return commits.count_commits(bin_dir, data_dir, spans, deadline_s, cancel)

    def archive_ready(
        self, data_dir: str, archive_command: str, deadline_s: float, cancel: Cancellation
    ) -> int:
        return ready_wal.archive_ready(data_dir, archive_command, deadline_s, cancel)

    def keep_diverged_wal(
        self, data_dir: str, control: ControlData, switch_lsn: Lsn, policy: rewind.KeepPolicy
    ) -> rewind.DiscardReport:
        keep = rewind.diverged_dir(data_dir, control.timeline, switch_lsn)
        return rewind.keep_diverged_wal(data_dir, control, switch_lsn, keep, policy)

    def rewind(
        self, spec: rewind.RewindSpec, deadline_s: float, cancel: Cancellation
    ) -> rewind.RewindOutcome:
        return rewind.rewind(spec, deadline_s, cancel)


class SystemGuardian:
    """The guardian process of a data directory."""

    def connect(
        self,
        state_dir: str,
        data_dir: str,
        on_event: Callable[[guardian_types.GuardianEvent], None],
    ) -> guardian_client.GuardianLink:
        return guardian_client.GuardianLink.connect(state_dir, data_dir, on_event)

    def device_problem(self, device: str, testing: bool) -> str | None:
        return guardian_device.problem(device, testing)

    def fence_directly(self, postmaster_pid: int, data_dir: str) -> list[int]:
        return guardian_client.fence_directly(postmaster_pid, data_dir)


class HttpPeers:
    """Other agents over HTTP."""

    def __init__(self, config: AgentConfig) -> None:
        self.use(config)

    def use(self, config: AgentConfig) -> None:
        """Ask with these certificates from now on."""
        self._http = _http(config)
        #: Calls that change something need it (contract 3.2).
        ctl, self._login = config.ctl, {"User-Agent": user_agent(), "Content-Type": "application/json"}
        if ctl.username is not None:
            self._login |= urllib3.make_headers(basic_auth=f"{ctl.username}:{ctl.password or ''}")

    def get(self, url: str, deadline_s: float) -> object:
        """The JSON document at `url`. Raises PeerFault."""
        try:
            answer = self._http.request(
                "GET", url, timeout=urllib3.Timeout(total=deadline_s), retries=False, preload_content=False
            )
            try:
                return json.loads(answer.read(_BODY_MAX) or b"null")
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as fault:
            raise PeerFault(f"no answer: {_short(fault)}") from None
        except (ValueError, RecursionError) as fault:
            raise PeerFault(f"useless answer: {fault}") from None

    def post(self, url: str, body: Mapping[str, Any], deadline_s: float) -> Reply:
        """What is said to `body`, whatever its status. Raises PeerFault."""
        try:
            answer = self._http.request(
                "POST",
                url,
                json=dict(body),
                headers=self._login,
                timeout=urllib3.Timeout(total=deadline_s),
                retries=False,
                preload_content=False,
            )
            try:
                text = answer.read(_TEXT_MAX).decode("utf-8", "replace")
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as fault:
            raise PeerFault(f"no answer: {_short(fault)}") from None
        return reply_of(answer.status, text, answer.headers)

    def is_alive(self, url: str) -> bool:
        """Whoever answers anything at all is there, also who only refuses our certificate."""
        try:
            self._http.request("GET", url, timeout=urllib3.Timeout(total=_ALIVE_S), retries=False)
        except urllib3.exceptions.SSLError:
            return True
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return True


def _http(config: AgentConfig) -> urllib3.PoolManager:
    """Contract 3.2: the server's certificate is checked only when a client certificate is configured."""
    ctl = config.ctl
    headers = {"User-Agent": user_agent()}
    # No login: it goes with the calls that need one only, as the other side may be unproven.
    if ctl.certfile is None:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        return urllib3.PoolManager(headers=headers, cert_reqs="CERT_NONE", assert_hostname=False, maxsize=2)
    return urllib3.PoolManager(
        headers=headers,
        cert_file=ctl.certfile,
        key_file=ctl.keyfile,
        key_password=ctl.keyfile_password,
        ca_certs=ctl.cacert or config.restapi.cafile,
        cert_reqs="CERT_REQUIRED",
        assert_hostname=False,
        maxsize=2,
    )


def _short(fault: Exception) -> str:
    text = str(getattr(fault, "reason", None) or fault)
    return text.rpartition(": ")[2][:120]
