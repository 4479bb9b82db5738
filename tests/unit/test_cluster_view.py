"""The JSON of `/cluster` (contract 3.5), which `haagentctl list` prints as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dcs.records import (
    ClusterSnapshot,
    ConfigRecord,
    FailoverRequest,
    Leader,
    Member,
    Status,
    SyncState,
    Tags,
)
from haagent.core.cluster_view import cluster_view


def node(number: int, **changes: object) -> Member:
    """A member as Patroni 4.1.5 published it."""
    base = Member(
        name=f"n{number}",
        conn_url=f"postgres://127.0.0.1:{21100 + number}/postgres",
        api_url=f"http://127.0.0.1:{21200 + number}/patroni",
        state="running",
        role="replica",
        version="4.1.5",
        xlog_location=67109688,
        replay_lsn=67109688,
        receive_lsn=67109688,
        replication_state="streaming",
        timeline=2,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # field names are checked by dataclasses


CLUSTER = ClusterSnapshot(
    leader=Leader("n1", "5", 10),
    members=(
        node(2),
        node(1, role="primary", replay_lsn=None, receive_lsn=None, replication_state=None),
        node(0),
    ),
    status=Status(67109688),
    config=ConfigRecord({"synchronous_mode": True}, 1),
    sync=SyncState("n1", ("n0",), 0, 1),
)


def test_it_is_what_patroni_answers() -> None:
    def standby(number: int, role: str) -> dict[str, object]:
        return {
            "name": f"n{number}", "role": role, "state": "streaming",
            "api_url": f"http://127.0.0.1:{21200 + number}/patroni", "host": "127.0.0.1",
            "port": 21100 + number, "timeline": 2, "receive_lag": 0, "receive_lsn": "0/4000338",
            "replay_lag": 0, "replay_lsn": "0/4000338", "lag": 0, "lsn": "0/4000338",
        }  # fmt: skip

    leader = {
        "name": "n1", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:21201/patroni",
        "host": "127.0.0.1", "port": 21101, "timeline": 2,
    }  # fmt: skip
    assert cluster_view(CLUSTER, "faceoff") == {
        "members": [standby(0, "sync_standby"), leader, standby(2, "replica")],
        "scope": "faceoff",
    }


def test_quorum_mode_names_its_standbys_otherwise() -> None:
    config = ConfigRecord({"synchronous_mode": "quorum"}, 1)
    members = cluster_view(replace(CLUSTER, config=config), "s")["members"]
    assert [member["role"] for member in members] == ["quorum_standby", "leader", "replica"]


def test_a_standby_cluster_has_a_standby_leader() -> None:
    config = ConfigRecord({"standby_cluster": {"host": "10.0.0.1"}}, 1)
    cluster = replace(CLUSTER, config=config, members=(node(1, role="standby_leader"),))
    (member,) = cluster_view(cluster, "s")["members"]
    assert (member["role"], member["state"]) == ("standby_leader", "streaming")


def test_lag_is_bytes_behind_the_leader_and_never_negative() -> None:
    behind = node(0, receive_lsn=67109688 - 1000, replay_lsn=67109688 - 5000, xlog_location=67109688 + 7)
    member = cluster_view(replace(CLUSTER, members=(behind,)), "s")["members"][0]
    assert (member["receive_lag"], member["replay_lag"], member["lag"]) == (1000, 5000, 0)


@pytest.mark.parametrize("position", [None, 0])
def test_what_is_unknown_says_so(position: int | None) -> None:
    silent = node(0, receive_lsn=position, replay_lsn=None, xlog_location=None, conn_url=None, timeline=None)
    member = cluster_view(replace(CLUSTER, members=(silent,)), "s")["members"][0]
    for prefix in ("receive_", "replay_", ""):
        assert member[f"{prefix}lsn"] == "unknown"
        assert member[f"{prefix}lag"] == "unknown"
    assert not member.keys() & {"host", "port", "timeline"}


def test_flags_of_cluster_and_member_are_shown() -> None:
    marked = node(
        0,
        pending_restart=True,
        pending_restart_reason={"max_connections": ("100", "200")},
        tags=Tags({"clonefrom": True}),
        scheduled_restart={"schedule": "2099-01-01T00:00:00+00:00"},
        note="pg_rewind 1/3",
        cannot_lead="nofailover",
    )
    cluster = replace(
        CLUSTER,
        members=(marked,),
        config=ConfigRecord({"pause": "on"}, 1),
        failover=FailoverRequest("n1", None, "2099-01-01T00:00:00+00:00", 3),
    )
    shown = cluster_view(cluster, "s")
    assert shown["pause"] is True
    assert shown["scheduled_switchover"] == {"at": "2099-01-01T00:00:00+00:00", "from": "n1"}
    member = shown["members"][0]
    assert member["pending_restart_reason"] == {"max_connections": {"old_value": "100", "new_value": "200"}}
    assert member["tags"] == {"clonefrom": True}
    assert member["scheduled_restart"] == {"schedule": "2099-01-01T00:00:00+00:00"}
    assert member["haagent"] == {"note": "pg_rewind 1/3", "cannot_lead": "nofailover"}


def test_an_empty_cluster_has_no_members() -> None:
    assert cluster_view(ClusterSnapshot(), "s") == {"members": [], "scope": "s"}
