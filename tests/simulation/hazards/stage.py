"""A stage for one hazard: the simulator's world, driven step by step by a script.

Theory. A script waits for a situation, strikes in it, and waits for the next one: what it says is *when* each
thing happens, in terms of what has happened before, never what an agent should do. Three kinds of statements:

    until    the situation must come; where it does not, the scenario proves nothing: `NotReached`
    expect   how the mechanism shows itself; asked for in the code as it is, passed over without the mechanism
    must, stays   a promise about availability with its bound; broken, it is a violation like any other

All safety checks of the simulator run after every event meanwhile, and at the end everything heals and the
cluster has to become whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.simulation.faults import Trigger, Undo, patch
from tests.simulation.invariants import Violation
from tests.simulation.node import Node
from tests.simulation.plan import Fault, Plan
from tests.simulation.postgres import Server
from tests.simulation.world import World

#: A situation that does not come within so long does not come, seconds.
WAIT_S = 90.0
#: A lost reply is lost within so long of the call, seconds.
REPLY_S = 0.05
#: Short lives of everything; each script may change some of it.
DYNAMIC: Mapping[str, Any] = {
    "ttl": 5,
    "loop_wait": 1,
    "retry_timeout": 1,
    "maximum_lag_on_failover": 1048576,
    "postgresql": {
        "use_pg_rewind": True,
        "use_slots": True,
        "remove_data_directory_on_diverged_timelines": True,
        "remove_data_directory_on_rewind_failure": True,
    },
}


class NotReached(Exception):
    """The situation that a scenario is about did not come."""


class _Broken(Exception):
    """A rule was broken: the script ends here."""


@dataclass(frozen=True)
class Said:
    """One decision of one agent, carried out or idle."""

    at: float
    who: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Played:
    """What became of a scenario."""

    violation: Violation | None
    #: The situation that did not come.
    missed: str = ""
    #: What of the mechanism did not show.
    unseen: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()


Script = Callable[["Stage"], None]


class _World(World):
    """Also remembers every step of every agent, idle ones too."""

    def __init__(self, plan: Plan, traced: bool) -> None:
        self.said: list[Said] = []
        super().__init__(plan, traced)

    def decided(self, node: Node, rule: str, reason: str, fields: Mapping[str, Any]) -> None:
        self.said.append(Said(self.engine.now, node.name, rule, reason))
        super().decided(node, rule, reason, fields)


class _Unheard(Trigger):
    """Every call of one kind goes unheard, or its answer does, until it ends."""

    def __init__(self, world: World, fault: Fault, reply: bool) -> None:
        super().__init__(world, fault)
        self.reply, self.ended, self.times = reply, False, 0

    def reached(self, kind: str, when: str) -> bool:
        return kind == self.kind and when == self.when and not self.ended

    def strike(self) -> None:
        world, node = self.world, self.world.nodes[self.fault.node]
        self.times += 1
        ends = ("dcs", node.endpoint) if self.reply else (node.endpoint, "dcs")
        world.network.trouble(*ends, loss=1.0)
        world.engine.after(REPLY_S if self.reply else 0.0, partial(world.network.trouble, *ends))
        # The world forgets a trigger that struck: this one waits for the next call.
        world.boundaries.append(self)
        world.arm_boundaries(node)


class Stage:
    """One scenario, played once."""

    def __init__(self, plan: Plan, traced: bool = False) -> None:
        self.world = _World(plan, traced)
        self.engine, self.store, self.network = self.world.engine, self.world.store, self.world.network
        self._unseen: list[str] = []
        self._missed = ""

    def play(self, script: Script) -> Played:
        """The script, then everything heals."""
        result = self.world.run(partial(self._play, script))
        return Played(result.violation, self._missed, tuple(self._unseen), tuple(result.trace))

    def _play(self, script: Script) -> None:
        try:
            script(self)
        except _Broken:
            pass
        except NotReached as missing:
            self._missed = str(missing)

    # --- what is there ----------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.engine.now

    @property
    def ttl_s(self) -> float:
        return self.world.plan.ttl_s

    def node(self, name: str) -> Node:
        return self.world.nodes[name]

    def server(self, name: str) -> Server:
        server = self.world.server_of(name)
        if server is None:
            raise NotReached(f"a server on {name}")
        return server

    def writable(self, name: str) -> bool:
        server = self.world.server_of(name)
        return server is not None and server.writable_now

    def holder(self) -> str:
        """Who holds the leader key; "" nobody."""
        held = self.store.leader()
        return held.name if held is not None else ""

    def key_session(self) -> str:
        """The session the leader key hangs on; "" where there is no key."""
        held = self.store.leader()
        return held.session if held is not None else ""

    def leads(self, name: str) -> bool:
        return self.holder() == name and self.writable(name)

    def streams(self, name: str, source: str) -> bool:
        """A standby receives WAL from that member."""
        server = self.world.server_of(name)
        link = server.receiver.link if server is not None else None
        return link is not None and link.streaming and link.upstream is self.world.server_of(source)

    def session_left_s(self, name: str) -> float:
        """How long the session of a member lives on without a renewal; 0 when it has none."""
        session = self.node(name).agent.keeper.session()
        ends_at = self.store.expires_at(session) if session is not None else None
        return max(0.0, ends_at - self.now) if ends_at is not None else 0.0

    def key_left_s(self) -> float:
        """How long the leader key lives on without a renewal; 0 where there is none."""
        held = self.store.leader()
        return max(0.0, held.expires_at - self.now) if held is not None else 0.0

    def primary_since(self, name: str) -> float:
        """When a member's server began to be writable."""
        return self.world.invariants.writable_servers[self.server(name)]

    def deadline_left_s(self, name: str) -> float:
        """Until the guardian's deadline; 0 when none is armed."""
        logic = self.node(name).guardian_logic
        fence_at = logic.lease.fence_at if logic is not None else None
        return max(0.0, fence_at - self.node(name).host.clock.now()) if fence_at is not None else 0.0

    def rebooted(self, name: str) -> bool:
        """The host has lost its power, or was reset, since the beginning."""
        return self.node(name).host.boot > 1

    def disarmed(self, name: str) -> bool:
        """The guardian's fence is off."""
        logic = self.node(name).guardian_logic
        return logic is not None and logic.lease.disarmed

    def said(self, rule: str, who: str = "", text: str = "", since: float = 0.0) -> bool:
        """Some agent (or `who`) came to this rule, with `text` in its reason."""
        return any(
            s.rule == rule and s.at >= since and who in ("", s.who) and text in s.reason
            for s in self.world.said
        )

    # --- time -------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._until(lambda: False, seconds)

    def until(self, what: str, true: Callable[[], bool], within_s: float = WAIT_S) -> None:
        """Go on in the very event in which it becomes true. Raises NotReached."""
        if not self._until(true, within_s):
            raise NotReached(what)

    def expect(self, what: str, true: Callable[[], bool], within_s: float = 0.0) -> None:
        """The mechanism shows itself within that time, or now."""
        if not self._until(true, within_s):
            self._unseen.append(what)

    def must(self, check: str, what: str, true: Callable[[], bool], within_s: float) -> None:
        """Breaks `check` unless it becomes true within that time."""
        if not self._until(true, within_s):
            self._violated(check, f"not within {within_s:g} s: {what}")

    def stays(self, check: str, what: str, true: Callable[[], bool], for_s: float) -> None:
        """Breaks `check` in the moment in which it is not true any more."""
        if self._until(lambda: not true(), for_s):
            self._violated(check, f"not for {for_s:g} s: {what}")

    def _violated(self, check: str, text: str) -> None:
        self.world.invariants.violated(check, text)
        raise _Broken

    def _until(self, true: Callable[[], bool], within_s: float) -> bool:
        engine = self.engine

        def look() -> None:
            if true():
                engine.stop()

        if not true() and within_s > 0.0:
            engine.after_event = look
            engine.run(engine.now + within_s)
            engine.after_event = None
        if self.world.invariants.violations:
            raise _Broken
        engine.stopped = False
        return true()

    # --- situations that many begin with ----------------------------------------------------------

    def settle(self) -> tuple[str, ...]:
        """The whole cluster works. The leader's name, then the others'."""
        self.until("one primary, all others stream", lambda: not self.world.not_whole())
        leader = self.holder()
        # A lease and a member key of everybody, and some acknowledged records.
        self.run(2.0)
        if self.holder() != leader or self.world.not_whole():
            raise NotReached("a cluster that stays whole")
        return (leader, *(name for name in self.world.nodes if name != leader))

    def fall_behind(self, leader: str, name: str) -> Undo:
        """`name` receives nothing any more, and acknowledged records are missing there."""
        end = self.strike("cut", f"pg:{leader}", f"pg:{name}")
        missing = len(self.server(leader).dd.records) + 3
        self.until(
            f"{name} misses what {leader} has acknowledged",
            lambda: len(self.server(leader).dd.records) >= missing,
        )
        return end

    # --- what happens -----------------------------------------------------------------------------

    def strike(
        self,
        kind: str,
        node: str = "",
        other: str = "",
        duration: float = math.inf,
        value: float = 0.0,
        detail: str = "",
    ) -> Undo:
        """A fault or request of `faults.FAULTS`, now. Returns what ends it before its time."""
        end = self.world.strike(Fault(self.now, kind, node, other, duration, value, detail))
        return end if end is not None else _nothing

    def at_boundary(self, node: str, where: str, strike: str, duration: float = math.inf) -> None:
        """The next call there meets `strike` (`faults._STRIKES`); `where` is "dcs.take_leader before"."""
        self.strike("boundary", node, strike, duration, 1.0, where)

    def unheard(self, node: str, call: str, reply: bool = False) -> _Unheard:
        """From now on the store never hears this call of `node`; with `reply`: nobody hears its answer."""
        fault = Fault(self.now, "boundary", node, "unheard", detail=f"{call} before", value=1.0)
        trigger = _Unheard(self.world, fault, reply)
        self.world.boundaries.append(trigger)
        self.world.arm_boundaries(self.node(node))
        return trigger

    def delete_leader_key(self) -> None:
        """By hand, which is nobody's promise: only two writable servers are looked for from now on."""
        self.strike("delete-leader")
        self.world.two_until = 0.0

    def pause_replay(self, name: str) -> None:
        """A standby receives, and replays nothing until all heals."""
        server, fault = self.server(name), Fault(self.now, "replay paused", name, duration=math.inf)
        self.world.trace("*", "fault", str(fault))
        server.set_replay(paused=True)
        self.world.undo_later(fault, server.set_replay)

    def cut_off(self, one: str, other: str) -> Undo:
        """The agents of two members do not reach each other."""
        ends = [self.strike("cut", f"agent:{a}", f"agent:{b}") for a, b in ((one, other), (other, one))]
        return partial(_all, ends)

    def settings(self, **change: Any) -> None:
        """An operator's PATCH that stays."""
        self.world.trace("*", "fault", f"settings {change}")
        patch(self.world, change)

    def in_kernel(
        self, name: str, kind: str, delay_s: float = 0.0, fails: bool = False, times: int = 1
    ) -> None:
        """The next work of this kind on a host takes longer, or fails."""
        self.node(name).host.knobs[kind] = (times, delay_s, fails)


