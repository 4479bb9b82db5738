"""A random workload on the store, as a log: the same for the same seed, wherever it runs.

Run with the seed as argument.
"""

from __future__ import annotations

import random
import sys

from dcs.api import LeaseHandle, Taken, WatchEvent
from dcs.errors import DcsUnavailable
from tests.simulation.engine import START_S, Engine, HostClock, Process, SimRuntime
from tests.simulation.network import Network
from tests.simulation.store import SimDcs, SimStore

NAMES = ("pg1", "pg2", "pg3")
TTL_S = 3.0
CALL_S = 1.0


class _Member:
    """Two threads that want the leader key, and a watch."""

    def __init__(self, world: _World, name: str, life: int) -> None:
        self.world, self.name = world, name
        engine = world.engine
        self.process = Process(engine, f"{name}.{life}")
        clock = HostClock(engine, 100.0 * NAMES.index(name), 1.0 + 0.001 * NAMES.index(name))
        self.runtime = SimRuntime(self.process, clock)
        self.dcs = SimDcs(world.store, world.network, self.process, clock, f"agent:{name}")
        self.changed = self.runtime.condition()
        self.random = engine.rng(f"member {name}")
        self.process.spawn(self.main, "main")

    def main(self) -> None:
        self.dcs.watch(self.hear)
        self.runtime.thread(self.read, "reader").start()
        while True:
            try:
                self.hold(self.dcs.open_session(TTL_S, CALL_S))
            except DcsUnavailable as error:
                self.log(str(error))
            self.process.sleep(self.random.random())

    def hold(self, session: str) -> None:
        handle: LeaseHandle | None = None
        for _ in range(self.random.randrange(3, 30)):
            outcome: object
            if handle is None:
                outcome = self.dcs.take_leader(session, self.name, CALL_S)
                handle = outcome.handle if isinstance(outcome, Taken) else None
            elif self.random.random() < 0.1:
                outcome = self.dcs.release_leader(handle, self.name, CALL_S, '{"optime":1}')
            else:
                outcome = self.dcs.renew_leader(handle, self.name, CALL_S)
            self.log(str(outcome))
            self.dcs.put_member(session, self.name, "{}", CALL_S)
            with self.changed:
                self.changed.wait(self.random.random())

    def read(self) -> None:
        while True:
            try:
                self.log(str(self.dcs.snapshot(CALL_S)))
            except DcsUnavailable as error:
                self.log(str(error))
            with self.changed:
                self.changed.wait(2.0)

    def hear(self, event: WatchEvent) -> None:
        self.log(str(event))
        with self.changed:
            self.changed.notify_all()

    def log(self, text: str) -> None:
        self.world.log.append(f"{self.world.engine.now - START_S:.9f} {self.process.name} {text}")


class _World:
    def __init__(self, seed: int) -> None:
        self.engine = Engine(seed)
        self.network = Network(self.engine)
        self.store = SimStore(self.engine)
        self.log: list[str] = []
        self.lives = 0
        self.members = {name: self.member(name) for name in NAMES}

    def member(self, name: str) -> _Member:
        self.lives += 1
        return _Member(self, name, self.lives)

    def fault(self, draw: random.Random) -> None:
        name = draw.choice(NAMES)
        member, endpoint, kind = self.members[name], f"agent:{name}", draw.randrange(10)
        if kind < 2:
            member.process.freeze()
            self.engine.after(draw.random() * 5, member.process.thaw)
        elif kind < 4:
            member.process.kill()
            self.members[name] = self.member(name)
        elif kind == 4:
            self.network.cut(*draw.sample((endpoint, "dcs"), 2))
        elif kind == 5:
            self.network.isolate(endpoint)
        elif kind == 6:
            self.network.trouble(endpoint, "dcs", draw.random(), 0.2, 0.5)
            self.network.trouble("dcs", endpoint, draw.random(), 0.2)
        elif kind == 7:
            self.store.outage(refuses=draw.random() < 0.5)
            self.engine.after(draw.random() * 5, self.store.recover)
        elif kind == 8:
            self.store.lag_expiry_s = draw.random()
        else:
            self.store.slow_s = draw.random()
        self.engine.after(draw.random() * 6, self.heal)

    def heal(self) -> None:
        self.network.heal_all()
        self.store.slow_s = 0.0


def run(seed: int, duration_s: float = 60.0) -> list[str]:
    """Everything that happened, a line each."""
    world = _World(seed)
    draw = world.engine.rng("faults")
    at = START_S
    while (at := at + draw.random() * 4) < START_S + duration_s:
        world.engine.at(at, lambda: world.fault(draw))
    world.engine.run(START_S + duration_s)
    world.log.extend(f"crash {crash}" for crash in world.engine.crashes)
    world.log.append(f"{world.engine.events} events, {world.store.leader()}")
    world.engine.close()
    world.network.close()
    return world.log


if __name__ == "__main__":
    print("\n".join(run(int(sys.argv[1]))))
