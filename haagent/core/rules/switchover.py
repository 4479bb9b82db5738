"""A planned switchover, or a manual failover from a living primary (contract 2.7, rule 3).

    request ─► checks of the candidate ─► CHECKPOINT ─► checks again ─► fast stop
                   │ not fit: wait ≤ loop_wait, then 412                    │
                   ▼                                                        ▼
                cleared                 does the candidate have the shutdown checkpoint?
                                          ├─ no:  start again, answer 503
                                          └─ yes: close the epoch, release the key

"Checks again" also means: the candidate has written what the CHECKPOINT wrote; one that hangs is not behind
while nothing is written. The epoch is closed before the key is released; from then on only a new acquisition
makes us writable (H6).
"""

from __future__ import annotations

from dataclasses import replace

from dcs.records import FailoverRequest
from haagent.core.actions import (
    AskPeers,
    BeginScheduled,
    Checkpoint,
    ClearFailover,
    Guard,
    StartPrimary,
    StopInstance,
)
from haagent.core.candidate import best_successor, end_of_wal, flushed_by, handover_refusal, has_received
from haagent.core.cascade import reached_through_another
from haagent.core.memory import begin_handover
from haagent.core.model import Decision, Handover, Memory, Observation, PeerAnswer, PeerSilent, evolve
from haagent.core.rules import common
from haagent.core.rules.leading import clean_stop, release
from haagent.core.schedule import Timing, timing
from postgres_ctl.facts import ControlData, Lsn

#: How long the stopped primary waits for its successor to prove the shutdown checkpoint, seconds.
PROOF_S = 3.0
#: An answer of a candidate counts this long before a stop; more than it may take to answer, seconds.
RECENT_S = 2.5
#: A candidate that streams from another standby is asked this often how far it is, seconds.
ASK_EVERY_S = 0.2


def on_the_primary(obs: Observation, memory: Memory) -> Decision | None:
    """The request, as the holder of the key sees it; None when there is nothing to do."""
    if not common.owns_key(obs) or (not obs.lease.holds(obs.now) and not obs.lease.disarmed):
        return None
    if memory.handover is not None:
        return _under_way(obs, memory, memory.handover)
    request = common.view(obs).failover
    if request is None or not obs.instance.serves_as_primary or not obs.instance.answers:
        return None
    if request.due_at is not None and (obs.settings.pause or timing(obs, request.due_at) is Timing.EARLY):
        return None
    if request.leader is not None and request.leader != obs.me.name:
        return _clear(memory, request, 412, "leader name does not match")
    if request.candidate == obs.me.name:
        return _clear(memory, request, 412, "Switchover target and source are the same")
    if request.due_at is not None:
        return _begin_scheduled(obs, memory, request, request.due_at)
    return _check_candidate(obs, memory, request)


def _clear(memory: Memory, request: FailoverRequest, status: int, text: str) -> Decision:
    action = ClearFailover(request.version, text, status)
    return Decision(
        "switchover.cleared", text, evolve(memory, request_seen=None, handover=None), (action,), 0.0
    )


def _begin_scheduled(obs: Observation, memory: Memory, request: FailoverRequest, due_at: float) -> Decision:
    if timing(obs, due_at) is Timing.LATE:
        text = f"the switchover scheduled at {request.scheduled_at} could not begin in time: dropped"
        return _clear(memory, request, 503, text)
    guard = Guard(epoch=common.epoch_of(obs), pid=obs.instance.pid)
    action = BeginScheduled(guard, request.version, request.leader, request.candidate)
    reason = f"the switchover scheduled at {request.scheduled_at} is due"
    return Decision("switchover.due", reason, memory, (action,), 0.0)


def candidates(obs: Observation, request: FailoverRequest) -> tuple[str, ...]:
    if request.candidate is not None:
        return (request.candidate,)
    return tuple(m.name for m in common.view(obs).members if m.name != obs.me.name and m.api_url)


