"""Which physical member slots exist where, how far they move, and when they go (contract 6.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Broken, Status
from haagent.core.actions import SyncSlots
from haagent.core.cascade import cascade_source
from haagent.core.memory import absorb
from haagent.core.model import Identity, Instance, Memory, Observation
from haagent.core.settings import Settings
from haagent.core.slot_config import PermanentSlot, SlotMatcher
from haagent.core.slots import plan, positions, retained, to_retain, wanted
from haagent.core.standby_cluster import RemoteNode, StandbyCluster
from postgres_ctl.facts import InstanceSample, Lsn, Slot
from tests.unit.core_facts import (
    DOWN,
    NOW,
    OPTIME,
    SETTINGS,
    cluster,
    following,
    leading,
    lost_stream,
    member,
    obs,
    paused,
    primary,
    silent,
    slot,
    standby,
    tags,
)

TTL = SETTINGS.member_slots_ttl_s
TWO = cluster(members=(member("pg0"), member("pg1")))


def with_slots(instance: Instance, *slots: Slot) -> Instance:
    assert isinstance(instance.sample, InstanceSample)
    return replace(instance, sample=replace(instance.sample, slots=slots))


def planned(seen: Observation, memory: Memory | None = None) -> SyncSlots | None:
    """As the agent does it: memory first takes in what is seen."""
    return plan(seen, absorb(seen, memory if memory is not None else Memory()))


def set_of(seen: Observation, memory: Memory) -> set[str]:
    return set(wanted(seen, memory))


def gone(seconds_ago: float) -> Memory:
    return Memory(slots_seen={"pg2": NOW - seconds_ago})


# --- which ----------------------------------------------------------------------------------------


def test_every_member_keeps_a_slot_for_every_other() -> None:
    assert set_of(leading(primary()), Memory()) == {"pg1", "pg2"}
    assert set_of(following(standby()), Memory()) == {"pg0", "pg2"}


def test_when_all_is_well_nothing_is_done() -> None:
    assert planned(leading(primary())) is None
    assert planned(following(standby())) is None


def test_missing_slots_are_created() -> None:
    assert planned(leading(with_slots(primary(), slot("pg1")))) == SyncSlots(create=("pg2",))


def test_a_member_that_never_streams_gets_no_slot() -> None:
    view = cluster(
        members=(member("pg0"), member("pg1"), member("pg2", tags=tags(nostream=True))), status=None
    )
    seen = leading(with_slots(primary(), slot("pg1")), view)
    assert planned(seen) is None
    assert retained(seen, absorb(seen, Memory())) == {"pg1"}


def test_without_use_slots_none_is_made() -> None:
    off = replace(SETTINGS, use_slots=False)
    assert planned(leading(with_slots(primary()), settings=off)) is None


def test_without_a_server_or_a_store_there_is_no_plan() -> None:
    assert planned(leading(silent())) is None
    assert planned(leading(primary(), DOWN)) is None


# --- members that are gone ------------------------------------------------------------------------


def test_a_member_gone_for_a_while_keeps_its_slot() -> None:
    assert planned(leading(primary(), TWO), gone(TTL - 1)) is None


@pytest.mark.parametrize("role", ["leader", "standby"])
def test_a_member_gone_for_too_long_loses_its_slot_everywhere(role: str) -> None:
    """On a standby as well, although the leader has taken the name out of `status` a moment earlier."""
    view = replace(TWO, status=Status(OPTIME, {}, ("pg0", "pg1")))
    idle = slot("pg2", active=False)
    seen: Any = (
        leading(with_slots(primary(), slot("pg1"), idle), view)
        if role == "leader"
        else following(with_slots(standby(), slot("pg0", active=False), idle), view)
    )
    assert planned(seen, gone(TTL + 1)) == SyncSlots(drop=("pg2",))


def test_a_slot_in_use_is_not_dropped() -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2")), TWO)
    assert planned(seen, gone(TTL + 1)) is None


def test_an_agent_that_was_restarted_keeps_what_the_leader_retains() -> None:
    """It has not seen the member itself; the slot's time begins anew rather than end at once."""
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", active=False)), TWO)
    assert planned(seen) is None


