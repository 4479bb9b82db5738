"""Permanent logical slots: made on the primary, copied to standbys, moved after their consumers. Pure.

Contract 6.3. A consumer that comes to a new leader goes on where it had confirmed, provided that
- the slot is there: a standby copies the leader's state file, which takes one restart of the standby, and
  only while all WAL from the slot on is still on this standby;
- it is not ahead: it moves to what the leader published, and no further than this standby replayed;
- no row of the system catalogs that decoding needs was vacuumed meanwhile. `hot_standby_feedback` tells the
  leader what the copies need; what it removed before it was told is not known here. So a copy counts as safe
  once its catalog_xmin has come to where the leader's slot was when the feedback was in force.

Slots with `failover` (PostgreSQL 17) are kept in step by PostgreSQL itself: none of this is done for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from haagent.core.actions import CheckSlots, CopySlots, TendLogicalSlots
from haagent.core.model import Decision, JobResult, Memory, Observation, Unavailable, evolve
from haagent.core.rules import common
from haagent.core.schedule import request_in_force
from haagent.core.slot_config import LOGICAL, PermanentSlot
from haagent.core.slot_memory import SlotMemory
from haagent.core.slots import feedback_slot, on_the_leaders_line, published, wanted
from postgres_ctl.facts import InstanceSample, Lsn, Slot

#: Kinds of background work and of the job.
TEND, CHECK, COPY = "logical slots", "check slots", "copy slots"
#: A slot is moved this far at a time, bytes: PostgreSQL reads all WAL up to there, and keeps nothing of a try
#: that is cut off.
STEP_BYTES = 64 * 1024 * 1024
#: After a failure, seconds.
PAUSE_S = 10.0
#: Standbys restart one after the other where several lack slots: each waits so long more than the one before.
TURN_S = 5.0
#: And while another member does not run; one that is broken for long is not waited for, seconds.
WAIT_FOR_OTHERS_S = 120.0
#: The leader is asked again so often while a copy is not known to be safe, seconds.
CHECK_EVERY_S = 10.0


def wanted_logical(obs: Observation, memory: Memory) -> dict[str, PermanentSlot]:
    return {name: slot for name, slot in wanted(obs, memory).items() if slot.type == LOGICAL}


def _here(obs: Observation, want: Mapping[str, PermanentSlot]) -> dict[str, Slot]:
    """Those of them that are there, fit the configuration and can be used."""
    sample = obs.instance.sample
    slots = sample.slots if isinstance(sample, InstanceSample) else ()
    return {s.name: s for s in slots if s.name in want and want[s.name].is_like(s) and not s.broken}


# --- on the primary, and moving on standbys -----------------------------------------------------------


def tend(obs: Observation, memory: Memory) -> tuple[TendLogicalSlots, ...]:
    """Create what is missing on the primary; on a standby follow the consumers."""
    sample = obs.instance.sample
    busy = TEND in obs.background or obs.now < memory.logical.not_before
    if busy or not isinstance(sample, InstanceSample) or isinstance(obs.cluster, Unavailable):
        return ()
    want = wanted_logical(obs, memory)
    if not want:
        return ()
    if not sample.in_recovery:
        names = {s.name for s in sample.slots}
        missing = tuple(slot for name, slot in sorted(want.items()) if name not in names)
        anew = tuple(slot.name for slot in missing if slot.name in published(obs.cluster))
        return (TendLogicalSlots(missing, anew),) if missing else ()
    if not on_the_leaders_line(obs, memory):
        return ()
    told, limit = published(obs.cluster), sample.replay_lsn or Lsn(0)
    moves = {}
    for name, slot in _here(obs, want).items():
        at = slot.confirmed_flush_lsn
        if slot.active or slot.failover or at is None or name not in told:
            continue
        target = min(Lsn(told[name]), limit, Lsn(at.value + STEP_BYTES))
        if target > at:
            moves[name] = (slot.database or "", target)
    return (TendLogicalSlots(advance=moves),) if moves else ()


# --- copying ------------------------------------------------------------------------------------------


def missing(obs: Observation, memory: Memory) -> tuple[PermanentSlot, ...]:
    """Slots that the leader has and this standby has not."""
    sample = obs.instance.sample
    if isinstance(obs.cluster, Unavailable) or not isinstance(sample, InstanceSample):
        return ()
    want, told = wanted_logical(obs, memory), published(obs.cluster)
    there = {s.name for s in sample.slots}
    return tuple(slot for name, slot in sorted(want.items()) if name in told and name not in there)


def may_copy(obs: Observation, memory: Memory) -> CopySlots | None:
    """The restart that brings missing slots, when nothing speaks against it now."""
    sample, cluster, state = obs.instance.sample, obs.cluster, memory.logical
    since = state.missing_since
    if isinstance(cluster, Unavailable) or cluster.leader is None or since is None or obs.settings.pause:
        return None
    assert isinstance(sample, InstanceSample)
    if request_in_force(obs, cluster) is not None:
        return None  # the candidate of a switchover has to stream
    told = published(cluster)
    slots = tuple(
        s
        for s in missing(obs, memory)
        if s.name not in state.refused or state.refused[s.name][1] != told[s.name]
    )
    turn = sorted(m.name for m in cluster.members if m.name != cluster.leader.name).index(obs.me.name)
    late = obs.now >= since + turn * TURN_S + WAIT_FOR_OTHERS_S
    others_run = late or all(m.state == "running" for m in cluster.members)
    in_turn = obs.now >= max(since + turn * TURN_S, state.copy_not_before)
    # The leader has to hear from this standby what to keep: by a stream, through a slot, with the files as
    # they should be (hot_standby_feedback).
    heard = sample.walreceiver_status == "streaming" and sample.walreceiver_slot is not None
    if not slots or not in_turn or not others_run or not heard or obs.instance.config_outdated:
        return None
    return CopySlots(slots, cluster.leader.name, common.upstream(obs) or cluster.leader.name)


def note(obs: Observation, memory: Memory) -> str | None:
    """For people: which slots would be lost with this leader, and why."""
    why = "; ".join(why for why, _ in memory.logical.refused.values())
    if why:
        return f"logical slots not copied: {why}"
    return (
        f"logical slots not safe after a failover yet: {', '.join(u)}" if (u := unsafe(obs, memory)) else None
    )


# --- are copies safe? ---------------------------------------------------------------------------------


def check(obs: Observation, memory: Memory) -> tuple[CheckSlots, ...]:
    """Ask the leader, while a copy is not known to be safe."""
    names = unsafe(obs, memory)
    cluster = obs.cluster
    due = CHECK not in obs.background and obs.now >= memory.logical.checked_at + CHECK_EVERY_S
    if not names or not due or isinstance(cluster, Unavailable) or cluster.leader is None:
        return ()
    feedback = feedback_slot(cluster, obs.me.name)
    return (CheckSlots(names, cluster.leader.name, feedback),) if feedback is not None else ()


def unsafe(obs: Observation, memory: Memory) -> tuple[str, ...]:
    """Copies on this standby that may lack what decoding needs."""
    if obs.instance.serves_as_primary:
        return ()
    here = _here(obs, wanted_logical(obs, memory))
    return tuple(sorted(n for n, s in here.items() if not s.failover and n not in memory.logical.safe))


def with_doubts(obs: Observation, memory: Memory, promotion: Decision) -> Decision:
    """A promotion, with the slots whose consumers may have trouble afterwards."""
    names = ", ".join(unsafe(obs, memory))
    if not names:
        return promotion
    warning = f"logical slots that may not be safe to use after the promotion: {names}"
    line = f"{promotion.line or promotion.reason}\n{warning}"
    return replace(promotion, reason=f"{promotion.reason}; {warning}", line=line)


def _not_newer(one: int, other: int) -> bool:
    """Transaction ids go round in 32 bits."""
    return ((other - one) & 0xFFFFFFFF) < 1 << 31


# --- memory -------------------------------------------------------------------------------------------


def remember(obs: Observation, memory: Memory) -> Memory:
    """What is seen of logical slots in this step, and what finished work says about them."""
    if not obs.settings.permanent_slots and memory.logical == SlotMemory():
        return memory
    state = memory.logical
    for result in obs.finished:
        state = _after_work(obs, state, result)
    sample = obs.instance.sample
    if isinstance(obs.cluster, Unavailable) or not isinstance(sample, InstanceSample):
        return evolve(memory, logical=state)
    lacks = sample.in_recovery and bool(missing(obs, memory))
    since = obs.now if state.missing_since is None else state.missing_since
    state = replace(
        state,
        missing_since=since if lacks else None,
        refused=state.refused if lacks else {},
    )
    return evolve(memory, logical=_with_safe(obs, memory, state))


def _with_safe(obs: Observation, memory: Memory, state: SlotMemory) -> SlotMemory:
    """Safe once at or behind the horizon that was seen; what is gone, or was copied anew, is not any more."""
    here = _here(obs, wanted_logical(obs, memory))
    reached = {
        name
        for name, horizon in state.horizons.items()
        if name in here and (xmin := here[name].catalog_xmin) is not None and _not_newer(horizon, xmin)
    }
    safe = frozenset((state.safe | reached) & set(here))
    horizons = {name: at for name, at in state.horizons.items() if name in here and name not in safe}
    return replace(state, safe=safe, horizons=horizons)


def _after_work(obs: Observation, state: SlotMemory, result: JobResult) -> SlotMemory:
    if result.kind == TEND and not result.ok:
        return replace(state, not_before=obs.now + PAUSE_S)
    if result.kind == COPY:
        return _after_copy(obs, state, result)
    if result.kind == CHECK:
        return replace(state, checked_at=obs.now, horizons={**_horizons(result), **state.horizons})
    return state


def _horizons(result: JobResult) -> dict[str, int]:
    """Of slots whose rows the leader keeps for this standby from the same moment on, or an earlier one."""
    ours = result.data.get("ours")
    if not result.ok or ours is None:
        return {}
    return {name: at for name, at in result.data["horizons"].items() if _not_newer(ours, at)}


def _after_copy(obs: Observation, state: SlotMemory, result: JobResult) -> SlotMemory:
    told = published(obs.cluster) if not isinstance(obs.cluster, Unavailable) else {}
    refused = {n: (str(why), told.get(n, 0)) for n, why in result.data.get("refused", {}).items()}
    copied = frozenset(result.data.get("copied", ()))
    return replace(
        state,
        copy_not_before=obs.now + obs.settings.loop_wait_s + PAUSE_S,
        refused=refused,
        safe=state.safe - copied,
        checked_at=0.0,
    )