def _nothing() -> None:
    """What is over at once."""


def _all(calls: list[Undo]) -> None:
    for call in calls:
        call()


# --- scenarios ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One hazard's sequence, and what must break when a mechanism is off."""

    hazard: str
    name: str
    #: What happens, in words: the script's docstring.
    text: str
    script: Script
    plan: Plan
    #: Mutant -> the check that it breaks here.
    off: Mapping[str, str] = field(default_factory=dict)

    def play(self, traced: bool = False) -> Played:
        return Stage(self.plan, traced).play(self.script)


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    hazard: str,
    off: Mapping[str, str],
    nodes: int = 3,
    seed: int = 1,
    tags: Mapping[str, Mapping[str, Any]] | None = None,
    watchdog: str = "off",
    **dynamic: Any,
) -> Callable[[Script], Script]:
    """Registers a script. `dynamic` changes the cluster's dynamic configuration."""

    def register(script: Script) -> Script:
        name = f"{hazard.lower()}-{getattr(script, '__name__').replace('_', '-')}"  # noqa: B009
        plan = Plan(seed, nodes, {**DYNAMIC, **dynamic}, tags or {}, events=0, watchdog=watchdog)
        text = " ".join((script.__doc__ or "").split())
        assert name not in SCENARIOS
        assert text
        assert off
        SCENARIOS[name] = Scenario(hazard, name, text, script, plan, off)
        return script

    return register
