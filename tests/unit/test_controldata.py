"""Parsing pg_controldata and history files."""

from __future__ import annotations

import pytest

from postgres_ctl.controldata import parse_controldata, parse_history
from postgres_ctl.errors import DataDirError
from postgres_ctl.facts import ControlState, Lsn, TimelineSwitch

OUTPUT = """\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7277694203142172922
Database cluster state:               shut down in recovery
pg_control last modified:             Fri Nov 20 10:00:00 2026
Latest checkpoint location:           0/5000060
Latest checkpoint's REDO location:    0/5000028
Latest checkpoint's REDO WAL file:    000000030000000000000005
Latest checkpoint's TimeLineID:       3
Latest checkpoint's PrevTimeLineID:   3
Minimum recovery ending location:     0/5000148
Min recovery ending loc's timeline:   4
Backup start location:                0/0
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
Data page checksum version:           0
"""

CONTROL = parse_controldata(OUTPUT)


def test_controldata_is_parsed() -> None:
    assert CONTROL.system_identifier == "7277694203142172922"
    assert CONTROL.state is ControlState.SHUT_DOWN_IN_RECOVERY
    assert CONTROL.shut_down_cleanly
    assert CONTROL.checkpoint_lsn == Lsn(0x5000060)
    assert (CONTROL.timeline, CONTROL.min_recovery_end_timeline) == (3, 4)
    assert CONTROL.wal_log_hints
    assert not CONTROL.data_checksums


def test_unknown_state_is_not_clean() -> None:
    control = parse_controldata(OUTPUT.replace("shut down in recovery", "dreaming"))
    assert control.state is ControlState.UNKNOWN
    assert not control.shut_down_cleanly


def test_missing_or_strange_lines_are_named() -> None:
    with pytest.raises(DataDirError, match="Latest checkpoint location"):
        parse_controldata(OUTPUT.replace("Latest checkpoint location", "Something"))
    with pytest.raises(DataDirError, match="unexpected"):
        parse_controldata(OUTPUT.replace("0/5000060", "soon"))


def test_history_is_parsed() -> None:
    text = "1\t0/3000060\tno recovery target specified\n\n# x\n2\t0/4000000\tbefore 2026-11-20 10:00:00+00\n"
    assert parse_history(text) == (
        TimelineSwitch(1, Lsn(0x3000060), "no recovery target specified"),
        TimelineSwitch(2, Lsn(0x4000000), "before 2026-11-20 10:00:00+00"),
    )
    assert parse_history("") == ()
    assert parse_history("1\t0/3000060") == (TimelineSwitch(1, Lsn(0x3000060), ""),)
    with pytest.raises(ValueError):
        parse_history("garbage")
