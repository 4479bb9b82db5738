"""One schedule: a plan, run to its end against a cluster of real agents. `World(plan).run()`.

Faults of the plan strike until enough has happened (or its time is over); then everything heals, and within a
bound there must be one primary, and every other member must stream from it. The first broken rule ends it.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dcs import codec
from haagent.core.watchdog import REQUIRED
from postgres_ctl.facts import ControlState, Lsn, TimelineSwitch
from tests.simulation import consumers
from tests.simulation.client import Writer
from tests.simulation.engine import START_S, Crash, Engine, HostClock, Livelock, Process
from tests.simulation.episodes import CANDIDATE, LEADER
from tests.simulation.faults import FAULTS, Trigger, Undo
from tests.simulation.guardian_port import CONNECT_S
from tests.simulation.healing import heal, not_whole, resume
from tests.simulation.invariants import Invariants, Violation
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.plan import Fault, Plan
from tests.simulation.postgres import Land, Server
from tests.simulation.quick import quicken
from tests.simulation.remote import Remote
from tests.simulation.store import SimStore
from tests.simulation.trace import Trace
from tests.simulation.wal import CHECKPOINT, SHUTDOWN, Control, DataDir

quicken()


@dataclass
class Result:
    """What became of one schedule."""

    seed: int
    violation: Violation | None = None
    #: Non-idle decisions, and faults with operator requests.
    decisions: int = 0
    faults: int = 0
    events: int = 0
    lasted_s: float = 0.0
    healed_s: float = 0.0
    moves: int = 0
    lost_records: int = 0
    acknowledged: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    fault_kinds: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)


class World:
    """Everything of one schedule. `traced`: keep a readable account."""

    def __init__(self, plan: Plan, traced: bool = False) -> None:
        self.plan = plan
        self.result = Result(plan.seed)
        self.engine = Engine(plan.seed)
        self._trace = Trace(traced)
        self._trace.now = lambda: self.engine.now
        self.trace = self._trace.add
        self.network = Network(self.engine)
        self.store = SimStore(self.engine)
        self.land = Land(self.engine, self.network)
        self.nodes: dict[str, Node] = {}
        self.boundaries: list[Trigger] = []
        #: Whom an operator last asked to lead.
        self.candidate, self._candidate_until = plan.names[-1], 0.0
        self.key_deleted_by_hand = False
        #: An operator removed `standby_cluster` once.
        self.promoted_by_hand = False
        #: Until when two servers may be writable since then.
        self.two_until = 0.0
        #: Key -> what nonsense was written there last, and what had been there before any.
        self.nonsense: dict[str, tuple[str, str | None]] = {}
        self._undo: dict[int, Undo] = {}
        self._asked = 0
        self._answered = 0
        self._faults_over = False
        self._last_rule: dict[str, str] = {}
        for name in plan.names:
            clock = HostClock(self.engine, *plan.clocks.get(name, (0.0, 1.0)))
            self.nodes[name] = Node(self, name, plan.tags.get(name, {}), clock)
        self.remote = Remote(self) if plan.follows else None
        if not plan.fresh:
            _prepare(self)
        if plan.restored or not plan.fresh:
            _back_up(self)
        self.invariants = Invariants(self)
        self.land.truths.append(self.invariants)
        self._faults = _FaultLog(self)
        consumers.begin(self)
        for node in self.nodes.values():
            Writer(self, node)
            self.engine.after(self.engine.rng("start").uniform(0.0, 0.5), node.start_agent)
        for fault in plan.faults:
            self.engine.at(START_S + fault.at, partial(self._strike, fault))

    # --- run --------------------------------------------------------------------------------------

    def run(self, script: Callable[[], None] | None = None) -> Result:
        """The whole schedule, or `script` (it drives the engine itself) where the plan's length would be.

        Never raises on what the code under test does."""
        result = self.result
        try:
            with self._faults:
                if script is not None:
                    script()
                else:
                    self.engine.run(START_S + self.plan.length)
                self._heal()
        except Livelock as fault:
            self.invariants.violated("agent.fault", f"livelock: {fault}")
        if self.invariants.violations:
            result.violation = self.invariants.violations[0]
        result.lasted_s = self.engine.now - START_S
        result.events = self.engine.events
        result.moves, result.lost_records = self.invariants.moves, self.invariants.lost_records
        result.acknowledged = len(self.invariants.acknowledged_records)
        result.trace = self._trace.lines
        self.close()
        return result

    def close(self) -> None:
        self.engine.close()
        self.network.close()
        self.land.truths.clear()

    def _heal(self) -> None:
        """Faults are over: everything works again, and within the bound the cluster must be whole."""
        if self.invariants.violations:
            return
        self._faults_over = True
        self.engine.stopped = False
        self.trace("*", "heal", "all faults are over")
        self._heal_all()
        heal(self)

    def _heal_all(self) -> None:
        undo, self._undo = self._undo, {}
        for call in undo.values():
            call()
        for trigger in self.boundaries:
            self.nodes[trigger.fault.node].agent_process.armed = None
        self.boundaries.clear()
        self.network.heal_all()
        resume(self)
        for node in self.nodes.values():
            node.host.knobs.clear()

    def not_whole(self) -> str:
        """Which goal is missed, and how; "" once one primary serves and all others stream."""
        return not_whole(self)

    # --- faults -----------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        if not self._faults_over:
            self.strike(fault)
            self._count()

    def strike(self, fault: Fault) -> Undo | None:
        """It happens now. Returns what ends it before its time, where it lasts."""
        fault = self._named(fault)
        self.result.faults += 1
        self.result.fault_kinds[fault.kind] += 1
        self.trace("*", "fault", str(fault))
        return self.undo_later(fault, FAULTS[fault.kind](self, fault))

    def _named(self, fault: Fault) -> Fault:
        """With the names of those who lead, or are to lead, now."""
        holder = self.store.leader()
        leader = holder.name if holder is not None else self.plan.names[0]
        asked = fault.other == CANDIDATE
        if asked or CANDIDATE in fault.node + fault.other:
            self._choose_candidate(leader, asked, fault.at)
        names = {LEADER: leader, CANDIDATE: self.candidate}
        node, other = fault.node, fault.other
        for word, name in names.items():
            node, other = node.replace(word, name), other.replace(word, name)
        return replace(fault, node=node, other=other)

    def _choose_candidate(self, leader: str, asked: bool, at: float) -> None:
        """The same one within an episode, also once it leads; nobody is asked to follow itself."""
        if self.engine.now >= self._candidate_until or (asked and self.candidate == leader):
            others = [name for name in self.plan.names if name != leader] or [leader]
            self.candidate = others[int(at * 1000) % len(others)]
        self._candidate_until = self.engine.now + self.plan.ttl_s

    def undo_later(self, fault: Fault, undo: Undo | None) -> Undo | None:
        if undo is None:
            return None
        number = id(undo)
        self._undo[number] = undo
        end = partial(self._end_fault, fault, number)
        self.engine.after(fault.duration, end)
        return end

    def _end_fault(self, fault: Fault, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            self.trace("*", "over", f"{fault.kind} {fault.node}")
            undo()

    def arm_boundaries(self, node: Node) -> None:
        """Triggers that wait for this node's current agent."""
        waiting = frozenset((t.kind, t.when) for t in self.boundaries if t.fault.node == node.name)
        node.agent_process.armed = partial(self._at_boundary, node, waiting) if waiting else None

    def _at_boundary(self, node: Node, waiting: frozenset[tuple[str, str]], kind: str, when: str) -> None:
        if (kind, when) not in waiting:
            return
        for trigger in self.boundaries:
            if trigger.fault.node == node.name and trigger.reached(kind, when):
                self.boundaries.remove(trigger)
                self.arm_boundaries(node)
                trigger.strike()
                return

    def unreliable(self, node: Node) -> None:
        """Called after every change: while agent and guardian of a member are both unable to act, and until
        one of them has acted afterwards, nothing keeps its server from writing (design section 2). An agent
        that was just started first has to find out that its guardian does not answer.

        A watchdog that is required excuses nothing: it resets the host in time."""
        if self.plan.watchdog == REQUIRED:
            return
        host = node.host
        guardian = host.guardian
        guardian_out = guardian is None or not guardian.process.runs
        # A dead guardian takes its own server along; an adopted one only the agent can end.
        if guardian is None and not any(not s.gone for s in host.servers):
            return
        if guardian_out and not (node.agent_process.runs and node.can_act):
            self.invariants.host_unreliable(node.name, float("inf"))
        elif self.invariants.excused_until.get(node.name) == float("inf"):
            self.invariants.excused_until[node.name] = 0.0
            budget = max(0.5, self.plan.ttl_s / 6)
            connect_s = CONNECT_S if guardian_out and node.agent.instance.link is None else 0.0
            self.invariants.host_unreliable(node.name, self.engine.now + connect_s + budget + 1.0)

    # --- what is told -----------------------------------------------------------------------------

    def decided(self, node: Node, rule: str, reason: str, fields: Mapping[str, Any]) -> None:
        """Of every step of every agent."""
        result = self.result
        result.rules[rule] += 1
        actions = fields.get("actions")
        if not actions and self._last_rule.get(node.name) == rule:
            return
        self._last_rule[node.name] = rule
        self._trace.decision(node.name, rule, reason, fields)
        result.decisions += 1
        result.states[self._state(node)] += 1
        if actions:
            self.invariants.decision(node, rule, actions)
        self._count()

    def _state(self, node: Node) -> str:
        server = node.host.server
        role = "down" if server is None or server.gone else "standby" if server.in_recovery else "primary"
        holder = self.invariants.holder
        key = "free" if holder is None else "mine" if holder.name == node.name else "other"
        return f"{role}, key {key}"

    def _count(self) -> None:
        enough = self.plan.events and self.result.decisions + self.result.faults >= self.plan.events
        if enough and not self._faults_over:
            self.engine.stop()

    def asked(self, what: str) -> None:
        self._asked += 1

    def answered(self, node: Node, what: str, answer: Any) -> None:
        self._answered += 1
        self.result.answers[f"{what.partition(' ')[0]} {answer.status}"] += 1
        self.trace(node.name, "answer", f"{what}: {answer.status} {answer.body}")

    def gave_up(self, requests: int) -> None:
        """Operators' requests that died with their agent."""
        self._answered += requests

    @property
    def unanswered(self) -> int:
        """Operators' requests without an answer."""
        return self._asked - self._answered

    # --- lookups ----------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def server_of(self, name: str) -> Server | None:
        node = self.nodes.get(name)
        return node.host.server if node is not None else None


