"""What is done to the hosts: processes killed or stopped, packets lost, disks hung or full, planned work.

Each fault has a name, says which part of a node it takes away (`plan` keeps to what is promised), and acts on
one node: the leader or a standby. Etcd's faults act on the members, whatever the node.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chaos.torture.stage import Stage
from tests.support import processes
from tests.support.cluster import Node
from tests.support.etcd import EtcdServer

#: What a fault may be done to.
Role = Literal["leader", "standby", "any", "etcd"]
#: What a fault does to the parts that fence: "<part> <dead or frozen>".
Effect = Literal["agent dead", "agent frozen", "guardian dead", "guardian frozen", "postgres frozen"]


#: Stage, node, and dice that only choose among equals, such as which backend.
Apply = Callable[[Stage, Node, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """Something bad, or a planned operation, that can be done to a node."""

    name: str
    apply: Apply
    effects: frozenset[Effect] = frozenset()
    role: Role = "any"
    #: Planned: no acknowledged write may be lost by it.
    planned: bool = False
    #: It needs a disk of its own under the node.
    disk: bool = False


ALL: dict[str, Fault] = {}


def _fault(
    name: str, *effects: Effect, role: Role = "any", planned: bool = False, disk: bool = False
) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        ALL[name] = Fault(name, apply, frozenset(effects), role, planned, disk)
        return apply

    return register


# --- processes of a node --------------------------------------------------------------------------


@_fault("kill agent", "agent dead")
def _kill_agent(stage: Stage, node: Node, dice: random.Random) -> None:
    node.kill_agent(but_sleepers=True)


@_fault("restart agent", "agent dead")
def _restart_agent(stage: Stage, node: Node, dice: random.Random) -> None:
    """Killed and started again at once, as systemd does."""
    node.kill_agent(but_sleepers=True)
    if node.agent_exit is not None:
        node.start()


@_fault("freeze agent", "agent frozen")
def _freeze_agent(stage: Stage, node: Node, dice: random.Random) -> None:
    if node.agent_running:
        node.freeze_agent()


@_fault("kill guardian", "guardian dead")
def _kill_guardian(stage: Stage, node: Node, dice: random.Random) -> None:
    processes.send(node.guardian_pid, signal.SIGKILL)


@_fault("freeze guardian", "guardian frozen")
def _freeze_guardian(stage: Stage, node: Node, dice: random.Random) -> None:
    processes.send(node.guardian_pid, signal.SIGSTOP)


@_fault("kill agent and guardian", "agent dead", "guardian dead")
def _kill_both(stage: Stage, node: Node, dice: random.Random) -> None:
    guardian = node.guardian_pid
    if node.agent_running:
        processes.send(node.agent_pid, signal.SIGKILL)
    processes.send(guardian, signal.SIGKILL)
    node.kill_agent(but_sleepers=True)


@_fault("kill postmaster")
def _kill_postmaster(stage: Stage, node: Node, dice: random.Random) -> None:
    processes.send(node.postmaster_pid(), signal.SIGKILL)


@_fault("freeze postmaster", "postgres frozen")
def _freeze_postmaster(stage: Stage, node: Node, dice: random.Random) -> None:
    """It starts no backend and acts on no signal; those that run go on writing."""
    processes.send(node.postmaster_pid(), signal.SIGSTOP)


@_fault("freeze PostgreSQL", "postgres frozen")
def _freeze_postgres(stage: Stage, node: Node, dice: random.Random) -> None:
    for pid in node.postgres_pids():
        processes.send(pid, signal.SIGSTOP)


@_fault("kill node", "agent dead", "guardian dead")
def _kill_node(stage: Stage, node: Node, dice: random.Random) -> None:
    node.kill_all(but_sleepers=True)


def _titles(node: Node, words: Iterable[str]) -> list[int]:
    """PostgreSQL's children with one of these words in their process title."""
    wanted = [word.encode() for word in words]
    found = []
    for pid in node.postgres_pids():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if any(word in title for word in wanted):
            found.append(pid)
    return found


#: Words of process titles: sessions of clients and of the agent itself; replication's two ends; the rest.
_SESSION, _SENDER, _RECEIVER = ("postgres postgres",), ("walsender",), ("walreceiver", "startup")
_BACKGROUND = ("checkpointer", "background writer", "walwriter", "logger", "launcher")


