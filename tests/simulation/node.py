"""One member: its host, and the agent processes that live there one after the other.

A supervisor (systemd's `Restart=always`) starts an agent again `RESTART_S` after its end, unless a fault
keeps it
down or an operator stopped it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from haagent.agent import Agent
from haagent.core.decide import decide
from haagent.core.model import Decision, Memory, Observation
from haagent.guardian_logic import GuardianLogic
from haagent.ports import Ports
from tests.simulation.config import POSTGRES_PORT, agent_config
from tests.simulation.device import SimWatchdog
from tests.simulation.engine import HostClock, Process, SimRuntime
from tests.simulation.guardian_port import SimGuardianPort
from tests.simulation.host import SimHost
from tests.simulation.pg_port import SimPostgres
from tests.simulation.ports import SimJournal, SimPeers, SimPrograms, SimRest, SimService
from tests.simulation.store import SimDcs

if TYPE_CHECKING:
    from tests.simulation.world import World

#: The supervisor waits so long, seconds.
RESTART_S = 1.0
#: A host that was reset is back after this, seconds.
BOOT_S = 5.0


class Node:
    """Faults come through its methods; what is to come up again does so by `up`."""

    def __init__(self, world: World, name: str, tags: Mapping[str, Any], clock: HostClock) -> None:
        self.world, self.name, self.tags = world, name, tags
        self.endpoint = f"agent:{name}"
        self.config = agent_config(name, tags, world.plan.dynamic, world.plan.watchdog, world.plan.restored)
        data_dir = self.config.postgresql.data_dir
        self.host = SimHost(world.land, name, data_dir, clock, (name, POSTGRES_PORT))
        self.host.watchdog = SimWatchdog(self.host, self._reset)
        self.agent_process = Process(world.engine, self.endpoint)
        self.agent_process.kill()
        self.agent: Agent
        self.agent_is_up = False
        #: The agent has met the store: from then on it does what it promises.
        self.can_act = False
        #: Since when every decision raises, on this host's clock.
        self.decide_broken_since: float | None = None
        self.open_requests = 0
        self._postgres: SimPostgres | None = None
        #: A lying disk lost WAL here.
        self.lost_wal = False
        #: The supervisor leaves it down.
        self.held_down = False
        self.lives = 0
        self.last_rule = ""

    # --- the agent --------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """A new life of the agent."""
        if self.agent_process.alive or not self.host.powered:
            return
        world, engine = self.world, self.world.engine
        self.lives += 1
        process = self.agent_process = Process(engine, self.endpoint)
        runtime = SimRuntime(process, self.host.clock, f"{self.name}, boot {self.host.boot}")
        self._postgres = SimPostgres(self.host, process, self.endpoint)
        ports = Ports(
            runtime=runtime,
            dcs=SimDcs(world.store, world.network, process, self.host.clock, self.endpoint),
            keeper_dcs=SimDcs(world.store, world.network, process, self.host.clock, self.endpoint),
            postgres=self._postgres,
            guardian=SimGuardianPort(self.host, process),
            peers=SimPeers(self),
            journal=SimJournal(self),
            rest=lambda operations, config: SimRest(self),
            service=SimService(),
            programs=SimPrograms(self),
        )
        self.agent_is_up = self.can_act = False
        self.decide_broken_since = None
        process.spawn(partial(self._live, ports), "loop")
        if self.host.frozen:
            process.freeze()
        world.trace(self.name, "agent", f"starts, life {self.lives}")
        world.arm_boundaries(self)

    def _live(self, ports: Ports) -> None:
        process = self.agent_process
        self.agent = Agent(self.config, ports)
        code = self.agent.live()
        self.world.trace(self.name, "agent", f"ended with {code}")
        self._ended(process)

    def _ended(self, process: Process) -> None:
        process.kill()
        self._forget()
        if self._postgres is not None:
            self._postgres.died()
        self.host.agent_died(process)
        self.world.engine.after(RESTART_S, self._supervise)

    def _supervise(self) -> None:
        if not self.held_down and self.host.powered:
            self.start_agent()

    def kill_agent(self, for_s: float = 0.0) -> None:
        """kill -9; the supervisor brings it back after `for_s` seconds."""
        if not self.agent_process.alive:
            return
        self.held_down = True
        process = self.agent_process
        self._ended(process)
        self.world.unreliable(self)
        self.world.engine.after(for_s, self._release)

    def stop_agent(self, for_s: float) -> None:
        """SIGTERM, and a start later."""
        if self.agent_process.alive and self.agent_is_up:
            self.held_down = True
            self.agent_process.spawn(self.agent.stop, "sigterm")
            self.world.engine.after(for_s, self._release)

    def _release(self) -> None:
        self.held_down = False
        self._supervise()

    def freeze_agent(self) -> None:
        self.agent_process.freeze()

    def thaw_agent(self) -> None:
        if not self.host.frozen:
            self.agent_process.thaw()

    def break_decide(self, broken: bool) -> None:
        """Every decision raises, as a bug in a rule would (H12)."""
        if self.agent_is_up or self.decide_broken_since is not None:
            self.decide_broken_since = self.host.clock.now() if broken else None
            self.agent.decide = _raises if broken else decide

    def ask(self, what: str, call: Callable[[Agent], Any]) -> None:
        """An operator's request to this member's REST; its answer is recorded."""
        world = self.world
        if not self.agent_process.runs or not self.agent_is_up:
            return
        agent, process = self.agent, self.agent_process

        def request() -> None:
            world.asked(what)
            self.open_requests += 1
            answer = call(agent)
            self.open_requests -= 1
            world.answered(self, what, answer)

        process.spawn(request, f"operator {what}")

    def _forget(self) -> None:
        """The agent is gone: nobody answers what it was asked."""
        self.agent_is_up = False
        self.world.gave_up(self.open_requests)
        self.open_requests = 0

    @property
    def stays_out(self) -> bool:
        """An operator has to decide: it diverged and its settings forbid what would mend it (rule 7), or it
        bootstrapped a cluster that lost the race for `initialize` (contract 1.3)."""
        dd, initialize = self.host.dd, self.world.store.raw_get("initialize")
        if dd.state == "valid" and initialize and dd.system_id != initialize:
            return True
        # As they are now: nonsense in `config`, patched meanwhile, is not put right again.
        if not self.agent_is_up or self.agent.observer.settings.remove_data_directory_on_diverged_timelines:
            return False
        return "allow remove_data_directory" in (self.agent.memory.note or "")

    # --- the host ---------------------------------------------------------------------------------

    @property
    def guardian_logic(self) -> GuardianLogic | None:
        return self.host.guardian.logic if self.host.guardian is not None else None

    def power_cut(self, lose: int = 0) -> None:
        """Everything on the host is gone at once; the last `lose` records too, although they were flushed."""
        self._forget()
        self.lost_wal = self.lost_wal or lose > 0
        process, self.held_down = self.agent_process, True
        if process.alive:
            process.kill()
        self.host.power_cut(lose)

    def _reset(self) -> None:
        """By the watchdog device."""
        self.world.trace(self.name, "watchdog", "resets the host")
        self.power_cut()
        self.world.engine.after(BOOT_S, self.boot)

    def boot(self) -> None:
        """Power is back: the supervisor starts the agent."""
        self.host.boot_up()
        self._release()


def _raises(obs: Observation, memory: Memory) -> Decision:
    raise RuntimeError("a planted bug in a rule")
