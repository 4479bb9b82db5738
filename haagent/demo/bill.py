"""What each operation cost: write gap, acknowledged, lost; as a table for people and as JSON. Pure.

The bound of a lost node (rule 5 of the design): a standby takes over only when it is at most
`maximum_lag_on_failover` behind the last position the primary published; what the primary wrote after that
publication comes on top. Divided by what a row needs in WAL, that is a number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from haagent.demo.evidence import Ack, between, lost, write_gap_s
from postgres_ctl.facts import Lsn

SWITCHOVER, RESTART, NODE_LOSS = "switchover", "PostgreSQL killed", "node lost"


@dataclass
class Operation:
    """One thing that was done to the cluster. Times are CLOCK_BOOTTIME seconds."""

    name: str
    began_at: float
    #: Member that was primary before, and after.
    old: str
    new: str = ""
    ended_at: float = 0.0
    why: str = ""
    #: Nothing may be lost.
    must_keep_all: bool = True
    most_rows: int = 0

    gap_s: float = 0.0
    acknowledged: int = 0
    lost_ids: list[int] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.new) and len(self.lost_ids) <= (0 if self.must_keep_all else self.most_rows)


@dataclass(frozen=True)
class Load:
    """What was written in a stretch of time under one primary."""

    seconds: float = 0.0
    wal_bytes: int = 0
    rows: int = 0
    #: Where the primary's WAL ended.
    wal_end: Lsn | None = None


@dataclass(frozen=True)
class Bound:
    """What a lost node may cost, from the settings and the load just before."""

    maximum_lag_bytes: int
    #: How often the primary publishes its position, seconds.
    status_every_s: float
    load: Load

    @property
    def since_status_bytes(self) -> int:
        """WAL between two publications of the primary's position."""
        rate = self.load.wal_bytes / self.load.seconds if self.load.seconds else 0.0
        return round(rate * self.status_every_s)

    @property
    def row_bytes(self) -> float:
        return self.load.wal_bytes / self.load.rows if self.load.rows else 0.0

    @property
    def rows(self) -> int:
        """As many rows as fit into the bound."""
        total = self.maximum_lag_bytes + self.since_status_bytes
        return int(total / self.row_bytes) if self.row_bytes else 0

    def text(self) -> str:
        return (
            f"At most {self.maximum_lag_bytes:,} B of WAL (maximum_lag_on_failover) and what was written "
            f"since the last status ({self.since_status_bytes:,} B in {self.status_every_s:g} s) can go: "
            f"{self.rows:,} rows of {self.row_bytes:.0f} B."
        )


def settle(operations: Sequence[Operation], acks: Sequence[Ack], held: set[int]) -> None:
    """Fill in the costs. A lost row counts for the operation that followed its acknowledgement."""
    since = 0.0
    for operation in operations:
        own = between(acks, since, operation.ended_at)
        operation.acknowledged = len(own)
        operation.lost_ids = lost(own, held)
        operation.gap_s = write_gap_s(acks, operation.began_at, operation.ended_at)
        since = operation.ended_at


def why_lost(operation: Operation, bound: Bound) -> str:
    """The explanation of a lost node; after `settle`."""
    count = len(operation.lost_ids)
    if count:
        told = f"{count:,} acknowledged rows had not reached {operation.new} when {operation.old} was lost."
    else:
        told = f"Every acknowledged row had reached {operation.new} already."
    return f"asynchronous replication promises nothing for the last moment. {told} {bound.text()}"


HEADINGS = ("operation", "primary", "write gap", "acknowledged", "lost")


def rows(operations: Sequence[Operation]) -> list[list[str]]:
    return [
        [op.name, _moved(op), f"{op.gap_s:.2f} s", f"{op.acknowledged:,}", f"{len(op.lost_ids):,}"]
        for op in operations
    ]


def line(op: Operation) -> str:
    """One operation's bill as a sentence."""
    return (
        f"{op.name}: write gap {op.gap_s:.2f} s, acknowledged {op.acknowledged:,}, "
        f"lost {len(op.lost_ids):,}: {op.why}"
    )


def _moved(op: Operation) -> str:
    return f"{op.old} -> {op.new}" if op.new != op.old else op.old


def as_json(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    return [
        {
            "operation": op.name,
            "old_primary": op.old,
            "new_primary": op.new,
            "write_gap_s": round(op.gap_s, 3),
            "acknowledged": op.acknowledged,
            "lost": len(op.lost_ids),
            "lost_ids": op.lost_ids[:100],
            "explanation": op.why,
            "passed": op.passed,
        }
        for op in operations
    ]
