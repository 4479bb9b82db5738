"""The faults, and what clients saw of each.

Each measurement: a healthy cluster, clients that write, the fault, the repair. Two kinds of fault:

- gaps (switchover, killed postmaster): one application client and nothing else on the machine's cores. How
  long it could not write is the result.
- faults of agents and nodes: also clients on every server, with sessions from before the fault and new ones.
  All acknowledgements are ordered by one clock; a server that acknowledges a write which was sent after
  another server's newer tenure acknowledged one proves two writable servers.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

from benchmarks import network
from benchmarks.programs import SILENCE_MS, BenchCluster, BenchNode
from benchmarks.timeline import Mark, marks
from tests.support import processes, writers
from tests.support.wait import pause, wait_for
from tests.support.writers import _IDS_PER_CLIENT, TABLE, Evidence, Writers, _Client

#: A refused client asks again this soon; alone it may ask often, beside many it may not.
_RETRY_ALONE_S, _RETRY_BESIDE_S = 0.005, 0.05
#: Writes before the fault and after the repair.
_WRITES_BEFORE, _WRITES_AFTER = 100, 100
#: Clients go on this long after the successor wrote, so that a second writable server shows.
WATCH_S = 3.0
#: Application sessions where a server falls silent.
APPLICATION_POOL = 4
_STAGGER_MS = 250
#: Ends a scenario that does not get well, beyond the lease.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Result:
    """Seconds; None for what this scenario does not measure."""

    gap_s: float | None = None
    two_writable_s: float | None = None
    #: From the fault to the first acknowledged write on another node, by whatever client.
    elsewhere_s: float | None = None
    #: Two were writable until we stopped looking: `two_writable_s` is a lower bound.
    open_ended: bool = False
    acknowledged: int = 0
    lost: int | None = None
    took_over: str = ""
    marks: tuple[Mark, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Fault:
    """`apply` does it; `heal` brings back what it broke. `successor`: another node has to take over."""

    name: str
    title: str
    apply: Callable[[BenchCluster, BenchNode], None]
    successor: bool
    #: Clients on every server, not only the application's.
    everywhere: bool = True
    needs_network: bool = False
    needs_guardian: bool = False


# --- faults -----------------------------------------------------------------------------------------


def _switchover(cluster: BenchCluster, old: BenchNode) -> None:
    candidate = next(node for node in cluster.bench_nodes if node is not old)
    request = {"leader": old.name, "candidate": candidate.name}
    status, body = old.rest("/switchover", "POST", request, timeout_s=_PATIENCE_S)
    if status != 200:
        raise RuntimeError(f"switchover refused: {status} {body}")


def _kill_postmaster(cluster: BenchCluster, old: BenchNode) -> None:
    processes.send(old.postmaster_pid(), signal.SIGKILL)


def _kill_agent(cluster: BenchCluster, old: BenchNode) -> None:
    old.kill_agent()


def _freeze_agent(cluster: BenchCluster, old: BenchNode) -> None:
    old.freeze_agent()


def _restart_agent(cluster: BenchCluster, old: BenchNode) -> None:
    old.kill_agent()
    old.start()


def _kill_guardian(cluster: BenchCluster, old: BenchNode) -> None:
    processes.send(old.guardian_pid, signal.SIGKILL)


def _kill_both(cluster: BenchCluster, old: BenchNode) -> None:
    guardian = old.guardian_pid
    processes.send(old.agent_pid, signal.SIGKILL)
    processes.send(guardian, signal.SIGKILL)
    old.kill_agent()


def _kill_node(cluster: BenchCluster, old: BenchNode) -> None:
    old.kill_all()


def _cut_node(cluster: BenchCluster, old: BenchNode) -> None:
    assert cluster.network is not None
    cluster.network.cut(old.name)


FAULTS = (
    Fault("switchover", "switchover", _switchover, successor=True, everywhere=False),
    Fault("postmaster", "postmaster killed", _kill_postmaster, successor=False, everywhere=False),
    Fault("node-killed", "node lost: every process killed", _kill_node, successor=True),
    Fault("node-cut", "node lost: packets dropped", _cut_node, successor=True, needs_network=True),
    Fault("agent-killed", "agent killed", _kill_agent, successor=True),
    Fault("agent-frozen", "agent frozen", _freeze_agent, successor=True),
    Fault("agent-restarted", "agent killed, started again", _restart_agent, successor=False),
    Fault("guardian-killed", "guardian killed", _kill_guardian, successor=False, needs_guardian=True),
    Fault("both-killed", "agent and guardian killed", _kill_both, successor=True, needs_guardian=True),
)


def fault(name: str) -> Fault:
    return next(each for each in FAULTS if each.name == name)


# --- measuring --------------------------------------------------------------------------------------


class BenchWriters(Writers):
    """The tests' clients, and where nodes are cut off: a pool of application sessions instead of one.

    A session that looks for the writable server waits a second at a silent address (libpq cannot do better),
    so one session alone would measure its own bad luck. These notice the silence one after the other. Clients
    of single servers live where the server does, so that a cut does not silence them.
    """

    def __init__(self, cluster: BenchCluster, what: Fault) -> None:
        super().__init__(cluster, direct=what.everywhere)
        servers = {node.sql_port: node.name for node in cluster.nodes}
        for number in range(1, APPLICATION_POOL if what.needs_network else 1):
            ids = itertools.count((100 + number) * _IDS_PER_CLIENT)
            dsn = f"{cluster.read_write_dsn} tcp_user_timeout={SILENCE_MS + number * _STAGGER_MS}"
            self._clients.append(_Client(f"any:{number}", dsn, ids, servers, "while it works"))
        net = cluster.network
        for client in self._clients:
            kind, _, node = client.name.partition(":")
            if net is not None and kind != "any":
                client.thread = threading.Thread(
                    target=self._inside, args=(net.path(node), client._run), name=client.name, daemon=True
                )

    @staticmethod
    def _inside(path: str, run: Callable[[], None]) -> None:
        network.enter(path)
        run()


def start_to_streaming(cluster: BenchCluster) -> float:
    """All agents started at once on nothing: seconds until one leads and all others stream from it."""
    cluster.start_store()
    begun = time.monotonic()
    for node in cluster.bench_nodes:
        node.start()
    # Seldom, so that looking does not slow down what is looked at.
    wait_for(lambda: _all_stream(cluster), 120, "one leads and the others stream", interval_s=0.1)
    return time.monotonic() - begun


def _all_stream(cluster: BenchCluster) -> bool:
    streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
    others = len(cluster.nodes) - 1
    return any(node.value(streaming) >= others for node in cluster.leaders())


def measure(cluster: BenchCluster, what: Fault) -> Result:
    """One round. RuntimeError or pytest's failure when the cluster does not get well."""
    old = healthy(cluster)
    cluster.tried_last = old if what.needs_network else None
    old.sql(f"DROP TABLE IF EXISTS {TABLE}")
    retry_s = _RETRY_BESIDE_S if what.everywhere else _RETRY_ALONE_S
    with mock.patch.object(writers, "REFUSED_INTERVAL_S", retry_s):
        clients = BenchWriters(cluster, what)
        try:
            with clients:
                _warm_up(clients, old, what)
                fault_at, fault_unix = time.monotonic(), time.time()
                what.apply(cluster, old)
                _wait_well_again(cluster, clients, old, what, fault_at)
                evidence, watched_until = clients.evidence(), time.monotonic()
        finally:
            _heal(cluster, old, what)
    leader = healthy(cluster)
    overlap_s, open_ended = two_writable_s(evidence, watched_until)
    gap_s = evidence.write_gap_s("any", since=fault_at - 0.1)
    return Result(
        gap_s=gap_s,
        two_writable_s=overlap_s,
        open_ended=open_ended,
        elsewhere_s=_elsewhere_s(evidence, old, fault_at),
        acknowledged=len(evidence.acknowledged),
        lost=len(evidence.missing(leader.dsn)),
        took_over="" if leader is old else leader.name,
        marks=_marks(cluster, evidence, fault_at, fault_unix, gap_s),
    )


