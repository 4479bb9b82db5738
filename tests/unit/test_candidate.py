"""Who may lead (rule 6): each refusal of the election alone, and that `explain` says the very same.

Every case is a member that could lead but for one fact. Three judges must agree on the rule that stops it:
`standing`, the election through `decide`, and `explain`, which REST and haagentctl show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, ClusterSnapshot, Status, Unfenced
from haagent.core.candidate import another_could_lead, handover_refusal, has_received, standing
from haagent.core.model import Identity, Memory, Observation, evolve
from haagent.core.operations import explain
from postgres_ctl.facts import InstanceSample, Lsn, TimelineSwitch
from tests.unit.core_facts import (
    EPOCH,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    answer,
    answers_as_primary,
    asked,
    cluster,
    following,
    history,
    judge,
    leading,
    lost_stream,
    member,
    no_answer,
    paused,
    primary,
    racing,
    request,
    sample,
    sender,
    silent,
    tags,
)

LIMIT = SETTINGS.maximum_lag_on_failover_bytes


def left(*names: str, **changes: Any) -> ClusterSnapshot:
    """The view when nobody holds the key: these members are still there."""
    return cluster(leader=None, members=tuple(member(n) for n in names or ("pg1", "pg2")), **changes)


def with_sample(seen: Observation, **changes: Any) -> Observation:
    assert isinstance(seen.instance.sample, InstanceSample)
    return replace(seen, instance=replace(seen.instance, sample=replace(seen.instance.sample, **changes)))


def nofailover() -> Observation:
    return replace(racing(lost_stream()), me=Identity("pg1", "demo", tags(nofailover=True)))


def unread_wal() -> Observation:
    return with_sample(racing(lost_stream()), receive_lsn=None, startup_waits_for_wal=False)


def on_timeline(mine: int, theirs: int) -> Observation:
    seen = with_sample(racing(lost_stream(), left(history=history(*range(1, theirs)))), timeline=mine)
    return replace(
        seen, settings=replace(SETTINGS, check_timeline=True), peers={"pg2": answer("pg2", timeline=mine)}
    )


def broken_status() -> Observation:
    return racing(lost_stream(), left(status=None, broken=(Broken("status", "not JSON"),)))


def prefers_pg2() -> Observation:
    return racing(lost_stream(), peers=(answer("pg2", tags=tags(failover_priority=2)),))


def silent_former_leader() -> Observation:
    return racing(lost_stream(), left("pg0", "pg1", "pg2"), peers=(no_answer("pg0"), answer("pg2")))


REFUSALS: dict[str, tuple[Observation, Memory]] = {
    "tag.nofailover": (nofailover(), REMEMBERS),
    "postgres.wal-read": (unread_wal(), REMEMBERS),
    "promote.failed": (racing(lost_stream()), evolve(REMEMBERS, promote_failed_at=NOW - 1)),
    "storage.answers": (racing(lost_stream(storage_hangs=True)), REMEMBERS),
    "lag": (racing(lost_stream(OPTIME - LIMIT - 1), peers=(answer("pg2", OPTIME - LIMIT - 1),)), REMEMBERS),
    "lag unreadable": (broken_status(), REMEMBERS),
    "handover.incomplete": (
        racing(lost_stream(OPTIME - 1), peers=(answer("pg2", OPTIME - 1),)),
        evolve(REMEMBERS, handover_seen_at=NOW - 1),
    ),
    "timeline": (on_timeline(1, 2), REMEMBERS),
    "resume.grace": (racing(lost_stream()), evolve(REMEMBERS, resumed_at=NOW - 1)),
    "former-leader": (silent_former_leader(), REMEMBERS),
    "peer.primary": (racing(lost_stream(), peers=(answers_as_primary("pg2"),)), REMEMBERS),
    "peer.ahead": (racing(lost_stream(), peers=(answer("pg2", OPTIME + 1),)), REMEMBERS),
    "peer.priority": (prefers_pg2(), REMEMBERS),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_fact_alone_stops_a_member_and_explain_says_so(case: str) -> None:
    seen, memory = REFUSALS[case]
    rule = case.split()[0]
    judged = standing(seen, memory)
    assert [r.rule for r in judged.refusals] == [rule]
    assert not judged.may_lead
    decision = judge(seen, memory)
    assert decision.rule == "race.refused"
    assert decision.refusals == judged.refusals
    said = explain(seen, memory)
    assert said["can_lead"] is False
    assert {r["id"]: r["detail"] for r in said["rules"] if not r["passed"]} == {
        r.rule: r.detail for r in judged.refusals
    }


@pytest.mark.parametrize("theirs", [OPTIME, OPTIME + 1])
def test_who_is_left_out_by_failsafe_keeps_nobody_from_leading_for_more_than_one_ttl(theirs: int) -> None:
    """It is preferred, or ahead, and does not lead: else nobody ever would."""
    named = {name: f"http://{name}:8008/patroni" for name in ("pg0", "pg1")}
    peer = answer("pg2", theirs, tags=tags(failover_priority=2))
    seen = racing(lost_stream(), left(failsafe=named), peers=(peer,))
    assert not standing(seen, REMEMBERS).may_lead
    since = NOW - SETTINGS.ttl_s - 1
    assert standing(seen, evolve(REMEMBERS, leader_missing_since=since)).may_lead


def test_without_any_of_them_it_may_lead_and_explain_says_so() -> None:
    seen = racing(lost_stream())
    assert standing(seen, REMEMBERS).may_lead
    said = explain(seen, REMEMBERS)
    assert said["can_lead"] is True
    assert all(rule["passed"] for rule in said["rules"])
    assert said["expected_loss_bytes"] == 0


def test_a_server_that_does_not_answer_may_not_lead() -> None:
    seen = racing(silent())
    assert "postgres.answers" in [r.rule for r in standing(seen, REMEMBERS).refusals]


def test_missing_answers_are_neither_yes_nor_no() -> None:
    seen = racing(lost_stream(), peers=())
    judged = standing(seen, REMEMBERS)
    assert judged.ask == ("pg2",)
    assert not judged.may_lead
    assert not judged.refusals
    assert explain(seen, REMEMBERS)["can_lead"] is None


# --- where each refusal ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "memory"),
    [
        pytest.param(
            racing(lost_stream(OPTIME - LIMIT), peers=(answer("pg2", OPTIME - LIMIT),)),
            REMEMBERS,
            id="lag at limit",
        ),
        pytest.param(on_timeline(2, 2), REMEMBERS, id="on the cluster's timeline"),
        pytest.param(
            replace(on_timeline(1, 2), settings=SETTINGS),
            REMEMBERS,
            id="timelines are compared only when asked",
        ),
        pytest.param(racing(lost_stream(), peers=(no_answer("pg2"),)), REMEMBERS, id="a silent peer"),
        pytest.param(
            racing(lost_stream(), peers=(answer("pg2", OPTIME + 1, tags=tags(nofailover=True)),)),
            REMEMBERS,
            id="a peer ahead that must not lead",
        ),
        pytest.param(
            racing(lost_stream(), peers=(answer("pg2", OPTIME + 1, cannot_lead="disk full"),)),
            evolve(REMEMBERS, leader_missing_since=NOW - SETTINGS.ttl_s - 1),
            id="a peer ahead that cannot lead, after one ttl",
        ),
        pytest.param(
            racing(lost_stream(), peers=(answer("pg2", OPTIME - 1, tags=tags(failover_priority=9)),)),
            REMEMBERS,
            id="a preferred peer with less WAL",
        ),
        pytest.param(
            racing(lost_stream()),
            evolve(REMEMBERS, resumed_at=NOW - SETTINGS.ttl_s - 1),
            id="one ttl after a pause",
        ),
        pytest.param(
            racing(lost_stream()),
            evolve(REMEMBERS, promote_failed_at=NOW - SETTINGS.ttl_s - 1),
            id="one ttl after a failed promotion",
        ),
        pytest.param(
            silent_former_leader(),
            evolve(REMEMBERS, leader_missing_since=NOW - SETTINGS.ttl_s - 1),
            id="a silent former leader, after one ttl",
        ),
    ],
)
def test_what_does_not_stop_a_member(seen: Observation, memory: Memory) -> None:
    assert standing(seen, memory).refusals == ()


def test_a_peer_ahead_that_cannot_lead_holds_others_up_for_one_ttl_only() -> None:
    seen = racing(lost_stream(), peers=(answer("pg2", OPTIME + 1, cannot_lead="disk full"),))
    assert [r.rule for r in standing(seen, REMEMBERS).refusals] == ["peer.ahead"]


def test_wal_beyond_the_switch_point_is_diverged_and_blocks_nobody() -> None:
    """H15: the old primary's surplus on the old timeline is no part of our history."""
    seen = with_sample(racing(lost_stream()), timeline=2)
    here = replace(seen.instance, history=(TimelineSwitch(1, Lsn(OPTIME - 500), ""),))
    surplus = answer("pg2", OPTIME + 10_000, timeline=1)
    assert standing(replace(seen, instance=here, peers={"pg2": surplus}), REMEMBERS).may_lead
    newer = answer("pg2", OPTIME - 400, timeline=3)
    refused = standing(replace(seen, instance=here, peers={"pg2": newer}), REMEMBERS).refusals
    assert [r.rule for r in refused] == ["peer.ahead"]


