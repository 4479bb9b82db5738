"""A cluster on hosts of its own: every agent and every etcd member in a network namespace.

    with Stage(nodes=3, etcds=3) as stage:
        stage.network.cut(stage.host("n0"), stage.host("e0"))
        stage.heal()
        stage.wait_recovered()

Theory. Nodes are called n0, n1, ..., etcd members e0, e1, ...; the test process has an address on the same
bridge and reaches all of them whatever is cut. `heal` undoes every fault there is: packets arrive, what was
stopped goes on, what was killed is started again as systemd would.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from tests.support.cluster import Cluster, Node
from tests.support.etcd import EtcdCluster, EtcdServer
from tests.support.netns import Host, Network
from tests.support.storage import Disk
from tests.support.wait import DEADLINE_S, pause

#: For what has no lease to wait for, seconds: start, crash recovery, pg_rewind, a fresh clone, on a machine
#: that has other things to do.
REPAIR_S = 60.0
#: Between two looks at all servers, seconds: each look is a connection to every one.
_LOOK_S = 0.1
#: How long a row may take to a streaming standby in one look, seconds.
_ARRIVAL_S = 2.0
#: How long a leader may take to publish its position in one look, seconds: it does so in every loop.
_TOLD_S = 3.0
_MARKS = "haagent_test_marks"
#: Faults of a look that mean "not yet".
_NOT_YET: tuple[type[BaseException], ...] = (OSError, psycopg.Error, pytest.fail.Exception)


class Stage:
    """`nodes` servers with agents, `etcds` members. Nothing runs before `start`; `with` starts and cleans.

    dcs: laid over `bootstrap.dcs`. With `synchronous_mode` in it no round may lose an acknowledged write.
    disks: data and state of each node lie on a disk of its own, as they do in production, which can hang.
    """

    def __init__(
        self,
        nodes: int = 3,
        etcds: int = 3,
        *,
        ttl: float = 6,
        dcs: Mapping[str, Any] | None = None,
        disks: bool = False,
    ) -> None:
        self._with_disks = disks
        self._disks: dict[str, Disk] = {}
        self._dcs = dict(dcs or {})
        self._timings = {"ttl": ttl, "loop_wait": 1.0, "retry_timeout": 1.0}
        self._names = ([f"n{i}" for i in range(nodes)], [f"e{i}" for i in range(etcds)])
        self.network = Network()
        self._hosts: dict[str, Host] = {}
        self._marks = 0

    @property
    def ttl_s(self) -> float:
        return self._timings["ttl"]

    @property
    def recovery_s(self) -> float:
        """What is promised after the last fault is gone: the lease runs out, one election, then repairs."""
        lease = self._timings["ttl"] + self._timings["loop_wait"] + 2 * self._timings["retry_timeout"]
        return lease + REPAIR_S

    @property
    def status_age_s(self) -> float:
        """A primary publishes its position every loop, and may go on for a lease when it cannot."""
        return self._timings["ttl"] + self._timings["loop_wait"]

    @property
    def synchronous(self) -> bool:
        return bool(self._dcs.get("synchronous_mode"))

    @property
    def maximum_lag_bytes(self) -> int:
        return int(self.cluster.dynamic["maximum_lag_on_failover"])

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Hosts, etcd, agents; returns once one leads and the others stream."""
        self.network.__enter__()
        nodes, members = self._names
        self._hosts = {name: self.network.add(name) for name in nodes + members}
        self.etcd = EtcdCluster(hosts=[self._hosts[name] for name in members])
        self.etcd.start()
        endpoints = {"host": None, "hosts": [server.hostport for server in self.etcd.servers]}
        self.cluster = Cluster(
            nodes=len(nodes),
            etcd=self.etcd.servers[0],
            node_config={"etcd3": endpoints},
            # A commit that waits for no disk would not notice that it hangs.
            parameters={"log_min_messages": "log", "fsync": "on" if self._with_disks else "off"},
            hosts=[self._hosts[name] for name in nodes],
            dcs=self._dcs,
            ttl=self._timings["ttl"],
            loop_wait=self._timings["loop_wait"],
            retry_timeout=self._timings["retry_timeout"],
        )
        if self._with_disks:
            self._add_disks()
        self.cluster.start()

    def _add_disks(self) -> None:
        for node in self.nodes:
            place = node.root / "disk"
            node.data_dir, node.state_dir = place / "data", place / "data.haagent"
            self._disks[node.name] = Disk(place, noatime=True)
            self._disks[node.name].open()

    def close(self, *, failed: bool = False) -> None:
        with contextlib.ExitStack() as last:
            last.callback(self.network.close)
            if hasattr(self, "etcd"):
                last.callback(self.etcd.close)
            for disk in self._disks.values():
                last.callback(disk.close)
            if hasattr(self, "cluster"):
                last.callback(self.cluster.close, failed=failed)
            # First of all: looking at what is on a hung disk hangs.
            last.callback(self._heal_disks)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    # --- who is who -------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    @property
    def members(self) -> tuple[EtcdServer, ...]:
        return self.etcd.servers

    def host(self, name: str) -> Host:
        return self._hosts[name]

    def disk(self, name: str) -> Disk:
        return self._disks[name]

    @property
    def has_disks(self) -> bool:
        return self._with_disks

    def others(self, name: str) -> list[str]:
        """Every host but this one, etcd members too."""
        return [other for other in self._hosts if other != name]

    @property
    def member_names(self) -> list[str]:
        return list(self._names[1])

    # --- healing ----------------------------------------------------------------------------------

    def heal(self) -> float:
        """Undo every fault. Returns when that was done, CLOCK_MONOTONIC seconds."""
        self._heal_disks()
        self.network.heal()
        for member in self.members:
            if member.running:
                member.thaw()
            else:
                member.start(wait=False)
        for node in self.nodes:
            node.signal_all(signal.SIGCONT)
            if not node.agent_running:
                node.start()
        return time.monotonic()

    def _heal_disks(self) -> None:
        for disk in self._disks.values():
            disk.resume()
        for disk in self._disks.values():
            disk.free()

    def wait_recovered(self) -> float | None:
        """When one node led and all others followed it, CLOCK_MONOTONIC; None: not in `recovery_s`."""
        end = time.monotonic() + self.recovery_s
        while time.monotonic() < end:
            if self._ask(self.recovered):
                return time.monotonic()
            pause(_LOOK_S)
        return None

    def recovered(self) -> bool:
        """One leads, all others stream from it, a row written now arrives at each of them, and its agent has
        told the store of it.

        "streaming" alone proves nothing: a server with a diverged history says so too, until it comes to the
        end of what the two have in common. Nor does a primary: it may be living on the rest of a lease that
        it cannot renew, because the store has not recovered yet.
        """
        leaders = self.cluster.leaders()
        if len(leaders) != 1 or len(self.cluster.replicas()) != len(self.nodes) - 1:
            return False
        streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
        if leaders[0].value(streaming) != len(self.nodes) - 1:
            return False
        return self._arrives_everywhere(leaders[0]) and self._is_told(leaders[0])

    def _is_told(self, leader: Node) -> bool:
        position = _position(leader)
        end = time.monotonic() + _TOLD_S
        while self._published() < position:
            if time.monotonic() > end:
                return False
            pause(_LOOK_S)
        return True

    def _arrives_everywhere(self, leader: Node) -> bool:
        self._marks += 1
        leader.sql(f"create table if not exists {_MARKS} (id bigint)")
        leader.sql(f"insert into {_MARKS} values (%s)", self._marks)
        waiting = [node for node in self.nodes if node is not leader]
        end = time.monotonic() + _ARRIVAL_S
        while waiting and time.monotonic() < end:
            found = f"select 1 from {_MARKS} where id = %s"
            waiting = [node for node in waiting if not node.sql(found, self._marks)]
        return not waiting

    def wait_caught_up(self) -> Node:
        """The leader, once all others have everything written before this call. Only on a healthy stage."""
        leader = self.cluster.wait_for(self._caught_up, DEADLINE_S, "the standbys have all rows")
        assert leader is not None
        return leader

    def _caught_up(self) -> Node | None:
        leader = self.cluster.leader()
        return leader if self._ask(lambda: self._arrives_everywhere(leader)) else None

    @staticmethod
    def _ask(question: Callable[[], bool]) -> bool:
        try:
            return question()
        except _NOT_YET:
            return False

    def wait_published(self, leader: Node) -> None:
        """The leader's status in the store is as new as what it has written before this call."""
        position = _position(leader)
        self.cluster.wait_for(lambda: self._published() >= position, DEADLINE_S, "a fresh status")

    def _published(self) -> int:
        return int(json.loads(self.cluster.key("status") or "{}").get("optime", 0))

    def reports(self) -> dict[int, str]:
        """Timeline -> what its promotion said that it may lose, as operators read it in the history."""
        claims = json.loads(self.cluster.key("haagent_claims") or "[]")
        return {int(claim["timeline"]): str(claim.get("note")) for claim in claims}

    def log_files(self) -> list[tuple[str, Path]]:
        """(file name to keep it under, path) of every log there is."""
        found = [(f"{node.name}-{path.name}", path) for node in self.nodes for path in node.log_files()]
        logs = [(f"{member.name}-etcd.log", member.data_dir / "etcd.log") for member in self.members]
        return found + [(name, path) for name, path in logs if path.exists()]


def _position(leader: Node) -> int:
    """Bytes of WAL it has written by now."""
    return int(leader.value("select (pg_current_wal_lsn() - '0/0')::bigint"))
