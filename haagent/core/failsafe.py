"""Failsafe mode: a primary that the DCS does not answer goes on while every member promises to stay out of
the race. Pure. Contract 2.11; hazard H19; docs/decisions/0006-failsafe.md.

Why it is safe
- Whoever may lead is named in the key `failsafe`, which only the holder of the leader key writes, and only
  while its own lease is proven by the DCS alone. A member that is not named may not lead.
- The leader asks everybody that the key may name, also by a write whose outcome it does not know. All have to
  accept; the lease then counts from before the first was asked, as it does for a renewal.
- A member accepts only while it neither leads nor is about to take the key; the promise is on its disk before
  it answers, and is looked at again in the very moment in which it would take the key.
- So from the promise on until it has run out, no member can become leader; and by then the guardian of the
  one that asked has stopped PostgreSQL, unless all have promised anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcs.records import ClusterSnapshot
from haagent.core.model import LeaseFacts, Memory, Observation, PromiseFacts, Unavailable, unreadable
from haagent.core.settings import Settings, parse_duration_s

#: A peer may need so long for its answer (contract 2.1) and gets it, where the lease leaves it; seconds.
PEER_ANSWER_S = 2.0
#: Kept of what is left of the lease, for the guardian's acknowledgement, seconds.
ARMING_S = 0.1
#: After a round in which somebody did not accept, the next one begins so much later, seconds.
AGAIN_S = 0.25
#: No caller gets a longer promise, seconds; the answer says how long it is.
LONGEST_PROMISE_S = 600.0
#: All that an accepting member says (contract 3.6).
ACCEPTED = "Accepted"


# --- the leader ---------------------------------------------------------------------------------


def members_to_write(obs: Observation) -> Mapping[str, str] | None:
    """What the key `failsafe` should say now; None when it says so, or cannot be changed now.

    Never while promises of those named now carry our lease: whoever is new has promised nothing. With the
    mode off the key is emptied: a key that stays would tell a later member, wrongly or not, to stay out."""
    cluster = obs.cluster
    if isinstance(cluster, Unavailable) or obs.lease.failsafe_until is not None:
        return None
    broken, now = unreadable(cluster, "failsafe"), cluster.failsafe or {}
    if not obs.settings.failsafe_mode:
        return {} if now else None
    urls = {m.name: m.api_url for m in cluster.members if m.api_url}
    unknown = {name: url for name, url in now.items() if unreadable(cluster, f"members/{name}")}
    wanted = dict(sorted((unknown | urls).items()))
    return wanted if obs.me.name in wanted and (wanted != now or broken) else None


def attempt_s(left_s: float) -> float:
    """How long one member is waited for when the lease ends in `left_s`: half of that, so that a silent one
    can be asked again, but what a slow one needs before that; seconds."""
    usable_s = left_s - ARMING_S
    return min(usable_s, max(PEER_ANSWER_S, usable_s / 2))


#: Headers of ours beside contract 3.6: who answers, and how long it stays out of the race, seconds.
MEMBER_HEADER, PROMISE_HEADER = "haagent-member", "haagent-promise"


@dataclass(frozen=True)
class Reply:
    """What a member answered: HTTP status, text, and how it names itself and its promise, if it does."""

    status: int
    text: str
    member: str | None = None
    promised_s: float | None = None


def reply_of(status: int, text: str, headers: Mapping[str, str]) -> Reply:
    """What was answered; a promise that cannot be read counts as none at all."""
    told = headers.get(PROMISE_HEADER)
    length_s = None if told is None else parse_duration_s(told) or 0.0
    return Reply(status, text, headers.get(MEMBER_HEADER), length_s)


def refusal(name: str, reply: Reply) -> str | None:
    """Why the reply of `name` is no acceptance; None when it is one.

    Patroni's members do not tell who they are; ours do, so that a wrong address is noticed."""
    if reply.status != 200 or reply.text.strip() != ACCEPTED:
        return f"{name} does not accept: {reply.status} {reply.text.strip()[:100]}"
    if reply.member is not None and reply.member != name:
        return f"another member answers for {name}: {reply.member}"
    return None


