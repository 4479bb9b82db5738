"""Any bytes under any key of the store, up to the decision: no crash, no belief they do not say.

A key that is there and cannot be understood is an unknown fact: nothing new is done on it (rule 10), and what
would follow from its absence is not done either.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dcs import codec
from dcs.codec import RawKey, build_snapshot
from dcs.records import ClusterSnapshot, FailoverRequest
from haagent.core import actions as a
from haagent.core.candidate import standing
from haagent.core.decide import decide
from haagent.core.memory import absorb
from haagent.core.model import Decision, LeaseFacts, Memory, Observation
from haagent.core.operations import explain
from haagent.core.settings import Settings
from tests.property.raw_store import GARBAGE, STORED, any_bytes, garbage
from tests.property.strategies import INSTANCES, examples
from tests.unit.core_facts import NOW, OPTIME, answer, lost_stream, member, no_answer, obs, primary

ME = "pg1"
MEMORIES = (
    Memory(),
    Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=5),
    Memory(leader_missing_since=NOW - 500, last_leader="pg0", last_epoch=5, last_members=(member("pg0"),)),
    Memory(bootstrap="ready"),
)
PEERS = ((), (answer("pg0"), answer("pg2")), (no_answer("pg0"), answer("pg2")))


def snapshot(**changes: bytes | None) -> ClusterSnapshot:
    """The healthy store with these keys instead; None: not there."""
    raw = {**STORED, **changes}
    return build_snapshot({k: RawKey(v, 7, 5, "s") for k, v in raw.items() if v is not None}, 100)


def spoilt(key: str, value: bytes, leader: bytes | None = b"pg0") -> ClusterSnapshot:
    return snapshot(**{"leader": leader, key: value})


def kinds(decision: Decision) -> set[type[a.Action]]:
    return {type(action) for action in decision.actions}


@st.composite
def views(draw: st.DrawFn) -> tuple[Observation, Memory]:
    """A member before a store of which up to three keys hold anything."""
    keys = draw(st.lists(st.sampled_from(sorted(STORED)), max_size=3, unique=True))
    leader = draw(st.sampled_from([None, b"pg0", ME.encode()]))
    raw: dict[str, bytes | None] = {"leader": leader} | {key: draw(any_bytes) for key in keys}
    seen = obs(ME, draw(st.sampled_from(INSTANCES)), snapshot(**raw), peers=draw(st.sampled_from(PEERS)))
    if draw(st.booleans()):
        seen = replace(seen, lease=LeaseFacts("s", 5, NOW + 20))
    settings = Settings(pause=draw(st.booleans()), check_timeline=draw(st.booleans()))
    return replace(seen, settings=settings), draw(st.sampled_from(MEMORIES))


@given(views())
@examples(300)
def test_whatever_the_store_holds_a_decision_comes_out(seen: tuple[Observation, Memory]) -> None:
    observation, memory = seen
    decision = decide(observation, memory)
    assert decision.rule != "none"
    assert explain(observation, memory)["name"] == ME


@given(garbage("leader"), st.sampled_from(INSTANCES), st.sampled_from(MEMORIES), st.booleans())
@examples(150)
def test_a_leader_key_that_cannot_be_read_is_not_a_free_key(
    value: bytes, instance: object, memory: Memory, pause: bool
) -> None:
    view = spoilt("leader", value)
    seen = obs(ME, INSTANCES[0], view, peers=PEERS[1])
    seen = replace(seen, instance=instance, settings=Settings(pause=pause))  # type: ignore[arg-type]
    decision = decide(seen, memory)
    assert not kinds(decision) & {a.TakeLeader, a.Promote, a.StartPrimary, a.ReleaseLeader, a.Initdb, a.Exit}
    assert decision.memory.leader_missing_since == memory.leader_missing_since
    assert decision.memory.lost_in_pause == memory.lost_in_pause


@given(garbage("leader"))
@examples(50)
def test_a_proven_lease_is_kept_before_a_leader_key_that_cannot_be_read(value: bytes) -> None:
    """H12: whether it is ours still the keeper finds out, with the store."""
    seen = obs(ME, primary(), spoilt("leader", value), peers=PEERS[1])
    decision = decide(replace(seen, lease=LeaseFacts("s", 5, NOW + 20)), Memory())
    assert decision.actions == ()


@given(garbage("initialize"), st.sampled_from(INSTANCES), st.sampled_from(MEMORIES), st.booleans())
@examples(150)
def test_an_unreadable_initialize_is_not_a_cluster_to_be_made(
    value: bytes, instance: object, memory: Memory, led: bool
) -> None:
    seen = obs(ME, INSTANCES[0], spoilt("initialize", value, b"pg0" if led else None), peers=PEERS[1])
    decision = decide(replace(seen, instance=instance), replace(memory, bootstrap=None))  # type: ignore[arg-type]
    assert not kinds(decision) & {a.CreateInitialize, a.DeleteInitialize, a.Initdb, a.Exit}


@given(garbage("status"), st.sampled_from(MEMORIES))
@examples(100)
def test_an_unreadable_status_is_not_a_position_of_zero(value: bytes, memory: Memory) -> None:
    """Rule 5: how far behind cannot be told, so nobody but an operator's choice goes on."""
    view = spoilt("status", value, None)
    verdict = standing(obs(ME, lost_stream(), view, peers=PEERS[1]), memory)
    assert "lag" in {r.rule for r in verdict.refusals}
    named = replace(view, failover=FailoverRequest(None, ME, None, 9))
    waived = standing(obs(ME, lost_stream(), named, peers=PEERS[1]), memory)
    assert "lag" not in {r.rule for r in waived.refusals}


