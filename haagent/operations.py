"""Control calls of the REST API, each blocking its own caller until its end (contract 3.6).

A switchover or failover is a request in the store: written by whoever was asked, carried out by the leader
and the candidate by rule, and answered from what the store shows afterwards. Restart and reinitialize
concern this member and go to its loop through `RequestBox`. What is allowed is judged in `haagent.core`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcs import codec
from dcs.api import Conflict, Ok
from dcs.errors import DcsError
from dcs.records import ClusterSnapshot
from haagent.api.view import Answer, Numbers, Published
from haagent.config.dynamic import merge_patch, without_nulls
from haagent.core.failsafe import (
    ACCEPTED,
    MEMBER_HEADER,
    PROMISE_HEADER,
    may_not_promise,
    question_of,
    wanted_promise_s,
)
from haagent.core.member_select import minimum_ttl_s
from haagent.core.model import OperatorRequest
from haagent.core.operations import (
    Verdict,
    explain,
    hides_leadership,
    outcome_of,
    peers_to_ask,
    refuse_request,
)
from haagent.core.restart import RestartWish, ScheduledRestart
from haagent.core.settings import validate_dynamic
from haagent.runtime import Event, Runtime
from postgres_ctl.facts import InstanceSample

if TYPE_CHECKING:
    from haagent.agent import Agent

log = logging.getLogger(__name__)

#: A restart may take this long beyond primary_start_timeout before its caller is told "unknown"; seconds.
RESTART_SLACK_S = 120.0
#: What only the loop has to answer is answered within its longest step, seconds.
QUICK_S = 30.0
#: Before its answer a reinitialize may have to end what runs, seconds.
REINITIALIZE_S = 60.0
#: The answer waits so long for the member key to be written, seconds.
SHOWN_S = 3.0
#: Without news the store is read again after this; seconds.
LOOK_EVERY_S = 1.0
_NOT_WRITTEN = Answer(503, "failed to write failover key into DCS")


@dataclass
class _Pending:
    request: OperatorRequest
    done: Event
    answer: Answer | None = None
    taken: bool = False


class RequestBox:
    """Wishes for this member, answered by the loop or by a job. Thread safe."""

    def __init__(self, runtime: Runtime, wake: Callable[[], None]) -> None:
        self._rt, self._wake = runtime, wake
        self._lock = runtime.lock()
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._scheduled: ScheduledRestart | None = None

    def submit(self, kind: str, deadline_s: float, **wish: Any) -> Answer:
        """Ask the loop and wait for its answer; `wish` holds further fields of the `OperatorRequest`."""
        with self._lock:
            request = OperatorRequest(next(self._ids), kind, **wish)
            pending = self._pending[request.id] = _Pending(request, self._rt.event())
        self._wake()
        pending.done.wait(deadline_s)
        with self._lock:
            self._pending.pop(request.id, None)
        return pending.answer or Answer(503, f"{kind} status unknown after {deadline_s:g} seconds")

    def current(self) -> OperatorRequest | None:
        """The oldest wish nobody has taken yet."""
        with self._lock:
            return next((p.request for p in self._pending.values() if not p.taken and p.answer is None), None)

    def scheduled(self) -> ScheduledRestart | None:
        """The restart that waits for its time."""
        return self._scheduled

    def schedule(self, restart: ScheduledRestart | None) -> None:
        self._scheduled = restart

    def taken(self, request_id: int) -> None:
        with self._lock:
            if request_id in self._pending:
                self._pending[request_id].taken = True

    def answer(self, request_id: int, status: int, text: str) -> None:
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is None or pending.answer is not None:
                return
            pending.answer = Answer(status, text)
        pending.done.set()
        self._wake()


class Operations:
    """`AgentPort` of a running agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._now = agent.runtime.now
        self._changed = agent.runtime.condition()
        self._changes = 0

    # --- reading --------------------------------------------------------------------------------------

    def published(self) -> Published:
        return self._agent.picture()

    def leader_until(self) -> float | None:
        hidden = hides_leadership(self._agent.last_observation, self._agent.memory)
        return None if hidden else self._agent.keeper.leader_until()

    def numbers(self) -> Numbers:
        return self._agent.numbers()

    def refresh(self, deadline_s: float) -> Published:
        self._agent.instance.sampler.fresh(deadline_s)
        return self._agent.picture()

    def read_cluster(self) -> ClusterSnapshot:
        return self._agent.dcs.snapshot(self._settings.retry_timeout_s)

    def events(self) -> list[Mapping[str, Any]]:
        return [{"time": e.at, "message": e.reason, **e.as_dict()} for e in self._agent.journal.recent()]

    def explain(self) -> Mapping[str, Any]:
        """Fresh facts, the election's own checks."""
        obs = self._agent.last_observation
        if obs is None:
            return {"name": self._agent.config.name, "can_lead": None, "role": "unknown", "rules": []}
        try:
            obs = replace(obs, cluster=self.read_cluster())
        except DcsError:
            pass
        memory, since = self._agent.memory, self._now()
        names = peers_to_ask(obs, memory)
        members = {m.name: m.api_url for m in memory.last_members} | {
            m.name: m.api_url
            for m in (obs.cluster.members if isinstance(obs.cluster, ClusterSnapshot) else ())
        }
        self._agent.peers.ask({n: u for n in names if (u := members.get(n))})
        sample = self._agent.instance.sampler.fresh(1.0)
        answers = self._agent.peers.answers_since(names, since, 2.5)
        fresh = replace(obs, now=since, peers=answers, instance=replace(obs.instance, sample=sample))
        return explain(fresh, memory)

    @property
    def _settings(self) -> Any:
        return self._agent.observer.settings

    # --- switchover and failover ------------------------------------------------------------------------

    def dcs_changed(self) -> None:
        """Called for every change in the store."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def switchover(self, body: Mapping[str, Any]) -> Answer:
        if body.get("scheduled_at"):
            return self._schedule_switchover(body)
        return self._request(body.get("leader"), body.get("candidate"))

    def failover(self, body: Mapping[str, Any]) -> Answer:
        return self._request(body.get("leader"), body.get("candidate"))

    def _schedule_switchover(self, body: Mapping[str, Any]) -> Answer:
        """Whether it can be done is judged when it is due (contract 3.6)."""
        log.info("received a request for a scheduled switchover: %s", dict(body))
        text = codec.encode_failover(body.get("leader"), body.get("candidate"), body["scheduled_at"])
        try:
            version = self.read_cluster().failover_version
        except DcsError:
            return _NOT_WRITTEN
        outcome = self._agent.dcs.compare_and_set(
            codec.FAILOVER, text, version, self._settings.retry_timeout_s
        )
        return Answer(202, "Switchover scheduled") if isinstance(outcome, Ok) else _NOT_WRITTEN

    def delete_switchover(self) -> Answer:
        try:
            request = self.read_cluster().failover
        except DcsError:
            return _NOT_WRITTEN
        if request is None or request.due_at is None:
            return Answer(404, "no switchover is scheduled")
        outcome = self._agent.dcs.compare_and_set(
            codec.FAILOVER, codec.encode_failover(), request.version, self._settings.retry_timeout_s
        )
        if isinstance(outcome, Conflict):
            return Answer(409, "the request was changed by somebody else meanwhile")
        return Answer(200, "scheduled switchover deleted") if isinstance(outcome, Ok) else _NOT_WRITTEN

    def _request(self, leader: str | None, candidate: str | None) -> Answer:
        log.info("received %s request with leader=%s candidate=%s",
                 "switchover" if leader else "failover", leader, candidate)  # fmt: skip
        try:
            cluster = self.read_cluster()
        except DcsError:
            return _NOT_WRITTEN
        refused = refuse_request(cluster, self._settings, leader, candidate)
        if refused is not None:
            return Answer(refused.status, refused.text)
        former = cluster.leader.name if cluster.leader is not None else None
        text = codec.encode_failover(leader, candidate)
        outcome = self._agent.dcs.compare_and_set(
            codec.FAILOVER, text, cluster.failover_version, self._settings.retry_timeout_s
        )
        if not isinstance(outcome, Ok):
            return _NOT_WRITTEN
        self._agent.wake()
        return self._await_outcome(outcome.version, former, candidate, leader is not None)

    def _await_outcome(
        self, version: int, former: str | None, candidate: str | None, switchover: bool
    ) -> Answer:
        """Until the store shows how it ended; looked at on every change."""
        limit_s = 2 * max(10.0, self._settings.loop_wait_s)
        end = self._now() + limit_s
        while self._now() < end:
            with self._changed:
                seen = self._changes
            verdict = self._look(version, former, candidate, switchover)
            if verdict is not None:
                return Answer(verdict.status, verdict.text)
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._changes != seen, LOOK_EVERY_S)  # type: ignore[misc]
        what = "Switchover" if switchover else "Failover"
        return Answer(
            503, f"{what} status unknown after {limit_s:g} seconds; operation may still be in progress"
        )

    def _look(
        self, version: int, former: str | None, candidate: str | None, switchover: bool
    ) -> Verdict | None:
        try:
            return outcome_of(self.read_cluster(), version, former, candidate, switchover)
        except DcsError:
            return None

    # --- failsafe mode ----------------------------------------------------------------------------------

    def failsafe(self, body: Mapping[str, Any]) -> Answer:
        agent, question = self._agent, question_of(body)
        if question is None:
            return Answer(400, "Bad Request: no name in it")
        length_s = wanted_promise_s(self._settings, question)
        refused = agent.promises.give(
            question.name,
            length_s,
            lambda: may_not_promise(agent.last_observation, agent.keeper.facts(), question),
        )
        if refused is not None:
            return Answer(*refused)
        headers = {MEMBER_HEADER: agent.config.name, PROMISE_HEADER: f"{length_s:g}"}
        sample = agent.instance.sampler.last()
        if isinstance(sample, InstanceSample):
            headers["lsn"] = str(sample.position.value)
        return Answer(200, ACCEPTED, headers)

    # --- this member ------------------------------------------------------------------------------------

    def restart(self, wish: RestartWish) -> Answer:
        if wish.due_at is not None:
            return self._about_schedule("schedule restart", wish=wish)
        limit_s = (wish.timeout_s or self._settings.primary_start_timeout_s) + RESTART_SLACK_S
        return self._agent.requests.submit("restart", limit_s, wish=wish)

    def delete_restart(self) -> Answer:
        return self._about_schedule("delete scheduled restart")

    def _about_schedule(self, kind: str, **wish: Any) -> Answer:
        """Answered once the member key shows it: who looks at the cluster after the answer finds it so."""
        answer = self._agent.requests.submit(kind, QUICK_S, **wish)
        end = self._now() + SHOWN_S
        while answer.status < 300 and self._now() < end:
            with self._changed:
                seen = self._changes
            if self._store_shows(self._agent.requests.scheduled()):
                break
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._changes != seen, LOOK_EVERY_S)  # type: ignore[misc]
        return answer

    def _store_shows(self, planned: ScheduledRestart | None) -> bool:
        try:
            member = self._agent.dcs.snapshot(LOOK_EVERY_S).member(self._agent.config.name)
        except DcsError:
            return False
        shown = member.scheduled_restart if member is not None else None
        return shown == (planned.shown if planned is not None else None)

    def reinitialize(self, body: Mapping[str, Any]) -> Answer:
        from_leader = body.get("from_leader") is True or body.get("from-leader") is True
        force = body.get("force") is True
        return self._agent.requests.submit(
            "reinitialize", REINITIALIZE_S, from_leader=from_leader, force=force
        )

    def reload(self) -> Answer:
        self._agent.ask_reload()
        return Answer(202, "reload scheduled")

    # --- dynamic configuration ----------------------------------------------------------------------------

    def patch_config(self, patch: Mapping[str, Any]) -> Answer:
        try:
            cluster = self.read_cluster()
        except DcsError as fault:
            return Answer(503, f"the DCS is not accessible: {fault}")
        if cluster.config is None:
            return Answer(503, "there is no dynamic configuration yet")
        merged = merge_patch(cluster.config.data, patch)
        refused = self._refused(cluster, merged)
        if refused is not None:
            return refused
        outcome = self._agent.dcs.compare_and_set(
            codec.CONFIG, codec.encode_config(merged), cluster.config.version, self._settings.retry_timeout_s
        )
        if isinstance(outcome, Conflict):
            return Answer(409, "the dynamic configuration was changed by somebody else meanwhile")
        if not isinstance(outcome, Ok):
            return Answer(503, f"the dynamic configuration may not have been written: {outcome.cause}")
        self._agent.wake()
        return Answer(200, merged)

    def put_config(self, data: Mapping[str, Any]) -> Answer:
        try:
            refused = self._refused(self.read_cluster(), without_nulls(data))
        except DcsError as fault:
            return Answer(502, f"the DCS is not accessible: {fault}")
        if refused is not None:
            return refused
        outcome = self._agent.dcs.put(
            codec.CONFIG, codec.encode_config(without_nulls(data)), self._settings.retry_timeout_s
        )
        if not isinstance(outcome, Ok):
            return Answer(502, "the dynamic configuration could not be written")
        self._agent.wake()
        return Answer(200, dict(data))

    def _refused(self, cluster: ClusterSnapshot, data: Mapping[str, Any]) -> Answer | None:
        minimum = minimum_ttl_s(cluster, self._agent.dcs.minimum_ttl_s)
        problems, warnings = validate_dynamic(data, minimum)
        for warning in warnings:
            log.warning("dynamic configuration: %s", warning)
        return Answer(400, "; ".join(str(p) for p in problems)) if problems else None
