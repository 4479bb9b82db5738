"""What each kind of fault or operator request does to a world, and how it is undone.

Every function takes (world, fault) and may return what undoes it, which happens `fault.duration` later,
or when
everything heals at the end.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dcs import codec
from dcs.api import KeyEvent
from haagent.core.restart import ALWAYS
from tests.simulation import remote
from tests.simulation.plan import Fault, may_lead
from tests.simulation.schedules import schedule_restart, schedule_switchover, set_clock
from tests.simulation.store import SQUATTER
from tests.simulation.wal import DataDir, in_common

if TYPE_CHECKING:
    from haagent.agent import Agent
    from tests.simulation.node import Node
    from tests.simulation.world import World

Undo = Callable[[], object]


# --- processes ------------------------------------------------------------------------------------


def kill_agent(world: World, fault: Fault) -> None:
    world.nodes[fault.node].kill_agent(fault.duration)


def stop_agent(world: World, fault: Fault) -> None:
    world.nodes[fault.node].stop_agent(fault.duration)


def freeze_agent(world: World, fault: Fault) -> Undo:
    node = world.nodes[fault.node]
    process = node.agent_process
    process.freeze()
    world.unreliable(node)

    def undo() -> None:
        if process is node.agent_process:
            node.thaw_agent()
        world.unreliable(node)

    return undo


def kill_agents(world: World, fault: Fault) -> None:
    """All at once: a bad package, a bad configuration."""
    for node in world.nodes.values():
        node.kill_agent(fault.duration)


def kill_guardian(world: World, fault: Fault) -> None:
    world.nodes[fault.node].host.kill_guardian()
    world.unreliable(world.nodes[fault.node])


def freeze_guardian(world: World, fault: Fault) -> Undo:
    node = world.nodes[fault.node]
    # An agent that gets no answer sends SIGCONT: only now and then may that help.
    node.host.freeze_guardian(stuck=fault.value < 0.7)
    world.unreliable(node)

    def undo() -> None:
        node.host.thaw_guardian()
        world.unreliable(node)

    return undo


def freeze_host(world: World, fault: Fault) -> Undo | None:
    node = world.nodes[fault.node]
    if node.host.frozen or not node.host.powered:
        return None
    node.agent_process.freeze()
    node.host.freeze()
    world.unreliable(node)

    def undo() -> None:
        if node.host.frozen:
            node.host.thaw()
            node.agent_process.thaw()
            world.unreliable(node)

    return undo


def power_cut(world: World, fault: Fault) -> Undo | None:
    node = world.nodes[fault.node]
    if not node.host.powered:
        return None
    node.power_cut(int(fault.value))
    return node.boot


def kill_postmaster(world: World, fault: Fault) -> None:
    world.nodes[fault.node].host.kill_postmaster()


def kill_postgres(world: World, fault: Fault) -> None:
    """Postmaster and all of its processes, as the OOM killer or an operator would."""
    host = world.nodes[fault.node].host
    for proc in host.processes_in(host.dd.path):
        host.kill(proc.pid, signal.SIGKILL)


def freeze_postmaster(world: World, fault: Fault) -> Undo | None:
    """SIGSTOP: nobody new gets in, those inside go on (H9)."""
    host = world.nodes[fault.node].host
    return host.continue_postmaster if host.stop_postmaster() else None


def hang_postgres(world: World, fault: Fault) -> Undo | None:
    server = world.server_of(fault.node)
    if server is None:
        return None
    server.hang("sql")
    return partial(server.hang, "")


def stuck_postgres(world: World, fault: Fault) -> Undo | None:
    """Uninterruptible sleep: its disk hangs (H13)."""
    server = world.server_of(fault.node)
    if server is None:
        return None
    server.stick(True)
    return partial(server.stick, False)


def full_disk(world: World, fault: Fault) -> Undo:
    """Not a byte of room is left beside the data."""
    host = world.nodes[fault.node].host
    host.fill_disk(True)
    return partial(host.fill_disk, False)


# --- network and store ----------------------------------------------------------------------------


def cut(world: World, fault: Fault) -> Undo:
    world.network.cut(fault.node, fault.other)
    return partial(world.network.heal, fault.node, fault.other)


def lossy(world: World, fault: Fault) -> Undo:
    world.network.trouble(fault.node, fault.other, loss=fault.value)
    return partial(world.network.heal, fault.node, fault.other)


def slow(world: World, fault: Fault) -> Undo:
    world.network.trouble(fault.node, fault.other, slow_s=fault.value)
    return partial(world.network.heal, fault.node, fault.other)


def duplicate(world: World, fault: Fault) -> Undo:
    world.network.trouble(fault.node, fault.other, duplicate=fault.value)
    return partial(world.network.heal, fault.node, fault.other)


def isolate(world: World, fault: Fault) -> Undo:
    ends = (f"agent:{fault.node}", f"pg:{fault.node}")
    world.network.isolate(*ends)
    return partial(world.network.rejoin, *ends)


def isolate_from_dcs(world: World, fault: Fault) -> Undo:
    """Only the store is out of reach; peers and standbys are not."""
    end = f"agent:{fault.node}"
    world.network.cut(end, "dcs")
    world.network.cut("dcs", end)

    def undo() -> None:
        world.network.heal(end, "dcs")
        world.network.heal("dcs", end)

    return undo


def store_down(world: World, fault: Fault) -> Undo:
    world.store.outage(refuses=fault.value > 0.75)
    return partial(world.store.recover, extend_sessions=fault.value > 0.4)


def store_slow(world: World, fault: Fault) -> Undo:
    world.store.slow_s = fault.value
    return partial(setattr, world.store, "slow_s", 0.0)


def store_lags(world: World, fault: Fault) -> Undo:
    world.store.lag_expiry_s = fault.value
    return partial(setattr, world.store, "lag_expiry_s", 0.0)


def garbage(world: World, fault: Fault) -> Undo:
    """Somebody writes nonsense into the store, and puts back what was there; never other nonsense."""
    key = fault.node
    now = world.store.raw_get(key)
    written, before = world.nonsense.get(key, ("", now))
    before = before if now == written else now
    world.nonsense[key] = (fault.detail, before)
    world.store.raw_put(key, fault.detail)

    def undo() -> None:
        if world.store.raw_get(key) == fault.detail:
            if before is None:
                world.store.raw_delete(key)
            else:
                world.store.raw_put(key, before)

    return undo


def delete_key(world: World, fault: Fault) -> None:
    """By hand, and not put back: the agents are to write it again. Not which cluster this is, while somebody
    has data of another one: nobody could tell then."""
    clusters = {n.host.dd.system_id for n in world.nodes.values() if n.host.dd.state == "valid"}
    if fault.detail != codec.INITIALIZE or len(clusters) == 1:
        world.store.raw_delete(fault.detail)


def delete_leader(world: World, fault: Fault) -> None:
    """By hand: its holder may be writable beside the next one, as long as its lease was proven before, but
    nobody begins beside a primary that it can see."""
    holder = world.store.leader()
    world.key_deleted_by_hand = True
    if holder is not None and holder.session:
        world.two_until = holder.expires_at
        world.engine.at(holder.expires_at, world.invariants.look)
    world.store.raw_delete(codec.LEADER)


def squat_leader(world: World, fault: Fault) -> Undo:
    """The next time the leader key is free, somebody writes nonsense into it, and takes it away later."""
    store = world.store

    def write(event: KeyEvent) -> None:
        if event.key == codec.LEADER and event.deleted:
            store.on_change.remove(write)
            store.raw_put(codec.LEADER, SQUATTER)

    def undo() -> None:
        if write in store.on_change:
            store.on_change.remove(write)
        elif store.raw_get(codec.LEADER) == SQUATTER.decode("utf-8", "replace"):
            store.raw_delete(codec.LEADER)

    store.on_change.append(write)
    return undo


def store_anew(world: World, fault: Fault) -> Undo:
    """Down for longer than any lease, then a new store with the same keys: its revisions begin anew."""
    store = world.store
    store.outage(refuses=fault.value > 0.75)

    def undo() -> None:
        anew = store.down and store.begin_anew()
        world.trace("*", "store", f"{'begins anew' if anew else 'is back'} at revision {store.revision()}")
        store.recover()

    return undo


# --- data directories -----------------------------------------------------------------------------


def foreign_files(world: World, fault: Fault) -> Undo | None:
    """Somebody's files lie where a data directory is to be made, until somebody takes them away."""
    dd = world.nodes[fault.node].host.dd
    if dd.state != "empty":
        return None
    dd.state = "foreign"
    return partial(_clear_foreign, dd)


