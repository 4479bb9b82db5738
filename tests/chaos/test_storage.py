"""Rules 1, 2 and 5 when the storage under PostgreSQL fails: a disk that is full, one that stops answering.

Clients write on every server all the time, through sessions opened before the fault and after it. A hung
disk is the case that no signal ends: whoever waits for it sleeps uninterruptibly, SIGKILL or not (H9, H13).
Such a server is fenced (it acknowledges nothing any more, and never will) but not stopped, so its key is not
released: the lease runs out, and somebody else takes over while the old processes are still there.

That a primary on such a disk hands over by itself, after a while, is test_unhealthy.py's subject.

Each test holds cluster and disk in its own `with`, not in a fixture: the disk must answer again before a
failure is reported, because the report reads logs on it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import psycopg
import pytest

from tests.support import processes, storage
from tests.support.cluster import Cluster, Node
from tests.support.storage import Disk
from tests.support.wait import holds_for
from tests.support.writers import Writers, replicated

#: Short, so that a failover takes a few seconds; the proof does not depend on it.
TTL_S = 4
#: For everything to be well again, seconds; generous.
HEALED_S = 120.0
#: Room for one PostgreSQL, and so little more that its WAL soon takes all of it, bytes.
SMALL_BYTES = 256 * 1024**2

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def _needs_disks() -> None:
    reason = storage.unavailable()
    if reason is not None:
        pytest.skip(reason)


@contextlib.contextmanager
def cluster_on_disk(
    index: int,
    *,
    state_too: bool = False,
    size_bytes: int = storage.SIZE_BYTES,
    parameters: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[Cluster, Node, Disk]]:
    """Three nodes, the first one leads. On the disk: PGDATA of node `index`, or that and its state."""
    with contextlib.ExitStack() as stack:
        # A commit that waits for no disk would not notice that it hangs.
        wanted = {"fsync": "on", "log_min_messages": "log", **parameters}
        cluster = Cluster(nodes=3, ttl=TTL_S, parameters=wanted)
        stack.callback(cluster.close)
        node = cluster.node(index)
        mount_point = node.data_dir
        if state_too:
            mount_point = node.root / "disk"
            node.data_dir, node.state_dir = mount_point / "data", mount_point / "data.haagent"
        disk = stack.enter_context(Disk(mount_point, size_bytes))
        stack.enter_context(cluster)
        stack.callback(disk.resume)
        yield cluster, node, disk


def wait_successor(cluster: Cluster, writers: Writers, old: Node) -> Node:
    """Somebody else leads, and writes are acknowledged there."""

    def other() -> Node | None:
        return next((node for node in cluster.leaders() if node is not old), None)

    new = cluster.wait_for(other, HEALED_S, f"a successor of {old.name}")
    assert new is not None
    writers.wait_acknowledged(20, f"new:{new.name}", HEALED_S)
    return new


def wait_healed(cluster: Cluster, writers: Writers) -> None:
    """One leads, two stream, and the application's session works."""
    cluster.wait_streaming(2, HEALED_S)
    writers.wait_acknowledged(20, "any", HEALED_S)


def assert_one_writable(writers: Writers) -> None:
    overlaps = writers.evidence().overlaps()
    assert overlaps == [], f"{len(overlaps)} writes on two servers, first {overlaps[0]}"


def assert_nothing_lost(cluster: Cluster, writers: Writers) -> None:
    """A primary acknowledges what is flushed, and goes on sending it from memory when its disk hangs."""
    assert writers.evidence().missing(cluster.leader().dsn) == []


def waiting_for_disk(node: Node) -> list[int]:
    return [pid for pid in node.postgres_pids() if processes.state(pid) == "D"]


def is_ended_but_for_sleepers(node: Node) -> bool:
    """Something is left of PostgreSQL, and all of it is in uninterruptible sleep."""
    left = node.postgres_pids()
    return bool(left) and left == waiting_for_disk(node)


