"""Work on logical slots that takes longer than a step: creating, moving, copying, checking (contract 6.3).

What is to be done, and whether a copy is safe, is judged in `haagent.core.logical_slots`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from haagent.core.actions import Source
from haagent.core.slot_config import PermanentSlot
from haagent.hooks import Hooks
from haagent.instance import LocalInstance
from haagent.jobs import InstanceJobs
from haagent.jobs_words import Failed
from postgres_ctl.api import Cancellation
from postgres_ctl.facts import Lsn
from postgres_ctl.logical_slots import LogicalSlot, SlotState

log = logging.getLogger(__name__)

#: Creating waits for transactions that run, moving reads WAL; longer than this means another try, seconds.
TEND_S = 120.0
#: Asking the leader, seconds.
READ_S = 5.0


class SlotJobs:
    """Bodies of the jobs on one instance's logical slots."""

    def __init__(
        self,
        instance: LocalInstance,
        address: Callable[[str], tuple[str, int] | None],
        hooks: Hooks,
        jobs: InstanceJobs,
    ) -> None:
        self.instance, self._address, self._hooks, self._jobs = instance, address, hooks, jobs
        self._pg = instance.pg

    def tend(
        self,
        create: tuple[PermanentSlot, ...],
        advance: Mapping[str, tuple[str, Lsn]],
        cancel: Cancellation,
    ) -> dict[str, Any]:
        """Create on the primary, move on a standby. Failed: not all of it could be done."""
        slots = [LogicalSlot(s.name, s.database or "", s.plugin) for s in create]
        slots += [LogicalSlot(name, database, to=lsn) for name, (database, lsn) in advance.items()]
        failures = self._pg.tend_logical_slots(self.instance.own_target, slots, TEND_S)
        for slot in create:
            if not any(slot.name in line for line in failures):
                log.info("created permanent logical slot %s", slot.name)
        if failures:
            raise Failed("; ".join(failures))
        return {}

    def copy(
        self, slots: tuple[PermanentSlot, ...], leader: str, upstream: Source, cancel: Cancellation
    ) -> dict[str, Any]:
        """Restart the standby with copies of these slots of the leader; `refused` says which it did without.

        Nothing is stopped when there is nothing to copy."""
        found = {s.name: s for s in self._ask(leader, tuple(slot.name for slot in slots))}
        fit, refused = self._fit(slots, found)
        if fit:
            self._hooks.before_stop(cancel)
            if cancel.is_set():
                raise Failed("cancelled")
            self._jobs.stop("fast", None, False, None, cancel)
            fit, refused = self._fit(slots, found)  # the stop may have removed WAL
            self._pg.place_slots(self.instance.config.postgresql.data_dir, fit)
            if cancel.is_set():
                raise Failed("cancelled")
            self._jobs.start_standby(upstream, cancel)
            log.info("copied logical slots from %s: %s", leader, ", ".join(s.name for s in fit) or "none")
        if refused:
            log.warning("logical slots not copied: %s", "; ".join(refused.values()))
        return {"copied": tuple(s.name for s in fit), "refused": refused}

    def _fit(
        self, wanted: tuple[PermanentSlot, ...], found: Mapping[str, SlotState]
    ) -> tuple[list[SlotState], dict[str, str]]:
        """What can be copied, and why the rest cannot."""
        segment_bytes = self.instance.control_data().wal_segment_bytes
        data_dir = self.instance.config.postgresql.data_dir
        fit, refused = list[SlotState](), dict[str, str]()
        for want in wanted:
            slot, name = found.get(want.name), want.name
            if slot is None or slot.state is None or slot.restart_lsn is None:
                refused[name] = f"{name} is not there, or not usable, on the leader"
            elif slot.failover:
                refused[name] = f"{name} has failover set: PostgreSQL itself has to bring it"
            elif (slot.database, slot.plugin) != (want.database, want.plugin):
                refused[name] = f"{name} has another database or plugin on the leader than configured"
            elif not self._pg.has_wal_from(data_dir, slot.restart_lsn, segment_bytes):
                refused[name] = f"{name} needs WAL from {slot.restart_lsn}, which is not here any more"
            else:
                fit.append(slot)
        return fit, refused

    def check(
        self, names: tuple[str, ...], leader: str, feedback: str, cancel: Cancellation
    ) -> dict[str, Any]:
        """From where on the leader keeps catalog rows for these slots, once it keeps them for us as well."""
        found = {s.name: s.catalog_xmin for s in self._ask(leader, (*names, feedback))}
        ours = found.get(feedback)
        if ours is None:
            raise Failed(f"slot {feedback} on {leader} says nothing of hot_standby_feedback yet")
        horizons = {n: xmin for n in names if (xmin := found.get(n)) is not None}
        return {"ours": ours, "horizons": horizons}

    def _ask(self, leader: str, names: tuple[str, ...]) -> tuple[SlotState, ...]:
        host_port = self._address(leader)
        if host_port is None:
            raise Failed(f"{leader} has published no address")
        return self._pg.read_slots(self.instance.peer_target(*host_port, "rewind"), names, READ_S)