class _FaultLog(logging.Handler):
    """Unexpected exceptions that the agent's code caught and logged: bugs all the same."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world
        self._logger = logging.getLogger("haagent")
        self._before = (self._logger.level, self._logger.propagate)

    def __enter__(self) -> None:
        self._logger.setLevel(logging.ERROR)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]
        for crash in self._world.engine.crashes[:1]:
            self._world.invariants.violated("agent.fault", f"{crash.process}/{crash.task}: {crash.text}")

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not isinstance(record.exc_info[1], RuntimeError):
            text = logging.Formatter().formatException(record.exc_info)
            self._world.invariants.violated("agent.fault", f"{record.getMessage()}\n{text}")


# --- a cluster that was shut down in good order ---------------------------------------------------


def _fill(world: World, dd: DataDir) -> None:
    """A cluster that was shut down in good order, by `pg0`."""
    dd.system_id, dd.state = world.land.new_system_id(), "valid"
    dd.append(CHECKPOINT, 1, world.plan.names[0])
    for number in range(3):
        dd.append("data", 1, world.plan.names[0], number)
    dd.append(SHUTDOWN, 1, world.plan.names[0])
    last = len(dd.records) - 1
    dd.control = Control(ControlState.SHUT_DOWN, checkpoint=last, redo=last, timeline=1)


def _back_up(world: World) -> None:
    """What programs of the user's restore: the cluster as it was prepared, or one of long ago."""
    first = next(iter(world.nodes.values())).host.dd
    backup = world.land.backup = DataDir("backup")
    if first.state != "valid":
        _fill(world, backup)
        return
    backup.system_id, backup.state = first.system_id, "valid"
    backup.records, backup.durable = list(first.records), first.durable
    backup.control = replace(first.control)


