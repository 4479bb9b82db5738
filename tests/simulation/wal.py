"""Write-ahead log as PostgreSQL keeps it in a data directory, and that directory.

Theory. A WAL is a list of records; a record is one object, shared by every directory that has a copy of it.
Two WALs agree up to record i exactly when both have the *same object* at i, because an object is only ever
appended behind one predecessor. So histories are told apart exactly, whatever timeline numbers and LSNs
say, while PostgreSQL's own checks (replication.py, pg_tools.py) see only those.

Rules
- All records are equally long, so that two histories collide in their LSNs as often as possible.
- A list of records only grows in place. Whoever discards makes a new list: data on its way keeps the old one.
- `durable` records survive a power cut, unless the disk lied (H14).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from postgres_ctl.config_files import RecoveryConfig, ServerConfig
from postgres_ctl.errors import DataDirError
from postgres_ctl.facts import ControlData, ControlState, Lsn, Slot, TimelineSwitch, goes_on_in

#: Where the first record of a new cluster begins: behind the header of its first page.
FIRST_LSN = 0x3000028
#: Bytes of every record: a multiple of PostgreSQL's alignment; ends fall on a page's end once in 1024.
RECORD_BYTES = 120
SEGMENT_BYTES = 16 * 1024 * 1024

#: Kinds of records.
DATA, CHECKPOINT, SHUTDOWN, END_OF_RECOVERY = "data", "checkpoint", "shutdown", "end-of-recovery"

History = tuple[TimelineSwitch, ...]


class Record:
    """One record. `author` is the server's name; `payload` is the client's."""

    __slots__ = ("author", "end", "index", "kind", "payload", "start", "timeline")

    def __init__(self, index: int, timeline: int, kind: str, author: str, payload: object) -> None:
        self.index, self.timeline, self.kind = index, timeline, kind
        self.author, self.payload = author, payload
        self.start = FIRST_LSN + index * RECORD_BYTES
        self.end = self.start + RECORD_BYTES

    def __repr__(self) -> str:
        return f"<{self.kind} {self.author} t{self.timeline} {Lsn(self.start)}>"


def end_of(count: int) -> int:
    """LSN, in bytes, behind the first `count` records."""
    return FIRST_LSN + count * RECORD_BYTES


_LSNS: list[Lsn] = []


def lsn_at(count: int) -> Lsn:
    """The same, as one object per position: samples are made of them."""
    while len(_LSNS) <= count:
        _LSNS.append(Lsn(end_of(len(_LSNS))))
    return _LSNS[count]


def count_until(lsn: int) -> int:
    """How many whole records end at or before `lsn`."""
    return max(0, (lsn - FIRST_LSN) // RECORD_BYTES)


def in_common(ours: list[Record], theirs: list[Record]) -> int:
    """How many records both begin with."""
    low, high = 0, min(len(ours), len(theirs))
    if high and ours[high - 1] is theirs[high - 1]:
        return high
    while low < high:
        middle = (low + high) // 2
        if ours[middle] is theirs[middle]:
            low = middle + 1
        else:
            high = middle
    return low


def timeline_at(history: History, timeline: int, lsn: int) -> int:
    """The timeline that holds the byte before `lsn`, in the history of `timeline`."""
    for switch in history:
        if lsn <= switch.switch_lsn.value:
            return switch.timeline
    return timeline


@dataclass
class Control:
    """pg_control. Positions are counts: `checkpoint` and `redo` of records before the record they name."""

    state: ControlState = ControlState.SHUT_DOWN
    checkpoint: int = 0
    redo: int = 0
    timeline: int = 1
    #: Records a standby has to replay before it is consistent; 0 when nothing is recorded.
    minimum: int = 0
    minimum_timeline: int = 0

    @property
    def clean(self) -> bool:
        return self.state in (ControlState.SHUT_DOWN, ControlState.SHUT_DOWN_IN_RECOVERY)

    def key(self) -> tuple[object, ...]:
        return (
            self.state, self.checkpoint, self.redo, self.timeline, self.minimum, self.minimum_timeline,
        )  # fmt: skip


#: Parameters of pg_control that a standby must not start below.
_MINIMA = {
    "max_connections": 100,
    "max_worker_processes": 8,
    "max_wal_senders": 10,
    "max_prepared_transactions": 0,
    "max_locks_per_transaction": 64,
}


#: Nothing is ever vacuumed here.
XMIN = 700


@dataclass
class SlotState:
    """A slot: WAL is kept from `restart` on; None until it was used. What a logical one has confirmed is the
    same here, where every record is a transaction."""

    restart: int | None = None
    database: str | None = None
    plugin: str | None = None
    #: Where it began, here or where it was copied from.
    made_at: int = 0
    _shown: Slot | None = field(default=None, repr=False, compare=False)
    _shown_key: tuple[int | None, bool] | None = field(default=None, repr=False, compare=False)

    def row(self, name: str, active: bool) -> Slot:
        """In pg_replication_slots."""
        key = (self.restart, active)
        if self._shown is None or self._shown_key != key:
            self._shown_key, self._shown = key, self._row(name, active)
        return self._shown

    def _row(self, name: str, active: bool) -> Slot:
        row = object.__new__(Slot)
        row.__dict__.update(
            name=name,
            type="physical" if self.plugin is None else "logical",
            active=active,
            restart_lsn=lsn_at(self.restart) if self.restart is not None else None,
            confirmed_flush_lsn=None if self.plugin is None or self.restart is None else lsn_at(self.restart),
            xmin_set=False,
            wal_status="reserved" if self.restart is not None else None,
            temporary=False,
            database=self.database,
            plugin=self.plugin,
            catalog_xmin=None if self.plugin is None else XMIN,
        )
        return row


@dataclass
class DataDir:
    """What is on the disk at a data directory's path, and what lies beside it."""

    path: str
    #: "empty", "valid", "foreign" or "incomplete" (a copy of ours that was begun and not finished).
    state: str = "empty"
    system_id: str = ""
    records: list[Record] = field(default_factory=list)
    durable: int = 0
    histories: dict[int, History] = field(default_factory=dict)
    #: True time at which each history file was written.
    history_times: dict[int, float] = field(default_factory=dict)
    control: Control = field(default_factory=Control)
    standby_signal: bool = False
    #: promote signal file.
    promote_file: bool = False
    server: ServerConfig | None = None
    recovery: RecoveryConfig | None = None
    slots: dict[str, SlotState] = field(default_factory=dict)
    dynamic: dict[str, Any] | None = None
    hba: list[str] = field(default_factory=list)
    #: `.unclaimed` beside the directory: a new cluster that nobody has led.
    unclaimed: bool = False
    #: `.rewinding` beside the directory.
    rewinding: bool = False
    #: pg_rewind was stopped while it changed files: half of two histories.
    damaged: bool = False
    #: Truth: WAL or pages of another history got in, and PostgreSQL did not notice.
    mixed: bool = False
    #: Diverged WAL kept beside the directory, newest last.
    kept: list[tuple[Record, ...]] = field(default_factory=list)
    #: Another number after each wipe: what was here before is gone.
    generation: int = 0
    _control_cache: tuple[object, ControlData] | None = field(default=None, repr=False)

    @property
    def end(self) -> int:
        """LSN, in bytes, of the end of WAL."""
        return FIRST_LSN + len(self.records) * RECORD_BYTES

    @property
    def timeline(self) -> int:
        """Of the last record."""
        return self.records[-1].timeline if self.records else 1

    def history(self, timeline: int) -> History | None:
        return () if timeline <= 1 else self.histories.get(timeline)

    def newest_known(self, timeline: int) -> int:
        """As PostgreSQL looks for it: upwards, while there is a history file."""
        while timeline + 1 in self.histories:
            timeline += 1
        return timeline

    def hold_numbers(self, above: int, wanted: int) -> None:
        """As `postgres_ctl.timelines`: a place holder tells of no switch."""
        for number in range(above + 1, wanted):
            self.histories.setdefault(number, ())
        if wanted in self.histories:
            raise DataDirError(f"timeline {wanted} exists already")

    def free_numbers(self) -> None:
        control = self.control_data()
        newest = self.newest_known(control.newest_timeline)
        while newest > control.newest_timeline and not goes_on_in(control, self.histories[newest]):
            del self.histories[newest]
            newest -= 1

    def holds(self, record: Record) -> bool:
        records = self.records
        return record.index < len(records) and records[record.index] is record

    def append(self, kind: str, timeline: int, author: str, payload: object = None) -> Record:
        """At the end, durable with all before it."""
        record = Record(len(self.records), timeline, kind, author, payload)
        self.records.append(record)
        self.durable = len(self.records)
        return record

    def cut(self, count: int) -> tuple[Record, ...]:
        """Keep the first `count` records; those that went."""
        gone = tuple(self.records[count:])
        if gone:
            self.records = self.records[:count]
        self.durable = min(self.durable, count)
        return gone

    def wipe(self) -> None:
        """Nothing is left in it. What lies beside it stays: kept WAL, the marker of a rewind."""
        self.state, self.system_id, self.records, self.durable = "empty", "", [], 0
        self.histories, self.history_times, self.control, self.slots = {}, {}, Control(), {}
        self.standby_signal = self.promote_file = self.damaged = self.mixed = self.unclaimed = False
        self.server, self.recovery, self.dynamic, self.hba = None, None, None, []
        self.generation += 1

    def control_data(self) -> ControlData:
        control = self.control
        key = (self.system_id, control.key())
        if self._control_cache is None or self._control_cache[0] != key:
            self._control_cache = (key, self._control_data())
        return self._control_cache[1]

    def _control_data(self) -> ControlData:
        control = self.control
        return ControlData(
            system_identifier=self.system_id,
            state=control.state,
            checkpoint_lsn=Lsn(end_of(control.checkpoint)),
            redo_lsn=Lsn(end_of(control.redo)),
            timeline=control.timeline,
            min_recovery_end=Lsn(end_of(control.minimum) if control.minimum else 0),
            min_recovery_end_timeline=control.minimum_timeline,
            wal_log_hints=True,
            data_checksums=False,
            pg_control_version=1300,
            **_MINIMA,
        )