def test_a_timeline_we_never_came_along_blocks_nobody() -> None:
    """H15: pg2 promoted to 2 and vanished, we went from 1 to 3: nothing of its 2 is ours, however long."""
    seen = with_sample(racing(lost_stream()), timeline=3)
    here = replace(seen.instance, history=(TimelineSwitch(1, Lsn(OPTIME - 500), ""),))
    other = answer("pg2", OPTIME + 10_000, timeline=2)
    assert standing(replace(seen, instance=here, peers={"pg2": other}), REMEMBERS).may_lead


# --- what an operator may waive -------------------------------------------------------------------


def test_a_manual_failover_waives_lag_timeline_and_a_peer_ahead_but_never_another_primary() -> None:
    behind = lost_stream(OPTIME - LIMIT - 1)
    wish = request(leader=None, candidate="pg1")
    view = replace(left(), failover=wish, failover_version=wish.version)
    seen = racing(behind, view, peers=(answer("pg2", OPTIME),))
    assert standing(seen, REMEMBERS).may_lead
    seen = racing(behind, view, peers=(answers_as_primary("pg2"),))
    assert [r.rule for r in standing(seen, REMEMBERS).refusals] == ["peer.primary"]


def test_a_member_that_was_asked_for_goes_first_while_it_is_fit() -> None:
    wish = request(leader="pg0", candidate="pg2")
    view = replace(left(), failover=wish, failover_version=wish.version)
    assert [r.rule for r in standing(racing(lost_stream(), view), REMEMBERS).refusals] == ["request"]
    silent_candidate = racing(lost_stream(), view, peers=(no_answer("pg2"),))
    assert standing(silent_candidate, REMEMBERS).may_lead