@given(garbage("history"), st.sampled_from(MEMORIES))
@examples(100)
def test_an_unreadable_history_is_not_a_cluster_on_timeline_zero(value: bytes, memory: Memory) -> None:
    seen = obs(ME, lost_stream(), spoilt("history", value, None), peers=PEERS[1])
    verdict = standing(replace(seen, settings=Settings(check_timeline=True)), memory)
    assert "timeline" in {r.rule for r in verdict.refusals}
    running = decide(obs(ME, primary(), spoilt("history", value, None), peers=PEERS[1]), memory)
    assert a.TakeLeader not in kinds(running)


@given(garbage("failover"), st.sampled_from(INSTANCES), st.sampled_from(MEMORIES))
@examples(100)
def test_an_unreadable_request_is_none(value: bytes, instance: object, memory: Memory) -> None:
    """As if it had not been made, but for the memory of an earlier mark (H18)."""
    for leader in (None, b"pg0", ME.encode()):
        made = obs(ME, INSTANCES[0], spoilt("failover", value, leader), peers=PEERS[1])
        none = obs(ME, INSTANCES[0], snapshot(leader=leader, failover=None), peers=PEERS[1])
        with_it = decide(replace(made, instance=instance), memory)  # type: ignore[arg-type]
        without = decide(replace(none, instance=instance), memory)  # type: ignore[arg-type]
        assert with_it == without
    marked = replace(memory, handover_seen_at=NOW - 1, handover_from="pg0")
    assert absorb(replace(made, cluster=spoilt("failover", value, None)), marked).handover_seen_at == NOW - 1


@given(garbage("haagent_claims"), st.sampled_from(MEMORIES))
@examples(100)
def test_unreadable_claims_let_nobody_make_a_timeline(value: bytes, memory: Memory) -> None:
    """H15: the number might be one that another member made."""
    spoilt_view = spoilt("haagent_claims", value, None)
    verdict = standing(obs(ME, lost_stream(), spoilt_view, peers=PEERS[1]), memory)
    assert "timeline.claims" in {r.rule for r in verdict.refusals}
    assert standing(obs(ME, lost_stream(), snapshot(leader=None), peers=PEERS[1]), memory).may_lead


@given(garbage("members/pg0"))
@examples(100)
def test_an_unreadable_member_is_neither_gone_nor_stopped(value: bytes) -> None:
    """H4: its session may live; it is asked, and while it is silent for a ttl it may still be writable."""
    view = spoilt("members/pg0", value, None)
    known = (member("pg0"), member("pg1"), member("pg2"))
    memory = Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=5, last_members=known)
    seen = obs(ME, lost_stream(), view, peers=(answer("pg2"),))
    assert standing(seen, memory).ask == ("pg0",)
    quiet = standing(obs(ME, lost_stream(), view, peers=(no_answer("pg0"), answer("pg2"))), memory)
    assert "former-leader" in {r.rule for r in quiet.refusals}


@given(garbage("members/pg0"), garbage("members/pg2"), st.sampled_from(INSTANCES))
@examples(100)
def test_an_unreadable_member_is_nobody_to_copy_from(one: bytes, two: bytes, instance: object) -> None:
    """Rule 7."""
    view = snapshot(**{"members/pg0": one, "members/pg2": two})
    decision = decide(replace(obs(ME, INSTANCES[0], view), instance=instance), Memory())  # type: ignore[arg-type]
    assert not kinds(decision) & {a.Clone, a.Rewind, a.CheckDivergence}


@given(garbage("config"), st.sampled_from(INSTANCES), st.sampled_from(MEMORIES))
@examples(60)
def test_an_unreadable_configuration_changes_no_decision(
    value: bytes, instance: object, memory: Memory
) -> None:
    """Its last good one is in force already; it is not written anew from a member that leads."""
    for leader in (None, b"pg0"):
        made = replace(obs(ME, INSTANCES[0], spoilt("config", value, leader)), instance=instance)  # type: ignore[arg-type]
        good = replace(made, cluster=snapshot(leader=leader))
        assert decide(made, memory) == decide(good, memory)


def test_the_garbage_is_garbage_and_the_rest_is_sound() -> None:
    assert snapshot().broken == ()
    assert snapshot().status is not None
    assert snapshot().members[0].xlog_location == OPTIME
    for key in GARBAGE:
        for value in GARBAGE[key]:
            assert [b.key for b in spoilt(key, value).broken] == [key], (key, value)
    assert codec.LEADER in GARBAGE
