"""WAL around a rewind: which range goes, what pg_rewind misses, and what may be fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgres_ctl.commits import Span, count_commits, newest_wal_timeline, spans_beyond
from postgres_ctl.errors import ToolFailed
from postgres_ctl.facts import Lsn, TimelineSwitch
from postgres_ctl.ready_wal import archive_ready, ready_segments
from postgres_ctl.restore import command_line, missing_segment, starts_before

SEGMENT = 16 * 1024 * 1024
SWITCHES = (TimelineSwitch(1, Lsn(1000), ""), TimelineSwitch(3, Lsn(2000), ""))


@pytest.mark.parametrize(
    ("parted", "spans"),
    [
        (500, (Span(1, Lsn(500), Lsn(1000)), Span(3, Lsn(1000), Lsn(2000)), Span(4, Lsn(2000), None))),
        (1000, (Span(3, Lsn(1000), Lsn(2000)), Span(4, Lsn(2000), None))),
        (2500, (Span(4, Lsn(2500), None),)),
    ],
)
def test_what_lies_beyond_the_parting(parted: int, spans: tuple[Span, ...]) -> None:
    assert spans_beyond(SWITCHES, 4, Lsn(parted)) == spans


def test_transactions_that_cannot_be_counted_are_unknown(tmp_path: Path) -> None:
    counted = count_commits(str(tmp_path), str(tmp_path), [Span(1, Lsn(1), None)], 5.0)
    assert counted.transactions is None
    assert "pg_waldump" in counted.why


def test_the_segment_that_pg_rewind_misses() -> None:
    name = "00000001000000000000000A"
    told = f'pg_rewind: error: could not open file "/data/pg_wal/{name}": No such file or directory\nmore'
    assert missing_segment(told) == name
    assert missing_segment(f'error: could not read file "/d/pg_wal/{name}": read 0 of 8192\n') == name
    assert missing_segment(f'error: could not restore file "{name}" from archive\n') == name
    assert missing_segment('error: could not open file "/data/PG_VERSION": No such file or directory') is None


def test_only_wal_from_before_the_parting_is_anybody_elses() -> None:
    name = "000000010000000100000002"
    end = 0x1_0000_0000 + 3 * SEGMENT
    assert starts_before(name, SEGMENT, Lsn(end))
    assert not starts_before(name, SEGMENT, Lsn(end - 1))


def test_place_holders_of_commands() -> None:
    assert (
        command_line("cp %p /archive/%f # 100%% %r", "pg_wal/X", "X", "Y")
        == "cp pg_wal/X /archive/X # 100% Y"
    )


def status_dir(data_dir: Path, *names: str) -> Path:
    directory = data_dir / "pg_wal" / "archive_status"
    directory.mkdir(parents=True)
    for name in names:
        (directory / f"{name}.ready").touch()
        (data_dir / "pg_wal" / name).write_text(name)
    return directory


def test_ready_wal_is_archived_in_order_and_marked(tmp_path: Path) -> None:
    directory = status_dir(tmp_path, "B", "A")
    assert archive_ready(str(tmp_path), "cp %p arch-%f && echo %f >> order", 30.0) == 2
    assert (tmp_path / "order").read_text() == "A\nB\n"
    assert (tmp_path / "arch-A").read_text() == "A"
    assert sorted(path.name for path in directory.iterdir()) == ["A.done", "B.done"]


def test_a_failing_archive_leaves_the_rest_ready(tmp_path: Path) -> None:
    status_dir(tmp_path, "A", "B")
    with pytest.raises(ToolFailed):
        archive_ready(str(tmp_path), "test %f = A", 30.0)
    assert ready_segments(str(tmp_path)) == ("B",)


def test_the_newest_timeline_with_wal_and_a_history(tmp_path: Path) -> None:
    wal = tmp_path / "pg_wal"
    assert newest_wal_timeline(str(tmp_path)) == 0
    wal.mkdir()
    for name in ("00000001000000000000000A", "00000004000000000000000A", "00000007000000000000000A"):
        (wal / name).touch()
    (wal / "00000004.history").write_text("1\t0/A000100\tno recovery target specified\n")
    (wal / "00000007.history").write_text("# held free\n")
    assert newest_wal_timeline(str(tmp_path)) == 4
