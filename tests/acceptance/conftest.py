"""One cluster for all clients of this folder: programs made for Patroni, against haagent on etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster


@pytest.fixture(scope="package")
def shared() -> Iterator[Cluster]:
    with Cluster(nodes=3, scope="demo", parameters={"log_min_messages": "log"}) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """Whole: one leads, the others stream. A test leaves it so, with any member as the leader."""
    shared.wait_streaming(2)
    return shared