def stale(obs: Observation, name: str) -> bool:
    peer = obs.peers.get(name)
    member = common.view(obs).member(name)
    can_be_asked = member is not None and member.api_url is not None
    return can_be_asked and (peer is None or peer.asked_at < obs.now - RECENT_S)


def _check_candidate(obs: Observation, memory: Memory, request: FailoverRequest) -> Decision:
    ask = tuple(n for n in candidates(obs, request) if stale(obs, n))
    if ask:
        return Decision("switchover.ask", f"asking {', '.join(ask)}", memory, (AskPeers(ask),), common.SOON_S)
    forced = not request.is_switchover
    name = request.candidate or best_successor(obs, common.view(obs))
    refusal = (
        handover_refusal(obs, common.view(obs), name, forced)
        if name is not None
        else "no good candidates have been found"
    )
    if refusal is not None or name is None:
        return wait_for_candidate(obs, memory, request, refusal or "")
    guard = Guard(epoch=common.epoch_of(obs), pid=obs.instance.pid)
    reason = f"handing over, {name} is fit: checkpoint first, so that the stop is quick"
    began = begin_handover(obs, memory, request.version, name)
    return Decision("switchover.begin", reason, began, (Checkpoint(guard, background=False),))


def wait_for_candidate(obs: Observation, memory: Memory, request: FailoverRequest, refusal: str) -> Decision:
    """A candidate that does not stream yet is waited for, at most loop_wait; nothing was stopped."""
    seen = memory.request_seen
    since = seen[1] if seen is not None and seen[0] == request.version else obs.now
    if obs.now - since >= obs.settings.loop_wait_s:
        action = "switchover" if request.is_switchover else "failover"
        return _clear(memory, request, 412, f"{action} is not possible: {refusal}")
    waiting = evolve(memory, request_seen=(request.version, since))
    reason = f"waiting for the candidate: {refusal}"
    # A candidate that was just starting may answer now, long before its silence grows old.
    silent = tuple(n for n in candidates(obs, request) if isinstance(obs.peers.get(n), PeerSilent))
    ask = (AskPeers(silent),) if silent else ()
    return Decision("switchover.wait", reason, waiting, ask, common.SOON_S, heartbeat=True)


# --- after the checks ---------------------------------------------------------------------------


def _under_way(obs: Observation, memory: Memory, handover: Handover) -> Decision | None:
    request = common.view(obs).failover
    if obs.instance.serves_as_primary:
        return _before_the_stop(obs, memory, handover, request)
    if obs.instance.alive:
        return common.wait("switchover.stopping", "PostgreSQL is stopping", memory, common.SOON_S)
    return _after_the_stop(obs, memory, handover, request)


def _before_the_stop(
    obs: Observation, memory: Memory, handover: Handover, request: FailoverRequest | None
) -> Decision | None:
    """CHECKPOINT is done: look once more, then stop. A withdrawn request ends the hand-over."""
    if request is None or request.version != handover.version:
        gone = evolve(memory, handover=None)
        return Decision("switchover.withdrawn", "the request is gone: staying primary", gone, (), 0.0)
    if handover.stopping_since is not None:
        return _clear(memory, request, 503, "Switchover failed: PostgreSQL could not be stopped")
    if stale(obs, handover.candidate):
        return Decision(
            "switchover.ask", "asking again", memory, (AskPeers((handover.candidate,)),), common.SOON_S
        )
    refusal = handover_refusal(obs, common.view(obs), handover.candidate, forced=not request.is_switchover)
    if refusal is not None:
        return wait_for_candidate(obs, evolve(memory, handover=None), request, refusal)
    return _until_it_writes(obs, memory, handover, request) or _stop(obs, memory, handover)


