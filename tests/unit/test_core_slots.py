"""Which physical member slots exist where, how far they move, and when they go (contract 6.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import Status
from haagent.core.actions import SyncSlots
from haagent.core.cascade import cascade_source
from haagent.core.memory import absorb
from haagent.core.model import Identity, Instance, Memory, Observation
from haagent.core.slots import plan, retained, wanted_slots
from postgres_ctl.facts import InstanceSample, Lsn, Slot
from tests.unit.core_facts import (
    DOWN,
    NOW,
    OPTIME,
    SETTINGS,
    cluster,
    following,
    leading,
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


def gone(seconds_ago: float) -> Memory:
    return Memory(slots_seen={"pg2": NOW - seconds_ago})


# --- which ----------------------------------------------------------------------------------------


def test_every_member_keeps_a_slot_for_every_other() -> None:
    assert wanted_slots(leading(primary()), Memory()) == {"pg1", "pg2"}
    assert wanted_slots(following(standby()), Memory()) == {"pg0", "pg2"}


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


def test_a_slot_of_unknown_origin_is_an_administrators() -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2"), slot("backup", active=False)))
    assert planned(seen) is None


def test_paused_no_slot_is_given_up() -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", active=False)), TWO, settings=paused())
    assert planned(seen, gone(TTL + 1)) is None


# --- broken ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [{"restart": None}, {"wal_status": "lost"}, {"xmin_set": True}])
def test_a_slot_that_keeps_nothing_is_made_anew(broken: dict[str, Any]) -> None:
    seen = leading(with_slots(primary(), slot("pg1"), slot("pg2", **{"active": False, **broken})))
    assert planned(seen) == SyncSlots(create=("pg2",), drop=("pg2",))


def test_slots_of_other_kinds_are_not_ours() -> None:
    logical = replace(slot("pg2"), type="logical")
    passing = replace(slot("pg2"), temporary=True)
    for other in (logical, passing):
        assert planned(leading(with_slots(primary(), slot("pg1"), other))) == SyncSlots(create=("pg2",))


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
    assert wanted_slots(following(standby(), named, me=me), Memory()) == {"pg2"}
    assert wanted_slots(following(standby(), me=me), Memory()) == frozenset()
    seen = Memory(slots_seen={"pg0": NOW, "pg2": NOW})
    assert wanted_slots(following(standby(), me=me), seen) == frozenset()
    assert wanted_slots(obs("pg1", primary(), me=me), Memory()) == {"pg0", "pg2"}


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
