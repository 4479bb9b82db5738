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
class Bound:
    """Numbers behind the bound of a lost node, measured just before it was lost."""

    maximum_lag_bytes: int
    status_every_s: float
    wal_bytes_per_s: float
    rows_per_s: float

    @property
    def since_status_bytes(self) -> int:
        return round(self.wal_bytes_per_s * self.status_every_s)

    @property
    def bytes_per_row(self) -> float:
        return self.wal_bytes_per_s / self.rows_per_s if self.rows_per_s else 0.0

    @property
    def rows(self) -> int:
        """As many rows as fit into the bound."""
        total = self.maximum_lag_bytes + self.since_status_bytes
        return int(total / self.bytes_per_row) if self.bytes_per_row else 0

    def text(self) -> str:
        return (
            f"bound: maximum_lag_on_failover {self.maximum_lag_bytes:,} B + WAL since the last status "
            f"{self.since_status_bytes:,} B ({self.wal_bytes_per_s:,.0f} B/s, status each "
            f"{self.status_every_s:g} s) = {self.rows:,} rows of {self.bytes_per_row:.0f} B"
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


HEADINGS = ("operation", "write gap", "acknowledged", "lost", "explanation")


def rows(operations: Sequence[Operation]) -> list[list[str]]:
    return [
        [
            f"{op.name}: {op.old} -> {op.new}" if op.new != op.old else f"{op.name}: {op.old}",
            f"{op.gap_s:.2f} s",
            f"{op.acknowledged:,}",
            f"{len(op.lost_ids):,}",
            op.why,
        ]
        for op in operations
    ]


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