def test_a_candidate_that_was_silent_before_the_key_went_is_asked_again() -> None:
    """As it was started after an earlier switchover, perhaps."""
    view = asked(left(), request(candidate="pg2"))
    before = replace(no_answer("pg2"), asked_at=NOW - 2)
    judged = standing(racing(lost_stream(), view, peers=(before,)), REMEMBERS)
    assert (judged.may_lead, judged.ask) == (False, ("pg2",))
    unable = replace(view, members=(member("pg1"), member("pg2", cannot_lead="promote.failed: it did")))
    assert standing(racing(lost_stream(), unable, peers=(before,)), REMEMBERS).may_lead


# --- explain while somebody leads -----------------------------------------------------------------


def test_explain_on_a_healthy_standby_judges_as_if_the_key_were_free() -> None:
    seen = following(lost_stream(OPTIME - 100), peers=(answer("pg2", OPTIME - 100),))
    said = explain(seen, Memory(last_leader="pg0", last_epoch=EPOCH))
    assert said["can_lead"] is True
    assert said["role"] == "replica"
    assert said["expected_loss_bytes"] == 100


def test_explain_on_the_leader() -> None:
    said = explain(leading(primary()), Memory())
    assert (said["can_lead"], said["role"], said["expected_loss_bytes"]) == (True, "leader", 0)


