"""A primary that lives, keeps its lease and is of no use: its disk is full or hangs, its postmaster is hung.

Probes find out (docs/decisions/0008-vitality.md): PostgreSQL is restarted where that helps, else another
member leads; where nobody could, the primary stays and says why. What load alone does must change nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.chaos import test_storage
from tests.chaos.test_storage import (
    HEALED_S,
    SMALL_BYTES,
    assert_nothing_lost,
    assert_one_writable,
    cluster_on_disk,
    hang_under_writes,
    is_ended_but_for_sleepers,
    keep_alive,
    leader_lease,
    wait_healed,
    wait_successor,
)
from tests.support import storage
from tests.support.cluster import Cluster, Node
from tests.support.storage import Disk
from tests.support.versions import bin_dir
from tests.support.wait import holds_for
from tests.support.writers import Writers

pytestmark = pytest.mark.timeout(600)

needs_disks = pytest.mark.skipif(storage.unavailable() is not None, reason=storage.unavailable() or "")
TTL_S = test_storage.TTL_S


def says(node: Node, text: str) -> bool:
    """In its status, for people."""
    shown = node.rest("/patroni")[1]["haagent"]
    return text in f"{shown['note']} {shown['cannot_lead']}"


# --- storage --------------------------------------------------------------------------------------


@needs_disks
def test_primary_on_a_full_disk_is_replaced_without_a_loss_and_is_no_candidate_meanwhile() -> None:
    # Else each new session needs room in the data directory, and crashes without.
    memory = {"dynamic_shared_memory_type": "posix"}
    on_disk = cluster_on_disk(0, size_bytes=SMALL_BYTES, parameters=memory)
    with on_disk as (cluster, old, disk), Writers(cluster) as writers:
        writers.wait_acknowledged(50)
        disk.fill()
        new = wait_successor(cluster, writers, old)
        cluster.wait_for(
            lambda: says(old, "no space is left"), HEALED_S, f"{old.name} says why it cannot lead"
        )
        request = {"leader": new.name, "candidate": old.name}
        status, text = new.rest("/switchover", "POST", request, timeout_s=HEALED_S)
        assert status in (412, 503), text
        disk.free()
        wait_healed(cluster, writers)
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)


@needs_disks
def test_primary_on_a_hung_disk_is_replaced_although_it_cannot_be_stopped() -> None:
    """Nobody touches its agent. Its key is not released: it is kept alive here, and stays."""
    with cluster_on_disk(0) as (cluster, old, disk), Writers(cluster) as writers:
        hang_under_writes(disk, old, writers)
        lease = leader_lease(cluster)

        def given_up() -> bool:
            keep_alive(cluster, lease)
            return is_ended_but_for_sleepers(old)

        def key_is_kept() -> bool:
            keep_alive(cluster, lease)
            return cluster.key("leader") == old.name

        cluster.wait_for(given_up, HEALED_S, f"{old.name} gives up")
        holds_for(key_is_kept, TTL_S, f"{old.name} keeps the key: it is not proven stopped")
        wait_successor(cluster, writers, old)
        assert is_ended_but_for_sleepers(old)
        assert old.status("/primary") == 503
        disk.resume()
        wait_healed(cluster, writers)
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)


@needs_disks
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "hung"])
def test_nobody_hands_over_when_all_share_the_fault(fault: str) -> None:
    """One disk under all of them. The primary says what is wrong, and stays."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(nodes=3, ttl=TTL_S, parameters={"fsync": "on"})
        stack.callback(cluster.close)
        shared = cluster.node(0).root.parent / "shared"
        disk = stack.enter_context(Disk(shared, 3 * SMALL_BYTES))
        for node in cluster.nodes:
            node.data_dir = shared / node.name
        stack.enter_context(cluster)
        stack.callback(disk.resume)
        writers = stack.enter_context(Writers(cluster))
        primary = cluster.wait_streaming(2)
        writers.wait_acknowledged(50)
        before = cluster.key("history")
        disk.fill() if fault == "full" else disk.hang()
        words = "no space is left" if fault == "full" else "its storage does not answer"
        cluster.wait_for(
            lambda: "staying the leader" in primary.log(), HEALED_S, f"{primary.name} notices, and stays"
        )
        cluster.wait_for(lambda: all(says(n, words) for n in cluster.nodes), HEALED_S, "everybody says so")
        holds_for(primary.is_primary, 4 * TTL_S, f"{primary.name} leads")
        disk.free() if fault == "full" else disk.resume()
        wait_healed(cluster, writers)
        assert cluster.key("history") == before
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)


