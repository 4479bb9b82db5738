"""One machine's store: a SQLite file that several processes share.

Theory. SQLite's transactions are the compare-and-set, its file lock the order of writes. A session is a row
with a ttl and an end, kept as (boot id, CLOCK_BOOTTIME); after a reboot every session of the former boot is
over. Whoever opens a transaction and sees an ended session removes it and its keys first, in the same
transaction, so no reader ever sees a dead session's key. The epoch of `leader` is its create revision, from
one counter for the whole file.

The file appears complete (built under another name, then linked), so no reader meets half a schema, and a
process may be killed between any two lines: SQLite rolls back what was not committed. A process frozen
inside a transaction holds the lock; the others then answer Unknown or DcsUnavailable within their deadline.
Every transaction runs on a spare thread (`dcs.bounded`), because an fsync on a dying disk knows no deadline.

Only the owner may read the file (0600, set once); who else may is up to whoever changes its permissions.
Not for network file systems.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from dcs.api import WatchEvent, boottime
from dcs.bounded import BoundedCalls, TimedOut
from dcs.codec import RawKey
from dcs.errors import DcsConfigError, DcsUnavailable
from dcs.local_watch import LocalWatch, Revisions, ring
from dcs.table import Table, TableDcs, cluster_path

T = TypeVar("T")

#: A watcher's own reading; when it takes longer it is tried again.
WATCH_READ_S = 2.0
#: PRAGMA user_version of our file. Another number is another program's, or a newer us.
FORMAT = 7401

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE counter (revision INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, ttl_s REAL NOT NULL, boot_id TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE keys (
    path TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,
    create_revision INTEGER NOT NULL, session TEXT
) WITHOUT ROWID;
"""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def local_path(section: Mapping[str, Any]) -> str:
    """The database file of a `local:` section. Raises DcsConfigError naming the key."""
    path = section.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        raise DcsConfigError(f"local.path: a file name is needed, not {path!r}")
    return path


class LocalDcs(TableDcs):
    """Client of one file. Raises DcsConfigError when its directory does not exist."""

    backend = "local"
    minimum_ttl_s = 1.0

    def __init__(self, path: str, namespace: str = "service", scope: str = "test") -> None:
        super().__init__(cluster_path(namespace, scope))
        self._path = os.path.abspath(path)
        if not os.path.isdir(os.path.dirname(self._path)):
            raise DcsConfigError(f"local.path: {os.path.dirname(self._path)} is not a directory")
        self._bell = self._path + ".bell"
        self._boot_id = _boot_id()
        self._calls = BoundedCalls("local-dcs")
        self._connections = _Connections(self._path)
        self._watches: list[LocalWatch] = []

    def watch(self, on_event: Callable[[WatchEvent], None]) -> LocalWatch:
        """See `dcs.api.Dcs`."""
        watch = LocalWatch(self._bell, self._revisions, on_event)
        self._watches.append(watch)
        return watch

    def close(self) -> None:
        """See `dcs.api.Dcs`."""
        for watch in self._watches:
            watch.close()
        self._calls.close()
        self._connections.close()

    def _transact(self, work: Callable[[Table], T], deadline_s: float, write: bool = True) -> T:
        return self._bounded(work, deadline_s, write)

    def _revisions(self) -> tuple[Revisions, float | None]:
        def read(table: _SqliteTable) -> tuple[Revisions, float | None]:
            return table.revisions(self._prefix), table.next_expiry()

        return self._bounded(read, WATCH_READ_S, write=False)

    # --- transactions -----------------------------------------------------------------------------

    def _bounded(self, work: Callable[[_SqliteTable], T], deadline_s: float, write: bool) -> T:
        end = boottime() + deadline_s
        try:
            return self._calls.run(lambda: self._perform(work, end, write), deadline_s)
        except TimedOut:
            raise DcsUnavailable(f"{self._path}: no answer within {deadline_s:g} s") from None

    def _perform(self, work: Callable[[_SqliteTable], T], end: float, write: bool) -> T:
        try:
            with self._connections.borrowed(end) as connection:
                connection.execute(f"PRAGMA busy_timeout = {max(int((end - boottime()) * 1000), 1)}")
                result, changed = self._in_transaction(connection, work, end, write)
        except (sqlite3.Error, OSError) as error:
            raise DcsUnavailable(f"{self._path}: {error}") from error
        if changed:
            ring(self._bell)
        return result

    def _in_transaction(
        self, connection: sqlite3.Connection, work: Callable[[_SqliteTable], T], end: float, write: bool
    ) -> tuple[T, bool]:
        table = _SqliteTable(connection, self._boot_id)
        # A reader needs no lock, unless it finds something to expire.
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        if not write and table.has_expired():
            connection.execute("ROLLBACK")
            return self._in_transaction(connection, work, end, write=True)
        if write:
            table.expire()
        result = work(table)
        if boottime() >= end:
            # The caller has already been told "unknown": do not surprise it later.
            raise DcsUnavailable(f"{self._path}: too late")
        connection.execute("COMMIT")
        return result, table.changed


