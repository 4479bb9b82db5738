"""The DCS of a simulated cluster: one `MemoryStore`, reached over the network by one `SimDcs` per connection.

Theory. What an operation means is production's `TableDcs`; here is only what lies between a client and its
store. A call is: boundary, request, transaction at arrival, reply, boundary. Request and reply can each be
lost or late; then the caller learns DcsUnavailable at its deadline, by its own clock, while the transaction
may have happened or still happen. The store measures ttl in true time, ends sessions in the very instant they
run out (or later, as stores may), and never early but by `expire_session`, which invariants must know of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from dcs.api import KeyEvent, WatchEvent, WatchGap
from dcs.codec import LEADER, RawKey, build_snapshot
from dcs.errors import DcsUnavailable
from dcs.memory import MemoryStore
from dcs.records import ClusterSnapshot
from dcs.table import Table, TableDcs, encoded
from tests.simulation.engine import TIMER_SLACK_S, Engine, HostClock, Process, Task, Timer
from tests.simulation.network import Network

T = TypeVar("T")

#: A request faster than this is handled in the event that sends it, which saves one.
DIRECT_S = 0.0002
#: A client whose watch broke tries again this often, seconds.
RECONNECT_S = 0.5
#: A repeated message arrives at most this much after the first, seconds.
REPEAT_S = 1.0
#: What somebody wrote into the leader key by hand: nobody's name.
SQUATTER = b"\xff"
#: What a transport may repeat on its own.
_REPEATED = frozenset(("dcs.snapshot", "dcs.renew_session", "dcs.renew_leader", "dcs.put", "dcs.put_member"))


class Holder(NamedTuple):
    """Who holds the leader key: the truth, for invariants. A key without session never expires."""

    name: str
    epoch: int
    session: str
    #: True time, by the ttl; a store that lags lets it live longer.
    expires_at: float


class EarlyExpiry(NamedTuple):
    """A promise the store broke: the session would have lived until `due_at`."""

    at: float
    due_at: float
    session: str


class _Refusal(NamedTuple):
    """An answer that says the store does not work."""

    cause: str


class _SimTable(MemoryStore):
    """The store with the shortcuts of one thread, and expiry that may lag."""

    def __init__(self, owner: SimStore) -> None:
        engine = owner.engine
        super().__init__(lambda: engine.now)
        self._owner = owner

    def run(self, work: Callable[[Table], T]) -> T:
        self.expire()
        result = work(self)
        if self._pending:
            self._notify()
        return result

    def expire(self) -> None:
        owner, now = self._owner, self.clock()
        if owner.down:
            return
        lag_s = owner.lag_expiry_s
        for session in [s for s, kept in self._sessions.items() if kept.expires_at + lag_s <= now]:
            self.end_session(session)
        if self._pending:
            self._notify()

    def add_session(self, ttl_s: float) -> str:
        session = super().add_session(ttl_s)
        self._owner.expect_expiry()
        return session

    def expires_at(self, session: str) -> float | None:
        held = self._sessions.get(session)
        return None if held is None else held.expires_at

    def sessions(self) -> list[str]:
        return list(self._sessions)

    def renumber(self) -> None:
        """The keys in their order, as if they had just been written into an empty store."""
        kept = sorted(self._keys.items(), key=lambda item: item[1].version)
        self._keys = {p: RawKey(k.value, n, n, k.session) for n, (p, k) in enumerate(kept, 1)}
        self._revision = len(kept)

    def extend_all(self) -> None:
        for session in list(self._sessions):
            self.extend_session(session)

    def _notify(self) -> None:
        events, self._pending = self._pending, []
        for path, event in events:
            self._owner.changed(path, event)


class SimStore:
    """The server, for one cluster. Its settings may be changed at any time."""

    def __init__(self, engine: Engine, base_path: str = "/service/sim", endpoint: str = "dcs") -> None:
        self.engine = engine
        self.base_path = base_path
        self.endpoint = endpoint
        self.down = False
        #: What a store that is down does: refuse connections, or leave requests without an answer.
        self.refuses = False
        #: Up to this much more between a request and its answer, seconds.
        self.slow_s = 0.0
        self._lag_expiry_s = 0.0
        self.early_expiries: list[EarlyExpiry] = []
        #: Called with every change as it happens, key relative to the cluster.
        self.on_change: list[Callable[[KeyEvent], None]] = []
        self.random = engine.rng("store").random
        self._prefix = base_path + "/"
        self._leader_path = self._prefix + LEADER
        self._table = _SimTable(self)
        self._watches: list[_SimWatch] = []
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._snapshot: ClusterSnapshot | None = None
        self._holder: Holder | None = None
        self._holder_of: tuple[RawKey | None, float | None] = (None, None)

    # --- what it knows ----------------------------------------------------------------------------

    def run(self, work: Callable[[Table], T]) -> T:
        """One transaction, now."""
        return self._table.run(work)

    def snapshot(self, table: Table) -> ClusterSnapshot:
        """The cluster as of now: one object per revision, shared by all who read."""
        kept = self._snapshot
        if kept is None or kept.revision != table.revision():
            kept = self._snapshot = build_snapshot(table.scan(self._prefix), table.revision())
        return kept

    def leader(self) -> Holder | None:
        key = self._table.get(self._leader_path)
        if key is None or key.value == SQUATTER:
            return None
        expires_at = self._table.expires_at(key.session) if key.session else math.inf
        if self._holder_of[0] is not key or self._holder_of[1] != expires_at:
            name = key.value.decode("utf-8", "replace")
            self._holder = Holder(name, key.create_revision, key.session or "", expires_at or 0.0)
            self._holder_of = (key, expires_at)
        return self._holder

    def expires_at(self, session: str) -> float | None:
        """True time, by the ttl; None when there is no such session."""
        return self._table.expires_at(session)

    def revision(self) -> int:
        return self._table.revision()

    def raw_get(self, key: str) -> str | None:
        held = self._table.get(self._prefix + key)
        return None if held is None else held.value.decode("utf-8", "replace")

    # --- what others do to it ---------------------------------------------------------------------

    def raw_put(self, key: str, text: str | bytes) -> None:
        """Somebody writes `key`, unconditionally and without a session."""
        value = text if isinstance(text, bytes) else encoded(text)
        self._table.run(lambda table: table.put(self._prefix + key, value, None))

    def raw_delete(self, key: str) -> None:
        self._table.run(lambda table: table.remove(self._prefix + key))

    def expire_session(self, session: str) -> None:
        """A fault that breaks the store's promise: the session ends now. Recorded in `early_expiries`."""
        due_at = self._table.expires_at(session)
        if due_at is not None:
            self.early_expiries.append(EarlyExpiry(self.engine.now, due_at, session))
            self._table.run(lambda table: table.end_session(session))

    @property
    def lag_expiry_s(self) -> float:
        """Sessions are ended this much after their ttl, seconds."""
        return self._lag_expiry_s

    @lag_expiry_s.setter
    def lag_expiry_s(self, lag_s: float) -> None:
        self._lag_expiry_s = lag_s
        self._expire()

    def outage(self, refuses: bool = False) -> None:
        """It answers nothing, or refusals; time stands still for sessions' ends."""
        self.down, self.refuses = True, refuses

    def recover(self, extend_sessions: bool = False) -> None:
        """Works again; `extend_sessions`: every ttl starts anew, as after a change of etcd's leader."""
        self.down = False
        if extend_sessions:
            self._table.extend_all()
        for watch in self._watches:
            watch.lose()
            watch.look()
        self._expire()

    def begin_anew(self) -> bool:
        """A new store into which the keys were copied: no sessions, and revisions begin anew. False, and
        nothing done, while a session lives that the old one promised to keep."""
        sessions = self._table.sessions()
        if any((self._table.expires_at(s) or 0.0) > self.engine.now for s in sessions):
            return False
        for session in sessions:
            self._table.run(partial(_end_session, session))
        self._table.renumber()
        self._snapshot = None
        return True

    # --- inside -----------------------------------------------------------------------------------

    def expect_expiry(self) -> None:
        """Wake in the instant when the next session ends. Renewals only make that later: looked at then."""
        ends_at = self._table.next_expiry()
        if ends_at is None:
            return
        when = ends_at + self.lag_expiry_s
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.engine.at(when, self._expire)

    def _expire(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf
        if not self.down:
            self._table.expire()
            self.expect_expiry()

    def changed(self, path: str, event: KeyEvent) -> None:
        """The table changed."""
        if not path.startswith(self._prefix):
            return
        relative = replace(event, key=path[len(self._prefix) :])
        for call in self.on_change:
            call(relative)
        for watch in self._watches:
            watch.hear(relative)

    def add_watch(self, watch: _SimWatch) -> None:
        self._watches = [w for w in self._watches if w.process.alive]
        self._watches.append(watch)

    def remove_watch(self, watch: _SimWatch) -> None:
        self._watches = [w for w in self._watches if w is not watch]


class _Call:
    """One request on its way: runs at the store, and resumes its caller or lets it wait for its deadline."""

    __slots__ = ("_client", "_give_up_at", "_late_s", "_task", "_token", "_work")

    def __init__(
        self, client: SimDcs, work: Callable[[Table], Any], task: Task, token: int, give_up_at: float
    ) -> None:
        self._client, self._work = client, work
        self._task, self._token, self._give_up_at = task, token, give_up_at
        self._late_s = 0.0

    def send(self, kind: str) -> None:
        """From the caller's own event."""
        client = self._client
        engine = client.store.engine
        delay_s = client.there.latency()
        if delay_s is None:
            engine.push(self._give_up_at, self._task, self._token)
            return
        if client.store.slow_s:
            slow_s, share = client.store.slow_s * client.store.random(), client.store.random()
            delay_s += slow_s * share
            self._late_s = slow_s * (1.0 - share)
        if client.there.again() and kind in _REPEATED:
            engine.after(delay_s + REPEAT_S * client.store.random(), self._repeat)
        if delay_s < DIRECT_S:
            self._arrive()
            return
        engine.after(delay_s, self._arrive)
        if engine.now + delay_s > self._give_up_at:
            engine.push(self._give_up_at, self._task, self._token)

    def _arrive(self) -> None:
        client, task = self._client, self._task
        store = client.store
        answer: Any = None
        if not store.down:
            answer = store.run(self._work)
        elif store.refuses:
            answer = _Refusal("connection refused")
        if task.token != self._token:
            return
        back_s = client.back.latency() if answer is not None else None
        now = store.engine.now
        if back_s is None or now + back_s + self._late_s > self._give_up_at:
            if now <= self._give_up_at:
                store.engine.push(self._give_up_at, task, self._token)
        else:
            task.resume_at(now + back_s + self._late_s, self._token, answer)

    def _repeat(self) -> None:
        store = self._client.store
        if not store.down:
            store.run(self._work)


class SimDcs(TableDcs):
    """One connection of a process to the store. `name` is its endpoint in the network.

    Boundaries are `dcs.<operation>`, with "before" and "after" as detail.
    """

    backend = "memory"
    minimum_ttl_s = 1.0

    def __init__(
        self, store: SimStore, network: Network, process: Process, clock: HostClock, name: str
    ) -> None:
        super().__init__(store.base_path)
        self.store = store
        self.network = network
        self.process = process
        self.there = network.link(name, store.endpoint)
        self.back = network.link(store.endpoint, name)
        self._clock = clock
        self._own_watches: list[_SimWatch] = []

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        return self._transact(self.store.snapshot, deadline_s, write=False)

    def _transact(self, work: Callable[[Table], T], deadline_s: float, write: bool = True) -> T:
        del write
        kind = _kind(work)
        process = self.process
        process.boundary(kind, "before")
        engine = process.engine
        task = engine.running(kind)
        if engine.held:
            engine.refuse(kind)
        token = task.arm()
        give_up_at = engine.now + max(0.0, deadline_s) * self._clock.true_s + TIMER_SLACK_S
        _Call(self, work, task, token, give_up_at).send(kind)
        answer: T | _Refusal | None = engine.suspend(kind)
        process.boundary(kind, "after")
        if answer is None:
            raise DcsUnavailable(f"{kind}: no answer within {deadline_s:.3f} s")
        if isinstance(answer, _Refusal):
            raise DcsUnavailable(f"{kind}: {answer.cause}")
        return answer

    def _now(self) -> float:
        return self._clock.now()

    def watch(self, on_event: Callable[[WatchEvent], None]) -> _SimWatch:
        """See `dcs.api.Dcs`; `on_event` is called in the name of the process."""
        watch = _SimWatch(self, on_event)
        self._own_watches.append(watch)
        return watch

    def close(self) -> None:
        for watch in self._own_watches:
            watch.close()


class _SimWatch:
    """A stream of events to one client, in order; after a break a gap comes before anything else."""

    def __init__(self, client: SimDcs, on_event: Callable[[WatchEvent], None]) -> None:
        self.process = client.process
        self._client = client
        self._on_event = on_event
        self._closed = False
        #: The connection is broken: nothing is heard until a gap was sent.
        self._broken = False
        #: There is no way to the store: somebody must tell when there is.
        self._waits = False
        self._cause = ""
        self._last_at = 0.0
        client.store.add_watch(self)
        client.network.listen(self.look)
        self.lose("watching from now", retry_s=0.0)

    def close(self) -> None:
        self._closed = True
        self._client.store.remove_watch(self)
        self._client.network.unlisten(self.look)

    def hear(self, event: WatchEvent) -> None:
        """Something happened at the store."""
        if self._broken:
            return
        delay_s = self._client.back.latency()
        if delay_s is None:
            self.lose()
        else:
            self._deliver(event, delay_s)

    def lose(self, cause: str = "reconnected", retry_s: float = RECONNECT_S) -> None:
        """The connection broke; the client tries again and again."""
        if not self._broken:
            self._broken, self._cause = True, cause
            self.process.engine.after(retry_s, self._reconnect)

    def look(self) -> None:
        """Links, or the store, came or went."""
        if not self.process.alive:
            self.close()
        elif not self._way():
            self.lose()
        elif self._waits:
            self._waits = False
            self.process.engine.after(RECONNECT_S, self._reconnect)

    def _way(self) -> bool:
        return self._client.there.up and self._client.back.up and not self._client.store.down

    def _reconnect(self) -> None:
        if self._closed or not self.process.alive:
            return
        if not self._way():
            self._waits = True
            return
        engine = self.process.engine
        there_s, back_s = self._client.there.latency(), self._client.back.latency()
        if there_s is None or back_s is None:
            engine.after(RECONNECT_S, self._reconnect)
            return
        self._broken = False
        self._deliver(WatchGap(self._cause), there_s + back_s)

    def _deliver(self, event: WatchEvent, delay_s: float) -> None:
        """In order: a later event never overtakes."""
        self._last_at = when = max(self.process.engine.now + delay_s, self._last_at)
        self.process.at(when, partial(self._tell, event))

    def _tell(self, event: WatchEvent) -> None:
        if not self._closed:
            self._on_event(event)


_kinds: dict[str, str] = {}


def _end_session(session: str, table: Table) -> None:
    table.end_session(session)


def _kind(work: Callable[[Table], Any]) -> str:
    """Which operation of the port `work` belongs to, as the kind of its boundary."""
    name: str = getattr(work, "__qualname__")  # noqa: B009
    kind = _kinds.get(name)
    if kind is None:
        kind = _kinds[name] = "dcs." + name.split(".")[1]
    return kind
