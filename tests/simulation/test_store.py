"""The simulated store and network: the contract holds, faults do what they say, and a seed says it all."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from dcs.api import (
    Conflict,
    Dcs,
    KeyEvent,
    LeaseHandle,
    Ok,
    Refused,
    Renewed,
    Taken,
    Unknown,
    WatchEvent,
    WatchGap,
)
from dcs.errors import DcsUnavailable
from tests.contract import test_dcs as contract
from tests.simulation import workload
from tests.simulation.engine import START_S, Engine, HostClock, Process
from tests.simulation.network import Network
from tests.simulation.store import RECONNECT_S, SQUATTER, Holder, SimDcs, SimStore

TTL_S = 10.0
CALL_S = 2.0


class World:
    """A store, a network, and clients of hosts whose clocks differ."""

    def __init__(self) -> None:
        self.engine = Engine(5)
        self.network = Network(self.engine)
        self.store = SimStore(self.engine)
        self.clients = 0

    def client(self, name: str = "") -> SimDcs:
        self.clients += 1
        name = name or f"c{self.clients}"
        clock = HostClock(self.engine, 50.0 * self.clients, 1.003)
        return SimDcs(self.store, self.network, Process(self.engine, name), clock, f"agent:{name}")

    def run(self, *tasks: tuple[SimDcs, Callable[[], object]], for_s: float = 60.0) -> list[Any]:
        """Each in a task of its client's process, all at once; what they return, in order."""
        results: list[Any] = ["not done"] * len(tasks)

        def body(position: int, work: Callable[[], object]) -> None:
            results[position] = work()

        for position, (client, work) in enumerate(tasks):
            client.process.spawn(partial(body, position, work), f"t{position}")
        self.engine.run(self.engine.now + for_s)
        assert not self.engine.crashes, self.engine.crashes[0].text
        return results

    def one(self, client: SimDcs, work: Callable[[], object], for_s: float = 60.0) -> Any:
        return self.run((client, work), for_s=for_s)[0]

    def leader(self, client: SimDcs, name: str = "pg1", ttl_s: float = TTL_S) -> LeaseHandle:
        """Takes the key; only the first second passes."""
        taken = self.one(client, lambda: take(client, name, ttl_s), for_s=1.0)
        assert isinstance(taken, LeaseHandle)
        return taken


def take(client: Dcs, name: str, ttl_s: float = TTL_S) -> LeaseHandle:
    taken = client.take_leader(client.open_session(ttl_s, CALL_S), name, CALL_S)
    assert isinstance(taken, Taken)
    return taken.handle


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.engine.close()


# --- the contract of every store ------------------------------------------------------------------

# What needs neither threads, nor other clusters, nor a watch that blocks the caller.
_NOT_HERE = ("Events(", "at_once(", 'client("')
CONTRACT = [
    test
    for name, test in vars(contract).items()
    if name.startswith("test_")
    and list(inspect.signature(test).parameters) == ["store"]
    and not any(word in inspect.getsource(test) for word in _NOT_HERE)
]


class ContractStore:
    """What the contract's tests need of a store under test."""

    def __init__(self, world: World) -> None:
        self.client = world.client
        self.now = HostClock(world.engine).now


@pytest.mark.parametrize("test", CONTRACT, ids=[test.__name__ for test in CONTRACT])
def test_contract(world: World, test: Callable[[ContractStore], None]) -> None:
    world.client = partial(clock_of_store, world)  # type: ignore[method-assign]
    caller = world.client()
    assert world.one(caller, lambda: test(ContractStore(world)) or "done") == "done"  # type: ignore[func-returns-value]


def clock_of_store(world: World, name: str = "") -> SimDcs:
    """All of one process: the task that calls is the contract's."""
    first = world.engine.processes[0] if world.engine.processes else Process(world.engine, "contract")
    return SimDcs(world.store, world.network, first, HostClock(world.engine), name or "agent:contract")


def test_most_of_the_contract_is_tried() -> None:
    assert len(CONTRACT) >= 15


