"""What agents and servers logged around a fault, in one order: where the time went.

Wall clock, milliseconds; all processes run on one machine, so there is one clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.support.cluster import Cluster, Node

_STAMP = re.compile(r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[.,](?P<ms>\d{3}) (?P<text>.*)")
#: Of PostgreSQL's log only the turning points.
_SERVER = re.compile(
    r"(UTC|GMT|[A-Z]{3,4}) \[\d+\] LOG:  "
    r"(received (fast|immediate|promote)|shutting down|database system|checkpoint (starting|complete)"
    r"|selected new timeline|archive recovery complete|redo (starts|done)|started streaming)"
)
_AGENT = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL): ")


@dataclass(frozen=True, order=True)
class Mark:
    """`after_s` counts from the fault."""

    after_s: float
    node: str
    what: str

    def __str__(self) -> str:
        return f"{self.after_s:+8.3f} {self.node:3} {self.what}"


def marks(cluster: Cluster, fault_at: float, until: float) -> list[Mark]:
    """Everything logged from just before `fault_at` (Unix time) to `until`, in order."""
    found = []
    for node in cluster.nodes:
        for at, what in _entries(node):
            if fault_at - 0.1 <= at <= until:
                found.append(Mark(round(at - fault_at, 3), node.name, what[:200]))
    return sorted(found)


def _entries(node: Node) -> Iterator[tuple[float, str]]:
    yield from _events(node.state_dir / "events.jsonl")
    for path in node.log_files():
        yield from _lines(path)


def _events(path: Path) -> Iterator[tuple[float, str]]:
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        at = datetime.fromisoformat(event["at"]).timestamp()
        yield at, f"event {event['kind']} {event['rule']}: {event['reason']}"


def _lines(path: Path) -> Iterator[tuple[float, str]]:
    for line in _text(path).splitlines():
        match = _STAMP.match(line)
        if match is None:
            continue
        text = match["text"]
        if _SERVER.match(text) or _AGENT.match(text):
            # The harness' machines log in UTC or local time; both programs and PostgreSQL get the same TZ.
            whole = datetime.strptime(match["at"], "%Y-%m-%d %H:%M:%S").astimezone().timestamp()
            yield whole + int(match["ms"]) / 1000, text


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
