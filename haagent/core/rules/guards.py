"""Before anything else: foreign data, a running job, a server that is not proven stopped."""

from __future__ import annotations

from haagent.core.actions import AnswerRequest, AskPeers, CancelJob, Exit
from haagent.core.candidate import interesting_peers, unanswered
from haagent.core.model import (
    Decision,
    JobFacts,
    Memory,
    Observation,
    OperatorRequest,
    Unavailable,
    evolve,
    unreadable,
)
from haagent.core.rules import common, vitality
from haagent.core.rules.leading import START_TRIES

#: Jobs that stop the server when they are cancelled.
_WOULD_STOP_IT = ("start primary", "start standby", "restart", "promote", "copy slots")


def foreign_cluster(obs: Observation, memory: Memory) -> Decision | None:
    """Data of another cluster never joins this one (contract 1.3)."""
    if isinstance(obs.cluster, Unavailable) or obs.settings.pause:
        return None
    known, mine = obs.cluster.initialize, obs.instance.system_identifier
    valid = known is not None and known.isdigit() and len(known) >= 10
    if not common.has_data(obs) or not valid or mine is None or mine == known:
        return None
    reason = f"system ID mismatch, node {obs.me.name} belongs to a different cluster: {known} != {mine}"
    return Decision("start.foreign-cluster", reason, memory, (Exit(1, reason),))


def replica_without_cluster(obs: Observation, memory: Memory) -> Decision | None:
    """A running standby of a cluster nobody has initialised: its primary goes first (contract 1.3).

    Where a leader has left its traces, `initialize` was only deleted, and this member may be the next."""
    if isinstance(obs.cluster, Unavailable) or obs.settings.pause:
        return None
    if (
        obs.cluster.initialize is not None
        or unreadable(obs.cluster, "initialize")
        or obs.cluster.leader is not None
        or not obs.instance.serves_as_standby
    ):
        return None
    known = memory.last_leader is not None or obs.settings.standby_cluster is not None
    known = known or common.left_by_a_leader(obs.cluster) is not None
    if obs.instance.follows is None or known:
        return None
    reason = f"{obs.me.name} is a replica without a known cluster: start the primary's agent first"
    return Decision("start.replica-first", reason, memory, (Exit(1, reason),))


def job_running(obs: Observation, memory: Memory) -> Decision | None:
    """One long work at a time; it is cancelled only when its ground is gone."""
    job = obs.job
    if job is None:
        return None
    if obs.request is not None and _makes_way(obs, obs.request):
        return _make_way(job, memory)
    busy = _busy_with(job)
    answer = (AnswerRequest(obs.request.id, 503, busy),) if obs.request is not None else ()
    lost = job.epoch is not None and (obs.lease.epoch != job.epoch or _fenced_before_its_stop(obs, job))
    if lost and not job.cancelled:
        reason = f"{job.kind} was begun under a lease that is lost"
        return Decision("job.lease-lost", reason, memory, (*answer, CancelJob(reason)))
    if obs.stopping and not job.cancelled and not _goes_on_when_stopping(obs, job.kind):
        return Decision("job.stopping", "shutting down", memory, (*answer, CancelJob("shutting down")))
    if answer:
        return Decision("job.busy", busy, memory, answer)
    in_vain = _slow_primary_start(obs, memory) or vitality.hopeless_job(obs, memory)
    if in_vain is not None:
        return in_vain
    return common.wait(
        "job.running", f"{job.kind} in progress" + (f": {job.detail}" if job.detail else ""), memory
    )


def _busy_with(job: JobFacts) -> str:
    """What an operator is told who wants something else (contract 3.6)."""
    starts = job.kind in ("start primary", "start standby")
    return "postgres is still starting" if starts else f"{job.words} already in progress"


def _makes_way(obs: Observation, request: OperatorRequest) -> bool:
    """`reinitialize` by force, of a member whose data are a standby's anyway."""
    if request.kind != "reinitialize" or not request.force or isinstance(obs.cluster, Unavailable):
        return False
    return common.other_leads(obs) and not obs.instance.serves_as_primary and not obs.stopping


def _make_way(job: JobFacts, memory: Memory) -> Decision:
    reason = f"{job.words} makes way: reinitialize with force was asked for"
    cancel = () if job.cancelled else (CancelJob(reason),)
    return Decision("job.makes-way", reason, memory, cancel, heartbeat=not cancel)


def _fenced_before_its_stop(obs: Observation, job: JobFacts) -> bool:
    """A planned stop still waits for a program (`before_stop`), and the guardian has stopped PostgreSQL."""
    return job.kind == "stop" and job.epoch is not None and obs.lease.closed_epoch >= job.epoch


def _goes_on_when_stopping(obs: Observation, kind: str) -> bool:
    """A stop is wanted; in a pause, what would stop a server that is to be left alone goes on, too."""
    return kind == "stop" or (obs.settings.pause and kind in _WOULD_STOP_IT)


def _slow_primary_start(obs: Observation, memory: Memory) -> Decision | None:
    """A primary that is not back in `primary_start_timeout` is handed over, if somebody can take over."""
    job, timed = obs.job, _start_limit(obs)
    if job is None or timed is None or job.cancelled or isinstance(obs.cluster, Unavailable):
        return None
    if obs.settings.pause:
        return None
    since, limit = timed
    if obs.now < since + limit:
        what = "starting primary after failure" if job.kind == "start primary" else "restarting primary"
        return common.wait("job.starting", what, memory, max(0.1, since + limit - obs.now))
    ask = unanswered(obs, memory, obs.cluster)
    if ask:
        return Decision(
            "job.slow-start.ask", "looking for a successor", memory, (AskPeers(ask),), common.SOON_S
        )
    if interesting_peers(obs, memory, obs.cluster) and common.fit_successor_answers(obs):
        reason = f"PostgreSQL did not come back within its start timeout of {limit:g} s"
        # Its failure is the last one allowed: what comes next is the hand-over, not another try.
        last_try = evolve(memory, start_failures=max(memory.start_failures, START_TRIES - 1))
        return Decision("job.slow-start", reason, last_try, (CancelJob(reason),))
    return None


def _start_limit(obs: Observation) -> tuple[float, float] | None:
    """Since when PostgreSQL is being started as the primary, and how long that may take, seconds."""
    job = obs.job
    if job is None or job.epoch is None:
        return None
    if job.kind == "start primary":
        return job.started_at, obs.settings.primary_start_timeout_s
    known = job.starting_since is not None and job.start_timeout_s is not None
    return (job.starting_since or 0.0, job.start_timeout_s or 0.0) if known else None


def not_proven_stopped(obs: Observation, memory: Memory) -> Decision | None:
    """Fenced is not stopped: no release, start or rewind while some of the old server lives (H9, H13)."""
    if not obs.instance.leftovers:
        return None
    let_go = vitality.leftovers(obs, memory)
    if let_go is not None:
        return let_go
    reason = "processes of the old postmaster cannot be ended yet: nothing is started or released"
    return common.wait("guard.not-proven-stopped", reason, memory, common.SOON_S)


def leader_unreadable(obs: Observation, memory: Memory) -> Decision | None:
    """A leader key that cannot be understood is held by somebody: nothing new (rule 10), a lease goes on.

    The keeper finds out whether it is still ours; if not, the fence ends what was written under it."""
    cause = unreadable(common.view(obs), "leader")
    if cause is None:
        return None
    reason = f"who leads cannot be read from the store: {cause}"
    answer = (AnswerRequest(obs.request.id, 503, reason),) if obs.request is not None else ()
    return Decision("guard.leader-unreadable", reason, memory, answer, 1.0, heartbeat=not answer)
