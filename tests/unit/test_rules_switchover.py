"""A planned switchover, or a manual failover, seen by the primary: nothing is stopped or lost in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from haagent.core.actions import (
    AskPeers,
    Checkpoint,
    ClearFailover,
    Guard,
    ReleaseLeader,
    StartPrimary,
    StopInstance,
)
from haagent.core.model import Decision, Handover, Memory, Observation
from postgres_ctl.facts import ControlState, Lsn
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NO_LEASE,
    NOW,
    OPTIME,
    SETTINGS,
    answer,
    asked,
    cluster,
    control,
    crashed,
    finished,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    member,
    no_answer,
    obs,
    primary,
    request,
    sample,
    sender,
    silent,
    stopped,
    tags,
)

ASKED = asked(cluster(), request())
BEGUN = Memory(handover=Handover(9, "pg1", NOW - 1, epoch=EPOCH))
STOPPING = Memory(
    handover=Handover(9, "pg1", NOW - 1, checkpointed=True, stopping_since=NOW - 0.5, epoch=EPOCH)
)
DOWN_CLEANLY = stopped(control=control(ControlState.SHUT_DOWN, checkpoint_lsn=Lsn(OPTIME + 100)))


def wish(*peers: Any, **changes: Any) -> Observation:
    """The primary with a request for `pg1`, which has answered."""
    return leading(primary(), changes.pop("view", ASKED), peers=peers or (answer("pg1"),), **changes)


def proving(*peers: Any, **changes: Any) -> Observation:
    """PostgreSQL is stopped, `pg1` has to prove that it has the shutdown checkpoint."""
    return leading(DOWN_CLEANLY, ASKED, peers=peers, **changes)


def told(decision: Decision) -> tuple[int, str]:
    """Status and text of the answer to the request."""
    clear = next(a for a in decision.actions if isinstance(a, ClearFailover))
    return clear.status, clear.outcome


# --- before anything is touched -------------------------------------------------------------------


def test_the_candidate_is_asked_first() -> None:
    decision = judge(leading(primary(), ASKED))
    assert (decision.rule, decision.actions) == ("switchover.ask", (AskPeers(("pg1",)),))


def test_a_fit_candidate_begins_the_hand_over_with_a_checkpoint() -> None:
    decision = judge(wish())
    assert decision.rule == "switchover.begin"
    assert decision.actions == (Checkpoint(Guard(epoch=EPOCH, pid=77), background=False),)
    assert decision.memory.handover == Handover(9, "pg1", NOW, epoch=EPOCH)


def test_without_a_candidate_the_best_standby_is_chosen() -> None:
    view = asked(cluster(), request(candidate=None))
    ahead = primary(sample=sample(primary=True, senders=(sender("pg1", OPTIME - 8), sender("pg2"))))
    decision = judge(leading(ahead, view, peers=(answer("pg1"), answer("pg2"))))
    assert decision.memory.handover is not None
    assert decision.memory.handover.candidate == "pg2"


def test_a_candidate_whose_answers_take_the_longest_time_allowed_is_a_candidate() -> None:
    assert judge(wish(replace(answer("pg1"), asked_at=NOW - 1.99))).rule == "switchover.begin"


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"leader": "pg2"}, 412, "leader name does not match"),
        ({"candidate": "pg0"}, 412, "Switchover target and source are the same"),
    ],
)
def test_a_request_that_makes_no_sense_is_cleared(changes: dict[str, Any], status: int, text: str) -> None:
    decision = judge(wish(view=asked(cluster(), request(**changes))))
    assert (decision.rule, told(decision)) == ("switchover.cleared", (status, text))


NOT_STREAMING = primary(sample=sample(primary=True, senders=()))


def test_a_candidate_that_does_not_stream_is_waited_for_and_then_refused() -> None:
    seen = leading(NOT_STREAMING, ASKED, peers=(answer("pg1"),))
    first = judge(seen)
    assert (first.rule, first.actions) == ("switchover.wait", ())
    later = replace(seen, now=NOW + 11, lease=lease(fence_at=NOW + 30))
    later = replace(later, peers={"pg1": replace(answer("pg1"), asked_at=NOW + 10.9)})
    decision = judge(later, first.memory)
    assert told(decision) == (412, "switchover is not possible: pg1 does not stream from this primary")


@pytest.mark.parametrize(
    ("changes", "peer", "why"),
    [
        ({"tags": tags(nofailover=True)}, answer("pg1"), "is tagged nofailover"),
        ({}, no_answer("pg1"), "does not answer: timeout"),
        ({}, replace(answer("pg1"), cannot_lead="disk full"), "cannot lead: disk full"),
        ({}, replace(answer("pg1"), watchdog_failed=True), "its watchdog failed"),
        ({"api_url": None}, answer("pg2"), "publishes no REST address"),
    ],
)
@pytest.mark.parametrize("leader", ["pg0", None])
def test_an_unfit_candidate_is_refused_with_the_reason(
    changes: dict[str, Any], peer: Any, why: str, leader: str | None
) -> None:
    view = asked(cluster(members=(member("pg0"), member("pg1", **changes))), request(leader))
    decision = judge(wish(peer, view=view), Memory(request_seen=(9, NOW - 10)))
    assert told(decision)[0] == 412
    assert why in told(decision)[1]


def test_a_candidate_that_was_silent_is_asked_again_while_it_is_waited_for() -> None:
    decision = judge(wish(no_answer("pg1")))
    assert decision.rule == "switchover.wait"
    assert decision.actions == (AskPeers(("pg1",)),)


def test_a_candidate_that_does_not_exist_is_refused() -> None:
    view = asked(cluster(members=(member("pg0"),)), request())
    decision = judge(wish(view=view), Memory(request_seen=(9, NOW - 10)))
    assert "does not exist" in told(decision)[1]


def test_lag_refuses_a_switchover_and_is_waived_by_a_manual_failover() -> None:
    far = primary(sample=sample(primary=True, senders=(sender("pg1", OPTIME - 2_000_000),)))
    waited = Memory(request_seen=(9, NOW - 10))
    assert told(judge(leading(far, ASKED, peers=(answer("pg1"),)), waited))[0] == 412
    manual = asked(cluster(), request(leader=None))
    assert judge(leading(far, manual, peers=(answer("pg1"),)), waited).rule == "switchover.begin"


def test_a_silent_primary_hands_nothing_over() -> None:
    assert judge(leading(silent(writable=True), ASKED, peers=(answer("pg1"),))).rule == "leader.no-answer"


# --- between checkpoint and stop ------------------------------------------------------------------


def test_after_the_checkpoint_postgresql_is_stopped() -> None:
    decision = judge(wish(finished=finished("checkpoint", epoch=EPOCH, background=False)), BEGUN)
    assert decision.rule == "switchover.stop"
    assert isinstance(decision.actions[0], StopInstance)
    assert decision.actions[0].mode == "fast"
    assert decision.memory.handover is not None
    assert decision.memory.handover.stopping_since == NOW


def test_the_candidate_is_asked_again_before_the_stop() -> None:
    assert judge(wish(answer("pg1", asked_at=NOW - 9)), BEGUN).rule == "switchover.ask"


def test_a_withdrawn_request_leaves_the_primary_running() -> None:
    decision = judge(leading(primary(), cluster(), peers=(answer("pg1"),)), BEGUN)
    assert (decision.rule, decision.actions) == ("switchover.withdrawn", ())
    assert decision.memory.handover is None


def test_a_candidate_that_fell_behind_during_the_checkpoint_is_waited_for() -> None:
    decision = judge(leading(NOT_STREAMING, ASKED, peers=(answer("pg1"),)), BEGUN)
    assert (decision.rule, decision.memory.handover) == ("switchover.wait", None)


def after_checkpoint(flushed: int, **changes: Any) -> Observation:
    """The CHECKPOINT ended at OPTIME + 100."""
    says = sample(primary=True, position=OPTIME + 100, senders=(sender("pg1", flushed), sender("pg2")))
    return leading(primary(sample=says), changes.pop("view", ASKED), peers=(answer("pg1"),), **changes)


def test_a_candidate_that_does_not_write_the_checkpoint_stops_nobody() -> None:
    """It hangs, and is behind by next to nothing."""
    first = judge(after_checkpoint(OPTIME), BEGUN)
    assert (first.rule, first.actions) == ("switchover.flush", ())
    # Others write on: what it has to show stays the same.
    says = sample(primary=True, position=OPTIME + 900, senders=(sender("pg1", OPTIME + 100),))
    wrote = leading(primary(sample=says), ASKED, peers=(answer("pg1"),))
    assert judge(wrote, first.memory).rule == "switchover.stop"
    late = after_checkpoint(OPTIME + 99, now=NOW + 3, lease=lease(fence_at=NOW + 30))
    late = replace(late, peers={"pg1": replace(answer("pg1"), asked_at=NOW + 2.9)})
    refused = judge(late, first.memory)
    assert refused.rule == "switchover.cleared"
    assert told(refused)[0] == 412
    assert "has written no WAL for 3 s" in told(refused)[1]
    assert refused.memory.handover is None


def test_a_candidate_that_writes_the_checkpoint_at_once_costs_no_time() -> None:
    assert judge(after_checkpoint(OPTIME + 100), BEGUN).rule == "switchover.stop"


def test_a_manual_failover_does_not_wait_for_the_candidate_to_write() -> None:
    view = asked(cluster(), request(leader=None))
    assert judge(after_checkpoint(OPTIME, view=view), BEGUN).rule == "switchover.stop"


def test_a_stop_that_failed_is_told() -> None:
    assert told(judge(wish(), STOPPING))[0] == 503


def test_while_it_stops_postgresql_is_waited_for() -> None:
    assert judge(leading(silent(), ASKED), STOPPING).rule == "switchover.stopping"


# --- after the stop -------------------------------------------------------------------------------


def test_the_key_goes_when_the_candidate_has_the_shutdown_checkpoint() -> None:
    decision = judge(proving(answer("pg1", OPTIME + 200)), STOPPING)
    assert decision.rule == "switchover.release"
    assert decision.actions == (ReleaseLeader(EPOCH, Lsn(OPTIME + 100)),)
    assert (decision.memory.handover, decision.memory.clean_release) == (None, True)


def test_the_candidate_is_asked_for_the_proof() -> None:
    decision = judge(proving(answer("pg1", OPTIME)), STOPPING)
    assert (decision.rule, decision.actions) == ("switchover.prove", (AskPeers(("pg1",)),))


def test_a_candidate_without_the_shutdown_checkpoint_gets_no_key() -> None:
    first = judge(proving(answer("pg1", OPTIME)), STOPPING)
    late = proving(answer("pg1", OPTIME), now=NOW + 4)
    decision = judge(late, first.memory)
    assert decision.rule == "switchover.come-back"
    assert kinds(decision) == (StartPrimary, ClearFailover)
    assert told(decision)[0] == 503


def test_a_stop_that_took_long_leaves_the_candidate_as_much_time_for_its_proof() -> None:
    assert STOPPING.handover is not None
    slow = Memory(handover=replace(STOPPING.handover, stopping_since=NOW - 60))
    first = judge(proving(answer("pg1", OPTIME)), slow)
    assert first.rule == "switchover.prove"
    assert judge(proving(answer("pg1", OPTIME), now=NOW + 2), first.memory).rule == "switchover.prove"
    assert judge(proving(answer("pg1", OPTIME), now=NOW + 4), first.memory).rule == "switchover.come-back"


def test_a_silent_candidate_gets_no_key() -> None:
    first = judge(proving(no_answer("pg1")), STOPPING)
    assert "does not answer" in told(judge(proving(no_answer("pg1"), now=NOW + 4), first.memory))[1]


def test_a_manual_failover_may_lose_wal_but_not_give_the_key_to_the_silent() -> None:
    manual = asked(cluster(), request(leader=None))
    behind = leading(DOWN_CLEANLY, manual, peers=(answer("pg1", OPTIME),))
    first = judge(behind, STOPPING)
    assert judge(replace(behind, now=NOW + 4), first.memory).rule == "switchover.release"
    quiet = leading(DOWN_CLEANLY, manual, peers=(no_answer("pg1"),), now=NOW + 4)
    assert judge(quiet, first.memory).rule == "switchover.come-back"


def test_a_manual_failover_to_diverged_wal_is_no_hand_over_with_everything() -> None:
    manual = asked(cluster(), request(leader=None))
    down = stopped(control=control(ControlState.SHUT_DOWN, checkpoint_lsn=Lsn(OPTIME + 100), timeline=2))
    diverged = leading(down, manual, peers=(answer("pg1", OPTIME + 900),))
    assert judge(diverged, STOPPING).rule == "switchover.prove"


def test_a_primary_that_crashed_while_stopping_comes_back() -> None:
    decision = judge(leading(crashed(), ASKED, peers=(answer("pg1", OPTIME + 200),)), STOPPING)
    assert decision.rule == "switchover.come-back"
    assert decision.memory.handover is None


# --- what is left of a hand-over ------------------------------------------------------------------


def test_a_hand_over_ends_with_the_lease_it_began_under() -> None:
    """Else the next time this member takes the key it would wait for ever for PostgreSQL to stop."""
    fenced = judge(obs("pg0", DOWN_CLEANLY, DOWN, lease=NO_LEASE), STOPPING)
    assert fenced.memory.handover is None
    new = leading(lost_stream(), cluster(epoch=8), lease=lease(epoch=8), peers=(answer("pg1"), answer("pg2")))
    assert judge(new, STOPPING).rule == "promote.now"


def test_a_release_without_an_answer_is_repeated_with_the_last_position() -> None:
    closed = lease(fence_at=None, closed_epoch=EPOCH)
    decision = judge(proving(answer("pg1", OPTIME + 200), lease=closed), STOPPING)
    assert decision.rule == "lease.release-closed"
    assert decision.actions == (ReleaseLeader(EPOCH, Lsn(OPTIME + 100)),)


def test_no_hand_over_begins_under_a_lease_that_is_not_proven() -> None:
    decision = judge(wish(lease=lease(fence_at=None)))
    assert decision.rule == "lease.unproven"


def test_a_request_that_is_gone_is_forgotten() -> None:
    waited = Memory(request_seen=(9, NOW - 10))
    assert judge(leading(primary()), waited).memory.request_seen is None
    assert judge(leading(primary(), settings=SETTINGS), waited).rule == "leader.steady"


# --- a candidate that streams from another standby ------------------------------------------------

BEHIND_PG2 = member("pg1", tags=tags(replicatefrom="pg2"))
CASCADE = asked(cluster(members=(member("pg0"), BEHIND_PG2, member("pg2"))), request())


def cascading(position: int = OPTIME, asked_at: float = NOW - 0.1, **changes: Any) -> Observation:
    """`pg1` streams from `pg2`: the primary has no walsender for it, and its answer says where it is."""
    here = primary(sample=sample(primary=True, senders=(sender("pg2"),)))
    told = {"replication_state": "streaming", "asked_at": asked_at, **changes}
    return leading(here, CASCADE, peers=(replace(answer("pg1", position), **told), answer("pg2")))


def test_the_end_of_a_cascade_is_a_candidate_by_its_own_word() -> None:
    assert judge(cascading()).rule == "switchover.begin"
    assert judge(cascading(OPTIME - 2_000_000)).rule == "switchover.wait"
    assert judge(cascading(replication_state=None)).rule == "switchover.wait"
    assert judge(cascading(timeline=2)).rule == "switchover.wait"


def test_before_the_stop_it_says_that_it_has_written_what_the_checkpoint_wrote() -> None:
    waiting = judge(cascading(OPTIME - 8, NOW - 1), BEGUN)
    assert (waiting.rule, waiting.actions) == ("switchover.flush", (AskPeers(("pg1",)),))
    assert judge(cascading(OPTIME - 8), BEGUN).actions == ()
    assert judge(cascading(OPTIME), BEGUN).rule == "switchover.stop"
