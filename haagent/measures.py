"""What one agent counts and times about itself, for `/metrics`: plain numbers in memory.

Its threads add, the REST server reads; a count costs a lock over memory and an addition, so that measuring
costs the loop nothing. All of it starts at zero with the agent, as counters do.

`Takeovers` follows the changes of the leader that this member has part in, phase by phase:

    who hands over (switchover):  request fit ─checkpoint─► ─stop─► stopped ─proof─► key released
    who takes over:               key seen missing ─election─► key taken ─claim─► ─promotion─► accepts writes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from dcs.records import ClusterSnapshot
from haagent.core.actions import Action, Promote, ReleaseLeader, TakeLeader
from haagent.core.model import Handover, Memory, Observation
from haagent.runtime import Runtime

#: Upper bounds of the histogram of round trips, seconds: a store on this host to one about to be lost.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Lease = Literal["leader", "session"]
Result = Literal["ok", "refused", "unknown"]
RoundTrip = Literal["renew", "read"]
Kind = Literal["failover", "manual", "switchover"]
Phase = Literal["checkpoint", "stop", "proof", "election", "claim", "promotion"]
Fencer = Literal["guardian", "agent"]

RESULTS: tuple[Result, ...] = ("ok", "refused", "unknown")
KINDS: tuple[Kind, ...] = ("failover", "manual", "switchover")
PHASES: tuple[Phase, ...] = ("checkpoint", "stop", "proof", "election", "claim", "promotion")


@dataclass(frozen=True)
class Timing:
    """Durations of one kind of thing. `buckets`: how many fell below each bound of BUCKETS_S, and above."""

    count: int = 0
    total_s: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)


class Measures:
    """Thread safe. Readers get a value as it is; nothing is taken back."""

    def __init__(self, runtime: Runtime) -> None:
        self._lock = runtime.lock()
        self.renewals: dict[tuple[Lease, Result], int] = {
            (lease, result): 0 for lease in ("leader", "session") for result in RESULTS
        }
        self._round_trips: dict[RoundTrip, tuple[list[int], list[float]]] = {
            kind: ([0] * (len(BUCKETS_S) + 1), [0.0]) for kind in ("renew", "read")
        }
        self.failovers: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        #: Phase -> how often, seconds in all.
        self.phases: dict[Phase, tuple[int, float]] = dict.fromkeys(PHASES, (0, 0.0))
        self.failed_promotions = 0
        self.fencings: dict[Fencer, int] = {"guardian": 0, "agent": 0}
        self.failed_steps = 0
        #: When the last step that could decide did so; None before the first. CLOCK_BOOTTIME seconds.
        self.decided_at: float | None = None

    def renewed(self, lease: Lease, result: Result) -> None:
        with self._lock:
            self.renewals[lease, result] += 1

    def round_trip(self, kind: RoundTrip, seconds: float) -> None:
        """One answered request to the DCS."""
        with self._lock:
            buckets, total = self._round_trips[kind]
            buckets[next((i for i, bound in enumerate(BUCKETS_S) if seconds <= bound), -1)] += 1
            total[0] += seconds

    def round_trips(self) -> dict[RoundTrip, Timing]:
        with self._lock:
            return {
                kind: Timing(sum(buckets), total[0], tuple(buckets))
                for kind, (buckets, total) in self._round_trips.items()
            }

    def took_over(self, kind: Kind) -> None:
        with self._lock:
            self.failovers[kind] += 1

    def phase(self, phase: Phase, seconds: float) -> None:
        with self._lock:
            count, total_s = self.phases[phase]
            self.phases[phase] = (count + 1, total_s + max(0.0, seconds))

    def promotion_failed(self) -> None:
        with self._lock:
            self.failed_promotions += 1

    def fenced(self, by: Fencer) -> None:
        with self._lock:
            self.fencings[by] += 1

    def step_failed(self) -> None:
        with self._lock:
            self.failed_steps += 1


@dataclass(frozen=True)
class _Begun:
    """The key is ours, and not yet the primary."""

    kind: Kind
    taken_at: float
    promoting_at: float | None = None


class Takeovers:
    """Looks at each step after it was done. Used by the loop thread only."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self._begun: _Begun | None = None

    def step(
        self, obs: Observation, before: Memory, after: Memory, done: Iterable[Action], now: float
    ) -> None:
        """`before` and `after`: what the loop remembered; `done`: what it did; `now`: when that was done."""
        self._promoted(obs)
        self._handing_over(before.handover, after.handover)
        for action in done:
            if isinstance(action, TakeLeader):
                self._taken(obs, after, now)
            elif isinstance(action, Promote):
                self._promoting(obs, now)
            elif isinstance(action, ReleaseLeader):
                self._released(before.handover, obs.now, now)

    def _promoted(self, obs: Observation) -> None:
        ended = next((result for result in obs.finished if result.kind == "promote"), None)
        if ended is None:
            return
        begun, self._begun = self._begun, None
        if not ended.ok:
            self._measures.promotion_failed()
        elif begun is not None and begun.promoting_at is not None:
            self._measures.phase("promotion", obs.now - begun.promoting_at)
            self._measures.took_over(begun.kind)

    def _handing_over(self, before: Handover | None, after: Handover | None) -> None:
        if before is None or after is None:
            return
        if before.stopping_since is None and after.stopping_since is not None:
            self._measures.phase("checkpoint", after.stopping_since - after.began_at)
        if (
            before.proving_since is None
            and after.proving_since is not None
            and after.stopping_since is not None
        ):
            self._measures.phase("stop", after.proving_since - after.stopping_since)

    def _released(self, handover: Handover | None, seen_at: float, now: float) -> None:
        self._begun = None
        if handover is None or handover.stopping_since is None:
            return
        if handover.proving_since is None:  # the proof was there as soon as the stop was seen
            self._measures.phase("stop", seen_at - handover.stopping_since)
        self._measures.phase("proof", now - (handover.proving_since or seen_at))

    def _taken(self, obs: Observation, memory: Memory, now: float) -> None:
        self._begun = _Begun(_kind(obs), now)
        if memory.leader_missing_since is not None and memory.last_leader is not None:
            self._measures.phase("election", now - memory.leader_missing_since)

    def _promoting(self, obs: Observation, now: float) -> None:
        begun = self._begun or _Begun(_kind(obs), now)
        self._measures.phase("claim", now - begun.taken_at)
        self._begun = replace(begun, promoting_at=now)


def _kind(obs: Observation) -> Kind:
    request = obs.cluster.failover if isinstance(obs.cluster, ClusterSnapshot) else None
    if request is None:
        return "failover"
    return "switchover" if request.is_switchover else "manual"
