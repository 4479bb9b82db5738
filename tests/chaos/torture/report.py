"""What a campaign says of itself: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.chaos.torture.campaign import Campaign
from tests.chaos.torture.rounds import Result


def write(campaign: Campaign, path: Path) -> None:
    """`path` is the Markdown file; the JSON lies beside it."""
    path.write_text(markdown(campaign))
    path.with_suffix(".json").write_text(json.dumps(as_data(campaign), indent=1) + "\n")


def as_data(campaign: Campaign) -> dict[str, Any]:
    return {
        "passed": campaign.passed,
        "seed": campaign.seed,
        "took_s": round(campaign.took_s, 1),
        "ttl_s": campaign.ttl_s,
        "nodes": campaign.nodes,
        "etcd_members": campaign.etcds,
        "disks": campaign.disks,
        "control": _round(campaign.control) if campaign.control is not None else None,
        "rounds": [_round(result) for result in campaign.results],
        "broken": campaign.broken,
    }


def _round(result: Result) -> dict[str, Any]:
    return {
        "faults": [str(step) for step in result.plan.steps],
        "acknowledged": result.acknowledged,
        "double_acknowledged": result.double_acknowledged,
        "lost_rows": None if result.recovery_s is None else result.lost_rows,
        "lost_bytes": None if result.recovery_s is None else result.lost_bytes,
        "gap_s": round(result.gap_s, 3),
        "recovery_s": None if result.recovery_s is None else round(result.recovery_s, 3),
        "tenures": [list(tenure) for tenure in result.tenures],
        "violations": [{"rule": v.rule, "count": v.count, "detail": v.detail} for v in result.violations],
    }


# --- Markdown -------------------------------------------------------------------------------------

_INTRODUCTION = """# Chaos report

Written by `make chaos`. Every host is a network namespace; every fault is real: processes killed or stopped,
packets lost, disks hung or full. Clients write on every server all the time, through sessions opened before
the fault and after it, inside transactions and procedures too. `tests/chaos/torture/checker.py` says what is
judged and how.
"""


def markdown(campaign: Campaign) -> str:
    results = campaign.results
    parts = [_INTRODUCTION, _summary(campaign)]
    if results:
        parts += [_figures(results), _by_fault(results)]
    parts.append(_violations(campaign))
    return "\n".join(parts)


def _summary(campaign: Campaign) -> str:
    verdict = "passed" if campaign.passed else "**FAILED**"
    when = time.strftime("%Y-%m-%d", time.gmtime())
    disks = "a disk each" if campaign.disks else "no disks of their own, so none hung or full"
    hosts = f"{campaign.nodes} servers ({disks}), {campaign.etcds} etcd members, ttl {campaign.ttl_s:g} s"
    doubles = campaign.control.double_acknowledged if campaign.control else 0
    seen = f"seen: {doubles} writes acknowledged by two servers" if campaign.control_seen else "**NOT SEEN**"
    return (
        f"{verdict}, {when}: {len(campaign.results)} rounds in {campaign.took_s / 60:.1f} minutes, "
        f"seed {campaign.seed}; {hosts}.\n\n"
        f"Positive control (agent and guardian of the primary frozen, no watchdog): {seen}.\n"
    )


def _figures(results: list[Result]) -> str:
    planned = [result for result in results if result.plan.planned]
    switchovers = [result for result in planned if "switchover" in str(result.plan)]
    recovered = [result.recovery_s for result in results if result.recovery_s is not None]
    rows = [
        ("acknowledged writes", f"{sum(result.acknowledged for result in results)}"),
        ("planned switchovers carried out", f"{sum(map(_moved, switchovers))} of {len(switchovers)}"),
        ("planned stops and restarts", f"{len(planned) - len(switchovers)}"),
        ("acknowledged by two servers at once", f"{sum(r.double_acknowledged for r in results)}"),
        ("write gap, median (worst)", _median_worst(result.gap_s for result in results)),
        ("write gap of planned switchovers", _median_worst(result.gap_s for result in switchovers)),
        ("recovery after the last fault, median (worst)", _median_worst(recovered)),
        ("acknowledged rows lost, asynchronous", f"{sum(result.lost_rows for result in results)}"),
        ("acknowledged rows lost, planned operations", f"{sum(result.lost_rows for result in planned)}"),
        ("largest loss", f"{max(result.lost_bytes for result in results)} bytes of WAL"),
        ("violations", f"{sum(len(result.violations) for result in results)}"),
    ]
    return _table(("", ""), rows)


def _moved(result: Result) -> bool:
    return len({server for server, _ in result.tenures}) > 1


def _median_worst(values: Iterable[float]) -> str:
    found = list(values)
    return f"{statistics.median(found):.2f} s ({max(found):.2f} s)" if found else "none"


def _by_fault(results: list[Result]) -> str:
    """A round of several faults counts for each of them."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        for name in {str(step) for step in result.plan.steps}:
            groups.setdefault(name, []).append(result)
    rows = [
        (
            name,
            f"{len(group)}",
            _median_worst(result.gap_s for result in group),
            _median_worst(result.recovery_s for result in group if result.recovery_s is not None),
            f"{sum(result.lost_rows for result in group)}",
            f"{sum(len(result.violations) for result in group)}",
        )
        for name, group in sorted(groups.items())
    ]
    head = ("fault", "rounds", "write gap, median (worst)", "recovery", "rows lost", "violations")
    note = "A round of several faults counts in the line of each.\n\n"
    return note + _table(head, rows)


def _violations(campaign: Campaign) -> str:
    found = [(result, violation) for result in campaign.results for violation in result.violations]
    lines = [f"- {v.rule} ×{v.count} after {result.plan}: {v.detail}" for result, v in found]
    lines += [f"- broken: {text.splitlines()[0]}" for text in campaign.broken]
    return "\n## Violations\n\n" + ("\n".join(lines) if lines else "None.") + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
