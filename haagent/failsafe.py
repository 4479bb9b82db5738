"""Asking the members for their promise while the DCS does not answer: failsafe mode of the leader (H19).

A thread of its own, because the lease keeper goes on trying to renew meanwhile. From the first renewal
without a clear answer on, all members are asked at the same time, again and again; when all of one round
accept, the lease keeper prolongs the lease from before the round began. What is decided is in
`haagent.core.failsafe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from dcs.api import LeaseHandle
from dcs.records import ClusterSnapshot
from haagent.core import failsafe as core
from haagent.core.lease import renew_interval_s
from haagent.core.settings import Settings
from haagent.ports import PeerFault, PeerPort
from haagent.runtime import Runtime

log = logging.getLogger(__name__)


def address(api_url: str) -> str:
    """Where a member is asked: `POST <api base>/failsafe`."""
    parts = urlsplit(api_url)
    return urlunsplit((parts.scheme, parts.netloc, "/failsafe", "", ""))


@dataclass(frozen=True)
class Need:
    """A lease that promises have to carry."""

    handle: LeaseHandle
    #: Seconds until its fence.
    left_s: float
    settings: Settings


class Keeper(Protocol):
    """What this needs of the lease keeper."""

    def needs_promises(self) -> Need | None: ...

    def promised(self, handle: LeaseHandle, sent_at: float, promised_s: float) -> None: ...

    def rests_on_promises(self) -> bool: ...


@dataclass
class _Round:
    """One question to all."""

    waiting: set[str]
    replies: dict[str, core.Reply] = field(default_factory=dict)
    failed: str | None = None


class Failsafe:
    """Of one agent. Thread safe."""

    def __init__(
        self, runtime: Runtime, port: PeerPort, name: str, about: Callable[[], Mapping[str, Any]]
    ) -> None:
        """`about`: conn_url, api_url and slots, for the members that are asked."""
        self._rt, self._port, self._name, self._about = runtime, port, name, about
        self._cond = runtime.condition()
        self._keeper: Keeper | None = None
        #: What the key says under which epoch of ours; (0, {}) while that is not known.
        self._known: tuple[int, Mapping[str, str]] = 0, {}
        #: What it may say: writes whose outcome is not known.
        self._unsettled: dict[str, str] = {}
        self._asking = False
        self._woken = False
        self._ended = False
        self._said: str | None = None

    def start(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._rt.thread(self._run, "failsafe").start()

    def stop(self) -> None:
        with self._cond:
            self._ended = True
            self._cond.notify_all()

    def wake(self) -> None:
        """A renewal got no clear answer."""
        with self._cond:
            self._woken = True
            self._cond.notify_all()

    # --- whom to ask --------------------------------------------------------------------------------

    def saw(self, cluster: ClusterSnapshot, epoch: int | None) -> None:
        """The store as read just now. What the key says is known only while we hold the leader key: until
        then others may change it."""
        leader = cluster.leader
        with self._cond:
            if leader is None or epoch is None or (leader.name, leader.epoch) != (self._name, epoch):
                self._known = 0, {}
            else:
                self._known = epoch, cluster.failsafe or {}

    def may_write(self, members: Mapping[str, str]) -> bool:
        """The key is about to name these: from now on they are asked, too. Not while promises are asked for
        or relied on: those that are new have promised nothing."""
        assert self._keeper is not None
        with self._cond:
            if self._asking:
                return False
            self._unsettled |= members
        return not self._keeper.rests_on_promises()

    def written(self, epoch: int, members: Mapping[str, str]) -> None:
        """The key is known to say this."""
        with self._cond:
            self._known, self._unsettled = (epoch, members), {}

    # --- asking -------------------------------------------------------------------------------------

    def _run(self) -> None:
        again_at: float | None = None
        while True:
            with self._cond:
                left_s = None if again_at is None else max(0.0, again_at - self._rt.now())
                if left_s != 0.0:
                    self._cond.wait_for(lambda: self._woken or self._ended, left_s)
                if self._ended:
                    return
                if self._woken and again_at is not None and self._rt.now() < again_at:
                    self._woken = False
                    continue
                self._woken = False
            try:
                again_at = self._ask()
            except Exception:
                log.exception("failsafe mode: unexpected failure")
                again_at = self._rt.now() + core.AGAIN_S

    def _ask(self) -> float | None:
        """One round, if one is needed. Returns when to begin the next."""
        assert self._keeper is not None
        with self._cond:
            need = self._keeper.needs_promises()
            epoch, members = self._known
            others = {n: u for n, u in (self._unsettled | dict(members)).items() if n != self._name}
            self._asking = need is not None and epoch == need.handle.epoch and self._name in members
        if need is None:
            self._said = None
            return None
        if not self._asking:
            self._say("failsafe mode cannot help: this member is not known to be in the key failsafe")
            return None
        try:
            return self._round(need, others)
        finally:
            with self._cond:
                self._asking = False

    def _round(self, need: Need, others: Mapping[str, str]) -> float:
        assert self._keeper is not None
        began = self._rt.now()
        body = {"name": self._name, **self._about(), "haagent": {"ttl": need.settings.ttl_s}}
        asked = _Round(set(others))
        for name, url in others.items():
            ask = partial(self._one, asked, name, url, body, core.attempt_s(need.left_s))
            self._rt.thread(ask, f"failsafe-{name}").start()
        with self._cond:
            self._cond.wait_for(lambda: not asked.waiting or asked.failed is not None, need.left_s)
            missing = ", ".join(sorted(asked.waiting))
            failed = asked.failed or (f"no answer of {missing}" if missing else None)
        if failed is not None:
            self._say(f"failsafe mode: {failed}")
            return self._rt.now() + core.AGAIN_S
        self._said = None
        self._keeper.promised(need.handle, began, core.promised_s(need.settings, asked.replies))
        return began + renew_interval_s(need.settings)

    def _one(self, asked: _Round, name: str, url: str, body: Mapping[str, Any], deadline_s: float) -> None:
        fault: str | None
        try:
            reply = self._port.post(address(url), body, deadline_s)
            fault = core.refusal(name, reply)
        except PeerFault as silent:
            fault = f"{name} at {url}: {silent}"
        except Exception as unforeseen:  # no thread may die with somebody waiting for it
            log.exception("asking %s for its promise", name)
            fault = f"{name} at {url}: {type(unforeseen).__name__}"
        with self._cond:
            if fault is None:
                asked.replies[name] = reply
                asked.waiting.discard(name)
            else:
                asked.failed = asked.failed or fault
            self._cond.notify_all()

    def _say(self, text: str) -> None:
        """Once, until it is something else."""
        if text != self._said:
            log.warning("%s", text)
            self._said = text
