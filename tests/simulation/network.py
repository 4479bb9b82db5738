"""Who can reach whom, and how long one message takes: directed links between endpoints.

Theory. An endpoint is a string ("agent:pg1", "pg:pg1", "dcs", "client"). A message either takes the delay
that its link draws, or is lost; what already travels is not touched by later faults. Each link has a random
stream of its own, so that a message more on one link changes nothing on another. Whoever keeps a connection
open listens for changes and looks at its own link then.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.engine import Engine

#: One-way delay between two hosts of one site, seconds: most near the least, few beyond `_MOST_S`.
_LEAST_S = 0.0001
_SPREAD_S = 0.0009
_MOST_S = _LEAST_S + _SPREAD_S
#: Where the tail begins, as a share of all messages, and how many times `_MOST_S` the worst one takes.
_TAIL_FROM = 0.98
_TAIL_TIMES = 30.0


class Link:
    """One direction between two endpoints."""

    __slots__ = ("_plain", "_random", "dst", "duplicate", "loss", "slow_s", "src", "up")

    def __init__(self, src: str, dst: str, random: Callable[[], float]) -> None:
        self.src, self.dst = src, dst
        self._random = random
        self.up = True
        self.slow_s = self.loss = self.duplicate = 0.0
        self._plain = True

    def latency(self) -> float | None:
        """The delay of one message in seconds; None: lost."""
        if not self._plain and (not self.up or (self.loss and self._random() < self.loss)):
            return None
        draw = self._random()
        if draw < _TAIL_FROM:
            draw *= draw
            return _LEAST_S + self.slow_s + _SPREAD_S * draw * draw
        return self.slow_s + _MOST_S * float(_TAIL_TIMES ** ((draw - _TAIL_FROM) / (1.0 - _TAIL_FROM)))

    def again(self) -> bool:
        """Does the transport repeat this message?"""
        return self.duplicate > 0.0 and self._random() < self.duplicate

    def refresh(self) -> None:
        """After a change of a setting."""
        self._plain = self.up and not self.loss


class Network:
    """All links; they come into being when first asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._links: dict[tuple[str, str], Link] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._islands: list[tuple[str, ...]] = []
        self._listeners: list[Callable[[], None]] = []

    def link(self, src: str, dst: str) -> Link:
        """The link itself, for those who send often."""
        link = self._links.get((src, dst))
        if link is None:
            link = Link(src, dst, self._engine.rng(f"link {src} {dst}").random)
            self._links[src, dst] = link
            link.up = self._reaches(src, dst)
            link.refresh()
        return link

    def latency(self, src: str, dst: str) -> float | None:
        """The delay of one message in seconds; None: lost."""
        link = self._links.get((src, dst))
        return (link or self.link(src, dst)).latency()

    def up(self, src: str, dst: str) -> bool:
        """False while the link is cut; a lossy one is up."""
        return self.link(src, dst).up

    def listen(self, call: Callable[[], None]) -> None:
        """`call` whenever links have come or gone: look at yours."""
        self._listeners.append(call)

    def unlisten(self, call: Callable[[], None]) -> None:
        if call in self._listeners:
            self._listeners.remove(call)

    # --- faults -----------------------------------------------------------------------------------

    def cut(self, src: str, dst: str) -> None:
        """Nothing arrives any more, in this direction."""
        self._cut[src, dst] = None
        self._changed()

    def isolate(self, *endpoints: str) -> None:
        """Nothing arrives between these and all others; among each other they talk on."""
        self._islands.append(endpoints)
        self._changed()

    def trouble(
        self, src: str, dst: str, slow_s: float = 0.0, loss: float = 0.0, duplicate: float = 0.0
    ) -> None:
        """Extra delay in seconds, and the share of messages that get lost, or are sent twice."""
        link = self.link(src, dst)
        link.slow_s, link.loss, link.duplicate = slow_s, loss, duplicate
        link.refresh()

    def heal(self, src: str, dst: str) -> None:
        """Undo `cut` and `trouble` of this direction; an isolation stays."""
        self._cut.pop((src, dst), None)
        self.trouble(src, dst)
        self._changed()

    def rejoin(self, *endpoints: str) -> None:
        """Undo one `isolate` of the same endpoints."""
        if endpoints in self._islands:
            self._islands.remove(endpoints)
            self._changed()

    def heal_all(self) -> None:
        self._cut.clear()
        self._islands.clear()
        for link in self._links.values():
            link.slow_s = link.loss = link.duplicate = 0.0
        self._changed()

    def close(self) -> None:
        self._listeners.clear()

    def _reaches(self, src: str, dst: str) -> bool:
        return (src, dst) not in self._cut and not any(
            (src in island) != (dst in island) for island in self._islands
        )

    def _changed(self) -> None:
        changed = False
        for (src, dst), link in self._links.items():
            up = self._reaches(src, dst)
            changed |= up != link.up
            link.up = up
            link.refresh()
        if changed:
            for call in list(self._listeners):
                call()