def test_of_many_takers_one_gets_the_key(world: World) -> None:
    clients = [world.client() for _ in range(6)]

    def contend(client: SimDcs) -> object:
        session = client.open_session(TTL_S, CALL_S)
        client.process.sleep(START_S + 5 - world.engine.now)
        return client.take_leader(session, client.process.name, CALL_S)

    results = world.run(*((client, partial(contend, client)) for client in clients), for_s=6.0)
    winners = [i for i, result in enumerate(results) if isinstance(result, Taken)]
    assert len(winners) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 5
    holder = world.store.leader()
    assert holder is not None
    assert holder.name == f"c{winners[0] + 1}"


def test_of_many_writers_at_one_version_one_wins(world: World) -> None:
    clients = [world.client() for _ in range(5)]
    world.store.raw_put("config", "{}")
    version = world.store.revision()
    results = world.run(*((c, partial(c.compare_and_set, "config", "{}", version, CALL_S)) for c in clients))
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 4 + ["Ok"]


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_ends_in_the_instant_its_ttl_is_over(world: World) -> None:
    client, gone = world.client(), list[float]()
    world.store.on_change.append(lambda e: gone.append(world.engine.now) if e.deleted else None)
    handle = world.leader(client, ttl_s=3.0)
    renewed = world.one(client, lambda: client.renew_leader(handle, "pg1", CALL_S), for_s=1.0)
    assert isinstance(renewed, Renewed)
    assert renewed.guaranteed_s == 3.0
    holder = world.store.leader()
    assert holder == Holder("pg1", handle.epoch, handle.session, holder.expires_at if holder else 0.0)
    world.engine.run(holder.expires_at - 1e-6)
    assert world.store.leader() == holder
    world.engine.run(START_S + 9)
    assert gone == [holder.expires_at]
    assert world.store.leader() is None
    refused = world.one(client, lambda: client.renew_leader(handle, "pg1", CALL_S))
    assert isinstance(refused, Refused)


def test_a_store_that_begins_anew_keeps_keys_and_forgets_sessions_and_revisions(world: World) -> None:
    store = world.store
    store.raw_put("config", "{}")
    for number in range(20):
        store.raw_put("status", str(number))
    world.leader(world.client(), ttl_s=3.0)
    holder = store.leader()
    assert holder is not None
    store.outage()
    assert not store.begin_anew(), "a session lives whose time is not over"
    world.engine.run(holder.expires_at + 0.1)
    assert store.begin_anew()
    store.recover()
    assert store.leader() is None
    assert (store.raw_get("config"), store.raw_get("status")) == ("{}", "19")
    assert store.revision() == 2
    again = world.leader(world.client(), ttl_s=3.0)
    assert again.epoch < holder.epoch


def test_a_leader_key_written_by_hand_is_held_by_nobody(world: World) -> None:
    world.store.raw_put("leader", SQUATTER)
    assert world.store.leader() is None


def test_a_store_may_end_sessions_late(world: World) -> None:
    world.store.lag_expiry_s = 1.5
    world.leader(world.client(), ttl_s=3.0)
    holder = world.store.leader()
    assert holder is not None
    world.engine.run(holder.expires_at + 1.4)
    assert world.store.leader() == holder
    world.store.lag_expiry_s = 1.45
    world.engine.run(holder.expires_at + 1.46)
    assert world.store.leader() is None


def test_a_broken_promise_is_on_record(world: World) -> None:
    handle = world.leader(world.client())
    holder = world.store.leader()
    world.store.expire_session("4711")
    world.store.expire_session(handle.session)
    assert world.store.leader() is None
    assert holder is not None
    assert world.store.early_expiries == [(world.engine.now, holder.expires_at, handle.session)]


# --- faults on the way ----------------------------------------------------------------------------


