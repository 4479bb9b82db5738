"""A schedule as data: the cluster, its timings and clocks, and a list of timed faults and operator requests.

Theory. A plan is drawn from its seed and from nothing else; what happens between faults (delays, who is
first)
comes from streams of the engine, one per link and host, seeded by the same seed. So a fault can be left out
without changing what the others meet, and a failing plan can be shrunk by leaving out faults.

Each fault is drawn from a stream of its own, and names are chosen by hash: another kind, boundary or work
added to a list here leaves most of what a seed stands for as it was.

Each plan uses only some kinds of faults (swarm testing): a plan with everything in it never gets far.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from tests.simulation.config import node_names
from tests.simulation.episodes import BUSY_S, LEADER, episodes

T = TypeVar("T")
#: Schedules end after so many non-idle decisions and faults.
EVENTS = 200
#: So often each member's writer looks, seconds.
PACE_S = 0.4


@dataclass(frozen=True)
class Fault:
    """One thing that happens `at` seconds after the start, to `node` (and `other`), for `duration`
    seconds."""

    at: float
    kind: str
    node: str = ""
    other: str = ""
    duration: float = 0.0
    #: A number, a mode, a boundary: what the kind says.
    value: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        words = [self.kind, self.node, self.other and f"-> {self.other}", self.detail]
        numbers = [
            f"for {self.duration:.3f} s" if self.duration else "",
            f"value {self.value:g}" if self.value else "",
        ]
        return " ".join(word for word in words + numbers if word)


@dataclass(frozen=True)
class Plan:
    """Everything a schedule is made of."""

    seed: int
    nodes: int = 3
    #: Dynamic configuration the cluster begins with.
    dynamic: Mapping[str, Any] = field(default_factory=dict)
    #: Member -> tags.
    tags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Member -> (offset, rate) of its clock.
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: Empty data directories and an empty store; else a cluster that was shut down in good order.
    fresh: bool = False
    faults: tuple[Fault, ...] = ()
    #: Seconds of true time after which everything heals at the latest.
    length: float = 120.0
    #: Seconds between two looks of a writer, in the mean.
    pace: float = PACE_S
    #: Non-idle decisions and faults after which everything heals; 0: at `length` only.
    events: int = EVENTS
    #: A new cluster is restored from a backup, by whoever makes it.
    restored: bool = False
    #: The last member is a new one: its data directory is empty.
    starts_empty: bool = False
    #: Mode of the watchdog device of each host.
    watchdog: str = "off"

    @property
    def names(self) -> tuple[str, ...]:
        return node_names(self.nodes)

    @property
    def ttl_s(self) -> float:
        return float(self.dynamic.get("ttl", 30))

    @property
    def follows(self) -> bool:
        """A standby cluster."""
        return bool(self.dynamic.get("standby_cluster"))

    def to_json(self) -> str:
        """Readable, stable."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        data["faults"] = tuple(Fault(**fault) for fault in data["faults"])
        data["clocks"] = {name: tuple(clock) for name, clock in data["clocks"].items()}
        return cls(**data)

    def without(self, faults: set[int]) -> Plan:
        """The same schedule without the faults at these places."""
        return replace(self, faults=tuple(f for i, f in enumerate(self.faults) if i not in faults))


# --- drawing one ----------------------------------------------------------------------------------

#: (ttl, loop_wait, retry_timeout): valid ones (loop_wait + 2 * retry_timeout <= ttl).
TIMINGS = ((3, 1, 1), (5, 1, 1), (5, 1, 2), (8, 2, 3), (10, 2, 4), (30, 10, 10))


