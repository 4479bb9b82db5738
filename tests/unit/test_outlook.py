"""What the primary says about losing it now: candidates and expected loss; and how long it took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haagent.core.actions import AskPeers, Guard, Promote, ReleaseLeader, TakeLeader
from haagent.core.model import Handover, Instance, Memory
from haagent.core.outlook import Outlook, outlook
from haagent.measures import Measures, Takeovers
from haagent.runtime import SystemRuntime
from postgres_ctl.facts import WalSender
from tests.unit.core_facts import (
    DOWN,
    NOW,
    OPTIME,
    REMEMBERS,
    asked,
    cluster,
    finished,
    following,
    leading,
    lost_stream,
    member,
    primary,
    racing,
    request,
    sample,
    sender,
    standby,
    stopped,
    tags,
)

# --- what losing it would mean -----------------------------------------------------------------


def feeding(*senders: WalSender) -> Instance:
    return primary(sample=sample(primary=True, senders=senders))


def test_the_best_standby_tells_the_loss() -> None:
    seen = outlook(leading(feeding(sender("pg1", OPTIME - 300), sender("pg2", OPTIME - 100))))
    assert seen == Outlook(("pg1", "pg2"), 100)


def test_who_is_too_far_behind_or_may_not_lead_is_no_candidate() -> None:
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(nofailover=True))))
    assert outlook(leading(feeding(sender("pg1", 0), sender("pg2")), view)) == Outlook((), None)


def test_a_standby_that_says_it_cannot_lead_is_no_candidate() -> None:
    members = (
        member("pg0"),
        member("pg1", cannot_lead="postgres.answers: it does not"),
        member("pg2", timeline=9),
        member("pg3", state="stopped"),
    )
    assert outlook(leading(primary(), cluster(members=members))) == Outlook((), None)


def test_one_that_streams_from_elsewhere_counts_by_its_own_word() -> None:
    view = cluster(members=(member("pg0"), member("pg1", xlog_location=OPTIME - 7)))
    assert outlook(leading(feeding(), view)) == Outlook(("pg1",), 7)


def test_nobody_else_and_nobody_blind_says_anything() -> None:
    assert outlook(following(standby())) is None
    assert outlook(leading(primary(), DOWN)) is None
    assert outlook(leading(primary(sample=DOWN))) is None


# --- phases ------------------------------------------------------------------------------------

PROMOTE = Promote(Guard(epoch=7, pid=77), above=1, timeline=2)


def test_a_failover_is_timed_from_the_lost_key_to_the_first_write() -> None:
    measures = Measures(SystemRuntime())
    watch = Takeovers(measures)
    lost = racing(lost_stream())
    watch.step(lost, REMEMBERS, REMEMBERS, (AskPeers(("pg2",)),), NOW)
    watch.step(lost, REMEMBERS, REMEMBERS, (TakeLeader(),), NOW + 0.5)
    watch.step(lost, REMEMBERS, REMEMBERS, (PROMOTE,), NOW + 0.75)
    assert measures.failovers["failover"] == 0
    done = replace(lost, now=NOW + 2, finished=finished("promote", epoch=7))
    watch.step(done, REMEMBERS, REMEMBERS, (), NOW + 2)
    assert measures.failovers == {"failover": 1, "manual": 0, "switchover": 0}
    assert [measures.phases[phase] for phase in ("election", "claim", "promotion")] == [
        (1, 1.5),
        (1, 0.25),
        (1, 1.25),
    ]


@pytest.mark.parametrize(("leader", "kind"), [("pg0", "switchover"), (None, "manual")])
def test_what_was_asked_for_is_told_apart(leader: str | None, kind: str) -> None:
    measures = Measures(SystemRuntime())
    watch = Takeovers(measures)
    wanted = racing(lost_stream(), asked(cluster(leader=None), request(leader)))
    watch.step(wanted, REMEMBERS, REMEMBERS, (TakeLeader(),), NOW)
    watch.step(wanted, REMEMBERS, REMEMBERS, (PROMOTE,), NOW)
    watch.step(racing(primary(), finished=finished("promote", epoch=7)), REMEMBERS, REMEMBERS, (), NOW)
    assert {name: count for name, count in measures.failovers.items() if count} == {kind: 1}


def test_a_promotion_that_failed_is_no_failover() -> None:
    measures = Measures(SystemRuntime())
    watch = Takeovers(measures)
    watch.step(racing(lost_stream()), REMEMBERS, REMEMBERS, (TakeLeader(), PROMOTE), NOW)
    failed = racing(lost_stream(), finished=finished("promote", False, "no guardian"))
    watch.step(failed, REMEMBERS, REMEMBERS, (), NOW + 1)
    assert (sum(measures.failovers.values()), measures.failed_promotions) == (0, 1)


@pytest.mark.parametrize("proof_at", [None, NOW + 4])
def test_a_hand_over_is_timed_by_who_hands_over(proof_at: float | None) -> None:
    measures = Measures(SystemRuntime())
    watch = Takeovers(measures)
    begun = Handover(9, "pg1", NOW)
    stopping = replace(begun, stopping_since=NOW + 1)
    watch.step(leading(primary()), Memory(), Memory(handover=begun), (), NOW)
    watch.step(leading(primary()), Memory(handover=begun), Memory(handover=stopping), (), NOW + 1)
    proving = replace(stopping, proving_since=proof_at)
    seen = leading(stopped(), now=NOW + 4)
    watch.step(seen, Memory(handover=stopping), Memory(handover=proving), (), NOW + 4)
    watch.step(seen, Memory(handover=proving), Memory(), (ReleaseLeader(5),), NOW + 4.5)
    assert measures.phases["checkpoint"] == (1, 1.0)
    assert measures.phases["stop"] == (1, 3.0)
    assert measures.phases["proof"] == (1, 0.5)
