"""Logical slots: creating and moving them, and copying them to a standby (contract 6.3).

Theory. A logical slot is a directory with one file, `pg_replslot/<name>/state`, which PostgreSQL reads when
it starts; the file of a primary is good on its standbys. PostgreSQL panics at a directory without a whole
file, and removes directories whose name ends in ".tmp": so a copy is made whole under such a name, and
renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from postgres_ctl.api import ConnectionTarget, boottime
from postgres_ctl.config_files import file_mode
from postgres_ctl.datadir import fsync_dir, require_unused
from postgres_ctl.errors import DataDirError, QueryFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.queries import Session, parse_lsn

#: A state file is about 200 bytes; nothing of this size is one.
_STATE_MAX_BYTES = 65536
_APPLICATION = "Patroni slots"

_READ = """
select json_build_object('name', s.slot_name, 'database', s.database, 'plugin', s.plugin, 'type', s.slot_type,
  'restart_lsn', s.restart_lsn, 'confirmed_flush_lsn', s.confirmed_flush_lsn, 'catalog_xmin', s.catalog_xmin,
  'failover', coalesce((row_to_json(s)->>'failover')::bool, false),
  'state', case when s.slot_type = 'logical' then
    encode(pg_read_binary_file('pg_replslot/' || s.slot_name || '/state', 0, $2::bigint, true), 'hex')
  end)::text
from pg_replication_slots s where slot_name = any($1::text[]) and not pg_is_in_recovery()
"""


@dataclass(frozen=True)
class LogicalSlot:
    """One to be created, or how far one may move."""

    name: str
    database: str
    plugin: str | None = None
    to: Lsn | None = None


@dataclass(frozen=True)
class SlotState:
    """A slot as it is on the primary, with its file."""

    name: str
    database: str | None
    plugin: str | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    catalog_xmin: int | None
    failover: bool = False
    #: Content of its state file; None of a physical slot.
    state: bytes | None = None


def tend(target: ConnectionTarget, slots: Iterable[LogicalSlot], deadline_s: float) -> tuple[str, ...]:
    """Create slots (those with `to` None) or move them, each through its own database, for that is asked for.

    One line for each that the server refused. Raises PostgresUnavailable.
    """
    end, failures = boottime() + deadline_s, []
    for slot in slots:
        session = Session(replace(target, dbname=slot.database), _APPLICATION)
        try:
            left_s = max(0.0, end - boottime())
            if slot.to is None:
                session.create_logical_slot(slot.name, slot.plugin or "", left_s)
            else:
                session.advance_logical_slot(slot.name, slot.to, left_s)
        except QueryFailed as e:
            what = "create" if slot.to is None else "advance"
            failures.append(f"{what} logical slot {slot.name}: {e}")
        finally:
            session.close()
    return tuple(failures)


def read(target: ConnectionTarget, names: Iterable[str], deadline_s: float) -> tuple[SlotState, ...]:
    """Slots of a primary, with their files; a standby has none to give. Raises PostgresError."""
    session = Session(target, _APPLICATION)
    try:
        rows = session.query(_READ, deadline_s, ("{" + ",".join(names) + "}", str(_STATE_MAX_BYTES)))
    finally:
        session.close()
    return tuple(_state(json.loads(row[0] or "{}")) for row in rows)


def _state(row: dict[str, Any]) -> SlotState:
    xmin, text = row["catalog_xmin"], row["state"]
    return SlotState(
        name=row["name"],
        database=row["database"],
        plugin=row["plugin"],
        restart_lsn=parse_lsn(row["restart_lsn"]),
        confirmed_flush_lsn=parse_lsn(row["confirmed_flush_lsn"]),
        catalog_xmin=int(xmin) if xmin is not None else None,
        failover=bool(row["failover"]),
        state=bytes.fromhex(text) if text else None,
    )


def has_wal_from(data_dir: str, lsn: Lsn, segment_bytes: int) -> bool:
    """The segment of this position is still here, of whatever timeline. Raises DataDirError."""
    number = lsn.value // segment_bytes
    per_file = 0x100000000 // segment_bytes
    wanted = f"{number // per_file:08X}{number % per_file:08X}"
    try:
        names = os.listdir(os.path.join(data_dir, "pg_wal"))
    except OSError as e:
        raise DataDirError(f"cannot read pg_wal: {e.strerror}") from None
    return any(len(name) == 24 and name[8:] == wanted for name in names)


def place(data_dir: str, slots: Iterable[SlotState]) -> None:
    """Give a stopped server these slots, each wholly or not at all; one of that name is replaced.

    Raises DataDirError."""
    require_unused(data_dir)
    folder = os.path.join(data_dir, "pg_replslot")
    try:
        for slot in slots:
            if slot.state is not None:
                _place(data_dir, folder, slot.name, slot.state)
        fsync_dir(folder)
    except OSError as e:
        raise DataDirError(f"cannot write {e.filename or folder}: {e.strerror}") from None


def _place(data_dir: str, folder: str, name: str, state: bytes) -> None:
    path, temporary = os.path.join(folder, name), os.path.join(folder, f"{name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(temporary)
    mode = file_mode(data_dir, path) or 0o600
    os.mkdir(temporary)
    os.chmod(temporary, mode | 0o100 | (0o010 if mode & 0o040 else 0))
    fd = os.open(os.path.join(temporary, "state"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as f:
        os.fchmod(f.fileno(), mode)
        f.write(state)
        f.flush()
        os.fsync(f.fileno())
    fsync_dir(temporary)
    if os.path.isdir(path):
        shutil.rmtree(path + ".old.tmp", ignore_errors=True)
        os.rename(path, path + ".old.tmp")
    os.rename(temporary, path)
    shutil.rmtree(path + ".old.tmp", ignore_errors=True)
