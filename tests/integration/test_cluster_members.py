"""What an operator asks of single members of a real cluster: tags, reload, reinitialize, also in a pause
(contract 2.13, 3.6, 6.5)."""

from __future__ import annotations

import json
from typing import Any

from tests.support.cluster import Cluster, Node
from tests.support.wait import holds_for

QUIET = {"log_min_messages": "log"}


def feeds(upstream: Node, standby: Node) -> bool:
    """`standby` streams from `upstream`."""
    found = upstream.sql("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
    return (standby.name,) in found


def retag(node: Node, **tags: Any) -> None:
    """Write these tags into its file, have it read, and wait until the others see them; None removes one."""
    node.write_config({"tags": tags})
    assert node.rest("/reload", "POST") == (202, "reload scheduled")
    wanted = {name: value for name, value in tags.items() if value not in (None, False)}
    node.cluster.wait_for(
        lambda: node.member_key().get("tags", {}) == wanted, 60, f"{node.name} shows its tags {wanted}"
    )


def slot_position(node: Node, name: str) -> int:
    asked = "SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s"
    return int(node.value(asked, name))


def slots_for(node: Node, member: Node) -> int:
    asked = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
    return int(node.value(asked, member.name))


def test_tags_and_reload() -> None:
    with Cluster(nodes=3, ttl=4, parameters=QUIET) as cluster:
        a = cluster.leader()
        b, c = (node for node in cluster.nodes if node is not a)

        # A cascade: the leader's slot for its end moves along, although nobody uses it.
        retag(c, replicatefrom=b.name, noloadbalance=True, nosync=False, mine=7)
        cluster.wait_for(lambda: feeds(b, c) and not feeds(a, c), 60, "c streams from b")
        assert c.status("/replica") == 503
        assert c.status("/health") == 200
        assert b.status("/replica") == 200
        before = slot_position(a, c.name)
        a.sql("CREATE TABLE far AS SELECT generate_series(1, 1000) AS id")
        cluster.wait_for(lambda: c.value("SELECT to_regclass('far')"), 60, "WAL comes through b")
        cluster.wait_for(lambda: slot_position(a, c.name) > before, 60, "the idle slot moves")

        # Its source goes: it streams from the leader, until that is back.
        assert b.stop() == 0
        cluster.wait_for(lambda: feeds(a, c), 60, "c streams from the leader")
        b.start()
        cluster.wait_for(lambda: feeds(b, c), 60, "c streams from b again")

        # Never leads; its copy is taken rather than the leader's.
        retag(b, nofailover=True, clonefrom=True)
        switch = {"leader": a.name, "candidate": b.name}
        refused = "switchover is not possible: no good candidates have been found"
        assert a.rest("/switchover", "POST", switch) == (412, refused)
        assert c.rest("/reinitialize", "POST", {}) == (200, "reinitialize started")
        cluster.wait_for(lambda: feeds(b, c), 60, "c is built anew")
        assert f"reinitializing from {b.name} on request" in c.log()

        # Without its tags it is a member like the others.
        retag(c, replicatefrom=None, noloadbalance=None, nosync=None, mine=None)
        cluster.wait_for(lambda: feeds(a, c), 60, "c streams from the leader")
        cluster.wait_for(lambda: c.status("/replica") == 200, 60, "c is in the balance again")

        # Not to stream at all: it follows nobody, is told so once, and nobody keeps a slot for it.
        retag(c, nostream=True)
        cluster.wait_for(lambda: c.value("SHOW primary_conninfo") == "", 60, "c follows nobody")
        cluster.wait_for(lambda: slots_for(a, c) == 0, 60, "no slot is kept for c")
        holds_for(lambda: c.log().count("following nobody: nostream") == 1, 3, "it is told so once")
        assert not feeds(a, c)
        retag(c, nostream=None)
        cluster.wait_for(lambda: feeds(a, c), 60, "c streams from the leader again")

        # The end of a cascade can lead, too: it says itself how far it is.
        retag(c, replicatefrom=b.name)
        cluster.wait_for(lambda: feeds(b, c) and not feeds(a, c), 60, "c streams from b again")
        done = (200, f'Successfully switched over to "{c.name}"')
        assert b.rest("/switchover", "POST", {"leader": a.name, "candidate": c.name}, timeout_s=60) == done
        assert cluster.wait_streaming(2) is c

        # A reload writes and reads the files of PostgreSQL, changed or not.
        file = c.data_dir / "postgresql.conf"
        written = file.read_text()
        file.write_text(written + "# by hand\n")
        loaded = c.value("SELECT pg_conf_load_time()")
        assert c.rest("/reload", "POST") == (202, "reload scheduled")
        cluster.wait_for(lambda: c.value("SELECT pg_conf_load_time()") > loaded, 60, "PostgreSQL reloads")
        assert file.read_text() == written


SLOW = {"postgresql": {"basebackup": [{"max-rate": "32k"}, {"checkpoint": "fast"}]}}
FAST = {"postgresql": {"basebackup": [{"checkpoint": "fast"}]}}


def test_reinitialize_and_what_a_pause_allows() -> None:
    with Cluster(nodes=2, node_config=FAST, parameters=QUIET) as cluster:
        a = cluster.leader()
        (b,) = (node for node in cluster.nodes if node is not a)

        # One job at a time; by force the running one makes way.
        b.write_config(SLOW)
        assert b.rest("/reload", "POST")[0] == 202
        cluster.wait_for(lambda: "configuration reloaded" in b.log(), 60, "the reload")
        assert b.rest("/reinitialize", "POST", {}) == (200, "reinitialize started")
        cluster.wait_for(lambda: b.rest("/patroni")[1]["state"] == "creating replica", 60, "it copies")

        def copied() -> dict[str, int]:
            return dict(b.rest("/patroni")[1]["haagent"].get("copy") or {})

        cluster.wait_for(lambda: copied().get("copied_bytes"), 60, "its progress")
        assert copied()["copied_bytes"] < copied()["total_bytes"]
        assert "haagent_copy_total_bytes{" in b.rest("/metrics")[1]
        cluster.wait_for(lambda: "reinitialize: " in b.member_key().get("note", ""), 60, "it is in the list")
        assert b.member_key()["note"].endswith("%)")
        for path in ("/reinitialize", "/restart"):
            assert b.rest(path, "POST", {}) == (503, "reinitialize already in progress")
        b.write_config(FAST)
        assert b.rest("/reload", "POST")[0] == 202
        cluster.wait_for(lambda: b.log().count("configuration reloaded") == 2, 60, "the reload")
        assert b.rest("/reinitialize", "POST", {"force": True}, timeout_s=60) == (200, "reinitialize started")
        cluster.wait_streaming(1)
        assert "copy" not in b.rest("/patroni")[1]["haagent"]
        assert a.rest("/reinitialize", "POST", {"force": True}) == (
            503,
            "I am the leader, can not reinitialize",
        )

        # A pause: what is asked of a member by name is done, and ends with a server that serves.
        assert a.rest("/config", "PATCH", {"pause": True})[0] == 200
        cluster.wait_for(lambda: all(n.member_key().get("pause") for n in cluster.nodes), 60, "the pause")
        (b.data_dir / "left-over").touch()
        assert b.rest("/reinitialize", "POST", {}, timeout_s=60) == (200, "reinitialize started")
        cluster.wait_streaming(1)
        assert not (b.data_dir / "left-over").exists()
        for node in (a, b):
            before = node.value("SELECT pg_postmaster_start_time()")
            assert node.rest("/restart", "POST", {}, timeout_s=60) == (200, "restarted successfully")
            assert node.value("SELECT pg_postmaster_start_time()") > before
            cluster.wait_streaming(1)
        unnamed = "Switchover is possible only to a specific candidate in a paused state"
        assert b.rest("/switchover", "POST", {"leader": a.name}) == (400, unnamed)
        later = {"schedule": "2099-01-01T00:00Z"}
        assert b.rest("/restart", "POST", later) == (500, "Can't schedule restart in the paused state")
        named = {"leader": a.name, "candidate": b.name}
        done = f'Successfully switched over to "{b.name}"'
        assert b.rest("/switchover", "POST", named, timeout_s=60) == (200, done)
        assert cluster.wait_streaming(1) is b
        assert json.loads(cluster.stored()["config"])["pause"] is True
        holds_for(lambda: b.is_writable() and feeds(b, a), 2, "it stays so")
