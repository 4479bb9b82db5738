"""A store in this process's memory, for tests and simulation.

Theory. `MemoryStore` is the server: keys, sessions, a revision counter and an injected clock. Several
`MemoryDcs` may share it, one per simulated agent. There are no threads: watchers are called synchronously
inside the operation that changed a key, after it has been applied. Nothing ever fails here. Sessions expire
by the clock, noticed by the next operation or by `MemoryStore.expire()`, which a simulator calls when it
moves its clock (`MemoryStore.next_expiry()` says to where).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from dcs.api import KeyEvent, WatchEvent, WatchGap, boottime
from dcs.codec import RawKey
from dcs.table import Table, TableDcs, cluster_path

T = TypeVar("T")


@dataclass(frozen=True)
class _Session:
    ttl_s: float
    expires_at: float


class MemoryStore:
    """The shared server; also the `Table` of its own transactions. One lock makes it thread safe."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._keys: dict[str, RawKey] = {}
        self._sessions: dict[str, _Session] = {}
        self._revision = 0
        self._opened = 0
        self._watches: list[_MemoryWatch] = []
        self._pending: list[tuple[str, KeyEvent]] = []

    def next_expiry(self) -> float | None:
        """When the earliest session expires if nobody renews it, by the store's clock."""
        return min((s.expires_at for s in self._sessions.values()), default=None)

    def expire(self) -> None:
        """End every session whose time is over; its keys vanish and watchers hear of it."""
        with self._lock:
            now = self.clock()
            for session in [s for s, kept in self._sessions.items() if kept.expires_at <= now]:
                self.end_session(session)
            self._notify()

    def run(self, work: Callable[[Table], T]) -> T:
        """One transaction: expiry first, then `work`, then the watchers."""
        with self._lock:
            self.expire()
            result = work(self)
            self._notify()
            return result

    def add_watch(self, watch: _MemoryWatch) -> None:
        self._watches.append(watch)

    def remove_watch(self, watch: _MemoryWatch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    def _notify(self) -> None:
        # Emptied first: a watcher may itself write, which comes back here.
        events, self._pending = self._pending, []
        for path, event in events:
            for watch in list(self._watches):
                watch.hear(path, event)

    # --- Table ------------------------------------------------------------------------------------

    def get(self, path: str) -> RawKey | None:
        return self._keys.get(path)

    def scan(self, prefix: str) -> dict[str, RawKey]:
        return {p[len(prefix) :]: k for p, k in sorted(self._keys.items()) if p.startswith(prefix)}

    def revision(self) -> int:
        return self._revision

    def put(self, path: str, value: bytes, session: str | None) -> int:
        self._revision += 1
        held = self._keys.get(path)
        created = held.create_revision if held else self._revision
        self._keys[path] = RawKey(value, self._revision, created, session)
        self._pending.append((path, KeyEvent(path, created=held is None)))
        return self._revision

    def remove(self, path: str) -> None:
        if self._keys.pop(path, None) is not None:
            self._revision += 1
            self._pending.append((path, KeyEvent(path, deleted=True)))

    def add_session(self, ttl_s: float) -> str:
        self._opened += 1
        session = str(self._opened)
        self._sessions[session] = _Session(ttl_s, self.clock() + ttl_s)
        return session

    def extend_session(self, session: str) -> float | None:
        held = self._sessions.get(session)
        if held is None:
            return None
        self._sessions[session] = replace(held, expires_at=self.clock() + held.ttl_s)
        return held.ttl_s

    def has_session(self, session: str) -> bool:
        return session in self._sessions

    def end_session(self, session: str) -> None:
        self._sessions.pop(session, None)
        for path in [p for p, k in self._keys.items() if k.session == session]:
            self.remove(path)


class _MemoryWatch:
    def __init__(self, store: MemoryStore, prefix: str, on_event: Callable[[WatchEvent], None]) -> None:
        self._store = store
        self._prefix = prefix
        self._on_event = on_event

    def hear(self, path: str, event: KeyEvent) -> None:
        if path.startswith(self._prefix):
            self._on_event(replace(event, key=path[len(self._prefix) :]))

    def close(self) -> None:
        self._store.remove_watch(self)


class MemoryDcs(TableDcs):
    """One agent's client of a `MemoryStore`. `sent_at` and expiry follow the store's clock."""

    backend = "memory"
    minimum_ttl_s = 0.0

    def __init__(self, store: MemoryStore, namespace: str = "service", scope: str = "test") -> None:
        super().__init__(cluster_path(namespace, scope))
        self._store = store
        self._own_watches: list[_MemoryWatch] = []

    def _transact(self, work: Callable[[Table], T], deadline_s: float, write: bool = True) -> T:
        del deadline_s, write  # nothing here takes time or fails
        return self._store.run(work)

    def _now(self) -> float:
        return self._store.clock()

    def watch(self, on_event: Callable[[WatchEvent], None]) -> _MemoryWatch:
        """See `dcs.api.Dcs`; `on_event` is called in the thread of whoever changes a key."""
        watch = _MemoryWatch(self._store, self._prefix, on_event)
        self._store.add_watch(watch)
        self._own_watches.append(watch)
        on_event(WatchGap("watching from now"))
        return watch

    def close(self) -> None:
        for watch in self._own_watches:
            watch.close()
