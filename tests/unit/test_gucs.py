"""Parameters: protected ones, standby minima, and what the real binary says exists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postgres_ctl.gucs import (
    Guc,
    check_parameters,
    describe_gucs,
    guc_exists,
    protected_parameters,
    raise_to_standby_minima,
)
from tests.support.postgres import BIN_DIR, as_postgres_user
from tests.unit.test_controldata import CONTROL

KNOWN = {
    "fsync": Guc("fsync", "sighup", "BOOLEAN", None, None),
    "work_mem": Guc("work_mem", "user", "INTEGER", 64, 1000),
    "seq_page_cost": Guc("seq_page_cost", "user", "REAL", 0, 10),
    "log_directory": Guc("log_directory", "sighup", "STRING", None, None),
}


def never(name: str) -> bool:
    return False


def test_defaults_of_protected_parameters() -> None:
    values, warnings = protected_parameters({})
    assert warnings == ()
    assert values["max_connections"] == "100"
    assert values["wal_keep_size"] == "128MB"
    assert list(values)[:2] == ["max_connections", "max_worker_processes"]


@pytest.mark.parametrize(
    ("name", "bad", "default"),
    [
        ("max_connections", "24", "100"),
        ("max_wal_senders", "many", "10"),
        ("wal_level", "minimal", "replica"),
        ("hot_standby", "off", "on"),
        ("track_commit_timestamp", "maybe", "off"),
        ("wal_keep_size", "8MB", "128MB"),
        ("wal_keep_size", "lots", "128MB"),
    ],
)
def test_bad_protected_value_becomes_the_default_with_a_warning(name: str, bad: str, default: str) -> None:
    values, warnings = protected_parameters({name: bad})
    assert values[name] == default
    assert len(warnings) == 1
    assert name in warnings[0]
    assert bad in warnings[0]


@pytest.mark.parametrize(
    ("name", "given", "used"),
    [
        ("max_connections", "25", "25"),
        ("wal_level", "hot_standby", "replica"),
        ("wal_level", "logical", "logical"),
        ("wal_log_hints", "false", "off"),
        ("hot_standby", "true", "on"),
        ("wal_keep_size", "1GB", "1GB"),
        ("wal_keep_size", "64", "64MB"),
        ("wal_keep_segments", "20", None),
    ],
)
def test_good_protected_value_is_used(name: str, given: str, used: str | None) -> None:
    values, warnings = protected_parameters({name: given})
    assert warnings == ()
    assert values.get(name) == used


def test_old_keep_segments_become_a_size() -> None:
    assert protected_parameters({"wal_keep_segments": "20"})[0]["wal_keep_size"] == "320MB"
    given = {"wal_keep_segments": "20", "wal_keep_size": "1GB"}
    assert protected_parameters(given)[0]["wal_keep_size"] == "1GB"


def test_standby_never_starts_below_the_primary() -> None:
    control = replace(CONTROL, max_connections=200, max_wal_senders=3)
    values = raise_to_standby_minima(protected_parameters({})[0], control)
    assert (values["max_connections"], values["max_wal_senders"]) == ("200", "10")


def test_unknown_names_are_dropped_and_numbers_clamped() -> None:
    given = {
        "fsync": "off", "work_mem": "10", "seq_page_cost": "11", "pg_stat_statements.max": "5",
        "nonsense": "1", "log_directory": "10", "bad name": "1", "x\ny": "1", "WORK_MEM": "2000",
        "a.b c": "1",
    }  # fmt: skip
    kept, warnings = check_parameters(given, KNOWN, never)
    assert kept == {
        "fsync": "off", "work_mem": "64", "seq_page_cost": "10", "pg_stat_statements.max": "5",
        "log_directory": "10", "WORK_MEM": "1000",
    }  # fmt: skip
    assert len(warnings) == 7
    assert check_parameters({"work_mem": "64kB", "fsync": "perhaps"}, KNOWN, never)[0] == {"work_mem": "64kB"}


def test_the_real_server_knows_its_parameters() -> None:
    known = describe_gucs(BIN_DIR)
    assert known["max_connections"].context == "postmaster"
    assert known["max_connections"].minimum == 1
    assert "restore_command" in known
    assert describe_gucs(BIN_DIR) is known
    with as_postgres_user():
        assert "zero_damaged_pages" not in known
        assert guc_exists(BIN_DIR, "zero_damaged_pages")
        assert not guc_exists(BIN_DIR, "nonsense_parameter")
