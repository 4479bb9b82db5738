"""Operator requests to this member: restart and reinitialize (contract 3.6)."""

from __future__ import annotations

from haagent.core.actions import AnswerRequest, Clone, Restart
from haagent.core.model import Decision, Memory, Observation, OperatorRequest
from haagent.core.publish import role_text
from haagent.core.rules import common
from haagent.core.rules.follower import clone_source
from postgres_ctl.facts import InstanceSample


def operator_request(obs: Observation, memory: Memory) -> Decision | None:
    """A wish is answered in the step that sees it, or by the job it starts."""
    if obs.request is None:
        return None
    if obs.request.kind == "restart":
        return _restart(obs, memory, obs.request)
    return _reinitialize(obs, memory, obs.request)


def restart_is_wanted(obs: Observation, request: OperatorRequest) -> bool:
    """The conditions of a restart hold; one that cannot be judged does not."""
    wanted, sample = request.conditions, obs.instance.sample
    if wanted.role is not None and wanted.role != role_text(obs):
        return False
    if wanted.below_version is None and not wanted.pending:
        return True
    if not isinstance(sample, InstanceSample):
        return False
    is_older = wanted.below_version is None or sample.server_version < wanted.below_version
    return is_older and (not wanted.pending or bool(sample.pending_restart))


def _refuse(request: OperatorRequest, text: str, memory: Memory) -> Decision:
    return Decision("request.refused", text, memory, (AnswerRequest(request.id, 503, text),))


def _restart(obs: Observation, memory: Memory, request: OperatorRequest) -> Decision:
    if not common.has_data(obs):
        return _refuse(request, "restart failed: there is no data directory yet", memory)
    if obs.instance.alive and not obs.instance.answers:
        return _refuse(request, "postgres is still starting", memory)
    if not restart_is_wanted(obs, request):
        return _refuse(request, "restart conditions are not satisfied", memory)
    key = common.leader(obs)
    if obs.instance.serves_as_primary:
        if not (common.owns_key(obs) and obs.lease.holds(obs.now)):
            return _refuse(
                request, "restart failed: a primary without a proven lease is not started again", memory
            )
        job = Restart(request.id, common.epoch_of(obs), None)
    else:
        job = Restart(request.id, None, key.name if key is not None and common.other_leads(obs) else None)
    return Decision("request.restart", "restarting PostgreSQL on request", memory, (job,))


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
    actions = (AnswerRequest(request.id, 200, "reinitialize started"), Clone(source, key.name, wipe=True))
    return Decision("request.reinitialize", f"reinitializing from {source} on request", memory, actions)
