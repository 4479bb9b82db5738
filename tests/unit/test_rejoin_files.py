"""The files beside the data directory: how far the way back is, and what was discarded."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dcs.records import Discard
from haagent.core.model import Rejoin
from haagent.rejoin_files import KEPT, RejoinFiles
from haagent.runtime import SystemRuntime
from haagent.system import SystemPostgres
from postgres_ctl.errors import PostgresError

STATE = Rejoin(tries=2, reason="no route", epoch=7)


def discard(start: int | None = 100, end: int | None = 300) -> Discard:
    return Discard("pg1", start, end, 3, "rewind", "", "/kept", 16)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "state").mkdir()
    return tmp_path / "data"


def files(data_dir: Path) -> RejoinFiles:
    return RejoinFiles(SystemRuntime(), SystemPostgres(), str(data_dir.parent / "state"), str(data_dir))


def test_the_state_survives_the_agent(data_dir: Path) -> None:
    files(data_dir).keep(STATE)
    assert files(data_dir).state == STATE


def test_a_directory_that_was_put_in_its_place_begins_afresh(data_dir: Path) -> None:
    files(data_dir).keep(STATE)
    data_dir.rename(data_dir.with_name("old"))
    data_dir.mkdir()
    assert files(data_dir).state == Rejoin()


def test_a_try_that_began_without_a_directory_counts_for_the_one_it_made(data_dir: Path) -> None:
    data_dir.rmdir()
    files(data_dir).keep(STATE)
    data_dir.mkdir()
    assert files(data_dir).state == STATE


def test_a_state_that_cannot_be_understood_is_told_and_ignored(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = files(data_dir)
    own.keep(STATE)
    path = data_dir.parent / "state" / "rejoin.json"
    path.write_text(path.read_text().partition("\n")[0] + "\ngarbage\n")
    with caplog.at_level(logging.WARNING):
        assert files(data_dir).state == Rejoin()
    assert str(path) in caplog.text


def test_a_state_that_cannot_be_written_is_an_error(data_dir: Path) -> None:
    own = files(data_dir)
    (data_dir.parent / "state").rmdir()
    with pytest.raises(PostgresError, match=r"rejoin\.json"):
        own.keep(STATE)
    assert own.state == Rejoin()


def test_what_was_discarded_is_remembered_and_untold_until_the_store_has_it(data_dir: Path) -> None:
    own = files(data_dir)
    noted = own.note(discard())
    assert noted.at.startswith("20")
    assert files(data_dir).untold == (noted,)
    own.told((noted,))
    assert (files(data_dir).untold, files(data_dir).discards) == ((), (noted,))


def test_a_second_try_at_the_same_does_not_write_it_down_twice(data_dir: Path) -> None:
    first = files(data_dir).note(discard())
    assert files(data_dir).note(discard()) == first
    assert files(data_dir).discards == (first,)


def test_unknown_losses_are_written_down_each(data_dir: Path) -> None:
    own = files(data_dir)
    own.note(discard(None, None))
    own.note(discard(None, None))
    assert len(own.discards) == 2


def test_only_the_last_ones_are_remembered(data_dir: Path) -> None:
    own = files(data_dir)
    for start in range(KEPT + 3):
        own.note(discard(start))
    assert [d.start for d in files(data_dir).discards] == list(range(3, KEPT + 3))


def test_the_list_is_readable_by_its_owner_only(data_dir: Path) -> None:
    files(data_dir).note(discard())
    assert (data_dir.parent / "state" / "discards.json").stat().st_mode & 0o077 == 0