def change_settings(node: Node) -> None:
    """Something that every agent has to write to its data directory."""
    change = {"postgresql": {"parameters": {"work_mem": "5MB"}}}
    assert node.rest("/config", "PATCH", change)[0] == 200


def says_that_it_hangs(node: Node) -> bool:
    return "storage.answers" in str(node.rest("/patroni")[1]["haagent"]["cannot_lead"])


def keep_alive(cluster: Cluster, lease: int) -> None:
    """Prolong the lease of the leader key past its holder: then nothing but a release can remove the key."""
    assert cluster.etcd is not None
    cluster.etcd.post("/v3/lease/keepalive", {"ID": str(lease)})


def leader_lease(cluster: Cluster) -> int:
    assert cluster.etcd is not None
    key = base64.b64encode(f"/service/{cluster.scope}/leader".encode()).decode()
    return int(cluster.etcd.post("/v3/kv/range", {"key": key})["kvs"][0]["lease"])


def hang_under_writes(disk: Disk, node: Node, writers: Writers) -> None:
    writers.wait_acknowledged(50)
    disk.hang()
    node.cluster.wait_for(lambda: waiting_for_disk(node), HEALED_S, "PostgreSQL waits for the disk")


# --- hung -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state_too",
    [pytest.param(False, id="data", marks=pytest.mark.slow), pytest.param(True, id="data-and-state")],
)
def test_primary_on_a_hung_disk_is_fenced_although_it_cannot_be_stopped(state_too: bool) -> None:
    """Hung: no write is acknowledged anywhere, and for some seconds the lease is kept. Then the loop stops as
    it does when it has to write to that disk: the guardian fences without touching the disk. The agent, awake
    again, must not release the key however long it finds it there; the lease has to run out."""
    with cluster_on_disk(0, state_too=state_too) as (cluster, old, disk), Writers(cluster) as writers:
        hang_under_writes(disk, old, writers)
        holds_for(lambda: len(cluster.leaders()) <= 1, TTL_S / 2, "at most one leads")

        lease, all_of_them = leader_lease(cluster), len(old.postgres_pids())
        old.freeze_agent()

        def fenced() -> bool:
            keep_alive(cluster, lease)
            return len(old.postgres_pids()) < all_of_them and is_ended_but_for_sleepers(old)

        def key_is_kept() -> bool:
            keep_alive(cluster, lease)
            return cluster.key("leader") == old.name

        cluster.wait_for(fenced, HEALED_S, "the guardian fences")
        old.thaw_agent()
        holds_for(key_is_kept, TTL_S, f"{old.name} keeps the key: it is not proven stopped")
        wait_successor(cluster, writers, old)
        assert is_ended_but_for_sleepers(old), (
            "the old primary could be stopped, or lives: the fault was none"
        )
        assert old.status("/primary") == 503

        disk.resume()
        wait_healed(cluster, writers)
        assert not old.is_writable()
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)


@pytest.mark.slow
@pytest.mark.parametrize("state_too", [False, True], ids=["data", "data-and-state"])
def test_hung_former_primary_holds_nobody_up(state_too: bool) -> None:
    """Its agent is killed, and started again while the disk still hangs. Then the successor is lost, too."""
    with cluster_on_disk(0, state_too=state_too) as (cluster, old, disk), Writers(cluster) as writers:
        hang_under_writes(disk, old, writers)
        old.kill_agent()
        second = wait_successor(cluster, writers, old)
        third = next(node for node in cluster.nodes if node not in (old, second))
        cluster.wait_for(third.is_streaming, HEALED_S, f"{third.name} streams from {second.name}")
        assert waiting_for_disk(old)
        old.start()
        holds_for(second.is_primary, TTL_S, f"{second.name} stays")

        second.kill_all()
        assert wait_successor(cluster, writers, second) is third
        assert waiting_for_disk(old), "the old primary could be stopped: the fault was none"

        disk.resume()
        second.start()
        wait_healed(cluster, writers)
        assert not old.is_writable()
        assert_one_writable(writers)