def test_refused_is_an_answer_and_unknown_is_none(world: World) -> None:
    client = world.client("pg1")
    handle = world.leader(client)
    renew = partial(client.renew_leader, handle, "pg1", CALL_S)
    world.network.cut("agent:pg1", "dcs")
    assert isinstance(world.one(client, renew, for_s=3.0), Unknown)
    assert world.store.leader() is not None
    world.network.heal("agent:pg1", "dcs")
    assert isinstance(world.one(client, renew, for_s=3.0), Renewed)
    world.engine.run(START_S + 30)
    assert isinstance(world.one(client, renew, for_s=3.0), Refused)


def test_a_deadline_is_of_the_hosts_clock(world: World) -> None:
    client = world.client("pg1")
    world.network.isolate("agent:pg1")

    def call() -> float:
        with pytest.raises(DcsUnavailable):
            client.snapshot(CALL_S)
        return world.engine.now - START_S

    assert world.one(client, call) == pytest.approx(CALL_S / 1.003, abs=1e-5)


def test_an_answer_lost_after_the_commit_is_unknown_and_applied(world: World) -> None:
    client = world.client("pg1")
    world.network.cut("dcs", "agent:pg1")
    assert isinstance(world.one(client, lambda: client.put("status", "1", CALL_S)), Unknown)
    assert world.store.raw_get("status") == "1"


def test_a_request_lost_is_unknown_and_not_applied(world: World) -> None:
    client = world.client("pg1")
    world.network.trouble("agent:pg1", "dcs", loss=1.0)
    assert isinstance(world.one(client, lambda: client.put("status", "1", CALL_S)), Unknown)
    assert world.store.raw_get("status") is None


def test_a_slow_request_is_applied_after_the_caller_gave_up(world: World) -> None:
    client, applied = world.client("pg1"), list[float]()
    world.store.on_change.append(lambda _: applied.append(world.engine.now - START_S))
    world.network.trouble("agent:pg1", "dcs", slow_s=5.0)

    def call() -> tuple[object, float]:
        return client.put("status", "1", CALL_S), world.engine.now - START_S

    outcome, returned_at = world.one(client, call)
    assert isinstance(outcome, Unknown)
    assert returned_at < 2.1
    assert len(applied) == 1
    assert applied[0] > 5.0


def test_a_late_answer_is_not_taken_for_that_of_the_next_call(world: World) -> None:
    client = world.client("pg1")
    world.network.trouble("dcs", "agent:pg1", slow_s=3.0)

    def calls() -> object:
        first = client.put("status", "1", CALL_S)
        world.network.heal("dcs", "agent:pg1")
        second = client.create("status", "2", CALL_S)
        client.process.sleep(9.0)
        return first, second

    first, second = world.one(client, calls)
    assert isinstance(first, Unknown)
    assert isinstance(second, Conflict)


def test_a_store_that_is_down_hangs_or_refuses(world: World) -> None:
    client = world.client()
    handle = world.leader(client, ttl_s=3.0)

    def put() -> tuple[object, float]:
        start = world.engine.now
        return client.put("status", "1", CALL_S), world.engine.now - start

    times = []
    for refuses in (False, True):
        world.store.outage(refuses)
        outcome, took_s = world.one(client, put, for_s=3.0)
        assert isinstance(outcome, Unknown)
        times.append(took_s)
    assert times[0] > 1.9
    assert times[1] < 0.1
    assert world.store.leader() is not None
    world.store.recover(extend_sessions=True)
    assert isinstance(
        world.one(client, lambda: client.renew_leader(handle, "pg1", CALL_S), for_s=1.0), Renewed
    )
    world.store.outage()
    world.engine.run(world.engine.now + 9)
    world.store.recover()
    assert world.store.leader() is None


def test_a_slow_store_answers_later(world: World) -> None:
    client = world.client()
    world.store.slow_s = 1.0

    def calls() -> float:
        for _ in range(20):
            client.put("status", "1", CALL_S)
        return world.engine.now - START_S

    took_s = world.one(client, calls)
    assert isinstance(took_s, float)
    assert 3.0 < took_s < 20.1


