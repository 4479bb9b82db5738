"""What this member tells the others: its member key and its role and state texts. Pure. Contract 1.3."""

from __future__ import annotations

from dataclasses import dataclass

from dcs.records import Member
from haagent.core import logical_slots, vitality
from haagent.core.candidate import local_checks
from haagent.core.model import Memory, Observation, Unavailable
from haagent.core.roles import DEMOTED, PRIMARY, PROMOTED, REPLICA, STANDBY_LEADER, UNINITIALIZED
from postgres_ctl.facts import ControlData, DataDirState, InstanceSample

_JOB_STATES = {
    "initdb": "initializing new cluster",
    "custom bootstrap": "running custom bootstrap script",
    "clone": "creating replica",
    "restart": "restarting",
    "copy slots": "restarting",
    "start primary": "starting",
    "start standby": "starting",
    "stop": "stopping",
    "rewind": "stopped",
}


#: Positions are published while these run: the server is up all the time.
_SHOWING_JOBS = ("pre_promote", "promote", "compare histories", "checkpoint")


@dataclass(frozen=True)
class Addresses:
    """The fixed parts of a member key."""

    conn_url: str
    api_url: str
    version: str
    agent: str
    proxy_url: str | None = None


def state_text(obs: Observation, memory: Memory) -> str:
    """One of the state texts of contract 1.3."""
    if obs.job is not None and obs.job.kind == "custom bootstrap" and obs.job.starting_since is not None:
        return "starting after custom bootstrap"
    if obs.job is not None and obs.job.kind in _JOB_STATES:
        return _JOB_STATES[obs.job.kind]
    if obs.instance.alive:
        return "running" if obs.instance.answers else _silent(obs)
    if memory.bootstrap is not None and memory.bootstrap.startswith("failed"):
        return "initdb failed"
    if memory.start_failures > 0:
        return "start failed"
    last, control = obs.instance.last_exit, obs.instance.control
    clean = isinstance(control, ControlData) and control.shut_down_cleanly
    died = last is not None and not last.fenced and not clean and obs.lease.epoch is not None
    return "crashed" if died else "stopped"


def _silent(obs: Observation) -> str:
    """A server that lives and does not answer: starting, unless it answered before."""
    sample = obs.instance.sample
    return "starting" if isinstance(sample, Unavailable) and "starting up" in sample.cause else "running"


def role_text(obs: Observation) -> str:
    """One of the roles of contract 1.3. A closed epoch shows `demoted`, whatever still lives (H13)."""
    if obs.instance.data_dir is DataDirState.MISSING_OR_EMPTY and not obs.instance.alive:
        return UNINITIALIZED
    epoch = obs.lease.epoch
    if obs.leads_standby_cluster:
        return STANDBY_LEADER
    if obs.job is not None and obs.job.kind == "promote":
        return PROMOTED
    if obs.instance.serves_as_primary:
        under = obs.instance.writable_epoch or epoch
        if under is not None and obs.lease.closed_epoch >= under:
            return DEMOTED
        return PROMOTED if obs.instance.promoting else PRIMARY
    if not obs.instance.alive and epoch is not None:
        return PRIMARY if obs.lease.holds(obs.now) else DEMOTED
    return REPLICA


def member_record(obs: Observation, memory: Memory, where: Addresses) -> Member:
    """The member key this agent should publish now."""
    sample = obs.instance.sample if isinstance(obs.instance.sample, InstanceSample) else None
    quiet = obs.job is not None and obs.job.kind not in _SHOWING_JOBS
    shown = None if quiet else sample
    role = role_text(obs)
    standby = shown is not None and shown.in_recovery
    promoted_lately = (
        role == PRIMARY and obs.lease.epoch is not None and memory.checkpointed_epoch != obs.lease.epoch
    )
    pending = {name: (old, new) for name, old, new in (sample.pending_restart if sample else ())}
    return Member(
        name=obs.me.name,
        conn_url=where.conn_url,
        api_url=where.api_url,
        state=state_text(obs, memory),
        role=role,
        version=where.version,
        agent=where.agent,
        proxy_url=where.proxy_url,
        xlog_location=shown.position.value if shown is not None and role != DEMOTED else None,
        replay_lsn=shown.replay_lsn.value if standby and shown is not None and shown.replay_lsn else None,
        receive_lsn=shown.receive_lsn.value if standby and shown is not None and shown.receive_lsn else None,
        replication_state=shown.replication_state if standby and shown is not None else None,
        timeline=shown.timeline if shown is not None else None,
        tags=obs.me.tags,
        pause=obs.settings.pause,
        checkpoint_after_promote=False if promoted_lately else None,
        pending_restart=bool(pending),
        pending_restart_reason=pending,
        scheduled_restart=obs.scheduled_restart.shown if obs.scheduled_restart is not None else None,
        cannot_lead=cannot_lead(obs, memory),
        note=note(obs, memory),
    )


def note(obs: Observation, memory: Memory) -> str | None:
    """One line for people; what probes find comes first."""
    usual = memory.note or logical_slots.note(obs, memory)
    copied = f"{obs.job.words}: {obs.job.copied}" if obs.job is not None and obs.job.copied else None
    lines = [line for line in (vitality.note(obs), copied, usual) if line]
    return "; ".join(lines) or None


def cannot_lead(obs: Observation, memory: Memory) -> str | None:
    """First reason in this member itself; None when it could lead, or does (H13)."""
    if obs.instance.serves_as_primary:
        return None
    refused = next((c for c in local_checks(obs, memory) if c.passed is False), None)
    return f"{refused.rule}: {refused.detail}" if refused is not None else None