def test_what_is_retained_runs_out_although_the_store_still_names_it() -> None:
    """Else leader and status would keep each other's names alive for ever."""
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", active=False)), TWO)
    memory = absorb(seen, Memory())
    later = replace(seen, now=NOW + TTL + 1)
    memory = absorb(later, memory)
    assert retained(later, memory) == {"pg1"}
    assert plan(later, memory) == SyncSlots(drop=("pg2",))


def test_paused_no_slot_is_given_up() -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", active=False)), TWO, settings=paused())
    assert planned(seen, gone(TTL + 1)) is None


# --- broken ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [{"restart": None}, {"wal_status": "lost"}])
def test_a_slot_that_keeps_nothing_is_made_anew(broken: dict[str, Any]) -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", **{"active": False, **broken})))
    assert planned(seen) == SyncSlots(create=("pg2",), drop=("pg2",))


def test_slots_of_other_kinds_are_not_ours() -> None:
    passing = replace(slot("backup", active=False), temporary=True)
    in_use = replace(slot("cdc"), type="logical")
    assert planned(leading(with_slots(primary(), slot("pg1"), slot("pg2"), passing, in_use))) is None


def test_what_holds_back_vacuum_for_nobody_is_made_anew() -> None:
    """Its member streams from the leader now; on the leader itself it will come back at once."""
    held = slot("pg2", active=False, xmin_set=True)
    assert planned(leading(with_slots(primary(), slot("pg1"), held))) is None
    assert planned(following(with_slots(standby(), slot("pg0", active=False), held))) == SyncSlots(
        create=("pg2",), drop=("pg2",)
    )
    nobody = cluster(leader=None)
    assert planned(obs("pg1", with_slots(standby(), slot("pg0", active=False), held), nobody)) is None


# --- unknown ones ---------------------------------------------------------------------------------


STRANGER = replace(slot("backup", active=False))
WHOLE = (slot("pg1"), slot("pg2"))


@pytest.mark.parametrize("kind", ["physical", "logical"])
def test_a_slot_that_nobody_wants_is_dropped(kind: str) -> None:
    """It would keep WAL until the disk is full."""
    unknown = replace(STRANGER, type=kind)
    dropped = planned(leading(with_slots(primary(), *WHOLE, unknown)))
    assert dropped == SyncSlots(drop=("backup",))
    assert dropped.why == {"backup": "unknown"}


@pytest.mark.parametrize(
    "changes",
    [
        {"slots_unclear": True},
        {"use_slots": False},
        {"pause": True},
        {"ignore_slots": (SlotMatcher(name="backup"),)},
        {"ignore_slots": (SlotMatcher(database="other"), SlotMatcher(type="physical"))},
    ],
)
def test_a_slot_is_not_called_unknown_where(changes: dict[str, Any]) -> None:
    told = replace(SETTINGS, **changes)
    seen = leading(with_slots(primary(), *WHOLE, STRANGER), settings=told)
    done = planned(seen)
    assert done is None or "backup" not in done.drop


@pytest.mark.parametrize("key", ["config", "status"])
def test_nor_while_the_store_cannot_be_read(key: str) -> None:
    view = replace(cluster(), broken=(Broken(key, "not JSON"),))
    assert planned(leading(with_slots(primary(), *WHOLE, STRANGER), view)) is None
    empty = replace(cluster(), config=None)
    assert planned(leading(with_slots(primary(), *WHOLE, STRANGER), empty)) is None


def test_a_matcher_wants_all_it_names() -> None:
    here = replace(STRANGER, type="logical", database="app", plugin="pgoutput")
    assert SlotMatcher(type="logical", database="app").matches(here)
    assert not SlotMatcher(name="backup", plugin="wal2json").matches(here)


def test_slots_that_postgresql_keeps_in_step_are_its_own() -> None:
    """But one that was left of a time as primary keeps PostgreSQL from making its own."""
    left = replace(STRANGER, type="logical", failover=True)
    assert planned(leading(with_slots(primary(), *WHOLE, left))) is None
    mine = slot("pg0", active=False), slot("pg2", active=False)
    assert planned(following(with_slots(standby(), *mine, replace(left, synced=True)))) is None
    assert planned(following(with_slots(standby(), *mine, left))) == SyncSlots(drop=("backup",))


# --- permanent ones -------------------------------------------------------------------------------


def permanent(*slots: PermanentSlot, **changes: Any) -> Settings:
    return replace(SETTINGS, permanent_slots={s.name: s for s in slots}, **changes)


