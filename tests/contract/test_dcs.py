"""What every store must do, whichever it is."""

from __future__ import annotations

from functools import partial

import pytest

from dcs import codec
from dcs.api import Conflict, Dcs, KeyEvent, LeaseHandle, Ok, Refused, Renewed, Taken
from dcs.records import Leader
from tests.contract.conftest import CALL_S, Events, Store, at_once

TTL_S = 30.0


def take(client: Dcs, name: str, ttl_s: float = TTL_S) -> LeaseHandle:
    taken = client.take_leader(client.open_session(ttl_s, CALL_S), name, CALL_S)
    assert isinstance(taken, Taken)
    return taken.handle


# --- the leader key -------------------------------------------------------------------------------


def test_of_ten_takers_at_once_one_gets_the_leader_key(store: Store) -> None:
    clients = [store.client() for _ in range(10)]
    sessions = [client.open_session(TTL_S, CALL_S) for client in clients]
    results = at_once(
        [
            partial(client.take_leader, session, f"pg{i}", CALL_S)
            for i, (client, session) in enumerate(zip(clients, sessions, strict=True))
        ]
    )
    winners = [i for i, result in enumerate(results) if isinstance(result, Taken)]
    assert len(winners) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 9
    won = results[winners[0]]
    assert isinstance(won, Taken)
    leader = clients[0].snapshot(CALL_S).leader
    assert leader == Leader(f"pg{winners[0]}", won.handle.session, won.handle.epoch)