def _clear_foreign(dd: DataDir) -> None:
    if dd.state == "foreign":
        dd.state = "empty"


def lose_data(world: World, fault: Fault) -> Undo | None:
    """The volume is gone, and PostgreSQL with it; for a while something foreign lies in its place.

    Only if somebody who may lead has all of it, and outside of a pause, in which only an operator may go on
    without the owner of the key: nobody can bring the last copy of anything back."""
    if world.invariants.paused:
        return None
    host = world.nodes[fault.node].host
    dd, procs = host.dd, host.processes_in(host.dd.path)
    held_up = host.frozen or any(proc.stuck for proc in procs)
    others = [n.host.dd for n in world.nodes.values() if n.host is not host and may_lead(n.tags)]
    if dd.state != "valid" or dd.rewinding or held_up or not any(_has_all(o, dd) for o in others):
        return None
    for proc in procs:
        host.signal_now(proc, signal.SIGKILL)
    gone = tuple(dd.records)
    dd.wipe()
    host.discard(gone, "lost")
    dd.state = "foreign" if fault.value else "empty"
    return partial(_clear_foreign, dd)


def _has_all(other: DataDir, dd: DataDir) -> bool:
    good = other.state == "valid" and not (other.damaged or other.mixed or other.rewinding)
    return good and in_common(dd.records, other.records[: other.durable]) == len(dd.records)