def two_writable_s(evidence: Evidence, watched_until: float) -> tuple[float, bool]:
    """From the newer server's first acknowledgement to the older one's last; whether that was still so."""
    overlaps = evidence.overlaps()
    if not overlaps:
        return 0.0, False
    last = max(each.late.acked_at for each in overlaps)
    first = min(each.first_of_newer.acked_at for each in overlaps)
    return last - first, watched_until - last < 0.5


def _elsewhere_s(evidence: Evidence, old: BenchNode, fault_at: float) -> float | None:
    acks = [write.acked_at for write in evidence.writes if write.server != old.name]
    return min(acks) - fault_at if acks else None


def healthy(cluster: BenchCluster) -> BenchNode:
    """One leads, the others stream and say so in the store; the agents had a turn to see it."""
    leader = cluster.wait_streaming(len(cluster.nodes) - 1, _PATIENCE_S + cluster.timing.ttl)
    assert isinstance(leader, BenchNode)

    def published() -> bool:
        members = leader.rest("/cluster")[1]["members"]
        return len(members) == len(cluster.nodes) and all(
            member["state"] == "streaming" or member["role"] == "leader" for member in members
        )

    wait_for(published, _PATIENCE_S, "all members published as streaming", interval_s=0.1)
    return leader


def _warm_up(clients: Writers, old: BenchNode, what: Fault) -> None:
    clients.wait_acknowledged(_WRITES_BEFORE)
    if what.everywhere:
        clients.wait_acknowledged(10, f"old:{old.name}")
        clients.wait_acknowledged(3, f"new:{old.name}")


