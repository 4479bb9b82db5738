"""What operators schedule in a simulated world, and whether it is done as they asked.

`done_as_asked` is the check `schedule.as-asked`: a switchover or a restart that was scheduled begins in its
window by the clock on the wall of its host, not in a pause, and no server is restarted that was already begun
anew since it was asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from dcs.records import ClusterSnapshot
from haagent.core.model import Observation
from haagent.core.restart import RestartWish
from tests.simulation.engine import WALL_S
from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from haagent.agent import Agent
    from haagent.api.view import Answer
    from tests.simulation.node import Node
    from tests.simulation.world import World


def _time(world: World, fault: Fault) -> datetime:
    return datetime.fromtimestamp(WALL_S + world.engine.now + fault.duration, UTC)


def schedule_switchover(world: World, fault: Fault) -> None:
    holder = world.store.leader()
    body = {
        "leader": holder.name if holder is not None else fault.node,
        "candidate": fault.other or None,
        "scheduled_at": _time(world, fault).isoformat(),
    }
    world.nodes[fault.node].ask("schedule switchover", lambda agent: agent.operations.switchover(body))


def schedule_restart(world: World, fault: Fault) -> None:
    at, node = _time(world, fault), world.nodes[fault.node]
    wish = RestartWish(due_at=at.timestamp(), shown={"schedule": at.isoformat()})

    def call(agent: Agent) -> Answer:
        world.invariants.to_restart[node.name] = None
        answer = agent.operations.restart(wish)
        planned, server = agent.requests.scheduled(), node.host.server
        if answer.status == 202 and planned is not None:
            known = server is not None and planned.postmaster_start_time == server.start_time
            world.invariants.to_restart[node.name] = server.pid if server is not None and known else None
        return answer

    node.ask("schedule restart", call)


def set_clock(world: World, fault: Fault) -> Callable[[], object]:
    clock = world.nodes[fault.node].host.clock
    clock.wall_skew_s = fault.value
    return partial(setattr, clock, "wall_skew_s", 0.0)


def done_as_asked(node: Node, obs: Observation, actions: Collection[str], asked_of: int | None) -> str | None:
    """What is wrong with what was just begun, None: nothing. `asked_of`: pid of the server to restart."""
    if "BeginScheduled" in actions:
        assert isinstance(obs.cluster, ClusterSnapshot)
        assert obs.cluster.failover is not None
        return _out_of_window(node, obs, obs.cluster.failover.due_at)
    if "Restart" not in actions or obs.request is not None:
        return None
    if asked_of is not None and obs.instance.pid != asked_of:
        return f"{node.name} restarts pid {obs.instance.pid}, and was to restart {asked_of}"
    planned = obs.scheduled_restart
    return _out_of_window(node, obs, planned.due_at if planned is not None else None)


def _out_of_window(node: Node, obs: Observation, at: float | None) -> str | None:
    if at is None:
        return f"{node.name} begins what nobody scheduled"
    late_s = obs.wall - at
    if not 0.0 <= late_s <= 1.5 * obs.settings.loop_wait_s:
        return f"{node.name} begins {late_s:.3f} s after the time it was asked for"
    return f"{node.name} begins in a pause" if obs.settings.pause else None