@pytest.mark.slow
def test_hung_standby_is_no_candidate_and_holds_nobody_up() -> None:
    """The primary goes on, the agent of the hung one, too. A switchover to the hung one fails and the primary
    is back; to any other it works, and so does a failover. Known: the lag of a standby that hung a moment ago
    is small, so the primary stops before it learns that the candidate does not get the shutdown checkpoint:
    some seconds without writes."""
    with cluster_on_disk(1) as (cluster, hung, disk), Writers(cluster) as writers:
        primary = cluster.wait_streaming(2)
        writers.wait_acknowledged(50)
        disk.hang()
        cluster.wait_for(lambda: waiting_for_disk(hung), HEALED_S, "the standby waits for the disk")
        writers.wait_acknowledged(200)

        request = {"leader": primary.name, "candidate": hung.name}
        status, text = primary.rest("/switchover", "POST", request, timeout_s=HEALED_S)
        assert status in (412, 503), text
        cluster.wait_for(primary.is_primary, HEALED_S, "the primary is back")
        writers.wait_acknowledged(50, f"new:{primary.name}")

        before = writers.evidence().acknowledged
        status, text = primary.rest("/switchover", "POST", {"leader": primary.name}, timeout_s=HEALED_S)
        assert status == 200, text
        second = wait_successor(cluster, writers, primary)
        assert second is not hung
        cluster.wait_for(primary.is_streaming, HEALED_S, f"{primary.name} streams from {second.name}")

        change_settings(second)
        cluster.wait_for(
            lambda: says_that_it_hangs(hung), HEALED_S, "the hung one's loop goes on, and says so"
        )
        second.kill_agent()
        assert wait_successor(cluster, writers, second) is primary
        disk.resume()
        second.start()
        wait_healed(cluster, writers)
        assert_one_writable(writers)
        assert not before & set(writers.evidence().missing(cluster.leader().dsn)), "a switchover lost rows"


# --- full -----------------------------------------------------------------------------------------


def write_wal(node: Node, size_mib: int) -> None:
    """WAL and nothing else, 1 MiB at a time. psycopg.Error when the server does not survive it."""
    for _ in range(size_mib):
        node.sql("select pg_logical_emit_message(false, 'test', repeat('x', 1048576))")


def test_primary_without_room_for_wal_is_handed_over_and_heals_with_space() -> None:
    """PostgreSQL stops with a PANIC, cannot start again either, and is handed over within a second or two;
    the full node joins as a standby when there is room (often before: recovery recycles WAL). What that costs
    is what any crash of an asynchronous primary may cost (rule 5): only rows that no standby had yet."""
    with cluster_on_disk(0, size_bytes=SMALL_BYTES) as (cluster, old, disk), Writers(cluster) as writers:
        writers.wait_acknowledged(50)
        safe = replicated(writers, old.dsn)
        disk.fill()
        with pytest.raises(psycopg.Error):
            write_wal(old, SMALL_BYTES // 1024**2)
        writers.wait_acknowledged(50, "any", HEALED_S)
        assert len(cluster.leaders()) <= 1
        disk.free()
        wait_healed(cluster, writers)
        assert_one_writable(writers)
        assert not safe & set(writers.evidence().missing(cluster.leader().dsn))


@pytest.mark.slow
def test_full_standby_is_no_candidate_and_comes_back_with_space() -> None:
    with cluster_on_disk(1, size_bytes=SMALL_BYTES) as (cluster, full, disk), Writers(cluster) as writers:
        primary = cluster.wait_streaming(2)
        writers.wait_acknowledged(50)
        disk.fill()
        write_wal(primary, 100)
        cluster.wait_for(lambda: not full.is_streaming(), HEALED_S, "the full standby falls behind")
        writers.wait_acknowledged(200)

        request = {"leader": primary.name, "candidate": full.name}
        status, text = primary.rest("/switchover", "POST", request, timeout_s=HEALED_S)
        assert status in (412, 503), text
        assert cluster.leader() is primary
        disk.free()
        wait_healed(cluster, writers)
        assert_one_writable(writers)
        assert_nothing_lost(cluster, writers)