def _prepare(world: World) -> None:
    """Equal data directories, `pg0` the last primary, and what its agents left in the store."""
    if world.remote is not None:
        _prepare_copies(world, world.remote)
        return
    first, *others = world.nodes.values()
    dd = first.host.dd
    _fill(world, dd)
    last = dd.control.checkpoint
    for node in others[:-1] if world.plan.starts_empty else others:
        copy = node.host.dd
        copy.system_id, copy.state, copy.standby_signal = dd.system_id, "valid", True
        copy.records, copy.durable = list(dd.records), dd.durable
        copy.control = Control(ControlState.SHUT_DOWN_IN_RECOVERY, last, last, 1, len(dd.records), 1)
    _left_in_the_store(world, dd)


def _prepare_copies(world: World, remote: Remote) -> None:
    """All of them copies of the remote primary, shut down."""
    dd = remote.primary.dd
    for node in world.nodes.values():
        copy = node.host.dd
        copy.system_id, copy.state, copy.standby_signal = dd.system_id, "valid", True
        copy.records, copy.durable = list(dd.records), len(dd.records)
        copy.control = Control(ControlState.SHUT_DOWN_IN_RECOVERY, 0, 0, 1, len(dd.records), 1)
    _left_in_the_store(world, dd)


def _left_in_the_store(world: World, dd: DataDir) -> None:
    store = world.store
    store.raw_put(codec.INITIALIZE, dd.system_id)
    store.raw_put(codec.CONFIG, json.dumps(dict(world.plan.dynamic), sort_keys=True))
    store.raw_put(codec.STATUS, json.dumps({"optime": dd.control_data().checkpoint_lsn.value}))


__all__ = ["Crash", "Lsn", "Process", "Result", "TimelineSwitch", "World"]
