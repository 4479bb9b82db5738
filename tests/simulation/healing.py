"""After the faults: everything works again, and within a bound the cluster must be whole, and obey.

Whole: one primary, and every other member streams from it. Obey: a restart of a member and a switchover are
carried out, and the cluster is whole once more. The bounds derive from the timings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcs import codec
from haagent.core.candidate import standing
from haagent.core.model import Unavailable
from haagent.core.restart import ALWAYS
from tests.simulation.consumers import not_kept
from tests.simulation.plan import may_lead
from tests.simulation.remote import put_back
from tests.simulation.wal import in_common

if TYPE_CHECKING:
    from haagent.agent import Agent
    from tests.simulation.node import Node
    from tests.simulation.postgres import Server
    from tests.simulation.remote import Remote
    from tests.simulation.world import World

#: How long a cluster may take to be whole again once everything has healed, seconds: a lease and a race, the
#: longest start, clone, walreceiver timeout, and the longest pause between two tries of a rejoin.
HEALING_S = 240.0
HEALING_TTLS = 4
#: An operator asks again until so long, and the cluster is whole again, seconds.
OBEYING_S = 120.0
#: A schedule with more events than this is a storm: something goes round and round.
STORM_EVENTS = 200_000
#: Refusals that an operator may waive, after a loss that no agent may take in silence.
FOR_AN_OPERATOR = {"lag", "timeline.diverged", "sync.member", "sync.votes"}
#: The goal is looked at this often, seconds.
LOOK_EVERY_S = 0.5


def heal(world: World) -> None:
    """Violations of `liveness.*` are noted in the world's invariants."""
    began, bound = world.engine.now, HEALING_S + HEALING_TTLS * _longest_ttl(world)
    _until_whole(world, bound)
    world.result.healed_s = world.engine.now - began
    if not world.invariants.violations:
        _obeys(world, OBEYING_S + HEALING_TTLS * _longest_ttl(world))


def _longest_ttl(world: World) -> float:
    return max(world.plan.ttl_s, *(10.0 for f in world.plan.faults if f.kind == "settings"), 10.0)


def _until_whole(world: World, bound: float) -> None:
    engine, why, decided = world.engine, "not looked at", False
    began = engine.now
    while engine.now < began + bound and not world.invariants.violations:
        engine.run(engine.now + LOOK_EVERY_S)
        resume(world)
        if not decided and engine.now > began + bound / 2:
            decided = _operator_decides(world)
        why = not_whole(world)
        if not why:
            return
        if engine.events > STORM_EVENTS:
            why = f"storm: {engine.events} events, and still not whole: {why}"
            break
    if not world.invariants.violations:
        name, _, text = why.partition(": ")
        world.invariants.violated(f"liveness.{name}", f"after {bound:g} s: {text}")


def not_whole(world: World) -> str:
    """Which goal is missed, and how; "" once one primary serves and all others stream."""
    holder = world.store.leader()
    if holder is None:
        return "one-primary: nobody holds the leader key"
    primary = world.server_of(holder.name)
    if primary is None or (world.remote is None and not primary.writable_now):
        return f"one-primary: {holder.name} holds the key and is not writable"
    if world.remote is not None and not _follows(primary, world.remote):
        note = world.nodes[holder.name].agent.memory.note if world.nodes[holder.name].agent_is_up else ""
        return f"follows-remote: {holder.name} does not stream from it ({primary!r}, {note})"
    guardian = world.nodes[holder.name].guardian_logic
    if guardian is None or guardian.lease.disarmed:
        return f"one-primary: {holder.name} leads without a fence"
    for node in world.nodes.values():
        server = node.host.server
        if node.name == holder.name or node.stays_out:
            continue
        if server is None or server.gone or not server.in_recovery or not _streams(server, primary):
            note = node.agent.memory.note if node.agent_is_up else "no agent"
            return f"all-stream: {node.name} does not stream ({server!r}, {note})"
    missing = world.invariants.sync.not_named(primary)
    if missing:
        return f"sync-named: {missing}"
    if world.unanswered:
        return f"answered: {world.unanswered} operator requests have no answer"
    return not_kept(world)


def _follows(leader: Server, remote: Remote) -> bool:
    """The standby leader streams from the remote primary, and has nothing that this has not."""
    upstream, link = remote.server, leader.receiver.link
    if upstream is None or link is None or not link.open or link.upstream is not upstream:
        return False
    mine, theirs = leader.dd.records, upstream.dd.records
    return in_common(mine, theirs) == len(mine) and leader.dd.timeline == upstream.dd.timeline


def _streams(server: Server, primary: Server) -> bool:
    """From the primary, directly or through others, with everything the primary has or nearly so."""
    link = server.receiver.link
    return link is not None and link.open and primary.dd.timeline == server.dd.timeline


