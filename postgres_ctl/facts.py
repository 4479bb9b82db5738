"""Frozen facts about one PostgreSQL instance. Pure: no I/O, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

_LSN = re.compile(r"^([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})$")


@dataclass(frozen=True, order=True)
class Lsn:
    """A WAL position: absolute byte offset. Printed as PostgreSQL prints it."""

    value: int

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """`0/5000270` -> Lsn. Raises ValueError on anything else."""
        match = _LSN.match(text.strip())
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def minus(self, other: Lsn) -> int:
        """Distance in bytes, negative when `other` is ahead."""
        return self.value - other.value


@dataclass(frozen=True)
class TimelineSwitch:
    """One line of a `.history` file: `timeline` ended at `switch_lsn`."""

    timeline: int
    switch_lsn: Lsn
    reason: str


def parting(
    ours: tuple[TimelineSwitch, ...], mine: int, theirs: tuple[TimelineSwitch, ...], their: int
) -> Lsn | None:
    """Up to where two lines of timelines are one; None while the line itself never parts.

    `ours` is the history of timeline `mine`, whose end is open, `theirs` that of `their`."""
    begun = Lsn(0)
    for (a, a_ends), (b, b_ends) in zip(_ends(ours, mine), _ends(theirs, their), strict=False):
        if a != b:
            return begun
        ends = [end for end in (a_ends, b_ends) if end is not None]
        if a_ends != b_ends:
            return min(ends)
        if a_ends is not None:
            begun = a_ends
    return None


def _ends(history: tuple[TimelineSwitch, ...], timeline: int) -> list[tuple[int, Lsn | None]]:
    return [*((s.timeline, s.switch_lsn) for s in history), (timeline, None)]


class DataDirState(Enum):
    MISSING_OR_EMPTY = "empty"
    VALID = "valid"
    #: Exists, is not empty, and is no data directory: never touched.
    FOREIGN = "foreign"


class ControlState(Enum):
    """`Database cluster state` of pg_controldata."""

    STARTING_UP = "starting up"
    SHUT_DOWN = "shut down"
    SHUT_DOWN_IN_RECOVERY = "shut down in recovery"
    SHUTTING_DOWN = "shutting down"
    IN_CRASH_RECOVERY = "in crash recovery"
    IN_ARCHIVE_RECOVERY = "in archive recovery"
    IN_PRODUCTION = "in production"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ControlData:
    """pg_control, by `pg_controldata` with LC_ALL=C."""

    system_identifier: str
    state: ControlState
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline: int
    min_recovery_end: Lsn
    min_recovery_end_timeline: int
    wal_log_hints: bool
    data_checksums: bool
    pg_control_version: int
    #: Values a standby must not start below (contract 5.4).
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    wal_segment_bytes: int = 16 * 1024 * 1024

    @property
    def shut_down_cleanly(self) -> bool:
        return self.state in (ControlState.SHUT_DOWN, ControlState.SHUT_DOWN_IN_RECOVERY)

    @property
    def newest_timeline(self) -> int:
        """Of the last checkpoint, or of WAL replayed since."""
        return max(self.timeline, self.min_recovery_end_timeline)


def goes_on_in(control: ControlData, history: tuple[TimelineSwitch, ...]) -> bool:
    """PostgreSQL's own question at a start: is a timeline of this history a child of this server's?"""
    left = next((s.switch_lsn for s in history if s.timeline == control.newest_timeline), None)
    return left is not None and control.checkpoint_lsn < left and control.min_recovery_end <= left


@dataclass(frozen=True)
class WalSender:
    """One row of pg_stat_replication."""

    pid: int
    usename: str
    application_name: str
    client_addr: str | None
    state: str
    sync_state: str
    sync_priority: int
    sent_lsn: Lsn | None
    write_lsn: Lsn | None
    flush_lsn: Lsn | None
    replay_lsn: Lsn | None


@dataclass(frozen=True)
class Slot:
    """One row of pg_replication_slots."""

    name: str
    type: str
    active: bool
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    xmin_set: bool
    wal_status: str | None
    temporary: bool
    database: str | None = None
    plugin: str | None = None
    #: Oldest transaction whose catalog rows it keeps.
    catalog_xmin: int | None = None
    #: 16 and newer: what a logical slot needs was removed, it can never be used again.
    conflicting: bool = False
    #: 17 and newer: PostgreSQL itself copies it to standbys; it is such a copy.
    failover: bool = False
    synced: bool = False

    @property
    def position(self) -> Lsn | None:
        """What it keeps: WAL from here on, or of a logical one, changes that are not confirmed yet."""
        return self.restart_lsn if self.type == "physical" else self.confirmed_flush_lsn

    @property
    def broken(self) -> bool:
        """What it should keep is gone."""
        return self.wal_status == "lost" or self.conflicting


@dataclass(frozen=True)
class InstanceSample:
    """One query's worth of truth about a running server (`postgres_ctl.queries`)."""

    #: CLOCK_BOOTTIME in seconds just before the query was sent.
    sampled_at: float
    #: pg_postmaster_start_time() as text `2030-01-01 10:00:00.000001+00:00`.
    postmaster_start_time: str
    server_version: int
    system_identifier: str
    in_recovery: bool
    #: Primary: current; standby: of the walreceiver, else of pg_control's last checkpoint; None unknown.
    timeline: int | None
    #: Primary only: pg_current_wal_flush_lsn().
    flush_lsn: Lsn | None
    #: Standby only. Received = max(flushed by the walreceiver, written); None before it ever streamed.
    receive_lsn: Lsn | None
    replay_lsn: Lsn | None
    replay_timestamp: str | None
    replay_paused: bool
    #: Standby only: walreceiver's status ("streaming"), None when there is no walreceiver.
    walreceiver_status: str | None
    walreceiver_latest_end_lsn: Lsn | None
    #: Standby only: slot and conninfo (without password) the walreceiver uses.
    walreceiver_slot: str | None
    walreceiver_conninfo: str | None
    #: Standby only: the startup process sits waiting for more WAL, all local WAL is replayed (H16).
    startup_waits_for_wal: bool
    senders: tuple[WalSender, ...]
    slots: tuple[Slot, ...]
    #: GUC -> (current, new) of pg_settings.pending_restart.
    pending_restart: tuple[tuple[str, str, str], ...]
    primary_conninfo: str | None
    primary_slot_name: str | None
    restore_command: str | None
    #: "streaming" / "in archive recovery" / None, as contract 1.3.
    replication_state: str | None
    #: synchronous_standby_names as this server has read it. Backends wait by it a little later (H17).
    sync_names: str = ""
    #: Where the last checkpoint, or restartpoint, would be recovered from.
    redo_lsn: Lsn | None = None

    @property
    def position(self) -> Lsn:
        """Where this server's WAL ends: flushed on a primary, max(received, replayed) on a standby."""
        if not self.in_recovery:
            return self.flush_lsn or Lsn(0)
        return max(self.receive_lsn or Lsn(0), self.replay_lsn or Lsn(0))

    @property
    def position_is_proven(self) -> bool:
        """False while a standby may not yet have read all WAL it acknowledged (hazard H16)."""
        if not self.in_recovery:
            return True
        return self.walreceiver_status == "streaming" or self.startup_waits_for_wal


