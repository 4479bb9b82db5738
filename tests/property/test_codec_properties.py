"""Any bytes under any key: a record that says what they say, or `Broken`; records come back as they were.

What the bytes say is read here a second time, by a plain reader without the checks of the codec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dcs import codec
from dcs.codec import RawKey, build_snapshot
from dcs.records import (
    ClusterSnapshot,
    HistoryRow,
    Member,
    OperationOutcome,
    Status,
    SyncState,
    Tags,
    TimelineClaim,
)
from tests.property.raw_store import FIELDS, STORED, any_bytes, any_json, objects_with_a_key_twice, written
from tests.property.strategies import examples

#: Where each key ends up; members are looked at one by one.
PLACES = {
    codec.INITIALIZE: "initialize",
    codec.CONFIG: "config",
    codec.LEADER: "leader",
    codec.STATUS: "status",
    codec.SYNC: "sync",
    codec.HISTORY: "history",
    codec.FAILSAFE: "failsafe",
    codec.OUTCOME: "outcome",
}
LEGACY = {"optime/leader": b"42"}
POSITIONS = range(2**64)


def read(value: bytes) -> Any:
    """The JSON in it, by the standard library; None when there is none."""
    try:
        return json.loads(value.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def one(key: str, value: bytes, epoch: int = 5) -> ClusterSnapshot:
    return build_snapshot({key: RawKey(value, 7, epoch, "s")}, 9)


def broken(seen: ClusterSnapshot) -> bool:
    for found in seen.broken:
        assert found.key.isprintable()
        assert found.cause.isprintable()
        assert 0 < len(found.cause) < 300
    return bool(seen.broken)


@given(st.dictionaries(st.sampled_from([*STORED, *LEGACY]) | st.text(max_size=8), any_bytes, max_size=8))
@examples(200)
def test_each_key_is_understood_or_broken_and_hides_no_other(values: dict[str, bytes]) -> None:
    seen = build_snapshot({k: RawKey(v, 7, 5, "s") for k, v in values.items()}, 9)
    named = {b.key for b in seen.broken}
    for key, place in PLACES.items():
        if key in values and place != "status":
            assert (getattr(seen, place) is None) == (key in named), key
    for key in values:
        if key.startswith(codec.MEMBERS):
            there = seen.member(key[len(codec.MEMBERS) :]) is not None
            assert there != (codec.printable(key) in named)
    alone = [one(key, value) for key, value in values.items() if key in (*PLACES, codec.FAILOVER)]
    for part in alone:
        for place in ("initialize", "config", "leader", "sync", "history", "failsafe", "outcome", "failover"):
            if getattr(part, place) is not None:
                assert getattr(seen, place) == getattr(part, place)


# --- what a record says, the bytes say ------------------------------------------------------------


@given(any_bytes)
@examples(150)
def test_a_leader_is_named_letter_by_letter_or_unknown(value: bytes) -> None:
    seen = one(codec.LEADER, value)
    if broken(seen):
        assert seen.leader is None
    else:
        assert seen.leader is not None
        assert seen.leader.name.encode() == value != b""
        assert (seen.leader.session, seen.leader.epoch) == ("s", 5)


@given(any_bytes, st.sampled_from([codec.STATUS, codec.LEGACY_OPTIME]))
@examples(200)
def test_a_position_is_the_number_that_is_written(value: bytes, key: str) -> None:
    seen, said = one(key, value), read(value)
    if broken(seen):
        assert seen.status is None
        return
    assert seen.status is not None
    number = said["optime"] if isinstance(said, dict) else said
    assert type(number) is int
    assert seen.status.optime == number
    for position in (number, *(seen.status.slots or {}).values()):
        assert type(position) is int
        assert position in POSITIONS


@given(any_bytes)
@examples(200)
def test_a_request_names_whom_the_bytes_name(value: bytes) -> None:
    seen = one(codec.FAILOVER, value)
    wish, said = seen.failover, read(value)
    assert seen.failover_version == 7
    if broken(seen):
        assert wish is None
    elif isinstance(said, dict):
        assert (wish.leader if wish else None) == (said.get("leader") or None)
        assert (wish.candidate if wish else None) == (said.get("member") or None)
        assert wish is None or wish.scheduled_at == said.get("scheduled_at")
    elif wish is not None:
        leader, _, candidate = value.decode().strip().partition(":")
        assert (wish.leader or "", wish.candidate or "") == (leader.strip(), candidate.strip())
    else:
        assert value.decode().strip() in ("", ":") or not value.decode().replace(":", "").strip()


@given(any_bytes)
@examples(150)
def test_history_and_claims_are_as_long_as_written(value: bytes) -> None:
    rows, claims, said = one(codec.HISTORY, value), one(codec.CLAIMS, value), read(value)
    if broken(rows):
        assert rows.history is None
    else:
        assert rows.history is not None
        assert [[r.timeline, r.lsn, r.reason] for r in rows.history] == [row[:3] for row in said]
        assert all(0 < r.timeline < 2**32 and r.lsn in POSITIONS for r in rows.history)
    if broken(claims):
        assert claims.claims == ()
    else:
        assert [(c.timeline, c.name, c.epoch) for c in claims.claims] == [
            (item["timeline"], item["name"], item["epoch"]) for item in said
        ]
        assert claims.claims_version == 7


@given(any_bytes)
@examples(150)
def test_whether_sync_is_on_is_what_is_written(value: bytes) -> None:
    seen, said = one(codec.SYNC, value), read(value)
    if not broken(seen):
        assert seen.sync is not None
        assert seen.sync.leader == (said.get("leader") or None)
        named = {name.strip() for name in (said.get("sync_standby") or "").split(",")} - {""}
        assert set(seen.sync.standbys) == named


members = st.one_of(
    any_bytes,
    st.dictionaries(st.sampled_from(FIELDS), any_json, max_size=5).map(written),
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.sampled_from(["running", "stopped", 5, None]),
            "role": st.sampled_from(["primary", "master", "replica", True]),
            "tags": st.dictionaries(
                st.sampled_from(["clonefrom", "nofailover", "nostream", "failover_priority"]),
                st.sampled_from([True, False, None, 0, 1, "true", "", 1.0]),
                max_size=2,
            ),
            "cannot_lead": st.sampled_from([None, "disk full", 0]),
            "timeline": st.sampled_from([0, 1, 2**32, "1"]),
            "checkpoint_after_promote": st.sampled_from([True, False, None, 0]),
        },
    ).map(written),
)


@given(members)
@examples(300)
def test_a_member_is_what_it_says_of_itself(value: bytes) -> None:
    """Never running, stopped, primary, able to lead or to be cloned from without having said so."""
    seen, said = one("members/a", value), read(value)
    if broken(seen):
        assert seen.members == ()
        return
    (member,) = seen.members
    assert isinstance(said, dict)
    assert member.state == (said.get("state") or "unknown")
    assert (member.role == "primary") == (said.get("role") in ("primary", "master"))
    assert member.cannot_lead == said.get("cannot_lead")
    assert member.checkpoint_after_promote is said.get("checkpoint_after_promote")
    assert member.api_url == said.get("api_url")
    assert member.xlog_location == said.get("xlog_location")
    tags = said.get("tags") or {}
    assert member.tags.clonefrom == (tags.get("clonefrom") is True)
    assert member.tags.nofailover or not tags.get("nofailover")
    assert isinstance(member.tags.failover_priority, int)
    assert member.session == "s"
    assert member.host_port is None or member.conn_url == said["conn_url"]


@given(objects_with_a_key_twice() | any_bytes)
@examples(100)
def test_a_configuration_is_an_object_that_can_be_written_again(value: bytes) -> None:
    seen = one(codec.CONFIG, value)
    if not broken(seen):
        assert seen.config is not None
        assert seen.config.data == read(value)
        again = one(codec.CONFIG, codec.encode_config(seen.config.data).encode())
        assert again.config == seen.config


# --- records come back ----------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text(st.characters(categories=["L", "N"], include_characters="-_."), min_size=1, max_size=8)
filled = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
lsns = st.integers(0, 2**64 - 1)
timelines = st.integers(1, 2**32 - 1)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | words
maps = st.dictionaries(words, plain | st.lists(plain, max_size=2), max_size=3)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@given(
    st.builds(
        Member,
        name=names,
        conn_url=maybe(words),
        api_url=maybe(words),
        state=filled,
        role=filled.filter(lambda role: role != "master"),
        version=words,
        agent=maybe(words),
        xlog_location=maybe(lsns),
        replay_lsn=maybe(lsns),
        receive_lsn=maybe(lsns),
        replication_state=maybe(words),
        timeline=maybe(timelines),
        tags=maps.map(Tags),
        pause=st.booleans(),
        checkpoint_after_promote=st.sampled_from([None, False]),
        pending_restart=st.booleans(),
        pending_restart_reason=st.dictionaries(words, st.tuples(words, words), max_size=2),
        scheduled_restart=maybe(maps),
        proxy_url=maybe(words),
        cannot_lead=maybe(words),
        note=maybe(words),
        session=st.just("s"),
    )
)
@examples(100)
def test_a_member_comes_back(member: Member) -> None:
    assert one(codec.MEMBERS + member.name, codec.encode_member(member).encode()).members == (member,)


@given(lsns, maybe(st.dictionaries(words, lsns, max_size=3)), maybe(st.lists(words, max_size=3)))
@examples(100)
def test_a_status_comes_back(
    optime: int, slots: Mapping[str, int] | None, retained: list[str] | None
) -> None:
    status = Status(optime, slots or None, tuple(retained) if retained else None)
    assert one(codec.STATUS, codec.encode_status(status).encode()).status == status


@given(maybe(names), maybe(names), st.sampled_from([None, "2099-01-01T00:00:00+00:00"]))
@examples(60)
def test_a_request_comes_back(leader: str | None, candidate: str | None, at: str | None) -> None:
    wish = one(codec.FAILOVER, codec.encode_failover(leader, candidate, at).encode()).failover
    if leader is None and candidate is None:
        assert wish is None
    else:
        assert wish is not None
        assert (wish.leader, wish.candidate, wish.scheduled_at, wish.version) == (leader, candidate, at, 7)


@given(st.lists(st.builds(HistoryRow, timelines, lsns, words, maybe(words), maybe(words)), max_size=4))
@examples(100)
def test_a_history_comes_back(rows: list[HistoryRow]) -> None:
    assert one(codec.HISTORY, codec.encode_history(rows).encode()).history == tuple(rows)


@given(st.lists(st.builds(TimelineClaim, timelines, names, lsns, maybe(words)), max_size=4))
@examples(100)
def test_claims_come_back(claims: list[TimelineClaim]) -> None:
    assert one(codec.CLAIMS, codec.encode_claims(claims).encode()).claims == tuple(claims)


@given(maybe(names), st.lists(names, max_size=4, unique=True), st.integers(0, 5))
@examples(60)
def test_sync_comes_back(leader: str | None, standbys: list[str], quorum: int) -> None:
    value = codec.encode_sync(leader, standbys, quorum).encode()
    assert one(codec.SYNC, value).sync == SyncState(leader, tuple(sorted(standbys)), quorum, 7)


@given(lsns, st.integers(100, 599), words, st.dictionaries(words, words, max_size=3))
@examples(60)
def test_outcomes_and_addresses_come_back(version: int, status: int, text: str, urls: dict[str, str]) -> None:
    told = OperationOutcome(version, status, text)
    assert one(codec.OUTCOME, codec.encode_outcome(told).encode()).outcome == told
    assert one(codec.UNFENCED, b"{}").unfenced is None
    assert one(codec.FAILSAFE, codec.encode_failsafe(urls).encode()).failsafe == urls
