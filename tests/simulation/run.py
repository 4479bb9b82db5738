"""The command line: `simulate` (as many schedules as fit into some minutes, on all cores), `replay` and
`shrink` one.

python -m tests.simulation.run simulate --minutes 5 [--first SEED] [--jobs N] [--schedules N]
python -m tests.simulation.run replay --seed 4711 [--no-shrink] [--no-keep]
python -m tests.simulation.run replay --plan FILE
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.simulation import found
from tests.simulation.plan import KINDS, LATER, RARE, Plan, draw_plan
from tests.simulation.remote import FOLLOWS
from tests.simulation.world import Result, World

#: Rules that no plan reaches, and why: each is tested in tests/unit.
UNREACHED = {
    "bootstrap.no-remote": "a new standby cluster that follows an archive only",
    "start.replica-first": "a standby that ran before any agent led the cluster: no moving over here",
    "race.two-primaries": "two primaries that run and answer with no key held, just after a pause",
    "switchover.stopping": "somebody starts the server by hand, read-only, in the middle of a hand-over",
}
#: Schedules a worker does between two reports.
BATCH = 10
#: One batch of so many is of standby clusters.
FOLLOWING_EVERY = 8


def run_seed(seed: int, traced: bool = False) -> Result:
    """The schedule of one seed."""
    return World(draw_plan(seed), traced).run()


# --- many -----------------------------------------------------------------------------------------


@dataclass
class Summary:
    """Of many schedules."""

    schedules: int = 0
    decisions: int = 0
    faults: int = 0
    events: int = 0
    cpu_s: float = 0.0
    simulated_s: float = 0.0
    moves: int = 0
    lost_records: int = 0
    acknowledged: int = 0
    healed_s: list[float] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    fault_kinds: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, result: Result, cpu_s: float) -> None:
        self.schedules += 1
        self.decisions += result.decisions
        self.faults += result.faults
        self.events += result.events
        self.cpu_s += cpu_s
        self.simulated_s += result.lasted_s
        self.moves += result.moves
        self.lost_records += result.lost_records
        self.acknowledged += result.acknowledged
        self.healed_s.append(result.healed_s)
        for mine, its in (
            (self.rules, result.rules),
            (self.fault_kinds, result.fault_kinds),
            (self.states, result.states),
            (self.answers, result.answers),
        ):
            mine.update(its)
        if result.violation is not None:
            self.failures.append((result.seed, result.violation.name, result.violation.text))

    def merge(self, other: Summary) -> None:
        for name in ("schedules", "decisions", "faults", "events", "cpu_s", "simulated_s", "moves",
                     "lost_records", "acknowledged", "healed_s", "rules", "fault_kinds", "states", "answers",
                     "failures"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def per_minute(self) -> float:
        """Schedules of 200 non-idle decisions or faults per minute of one core."""
        return (self.decisions + self.faults) / 200 / self.cpu_s * 60 if self.cpu_s else 0.0

    def as_json(self) -> dict[str, Any]:
        healed = sorted(self.healed_s)
        return {
            "schedules": self.schedules,
            "decisions": self.decisions,
            "faults": self.faults,
            "events": self.events,
            "simulated_hours": round(self.simulated_s / 3600, 1),
            "schedules_per_minute_and_core": round(self.per_minute),
            "leader_changes": self.moves,
            "acknowledged_records": self.acknowledged,
            "lost_records_in_async_failovers": self.lost_records,
            "healed_s_median": healed[len(healed) // 2] if healed else None,
            "healed_s_worst": healed[-1] if healed else None,
            "rules": dict(self.rules.most_common()),
            "rules_never_fired": never_fired(self.rules),
            "fault_kinds": dict(self.fault_kinds.most_common()),
            "fault_kinds_never_used": [
                kind for kind in (*KINDS, *RARE, *LATER) if not self.fault_kinds[kind]
            ],
            "states": dict(self.states.most_common()),
            "answers": dict(self.answers.most_common()),
            "failures": [{"seed": s, "invariant": n, "text": t} for s, n, t in self.failures],
        }


def never_fired(rules: Counter[str]) -> list[str]:
    """Rules of the source that no schedule reached, without those that none can."""
    return [rule for rule in known_rules() if not rules[rule] and rule not in UNREACHED]


def known_rules() -> list[str]:
    """Every rule id in haagent/core, as the unit tests read them."""
    from tests.unit.test_rules_covered import rule_ids

    return sorted(rule_ids())


def batches(first: int, step: int, count: int | None) -> Iterator[range]:
    """Seeds `first`, `first + 1`, ... in batches, some of them those of standby clusters; without end when
    `count` is None."""
    done = number = 0
    while count is None or done < count:
        size, number = step if count is None else min(step, count - done), number + 1
        start = first + done + (FOLLOWS if number % FOLLOWING_EVERY == 0 else 0)
        yield range(start, start + size)
        done += size


def run_batch(seeds: range, ends: float | None = None) -> Summary:
    """In a worker; what is left at `ends` (CLOCK_MONOTONIC, one for all processes) is not begun."""
    summary = Summary()
    for seed in seeds:
        if ends is not None and time.monotonic() > ends:
            break
        began = time.process_time()
        result = run_seed(seed)
        gc.collect()
        summary.add(result, time.process_time() - began)
    return summary


def _worker() -> None:
    # Everything imported so far lives for ever: the collector need not look at it again and again. And it
    # runs between two schedules only: within one, nearly everything goes by its reference count.
    gc.collect()
    gc.freeze()
    gc.disable()


def simulate(args: argparse.Namespace) -> int:
    """Runs until the time is over; exits with 1 when a rule was broken."""
    summary, began = Summary(), time.monotonic()
    ends = began + args.minutes * 60 if args.minutes else None
    with _progress(args, ends) as progress, multiprocessing.Pool(args.jobs, _worker) as pool:
        # The pool asks for batches ahead of its workers, many at once: the workers look at the time, too.
        work = partial(run_batch, ends=ends)
        for part in pool.imap_unordered(work, _while(batches(args.first, BATCH, args.schedules), ends)):
            summary.merge(part)
            progress(summary)
            if summary.failures and not args.keep_going:
                pool.terminate()
                break
    _report(summary, args, time.monotonic() - began)
    return 1 if summary.failures else 0


def _while(seeds: Iterator[range], ends: float | None) -> Iterator[range]:
    for batch in seeds:
        if ends is not None and time.monotonic() > ends:
            return
        yield batch


# --- for people -----------------------------------------------------------------------------------


class _progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, args: argparse.Namespace, ends: float | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._ends, self._began, self._count = ends, time.monotonic(), args.schedules
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._next_line = self._began + 20
        self._task = self._bar.add_task("simulating", total=1000)

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, summary: Summary) -> None:
        now = time.monotonic()
        share = (now - self._began) / (self._ends - self._began) if self._ends else 0.0
        if self._count:
            share = max(share, summary.schedules / self._count)
        text = (
            f"{summary.schedules} schedules, {summary.decisions + summary.faults} decisions and faults, "
            f"{len(summary.failures)} failures"
        )
        self._bar.update(self._task, completed=min(1000, int(share * 1000)), description=text)
        if not self._console.is_terminal and now >= self._next_line:
            self._next_line = now + 20
            print(text, file=sys.stderr, flush=True)


def _report(summary: Summary, args: argparse.Namespace, took_s: float) -> None:
    data = summary.as_json()
    if args.json:
        Path(args.json).write_text(json.dumps(data, indent=1) + "\n")
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Simulated", show_header=False)
    for key in (
        "schedules",
        "decisions",
        "faults",
        "events",
        "simulated_hours",
        "schedules_per_minute_and_core",
        "leader_changes",
        "acknowledged_records",
        "lost_records_in_async_failovers",
        "healed_s_median",
        "healed_s_worst",
    ):
        table.add_row(key.replace("_", " "), str(data[key]))
    table.add_row("wall clock", f"{took_s:.0f} s on {args.jobs} cores")
    console.print(table)
    for title, counter in (
        ("Rules fired", summary.rules),
        ("Faults and requests", summary.fault_kinds),
        ("States reached", summary.states),
        ("Answers to operators", summary.answers),
    ):
        shown = ", ".join(f"{name} {count}" for name, count in counter.most_common())
        console.print(f"[bold]{title}:[/bold] {shown}\n", highlight=False)
    never = data["rules_never_fired"]
    if never:
        console.print(f"[yellow]Rules that never fired:[/yellow] {', '.join(never)}\n", highlight=False)
    unused = data["fault_kinds_never_used"]
    if unused:
        console.print(f"[yellow]Faults that never struck:[/yellow] {', '.join(unused)}\n", highlight=False)
    for rule, why in UNREACHED.items():
        if not summary.rules[rule]:
            console.print(f"Not simulated: {rule}: {why}", highlight=False)
    for seed, name, text in summary.failures[:20]:
        console.print(f"[red]{name}[/red] {text[:300]}", highlight=False)
        console.print(f"    make replay SEED={seed}", highlight=False)
    if not summary.failures:
        console.print("[green]No rule was broken.[/green]")


# --- one ------------------------------------------------------------------------------------------


def replay(args: argparse.Namespace) -> int:
    """The trace of one schedule, shrunk first when it fails."""
    plan = found.read(Path(args.plan)).plan if args.plan else draw_plan(args.seed)
    first = World(plan).run()
    if first.violation is not None and args.shrink:
        plan = shrink(plan, first)
        print(f"shrunk to {len(plan.faults)} faults", file=sys.stderr)
    result = World(plan, traced=True).run()
    print(describe(plan))
    print("\n".join(result.trace))
    if result.violation is None:
        print(f"seed {plan.seed}: no rule was broken ({result.decisions} decisions, {result.faults} faults)")
        return 0
    print(f"seed {plan.seed}: {result.violation.name}: {result.violation.text}")
    if args.keep and not args.plan:
        path = found.keep(plan, result.violation)
        print(f"kept in {path}: mend it, and say there what was wrong and what is to be seen; or delete it")
    return 1


def describe(plan: Plan) -> str:
    """The cluster, in one paragraph."""
    tags = ", ".join(f"{name} {dict(t)}" for name, t in plan.tags.items() if t) or "none"
    start = "empty directories" if plan.fresh else "a cluster that was shut down"
    return (
        f"{plan.nodes} members, {json.dumps(dict(plan.dynamic), sort_keys=True)}, tags: {tags}, from {start}"
        f"\n"
        f"columns: seconds, who ('*' the plan, '!' a check), what\n"
    )


def shrink(plan: Plan, failing: Result, limit_s: float = 60.0) -> Plan:
    """As few faults as still break the same rule: halves, then quarters, ... then one by one.

    It takes about `limit_s` seconds of processor time at most: who else runs makes no difference."""
    assert failing.violation is not None
    name, ends = failing.violation.name, time.process_time() + limit_s
    last = failing.violation.at - 1000.0
    kept = Plan.without(plan, {i for i, f in enumerate(plan.faults) if f.at > last})
    plan = kept if _fails(kept, name) else plan
    size = max(1, len(plan.faults) // 2)
    while time.process_time() < ends:
        smaller = _drop_some(plan, name, size, ends)
        if smaller is not None:
            plan = smaller
        elif size == 1:
            break
        else:
            size = max(1, size // 2)
    return plan


def _drop_some(plan: Plan, name: str, size: int, ends: float) -> Plan | None:
    for begin in range(0, len(plan.faults), size):
        smaller = plan.without(set(range(begin, begin + size)))
        if time.process_time() > ends:
            return None
        if _fails(smaller, name):
            return smaller
    return None


def _fails(plan: Plan, name: str) -> bool:
    violation = World(plan).run().violation
    return violation is not None and violation.name == name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run")
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("simulate", help="many schedules, on all cores")
    many.add_argument("--minutes", type=float, default=0.0)
    many.add_argument("--schedules", type=int, help="stop after so many")
    many.add_argument("--first", type=int, default=None, help="first seed (default: drawn from the clock)")
    many.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    many.add_argument("--json", help="write the summary to this file")
    many.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    one = commands.add_parser("replay", help="one schedule, with its trace")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--plan", help="a file of golden/ instead of a seed")
    one.add_argument("--no-shrink", dest="shrink", action="store_false")
    one.add_argument("--no-keep", dest="keep", action="store_false", help="write no file to golden/")
    args = parser.parse_args(argv)
    if args.command == "replay":
        return replay(args)
    if args.first is None:
        args.first = int(time.time()) * 1000
    if not args.minutes and not args.schedules:
        args.minutes = 1.0
    return simulate(args)


if __name__ == "__main__":
    sys.exit(main())
