"""Switchover and manual failover on a real cluster (contract 2.7 and 3.6, rules 2, 3 and 5)."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

from tests.support import processes
from tests.support.cluster import Cluster, Node
from tests.support.wait import pause
from tests.support.writers import Writers

QUIET = {"log_min_messages": "log"}


def walreceivers(node: Node) -> list[int]:
    """Pids of the walreceiver: asked for by title, because a frozen one does not say anything itself."""
    found = []
    for pid in node.postgres_pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read()
        except OSError:
            continue
        if b"walreceiver" in title:
            found.append(pid)
    return found


def send(node: Node, signum: signal.Signals, pids: list[int]) -> None:
    assert pids, f"{node.name}: nothing to signal"
    for pid in pids:
        processes.send(pid, signum)


def switch(asked: Node, leader: Node, candidate: Node) -> tuple[int, Any]:
    """POST /switchover, answered at its end."""
    body = {"leader": leader.name, "candidate": candidate.name}
    return asked.rest("/switchover", "POST", body, timeout_s=60)


class Call(threading.Thread):
    """One REST call in the background: `answer()` waits for it."""

    def __init__(self, node: Node, path: str, body: Any) -> None:
        super().__init__(daemon=True)
        self._node, self._path, self._body = node, path, body
        self._answer: tuple[int, Any] | OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._node.rest(self._path, "POST", self._body, timeout_s=60)
        except OSError as error:
            self._answer = error

    def answer(self) -> tuple[int, Any]:
        self.join(70)
        assert not isinstance(self._answer, OSError | None), f"no answer: {self._answer!r}"
        return self._answer


def history(cluster: Cluster) -> list[list[Any]]:
    return list(json.loads(cluster.stored()["history"]))


def test_planned_handovers_lose_nothing_and_refuse_what_would() -> None:
    with Cluster(nodes=3, parameters=QUIET) as cluster:
        a = cluster.leader()
        b, c = (node for node in cluster.nodes if node is not a)
        _refusals(cluster, a, b)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(100)
            status, text = switch(a, a, b)
            assert (status, text) == (200, f'Successfully switched over to "{b.name}"')
            assert b.is_primary()
            writers.wait_acknowledged(100)
            cluster.wait_streaming(2)
            _history_of_one_switch(cluster, b)

            # No candidate named, asked at a standby.
            status, text = c.rest("/switchover", "POST", {"leader": b.name}, timeout_s=60)
            assert status == 200, text
            new = cluster.leader()
            assert new is not b
            assert text == f'Successfully switched over to "{new.name}"'
            writers.wait_acknowledged(100)
            cluster.wait_streaming(2)

            # A candidate whose stream hangs is not waited for in vain, and nothing is stopped.
            candidate = next(node for node in cluster.nodes if node is not new)
            started = new.value("select pg_postmaster_start_time()")
            stuck = walreceivers(candidate)
            send(candidate, signal.SIGSTOP, stuck)
            _outgrow_socket_buffers(new)
            status, text = switch(new, new, candidate)
            send(candidate, signal.SIGCONT, stuck)
            # Which sign shows first is chance: its stream hangs, or a query about that stream.
            assert status == 412, text
            reasons = ("bytes behind", "does not stream", "does not answer", "it hangs")
            assert candidate.name in text, text
            assert any(reason in text for reason in reasons), text
            assert new.value("select pg_postmaster_start_time()") == started
            assert new.is_primary()
            cluster.wait_streaming(2)

            # Another standby that hangs does not hold the hand-over up: its walsender is not waited for.
            other = next(node for node in cluster.nodes if node not in (new, candidate))
            stuck = walreceivers(other)
            send(other, signal.SIGSTOP, stuck)
            status, text = switch(new, new, candidate)
            send(other, signal.SIGCONT, stuck)
            assert (status, text) == (200, f'Successfully switched over to "{candidate.name}"')
            writers.wait_acknowledged(100)
            cluster.wait_streaming(2)
        evidence = writers.evidence()
        assert evidence.overlaps() == []
        assert evidence.missing(cluster.leader().dsn) == []
        assert len(evidence.tenures()) == 4


def _refusals(cluster: Cluster, a: Node, b: Node) -> None:
    ask = "/switchover"
    assert a.rest(ask, "POST", {"leader": b.name}) == (412, "leader name does not match")
    assert a.rest(ask, "POST", {"leader": a.name, "candidate": a.name})[0] == 400
    assert a.rest(ask, "POST", {"leader": a.name, "candidate": "nobody"})[0] == 412
    assert a.rest(ask, "POST", {})[0] == 400
    b.config_changes["tags"] = {"nofailover": True}
    b.write_config()
    processes.send(b.agent_pid, signal.SIGHUP)
    cluster.wait_for(lambda: b.member_key().get("tags") == {"nofailover": True}, 30, "the tag is published")
    status, text = a.rest(ask, "POST", {"leader": a.name, "candidate": b.name})
    assert status == 412, text
    assert a.rest("/failover", "POST", {"candidate": b.name})[0] == 412
    b.config_changes.pop("tags")
    b.write_config()
    processes.send(b.agent_pid, signal.SIGHUP)
    cluster.wait_for(lambda: "tags" not in b.member_key(), 30, "the tag is gone")
    assert a.is_primary()


def _history_of_one_switch(cluster: Cluster, new: Node) -> None:
    """Contract 1.3: the timeline that ended, its last position, PostgreSQL's reason, when, who promoted."""
    cluster.wait_for(lambda: [len(row) for row in history(cluster)] == [5], 30, "a history row")
    ((timeline, lsn, reason, stamp, leader),) = history(cluster)
    assert (timeline, reason, leader) == (1, "no recovery target specified", new.name)
    assert isinstance(lsn, int)
    assert stamp.count("T") == 1
    assert stamp[-6] in "+-"
    assert new.rest("/history")[1] == [[timeline, lsn, reason, stamp, leader]]