ARCHIVE = PermanentSlot("archive")


def test_permanent_physical_slots_are_everywhere() -> None:
    told = permanent(ARCHIVE, PermanentSlot("pg1"))
    assert planned(leading(primary(), settings=told)) == SyncSlots(create=("archive",))
    assert planned(following(standby(), settings=told)) == SyncSlots(create=("archive",))


def test_but_not_on_members_that_never_lead() -> None:
    me = Identity("pg1", "demo", tags(nofailover=True))
    assert set_of(following(standby(), me=me, settings=permanent(ARCHIVE)), Memory()) == set()


def test_the_type_of_cluster_limits_them() -> None:
    told = permanent(replace(ARCHIVE, cluster_type="standby"), PermanentSlot("b", cluster_type="primary"))
    assert set_of(leading(primary(), settings=told), Memory()) == {"pg1", "pg2", "b"}
    follows = replace(told, standby_cluster=StandbyCluster(RemoteNode("east")))
    assert set_of(leading(primary(), settings=follows), Memory()) == {"pg1", "pg2", "archive"}


def test_one_of_another_type_is_made_anew() -> None:
    wrong = replace(slot("archive", active=False), type="logical")
    told = permanent(ARCHIVE)
    assert planned(leading(with_slots(primary(), *WHOLE, wrong), settings=told)) == SyncSlots(
        create=("archive",), drop=("archive",)
    )


def test_on_a_standby_they_follow_their_consumers() -> None:
    told = permanent(ARCHIVE)
    view = cluster(status=Status(OPTIME, {"archive": OPTIME - 3}, ()))
    mine = slot("pg0", active=False), slot("pg2", active=False)
    behind = slot("archive", OPTIME - 8, active=False)
    assert planned(following(with_slots(standby(), *mine, behind), view, settings=told)) == SyncSlots(
        advance={"archive": Lsn(OPTIME - 3)}
    )
    on_leader = with_slots(primary(), *WHOLE, behind)
    assert planned(leading(on_leader, view, settings=told)) is None


def test_positions_of_another_history_move_nothing() -> None:
    """WAL of this standby may have left the leader's line: the same number is another place there (H15)."""
    behind = (slot("pg0", OPTIME - 8, active=False), slot("pg2", active=False))
    alone = with_slots(lost_stream(), *behind)
    assert planned(following(alone)) is None
    archive = Identity("pg1", "demo", tags(nostream=True))
    assert planned(following(alone, me=archive)) == SyncSlots(advance={"pg0": Lsn(OPTIME)})
    other = cluster(members=(member("pg0", timeline=2), member("pg1"), member("pg2")))
    assert planned(following(alone, other, me=archive)) is None


def test_the_leader_publishes_what_it_looks_after() -> None:
    told = permanent(ARCHIVE, PermanentSlot("cdc", "logical", "app", "pgoutput"))
    cdc = replace(
        slot("cdc", OPTIME - 9),
        type="logical",
        database="app",
        plugin="pgoutput",
        confirmed_flush_lsn=Lsn(OPTIME - 7),
    )
    here = with_slots(primary(), *WHOLE, slot("archive", OPTIME - 5), cdc, slot("stranger"))
    seen = leading(here, settings=told)
    memory = absorb(seen, Memory())
    shown = {"archive": OPTIME - 5, "cdc": OPTIME - 7}
    assert isinstance(here.sample, InstanceSample)
    members = {"pg0": OPTIME, "pg1": OPTIME, "pg2": OPTIME}
    assert positions(seen, memory, here.sample) == {**shown, **members}
    assert to_retain(seen, memory) == ("pg0", "pg1", "pg2")
    only = replace(seen, settings=replace(told, member_slots_ttl_s=0))
    assert positions(only, memory, here.sample) == shown
    assert to_retain(only, memory) == ()


# --- positions ------------------------------------------------------------------------------------


def test_on_a_standby_slots_follow_what_the_leader_publishes() -> None:
    behind = with_slots(standby(), slot("pg0", OPTIME - 8, active=False), slot("pg2", active=False))
    assert planned(following(behind)) == SyncSlots(advance={"pg0": Lsn(OPTIME)})


