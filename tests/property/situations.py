"""One situation of a whole cluster as each of its members sees it: the leader key is gone, all have answered.

A `Place` is where one member's WAL ends: the timelines it came along and the last byte it has. From the
places follow, without any help of the code under test, who has more WAL than whom (`common`), and what each
member observes: its own server, its history file, the answers of all others.

Timelines grow from 1 in one line, each from a point of the one before; a member may sit on any of them, also
beyond the point where the line went on (diverged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from dcs.records import ClusterSnapshot, HistoryRow, Member, Status, Tags
from haagent.core.model import (
    Identity,
    Instance,
    LeaseFacts,
    Memory,
    Observation,
    Peer,
    PeerAnswer,
)
from haagent.core.publish import cannot_lead
from haagent.core.settings import Settings
from postgres_ctl.facts import InstanceSample, Lsn, TimelineSwitch
from tests.unit.core_facts import NOW, lost_stream, member
from tests.unit.core_facts import cluster as view

#: Few and close together, so that ties and switch points are met often.
STEP = 8


@dataclass(frozen=True)
class Place:
    """Where a member's WAL ends. `branch` tells timelines apart, `path` its switch points, oldest first."""

    branch: int
    path: tuple[TimelineSwitch, ...]
    end: int

    @property
    def timeline(self) -> int:
        """Its number, as PostgreSQL tells it: the twin cannot be told from the other by that."""
        return len(self.path) + 1

    def way(self) -> list[tuple[int, int]]:
        """(branch, where it ends) of all WAL it has."""
        older = [(n + 1, switch.switch_lsn.value) for n, switch in enumerate(self.path)]
        return [*older, (self.branch, self.end)]


def common(one: Place, other: Place) -> int:
    """Up to where both have the very same WAL."""
    reached = 0
    for (branch, end), (foreign, foreign_end) in zip(one.way(), other.way(), strict=False):
        if branch != foreign:
            break
        reached = min(end, foreign_end)
        if end != foreign_end:
            break
    return reached


def is_behind(one: Place, other: Place) -> bool:
    """All WAL of `one` is in `other`, and `other` has more."""
    return common(one, other) == one.end and other.end > one.end


@dataclass(frozen=True)
class Node:
    name: str
    place: Place
    tags: Tags
    #: All of its own WAL is read (H16).
    proven: bool


@dataclass(frozen=True)
class Situation:
    nodes: tuple[Node, ...]
    snapshot: ClusterSnapshot
    settings: Settings
    memory: Memory

    def sees(self, name: str) -> Observation:
        """What this member observes once everybody has answered it."""
        me = self.node(name)
        answers: Mapping[str, Peer] = {n.name: self._answer(n) for n in self.nodes if n.name != name}
        return replace(self._alone(me), peers=answers)

    def node(self, name: str) -> Node:
        return next(n for n in self.nodes if n.name == name)

    def _alone(self, node: Node) -> Observation:
        return Observation(
            now=NOW,
            me=Identity(node.name, "demo", node.tags),
            settings=self.settings,
            cluster=self.snapshot,
            instance=_instance(node),
            lease=LeaseFacts(session="s-" + node.name),
        )

    def _answer(self, node: Node) -> PeerAnswer:
        said = _instance(node).sample
        assert isinstance(said, InstanceSample)
        return PeerAnswer(
            name=node.name,
            asked_at=NOW - 0.05,
            in_recovery=True,
            role="replica",
            state="running",
            timeline=said.timeline,
            received=said.receive_lsn,
            replayed=said.replay_lsn,
            location=None,
            tags=node.tags,
            is_haagent=True,
            cannot_lead=cannot_lead(self._alone(node), self.memory),
        )

    def published(self) -> tuple[Member, ...]:
        return tuple(
            member(
                n.name,
                role="replica",
                tags=n.tags,
                cannot_lead=cannot_lead(self._alone(n), self.memory),
                timeline=n.place.timeline,
                xlog_location=n.place.end,
            )
            for n in self.nodes
        )


def _instance(node: Node) -> Instance:
    here = lost_stream(node.place.end)
    assert isinstance(here.sample, InstanceSample)
    said = replace(here.sample, timeline=node.place.timeline, startup_waits_for_wal=node.proven)
    return replace(here, sample=said, history=node.place.path)


# --- drawing one --------------------------------------------------------------------------------------

ends = st.integers(1, 30).map(lambda n: n * STEP)
tags = st.sampled_from(
    [
        *(Tags(),) * 5,
        Tags({"nofailover": True}),
        Tags({"failover_priority": 0}),
        Tags({"failover_priority": 5}),
        Tags({"nofailover": False, "failover_priority": 2}),
    ]
)


@st.composite
def lines(draw: st.DrawFn) -> tuple[TimelineSwitch, ...]:
    """Up to four timelines: where each but the last went over into the next."""
    at = sorted(draw(st.lists(st.integers(1, 20), max_size=3)))
    return tuple(TimelineSwitch(n + 1, Lsn(x * STEP), "promoted") for n, x in enumerate(at))


@st.composite
def places(draw: st.DrawFn, line: tuple[TimelineSwitch, ...]) -> Place:
    timeline = draw(st.integers(0, len(line)) | st.just(len(line)))
    path = line[:timeline]
    begins = path[-1].switch_lsn.value if path else 0
    return Place(timeline + 1, path, begins + draw(ends))


@st.composite
def situations(draw: st.DrawFn, plain: bool = False) -> Situation:
    """`plain`: nothing but positions and timelines differs."""
    line = draw(lines())
    nodes = []
    for number in range(draw(st.integers(2, 7))):
        proven = plain or draw(st.sampled_from([True, True, True, False]))
        label = Tags() if plain else draw(tags)
        nodes.append(Node(f"pg{number}", draw(places(line)), label, proven))
    return _situation(draw, tuple(nodes), line)


def _situation(
    draw: st.DrawFn,
    nodes: tuple[Node, ...],
    line: tuple[TimelineSwitch, ...],
) -> Situation:
    missing_since = NOW - draw(st.sampled_from([1.0, 29.0, 31.0, 500.0]))
    memory = Memory(leader_missing_since=missing_since, last_leader="gone", last_epoch=7)
    rows = tuple(HistoryRow(s.timeline, s.switch_lsn.value, s.reason, "2030", "pg0") for s in line)
    optime = draw(st.none() | ends)
    limit = draw(st.sampled_from([0, 5 * STEP, 1048576]))
    settings = Settings(maximum_lag_on_failover_bytes=limit, check_timeline=draw(st.booleans()))
    status = None if optime is None else Status(optime)
    snapshot = view(leader=None, status=status, history=rows, members=())
    bare = Situation(nodes, snapshot, settings, memory)
    return replace(bare, snapshot=replace(snapshot, members=bare.published()))
