"""Any body a peer may answer with: what a race may believe of it, or ValueError; nothing invented."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from haagent.core.candidate import has_received, standing
from haagent.core.model import Memory, PeerAnswer
from haagent.core.timelines import position_in_my_history
from haagent.peers import parse_answer
from postgres_ctl.facts import Lsn
from tests.property.raw_store import any_bytes, any_json, numbers
from tests.property.strategies import examples
from tests.unit.core_facts import NOW, answer, cluster, lost_stream, obs

LOCATIONS = ("location", "received_location", "replayed_location")
xlogs = st.dictionaries(st.sampled_from(LOCATIONS), numbers | any_json, max_size=3)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "xlog": xlogs | any_json,
        "wal": xlogs,
        "role": st.sampled_from(["primary", "replica", "demoted", None, 5]),
        "state": any_json,
        "timeline": numbers | any_json,
        "patroni": st.sampled_from([{"name": "pg1"}, {"name": "other"}, {}, None, 5]),
        "haagent": st.sampled_from([{}, {"cannot_lead": "disk full"}, {"cannot_lead": 5}, None, "x"]),
        "tags": st.dictionaries(st.sampled_from(["nofailover", "failover_priority"]), any_json) | any_json,
        "watchdog_failed": any_json,
        "replication_state": any_json,
    },
)
good = st.fixed_dictionaries(
    {"xlog": xlogs, "role": st.just("replica"), "patroni": st.just({"name": "pg1"})},
    optional={"timeline": numbers, "haagent": st.just({"cannot_lead": "disk full"})},
)


def parsed(body: object) -> PeerAnswer | None:
    try:
        return parse_answer("pg1", NOW, body)
    except ValueError:
        return None


@given(any_bytes)
@examples(150)
def test_any_bytes_are_an_answer_or_a_value_error(raw: bytes) -> None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return
    found = parsed(body)
    assert found is None or isinstance(body, dict)


@given(good | bodies)
@examples(300)
def test_an_answer_says_nothing_the_body_does_not(body: dict[str, Any]) -> None:
    found = parsed(body)
    if found is None:
        return
    assert (found.name, found.asked_at, found.role) == ("pg1", NOW, body["role"])
    where = body["xlog"] if isinstance(body.get("xlog"), Mapping) else body["wal"]
    for mine, theirs in zip((found.location, found.received, found.replayed), LOCATIONS, strict=True):
        assert mine is None or (type(where[theirs]) is int and mine == Lsn(where[theirs]))
        assert mine is None or mine.value > 0
    assert found.timeline is None or found.timeline == body["timeline"]
    assert found.in_recovery == ("location" not in where)
    assert found.is_haagent == isinstance(body.get("haagent"), Mapping)
    said = body["haagent"].get("cannot_lead") if found.is_haagent else None
    assert found.cannot_lead == (said if isinstance(said, str) else None)
    assert found.watchdog_failed == (body.get("watchdog_failed") is True)
    who = body.get("patroni")
    assert not isinstance(who, Mapping) or who.get("name") in (None, "pg1")


@given(good)
@examples(200)
def test_a_race_and_a_hand_over_can_judge_every_answer(body: dict[str, Any]) -> None:
    found = parsed(body)
    assert found is not None
    view = obs("pg0", lost_stream(), cluster(None), peers=(found, answer("pg2")))
    verdict = standing(view, Memory())
    assert verdict.ask == ()
    assert not (verdict.may_lead and found.runs_as_primary)
    assert position_in_my_history(view, found) <= found.position
    if has_received(found, Lsn(5_000_000), 1):
        assert found.timeline == 1
        assert max(found.received or Lsn(0), found.replayed or Lsn(0)) > Lsn(5_000_000)
