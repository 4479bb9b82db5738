"""HAProxy with the configuration in configs/ routes real traffic through a switchover."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.programs import CONFIGS, server
from tests.support.cluster import Cluster, Node
from tests.support.etcd import free_port
from tests.support.wait import wait_for
from tests.support.writers import Writers


@dataclass
class Routed:
    """The cluster as an application behind HAProxy sees it: one port for writes, one for reads."""

    cluster: Cluster
    writes: int
    reads: int

    @property
    def nodes(self) -> Sequence[Node]:
        return self.cluster.nodes

    @property
    def read_write_dsn(self) -> str:
        return f"host=127.0.0.1 port={self.writes} user=postgres dbname=postgres"

    def readers(self) -> set[int]:
        """The ports of those that answer six reads, by turns."""
        return {self._read() for _ in range(6)}

    def _read(self) -> int:
        dsn = f"host=127.0.0.1 port={self.reads} user=postgres dbname=postgres connect_timeout=5"
        with psycopg.connect(dsn, autocommit=True) as session:
            port: int = session.execute("select inet_server_port()").fetchall()[0][0]
            return port


def written_for(cluster: Cluster, writes: int, reads: int) -> str:
    """configs/haproxy.cfg with the addresses of these servers."""
    text = (CONFIGS / "haproxy.cfg").read_text()
    for node, name in zip(cluster.nodes, ("10.0.0.1", "10.0.0.2", "10.0.0.3"), strict=True):
        check = rf"{name}:5432 (.*) check port 8008"
        text, count = re.subn(check, rf"{node.address}:{node.sql_port} \1 check port {node.api_port}", text)
        assert count == 2
    for old, new in (("*:5000", writes), ("*:5001", reads), ("127.0.0.1:7000", free_port())):
        assert text.count(f"bind {old}") == 1
        text = text.replace(f"bind {old}", f"bind 127.0.0.1:{new}")
    return text


@pytest.fixture
def routed(cluster: Cluster, tmp_path: Path) -> Iterator[Routed]:
    view = Routed(cluster, free_port(), free_port())
    config = tmp_path / "haproxy.cfg"
    config.write_text(written_for(cluster, view.writes, view.reads))
    with server(["haproxy", "-db", "-f", str(config)], tmp_path / "haproxy.log"):
        yield view


def test_traffic_goes_through_a_switchover(routed: Routed) -> None:
    cluster = routed.cluster
    old = cluster.leader()
    new = next(node for node in cluster.nodes if node is not old)
    with Writers(routed) as writers:
        writers.wait_acknowledged(50)
        wait_for(lambda: routed.readers() == standbys(cluster, old), 60, "both replicas are read from")
        status, text = old.rest("/switchover", "POST", {"leader": old.name, "candidate": new.name})
        assert status == 200, text
        writers.wait_acknowledged(50)
        wait_for(lambda: routed.readers() == standbys(cluster, new), 60, "the replicas of now are read from")
    evidence = writers.evidence()
    assert {write.server for write in evidence.of("any")} == {old.name, new.name}
    assert evidence.overlaps() == []
    assert evidence.missing(new.dsn) == []


def test_traffic_comes_back_when_the_primary_is_lost(routed: Routed) -> None:
    cluster = routed.cluster
    lost = cluster.leader()
    with Writers(routed) as writers:
        writers.wait_acknowledged(50)
        lost.kill_all()
        writers.wait_acknowledged(50)
        new = cluster.leader()
        assert new is not lost
        lost.start()
        wait_for(lambda: routed.readers() == standbys(cluster, new), 60, "the lost one is a replica again")
    assert writers.evidence().overlaps() == []


def standbys(cluster: Cluster, primary: Node) -> set[int]:
    return {node.sql_port for node in cluster.nodes if node is not primary}
