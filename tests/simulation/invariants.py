"""The safety rules (design section 3), each as named checks over the truth; nothing here believes an agent.

Theory. Physics tells what really happens (`Truth`), the store's own table who really holds the key.
Every check
runs in the very event that could break it: a server begins or goes on to be writable, the key changes, a
record is acknowledged or discarded, a decision is journalled. What the rules except (a pause, both agent and
guardian frozen, a store that broke its promise) is excused here, by name, and nowhere else.

    rule1.writable-under-lease   rule1.one-writable          rule2.promote-after-key
    rule2.release-after-stop     rule1.callback-under-lease
    rule3.switchover-loses-nothing                           rule5.loss-bounded         rule5.loss-reported
    rule4.promoted-has-everything  rule4.named-have-everything  rule4.sync-fits-the-setting
    rule4.member-leads           rule4.strict-waits (sync_rules.py)
    rule6.beside-a-primary       rule6.behind                rule6.told-not-to         rule6.restart-behind
    rule7.never-the-primary      rule7.last-copy             rule7.kept-aside
    rule7.histories-not-mixed    rule7.reported              agent.rewind-budget
    rule7.no-copy-beside-a-claim
    rule8.old-sessions-end       rule9.paused-hands-off      rule10.nothing-new        agent.fault
    failsafe.promise-kept        failsafe.kept-primary
    liveness.one-primary         liveness.all-stream         liveness.answered          schedule.as-asked
    standby-cluster.read-only    liveness.follows-remote
    slots.never-ahead            liveness.slots-kept
    liveness.sync-named
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcs.api import KeyEvent
from haagent.core.roles import PRIMARY
from tests.simulation.failsafe import FailsafeTruth
from tests.simulation.postgres import Server, Truth
from tests.simulation.rejoining import Budget, is_written_down, only_here
from tests.simulation.reports import Report, unreported
from tests.simulation.schedules import done_as_asked
from tests.simulation.store import Holder
from tests.simulation.sync_rules import SyncRules
from tests.simulation.wal import (
    DATA,
    END_OF_RECOVERY,
    FIRST_LSN,
    RECORD_BYTES,
    Record,
    count_until,
    end_of,
    in_common,
)

if TYPE_CHECKING:
    from tests.simulation.host import SimHost
    from tests.simulation.node import Node
    from tests.simulation.world import World

#: Two clocks of one cluster differ by less than this share; for windows that agents measure by their own.
_DRIFT = 0.01
#: An answer so old still counts in an election, by any clock, seconds (`candidate.ANSWER_LIFE_S`).
_ANSWER_S = 2.45
#: What a pause forbids unless an operator asked for it.
_HANDS_OFF = frozenset(
    ("Promote", "StartPrimary", "StartStandby", "StopInstance", "Clone", "Rewind", "Initdb")
)
#: A rewind or a clone that was begun may take so long, seconds.
_WORK_S = 60.0
#: After a writable host thaws, its guardian gets so long beyond the stop budget to run at all, seconds.
_THAW_S = 0.5


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    at: float
    name: str
    text: str


@dataclass
class Vacancy:
    """The key is free: since when, who held it, and how it went."""

    since: float
    holder: Holder | None = None
    released: bool = False
    #: `failover` as it was then.
    request: Mapping[str, Any] | None = None
    #: Position that the last holder's record asks for.
    optime: int = 0
    #: Its agent was in the middle of a hand-over; not one that ends, or crashed, while a request is there.
    handed_over: bool = False


@dataclass(frozen=True)
class Answer:
    """What a peer had when it answered."""

    at: float
    primary: bool
    able: bool
    records: list[Record]
    count: int


class Invariants(Truth):
    """Of one world. `violations` holds the first one; the schedule stops there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine, self.store = world.engine, world.store
        self.violations: list[Violation] = []
        self.writable_servers: dict[Server, float] = {}
        self._were_writable: set[Server] = set()
        #: The cluster's line: what the last server has that became a primary.
        self._line: list[Record] = []
        #: Acknowledged records that no accepted loss took away, oldest first.
        self.acknowledged_records: list[Record] = []
        self.lost_records = 0
        self.vacancy: Vacancy | None = Vacancy(self.engine.now)
        self.holder: Holder | None = None
        self.taken_at = 0.0
        self.paused = False
        self.resumed_at: float | None = None
        #: A manual failover stands in the store: an operator's word, however old.
        self.failover_asked = False
        self.forced_until = 0.0
        #: Server: why it may be writable without the key.
        self.unleased: dict[Server, str] = {}
        #: Node: true time until which its fence cannot be relied on.
        self.excused_until: dict[str, float] = {}
        self.answers: dict[tuple[str, str], Answer] = {}
        self.limits: list[tuple[float, int]] = []
        #: What each member reported of the loss of its last promotion.
        self.reports: dict[str, Report] = {}
        self.published_timeline = 0
        self.rewinds = Budget()
        #: Member: pid of the server that a restart is scheduled for.
        self.to_restart: dict[str, int | None] = {}
        #: Since when the cluster follows another one, by the store; None while it does not.
        self.follows_since = self.engine.now if world.plan.follows else None
        self._configured = False
        #: The section was there until then: what was begun may go on.
        self.followed_until = 0.0
        #: WAL of the server whose position was published last.
        self._published: list[Record] = []
        #: Slot -> where one of that name began that a leader told of: a leader without a copy makes it anew.
        self.slots_begun: dict[str, int] = {}
        self.moves = 0
        #: Member -> what its pre_promote said last, and when.
        self.agreed: dict[str, tuple[bool, float]] = {}
        self.failsafe = FailsafeTruth(self)
        self.sync = SyncRules(world, self)
        self.store.on_change.append(self._store_changed)
        self._read_config()
        self.sync.key_changed()

    def violated(self, name: str, text: str) -> None:
        """Noted, never raised: this may run inside the code under test, which would catch it."""
        if not self.violations:
            self.violations.append(Violation(self.engine.now, name, text))
            self.world.trace("!", "violation", f"{name}: {text}")
        self.engine.stop()

    # --- the store --------------------------------------------------------------------------------

    def _store_changed(self, event: KeyEvent) -> None:
        if event.key == "leader":
            self._leader_changed()
        elif event.key == "config":
            self._read_config()
        elif event.key == "failover":
            self._read_request()
        elif event.key == "haagent_claims":
            self._read_claims()
        elif event.key == "status":
            self._read_status()
        elif event.key == "sync":
            self.sync.key_changed()

    def _read_config(self) -> None:
        data = _json(self.store.raw_get("config"))
        self._read_section(data)
        self.sync.config_changed(data)
        paused = data.get("pause") is True
        if paused != self.paused:
            self.paused = paused
            self.resumed_at = None if paused else self.engine.now
            self.look()
        limit = data.get("maximum_lag_on_failover", 1048576)
        if isinstance(limit, int) and (not self.limits or self.limits[-1][1] != limit):
            self.limits.append((self.engine.now, limit))

    def _read_section(self, data: Mapping[str, Any]) -> None:
        """`standby_cluster` appears, or is gone. What was acknowledged before is the operator's to lose."""
        if not self.world.plan.follows or not data:
            return
        there, made = bool(data.get("standby_cluster")), not self._configured
        self._configured = True
        if not there and made and not self.world.promoted_by_hand:
            self.violated("standby-cluster.read-only", "the configuration was made without its section")
        if not there and self.follows_since is not None:
            self.followed_until = self.engine.now
        if there and self.follows_since is None:
            self.acknowledged_records.clear()
        self.follows_since = (self.follows_since or self.engine.now) if there else None

    def _read_request(self) -> None:
        """A manual failover waives lag, timeline and who is ahead (rule 6)."""
        request = _json(self.store.raw_get("failover"))
        self.failover_asked = bool(request.get("member")) and not request.get("leader")
        if request.get("member") and not request.get("leader"):
            self.forced_until = self.engine.now + 4 * self.world.plan.ttl_s + 30.0

    def _read_claims(self) -> None:
        """The last one is new; what was published until then is what its note goes by."""
        optime = _json(self.store.raw_get("status")).get("optime")
        last = _last(self.store.raw_get("haagent_claims"))
        known = optime if isinstance(optime, int) else None
        report = Report(str(last.get("note") or ""), known, self.published_timeline)
        self.reports[str(last.get("name"))] = report

    def _read_status(self) -> None:
        """Whose position it is."""
        server = self.world.server_of(self.holder.name) if self.holder is not None else None
        if server is not None:
            self.published_timeline, self._published = server.timeline, server.dd.records
            for name, slot in server.dd.slots.items():
                self.slots_begun[name] = max(slot.made_at, self.slots_begun.get(name, 0))

    def _leader_changed(self) -> None:
        now, old, new = self.engine.now, self.holder, self.store.leader()
        self.holder = new
        if new is None:
            self.vacancy = self._vacated(old)
            self.failsafe.key_gone(self.vacancy.released, old)
            if self.vacancy.released:
                self._released(self.vacancy)
        elif old is None or old.epoch != new.epoch:
            self.moves += 1
            self._taken(new, self.vacancy or Vacancy(now, old))
        self.look()

    def _vacated(self, old: Holder | None) -> Vacancy:
        # A session that ran out is gone by now; a released key leaves its session behind.
        ends_at = self.store.expires_at(old.session) if old is not None else None
        alive = ends_at is not None and ends_at > self.engine.now
        released = old is not None and alive and not self._broke_promise(old)
        status, request = _json(self.store.raw_get("status")), _json(self.store.raw_get("failover"))
        optime = status.get("optime")
        if released and old is not None:
            self.world.trace(old.name, "key", f"released epoch {old.epoch}")
        agent = self.world.nodes[old.name].agent if old is not None and old.name in self.world.nodes else None
        handed_over = released and agent is not None and agent.memory.handover is not None
        position = optime if isinstance(optime, int) else 0
        return Vacancy(self.engine.now, old, released, request or None, position, handed_over)

    def _broke_promise(self, old: Holder) -> bool:
        return (
            any(e.session == old.session for e in self.store.early_expiries) or self.world.key_deleted_by_hand
        )

    def _released(self, gone: Vacancy) -> None:
        """Rule 2: only after PostgreSQL is proven stopped, or serves as a standby."""
        assert gone.holder is not None
        server = self.world.server_of(gone.holder.name)
        if server is None or server.in_recovery:
            return
        alive = not server.gone or any(c.alive for c in server.connections)
        if alive and not self._excused(server):
            text = f"{gone.holder.name} released epoch {gone.holder.epoch} while {server!r} lives"
            self.violated("rule2.release-after-stop", text)

    def _taken(self, new: Holder, gone: Vacancy) -> None:
        """Somebody took the key: was it allowed to? (rule 6)"""
        self.world.trace(new.name, "key", f"took epoch {new.epoch}")
        self.taken_at = self.engine.now
        node, server = self.world.nodes.get(new.name), self.world.server_of(new.name)
        if node is None or server is None or not server.in_recovery or server.gone:
            return
        self.sync.taken(new.name)
        tags = node.tags
        if tags.get("nofailover") or tags.get("failover_priority", 1) <= 0:
            self.violated("rule6.told-not-to", f"{new.name} took the key with tags {dict(tags)}")
        if self.follows_since is not None:
            return  # it promotes nothing: whom it follows has everything
        since = max(gone.since, self.engine.now - _ANSWER_S)
        for (asker, peer), answer in self.answers.items():
            if asker != new.name or answer.at < since:
                continue
            if answer.primary:
                self.violated(
                    "rule6.beside-a-primary", f"{new.name} took the key; {peer} said it is a primary"
                )
            elif self._counts(peer, answer) and self._is_ahead(server, answer):
                text = f"{new.name} has {len(server.dd.records)} records, {peer} said it has {answer.count}"
                self.violated("rule6.behind", text)
        if not self._forced() and gone.holder is not None:
            self._bounded(new, server, gone)

    def _bounded(self, new: Holder, server: Server, gone: Vacancy) -> None:
        """Rule 5: who takes over is at most maximum_lag_on_failover behind the last status."""
        # Of WAL that left the published one, only what both have counts (H15).
        published = self._published[: count_until(gone.optime)]
        common = in_common(server.dd.records, published)
        behind = gone.optime - (server.dd.end if common == len(published) else end_of(common))
        recent = [limit for at, limit in self.limits[:-1] if at > self.engine.now - 60.0]
        limit = max([*recent, *(value for _, value in self.limits[-2:])], default=1048576)
        if behind > limit:
            text = f"{new.name} took the key {behind} bytes behind the last status, allowed are {limit}"
            self.violated("rule5.loss-bounded", text)

    def _is_ahead(self, server: Server, answer: Answer) -> bool:
        """The answerer had all that `server` has, and more of it; what left the cluster's line does not count
        (H15)."""
        mine = server.dd.records
        if in_common(mine, answer.records) < len(mine):
            return False
        on_the_line = max(in_common(self._line, answer.records), len(mine))
        return min(answer.count, on_the_line) > len(mine)

    def _counts(self, peer: str, answer: Answer) -> bool:
        return answer.able and not self._forced() and self.sync.blocks(peer)

    def is_forced(self) -> bool:
        """An operator's failover by hand may be what is going on."""
        return self._forced()

    def _forced(self) -> bool:
        return self.failover_asked or self.engine.now < self.forced_until

    # --- servers ----------------------------------------------------------------------------------

    def writable(self, server: Server) -> None:
        if server.member not in self.world.nodes:
            return
        self.world.trace(server.member, "postgres", "is writable")
        self.writable_servers[server] = self.engine.now
        if not self._holds(server) and not self._excused(server) and server not in self.unleased:
            text = f"{server!r} became writable while the key is held by {self._held_by()}"
            self.violated("rule2.promote-after-key", text)
        self.failsafe.begins(server)
        if server not in self._were_writable:  # not one that only goes on: thawed, or answering again
            self._were_writable.add(server)
            self._reads_only(server)
            self._line = server.dd.records
            self._restarted(server)
        self.sync.look(server)
        self.look()

    def not_writable(self, server: Server) -> None:
        if server.member not in self.world.nodes:
            return
        self.world.trace(server.member, "postgres", "is not writable any more")
        self.writable_servers.pop(server, None)
        self.failsafe.ends(server)
        if server.gone and not server.connections:
            self.unleased.pop(server, None)

    def _reads_only(self, server: Server) -> None:
        """What was begun before the section came has ended, or been stopped, by then."""
        since, ttl_s = self.follows_since, max(10.0, self.world.plan.ttl_s)
        if since is not None and self.engine.now > since + 4 * ttl_s + 10.0:
            text = f"{server!r} became writable; the section is there since {since:.3f}"
            self.violated("standby-cluster.read-only", text)

    def _restarted(self, server: Server) -> None:
        """Rule 6, H14: a primary that lost WAL does not come back below what was published.

        An elected standby may be behind by rule 5: it begins a timeline, nothing diverges silently."""
        if server.dd.records[-1].kind == END_OF_RECOVERY:
            return
        status = _json(self.store.raw_get("status")).get("optime")
        if server.dd.end < FIRST_LSN + 2 * RECORD_BYTES or not isinstance(status, int) or self._forced():
            return
        lost = self.world.node(server.member).lost_wal
        if lost and server.dd.end < status:
            text = f"{server!r} is a primary again up to {server.dd.end}, published was {status}"
            self.violated("rule6.restart-behind", text)

    def look(self) -> None:
        """Rule 1: whoever is writable holds the key; nobody else is."""
        for server in self.writable_servers:
            if self._holds(server):
                self.unleased.pop(server, None)
            elif not self._excused(server) and server not in self.unleased:
                old_only = server.door() != "open"
                name = "rule8.old-sessions-end" if old_only else "rule1.writable-under-lease"
                self.violated(name, f"{server!r} is writable while the key is held by {self._held_by()}")
        if len(self.writable_servers) > 1:
            relied = [s for s in self.writable_servers if not self._unreliable(s)]
            excepted = self.paused or self._forced() or self.engine.now < self.world.two_until
            if len(relied) > 1 and not excepted:
                self.violated("rule1.one-writable", ", ".join(repr(s) for s in relied))

    def _holds(self, server: Server) -> bool:
        return self.holder is not None and self.holder.name == server.member

    def _held_by(self) -> str:
        return self.holder.name if self.holder is not None else "nobody"

    def _unreliable(self, server: Server) -> bool:
        return self.excused_until.get(server.member, 0.0) > self.engine.now

    def _excused(self, server: Server) -> bool:
        """The closed list of exceptions; a mark stays until the server holds the key again or is gone."""
        if self._unreliable(server) or self.failsafe.carries(server):
            return True
        if self.paused or self._disarmed(server):
            self.unleased[server] = "pause"
            return True
        if self.world.key_deleted_by_hand or self.store.early_expiries:
            self.unleased[server] = "the store broke its promise"
            return True
        return False

    def _disarmed(self, server: Server) -> bool:
        guardian = self.world.node(server.member).guardian_logic
        return guardian is not None and guardian.lease.disarmed

    def called_back(self, node: Node, action: str, role: str) -> None:
        """Rule 1 for what callbacks run: no address may move to a primary without the key."""
        self.world.trace(node.name, "callback", f"{action} {role}")
        server = self.world.server_of(node.name)
        leads = self.holder is not None and self.holder.name == node.name
        tells = action != "on_stop" and role == PRIMARY
        if tells and not leads and not (server is not None and self._excused(server)):
            text = f"{node.name} called {action} {role} while the key is held by {self._held_by()}"
            self.violated("rule1.callback-under-lease", text)

    # --- WAL --------------------------------------------------------------------------------------

    def acknowledged(self, server: Server, record: Record) -> None:
        """What a server acknowledges that nothing could end in time, beside the holder of the key, nobody
        promises to keep; nor what one of two does that operators let write in a pause, nor anything once
        somebody deleted the leader key (docs/safety.md)."""
        if self.world.key_deleted_by_hand:
            self.acknowledged_records.clear()
            return
        if server.member not in self.world.nodes or self.follows_since is not None:
            return
        two = len(self.writable_servers) > 1 and "pause" in map(self.unleased.get, self.writable_servers)
        if not two and (self._holds(server) or not self._unreliable(server)):
            self.acknowledged_records.append(record)
            self.sync.acknowledged(server, record)

    def waits_changed(self, server: Server) -> None:
        self.sync.look(server)

    def hook_ended(self, node: Node, name: str, agreed: bool) -> None:
        self.world.trace(node.name, "hook", f"{name}: {'agrees' if agreed else 'refuses'}")
        if name == "pre_promote":
            self.agreed[node.name] = agreed, self.engine.now

    def _asked_first(self, server: Server) -> None:
        """Rule 6: where a program has to agree to a promotion, it has, since the key was taken."""
        if not self.world.plan.dynamic.get("postgresql", {}).get("pre_promote"):
            return
        agreed, at = self.agreed.get(server.member, (False, 0.0))
        if not agreed or at < self.taken_at:
            self.violated("rule6.told-not-to", f"{server.member} promoted, and pre_promote did not agree")

    def promoted(self, server: Server, timeline: int, count: int) -> None:
        if server.member not in self.world.nodes:
            return
        self.world.trace(server.member, "postgres", f"promoted to timeline {timeline}")
        self._asked_first(server)
        self.sync.promoted(server)
        lost = self._missing_on(server)
        if not lost:
            return
        missing = unreported(self.reports.get(server.member), lost)
        if missing is not None:
            self.violated("rule5.loss-reported", f"{server.member} promotes: {missing}")
        gone = self.vacancy
        planned = gone is not None and gone.handed_over and _asked_to_step_down(gone)
        in_time = gone is not None and self.engine.now <= gone.since + self.world.plan.ttl_s * (1 - _DRIFT)
        if planned and in_time and not self._forced():
            text = f"{len(lost)} acknowledged records are not on {server.member}, up to {lost[-1]!r}"
            self.violated("rule3.switchover-loses-nothing", text)
        self.lost_records += len(lost)
        self.world.trace(server.member, "loss", f"{len(lost)} acknowledged records")

    def _missing_on(self, server: Server) -> list[Record]:
        """Acknowledged records it does not have; from now on nobody promises them any more."""
        acknowledged, dd = self.acknowledged_records, server.dd
        last = len(acknowledged)
        while last and not dd.holds(acknowledged[last - 1]):
            last -= 1
        lost = acknowledged[last:]
        del acknowledged[last:]
        return lost

    def discarded(self, host: SimHost, records: tuple[Record, ...], why: str) -> None:
        if host.name not in self.world.nodes:
            return
        if records and why in ("lost", "mixed"):
            self.sync.lost.add(host.name)
        if why in ("wiped", "rewound"):
            self.world.trace(host.name, "disk", f"{why}: {len(records)} records")
            server = host.server
            serves = server is not None and not server.gone and not server.in_recovery
            leads = self.holder is not None and self.holder.name == host.name
            follows = self.follows_since is not None or self.engine.now < self.followed_until + _WORK_S
            if serves or (leads and not follows):
                text = f"{host.name} was {why}, and the key is held by {self._held_by()} ({server!r})"
                self.violated("rule7.never-the-primary", text)
        data = tuple(record for record in records if record.kind == DATA)
        if why in ("wiped", "rewound"):
            self._reported(host, records)
        if why == "rewound" and data and not any(set_of(data) <= set_of(kept) for kept in host.dd.kept):
            self.violated(
                "rule7.kept-aside", f"{len(data)} records of {host.name} were not kept: {data[0]!r}"
            )
        if why == "wiped" and records and not self._other_copy(host, records):
            self.violated("rule7.last-copy", f"{host.name} was wiped, and nobody else has its history")

    def _reported(self, host: SimHost, gone: tuple[Record, ...]) -> None:
        """Rule 7: what only this member had is written down on its disk before it goes."""
        ours = tuple(record for record in gone if record.author in self.world.nodes)
        lost, node = only_here(ours, self._line), self.world.nodes[host.name]
        job = node.agent.runner.facts()[0] if node.agent_is_up else None
        asked = job is not None and job.title == "reinitialize"  # it may go on over a full disk
        if lost and not asked and not is_written_down(host, lost):
            text = f"{len(lost)} records of {host.name} are not written down: {lost[0]!r}"
            self.violated("rule7.reported", text)

    def rewinding(self, host: SimHost) -> None:
        holder = self.store.leader()
        wrong = self.rewinds.begun(host, holder.epoch if holder is not None else 0, self.engine.now)
        if wrong is not None:
            self.violated("agent.rewind-budget", wrong)

    def rewind_succeeded(self, host: SimHost) -> None:
        self.rewinds.succeeded(host)

    def _other_copy(self, host: SimHost, gone: tuple[Record, ...]) -> bool:
        """Somebody else has a good directory with every acknowledged record that went."""
        others = [n.host.dd for n in self.world.nodes.values() if n.host is not host]
        others += [far.dd for far in self.world.remote.hosts] if self.world.remote is not None else []
        good = [dd for dd in others if dd.state == "valid" and not dd.damaged and not dd.mixed]
        promised = reversed(self.acknowledged_records)
        last = next((r for r in promised if r.index < len(gone) and gone[r.index] is r), None)
        return any(last is None or dd.holds(last) for dd in good)

    def copied_without_leader(self, host: SimHost) -> None:
        if self.store.raw_get("initialize") == "":
            text = f"{host.name} restores a backup while somebody makes a new cluster"
            self.violated("rule7.no-copy-beside-a-claim", text)

    def mixed(self, host: SimHost, why: str) -> None:
        self.violated("rule7.histories-not-mixed", f"{host.name}: {why}")

    # --- agents -----------------------------------------------------------------------------------

    def decision(self, node: Node, rule: str, actions: list[str]) -> None:
        """A decision was carried out, at least in part."""
        agent = node.agent
        if agent.last_observation is not None:
            wrong = done_as_asked(node, agent.last_observation, actions, self.to_restart.get(node.name))
            if wrong is not None:
                self.violated("schedule.as-asked", f"{wrong} ({rule})")
        self._decided_by_the_section(node, rule, actions)
        # What was decided before may still be under way.
        broken, obs = node.decide_broken_since, agent.last_observation
        if broken is not None and obs is not None and obs.now >= broken:
            self.violated("rule10.nothing-new", f"{node.name} did {rule} although it cannot decide")
        if not agent.observer.settings.pause or not _HANDS_OFF.intersection(actions):
            return
        memory = agent.memory
        asked = obs is None or obs.request is not None or memory.handover is not None
        asked = asked or memory.clean_release or memory.reinitializing
        cluster = getattr(obs, "cluster", None)
        # A hand-over that fails ends where it began, whatever has become of the request.
        asked = asked or rule == "switchover.come-back"
        if not asked and getattr(cluster, "failover", None) is None:
            self.violated(
                "rule9.paused-hands-off", f"{node.name} did {rule} ({', '.join(actions)}) in a pause"
            )

    def _decided_by_the_section(self, node: Node, rule: str, actions: list[str]) -> None:
        """Nobody who has read the section makes a server writable."""
        cluster = getattr(node.agent.last_observation, "cluster", None)
        config = getattr(cluster, "config", None)
        section = config.data.get("standby_cluster") if config is not None else None
        if section and {"Promote", "StartPrimary"}.intersection(actions):
            text = f"{node.name} did {rule} and knew of the section"
            self.violated("standby-cluster.read-only", text)

    def peer_answered(self, asker: str, peer: str, sent_at: float, body: Mapping[str, Any]) -> None:
        """`peer`'s REST answered; what it really has is kept with it."""
        xlog = body.get("xlog") or {}
        host = self.world.nodes[peer].host
        able = not (body.get("haagent") or {}).get("cannot_lead")
        tags = body.get("tags") or {}
        if tags.get("nofailover") or tags.get("failover_priority", 1) <= 0:
            able = False
        records = host.dd.records
        said = max(xlog.get("received_location") or 0, xlog.get("replayed_location") or 0)
        count = min(len(records), max(0, (said - FIRST_LSN) // RECORD_BYTES))
        self.answers[asker, peer] = Answer(sent_at, bool(xlog.get("location")), able, records, count)

    def host_unreliable(self, name: str, until: float) -> None:
        """Both its agent and its guardian cannot act until then: not promised (design section 2)."""
        self.excused_until[name] = max(until + _THAW_S, self.excused_until.get(name, 0.0))


def set_of(records: tuple[Record, ...]) -> set[int]:
    """Identities of records; only compared, never iterated."""
    return {id(record) for record in records}


def _asked_to_step_down(gone: Vacancy) -> bool:
    """Whoever released the key is whom a switchover named; not one that only held it for a moment later."""
    return gone.holder is not None and (gone.request or {}).get("leader") == gone.holder.name


def _last(text: str | None) -> dict[str, Any]:
    """The last object of a list; empty where there is none."""
    try:
        rows = json.loads(text or "[]")
    except ValueError:
        return {}
    return rows[-1] if isinstance(rows, list) and rows and isinstance(rows[-1], dict) else {}


def _json(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
