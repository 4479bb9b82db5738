"""Dynamic configuration: units, fallbacks, adjusted timings, and what is refused from people."""

from __future__ import annotations

from typing import Any

import pytest

from haagent.config.schema import DYNAMIC
from haagent.core.settings import (
    KNOWN_DYNAMIC,
    Settings,
    parse_bool,
    parse_bytes,
    parse_duration_s,
    parse_settings,
    validate_dynamic,
)
from haagent.core.standby_cluster import RemoteNode


def parse(data: dict[str, Any], minimum_ttl_s: float = 3, patroni: bool = False) -> Settings:
    return parse_settings(data, minimum_ttl_s, patroni)[0]


def warnings_of(data: dict[str, Any], patroni: bool = False) -> str:
    return "\n".join(parse_settings(data, 3, patroni)[1])


def timings(settings: Settings) -> tuple[float, float, float]:
    return settings.ttl_s, settings.loop_wait_s, settings.retry_timeout_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30), ("30", 30), ("30min", 1800), ("500ms", 0.5), ("2 h", 7200), ("1d", 86400), ("-1", -1)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"), [(1, 1), ("16kB", 16384), ("128MB", 134217728), ("1 GB", 2**30), ("1.5kB", 1536)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "value", ["", "x", "10 apples", "1kb2", None, [], {}, True, float("nan"), float("inf"), "9e999"]
)
def test_what_is_no_number_is_none(value: object) -> None:
    assert parse_duration_s(value) is None
    assert parse_bytes(value) is None


def test_switches() -> None:
    on: list[object] = ["on", "True", "YES", 1, True]
    off: list[object] = ["off", "false", "No", 0, False]
    neither: list[object] = ["maybe", None, 2, [], 0.5]
    assert [parse_bool(value) for value in on] == [True] * 5
    assert [parse_bool(value) for value in off] == [False] * 5
    assert [parse_bool(value) for value in neither] == [None] * 5


def test_an_empty_configuration_is_the_default() -> None:
    assert parse_settings({}, 3, False) == (Settings.default(), ())


def test_the_reference_names_every_dynamic_key_with_its_true_default() -> None:
    assert set(DYNAMIC) == set(KNOWN_DYNAMIC)
    written = {key.path: key.default for key in DYNAMIC.values() if key.default is not None}
    assert parse_settings(written, 3, False) == (Settings.default(), ())


def test_an_unreadable_value_falls_back_and_is_named() -> None:
    data = {"maximum_lag_on_failover": "1MB", "pause": "perhaps", "postgresql": {"use_slots": "sure"}}
    assert parse(data) == parse({"postgresql": {"use_slots": "sure"}})
    assert "maximum_lag_on_failover: '1MB' is not a whole number: using 1048576" in warnings_of(data)
    assert "pause: 'perhaps' is not on or off" in warnings_of(data)
    assert "postgresql.use_slots: 'sure'" in warnings_of(data)


def test_former_names_still_work() -> None:
    assert parse({"master_start_timeout": 7}).primary_start_timeout_s == 7
    assert parse({"master_start_timeout": 7, "primary_start_timeout": 8}).primary_start_timeout_s == 8


def test_member_slots_ttl_takes_units() -> None:
    assert parse({"member_slots_ttl": "1h"}).member_slots_ttl_s == 3600


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ((30, 10, 10), (30, 10, 10)),
        ((3, 1, 1), (3, 1, 1)),
        ((20, 10, 5), (20, 10, 5)),
        ((20, 15, 5), (20, 10, 5)),  # loop_wait := ttl - 2 * retry_timeout
        ((20, 10, 10), (20, 1, 9)),  # even 1 + 2 * 10 > 20: retry_timeout := (ttl - 1) // 2
        ((1, 0, 0), (3, 1, 1)),
        ((3, 10, 10), (3, 1, 1)),
    ],
)
def test_timings_are_made_to_fit(given: tuple[float, float, float], used: tuple[float, float, float]) -> None:
    data = dict(zip(("ttl", "loop_wait", "retry_timeout"), given, strict=True))
    assert timings(parse(data)) == used
    adjusted = given != used
    assert bool(warnings_of(data)) is adjusted


