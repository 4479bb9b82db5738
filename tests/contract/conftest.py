"""Clients of every backend, each test in a cluster of its own; the servers live for the whole run."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcs.api import Dcs, KeyEvent, WatchEvent, WatchGap, boottime
from dcs.consul import ConsulDcs, ConsulOptions
from dcs.etcd3 import Etcd3Dcs, Etcd3Options
from dcs.local import LocalDcs
from dcs.memory import MemoryDcs, MemoryStore
from dcs.zookeeper import ZooKeeperDcs, ZooKeeperOptions
from tests.support.consul import ConsulServer
from tests.support.etcd import EtcdServer
from tests.support.wait import DEADLINE_S
from tests.support.zookeeper import ZooKeeperServer

#: Deadline of a call that is expected to succeed: only a hang reaches it.
CALL_S = 20.0
_scopes = itertools.count()


class Store:
    """One store under test: makes clients of it, and lets the time of a session run out."""

    def __init__(self, backend: str, connect: Callable[[str], Dcs], clock: Clock | None = None) -> None:
        self.backend = backend
        self.scope = f"c{next(_scopes)}"
        self._connect = connect
        self._clock = clock
        self._clients: list[Dcs] = []

    def client(self, scope: str | None = None) -> Dcs:
        client = self._connect(scope or self.scope)
        self._clients.append(client)
        return client

    def now(self) -> float:
        return self._clock.now if self._clock else boottime()

    def let_expire(self, events: Events, key: str) -> None:
        """Return once a watcher was told that `key` is gone, by the store's own clock."""
        if self._clock:
            self._clock.run_out()
        events.until(lambda e: isinstance(e, KeyEvent) and e.key == key and e.deleted)

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Clock:
    """Time of a `MemoryStore`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = MemoryStore(lambda: self.now)

    def run_out(self) -> None:
        expiry = self.store.next_expiry()
        assert expiry is not None
        self.now = expiry
        self.store.expire()


class Events:
    """What a watch reported, waited for with a deadline. Starts when the watch stands."""

    def __init__(self, client: Dcs) -> None:
        self.seen: list[WatchEvent] = []
        self._queue: queue.SimpleQueue[WatchEvent] = queue.SimpleQueue()
        self.watch = client.watch(self._queue.put)
        self.until_gap()

    def until(self, wanted: Callable[[WatchEvent], bool]) -> WatchEvent:
        while True:
            try:
                event = self._queue.get(timeout=DEADLINE_S)
            except queue.Empty:
                pytest.fail(f"no such event; seen: {self.seen}")
            self.seen.append(event)
            if wanted(event):
                return event

    def pending(self) -> list[WatchEvent]:
        """What was reported and not yet waited for."""
        found = []
        while not self._queue.empty():
            found.append(self._queue.get())
        return found

    def until_gap(self) -> WatchEvent:
        return self.until(lambda e: isinstance(e, WatchGap))

    def until_key(self, key: str) -> WatchEvent:
        return self.until(lambda e: isinstance(e, KeyEvent) and e.key == key)


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """All calls in threads that start together; their results in order."""
    barrier = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(position: int) -> None:
        barrier.wait()
        results[position] = calls[position]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return results


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """One healthy server, shared: tests that break a server start their own."""
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulServer]:
    """As `etcd`."""
    with ConsulServer() as server:
        yield server


@pytest.fixture(scope="session")
def zookeeper() -> Iterator[ZooKeeperServer]:
    """As `etcd`."""
    with ZooKeeperServer() as server:
        yield server


@pytest.fixture(params=["memory", "local", "etcd3", "consul", "zookeeper"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = _store(request.param, request, tmp_path)
    yield store
    store.close()


def _store(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if backend == "memory":
        clock = Clock()
        return Store(backend, lambda scope: MemoryDcs(clock.store, "service", scope), clock)
    if backend == "local":
        path = str(tmp_path / "store.db")
        return Store(backend, lambda scope: LocalDcs(path, "service", scope))
    if backend == "consul":
        port = request.getfixturevalue("consul").ports["http"]
        return Store(backend, lambda scope: consul_client(port, scope))
    if backend == "zookeeper":
        hosts = request.getfixturevalue("zookeeper").hostport
        return Store(backend, lambda scope: zookeeper_client(hosts, scope))
    server = request.getfixturevalue("etcd")
    return Store(backend, lambda scope: etcd_client([server.url], scope))


def etcd_client(urls: list[str], scope: str = "batman") -> Etcd3Dcs:
    return Etcd3Dcs(Etcd3Options(endpoints=tuple(urls), base_path=f"/service/{scope}"))


def consul_client(port: int, scope: str = "batman") -> ConsulDcs:
    return ConsulDcs(ConsulOptions(port=port, base_path=f"service/{scope}"))


def zookeeper_client(hosts: str, scope: str = "batman") -> ZooKeeperDcs:
    return ZooKeeperDcs(ZooKeeperOptions(hosts=hosts, base_path=f"/service/{scope}"))
