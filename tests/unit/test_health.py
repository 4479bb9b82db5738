"""Health checks (contract 3.3) as tables: which member answers 200 to which path."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from dcs.records import ClusterSnapshot, ConfigRecord, Leader, Status, SyncState, Tags
from haagent.api.health import bare_status, health_status, liveness_status, parse_query, readiness_status
from haagent.api.view import Published
from haagent.core.settings import Settings
from postgres_ctl.facts import InstanceSample, Lsn

NOW = 1000.0
LEASE = NOW + 20
MIB = 1024 * 1024
END = 100 * MIB


def sample(in_recovery: bool, **changes: Any) -> InstanceSample:
    standby = in_recovery
    base = InstanceSample(
        sampled_at=NOW - 1,
        postmaster_start_time="2030-01-01 10:00:00.000001+00:00",
        server_version=150020,
        system_identifier="7710469456714918895",
        in_recovery=in_recovery,
        timeline=1,
        flush_lsn=None if standby else Lsn(END),
        receive_lsn=Lsn(END) if standby else None,
        replay_lsn=Lsn(END) if standby else None,
        replay_timestamp=None,
        replay_paused=False,
        walreceiver_status="streaming" if standby else None,
        walreceiver_latest_end_lsn=Lsn(END) if standby else None,
        walreceiver_slot=None,
        walreceiver_conninfo=None,
        startup_waits_for_wal=standby,
        senders=(),
        slots=(),
        pending_restart=(),
        primary_conninfo=None,
        primary_slot_name=None,
        restore_command=None,
        replication_state="streaming" if standby else None,
    )
    return replace(base, **changes)


def view(config: dict[str, Any] | None = None, standbys: tuple[str, ...] = ()) -> ClusterSnapshot:
    return ClusterSnapshot(
        leader=Leader("n0", "1", 1),
        config=ConfigRecord(config or {}, 1),
        status=Status(END),
        sync=SyncState("n0", standbys, 0, 1) if standbys else None,
    )


def member(role: str, **changes: Any) -> Published:
    base = Published(
        scope="demo",
        name="n1",
        state="running",
        role=role,
        settings=Settings(),
        sample=sample(in_recovery=role in ("replica", "standby_leader")),
        cluster=view(),
        cluster_is_fresh=True,
        alive_until=NOW + 30,
    )
    return replace(base, **changes)


def lagging(receive: int = END, replay: int = END, **changes: Any) -> Published:
    standby = sample(True, receive_lsn=Lsn(receive), replay_lsn=Lsn(replay))
    return member("replica", sample=standby, **changes)


PRIMARY = member("primary")
REPLICA = member("replica")
SYNC = member("replica", cluster=view(standbys=("N1",)))
QUORUM = member("replica", cluster=view({"synchronous_mode": "quorum"}, ("n1", "n2")))
STANDBY_CLUSTER = view({"standby_cluster": {"host": "10.0.0.9"}})
STANDBY_LEADER = member("standby_leader", cluster=STANDBY_CLUSTER)
CASCADING = member("replica", cluster=STANDBY_CLUSTER)
PAUSED_BLIND = Settings(pause=True)

#: path -> the kinds of member that answer 200
TABLE = {
    "/": "primary",
    "/primary": "primary",
    "/master": "primary",
    "/read-write": "primary",
    "/leader": "primary standby_leader",
    "/standby-leader": "standby_leader",
    "/standby_leader": "standby_leader",
    "/replica": "replica sync quorum cascading",
    "/read-only": "primary standby_leader replica sync quorum cascading",
    "/synchronous": "sync",
    "/sync": "sync",
    "/asynchronous": "replica cascading",
    "/async": "replica cascading",
    "/quorum": "quorum",
    "/read-only-sync": "primary standby_leader sync",
    "/read-only-synchronous": "primary standby_leader sync",
    "/read-only-quorum": "primary standby_leader quorum",
    "/health": "primary standby_leader replica sync quorum cascading",
    "/nonsense": "",
    # By substring, in the order of the contract.
    "/my-standby-leader-check": "standby_leader",
    "/leader-replica": "primary standby_leader",
    "/primary-replica": "primary",
    "/xreplicax": "replica sync quorum cascading",
    "/x/replica": "replica sync quorum cascading",
    "/read-only-health": "primary standby_leader replica sync quorum cascading",
    "/healthz": "primary standby_leader replica sync quorum cascading",
    "/syncx": "",
}
KINDS = {
    "primary": (PRIMARY, LEASE),
    "standby_leader": (STANDBY_LEADER, LEASE),
    "replica": (REPLICA, None),
    "sync": (SYNC, None),
    "quorum": (QUORUM, None),
    "cascading": (CASCADING, None),
}


@pytest.mark.parametrize("path", TABLE)
def test_each_path_is_answered_by_the_right_members(path: str) -> None:
    good = {
        kind
        for kind, (published, until) in KINDS.items()
        if health_status(path, "", published, until, NOW) == 200
    }
    assert good == set(TABLE[path].split())


@pytest.mark.parametrize("path", ["/", "/primary", "/leader", "/read-write", "/read-only", "/read-only-sync"])
@pytest.mark.parametrize("until", [None, NOW, NOW - 1])
def test_a_primary_without_a_living_lease_is_no_primary(path: str, until: float | None) -> None:
    assert health_status(path, "", PRIMARY, until, NOW) == 503
    assert health_status(path, "", PRIMARY, LEASE, NOW) == 200


def test_leader_belief_needs_no_answer_of_postgresql() -> None:
    hanging = member("primary", sample=None)
    assert health_status("/primary", "", hanging, LEASE, NOW) == 200
    assert health_status("/health", "", hanging, LEASE, NOW) == 503


def test_a_demoted_member_serves_nobody() -> None:
    demoted = member("demoted")
    for path in ("/primary", "/replica", "/read-only", "/leader"):
        assert health_status(path, "", demoted, None, NOW) == 503


def test_a_replica_must_run_and_answer() -> None:
    assert health_status("/replica", "", member("replica", state="starting"), None, NOW) == 503
    assert health_status("/replica", "", member("replica", sample=None), None, NOW) == 503


def test_a_member_in_recovery_is_a_replica_and_a_writable_one_is_not() -> None:
    """The role shown is what PostgreSQL is; an agent that is behind sends nobody there."""
    assert health_status("/replica", "", member("replica", sample=sample(False)), None, NOW) == 503
    assert health_status("/replica", "", member("promoted", sample=sample(True)), None, NOW) == 200


def test_checks_of_synchronicity_need_a_fresh_view() -> None:
    for path in ("/sync", "/async", "/quorum", "/read-only-sync", "/read-only-quorum"):
        for published, until in KINDS.values():
            assert health_status(path, "", replace(published, cluster_is_fresh=False), until, NOW) == 503
    assert health_status("/replica", "", replace(REPLICA, cluster_is_fresh=False), None, NOW) == 200


def test_paused_and_blind_the_role_answers() -> None:
    blind = replace(PRIMARY, cluster_is_fresh=False)
    paused = replace(blind, settings=PAUSED_BLIND)
    for path in ("/primary", "/leader", "/read-write", "/read-only"):
        assert health_status(path, "", paused, None, NOW) == 200
        assert health_status(path, "", blind, None, NOW) == 503
        assert health_status(path, "", replace(paused, cluster_is_fresh=True), None, NOW) == 503
    leader = replace(STANDBY_LEADER, cluster_is_fresh=False, settings=PAUSED_BLIND)
    assert health_status("/standby-leader", "", leader, None, NOW) == 200
    assert health_status("/leader", "", leader, None, NOW) == 200
    assert health_status("/primary", "", leader, None, NOW) == 503


@pytest.mark.parametrize(
    ("query", "behind_bytes", "status"),
    [
        ("lag=1MB", MIB, 200),
        ("lag=1MB", MIB + 1, 503),
        ("lag=1024kB", MIB + 1, 503),
        ("lag=1048576", MIB, 200),
        ("lag=1048576", MIB + 1, 503),
        ("lag=1GB", 99 * MIB, 200),
        ("lag=0", 0, 200),
        ("lag=0", 1, 503),
        ("", 99 * MIB, 200),
        ("lag=", 99 * MIB, 200),
        ("lag=nonsense", 99 * MIB, 200),
        ("lag=1XB", 99 * MIB, 200),
        ("lag=" + "9" * 5000, 99 * MIB, 200),
    ],
)
def test_lag_limit(query: str, behind_bytes: int, status: int) -> None:
    published = lagging(replay=END - behind_bytes)
    for path in ("/replica", "/read-only", "/async"):
        assert health_status(path, query, published, None, NOW) == status


def test_lag_is_measured_against_the_furthest_known_end() -> None:
    heard_more = sample(True, walreceiver_latest_end_lsn=Lsn(END + 2 * MIB))
    assert health_status("/replica", "lag=1MB", member("replica", sample=heard_more), None, NOW) == 503
    heard_less = sample(True, walreceiver_latest_end_lsn=None, replay_lsn=Lsn(END - 2 * MIB))
    assert health_status("/replica", "lag=1MB", member("replica", sample=heard_less), None, NOW) == 503
    knows_nothing = member("replica", sample=heard_less, cluster=None)
    assert health_status("/replica", "lag=1MB", knows_nothing, None, NOW) == 200


def test_an_old_view_can_still_prove_lag() -> None:
    disconnected = sample(True, walreceiver_latest_end_lsn=None, replay_lsn=Lsn(END - 2 * MIB))
    published = member("replica", sample=disconnected, cluster_is_fresh=False)
    assert health_status("/replica", "lag=1MB", published, None, NOW) == 503


def test_replication_state_must_match() -> None:
    archive = member("replica", sample=sample(True, replication_state="in archive recovery"))
    for published, status in ((REPLICA, 200), (archive, 503)):
        assert health_status("/replica", "replication_state=streaming", published, None, NOW) == status
    assert health_status("/replica", "replication_state=in+archive+recovery", archive, None, NOW) == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("tag_zone=a", 200),
        ("tag_zone=b", 503),
        ("tag_other=a", 503),
        ("tag_clonefrom=true", 200),
        ("tag_clonefrom=True", 503),
        ("tag_weight=5", 200),
        ("tag_zone=a&tag_weight=5", 200),
        ("tag_zone=a&tag_weight=6", 503),
    ],
)
def test_tags_must_match_except_for_leaders(query: str, status: int) -> None:
    tags = Tags({"zone": "a", "clonefrom": True, "weight": 5})
    for path in ("/replica", "/health", "/read-only", "/async"):
        assert health_status(path, query, replace(REPLICA, tags=tags), None, NOW) == status
    assert health_status("/read-only", query, replace(PRIMARY, tags=tags), LEASE, NOW) == status
    for path in ("/primary", "/leader", "/"):
        assert health_status(path, query, replace(PRIMARY, tags=tags), LEASE, NOW) == 200


def test_noloadbalance_takes_a_replica_out() -> None:
    published = replace(REPLICA, tags=Tags({"noloadbalance": True}))
    for path in ("/replica", "/read-only", "/async"):
        assert health_status(path, "", published, None, NOW) == 503
    assert health_status("/health", "", published, None, NOW) == 200


def test_head_and_options_know_health_checks_only() -> None:
    for name in ("patroni", "cluster", "config", "history", "metrics", "failsafe", "liveness", "readiness"):
        assert bare_status(f"/{name}", "", PRIMARY, LEASE, NOW) == 503
        assert bare_status(f"/{name}/primary", "", PRIMARY, LEASE, NOW) == 503
    assert bare_status("/", "", PRIMARY, LEASE, NOW) == 200
    assert bare_status("/replica", "lag=1kB", REPLICA, None, NOW) == 200


def test_liveness_follows_the_loop_unless_paused() -> None:
    assert liveness_status(REPLICA, NOW) == 200
    assert liveness_status(REPLICA, NOW + 30) == 503
    assert liveness_status(replace(REPLICA, settings=PAUSED_BLIND), NOW + 30) == 200
    assert liveness_status(replace(REPLICA, alive_until=inf), NOW + 1e9) == 200


UNHEARD_OF = sample(True, walreceiver_latest_end_lsn=None)


@pytest.mark.parametrize(
    ("published", "until", "query", "status"),
    [
        (PRIMARY, LEASE, "", 200),
        (PRIMARY, None, "", 503),
        (REPLICA, None, "", 200),
        (member("replica", state="starting"), None, "", 503),
        (member("replica", sample=None), None, "", 503),
        (member("replica", sample=sample(True, replication_state=None)), None, "", 503),
        # Default limit: maximum_lag_on_failover.
        (lagging(replay=END - MIB), None, "", 200),
        (lagging(replay=END - MIB - 1), None, "", 503),
        (lagging(replay=END - MIB - 1), None, "lag=2MB", 200),
        (lagging(replay=END - MIB - 1), None, "mode=apply", 503),
        (lagging(replay=END - MIB - 1), None, "mode=write", 200),
        (lagging(receive=END - MIB - 1, replay=END - MIB - 1), None, "mode=write", 503),
        # The view is old, but the upstream's position is known.
        (replace(REPLICA, cluster_is_fresh=False), None, "", 200),
        (member("replica", cluster=None, sample=UNHEARD_OF), None, "", 503),
    ],
)
def test_readiness(published: Published, until: float | None, query: str, status: int) -> None:
    assert readiness_status(query, published, until, NOW) == status


def test_queries_nobody_can_mean_set_no_condition() -> None:
    assert parse_query("&".join(f"tag_{n}=x" for n in range(500))).tags == {}
    assert parse_query("%ff%00&;=&lag").lag_bytes is None
