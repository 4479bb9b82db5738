"""Judges what writers saw of one round. Pure: facts in, violations out.

Theory. A *tenure* is a server writing on a timeline. Timelines only grow, so of two tenures the one with the
lower timeline is the older, and one timeline has one server. What is promised:
- late-ack: nothing sent to the old primary after the new one's first acknowledgement is acknowledged (rule 1,
  and through sessions opened before the fault: rule 8);
- two-servers: at no moment do two servers acknowledge. Beyond late-ack this sees one timeline written by two
  servers, and an old primary that was frozen, woke up and executed what had been sent to it long before;
- lost: every acknowledged row is in the surviving table, unless the round broke an asynchronous primary. Then
  the loss is counted and has a limit: `maximum_lag_on_failover` plus the WAL since the last status (rule 5);
- unreported: whoever took over said before what that may cost, and it did not cost more (rule 5);
- recovery: after the last fault was healed one primary leads and all others stream, within a limit.

An acknowledgement that was sent before and read after the successor's first one proves nothing: the reply may
have waited in a buffer while the server was already dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tests.support.writers import Write

Rule = Literal["late-ack", "two-servers", "lost", "unreported", "recovery"]
#: A record, its commit and a page header lie between the position a write told and where it ended, bytes.
_POSITION_SLACK_BYTES = 16384


@dataclass(frozen=True)
class Limits:
    """What a round is held to. Without `maximum_lag_bytes` no acknowledged row may be lost."""

    recovery_s: float
    maximum_lag_bytes: int | None
    #: How old the last published status of a primary may be when it falls, seconds.
    status_age_s: float = 0.0


@dataclass(frozen=True)
class Facts:
    """One round. Times on CLOCK_MONOTONIC, seconds."""

    writes: tuple[Write, ...]
    #: Ids in the table of the primary that leads in the end.
    surviving: frozenset[int]
    healed_at: float
    #: One primary, the others streaming; None: not in the time it was waited for.
    recovered_at: float | None
    #: Timeline -> what its promotion said it may lose; None: not asked, so nothing is judged.
    reports: Mapping[int, str] | None = None


@dataclass(frozen=True)
class Violation:
    """A promise that was broken, how often, and the first instance in words."""

    rule: Rule
    count: int
    detail: str


@dataclass(frozen=True)
class Loss:
    """Acknowledged rows of one tenure that the survivors do not have."""

    server: str
    timeline: int
    rows: int
    #: From the last surviving write of the tenure to the last lost one.
    size_bytes: int
    #: WAL of the tenure after the oldest status that may have been the last one.
    since_status_bytes: int


def check(facts: Facts, limits: Limits) -> list[Violation]:
    """Every broken promise of the round, [] when there is none."""
    found = [*_late(facts.writes), *_two_servers(facts.writes), *_lost(facts, limits)]
    return [*found, *_unreported(facts, limits), *_recovery(facts, limits)]


def double_acknowledgements(writes: Iterable[Write]) -> int:
    """How many writes two writable servers acknowledged beside each other."""
    writes = tuple(writes)
    return len({w.id for w, _ in (*_sent_late(writes), *_same_timeline(writes), *_executed_late(writes))})


# --- one writable server --------------------------------------------------------------------------


def _first_acks(writes: tuple[Write, ...]) -> dict[tuple[str, int], Write]:
    """The first acknowledged write of each tenure (server, timeline)."""
    first: dict[tuple[str, int], Write] = {}
    for write in sorted(writes, key=lambda w: w.acked_at):
        first.setdefault((write.server, write.timeline), write)
    return first


def _after_newer(writes: tuple[Write, ...]) -> Iterator[tuple[Write, Write]]:
    """(write, a newer tenure's first write) where that one was acknowledged before this one was."""
    for (server, timeline), first in _first_acks(writes).items():
        for write in writes:
            if write.server != server and write.timeline < timeline and write.acked_at > first.acked_at:
                yield write, first


def _sent_late(writes: tuple[Write, ...]) -> list[tuple[Write, Write]]:
    return [(write, first) for write, first in _after_newer(writes) if write.sent_at > first.acked_at]


def _executed_late(writes: tuple[Write, ...]) -> list[tuple[Write, Write]]:
    """Sent in time, executed by the old server after the newer one had acknowledged."""
    return [
        (write, first)
        for write, first in _after_newer(writes)
        if write.sent_at <= first.acked_at < write.executed_at
    ]


def _same_timeline(writes: tuple[Write, ...]) -> list[tuple[Write, Write]]:
    """Writes into a timeline that another server wrote into first."""
    owner: dict[int, Write] = {}
    for write in sorted(writes, key=lambda w: w.acked_at):
        owner.setdefault(write.timeline, write)
    return [(w, owner[w.timeline]) for w in writes if owner[w.timeline].server != w.server]


def _late(writes: tuple[Write, ...]) -> Iterator[Violation]:
    late = _sent_late(writes)
    if late:
        yield Violation("late-ack", len({w.id for w, _ in late}), _pair(*late[0]))


def _two_servers(writes: tuple[Write, ...]) -> Iterator[Violation]:
    found = _same_timeline(writes) + _executed_late(writes)
    if found:
        yield Violation("two-servers", len({w.id for w, _ in found}), _pair(*found[0]))


def _pair(write: Write, first: Write) -> str:
    return (
        f"{write.server} on timeline {write.timeline} acknowledged {write.client}'s write {write.id}, "
        f"sent {write.sent_at - first.acked_at:+.3f} s and "
        f"executed {write.executed_at - first.acked_at:+.3f} s "
        f"after {first.server} on timeline {first.timeline} had acknowledged its first"
    )


# --- lost rows ------------------------------------------------------------------------------------


def losses(facts: Facts, status_age_s: float) -> list[Loss]:
    """What each tenure acknowledged and nobody has, oldest tenure first."""
    tenures: dict[tuple[int, str], list[Write]] = {}
    for write in facts.writes:
        tenures.setdefault((write.timeline, write.server), []).append(write)
    found = (_loss(*tenures[key], facts=facts, status_age_s=status_age_s) for key in sorted(tenures))
    return [loss for loss in found if loss is not None]


def _loss(*writes: Write, facts: Facts, status_age_s: float) -> Loss | None:
    lost = [w for w in writes if w.id not in facts.surviving]
    if not lost:
        return None
    end = max(w.lsn for w in writes)
    last_ack = max(w.acked_at for w in writes)
    known = [w.lsn for w in writes if w.acked_at <= last_ack - status_age_s]
    start = min(w.lsn for w in writes)
    kept = [w.lsn for w in writes if w.id in facts.surviving]
    return Loss(
        server=writes[0].server,
        timeline=writes[0].timeline,
        rows=len(lost),
        size_bytes=max(w.lsn for w in lost) - max(kept, default=start),
        since_status_bytes=end - max(known, default=start),
    )


def _lost(facts: Facts, limits: Limits) -> Iterator[Violation]:
    for loss in losses(facts, limits.status_age_s):
        what = f"{loss.rows} acknowledged rows ({loss.size_bytes} bytes) of {loss.server}"
        if limits.maximum_lag_bytes is None:
            ids = islice((w.id for w in facts.writes if w.id not in facts.surviving), 5)
            yield Violation("lost", loss.rows, f"{what} although nothing may be lost: {list(ids)}")
            continue
        allowed = limits.maximum_lag_bytes + loss.since_status_bytes + _POSITION_SLACK_BYTES
        if loss.size_bytes > allowed:
            yield Violation(
                "lost", loss.rows, f"{what}, more than the {allowed} bytes that an election allows"
            )


_REPORTED = re.compile(r"(\d+) bytes of WAL, and at most what the last primary wrote after its last status")
_NOTHING_PUBLISHED = "at most what the last primary wrote after its last status"


def _unreported(facts: Facts, limits: Limits) -> Iterator[Violation]:
    """A loss that the promotions right after the tenure did not announce, or announced as smaller."""
    for loss in losses(facts, limits.status_age_s) if facts.reports is not None else ():
        later = (w.timeline for w in facts.writes if w.timeline > loss.timeline)
        said = _said(facts.reports or {}, loss.timeline, min(later, default=None))
        what = f"{loss.rows} rows ({loss.size_bytes} bytes) of {loss.server} on timeline {loss.timeline}"
        known = [size for size in map(_announced_bytes, said) if size is not None]
        if not known:
            yield Violation("unreported", loss.rows, f"{what} were lost, and the promotions said {said}")
            continue
        allowed = sum(known) + loss.since_status_bytes + _POSITION_SLACK_BYTES
        if loss.size_bytes > allowed:
            yield Violation("unreported", loss.rows, f"{what} were lost, announced were {allowed}: {said}")


def _said(reports: Mapping[int, str], after: int, until: int | None) -> list[str]:
    """By the promotions from the end of this tenure to the next one that acknowledged anything."""
    return [reports[t] for t in sorted(reports) if t > after and (until is None or t <= until)]


def _announced_bytes(report: str) -> int | None:
    """What is known to be missing, beside what was written after the last status; None: no loss was said."""
    found = _REPORTED.search(report)
    if found is not None:
        return int(found[1])
    return 0 if _NOTHING_PUBLISHED in report else None


# --- recovery -------------------------------------------------------------------------------------


def _recovery(facts: Facts, limits: Limits) -> Iterator[Violation]:
    if facts.recovered_at is None:
        yield Violation(
            "recovery", 1, f"not one primary with all others streaming in {limits.recovery_s:g} s"
        )
    elif facts.recovered_at - facts.healed_at > limits.recovery_s:
        took = facts.recovered_at - facts.healed_at
        yield Violation("recovery", 1, f"took {took:.1f} s, promised were {limits.recovery_s:g} s")
