"""Bytes of the store become records or `Broken`, and records become the bytes that peers expect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcs import codec
from dcs.codec import RawKey, build_snapshot
from dcs.records import (
    ClusterSnapshot,
    FailoverRequest,
    HistoryRow,
    Member,
    Status,
    SyncState,
    Tags,
    TimelineClaim,
)

# As a cluster in quorum mode has them in its store.
STORED = {
    "config": '{"ttl":30,"loop_wait":10,"synchronous_mode":"quorum","slots":{"perm":{"type":"physical"}}}',
    "failover": '{"leader":"n1","scheduled_at":"2099-01-01T00:00:00+00:00"}',
    "failsafe": '{"n0":"http://127.0.0.1:21200/patroni","n2":"http://127.0.0.1:21202/patroni"}',
    "history": '[[1,67109256,"no recovery target specified","2026-11-21T04:00:09.220152+00:00","n1"]]',
    "initialize": "7710469456714918895",
    "leader": "n1",
    "members/n0": '{"conn_url":"postgres://127.0.0.1:21100/postgres",'
    '"api_url":"http://127.0.0.1:21200/patroni","state":"running","role":"replica","version":"4.1.5",'
    '"xlog_location":67109784,"replay_lsn":67109784,"receive_lsn":67109784,'
    '"replication_state":"streaming","timeline":2}',
    "members/n1": '{"conn_url":"postgres://127.0.0.1:21101/postgres",'
    '"api_url":"http://127.0.0.1:21201/patroni","state":"running","role":"primary","version":"4.1.5",'
    '"xlog_location":67109784,"timeline":2,"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00",'
    '"postmaster_start_time":"2026-11-21 04:00:05.623582+00:00"}}',
    "status": '{"optime":67109784,"slots":{"n2":67109784,"perm":67109360},"retain_slots":["n0","n2"]}',
    "sync": '{"leader":"n1","quorum":1,"sync_standby":"n0,n2"}',
}
FULL_MEMBER = (
    '{"conn_url":"postgres://h:5432/postgres","api_url":"http://h:8008/patroni","state":"running",'
    '"role":"primary","version":"4.1.5","proxy_url":"postgres://p:5432/postgres",'
    '"checkpoint_after_promote":false,"tags":{"clonefrom":true},"pending_restart":true,'
    '"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"}},'
    '"xlog_location":9,"replay_lsn":8,"receive_lsn":7,"replication_state":"streaming","timeline":3,'
    '"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00"},"pause":true,"agent":"haagent/1.0",'
    '"cannot_lead":"disk full","note":"pg_rewind 2/3 failed"}'
)


def snapshot(**keys: str | bytes) -> ClusterSnapshot:
    """Keys with "/" are given as "members/x" by a dictionary; all stand at version 5, created at 3."""
    raw = {k: RawKey(v.encode() if isinstance(v, str) else v, 5, 3, "77") for k, v in keys.items()}
    return build_snapshot(raw, 9)


def broken_keys(seen: ClusterSnapshot) -> list[str]:
    return [broken.key for broken in seen.broken]


# --- what peers write -----------------------------------------------------------------------------


def test_a_whole_cluster_is_read() -> None:
    seen = snapshot(**STORED)
    assert seen.broken == ()
    assert seen.revision == 9
    assert seen.initialize == "7710469456714918895"
    assert seen.config is not None
    assert (seen.config.data["ttl"], seen.config.version) == (30, 5)
    assert seen.leader is not None
    assert (seen.leader.name, seen.leader.session, seen.leader.epoch) == ("n1", "77", 3)
    assert seen.status == Status(67109784, {"n2": 67109784, "perm": 67109360}, ("n0", "n2"))
    assert seen.sync == SyncState("n1", ("n0", "n2"), 1, 5)
    assert seen.failover == FailoverRequest("n1", None, "2099-01-01T00:00:00+00:00", 5, 4070908800.0)
    assert seen.history is not None
    assert seen.history[0].new_leader == "n1"
    assert [member.name for member in seen.members] == ["n0", "n1"]
    assert not seen.members[0].is_haagent


def test_what_was_read_is_written_back_byte_by_byte() -> None:
    seen = snapshot(**STORED, **{"members/full": FULL_MEMBER})
    assert seen.config is not None
    assert seen.status is not None
    assert seen.sync is not None
    assert seen.failover is not None
    assert seen.history is not None
    assert seen.failsafe is not None
    written = {f"members/{member.name}": codec.encode_member(member) for member in seen.members}
    assert written.pop("members/full") == FULL_MEMBER
    written |= {
        "config": codec.encode_config(seen.config.data),
        "status": codec.encode_status(seen.status),
        "sync": codec.encode_sync(seen.sync.leader, seen.sync.standbys, seen.sync.quorum),
        "failover": codec.encode_failover(
            seen.failover.leader, seen.failover.candidate, seen.failover.scheduled_at
        ),
        "history": codec.encode_history(seen.history),
        "failsafe": codec.encode_failsafe(seen.failsafe),
    }
    assert written == {key: STORED[key] for key in written}


def test_an_empty_store_is_an_empty_cluster() -> None:
    assert build_snapshot({}, 4) == ClusterSnapshot(revision=4)


def test_an_empty_initialize_means_that_somebody_bootstraps() -> None:
    assert snapshot(initialize="").initialize == ""
    assert snapshot().initialize is None


# --- old and short forms --------------------------------------------------------------------------


def test_status_may_be_a_bare_number_or_stand_under_its_old_name() -> None:
    assert snapshot(status="42").status == Status(42)
    assert snapshot(**{"optime/leader": "41"}).status == Status(41)
    assert snapshot(**{"optime/leader": "41", "status": '{"optime":42}'}).status == Status(42)


def test_a_broken_status_is_not_replaced_by_the_old_one() -> None:
    seen = snapshot(**{"optime/leader": "41", "status": "{"})
    assert seen.status is None
    assert broken_keys(seen) == ["status"]


@pytest.mark.parametrize("value", ["{}", "", " ", '{"leader":""}', '{"scheduled_at":null}'])
def test_an_empty_failover_is_no_request_but_has_a_version(value: str) -> None:
    seen = snapshot(failover=value)
    assert seen.failover is None
    assert seen.failover_version == 5
    assert seen.broken == ()


def test_only_a_schedule_is_no_request() -> None:
    assert snapshot(failover='{"scheduled_at":"2099-01-01T00:00:00+00:00"}').failover is None


@pytest.mark.parametrize(
    ("value", "leader", "candidate"), [("a:b", "a", "b"), ("a:", "a", None), (":b", None, "b")]
)
def test_the_old_text_form_of_failover(value: str, leader: str | None, candidate: str | None) -> None:
    request = snapshot(failover=value).failover
    assert request == FailoverRequest(leader, candidate, None, 5)


@pytest.mark.parametrize("value", ["{}", '{"leader":null,"sync_standby":null}', '{"leader":""}'])
def test_sync_without_leader_is_off_but_has_a_version(value: str) -> None:
    assert snapshot(sync=value).sync == SyncState(None, (), 0, 5)


def test_sync_of_an_old_writer_has_quorum_zero() -> None:
    assert snapshot(sync='{"leader":"a","sync_standby":"b"}').sync == SyncState("a", ("b",), 0, 5)


def test_master_is_the_old_word_for_primary() -> None:
    member = snapshot(**{"members/a": '{"role":"master"}'}).member("a")
    assert member is not None
    assert member.role == "primary"


def test_history_rows_may_be_short() -> None:
    seen = snapshot(history='[[1,10,"a"],[2,20,"b","2026-01-01T00:00:00+00:00"]]')
    assert seen.history == (
        HistoryRow(1, 10, "a"),
        HistoryRow(2, 20, "b", "2026-01-01T00:00:00+00:00"),
    )
    assert codec.encode_history(seen.history) == '[[1,10,"a"],[2,20,"b","2026-01-01T00:00:00+00:00"]]'


def test_claims_come_back() -> None:
    claims = (TimelineClaim(4, "pg1", 77), TimelineClaim(5, "pg2", 99, "at most 1048576 bytes"))
    seen = snapshot(haagent_claims=codec.encode_claims(claims))
    assert (seen.claims, seen.claims_version) == (claims, 5)


# --- what is written ------------------------------------------------------------------------------


def test_absent_facts_are_left_out() -> None:
    member = Member("a", state="starting", role="replica", version="4.1.5", checkpoint_after_promote=True)
    assert codec.encode_member(member) == '{"state":"starting","role":"replica","version":"4.1.5"}'
    assert codec.encode_status(Status(5, {}, ())) == '{"optime":5}'
    assert codec.encode_status(Status(5, final_timeline=2)) == '{"optime":5,"haagent_final_timeline":2}'
    assert codec.encode_failover() == "{}"


def test_sync_is_written_with_all_fields_and_sorted_names() -> None:
    assert codec.encode_sync("a", ("c", "b")) == '{"leader":"a","quorum":0,"sync_standby":"b,c"}'
    assert codec.encode_sync("a", ()) == '{"leader":"a","quorum":0,"sync_standby":null}'


# --- hostile values -------------------------------------------------------------------------------

WRONG: list[tuple[str, str | bytes]] = [
    ("config", b"\xff\xfe"),
    ("config", ""),
    ("config", "[]"),
    ("config", '{"a":NaN}'),
    ("config", '{"a":1e999}'),
    ("config", '{"a":' + "9" * 5000 + "}"),
    ("config", '{"a":' * 40 + "1" + "}" * 40),
    ("config", "[" * 100_000),
    ("config", '{"a":"\\ud800"}'),
    ("config", '{"a":1} x'),
    ("leader", ""),
    ("leader", "a\nb"),
    ("leader", b"\xff"),
    ("initialize", "1\x00"),
    ("members/a", "null"),
    ("members/a", '{"state":5}'),
    ("members/a", '{"timeline":0}'),
    ("members/a", '{"timeline":4294967296}'),
    ("members/a", '{"xlog_location":-1}'),
    ("members/a", '{"xlog_location":true}'),
    ("members/a", '{"xlog_location":1.5}'),
    ("members/a", '{"xlog_location":18446744073709551616}'),
    ("members/a", '{"tags":[]}'),
    ("members/a", '{"pause":"true"}'),
    ("members/a", '{"pending_restart_reason":{"g":{"old_value":"1"}}}'),
    ("members/", "{}"),
    ("members/a/b", "{}"),
    ("members/a\x1b", "{}"),
    ("status", "{}"),
    ("status", '"5"'),
    ("status", '{"optime":5,"slots":{"a":"b"}}'),
    ("status", '{"optime":5,"retain_slots":"a"}'),
    ("sync", "[]"),
    ("sync", '{"leader":1}'),
    ("sync", '{"leader":"a","quorum":-1}'),
    ("sync", '{"leader":"a","sync_standby":["b"]}'),
    ("failover", '{"leader":"a"'),
    ("failover", "a:b:c"),
    ("failover", "garbage"),
    ("failover", "[1]"),
    ("failover", '{"leader":{}}'),
    ("failover", '{"leader":1}'),
    ("failover", '{"member":"a","scheduled_at":"tomorrow"}'),
    ("failover", '{"member":"a","scheduled_at":"2099-01-01T00:00:00"}'),
    ("history", "{}"),
    ("history", "[[1,2]]"),
    ("history", '[["1",2,"a"]]'),
    ("history", "[null]"),
    ("failsafe", "[]"),
    ("failsafe", '{"a":1}'),
    ("haagent_claims", "{}"),
    ("haagent_claims", '[{"timeline":4}]'),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{i}-{k[:9]}" for i, (k, _) in enumerate(WRONG)])
def test_a_wrong_value_breaks_its_key_only(key: str, value: str | bytes) -> None:
    others: dict[str, Any] = {k: v for k, v in STORED.items() if k != key}
    whole = snapshot(**others)
    seen = snapshot(**others, **{key: value})
    assert len(seen.broken) == 1
    broken = seen.broken[0]
    assert broken.key.isprintable()
    assert broken.cause
    assert broken.cause.isprintable()
    names = {"haagent_claims": "claims"}
    field = "members" if key.startswith("members") else names.get(key, key)
    assert getattr(seen, field) == (getattr(whole, field))
    for kept in ("config", "leader", "status", "sync", "failover", "history", "failsafe", "members"):
        assert getattr(seen, kept) == getattr(whole, kept)


def test_a_broken_configuration_does_not_leak_its_secrets() -> None:
    seen = snapshot(config='{"password":"hunter2",')
    assert "hunter2" not in seen.broken[0].cause


KEYS = st.sampled_from([*STORED, "optime/leader", "haagent_claims", "members/x", "other"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_OBJECTS = [value for value in (*STORED.values(), FULL_MEMBER) if value.startswith("{")]
FIELDS = st.sampled_from(sorted({name for value in _OBJECTS for name in json.loads(value)}))


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.binary() | JSON.map(lambda value: json.dumps(value).encode())))
def test_no_bytes_raise(values: dict[str, bytes]) -> None:
    raw = {key: RawKey(value, 1, 1) for key, value in values.items()}
    seen = build_snapshot(raw, 1)
    assert len(seen.broken) + len(seen.members) <= len(values)


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.dictionaries(FIELDS, JSON, max_size=6), max_size=4))
def test_known_fields_with_any_value_do_not_raise(values: dict[str, dict[str, Any]]) -> None:
    raw = {key: RawKey(json.dumps(value).encode(), 1, 1) for key, value in values.items()}
    seen = build_snapshot(raw, 1)
    for member in seen.members:
        again = build_snapshot(
            {f"members/{member.name}": RawKey(codec.encode_member(member).encode(), 1, 1)}, 1
        )
        assert again.broken == ()


@settings(deadline=None)
@given(st.text(min_size=1), st.dictionaries(st.text(), st.booleans()), st.integers(0, 2**64 - 1))
def test_our_own_members_come_back(text: str, tags: dict[str, bool], lsn: int) -> None:
    member = Member("a", conn_url="postgres://h/d", xlog_location=lsn, tags=Tags(tags), agent="haagent/1")
    member = member if _has_surrogates(text) else Member("a", note=text, tags=Tags(tags))
    raw = RawKey(codec.encode_member(member).encode(), 1, 1)
    assert build_snapshot({"members/a": raw}, 1).members == (member,)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in text)
