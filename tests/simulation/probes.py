"""`postgres_ctl.probe` for one agent process on one simulated host.

Nothing is written here: each finds out whether a write would be done, and one that would hang costs the whole
deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.facts import ProbeAnswer, ProbeFault
from tests.simulation.engine import Process

if TYPE_CHECKING:
    from tests.simulation.host import SimHost


class SimServerProbe:
    """A new session, and a commit on a primary."""

    def __init__(self, host: SimHost, process: Process) -> None:
        self._host, self._process = host, process

    def look(self, target: ConnectionTarget, deadline_s: float) -> ProbeAnswer | None:
        if self._door() == "silent":
            self._process.sleep(deadline_s)
        door = self._door()
        if door == "silent":
            return ProbeAnswer(ProbeFault.UNREACHED, "a new connection is not answered in time")
        return ProbeAnswer() if door == "open" else ProbeAnswer(None, "connection refused")

    def _door(self) -> str:
        server = self._host.server
        return server.door() if server is not None else "refused"


class SimDiskProbe:
    """A page beside the data."""

    def __init__(self, host: SimHost, process: Process) -> None:
        self._host, self._process = host, process

    def look(self, data_dir: str, deadline_s: float) -> ProbeAnswer | None:
        if self._hangs():
            self._process.sleep(deadline_s)
        if self._host.dd.state != "valid":
            return None
        if self._hangs():
            return ProbeAnswer(ProbeFault.HANGS, "a page is not written in time")
        if self._host.full:
            return ProbeAnswer(ProbeFault.FULL, "No space left on device")
        return ProbeAnswer()

    def _hangs(self) -> bool:
        return any(proc.stuck for proc in self._host.processes_in(self._host.dd.path))
