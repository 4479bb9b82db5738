"""The witnesses themselves: what writers report must be able to be bad news."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.postgres import Server, postgres_user  # noqa: F401  # the fixture is used by name
from tests.support.wait import DEADLINE_S, wait_for
from tests.support.writers import TABLE, Writers

pytestmark = pytest.mark.usefixtures("postgres_user")


@dataclass
class PlainNode:
    """A PostgreSQL without an agent, in the shape writers expect."""

    name: str
    server: Server

    @property
    def sql_port(self) -> int:
        return self.server.port

    @property
    def dsn(self) -> str:
        return self.server.conninfo


@dataclass
class PlainCluster:
    nodes: list[PlainNode]

    @property
    def read_write_dsn(self) -> str:
        ports = ",".join(str(node.sql_port) for node in self.nodes)
        hosts = ",".join("127.0.0.1" for _ in self.nodes)
        return f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"


@pytest.fixture
def pair(postgres_user: None) -> Iterator[PlainCluster]:  # noqa: F811
    """A primary "a" and its streaming standby "b"."""
    a, b = Server.create("a"), Server.empty("b")
    try:
        a.start()
        b.clone_from(a)
        b.start()
        b.wait_streaming()
        yield PlainCluster([PlainNode("a", a), PlainNode("b", b)])
    finally:
        a.destroy()
        b.destroy()


def test_healthy_pair_has_one_tenure_and_loses_nothing(pair: PlainCluster) -> None:
    with Writers(pair) as writers:
        for client in ("any", "old:a", "new:a"):
            writers.wait_acknowledged(5, client)
    evidence = writers.evidence()
    assert evidence.tenures() == [("a", 1)]
    assert evidence.overlaps() == []
    assert evidence.of("old:b") == []
    assert evidence.missing(pair.nodes[0].dsn) == []
    assert evidence.write_gap_s() > 0


def test_two_writable_servers_are_seen_by_old_sessions_and_new_ones(pair: PlainCluster) -> None:
    with Writers(pair) as writers:
        writers.wait_acknowledged(5)
        pair.nodes[1].server.sql("SELECT pg_promote()")
        writers.wait_acknowledged(5, "new:b")
        for client in ("old:a", "new:a"):
            writers.wait_acknowledged(2, client)
    overlaps = writers.evidence().overlaps()
    assert {overlap.late.client for overlap in overlaps} >= {"old:a", "new:a"}
    assert {overlap.first_of_newer.timeline for overlap in overlaps} == {2}


def test_acknowledged_rows_that_are_gone_are_missing(pair: PlainCluster) -> None:
    with Writers(pair, direct=False) as writers:
        writers.wait_acknowledged(3)
    evidence = writers.evidence()
    lost = min(evidence.acknowledged)
    pair.nodes[0].server.sql(f"DELETE FROM {TABLE} WHERE id = {lost}")
    assert evidence.missing(pair.nodes[0].dsn) == [lost]


def test_a_write_that_the_server_never_answers_is_unknown_and_does_not_hang_the_writers(
    pair: PlainCluster,
) -> None:
    with Writers(pair, direct=False) as writers, psycopg.connect(pair.nodes[0].dsn) as locker:
        writers.wait_acknowledged(3)
        locker.execute(f"LOCK TABLE {TABLE}".encode())
        held = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_for(lambda: pair.nodes[0].server.sql(held), DEADLINE_S, "a write waits for the lock")
        writers.stop(deadline_s=0.5)
    assert len(writers.evidence().unknown) == 1
