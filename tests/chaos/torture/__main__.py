"""`make chaos`: a campaign of random faults, a report, and an exit status that says whether all held."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from tests.chaos.torture import report
from tests.chaos.torture.campaign import Campaign, run
from tests.support import cluster, netns, storage

REPORT = Path(__file__).resolve().parents[3] / "docs" / "chaos-report.md"


def main() -> int:
    """0: all promises held and the control was seen; 1: not so; 2: cannot run here."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats the plan of a campaign")
    parser.add_argument("--ttl", type=float, default=5.0, help="seconds")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--etcds", type=int, default=3)
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    lacking = netns.missing()
    if lacking:
        console.print(f"chaos: {lacking}", style="red")
        return 2
    signal.signal(signal.SIGTERM, _leave)
    cluster.sweep_abandoned()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    disks = storage.unavailable() is None
    campaign = Campaign(seed, options.minutes, options.ttl, options.nodes, options.etcds, disks)
    run(campaign, console)
    report.write(campaign, options.report)
    verdict = "[green]passed[/]" if campaign.passed else "[red]FAILED[/]"
    console.print(f"chaos: {verdict}, {len(campaign.results)} rounds, report {options.report}")
    for path in campaign.kept:
        console.print(f"logs kept: {path}", highlight=False)
    return 0 if campaign.passed else 1


def _leave(signum: int, frame: FrameType | None) -> None:
    """SIGTERM cleans up as an interrupt does."""
    raise KeyboardInterrupt


sys.exit(main())