# --- the postmaster -------------------------------------------------------------------------------


def stop_postmaster(node: Node) -> int:
    pid = node.postmaster_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.slow
def test_hung_postmaster_is_restarted_in_place() -> None:
    """Old sessions go on writing until then; that is no reason to leave it so."""
    with Cluster(nodes=2, ttl=TTL_S) as cluster, Writers(cluster) as writers:
        primary = cluster.wait_streaming(1)
        writers.wait_acknowledged(50)
        pid = stop_postmaster(primary)
        cluster.wait_for(
            lambda: primary.postmaster_pid() not in (None, pid) and primary.is_writable(),
            HEALED_S,
            "it is new",
        )
        writers.wait_acknowledged(50, f"new:{primary.name}", HEALED_S)
        assert cluster.leader() is primary
        assert "PostgreSQL lets nobody in" in primary.log()
        cluster.wait_streaming(1, HEALED_S)
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)


@pytest.mark.slow
def test_postmaster_that_hangs_again_and_again_is_replaced() -> None:
    with Cluster(nodes=2, ttl=TTL_S) as cluster, Writers(cluster) as writers:
        primary = cluster.wait_streaming(1)
        writers.wait_acknowledged(50)
        for _ in range(3):
            # Else the next one would not let the standby in.
            cluster.wait_streaming(1, HEALED_S)
            pid = stop_postmaster(primary)

            def dealt_with(pid: int = pid) -> bool:
                gone = primary.postmaster_pid() != pid
                return gone and any(node.is_writable() for node in cluster.leaders())

            cluster.wait_for(dealt_with, HEALED_S, "the hung one is gone, and one leads")
        assert wait_successor(cluster, writers, primary) is not primary
        wait_healed_pair(cluster, writers)


def wait_healed_pair(cluster: Cluster, writers: Writers) -> None:
    cluster.wait_streaming(1, HEALED_S)
    writers.wait_acknowledged(20, "any", HEALED_S)
    assert_one_writable(writers)


# --- load is no fault -----------------------------------------------------------------------------


@contextlib.contextmanager
def saturated(node: Node) -> Iterator[None]:
    """pgbench writes with forty sessions, and there is no room for one more: all the others are taken."""
    program = str(Path(bin_dir()) / "pgbench")
    subprocess.run([program, "-i", "-q", "-d", node.dsn], check=True, capture_output=True, timeout=120)
    with contextlib.ExitStack() as stack:
        load = subprocess.Popen(
            [program, "-n", "-d", node.dsn, "-c", "40", "-j", "2", "-T", "600"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(load.wait)
        stack.callback(load.kill)
        node.cluster.wait_for(
            lambda: (
                node.value("select count(*) from pg_stat_activity where application_name = 'pgbench'") == 40
            ),
            HEALED_S,
            "pgbench runs",
        )
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(contextlib.closing(node.connect()))
        yield
        assert load.poll() is None, "pgbench ended: that was no load"


@pytest.mark.parametrize("seconds", [8.0, pytest.param(40.0, marks=pytest.mark.slow)])
def test_load_that_takes_all_connections_and_processors_changes_nothing(seconds: float) -> None:
    """All log in as superuser here, so the reserved connections are taken, too."""
    with Cluster(nodes=2, ttl=TTL_S, parameters={"max_connections": "60"}) as cluster:
        primary = cluster.wait_streaming(1)
        pid, history = primary.postmaster_pid(), cluster.key("history")
        with saturated(primary):
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                primary.connect()
            holds_for(lambda: cluster.key("leader") == primary.name, seconds, f"{primary.name} leads")
        assert primary.postmaster_pid() == pid
        assert cluster.key("history") == history
        assert primary.is_primary()
        cluster.wait_streaming(1)
