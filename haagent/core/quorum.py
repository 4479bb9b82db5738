"""Who may be promoted and for whom commits wait: what must hold between the two, and the next write. Pure.

Theory. `/sync` names voters V (its leader among them) and a quorum q: a voter may be promoted once q other
voters say that they are not ahead of it, so q + 1 of V back it. PostgreSQL acknowledges a commit once the
primary and n of the standbys S have it (`ANY n (S)`; by priority all of S, so n = |S| and q = 0). Any q + 1
of V and any n + 1 of S and the primary have one member in common, and so nothing acknowledged is lost,
while

    |V ∪ S ∪ {me}| <= q + n + 1        (or nobody but me can be promoted)

The two change by one write at a time, and this must hold after each (rule 4). A new (V, q) is fine for what
will be acknowledged while it fits the S in force. For what was acknowledged before, under another S, it is
fine when it accepts nobody whom the old one would not have (it is tighter), or when no q + 1 of V are
without a member known to have all that: me, and who has caught up since S came in force.

Names are folded to lower case by the caller. No order of writes is kept anywhere but in the two values:
whoever comes after a crash goes on from what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Names = frozenset[str]


@dataclass(frozen=True)
class Voters:
    """`/sync`: V with its leader, and q."""

    names: Names
    quorum: int = 0


@dataclass(frozen=True)
class Waits:
    """synchronous_standby_names: S, and n. More than there are: nothing is acknowledged at all."""

    names: Names = frozenset()
    number: int = 0

    @property
    def nobody_can(self) -> bool:
        return self.number > len(self.names)


@dataclass(frozen=True)
class State:
    """What the next write rests on."""

    me: str
    voters: Voters
    #: In force, and nothing else on its way.
    waits: Waits
    #: Standbys that have everything acknowledged before `waits` came in force.
    caught_up: Names = frozenset()
    #: Backends do wait: without that nobody is named who was not (H17).
    in_force: bool = True


@dataclass(frozen=True)
class Target:
    """For whom commits shall wait. `all_of_them`: by priority; else any `number` of them."""

    names: Names
    number: int
    all_of_them: bool

    @property
    def waits(self) -> Waits:
        return Waits(self.names, self.number)


def covers(voters: Voters, waits: Waits, me: str) -> bool:
    """Whoever may be promoted has all that is acknowledged under `waits`."""
    if waits.nobody_can or len(voters.names - {me}) <= voters.quorum:
        return True
    return len(voters.names | waits.names | {me}) <= voters.quorum + waits.number + 1


def is_tighter(new: Voters, old: Voters) -> bool:
    """Whoever `new` lets be promoted, `old` would have as well."""
    return new.quorum - old.quorum >= len(new.names - old.names)


def may_name(state: State, new: Voters) -> bool:
    """`new` may be written to `/sync` now."""
    if is_tighter(new, state.voters):
        return True
    return covers(new, state.waits, state.me) and len(new.names - _complete(state)) <= new.quorum


def _complete(state: State) -> Names:
    """Who has all that was acknowledged; with q = 0 every voter was promised to."""
    promised = state.voters.names if state.voters.quorum == 0 else frozenset[str]()
    return state.caught_up | promised | {state.me}


def next_write(state: State, target: Target) -> Voters | Waits | None:
    """The next write on the way to `target`; None when it is reached, or somebody has to catch up first."""
    if (state.voters.names | state.waits.names) - target.names - {state.me}:
        return _remove(state, target)
    return _add(state, target)


def _remove(state: State, target: Target) -> Voters | Waits | None:
    """Some are to go: from S first where V and q allow that, else from V."""
    for waits in _smaller(state, target):
        if waits != state.waits and covers(state.voters, waits, state.me) and _nested(state, waits):
            return waits
    left = state.voters.names & (target.names | {state.me})
    quorum = min(state.voters.quorum, _least_quorum(state, left))
    if Voters(left, quorum) != state.voters:
        return Voters(left, quorum)
    # V cannot shrink any more, and still S may not: q has to grow for it.
    wanted = next(w for w in _smaller(state, target) if w != state.waits)
    return Voters(left, len(left | wanted.names | {state.me}) - wanted.number - 1)


def _smaller(state: State, target: Target) -> Iterator[Waits]:
    """The target itself, or on the way to it what is left of S."""
    yield target.waits
    left = state.waits.names & target.names
    if left:
        yield Waits(left, min(max(state.waits.number, 1), len(left)))


def _nested(state: State, waits: Waits) -> bool:
    """V ⊆ S or S ⊆ V (contract 1.10)."""
    voters, standbys = state.voters.names | {state.me}, waits.names | {state.me}
    return voters <= standbys or standbys <= voters


def _add(state: State, target: Target) -> Voters | Waits | None:
    """Nobody has to go: more standbys, or another number of them."""
    me, voters = state.me, state.voters
    if state.waits != target.waits:
        if covers(voters, target.waits, me):
            return target.waits
        names = voters.names | (frozenset[str]() if target.all_of_them else target.names) | {me}
        more = len(names - voters.names)
        quorum = max(voters.quorum + more, len(names | target.names) - target.number - 1)
        return Voters(names, quorum)
    return _name(state, target)


def _name(state: State, target: Target) -> Voters | None:
    """S is what it should be: whoever is safe to name is named, with the least q."""
    me, voters = state.me, state.voters
    alone = voters.names <= {me}
    if alone and not state.in_force:
        return None
    known = target.names & (_complete(state) | voters.names)
    names = (known if target.all_of_them or (alone and not known) else target.names) | {me}
    new = Voters(names, min(_least_quorum(state, names), voters.quorum + len(names - voters.names)))
    final = new.quorum <= max(0, len(names) - 1 - target.number)
    better = new.quorum < voters.quorum or (alone and new.quorum < len(names) - 1)
    return new if new != voters and (final or better or names < voters.names) else None


def _least_quorum(state: State, names: Names) -> int:
    """The least q with which these voters may be named."""
    waits, others = state.waits, len(names - {state.me})
    behind = len(names - _complete(state))
    fits = 0 if waits.nobody_can else len(names | waits.names | {state.me}) - waits.number - 1
    return max(0, behind, min(fits, others))
