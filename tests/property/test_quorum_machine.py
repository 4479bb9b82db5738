"""Quorum transitions as a state machine: real commits on real sets of members, and whoever could be promoted.

The machine keeps its own truth: which members have each acknowledged commit. After every single write,
whoever the rules of promotion let lead has them all. Agents die between any two writes: nothing but the two
values and what standbys show is carried over.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from haagent.core.quorum import State, Target, Voters, Waits, covers, may_name, next_write

ME = "a"
STANDBYS = ("b", "c", "d", "e")
SOME = st.frozensets(st.sampled_from(STANDBYS))


class Quorum(RuleBasedStateMachine):
    """One primary with standbys that come, go and catch up. Positions are counts of commits."""

    def __init__(self) -> None:
        super().__init__()
        self.voters, self.waits = Voters(frozenset({ME})), Waits()
        self.position = dict.fromkeys(STANDBYS, 0)
        self.streaming: frozenset[str] = frozenset()
        self.end = 0
        #: Acknowledged: the position of the last one.
        self.acknowledged = 0
        #: End of WAL when the setting in force was first seen; None: not yet, or forgotten with an agent.
        self.noted: int | None = None
        self.in_force = False
        self.target = Target(frozenset(), 0, True)

    # --- the world

    @rule(who=SOME)
    def standbys_come_and_go(self, who: frozenset[str]) -> None:
        self.streaming = who

    @rule(name=st.sampled_from(STANDBYS), records=st.integers(1, 3))
    def standby_receives(self, name: str, records: int) -> None:
        if name in self.streaming:
            self.position[name] = min(self.end, self.position[name] + records)
            self.acknowledge()

    @rule()
    def commit(self) -> None:
        self.end += 1
        self.acknowledge()

    def acknowledge(self) -> None:
        """What the setting in force lets through: `number` of the names, or none where nobody waits."""
        if not self.in_force or not (self.waits.names or self.waits.number):
            self.acknowledged = self.end
            return
        have = sorted((self.position[n] for n in self.waits.names & self.streaming), reverse=True)
        if self.waits.number <= len(have):
            self.acknowledged = max(self.acknowledged, have[self.waits.number - 1])

    # --- the agent

    @rule()
    def agent_dies(self) -> None:
        """What it noted of the setting is lost; that it was published is seen by /sync alone."""
        self.noted = None

    @rule()
    def checkpoint(self) -> None:
        """The checkpointer has published the setting (H17)."""
        self.in_force = True
        self.noted = None
        self.acknowledge()

    @rule()
    def sees_the_setting(self) -> None:
        self.noted = self.end

    @rule(names=SOME, number=st.integers(1, 3), all_of_them=st.booleans())
    def wants(self, names: frozenset[str], number: int, all_of_them: bool) -> None:
        number = len(names) if all_of_them else min(number, len(names))
        self.target = Target(names, number, all_of_them)

    @precondition(lambda self: self.target.names)
    @rule()
    def wants_nobody_to_acknowledge(self) -> None:
        """Strict mode without a standby."""
        self.target = replace(self.target, names=frozenset(), number=1)

    @rule(writes=st.integers(1, 3))
    def writes(self, writes: int) -> None:
        for _ in range(writes):
            self.write_once()

    def state(self) -> State:
        noted = self.noted
        caught_up = frozenset(
            n for n in self.waits.names & self.streaming if noted is not None and self.position[n] >= noted
        )
        # Whoever is named was named because backends do wait.
        known = self.in_force or self.voters.names > {ME}
        return State(ME, self.voters, self.waits, caught_up, known)

    def write_once(self) -> None:
        state = self.state()
        write = next_write(state, self.target)
        if isinstance(write, Voters):
            assert may_name(state, write)
            self.voters = write
        elif isinstance(write, Waits):
            if not (self.waits.names or self.waits.number):
                self.in_force = False
            self.waits, self.noted = write, None
            self.acknowledge()

    # --- what must hold

    @invariant()
    def the_two_fit(self) -> None:
        assert covers(self.voters, self.waits, ME)
        voters, standbys = self.voters.names, self.waits.names | {ME}
        assert voters <= standbys or standbys <= voters

    @invariant()
    def whoever_may_be_promoted_has_everything(self) -> None:
        have = {**self.position, ME: self.end}
        for backing in combinations(sorted(self.voters.names), self.voters.quorum + 1):
            # The candidate is not behind any of the others.
            assert max(have[name] for name in backing) >= self.acknowledged, backing

    def teardown(self) -> None:
        """Left alone with living standbys that have everything, it arrives."""
        target = self.target
        self.streaming = target.names
        self.position = dict.fromkeys(STANDBYS, self.end)
        for _ in range(20):
            self.in_force, self.noted = True, self.end
            before = self.voters, self.waits
            self.write_once()
            self.the_two_fit()
            self.whoever_may_be_promoted_has_everything()
            if before == (self.voters, self.waits):
                break
        assert self.waits == target.waits
        assert self.voters.names == target.names | {ME}
        assert self.voters.quorum == max(0, len(target.names) - target.number)


TestQuorum = Quorum.TestCase
TestQuorum.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