# --- the primary judges its successor -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "instance", "peer", "words"),
    [
        ("pg9", primary(), None, "does not exist"),
        ("pg1", primary(), no_answer("pg1"), "does not answer"),
        ("pg1", primary(), answer("pg1", cannot_lead="postgres.wal-read: replaying"), "cannot lead"),
        ("pg1", primary(), answer("pg1", watchdog_failed=True), "cannot lead"),
        ("pg1", primary(sample=sample(primary=True, senders=())), answer("pg1"), "does not stream"),
        (
            "pg1",
            primary(sample=sample(primary=True, senders=(sender("pg1", state="catchup"),))),
            answer("pg1"),
            "does not stream",
        ),
        (
            "pg1",
            primary(sample=sample(primary=True, senders=(sender("pg1", OPTIME - LIMIT - 1),))),
            answer("pg1"),
            "bytes behind",
        ),
    ],
)
def test_whom_a_running_primary_does_not_hand_over_to(
    name: str, instance: Any, peer: Any, words: str
) -> None:
    seen = leading(instance, peers=(peer,) if peer is not None else ())
    assert isinstance(seen.cluster, ClusterSnapshot)
    assert words in (handover_refusal(seen, seen.cluster, name, forced=False) or "")
    assert (
        handover_refusal(leading(primary(), peers=(answer("pg1"),)), cluster(), "pg1", forced=False) is None
    )


def test_a_received_position_on_a_page_boundary_proves_nothing() -> None:
    """A record may be cut there; a replayed position lies only at ends of records."""
    checkpoint, boundary = Lsn(8192 * 10 - 24), Lsn(8192 * 10)
    assert not has_received(None, checkpoint, 1)
    assert not has_received(no_answer("pg1"), checkpoint, 1)
    assert not has_received(answer("pg1", received=boundary, replayed=checkpoint), checkpoint, 1)
    assert has_received(answer("pg1", received=Lsn(8192 * 10 + 1), replayed=checkpoint), checkpoint, 1)
    assert has_received(answer("pg1", received=boundary, replayed=boundary), checkpoint, 1)


def test_a_position_on_another_timeline_proves_nothing() -> None:
    for timeline in (1, 3, None):
        assert not has_received(answer("pg1", replayed=Lsn(OPTIME), timeline=timeline), Lsn(8192), 2)


def test_a_pause_changes_nothing_about_who_is_fit() -> None:
    assert standing(racing(lost_stream(), settings=paused()), REMEMBERS).may_lead


def test_no_published_position_does_not_stop_anybody() -> None:
    assert standing(racing(lost_stream(), left(status=None)), REMEMBERS).may_lead
    assert explain(racing(lost_stream(), left(status=None)), REMEMBERS)["expected_loss_bytes"] is None
    assert (
        explain(racing(lost_stream(OPTIME - 7), left(status=Status(OPTIME))), REMEMBERS)[
            "expected_loss_bytes"
        ]
        == 7
    )


def test_a_lost_host_is_waited_for_shortly_and_a_silent_patroni_fully() -> None:
    seen = racing(lost_stream(), left("pg1", "pg2"))
    lost = member("pg0")
    before = evolve(
        REMEMBERS, leader_missing_since=NOW - 0.1, last_members=(lost, member("pg1"), member("pg2"))
    )
    assert standing(seen, before).ask == ("pg0",)
    later = evolve(before, leader_missing_since=NOW - 0.5)
    assert standing(seen, later).may_lead
    patroni = evolve(later, last_members=(replace(lost, agent=None), member("pg1"), member("pg2")))
    assert standing(seen, patroni).ask == ("pg0",)
    wiped = replace(seen, cluster=replace(left("pg1", "pg2"), initialize=None, config=None))
    assert not standing(wiped, later).may_lead


def test_what_a_lost_host_said_long_ago_counts_no_more() -> None:
    """Nobody asks it again, as its session ran out: its last answer would hold the others up for ever."""
    old = replace(answers_as_primary("pg0"), asked_at=NOW - 60.0)
    seen = racing(lost_stream(), left("pg1"), peers=(old,))
    memory = evolve(REMEMBERS, leader_missing_since=NOW - 9.0, last_members=(member("pg0"), member("pg1")))
    assert standing(seen, memory).may_lead
    in_a_pause = evolve(memory, lost_in_pause="pg0")
    assert [r.rule for r in standing(seen, in_a_pause).refusals] == ["pause.owner-lost"]


UNFENCED = Unfenced("pg0", EPOCH)


