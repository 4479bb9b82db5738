"""Requests to the whole cluster: refused before anything is written, their outcome told, and `explain`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import OperationOutcome, SyncState
from haagent.core.model import Memory
from haagent.core.operations import (
    Verdict,
    explain,
    hides_leadership,
    outcome_of,
    peers_to_ask,
    refuse_request,
)
from haagent.core.settings import Settings, SyncMode
from tests.unit.core_facts import (
    DOWN,
    NOW,
    answer,
    answers_as_primary,
    asked,
    cluster,
    following,
    leading,
    lost_stream,
    member,
    obs,
    primary,
    request,
    standby,
    tags,
)

HEALTHY = cluster()


def refused(
    view: Any = HEALTHY,
    leader: str | None = "pg0",
    candidate: str | None = "pg1",
    paused: bool = False,
    mode: SyncMode = SyncMode.OFF,
) -> Any:
    verdict = refuse_request(view, Settings(pause=paused, synchronous_mode=mode), leader, candidate)
    return (verdict.status, verdict.text) if verdict is not None else None


# --- refused before anything is written -----------------------------------------------------------


def test_what_makes_sense_is_not_refused() -> None:
    assert refused() is None
    assert refused(candidate=None) is None
    assert refused(leader=None) is None
    assert refused(paused=True) is None


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"candidate": "pg0"}, 400, "Switchover target and source are the same"),
        (
            {"candidate": None, "paused": True},
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        ({"leader": "pg2", "candidate": "pg1"}, 412, "leader name does not match"),
        ({"view": cluster(leader=None)}, 412, "leader name does not match"),
        ({"candidate": "pg9"}, 412, "candidate does not exists"),
        ({"leader": None, "candidate": "pg0"}, 503, "Failover failed"),
        (
            {"candidate": None, "view": cluster(members=(member("pg0"),))},
            412,
            "switchover is not possible: cluster does not have members except leader",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], status: int, text: str) -> None:
    assert refused(**changes) == (status, text)


def test_a_switchover_goes_to_a_synchronous_standby() -> None:
    listed = cluster(sync=SyncState("pg0", ("PG2",), 0, 7))
    by_name = (412, "candidate name does not match with sync_standby")
    assert refused(listed, mode=SyncMode.PRIORITY) == by_name
    assert refused(listed, candidate="pg2", mode=SyncMode.PRIORITY) is None
    assert refused(listed, candidate=None, mode=SyncMode.PRIORITY) is None
    nobody = cluster(sync=SyncState("pg0", (), 0, 7))
    text = "switchover is not possible: can not find sync_standby"
    assert refused(nobody, candidate=None, mode=SyncMode.PRIORITY) == (412, text)
    # The leader judges it; a failover by hand may lose something; a mode that is off promises nothing.
    assert refused(listed, mode=SyncMode.QUORUM) is None
    assert refused(listed, leader=None, mode=SyncMode.PRIORITY) is None
    assert refused(listed) is None


@pytest.mark.parametrize("unfit", [{"tags": tags(nofailover=True)}, {"api_url": None}])
def test_a_candidate_that_can_never_lead_is_refused(unfit: dict[str, Any]) -> None:
    view = cluster(members=(member("pg0"), member("pg1", **unfit)))
    told = "is not possible: no good candidates have been found"
    assert refused(view) == (412, f"switchover {told}")
    assert refused(view, leader=None) == (412, f"failover {told}")


# --- the outcome ----------------------------------------------------------------------------------


def ended(view: Any, switchover: bool = True, candidate: str | None = "pg1") -> Verdict | None:
    return outcome_of(view, 9, "pg0", candidate, switchover)


def test_while_the_request_is_there_it_has_not_ended() -> None:
    assert ended(asked(cluster(), request())) is None


def test_without_a_leader_it_has_not_ended() -> None:
    assert ended(cluster(leader=None)) is None


def test_a_new_leader_is_success() -> None:
    assert ended(cluster("pg1", 6)) == Verdict(200, 'Successfully switched over to "pg1"')
    assert ended(cluster("pg1", 6), switchover=False) == Verdict(200, 'Successfully failed over to "pg1"')


def test_another_new_leader_than_the_one_asked_for_is_named() -> None:
    assert ended(cluster("pg2", 6)) == Verdict(200, 'Switched over to "pg2" instead of "pg1"')
    assert ended(cluster("pg2", 6), switchover=False) == Verdict(200, 'Failed over to "pg2" instead of "pg1"')


def test_a_manual_failover_names_the_possible_loss() -> None:
    told = OperationOutcome(9, 200, 'Successfully failed over to "pg1"; expected loss: 8 bytes of WAL')
    verdict = ended(cluster("pg1", 6, outcome=told), switchover=False)
    assert verdict is not None
    assert "expected loss: 8 bytes of WAL" in verdict.text


def test_the_old_leader_still_there_is_failure_with_its_reason() -> None:
    assert ended(cluster()) == Verdict(503, "Switchover failed")
    reason = OperationOutcome(9, 412, "pg1 does not stream")
    assert ended(cluster(outcome=reason)) == Verdict(412, "pg1 does not stream")


def test_the_outcome_of_an_earlier_request_is_none_of_this_one() -> None:
    earlier = OperationOutcome(8, 412, "pg1 does not stream")
    assert ended(cluster(outcome=earlier)) == Verdict(503, "Switchover failed")


# --- explain --------------------------------------------------------------------------------------


def test_a_streaming_standby_could_take_over() -> None:
    told = explain(following(standby(), peers=(answer("pg2"),)), Memory())
    assert (told["name"], told["role"], told["can_lead"]) == ("pg1", "replica", True)
    assert all(rule["passed"] for rule in told["rules"])
    assert told["expected_loss_bytes"] == 0


def test_the_leader_leads() -> None:
    assert explain(leading(primary()), Memory())["role"] == "leader"


def test_while_answers_are_missing_nothing_is_claimed() -> None:
    assert explain(following(standby()), Memory())["can_lead"] is None
    assert peers_to_ask(following(standby()), Memory()) == ("pg2",)


def test_what_would_refuse_is_named() -> None:
    told = explain(following(standby(), peers=(answers_as_primary("pg2"),)), Memory())
    assert told["can_lead"] is False
    assert [r["id"] for r in told["rules"] if r["passed"] is False] == ["peer.primary"]


def test_without_the_store_nobody_could_take_over() -> None:
    told = explain(obs("pg1", standby(), DOWN), Memory())
    assert (told["can_lead"], told["rules"][0]["id"]) == (False, "dcs")
    assert peers_to_ask(obs("pg1", standby(), DOWN), Memory()) == ()


def test_a_lag_is_told_in_bytes() -> None:
    behind = following(lost_stream(4_999_900), peers=(replace(answer("pg2"), asked_at=NOW),))
    assert explain(behind, Memory())["expected_loss_bytes"] == 100


def test_nobody_is_sent_to_a_leader_that_does_not_serve_or_was_replaced() -> None:
    here = leading(primary())
    assert not hides_leadership(here, Memory())
    assert not hides_leadership(None, Memory())
    assert hides_leadership(here, Memory(bootstrap="ready"))
    assert hides_leadership(leading(primary(), cluster("pg2", 9)), Memory())
