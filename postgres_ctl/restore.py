"""WAL that pg_rewind misses in pg_wal: fetched from the archive, else from the primary itself.

pg_rewind reads the target's WAL from the last checkpoint before the histories part. A shutdown checkpoint may
have removed that. All of it is older than the point of parting, so the primary's WAL of the same name is the
same, and a primary keeps it for this member (its slot, `haagent.core.slots`). Newer segments are this
server's alone: those come from where they were kept aside before an interrupted pg_rewind emptied them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass

from postgres_ctl.api import Cancellation, ConnectionTarget, boottime, run_tool
from postgres_ctl.datadir import fsync_dir
from postgres_ctl.errors import DataDirError, PostgresError, ToolFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.libpq import Connection

#: What pg_rewind says of a segment that it does not find, or that an interrupted one has emptied.
_MISSING = re.compile(
    r'could not open file "[^"]*pg_wal/([0-9A-F]{24})": No such file'
    r'|could not read file "[^"]*pg_wal/([0-9A-F]{24})": read \d+ of'
    r'|could not restore file "([0-9A-F]{24})" from archive'
)
#: One answer of the primary, bytes.
_CHUNK = 1 << 20
#: One segment, seconds.
RESTORE_S = 300.0
CONNECT_S = 10.0


def command_line(command: str, path: str, name: str, oldest: str = "") -> str:
    """archive_command or restore_command with its place holders filled in, as PostgreSQL does."""
    values = {"%": "%", "p": path, "f": name, "r": oldest}
    return re.sub(r"%([%pfr])", lambda match: values[match[1]], command)


def missing_segment(output: str) -> str | None:
    """Name of the WAL segment that pg_rewind looked for in vain; None when that was not its problem."""
    found = _MISSING.search(output)
    return found[found.lastindex or 0] if found is not None else None


def starts_before(name: str, segment_bytes: int, parted: Lsn) -> bool:
    """All of this segment is older than the point where the histories part."""
    number = int(name[8:16], 16) * (0x1_0000_0000 // segment_bytes) + int(name[16:], 16)
    return (number + 1) * segment_bytes <= parted.value


@dataclass(frozen=True)
class Missing:
    """A segment of `segment_bytes` that pg_wal of `data_dir` misses, and where it may come from."""

    data_dir: str
    name: str
    segment_bytes: int
    restore_command: str | None
    source: ConnectionTarget

    @property
    def path(self) -> str:
        return os.path.join(self.data_dir, "pg_wal", self.name)


def bring_back(missing: Missing, kept_dir: str) -> str:
    """Put a segment of this server's own back from where it was kept aside. Raises DataDirError."""
    temporary = missing.path + ".haagent"
    try:
        shutil.copyfile(os.path.join(kept_dir, missing.name), temporary)
        os.chmod(temporary, 0o600)
    except OSError as e:
        raise DataDirError(f"WAL segment {missing.name} is missing: {kept_dir}: {e.strerror}") from None
    _keep(temporary, missing)
    return kept_dir


def restore(missing: Missing, cancel: Cancellation | None) -> str:
    """Put the segment into pg_wal; says where it comes from. Raises PostgresError."""
    why = ""
    if missing.restore_command:
        try:
            _by_command(missing, missing.restore_command, cancel)
            return "restore_command"
        except PostgresError as fault:
            why = f"restore_command: {fault}; "
    try:
        _from_primary(missing, cancel)
    except PostgresError as fault:
        raise DataDirError(f"WAL segment {missing.name} is missing: {why}{fault}") from None
    return f"{missing.source.host}:{missing.source.port}"


def _by_command(missing: Missing, command: str, cancel: Cancellation | None) -> None:
    temporary = os.path.join("pg_wal", f"RECOVERYXLOG.{missing.name}")
    line = command_line(command, temporary, missing.name, missing.name)
    run_tool(["/bin/sh", "-c", line], RESTORE_S, cancel=cancel, cwd=missing.data_dir, inherit=True)
    _keep(os.path.join(missing.data_dir, temporary), missing)


def _from_primary(missing: Missing, cancel: Cancellation | None) -> None:
    until, temporary = boottime() + RESTORE_S, missing.path + ".haagent"
    connection = Connection.open(missing.source, CONNECT_S, application_name="haagent rewind")
    try:
        with open(temporary, "wb") as f:
            os.fchmod(f.fileno(), 0o600)
            while f.tell() < missing.segment_bytes:
                f.write(_chunk(connection, missing.name, f.tell(), until))
                if cancel is not None and cancel.is_set():
                    raise ToolFailed("cancelled", cancelled=True)
        _keep(temporary, missing)
    except OSError as e:
        raise DataDirError(f"cannot write {temporary}: {e.strerror}") from None
    finally:
        connection.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _chunk(connection: Connection, name: str, offset: int, until: float) -> bytes:
    """As hexadecimal text: the rows of `query` are text."""
    sql = "select encode(pg_read_binary_file($1, $2::bigint, $3::bigint, true), 'hex')"
    parameters = (f"pg_wal/{name}", str(offset), str(_CHUNK))
    found = connection.query(sql, max(0.0, until - boottime()), parameters)[0][0]
    if not found:
        raise DataDirError("the primary has not got it any more")
    return bytes.fromhex(found)


def _keep(temporary: str, missing: Missing) -> None:
    path = missing.path
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != missing.segment_bytes:
                raise DataDirError(f"what came is no WAL segment of {missing.segment_bytes} bytes")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        fsync_dir(os.path.dirname(path))
    except OSError as e:
        raise DataDirError(f"cannot keep {path}: {e.strerror}") from None
