"""Who may lead, judged by every member of one situation at once: never two, never one that is behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcs.records import ClusterSnapshot, FailoverRequest, Leader, Status
from haagent.core import actions as a
from haagent.core.candidate import (
    Standing,
    best_successor,
    handover_refusal,
    has_received,
    standing,
)
from haagent.core.decide import decide
from haagent.core.model import LeaseFacts, Memory, Observation, PeerAnswer, PeerSilent
from haagent.core.settings import Settings
from haagent.core.timelines import position_in_my_history
from postgres_ctl.facts import InstanceSample, Lsn, TimelineSwitch
from tests.property.situations import STEP, Node, Situation, common, ends, is_behind, situations
from tests.property.strategies import examples
from tests.unit.core_facts import (
    NOW,
    answer,
    answers_as_primary,
    cluster,
    lost_stream,
    member,
    obs,
    primary,
    sender,
    tags,
)

any_situation = st.one_of(situations(), situations(plain=True))


def electable(node: Node) -> bool:
    """As an operator would say it: allowed to lead, sure of its own WAL."""
    return not node.tags.nofailover and node.proven


def on_the_line(seen: Situation, node: Node) -> bool:
    """It ends before the cluster left its timeline, or is on the last one."""
    left = [row.lsn for row in seen.snapshot.history or () if row.timeline == node.place.timeline]
    return not left or node.place.end <= left[0]


def judged(seen: Situation) -> dict[str, Standing]:
    return {n.name: standing(seen.sees(n.name), seen.memory) for n in seen.nodes}


def winners(seen: Situation) -> list[Node]:
    verdicts = judged(seen)
    return [n for n in seen.nodes if verdicts[n.name].may_lead]


# --- the situations themselves --------------------------------------------------------------------


@given(any_situation)
@examples(60)
def test_the_situations_are_what_they_say(seen: Situation) -> None:
    for one in seen.nodes:
        for other in seen.nodes:
            shared = common(one.place, other.place)
            assert shared == common(other.place, one.place) <= min(one.place.end, other.place.end)
            assert not (is_behind(one.place, other.place) and is_behind(other.place, one.place))


# --- the election ---------------------------------------------------------------------------------


@given(any_situation)
@examples(300)
def test_whoever_may_lead_is_behind_nobody(seen: Situation) -> None:
    """Rule 6 and H15: neither behind in WAL nor on an older timeline than one that could lead."""
    others = [n for n in seen.nodes if electable(n) and on_the_line(seen, n)]
    for one in winners(seen):
        for other in others:
            assert not is_behind(one.place, other.place), (one, other)
            assert one.place.timeline >= other.place.timeline, (one, other)


@given(any_situation)
@examples(200)
def test_two_that_may_lead_have_the_same_wal(seen: Situation) -> None:
    """Then it does not matter which of them the compare-and-set lets through."""
    places = {(n.place.branch, n.place.end) for n in winners(seen)}
    assert len(places) <= 1


@given(any_situation)
@examples(200)
def test_diverged_wal_never_leads(seen: Situation) -> None:
    """H15: behind the point where the cluster left its timeline."""
    assert all(on_the_line(seen, n) for n in winners(seen))


@given(any_situation)
@examples(200)
def test_who_is_told_not_to_or_does_not_know_its_wal_never_leads(seen: Situation) -> None:
    """`nofailover`; H16."""
    assert all(electable(n) for n in winners(seen))


@given(any_situation)
@examples(150)
def test_nobody_leads_below_what_may_be_lost(seen: Situation) -> None:
    """Rule 5."""
    status = seen.snapshot.status
    for one in winners(seen):
        if status is not None:
            assert status.optime - one.place.end <= seen.settings.maximum_lag_on_failover_bytes


@given(situations(plain=True))
@examples(200)
def test_somebody_leads_when_nothing_speaks_against_the_best(seen: Situation) -> None:
    """Diverged WAL of others, however long, blocks nobody for longer than a ttl (H13, H15)."""
    fit = [n for n in seen.nodes if on_the_line(seen, n)]
    seen = replace(seen, memory=replace(seen.memory, leader_missing_since=NOW - 31.0))
    if not fit:
        return
    best = max(fit, key=lambda n: (n.place.timeline, n.place.end))
    status = seen.snapshot.status
    behind = status.optime - best.place.end if status is not None else 0
    left_out = seen.settings.check_timeline and best.place.timeline <= len(seen.snapshot.history or ())
    if behind <= seen.settings.maximum_lag_on_failover_bytes and not left_out:
        verdict = judged(seen)[best.name]
        assert verdict.may_lead, verdict.refusals


@given(any_situation, st.integers(1, 30))
@examples(100)
def test_after_a_hand_over_mark_nobody_below_the_last_position_leads(seen: Situation, n: int) -> None:
    """H18: for one ttl; an operator's word does not waive it."""
    optime = n * STEP
    wish = FailoverRequest(None, "pg0", None, 9)
    marked = replace(seen.memory, handover_seen_at=NOW - 29.9)
    snapshot = replace(seen.snapshot, status=Status(optime), failover=wish)
    for node in seen.nodes:
        if standing(replace(seen.sees(node.name), cluster=snapshot), marked).may_lead:
            assert node.place.end >= optime