def test_times_that_nothing_can_wait_for_are_none() -> None:
    endless = {"ttl": 1e15, "loop_wait": 1e14, "retry_timeout": 10**7, "primary_start_timeout": 2**40}
    assert parse(endless) == Settings.default()
    assert "ttl: 1000000000000000.0 is not a number up to" in warnings_of(endless)
    assert parse({"member_slots_ttl": "30000d"}) == Settings.default()
    assert parse({"maximum_lag_on_failover": 2**40}).maximum_lag_on_failover_bytes == 2**40


def test_patronis_minima_hold_while_one_of_its_members_is_there() -> None:
    data = {"ttl": 3, "loop_wait": 1, "retry_timeout": 1}
    assert timings(parse(data, patroni=True)) == (20, 1, 3)
    assert timings(parse(data, patroni=False)) == (3, 1, 1)


def test_the_backends_minimum_ttl_holds() -> None:
    assert parse({"ttl": 5, "loop_wait": 1, "retry_timeout": 1}, minimum_ttl_s=9.5).ttl_s == 10


def test_parameters_that_are_no_single_value_are_left_out() -> None:
    data = {"postgresql": {"parameters": {"a": 1, "b": [1], "c": None, "d": {}}}}
    assert parse(data).parameters == {"a": 1}
    assert "postgresql.parameters.b" in warnings_of(data)


@pytest.mark.parametrize(
    "data",
    [
        {"synchronous_mode": "off"},
        {"synchronous_mode": False},
        {"failsafe_mode": "no"},
        {"standby_cluster": None},
    ],
)
def test_a_safety_promise_switched_off_is_fine(data: dict[str, Any]) -> None:
    assert validate_dynamic(data, 3) == ([], [])
    assert parse(data).unsupported == ()


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (True, "on"),
        ("on", "on"),
        (" Quorum", "quorum"),
        ("off", "off"),
        (None, "off"),
        ("quora", "off"),
        (2, "off"),
    ],
)
def test_synchronous_mode(value: object, mode: str) -> None:
    assert parse({"synchronous_mode": value}).synchronous_mode.value == mode


def test_a_synchronous_mode_nobody_can_read_is_refused() -> None:
    problems, _ = validate_dynamic({"synchronous_mode": "quora", "synchronous_mode_strict": "often"}, 3)
    assert [p.key for p in problems] == ["synchronous_mode", "synchronous_mode_strict"]


@pytest.mark.parametrize("section", [{}, None, {"primary_slot_name": "a"}, {"host": "", "port": None}])
def test_an_empty_section_is_no_standby_cluster(section: object) -> None:
    data = {"standby_cluster": section}
    assert validate_dynamic(data, 3) == ([], [])
    assert parse(data).standby_cluster is None


def test_what_a_standby_cluster_follows() -> None:
    section = {
        "host": "10.0.0.1, 10.0.0.2", "port": "6543", "primary_slot_name": "West-1",
        "create_replica_methods": ["fetch", "basebackup"], "restore_command": "cp /a/%f %p",
        "archive_cleanup_command": "clean %r", "recovery_min_apply_delay": 500,
    }  # fmt: skip
    assert validate_dynamic({"standby_cluster": section}, 3) == ([], [])
    found = parse({"standby_cluster": section}).standby_cluster
    assert found is not None
    assert found.remote == RemoteNode("10.0.0.1,10.0.0.2", 6543)
    assert (found.primary_slot_name, found.create_replica_methods) == ("west_1", ("fetch", "basebackup"))
    archive = {"restore_command": "cp /a/%f %p", "archive_cleanup_command": "clean %r"}
    assert found.recovery_settings(found.remote.address) == {**archive, "recovery_min_apply_delay": "500"}
    assert found.recovery_settings(("10.0.0.9", 5432)) == archive
    assert found.slot_for(found.remote.address, "pg1") == "west_1"
    assert found.slot_for(("10.0.0.9", 5432), "pg1") == "pg1"


