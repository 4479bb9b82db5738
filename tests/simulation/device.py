"""The watchdog device of a host: hardware, which counts while everything else stands still (contract 7.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.engine import Timer

if TYPE_CHECKING:
    from tests.simulation.host import SimHost


class SimWatchdog:
    """Calls `reset` when nobody has kept it alive for its timeout. By true time."""

    def __init__(self, host: SimHost, reset: Callable[[], None]) -> None:
        self._host, self._reset = host, reset
        self._timer: Timer | None = None

    def keep_alive(self, timeout_s: int) -> None:
        self.switch_off()
        self._timer = self._host.engine.after(timeout_s, self._fire)

    def switch_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._host.powered:
            self._reset()
