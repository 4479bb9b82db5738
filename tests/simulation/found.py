"""Failures that were found: plans that must not fail again, one `golden/<name>.json` each.

    wrong   what was wrong, in one line
    shows   words of lines of the trace, in this order: that the plan still meets what it is about, and what
            the agents do there now
    open    only while it is not mended: why not. Then the plan must still fail
    plan    the schedule, shrunk

`make replay` keeps a failure here, without `shows`, which a test demands: mend it, look at its trace, name
what was wrong and what is to be seen, and give the file a name that says it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.invariants import Violation
from tests.simulation.plan import Plan

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Found:
    """One failure that was found."""

    plan: Plan
    wrong: str
    shows: tuple[str, ...] = ()
    open: str = ""

    def unseen(self, trace: Iterable[str]) -> str:
        """The first of `shows` that the trace does not have behind the one before; "" when all are there."""
        lines = iter(trace)
        for words in self.shows:
            if not any(words in " ".join(line.split()) for line in lines):
                return words
        return ""

    def to_json(self) -> str:
        """As in the file."""
        said = {"wrong": self.wrong, "shows": list(self.shows)} | ({"open": self.open} if self.open else {})
        return json.dumps(said | {"plan": json.loads(self.plan.to_json())}, indent=1) + "\n"


def read(path: Path) -> Found:
    """One file."""
    data = json.loads(path.read_text())
    plan = Plan.from_json(json.dumps(data["plan"]))
    return Found(plan, data["wrong"], tuple(data["shows"]), data.get("open", ""))


def all_found() -> dict[str, Found]:
    """Name -> failure."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}


def keep(plan: Plan, violation: Violation) -> Path:
    """A new failure, by the name of its seed; where it was written."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"seed-{plan.seed}.json"
    path.write_text(Found(plan, f"{violation.name}: {violation.text.splitlines()[0]}").to_json())
    return path