def _outgrow_socket_buffers(primary: Node) -> None:
    """More WAL than the kernel keeps for a receiver that does not read, and than the permitted lag."""
    for _ in range(2):
        primary.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 8000000))")


def test_switchover_the_moment_the_replicas_answer_loses_nothing() -> None:
    """Not streaming yet, perhaps: then it is waited for, or refused; never lossy."""
    with Cluster(nodes=1, parameters=QUIET) as cluster:
        (a,) = cluster.nodes
        _grow(cluster, 2)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            for node in cluster.nodes[1:]:
                node.start()
            b = cluster.wait_for(lambda: next(iter(cluster.replicas()), None), 60, "a replica answers 200")
            assert b is not None
            status, text = switch(a, a, b)
            assert status in (200, 412), text
            writers.wait_acknowledged(50)
            cluster.wait_streaming(2)
        evidence = writers.evidence()
        assert evidence.overlaps() == []
        assert evidence.missing(cluster.leader().dsn) == []


def _grow(cluster: Cluster, more: int) -> None:
    cluster.nodes += [Node(cluster, len(cluster.nodes) + index) for index in range(more)]


PROMOTED = "promoted self to leader"


def frozen_after_the_stop(cluster: Cluster) -> tuple[Node, int] | None:
    """Ask for a switchover and freeze the candidate once PostgreSQL is being stopped. The old primary and how
    often it had been promoted; None when the candidate had the last record before it was frozen."""
    a = cluster.wait_streaming(1)
    b = next(node for node in cluster.nodes if node is not a)
    began = len(a.log())
    call = Call(a, "/switchover", {"leader": a.name, "candidate": b.name})
    while "stopping PostgreSQL to hand over" not in a.log()[began:]:
        pause(0.001)
    b.signal_all(signal.SIGSTOP)
    status, text = call.answer()
    b.signal_all(signal.SIGCONT)
    return (a, a.log().count(PROMOTED)) if status == 503 and b.name in text else None


def test_handover_that_fails_after_the_stop_brings_the_old_primary_back() -> None:
    with Cluster(nodes=2, parameters=QUIET) as cluster:
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            tries = (frozen_after_the_stop(cluster) for _ in range(10))
            frozen = next((found for found in tries if found is not None), None)
            assert frozen is not None, "the candidate was always quicker than the signal"
            a, promotions = frozen
            writers.wait_acknowledged(50)
            assert cluster.wait_streaming(1) is a
            assert a.log().count(PROMOTED) == promotions, "it came back as the primary it was"
        evidence = writers.evidence()
        assert evidence.overlaps() == []
        assert evidence.missing(a.dsn) == []


def test_manual_failover_with_the_primary_alive_and_dead() -> None:
    with Cluster(nodes=3, parameters=QUIET) as cluster:
        a = cluster.leader()
        b, c = (node for node in cluster.nodes if node is not a)
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)
            status, text = a.rest("/failover", "POST", {"candidate": b.name}, timeout_s=60)
            assert status == 200, text
            assert text.startswith(f'Successfully failed over to "{b.name}"')
            assert "loss" in text
            writers.wait_acknowledged(50)
            cluster.wait_streaming(2)
            assert writers.evidence().missing(b.dsn) == []

            b.kill_all()
            # The operator does not wait for the lease to run out.
            status, text = c.rest("/failover", "POST", {"candidate": c.name}, timeout_s=60)
            assert status == 200, text
            assert text.startswith(f'Successfully failed over to "{c.name}"')
            assert "loss" in text
            writers.wait_acknowledged(50, "any")
            b.start()
            cluster.wait_streaming(2)
        assert writers.evidence().overlaps() == []
        assert [row[4] for row in history(cluster)] == [b.name, c.name]


def test_a_successor_that_dies_at_once_is_followed_at_once() -> None:
    """It wrote, published that, and died before anybody had it. The others have all that was handed over, so
    the mark of the hand-over (H18) does not hold them up for a ttl."""
    with Cluster(nodes=3, ttl=120, loop_wait=10, retry_timeout=10) as cluster:
        old = cluster.wait_streaming(2)
        new, third = (node for node in cluster.nodes if node is not old)
        assert switch(third, old, new)[0] == 200
        assert cluster.wait_streaming(2) is new
        send(new, signal.SIGSTOP, [pid for (pid,) in new.sql("SELECT pid FROM pg_stat_replication")])
        new.sql("CREATE TABLE lost AS SELECT generate_series(1, 1000)")
        written = int(new.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
        cluster.wait_for(lambda: json.loads(cluster.stored()["status"])["optime"] >= written, 60, "a status")
        send(new, signal.SIGKILL, new.postgres_pids())
        processes.send(new.agent_pid, signal.SIGTERM)
        cluster.wait_for(lambda: old.is_writable() or third.is_writable(), 60, "another primary")