def test_on_a_standby_no_slot_moves_beyond_what_was_replayed() -> None:
    slow = with_slots(standby(OPTIME - 4), slot("pg0", OPTIME - 8, active=False), slot("pg2", active=False))
    assert planned(following(slow)) == SyncSlots(advance={"pg0": Lsn(OPTIME - 4)})


def test_on_a_standby_a_slot_in_use_is_not_moved() -> None:
    cascade = with_slots(standby(), slot("pg0", OPTIME - 8), slot("pg2", active=False))
    assert planned(following(cascade)) is None


def test_on_the_leader_no_slot_is_moved() -> None:
    seen = leading(with_slots(primary(), slot("pg1", OPTIME - 8), slot("pg2", OPTIME - 8, active=False)))
    assert planned(seen) is None


def test_under_an_old_leader_slots_follow_their_members() -> None:
    """A Patroni before 4.0.0 publishes positions of permanent slots only (contract 8.1)."""
    old = member("pg0", version="3.3.2", agent=None)
    view = cluster(
        members=(old, member("pg1"), member("pg2", xlog_location=OPTIME - 2)), status=Status(OPTIME)
    )
    behind = with_slots(standby(), slot("pg0", active=False), slot("pg2", OPTIME - 8, active=False))
    assert planned(following(behind, view)) == SyncSlots(advance={"pg2": Lsn(OPTIME - 2)})
    new = replace(view, members=(member("pg0"), *view.members[1:]))
    assert planned(following(behind, new)) is None


def test_on_a_standby_the_slot_of_its_own_cascade_is_left_to_it() -> None:
    """It is away for a moment, and needs WAL from where it was."""
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(replicatefrom="pg1"))))
    behind = with_slots(standby(), slot("pg0", active=False), slot("pg2", OPTIME - 8, active=False))
    assert planned(following(behind, view)) is None


# --- cascades -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "others", "source"),
    [
        ("pg2", {}, "pg2"),
        ("pg0", {}, "pg0"),
        ("nobody", {}, None),
        ("pg1", {}, None),
        (None, {}, None),
        ("pg2", {"pg2": {"replicatefrom": "pg1"}}, None),
        ("pg2", {"pg2": {"replicatefrom": "pg3"}, "pg3": {"replicatefrom": "pg2"}}, "pg2"),
        ("pg0", {"pg0": {"replicatefrom": "pg1"}}, "pg0"),
    ],
)
def test_whom_a_member_streams_from(
    mine: str | None, others: dict[str, dict[str, Any]], source: str | None
) -> None:
    """A circle that `pg1` is part of would stand still; of one behind its source it is no part."""
    view = cluster(members=tuple(member(f"pg{n}", tags=tags(**others.get(f"pg{n}", {}))) for n in range(4)))
    assert cascade_source(view, "pg1", tags(replicatefrom=mine)) == source


def test_a_source_without_an_address_is_as_good_as_none() -> None:
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", conn_url=None)))
    assert cascade_source(view, "pg1", tags(replicatefrom="pg2")) is None


def test_a_member_that_never_leads_keeps_slots_only_of_those_that_name_it() -> None:
    named = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(replicatefrom="pg1"))))
    me = Identity("pg1", "demo", tags(nofailover=True))
    assert set_of(following(standby(), named, me=me), Memory()) == {"pg2"}
    assert set_of(following(standby(), me=me), Memory()) == set()
    seen = Memory(slots_seen={"pg0": NOW, "pg2": NOW})
    assert set_of(following(standby(), me=me), seen) == set()
    assert set_of(obs("pg1", primary(), me=me), Memory()) == {"pg0", "pg2"}


def test_on_the_leader_the_slot_of_a_cascade_follows_its_member() -> None:
    """It is idle while the member streams from another, and would hold all WAL back."""
    at = OPTIME - 10
    view = cluster(
        members=(
            member("pg0"),
            member("pg1"),
            member("pg2", tags=tags(replicatefrom="pg1"), xlog_location=at),
        )
    )
    idle = with_slots(primary(), slot("pg1"), slot("pg2", OPTIME - 100, active=False))
    assert planned(leading(idle, view)) == SyncSlots(advance={"pg2": Lsn(at)})
    ahead = replace(view, members=(*view.members[:2], replace(view.members[2], xlog_location=OPTIME + 99)))
    assert planned(leading(idle, ahead)) == SyncSlots(advance={"pg2": Lsn(OPTIME)})
    assert planned(leading(idle)) is None