def promised_s(settings: Settings, replies: Mapping[str, Reply]) -> float:
    """How long all of them stay out: the shortest promise; who does not say applies the ttl. Seconds."""
    told = [r.promised_s for r in replies.values() if r.promised_s is not None]
    return min([settings.ttl_s, *told])


# --- the member that is asked -------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """`POST /failsafe`: who asks, and the ttl it applies, where it says so; seconds."""

    name: str
    ttl_s: float | None = None


def question_of(body: Mapping[str, Any]) -> Question | None:
    """The body of contract 2.11; None when it does not say who asks."""
    name, ours = body.get("name"), body.get("haagent")
    ttl = ours.get("ttl") if isinstance(ours, Mapping) else None
    return Question(name, parse_duration_s(ttl)) if isinstance(name, str) and name else None


def wanted_promise_s(settings: Settings, question: Question) -> float:
    """The largest ttl that either side applies, seconds."""
    return max(settings.ttl_s, min(question.ttl_s or 0.0, LONGEST_PROMISE_S))


def may_not_promise(obs: Observation | None, lease: LeaseFacts, question: Question) -> tuple[int, str] | None:
    """Why this member does not promise it: HTTP status and text (contract 3.6); None when it does.

    `lease` is of this very moment: whoever holds the key, or may hold it, is bound by no promise."""
    if obs is None or not obs.settings.failsafe_mode:
        return 502, "failsafe mode is not enabled"
    if lease.epoch is not None or obs.instance.serves_as_primary:
        return 500, "Running as a leader"
    known = None if isinstance(obs.cluster, Unavailable) else obs.cluster.leader
    if question.name == obs.me.name:
        return 500, "this is the member that asks"
    if known is not None and known.name != question.name:
        return 500, f"{known.name} is the leader"
    return None


def is_active(lease: LeaseFacts, promise: PromiseFacts, now: float) -> bool:
    """Promises carry this leader, or this member has given one that is in force."""
    carried = lease.failsafe_until is not None and now < lease.failsafe_until
    return carried or (promise.to is not None and lease.epoch is None and now < promise.until)


# --- whoever wants to lead ----------------------------------------------------------------------


def not_a_member(obs: Observation, memory: Memory, cluster: ClusterSnapshot) -> str | None:
    """Why the key `failsafe` keeps this member from leading (contract 2.4.8); None when it does not.

    Also with the mode off, as long as the key is not emptied: the last leader may not know yet that it is
    off, and go on by the promises of those the key names. Patroni's leaders never empty it."""
    broken = unreadable(cluster, "failsafe")
    if broken is not None and obs.settings.failsafe_mode:
        return f"whom the last leader asks in failsafe mode cannot be read from the store: {broken}"
    if not cluster.failsafe or obs.me.name in cluster.failsafe:
        return None
    if not obs.settings.failsafe_mode and _left_by_patroni(memory):
        return None
    named = ", ".join(sorted(cluster.failsafe))
    return f"the last leader asks {named} in failsafe mode, and may go on without asking {obs.me.name}"


def leaves_out(cluster: ClusterSnapshot | Unavailable, name: str) -> bool:
    """The key `failsafe` does not name this member: it will not lead, whatever it would like to."""
    return not isinstance(cluster, Unavailable) and name not in (cluster.failsafe or (name,))


def _left_by_patroni(memory: Memory) -> bool:
    last = next((m for m in memory.last_members if m.name == memory.last_leader), None)
    return last is not None and not last.is_haagent


def promise_in_force(obs: Observation) -> str | None:
    """What this member has promised and for how much longer; None when nothing binds it."""
    left_s = obs.promise.until - obs.now
    if left_s <= 0:
        return None
    if obs.promise.to is None:
        return f"what it promised in failsafe mode is not known; any promise ends in {left_s:.1f} s"
    return f"it promised {obs.promise.to} in failsafe mode not to lead for {left_s:.1f} s more"
