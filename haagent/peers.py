"""Asking other members how far they are: `GET <api_url>` in parallel, a thread each (contract 2.4.12).

Peers that are haagent's take a fresh sample for such a question (`?peer=<name>`); Patroni's do so anyway.
Answers are facts with the time the question was *sent*; a peer that says nothing useful is `PeerSilent`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from dcs.records import Tags
from haagent.core.model import Peer, PeerAnswer, PeerSilent
from haagent.ports import PeerFault, PeerPort
from haagent.runtime import Runtime
from postgres_ctl.facts import Lsn

log = logging.getLogger(__name__)

#: Contract 2.1: a peer that needs longer counts as silent, seconds.
ANSWER_S = 2.0


class PeerAsker:
    """Asks, remembers the last answer of each peer, and tells when one arrives. Thread safe."""

    def __init__(self, runtime: Runtime, port: PeerPort, name: str, on_change: Callable[[], None]) -> None:
        self._rt, self._port, self._name, self._on_change = runtime, port, name, on_change
        self._lock = runtime.condition()
        self._in_flight: set[str] = set()
        self._answers: dict[str, Peer] = {}
        self._seen: Mapping[str, Peer] = {}

    def ask(self, targets: Mapping[str, str]) -> None:
        """Ask these members (name -> api_url), except those already being asked. Returns at once."""
        for name, url in targets.items():
            with self._lock:
                if name in self._in_flight:
                    continue
                self._in_flight.add(name)
            self._rt.thread(partial(self._one, name, url), f"peer-{name}").start()

    def answers(self) -> Mapping[str, Peer]:
        """The last answer of each; a value that does not change."""
        return self._seen

    def answers_since(self, names: Iterable[str], since: float, deadline_s: float) -> Mapping[str, Peer]:
        """Wait until all of these were asked after `since` (CLOCK_BOOTTIME) and answered, or the deadline."""
        wanted = tuple(names)

        def complete() -> bool:
            return all(n in self._answers and self._answers[n].asked_at >= since for n in wanted)

        with self._lock:
            self._lock.wait_for(complete, deadline_s)
            return self._seen

    def _one(self, name: str, url: str) -> None:
        sent_at = self._rt.now()
        peer: Peer
        try:
            answer = self._port.get(f"{url}?peer={quote(self._name)}", ANSWER_S)
            peer = parse_answer(name, sent_at, answer)
        except PeerFault as fault:
            peer = PeerSilent(name, sent_at, f"{url}: {fault}")
        except ValueError as fault:
            peer = PeerSilent(name, sent_at, f"useless answer from {url}: {fault}")
        except Exception as fault:  # an answer we did not foresee must not leave it "in flight" for ever
            log.exception("asking %s", name)
            peer = PeerSilent(name, sent_at, f"{type(fault).__name__}")
        with self._lock:
            self._in_flight.discard(name)
            self._answers[name] = peer
            self._seen = dict(self._answers)
            self._lock.notify_all()
        self._on_change()


# --- reading an answer ----------------------------------------------------------------------------


def parse_answer(name: str, asked_at: float, body: object) -> PeerAnswer:
    """Status JSON of contract 3.4 -> PeerAnswer. Raises ValueError when what a race needs is missing."""
    if not isinstance(body, Mapping):
        raise ValueError("not a JSON object")
    xlog = body.get("xlog") if isinstance(body.get("xlog"), Mapping) else body.get("wal")
    role = body.get("role")
    if not isinstance(xlog, Mapping) or not isinstance(role, str):
        raise ValueError("no xlog or role in it")
    who = body.get("patroni")
    said = who.get("name") if isinstance(who, Mapping) else None
    if said is not None and said != name:
        raise ValueError(f"another member answers there: {said}")
    ours = body.get("haagent") if isinstance(body.get("haagent"), Mapping) else None
    tags = body.get("tags")
    cannot = ours.get("cannot_lead") if ours is not None else None
    proven = ours.get("position_is_proven") if ours is not None else None
    return PeerAnswer(
        name=name,
        asked_at=asked_at,
        in_recovery="location" not in xlog,
        role=role,
        state=str(body.get("state", "")),
        timeline=_int(body.get("timeline")),
        received=_lsn(xlog.get("received_location")),
        replayed=_lsn(xlog.get("replayed_location")),
        location=_lsn(xlog.get("location")),
        tags=Tags(dict(tags)) if isinstance(tags, Mapping) else Tags(),
        watchdog_failed=body.get("watchdog_failed") is True,
        failsafe_active=body.get("failsafe_mode_is_active") is True,
        is_haagent=ours is not None,
        cannot_lead=cannot if isinstance(cannot, str) else None,
        replication_state=_text(body.get("replication_state")),
        position_is_proven=proven if isinstance(proven, bool) else None,
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _lsn(value: Any) -> Lsn | None:
    number = _int(value)
    return Lsn(number) if number is not None and number > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
