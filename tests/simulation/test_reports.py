"""What counts as a report of a loss (rule 5)."""

from __future__ import annotations

import pytest

from tests.simulation.reports import Report, unreported
from tests.simulation.wal import DATA, Record, end_of

LOST = [Record(index, 1, DATA, "pg0", None) for index in (10, 11, 12)]
#: The first two of the three were published.
PUBLISHED = end_of(12)
NEEDED = 240
REST = ", and at most what the last primary wrote after its last status"


@pytest.mark.parametrize(
    ("note", "optime", "fine"),
    [
        (f"expected loss: {NEEDED} bytes of WAL{REST}", PUBLISHED, True),
        (f"expected loss: {NEEDED - 1} bytes of WAL{REST}", PUBLISHED, False),
        (f"expected loss: {NEEDED} bytes of WAL", PUBLISHED, False),
        ("expected loss: at most what the last primary wrote after its last status", PUBLISHED, False),
        ("expected loss: at most what the last primary wrote after its last status", end_of(10), True),
        ("expected loss: unknown", None, True),
        ("planned: nothing lost", PUBLISHED, False),
        ("planned: nothing lost", None, False),
        ("", PUBLISHED, False),
    ],
)
def test_a_report_covers_the_loss_or_not(note: str, optime: int | None, fine: bool) -> None:
    assert (unreported(Report(note, optime, 1), LOST) is None) is fine


def test_what_a_primary_wrote_that_never_published_a_status_counts_as_written_after_it() -> None:
    note = "expected loss: at most what the last primary wrote after its last status"
    later = [Record(record.index, 2, DATA, "pg1", None) for record in LOST]
    assert unreported(Report(note, PUBLISHED, 1), later) is None


def test_nothing_lost_needs_no_report() -> None:
    assert unreported(None, []) is None
    assert unreported(None, LOST) is not None
