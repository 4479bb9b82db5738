"""Physical replication slots: carrying out a plan (contract 6.2). The plan itself is `haagent.core.slots`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from postgres_ctl.api import boottime
from postgres_ctl.errors import QueryFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.queries import Session


@dataclass(frozen=True)
class SlotPlan:
    """What to do, in this order: drop, create, advance. A slot in both drop and create is recreated."""

    create: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    advance: tuple[tuple[str, Lsn], ...] = ()


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
