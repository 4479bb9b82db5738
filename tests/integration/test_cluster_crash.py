"""Crashes of PostgreSQL and of whole nodes, under load; how data directories come back (contract 2.9)."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import psycopg
import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node
from tests.support.wait import holds_for
from tests.support.writers import Writers, replicated

QUIET = {"log_min_messages": "log"}


def successor(cluster: Cluster, old: Node) -> Node:
    def other() -> Node | None:
        return next((node for node in cluster.leaders() if node is not old), None)

    found = cluster.wait_for(other, 60, f"a successor of {old.name}")
    assert found is not None
    return found


def timeline(node: Node) -> int:
    return int(node.value("select timeline_id from pg_control_checkpoint()"))


def diverge(cluster: Cluster, old: Node) -> Node:
    """`old` dies with WAL that nobody else has: its walsenders stood still while it wrote."""
    for pid in walsenders(old):
        processes.send(pid, signal.SIGSTOP)
    old.sql("create table lost_with_the_node as select generate_series(1, 1000)")
    old.kill_all()
    new = successor(cluster, old)
    cluster.wait_for(new.is_writable, 60, "writes go on")
    new.sql("create table kept (n int)")
    return new


def walsenders(node: Node) -> list[int]:
    return [pid for pid in node.postgres_pids() if b"walsender" in title(pid)]


def title(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_crashes_under_load() -> None:
    with Cluster(nodes=3, ttl=4, parameters=QUIET) as cluster:
        a = cluster.leader()
        with Writers(cluster) as writers:
            writers.wait_acknowledged(50)

            # The postmaster dies: it comes back in place, on its timeline, with everything.
            killed = a.postmaster_pid()
            processes.send(killed, signal.SIGKILL)
            cluster.wait_for(lambda: a.postmaster_pid() not in (None, killed), 60, "a new postmaster")
            writers.wait_acknowledged(50, f"new:{a.name}")
            cluster.wait_streaming(2)
            assert cluster.leaders() == [a]
            assert timeline(a) == 1
            assert writers.evidence().missing(a.dsn) == []

            # It cannot start any more: a standby takes over, long before primary_start_timeout.
            safe = replicated(writers, a.dsn)
            control = a.data_dir / "global" / "pg_control"
            aside = a.root / "pg_control.aside"
            os.rename(control, aside)
            processes.send(a.postmaster_pid(), signal.SIGKILL)
            b = successor(cluster, a)
            writers.wait_acknowledged(50, f"new:{b.name}")
            os.rename(aside, control)
            cluster.wait_streaming(2)
            assert not safe & set(writers.evidence().missing(b.dsn))

            # The machine dies.
            safe = replicated(writers, b.dsn)
            b.kill_all()
            c = successor(cluster, b)
            writers.wait_acknowledged(50, f"new:{c.name}")
            b.start()
            cluster.wait_streaming(2)
            assert not safe & set(writers.evidence().missing(c.dsn))
        assert writers.evidence().overlaps() == []


def test_diverged_node_is_rewound_and_streams() -> None:
    with Cluster(nodes=2, ttl=4, parameters=QUIET) as cluster:
        old = cluster.leader()
        new = diverge(cluster, old)
        old.start()
        cluster.wait_streaming(1)
        assert "pg_rewind from" in old.log()
        wait_same_tables(cluster, old, new)
        # What was thrown away is kept for people (rule 7).
        assert "discarded" in old.log()
        assert list(old.root.glob("*diverged*")), "the discarded WAL is kept nowhere"


def wait_same_tables(cluster: Cluster, one: Node, other: Node) -> None:
    tables = "select relname from pg_class where relname in ('kept', 'lost_with_the_node') order by 1"
    cluster.wait_for(lambda: one.sql(tables) == other.sql(tables) == [("kept",)], 60, "the same history")


@pytest.mark.slow
@pytest.mark.parametrize("discard", [True, False], ids=["cloned", "stays out"])
def test_diverged_node_without_pg_rewind(discard: bool) -> None:
    allowed = {"remove_data_directory_on_diverged_timelines": discard}
    dcs: dict[str, Any] = {"postgresql": {"use_pg_rewind": False}}
    node_config = {"postgresql": allowed}
    with Cluster(nodes=2, ttl=4, dcs=dcs, node_config=node_config, parameters=QUIET) as cluster:
        old = cluster.leader()
        new = diverge(cluster, old)
        old.start()
        if discard:
            cluster.wait_streaming(1)
            assert "pg_rewind from" not in old.log()
            wait_same_tables(cluster, old, new)
            return
        cluster.wait_for(lambda: "note" in old.member_key(), 60, "the member key says why it stays out")
        note = old.member_key()["note"]
        assert "reinit" in note, note
        assert old.rest("/patroni")[1]["haagent"]["note"] == note
        holds_for(lambda: not old.is_writable(), 3, "out, and not writable")
        with pytest.raises(psycopg.Error):
            old.sql("create table never (n int)")


def test_what_postmaster_and_guardian_left_is_ended() -> None:
    """Both are killed at once: nobody is the parent of a busy backend, which notices nothing (H9)."""
    with Cluster(nodes=1, ttl=10, parameters=QUIET) as cluster:
        node = cluster.leader()
        with contextlib.closing(node.connect()) as session:
            busy = session.info.backend_pid
            session.pgconn.send_query(b"do $$ begin loop end loop; end $$")
            state = "select state from pg_stat_activity where pid = %s"
            cluster.wait_for(lambda: node.value(state, busy) == "active", 30, "it is busy")
            guardian = node.guardian_pid
            # Frozen first: it would end the backend as soon as the postmaster is dead.
            processes.send(guardian, signal.SIGSTOP)
            processes.send(node.postmaster_pid(), signal.SIGKILL)
            processes.send(guardian, signal.SIGKILL)
            cluster.wait_for(lambda: not processes.exists(busy), 60, "it is ended")
        cluster.wait_for(node.is_writable, 60, "PostgreSQL is back")
