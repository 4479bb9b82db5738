"""Physical replication slots of the members (contract 6.2): names, plan, effects.

The plan is pure: what exists and what is wanted in, what to create, drop and advance out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from postgres_ctl.api import boottime
from postgres_ctl.errors import QueryFailed
from postgres_ctl.facts import Lsn, Slot
from postgres_ctl.queries import Session

#: NAMEDATALEN - 1.
SLOT_NAME_MAX = 63


def slot_name(member: str) -> str:
    """Name of the slot of `member`; two members may map to one name (the caller reports that)."""
    return "".join(_slot_character(c) for c in member.lower())[:SLOT_NAME_MAX]


def _slot_character(c: str) -> str:
    if c in "-.":
        return "_"
    if c == "_" or (c.isascii() and c.isalnum()):
        return c
    return f"u{ord(c):04d}"


@dataclass(frozen=True)
class SlotPlan:
    """What to do, in this order: drop, create, advance. A slot in both drop and create is recreated."""

    create: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    advance: tuple[tuple[str, Lsn], ...] = ()
    #: Not wanted, but in use: reported, never dropped.
    unknown_active: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.create or self.drop or self.advance)


def plan_slots(
    have: Collection[Slot],
    want: Mapping[str, Lsn | None],
    *,
    expected_active: Collection[str] = (),
    ignored: Collection[str] = (),
    drop_unknown: bool = True,
    leader_present: bool = True,
) -> SlotPlan:
    """Plan for the physical slots. `want`: slot name -> position to advance it to while inactive.

    `expected_active` are slots somebody should stream from here: those are never advanced by us.
    `ignored` names are never touched; `drop_unknown` is False in pause. Temporary and logical slots are
    left alone, except that a logical one never stands in for a wanted physical one.
    """
    by_name = {slot.name: slot for slot in have}
    create, drop, advance, unknown_active = [], [], [], []
    for name, position in sorted(want.items()):
        slot = by_name.get(name)
        if slot is None:
            create.append(name)
        elif slot.type != "physical" or slot.temporary or name in ignored:
            continue
        elif _is_useless(slot, leader_present):
            drop.append(name)
            create.append(name)
        elif _should_advance(slot, position) and name not in expected_active:
            assert position is not None
            advance.append((name, position))
    for slot in sorted(have, key=lambda s: s.name):
        if slot.name in want or slot.name in ignored or slot.temporary or slot.type != "physical":
            continue
        if slot.active:
            unknown_active.append(slot.name)
        elif drop_unknown:
            drop.append(slot.name)
    return SlotPlan(tuple(create), tuple(drop), tuple(advance), tuple(unknown_active))


def _is_useless(slot: Slot, leader_present: bool) -> bool:
    """It cannot protect its member, or (an old xmin) holds back vacuum for nobody: recreate it."""
    if slot.active:
        return False
    stale_xmin = slot.xmin_set and leader_present
    return stale_xmin or slot.restart_lsn is None or slot.wal_status == "lost"


def _should_advance(slot: Slot, position: Lsn | None) -> bool:
    if slot.active or position is None or slot.restart_lsn is None:
        return False
    return position > slot.restart_lsn


def apply_plan(session: Session, plan: SlotPlan, deadline_s: float) -> tuple[str, ...]:
    """Carry out `plan`; one line per step that the server refused (the others are still tried).

    Raises PostgresUnavailable when the server stops answering.
    """
    end = boottime() + deadline_s
    steps: list[tuple[str, Callable[[float], None]]] = []
    for name in plan.drop:
        steps.append((f"drop slot {name}", partial(session.drop_slot, name)))
    for name in plan.create:
        steps.append((f"create slot {name}", partial(session.create_physical_slot, name)))
    for name, lsn in plan.advance:
        steps.append((f"advance slot {name}", partial(session.advance_slot, name, lsn)))
    failures = []
    for what, step in steps:
        try:
            step(max(0.0, end - boottime()))
        except QueryFailed as e:
            failures.append(f"{what}: {e}")
    return tuple(failures)
