"""Run schedules of this tree until a check fails: what `hunt` starts in a private, mutated copy.

A schedule in which the simulator itself breaks is counted and passed over: that is no proof of anything.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import haagent
from tests.simulation.plan import draw_plan
from tests.simulation.world import World


@dataclass
class Found:
    """What a search came to."""

    #: Name and text of the check that failed; None when none did.
    check: str | None = None
    text: str = ""
    seed: int | None = None
    #: How many schedules were run.
    schedules: int = 0
    seconds: float = 0.0
    #: The first schedule in which the simulator itself broke, and how often that was.
    crash: str = ""
    crashes: int = 0


def search(seeds: Iterable[int], limit_s: float) -> Found:
    """Run them in order until a check fails or `limit_s` seconds are over."""
    found, began = Found(), time.monotonic()
    for seed in seeds:
        found.schedules += 1
        try:
            violation = World(draw_plan(seed)).run().violation
        except Exception as fault:  # the simulator's own: neither a catch nor the end of the search
            found.crash = found.crash or f"seed {seed}: {type(fault).__name__}: {fault}"
            found.crashes += 1
            violation = None
        found.seconds = time.monotonic() - began
        if violation is not None:
            found.check, found.text, found.seed = violation.name, violation.text, seed
            break
        if found.seconds >= limit_s:
            break
    return found


def main(arguments: list[str]) -> None:
    """`FIRST COUNT LIMIT_S [KNOWN...]`: known seeds, then COUNT from FIRST on; the result as JSON."""
    first, count, limit_s, *known = arguments
    here, used = Path.cwd().resolve(), Path(haagent.__file__).resolve()
    assert used.is_relative_to(here), f"{used} is not the copy in {here}"
    logging.disable(logging.CRITICAL)  # a mutant may complain as it likes
    fresh = range(int(first), int(first) + int(count))
    print(json.dumps(asdict(search(chain(map(int, known), fresh), float(limit_s)))))


if __name__ == "__main__":
    main(sys.argv[1:])