def test_a_transport_may_repeat_what_does_no_harm(world: World) -> None:
    client = world.client("pg1")
    world.network.trouble("agent:pg1", "dcs", duplicate=1.0)
    assert world.one(client, lambda: client.put("status", "1", CALL_S)) == Ok(1)
    assert world.store.revision() == 2
    assert isinstance(world.one(client, lambda: client.create("failover", "", CALL_S)), Ok)
    assert world.store.revision() == 3


def test_boundaries_name_the_operation(world: World) -> None:
    client, seen = world.client(), list[tuple[str, str]]()
    client.process.armed = lambda kind, detail: seen.append((kind, detail))

    def calls() -> None:
        handle = take(client, "pg1")
        client.renew_leader(handle, "pg1", CALL_S)
        client.put("status", "1", CALL_S)
        client.snapshot(CALL_S)

    world.one(client, calls)
    kinds = ("open_session", "take_leader", "renew_leader", "put", "snapshot")
    assert seen == [(f"dcs.{kind}", side) for kind in kinds for side in ("before", "after")]


def test_a_leader_killed_after_its_commit_leaves_the_key(world: World) -> None:
    client = world.client("pg1")

    def armed(kind: str, detail: str) -> None:
        if (kind, detail) == ("dcs.take_leader", "after"):
            client.process.kill()

    client.process.armed = armed
    assert world.one(client, lambda: take(client, "pg1"), for_s=1.0) == "not done"
    holder = world.store.leader()
    assert holder is not None
    assert holder.name == "pg1"


# --- reading and watching -------------------------------------------------------------------------


def test_readers_share_one_snapshot_per_revision(world: World) -> None:
    first, second = world.client(), world.client()
    a, b = world.run((first, partial(first.snapshot, CALL_S)), (second, partial(second.snapshot, CALL_S)))
    assert a is b
    world.store.raw_put("members/pg1", b"\xff garbage")
    assert world.one(first, lambda: first.snapshot(CALL_S).broken[0].key) == "members/pg1"
    world.store.raw_delete("members/pg1")
    assert world.one(second, lambda: second.snapshot(CALL_S).broken) == ()


class Heard:
    """What a watch told, and when."""

    def __init__(self, world: World, client: SimDcs) -> None:
        self.engine = world.engine
        self.times: list[float] = []
        self.events: list[WatchEvent] = []
        self.watch = client.watch(self.hear)
        world.engine.run(world.engine.now + 1)

    def hear(self, event: WatchEvent) -> None:
        self.times.append(self.engine.now)
        self.events.append(event)


def test_events_come_in_order_after_a_delay(world: World) -> None:
    heard = Heard(world, world.client())
    assert heard.events == [WatchGap("watching from now")]
    for value in range(50):
        world.store.raw_put(f"k{value}", "")
    world.store.raw_delete("k7")
    assert len(heard.events) == 1
    world.engine.run(world.engine.now + 1)
    assert heard.events[1:] == [
        *(KeyEvent(f"k{i}", created=True) for i in range(50)),
        KeyEvent("k7", deleted=True),
    ]
    heard.watch.close()
    world.store.raw_delete("k8")
    world.engine.run(world.engine.now + 1)
    assert len(heard.events) == 52


@pytest.mark.parametrize("direction", [("agent:pg1", "dcs"), ("dcs", "agent:pg1")])
def test_what_a_cut_swallowed_is_a_gap_after_it(world: World, direction: tuple[str, str]) -> None:
    heard = Heard(world, world.client("pg1"))
    world.network.cut(*direction)
    world.store.raw_put("config", "{}")
    world.engine.run(world.engine.now + 20)
    assert len(heard.events) == 1
    world.network.heal_all()
    healed_at = world.engine.now
    world.engine.run(world.engine.now + 2)
    world.store.raw_put("status", "1")
    world.engine.run(world.engine.now + 2)
    assert heard.events[1:] == [WatchGap("reconnected"), KeyEvent("status", created=True)]
    assert heard.times[1] >= healed_at + RECONNECT_S


