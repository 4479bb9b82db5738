"""Calm schedules: in a healthy cluster something begins, something goes wrong in the middle of it, then there
is time to recover, and so on.

Theory. Where faults come thick, few hand-overs get as far as the window in which one fault would matter. Here
the second fault comes within moments of the first, at the member that leads, at the one that is to lead next,
or anywhere. In troubled schedules it comes before: somebody is asked to lead who lags, hangs or is cut off.
Each episode is drawn from a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.plan import Draw, Fault, Maker

#: What an episode may begin with: kind -> how often, against the others.
BEGINS = {
    "switchover": 10.0,
    "failover": 1.5,
    "kill-agent": 2.0,
    "stop-agent": 1.5,
    "freeze-agent": 1.5,
    "isolate-from-dcs": 2.5,
    "isolate": 1.5,
    "kill-postmaster": 1.5,
    "power-cut": 1.0,
    "freeze-host": 0.5,
    "pause": 1.5,
    "restart": 0.5,
    "store-down": 0.5,
    "boundary": 1.0,
    "delete-leader": 0.4,
}
#: No schedule lasts for more.
EPISODES = 40
#: The first one begins when the cluster has come up, seconds.
FIRST_S = 5.0


#: Who is met: whoever leads at that moment, and the standby that was last asked to.
LEADER, CANDIDATE = "leader", "candidate"


#: What troubles a switchover before it is asked for: kind -> how often, against the others.
TROUBLES = {
    "cut": 4.0,
    "lossy": 1.0,
    "slow": 1.0,
    "freeze-postmaster": 1.0,
    "hang-postgres": 1.0,
    "stuck-postgres": 1.0,
    "kill-postgres": 1.0,
    "isolate": 1.5,
    "freeze-agent": 1.0,
    "store-slow": 0.5,
    "work": 1.0,
}
_LINKS = ("cut", "lossy", "slow")
#: Writers of troubled schedules are busy: seconds between two looks of one, in the mean.
BUSY_S = 0.08


def episodes(
    stream: Callable[[str], Draw], kinds: Mapping[str, tuple[float, Maker]], troubled: bool = False
) -> Iterator[Fault]:
    """`stream` makes a draw for a purpose; `troubled`: of switchovers that meet trouble."""
    at = FIRST_S
    for number in range(EPISODES):
        draw = stream(f"episode {number}")
        yield from _troubled(draw, kinds, at) if troubled else _episode(draw, kinds, at)
        at += draw.ttl_s * draw.rng.uniform(1.2, 3.0) + draw.rng.uniform(1.0, 4.0)


def _episode(draw: Draw, kinds: Mapping[str, tuple[float, Maker]], at: float) -> Iterator[Fault]:
    rng = draw.rng
    kind = draw.by_weight(BEGINS)
    first = kinds[kind][1](draw, at)
    if kind in ("switchover", "failover"):
        yield replace(first, other=CANDIDATE)
    else:
        yield replace(first, node=LEADER) if first.node in draw.names else first
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at += rng.expovariate(1.0 / rng.choice((0.02, 0.1, 0.5, draw.ttl_s / 2)))
        more = kinds[draw.by_weight({kind: weight for kind, (weight, _) in kinds.items()})][1](draw, at)
        where = rng.choice((LEADER, LEADER, CANDIDATE, CANDIDATE, more.node))
        yield replace(more, node=where) if more.node in draw.names else more


def _troubled(draw: Draw, kinds: Mapping[str, tuple[float, Maker]], at: float) -> Iterator[Fault]:
    """A switchover, trouble before it or in its middle, now and then both."""
    rng = draw.rng
    before = rng.choice((True, False, False))
    if before:
        yield _trouble(draw, kinds, at)
        at += rng.choice((0.02, draw.ttl_s / 4)) * rng.random()
    yield replace(kinds["switchover"][1](draw, at), other=CANDIDATE)
    if not before or rng.random() < 0.3:
        yield _trouble(draw, kinds, at + rng.expovariate(1.0 / rng.choice((0.1, 0.4))))


def _trouble(draw: Draw, kinds: Mapping[str, tuple[float, Maker]], at: float) -> Fault:
    """Of the candidate, of the leader, or between their servers."""
    rng, kind = draw.rng, draw.by_weight(TROUBLES)
    one, lasts = kinds[kind][1](draw, at), draw.ttl_s * rng.uniform(0.1, 0.9)
    if kind in _LINKS and rng.random() < 0.8:
        ends = [f"pg:{LEADER}", f"pg:{CANDIDATE}"]
        rng.shuffle(ends)
        return replace(one, node=ends[0], other=ends[1], duration=lasts)
    who = rng.choice((CANDIDATE, CANDIDATE, LEADER))
    return replace(one, node=who, duration=lasts) if one.node in draw.names else one
