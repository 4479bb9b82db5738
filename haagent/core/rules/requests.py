"""Operator requests to this member: restart, now or at its time, and reinitialize (contract 2.7, 3.6)."""

from __future__ import annotations

from haagent.core import rejoin
from haagent.core.actions import AnswerRequest, Clone, DropScheduledRestart, Restart, ScheduleRestart
from haagent.core.model import Decision, Memory, Observation, OperatorRequest, evolve
from haagent.core.publish import role_text
from haagent.core.restart import RestartWish, ScheduledRestart
from haagent.core.rules import common
from haagent.core.rules.follower import clone_source
from haagent.core.schedule import Timing, timing
from postgres_ctl.facts import InstanceSample


def operator_request(obs: Observation, memory: Memory) -> Decision | None:
    """A wish is answered in the step that sees it, or by the job it starts."""
    if obs.request is None:
        return None
    if obs.request.kind == "restart":
        return _restart(obs, memory, obs.request)
    return _reinitialize(obs, memory, obs.request)


def _refuse(request: OperatorRequest, text: str, memory: Memory, status: int = 503) -> Decision:
    return Decision("request.refused", text, memory, (AnswerRequest(request.id, status, text),))


# --- restart --------------------------------------------------------------------------------------


def restart_is_wanted(obs: Observation, wanted: RestartWish) -> bool:
    """The conditions of a restart hold; one that cannot be judged does not."""
    sample = obs.instance.sample
    if wanted.role is not None and wanted.role != role_text(obs):
        return False
    if wanted.below_version is None and not wanted.pending:
        return True
    if not isinstance(sample, InstanceSample):
        return False
    is_older = wanted.below_version is None or sample.server_version < wanted.below_version
    return is_older and (not wanted.pending or bool(sample.pending_restart))


def _restart(obs: Observation, memory: Memory, request: OperatorRequest) -> Decision:
    if not common.has_data(obs):
        return _refuse(request, "restart failed: there is no data directory yet", memory)
    if obs.instance.alive and not obs.instance.answers:
        return _refuse(request, "postgres is still starting", memory)
    if not restart_is_wanted(obs, request.wish):
        return _refuse(request, "restart conditions are not satisfied", memory)
    job = _restart_job(obs, memory, request.id, request.wish)
    if job is None:
        text = "restart failed: a primary without a proven lease is not started again"
        return _refuse(request, text, memory)
    return Decision("request.restart", "restarting PostgreSQL on request", memory, (job,))


def _restart_job(
    obs: Observation, memory: Memory, request_id: int | None, wish: RestartWish
) -> Restart | None:
    """None of a primary that may not be started again: its lease is not proven."""
    if not obs.instance.serves_as_primary:
        source = common.upstream(obs) if common.other_leads(obs) or common.owns_key(obs) else None
        source = source if common.may_follow(memory, source) else None
        return Restart(request_id, None, source, wish.timeout_s)
    if not (common.owns_key(obs) and obs.lease.holds(obs.now)):
        return None
    return Restart(request_id, common.epoch_of(obs), None, wish.timeout_s or _usual_timeout_s(obs))


def _usual_timeout_s(obs: Observation) -> float | None:
    """primary_start_timeout; one of 0 is about crashes, and no reason to hand over at a wanted restart."""
    limit = obs.settings.primary_start_timeout_s
    return limit if limit > 0 else None


# --- at its time ----------------------------------------------------------------------------------


def about_schedule(obs: Observation, memory: Memory) -> Decision | None:
    """To schedule a restart, or to drop it, needs nothing but this agent's memory."""
    asked, planned = obs.request, obs.scheduled_restart
    if asked is None or asked.kind not in ("schedule restart", "delete scheduled restart"):
        return None
    if asked.kind == "schedule restart" and asked.wish.due_at is not None:
        return _schedule(obs, memory, asked, asked.wish.due_at)
    if planned is None:
        return _refuse(asked, "no restarts are scheduled", memory, 404)
    actions = (DropScheduledRestart(), AnswerRequest(asked.id, 200, "scheduled restart deleted"))
    return Decision("restart.deleted", "the scheduled restart was deleted on request", memory, actions, 0.0)


def _schedule(obs: Observation, memory: Memory, asked: OperatorRequest, due_at: float) -> Decision:
    if obs.scheduled_restart is not None:
        return _refuse(asked, "Another restart is already scheduled", memory, 409)
    planned = ScheduledRestart(due_at, asked.wish, _started(obs))
    actions = (ScheduleRestart(planned), AnswerRequest(asked.id, 202, "Restart scheduled"))
    reason = f"a restart is scheduled: {dict(planned.shown)}"
    return Decision("restart.scheduled", reason, memory, actions, 0.0)


def _started(obs: Observation) -> str | None:
    sample = obs.instance.sample
    return sample.postmaster_start_time if isinstance(sample, InstanceSample) else None


def scheduled_restart(obs: Observation, memory: Memory) -> Decision | None:
    """One that is due, or has become void."""
    planned, now = obs.scheduled_restart, _started(obs)
    if planned is None or now is None:
        return None
    if planned.postmaster_start_time not in (None, now):
        return _drop("restart.overtaken", f"PostgreSQL was restarted at {now}", memory)
    if obs.settings.pause or memory.handover is not None or not _settled(obs):
        return None
    when = timing(obs, planned.due_at)
    if when is Timing.LATE:
        return _drop("restart.late", "it could not begin in time", memory)
    return _begin(obs, memory, planned) if when is Timing.DUE else None


def _settled(obs: Observation) -> bool:
    """Somebody leads: a restart in the middle of an election would only delay it (contract 2.2)."""
    return common.other_leads(obs) or (common.owns_key(obs) and obs.serves_as_leader)


def _drop(rule: str, why: str, memory: Memory) -> Decision:
    return Decision(rule, f"the scheduled restart is dropped: {why}", memory, (DropScheduledRestart(),), 0.0)


def _begin(obs: Observation, memory: Memory, planned: ScheduledRestart) -> Decision | None:
    if not restart_is_wanted(obs, planned.wish):
        return _drop("restart.unwanted", "restart conditions are not satisfied", memory)
    job = _restart_job(obs, memory, None, planned.wish)
    if job is None:
        return None  # in this window the lease may be proven again
    return Decision(
        "restart.due", "restarting PostgreSQL as scheduled", memory, (job, DropScheduledRestart())
    )


# --- reinitialize ---------------------------------------------------------------------------------


def _reinitialize(obs: Observation, memory: Memory, request: OperatorRequest) -> Decision:
    key = common.leader(obs)
    if key is None:
        return _refuse(request, "Cluster has no leader, can not reinitialize", memory)
    if not common.other_leads(obs) or obs.instance.serves_as_primary:
        return _refuse(request, "I am the leader, can not reinitialize", memory)
    if not common.leader_is_ready(obs):
        return _refuse(
            request, f"leader {key.name} is not a running primary yet, can not reinitialize", memory
        )
    source = key.name if request.from_leader else clone_source(obs)
    clone = Clone(source, key.name, wipe=True, asked=True, from_leader=request.from_leader)
    answer = AnswerRequest(request.id, 200, "reinitialize started")
    began = rejoin.begin(evolve(memory, reinitializing=True), rejoin.CLONE)
    return Decision(
        "request.reinitialize", f"reinitializing from {source} on request", began, (answer, clone)
    )
