"""Other people's work on the machine spoils figures: wait for it to pause, within a budget."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.wait import pause

#: The machine counts as quiet when this share of its processor time was idle for `_LOOK_S`.
_IDLE_SHARE = 0.75
_LOOK_S = 1.0


class Quiet:
    """`budget_s`: how long all waits together may take, seconds; 0 for never."""

    def __init__(self, budget_s: float) -> None:
        self._left_s = budget_s

    def wait(self) -> None:
        """Return once the machine is quiet, or the budget is spent."""
        while self._left_s > 0:
            begun = time.monotonic()
            quiet = _idle_share(_LOOK_S) >= _IDLE_SHARE
            if quiet:
                return
            self._left_s -= time.monotonic() - begun


def _idle_share(look_s: float) -> float:
    idle, total = _times()
    pause(look_s)
    idle_now, total_now = _times()
    return (idle_now - idle) / max(1, total_now - total)


def _times() -> tuple[int, int]:
    """Clock ticks idle, and all of them, of all processors since boot."""
    user, nice, system, idle, iowait, *others = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return idle + iowait, user + nice + system + idle + iowait + sum(others)
