"""A readable, reproducible account of one schedule: who did what when, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.simulation.engine import START_S


class Trace:
    """Lines, when they are wanted; else nothing is formatted at all."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.lines: list[str] = []
        self.now: Callable[[], float] = lambda: START_S

    def add(self, who: str, what: str, text: str) -> None:
        if self.wanted:
            self.lines.append(f"{self.now() - START_S:11.6f}  {who:<5} {what:<10} {text}")

    def decision(self, who: str, rule: str, reason: str, fields: Mapping[str, Any]) -> None:
        if not self.wanted:
            return
        actions, failed = fields.get("actions") or (), fields.get("failed")
        done = f" -> {', '.join(actions)}" if actions else ""
        stopped = f" STOPPED AT {failed}" if failed else ""
        self.add(who, "decides", f"{rule}: {reason}{done}{stopped}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"
