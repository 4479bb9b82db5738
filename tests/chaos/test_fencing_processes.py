"""Rule 1 with real processes: agent, guardian and postmaster killed or frozen, alone and together.

Clients write on every server all the time, through sessions opened before the fault and after it. Whatever
was done to the primary, no write sent to it after its successor's first acknowledgement may be acknowledged;
then the cluster must heal. The last test takes both fences away and expects the same clients to see two
writable servers: a check that cannot fail proves nothing. The short set in `test_torture.py` covers the same
faults in every run; here each is followed step by step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support import processes
from tests.support.cluster import Cluster, Node
from tests.support.writers import Writers

pytestmark = pytest.mark.slow

#: Short, so that a failover takes a few seconds; the proof does not depend on it.
TTL_S = 4
#: For everything to be well again, seconds; generous.
HEALED_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=3, ttl=TTL_S, parameters={"log_min_messages": "log"}) as running:
        yield running


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


def assert_one_writable(cluster: Cluster, writers: Writers, fault: str) -> None:
    overlaps = writers.evidence().overlaps()
    assert overlaps == [], f"{fault}: {len(overlaps)} writes on two servers, first {overlaps[0]}"


def test_dead_or_frozen_agent_costs_the_lease_and_never_two_primaries(cluster: Cluster) -> None:
    with Writers(cluster) as writers:
        old = cluster.wait_streaming(2)
        old.kill_agent()
        wait_successor(cluster, writers, old)
        assert_one_writable(cluster, writers, "agent killed")
        old.start()
        wait_healed(cluster, writers)

        old = cluster.leader()
        old.freeze_agent()
        wait_successor(cluster, writers, old)
        assert_one_writable(cluster, writers, "agent frozen")
        old.thaw_agent()
        wait_healed(cluster, writers)

        old = cluster.leader()
        # It does not act on signals now, and its backends go on writing.
        processes.send(old.postmaster_pid(), signal.SIGSTOP)
        old.kill_agent()
        wait_successor(cluster, writers, old)
        assert_one_writable(cluster, writers, "postmaster frozen, agent killed")
        old.start()
        wait_healed(cluster, writers)
    assert_one_writable(cluster, writers, "at the end")


def test_dead_or_frozen_guardian_never_leaves_two_primaries(cluster: Cluster) -> None:
    with Writers(cluster) as writers:
        old = cluster.wait_streaming(2)
        before = old.guardian_pid
        processes.send(before, signal.SIGKILL)
        cluster.wait_for(lambda: old.guardian_pid not in (None, before), HEALED_S, "a new guardian")
        wait_healed(cluster, writers)
        assert_one_writable(cluster, writers, "guardian killed")

        old = cluster.leader()
        frozen = old.guardian_pid
        processes.send(frozen, signal.SIGSTOP)
        assert frozen is not None
        cluster.wait_for(lambda: processes.state(frozen) != "T", HEALED_S, "the agent wakes its guardian")
        wait_healed(cluster, writers)
        assert_one_writable(cluster, writers, "guardian frozen")

        old = cluster.leader()
        guardian = old.guardian_pid
        processes.send(old.agent_pid, signal.SIGKILL)
        processes.send(guardian, signal.SIGKILL)
        old.kill_agent()
        wait_successor(cluster, writers, old)
        assert_one_writable(cluster, writers, "agent and guardian killed")
        old.start()
        wait_healed(cluster, writers)
    assert_one_writable(cluster, writers, "at the end")


def test_without_any_fence_the_same_clients_see_two_writable_servers(cluster: Cluster) -> None:
    """The positive control: guardian and agent frozen, which only a watchdog could cover."""
    with Writers(cluster) as writers:
        old = cluster.wait_streaming(2)
        guardian = old.guardian_pid
        writers.wait_acknowledged(20, f"old:{old.name}")
        processes.send(guardian, signal.SIGSTOP)
        old.freeze_agent()
        wait_successor(cluster, writers, old)
        writers.wait_acknowledged(20, f"old:{old.name}")
        assert writers.evidence().overlaps(), "two servers were writable and the check did not see it"
        # Woken, the guardian does what is overdue: old sessions end too.
        processes.send(guardian, signal.SIGCONT)
        cluster.wait_for(lambda: not old.is_writable(), HEALED_S, "the old primary is fenced once woken")
        old.thaw_agent()
        wait_healed(cluster, writers)
