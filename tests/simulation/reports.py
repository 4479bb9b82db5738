"""Rule 5: what a promotion reports of its loss, in its claim, held against what was lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.wal import Record

#: What was written after the last status is known to nobody: a report names it, without a number.
_UNPUBLISHED = "after its last status"


@dataclass(frozen=True)
class Report:
    """The note of a claim, and what was published when it was written: the position (None: unreadable), and
    the timeline of the primary whose it was. A later one may have died before its first status."""

    note: str
    optime: int | None
    timeline: int


def unreported(report: Report | None, lost: Sequence[Record]) -> str | None:
    """What of the loss the report does not cover, for people; None when it covers all."""
    if not lost:
        return None
    if report is None or not report.note:
        return f"{len(lost)} acknowledged records are lost, nothing is reported"
    if report.optime is None or "unknown" in report.note:
        return None if "planned" not in report.note else f"{len(lost)} records are lost, but {report.note!r}"
    published = [
        record.start for record in lost if record.end <= report.optime and record.timeline <= report.timeline
    ]
    said = re.search(r"(\d+) bytes", report.note)
    known, needed = int(said[1]) if said else 0, report.optime - min(published, default=report.optime)
    if needed > known:
        return f"{needed} published bytes are lost, reported are {known} ({report.note!r})"
    if len(published) < len(lost) and _UNPUBLISHED not in report.note:
        return f"{len(lost) - len(published)} records after the last status are lost, but {report.note!r}"
    return None
