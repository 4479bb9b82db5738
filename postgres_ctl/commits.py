"""How many transactions lie in a range of WAL that is going to be discarded, by pg_waldump.

It only reads pg_wal of a stopped server. What cannot be counted (a segment is gone, no pg_waldump, too much
WAL for the time) is said to be unknown, never taken for none.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from postgres_ctl.api import Cancellation, boottime, run_tool, tool
from postgres_ctl.controldata import read_history
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.facts import Lsn, TimelineSwitch

#: Rows of `--stats=record` that are commits.
_COMMIT = re.compile(r"^Transaction/COMMIT(?:_PREPARED)?\s+(\d+)\s", re.MULTILINE)
#: Where the server's WAL ends, it says so: with the last record, and where the next should begin.
_END = re.compile(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+)(?:.*? at ([0-9A-F]+/[0-9A-F]+))?")
_SEGMENT = re.compile(r"^[0-9A-F]{24}$")
_NOTHING = "could not find a valid record after"


@dataclass(frozen=True)
class Span:
    """WAL of one timeline; `end` None: up to where it ends."""

    timeline: int
    start: Lsn
    end: Lsn | None


@dataclass(frozen=True)
class Counted:
    """`transactions` None: unknown, for the reason in `why`. `end`: where WAL ends, where that was seen."""

    transactions: int | None
    end: Lsn | None = None
    why: str = ""


def spans_beyond(ours: Sequence[TimelineSwitch], mine: int, parted: Lsn) -> tuple[Span, ...]:
    """What of the line of timeline `mine`, whose history is `ours`, lies beyond `parted`, oldest first."""
    begun, spans = Lsn(0), []
    ends: list[tuple[int, Lsn | None]] = [(s.timeline, s.switch_lsn) for s in ours]
    for timeline, end in (*ends, (mine, None)):
        if end is None or end > parted:
            spans.append(Span(timeline, max(begun, parted), end))
        begun = end or begun
    return tuple(spans)


def newest_wal_timeline(data_dir: str) -> int:
    """Newest timeline of which there is WAL here, and a history: pg_control hears of it at a checkpoint.

    0 when there is none, or it cannot be seen."""
    try:
        names = os.listdir(os.path.join(data_dir, "pg_wal"))
    except OSError:
        return 0
    found = {int(name[:8], 16) for name in names if _SEGMENT.match(name)}
    for timeline in sorted(found, reverse=True):
        with contextlib.suppress(DataDirError):
            if timeline == 1 or read_history(data_dir, timeline):
                return timeline
    return 0


def count_commits(
    bin_dir: str,
    data_dir: str,
    spans: Sequence[Span],
    deadline_s: float,
    cancel: Cancellation | None = None,
) -> Counted:
    """Commit records in `spans` of a stopped server, within `deadline_s` seconds. Raises nothing of ours."""
    until, total, end = boottime() + deadline_s, 0, None
    for span in spans:
        counted = _count(bin_dir, data_dir, span, max(0.0, until - boottime()), cancel)
        if counted.transactions is None:
            return counted
        total, end = total + counted.transactions, counted.end
    return Counted(total, end)


def _count(
    bin_dir: str, data_dir: str, span: Span, deadline_s: float, cancel: Cancellation | None
) -> Counted:
    argv = [tool(bin_dir, "pg_waldump"), "--path", os.path.join(data_dir, "pg_wal")]
    argv += ["--timeline", str(span.timeline), "--start", str(span.start), "--stats=record"]
    argv += ["--rmgr=Transaction", *(("--end", str(span.end)) if span.end is not None else ())]
    try:
        ran = run_tool(argv, deadline_s, cancel=cancel, keep_stdout=True, check=False, term_grace_s=1.0)
    except ToolFailed as fault:
        return Counted(None, why=str(fault))
    found = _END.search(ran.output)
    if ran.returncode != 0 and found is None:
        nothing = _NOTHING in ran.output
        return Counted(0, span.start) if nothing else Counted(None, why=ran.output.rpartition("\n")[2][:200])
    end = Lsn.parse(found[2] or found[1]) if found is not None else span.end
    return Counted(sum(map(int, _COMMIT.findall(ran.stdout))), end)