@dataclass(frozen=True)
class CopyProgress:
    """How far a copy into a data directory is."""

    copied_bytes: int
    #: Of the source's databases; None where nobody could be asked.
    total_bytes: int | None = None

    @property
    def percent(self) -> int | None:
        """None while it is not known, at most 99: WAL and files outside of databases count as well."""
        if not self.total_bytes:
            return None
        return min(99, 100 * self.copied_bytes // self.total_bytes)

    def __str__(self) -> str:
        if self.total_bytes is None:
            return f"{_megabytes(self.copied_bytes)} copied"
        of = f"{_megabytes(self.copied_bytes)} of {_megabytes(self.total_bytes)}"
        return f"{of} copied ({self.percent} %)"


def _megabytes(size: int) -> str:
    return f"{size / 1024**2:.0f} MB" if size < 10 * 1024**3 else f"{size / 1024**3:.1f} GB"


# --- names ------------------------------------------------------------------------------------------

#: NAMEDATALEN - 1.
SLOT_NAME_MAX = 63


@lru_cache(maxsize=1024)
def slot_name(member: str) -> str:
    """Name of the slot of `member`; two members may map to one name (the caller reports that)."""
    return "".join(_slot_character(c) for c in member.lower())[:SLOT_NAME_MAX]


def _slot_character(c: str) -> str:
    if c in "-.":
        return "_"
    if c == "_" or (c.isascii() and c.isalnum()):
        return c
    return f"u{ord(c):04d}"


# --- probes -----------------------------------------------------------------------------------------


class ProbeFault(Enum):
    """What a probe of a server or its storage found wrong."""

    #: A new connection is not answered: a hung postmaster, or a storm of connections.
    UNREACHED = "unreached"
    #: A write is not answered.
    HANGS = "hangs"
    #: A write is refused for want of space.
    FULL = "full"
    #: A write is refused by the device, or the filesystem has become read-only.
    BROKEN = "broken"


@dataclass(frozen=True)
class ProbeAnswer:
    """What one probe found (`postgres_ctl.probe`). `cause`: one line, also where nothing is wrong."""

    fault: ProbeFault | None = None
    cause: str = ""