@given(any_situation, st.data())
@examples(150)
def test_nothing_waives_another_primary(seen: Situation, data: st.DataObject) -> None:
    """Rule 6, in a manual failover too."""
    alive = data.draw(st.sampled_from(seen.nodes)).name
    named = data.draw(st.sampled_from(seen.nodes)).name
    wish = data.draw(st.sampled_from([None, FailoverRequest(None, named, None, 9)]))
    for node in seen.nodes:
        if node.name == alive:
            continue
        mine = seen.sees(node.name)
        peers = {**mine.peers, alive: answers_as_primary(alive, 1)}
        spoilt = replace(mine, peers=peers, cluster=replace(seen.snapshot, failover=wish))
        assert not standing(spoilt, seen.memory).may_lead


@given(any_situation, st.data())
@examples(150)
def test_nobody_leads_before_everybody_was_heard(seen: Situation, data: st.DataObject) -> None:
    """A missing answer is neither yes nor no: it is asked for."""
    absent = data.draw(st.sampled_from(seen.nodes)).name
    stale = data.draw(st.sampled_from([None, NOW - 2.6, NOW - 600]))
    for node in seen.nodes:
        if node.name == absent:
            continue
        mine = seen.sees(node.name)
        peers = {name: peer for name, peer in mine.peers.items() if name != absent or stale is not None}
        if stale is not None:
            peers[absent] = replace(peers[absent], asked_at=stale)
        verdict = standing(replace(mine, peers=peers), seen.memory)
        assert not verdict.may_lead
        assert verdict.ask in ((absent,), ())
        assert verdict.ask or verdict.refusals


@given(any_situation, st.sampled_from(["pg0", "pg1", "elsewhere"]))
@examples(100)
def test_an_owner_lost_in_a_pause_keeps_everybody_waiting(seen: Situation, lost: str) -> None:
    """H20: unless it answers."""
    remembered = replace(seen.memory, lost_in_pause=lost)
    for node in seen.nodes:
        if standing(seen.sees(node.name), remembered).may_lead:
            assert any(n.name == lost for n in seen.nodes if n.name != node.name)


# --- the whole step -------------------------------------------------------------------------------


def takes(seen: Observation, memory: Memory) -> bool:
    return any(isinstance(x, a.TakeLeader) for x in decide(seen, memory).actions)


@given(any_situation, st.data())
@examples(200)
def test_of_all_that_reach_for_the_key_one_promotes(seen: Situation, data: st.DataObject) -> None:
    """Everybody steps, one compare-and-set wins, everybody steps again."""
    takers = [n for n in seen.nodes if takes(seen.sees(n.name), seen.memory)]
    assert takers == winners(seen)
    if not takers:
        return
    winner = data.draw(st.sampled_from(takers)).name
    led = replace(seen.snapshot, leader=Leader(winner, "s-" + winner, 9))
    for node in seen.nodes:
        after = replace(seen.sees(node.name), cluster=led)
        if node.name == winner:
            after = replace(after, lease=LeaseFacts("s-" + winner, 9, NOW + 20))
        kinds = [type(x) for x in decide(after, seen.memory).actions]
        assert (a.Promote in kinds) == (node.name == winner)
        assert not {a.TakeLeader, a.StartPrimary} & set(kinds)


@given(any_situation)
@examples(100)
def test_who_holds_the_key_and_may_not_lead_gives_it_back(seen: Situation) -> None:
    """The checks hold again before the promotion."""
    verdicts = judged(seen)
    for node in seen.nodes:
        led = replace(seen.snapshot, leader=Leader(node.name, "s-" + node.name, 9))
        mine = replace(seen.sees(node.name), cluster=led, lease=LeaseFacts("s-" + node.name, 9, NOW + 20))
        kinds = [type(x) for x in decide(mine, seen.memory).actions]
        assert (a.Promote in kinds) == verdicts[node.name].may_lead
        assert (a.ReleaseLeader in kinds) != verdicts[node.name].may_lead


# --- histories ------------------------------------------------------------------------------------


@given(any_situation)
@examples(200)
def test_a_peer_counts_as_far_as_it_is_on_my_history(seen: Situation) -> None:
    """On a timeline I came along: exactly up to where both have the same WAL, or where mine ends."""
    for mine in seen.nodes:
        view = seen.sees(mine.name)
        for name, peer in view.peers.items():
            assert isinstance(peer, PeerAnswer)
            theirs = seen.node(name).place
            counted = position_in_my_history(view, peer).value
            assert counted <= theirs.end
            if theirs.timeline < mine.place.timeline:
                assert counted == common(mine.place, theirs)


