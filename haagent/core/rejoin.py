"""The way back of a data directory under a leader, as a state that survives the agent. Pure.

Theory. pg_rewind and base backups take long, and agents die. So a try is counted, and written down beside
the data directory, *before* it begins (`KeepRejoin` is the first action of such a decision): whoever starts
next knows which try was cut off and how many there were. Tries have a budget per leader; another leader, or
success, starts afresh. What is discarded is written down by the job before it goes; `recorded` sees to it
that the store gets to know, so that every member's `haagentctl history` can tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from dcs.records import ClusterSnapshot, Discard
from haagent.core.actions import Clone, KeepRejoin, Rewind, TellDiscards
from haagent.core.model import Decision, Memory, Observation, Rejoin, Unavailable, evolve

#: Tries of pg_rewind against one leader before it is given up, or tried once in SPENT_PAUSE_S.
REWIND_TRIES = 3
#: First pause after a failed try, then doubled up to the maximum; seconds.
PAUSE_S, PAUSE_MAX_S = 2.0, 60.0
#: Between two tries once those are spent and nothing else is allowed, seconds.
SPENT_PAUSE_S = 600.0
#: Discards in the store, of all members together; older ones are dropped.
DISCARDS_KEPT = 20

REWIND, CLONE = "rewind", "clone"
_WORDS = {REWIND: "pg_rewind", CLONE: "base backup"}


# --- the state ------------------------------------------------------------------------------------


def begin(memory: Memory, kind: str) -> Memory:
    """A try begins: counted before anything is done."""
    old = memory.rejoin
    return evolve(memory, rejoin=replace(old, under_way=kind, tries=old.tries + 1, stays_out=False))


def failed(memory: Memory, kind: str, now: float, reason: str) -> Memory:
    """A try that `begin` counted has failed."""
    old = memory.rejoin
    pause_s = min(PAUSE_MAX_S, PAUSE_S * 2 ** min(max(0, old.tries - 1), 10))
    text = f"{_WORDS[kind]} failed: {reason}"
    rejoin = replace(old, under_way="", not_before=now + pause_s, reason=text)
    return evolve(memory, rejoin=rejoin, note=f"{text} (try {rejoin.tries})")


def cut_off(obs: Observation, memory: Memory) -> Memory:
    """A try that was begun, and of which nothing is under way and nothing was heard: its agent died."""
    kind = memory.rejoin.under_way
    ended = any(result.kind == kind for result in obs.finished)
    if not kind or ended or obs.job is not None:
        return memory
    return failed(memory, kind, obs.now, "it was cut off with its agent")


def silent(memory: Memory, now: float, reason: str) -> Memory:
    """The leader could not be asked how its history and ours fit: no try of anything."""
    old = memory.rejoin
    pause_s = min(PAUSE_MAX_S, PAUSE_S * 2 ** min(old.unanswered, 10))
    rejoin = replace(old, unanswered=old.unanswered + 1, not_before=now + pause_s, reason=reason)
    return evolve(memory, rejoin=rejoin, note=reason)


def spent(memory: Memory) -> bool:
    """No more tries of pg_rewind, unless nothing else is left."""
    return memory.rejoin.tries >= REWIND_TRIES


def rewind_pause_s(memory: Memory, now: float) -> float:
    """How long before the next try of pg_rewind; the causes of failures that go on may pass, but slowly."""
    extra_s = SPENT_PAUSE_S if spent(memory) else 0.0
    return max(0.0, memory.rejoin.not_before + extra_s - now)


# --- on the disk ----------------------------------------------------------------------------------


def durable(rejoin: Rejoin) -> Rejoin:
    """What of it the next life of this agent has to know; `Rejoin()` when that is nothing.

    That histories fit is not: to look again costs nothing."""
    if not (rejoin.tries or rejoin.diverged or rejoin.under_way):
        return Rejoin()
    return replace(rejoin, settled_epoch=0, as_it_is_epoch=0, unanswered=0)


def encode(rejoin: Rejoin) -> str:
    """The text of the state file."""
    return json.dumps({name: value for name, value in vars(rejoin).items() if value})


def decode(text: str, now: float) -> Rejoin:
    """From the text of the state file. Its clock may be that of an earlier boot. Raises ValueError."""
    data = json.loads(text)
    default = Rejoin()
    known = vars(default)
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    for name, value in data.items():
        kind = type(known.get(name))
        if name in known and not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{name} is {value!r}")
    read = replace(default, **{name: value for name, value in data.items() if name in known})
    return replace(read, not_before=min(read.not_before, now + PAUSE_MAX_S))


# --- what goes with every decision ----------------------------------------------------------------


def recorded(obs: Observation, decision: Decision) -> Decision:
    """The decision, with what has to be written down: before it, where it discards or copies anything."""
    kept, told = _to_keep(obs, decision), _to_tell(obs)
    if kept is None and told is None:
        return decision
    first = (kept,) if kept is not None and kept.required else ()
    last = (action for action in (kept, told) if action is not None and action not in first)
    return replace(decision, actions=(*first, *decision.actions, *last))


def _begins_a_try(decision: Decision) -> bool:
    """By itself, that is: what an operator wants waits for no disk that may be full."""
    return any(
        isinstance(action, Rewind) or (isinstance(action, Clone) and not action.asked)
        for action in decision.actions
    )


def _to_keep(obs: Observation, decision: Decision) -> KeepRejoin | None:
    wanted = durable(decision.memory.rejoin)
    if obs.instance.storage_hangs or wanted == obs.instance.kept_rejoin:
        return None
    return KeepRejoin(wanted, required=_begins_a_try(decision))


def _to_tell(obs: Observation) -> TellDiscards | None:
    news, cluster = obs.instance.untold_discards, obs.cluster
    if not news or isinstance(cluster, Unavailable):
        return None
    return TellDiscards(_merged(cluster, obs), cluster.discards_version, news)


def _merged(cluster: ClusterSnapshot, obs: Observation) -> tuple[Discard, ...]:
    known = {discard.key: discard for discard in (*cluster.discards, *obs.instance.untold_discards)}
    return tuple(known.values())[-DISCARDS_KEPT:]


# --- for people -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RejoinView:
    """`state`: one of STATES."""

    state: str
    tries: int = 0
    reason: str = ""
    #: Seconds until the next try; 0 when it may begin at once.
    next_try_in_s: float = 0.0


#: Nothing to do.
NOT_NEEDED = RejoinView("none")
#: All of them, for metrics.
STATES = ("none", "comparing", "rewinding", "cloning", "waiting", "operator")
_JOB_STATES = {"rewind": "rewinding", "clone": "cloning", "compare histories": "comparing"}


def view(obs: Observation, memory: Memory) -> RejoinView:
    """Where this member is on its way back."""
    rejoin = memory.rejoin
    left_s = rewind_pause_s(memory, obs.now) if rejoin.tries else 0.0
    return RejoinView(_state(obs, memory, left_s), rejoin.tries, rejoin.reason, left_s)


def _state(obs: Observation, memory: Memory, left_s: float) -> str:
    job, rejoin = obs.job.kind if obs.job is not None else "", memory.rejoin
    if job in _JOB_STATES:
        return _JOB_STATES[job]
    if rejoin.stays_out:
        return "operator"
    return "waiting" if rejoin.diverged or (rejoin.tries and left_s > 0) else "none"
