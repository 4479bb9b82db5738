"""What one run measures, in order, and what the figures must not exceed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.programs import DEFAULT, PATRONI_MINIMUM, SHORT, Program, Timing

#: Targets, seconds.
SWITCHOVER_S, POSTMASTER_S, BEYOND_LEASE_S, START_S = 0.3, 0.5, 1.0, 5.0

GAPS = ("switchover", "postmaster")
NODE_LOSS = ("node-killed", "node-cut")
AGENT_FAULTS = ("agent-killed", "agent-frozen", "agent-restarted")
GUARDIAN_FAULTS = ("guardian-killed", "both-killed")


@dataclass(frozen=True)
class Stage:
    """One cluster, and the scenarios it goes through."""

    program: Program
    timing: Timing
    fsync: bool
    scenarios: tuple[str, ...]
    #: Of the full number of rounds: scenarios that last as long as a long lease get fewer.
    share: float = 1.0
    #: Seconds to watch the idle cluster; 0 for not at all.
    idle_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.program} {self.timing}, fsync {'on' if self.fsync else 'off'}"

    def rounds(self, full: int) -> int:
        return max(1, round(full * self.share))


def stages() -> Iterator[Stage]:
    """Programs take turns, so that a change of the machine's mood hits both."""
    lease_faults = NODE_LOSS + AGENT_FAULTS
    for fsync in (True, False):
        idle_s = 30.0 if fsync else 0.0
        yield Stage("haagent", PATRONI_MINIMUM, fsync, GAPS, idle_s=idle_s)
        yield Stage("patroni", PATRONI_MINIMUM, fsync, GAPS, share=1.0 if fsync else 0.6, idle_s=idle_s)
    yield Stage("haagent", DEFAULT, True, GAPS)
    yield Stage("haagent", SHORT, True, GAPS)
    for fsync in (True, False):
        yield Stage("haagent", SHORT, fsync, lease_faults + GUARDIAN_FAULTS, share=0.4 if fsync else 0.2)
    yield Stage("patroni", PATRONI_MINIMUM, True, lease_faults, share=0.2)
    yield Stage("haagent", PATRONI_MINIMUM, True, lease_faults, share=0.2)


def gap_target_s(scenario: str, timing: Timing) -> float | None:
    """The longest write gap permitted, seconds; None where nothing is promised."""
    if scenario == "switchover":
        return SWITCHOVER_S
    if scenario == "postmaster":
        return POSTMASTER_S
    return timing.ttl + BEYOND_LEASE_S if scenario in NODE_LOSS else None