# --- work -----------------------------------------------------------------------------------------


def work(world: World, fault: Fault) -> None:
    world.nodes[fault.node].host.knobs[fault.detail] = (1, fault.duration, bool(fault.value))


def broken_decide(world: World, fault: Fault) -> Undo:
    node = world.nodes[fault.node]
    node.break_decide(True)
    return partial(node.break_decide, False)


def boundary(world: World, fault: Fault) -> None:
    world.boundaries.append(Trigger(world, fault))
    world.arm_boundaries(world.nodes[fault.node])


class Trigger:
    """Strikes at the n-th call of one port of one node, then is spent."""

    def __init__(self, world: World, fault: Fault) -> None:
        self.world, self.fault = world, fault
        self.kind, self.when = fault.detail.split(" ")
        self.left = int(fault.value)

    def reached(self, kind: str, when: str) -> bool:
        """True when it is its turn."""
        if kind != self.kind or when != self.when:
            return False
        self.left -= 1
        return self.left <= 0

    def strike(self) -> None:
        world, fault = self.world, self.fault
        node = world.nodes[fault.node]
        world.trace(fault.node, "fault", f"at {fault.detail}: {fault.other}")
        plain = Fault(fault.at, fault.other, fault.node, duration=fault.duration)
        _STRIKES[fault.other](world, plain, node)


def _kill_host(world: World, fault: Fault, node: Node) -> None:
    world.undo_later(fault, power_cut(world, fault))


def _freeze(world: World, fault: Fault, node: Node) -> None:
    world.undo_later(fault, freeze_agent(world, fault))


def _cut_dcs(world: World, fault: Fault, node: Node) -> None:
    world.undo_later(fault, isolate_from_dcs(world, fault))


def _lose_reply(world: World, fault: Fault, node: Node) -> None:
    """What was asked of the store happens; nobody hears of it."""
    world.network.cut("dcs", node.endpoint)
    world.undo_later(fault, partial(world.network.heal, "dcs", node.endpoint))


