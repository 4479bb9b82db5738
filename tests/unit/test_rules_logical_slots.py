"""Permanent logical slots: made, copied, moved, and when a copy is safe (contract 6.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcs.records import ClusterSnapshot, Status
from haagent.core.actions import CheckSlots, CopySlots, SyncSlots, TendLogicalSlots
from haagent.core.logical_slots import (
    CHECK,
    CHECK_EVERY_S,
    COPY,
    PAUSE_S,
    STEP_BYTES,
    TEND,
    TURN_S,
    note,
    tend,
    unsafe,
    with_doubts,
)
from haagent.core.memory import absorb
from haagent.core.model import Decision, Instance, Memory, Observation
from haagent.core.publish import Addresses, member_record
from haagent.core.slot_complaints import complaints
from haagent.core.slot_config import PermanentSlot
from haagent.core.slot_memory import SlotMemory
from haagent.core.slots import feedback_parameters, feedback_slot, wanted
from haagent.core.standby_cluster import RemoteNode, StandbyCluster
from postgres_ctl.facts import InstanceSample, Lsn, Slot
from tests.unit.core_facts import (
    NOW,
    OPTIME,
    SETTINGS,
    asked,
    cluster,
    finished,
    following,
    judge,
    kinds,
    leading,
    member,
    paused,
    primary,
    request,
    slot,
    standby,
    tags,
)

CDC = PermanentSlot("cdc", "logical", "app", "pgoutput")
WITH = replace(SETTINGS, permanent_slots={"cdc": CDC})
VIEW = cluster(status=Status(OPTIME, {"cdc": OPTIME - 3}, ()))


def cdc(at: int = OPTIME - 3, **changes: Any) -> Slot:
    here = slot("cdc", at - 1, active=False, type="logical", database="app", plugin="pgoutput")
    return replace(here, confirmed_flush_lsn=Lsn(at), **{"catalog_xmin": 700, **changes})


def having(instance: Instance, *more: Slot, **changes: Any) -> Instance:
    assert isinstance(instance.sample, InstanceSample)
    sample = replace(instance.sample, slots=(*instance.sample.slots, *more), **changes)
    return replace(instance, sample=sample)


def lacking(view: ClusterSnapshot = VIEW, **changes: Any) -> Observation:
    """`pg1`, which streams through its slot and has no copy yet."""
    return following(having(standby(), walreceiver_slot="pg1"), view, **{"settings": WITH, **changes})


# --- on the primary -------------------------------------------------------------------------------


def test_the_primary_makes_it() -> None:
    assert tend(leading(primary(), settings=WITH), Memory()) == (TendLogicalSlots(create=(CDC,)),)
    lost = leading(primary(), VIEW, settings=WITH)
    assert tend(lost, Memory()) == (TendLogicalSlots(create=(CDC,), anew=("cdc",)),)
    there = leading(having(primary(), cdc()), settings=WITH)
    assert tend(there, Memory()) == ()


def test_not_while_it_is_at_it_and_after_a_failure_not_at_once() -> None:
    seen = leading(primary(), settings=WITH)
    assert tend(replace(seen, background=(TEND,)), Memory()) == ()
    failed = replace(seen, finished=finished(TEND, ok=False, reason="wal_level is replica"))
    memory = absorb(failed, Memory())
    assert tend(seen, memory) == ()
    assert tend(replace(seen, now=NOW + PAUSE_S), memory) != ()


# --- moving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "replayed", "target"),
    [
        (OPTIME - 3, OPTIME, OPTIME - 3),
        (OPTIME - 3, OPTIME - 5, OPTIME - 5),
        (OPTIME + STEP_BYTES, OPTIME + 2 * STEP_BYTES, OPTIME - 8 + STEP_BYTES),
        (OPTIME - 9, OPTIME, None),
    ],
)
def test_a_copy_follows_as_far_as_published_and_replayed(
    told: int, replayed: int, target: int | None
) -> None:
    view = cluster(status=Status(OPTIME, {"cdc": told}, ()))
    seen = following(having(standby(replayed), cdc(OPTIME - 8)), view, settings=WITH)
    moves = (TendLogicalSlots(advance={"cdc": ("app", Lsn(target))}),) if target is not None else ()
    assert tend(seen, Memory()) == moves


@pytest.mark.parametrize("changes", [{"active": True}, {"failover": True}, {"conflicting": True}])
def test_but_not_one_that_is_not_ours_to_move(changes: dict[str, Any]) -> None:
    seen = following(having(standby(), cdc(OPTIME - 8, **changes)), VIEW, settings=WITH)
    assert tend(seen, Memory()) == ()


# --- copying --------------------------------------------------------------------------------------


def copy_of(seen: Observation, memory: Memory | None = None) -> CopySlots | None:
    decision = judge(seen, memory)
    if decision.rule != "follow.copy-slots":
        return None
    (action,) = decision.actions
    assert isinstance(action, CopySlots)
    return action


def test_a_standby_that_lacks_it_restarts_with_a_copy() -> None:
    assert copy_of(lacking()) == CopySlots((CDC,), "pg0", "pg0")


def test_not_before_the_leader_has_told_where_it_is() -> None:
    assert copy_of(lacking(view=cluster())) is None


@pytest.mark.parametrize(
    "here",
    [
        having(standby(), walreceiver_slot=None),
        having(standby(), walreceiver_slot="pg1", walreceiver_status=None),
        replace(having(standby(), walreceiver_slot="pg1"), config_outdated=True),
        having(standby(), cdc(), walreceiver_slot="pg1"),
    ],
)
def test_not_while_the_leader_does_not_hear_what_it_needs_or_it_is_there(here: Instance) -> None:
    assert copy_of(following(here, VIEW, settings=WITH)) is None


def test_not_in_a_pause() -> None:
    assert copy_of(lacking(settings=paused(permanent_slots={"cdc": CDC}))) is None


def test_not_while_a_switchover_is_asked_for() -> None:
    assert copy_of(lacking(view=asked(VIEW, request()))) is None


def test_standbys_restart_in_turn() -> None:
    here = having(standby(), walreceiver_slot="pg2", primary_slot_name="pg2")
    seen = following(here, VIEW, settings=WITH)
    third = replace(seen, me=replace(seen.me, name="pg2"))
    memory = absorb(third, Memory())
    assert copy_of(third, memory) is None
    assert copy_of(replace(third, now=NOW + TURN_S), memory) is not None
    restarting = tuple(
        member(n, state="restarting" if n == "pg2" else "running") for n in ("pg0", "pg1", "pg2")
    )
    assert copy_of(lacking(view=replace(VIEW, members=restarting))) is None


def test_what_could_not_be_copied_is_tried_again_once_it_has_moved() -> None:
    refused = lacking(finished=finished(COPY, copied=(), refused={"cdc": "cdc needs WAL"}))
    memory = absorb(refused, Memory())
    later = lacking(now=NOW + 1000)
    assert note(later, memory) == "logical slots not copied: cdc needs WAL"
    assert copy_of(later, memory) is None
    moved = replace(VIEW, status=Status(OPTIME, {"cdc": OPTIME - 2}, ()))
    assert copy_of(lacking(view=moved, now=NOW + 1000), memory) is not None
    assert copy_of(lacking(view=moved, now=NOW + 1), memory) is None


def test_a_copy_that_was_invalidated_is_dropped_and_copied_again() -> None:
    broken = following(having(standby(), cdc(conflicting=True)), VIEW, settings=WITH)
    (drop,) = [a for a in judge(broken).actions if isinstance(a, SyncSlots)]
    assert drop.drop == ("cdc",)
    assert drop.create == ()


def test_a_failed_copy_waits() -> None:
    memory = absorb(lacking(finished=finished(COPY, ok=False, reason="no route")), Memory())
    assert copy_of(lacking(), memory) is None
    assert copy_of(lacking(now=NOW + 1000), memory) is not None


# --- is it safe? ----------------------------------------------------------------------------------


def here(xmin: int = 700) -> Observation:
    return following(having(standby(), cdc(catalog_xmin=xmin)), VIEW, settings=WITH)


def test_the_leader_is_asked_whether_a_copy_is_safe() -> None:
    assert CheckSlots(("cdc",), "pg0", "pg1") in judge(here()).actions
    soon = replace(here(), finished=finished(CHECK, ok=False))
    memory = absorb(soon, Memory())
    assert CheckSlots not in kinds(judge(here(), memory))
    assert CheckSlots in kinds(judge(replace(here(), now=NOW + CHECK_EVERY_S), memory))


@pytest.mark.parametrize(
    ("ours", "theirs", "mine", "safe"),
    [
        (700, 700, 700, True),
        (699, 700, 700, True),
        (699, 702, 700, False),  # rows that 700 needs may be gone already
        (699, 702, 702, True),
        (705, 700, 700, False),  # the leader does not keep for us what the copy needs
        (2**32 - 5, 2, 3, True),  # ids go round
        (2**32 - 5, 2, 2**32 - 4, False),
    ],
)
def test_a_copy_is_safe_from_where_the_leader_keeps_all_it_needs(
    ours: int, theirs: int, mine: int, safe: bool
) -> None:
    told = replace(here(mine), finished=finished(CHECK, ours=ours, horizons={"cdc": theirs}))
    memory = absorb(told, Memory())
    assert (unsafe(here(mine), memory) == ()) is safe
    assert (note(here(mine), memory) is None) is safe


def test_once_safe_it_stays_so_until_it_is_copied_anew() -> None:
    memory = Memory(logical=SlotMemory(safe=frozenset({"cdc"})))
    assert unsafe(here(), absorb(here(), memory)) == ()
    again = replace(here(), finished=finished(COPY, copied=("cdc",)))
    assert unsafe(again, absorb(again, memory)) == ("cdc",)
    gone = following(standby(), VIEW, settings=WITH)
    assert absorb(gone, memory).logical.safe == frozenset()


def test_people_are_told_of_what_is_not_safe() -> None:
    promotion = with_doubts(here(), Memory(), Decision("promote.now", "promoted", Memory()))
    assert "may not be safe" in promotion.reason
    assert "cdc" in (promotion.line or "")
    where = Addresses("postgres://a", "http://b", "4.1.5", "haagent/0")
    assert "not safe after a failover yet: cdc" in (member_record(here(), Memory(), where).note or "")


# --- where, and what it takes ---------------------------------------------------------------------


def test_feedback_reaches_the_leader_through_whom_one_streams() -> None:
    view = cluster(members=(member("pg0"), member("pg1"), member("pg2", tags=tags(replicatefrom="pg1"))))
    assert feedback_slot(view, "pg2") == "pg1"
    assert feedback_slot(view, "pg1") == "pg1"
    archive = cluster(members=(member("pg0"), member("pg1", tags=tags(nostream=True)), view.members[2]))
    assert feedback_slot(archive, "pg2") is None
    seen = following(standby(), archive, settings=WITH)
    assert "cdc" not in wanted(seen, Memory())


def test_hot_standby_feedback_is_on_where_logical_slots_are() -> None:
    assert feedback_parameters(WITH, tags()) == {"hot_standby_feedback": "on"}
    assert feedback_parameters(WITH, tags(nostream=True)) == {}
    assert feedback_parameters(SETTINGS, tags()) == {}
    assert (
        feedback_parameters(replace(WITH, standby_cluster=StandbyCluster(RemoteNode("east"))), tags()) == {}
    )


# --- what is said about a configuration -------------------------------------------------------------


def said(seen: Observation) -> str:
    return "\n".join(complaints(seen, Memory()))


def test_a_configuration_that_cannot_work_is_told() -> None:
    assert "wal_level" in said(leading(primary(), settings=WITH))
    assert said(leading(primary(), settings=replace(WITH, parameters={"wal_level": "logical"}))) == ""
    named = replace(SETTINGS, permanent_slots={"pg1": replace(CDC, name="pg1")})
    assert "pg1 has the name of a member's slot" in said(leading(primary(), settings=named))


def test_members_that_share_a_slot_are_named() -> None:
    view = cluster(members=(member("pg0"), member("pg-1"), member("pg_1")))
    assert "share the replication slot pg_1" in said(leading(primary(), view))
    assert said(leading(primary())) == ""


def test_too_few_slots_are_told() -> None:
    few = replace(SETTINGS, parameters={"max_replication_slots": 4})
    many = {f"s{n}": PermanentSlot(f"s{n}") for n in range(3)}
    assert "max_replication_slots 4 is too few: 5" in said(
        leading(primary(), settings=replace(few, permanent_slots=many))
    )
    assert said(leading(primary(), settings=few)) == ""
