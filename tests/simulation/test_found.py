"""What once failed fails no more, and still meets what it failed at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation import found
from tests.simulation.found import Found, all_found
from tests.simulation.invariants import Violation
from tests.simulation.plan import draw_plan
from tests.simulation.world import World

FOUND = all_found()


@pytest.mark.parametrize("one", FOUND.values(), ids=FOUND)
def test_it_fails_no_more(one: Found) -> None:
    result = World(one.plan, traced=True).run()
    if one.open:
        assert result.violation is not None, "mended: take `open` out of the file, and say what it shows"
        return
    assert result.violation is None
    assert one.unseen(result.trace) == ""


@pytest.mark.parametrize("one", FOUND.values(), ids=FOUND)
def test_it_says_what_was_wrong_and_what_is_seen_now(one: Found) -> None:
    assert one.wrong
    assert one.shows or one.open


def test_a_new_one_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "FOLDER", tmp_path)
    path = found.keep(draw_plan(5), Violation(1.0, "rule1.one-writable", "two of them\nand more"))
    assert found.read(path) == Found(draw_plan(5), "rule1.one-writable: two of them")


def test_words_are_looked_for_in_their_order() -> None:
    trace = ("  1.0  pg0   decides    race.take: nobody", "  2.0  pg0   key        took epoch 6")
    assert Found(draw_plan(5), "", ("pg0 decides race.take", "took epoch")).unseen(trace) == ""
    assert Found(draw_plan(5), "", ("took epoch", "pg0 decides race.take")).unseen(trace) != ""