def _signal_one(node: Node, words: Iterable[str], signum: signal.Signals, dice: random.Random) -> None:
    pids = _titles(node, words)
    if pids:
        processes.send(dice.choice(pids), signum)


@_fault("kill a backend")
def _kill_backend(stage: Stage, node: Node, dice: random.Random) -> None:
    """PostgreSQL ends all sessions and recovers by itself."""
    _signal_one(node, _SESSION, signal.SIGKILL, dice)


@_fault("freeze a backend")
def _freeze_backend(stage: Stage, node: Node, dice: random.Random) -> None:
    """It ignores a fast shutdown, and may hold locks."""
    _signal_one(node, _SESSION, signal.SIGSTOP, dice)


@_fault("freeze a walsender", role="leader")
def _freeze_sender(stage: Stage, node: Node, dice: random.Random) -> None:
    _signal_one(node, _SENDER, signal.SIGSTOP, dice)


@_fault("freeze a walreceiver or startup process", role="standby")
def _freeze_receiver(stage: Stage, node: Node, dice: random.Random) -> None:
    _signal_one(node, _RECEIVER, signal.SIGSTOP, dice)


@_fault("kill a walsender", role="leader")
def _kill_sender(stage: Stage, node: Node, dice: random.Random) -> None:
    _signal_one(node, _SENDER, signal.SIGKILL, dice)


@_fault("kill a walreceiver or startup process", role="standby")
def _kill_receiver(stage: Stage, node: Node, dice: random.Random) -> None:
    """Without its startup process the postmaster ends, too."""
    _signal_one(node, _RECEIVER, signal.SIGKILL, dice)


@_fault("kill a background process")
def _kill_background(stage: Stage, node: Node, dice: random.Random) -> None:
    _signal_one(node, _BACKGROUND, signal.SIGKILL, dice)


@_fault("freeze a background process")
def _freeze_background(stage: Stage, node: Node, dice: random.Random) -> None:
    """Without a checkpointer no checkpoint ends, the shutdown one neither."""
    _signal_one(node, _BACKGROUND, signal.SIGSTOP, dice)


# --- packets --------------------------------------------------------------------------------------


@_fault("isolate")
def _isolate(stage: Stage, node: Node, dice: random.Random) -> None:
    """From every other host; only the tests' clients get through."""
    for other in stage.others(node.name):
        stage.network.cut(stage.host(node.name), stage.host(other))


@_fault("lose what it sends")
def _mute(stage: Stage, node: Node, dice: random.Random) -> None:
    for other in stage.others(node.name):
        stage.network.drop(stage.host(node.name), stage.host(other))


@_fault("lose what is sent to it")
def _deafen(stage: Stage, node: Node, dice: random.Random) -> None:
    for other in stage.others(node.name):
        stage.network.drop(stage.host(other), stage.host(node.name))


@_fault("cut from etcd")
def _cut_store(stage: Stage, node: Node, dice: random.Random) -> None:
    for member in stage.member_names:
        stage.network.cut(stage.host(node.name), stage.host(member))


@_fault("lose what it sends to etcd")
def _mute_store(stage: Stage, node: Node, dice: random.Random) -> None:
    for member in stage.member_names:
        stage.network.drop(stage.host(node.name), stage.host(member))


@_fault("lose what etcd sends to it")
def _deafen_store(stage: Stage, node: Node, dice: random.Random) -> None:
    for member in stage.member_names:
        stage.network.drop(stage.host(member), stage.host(node.name))


@_fault("cut replication")
def _cut_replication(stage: Stage, node: Node, dice: random.Random) -> None:
    """PostgreSQL's ports between this node and the others; agents and etcd hear each other."""
    for other in stage.nodes:
        if other is not node:
            ports = (node.sql_port, other.sql_port)
            stage.network.cut(stage.host(node.name), stage.host(other.name), ports)


@_fault("lose replication's acknowledgements")
def _mute_replication(stage: Stage, node: Node, dice: random.Random) -> None:
    """What the others' walreceivers say never arrives at this node."""
    for other in stage.nodes:
        if other is not node:
            ports = (node.sql_port, other.sql_port)
            stage.network.drop(stage.host(other.name), stage.host(node.name), ports)


