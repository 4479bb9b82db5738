"""Wiring and the loop: observe -> decide -> act, woken by events, the timer being only the fallback.

Who wakes it: the DCS watch, the guardian (postmaster exit, fence), the lease keeper, a finished job, the
sampler (PostgreSQL fell silent, came back, a stream began or ended), a peer's answer, an operator's request,
a signal. A step never waits for work: jobs do.

If `decide` raises (H12), nothing new is done and what holds is kept; after several such steps the loop stops
giving permits while another member could take over, and the lease runs out the safe way.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from dcs import codec
from dcs.api import KeyEvent, WatchEvent
from dcs.errors import DcsError, DcsLoginRefused
from dcs.records import ClusterSnapshot, Member
from haagent import COMPATIBLE_VERSION, __version__
from haagent import guardian_types as guardian
from haagent.act import Interpreter
from haagent.api import RestError
from haagent.api.view import Numbers, Published
from haagent.callbacks import Caller
from haagent.config.load import reload
from haagent.config.types import AgentConfig, ConfigErrors
from haagent.core import lines
from haagent.core.candidate import another_could_lead
from haagent.core.decide import decide
from haagent.core.failsafe import is_active
from haagent.core.memory import absorb
from haagent.core.model import Decision, Memory, Observation, Unavailable
from haagent.core.outlook import outlook
from haagent.core.publish import Addresses, cannot_lead, member_record, note, role_text, state_text
from haagent.core.rejoin import view as rejoin_view
from haagent.core.settings import Settings, parse_settings
from haagent.core.slots import positions
from haagent.core.watchdog import forbids
from haagent.failsafe import Failsafe
from haagent.guardian_spawn import GuardianSilent, GuardianUnavailable
from haagent.hooks import Hooks
from haagent.instance import LocalInstance
from haagent.jobs import JobRunner
from haagent.lease_keeper import LeaseKeeper
from haagent.log import lost_records, queued_records
from haagent.measures import Measures, Takeovers
from haagent.observe import Observer, Wishes
from haagent.operations import Operations, RequestBox
from haagent.peers import PeerAsker
from haagent.ports import Ports
from haagent.prober import Prober
from haagent.promises import Promises
from haagent.publisher import MemberPublisher
from haagent.storage import StorageHangs
from haagent.sync_key import SyncKey
from haagent.watchdog import Watchdog
from postgres_ctl.facts import InstanceSample

log = logging.getLogger(__name__)

#: Never step more often than this, whatever wakes us; seconds.
SHORTEST_PAUSE_S = 0.01
#: Look again after this at the latest; seconds. More than years at once no thread can wait.
LONGEST_PAUSE_S = 3600.0
#: A step whose action failed is tried again after this; seconds.
FAILED_PAUSE_S = 0.2
#: Steps of a failing `decide` before leadership is let go, if somebody else could take over (H12).
BROKEN_STEPS = 5
#: Between two tries to reach the DCS before the first contact; seconds (contract 7.1).
FIRST_CONTACT_PAUSE_S = 5.0
GUARDIAN_RETRY_S = 1.0
#: What this member promised in failsafe mode, in its state directory.
PROMISE_FILE = "failsafe.json"


class _Shown(NamedTuple):
    """What REST answers are made of, when somebody asks."""

    facts: Observation
    memory: Memory
    #: The last view of the DCS, when it was taken, and that as Unix time.
    cluster: tuple[ClusterSnapshot, float, int] | None
    #: When the step ended.
    at: float


class Agent:
    """One agent, from `run()` to its exit code. It touches the world only through `ports`."""

    def __init__(self, config: AgentConfig, ports: Ports) -> None:
        self.config = config
        runtime = self.runtime = ports.runtime
        self._now = runtime.now
        self._cond = runtime.condition()
        self._woken = True
        self._attentive = True
        self._stopping = False
        self._reload = False
        self._exit: tuple[int, str] | None = None
        self._replaced: str | None = None
        #: Pure; an attribute so that a test can see what becomes of an agent whose decisions fail (H12).
        self.decide = decide
        self.last_observation: Observation | None = None
        self._seen_cluster: tuple[ClusterSnapshot, float, int] | None = None
        self._broken_steps = 0
        self._last_rule = ""
        self._next_guardian_try = 0.0
        self._met_guardian = False
        self._step_started_at = self._now()
        self._alive_until = self._now() + 60
        self._shown: _Shown | None = None
        self._said: tuple[Member, str] | None = None
        self._where = _addresses(config)

        self._peer_port, self._reconfigured = ports.peers, ports.reconfigured
        self.dcs, self.journal = ports.dcs, ports.journal
        self.instance = LocalInstance(runtime, ports.postgres, ports.guardian, config, self.wake)
        self.watchdog = Watchdog(runtime, ports.guardian, self.instance, config.watchdog)
        self.prober = Prober(runtime, self.instance, self.wake)
        self.memory = Memory(rejoin=self.instance.rejoin.state)
        settings = self._first_settings()
        self.measures = Measures(runtime)
        self._takeovers = Takeovers(self.measures)
        self.failsafe = Failsafe(runtime, ports.peers, config.name, self._about_me)
        self.promises = Promises(runtime, ports.postgres, f"{config.postgresql.state_dir}/{PROMISE_FILE}")
        self.keeper = LeaseKeeper(
            runtime,
            ports.keeper_dcs,
            config.name,
            settings,
            self.wake,
            self.instance.fence_directly,
            self.measures,
            self.failsafe,
        )
        self.runner = JobRunner(runtime, self.wake)
        self.peers = PeerAsker(runtime, ports.peers, config.name, self.wake)
        self.requests = RequestBox(runtime, self.wake)
        sync_key = SyncKey(self.dcs)
        self.observer = Observer(
            runtime,
            config,
            self.dcs,
            self.keeper,
            self.instance,
            self.runner,
            self.peers,
            self.measures,
            self.watchdog,
            sync_key,
            self.prober,
            self.failsafe,
            self.promises,
        )
        self.observer.settings = settings
        self.interpreter = Interpreter(
            config,
            self.dcs,
            self.keeper,
            self.instance,
            self.runner,
            self.peers,
            self.requests,
            self._leave,
            Hooks(ports.programs, self.instance),
            self.watchdog,
            sync_key,
            self.failsafe,
            self.promises,
        )
        self.publisher = MemberPublisher(runtime, self.dcs, config.name)
        self.operations = Operations(self)
        self.rest = ports.rest(self.operations, config.restapi)
        self.service, self.programs = ports.service, ports.programs
        self.callbacks = Caller(runtime, ports.programs, self.instance, self.keeper, config.scope)

    def _first_settings(self) -> Settings:
        """Until the DCS has spoken: the cached copy, or what the cluster would be bootstrapped with."""
        settings, _ = parse_settings(self.instance.initial_dynamic(), self.dcs.minimum_ttl_s, False)
        return self.instance.use(self.config, settings)

    # --- life -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """As a process of its own: until a signal says stop. Returns the exit code (contract 7.1)."""
        self._install_signals()
        holder = self._lock_data_directory()
        if holder is not None:
            log.critical("Can't start; another agent (%s) runs on this data directory", holder)
            return 1
        return self.live()

    def live(self) -> int:
        """Until told to `stop`. Returns the exit code."""
        try:
            if not self._first_contact():
                return self._exit[0] if self._exit else 0
            self.rest.start()
            self.service.ready()
            self._connect_guardian()
            self.instance.end_orphaned_tools()
        except (GuardianUnavailable, RestError) as fault:
            log.critical("%s", fault)
            if isinstance(fault, GuardianSilent) and not self.observer.settings.pause:
                self.instance.fence_unguarded()
            return 1
        self.keeper.start()
        self.publisher.start()
        self.instance.sampler.start()
        self.prober.start()
        watch = self.dcs.watch(self._dcs_event)
        try:
            while self._exit is None:
                pause_s = self._guarded_step()
                if self._exit is None:
                    self._wait(pause_s)
                if self._reload:
                    self._reload_config()
        finally:
            watch.close()
        return self._farewell(*self._exit)

    def _lock_data_directory(self) -> str | None:
        """One agent per data directory, before the guardian is touched: a second start must not take it
        over from a living agent. The kernel gives the lock back when we die. Returns who has it."""
        path = os.path.join(self.config.postgresql.state_dir, "agent.lock")
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._lock_fd, 32).decode("ascii", "replace").strip()
            return f"pid {pid}" if pid else "pid unknown"
        os.ftruncate(self._lock_fd, 0)
        os.write(self._lock_fd, f"{os.getpid()}\n".encode())
        return None

    def wake(self) -> None:
        """Something happened: look now."""
        with self._cond:
            self._woken = True
            self._cond.notify_all()

    def _wait(self, pause_s: float) -> None:
        pause_s = min(pause_s, LONGEST_PAUSE_S)
        with self._cond:
            self._cond.wait_for(lambda: self._woken, max(SHORTEST_PAUSE_S, pause_s))
            self._woken = False

    def _install_signals(self) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        signal.signal(signal.SIGHUP, self._on_hup)

    def _on_term(self, signum: int, frame: object) -> None:
        self._stopping = True
        threading.Thread(target=self.wake, daemon=True).start()  # the handler may have met us in the lock

    def stop(self) -> None:
        """SIGTERM, from code: PostgreSQL is stopped and the key given away, by rule."""
        self._stopping = True
        self.wake()

    def _on_hup(self, signum: int, frame: object) -> None:
        self.ask_reload()

    def ask_reload(self) -> None:
        """SIGHUP or POST /reload: done by the loop, at once."""
        self._reload = True
        self.runtime.thread(self.wake, "wake").start()

    def _leave(self, code: int, reason: str) -> None:
        self._exit = (code, reason)

    def _first_contact(self) -> bool:
        """Wait for the DCS; refuse to be a second member of this name (contract 7.1)."""
        while not self._stopping:
            try:
                snapshot = self.dcs.snapshot(self.observer.settings.retry_timeout_s)
            except DcsLoginRefused as fault:
                log.critical("the DCS refused our login: %s", fault)
                self._exit = (1, "login refused")
                return False
            except DcsError as fault:
                log.warning("waiting on %s: %s", self.dcs.backend, fault)
                with self._cond:
                    self._cond.wait_for(lambda: self._stopping, FIRST_CONTACT_PAUSE_S)
                continue
            member = snapshot.member(self.config.name)
            if member is not None and self._somebody_is_there(member.api_url):
                log.critical("Can't start; there is already a node named '%s' running", self.config.name)
                self._exit = (1, "duplicate name")
                return False
            self.observer.use_settings(snapshot)
            self.promises.load(self.observer.settings.ttl_s, self.observer.settings.failsafe_mode)
            return True
        self._exit = (0, "stopped before the first contact")
        return False

    def _somebody_is_there(self, api_url: str | None) -> bool:
        """Does a living agent answer `GET /liveness` there? (contract 7.1)"""
        return api_url is not None and self._peer_port.is_alive(api_url.rpartition("/")[0] + "/liveness")

    def _farewell(self, code: int, reason: str) -> int:
        """PostgreSQL and key are dealt with by rule; what is left is ours."""
        log.info("leaving: %s", reason)
        self.service.stopping()
        self.rest.stop()
        self.programs.flush(1.0)
        self.publisher.stop(2.0)
        self.keeper.stop()
        self.instance.sampler.stop()
        self.prober.stop()
        link = self.instance.link
        if link is not None:
            if self.instance.pid() is None:
                link.exit(2.0)
            else:
                link.close()
        self.journal.close(1.0)
        return code

    # --- events ---------------------------------------------------------------------------------------

    def _dcs_event(self, event: WatchEvent) -> None:
        """Members rewrite their keys all the time; only what may change a decision wakes the loop."""
        self.operations.dcs_changed()
        if isinstance(event, KeyEvent):
            own = event.key == codec.MEMBERS + self.config.name
            comes_or_goes = event.created or event.deleted
            if own and not event.deleted:
                return
            quiet = event.key.startswith(codec.MEMBERS) or event.key in (codec.STATUS, codec.HISTORY)
            if quiet and not comes_or_goes and not self._attentive:
                return
        self.wake()

    def _guardian_event(self, event: guardian.GuardianEvent) -> None:
        if isinstance(event, guardian.Fencing) and event.spared:
            self.keeper.fenced(event.epoch)
            said = f"the lease of epoch {event.epoch} ran out: PostgreSQL, a standby, goes on"
            self.journal.event("lease-ended", said)
        elif isinstance(event, guardian.Fencing):
            self.keeper.fenced(event.epoch)
            log.info("%s", lines.of_fence(self.last_observation))
            self.measures.fenced("guardian")
            self.journal.event("fence", f"the lease of epoch {event.epoch} ran out: PostgreSQL is stopped")
        elif isinstance(event, guardian.PostmasterExited):
            self.journal.event(
                "postmaster-exit",
                f"PostgreSQL (pid {event.pid}) ended",
                status=event.status,
                fenced=event.fenced,
            )
        else:
            self._replaced = event.cause if "took over" in event.cause else None
            self.instance.link = None
            self.watchdog.guardian_lost()
            self.keeper.guardian_lost()
            self.journal.event("guardian-lost", f"the guardian is gone: {event.cause}")
        self.wake()

    def _connect_guardian(self) -> None:
        state = self.instance.connect_guardian(self._guardian_event)
        last = state.last_exit
        if not self._met_guardian and (state.fencing or (last is not None and last.fenced)):
            self.measures.fenced("guardian")  # while no agent was there to count it
        self._met_guardian = True
        link = self.instance.link
        if link is not None:  # else it was lost again meanwhile, and is looked for in the next step
            self.watchdog.guardian_found()
            self.keeper.use_guardian(link, state)

    def _keep_guardian(self) -> None:
        """A dead guardian is replaced; without one the keeper's backstop is the fence (H10)."""
        if self._replaced is not None:
            log.critical("%s: this agent ends and touches nothing", self._replaced)
            self._exit = (1, self._replaced)
            return
        if self.instance.link is not None or self._now() < self._next_guardian_try:
            return
        self._next_guardian_try = self._now() + GUARDIAN_RETRY_S
        try:
            self._connect_guardian()
        except GuardianUnavailable as fault:
            log.error("no guardian: %s", fault)

    # --- the step -------------------------------------------------------------------------------------

    def _guarded_step(self) -> float:
        """A step that fails in an unforeseen way does nothing new, and keeps what holds (rule 10, H12)."""
        try:
            pause_s = self._step()
            if self._now() - self._step_started_at > self.observer.settings.loop_wait_s:
                log.warning("Loop time exceeded, rescheduling immediately.")
        except Exception:
            log.exception("a step failed unexpectedly (%s in a row)", self._broken_steps + 1)
            return self._after_broken_step()
        return pause_s

    def _after_broken_step(self) -> float:
        """Keep the lease, unless this goes on and a member that can decide is there."""
        self._broken_steps += 1
        self.measures.step_failed()
        obs = self.last_observation
        if self._broken_steps < BROKEN_STEPS or obs is None or not another_could_lead(obs):
            self.keeper.permit()
        return FAILED_PAUSE_S

    def _step(self) -> float:
        """One observe, decide, act. Returns how long to wait if nothing happens, seconds."""
        self._step_started_at = self._now()
        self._keep_guardian()
        if self._exit is not None:
            return 0.0
        if self._stopping:
            self._begin_to_stop()
        asked, planned = self.requests.current(), self.requests.scheduled()
        obs = self.observer.observe(Wishes(asked, self._stopping, planned))
        self.last_observation = obs
        self._note_cluster(obs)
        self.observer.complain(obs, self.memory)
        if not (obs.instance.alive or obs.stopping):
            self.service.ready()  # PostgreSQL may take its time: we are well (contract 7.2)
        decision, before = self._decide(obs), self.memory
        pause_s = self._carry_out(obs, decision) if decision is not None else 0.0
        self.callbacks.after_step(obs, before)
        if decision is None:
            return self._after_broken_step()
        self.measures.decided_at = obs.now
        if pause_s > 0.0 or self._exit is not None:
            self._publish(obs)
        self._broken_steps = 0
        if self._exit is None:
            self.keeper.permit()
        self._forget_promise()
        return pause_s

    def _forget_promise(self) -> None:
        with contextlib.suppress(StorageHangs):
            self.promises.forget(partial(self.instance.storage.write, "striking out an old promise"))

    def _begin_to_stop(self) -> None:
        """Contract 2.12: nobody is answered any more, except in a pause, which ends at once."""
        self.service.stopping()
        if not self.observer.settings.pause:
            self.rest.stop()

    def _decide(self, obs: Observation) -> Decision | None:
        """The decision, or None when `decide` raised: then nothing new is done (rule 10, H12)."""
        try:
            decision = self.decide(obs, self.memory)
        except Exception:
            log.exception("decide failed (%s in a row)", self._broken_steps + 1)
            self.memory = absorb_safely(obs, self.memory)
            return None
        return decision

    def _carry_out(self, obs: Observation, decision: Decision) -> float:
        started_at, before = self._now(), self.memory
        done, failed = self.interpreter.run(obs, decision.actions)
        if failed is not None and done == 0:
            self.memory = absorb(obs, self.memory)
        else:
            self.memory = decision.memory
        now = self._now()
        self._takeovers.step(obs, before, self.memory, decision.actions[:done], now)
        self._journal(obs, decision, (now - started_at) * 1000, failed)
        self._attentive = decision.again_in_s is not None
        if failed is not None:
            return max(FAILED_PAUSE_S, decision.again_in_s or 0.0)
        if decision.again_in_s is not None:
            return decision.again_in_s
        return obs.settings.loop_wait_s + (0.0 if obs.lease.epoch is not None else 0.5)

    def _journal(self, obs: Observation, decision: Decision, took_ms: float, failed: str | None) -> None:
        sample, heartbeat = obs.instance.sample, decision.heartbeat or not decision.actions
        owner = lines.lock_owner(obs)
        if owner is not None and (heartbeat or decision.rule != self._last_rule):
            log.log(logging.DEBUG if heartbeat else logging.INFO, "%s", owner)
        self._last_rule = decision.rule
        refusals = [{"rule": r.rule, "detail": r.detail} for r in decision.refusals]
        self.journal.decision(
            decision.rule,
            decision.reason,
            line=lines.of_decision(obs, decision),
            heartbeat=heartbeat,
            epoch=obs.lease.epoch,
            timeline=obs.instance.timeline,
            lsn=sample.position if isinstance(sample, InstanceSample) else None,
            took_ms=took_ms,
            failed=failed,
            actions=[type(a).__name__ for a in decision.actions] or None,
            refusals=refusals or None,
        )

    # --- what others see ------------------------------------------------------------------------------

    def _note_cluster(self, obs: Observation) -> None:
        if isinstance(obs.cluster, ClusterSnapshot):
            self._seen_cluster = (obs.cluster, self._now(), int(self.runtime.wall()))
            urls = {m.name: m.api_url for m in obs.cluster.members if m.api_url}
            self.interpreter.last_urls = self.interpreter.last_urls | urls

    def _publish(self, obs: Observation) -> None:
        """What REST shows from now on, then the member key, last in the step (contract 1.2)."""
        lease, job = self.keeper.facts(), self.runner.facts()[0]
        facts = obs if lease is obs.lease and job is obs.job else replace(obs, lease=lease, job=job)
        self._shown = _Shown(facts, self.memory, self._seen_cluster, self._now())
        session = self.keeper.session()
        if session is None or isinstance(obs.cluster, Unavailable):
            return
        missing = obs.cluster.member(self.config.name) is None
        self.publisher.publish(session, self._member_text(facts), obs.settings.retry_timeout_s, again=missing)

    def _member_text(self, facts: Observation) -> str:
        """The value of our member key; written out anew only when it says something else."""
        record = member_record(facts, self.memory, self._where)
        if self._said is None or self._said[0] != record:
            self._said = (record, codec.encode_member(record))
        return self._said[1]

    def _about_me(self) -> dict[str, Any]:
        """What the members are told that are asked for their promise (contract 2.11)."""
        sample, obs, seen = _known(self.instance.sampler.last()), self.last_observation, self._seen_cluster
        slots: dict[str, int] = {}
        if sample is not None and obs is not None and seen is not None:
            slots = positions(replace(obs, cluster=seen[0]), self.memory, sample)
        return {"conn_url": self._where.conn_url, "api_url": self._where.api_url, "slots": slots}

    def picture(self) -> Published:
        """What the last step saw, with the newest sample that is known; never blocks."""
        shown = self._shown
        if shown is None:
            settings = self.observer.settings
            return Published(self.config.scope, self.config.name, "starting", "uninitialized", settings)
        obs, memory = shown.facts, shown.memory
        job = self.runner.facts()[0]
        if job is not None and obs.job is not None:
            obs = replace(obs, job=job)  # it goes on between two steps
        seen = self._seen_cluster
        was, planned = _known(obs.instance.sample), self.requests.scheduled()
        ttl = obs.settings.ttl_s * (1 if obs.instance.serves_as_primary else 2)
        return Published(
            scope=obs.me.scope,
            name=obs.me.name,
            state=state_text(obs, memory),
            role=role_text(obs),
            settings=obs.settings,
            tags=obs.me.tags,
            sample=_known(self.instance.sampler.last()),
            cluster=shown.cluster[0] if shown.cluster else None,
            cluster_is_fresh=seen is not None and self._now() < seen[1] + obs.settings.ttl_s,
            dcs_last_seen=shown.cluster[2] if shown.cluster else 0,
            system_identifier=obs.instance.system_identifier,
            pending_restart_reason={n: (old, new) for n, old, new in (was.pending_restart if was else ())},
            alive_until=float("inf") if obs.settings.pause else shown.at + obs.settings.loop_wait_s + ttl,
            scheduled_restart=planned.wish.shown if planned is not None else None,
            note=note(obs, memory),
            copied=obs.job.copied if obs.job is not None else None,
            cannot_lead=cannot_lead(obs, memory),
            rejoin=rejoin_view(obs, memory),
            discards=self.instance.rejoin.discards,
            watchdog_failed=forbids(obs) is not None,
            failsafe_active=is_active(self.keeper.facts(), self.promises.facts(), self._now()),
            queued_log_records=queued_records(),
            lost_log_records=lost_records(),
        )

    def numbers(self) -> Numbers:
        """What `/metrics` shows beside the picture; put together only when somebody asks."""
        shown, seen = self._shown, None
        if shown is not None:
            facts = replace(shown.facts.instance, sample=self.instance.sampler.last())
            seen = outlook(replace(shown.facts, instance=facts))
        return Numbers(self.measures, seen, self.prober.facts())

    # --- configuration --------------------------------------------------------------------------------

    def _reload_config(self) -> None:
        """SIGHUP: an invalid file changes nothing (contract 7.1)."""
        self._reload = False
        self.service.reloading()
        self._read_config()
        self.service.ready()

    def _read_config(self) -> None:
        if self.config.source is None:
            return
        try:
            new, changed, later = reload(self.config)
            self.rest.reload(new.restapi)
        except (ConfigErrors, RestError) as fault:
            log.error("the configuration was not reloaded: %s", fault)
            return
        for warning in new.warnings:
            log.warning("%s", warning)
        if later:
            log.warning("these keys change only when the agent is started again: %s", ", ".join(later))
        self.config = self.interpreter.config = new
        self._where = _addresses(new)
        self._reconfigured(new)
        self.observer.use_config(new)
        self.instance.rewrite_files()
        log.info("configuration reloaded%s", f": {', '.join(changed)}" if changed else ", nothing changed")


def _addresses(config: AgentConfig) -> Addresses:
    pg = config.postgresql
    return Addresses(
        conn_url=pg.conn_url,
        api_url=config.restapi.api_url,
        version=COMPATIBLE_VERSION,
        agent=f"haagent/{__version__}",
        proxy_url=f"postgres://{pg.proxy_address}/{pg.database}" if pg.proxy_address else None,
    )


def _known(sample: InstanceSample | Unavailable) -> InstanceSample | None:
    return sample if isinstance(sample, InstanceSample) else None


def absorb_safely(obs: Observation, memory: Memory) -> Memory:
    """Memory after a failed decision: what could be noted is noted."""
    try:
        return absorb(obs, memory)
    except Exception:
        return memory
