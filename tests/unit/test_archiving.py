"""What a primary leaves behind when its cluster begins to follow another one: its last segment, and no place
holders in the way of the other's timelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from postgres_ctl.archiving import archive_segment, expanded, segment_name
from postgres_ctl.errors import DataDirError, ToolFailed
from postgres_ctl.facts import Lsn
from postgres_ctl.timelines import drop_held, hold_numbers
from tests.unit.core_facts import control


def test_the_command_line_is_what_postgresql_makes_of_it() -> None:
    assert expanded("cp %p /a/%f && echo 100%% %x %", "pg_wal/S", "S") == "cp pg_wal/S /a/S && echo 100% %x %"


def test_the_segment_of_a_position() -> None:
    at = replace(control(), timeline=18)
    assert segment_name(at, Lsn.parse("1/A2000028")) == "0000001200000001000000A2"
    assert segment_name(replace(at, wal_segment_bytes=1024**2), Lsn.parse("1/A2000028")) == (
        "000000120000000100000A20"
    )


def test_one_segment_is_handed_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    (tmp_path / "pg_wal" / "S").write_text("wal")
    archive_segment(str(tmp_path), "cp %p archived-%f", "S", 20.0)
    assert (tmp_path / "archived-S").read_text() == "wal"
    with pytest.raises(ToolFailed):
        archive_segment(str(tmp_path), "exit 3", "S", 20.0)
    with pytest.raises(DataDirError):
        archive_segment(str(tmp_path), "true", "T", 20.0)


def test_place_holders_above_the_own_timeline_go_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "pg_wal"
    folder.mkdir()
    hold_numbers(str(tmp_path), 1, 6)
    real = folder / "00000006.history"
    real.write_text("1\t0/3000000\tno recovery target specified\n")
    (folder / "notes.history").write_text("")
    drop_held(str(tmp_path), 3)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["00000002.history", "00000003.history", "00000006.history", "notes.history"]