def test_an_owner_that_vanished_in_a_pause_is_known_to_agents_started_since() -> None:
    """H20: pg0's fence was off, nobody remembers that it led, and its member key is gone."""
    seen = racing(lost_stream(), replace(left("pg1", "pg2"), unfenced=UNFENCED))
    judged = standing(seen, Memory())
    assert [r.rule for r in judged.refusals] == ["pause.owner-lost"]
    assert "pg0 vanished" in judged.refusals[0].detail
    back = replace(cluster(leader=None), unfenced=UNFENCED)
    answers = (answer("pg0"), answer("pg2"))
    assert standing(racing(lost_stream(), back, peers=answers), Memory()).may_lead
    silent = (no_answer("pg0"), answer("pg2"))
    assert not standing(racing(lost_stream(), back, peers=silent), Memory()).may_lead
    # One without PostgreSQL has no position to answer with, but says so in the store.
    stopped = tuple(replace(m, state="stopped") if m.name == "pg0" else m for m in back.members)
    down = replace(back, members=stopped)
    assert standing(racing(lost_stream(), down, peers=silent), Memory()).may_lead


def test_only_a_manual_failover_goes_on_without_an_owner_that_vanished_in_a_pause() -> None:
    view = replace(left("pg1", "pg2"), unfenced=UNFENCED)
    for wish, allowed in ((request(), False), (request(leader=None), True), (request("pg1", "pg1"), False)):
        assert standing(racing(lost_stream(), asked(view, wish)), Memory()).may_lead is allowed


def test_who_is_unfenced_stays_unknown_while_it_cannot_be_read() -> None:
    view = replace(left("pg1", "pg2"), broken=(Broken("haagent_unfenced", "garbage"),))
    assert [r.rule for r in standing(racing(lost_stream(), view), Memory()).refusals] == ["pause.owner-lost"]
    assert standing(racing(lost_stream(), asked(view, request(leader=None))), Memory()).may_lead


def test_a_hand_over_does_not_hide_another_owner_without_a_fence() -> None:
    former, last = member("pg0", state="stopped", role="replica"), Status(OPTIME, final_timeline=1)
    members = (former, member("pg1"), member("pg2"))
    view = cluster(leader=None, members=members, unfenced=Unfenced("pg2", 4), status=last)
    ahead = lost_stream(OPTIME + 100)
    assert not standing(racing(ahead, asked(view, request()), peers=()), Memory()).may_lead
    own = replace(view, unfenced=UNFENCED)
    assert standing(racing(ahead, asked(own, request()), peers=()), Memory()).may_lead


def test_a_hand_over_need_not_wait_until_a_pause_is_long_over() -> None:
    """Its last owner is stopped; but a key that was lost is not handed over, whatever was asked for."""
    former, last = member("pg0", state="stopped", role="replica"), Status(OPTIME, final_timeline=1)
    view = cluster(leader=None, members=(former, member("pg1"), member("pg2")), status=last)
    resumed = evolve(REMEMBERS, resumed_at=NOW - 1)
    ahead = lost_stream(OPTIME + 100)
    assert standing(racing(ahead, asked(view, request()), peers=()), resumed).may_lead
    lost = replace(view, status=Status(OPTIME))
    refused = standing(racing(ahead, asked(lost, request()), peers=()), resumed).refusals
    assert [r.rule for r in refused] == ["resume.grace"]


def test_a_hand_over_does_not_hide_a_primary_that_was_seen_just_before() -> None:
    former, last = member("pg0", state="stopped", role="replica"), Status(OPTIME, final_timeline=1)
    view = cluster(leader=None, members=(former, member("pg1"), member("pg2")), status=last)
    for seen, ask in ((1.5, ("pg0", "pg2")), (60.0, ())):
        beside = replace(answers_as_primary("pg2"), asked_at=NOW - seen)
        race = racing(lost_stream(OPTIME + 100), asked(view, request()), peers=(beside,))
        assert standing(race, REMEMBERS).ask == ask


def test_leadership_is_let_go_only_when_another_member_could_take_it() -> None:
    assert another_could_lead(leading(primary()))
    alone = cluster(
        members=(member("pg0"), member("pg1", cannot_lead="decide fails"), member("pg2", state="stopped"))
    )
    assert not another_could_lead(leading(primary(), alone))