def _wait_well_again(
    cluster: BenchCluster, clients: Writers, old: BenchNode, what: Fault, fault_at: float
) -> None:
    patience_s = cluster.timing.ttl + _PATIENCE_S
    if what.successor and what.everywhere:
        others = [f"new:{node.name}" for node in cluster.bench_nodes if node is not old]
        elsewhere = f"writes elsewhere than on {old.name}"
        wait_for(lambda: any(clients.count(other) for other in others), patience_s, elsewhere)
    elif not what.successor:
        # A fault that shows at all shows by then: the client's writes of before must not count as "after".
        grace_s = cluster.timing.ttl + 1.0 if what.everywhere else 0.3
        pause(max(0.0, fault_at + grace_s - time.monotonic()))
    if what.everywhere:
        pause(WATCH_S)
    clients.wait_acknowledged(_WRITES_AFTER, deadline_s=patience_s)


def _heal(cluster: BenchCluster, old: BenchNode, what: Fault) -> None:
    if cluster.network is not None:
        cluster.network.join(old.name)
    if old.agent_running:
        old.thaw_agent()
    for node in cluster.bench_nodes:
        if not node.agent_running:
            node.start()


def _marks(
    cluster: BenchCluster, evidence: Evidence, fault_at: float, fault_unix: float, gap_s: float
) -> tuple[Mark, ...]:
    """The logs from the fault to the first write after the gap, and the writes around it."""
    acks = [write.acked_at for write in evidence.of("any") if write.acked_at >= fault_at - 0.1]
    resumed = next(later for earlier, later in itertools.pairwise(acks) if later - earlier == gap_s)
    after_s = resumed - fault_at
    found = marks(cluster, fault_unix, fault_unix + after_s + 0.05)
    last = Mark(round(after_s - gap_s, 3), "app", "last write before the gap")
    first = Mark(round(after_s, 3), "app", "first write after the gap")
    return tuple(sorted([*found, last, first]))


@contextlib.contextmanager
def ending(cluster: BenchCluster) -> Iterator[BenchCluster]:
    """Whatever happens, nothing of the cluster stays."""
    try:
        yield cluster
    finally:
        cluster.close()
