"""Writers: one per member, writing through sessions opened before and after every fault.

A writer wakes now and then, opens a new session while it has few, and writes through one of those it has, the
oldest as often as the youngest. It talks to the server in the middle of whatever happens: what matters
is only
which backends live and can commit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.engine import Timer
from tests.simulation.postgres import Connection

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import World

SESSIONS = 2


class Writer:
    """Of one member."""

    def __init__(self, world: World, node: Node) -> None:
        self._world, self._node = world, node
        self._rng = world.engine.rng(f"writer {node.name}")
        self._sessions: list[Connection] = []
        self._endpoint = f"pg:{node.name}"
        self._timer: Timer | None = None
        self._written = 0
        self._again()

    def _again(self) -> None:
        self._timer = self._world.engine.after(self._rng.random() * 2 * self._world.plan.pace, self._tick)

    def _tick(self) -> None:
        self._again()
        server = self._node.host.server
        if server is None and not self._sessions:
            return
        network = self._world.network
        if not (network.up("client", self._endpoint) and network.up(self._endpoint, "client")):
            return
        self._sessions = [s for s in self._sessions if s.alive]
        if server is not None and len(self._sessions) < SESSIONS and not server.in_recovery:
            session = server.connect("client")
            if session is not None:
                session.on_close = partial(self._closed, session)
                self._sessions.append(session)
        if self._sessions:
            self._written += 1
            session = self._sessions[self._rng.randrange(len(self._sessions))]
            session.server.write(session, self._written)

    def _closed(self, session: Connection) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