def test_taking_again_under_the_same_name_is_a_conflict(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(client.take_leader(handle.session, "pg0", CALL_S), Conflict)


def test_taking_on_an_unknown_session_is_a_conflict(store: Store) -> None:
    client = store.client()
    assert isinstance(client.take_leader("4711", "pg0", CALL_S), Conflict)
    assert client.snapshot(CALL_S).leader is None


def test_every_tenure_has_a_greater_epoch(store: Store) -> None:
    client = store.client()
    epochs = []
    for _ in range(3):
        handle = take(client, "pg0")
        epochs.append(handle.epoch)
        assert isinstance(client.put("status", "1", CALL_S), Ok)
        assert isinstance(client.release_leader(handle, "pg0", CALL_S), Ok)
    assert epochs == sorted(set(epochs))


def test_renewal_promises_the_ttl_from_before_it_was_sent(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    before = store.now()
    renewed = client.renew_leader(handle, "pg0", CALL_S)
    assert isinstance(renewed, Renewed)
    assert before <= renewed.sent_at <= store.now()
    assert renewed.guaranteed_s == client.guaranteed_s(TTL_S)
    assert isinstance(client.renew_session(handle.session, CALL_S), Renewed)


def test_renewal_is_refused_for_an_unknown_session(store: Store) -> None:
    client = store.client()
    for session in ("4711", "no number", "", "9" * 40):
        assert isinstance(client.renew_session(session, CALL_S), Refused)
        assert isinstance(client.renew_leader(LeaseHandle(session, 1), "pg0", CALL_S), Refused)


def test_renewal_is_refused_when_only_the_key_is_gone(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(store.client().delete("leader", CALL_S), Ok)
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    assert isinstance(client.renew_session(handle.session, CALL_S), Renewed)


def test_renewal_is_refused_to_a_namesake(store: Store) -> None:
    client, other = store.client(), store.client()
    handle = take(client, "pg0")
    session = other.open_session(TTL_S, CALL_S)
    assert isinstance(other.renew_leader(LeaseHandle(session, handle.epoch), "pg0", CALL_S), Refused)
    assert isinstance(
        other.renew_leader(LeaseHandle(handle.session, handle.epoch + 1), "pg0", CALL_S), Refused
    )
    assert isinstance(other.renew_leader(handle, "pg1", CALL_S), Refused)


def test_renewal_is_refused_when_somebody_overwrote_the_key(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(client.put("leader", "pg0", CALL_S), Ok)  # same name, no session any more
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    leader = client.snapshot(CALL_S).leader
    assert leader is not None
    assert leader.session == ""


def test_release_needs_this_very_handle(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    stale = LeaseHandle(handle.session, handle.epoch - 1)
    foreign = LeaseHandle(client.open_session(TTL_S, CALL_S), handle.epoch)
    for wrong in (stale, foreign):
        assert isinstance(client.release_leader(wrong, "pg0", CALL_S), Conflict)
    assert isinstance(client.release_leader(handle, "pg1", CALL_S), Conflict)
    assert isinstance(client.release_leader(handle, "pg0", CALL_S), Ok)
    assert isinstance(client.release_leader(handle, "pg0", CALL_S), Conflict)
    assert client.snapshot(CALL_S).leader is None


def test_release_writes_the_last_position_in_the_same_transaction(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    wrong = LeaseHandle(handle.session, handle.epoch - 1)
    assert isinstance(client.release_leader(wrong, "pg0", CALL_S, '{"optime":1}'), Conflict)
    assert client.snapshot(CALL_S).status is None
    assert isinstance(client.release_leader(handle, "pg0", CALL_S, '{"optime":42}'), Ok)
    snapshot = client.snapshot(CALL_S)
    assert snapshot.leader is None
    assert snapshot.status is not None
    assert snapshot.status.optime == 42


def test_moving_the_key_to_a_new_session_keeps_the_epoch(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    session = client.open_session(2 * TTL_S, CALL_S)
    moved = client.move_leader(handle, session, "pg0", CALL_S)
    if not client.moves_leader:
        assert isinstance(moved, Conflict)
        assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)
        return
    assert moved == Taken(LeaseHandle(session, handle.epoch))
    assert isinstance(moved, Taken)
    assert isinstance(client.move_leader(handle, session, "pg0", CALL_S), Conflict)
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    assert isinstance(client.close_session(handle.session, CALL_S), Ok)
    renewed = client.renew_leader(moved.handle, "pg0", CALL_S)
    assert isinstance(renewed, Renewed)
    assert renewed.guaranteed_s == client.guaranteed_s(2 * TTL_S)


def test_moving_to_an_unknown_session_changes_nothing(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(client.move_leader(handle, "4711", "pg0", CALL_S), Conflict)
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)


def test_only_the_leader_writes_as_leader(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(client.put_if_leader(handle, "pg0", "status", '{"optime":5}', CALL_S), Ok)
    assert isinstance(client.release_leader(handle, "pg0", CALL_S), Ok)
    assert isinstance(client.put_if_leader(handle, "pg0", "status", '{"optime":9}', CALL_S), Conflict)
    again = take(client, "pg0")
    stale = LeaseHandle(again.session, handle.epoch)
    assert isinstance(client.put_if_leader(stale, "pg0", "status", '{"optime":9}', CALL_S), Conflict)
    status = client.snapshot(CALL_S).status
    assert status is not None
    assert status.optime == 5


# --- sessions -------------------------------------------------------------------------------------


def test_an_expired_session_takes_its_keys_along_and_not_too_early(store: Store) -> None:
    ttl_s = 2.0
    watcher, client = store.client(), store.client()
    events = Events(watcher)
    handle = take(client, "pg0", ttl_s)
    assert isinstance(client.put_member(handle.session, "pg0", "{}", CALL_S), Ok)
    assert isinstance(client.put("status", "1", CALL_S), Ok)
    renewed = client.renew_leader(handle, "pg0", CALL_S)
    assert isinstance(renewed, Renewed)
    store.let_expire(events, "leader")
    assert store.now() >= renewed.sent_at + renewed.guaranteed_s
    left = watcher.snapshot(CALL_S)
    assert left.leader is None
    assert left.members == ()
    assert left.status is not None
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    assert isinstance(client.renew_session(handle.session, CALL_S), Refused)
    assert isinstance(client.put_member(handle.session, "pg0", "{}", CALL_S), Conflict)


def test_a_closed_session_takes_its_keys_along_at_once(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    assert isinstance(client.put_member(handle.session, "pg0", "{}", CALL_S), Ok)
    assert isinstance(client.create("initialize", "", CALL_S, session=handle.session), Ok)
    assert isinstance(client.close_session(handle.session, CALL_S), Ok)
    left = client.snapshot(CALL_S)
    assert (left.leader, left.members, left.initialize) == (None, (), None)
    assert isinstance(client.close_session(handle.session, CALL_S), Ok)


def test_closing_a_client_does_not_end_its_session(store: Store) -> None:
    client = store.client()
    handle = take(client, "pg0")
    client.close()
    assert isinstance(store.client().renew_leader(handle, "pg0", CALL_S), Renewed)


def test_a_plain_put_detaches_the_key_from_its_session(store: Store) -> None:
    client = store.client()
    session = client.open_session(TTL_S, CALL_S)
    assert isinstance(client.create("initialize", "", CALL_S, session=session), Ok)
    assert isinstance(client.put("initialize", "7277694203142172922", CALL_S), Ok)
    assert isinstance(client.close_session(session, CALL_S), Ok)
    assert client.snapshot(CALL_S).initialize == "7277694203142172922"


def test_a_member_names_the_session_it_hangs_on(store: Store) -> None:
    client = store.client()
    session = client.open_session(TTL_S, CALL_S)
    assert isinstance(client.put_member(session, "pg0", '{"state":"running"}', CALL_S), Ok)
    member = client.snapshot(CALL_S).member("pg0")
    assert member is not None
    assert (member.session, member.state) == (session, "running")


# --- other keys -----------------------------------------------------------------------------------


def test_of_ten_writers_at_one_version_one_wins(store: Store) -> None:
    clients = [store.client() for _ in range(10)]
    first = clients[0].compare_and_set("sync", "{}", 0, CALL_S)
    assert isinstance(first, Ok)
    results = at_once(
        [
            partial(client.compare_and_set, "sync", f'{{"leader":"pg{i}"}}', first.version, CALL_S)
            for i, client in enumerate(clients)
        ]
    )
    won = [result for result in results if isinstance(result, Ok)]
    assert len(won) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 9
    sync = clients[0].snapshot(CALL_S).sync
    assert sync is not None
    assert sync.version == won[0].version


def test_version_zero_means_only_if_absent(store: Store) -> None:
    client = store.client()
    assert isinstance(client.compare_and_set("sync", "{}", 7, CALL_S), Conflict)
    written = client.compare_and_set("sync", "{}", 0, CALL_S)
    assert isinstance(written, Ok)
    assert isinstance(client.compare_and_set("sync", "{}", 0, CALL_S), Conflict)
    assert isinstance(client.compare_and_set("sync", "{}", written.version, CALL_S), Ok)
    assert isinstance(client.compare_and_set("sync", "{}", written.version, CALL_S), Conflict)


def test_create_is_for_absent_keys_only(store: Store) -> None:
    client = store.client()
    results = at_once([partial(client.create, "initialize", str(i), CALL_S) for i in range(5)])
    assert sum(isinstance(result, Ok) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 4


def test_delete_at_a_version(store: Store) -> None:
    client = store.client()
    written = client.put("failover", "{}", CALL_S)
    assert isinstance(written, Ok)
    assert client.snapshot(CALL_S).failover_version == written.version
    assert isinstance(client.delete("failover", CALL_S, version=written.version + 1), Conflict)
    assert isinstance(client.delete("failover", CALL_S, version=written.version), Ok)
    assert isinstance(client.delete("failover", CALL_S, version=written.version), Ok)  # absent is fine
    assert isinstance(client.delete("failover", CALL_S), Ok)
    assert client.snapshot(CALL_S).failover_version == 0


def test_clusters_do_not_see_each_other(store: Store) -> None:
    one, other = store.client("apple"), store.client("apple2")
    take(one, "pg0")
    assert isinstance(other.put("status", "7", CALL_S), Ok)
    assert one.snapshot(CALL_S).status is None
    assert other.snapshot(CALL_S).leader is None
    assert isinstance(one.delete_cluster(CALL_S), Ok)
    assert one.snapshot(CALL_S).leader is None
    assert other.snapshot(CALL_S).status is not None
    assert isinstance(other.delete_cluster(CALL_S), Ok)


KEYS = [
    *("initialize", "config", "leader", "members/bad", "status", "sync", "failover", "history", "failsafe"),
    *("haagent_claims", "optime/leader", "members/", "members/a/b"),
]
HOSTILE = ["{", "[" * 5000, '{"a":' * 500, "\0\x1b[2J", "NaN", '"\\ud800"', "9" * 100_000, "☃" * 1000]


@pytest.mark.parametrize("value", HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_hostile_values_break_nothing_but_their_key(store: Store, value: str) -> None:
    client = store.client()
    session = client.open_session(TTL_S, CALL_S)
    assert isinstance(client.put_member(session, "good", '{"state":"running"}', CALL_S), Ok)
    for key in KEYS:
        assert isinstance(client.put(key, value, CALL_S), Ok)
    seen = client.snapshot(CALL_S)
    assert [member.name for member in seen.members] == ["good"]
    assert {"config", "status", "sync", "history"} <= {broken.key for broken in seen.broken}
    assert isinstance(client.put("history", "[]", CALL_S), Ok)
    assert client.snapshot(CALL_S).history == ()
    # A hostile holder of the leader key keeps us out, but has no hold on what we answer.
    assert isinstance(client.take_leader(session, "pg0", CALL_S), Conflict)


def test_a_value_of_a_megabyte_comes_back(store: Store) -> None:
    client = store.client()
    data = {"pg_hba": ["x" * 1000] * 1000}
    assert isinstance(client.put("config", codec.encode_config(data), CALL_S), Ok)
    config = client.snapshot(CALL_S).config
    assert config is not None
    assert config.data == data


# --- watching -------------------------------------------------------------------------------------


def test_a_watch_tells_created_changed_and_deleted(store: Store) -> None:
    watcher, client = store.client(), store.client()
    events = Events(watcher)
    handle = take(client, "pg0")
    assert events.until_key("leader") == KeyEvent("leader", created=True)
    assert isinstance(client.put_if_leader(handle, "pg0", "config", "{}", CALL_S), Ok)
    assert events.until_key("config") == KeyEvent("config", created=True)
    assert isinstance(client.put("config", '{"ttl":30}', CALL_S), Ok)
    assert events.until_key("config") == KeyEvent("config")
    assert isinstance(client.close_session(handle.session, CALL_S), Ok)
    assert events.until_key("leader") == KeyEvent("leader", deleted=True)


def test_a_closed_watch_is_silent(store: Store) -> None:
    watcher, client = store.client(), store.client()
    closed, control = Events(watcher), Events(watcher)
    closed.watch.close()
    closed.watch.close()
    assert isinstance(client.put("status", "1", CALL_S), Ok)
    control.until_key("status")
    assert isinstance(client.put("history", "[]", CALL_S), Ok)
    control.until_key("history")
    assert closed.pending() == []
