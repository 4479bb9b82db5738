"""Run schedules of this tree until a check fails: what `hunt` starts in a private, mutated copy.

A schedule in which the simulator itself breaks is counted and passed over: that is no proof of anything. So
is one that breaks another rule than the bug is expected to break.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import haagent
from tests.simulation.plan import draw_plan
from tests.simulation.world import World

#: A schedule that needs more processor time does not end, seconds.
SCHEDULE_CPU_S = 60.0


@dataclass
class Found:
    """What a search came to."""

    #: Name and text of the check that failed; None when none did.
    check: str | None = None
    text: str = ""
    seed: int | None = None
    #: How many schedules were run.
    schedules: int = 0
    #: Processor time, so that a busy machine finds as much.
    seconds: float = 0.0
    #: The first schedule in which the simulator itself broke, and how often that was.
    crash: str = ""
    crashes: int = 0
    #: Checks that failed and were not expected to: name -> how often.
    others: dict[str, int] = field(default_factory=dict)


class _TooLong(BaseException):
    """No `Exception`: the code under test would catch it."""


def _too_long(signum: int, frame: object) -> None:
    raise _TooLong


def search(seeds: Iterable[int], limit_s: float, expected: Collection[str] = ()) -> Found:
    """Run them in order until a check of `expected` (empty: any) fails or `limit_s` seconds of processor time
    are over."""
    signal.signal(signal.SIGVTALRM, _too_long)
    found, began = Found(), time.process_time()
    for seed in seeds:
        found.schedules += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, SCHEDULE_CPU_S)
        try:
            violation = World(draw_plan(seed)).run().violation
        except (
            Exception,
            _TooLong,
        ) as fault:  # the simulator's own: neither a catch nor the end of the search
            found.crash = found.crash or f"seed {seed}: {type(fault).__name__}: {fault}"
            found.crashes += 1
            violation = None
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if violation is not None and expected and violation.name not in expected:
            found.others[violation.name] = found.others.get(violation.name, 0) + 1
            violation = None
        found.seconds = time.process_time() - began
        if violation is not None:
            found.check, found.text, found.seed = violation.name, violation.text, seed
            break
        if found.seconds >= limit_s:
            break
    return found


def main(arguments: list[str]) -> None:
    """`FIRST COUNT LIMIT_S CHECK,CHECK... [KNOWN...]`: known seeds, then COUNT from FIRST on; prints JSON."""
    first, count, limit_s, expected, *known = arguments
    here, used = Path.cwd().resolve(), Path(haagent.__file__).resolve()
    assert used.is_relative_to(here), f"{used} is not the copy in {here}"
    logging.getLogger().addHandler(logging.NullHandler())  # a mutant may complain as it likes
    fresh = range(int(first), int(first) + int(count))
    checks = [check for check in expected.split(",") if check]
    print(json.dumps(asdict(search(chain(map(int, known), fresh), float(limit_s), checks))))


if __name__ == "__main__":
    main(sys.argv[1:])
