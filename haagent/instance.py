"""The PostgreSQL beside this agent: facts about it, and the effects on it. No decision is made here.

Theory. The guardian owns the postmaster; `postgres_ctl` owns files and SQL; this class joins the two and
remembers what must survive a step: the guardian's link, the last control data, which files were written.
A sampler thread keeps one connection and answers "how is it now?" to the loop, to health checks (from the
last sample) and to peers in an election (a fresh one); it alone may be held up by a hung server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from haagent import guardian_types as guardian
from haagent.config.effective import EffectivePostgres, effective_postgresql
from haagent.config.types import AgentConfig, Role
from haagent.core import sync
from haagent.core.model import Instance, LastExit, Unavailable
from haagent.core.roles import overlay_role
from haagent.core.settings import Settings
from haagent.core.slots import feedback_parameters
from haagent.jobs_words import Failed
from haagent.ports import GuardianLink, GuardianPort, Postgres, Session
from haagent.rejoin_files import RejoinFiles
from haagent.runtime import Runtime
from haagent.storage import Storage
from postgres_ctl import config_files, gucs, process, standby
from postgres_ctl.api import ConnectionTarget
from postgres_ctl.errors import ConfigFileError, PostgresError
from postgres_ctl.facts import (
    ControlData,
    ControlState,
    DataDirState,
    InstanceSample,
    TimelineSwitch,
    slot_name,
)
from postgres_ctl.sync_standbys import PARAMETER

log = logging.getLogger(__name__)

#: A sample is tried for so long; a server that needs more does not answer, seconds.
SAMPLE_S = 2.0
#: The sampler looks by itself this often, for health checks between two steps, seconds.
SAMPLE_EVERY_S = 1.0
#: A sample older than this is no answer any more, seconds.
SAMPLE_LIFE_S = 4.0
GUARDIAN_ANSWER_S = 1.0
#: So many versions of the files are kept ready, by role and standbys that commits wait for.
MOST_CONFIGURATIONS = 8


class Sampler:
    """One thread, one connection: asks PostgreSQL, remembers the answer, tells who waits."""

    def __init__(
        self, runtime: Runtime, session: Session, alive: Callable[[], bool], on_change: Callable[[], None]
    ) -> None:
        self._now = runtime.now
        self._session, self._alive, self._on_change = session, alive, on_change
        self._cond = runtime.condition()
        self._sample: InstanceSample | Unavailable = Unavailable(self._now(), "not asked yet")
        self._wanted_at, self._done_at = 0.0, 0.0
        self._ended = False
        self._thread = runtime.thread(self._run, "sampler")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._cond:
            self._ended = True
            self._cond.notify_all()

    def last(self) -> InstanceSample | Unavailable:
        """The last answer, while it is young enough to count; never blocks."""
        sample = self._sample
        if isinstance(sample, InstanceSample) and self._now() > sample.sampled_at + SAMPLE_LIFE_S:
            return Unavailable(sample.sampled_at, "PostgreSQL has not answered since")
        return sample

    def fresh(self, deadline_s: float) -> InstanceSample | Unavailable:
        """An answer to a question asked after this call; the last one when that takes too long."""
        asked_at = self._now()
        with self._cond:
            self._wanted_at = asked_at
            self._cond.notify_all()
            self._cond.wait_for(lambda: self._done_at >= asked_at or self._ended, deadline_s)
        return self.last()

    def forget(self) -> None:
        """The server is gone: what it said is no fact any more."""
        with self._cond:
            self._sample = Unavailable(self._now(), "PostgreSQL does not run")

    def _run(self) -> None:
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._wanted_at > self._done_at or self._ended, SAMPLE_EVERY_S)
                if self._ended:
                    return
            self._take()

    def _take(self) -> None:
        started_at = self._now()
        sample: InstanceSample | Unavailable
        if not self._alive():
            self._session.close()
            sample = Unavailable(started_at, "PostgreSQL does not run")
        else:
            try:
                sample = self._session.sample(SAMPLE_S)
            except PostgresError as fault:
                sample = Unavailable(started_at, str(fault))
            except Exception as fault:  # a dead sampler would leave the last sample standing for ever
                log.exception("sampling PostgreSQL failed unexpectedly")
                sample = Unavailable(started_at, f"unexpected {type(fault).__name__}")
        with self._cond:
            news = _mood(sample) != _mood(self._sample)
            if isinstance(sample, Unavailable) and isinstance(self._sample, Unavailable):
                sample = Unavailable(self._sample.since, sample.cause)
            self._sample, self._done_at = sample, started_at
            self._cond.notify_all()
        if news:
            self._on_change()


def _mood(sample: InstanceSample | Unavailable) -> tuple[object, ...]:
    """What of a sample is worth waking the loop for."""
    if isinstance(sample, Unavailable):
        return ("silent",)
    senders = tuple(sorted((s.application_name, s.state, s.sync_state) for s in sample.senders))
    return (
        sample.in_recovery,
        sample.walreceiver_status,
        sample.timeline,
        sample.pending_restart,
        senders,
        sample.sync_names,
    )


def _user_sync_names(parameters: Mapping[str, str]) -> str:
    return next((value for name, value in parameters.items() if name.lower() == PARAMETER), "")


@dataclass(frozen=True)
class Applied:
    """Which configuration the files hold: compared with what they should hold."""

    files: config_files.ServerConfig
    primary: bool
    upstream: tuple[str, int] | None
    recovery: config_files.RecoveryConfig | None


class LocalInstance:
    """Facts about, and effects on, the local PostgreSQL. Thread safe as far as each method says."""

    def __init__(
        self,
        runtime: Runtime,
        pg: Postgres,
        guardian_port: GuardianPort,
        config: AgentConfig,
        on_change: Callable[[], None],
    ) -> None:
        self.runtime, self.pg, self._guardian = runtime, pg, guardian_port
        self._now = runtime.now
        self.config = config
        self.on_change = on_change
        self.link: GuardianLink | None = None
        self._state: guardian.GuardianState | None = None
        self._exits: list[guardian.PostmasterExited] = []
        self._exit_seen = runtime.condition()
        self._watched_pid: int | None = None
        self._last_exit: LastExit | None = None
        self._reaped = False
        self._control: ControlData | Unavailable = Unavailable(self._now(), "never read")
        self._history: tuple[int, tuple[TimelineSwitch, ...]] = (0, ())
        self._applied: Applied | None = None
        #: Role of the files written last, and how often the server was told to read them in the same role.
        self._files_primary: bool | None = None
        self.reloads = 0
        #: By the role whose overlay counts and synchronous_standby_names, and by whom they follow.
        self._servers: dict[tuple[str, str], config_files.ServerConfig] = {}
        self._recoveries: dict[tuple[str, int] | None, config_files.RecoveryConfig] = {}
        #: synchronous_standby_names in postgresql.conf; None: not read, or not known whether it was written.
        self._sync_names: str | None = None
        #: The same of a standby that is about to be promoted; None: as the settings want it.
        self._names_to_promote: str | None = None
        #: This member follows another cluster for its own one: told by the observer before each step.
        self.leads_standby_cluster = False
        self._kept: Mapping[str, Any] | None = None
        #: The dynamic configuration that this agent last saw in the store.
        self.seen_dynamic: Mapping[str, Any] | None = None
        self.storage = Storage(runtime, on_change)
        pg.make_state_dir(config.postgresql.state_dir)
        self.rejoin = RejoinFiles(runtime, pg, config.postgresql.state_dir, config.postgresql.data_dir)
        self.settings: Settings = Settings.default()
        self._effective: EffectivePostgres | None = None
        self._used: tuple[AgentConfig, Settings] | None = None
        self._warned: set[str] = set()
        #: The running server: where it was started to listen, whatever the file says since.
        self.own_target = self._running_target()
        self.actions_session = pg.session(self.own_target, "Patroni actions")
        self._heartbeat = pg.session(self.own_target, "Patroni heartbeat")
        self.sampler = Sampler(runtime, self._heartbeat, self._seems_alive, on_change)

    # --- addresses --------------------------------------------------------------------------------

    def _configured_target(self) -> ConnectionTarget:
        """How the agent reaches a server that is started now: by socket when so configured, else by TCP."""
        pg = self.effective.config
        host = pg.unix_socket_dir if pg.use_unix_socket and pg.unix_socket_dir else pg.local_host
        return self._target(host, pg.port, pg.authentication.superuser)

    def _running_target(self) -> ConnectionTarget:
        """Of a server that another life of this agent may have started by another file."""
        target = self._configured_target()
        port = self.pg.running_port(self.config.postgresql.data_dir)
        return target if port is None else replace(target, port=port)

    def _aim(self, target: ConnectionTarget) -> None:
        """New connections to the own server go there; those that are open live on."""
        if target != self.own_target:
            self.own_target = target
            self.actions_session.aim(target)
            self._heartbeat.aim(target)

    def peer_target(self, host: str, port: int, role: str) -> ConnectionTarget:
        """Another member's server, as `replication` or `rewind` user."""
        auth = self.config.postgresql.authentication
        target = self._target(host, port, auth.replication if role == "replication" else auth.rewind)
        if "," not in host:
            return target
        # Several nodes of another cluster: whichever is its primary (contract 6.7).
        options = {**target.options, "target_session_attrs": "read-write"}
        return replace(target, options=options)

    def _target(self, host: str, port: int, role: Role) -> ConnectionTarget:
        kerberos = self.effective.config.krbsrvname
        return ConnectionTarget(
            host=host,
            port=port,
            user=role.username,
            password=role.password,
            dbname=self.config.postgresql.database,
            sslmode=role.sslmode,
            sslpassword=role.sslpassword,
            options={**role.options, **({"krbsrvname": kerberos} if kerberos else {})},
        )

    # --- guardian ---------------------------------------------------------------------------------

    def connect_guardian(self, on_event: Callable[[guardian.GuardianEvent], None]) -> guardian.GuardianState:
        """Reach or start the guardian. Raises GuardianUnavailable."""

        def receive(event: guardian.GuardianEvent) -> None:
            if isinstance(event, guardian.PostmasterExited):
                self._postmaster_exited(event)
            on_event(event)

        pg, before = self.config.postgresql, self._state
        link = self.link = self._guardian.connect(pg.state_dir, pg.data_dir, receive)
        self._state = link.hello
        self._adopt_stranger()  # takes a while: the link may be gone again when it returns
        if before is not None and before.postmaster is not None and self._state.postmaster is None:
            self._end_orphans(before.postmaster.pid)
        return link.hello

    def _end_orphans(self, postmaster_pid: int) -> None:
        """The guardian died, and the postmaster with it: nobody else is left to end what that one left, which
        may write on beyond the lease (H9, rule 8)."""
        data_dir = self.config.postgresql.data_dir
        if self.pg.find_postmaster(data_dir) is None:
            self._guardian.fence_directly(postmaster_pid, data_dir)

    def fence_unguarded(self) -> None:
        """The guardian does not answer, and only it knows until when PostgreSQL may write: in doubt no longer
        (rule 10). A standby is left alone."""
        data_dir = self.config.postgresql.data_dir
        found = self.pg.find_postmaster(data_dir)
        if found is None or self._has_signal_file():
            return
        log.critical("the guardian does not answer: PostgreSQL (pid %s) is ended", found[0])
        self._guardian.fence_directly(found[0], data_dir)

    def _postmaster_exited(self, event: guardian.PostmasterExited) -> None:
        with self._exit_seen:
            self._last_exit = LastExit(fenced=event.fenced, watched=True)
            # Our own child and all its processes were reaped to the last: nothing can be left (H9).
            self._reaped = event.status is not None and not event.leftovers
            self._exits.append(event)
            self._exit_seen.notify_all()
        self.sampler.forget()
        self.actions_session.close()

    def _adopt_stranger(self) -> None:
        """A postmaster that runs without the guardian is watched from now on (moved over from Patroni)."""
        state = self._state
        if self.link is None or state is None or state.postmaster is not None:
            return
        found = self.pg.find_postmaster(self.config.postgresql.data_dir)
        if found is None:
            return
        pid, ticks = found
        outcome = self.link.adopt(pid, ticks, GUARDIAN_ANSWER_S, writable=not self._has_signal_file())
        log.info("found a running postmaster, pid %s: %s", pid, type(outcome).__name__.lower())

    def guardian_state(self) -> guardian.GuardianState | None:
        """What the guardian says now, or said last."""
        if self.link is not None:
            answer = self.link.status(GUARDIAN_ANSWER_S)
            if isinstance(answer, guardian.GuardianState):
                self._state = answer
        return self._state

    @property
    def watchdog(self) -> guardian.WatchdogState | None:
        """As the guardian said last."""
        return self._state.watchdog if self._state is not None else None

    def _seems_alive(self) -> bool:
        state = self._state
        return state is not None and state.postmaster is not None

    def known_pid(self) -> int | None:
        """Of the postmaster that the guardian spoke of last; asks nobody."""
        state = self._state
        return state.postmaster.pid if state is not None and state.postmaster is not None else None

    def pid(self) -> int | None:
        state = self.guardian_state()
        return state.postmaster.pid if state is not None and state.postmaster is not None else None

    # --- facts ------------------------------------------------------------------------------------

    def facts(self, sample_deadline_s: float, busy: bool) -> Instance:
        """Everything about the instance, now. `busy`: a job works on it, so do not look at its files."""
        state = self.guardian_state()
        if state is not None and state.postmaster is None and not busy:
            self._adopt_stranger()
            state = self.guardian_state()
        postmaster = state.postmaster if state is not None else None
        if postmaster is None:
            return self._stopped_facts(state, busy)
        self._watched_pid = postmaster.pid
        sample = self.sampler.fresh(sample_deadline_s)
        if isinstance(self._control, Unavailable):
            self._control = self._read_control()
        writable = postmaster.writable_epoch is not None
        if postmaster.adopted and postmaster.writable_epoch is None:
            writable = not self._has_signal_file()
        facts = Instance(
            alive=True,
            leftovers=False,
            ending=not postmaster.running,
            writable=writable,
            writable_epoch=postmaster.writable_epoch,
            pid=postmaster.pid,
            control=self._control,
            sample=sample,
            last_exit=self._last_exit,
            unfinished=self._unfinished(),
            follows=self._follows(sample),
            storage_hangs=self.storage.hangs is not None,
            has_rewind=self.effective.config.use_pg_rewind and self._has_rewind(),
            kept_rejoin=self.rejoin.state,
            untold_discards=self.rejoin.untold,
        )
        facts = replace(facts, **self._sync_facts(facts.serves_as_primary))
        return replace(facts, history=self._history_of(facts.timeline), config_outdated=self._outdated(facts))

    def _stopped_facts(self, state: guardian.GuardianState | None, busy: bool) -> Instance:
        data_dir = self.config.postgresql.data_dir
        kind = DataDirState.VALID if busy else self.pg.data_dir_state(data_dir)
        if not busy:
            valid = kind is DataDirState.VALID
            self._control = self._read_control() if valid else Unavailable(self._now(), "no data directory")
        left = bool(state.leftovers) if state is not None else True
        if not busy and not left and kind is DataDirState.VALID and not self._reaped:
            left = self.pg.leftovers(data_dir)
        facts = Instance(
            data_dir=kind,
            leftovers=left,
            control=self._control,
            sample=Unavailable(self._now(), "PostgreSQL does not run"),
            last_exit=self._last_exit_facts(state),
            unfinished=self._unfinished(),
            storage_hangs=self.storage.hangs is not None,
            has_rewind=self.effective.config.use_pg_rewind and self._has_rewind(),
            kept_rejoin=self.rejoin.state,
            untold_discards=self.rejoin.untold,
        )
        return replace(facts, history=self._history_of(facts.timeline))

    def _last_exit_facts(self, state: guardian.GuardianState | None) -> LastExit | None:
        """Ours, or what the guardian remembers from before this agent was started."""
        if self._last_exit is not None:
            return self._last_exit
        if self._watched_pid is not None:
            return LastExit(fenced=False, watched=True)
        if state is not None and state.last_exit is not None:
            return LastExit(fenced=state.last_exit.fenced, watched=True)
        return None

    def _read_control(self) -> ControlData | Unavailable:
        try:
            return self.control_data()
        except PostgresError as fault:
            return Unavailable(self._now(), str(fault))

    def control_data(self) -> ControlData:
        """pg_control, now. Raises PostgresError."""
        pg = self.effective.config
        return self.pg.control_data(pg.bin_dir, pg.data_dir, program=pg.bin_name["pg_controldata"])

    def _history_of(self, timeline: int | None) -> tuple[TimelineSwitch, ...]:
        if timeline is None or timeline <= 1:
            return ()
        if self._history[0] != timeline:
            try:
                read = self.pg.history(self.config.postgresql.data_dir, timeline)
            except PostgresError:
                read = None
            if read is None:
                return ()
            self._history = (timeline, read)
        return self._history[1]

    def _follows(self, sample: InstanceSample | Unavailable) -> tuple[str, int] | None:
        """Host and port of `primary_conninfo`; of a silent server, what we wrote into its files last."""
        if isinstance(sample, InstanceSample):
            return standby.upstream(sample)
        return self._applied.upstream if self._applied is not None else None

    def _has_signal_file(self) -> bool:
        return self.pg.has_signal_file(self.config.postgresql.data_dir)

    def _sync_facts(self, primary: bool) -> dict[str, Any]:
        parameters = self.effective.config.for_role(overlay_role(primary)).parameters
        return {
            "sync_names": self._sync_names_in_file(),
            "user_sync_names": _user_sync_names(parameters),
            "synchronous_commit": parameters.get("synchronous_commit", "on").lower(),
        }

    def _sync_names_in_file(self) -> str | None:
        """What a server that reads postgresql.conf now gets; None when that cannot be told."""
        if self._sync_names is None and self.storage.hangs is None:
            pg = self.effective.config
            path = f"{pg.config_dir or pg.data_dir}/{pg.config_base_name}.conf"
            try:
                self._sync_names = self.pg.read_setting(pg.data_dir, path, PARAMETER) or ""
            except PostgresError as fault:
                self._warn((f"{PARAMETER} cannot be read: {fault}",))
        return self._sync_names

    def end_orphaned_tools(self) -> None:
        """Of an agent that died: pg_rewind and the like may hang for ever, and hold up all that follows."""
        try:
            self.pg.end_orphaned_tools(self.config.postgresql.data_dir)
        except PostgresError as fault:
            log.error("%s", fault)

    def require_storage(self) -> None:
        """A write that wakes up late must not meet another data directory. Raises Failed."""
        late = self.storage.hangs
        if late is not None:
            raise Failed(f"{late}: the storage has not answered yet")

    # --- state files ------------------------------------------------------------------------------

    def _state_path(self, name: str) -> str:
        return f"{self.config.postgresql.state_dir}/{name}"

    def _has_rewind(self) -> bool:
        pg = self.effective.config
        return self.pg.has_rewind(pg.bin_dir, pg.bin_name["pg_rewind"])

    def _unfinished(self) -> str | None:
        data_dir = self.config.postgresql.data_dir
        if self.pg.rewind_interrupted(data_dir):
            return "rewind"
        return "bootstrap" if self.pg.is_unclaimed(data_dir) else None

    # --- configuration files ----------------------------------------------------------------------

    @property
    def effective(self) -> EffectivePostgres:
        """The section `postgresql` in force."""
        if self._effective is None:
            self._effective = effective_postgresql(self.config, self.settings)
        return self._effective

    def use(self, config: AgentConfig, settings: Settings) -> Settings:
        """The configuration in force from now on; files follow by ApplyConfig or at the next start.

        Returns the settings with what the local file says about this member put on top (contract 5.1)."""
        if self._used is not None and self._used[0] is config and self._used[1] == settings:
            return self.settings
        self.config, self._used = config, (config, settings)
        self._effective, self._servers, self._recoveries = effective_postgresql(config, settings), {}, {}
        self._names_to_promote = None
        self._warn(self.effective.warnings)
        at = self.own_target
        self._aim(replace(self._configured_target(), host=at.host, port=at.port))
        pg = self.effective.config
        self.settings = replace(
            settings,
            use_pg_rewind=pg.use_pg_rewind,
            remove_data_directory_on_rewind_failure=pg.remove_data_directory_on_rewind_failure,
            remove_data_directory_on_diverged_timelines=pg.remove_data_directory_on_diverged_timelines,
        )
        return self.settings

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning("%s", warning)

    def _outdated(self, facts: Instance) -> bool:
        """The files hold something else than they should; whom a standby follows is Follow's business."""
        if self._applied is None:
            return True
        primary = facts.serves_as_primary or (self._applied.primary and not facts.serves_as_standby)
        names = self._usual_names(primary)
        if names is None:
            return False  # nothing is written while it is not known for whom commits wait
        wanted = self._wanted(primary, self._applied.upstream, names)
        return wanted != self._applied

    def _usual_names(self, primary: bool) -> str | None:
        """synchronous_standby_names where no decision says otherwise: a primary keeps what it has."""
        if primary:
            return self._sync_names_in_file()
        if self._names_to_promote is not None:
            return self._names_to_promote
        parameters = self.effective.config.for_role(overlay_role(False)).parameters
        return sync.standby_names(self.settings, _user_sync_names(parameters))

    def _names_at_start(self, writable: bool) -> str:
        """The data directory may be another one than before. Raises ConfigFileError."""
        self._sync_names = self._names_to_promote = None
        names = self._usual_names(writable)
        if names is None:
            raise ConfigFileError(f"{PARAMETER} cannot be read from postgresql.conf")
        if not writable:
            return names
        parameters = self.effective.config.for_role(overlay_role(True)).parameters
        return sync.names_at_start(self.settings, _user_sync_names(parameters), names)

    def _wanted(self, primary: bool, upstream: tuple[str, int] | None, names: str) -> Applied:
        recovery = None if primary else self.recovery_config(upstream)
        return Applied(self.server_config(primary, names), primary, upstream, recovery)

    def server_config(self, primary: bool, names: str = "") -> config_files.ServerConfig:
        """Everything that goes into the files (contract 5.4, 5.5) in that role; `names` is
        synchronous_standby_names."""
        overlay = overlay_role(primary, self.leads_standby_cluster)
        if (overlay, names) not in self._servers:
            if len(self._servers) > MOST_CONFIGURATIONS:
                self._servers = {}
            self._servers[overlay, names] = self._make_server_config(overlay, primary, names)
        return self._servers[overlay, names]

    def _make_server_config(self, overlay: str, primary: bool, names: str) -> config_files.ServerConfig:
        pg = self.effective.config.for_role(overlay)
        accepted = self._known(pg.parameters, "parameters")
        return config_files.ServerConfig(
            data_dir=pg.data_dir,
            listen_addresses=",".join(pg.listen_addresses),
            port=pg.port,
            cluster_name=self.config.scope,
            config_dir=pg.config_dir,
            parameters={name: value for name, value in accepted.items() if name.lower() != PARAMETER},
            protected=self.effective.protected,
            managed={PARAMETER: names, **feedback_parameters(self.settings, self.config.tags)},
            not_in_auto_conf=frozenset((PARAMETER,)) if sync.is_on(self.settings) else frozenset(),
            hba=pg.pg_hba,
            ident=pg.pg_ident,
            custom_conf=pg.custom_conf,
            base_name=pg.config_base_name,
        )

    def _known(self, parameters: Mapping[str, str], section: str) -> dict[str, str]:
        """Those of `parameters` that this version of PostgreSQL starts with."""
        pg = self.effective.config
        program = pg.bin_name["postgres"]
        accepted, warnings = self.pg.check_parameters(pg.bin_dir, parameters, program, section)
        self._warn(warnings)
        return accepted

    def recovery_config(self, upstream: tuple[str, int] | None) -> config_files.RecoveryConfig:
        """How a standby follows there; in a standby cluster with what its section says."""
        if upstream not in self._recoveries:
            self._recoveries[upstream] = self._make_recovery_config(upstream)
        return self._recoveries[upstream]

    def _make_recovery_config(self, upstream: tuple[str, int] | None) -> config_files.RecoveryConfig:
        pg, section = self.effective.config, self.settings.standby_cluster
        target = self.peer_target(*upstream, "replication") if upstream is not None else None
        slot = slot_name(self.config.name) if self.settings.use_slots else None
        return config_files.RecoveryConfig(
            primary=target,
            application_name=self.config.name,
            passfile=pg.pgpass,
            slot_name=slot if section is None else section.slot_for(upstream, slot),
            extra={
                **(self._known(pg.recovery_conf, "recovery_conf") if pg.recovery_conf else {}),
                **(section.recovery_settings(upstream) if section is not None else {}),
            },
            major_version=self.pg.major_version(pg.data_dir) or 14,
        )

    def initial_dynamic(self) -> dict[str, Any]:
        """What counts, and is put back, when the store has no `config`: the last one seen, the copy kept in
        PGDATA, or `bootstrap.dcs`."""
        if self.seen_dynamic is not None:
            return dict(self.seen_dynamic)
        cached = self.pg.read_dynamic_cache(self.config.postgresql.data_dir)
        return cached if cached else dict(self.config.bootstrap.dcs)

    def forget_kept(self) -> None:
        """The data directory is another one now: the copy in it is written anew."""
        self._kept = None

    def keep_dynamic(self, data: Mapping[str, Any]) -> None:
        """patroni.dynamic.json in PGDATA (contract 5.1), once there is a PGDATA and no job works on it.

        A copy for the next start only: when it cannot be written now it is tried again with the next step."""
        data_dir = self.config.postgresql.data_dir
        if data == self._kept or self.storage.hangs is not None:
            return
        try:
            if self.pg.data_dir_state(data_dir) is DataDirState.VALID:
                write = partial(self.pg.write_dynamic_cache, data_dir, dict(data))
                self.storage.write("copying the dynamic configuration", write)
                self._kept = data
        except PostgresError as fault:
            self._warn((f"the dynamic configuration is not copied to {data_dir}: {fault}",))

    def _write_files(self, server: config_files.ServerConfig, wanted: Applied) -> frozenset[str]:
        """Write what the role needs; names of the files that changed. Raises ConfigFileError."""
        upstream = wanted.upstream
        if upstream is not None:
            replication = self.peer_target(*upstream, "replication")
            self.pg.write_pgpass(
                self.effective.config.pgpass, [replication, self.peer_target(*upstream, "rewind")]
            )
        return self.pg.write_config(server, wanted.recovery)

    def apply_files(
        self, primary: bool, upstream: tuple[str, int] | None, always: bool = False, names: str | None = None
    ) -> None:
        """Files of the running server as they should be, and read by it; `always`: even without a change.

        `names`: synchronous_standby_names, where they are not the usual ones. Until both are done the next
        try writes and tells anew. Raises PostgresError, StorageHangs."""
        names = self._usual_names(primary) if names is None else names
        if names is None:
            raise ConfigFileError(f"{PARAMETER} cannot be read from postgresql.conf: it is not written anew")
        wanted, told = self._wanted(primary, upstream, names), self._applied is not None
        self._applied = self._sync_names = None
        write = partial(self._write_files, wanted.files, wanted)
        changed = self.storage.write("writing the configuration files", write)
        self._sync_names = names
        if changed or always or not told:
            what = f"{', '.join(sorted(changed))} changed" if changed else "no file changed"
            log.info("reloading PostgreSQL configuration: %s", what)
            self.reload()
            self.reloads += self._files_primary == primary
        self._applied, self._files_primary = wanted, primary

    def set_sync_names(self, names: str, primary: bool, upstream: tuple[str, int] | None) -> None:
        """For whom commits wait from soon on. Raises PostgresError, StorageHangs."""
        if not primary:
            self._names_to_promote = names
        self.apply_files(primary, upstream, always=True, names=names)

    def rewrite_files(self) -> None:
        """The next ApplyConfig writes and reloads, even without a change (contract 7.1)."""
        self._applied, self._servers, self._recoveries = None, {}, {}

    def reload(self) -> None:
        """By signal, not by SQL: a standby that lets nobody in yet must hear of a new leader as well."""
        self.pg.reload(self.config.postgresql.data_dir)

    # --- effects ----------------------------------------------------------------------------------

    def start(self, writable: bool, epoch: int | None, upstream: tuple[str, int] | None) -> str | None:
        """Ask the guardian to start the postmaster; None or the reason. Raises PostgresError."""
        link = self.link  # it may be lost while the files are written
        if link is None:
            return "no guardian"
        pg = self.effective.config
        self._control = self._read_control()
        self._servers, self._recoveries = {}, {}  # the programs may be newer ones since the last start
        names = self._names_at_start(writable)
        wanted = self._wanted(writable, upstream, names)
        crashed = _crashed_as_primary(self._control) and not self._is_a_copy(pg.data_dir)
        if wanted.recovery is not None and _has_archive(wanted) and crashed:
            # Nothing of the archive before all local WAL is replayed: a newer timeline's segment would go on
            # where our own history has left it. Set again as soon as the server answers.
            wanted = replace(wanted, recovery=wanted.recovery.without_archive())
        self._write_files(wanted.files, wanted)
        self._applied, self._files_primary, self._sync_names = wanted, writable, names
        if isinstance(self._control, ControlData):
            self.pg.free_timelines(pg.data_dir, self._control)
        if writable:
            self.pg.claim(pg.data_dir)
            self.pg.remove_standby_signal(pg.data_dir)
        else:
            self.pg.write_standby_signal(pg.data_dir)
        server = wanted.files
        options = server.command_line()
        if not writable and isinstance(self._control, ControlData):
            options |= gucs.raise_to_standby_minima(server.protected, self._control)
        if options != server.command_line():
            # A standby cannot start with less. The file says what is wanted; a reload shows it as pending.
            self.rewrite_files()
        argv = process.postmaster_argv(
            pg.bin_dir, pg.data_dir, server.config_file, options, pg.bin_name["postgres"]
        )
        outcome = link.start(
            argv,
            process.postmaster_environment(),
            pg.data_dir,
            writable=writable,
            epoch=epoch,
            deadline_s=10.0,
        )
        if isinstance(outcome, guardian.Started):
            self._aim(self._configured_target())
            with self._exit_seen:
                self._last_exit, self._reaped = None, False
            self.guardian_state()
            return None
        return outcome.reason if isinstance(outcome, guardian.StartRefused) else outcome.cause

    def stop(self, mode: str) -> None:
        """Signals only; a frozen guardian is stood in for (H10)."""
        if self.link is not None:
            outcome = self.link.stop(mode, GUARDIAN_ANSWER_S)
            if not isinstance(outcome, guardian.NoAnswer):
                return
        self.fence_directly()

    def fence_directly(self) -> None:
        """End the last known postmaster and its processes ourselves: signals only, nothing that can block."""
        state = self._state
        if state is None or state.postmaster is None:
            return
        left = self._guardian.fence_directly(state.postmaster.pid, self.config.postgresql.data_dir)
        if left:
            log.critical("these processes of PostgreSQL could not be ended: %s", left)

    def wait_exit(self, deadline_s: float) -> bool:
        """True when the postmaster and all its processes are gone within the deadline."""
        end = self._now() + deadline_s
        with self._exit_seen:
            while True:
                state = self._state
                gone = self._exits and not self._exits[-1].leftovers
                if gone or state is None or state.postmaster is None:
                    self._exits.clear()
                    break
                if self._now() >= end:
                    return False
                self._exit_seen.wait(min(1.0, end - self._now()))
        state = self.guardian_state()
        return state is None or (state.postmaster is None and not state.leftovers)

    def begin_watching_exit(self) -> None:
        """Forget exits seen before; call before a stop."""
        with self._exit_seen:
            self._exits.clear()
        self.guardian_state()

    def _is_a_copy(self, data_dir: str) -> bool:
        """A base backup, whose pg_control is that of the running server it was made of: it may need the
        archive to become consistent."""
        return self.pg.read_text(f"{data_dir}/backup_label") is not None

    def log_tail(self) -> str:
        """Last FATAL, PANIC or ERROR line of the postmaster's own output, for people."""
        return self.pg.log_tail(self._state_path("postgresql.log"))


def _has_archive(wanted: Applied) -> bool:
    settings = dict(wanted.files.parameters) | (wanted.recovery.gucs() if wanted.recovery is not None else {})
    return bool(settings.get("restore_command"))


def _crashed_as_primary(control: ControlData | Unavailable) -> bool:
    """It first replays all WAL in its directory, whatever timeline it is to follow then."""
    return isinstance(control, ControlData) and control.state in (
        ControlState.IN_PRODUCTION,
        ControlState.SHUTTING_DOWN,
        ControlState.IN_CRASH_RECOVERY,
    )