def _until_it_writes(
    obs: Observation, memory: Memory, handover: Handover, request: FailoverRequest
) -> Decision | None:
    """A standby that hangs is not behind while nothing is written: the CHECKPOINT was, so it shows now."""
    to_write = handover.to_write or (end_of_wal(obs), obs.now)
    flushed = flushed_by(obs, handover.candidate)
    if not request.is_switchover or (flushed is not None and flushed >= to_write[0]):
        return None
    if obs.now - to_write[1] >= PROOF_S:
        hangs = f"{handover.candidate} streams, but has written no WAL for {PROOF_S:g} s: it hangs"
        return _clear(memory, request, 412, f"switchover is not possible: {hangs}")
    waiting = evolve(memory, handover=replace(handover, to_write=to_write))
    reason = f"waiting for {handover.candidate} to write"
    return Decision(
        "switchover.flush", reason, waiting, _ask_cascade(obs, handover.candidate), 0.05, heartbeat=True
    )


def _ask_cascade(obs: Observation, name: str) -> tuple[AskPeers, ...]:
    """No walsender here tells how far it is: it has to say so itself."""
    peer = obs.peers.get(name)
    due = reached_through_another(obs, name) is not None and peer is not None
    return (AskPeers((name,)),) if due and peer is not None and peer.asked_at < obs.now - ASK_EVERY_S else ()


def _stop(obs: Observation, memory: Memory, handover: Handover) -> Decision:
    stopping = evolve(memory, handover=replace(handover, stopping_since=obs.now))
    reason = f"stopping PostgreSQL to hand over, {handover.candidate} is fit"
    stop = StopInstance("fast", "switchover", common.SENDERS_GRACE_S, before_stop=True)
    return Decision("switchover.stop", reason, stopping, (stop,))


def _after_the_stop(
    obs: Observation, memory: Memory, handover: Handover, request: FailoverRequest | None
) -> Decision | None:
    """Rule 3: the key goes only when the successor has the shutdown checkpoint; else we come back."""
    since = handover.proving_since if handover.proving_since is not None else obs.now
    forced = request is not None and not request.is_switchover
    control = obs.instance.control
    if not isinstance(control, ControlData) or not clean_stop(obs):
        return _come_back(obs, memory, handover, request, "PostgreSQL did not shut down cleanly")
    peer = obs.peers.get(handover.candidate)
    if has_received(peer, control.checkpoint_lsn, obs.instance.timeline):
        return _release(obs, memory, handover, control.checkpoint_lsn, "has everything")
    if obs.now - since >= PROOF_S:
        if forced and isinstance(peer, PeerAnswer):
            return _release(
                obs, memory, handover, control.checkpoint_lsn, "is behind, waived by a manual failover"
            )
        said = (
            f"it does not answer: {peer.cause}"
            if isinstance(peer, PeerSilent)
            else "it has not received all WAL"
        )
        return _come_back(obs, memory, handover, request, f"{handover.candidate} was not ready: {said}")
    action = AskPeers((handover.candidate,))
    fresh = peer is not None and peer.asked_at > obs.now - 0.05
    proving = evolve(memory, handover=replace(handover, proving_since=since))
    return Decision("switchover.prove", "waiting for the proof", proving, () if fresh else (action,), 0.05)


def _release(obs: Observation, memory: Memory, handover: Handover, optime: Lsn, why: str) -> Decision:
    reason = f"{handover.candidate} {why}: releasing the leader key"
    released = evolve(memory, handover=None, clean_release=True)
    return Decision("switchover.release", reason, released, release(obs, optime))


def _come_back(
    obs: Observation, memory: Memory, handover: Handover, request: FailoverRequest | None, why: str
) -> Decision:
    clear = (ClearFailover(request.version, f"Switchover failed: {why}", 503),) if request is not None else ()
    guard = Guard(epoch=common.epoch_of(obs), pid=0)
    reason = f"the hand-over failed, coming back as primary: {why}"
    back = evolve(memory, handover=None, request_seen=None)
    return Decision("switchover.come-back", reason, back, (StartPrimary(guard), *clear))
