"""The port's operations once, for stores that can run a function in one transaction.

Theory. `local` and `memory` differ in where keys live and how time passes, not in what an operation means.
An adapter gives `_transact`, which runs a function over a `Table` atomically with expired sessions already
removed; everything else of `dcs.api.Dcs` is here. The guards mirror etcd's: create revision for the epoch,
last revision for compare-and-set, session for ownership.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

from dcs.api import (
    Conflict,
    LeaseHandle,
    Ok,
    Refused,
    Renewed,
    RenewOutcome,
    Taken,
    TakeOutcome,
    Unknown,
    Watch,
    WatchEvent,
    WriteOutcome,
    boottime,
)
from dcs.codec import LEADER, MEMBERS, STATUS, RawKey, build_snapshot, printable
from dcs.errors import DcsUnavailable
from dcs.records import ClusterSnapshot

T = TypeVar("T")


def cluster_path(namespace: str, scope: str) -> str:
    """`/<namespace>/<scope>` with runs of slashes collapsed, no slash at the end."""
    return "/" + "/".join(part for part in f"{namespace}/{scope}".split("/") if part)


def encoded(value: str) -> bytes:
    """UTF-8; what cannot be encoded becomes "?" rather than an exception inside a write."""
    return value.encode("utf-8", "replace")


class Table(Protocol):
    """Keys by full path and sessions, inside one transaction. No session in it is expired."""

    def get(self, path: str) -> RawKey | None: ...

    def scan(self, prefix: str) -> dict[str, RawKey]:
        """Keys below `prefix` by their path relative to it."""

    def revision(self) -> int: ...

    def put(self, path: str, value: bytes, session: str | None) -> int:
        """Write, keeping the create revision of an existing key; the new revision comes back."""

    def remove(self, path: str) -> None: ...

    def add_session(self, ttl_s: float) -> str: ...

    def extend_session(self, session: str) -> float | None:
        """Start its ttl anew; the ttl in seconds, None when there is no such session."""

    def has_session(self, session: str) -> bool: ...

    def end_session(self, session: str) -> None: ...


class TableDcs(ABC):
    """Everything of the port but `watch` and `close`, over `_transact`."""

    backend: str
    minimum_ttl_s: float
    moves_leader = True

    def __init__(self, base_path: str) -> None:
        self._prefix = base_path.rstrip("/") + "/"
        self._leader_path = self._prefix + LEADER

    @abstractmethod
    def _transact(self, work: Callable[[Table], T], deadline_s: float, write: bool = True) -> T:
        """Run `work` atomically. Raises DcsUnavailable when its outcome is not known to be applied."""

    @abstractmethod
    def watch(self, on_event: Callable[[WatchEvent], None]) -> Watch:
        """See `dcs.api.Dcs`."""

    @abstractmethod
    def close(self) -> None:
        """See `dcs.api.Dcs`."""

    def _now(self) -> float:
        return boottime()

    # --- reading ----------------------------------------------------------------------------------

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        return self._transact(
            lambda t: build_snapshot(t.scan(self._prefix), t.revision()), deadline_s, write=False
        )

    # --- sessions ---------------------------------------------------------------------------------

    @staticmethod
    def guaranteed_s(ttl_s: float) -> float:
        return ttl_s

    @staticmethod
    def sealed(session: str) -> str:
        return session

    @staticmethod
    def unsealed(sealed: str) -> str:
        return sealed

    def open_session(self, ttl_s: float, deadline_s: float) -> str:
        return self._transact(lambda t: t.add_session(ttl_s), deadline_s)

    def renew_session(self, session: str, deadline_s: float) -> RenewOutcome:
        sent_at = self._now()

        def renew(table: Table) -> RenewOutcome:
            ttl_s = table.extend_session(session)
            return Refused("the session is gone") if ttl_s is None else Renewed(sent_at, ttl_s)

        return self._renewal(renew, deadline_s)

    def renew_leader(self, handle: LeaseHandle, name: str, deadline_s: float) -> RenewOutcome:
        sent_at = self._now()

        def renew(table: Table) -> RenewOutcome:
            ttl_s = table.extend_session(handle.session)
            if ttl_s is None:
                return Refused("the session is gone")
            lost = self._not_ours(table, handle, name)
            return Refused(lost) if lost else Renewed(sent_at, ttl_s)

        return self._renewal(renew, deadline_s)

    def close_session(self, session: str, deadline_s: float) -> WriteOutcome:
        def end(table: Table) -> WriteOutcome:
            table.end_session(session)
            return Ok()

        return self._write(end, deadline_s)

    # --- the leader key ---------------------------------------------------------------------------

    def take_leader(self, session: str, name: str, deadline_s: float) -> TakeOutcome:
        def take(table: Table) -> TakeOutcome:
            if not table.has_session(session):
                return Conflict("the session is gone")
            held = table.get(self._leader_path)
            if held is not None:
                return Conflict(f"leader is held by {_shown(held)}")
            return Taken(LeaseHandle(session, table.put(self._leader_path, encoded(name), session)))

        return self._take(take, deadline_s)

    def move_leader(self, handle: LeaseHandle, session: str, name: str, deadline_s: float) -> TakeOutcome:
        def move(table: Table) -> TakeOutcome:
            lost = self._not_ours(table, handle, name)
            if lost or not table.has_session(session):
                return Conflict(lost or "the new session is gone")
            table.put(self._leader_path, encoded(name), session)
            return Taken(LeaseHandle(session, handle.epoch))

        return self._take(move, deadline_s)

    def release_leader(
        self, handle: LeaseHandle, name: str, deadline_s: float, status: str | None = None
    ) -> WriteOutcome:
        def release(table: Table) -> WriteOutcome:
            lost = self._not_ours(table, handle, name)
            if lost:
                return Conflict(lost)
            if status is not None:
                self._stored(table, STATUS, status)
            table.remove(self._leader_path)
            return Ok()

        return self._write(release, deadline_s)

    def put_if_leader(
        self, handle: LeaseHandle, name: str, key: str, value: str, deadline_s: float
    ) -> WriteOutcome:
        def put(table: Table) -> WriteOutcome:
            lost = self._not_ours(table, handle, name)
            return Conflict(lost) if lost else self._stored(table, key, value)

        return self._write(put, deadline_s)

    # --- other keys -------------------------------------------------------------------------------

    def put_member(self, session: str, name: str, value: str, deadline_s: float) -> WriteOutcome:
        def put(table: Table) -> WriteOutcome:
            if not table.has_session(session):
                return Conflict("the session is gone")
            return self._stored(table, MEMBERS + name, value, session)

        return self._write(put, deadline_s)

    def create(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        def create(table: Table) -> WriteOutcome:
            if session is not None and not table.has_session(session):
                return Conflict("the session is gone")
            if table.get(self._prefix + key) is not None:
                return Conflict(f"{key} exists")
            return self._stored(table, key, value, session)

        return self._write(create, deadline_s)

    def put(self, key: str, value: str, deadline_s: float) -> WriteOutcome:
        return self._write(lambda t: self._stored(t, key, value), deadline_s)

    def compare_and_set(self, key: str, value: str, version: int, deadline_s: float) -> WriteOutcome:
        def swap(table: Table) -> WriteOutcome:
            changed = self._other_version(table, key, version)
            return Conflict(changed) if changed else self._stored(table, key, value)

        return self._write(swap, deadline_s)

    def delete(self, key: str, deadline_s: float, version: int | None = None) -> WriteOutcome:
        def delete(table: Table) -> WriteOutcome:
            if table.get(self._prefix + key) is None:
                return Ok()
            changed = None if version is None else self._other_version(table, key, version)
            if changed:
                return Conflict(changed)
            table.remove(self._prefix + key)
            return Ok()

        return self._write(delete, deadline_s)

    def delete_cluster(self, deadline_s: float) -> WriteOutcome:
        def delete(table: Table) -> WriteOutcome:
            for key in table.scan(self._prefix):
                table.remove(self._prefix + key)
            return Ok()

        return self._write(delete, deadline_s)

    # --- inside -----------------------------------------------------------------------------------

    def _stored(self, table: Table, key: str, value: str, session: str | None = None) -> Ok:
        return Ok(table.put(self._prefix + key, encoded(value), session))

    def _other_version(self, table: Table, key: str, version: int) -> str | None:
        held = table.get(self._prefix + key)
        found = held.version if held else 0
        return None if found == version else f"{key} is at version {found}, not {version}"

    def _not_ours(self, table: Table, handle: LeaseHandle, name: str) -> str | None:
        """Why `leader` is not ours under this very handle; None when it is."""
        held = table.get(self._leader_path)
        if held is None:
            return "leader is absent"
        if held.value != encoded(name):
            return f"leader is held by {_shown(held)}"
        if held.session != handle.session or held.create_revision != handle.epoch:
            return "leader carries our name but not our session and epoch"
        return None

    # Three times the same words, because the type checker cannot spread a union over a type variable.

    def _write(self, work: Callable[[Table], WriteOutcome], deadline_s: float) -> WriteOutcome:
        try:
            return self._transact(work, deadline_s)
        except DcsUnavailable as error:
            return Unknown(str(error))

    def _renewal(self, work: Callable[[Table], RenewOutcome], deadline_s: float) -> RenewOutcome:
        try:
            return self._transact(work, deadline_s)
        except DcsUnavailable as error:
            return Unknown(str(error))

    def _take(self, work: Callable[[Table], TakeOutcome], deadline_s: float) -> TakeOutcome:
        try:
            return self._transact(work, deadline_s)
        except DcsUnavailable as error:
            return Unknown(str(error))


def _shown(held: RawKey) -> str:
    return repr(printable(held.value.decode("utf-8", "replace"), 63))
