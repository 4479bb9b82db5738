"""What haagentctl prints, byte for byte, and the pure parts around it: selections, options, changes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcs.codec import RawKey, build_snapshot
from dcs.records import ClusterSnapshot
from haagent.core import member_select
from haagent.ctl.config import RestOptions, load_config, parse_dcs_url
from haagent.ctl.edit import apply_pairs, diff_text
from haagent.ctl.errors import CtlError
from haagent.ctl.explain import _for_people
from haagent.ctl.members import MemberClient, NotReached
from haagent.ctl.output import Column, pretty_table, render, yaml_text
from haagent.ctl.query import table_text
from haagent.ctl.rows import show_members
from haagent.ctl.schedule import next_hour, parse_schedule
from haagent.ctl.show import history_rows, postgres_version
from postgres_ctl.adhoc import Table

SYSTEM = "7710469456714918895"
CONFIG = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}


def member(number: int, **fields: Any) -> dict[str, Any]:
    """Member key of n<number> as a Patroni 4.1.5 replica writes it."""
    at = fields.pop("at", 67108960)
    return {
        "conn_url": f"postgres://127.0.0.1:{21100 + number}/postgres",
        "api_url": f"http://127.0.0.1:{21200 + number}/patroni",
        "state": "running",
        "role": "replica",
        "version": "4.1.5",
        "xlog_location": at,
        "replay_lsn": at,
        "receive_lsn": at,
        "replication_state": "streaming",
        "timeline": 1,
        **fields,
    }


def primary(number: int, **fields: Any) -> dict[str, Any]:
    own = member(number, role="primary", **fields)
    return {k: v for k, v in own.items() if k not in ("replay_lsn", "receive_lsn", "replication_state")}


def snapshot(**keys: Any) -> ClusterSnapshot:
    """Records of a cluster from key values; `members__n0` stands for `members/n0`."""
    raw = {}
    for name, value in keys.items():
        text = value if isinstance(value, str) else json.dumps(value)
        raw[name.replace("__", "/")] = RawKey(text.encode(), 1, 1)
    return build_snapshot(raw, 1)


def three_nodes(**keys: Any) -> ClusterSnapshot:
    """The cluster most tests look at: n0 leads, n1 and n2 stream."""
    base: dict[str, Any] = {
        "initialize": SYSTEM,
        "leader": "n0",
        "config": CONFIG,
        "status": {"optime": 67108960},
        "members__n0": primary(0),
        "members__n1": member(1),
        "members__n2": member(2),
    }
    return snapshot(**{**base, **keys})


# --- list and topology --------------------------------------------------------------------------


def test_list_of_a_healthy_cluster() -> None:
    assert show_members(three_nodes(), "faceoff") == (
        "+ Cluster: faceoff (7710469456714918895) --------+----+-------------+-----+------------+-----+\n"
        "| Member | Host            | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag |\n"
        "+--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+\n"
        "| n0     | 127.0.0.1:21100 | Leader  | running   |  1 |             |     |            |     |\n"
        "| n1     | 127.0.0.1:21101 | Replica | streaming |  1 |   0/4000060 |   0 |  0/4000060 |   0 |\n"
        "| n2     | 127.0.0.1:21102 | Replica | streaming |  1 |   0/4000060 |   0 |  0/4000060 |   0 |\n"
        "+--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+"
    )


def test_extended_list_has_every_column() -> None:
    lines = show_members(three_nodes(), "faceoff", extended=True).split("\n")
    assert lines[1] == (
        "| Member | Host            | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag "
        "| Pending restart | Pending restart reason | Scheduled restart | Tags |"
    )
    assert lines[3] == (
        "| n0     | 127.0.0.1:21100 | Leader  | running   |  1 |             |     |            |     "
        "|                 |                        |                   |      |"
    )


def test_topology_puts_followers_below_their_source() -> None:
    cluster = three_nodes(
        leader="n1",
        members__n0=member(0, tags={"replicatefrom": "n2"}),
        members__n1=primary(1),
        members__n3=member(3, tags={"replicatefrom": "gone"}),
    )
    lines = show_members(cluster, "faceoff", tree=True).split("\n")
    assert [line.split("|")[1] for line in lines[3:7]] == [
        " n1     ",
        " + n2   ",
        "   + n0 ",
        " + n3   ",
    ]


def test_topology_shows_each_member_once_when_they_follow_each_other() -> None:
    cluster = three_nodes(
        members__n1=member(1, tags={"replicatefrom": "n2"}),
        members__n2=member(2, tags={"replicatefrom": "n1"}),
    )
    lines = show_members(cluster, "faceoff", tree=True).split("\n")
    members = [line.split("|")[1].strip(" +") for line in lines[3:] if line.startswith("|")]
    assert [name for name in sorted(members) if name] == ["n0", "n1", "n2"]


def test_topology_without_leader_shows_everybody() -> None:
    keys = {"members__n0": member(0), "members__n1": member(1), "initialize": SYSTEM}
    assert show_members(snapshot(**keys), "faceoff", tree=True).count("+ n") == 2


def test_pending_restart_and_pause() -> None:
    reason = {"max_connections": {"old_value": "100", "new_value": "120"}}
    pending = {"pending_restart": True, "pending_restart_reason": reason}
    cluster = three_nodes(config={**CONFIG, "pause": True}, members__n0=primary(0, **pending))
    lines = show_members(cluster, "faceoff").split("\n")
    assert lines[0] == (
        "+ Cluster: faceoff (7710469456714918895) --------+----+-------------+-----+------------+-----+"
        "-----------------+---------------------------+"
    )
    assert lines[3].endswith("| *               | max_connections: 100->120 |")
    assert lines[4].endswith("|                 |                           |")
    assert lines[-1] == " Maintenance mode: on"


def test_several_reasons_draw_rules_between_all_rows() -> None:
    reason = {
        "max_connections": {"old_value": "100", "new_value": "120"},
        "shared_preload_libraries": {"old_value": "a" * 30, "new_value": "b" * 30},
    }
    pending = {"pending_restart": True, "pending_restart_reason": reason}
    cluster = three_nodes(members__n1=member(1, **pending))
    lines = show_members(cluster, "faceoff").split("\n")
    assert len([line for line in lines if line.startswith("+")]) == 5
    assert lines[6].endswith("|                 | shared_preload_libraries: [hidden - too long] |")
    as_json = json.loads(show_members(cluster, "faceoff", "json"))
    reasons = as_json[1]["Pending restart reason"].split("\n")
    assert reasons[1] == f"shared_preload_libraries: {'a' * 30}->{'b' * 30}"
    assert len(show_members(cluster, "faceoff", "tsv").split("\n")) == 4


def test_stopped_member_has_unknown_positions() -> None:
    stopped = {k: v for k, v in member(0, state="stopped").items() if k in ("conn_url", "api_url", "state")}
    cluster = three_nodes(leader="n1", members__n0=stopped, members__n1=primary(1, timeline=2))
    line = show_members(cluster, "faceoff").split("\n")[3]
    assert (
        line
        == "| n0     | 127.0.0.1:21100 | Replica | stopped   |    |     unknown |     |    unknown |     |"
    )


def test_lag_is_shown_in_megabytes() -> None:
    behind = member(1, replay_lsn=67108960 - 10_000_000)
    row = json.loads(show_members(three_nodes(members__n1=behind), "faceoff", "json"))[1]
    assert (row["Receive Lag"], row["Replay Lag"], row["Replay LSN"]) == (0, 10, "0/36769E0")


@pytest.mark.parametrize(("state", "shown"), [("streaming", "Receive LSN"), (None, "Replay LSN")])
def test_member_with_one_position_only(state: str | None, shown: str) -> None:
    old = member(1, replication_state=state)
    old = {k: v for k, v in old.items() if k not in ("receive_lsn", "replay_lsn") and v is not None}
    row = json.loads(show_members(three_nodes(members__n1=old), "faceoff", "json"))[1]
    assert {key: row[key] for key in row if key.endswith("LSN")} == {
        "Receive LSN": "unknown", "Replay LSN": "unknown", shown: "0/4000060",
    }  # fmt: skip


def test_tags_of_a_tree_stand_on_one_line() -> None:
    tags = {"clonefrom": True, "replicatefrom": "n1", "x": {"a": [1]}}
    table = show_members(three_nodes(members__n2=member(2, tags=tags)), "faceoff", tree=True)
    assert "| {clonefrom: true, replicatefrom: n1, x: {a: [1]}} |" in table


def test_sync_roles_and_scheduled_restart_and_switchover() -> None:
    cluster = three_nodes(
        config={**CONFIG, "synchronous_mode": "quorum"},
        sync={"leader": "n0", "quorum": 1, "sync_standby": "n1,n2"},
        failover={"leader": "n0", "member": "n2", "scheduled_at": "2099-01-01T00:00:00+00:00"},
        members__n1=member(
            1, scheduled_restart={"schedule": "2099-01-01T00:00:00+00:00", "postgres_version": "15.21"}
        ),
    )
    lines = show_members(cluster, "faceoff").split("\n")
    assert "| Quorum Standby | streaming |" in lines[4]
    assert lines[4].endswith("| 2099-01-01T00:00:00+00:00 if version < 15.21 |")
    assert lines[-3:] == [
        " Switchover scheduled at: 2099-01-01T00:00:00+00:00",
        "                    from: n0",
        "                      to: n2",
    ]


def test_json_leaves_empty_values_out() -> None:
    assert show_members(three_nodes(), "faceoff", "json") == (
        '[{"Cluster": "faceoff", "Member": "n0", "Host": "127.0.0.1:21100", "Role": "Leader", '
        '"State": "running", "TL": 1}, {"Cluster": "faceoff", "Member": "n1", "Host": "127.0.0.1:21101", '
        '"Role": "Replica", "State": "streaming", "TL": 1, "Receive LSN": "0/4000060", "Receive Lag": 0, '
        '"Replay LSN": "0/4000060", "Replay Lag": 0}, {"Cluster": "faceoff", "Member": "n2", '
        '"Host": "127.0.0.1:21102", "Role": "Replica", "State": "streaming", "TL": 1, '
        '"Receive LSN": "0/4000060", "Receive Lag": 0, "Replay LSN": "0/4000060", "Replay Lag": 0}]'
    )


def test_yaml_sorts_the_keys() -> None:
    text = show_members(three_nodes(members__n0=primary(0, tags={"clonefrom": True})), "faceoff", "yaml")
    assert text.startswith(
        "- Cluster: faceoff\n  Host: 127.0.0.1:21100\n  Member: n0\n  Role: Leader\n  State: running\n"
        "  TL: 1\n  Tags:\n    clonefrom: true\n- Cluster: faceoff\n"
    )
    assert text.endswith("  State: streaming\n  TL: 1\n")


def test_tsv_has_all_columns_and_flow_style_tags() -> None:
    cluster = three_nodes(members__n1=member(1, tags={"clonefrom": True}))
    assert show_members(cluster, "faceoff", "tsv").split("\n")[:3] == [
        "Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN\tReceive Lag\tReplay LSN\tReplay Lag\tTags",
        "faceoff\tn0\t127.0.0.1:21100\tLeader\trunning\t1\t\t\t\t\t",
        "faceoff\tn1\t127.0.0.1:21101\tReplica\tstreaming\t1\t0/4000060\t0\t0/4000060\t0\t{clonefrom: true}",
    ]


def test_host_without_port_when_all_use_the_default_one() -> None:
    hosts = {
        "members__n0": primary(0, conn_url="postgres://10.0.0.1:5432/postgres"),
        "members__n1": member(1, conn_url="postgres://10.0.0.2:5432/postgres"),
        "members__n2": member(2, conn_url="postgres://10.0.0.3:5432/postgres"),
    }
    rows = json.loads(show_members(three_nodes(**hosts), "c", "json"))
    assert [row["Host"] for row in rows] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    hosts["members__n2"] = member(2, conn_url="postgres://10.0.0.2:5432/postgres")
    rows = json.loads(show_members(three_nodes(**hosts), "c", "json"))
    assert [row["Host"] for row in rows] == ["10.0.0.1:5432", "10.0.0.2:5432", "10.0.0.2:5432"]


@pytest.mark.parametrize(("value", "shown"), [(None, "uninitialized"), ("", "initializing")])
def test_title_before_the_bootstrap_ended(value: str | None, shown: str) -> None:
    keys = {} if value is None else {"initialize": value}
    table = show_members(snapshot(**keys), "batman")
    assert table.split("\n")[0].startswith(f"+ Cluster: batman ({shown}) -")


def test_long_title_never_breaks_the_border() -> None:
    lines = show_members(snapshot(initialize=SYSTEM), "c" * 200).split("\n")
    assert len(lines[0]) == len(lines[1]) == len(lines[2])


def test_note_of_a_member_is_a_footer_line_and_a_json_key() -> None:
    ours = {"agent": "haagent/0.1.0"}
    cluster = three_nodes(
        members__n0=primary(0, **ours),
        members__n2=member(2, note="pg_rewind 2/3 failed: no space", **ours),
    )
    assert show_members(cluster, "faceoff").split("\n")[-1] == " n2: pg_rewind 2/3 failed: no space"
    rows = json.loads(show_members(cluster, "faceoff", "json"))
    assert [row.get("Note") for row in rows] == [None, None, "pg_rewind 2/3 failed: no space"]


def test_warning_while_patroni_leads_haagent_members() -> None:
    mixed = three_nodes(members__n1=member(1, agent="haagent/0.1.0"))
    assert (
        show_members(mixed, "faceoff").split("\n")[-1].startswith(" n0: led by an agent that is not haagent")
    )
    only_patroni = show_members(three_nodes(), "faceoff")
    assert only_patroni.endswith("+")


# --- other tables -------------------------------------------------------------------------------


def test_history_table_pads_short_rows() -> None:
    rows = history_rows(
        snapshot(
            history=[
                [1, 67109256, "no recovery target specified", "2026-11-21T04:00:09.220152+00:00", "n1"],
                [2, 67109999, "no recovery target specified"],
            ]
        )
    )
    columns = [
        Column("TL", True),
        Column("LSN", True),
        Column("Reason"),
        Column("Timestamp"),
        Column("New Leader"),
    ]
    assert pretty_table(columns, rows) == (
        "+----+----------+------------------------------+----------------------------------+------------+\n"
        "| TL |      LSN | Reason                       | Timestamp                        | New Leader |\n"
        "+----+----------+------------------------------+----------------------------------+------------+\n"
        "|  1 | 67109256 | no recovery target specified | 2026-11-21T04:00:09.220152+00:00 | n1         |\n"
        "|  2 | 67109999 | no recovery target specified |                                  |            |\n"
        "+----+----------+------------------------------+----------------------------------+------------+"
    )
    assert json.loads(render("json", columns, rows, keep_empty=True))[1] == {
        "TL": 2,
        "LSN": 67109999,
        "Reason": "no recovery target specified",
        "Timestamp": "",
        "New Leader": "",
    }


def test_history_tells_the_expected_loss_of_its_claim() -> None:
    rows = history_rows(
        snapshot(
            history=[[1, 67109256, "no recovery target specified", "2026-11-21T04:00:09+00:00", "n1"]],
            haagent_claims=[{"timeline": 2, "name": "n1", "epoch": 7, "note": "at most 42 bytes"}],
        )
    )
    assert rows[0]["Note"] == "at most 42 bytes"


def test_empty_history() -> None:
    assert pretty_table([Column("TL"), Column("LSN")], []) == (
        "+----+-----+\n| TL | LSN |\n+----+-----+\n+----+-----+"
    )


def test_server_version_as_text() -> None:
    assert [postgres_version(n) for n in (150020, 170005)] == ["15.20", "17.5"]


def test_explain_for_people() -> None:
    answer = {
        "name": "n1",
        "role": "replica",
        "leads": False,
        "can_lead": False,
        "rules": [
            {"id": "tag.nofailover", "passed": True, "detail": ""},
            {"id": "lag", "passed": False, "detail": "2 MB behind"},
            {"id": "peer.ahead", "passed": None, "detail": "n2 was not asked"},
        ],
        "expected_loss_bytes": 2097152,
        "expected_loss_text": "",
    }
    assert _for_people(answer) == [
        "n1 (replica): could not take over now",
        "  [ok] tag.nofailover",
        "  [NO] lag: 2 MB behind",
        "  [??] peer.ahead: n2 was not asked",
        "  expected loss: at most 2097152 bytes",
    ]


# --- query --------------------------------------------------------------------------------------

ANSWER = Table(
    ("id", "name", "at", "tags"),
    ((1, "a", datetime(2030, 1, 2, tzinfo=UTC), {"x": [Decimal("1.50")]}), (20, None, None, None)),
    "SELECT 2",
)


def test_rows_of_a_query_as_tsv_are_what_python_prints() -> None:
    assert table_text(ANSWER, "tsv", "\t") == (
        "id\tname\tat\ttags\n1\ta\t2030-01-02 00:00:00+00:00\t{'x': [Decimal('1.50')]}\n20\tNone\tNone\tNone"
    )


def test_rows_of_a_query_as_json_and_yaml_keep_numbers_and_nulls() -> None:
    rows = [
        {"id": 1, "name": "a", "at": "2030-01-02 00:00:00+00:00", "tags": {"x": ["1.50"]}},
        {"id": 20, "name": None, "at": None, "tags": None},
    ]
    assert json.loads(table_text(ANSWER, "json", "\t")) == rows
    assert yaml.safe_load(table_text(ANSWER, "yaml", "\t")) == rows


def test_rows_of_a_query_as_a_table() -> None:
    assert table_text(Table(("n", "t"), ((1, "x"), (20, None)), "SELECT 2"), "pretty", "\t") == (
        "+----+---+\n|  n | t |\n+----+---+\n|  1 | x |\n| 20 |   |\n+----+---+"
    )


def test_columns_of_the_same_name_are_all_shown() -> None:
    table = Table(("?column?", "?column?"), ((1, 2),), "SELECT 1")
    assert table_text(table, "tsv", ";") == "?column?;?column?\n1;2"
    assert "|        1 |        2 |" in table_text(table, "pretty", "")


def test_statement_without_rows_tells_what_it_did() -> None:
    assert table_text(Table((), (), "CREATE TABLE"), "tsv", "\t") == "CREATE TABLE"
    assert table_text(Table(("a",), (), "SELECT 0"), "tsv", "\t") == "a"


def test_a_session_must_find_what_its_role_promises() -> None:
    kinds = {role: member_select.session_kind(three_nodes(), role) for role in member_select.ROLES}
    assert kinds == {
        "leader": "primary", "primary": "primary", "standby-leader": "standby", "replica": "standby",
        "standby": "standby", "any": "any",
    }  # fmt: skip
    following = three_nodes(members__n0=member(0, role="standby_leader"))
    assert member_select.session_kind(following, "leader") == "standby"


# --- schedules ----------------------------------------------------------------------------------


def test_schedule_without_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parse_schedule("2030-07-01 12:00") == "2030-07-01T12:00:00+02:00"
        assert parse_schedule("2030-01-01 12:00") == "2030-01-01T12:00:00+01:00"
        assert parse_schedule("2030-01-01T12:00:00Z") == "2030-01-01T12:00:00+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_now_is_no_schedule() -> None:
    assert [parse_schedule(text) for text in (None, "", "now", " NOW ")] == [None] * 4
    assert parse_schedule(next_hour()) is not None


@pytest.mark.parametrize(
    "text", ["soon", "2030-13-01", "2030-01-01 12:00 XYZ", "1" * 40, "((((", "12:00 25:00"]
)
def test_unclear_times_are_refused(text: str) -> None:
    with pytest.raises(CtlError) as refused:
        parse_schedule(text)
    assert refused.value.message == (
        f"Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO 8601)"
    )


# --- standby clusters ---------------------------------------------------------------------------


def test_when_a_cluster_has_become_a_standby_cluster() -> None:
    following = three_nodes(members__n0=member(0, role="standby_leader"))
    starting = three_nodes(members__n0=member(0, role="standby_leader", state="starting"))
    seen = [(member_select.runs_as_standby_cluster(c), member_select.runs_on_its_own(c))
            for c in (three_nodes(), following, starting)]  # fmt: skip
    assert seen == [(False, True), (True, False), (False, False)]


# --- selections ---------------------------------------------------------------------------------


def test_role_filters() -> None:
    cluster = three_nodes()
    expected = {
        "leader": ("n0",),
        "primary": ("n0",),
        "standby-leader": (),
        "replica": ("n1", "n2"),
        "standby": ("n1", "n2"),
        "any": ("n0", "n1", "n2"),
    }
    assert {role: member_select.with_role(cluster, role) for role in expected} == expected
    following = three_nodes(members__n0=member(0, role="standby_leader"))
    assert member_select.with_role(following, "standby-leader") == ("n0",)
    assert member_select.with_role(following, "primary") == ()


def test_candidates_leave_out_the_leader_and_nofailover() -> None:
    cluster = three_nodes(members__n2=member(2, tags={"nofailover": True}))
    assert member_select.candidates(cluster) == ("n1",)


def test_requests_go_to_the_leader_then_to_the_candidate() -> None:
    order = member_select.leader_first(three_nodes(), then="n2")
    assert [found.name for found in order] == ["n0", "n2", "n1"]


def test_failover_to_a_member_outside_sync_is_a_risk() -> None:
    cluster = three_nodes(sync={"leader": "n0", "quorum": 0, "sync_standby": "N1"})
    assert not member_select.risks_acknowledged_writes(cluster, "n1")
    assert member_select.risks_acknowledged_writes(cluster, "n2")
    assert not member_select.risks_acknowledged_writes(three_nodes(), "n2")


def test_vanished_members_are_known_from_slots_failsafe_and_history() -> None:
    assert member_select.vanished(three_nodes()) == ()
    kept = {"optime": 1, "retain_slots": ["n0", "n1", "n2", "old_one"]}
    failsafe = {"old-one": "http://h:1/patroni"}
    assert member_select.vanished(three_nodes(status=kept)) == ("old_one",)
    assert member_select.vanished(three_nodes(status=kept, failsafe=failsafe)) == ("old-one",)
    ownerless = snapshot(members__n1=member(1), history=[[1, 1, "x", "2026-11-21T04:00:09+00:00", "n9"]])
    assert member_select.vanished(ownerless) == ("n9",)


def test_waiting_for_pause_ignores_members_that_left() -> None:
    cluster = three_nodes(members__n1=member(1, pause=True))
    assert member_select.not_yet(cluster, {"n0", "n1", "gone"}, paused=True) == ("n0",)
    assert member_select.not_yet(cluster, {"n0", "n1"}, paused=False) == ("n1",)


def test_patroni_members_raise_the_shortest_ttl() -> None:
    assert member_select.minimum_ttl_s(three_nodes(), 3.0) == 20.0
    ours = snapshot(members__n0=primary(0, agent="haagent/0.1.0"))
    assert member_select.minimum_ttl_s(ours, 3.0) == 3.0


def test_silent_member_is_explained_by_what_the_store_knows() -> None:
    cluster = three_nodes(members__n1=member(1, tags={"nofailover": True}, cannot_lead="disk full"))
    found = cluster.member("n1")
    assert found is not None
    answer = member_select.explain_from_store(cluster, found, "it does not answer: refused")
    assert answer["can_lead"] is False
    assert [rule["passed"] for rule in answer["rules"]] == [False, False, False, None]


@pytest.mark.parametrize("api_url", ["", "n1", "::bad::", "http://[::1", "ftp://h/patroni"])
def test_member_without_a_usable_address_is_not_reached(api_url: str) -> None:
    outcome = MemberClient(RestOptions()).request("GET", api_url, "/patroni", None, 1.0)
    assert outcome == NotReached("its api_url is no http address")


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("etcd3://h:1234/ns", ("etcd3", {"host": "h:1234"}, "ns")),
        ("etcd3://h", ("etcd3", {"host": "h:2379"}, None)),
        ("etcd3://[::1]:2379/", ("etcd3", {"host": "[::1]:2379"}, None)),
        ("etcd3://u:p%40@h", ("etcd3", {"host": "h:2379", "username": "u", "password": "p@"}, None)),
        ("local:/var/lib/x.db", ("local", {"path": "/var/lib/x.db"}, None)),
        ("local:///x.db?namespace=test", ("local", {"path": "/x.db"}, "test")),
    ],
)
def test_dcs_urls(url: str, expected: object) -> None:
    assert parse_dcs_url(url) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("etcd://h:2379", "etcd v2 is not supported, use etcd3://h:2379"),
        ("h:2379", "etcd v2 is not supported, use etcd3://h:2379"),
        ("kubernetes://h", "unknown scheme kubernetes"),
        ("redis://h", "unknown scheme redis"),
        ("etcd3://h:notaport", "its port is not a number"),
        ("etcd3://h:99999", "its port is not a number"),
        ("etcd3://u:secret@[::1", "its host is malformed"),
        ("local:/x\udcff.db", "is not UTF-8 text"),
        ("local:relative.db", "absolute path"),
        ("local:/x.db?nmespace=a", "unknown option nmespace"),
    ],
)
def test_dcs_urls_that_cannot_work(url: str, problem: str) -> None:
    with pytest.raises(CtlError, match=problem):
        parse_dcs_url(url)


AGENT_FILE = """
scope: faceoff
name: n0
restapi: {listen: 'h:8008', authentication: {username: admin, password: number-one}}
etcd3: {host: 'h:2379'}
postgresql: {parameters: [this, is, wrong]}
"""


def test_agent_file_works_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text(AGENT_FILE)
    config = load_config(str(file), None, False, {})
    assert (config.scope, config.namespace, config.backend) == ("faceoff", "service", "etcd3")
    assert (config.rest.username, config.rest.password, config.rest.insecure) == (
        "admin",
        "number-one",
        False,
    )
    assert "number-one" not in repr(config)


def test_directory_of_files_is_merged_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "10-base.yml").write_text("scope: one\netcd3: {host: 'h:2379', username: u}\n")
    (tmp_path / "20-site.yaml").write_text("scope: two\netcd3: {username: null}\n")
    (tmp_path / "README").write_text("- not read")
    config = load_config(str(tmp_path), None, False, {})
    assert (config.scope, dict(config.section)) == ("two", {"host": "h:2379"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CtlError, match=r"has no \*.yml file"):
        load_config(str(tmp_path / "empty"), None, False, {})


def test_environment_wins_over_the_file_and_the_url_over_both(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text(AGENT_FILE)
    env = {
        "PATRONI_SCOPE": "other",
        "PATRONI_CTL_USERNAME": "ctl",
        "PATRONI_CTL_PASSWORD": "two",
        "PATRONI_ETCD3_HOSTS": "a:1,b:2",
        "PATRONI_CTL_INSECURE": "on",
    }
    config = load_config(str(file), None, False, env)
    assert (config.scope, config.rest.username, config.rest.insecure) == ("other", "ctl", True)
    assert config.section["hosts"] == ["a:1", "b:2"]
    quoted = load_config(str(file), None, False, {**env, "PATRONI_ETCD3_HOSTS": "'a:1','b:2'"})
    assert quoted.section["hosts"] == ["a:1", "b:2"]
    config = load_config(str(file), None, False, {**env, "HAAGENT_SCOPE": "ours"})
    assert config.scope == "ours"
    config = load_config(str(file), "local:/x.db?namespace=n", False, env)
    assert (config.backend, config.namespace) == ("local", "n")


def test_own_default_file_is_read_before_patronis(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load_config(None, None, False, env).scope is None
    for name in ("patroni/patronictl.yaml", "haagent/haagentctl.yaml"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(f"scope: {path.parent.name}\n")
        assert load_config(None, None, False, env).scope == path.parent.name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a list", "is not a mapping"),
        ("a: [unclosed", "is not valid YAML at line"),
        ("password: *secret", "is not valid YAML at line 1: found undefined alias"),
        ("a: &x [*x]", "is nested too deeply"),
        ("restapi: text", "restapi must be a mapping"),
        ("ctl: {insecure: perhaps}", "ctl.insecure must be true or false"),
        ("etcd: {host: h}", "etcd v2 is not supported"),
        ("citus: {group: 0, database: d}", "Citus is not supported"),
    ],
)
def test_broken_files_are_told_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "bad.yml"
    file.write_text(text)
    with pytest.raises(CtlError, match=problem) as caught:
        load_config(str(file), None, False, {})
    assert "\n" not in caught.value.message
    assert "secret" not in caught.value.message


def test_missing_file_named_on_purpose_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CtlError, match="No such file"):
        load_config(str(tmp_path / "absent.yml"), None, False, {})


# --- edit-config --------------------------------------------------------------------------------


def test_pairs_set_and_remove_values() -> None:
    before = {
        "ttl": 30,
        "postgresql": {"parameters": {"work_mem": "4MB"}},
        "slots": {"a": {"type": "physical"}},
    }
    after = apply_pairs(
        before, ["ttl=20", "postgresql.parameters.auto_explain.log_timing=off", "slots.a=null", "pause=true"]
    )
    assert after == {
        "ttl": 20,
        "postgresql": {"parameters": {"work_mem": "4MB", "auto_explain.log_timing": False}},
        "pause": True,
    }
    assert before["ttl"] == 30


@pytest.mark.parametrize("pair", ["ttl", "=3", "a..b=1", "ttl.x=1"])
def test_bad_pairs_are_refused(pair: str) -> None:
    with pytest.raises(CtlError, match=r"Invalid parameter setting"):
        apply_pairs({"ttl": 30}, [pair])


def test_diff_is_unified_with_three_lines_of_context() -> None:
    before = {
        "loop_wait": 10,
        "maximum_lag_on_failover": 1048576,
        "postgresql": {"use_pg_rewind": True},
        "retry_timeout": 10,
        "ttl": 30,
    }
    after = apply_pairs(before, ["postgresql.parameters.max_connections=120"])
    assert diff_text(before, after) == [
        "--- ",
        "+++ ",
        "@@ -1,6 +1,8 @@",
        " loop_wait: 10",
        " maximum_lag_on_failover: 1048576",
        " postgresql:",
        "+  parameters:",
        "+    max_connections: 120",
        "   use_pg_rewind: true",
        " retry_timeout: 10",
        " ttl: 30",
    ]
    assert yaml_text(before).endswith("ttl: 30\n")