def _share(*words: object) -> float:
    """Of these words always the same number in [0, 1), without a stream."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Draw:
    """Draws for one plan."""

    def __init__(self, seed: int, purpose: str = "plan") -> None:
        self.seed, self.rng = seed, random.Random(f"{purpose}/{seed}")
        self.names: tuple[str, ...] = ()
        self.ttl_s = 0.0

    def another(self, purpose: str) -> Draw:
        """A stream of its own for the same plan."""
        draw = Draw(self.seed, purpose)
        draw.names, draw.ttl_s = self.names, self.ttl_s
        return draw

    def pick(self, choices: Sequence[T]) -> T:
        """One of them. Another one, added later, changes that only where it is chosen itself."""
        token = self.rng.random()
        return min(choices, key=lambda choice: _share(token, choice))

    def by_weight(self, weights: Mapping[str, float]) -> str:
        """One of them: whose exponential clock, as fast as its weight, rings first."""
        token = self.rng.random()
        return max(weights, key=lambda name: _share(token, name) ** (1.0 / weights[name]))

    def node(self) -> str:
        return self.rng.choice(self.names)

    def candidate(self) -> str:
        """A member, or a name nobody has, or none."""
        return self.rng.choice((*self.names, *self.names, "", "nobody"))

    def short(self) -> float:
        return self.rng.uniform(0.01, 0.5)

    def about_ttl(self) -> float:
        """From a moment to a little more than two lives of the lease, often just about one."""
        return self.rng.choice((self.short(), self.ttl_s * self.rng.uniform(0.2, 2.2),
                                self.ttl_s * self.rng.uniform(0.8, 1.2)))  # fmt: skip

    def endpoint(self) -> str:
        kind = self.rng.choice(("agent", "agent", "pg", "dcs"))
        return "dcs" if kind == "dcs" else f"{kind}:{self.node()}"


Maker = Callable[[Draw, float], Fault]


def _on_node(kind: str, lasts: bool = True, **values: Any) -> Maker:
    def make(draw: Draw, at: float) -> Fault:
        return Fault(at, kind, draw.node(), duration=draw.about_ttl() if lasts else 0.0, **values)

    return make


def _link(kind: str) -> Maker:
    def make(draw: Draw, at: float) -> Fault:
        src, dst = draw.endpoint(), draw.endpoint()
        value = draw.rng.uniform(0.1, 0.9)
        return Fault(at, kind, src, dst, duration=draw.about_ttl(), value=value)

    return make


def _store(kind: str) -> Maker:
    def make(draw: Draw, at: float) -> Fault:
        return Fault(at, kind, duration=draw.about_ttl(), value=draw.rng.uniform(0.05, 1.5))

    return make


def _operator(kind: str) -> Maker:
    def make(draw: Draw, at: float) -> Fault:
        return Fault(at, kind, draw.node(), draw.candidate())

    return make


def _work(draw: Draw, at: float) -> Fault:
    """The next work of this kind on a node is slow, or fails."""
    kind = draw.pick(WORK)
    fails = float(draw.rng.random() < 0.4)
    return Fault(at, "work", draw.node(), duration=draw.about_ttl(), value=fails, detail=kind)


#: Boundaries of ports at which a triggered fault may strike.
BOUNDARIES = (
    "dcs.take_leader", "dcs.renew_leader", "dcs.release_leader", "dcs.compare_and_set", "dcs.put_if_leader",
    "dcs.create", "dcs.put_member", "dcs.snapshot", "dcs.open_session", "dcs.move_leader", "guardian.arm",
    "guardian.start", "guardian.promote", "guardian.stop", "guardian.close", "pg.write-config", "pg.clone",
    "pg.wipe", "pg.rewind", "pg.keep-wal", "pg.checkpoint", "pg.state-file", "pg.reload", "pg.standby-signal",
    "pg.bootstrap", "pg.slots", "peers.get", "pg.method",
)  # fmt: skip
#: Work that can be slow, or fail.
WORK = (
    "server.start", "server.crash-recovery", "server.promote", "server.shutdown", "server.checkpoint",
    "server.replay-local", "server.orphans", "pg.rewind", "pg.clone", "pg.bootstrap", "pg.control",
    "pg.write-config", "pg.state-file", "pg.method",
)  # fmt: skip
STRIKES = (
    "kill-agent",
    "freeze-agent",
    "kill-host",
    "cut-dcs",
    "kill-guardian",
    "kill-postmaster",
    "lose-reply",
)


def _at_boundary(draw: Draw, at: float) -> Fault:
    """Something strikes a node just before or after the n-th next call of a port."""
    where = f"{draw.pick(BOUNDARIES)} {draw.rng.choice(('before', 'after', 'after'))}"
    strike = draw.pick(STRIKES)
    nth = float(draw.rng.choice((1, 1, 1, 2, 3)))
    return Fault(at, "boundary", draw.node(), strike, draw.about_ttl(), nth, where)


def _settings(draw: Draw, at: float) -> Fault:
    ttl, loop_wait, retry = draw.rng.choice(TIMINGS[:-1])
    patch: dict[str, Any] = draw.pick((
        {"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry},
        {"maximum_lag_on_failover": draw.rng.choice((0, 120, 1200, 1048576))},
        {"primary_start_timeout": draw.rng.choice((0, 2, 300))},
        {"postgresql": {"use_slots": draw.rng.random() < 0.5}},
        {"check_timeline": draw.rng.random() < 0.5},
        {"loop_wait": "nonsense"},
    ))  # fmt: skip
    return Fault(at, "settings", draw.node(), detail=json.dumps(patch, sort_keys=True))


def _garbage(draw: Draw, at: float) -> Fault:
    key = draw.pick(("sync", "failover", "status", "history", "config", "failsafe", "haagent_claims",
                     f"members/{draw.node()}", "members/stranger"))  # fmt: skip
    text = draw.rng.choice(("", "{", "null", "[]", "{}", '{"leader": 7}', "99999999999999999999", "[[1]]",
                            '{"state": "running"}', "\x00"))  # fmt: skip
    return Fault(at, "garbage", key, duration=draw.about_ttl(), detail=text)


#: kind -> (weight, maker).
KINDS: dict[str, tuple[float, Maker]] = {
    "kill-agent": (3, _on_node("kill-agent")),
    "freeze-agent": (3, _on_node("freeze-agent")),
    "stop-agent": (1.5, _on_node("stop-agent")),
    "kill-guardian": (2, _on_node("kill-guardian", lasts=False)),
    "freeze-guardian": (2, _on_node("freeze-guardian")),
    "freeze-host": (1, _on_node("freeze-host")),
    "power-cut": (2, _on_node("power-cut")),
    "lying-disk": (0.7, _on_node("lying-disk", value=3.0)),
    "kill-postmaster": (2, _on_node("kill-postmaster", lasts=False)),
    "kill-postgres": (2, _on_node("kill-postgres", lasts=False)),
    "freeze-postmaster": (1.5, _on_node("freeze-postmaster")),
    "hang-postgres": (1.5, _on_node("hang-postgres")),
    "stuck-postgres": (1, _on_node("stuck-postgres")),
    "cut": (4, _link("cut")),
    "lossy": (1.5, _link("lossy")),
    "slow": (1.5, _link("slow")),
    "duplicate": (1, _link("duplicate")),
    "isolate": (2, _on_node("isolate")),
    "isolate-from-dcs": (2, _on_node("isolate-from-dcs")),
    "store-down": (1.5, _store("store-down")),
    "store-slow": (1, _store("store-slow")),
    "store-lags": (0.7, _store("store-lags")),
    "work": (3, _work),
    "boundary": (6, _at_boundary),
    "switchover": (4, _operator("switchover")),
    "failover": (1.5, _operator("failover")),
    "restart": (1.5, _operator("restart")),
    "reinitialize": (1, _operator("reinitialize")),
    "pause": (1, _store("pause")),
    "settings": (1, _settings),
    "garbage": (0.7, _garbage),
    "broken-decide": (0.7, _on_node("broken-decide")),
}
#: Each of the other kinds is in this share of the plans.
SWARM_SHARE = 0.35
#: In every plan.
_ALWAYS = ("switchover", "kill-agent", "boundary")


#: From this seed on, plans aim: part of the faults strikes whoever leads at that moment.
AIMED = 1_000_000
#: These shares of them are calm instead, or a row of troubled switchovers (episodes.py).
CALM_SHARE, TROUBLED_SHARE = 0.5, 0.25
#: So often such a plan has faults that are dangerous together: one takes away what keeps the other harmless.
TOGETHER_TIMES = 8
TOGETHER = (
    ("isolate-from-dcs", "freeze-guardian"),
    ("isolate-from-dcs", "freeze-agent"),
    ("isolate-from-dcs", "freeze-postmaster"),
    ("isolate-from-dcs", "freeze-postmaster", "kill-guardian"),
    ("isolate-from-dcs", "kill-postmaster"),
    ("isolate-from-dcs", "stuck-postgres"),
    ("isolate-from-dcs", "kill-agent"),
    ("isolate", "freeze-postmaster"),
    ("freeze-agent", "freeze-postmaster"),
    ("work server.shutdown", "isolate-from-dcs"),
    ("work server.orphans", "kill-postmaster", "isolate-from-dcs"),
    ("boundary guardian.start before", "kill-postmaster"),
    ("boundary guardian.promote before", "isolate"),
    ("boundary dcs.renew_leader after", "isolate-from-dcs"),
    ("store-slow", "isolate-from-dcs"),
    ("settings", "isolate-from-dcs"),
    ("switchover", "isolate"),
    ("switchover", "kill-postmaster"),
    ("switchover", "boundary dcs.release_leader after"),
    ("pause", "isolate-from-dcs"),
    ("pause", "kill-agent"),
    ("pause", "kill-postmaster"),
    ("broken-decide", "store-slow"),
    ("power-cut",),
)  # fmt: skip


# --- rare things ----------------------------------------------------------------------------------

#: This share of the plans has some of them, drawn apart: what else such a plan has stays as it was.
RARE_SHARE = 0.3
RARE_TIMES, SCENES = 3, 2


def _delete_key(draw: Draw, at: float) -> Fault:
    key = draw.rng.choice(("initialize", "config", "history", "failover", f"members/{draw.node()}"))
    return Fault(at, "delete-key", detail=key)


def _store_anew(draw: Draw, at: float) -> Fault:
    """Longer than the longest lease that the settings of a plan may ask for."""
    longest_s = max(draw.ttl_s, *(float(ttl) for ttl, _, _ in TIMINGS[:-1]))
    return Fault(
        at, "store-anew", duration=longest_s * draw.rng.uniform(1.1, 1.6), value=draw.rng.uniform(0.05, 1.5)
    )


def _lose_data(draw: Draw, at: float) -> Fault:
    foreign = float(draw.rng.random() < 0.4)
    return Fault(at, "lose-data", draw.rng.choice((LEADER, draw.node())), "", draw.about_ttl(), foreign)


#: What plans have only by `_for_later`.
LATER = ("schedule-switchover", "schedule-restart", "set-clock", "full-disk")
#: kind -> maker.
RARE: dict[str, Maker] = {
    "kill-agents": lambda draw, at: Fault(at, "kill-agents", duration=draw.about_ttl()),
    "delete-key": _delete_key,
    "delete-leader": lambda draw, at: Fault(at, "delete-leader"),
    "squat-leader": _store("squat-leader"),
    "store-anew": _store_anew,
    "foreign-files": _on_node("foreign-files"),
    "lose-data": _lose_data,
}
#: What together leads to a rare situation. Times are in lives of the lease.
RARE_TOGETHER: tuple[tuple[Fault, ...], ...] = (
    # A primary whose agent died in a pause comes back to a cluster that has gone on without it.
    (Fault(0.0, "pause", duration=1.4), Fault(0.1, "kill-agent", LEADER, duration=1.6),
     Fault(1.2, "garbage", "history", duration=1.5, detail="{")),
    (Fault(0.0, "pause", duration=1.4), Fault(0.1, "kill-agent", LEADER, duration=1.6),
     Fault(1.2, "garbage", "history", duration=1.5, detail='[[7, 50331688, "by hand"]]')),
    (Fault(0.0, "pause", duration=3.0), Fault(0.1, "kill-agent", LEADER, duration=1.6),
     Fault(1.2, "delete-key", detail="initialize")),
    (Fault(0.0, "pause", duration=2.4), Fault(0.1, "kill-agent", LEADER, duration=2.5),
     Fault(1.3, "failover", duration=0.0), Fault(1.6, "kill-agents", duration=1.0)),
    # All agents come back to a cluster that nobody has initialised, as far as the store knows.
    (Fault(0.0, "kill-agents", duration=1.5), Fault(1.2, "delete-key", detail="initialize")),
    # A primary that cannot hear that its key is gone, while the others look for the next one.
    (Fault(0.0, "isolate-from-dcs", LEADER, duration=0.5), Fault(0.01, "delete-leader")),
    (Fault(0.0, "squat-leader", duration=1.5), Fault(0.1, "isolate-from-dcs", LEADER, duration=1.2)),
    (Fault(0.0, "kill-postgres", LEADER), Fault(0.0, "lose-data", LEADER, duration=0.5, value=1.0)),
)  # fmt: skip
#: A new cluster is made in the first seconds.
FIRST_S = 1.0
FIRST: tuple[Maker, ...] = (
    lambda draw, at: Fault(0.0, "work", draw.node(), value=1.0, detail="pg.bootstrap"),
    lambda draw, at: Fault(0.0, "foreign-files", draw.node(), duration=draw.about_ttl()),
    lambda draw, at: Fault(at, "work", draw.node(), value=1.0, detail="pg.control"),
    lambda draw, at: Fault(
        0.0, "boundary", draw.node(), "lose-reply", draw.ttl_s * 0.3, 1.0, "dcs.create before"
    ),
    lambda draw, at: Fault(0.0, "boundary", draw.node(), "kill-agent", 0.1, 1.0, "dcs.put before"),
    lambda draw, at: Fault(0.0, "boundary", draw.node(), "kill-agent", 0.1, 1.0, "pg.bootstrap after"),
)


_IN_EPISODES = KINDS | {"delete-leader": (0.2, RARE["delete-leader"])}


def _rare(draw: Draw, end: float, fresh: bool) -> list[Fault]:
    """Some of the rare things, in the first half of a plan that ends then."""
    rng = draw.rng
    found = [RARE[draw.pick(tuple(RARE))](draw, rng.uniform(0.0, end / 2)) for _ in range(RARE_TIMES)]
    for _ in range(SCENES):
        begin = rng.uniform(0.0, end / 2)
        for one in draw.pick(RARE_TOGETHER):
            other = draw.node() if one.kind == "failover" else one.other
            node = one.node or (draw.node() if one.kind == "failover" else "")
            at, lasts = begin + one.at * draw.ttl_s, one.duration * draw.ttl_s
            found.append(replace(one, at=at, duration=lasts, node=node, other=other))
    if fresh:
        found += [make(draw, rng.uniform(0.0, FIRST_S)) for make in rng.sample(FIRST, 3)]
    return found


# --- things for later -----------------------------------------------------------------------------

#: This share of the plans schedules switchovers and restarts, drawn apart like the rare things.
SCHEDULED_SHARE, SCHEDULED_TIMES = 0.25, 5


def _for_later(draw: Draw, at: float) -> list[Fault]:
    """A switchover or a restart, and often what keeps it from being done at its time, `duration` later."""
    rng, node = draw.rng, draw.rng.choice((LEADER, draw.node()))
    lead_s, stays = draw.ttl_s * rng.uniform(0.0, 1.2), draw.ttl_s * rng.uniform(0.5, 2.0)
    wish = rng.choice((
        Fault(at, "schedule-switchover", node, draw.candidate(), lead_s),
        Fault(at, "schedule-restart", node, duration=lead_s),
    ))  # fmt: skip
    amid = at + lead_s * rng.uniform(0.1, 1.0)
    trouble = rng.choice((
        None,
        Fault(amid, "pause", duration=stays),
        Fault(amid, "freeze-agent", node, duration=stays),
        Fault(amid, "set-clock", node, duration=stays, value=draw.ttl_s * rng.uniform(-2.0, 2.0)),
        Fault(amid, "kill-postgres", node),
    ))  # fmt: skip
    return [wish] if trouble is None else [wish, trouble]


# --- synchronous modes ----------------------------------------------------------------------------

#: This share of the plans that may switch on modes has a synchronous one at some time.
SYNC_SHARE, SYNC_CHANGES = 0.4, 4


def _sync_settings(draw: Draw) -> dict[str, Any]:
    rng = draw.rng
    return {
        "synchronous_mode": rng.choice((True, "quorum", True, "quorum", False)),
        "synchronous_mode_strict": rng.random() < 0.4,
        "synchronous_node_count": rng.choice((1, 1, 2, 3)),
    }


def with_sync(plan: Plan) -> Plan:
    """Modes from the start, changed now and then, and tags that choose."""
    draw = Draw(plan.seed, "sync")
    if draw.rng.random() >= SYNC_SHARE or plan.dynamic.get("failsafe_mode"):
        return plan
    rng, end = draw.rng, plan.faults[-1].at
    dynamic = {**plan.dynamic, **_sync_settings(draw)}
    if not dynamic["synchronous_mode"] and rng.random() < 0.7:
        dynamic["synchronous_mode"] = True
    changes = [
        Fault(rng.uniform(0.0, end), "settings", rng.choice(plan.names), detail=_patch(draw))
        for _ in range(rng.choice((0, 0, 1, SYNC_CHANGES)))
    ]
    tags = {name: {**of, **_sync_tags(rng)} for name, of in plan.tags.items()}
    faults = tuple(sorted((*plan.faults, *changes), key=lambda f: f.at))
    return replace(plan, dynamic=dynamic, tags=tags, faults=faults)


def _patch(draw: Draw) -> str:
    return json.dumps(_sync_settings(draw), sort_keys=True)


def _sync_tags(rng: random.Random) -> dict[str, Any]:
    return rng.choice(({"nosync": True}, {"sync_priority": 2})) if rng.random() < 0.1 else {}


def _with_schedules(plan: Plan) -> Plan:
    draw = Draw(plan.seed, "due")
    if draw.rng.random() >= SCHEDULED_SHARE:
        return plan
    draw.names, draw.ttl_s = plan.names, plan.ttl_s
    end = plan.faults[-1].at
    found = [f for _ in range(SCHEDULED_TIMES) for f in _for_later(draw, draw.rng.uniform(0.0, end / 2))]
    return replace(plan, faults=tuple(sorted((*plan.faults, *found), key=lambda f: f.at)))


# --- illness --------------------------------------------------------------------------------------

#: This share of the plans has members that live and are of no use, long enough to be noticed; drawn apart.
ILL_SHARE, ILL_TIMES = 0.08, 3
#: So long, seconds: noticed after ten, or thirty, by probes every five.
ILL_S = (8.0, 80.0)
_ILL = ("full-disk", "full-disk", "stuck-postgres", "stuck-postgres", "freeze-postmaster", "hang-postgres")


def _ill(draw: Draw, at: float) -> list[Fault]:
    """Of the leader, of anybody, or of all of them at once."""
    kind, lasts = draw.rng.choice(_ILL), draw.rng.uniform(*ILL_S)
    where = draw.rng.choice(((LEADER,), (LEADER,), (draw.node(),), draw.names))
    return [Fault(at, kind, name, duration=lasts) for name in where]


def _with_illness(plan: Plan) -> Plan:
    draw = Draw(plan.seed, "unhealthy")
    if draw.rng.random() >= ILL_SHARE:
        return plan
    draw.names, draw.ttl_s = plan.names, plan.ttl_s
    end = plan.faults[-1].at
    found = [f for _ in range(ILL_TIMES) for f in _ill(draw, draw.rng.uniform(0.0, end / 4))]
    return replace(plan, faults=tuple(sorted((*plan.faults, *found), key=lambda f: f.at)))


# --- modes ----------------------------------------------------------------------------------------

#: From this seed on, plans may switch on modes that clusters have off by default.
MODES = 2**40
#: This share of them has failsafe mode on; of those, in this share only the store is ever down.
FAILSAFE_SHARE, FAILSAFE_CALM, OUTAGES = 0.3, 0.2, 6
#: What else is wrong around an outage.
_AMID_OUTAGE = (
    "freeze-agent", "kill-agent", "stop-agent", "freeze-host", "power-cut", "cut", "lossy", "slow",
    "kill-postmaster", "freeze-guardian", "kill-guardian", "boundary", "boundary", "settings", "mode",
    "delete-leader",
)  # fmt: skip


def _outage(draw: Draw, at: float, lasts: float) -> Fault:
    """For everybody, or for the leader alone: then the others see the key run out."""
    if draw.rng.random() < 0.5:
        return replace(KINDS["isolate-from-dcs"][1](draw, at), node=LEADER, duration=lasts)
    return replace(KINDS["store-down"][1](draw, at), duration=lasts)


def _amid(draw: Draw, at: float) -> Fault:
    """Trouble of the leader, or of somebody who is asked."""
    rng, kind = draw.rng, draw.rng.choice(_AMID_OUTAGE)
    who = rng.choice((LEADER, draw.node(), draw.node()))
    if kind == "mode":
        return Fault(at, "settings", who, duration=draw.about_ttl(), detail='{"failsafe_mode": false}')
    if kind == "delete-leader":
        return RARE[kind](draw, at)
    if kind == "boundary":
        where = rng.choice(
            ("peers.post", "pg.state-file", "guardian.arm", "dcs.take_leader", "dcs.put_if_leader")
        )
        strike = rng.choice(("kill-agent", "freeze-agent", "kill-host", "cut-dcs", "lose-reply"))
        when = f"{where} {rng.choice(('before', 'after'))}"
        return Fault(at, kind, who, strike, draw.about_ttl(), float(rng.choice((1, 2, 3))), when)
    fault = KINDS[kind][1](draw, at)
    if kind in ("cut", "lossy", "slow"):
        ends = [f"agent:{LEADER}", f"agent:{draw.node()}"]
        rng.shuffle(ends)
        return replace(fault, node=ends[0], other=ends[1])
    return replace(fault, node=who)


def _with_failsafe(plan: Plan) -> Plan:
    """Failsafe mode, and outages that are longer than a lease, most of them with trouble around them."""
    draw = Draw(plan.seed, "failsafe")
    if draw.rng.random() >= FAILSAFE_SHARE:
        return plan
    draw.names, draw.ttl_s = plan.names, plan.ttl_s
    plan = replace(plan, dynamic={**plan.dynamic, "failsafe_mode": True})
    calm, found, at = draw.rng.random() < FAILSAFE_CALM, list[Fault](), draw.rng.uniform(3.0, 10.0)
    for _ in range(OUTAGES):
        lasts = draw.ttl_s * draw.rng.uniform(0.5, 3.0)
        found.append(
            replace(KINDS["store-down"][1](draw, at), duration=lasts) if calm else _outage(draw, at, lasts)
        )
        if not calm:
            found += [
                _amid(draw, at + draw.rng.uniform(-0.2, 1.2) * lasts)
                for _ in range(draw.rng.choice((0, 1, 1, 2)))
            ]
        at += lasts + draw.ttl_s * draw.rng.uniform(0.0, 2.0)
    rest = () if calm or draw.rng.random() < 0.6 else tuple(f for f in plan.faults if f.at < at)
    faults = tuple(sorted((*rest, *(replace(f, at=max(0.0, f.at)) for f in found)), key=lambda f: f.at))
    return replace(
        plan, faults=faults, length=faults[-1].at + 2 * plan.ttl_s, events=0 if calm else plan.events
    )


# --- programs of the user's -----------------------------------------------------------------------

#: This share of the plans makes replicas by a program of the user's, which may restore a backup.
METHODS_SHARE = 0.1
#: Ways to make a replica: by name, with the switches of its section (contract 6.4).
METHODS: Mapping[str, Mapping[str, Any]] = {
    "copy": {},
    "delta": {"keep_data": True},
    "restore": {"no_leader": True},
    "restore-delta": {"no_leader": True, "keep_data": True},
}


def _with_methods(plan: Plan) -> Plan:
    draw = Draw(plan.seed, "methods")
    if draw.rng.random() >= METHODS_SHARE:
        return plan
    name = draw.pick(tuple(METHODS))
    listed = [name, "basebackup"] if draw.rng.random() < 0.7 else [name]
    mine = {"create_replica_methods": listed, name: {"command": name, **METHODS[name]}}
    dynamic = {**plan.dynamic, "postgresql": {**plan.dynamic["postgresql"], **mine}}
    return replace(plan, dynamic=dynamic, starts_empty=draw.rng.random() < 0.7)


#: This share of the plans that begin with nothing restores a backup.
RESTORED_SHARE = 0.3


def _with_restore(plan: Plan) -> Plan:
    return replace(plan, restored=plan.fresh and Draw(plan.seed, "restored").rng.random() < RESTORED_SHARE)


# --- permanent slots ------------------------------------------------------------------------------

#: This share of the plans has permanent slots with consumers, and faults around the work on them.
SLOTS_SHARE, SLOTS_TIMES = 0.2, 4
SLOTS = {
    "archive": {"type": "physical"},
    "cdc": {"type": "logical", "database": "postgres", "plugin": "test_decoding"},
}
_SLOTS_WORK = ("pg.slots", "pg.logical-slots", "pg.read-slots", "pg.place-slot")


def _with_slots(plan: Plan) -> Plan:
    if _share(plan.seed, "slot") >= SLOTS_SHARE:
        return plan
    draw = Draw(plan.seed, "slots")
    rng, end = draw.rng, plan.faults[-1].at
    found = [
        Fault(
            rng.uniform(0.0, end / 2),
            "boundary",
            rng.choice(plan.names),
            draw.pick(STRIKES),
            plan.ttl_s * rng.uniform(0.2, 1.5),
            1.0,
            f"{rng.choice(_SLOTS_WORK)} {rng.choice(('before', 'after'))}",
        )
        for _ in range(SLOTS_TIMES)
    ]
    postgresql = {**plan.dynamic["postgresql"], "use_slots": True}
    dynamic = {**plan.dynamic, "slots": SLOTS, "postgresql": postgresql}
    return replace(plan, dynamic=dynamic, faults=tuple(sorted((*plan.faults, *found), key=lambda f: f.at)))


def draw_plan(seed: int) -> Plan:
    """The plan of `seed`."""
    from tests.simulation.remote import FOLLOWS, following

    plan = _plan_of_one(seed)
    if seed >= FOLLOWS:
        return following(plan)
    if seed < MODES:
        return plan
    return with_sync(_with_slots(_with_failsafe(_with_restore(_with_methods(plan)))))


def _plan_of_one(seed: int) -> Plan:
    """Of a cluster that follows nobody."""
    plan, rare = _with_illness(_with_schedules(common_plan(seed))), Draw(seed, "rare")
    if rare.rng.random() >= RARE_SHARE:
        return plan
    rare.names, rare.ttl_s = plan.names, plan.ttl_s
    fresh = plan.fresh or rare.rng.random() < 0.4
    found = _rare(rare, plan.faults[-1].at, fresh)
    return replace(plan, fresh=fresh, faults=tuple(sorted((*plan.faults, *found), key=lambda f: f.at)))


def common_plan(seed: int) -> Plan:
    draw = Draw(seed)
    rng = draw.rng
    nodes = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 7))
    draw.names = node_names(nodes)
    ttl, loop_wait, retry = rng.choice(TIMINGS)
    draw.ttl_s = float(ttl)
    faults = tuple(_faults(draw, seed))
    style = _share(seed, "calm") if seed >= AIMED else 1.0
    troubled = CALM_SHARE <= style < CALM_SHARE + TROUBLED_SHARE
    if style < CALM_SHARE or troubled:
        episodic = episodes(draw.another, _IN_EPISODES, troubled)
        faults = tuple(sorted(episodic, key=lambda fault: fault.at))
    elif seed >= AIMED:
        faults = tuple(_aimed(Draw(seed, "aim"), draw.names, draw.ttl_s, faults))
    return Plan(
        seed=seed,
        nodes=nodes,
        dynamic=_dynamic(draw, ttl, loop_wait, retry),
        tags=somebody_may_lead({name: _tags(rng) for name in draw.names}),
        clocks={name: (rng.uniform(0, 1e5), rng.uniform(0.996, 1.004)) for name in draw.names},
        fresh=rng.random() < 0.15,
        faults=faults,
        length=faults[-1].at + 2 * ttl,
        pace=BUSY_S if troubled else PACE_S,
    )


def _faults(draw: Draw, seed: int) -> list[Fault]:
    rng, at = draw.rng, draw.rng.uniform(0.0, 4.0)
    swarm = [kind for kind in KINDS if kind in _ALWAYS or _share(seed, "swarm", kind) < SWARM_SHARE]
    pace = rng.choice((0.3, 0.8, 0.8, 2.0)) * min(1.0, draw.ttl_s / 5)
    faults = []
    for number in range(EVENTS // 2):
        one = draw.another(f"fault {number}")
        kind = one.by_weight({kind: KINDS[kind][0] for kind in swarm})
        faults.append(KINDS[kind][1](one, at))
        # Several at once now and then.
        at += 0.0 if rng.random() < 0.1 else rng.expovariate(1.0 / pace)
    return faults


def _aimed(draw: Draw, names: tuple[str, ...], ttl_s: float, faults: tuple[Fault, ...]) -> list[Fault]:
    """`faults`, part of them at whoever leads then, and some that strike together."""
    rng, draw.names, draw.ttl_s = draw.rng, names, ttl_s
    kept = [replace(f, node=LEADER) if f.node in names and rng.random() < 0.5 else f for f in faults]
    for _ in range(TOGETHER_TIMES):
        at, lasts = rng.uniform(0.0, faults[-1].at / 2), ttl_s * rng.uniform(1.0, 2.5)
        for what in draw.pick(TOGETHER):
            kind, _, detail = what.partition(" ")
            fault = replace(KINDS[kind][1](draw, at), duration=lasts)
            if fault.node in names and rng.random() < 0.9:
                fault = replace(fault, node=LEADER)
            if kind == "boundary":
                fault = replace(
                    fault, other=rng.choice(("freeze-agent", "cut-dcs")), value=1.0, detail=detail
                )
            elif kind == "work":
                fault = replace(fault, value=0.0, detail=detail)
            kept.append(fault)
            at += rng.choice((0.0, rng.uniform(0.0, ttl_s)))
    return sorted(kept, key=lambda fault: fault.at)


def _dynamic(draw: Draw, ttl: int, loop_wait: int, retry: int) -> dict[str, Any]:
    rng = draw.rng
    return {
        "ttl": ttl,
        "loop_wait": loop_wait,
        "retry_timeout": retry,
        "maximum_lag_on_failover": rng.choice((240, 2400, 1048576)),
        "primary_start_timeout": rng.choice((0, 5, 300)),
        "check_timeline": rng.random() < 0.3,
        "postgresql": {
            "use_pg_rewind": rng.random() < 0.8,
            "use_slots": rng.random() < 0.8,
            "remove_data_directory_on_diverged_timelines": rng.random() < 0.7,
            "remove_data_directory_on_rewind_failure": rng.random() < 0.7,
        },
    }


def may_lead(tags: Mapping[str, Any]) -> bool:
    """By its tags."""
    return not tags.get("nofailover") and tags.get("failover_priority", 1) > 0


def somebody_may_lead(tags: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A cluster none of whose members may lead has no primary, ever: that is no finding."""
    if any(may_lead(t) for t in tags.values()):
        return tags
    return tags | {next(iter(tags)): {}}


def _tags(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.8:
        return {}
    return rng.choice(({"nofailover": True}, {"failover_priority": 2}, {"failover_priority": 0},
                       {"clonefrom": True}, {"noloadbalance": True}))  # fmt: skip
