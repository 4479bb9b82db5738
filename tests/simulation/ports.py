"""The small ports of one simulated agent: its journal, its REST server, and asking peers.

A question to a peer runs the peer's own code (`Operations.refresh`, the `/patroni` body) in the peer's
process,
with the network between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from haagent.api.app import PEER_REFRESH_S
from haagent.api.status import patroni_json
from haagent.core.failsafe import Reply, reply_of
from haagent.ports import PeerFault
from postgres_ctl.api import Cancellation
from tests.simulation.engine import TIMER_SLACK_S, Task

if TYPE_CHECKING:
    from tests.simulation.node import Node

#: Contract 7.1: is somebody there? Seconds.
_ALIVE_S = 3.0


class SimJournal:
    """Every decision and event goes to the world."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def decision(self, rule: str, reason: str, **fields: Any) -> None:
        self._node.world.decided(self._node, rule, reason, fields)

    def event(self, kind: str, reason: str, **fields: Any) -> None:
        self._node.world.trace(self._node.name, kind, reason)

    def recent(self) -> Sequence[Any]:
        return ()

    def close(self, deadline_s: float) -> bool:
        return True


class SimRest:
    """Only whether it listens; peers are answered by `_Question`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self) -> None:
        self._node.agent_is_up = self._node.can_act = True
        self._node.world.unreliable(self._node)

    def stop(self) -> None:
        self._node.agent_is_up = False

    def reload(self, config: Any) -> None: ...


class SimService:
    """Nobody started the simulated agents."""

    def ready(self) -> None: ...

    def reloading(self) -> None: ...

    def stopping(self) -> None: ...


class SimPrograms:
    """Callbacks take no time; the rules look at each."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def call(self, slot: str, argv: Sequence[str]) -> None:
        _, action, role, _ = argv
        self._node.world.invariants.called_back(self._node, action, role)

    def flush(self, deadline_s: float) -> None: ...

    def run(self, argv: Sequence[str], deadline_s: float, cancel: Cancellation, grace_s: float) -> str | None:
        """As long, and with the outcome, that a knob says; killed within `grace_s`."""
        node = self._node
        delay_s, fails = node.host.trouble(f"hook.{argv[0]}")
        cancel.wait(min(delay_s, deadline_s))
        refusal = "cancelled" if cancel.is_set() else "exit code 1" if fails or delay_s > deadline_s else None
        node.world.invariants.hook_ended(node, argv[0], refusal is None)
        return refusal


class SimPeers:
    """REST to other members, from one agent's process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.world
        self._process = node.agent_process
        self._clock = node.host.clock

    def get(self, url: str, deadline_s: float) -> object:
        name = urlsplit(url).hostname or ""
        peer = self._world.nodes.get(name)
        self._process.boundary("peers.get", "before")
        question = _Question(self, peer, name, deadline_s)
        body = question.ask()
        self._process.boundary("peers.get", "after")
        if body is None:
            raise PeerFault("timed out")
        if not isinstance(body, Mapping):
            raise PeerFault("connection refused")
        self._world.invariants.peer_answered(self._node.name, name, question.sent_at, body)
        return body

    def post(self, url: str, body: Mapping[str, Any], deadline_s: float) -> Reply:
        """Only `/failsafe` is asked this way (contract 2.11)."""
        name = urlsplit(url).hostname or ""
        peer = self._world.nodes.get(name)
        self._process.boundary("peers.post", "before")
        question = _Question(self, peer, name, deadline_s, body)
        reply = question.ask()
        self._process.boundary("peers.post", "after")
        if reply is None:
            raise PeerFault("timed out")
        if not isinstance(reply, Reply):
            raise PeerFault("connection refused")
        return reply

    def is_alive(self, url: str) -> bool:
        name = urlsplit(url).hostname or ""
        peer = self._world.nodes.get(name)
        network, me = self._world.network, self._node.endpoint
        self._process.boundary("peers.alive", "before")
        self._process.sleep(0.001)
        if peer is None or not peer.agent_process.runs or not peer.agent_is_up:
            return False
        return network.up(me, peer.endpoint) and network.up(peer.endpoint, me)


class _Question:
    """One request: there, a task in the peer's process, and back; or silence."""

    def __init__(
        self,
        port: SimPeers,
        peer: Node | None,
        name: str,
        deadline_s: float,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self._port, self._peer, self._name, self._body = port, peer, name, body
        self._engine = port._process.engine
        self._deadline_s = deadline_s
        self._task: Task | None = None
        self._token = 0
        self.sent_at = self._engine.now

    def ask(self) -> object:
        """The body; "refused"; None when the deadline passed first."""
        engine, port = self._engine, self._port
        give_up_at = engine.now + self._deadline_s * port._clock.true_s + TIMER_SLACK_S
        there = port._world.network.latency(port._node.endpoint, f"agent:{self._name}")
        self._task = engine.running("asking a peer")
        self._token = self._task.arm()
        if there is not None and self._peer is not None:
            engine.after(there, self._arrive)
        return engine.suspend("asking a peer", give_up_at)

    def _arrive(self) -> None:
        peer = self._peer
        assert peer is not None
        if not peer.host.powered or peer.host.frozen:
            return
        if not peer.agent_process.alive or not peer.agent_is_up:
            self._back("refused")
            return
        self._process_of_peer = peer.agent_process
        peer.agent_process.spawn(self._answer, "rest")

    def _answer(self) -> None:
        """In the peer's process; frozen, it answers when it thaws."""
        assert self._peer is not None
        operations = self._peer.agent.operations
        if self._body is None:
            self._back(patroni_json(operations.refresh(PEER_REFRESH_S)))
            return
        answer = operations.failsafe(self._body)
        if answer.status == 200:
            asker = self._port._node
            ttl_s = self._body["haagent"]["ttl"]
            asker.world.invariants.failsafe.accepted(asker.name, self._name, self.sent_at, ttl_s)
        self._back(reply_of(answer.status, str(answer.body), answer.headers))

    def _back(self, body: object) -> None:
        back = self._port._world.network.latency(f"agent:{self._name}", self._port._node.endpoint)
        if back is not None and self._task is not None:
            self._engine.after(back, lambda: self._resume(body))

    def _resume(self, body: object) -> None:
        if self._task is not None and self._task.process.runs:
            self._task.resume(self._token, body)