@given(ends, ends, ends)
@examples(100)
def test_wal_of_a_timeline_i_never_came_along_parted_before_it(left_1: int, mine: int, theirs: int) -> None:
    """I went from 1 to 3, it sits on a 2 I know nothing of: at most what 1 had when I left it is shared."""
    here = lost_stream(left_1 + mine)
    assert isinstance(here.sample, InstanceSample)
    path = (TimelineSwitch(1, Lsn(left_1), "promoted"),)
    free = cluster(None, status=None)
    view = obs("pg1", replace(here, sample=replace(here.sample, timeline=3), history=path), free)
    peer = answer("pg2", theirs, timeline=2)
    assert position_in_my_history(view, peer) <= Lsn(left_1)
    assert standing(replace(view, peers={"pg2": peer, "pg0": answer("pg0", 1)}), Memory()).refusals == ()


# --- the primary looks for a successor ------------------------------------------------------------

successors = st.lists(
    st.tuples(
        st.sampled_from(["pg1", "pg2", "pg3", "pg4"]),
        st.sampled_from(["streaming", "streaming", "catchup", "gone"]),
        st.integers(0, 40).map(lambda n: n * STEP),
        st.sampled_from([0, 1, 2, 5]),
        st.sampled_from(["answers", "answers", "silent", "unable", "never asked"]),
    ),
    max_size=4,
    unique_by=lambda row: row[0],
)
END = 40 * STEP


def handing_over(rows: list[tuple[str, str, int, int, str]], limit: int) -> Observation:
    senders = tuple(sender(n, at, state=state) for n, state, at, _, _ in rows if state != "gone")
    said = primary().sample
    assert isinstance(said, InstanceSample)
    here = replace(primary(), sample=replace(said, flush_lsn=Lsn(END), senders=senders))
    members = tuple(member(n, tags=tags(failover_priority=prio)) for n, _, _, prio, _ in rows)
    peers = tuple(
        PeerSilent(n, NOW, "timeout")
        if word == "silent"
        else answer(n, at, cannot_lead="disk full" if word == "unable" else None)
        for n, _, at, _, word in rows
        if word != "never asked"
    )
    settings = Settings(maximum_lag_on_failover_bytes=limit)
    snapshot = cluster(members=(member("pg0"), *members))
    return replace(obs("pg0", here, snapshot, peers=peers), settings=settings)


@given(successors, st.sampled_from([0, 5 * STEP, END]), st.booleans())
@examples(200)
def test_the_chosen_successor_is_fit_and_the_furthest(
    rows: list[tuple[str, str, int, int, str]], limit: int, forced: bool
) -> None:
    view = handing_over(rows, limit)
    snapshot = view.cluster
    assert isinstance(snapshot, ClusterSnapshot)
    table = {row[0]: row for row in rows}
    able = {n for n, row in table.items() if row[3] > 0 and row[4] not in ("silent", "unable")}
    close = {n for n in able if table[n][1] == "streaming" and END - table[n][2] <= limit}
    fit = able if forced else close
    assert {n for n in table if handover_refusal(view, snapshot, n, forced) is None} == fit
    chosen = best_successor(view, snapshot, forced)
    assert (chosen in fit) if fit else chosen is None
    if chosen is not None:
        here = {n: table[n][2] if table[n][1] != "gone" else 0 for n in fit}
        assert here[chosen] == max(here.values())
        tied = {n for n in fit if here[n] == here[chosen]}
        assert table[chosen][3] == max(table[n][3] for n in tied)


PAGE = 8192


@given(st.integers(1, 3), st.integers(-20, 30), st.integers(14, 60), st.integers(0, 300))
@examples(200)
def test_a_cut_record_is_not_received(page: int, before: int, length: int, more: int) -> None:
    """Rule 3: what a standby has flushed ends with a record, or anywhere a page does."""
    begin = page * PAGE - before * STEP
    end = begin + length * STEP
    for received in (begin, end, end + more * STEP, *range(PAGE, end, PAGE)):
        peer = answer("pg1", received=Lsn(received), replayed=Lsn(max(0, begin - 8)))
        proven = has_received(peer, Lsn(begin), 1)
        assert not proven or received >= end
        if received == end and end % PAGE != 0:
            assert proven
    assert has_received(answer("pg1", received=None, replayed=Lsn(end)), Lsn(begin), 1)
    assert not has_received(answer("pg1", received=None, replayed=Lsn(begin)), Lsn(begin), 1)


@pytest.mark.parametrize("peer", [None, PeerSilent("pg1", NOW, "timeout")])
def test_silence_proves_nothing(peer: PeerSilent | None) -> None:
    assert not has_received(peer, Lsn(0), 1)
