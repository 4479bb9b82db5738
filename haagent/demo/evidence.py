"""What the writer noted, and what that proves: write gaps and lost rows. Pure but for reading the file.

A row is lost when the writer noted its acknowledgement and the table does not hold its id. A write gap is the
longest time in which none of the connections got an acknowledgement. Times are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

TABLE = "haagent_demo"

#: Kinds of notes, the first word of each line.
ACKNOWLEDGED = "ack"  # id, sent at, acknowledged at, port of the server
UNKNOWN = "unknown"  # id, sent at
REFUSED = "refused"  # at, what was said


@dataclass(frozen=True)
class Ack:
    """One acknowledged row."""

    row_id: int
    sent_at: float
    acked_at: float
    port: int


class Notes:
    """The writer's file, read as it grows. For one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self.acks: list[Ack] = []
        self.unknown: list[int] = []
        self.last_refusal = ""

    def read(self) -> None:
        """Take in what was added since the last call."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.lseek(fd, self._offset, os.SEEK_SET)
            while chunk := os.read(fd, 1 << 20):
                self._offset += len(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="replace"))
        finally:
            os.close(fd)

    def _take(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == ACKNOWLEDGED:
            row_id, sent_at, acked_at, port = rest.split()
            self.acks.append(Ack(int(row_id), float(sent_at), float(acked_at), int(port)))
        elif kind == UNKNOWN:
            self.unknown.append(int(rest.split()[0]))
        else:
            self.last_refusal = rest.partition(" ")[2]

    def since(self, at: float) -> list[Ack]:
        """Rows *sent* after `at`, in order of acknowledgement: they prove that a server is writable."""
        late = itertools.takewhile(lambda ack: ack.acked_at >= at, reversed(self.acks))
        return sorted((ack for ack in late if ack.sent_at >= at), key=lambda ack: ack.acked_at)

    def rate(self, now: float, window_s: float = 1.0) -> float:
        """Acknowledged rows per second over the last `window_s` seconds."""
        late = itertools.takewhile(lambda ack: ack.acked_at >= now - window_s, reversed(self.acks))
        return sum(1 for _ in late) / window_s


def write_gap_s(acks: Collection[Ack], since: float, until: float) -> float:
    """Longest time without an acknowledgement, of those that end in [since, until]; seconds, 0.0 for none."""
    times = sorted(ack.acked_at for ack in acks if ack.acked_at <= until)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times) if later >= since]
    return max(gaps, default=0.0)


def between(acks: Collection[Ack], since: float, until: float) -> list[Ack]:
    """Acknowledged in [since, until)."""
    return [ack for ack in acks if since <= ack.acked_at < until]


def lost(acks: Collection[Ack], held: Collection[int]) -> list[int]:
    """Acknowledged ids that the table does not hold."""
    return sorted({ack.row_id for ack in acks} - set(held))
