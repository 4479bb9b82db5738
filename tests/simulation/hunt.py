"""Planted bugs and what catches them: `python -m tests.simulation.hunt`, or `make mutants`.

First the code as it is must stay clean on as many schedules as a mutant may need. Then every mutant of
`mutants/` is planted in a private copy, and schedules run there until a check fails that the mutant names;
one that breaks a rule without the bug as well proves nothing and is passed over. The list is printed as a
table and written as JSON. A mutant that survives, or breaks only the simulator, fails the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.simulation import mutate
from tests.simulation.mutate import Mutant
from tests.simulation.plan import AIMED
from tests.simulation.remote import FOLLOWS
from tests.simulation.search import Found

#: Seeds that are known to catch a mutant: tried first where time is short.
KNOWN = mutate.FOLDER / "seeds.json"
#: A search may take so many schedules, and so long; seconds of processor time.
SCHEDULES, LIMIT_S = 2000, 150.0
#: It may take so many times as long by the clock, and then so long to notice; seconds.
BUSY, SLACK_S = 10, 120.0
#: Checks that only fail in a standby cluster, or are to.
OF_STANDBY_CLUSTERS = ("standby-cluster.read-only", "liveness.follows-remote")
#: Fresh seeds are drawn below this.
SEEDS = 2**40


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    mutant: str
    bug: str
    expected: tuple[str, ...]
    #: The check that failed; None: it survived.
    check: str | None
    text: str
    seed: int | None
    schedules: int
    seconds: float
    #: How the simulator itself broke, where it did.
    crash: str = ""

    @property
    def verdict(self) -> str:
        if self.check is not None:
            return "caught"
        return "crash" if self.crash else "survived"


@dataclass(frozen=True)
class Caught:
    """What caught a mutant when it was written down."""

    check: str
    seeds: tuple[int, ...]


def known() -> dict[str, Caught]:
    """By mutant; those that no search has caught yet are not in it."""
    if not KNOWN.exists():
        return {}
    return {
        name: Caught(it["check"], tuple(it["seeds"])) for name, it in json.loads(KNOWN.read_text()).items()
    }


def known_seeds(mutant: str) -> tuple[int, ...]:
    """Seeds that caught it when they were written down."""
    caught = known().get(mutant)
    return caught.seeds if caught is not None else ()


def hunt(mutant: Mutant, first: int, schedules: int, limit_s: float, known: Iterable[int] = ()) -> Outcome:
    """Plant `mutant` in a copy and run schedules there until one fails that does not without it.

    One about standby clusters is looked for among their schedules. Raises BadPatch."""
    if mutant.expected[0] in OF_STANDBY_CLUSTERS and first < FOLLOWS:
        first += FOLLOWS
    seeds, spent, runs = list(known), 0.0, 0
    with tempfile.TemporaryDirectory(prefix="haagent-mutant-") as folder:
        mutate.plant(mutant, Path(folder))
        while True:
            found = run_search(Path(folder), first, schedules, limit_s - spent, mutant.expected, seeds)
            runs, spent = runs + found.schedules, spent + found.seconds
            proven = found.seed is None or not breaks_without(found.seed)
            if proven or spent >= limit_s:
                break
            # Open anyway: go on behind it.
            seeds, first, schedules = _rest(found.seed or 0, seeds, first, schedules)
    check, seed = (found.check, found.seed) if proven else (None, None)
    return Outcome(
        mutant.name, mutant.bug, mutant.expected, check, found.text, seed, runs, spent, found.crash
    )


def _rest(seed: int, known: list[int], first: int, schedules: int) -> tuple[list[int], int, int]:
    """What is left to be tried after `seed`."""
    if seed in known:
        return known[known.index(seed) + 1 :], first, schedules
    return [], seed + 1, first + schedules - seed - 1


def run_search(
    tree: Path, first: int, schedules: int, limit_s: float, expected: Iterable[str], known: Iterable[int]
) -> Found:
    """`search` in `tree`, a process of its own."""
    wanted = [str(first), str(schedules), str(limit_s), ",".join(expected), *map(str, known)]
    try:
        done = mutate.run_in(tree, "tests.simulation.search", *wanted, timeout_s=BUSY * limit_s + SLACK_S)
    except subprocess.TimeoutExpired:
        return Found(seconds=limit_s, crash="a schedule does not end")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Found(seconds=limit_s, crash=last)
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def breaks_without(seed: int) -> bool:
    """This schedule breaks a rule in the code as it is."""
    found = run_search(mutate.ROOT, seed, 1, SLACK_S, (), ())
    return found.check is not None or bool(found.crash)


# --- the whole list -------------------------------------------------------------------------------


def stays_clean(console: Console, first: int, schedules: int, jobs: int) -> bool:
    """The code as it is breaks no rule in so many schedules."""
    with ThreadPoolExecutor(jobs) as pool:
        broken = [
            seed for seed in pool.map(_first_broken, *_shares(first, schedules, jobs)) if seed is not None
        ]
    for seed in broken:
        console.print(f"[red]the code as it is breaks a rule: make replay SEED={seed}")
    if not broken:
        console.print(f"the code as it is: clean in {schedules} schedules")
    return not broken


def _shares(first: int, schedules: int, jobs: int) -> tuple[list[int], list[int]]:
    """Where each of `jobs` workers begins, and how many it does."""
    starts = [first + schedules * i // jobs for i in range(jobs + 1)]
    return starts[:-1], [b - a for a, b in pairwise(starts)]


def _first_broken(first: int, count: int) -> int | None:
    found = run_search(mutate.ROOT, first, count, 3600.0, (), ())
    return found.seed if found.check is not None else first if found.crash else None


def hunt_all(
    console: Console, chosen: Sequence[Mutant], first: int, options: argparse.Namespace
) -> list[Outcome]:
    """All of them, several at a time; a line for each when it is done."""
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [
            pool.submit(
                hunt,
                m,
                first,
                options.schedules,
                options.seconds,
                known_seeds(m.name) if options.known else (),
            )
            for m in chosen
        ]
        for done, run in enumerate(as_completed(runs), 1):
            outcome = run.result()
            outcomes.append(outcome)
            colour = {"caught": "green", "survived": "red", "crash": "magenta"}[outcome.verdict]
            what = outcome.check or outcome.crash
            console.print(
                f"{done:3}/{len(runs)} [{colour}]{outcome.verdict:8}[/] {outcome.mutant}: {what} "
                f"[dim]({outcome.schedules} schedules, {outcome.seconds:.1f} s)",
                highlight=False,
                soft_wrap=True,
            )
    return sorted(outcomes, key=lambda o: o.mutant)


def table(outcomes: Sequence[Outcome]) -> Table:
    """The list for people."""
    shown = Table("mutant", "the bug", "caught by", "seed", "schedules", "seconds", title="Planted bugs")
    for o in outcomes:
        by = o.check or f"[red]{o.verdict}: {o.crash}[/]"
        shown.add_row(o.mutant, o.bug, by, str(o.seed or ""), str(o.schedules), f"{o.seconds:.1f}")
    return shown


def write_seeds(outcomes: Iterable[Outcome]) -> None:
    """Remember what caught each, the newest seed first, two at most."""
    kept, living = known(), {m.name for m in mutate.mutants()}
    for o in outcomes:
        if o.seed is not None and o.check is not None:
            older = (s for s in known_seeds(o.mutant) if s != o.seed)
            kept[o.mutant] = Caught(o.check, (o.seed, *older)[:2])
    lines = [f"  {json.dumps(n)}: {json.dumps(asdict(kept[n]))}" for n in sorted(kept) if n in living]
    KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hunt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="*", help="names of mutants, or beginnings of names (all)")
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="most schedules a mutant may need")
    parser.add_argument("--seconds", type=float, default=LIMIT_S, help="most seconds a mutant may need")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at the same time")
    parser.add_argument("--first", type=int, help="first seed (drawn at random)")
    parser.add_argument("--known", action="store_true", help="try the seeds written down first")
    parser.add_argument("--write-seeds", action="store_true", help="write down the seeds that caught one")
    parser.add_argument("--no-clean", action="store_true", help="do not try the code as it is")
    parser.add_argument("--json", type=Path, default=mutate.ROOT / "build/mutants.json", help="where to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: the code as it is stays clean, and every mutant is caught by a named check."""
    options, console = _options(arguments), Console()
    chosen = [m for m in mutate.mutants() if not options.only or m.name.startswith(tuple(options.only))]
    first = options.first if options.first is not None else random.SystemRandom().randrange(AIMED, SEEDS)
    console.print(f"{len(chosen)} mutants, at most {options.schedules} schedules each, first seed {first}")
    clean = options.no_clean or stays_clean(console, first, options.schedules, options.jobs)
    outcomes = hunt_all(console, chosen, first, options)
    console.print(table(outcomes))
    by_check = Counter(o.check for o in outcomes if o.check is not None)
    console.print("\n".join(f"{count:4} caught by {check}" for check, count in sorted(by_check.items())))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([asdict(o) | {"verdict": o.verdict} for o in outcomes], indent=1))
    if options.write_seeds:
        write_seeds(outcomes)
    left = [o for o in outcomes if o.verdict != "caught"]
    console.print(f"{len(outcomes) - len(left)} of {len(outcomes)} caught; the list is in {options.json}")
    return 0 if clean and not left else 1


if __name__ == "__main__":
    sys.exit(main())
