"""Synchronous modes: which write comes next, who may be promoted, and what a promotion waits for (rule 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, ClusterSnapshot, SyncState
from haagent.core.actions import DeleteSync, Promote, PublishSync, SetSyncNames, WriteSync
from haagent.core.candidate import standing
from haagent.core.model import Decision, Memory, Observation, SyncSeen
from haagent.core.operations import hides_leadership
from haagent.core.settings import SyncMode
from postgres_ctl.facts import InstanceSample, Lsn
from postgres_ctl.sync_standbys import nobody
from tests.unit.core_facts import (
    EPOCH,
    NOW,
    OPTIME,
    REMEMBERS,
    SETTINGS,
    answer,
    asked,
    cluster,
    following,
    judge,
    leading,
    lease,
    lost_stream,
    member,
    primary,
    racing,
    request,
    sample,
    sender,
    standby,
    tags,
)

PRIORITY = replace(SETTINGS, synchronous_mode=SyncMode.PRIORITY)
STRICT = replace(PRIORITY, synchronous_mode_strict=True)
QUORUM = replace(SETTINGS, synchronous_mode=SyncMode.QUORUM)
TWO = replace(PRIORITY, synchronous_node_count=2)


def key(*standbys: str, leader: str | None = "pg0", quorum: int = 0) -> SyncState:
    return SyncState(leader, standbys, quorum, 6)


def view(sync: SyncState | None, **changes: Any) -> ClusterSnapshot:
    return cluster(sync=sync, sync_version=6 if sync is not None else 0, **changes)


def seen(
    sync: SyncState | None,
    names: str,
    *senders: Any,
    settings: Any = PRIORITY,
    file: str | None = None,
    **more: Any,
) -> Observation:
    """`pg0` leads; `names` is in force there, and `file` in its file, if that is another one."""
    says = replace(sample(primary=True), sync_names=names, senders=senders or (sender("pg1"), sender("pg2")))
    here = primary(sample=says, sync_names=names if file is None else file)
    broken = more.pop("broken", ())
    return leading(
        here, replace(view(sync, **more.pop("store", {})), broken=broken), settings=settings, **more
    )


def caught_up(names: str, flushed: int = OPTIME) -> Memory:
    """The setting was seen in force, and published, when WAL ended at `flushed`."""
    noted = SyncSeen(77, names, True, Lsn(flushed), flushed_at=NOW - 1, primary_since=NOW - 100)
    return Memory(checkpointed_epoch=EPOCH, sync=noted)


def waited_for(name: str, state: str = "sync", flushed: int = OPTIME) -> Any:
    return sender(name, flushed, sync_state=state, sync_priority=1)


def next_write(obs: Observation, memory: Memory | None = None) -> Any:
    """(names, quorum) written to `/sync`, or the text of the setting, or None."""
    decision = judge(obs, memory or Memory(checkpointed_epoch=EPOCH))
    for action in decision.actions:
        if isinstance(action, WriteSync):
            assert action.guard.epoch == EPOCH
            return action.standbys, action.quorum
        if isinstance(action, SetSyncNames | PublishSync | DeleteSync):
            return action.names if isinstance(action, SetSyncNames) else type(action)
    return None


# --- the primary, by priority ---------------------------------------------------------------------


def test_switching_on_writes_the_leader_first_then_whom_commits_wait_for() -> None:
    assert next_write(seen(None, "")) == ((), 0)
    assert judge(seen(None, "")).rule == "leader.sync"
    assert next_write(seen(key(leader=None), "")) == ((), 0)
    assert next_write(seen(key(), "")) == "pg1"


def test_nobody_is_named_before_a_checkpoint_has_published_the_setting_and_he_has_caught_up() -> None:
    obs = seen(key(), "pg1", waited_for("pg1"), sender("pg2"))
    assert next_write(obs) is PublishSync
    assert next_write(replace(obs, background=("publish sync",))) is None
    assert next_write(obs, caught_up("pg1", OPTIME + 8)) is None
    assert next_write(obs, caught_up("")) is PublishSync
    assert next_write(obs, caught_up("pg1")) == (("pg1",), 0)
    assert next_write(seen(key("pg1"), "pg1", waited_for("pg1")), caught_up("pg1")) is None


def test_an_agent_that_is_started_again_goes_on_where_the_last_one_was() -> None:
    """It notes anew how far standbys have to be, without another CHECKPOINT."""
    both = (waited_for("pg1"), waited_for("pg2"))
    obs = seen(key("pg1"), "2 (pg1,pg2)", *both, settings=TWO)
    noted = judge(obs, Memory(checkpointed_epoch=EPOCH)).memory
    says = obs.instance.sample
    assert isinstance(says, InstanceSample)
    later = replace(obs, instance=replace(obs.instance, sample=replace(says, sampled_at=NOW)))
    assert next_write(later, noted) == (("pg1", "pg2"), 0)


def test_another_standby_takes_the_place_of_one_that_is_gone() -> None:
    gone = sender("pg2")
    assert next_write(seen(key("pg1"), "pg1", gone)) == ((), 0)
    assert next_write(seen(key(), "pg1", gone)) == "pg2"
    assert next_write(seen(key(), "", sender("pg1", state="catchup"))) is None


def test_without_a_standby_commits_go_on_alone_unless_that_is_forbidden() -> None:
    nobody_streams = (sender("stranger"),)
    assert next_write(seen(key("pg1"), "pg1", *nobody_streams)) == ((), 0)
    assert next_write(seen(key(), "pg1", *nobody_streams)) == ""
    assert next_write(seen(key("pg1"), "pg1", *nobody_streams, settings=STRICT)) is None
    assert next_write(seen(key(), "", *nobody_streams, settings=STRICT)) == nobody(False).text
    assert next_write(seen(key(), "*", *nobody_streams, settings=STRICT)) == nobody(False).text


def test_while_the_setting_is_on_its_way_it_is_told_again_and_nothing_else_is_done() -> None:
    obs = seen(key(), "", file="pg1")
    assert next_write(obs) == "pg1"
    told = Memory(checkpointed_epoch=EPOCH, sync=SyncSeen(77, set_at=NOW - 0.1))
    assert next_write(obs, told) is None
    assert next_write(seen(key("pg1"), "", file="pg1"), told) == ((), 0)


def test_a_write_that_may_still_arrive_is_overtaken_before_the_setting_changes() -> None:
    obs = seen(key("pg2"), "pg2", waited_for("pg2"), sender("pg1"), sync_in_doubt=True, settings=TWO)
    assert next_write(obs) == (("pg2",), 0)
    assert next_write(replace(obs, sync_in_doubt=False)) == "2 (pg1,pg2)"


def test_tags_and_lag_choose() -> None:
    members = (member("pg0"), member("pg1", tags=tags(nosync=True)), member("pg2"))
    assert next_write(seen(key(), "", store={"members": members})) == "pg2"
    members = (member("pg0"), member("pg1"), member("pg2", tags=tags(sync_priority=5)))
    assert next_write(seen(key(), "", store={"members": members})) == "pg2"
    members = (member("pg0"), member("pg1", tags=tags(nofailover=True)), member("pg2"))
    assert next_write(seen(key(), "", store={"members": members})) == "pg2"
    behind = (sender("pg1", OPTIME - 200), sender("pg2"))
    limited = replace(TWO, maximum_lag_on_syncnode_bytes=100)
    assert next_write(seen(key(), "", *behind, settings=limited)) == "pg2"
    assert next_write(seen(key(), "", *behind, settings=TWO)) == "2 (pg1,pg2)"
    assert next_write(seen(key(), "", sender("pg1", OPTIME - 200), settings=limited)) is None


def test_switching_off_takes_the_key_away_then_the_users_setting_counts() -> None:
    obs = seen(key("pg1"), "pg1", settings=SETTINGS)
    assert next_write(obs) is DeleteSync
    gone = seen(None, "pg1", settings=SETTINGS)
    assert next_write(gone) == ""
    users = replace(gone, instance=replace(gone.instance, user_sync_names="other"))
    assert next_write(users) == "other"


def test_garbage_is_written_over_and_the_primary_stays() -> None:
    obs = seen(None, "pg1", broken=(Broken("sync", "garbage"),))
    assert next_write(obs) == ((), 0)


def test_in_a_pause_as_well() -> None:
    paused = replace(PRIORITY, pause=True)
    assert next_write(seen(key(), "", settings=paused, lease=lease(disarmed=True))) == "pg1"


# --- the primary, by quorum -----------------------------------------------------------------------


def test_by_quorum_all_standbys_vote() -> None:
    both = "ANY 1 (pg1,pg2)"
    assert next_write(seen(key(), "", settings=QUORUM)) == both
    votes = (waited_for("pg1", "quorum"), waited_for("pg2", "quorum"))
    assert next_write(seen(key(), both, *votes, settings=QUORUM), caught_up(both)) == (("pg1", "pg2"), 1)
    lone = (waited_for("pg1", "quorum"),)
    with_two = key("pg1", "pg2", quorum=1)
    assert next_write(seen(with_two, both, *lone, settings=QUORUM), caught_up(both)) == "ANY 1 (pg1)"


def test_a_new_leader_makes_the_last_one_a_voter_and_waits_for_the_others() -> None:
    both = "ANY 1 (pg1,pg2)"
    obs = seen(key("pg0", "pg2", leader="pg1", quorum=1), both, settings=QUORUM)
    assert next_write(obs) == (("pg1", "pg2"), 1)
    alone = seen(key("pg0", "pg2", leader="pg1", quorum=1), "", settings=QUORUM)
    assert next_write(alone) == ((), 0)
    reconnecting = seen(key("pg1", "pg2", quorum=1), both, sender("stranger"), settings=QUORUM)
    just_now = Memory(checkpointed_epoch=EPOCH, sync=SyncSeen(77, both, True, primary_since=NOW - 1))
    assert next_write(reconnecting, just_now) is None
    long_ago = replace(just_now, sync=replace(just_now.sync, primary_since=NOW - 100))
    assert next_write(reconnecting, long_ago) == ((), 0)


# --- standbys -------------------------------------------------------------------------------------


def refusals(obs: Observation) -> dict[str, str]:
    return {r.rule: r.detail for r in standing(obs, REMEMBERS).refusals}


def race(sync: SyncState | None, *answers: Any, settings: Any = PRIORITY, **changes: Any) -> Observation:
    left = tuple(member(n) for n in ("pg1", "pg2"))
    store = view(sync, leader=None, members=left, **changes)
    return racing(lost_stream(), store, settings=settings, peers=answers or (answer("pg2"),))


def test_only_a_synchronous_standby_may_lead() -> None:
    assert refusals(race(key("PG1"))) == {}
    assert refusals(race(None)) == {}
    assert refusals(race(key(leader=None))) == {}
    assert set(refusals(race(key("pg2")))) == {"sync.member"}
    assert set(refusals(race(None, broken=(Broken("sync", "garbage"),)))) == {"sync.member"}
    assert refusals(race(key("pg2"), settings=SETTINGS)) == {}


def test_only_an_operator_waives_that_and_is_told_what_it_may_cost() -> None:
    forced = race(key("pg2"), failover=request(None, "pg1"), failover_version=9)
    assert refusals(forced) == {}
    planned = race(key("pg2"), failover=request("pg0", "pg1"), failover_version=9, settings=QUORUM)
    assert "sync.member" in refusals(planned)


def test_wal_of_others_was_never_acknowledged() -> None:
    assert refusals(race(key("pg1"), answer("pg2", OPTIME + 800))) == {}
    assert set(refusals(race(key("pg1", "pg2"), answer("pg2", OPTIME + 800)))) == {"peer.ahead"}


def test_who_takes_over_may_be_behind_what_was_never_acknowledged() -> None:
    """Also once it is the leader in `/sync`: it wrote that itself, before its promotion."""
    for leader in ("pg0", "pg1"):
        behind = race(key("pg1", "pg2", leader=leader))
        store = behind.cluster
        assert isinstance(store, ClusterSnapshot)
        assert store.status is not None
        ahead = replace(store, status=replace(store.status, optime=OPTIME + 8))
        assert refusals(replace(behind, cluster=ahead)) == {}


@pytest.mark.parametrize(
    ("voter", "enough"),
    [
        (answer("pg2"), True),
        (answer("pg2", OPTIME - 8), True),
        (answer("pg2", OPTIME + 8), False),
        (answer("pg2", position_is_proven=False), False),
        (answer("pg2", is_haagent=False, received=None), False),
        (answer("pg2", timeline=2), False),
    ],
)
def test_by_quorum_votes_decide(voter: Any, enough: bool) -> None:
    obs = race(key("pg1", "pg2", quorum=1), voter, settings=QUORUM)
    assert ("sync.votes" not in refusals(obs)) is enough
    # Whoever is no voter needs one more.
    outside = race(key("pg2", "pg3", quorum=1), voter, settings=QUORUM)
    assert "sync.votes" in refusals(outside)


def test_a_quorum_in_the_key_binds_whatever_the_mode_is_by_now() -> None:
    assert "sync.votes" in refusals(race(key("pg1", "pg2", quorum=2), settings=PRIORITY))


def test_standbys_get_ready_to_make_commits_wait_from_the_first_one_on() -> None:
    text = nobody(False).text
    says = replace(sample(), sync_names=text)
    obs = following(standby(sample=says, sync_names=text), settings=STRICT)
    assert PublishSync in {type(action) for action in judge(obs).actions}
    ready = Memory(sync=SyncSeen(77, text, True))
    assert PublishSync not in {type(action) for action in judge(obs, ready).actions}


# --- before a promotion ---------------------------------------------------------------------------


def promoting(sync: SyncState | None, names: str = "", settings: Any = PRIORITY, **more: Any) -> Decision:
    """`pg1` has taken the key."""
    here = lost_stream()
    assert isinstance(here.sample, InstanceSample)
    force = more.pop("force", names)
    here = replace(here, sample=replace(here.sample, sync_names=force), sync_names=names)
    left = tuple(member(n) for n in ("pg1", "pg2"))
    store = view(sync, leader=None, members=left)
    obs = racing(here, store, settings=settings, lease=lease(), **more)
    assert isinstance(obs.cluster, ClusterSnapshot)
    taken = cluster(leader="pg1").leader
    noted = SyncSeen(77, names, True, set_at=NOW - 0.1)
    return judge(replace(obs, cluster=replace(obs.cluster, leader=taken)), replace(REMEMBERS, sync=noted))


def writes(decision: Decision) -> Any:
    action = decision.actions[0]
    if isinstance(action, WriteSync):
        return action.leader, action.standbys, action.quorum
    return action.names if isinstance(action, SetSyncNames) else type(action)


def test_by_priority_the_key_names_the_new_leader_alone_before_it_is_promoted() -> None:
    first = promoting(key("pg1"))
    assert first.rule == "promote.sync"
    assert writes(first) == ("pg1", (), 0)
    again = promoting(key(leader="pg1"), sync_in_doubt=True)
    assert writes(again) == ("pg1", (), 0)
    then = promoting(key(leader="pg1"))
    assert Promote in {type(action) for action in then.actions}


def test_in_strict_mode_commits_wait_for_the_others_that_were_in_it() -> None:
    assert writes(promoting(key("pg1", "pg2"), nobody(False).text, STRICT)) == ("pg1", ("pg2",), 0)
    assert writes(promoting(key("pg2", leader="pg1"), nobody(False).text, STRICT)) == "pg2"
    waiting = promoting(key("pg2", leader="pg1"), "pg2", STRICT, force=nobody(False).text)
    assert waiting.rule == "promote.sync-wait"
    then = promoting(key("pg2", leader="pg1"), "pg2", STRICT)
    assert Promote in {type(action) for action in then.actions}


def test_by_quorum_commits_wait_for_so_many_that_the_next_candidate_has_them() -> None:
    key_before = key("pg1", "pg2", quorum=1)
    first = promoting(key_before, nobody(True).text, QUORUM)
    assert writes(first) == ("pg1", ("pg0", "pg2"), 1)
    mine = key("pg0", "pg2", leader="pg1", quorum=1)
    assert writes(promoting(mine, nobody(True).text, QUORUM)) == "ANY 1 (pg0,pg2)"
    then = promoting(mine, "ANY 1 (pg0,pg2)", QUORUM)
    assert Promote in {type(action) for action in then.actions}


# --- restart quarantine ---------------------------------------------------------------------------


def test_in_strict_mode_clients_wait_until_a_standby_has_what_a_primary_began_with() -> None:
    fresh = Memory(sync=SyncSeen(pid=0))
    behind = seen(key("pg1"), "pg1", waited_for("pg1", flushed=OPTIME - 8), settings=STRICT)
    hidden = judge(behind, fresh).memory
    assert hides_leadership(behind, hidden)
    has_it = seen(key("pg1"), "pg1", waited_for("pg1"), settings=STRICT)
    assert not hides_leadership(has_it, judge(has_it, hidden).memory)
    unlisted = seen(key("pg2"), "pg1", waited_for("pg1"), settings=STRICT)
    assert hides_leadership(unlisted, judge(unlisted, hidden).memory)
    assert not hides_leadership(behind, judge(replace(behind, settings=PRIORITY), fresh).memory)


def test_a_request_is_handed_over_to_synchronous_standbys_only() -> None:
    wish = asked(view(key("pg2")), request("pg0", "pg1"))
    obs = replace(
        seen(key("pg2"), "pg2", waited_for("pg2"), sender("pg1")), cluster=wish, peers={"pg1": answer("pg1")}
    )
    assert "not a synchronous standby" in judge(obs).reason