class _SqliteTable:
    """`dcs.table.Table` inside one SQLite transaction."""

    def __init__(self, connection: sqlite3.Connection, boot_id: str) -> None:
        self._execute = connection.execute
        self._boot_id = boot_id
        self.changed = False

    def get(self, path: str) -> RawKey | None:
        found = self._execute(
            "SELECT value, revision, create_revision, session FROM keys WHERE path = ?", (path,)
        ).fetchone()
        return None if found is None else RawKey(*found)

    def scan(self, prefix: str) -> dict[str, RawKey]:
        rows = self._execute(
            "SELECT path, value, revision, create_revision, session FROM keys WHERE path >= ? AND path < ?",
            (prefix, _after(prefix)),
        )
        return {row[0][len(prefix) :]: RawKey(*row[1:]) for row in rows}

    def revisions(self, prefix: str) -> dict[str, tuple[int, int]]:
        rows = self._execute(
            "SELECT path, create_revision, revision FROM keys WHERE path >= ? AND path < ?",
            (prefix, _after(prefix)),
        )
        return {path[len(prefix) :]: (created, revision) for path, created, revision in rows}

    def revision(self) -> int:
        return int(self._execute("SELECT revision FROM counter").fetchone()[0])

    def put(self, path: str, value: bytes, session: str | None) -> int:
        revision = self._advance()
        self._execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
            " value = excluded.value, revision = excluded.revision, session = excluded.session",
            (path, value, revision, revision, session),
        )
        return revision

    def remove(self, path: str) -> None:
        if self._execute("DELETE FROM keys WHERE path = ?", (path,)).rowcount:
            self._advance()

    def add_session(self, ttl_s: float) -> str:
        session = uuid.uuid4().hex
        self._execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?)",
            (session, ttl_s, self._boot_id, boottime() + ttl_s),
        )
        self.changed = True  # watchers may have to wake earlier than they planned
        return session

    def extend_session(self, session: str) -> float | None:
        # The clock is read inside the transaction: later than the caller's `sent_at`, never earlier.
        found = self._execute(
            "UPDATE sessions SET expires_at = ? + ttl_s WHERE id = ? RETURNING ttl_s",
            (boottime(), session),
        ).fetchall()
        return float(found[0][0]) if found else None

    def has_session(self, session: str) -> bool:
        return bool(self._execute("SELECT 1 FROM sessions WHERE id = ?", (session,)).fetchall())

    def end_session(self, session: str) -> None:
        for (path,) in self._execute("SELECT path FROM keys WHERE session = ?", (session,)).fetchall():
            self.remove(path)
        self._execute("DELETE FROM sessions WHERE id = ?", (session,))

    def has_expired(self) -> bool:
        return bool(self._expired())

    def expire(self) -> None:
        for session in self._expired():
            self.end_session(session)

    def next_expiry(self) -> float | None:
        found = self._execute("SELECT min(expires_at) FROM sessions").fetchone()[0]
        return None if found is None else float(found)

    def _expired(self) -> list[str]:
        rows = self._execute(
            "SELECT id FROM sessions WHERE boot_id <> ? OR expires_at <= ?", (self._boot_id, boottime())
        )
        return [row[0] for row in rows.fetchall()]

    def _advance(self) -> int:
        self.changed = True
        row = self._execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchall()
        return int(row[0][0])


def _after(prefix: str) -> str:
    """The first text after everything that starts with `prefix`, which ends with a slash."""
    return prefix[:-1] + "0"


class _Connections:
    """Open connections to the file at this path, each used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[int, int], sqlite3.Connection]] = []
        self._closed = False

    @contextlib.contextmanager
    def borrowed(self, end: float) -> Iterator[sqlite3.Connection]:
        """A connection; after any fault inside it is closed, which rolls its transaction back."""
        identity, connection = self._get(end)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append((identity, connection))
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _get(self, end: float) -> tuple[tuple[int, int], sqlite3.Connection]:
        """Raises DcsUnavailable when the file is not ours, sqlite3.Error and OSError."""
        if not os.path.exists(self._path):
            _build(self._path)
        identity = _identity(self._path)
        with self._lock:
            # A file that was replaced has other sessions; an open connection would still show the old one.
            stale = [c for i, c in self._idle if i != identity]
            self._idle = [(i, c) for i, c in self._idle if i == identity]
            kept = self._idle.pop() if self._idle else None
        for connection in stale:
            connection.close()
        return kept or (identity, _opened(self._path, end))


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _opened(path: str, end: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        timeout=max(end - boottime(), 0.001),
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found != FORMAT:
            raise DcsUnavailable(f"{path}: not a store of ours (format {found}, not {FORMAT})")
        # A claim on a timeline must survive a power cut that follows the promotion (hazard H15).
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _build(path: str) -> None:
    """Create the file in one step; who comes second keeps the first one's."""
    draft = f"{path}.{uuid.uuid4().hex}.new"
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        finally:
            connection.close()  # the last connection: folds the log into the file
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        for leftover in (draft, draft + "-wal", draft + "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