# --- what operators do ----------------------------------------------------------------------------


def _operator_decides(world: World) -> bool:
    """A disk lost what it had flushed, more than may be lost in silence (rule 5): an operator fails over
    by hand to whoever has most and refuses for nothing else, as docs/safety.md says. True when done."""
    lost = any(node.lost_wal for node in world.nodes.values())
    if world.store.leader() is not None or not (lost or _only_diverged_is_left(world)):
        return False
    fit = [n for n in world.nodes.values() if n.agent_is_up and _refuses(n.agent) <= FOR_AN_OPERATOR]
    if not fit:
        return False
    best = max(fit, key=lambda node: (node.host.dd.end, node.name))
    world.trace("*", "operator", f"fails over to {best.name}")
    body = {"leader": None, "candidate": best.name}
    best.ask("failover", lambda agent: agent.operations.failover(body))
    return True


def _only_diverged_is_left(world: World) -> bool:
    """In a synchronous mode nobody else may lead, and who may left the line that `history` tells of."""
    up = [n for n in world.nodes.values() if n.agent_is_up]
    return world.invariants.sync.mode != "off" and any("timeline.diverged" in _refuses(n.agent) for n in up)


def _refuses(agent: Agent) -> set[str]:
    """Rules by which it does not take the key."""
    obs = agent.last_observation
    if obs is None or isinstance(obs.cluster, Unavailable):
        return {"nothing is known"}
    return {refusal.rule for refusal in standing(obs, agent.memory).refusals}


@dataclass
class _Wish:
    """What an operator asks `node` for, until it is done."""

    what: str
    node: Node
    call: Callable[[Agent], Any]


def _obeys(world: World, bound: float) -> None:
    """A healthy cluster does what it is told: a restart of a standby, then a switchover."""
    ends = world.engine.now + bound
    for make in (_a_restart, _a_switchover):
        while (wish := make(world)) is not None and not world.invariants.violations:
            said = _ask(world, wish, ends)
            if said == "200":
                break
            if world.engine.now >= ends:
                text = f"{wish.what} was not done within {bound:g} s: {said}"
                world.invariants.violated("liveness.answered", text)
    if not world.invariants.violations:
        _until_whole(world, bound)


def _ask(world: World, wish: _Wish, ends: float) -> str:
    """Its answer; "200" when it was done."""
    engine, answers, process = world.engine, list[Any](), wish.node.agent_process

    def call(agent: Agent) -> Any:
        answers.append(wish.call(agent))
        return answers[0]

    if wish.node.agent_is_up:
        wish.node.ask(wish.what, call)
    asked = wish.node.agent_is_up
    while asked and not answers and process.alive and engine.now < ends and not world.invariants.violations:
        engine.run(engine.now + LOOK_EVERY_S)
    engine.run(engine.now + LOOK_EVERY_S)
    if not answers:
        return "no answer"
    return "200" if answers[0].status == 200 else f"{answers[0].status} {answers[0].body}"


def _obedient(world: World) -> list[Node]:
    """Members that stream."""
    holder = world.store.leader()
    return [
        n for n in world.nodes.values() if holder is not None and n.name != holder.name and not n.stays_out
    ]


def _a_restart(world: World) -> _Wish | None:
    holder, nodes = world.store.leader(), _obedient(world)
    if holder is None:
        return None
    node = nodes[world.plan.seed % len(nodes)] if nodes else world.nodes[holder.name]
    return _Wish(f"restart of {node.name}", node, lambda agent: agent.operations.restart(ALWAYS))


def _a_switchover(world: World) -> _Wish | None:
    """To somebody who may lead; None when there is nobody."""
    holder = world.store.leader()
    fit = [n for n in _obedient(world) if may_lead(n.tags) and "store.went-back" not in _refuses(n.agent)]
    fit = [n for n in fit if world.invariants.sync.is_asked_for(n.name)]
    if holder is None or not fit:
        return None
    to = fit[world.plan.seed % len(fit)]
    body = {"leader": holder.name, "candidate": to.name}
    return _Wish(
        f"switchover to {to.name}", world.nodes[holder.name], lambda agent: agent.operations.switchover(body)
    )


def resume(world: World) -> None:
    """A pause whose end nobody could be told ends now; also one that a member writes again, which knew of it
    when somebody deleted `config`."""
    if world.remote is not None:
        put_back(world)
    try:
        data = json.loads(world.store.raw_get(codec.CONFIG) or "null")
    except ValueError:
        return
    if isinstance(data, dict) and data.pop("pause", None):
        world.store.raw_put(codec.CONFIG, json.dumps(data, sort_keys=True))