def test_an_archive_alone_is_followed_too() -> None:
    found = parse({"standby_cluster": {"restore_command": "cp /a/%f %p"}}).standby_cluster
    assert found is not None
    assert found.remote is None
    assert parse({"standby_cluster": {"port": 5433}}).standby_cluster is not None


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"host": ["a"]}, "standby_cluster.host"),
        ({"host": "a,,b"}, "standby_cluster.host"),
        ({"host": "a b"}, "standby_cluster.host"),
        ({"host": "a", "port": 70000}, "standby_cluster.port"),
        ({"host": "a", "port": True}, "standby_cluster.port"),
        ({"host": "a", "primary_slot_name": 1}, "standby_cluster.primary_slot_name"),
        (
            {"host": "a", "restore_command": 1},
            "standby_cluster.restore_command",
        ),
        ({"host": "a", "create_replica_methods": [1]}, "standby_cluster.create_replica_methods"),
        ({"host": "a", "recovery_min_apply_delay": "soon"}, "standby_cluster.recovery_min_apply_delay"),
        ("east", "standby_cluster"),
    ],
)
def test_a_bad_value_is_refused_by_name(section: object, key: str) -> None:
    problems, warnings = validate_dynamic({"standby_cluster": section}, 3)
    assert ([problem.key for problem in problems], warnings) == ([key], [])
    settings, said = parse_settings({"standby_cluster": section}, 3, False)
    assert any(text.startswith(key) for text in said)
    # Whatever is wrong inside, nobody may be promoted.
    assert settings.standby_cluster is not None or settings.unsupported == ("standby_cluster",)


def test_an_unknown_key_of_the_section_warns() -> None:
    _, warnings = validate_dynamic({"standby_cluster": {"host": "a", "prot": 1}}, 3)
    assert warnings == ["standby_cluster.prot: unknown key, ignored (did you mean port?)"]


def test_failsafe_mode() -> None:
    assert parse({"failsafe_mode": "on"}).failsafe_mode is True
    assert parse({}).failsafe_mode is parse({"failsafe_mode": "often"}).failsafe_mode is False
    problems, _ = validate_dynamic({"failsafe_mode": "often"}, 3)
    assert [p.key for p in problems] == ["failsafe_mode"]


def test_unknown_keys_warn_with_the_nearest_name() -> None:
    problems, warnings = validate_dynamic({"ttls": 30, "zebra": 1, "slots": {"a": {}}, "ignore_slots": []}, 3)
    assert problems == []
    assert warnings == [
        "ttls: unknown key, ignored (did you mean ttl?)",
        "zebra: unknown key, ignored",
    ]


def test_timings_that_do_not_fit_are_adjusted_from_the_dcs_and_refused_in_a_local_file() -> None:
    data = {"ttl": 10, "loop_wait": 5, "retry_timeout": 5, "ttls": 1}
    problems, warnings = validate_dynamic(data, 3)
    assert problems == []
    assert any("using loop_wait" in w for w in warnings)
    problems, warnings = validate_dynamic(data, 3, timings_must_fit=True)
    assert [str(p) for p in problems] == ["ttl 10 must be at least loop_wait 5 + 2 * retry_timeout 5"]
    assert warnings == ["ttls: unknown key, ignored (did you mean ttl?)"]


def test_timings_below_the_minimum_are_refused_in_a_local_file() -> None:
    data = {"ttl": 2, "loop_wait": 0, "retry_timeout": "soon"}
    problems, _ = validate_dynamic(data, 3, timings_must_fit=True)
    assert [p.key for p in problems] == ["ttl", "loop_wait", "retry_timeout"]
