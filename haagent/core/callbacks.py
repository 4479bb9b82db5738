"""Which callback is due (contract 6.6), from what is seen and what was called before. Pure.

    first seen, or started    on_start         stopped on purpose, or fenced    on_stop
    restarted on request      on_restart       configuration read again         on_reload
    another role than called last, instead of on_start and on_restart           on_role_change
    crashed, and the leadership is gone                                         on_role_change demoted

A primary is only one to a callback while its lease holds, or nobody fences it (pause): a program that moves
an address must never be told so earlier (rule 1). A crash alone calls nothing: the primary comes back in
place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from haagent.core.model import JobResult, Memory, Observation
from haagent.core.roles import DEMOTED, PRIMARY, REPLICA, STANDBY_LEADER

#: The one action that does not end the program of another one.
RELOAD = "on_reload"
#: Jobs that stop the server in their course, on purpose.
_STOPPING_JOBS = ("stop", "clone")
#: While these run, nothing that lives is the cluster's server yet.
_BOOTSTRAP_JOBS = ("initdb",)


@dataclass(frozen=True)
class Call:
    """`<command> <action> <role> <scope>`."""

    action: str
    role: str


@dataclass(frozen=True)
class Called:
    """What the callbacks of this agent's life know."""

    #: None until the first call.
    role: str | None = None
    #: The server runs, as far as they were told.
    up: bool = False
    #: on_stop was called, and nothing since.
    stopped: bool = False
    #: Reloads of the server that they know of.
    reloads: int = 0


def due(called: Called, obs: Observation, memory: Memory, reloads: int) -> tuple[tuple[Call, ...], Called]:
    """The calls to make now, in order, and what is known then. `reloads`: how often the server was told to
    read its configuration again, in this agent's life."""
    calls: list[Call] = []
    if called.up and (not obs.instance.alive or _stop_was_seen(obs)):
        if _on_purpose(obs):
            role = DEMOTED if memory.handover is not None else called.role or REPLICA
            calls.append(Call("on_stop", role))
        called = replace(called, up=False, stopped=bool(calls))
    if _gave_up(called, obs):
        calls.append(Call("on_role_change", DEMOTED))
        called = replace(called, role=DEMOTED)
    role_now = _role(obs)
    if role_now is not None:
        call = _while_running(called, obs, role_now, reloads)
        calls += [call] if call is not None else []
        called = Called(role_now, up=True, reloads=reloads)
    return tuple(calls), called


def _while_running(called: Called, obs: Observation, role: str, reloads: int) -> Call | None:
    restarted = any(_succeeded(result, "restart") for result in obs.finished)
    if called.role not in (None, role):
        return Call("on_role_change", role)
    if restarted:
        return Call("on_restart", role)
    if not called.up:
        return Call("on_start", role)
    return Call(RELOAD, role) if reloads > called.reloads else None


def _role(obs: Observation) -> str | None:
    """The role to speak of; None while there is none to be sure of."""
    busy = obs.job is not None and obs.job.kind in (*_BOOTSTRAP_JOBS, "restart", *_STOPPING_JOBS)
    if busy or not obs.instance.answers:
        return None
    if not obs.instance.serves_as_primary:
        return STANDBY_LEADER if obs.leads_standby_cluster else REPLICA
    leads = obs.lease.holds(obs.now) or obs.lease.disarmed or obs.settings.pause
    return PRIMARY if leads else None


def _on_purpose(obs: Observation) -> bool:
    last = obs.instance.last_exit
    job = obs.job is not None and obs.job.kind in _STOPPING_JOBS
    return job or _stop_was_seen(obs) or (last is not None and last.fenced)


def _stop_was_seen(obs: Observation) -> bool:
    return any(_succeeded(result, kind) for result in obs.finished for kind in _STOPPING_JOBS)


def _succeeded(result: JobResult, kind: str) -> bool:
    return result.kind == kind and result.ok


def _gave_up(called: Called, obs: Observation) -> bool:
    """It led, its server is down without a stop, and the key is not ours any more."""
    down = called.role == PRIMARY and not called.up and not called.stopped and obs.instance.stopped
    return down and obs.lease.epoch is None
