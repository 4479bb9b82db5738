"""The only interpreter of actions: every effect of a decision happens here, in order, until one fails.

Each dangerous action's guard is looked at again just before its effect: facts may have changed since they
were observed. Nothing waits in here beyond one DCS or SQL deadline; longer work is handed to `jobs`.
An action that fails stops the decision; the next step sees the facts as they are then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from dcs import codec
from dcs.api import Conflict, Dcs, Ok, Taken, Unknown
from dcs.records import ClusterSnapshot, HistoryRow, OperationOutcome, Status, TimelineClaim, Unfenced
from haagent import failpoints
from haagent.config.types import AgentConfig
from haagent.core import actions as a
from haagent.core import logical_slots, sync
from haagent.core.model import Observation, Unavailable
from haagent.core.restart import ScheduledRestart
from haagent.core.standby_cluster import RemoteNode
from haagent.failsafe import Failsafe
from haagent.hooks import Hooks
from haagent.instance import LocalInstance
from haagent.jobs import InstanceJobs, JobRunner, Starting
from haagent.lease_keeper import LeaseKeeper
from haagent.peers import PeerAsker
from haagent.promises import Promises
from haagent.remote import RemoteJobs
from haagent.slot_jobs import SlotJobs
from haagent.sync_key import SyncKey
from haagent.watchdog import Watchdog
from postgres_ctl.errors import PostgresError
from postgres_ctl.facts import Lsn
from postgres_ctl.slots import SlotPlan

log = logging.getLogger(__name__)

#: SQL commands of a step: reload, slots; seconds.
SQL_S = 2.0
#: Claims kept in the store; older timelines cannot come back.
CLAIMS_KEPT = 20


class Requests(Protocol):
    """Where answers to operator requests go."""

    def answer(self, request_id: int, status: int, text: str) -> None: ...

    def taken(self, request_id: int) -> None:
        """A job will answer it."""

    def schedule(self, restart: ScheduledRestart | None) -> None:
        """Remember it until its time; None: nothing is scheduled."""


class Interpreter:
    """Carries out actions for one agent. Used by the loop thread only."""

    def __init__(
        self,
        config: AgentConfig,
        dcs: Dcs,
        keeper: LeaseKeeper,
        instance: LocalInstance,
        runner: JobRunner,
        peers: PeerAsker,
        requests: Requests,
        leave: Callable[[int, str], None],
        hooks: Hooks,
        watchdog: Watchdog,
        sync_key: SyncKey,
        failsafe: Failsafe,
        promises: Promises,
    ) -> None:
        self.sync_key, self.failsafe, self.promises = sync_key, failsafe, promises
        self.config, self.dcs, self.keeper, self.instance = config, dcs, keeper, instance
        self.runner, self.peers, self.requests, self.leave = runner, peers, requests, leave
        self.watchdog = watchdog
        self._obs: Observation | None = None
        self._addresses: dict[str, tuple[str, int] | None] = {}
        self.jobs = InstanceJobs(instance, self._address, hooks)
        self.slot_jobs = SlotJobs(instance, self._address, hooks, self.jobs)
        self.remote = RemoteJobs(instance)
        self._table: dict[type[Any], Callable[[Any], bool]] = {
            a.CreateInitialize: self._create_initialize,
            a.PutInitialize: self._put_initialize,
            a.DeleteInitialize: self._delete_initialize,
            a.PutInitialConfig: self._put_initial_config,
            a.TakeLeader: self._take_leader,
            a.ReleaseLeader: self._release_leader,
            a.ClearFailover: self._clear_failover,
            a.BeginScheduled: self._begin_switchover,
            a.BeginSwitchover: self._begin_switchover,
            a.CloseEpoch: self._close_epoch,
            a.MarkUnfenced: self._mark_unfenced,
            a.WriteClaim: self._write_claim,
            a.WriteFailsafe: self._write_failsafe,
            a.WriteStatus: self._write_status,
            a.WriteSync: self._write_sync,
            a.DeleteSync: self._delete_sync,
            a.WriteHistory: self._write_history,
            a.Follow: self._follow,
            a.RetryStream: self._retry_stream,
            a.ApplyConfig: self._apply_config,
            a.SetSyncNames: self._set_sync_names,
            a.PublishSync: self._publish_sync,
            a.SyncSlots: self._sync_slots,
            a.TendLogicalSlots: self._tend_logical_slots,
            a.CopySlots: self._copy_slots,
            a.CheckSlots: self._check_slots,
            a.OpenWatchdog: self._open_watchdog,
            a.CloseWatchdog: self._close_watchdog,
            a.AskPeers: self._ask_peers,
            a.Initdb: self._initdb,
            a.Clone: self._clone,
            a.StartPrimary: self._start_primary,
            a.StartStandby: self._start_standby,
            a.RunPrePromote: self._pre_promote,
            a.Promote: self._promote,
            a.Checkpoint: self._checkpoint,
            a.StopInstance: self._stop,
            a.Restart: self._restart,
            a.Rewind: self._rewind,
            a.KeepRejoin: self._keep_rejoin,
            a.TellDiscards: self._tell_discards,
            a.CheckDivergence: self._compare,
            a.ArchiveLast: self._archive,
            a.CancelJob: self._cancel,
            a.AnswerRequest: self._answer,
            a.ScheduleRestart: self._schedule_restart,
            a.DropScheduledRestart: self._drop_scheduled_restart,
            a.SetFencing: self._set_fencing,
            a.Exit: self._exit,
        }

    def run(self, obs: Observation, actions: tuple[a.Action, ...]) -> tuple[int, str | None]:
        """Do them in order. Returns how many were done, and what stopped it (None: nothing)."""
        self._obs = obs
        if not isinstance(obs.cluster, Unavailable):
            self._addresses = {m.name: m.host_port for m in obs.cluster.members}
        for done, action in enumerate(actions):
            try:
                if not self._guarded(action) or not self._table[type(action)](action):
                    return done, type(action).__name__
                failpoints.passed(type(action).__name__)
            except PostgresError as fault:
                log.warning("%s: %s", type(action).__name__, fault)
                return done, f"{type(action).__name__}: {fault}"
        return len(actions), None

    # --- guards -------------------------------------------------------------------------------------

    def _guarded(self, action: a.Action) -> bool:
        """The last look before the effect."""
        guard: a.Guard | None = getattr(action, "guard", None)
        if guard is None:
            return True
        held = guard.epoch is None or self.keeper.holds(guard.epoch) or self.keeper.facts().disarmed
        if not held:
            log.warning("%s dropped: epoch %s is not held any more", type(action).__name__, guard.epoch)
            return False
        if guard.pid is not None and (self.instance.pid() or 0) != guard.pid:
            log.warning("%s dropped: the postmaster is another one now", type(action).__name__)
            return False
        return True

    # --- small helpers --------------------------------------------------------------------------------

    @property
    def _deadline_s(self) -> float:
        assert self._obs is not None
        return self._obs.settings.retry_timeout_s

    def _view(self) -> ClusterSnapshot:
        assert self._obs is not None
        assert not isinstance(self._obs.cluster, Unavailable)
        return self._obs.cluster

    def _address(self, source: a.Source) -> tuple[str, int] | None:
        """Where a member was last seen; jobs ask too, whatever has become of the store meanwhile."""
        return source.address if isinstance(source, RemoteNode) else self._addresses.get(source)

    def _written(self, what: str, outcome: object) -> bool:
        if isinstance(outcome, Ok):
            return True
        log.warning("%s was not written: %s", what, outcome)
        return False

    def _put_as_leader(self, key: str, value: str) -> bool:
        handle = self.keeper.handle()
        if handle is None:
            return False
        return self._written(
            key, self.dcs.put_if_leader(handle, self.config.name, key, value, self._deadline_s)
        )

    # --- DCS ------------------------------------------------------------------------------------------

    def _create_initialize(self, action: a.CreateInitialize) -> bool:
        session = self.keeper.session()
        if session is None:
            return False
        outcome = self.dcs.create(codec.INITIALIZE, "", self._deadline_s, session)
        if isinstance(outcome, Conflict):
            log.info("another member bootstraps the cluster")
        return isinstance(outcome, Ok)

    def _put_initialize(self, action: a.PutInitialize) -> bool:
        if action.only_if_absent:
            outcome = self.dcs.create(codec.INITIALIZE, action.system_identifier, self._deadline_s)
            return isinstance(outcome, Ok | Conflict)
        outcome = self.dcs.put(codec.INITIALIZE, action.system_identifier, self._deadline_s)
        return self._written(codec.INITIALIZE, outcome)

    def _delete_initialize(self, action: a.DeleteInitialize) -> bool:
        self.dcs.delete(codec.INITIALIZE, self._deadline_s)
        return True

    def _put_initial_config(self, action: a.PutInitialConfig) -> bool:
        text = codec.encode_config(self.instance.initial_dynamic())
        outcome = self.dcs.create(codec.CONFIG, text, self._deadline_s)
        return isinstance(outcome, Ok | Conflict)

    def _take_leader(self, action: a.TakeLeader) -> bool:
        assert self._obs is not None
        if not self.promises.begin_to_take(self._obs.promise.count):
            log.info("the leader key is not taken: another member leads in failsafe mode")
            return False
        outcome = self.keeper.take(self._deadline_s)
        if not isinstance(outcome, Unknown):
            self.promises.settled()
        if not isinstance(outcome, Taken):
            log.info("the leader key was not taken: %s", outcome)
        return isinstance(outcome, Taken)

    def _release_leader(self, action: a.ReleaseLeader) -> bool:
        """Rule 2 and H6: proven harmless, epoch closed and acknowledged, then status, then the key."""
        facts = self.instance.facts(1.0, busy=False)
        if not (facts.stopped or facts.serves_as_standby):
            log.warning("the leader key is kept: PostgreSQL is not proven stopped")
            return False
        if self._view().unfenced is not None:
            self._mark_unfenced(a.MarkUnfenced(False))  # what holds without a fence is over, either way
        if not self.keeper.close_epoch(action.epoch):
            return False
        status = self._last_status(action.optime) if action.optime is not None else None
        outcome = self.keeper.release(action.epoch, self._deadline_s, status)
        log.info("leader key released: %s", type(outcome).__name__)
        return isinstance(outcome, Ok)

    def _last_status(self, optime: Lsn) -> str:
        """The shutdown checkpoint, said to be that, with the slots last known (contract 1.3)."""
        old = self._view().status
        known = (old.slots, old.retain_slots) if old is not None else (None, None)
        timeline = self._obs.instance.timeline if self._obs is not None else None
        return codec.encode_status(Status(optime.value, *known, final_timeline=timeline))

    def _clear_failover(self, action: a.ClearFailover) -> bool:
        """The outcome first: whoever asked reads it once the request is gone."""
        told = OperationOutcome(action.version, action.status, action.outcome)
        self._put_as_leader(codec.OUTCOME, codec.encode_outcome(told))
        outcome = self.dcs.compare_and_set(codec.FAILOVER, "{}", action.version, self._deadline_s)
        return isinstance(outcome, Ok | Conflict)

    def _begin_switchover(self, action: a.BeginScheduled | a.BeginSwitchover) -> bool:
        request = codec.encode_failover(action.leader, action.candidate)
        outcome = self.dcs.compare_and_set(codec.FAILOVER, request, action.version, self._deadline_s)
        return self._written(codec.FAILOVER, outcome)

    def _close_epoch(self, action: a.CloseEpoch) -> bool:
        return self.keeper.close_epoch(action.epoch)

    def _mark_unfenced(self, action: a.MarkUnfenced) -> bool:
        handle = self.keeper.handle()
        owner = Unfenced(self.config.name, handle.epoch) if action.unfenced and handle is not None else None
        return self._put_as_leader(codec.UNFENCED, codec.encode_unfenced(owner))

    def _write_claim(self, action: a.WriteClaim) -> bool:
        claim = TimelineClaim(action.timeline, self.config.name, action.epoch, action.note)
        mine = () if action.mine is None else (TimelineClaim(action.mine, self.config.name, action.epoch),)
        claims = (*self._view().claims, *mine, claim)[-CLAIMS_KEPT:]
        outcome = self.dcs.compare_and_set(
            codec.CLAIMS, codec.encode_claims(claims), action.version, self._deadline_s
        )
        return self._written(codec.CLAIMS, outcome)

    def _write_failsafe(self, action: a.WriteFailsafe) -> bool:
        """From before the write on, whoever it names is asked as well: its outcome may stay unknown."""
        handle = self.keeper.handle()
        if handle is None or not self.failsafe.may_write(action.members):
            return True
        if self._put_as_leader(codec.FAILSAFE, codec.encode_failsafe(action.members)):
            self.failsafe.written(handle.epoch, action.members)
        return True

    def _write_status(self, action: a.WriteStatus) -> bool:
        status = Status(action.optime.value, dict(action.slots) or None, action.retain_slots or None)
        self._put_as_leader(codec.STATUS, codec.encode_status(status))
        return True

    def _write_sync(self, action: a.WriteSync) -> bool:
        return self.sync_key.write(
            action.leader, action.standbys, action.quorum, action.version, self._deadline_s
        )

    def _delete_sync(self, action: a.DeleteSync) -> bool:
        return self.sync_key.delete(action.version, self._deadline_s)

    def _write_history(self, action: a.WriteHistory) -> bool:
        rows = self._history_rows(action.timeline, action.by_me)
        limit = self._obs.settings.max_timelines_history if self._obs is not None else 0
        rows = rows[-limit:] if limit > 0 else rows
        return self._put_as_leader(codec.HISTORY, codec.encode_history(tuple(rows)))

    def _history_rows(self, timeline: int, by_me: bool) -> list[HistoryRow]:
        """The local history file; time and leader of older rows as the store has them (contract 1.3)."""
        data_dir = self.config.postgresql.data_dir
        switches = self.instance.pg.history(data_dir, timeline) if timeline > 1 else ()
        known = {(r.timeline, r.lsn): r for r in self._view().history or ()}
        rows = [
            known.get((s.timeline, s.switch_lsn.value))
            or HistoryRow(s.timeline, s.switch_lsn.value, s.reason)
            for s in switches or ()
        ]
        if not by_me:
            return rows
        # Of our own timeline we are the leader, whoever else went on from there before us.
        if rows and rows[-1].new_leader != self.config.name:
            last = rows[-1]
            stamp = self.instance.pg.history_mtime(data_dir, timeline)
            rows[-1] = HistoryRow(last.timeline, last.lsn, last.reason, stamp, self.config.name)
        return rows

    def _tell_discards(self, action: a.TellDiscards) -> bool:
        """For people only: what the store does not take now is tried again, and stops nothing."""
        text = codec.encode_discards(action.discards)
        outcome = self.dcs.compare_and_set(codec.DISCARDS, text, action.version, self._deadline_s)
        if self._written(codec.DISCARDS, outcome):
            self.instance.storage.write(
                "noting what was told", partial(self.instance.rejoin.told, action.news)
            )
        return True

    def _keep_rejoin(self, action: a.KeepRejoin) -> bool:
        """Before a try begins it has to be on the disk; otherwise a later step tries again."""
        write = partial(self.instance.rejoin.keep, action.rejoin)
        try:
            self.instance.storage.write("keeping the state of the way back", write)
        except PostgresError as fault:
            log.warning("%s", fault)
            return not action.required
        return True

    # --- PostgreSQL, quick ----------------------------------------------------------------------------

    def _follow(self, action: a.Follow) -> bool:
        upstream = self._address(action.upstream) if action.upstream is not None else None
        self.instance.apply_files(False, upstream, always=True)
        return True

    def _retry_stream(self, action: a.RetryStream) -> bool:
        self.instance.reload()
        return True

    def _apply_config(self, action: a.ApplyConfig) -> bool:
        assert self._obs is not None
        facts = self._obs.instance
        self.instance.apply_files(facts.serves_as_primary, facts.follows)
        return True

    def _set_sync_names(self, action: a.SetSyncNames) -> bool:
        assert self._obs is not None
        facts = self._obs.instance
        self.instance.set_sync_names(action.names, facts.serves_as_primary, facts.follows)
        return True

    def _publish_sync(self, action: a.PublishSync) -> bool:
        assert action.guard.pid is not None
        body = partial(self.jobs.publish_sync, action.names, action.guard.pid)
        self.runner.start_background("publish sync", body)
        return True

    def _sync_slots(self, action: a.SyncSlots) -> bool:
        for name, why in action.why.items():
            log.warning("dropping replication slot %s: %s", name, why)
        plan = SlotPlan(action.create, action.drop, tuple(action.advance.items()))
        for line in self.instance.pg.apply_slots(self.instance.actions_session, plan, SQL_S):
            log.warning("%s", line)
        return True

    def _tend_logical_slots(self, action: a.TendLogicalSlots) -> bool:
        for name in action.anew:
            log.error("logical slot %s is not here and made anew: its consumer misses changes", name)
        body = partial(self.slot_jobs.tend, action.create, action.advance)
        self.runner.start_background(logical_slots.TEND, body)
        return True

    def _check_slots(self, action: a.CheckSlots) -> bool:
        body = partial(self.slot_jobs.check, action.names, action.leader, action.feedback)
        self.runner.start_background(logical_slots.CHECK, body)
        return True

    def _copy_slots(self, action: a.CopySlots) -> bool:
        body = partial(self.slot_jobs.copy, action.slots, action.leader, action.upstream)
        names = ", ".join(slot.name for slot in action.slots)
        title = f"restarting with copied logical slots ({names})"
        return self.runner.start(logical_slots.COPY, body, f"from {action.leader}", title=title)

    def _open_watchdog(self, action: a.OpenWatchdog) -> bool:
        assert action.guard.epoch is not None
        self.watchdog.open(action.guard.epoch, action.timeout_s)
        return True

    def _close_watchdog(self, action: a.CloseWatchdog) -> bool:
        self.watchdog.close()
        return True

    def _ask_peers(self, action: a.AskPeers) -> bool:
        view = self._view()
        urls = {n: m.api_url for n in action.names if (m := view.member(n)) is not None and m.api_url}
        self.peers.ask(urls | {n: u for n in action.names if n not in urls and (u := self._old_url(n))})
        return True

    def _old_url(self, name: str) -> str | None:
        """A member whose key is gone is asked where it was last seen."""
        return self.last_urls.get(name)

    last_urls: dict[str, str] = {}  # noqa: RUF012 - replaced by the agent after each view

    # --- jobs -----------------------------------------------------------------------------------------

    def _initdb(self, action: a.Initdb) -> bool:
        kind = "custom bootstrap" if self.config.bootstrap.method is not None else "initdb"
        body = partial(self.jobs.make_cluster, self.runner.starting_now, self.runner.copied)
        return self.runner.start(kind, body)

    def _clone(self, action: a.Clone) -> bool:
        body = partial(self.jobs.clone, action, self._view().initialize or None, self.runner.copied)
        where = f"from {action.source}" if action.source is not None else "(without leader)"
        title = "reinitialize" if action.asked else f"bootstrap {where}"
        return self.runner.start("clone", body, where, title=title)

    def _start_primary(self, action: a.StartPrimary) -> bool:
        epoch = action.guard.epoch
        assert epoch is not None
        return self.runner.start("start primary", partial(self.jobs.start_primary, epoch), "", epoch)

    def _start_standby(self, action: a.StartStandby) -> bool:
        return self.runner.start("start standby", partial(self.jobs.start_standby, action.upstream))

    def _pre_promote(self, action: a.RunPrePromote) -> bool:
        epoch = action.guard.epoch
        assert epoch is not None
        return self.runner.start("pre_promote", partial(self.jobs.pre_promote, epoch), "", epoch)

    def _promote(self, action: a.Promote) -> bool:
        epoch = action.guard.epoch
        assert epoch is not None
        body = partial(self.jobs.promote, action.above, action.timeline, epoch)
        return self.runner.start("promote", body, f"to timeline {action.timeline}", epoch)

    def _checkpoint(self, action: a.Checkpoint) -> bool:
        epoch = action.guard.epoch
        assert epoch is not None
        body = partial(self.jobs.checkpoint, epoch, action.background)
        if action.background:
            self.runner.start_background("checkpoint", body)
            return True
        return self.runner.start("checkpoint", body, "", epoch)

    def _stop(self, action: a.StopInstance) -> bool:
        asked = action.before_stop and self.instance.effective.config.before_stop is not None
        body = partial(self.jobs.stop, action.mode, action.senders_grace_s, asked, self._stop_stage_s())
        # While a program is waited for, the stop rests on the lease: without it nothing is waited for.
        epoch = self._obs.lease.epoch if asked and self._obs is not None else None
        return self.runner.start("stop", body, action.purpose, epoch)

    def _stop_stage_s(self) -> float | None:
        """primary_stop_timeout: with a synchronous mode a stop may be forced, and loses nothing."""
        obs = self._obs
        if obs is None or not (sync.is_on(obs.settings) and obs.instance.serves_as_primary):
            return None
        return obs.settings.primary_stop_timeout_s or None

    def _restart(self, action: a.Restart) -> bool:
        if action.request_id is not None:
            self.requests.taken(action.request_id)
        body, limit_s = partial(self._restart_and_answer, action), action.timeout_s
        return self.runner.start("restart", body, "", action.epoch, start_timeout_s=limit_s)

    def _restart_and_answer(self, action: a.Restart, cancel: Any) -> dict[str, Any]:
        def tell(status: int, text: str) -> None:
            if action.request_id is not None:
                self.requests.answer(action.request_id, status, text)

        late = partial(tell, 503, "postgres is still starting")
        starting = Starting(self.runner.starting_now, action.timeout_s, late)
        try:
            data = self.jobs.restart(action.epoch, action.upstream, starting, cancel)
        except Exception as fault:
            tell(503, f"restart failed: {fault}")
            raise
        tell(200, "restarted successfully")
        return data

    def _rewind(self, action: a.Rewind) -> bool:
        body = partial(self.jobs.rejoin.rewind, action.source)
        title = f"running pg_rewind from {action.source}"
        return self.runner.start("rewind", body, f"from {action.source}", title=title)

    def _archive(self, action: a.ArchiveLast) -> bool:
        return self.runner.start("archive", partial(self.remote.archive_last, action.checkpoint))

    def _compare(self, action: a.CheckDivergence) -> bool:
        source = action.source
        if isinstance(source, RemoteNode):
            return self.runner.start("compare histories", partial(self.remote.compare, source))
        body = partial(self.jobs.rejoin.compare_histories, source)
        return self.runner.start("compare histories", body)

    def _cancel(self, action: a.CancelJob) -> bool:
        self.runner.cancel(action.reason)
        return True

    # --- answers and the end --------------------------------------------------------------------------

    def _answer(self, action: a.AnswerRequest) -> bool:
        self.requests.answer(action.request_id, action.status, action.text)
        return True

    def _schedule_restart(self, action: a.ScheduleRestart) -> bool:
        self.requests.schedule(action.restart)
        return True

    def _drop_scheduled_restart(self, action: a.DropScheduledRestart) -> bool:
        self.requests.schedule(None)
        return True

    def _set_fencing(self, action: a.SetFencing) -> bool:
        return self.keeper.set_fencing(action.armed)

    def _exit(self, action: a.Exit) -> bool:
        self.leave(action.code, action.reason)
        return True
