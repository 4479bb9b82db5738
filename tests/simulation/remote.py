"""The cluster that a standby cluster follows: two hosts without agents, run by hand.

Theory. One of them is the primary and is written to now and then. It fails over by an operator's hand, losing
its last records or not, to the other host, which becomes a copy of it first. So timelines of the remote
cluster move on by themselves, by the numbers PostgreSQL would take, whatever our cluster does meanwhile. What
happens on its servers is no concern of the invariants: nothing of ours may write there.

Seeds from FOLLOWS on stand for schedules of a standby cluster: what such a plan has besides is that of a plan
without one.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dcs import codec
from postgres_ctl.facts import ControlState
from tests.simulation.engine import HostClock
from tests.simulation.host import POSTGRES_PORT, SimHost
from tests.simulation.plan import Fault, Plan
from tests.simulation.wal import CHECKPOINT, Control

if TYPE_CHECKING:
    from tests.simulation.postgres import Connection, Server
    from tests.simulation.world import World

NAMES = ("far0", "far1")
#: As `standby_cluster` names them: whichever is the primary.
HOSTS = ",".join(NAMES)
SECTION: Mapping[str, Any] = {"host": HOSTS, "port": POSTGRES_PORT}
#: A client of the remote cluster writes so often, in the mean; seconds.
PACE_S = 0.7
#: So often an operator there looks whether the next step can be done, seconds.
LOOK_S = 0.2
#: From this seed on, the cluster of a plan follows another one; further apart than any other seeds.
FOLLOWS = 2**50
#: A plan has so many of the following things.
TIMES = 8


class Remote:
    """Of one world; `primary` is the host that is to be one."""

    def __init__(self, world: World) -> None:
        self.world, self.engine = world, world.engine
        clock = HostClock(world.engine, 0.0, 1.0)
        self.hosts = [SimHost(world.land, n, f"/{n}", clock, (n, POSTGRES_PORT)) for n in NAMES]
        self.primary = self.hosts[0]
        world.land.lists[HOSTS, POSTGRES_PORT] = lambda: self.primary
        self._rng = world.engine.rng("remote")
        self._session: Connection | None = None
        dd = self.primary.dd
        dd.system_id, dd.state = world.land.new_system_id(), "valid"
        dd.append(CHECKPOINT, 1, self.primary.name)
        dd.append("data", 1, self.primary.name, 0)
        dd.control = Control(ControlState.SHUT_DOWN, checkpoint=0, redo=0, timeline=1)
        self.primary.start_by_hand(standby=False)
        self._write()

    @property
    def server(self) -> Server | None:
        """The primary's, while it runs as one."""
        server = self.primary.server
        return server if server is not None and not server.in_recovery and server.door() == "open" else None

    def fail_over(self, lose: int) -> None:
        """The primary is gone for good, and its last `lose` records with it; the other host goes on."""
        old = self.primary
        if self.server is None:
            return
        new = next(host for host in self.hosts if host is not old)
        old.power_cut()
        new.power_cut()
        new.boot_up()
        theirs, dd = old.dd, new.dd
        count = max(1, len(theirs.records) - lose)
        dd.wipe()
        dd.system_id, dd.state = theirs.system_id, "valid"
        dd.records, dd.durable = theirs.records[:count], count
        dd.histories = {tl: h for tl, h in theirs.histories.items() if tl <= dd.timeline}
        dd.history_times = {tl: at for tl, at in theirs.history_times.items() if tl in dd.histories}
        last = max(r.index for r in dd.records if r.kind == CHECKPOINT)
        line = dd.records[last].timeline
        dd.control = Control(ControlState.IN_ARCHIVE_RECOVERY, last, last, line, count, dd.timeline)
        self.primary = new
        new.start_by_hand(standby=True)
        self._promote(new)

    def _promote(self, host: SimHost) -> None:
        server = host.server
        if server is None or server.gone or not server.in_recovery or host is not self.primary:
            return
        if server.phase == "running" and server.waits_for_wal:
            host.dd.promote_file = True
            host.signal_now(server.proc, signal.SIGUSR1)
        self.engine.after(LOOK_S, partial(self._promote, host))

    def _write(self) -> None:
        self.engine.after(self._rng.random() * 2 * PACE_S, self._write)
        server = self.server
        if server is None:
            return
        session = self._session
        if session is None or not session.alive or session.server is not server:
            session = self._session = server.connect("client")
        if session is not None:
            server.write(session, self._rng.random())


# --- faults ---------------------------------------------------------------------------------------


def fail_over(world: World, fault: Fault) -> None:
    if world.remote is not None:
        world.remote.fail_over(int(fault.value))


def cut_off(world: World, fault: Fault) -> Any:
    """Nobody reaches the remote cluster."""
    ends = tuple(f"pg:{name}" for name in NAMES)
    world.network.isolate(*ends)
    return partial(world.network.rejoin, *ends)


def put_back(world: World) -> None:
    """The section, where an operator's patch could not be told."""
    try:
        data = json.loads(world.store.raw_get(codec.CONFIG) or "null")
    except ValueError:
        return
    if isinstance(data, dict) and data.get("standby_cluster") != SECTION:
        world.store.raw_put(
            codec.CONFIG, json.dumps({**data, "standby_cluster": dict(SECTION)}, sort_keys=True)
        )


# --- plans ----------------------------------------------------------------------------------------


def following(plan: Plan) -> Plan:
    """The same schedule of a standby cluster, and what can happen to one."""
    rng = random.Random(f"follows/{plan.seed}")
    end = plan.faults[-1].at
    found = [_one(rng, rng.uniform(0.0, end * 0.7), plan.ttl_s) for _ in range(TIMES)]
    postgresql = {**plan.dynamic["postgresql"], "remove_data_directory_on_diverged_timelines": True}
    dynamic = {**plan.dynamic, "standby_cluster": dict(SECTION), "postgresql": postgresql}
    faults = tuple(sorted((*plan.faults, *found), key=lambda fault: fault.at))
    return replace(plan, dynamic=dynamic, faults=faults)


def _one(rng: random.Random, at: float, ttl_s: float) -> Fault:
    lasts = ttl_s * rng.uniform(0.3, 3.0)
    return rng.choice((
        Fault(at, "promote-cluster", duration=lasts),
        Fault(at, "promote-cluster", duration=lasts),
        Fault(at, "remote-failover", value=float(rng.choice((0, 0, 1, 3)))),
        Fault(at, "cut-remote", duration=lasts),
    ))  # fmt: skip
