"""Replication slots on real servers: they outlive the leader, and none fills the disk (contract 6.2, 6.3)."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from tests.support.cluster import Cluster, Node

QUIET = {"logging_collector": "off"}
LOGICAL = {"wal_level": "logical"}
CDC = {"type": "logical", "database": "postgres", "plugin": "test_decoding"}


def slots(node: Node) -> dict[str, str]:
    """Name -> type."""
    return dict(node.sql("select slot_name, slot_type from pg_replication_slots"))


def position(node: Node, name: str) -> int | None:
    """What the slot keeps from on; None where it is not."""
    column = "coalesce(confirmed_flush_lsn, restart_lsn) - '0/0'"
    rows = node.sql(f"select ({column})::bigint from pg_replication_slots where slot_name = %s", name)
    return int(rows[0][0]) if rows else None


def wait_for_slots(node: Node, names: set[str], without: str = "") -> None:
    def there() -> bool:
        found = set(slots(node))
        return names <= found and without not in found

    node.cluster.wait_for(there, 60, f"{names} on {node.name}, and not {without or 'more'}")


def wait_for_position(node: Node, name: str, at: int) -> None:
    node.cluster.wait_for(lambda: position(node, name) == at, 60, f"{name} at {at} on {node.name}")


def status(cluster: Cluster) -> dict[str, Any]:
    return dict(json.loads(cluster.key("status") or "{}"))


def consume(node: Node, upto: int | None = None) -> list[int]:
    """Ids of the rows that the consumer of `cdc` gets, and confirms."""
    rows = node.sql("select data from pg_logical_slot_get_changes('cdc', null, %s::int)", upto)
    inserted = [text for (text,) in rows if text.startswith("table public.rows: INSERT")]
    return [int(text.rpartition("id[integer]:")[2]) for text in inserted]


def insert(node: Node, *ids: int) -> None:
    for number in ids:
        node.sql("insert into rows values (%s)", number)


def test_slots_outlive_the_leader() -> None:
    """A consumer of a logical slot goes on behind a failover where it had confirmed; no row is skipped."""
    dcs = {
        "slots": {"archive": None, "cdc": CDC},
        "ignore_slots": [{"name": "mine", "type": "physical"}],
        "postgresql": {"parameters": LOGICAL},
    }
    with Cluster(nodes=3, ttl=4, dcs=dcs, parameters=QUIET) as cluster:
        first = cluster.wait_streaming(2)
        standbys = [node for node in cluster.nodes if node is not first]
        first.sql("create table rows (id int)")
        first.sql("select pg_create_physical_replication_slot('mine', true)")
        first.sql("select pg_create_physical_replication_slot('stranger', true)")
        for node in cluster.nodes:
            names = {n.name for n in cluster.nodes} - {node.name} | {"archive"}
            wait_for_slots(node, names)
        wait_for_slots(first, {"cdc"}, without="stranger")
        assert slots(first)["mine"] == "physical"
        assert all(n.value("show hot_standby_feedback") == "on" for n in standbys)

        got: list[int] = []
        written = 0

        def flow() -> bool:
            """The consumer goes on, so that its slot leaves WAL behind that the standbys never had."""
            nonlocal written
            written += 1
            insert(first, written)
            first.sql("checkpoint")
            got.extend(consume(first))
            return all("cdc" in slots(n) and not n.member_key().get("note") for n in standbys)

        cluster.wait_for(flow, 120, "copies on the standbys that are safe to use")
        insert(first, *range(1001, 1004))
        got.extend(consume(first, 1))
        insert(first, *range(1004, 1007))
        confirmed, end = position(first, "cdc"), first.value("select pg_current_wal_flush_lsn()")
        assert confirmed is not None
        cluster.wait_for(lambda: status(cluster)["slots"]["cdc"] == confirmed, 60, "it is published")
        for node in standbys:
            wait_for_position(node, "cdc", confirmed)
            arrived = f"select pg_last_wal_replay_lsn() >= '{end}'"
            cluster.wait_for(partial(node.value, arrived), 60, "all rows are there")
        told = status(cluster)
        assert set(told["slots"]) == {"archive", "cdc", *(node.name for node in cluster.nodes)}
        assert told["retain_slots"] == sorted(node.name for node in cluster.nodes)

        first.kill_all()
        cluster.wait_for(lambda: any(n.is_writable() for n in standbys), 60, "another leader")
        second = next(n for n in standbys if n.is_writable())
        assert sorted([*got, *consume(second)]) == [*range(1, written + 1), *range(1001, 1007)]
        assert "archive" in slots(second)
        first.start()
        cluster.wait_streaming(2)
        names = {"archive", "cdc"} | {n.name for n in cluster.nodes} - {first.name}
        cluster.wait_for(lambda: set(slots(first)) - {"mine"} == names, 60, "the old leader keeps them, too")


def test_a_wrong_slot_is_refused_and_one_that_is_given_up_goes() -> None:
    with Cluster(nodes=2, ttl=4, dcs={"permanent_slots": {"archive": None}}, parameters=QUIET) as cluster:
        first = cluster.wait_streaming(1)
        (other,) = cluster.replicas()
        for node in cluster.nodes:
            wait_for_slots(node, {"archive"})

        code, text = first.rest("/config", "PATCH", {"permanent_slots": {"Bad": {"type": "magic"}}})
        assert code == 400
        assert "permanent_slots.Bad" in str(text)
        assert "magic" in str(text)

        # It keeps WAL here as nobody uses it, says so, and follows its consumer on the standby.
        for _ in range(3):
            first.sql("select pg_switch_wal()")
            first.sql("create table if not exists filler as select generate_series(1, 1000)")
        metric: re.Pattern[str] = re.compile(
            r'haagent_slot_retained_bytes\{[^}]*slot="archive",type="physical"\} (\S+)'
        )

        def kept() -> float:
            found = metric.search(first.rest("/metrics")[1])
            return float(found[1]) if found else 0.0

        cluster.wait_for(lambda: kept() > 2**24, 60, "the WAL it keeps is shown")
        first.sql("select pg_replication_slot_advance('archive', pg_current_wal_flush_lsn())")
        moved = position(first, "archive")
        assert moved is not None
        wait_for_position(other, "archive", moved)

        assert first.rest("/config", "PATCH", {"permanent_slots": None})[0] == 200
        for node in cluster.nodes:
            wait_for_slots(node, set(), without="archive")
        assert "dropping replication slot archive: unknown" in other.log()


def test_without_retention_only_slots_in_use_are_kept() -> None:
    with Cluster(nodes=2, ttl=4, dcs={"member_slots_ttl": 0}, parameters=QUIET) as cluster:
        first = cluster.wait_streaming(1)
        (other,) = cluster.replicas()
        assert set(slots(first)) == {other.name}
        assert slots(other) == {}
        assert "slots" not in status(cluster)
        assert "retain_slots" not in status(cluster)
        code, _ = first.rest(
            "/switchover", "POST", {"leader": first.name, "candidate": other.name}, timeout_s=60
        )
        assert code == 200
        assert cluster.wait_streaming(1) is other
        cluster.wait_for(lambda: slots(first) == {}, 60, "the old leader keeps none")
