"""A key of the store that is there and cannot be understood is an unknown fact, not an absent one."""

from __future__ import annotations

from dataclasses import replace

from dcs.records import Broken, ClusterSnapshot, FailoverRequest, TimelineClaim
from haagent.core.actions import AnswerRequest, WriteClaim
from haagent.core.candidate import standing
from haagent.core.model import Memory, OperatorRequest
from haagent.core.settings import Settings
from tests.unit.core_facts import (
    EPOCH,
    NOW,
    REMEMBERS,
    answer,
    cluster,
    empty,
    following,
    history,
    judge,
    kinds,
    leading,
    lost_stream,
    member,
    no_answer,
    obs,
    paused,
    primary,
    racing,
    sample,
    standby,
)


def spoilt(key: str, view: ClusterSnapshot) -> ClusterSnapshot:
    return replace(view, broken=(Broken(key, "not JSON"),))


NOBODY_KNOWN = spoilt("leader", cluster(leader=None))


def test_an_unreadable_leader_is_not_a_free_key() -> None:
    decision = judge(racing(lost_stream(), NOBODY_KNOWN, peers=(answer("pg0"), answer("pg2"))))
    assert (decision.rule, decision.actions) == ("guard.leader-unreadable", ())
    assert decision.memory.leader_missing_since is None


def test_an_unreadable_leader_does_not_stop_a_primary_whose_lease_is_proven() -> None:
    decision = judge(leading(primary(), NOBODY_KNOWN))
    assert (decision.rule, decision.actions) == ("guard.leader-unreadable", ())


def test_while_the_leader_is_unreadable_a_request_is_refused() -> None:
    decision = judge(following(standby(), NOBODY_KNOWN, request=OperatorRequest(3, "restart")))
    assert decision.rule == "guard.leader-unreadable"
    assert kinds(decision) == (AnswerRequest,)


def test_an_unreadable_leader_did_not_vanish_in_a_pause() -> None:
    decision = judge(following(standby(), NOBODY_KNOWN, settings=paused()), REMEMBERS)
    assert decision.memory.lost_in_pause is None


def test_an_unreadable_initialize_is_no_invitation_to_make_a_cluster() -> None:
    view = spoilt("initialize", cluster(leader=None, initialize=None, members=(), status=None))
    assert judge(obs("pg1", empty(), view)).rule == "bootstrap.wait"
    assert judge(obs("pg1", standby(), view)).rule != "start.replica-first"


def test_with_unreadable_timelines_a_running_primary_does_not_take_the_key() -> None:
    view = spoilt("history", cluster(leader=None, history=None))
    decision = judge(obs("pg1", primary(), view, peers=(answer("pg0"), answer("pg2"))))
    assert (decision.rule, decision.actions) == ("race.history-unreadable", ())


def test_with_unreadable_timelines_nobody_passes_the_check_of_them() -> None:
    view = spoilt("history", cluster(leader=None, history=None))
    for settings in (Settings(check_timeline=True), Settings()):
        seen = racing(lost_stream(), view, settings=settings)
        assert "timeline" in {r.rule for r in standing(seen, REMEMBERS).refusals}


def test_with_unreadable_claims_nobody_leads_but_by_an_operators_word() -> None:
    """H15: a number might be made a second time."""
    view = spoilt("haagent_claims", cluster(leader=None, members=(member("pg1"), member("pg2"))))
    assert "timeline.claims" in {r.rule for r in standing(racing(lost_stream(), view), REMEMBERS).refusals}
    told = replace(view, failover=FailoverRequest(None, "pg1", None, 9))
    assert standing(racing(lost_stream(), told), REMEMBERS).may_lead


def test_where_its_claim_was_lost_a_promotion_claims_the_timeline_it_comes_from_as_well() -> None:
    """Else a promotion that fails after its claim leaves this member's own WAL diverged, for ever."""
    told = cluster(history=history(1), failover=FailoverRequest(None, "pg0", None, 9))
    known = replace(told, claims=(TimelineClaim(2, "pg0", 3),))
    says = sample(timeline=2, walreceiver_status=None, replication_state=None)
    second = replace(lost_stream(), sample=says)
    for view, mine in ((spoilt("haagent_claims", told), 2), (told, 2), (known, None)):
        decision = judge(leading(second, view, peers=(answer("pg1"), answer("pg2"))))
        claim = decision.actions[0]
        assert isinstance(claim, WriteClaim)
        assert (decision.rule, claim.timeline, claim.mine) == ("promote.now", 3, mine)


def test_unreadable_claims_are_written_anew_by_the_leader() -> None:
    decision = judge(leading(primary(), spoilt("haagent_claims", cluster())))
    assert WriteClaim(1, EPOCH, 0) in decision.actions


def test_an_unreadable_member_is_not_gone() -> None:
    """H4: its session may live, and its server may be writable."""
    members = tuple(member(n) for n in ("pg0", "pg1", "pg2"))
    view = spoilt("members/pg0", cluster(leader=None, members=members[1:]))
    memory = Memory(leader_missing_since=NOW - 1, last_leader="pg0", last_epoch=5, last_members=members)
    assert standing(racing(lost_stream(), view), memory).ask == ("pg0",)
    quiet = racing(lost_stream(), view, peers=(no_answer("pg0"), answer("pg2")))
    assert "former-leader" in {r.rule for r in standing(quiet, memory).refusals}
