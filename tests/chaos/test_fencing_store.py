"""Rule 1 when the store is what fails: cut off for the leader alone, silent for it alone, gone for everybody.

A lease that cannot be renewed keeps its primary writable exactly until the fence, and not a write longer
than the successor starts. With the store gone for all, nobody leads, and the cluster comes back by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.wait import holds_for
from tests.support.writers import Writers, replicated

TTL_S = 4
HEALED_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=3, ttl=TTL_S, proxied=True, parameters={"log_min_messages": "log"}) as running:
        yield running


def assert_one_writable(writers: Writers, fault: str) -> None:
    overlaps = writers.evidence().overlaps()
    assert overlaps == [], f"{fault}: {len(overlaps)} writes on two servers, first {overlaps[0]}"


@pytest.mark.slow
def test_leader_alone_loses_the_store(cluster: Cluster) -> None:
    with Writers(cluster) as writers:
        for fault in ("refused", "silent"):
            old = cluster.wait_streaming(2)
            writers.wait_acknowledged(20)
            assert old.proxy is not None
            if fault == "refused":
                old.proxy.refuse()
            else:
                old.proxy.freeze()
            new = cluster.wait_for(
                lambda old=old: next((n for n in cluster.leaders() if n is not old), None),  # type: ignore[misc]
                HEALED_S,
                f"a successor of {old.name}, whose store is {fault}",
            )
            assert new is not None
            writers.wait_acknowledged(20, f"new:{new.name}", HEALED_S)
            assert_one_writable(writers, fault)
            # It knows that it leads no more, although nobody could tell it.
            assert old.status("/primary") == 503
            assert not old.is_writable()
            old.proxy.accept()
            old.proxy.thaw()
            cluster.wait_streaming(2, HEALED_S)
    assert_one_writable(writers, "at the end")


def test_store_gone_for_everybody() -> None:
    """Short: nobody notices. Longer than the lease: read-only, then back without help."""
    # A lease long enough for etcd to come back in it on a busy machine.
    with Cluster(nodes=3, ttl=15) as cluster:
        _store_gone(cluster)


def _store_gone(cluster: Cluster) -> None:
    assert cluster.etcd is not None
    with Writers(cluster) as writers:
        leader = cluster.wait_streaming(2)
        postmaster = leader.postmaster_pid()
        cluster.etcd.kill()
        writers.wait_acknowledged(50)
        cluster.etcd.start()
        cluster.wait_streaming(2, HEALED_S)
        assert cluster.leader() is leader
        assert leader.postmaster_pid() == postmaster, "PostgreSQL was stopped in a short outage"

        safe = replicated(writers, leader.dsn)
        cluster.etcd.freeze()
        writers.wait_acknowledged(20)
        cluster.wait_for(lambda: not leader.is_primary(), HEALED_S, "the lease ends")
        cluster.wait_for(lambda: not leader.is_writable(), HEALED_S, "PostgreSQL is fenced")
        cluster.wait_for(
            lambda: leader.value("select pg_is_in_recovery()"), HEALED_S, "read-only service there"
        )
        holds_for(lambda: not any(n.is_writable() for n in cluster.nodes), TTL_S / 2, "nobody is writable")
        cluster.etcd.thaw()
        cluster.wait_streaming(2, HEALED_S)
        writers.wait_acknowledged(20, "any", HEALED_S)
    assert_one_writable(writers, "store gone")
    assert not safe & set(writers.evidence().missing(cluster.leader().dsn))