def test_a_lost_event_and_an_outage_are_gaps_too(world: World) -> None:
    heard = Heard(world, world.client("pg1"))
    world.network.trouble("dcs", "agent:pg1", loss=1.0)
    world.store.raw_put("config", "{}")
    world.engine.run(world.engine.now + 5)
    assert len(heard.events) == 1
    world.network.heal_all()
    world.engine.run(world.engine.now + 2)
    assert heard.events[1:] == [WatchGap("reconnected")]
    world.store.outage()
    world.engine.run(world.engine.now + 2)
    world.store.recover()
    world.engine.run(world.engine.now + 2)
    assert heard.events[2:] == [WatchGap("reconnected")]


def test_a_frozen_watcher_hears_later_and_a_dead_one_never(world: World) -> None:
    frozen, dead = Heard(world, first := world.client()), Heard(world, second := world.client())
    first.process.freeze()
    second.process.kill()
    world.store.raw_put("config", "{}")
    world.engine.run(world.engine.now + 1)
    assert [len(frozen.events), len(dead.events)] == [1, 1]
    first.process.thaw()
    world.engine.run(world.engine.now + 1)
    assert frozen.events[1:] == [KeyEvent("config", created=True)]
    assert len(dead.events) == 1


# --- the network ----------------------------------------------------------------------------------


def test_an_island_talks_within_and_to_nobody_else() -> None:
    engine = Engine(1)
    network, heard = Network(engine), list[bool]()
    ends = ("agent:pg1", "pg:pg1", "dcs", "pg:pg2")
    assert all(network.up(a, b) for a in ends for b in ends)
    network.listen(lambda: heard.append(network.up("agent:pg1", "dcs")))
    network.isolate("agent:pg1", "pg:pg1")
    down = [(a, b) for a in ends for b in ends if network.latency(a, b) is None]
    assert down == [(a, b) for a in ends for b in ends if ends.index(a) // 2 != ends.index(b) // 2]
    assert not network.up("agent:pg1", "new")
    network.cut("dcs", "pg:pg2")
    network.rejoin("agent:pg1", "pg:pg1")
    assert [(a, b) for a in ends for b in ends if not network.up(a, b)] == [("dcs", "pg:pg2")]
    network.heal("dcs", "pg:pg2")
    network.heal("dcs", "pg:pg2")
    assert heard == [False, False, True, True]


def test_delays_are_short_with_a_tail_and_can_be_made_worse() -> None:
    network = Network(Engine(1))
    drawn = [network.latency("a", "b") or 0.0 for _ in range(5000)]
    assert min(drawn) >= 0.0001
    assert 0.9 < sum(delay < 0.001 for delay in drawn) / 5000 < 0.999
    assert 0.005 < max(drawn) <= 0.03
    network.trouble("a", "b", slow_s=2.0, loss=0.5)
    worse = [network.latency("a", "b") for _ in range(1000)]
    assert all(delay is None or delay > 2.0 for delay in worse)
    assert 300 < worse.count(None) < 700


# --- determinism ----------------------------------------------------------------------------------


def test_a_seed_says_it_all() -> None:
    first = workload.run(3)
    assert first == workload.run(3)
    assert first != workload.run(4)
    text = "\n".join(first)
    for word in ("Taken", "Refused", "Unknown", "Conflict", "WatchGap", "no answer", "KeyEvent", "pg2"):
        assert word in text
    assert "crash" not in text
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-m", "tests.simulation.workload", "3"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert told.stdout == text + "\n"


def test_worlds_leave_nothing_behind() -> None:
    refs: list[weakref.ref[object]] = []
    for _ in range(20):
        world = World()
        client = world.client("pg1")
        Heard(world, client)
        world.leader(client)
        world.engine.after(1.0, partial(world.network.isolate, "agent:pg1"))
        client.process.spawn(partial(client.snapshot, 100.0), "waits")
        world.engine.run(world.engine.now + 5)
        world.engine.close()
        refs.extend((weakref.ref(world.engine), weakref.ref(world.store), weakref.ref(client)))
        del world, client
    gc.collect()
    assert not [ref for ref in refs if ref() is not None]