@_fault("lose what replication sends", role="leader")
def _mute_senders(stage: Stage, node: Node, dice: random.Random) -> None:
    """WAL leaves this node and never arrives, and the walsenders are not told."""
    for other in stage.nodes:
        if other is not node:
            ports = (node.sql_port, other.sql_port)
            stage.network.drop(stage.host(node.name), stage.host(other.name), ports)


@_fault("cut agents from each other")
def _cut_peers(stage: Stage, node: Node, dice: random.Random) -> None:
    """The REST API between nodes: an election hears no peers."""
    for other in stage.nodes:
        if other is not node:
            ports = (node.api_port, other.api_port)
            stage.network.cut(stage.host(node.name), stage.host(other.name), ports)


# --- disks ----------------------------------------------------------------------------------------


@_fault("hang the disk", "postgres frozen", disk=True)
def _hang_disk(stage: Stage, node: Node, dice: random.Random) -> None:
    """Data and the agent's state: who waits for the disk sleeps uninterruptibly, kill -9 or not."""
    stage.disk(node.name).hang()


@_fault("fill the disk", disk=True)
def _fill_disk(stage: Stage, node: Node, dice: random.Random) -> None:
    disk = stage.disk(node.name)
    if not disk.hangs:  # it would never be full, and this process would wait for that
        disk.fill()


# --- etcd -----------------------------------------------------------------------------------------


def _some_member(stage: Stage, dice: random.Random) -> int:
    return dice.randrange(len(stage.members))


def _majority(stage: Stage) -> tuple[EtcdServer, ...]:
    return stage.members[: len(stage.members) // 2 + 1]


@_fault("kill an etcd member", role="etcd")
def _kill_member(stage: Stage, node: Node, dice: random.Random) -> None:
    stage.members[_some_member(stage, dice)].kill()


@_fault("kill etcd's majority", role="etcd")
def _kill_majority(stage: Stage, node: Node, dice: random.Random) -> None:
    for member in _majority(stage):
        member.kill()


@_fault("freeze an etcd member", role="etcd")
def _freeze_member(stage: Stage, node: Node, dice: random.Random) -> None:
    member = stage.members[_some_member(stage, dice)]
    if member.running:
        member.freeze()


@_fault("freeze etcd's majority", role="etcd")
def _freeze_majority(stage: Stage, node: Node, dice: random.Random) -> None:
    for member in _majority(stage):
        if member.running:
            member.freeze()


@_fault("isolate an etcd member", role="etcd")
def _isolate_member(stage: Stage, node: Node, dice: random.Random) -> None:
    name = stage.member_names[_some_member(stage, dice)]
    for other in stage.others(name):
        stage.network.cut(stage.host(name), stage.host(other))


# --- planned --------------------------------------------------------------------------------------

#: An operator waits this long for the answer, seconds.
_ANSWER_S = 30.0


def _ask(node: Node, path: str, wait_s: float, **wish: str) -> None:
    """No answer is none to complain of: what happened is seen in the tenures."""
    with contextlib.suppress(OSError):
        node.rest(path, "POST", wish, timeout_s=wait_s)


@_fault("switchover", role="leader", planned=True)
def _switch_over(stage: Stage, node: Node, dice: random.Random) -> None:
    """Asked, and the answer awaited."""
    _ask(node, "/switchover", _ANSWER_S, leader=node.name)


@_fault("restart PostgreSQL", planned=True)
def _restart(stage: Stage, node: Node, dice: random.Random) -> None:
    _ask(node, "/restart", _ANSWER_S)


@_fault("stop agent", "agent dead", role="leader", planned=True)
def _stop_agent(stage: Stage, node: Node, dice: random.Random) -> None:
    """SIGTERM, as for maintenance: PostgreSQL is stopped, the key given away."""
    node.stop()


@_fault("begin a switchover", role="leader")
def _begin_switchover(stage: Stage, node: Node, dice: random.Random) -> None:
    """Asked and not waited for: the next fault comes in the middle of it."""
    _ask(node, "/switchover", dice.choice((0.02, 0.1, 0.2, 0.4)), leader=node.name)


@_fault("begin a failover", role="leader")
def _begin_failover(stage: Stage, node: Node, dice: random.Random) -> None:
    """An operator names the successor and takes the loss."""
    candidate = dice.choice([other.name for other in stage.nodes if other is not node])
    _ask(node, "/failover", dice.choice((0.02, 0.2)), candidate=candidate)
