"""Slot names and the slot plan (contract 6.2)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgres_ctl.facts import Lsn, Slot
from postgres_ctl.slots import SlotPlan, plan_slots, slot_name


def slot(
    name: str,
    *,
    active: bool = False,
    restart: int | None = 100,
    xmin: bool = False,
    type: str = "physical",
    wal_status: str | None = "reserved",
    temporary: bool = False,
) -> Slot:
    lsn = None if restart is None else Lsn(restart)
    return Slot(name, type, active, lsn, None, xmin, wal_status, temporary)


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("pg0", "pg0"),
        ("PG-0.Example", "pg_0_example"),
        ("a$b c", "au0036bu0032c"),
        ("ünï", "u0252nu0239"),
        ("snow☃", "snowu9731"),
        ("𝄞", "u119070"),
        ("x" * 80, "x" * 63),
    ],
)
def test_slot_name_of_a_member(member: str, expected: str) -> None:
    assert slot_name(member) == expected


@given(st.text(min_size=1))
def test_slot_name_is_always_one_postgresql_takes(member: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]{1,63}", slot_name(member))
    assert slot_name(slot_name(member)) == slot_name(member)


def test_missing_is_created_and_unwanted_dropped() -> None:
    assert plan_slots([slot("old")], {"new": None}) == SlotPlan(create=("new",), drop=("old",))


def test_unwanted_but_active_is_only_reported() -> None:
    assert plan_slots([slot("old", active=True)], {}) == SlotPlan(unknown_active=("old",))


@pytest.mark.parametrize(
    "kept", [slot("x", type="logical"), slot("x", temporary=True)], ids=["logical", "temporary"]
)
def test_logical_and_temporary_slots_are_not_ours(kept: Slot) -> None:
    assert plan_slots([kept], {}).is_empty
    assert plan_slots([kept], {"x": Lsn(10**6)}).is_empty


def test_nothing_unknown_is_dropped_in_pause_and_nothing_ignored_ever() -> None:
    assert plan_slots([slot("old")], {}, drop_unknown=False).is_empty
    assert plan_slots([slot("old")], {}, ignored={"old"}).is_empty


@pytest.mark.parametrize(
    "useless", [slot("m", restart=None), slot("m", wal_status="lost"), slot("m", xmin=True)]
)
def test_useless_slot_is_recreated_unless_in_use(useless: Slot) -> None:
    assert plan_slots([useless], {"m": None}) == SlotPlan(create=("m",), drop=("m",))
    in_use = slot("m", active=True, restart=None, wal_status="lost", xmin=True)
    assert plan_slots([in_use], {"m": None}).is_empty


def test_old_xmin_is_kept_while_there_is_no_leader() -> None:
    assert plan_slots([slot("m", xmin=True)], {"m": None}, leader_present=False).is_empty


def test_inactive_slot_is_only_moved_forward() -> None:
    assert plan_slots([slot("m", restart=100)], {"m": Lsn(200)}).advance == (("m", Lsn(200)),)
    assert plan_slots([slot("m", restart=100)], {"m": Lsn(100)}).is_empty
    assert plan_slots([slot("m", restart=100)], {"m": Lsn(50)}).is_empty
    assert plan_slots([slot("m", active=True)], {"m": Lsn(200)}).is_empty
    assert plan_slots([slot("m")], {"m": Lsn(200)}, expected_active={"m"}).is_empty


slots = st.builds(
    slot,
    st.sampled_from("abcd"),
    active=st.booleans(),
    restart=st.none() | st.integers(1, 300),
    xmin=st.booleans(),
    type=st.sampled_from(["physical", "logical"]),
    wal_status=st.sampled_from(["reserved", "lost", None]),
    temporary=st.booleans(),
)


@given(
    st.lists(slots, unique_by=lambda s: s.name),
    st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(1, 300).map(Lsn)),
    st.booleans(),
)
def test_plan_never_touches_what_is_in_use_and_then_has_all(
    have: list[Slot], want: dict[str, Lsn | None], drop_unknown: bool
) -> None:
    plan = plan_slots(have, want, drop_unknown=drop_unknown)
    in_use = {s.name for s in have if s.active}
    touched = {*plan.drop, *plan.create, *(name for name, _ in plan.advance)}
    assert not touched & in_use
    afterwards = ({s.name for s in have} - set(plan.drop)) | set(plan.create)
    assert set(want) <= afterwards
    assert not set(plan.create) & ({s.name for s in have} - set(plan.drop))
