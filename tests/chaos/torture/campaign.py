"""Rounds for a number of minutes, drawn from a seed, with a line of progress each, and a report at the end.

The first round is the control: guardian and agent of the primary frozen, which nothing but a watchdog covers.
If the checker does not see two writable servers then, it proves nothing, and the campaign fails. After a
violation logs are kept and a new cluster goes on, so that one broken node does not spoil later rounds.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.torture import plan
from tests.chaos.torture.plan import Round
from tests.chaos.torture.rounds import Result, Runner, wait_two_writable
from tests.chaos.torture.stage import Stage
from tests.support import cluster

#: Frozen agent first: it would wake its guardian.
CONTROL = plan.single("freeze agent", "freeze guardian", lasts_s=0.0)
_FAULTS = (Exception, pytest.fail.Exception)
#: A new cluster after so many rounds, so that bootstrap and first clones are met too.
_ROUNDS_PER_STAGE = 25


@dataclass
class Campaign:
    """What was asked for, and what came of it so far."""

    seed: int
    minutes: float
    ttl_s: float = 5.0
    nodes: int = 3
    etcds: int = 3
    #: Every node has a disk of its own, which can hang and fill up.
    disks: bool = True
    control: Result | None = None
    results: list[Result] = field(default_factory=list)
    #: Faults of the harness or of the cluster that no result could be made of, as text.
    broken: list[str] = field(default_factory=list)
    #: Where logs of failed rounds were kept.
    kept: list[Path] = field(default_factory=list)
    took_s: float = 0.0
    #: CLOCK_MONOTONIC, seconds.
    began_at: float = 0.0

    @property
    def violations(self) -> int:
        return sum(len(result.violations) for result in self.results)

    @property
    def control_seen(self) -> bool:
        return self.control is not None and self.control.double_acknowledged > 0

    @property
    def passed(self) -> bool:
        return self.control_seen and not self.violations and not self.broken and bool(self.results)


def run(campaign: Campaign, console: Console) -> None:
    """Rounds until the minutes are over; the one that runs is finished. Fills `campaign`."""
    dice = random.Random(campaign.seed)
    campaign.began_at = time.monotonic()
    end = campaign.began_at + campaign.minutes * 60
    disks = "" if campaign.disks else ", no disks that hang or fill up (this machine cannot make them)"
    console.print(
        f"chaos: seed {campaign.seed}, {campaign.minutes:g} minutes, ttl {campaign.ttl_s:g} s{disks}"
    )
    while time.monotonic() < end and not campaign.broken:
        _one_stage(campaign, dice, end, console)
    campaign.took_s = time.monotonic() - campaign.began_at


def _one_stage(campaign: Campaign, dice: random.Random, end: float, console: Console) -> None:
    try:
        with Stage(campaign.nodes, campaign.etcds, ttl=campaign.ttl_s, disks=campaign.disks) as stage:
            _rounds_on(stage, campaign, dice, end, console)
    except _FAULTS:
        campaign.broken.append(f"setting up\n{traceback.format_exc()}")
        where = _new_directory(campaign, console)
        (where / "logs.txt").write_text(cluster.failure_report())


def _rounds_on(stage: Stage, campaign: Campaign, dice: random.Random, end: float, console: Console) -> None:
    runner = Runner(stage, dice)
    drawn = CONTROL
    try:
        if campaign.control is None:
            campaign.control = runner.run(CONTROL, wait_two_writable)
            console.print(_control_line(campaign.control))
        for drawn in _rounds(campaign, dice, end):
            result = runner.run(drawn)
            campaign.results.append(result)
            console.print(f"{_progress(campaign)}  {line(result)}")
            if result.violations:
                _keep(stage, campaign, str(drawn), console)
                return
    except _FAULTS:
        campaign.broken.append(f"{drawn}\n{traceback.format_exc()}")
        console.print(campaign.broken[-1], style="red", markup=False)
        _keep(stage, campaign, campaign.broken[-1], console)


def _rounds(campaign: Campaign, dice: random.Random, end: float) -> Iterator[Round]:
    for _ in range(_ROUNDS_PER_STAGE):
        if time.monotonic() >= end:
            return
        yield plan.draw(dice, campaign.ttl_s, campaign.nodes - 1, disks=campaign.disks)


# --- words ----------------------------------------------------------------------------------------


def line(result: Result) -> str:
    """One round for a terminal."""
    recovery = "[red]never[/]" if result.recovery_s is None else f"{result.recovery_s:5.1f} s"
    lost = "   ?" if result.recovery_s is None else f"{result.lost_rows:4d}"
    text = f"gap {result.gap_s:5.2f} s, recovered {recovery}, lost {lost}"
    verdict = "[green]ok[/]" if not result.violations else "[red]VIOLATION[/]"
    details = "".join(f"\n      [red]{v.rule}[/] ×{v.count}: {v.detail}" for v in result.violations)
    return f"{verdict}  {text}  {result.plan}{details}"


def _progress(campaign: Campaign) -> str:
    """Minutes of how many, and the number of the round."""
    minutes = (time.monotonic() - campaign.began_at) / 60
    return f"{minutes:4.1f}/{campaign.minutes:g} min {len(campaign.results):4d}"


def _control_line(control: Result) -> str:
    if control.double_acknowledged:
        return f"control: [green]seen[/], {control.double_acknowledged} writes on two servers without a fence"
    return "control: [red]NOT SEEN[/]: the checker misses two writable servers"


def _new_directory(campaign: Campaign, console: Console) -> Path:
    where = Path(tempfile.mkdtemp(prefix=f"haagent-chaos-{campaign.seed}-"))
    campaign.kept.append(where)
    console.print(f"      logs: {where}", highlight=False)
    return where


def _keep(stage: Stage, campaign: Campaign, drawn: str, console: Console) -> None:
    """Copy logs to where they stay, and say so."""
    where = _new_directory(campaign, console)
    (where / "round.txt").write_text(f"seed {campaign.seed}, round {len(campaign.results)}\n{drawn}\n")
    for name, path in stage.log_files():
        shutil.copyfile(path, where / name)
