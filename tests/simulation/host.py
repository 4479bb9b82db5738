"""One host: its data directory, PostgreSQL and guardian; freezing it, cutting its power.

Theory. The host only does what hardware and kernel do. Agents are processes of the node's, which freezes and
kills them along with the host and tells it of their end (`agent_died`). The guardian's death takes the
postmaster that it started along by SIGQUIT (parent-death signal); an adopted one goes on.

Faults are the methods below, those of `Server` (hang, stick, crash_restart, set_replay), and `knobs`.
"""

from __future__ import annotations

import signal

from haagent.guardian_logic import GuardianLogic
from tests.simulation.device import SimWatchdog
from tests.simulation.engine import HostClock, Process
from tests.simulation.guardian_port import GuardianProcess, SimGuardianPort
from tests.simulation.machine import Machine, Proc
from tests.simulation.postgres import Land, Server
from tests.simulation.wal import DataDir, Record

__all__ = ["SimGuardianPort", "SimHost"]

#: Lines of PostgreSQL's log that are kept.
LOG_LINES = 20
POSTGRES_PORT = 5432


class SimHost(Machine):
    """`endpoint` is PostgreSQL's in the network ("pg:pg1"), `address` where others connect to it."""

    def __init__(
        self,
        land: Land,
        name: str,
        data_dir: str,
        clock: HostClock,
        address: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(land.engine, name, clock)
        self.land = land
        self.address = address or (name, POSTGRES_PORT)
        self.endpoint = f"pg:{name}"
        self.dd = DataDir(data_dir)
        #: Small files of the agent on this host's disk; they survive everything.
        self.files: dict[str, str] = {}
        self.log_lines: list[str] = []
        #: The last postmaster; None before the first, and after a boot.
        self.server: Server | None = None
        #: Servers with anything of them alive, orphans too.
        self.servers: list[Server] = []
        self.guardian: GuardianProcess | None = None
        #: None: this host has none.
        self.watchdog: SimWatchdog | None = None
        #: Its disk takes nothing any more.
        self.full = False
        self._frozen_at = 0.0
        land.add(self)

    @property
    def guardian_logic(self) -> GuardianLogic | None:
        return self.guardian.logic if self.guardian is not None else None

    def log(self, line: str) -> None:
        self.log_lines = [*self.log_lines[1 - LOG_LINES :], line]

    # --- PostgreSQL -------------------------------------------------------------------------------

    def begin_server(self, proc: Proc) -> Server:
        """The process has become a postmaster."""
        self.servers = [s for s in self.servers if s.any_alive]
        server = self.server = Server(self, self.dd, proc)
        self.servers.append(server)
        server.start()
        return server

    def start_by_hand(self, standby: bool | None = None) -> Server:
        """An operator starts PostgreSQL behind everybody's back: a fault, and the tests' way."""
        if standby is not None:
            self.dd.standby_signal = standby
        return self.begin_server(self.spawn_proc("postgres", self.dd.path, None))

    def discard(self, records: tuple[Record, ...], why: str) -> None:
        if records:
            for truth in self.land.truths:
                truth.discarded(self, records, why)

    def signal_postmaster(self, signum: int) -> bool:
        """At once; False when there is none."""
        server = self.server
        if server is None or not server.proc.alive:
            return False
        self.signal_now(server.proc, signum)
        return True

    # --- faults: PostgreSQL -----------------------------------------------------------------------

    def kill_postmaster(self) -> bool:
        """kill -9 of the postmaster alone: what it started goes on for a while (H9)."""
        return self.signal_postmaster(signal.SIGKILL)

    def stop_postmaster(self) -> bool:
        """SIGSTOP of the postmaster alone: nobody new gets in, old sessions go on (H9)."""
        return self.signal_postmaster(signal.SIGSTOP)

    def continue_postmaster(self) -> bool:
        """SIGCONT."""
        return self.signal_postmaster(signal.SIGCONT)

    def fill_disk(self, full: bool) -> None:
        """No room, or room again: no transaction, no received WAL, no copy."""
        self.full = full
        server = self.server
        if server is None or not server.in_recovery:
            return
        if full:
            server.receiver.stop()
        else:
            server.receiver.look()

    # --- faults: the host -------------------------------------------------------------------------

    def freeze(self) -> None:
        """Nothing of PostgreSQL and guardian runs; the clock goes on, unless `thaw` says otherwise."""
        if self.frozen or not self.powered:
            return
        self.frozen = True
        self._frozen_at = self.engine.now
        if self.guardian is not None:
            self.guardian.freeze()
        self._look()

    def thaw(self, clock_stood: bool = False) -> None:
        """`clock_stood`: a virtual machine's pause, which the guest's clock did not see (H11)."""
        if not self.frozen:
            return
        if clock_stood:
            self.clock.offset_s -= (self.engine.now - self._frozen_at) * self.clock.rate
        self.frozen = False
        self.release_held()
        # Whose timer or socket comes first after a freeze is chance.
        sessions_first = self.rng.random() < 0.5
        if sessions_first:
            self._look()
        if self.guardian is not None:
            self.guardian.thaw()
        if not sessions_first:
            self.engine.after(0.0, self._look)

    def _look(self) -> None:
        for server in self.servers:
            server.go_on()

    def power_cut(self, lose: int = 0) -> None:
        """All processes are gone; the disk keeps what was flushed, or if it lied, all but the last `lose`."""
        if not self.powered:
            return
        self.powered, self.frozen = False, False
        self.boot += 1
        self._held.clear()
        if self.guardian is not None:
            self.guardian.die(power=True)
        self.reaper = self.guardian = None
        if self.watchdog is not None:
            self.watchdog.switch_off()
        for server in self.servers:
            server.power_lost()
        self.servers, self.server = [], None
        self.procs.clear()
        self._lose(lose)

    def _lose(self, lying: int) -> None:
        dd = self.dd
        if dd.state != "valid":
            return
        # pg_control is younger than what it names: without that nothing would start, or on an older timeline.
        named = max(dd.control.checkpoint + 1, dd.control.minimum)
        keep = max(named, min(dd.durable, len(dd.records) - lying))
        self.discard(dd.cut(keep), "lost")

    def boot_up(self) -> None:
        """The kernel runs again; nothing else does."""
        self.powered = True

    # --- agents and guardian ----------------------------------------------------------------------

    def agent_died(self, process: Process) -> None:
        """The kernel closes the dead agent's connection to the guardian."""
        if self.guardian is not None:
            self.guardian.agent_died(process)

    def kill_guardian(self) -> bool:
        """kill -9: PostgreSQL goes with it, unless it was adopted."""
        if self.guardian is None:
            return False
        self.guardian.die()
        return True

    def freeze_guardian(self, stuck: bool = False) -> bool:
        """SIGSTOP; with `stuck` an agent's SIGCONT does not help."""
        if self.guardian is None:
            return False
        self.guardian.stop(stuck)
        return True

    def thaw_guardian(self) -> None:
        """SIGCONT."""
        if self.guardian is not None:
            self.guardian.resume()