_STRIKES: dict[str, Callable[[World, Fault, Node], None]] = {
    "kill-agent": lambda world, fault, node: node.kill_agent(fault.duration),
    "freeze-agent": _freeze,
    "kill-host": _kill_host,
    "cut-dcs": _cut_dcs,
    "kill-guardian": lambda world, fault, node: kill_guardian(world, fault),
    "kill-postmaster": lambda world, fault, node: kill_postmaster(world, fault),
    "lose-reply": _lose_reply,
}


# --- operators ------------------------------------------------------------------------------------


def switchover(world: World, fault: Fault) -> None:
    holder = world.store.leader()
    leader = holder.name if holder is not None else fault.node
    body = {"leader": leader, "candidate": fault.other or None}
    world.nodes[fault.node].ask("switchover", lambda agent: agent.operations.switchover(body))


def failover(world: World, fault: Fault) -> None:
    body = {"leader": None, "candidate": fault.other or fault.node}
    world.nodes[fault.node].ask("failover", lambda agent: agent.operations.failover(body))


def restart(world: World, fault: Fault) -> None:
    world.nodes[fault.node].ask("restart", lambda agent: agent.operations.restart(ALWAYS))


def reinitialize(world: World, fault: Fault) -> None:
    force = {"force": fault.other == ""}
    world.nodes[fault.node].ask("reinitialize", lambda agent: agent.operations.reinitialize(force))


def pause(world: World, fault: Fault) -> Undo:
    patch(world, {"pause": True})
    return partial(patch, world, {"pause": None})


def settings(world: World, fault: Fault) -> Undo:
    change = json.loads(fault.detail)
    before = {key: world.plan.dynamic.get(key) for key in change}
    patch(world, change)
    return partial(patch, world, before)


def promote_cluster(world: World, fault: Fault) -> Undo:
    """For a while: then it is demoted again, whatever it wrote meanwhile."""
    world.promoted_by_hand = True
    patch(world, {"standby_cluster": None})
    return partial(patch, world, {"standby_cluster": dict(remote.SECTION)})


def patch(world: World, change: dict[str, Any]) -> None:
    """Through the first member whose REST answers; directly in the store when none does."""

    def call(agent: Agent) -> Any:
        return agent.operations.patch_config(change)

    for node in world.nodes.values():
        if node.agent_process.runs and node.agent_is_up and world.network.up(node.endpoint, "dcs"):
            node.ask(f"patch {json.dumps(change, sort_keys=True)}", call)
            return


FAULTS: dict[str, Callable[[World, Fault], Undo | None]] = {
    "kill-agent": kill_agent,
    "freeze-agent": freeze_agent,
    "stop-agent": stop_agent,
    "kill-guardian": kill_guardian,
    "freeze-guardian": freeze_guardian,
    "freeze-host": freeze_host,
    "power-cut": power_cut,
    "lying-disk": power_cut,
    "kill-postmaster": kill_postmaster,
    "kill-postgres": kill_postgres,
    "freeze-postmaster": freeze_postmaster,
    "hang-postgres": hang_postgres,
    "stuck-postgres": stuck_postgres,
    "full-disk": full_disk,
    "cut": cut,
    "lossy": lossy,
    "slow": slow,
    "duplicate": duplicate,
    "isolate": isolate,
    "isolate-from-dcs": isolate_from_dcs,
    "store-down": store_down,
    "store-slow": store_slow,
    "store-lags": store_lags,
    "work": work,
    "boundary": boundary,
    "switchover": switchover,
    "failover": failover,
    "restart": restart,
    "reinitialize": reinitialize,
    "pause": pause,
    "settings": settings,
    "garbage": garbage,
    "broken-decide": broken_decide,
    "kill-agents": kill_agents,
    "delete-key": delete_key,
    "delete-leader": delete_leader,
    "squat-leader": squat_leader,
    "store-anew": store_anew,
    "foreign-files": foreign_files,
    "lose-data": lose_data,
    "schedule-switchover": schedule_switchover,
    "schedule-restart": schedule_restart,
    "set-clock": set_clock,
    "promote-cluster": promote_cluster,
    "remote-failover": remote.fail_over,
    "cut-remote": remote.cut_off,
}  # fmt: skip
