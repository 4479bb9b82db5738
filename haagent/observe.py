"""All reads of one step, each with its own deadline, gathered into one `Observation`.

A fact that cannot be read is `Unavailable` with the time since when; nothing is retried in here. The DCS
view is read once per step, linearizably: what is decided rests on it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from dcs.api import Dcs
from dcs.errors import DcsError
from dcs.records import ClusterSnapshot
from haagent.config.types import AgentConfig
from haagent.core.model import Identity, Memory, Observation, OperatorRequest, Unavailable
from haagent.core.restart import ScheduledRestart
from haagent.core.settings import Settings, parse_settings
from haagent.core.slot_complaints import complaints
from haagent.failsafe import Failsafe
from haagent.instance import LocalInstance
from haagent.jobs import JobRunner
from haagent.lease_keeper import LeaseKeeper
from haagent.measures import Measures
from haagent.peers import PeerAsker
from haagent.prober import Prober
from haagent.promises import Promises
from haagent.runtime import Runtime
from haagent.sync_key import SyncKey
from haagent.watchdog import Watchdog

log = logging.getLogger(__name__)

#: A step waits this long for PostgreSQL's answer before it calls it silent, seconds.
SAMPLE_WAIT_S = 1.0


@dataclass(frozen=True)
class Wishes:
    """What was asked of this agent from outside."""

    request: OperatorRequest | None = None
    stopping: bool = False
    scheduled_restart: ScheduledRestart | None = None


class Observer:
    """Gathers facts for one agent. Used by the loop thread only."""

    def __init__(
        self,
        runtime: Runtime,
        config: AgentConfig,
        dcs: Dcs,
        keeper: LeaseKeeper,
        instance: LocalInstance,
        runner: JobRunner,
        peers: PeerAsker,
        measures: Measures,
        watchdog: Watchdog,
        sync_key: SyncKey,
        prober: Prober,
        failsafe: Failsafe,
        promises: Promises,
    ) -> None:
        self._sync_key = sync_key
        self._now, self._wall = runtime.now, runtime.wall
        self._measures = measures
        self.failsafe, self.promises = failsafe, promises
        self.config, self.dcs, self.keeper = config, dcs, keeper
        self._prober = prober
        self._me = Identity(config.name, config.scope, config.tags)
        self.instance, self.runner, self.peers, self.watchdog = instance, runner, peers, watchdog
        self.settings = Settings.default()
        self._config_seen: object = None
        self._local_seen: AgentConfig | None = None
        self._silent_since: float | None = None
        self._warned: set[str] = set()

    def observe(self, wishes: Wishes) -> Observation:
        """Every fact of this step. Never raises on what a store or a server may say."""
        cluster = self._cluster()
        if isinstance(cluster, ClusterSnapshot):
            self.use_settings(cluster)
            self.keeper.recognise(cluster.leader)
            self.failsafe.saw(cluster, self.keeper.facts().epoch)
            self.promises.settled()
        job, background = self.runner.facts()
        finished = self.runner.collect()
        if job is None and isinstance(cluster, ClusterSnapshot) and cluster.config is not None:
            self.instance.keep_dynamic(cluster.config.data)
        lease = self.keeper.facts()
        follows_another = self.settings.standby_cluster is not None
        self.instance.leads_standby_cluster = follows_another and lease.holds(self._now())
        instance = self.instance.facts(SAMPLE_WAIT_S, busy=job is not None)
        lease = self.keeper.facts()
        return Observation(
            now=self._now(),
            me=self._me,
            settings=self.settings,
            cluster=cluster,
            instance=instance,
            lease=lease,
            peers=self.peers.answers(),
            job=job,
            background=background,
            finished=finished,
            request=wishes.request,
            stopping=wishes.stopping,
            watchdog=self.watchdog.facts(),
            promise=self.promises.facts(),
            copies_without_leader=any(m.no_leader for m in self.instance.effective.config.replica_methods),
            asks_before_promotion=self.instance.effective.config.pre_promote is not None,
            scheduled_restart=wishes.scheduled_restart,
            vitals=self._prober.facts(),
            wall=self._wall(),
            sync_in_doubt=isinstance(cluster, ClusterSnapshot)
            and self._sync_key.in_doubt(cluster.sync_version),
        )

    def _cluster(self) -> ClusterSnapshot | Unavailable:
        asked_at = self._now()
        try:
            snapshot = self.dcs.snapshot(self.settings.retry_timeout_s)
        except DcsError as fault:
            if self._silent_since is None:
                log.error("Error communicating with DCS: %s", fault)
            self._silent_since = self._silent_since or self._now()
            return Unavailable(self._silent_since, str(fault))
        self._silent_since = None
        self._measures.round_trip("read", self._now() - asked_at)
        for broken in snapshot.broken:
            self._warn(f"key {broken.key} in the DCS cannot be understood and is ignored: {broken.cause}")
        return snapshot

    def use_settings(self, cluster: ClusterSnapshot) -> None:
        """The dynamic configuration in force; a broken or deleted one keeps the last good (contract 1.3): a
        pause must not end for some of the members because somebody deleted a key."""
        mixed = any(not m.is_haagent for m in cluster.members)
        # Nothing ever changes a decoded record: while the key stays, this is the object of the last step.
        data = cluster.config.data if cluster.config is not None else None
        seen = (data, mixed)
        if seen == self._config_seen and self.config is self._local_seen:
            return
        if data is None and any(b.key == "config" for b in cluster.broken):
            return
        if data is not None:
            self.instance.seen_dynamic = data
        settings, warnings = parse_settings(self.instance.initial_dynamic(), self.dcs.minimum_ttl_s, mixed)
        for warning in warnings:
            self._warn(warning)
        self.settings = self.instance.use(self.config, settings)
        self.keeper.use_settings(self.settings)
        self._config_seen, self._local_seen = seen, self.config

    def complain(self, obs: Observation, memory: Memory) -> None:
        """What is wrong with the slots as they are configured."""
        for complaint in complaints(obs, memory):
            self._warn(complaint)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def use_config(self, config: AgentConfig) -> None:
        """A reloaded local file; takes effect with the next step."""
        self.config = config
        self.watchdog.use(config.watchdog)
        self._me = Identity(config.name, config.scope, config.tags)
        self.instance.config = replace(config)
