"""The judge of the chaos rounds: what it must see, and what it must not take for a crime."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.torture import checker
from tests.chaos.torture.checker import Facts, Limits, check
from tests.support.writers import Write

ASYNC = Limits(recovery_s=60, maximum_lag_bytes=100_000, status_age_s=5)
#: A planned operation, or a synchronous mode: nothing acknowledged may be lost.
STRICT = Limits(recovery_s=60, maximum_lag_bytes=None)


def write(
    server: str, timeline: int, sent: float, acked: float, *, executed: float | None = None, lsn: int = 0
) -> Write:
    number = int(sent * 1000) * 10 + ord(server)
    return Write(number, f"old:{server}", sent, acked, server, timeline, executed or sent, lsn)


def facts(*writes: Write, lost: tuple[Write, ...] = (), recovered_at: float | None = 110.0) -> Facts:
    gone = {w.id for w in lost}
    surviving = frozenset(w.id for w in writes if w.id not in gone)
    return Facts(writes, surviving, healed_at=100.0, recovered_at=recovered_at)


def rules(found: list[checker.Violation]) -> dict[str, int]:
    return {violation.rule: violation.count for violation in found}


A1, A2 = write("a", 1, 1.0, 1.1), write("a", 1, 2.0, 2.1)
B1, B2 = write("b", 2, 5.0, 5.1), write("b", 2, 6.0, 6.1)


@pytest.mark.parametrize(
    "writes",
    [
        pytest.param((), id="nobody wrote"),
        pytest.param((A1, A2), id="nothing happened"),
        pytest.param((A1, A2, B1, B2), id="failover"),
        pytest.param((A1, B1, write("a", 3, 7.0, 7.1), write("a", 3, 8.0, 8.1)), id="and back"),
        pytest.param((A1, write("a", 2, 3.0, 3.1), write("a", 2, 4.0, 4.1)), id="restarted on its own"),
        pytest.param((write("a", 1, 1.0, 9.0), B1, B2), id="acknowledgement read late"),
        pytest.param((A1, write("b", 2, 1.05, 5.1), B1), id="sent early to the successor"),
    ],
)
def test_one_writable_server_at_a_time_is_no_violation(writes: tuple[Write, ...]) -> None:
    assert check(facts(*writes), STRICT) == []
    assert checker.double_acknowledgements(writes) == 0


def test_sent_to_the_old_primary_after_the_new_ones_first_acknowledgement_and_acknowledged() -> None:
    late = [write("a", 1, 5.2, 5.3), write("a", 1, 5.4, 5.5)]
    found = check(facts(A1, B1, *late), STRICT)
    assert rules(found) == {"late-ack": 2}
    assert "old:a" in found[0].detail
    assert checker.double_acknowledgements((A1, B1, *late)) == 2


def test_a_late_write_of_a_server_that_led_again_before_counts_for_its_old_timeline_only() -> None:
    writes = (A1, B1, write("a", 3, 7.0, 7.1), write("b", 2, 7.2, 7.3))
    assert rules(check(facts(*writes), STRICT)) == {"late-ack": 1}


def test_a_server_that_woke_up_and_executed_what_was_sent_long_before_is_the_second_one() -> None:
    woken = write("a", 1, 4.0, 9.0, executed=8.9)
    assert rules(check(facts(A1, B1, B2, woken), STRICT)) == {"two-servers": 1}


def test_one_timeline_written_by_two_servers_is_a_crime_at_any_time() -> None:
    writes = (write("a", 2, 1.0, 1.1), write("b", 2, 50.0, 50.1))
    assert rules(check(facts(*writes), STRICT)) == {"two-servers": 1}


def test_a_lost_row_is_a_violation_where_nothing_may_be_lost() -> None:
    found = check(facts(A1, A2, B1, lost=(A2,)), STRICT)
    assert rules(found) == {"lost": 1}
    assert str(A2.id) in found[0].detail


def _tenure(end_lsn: int) -> list[Write]:
    """Ten seconds of one primary, a write each second, the WAL growing evenly."""
    return [write("a", 1, t, t + 0.1, lsn=end_lsn * (t + 1) // 10) for t in range(10)]


def test_an_asynchronous_loss_within_the_lag_is_counted_and_no_violation() -> None:
    writes = _tenure(1_000_000)
    history = facts(*writes, write("b", 2, 20, 20.1), lost=tuple(writes[-3:]))
    assert check(history, ASYNC) == []
    (loss,) = checker.losses(history, ASYNC.status_age_s)
    assert (loss.server, loss.timeline, loss.rows) == ("a", 1, 3)
    assert loss.size_bytes == 300_000
    # The last status is at most 5 s old: half of the tenure's WAL came after it.
    assert loss.since_status_bytes == 500_000


def test_an_asynchronous_loss_beyond_lag_and_status_is_a_violation() -> None:
    writes = _tenure(1_000_000)
    history = facts(*writes, write("b", 2, 20, 20.1), lost=tuple(writes[-8:]))
    assert rules(check(history, ASYNC)) == {"lost": 8}
    assert check(history, replace(ASYNC, maximum_lag_bytes=1_000_000)) == []


def _failed_over(lost_rows: int, report: str | None) -> list[checker.Violation]:
    writes = _tenure(1_000_000)
    told = {2: report} if report is not None else {}
    history = facts(*writes, write("b", 2, 20, 20.1), lost=tuple(writes[-lost_rows:]))
    return check(replace(history, reports=told), replace(ASYNC, maximum_lag_bytes=1_000_000))


_SINCE = "at most what the last primary wrote after its last status"


@pytest.mark.parametrize(
    ("lost_rows", "report"),
    [
        (4, f"expected loss: {_SINCE}; all WAL it published is here"),
        (8, f"expected loss: 300000 bytes of WAL, and {_SINCE}"),
    ],
)
def test_a_loss_that_was_announced_is_no_violation(lost_rows: int, report: str) -> None:
    assert _failed_over(lost_rows, report) == []


@pytest.mark.parametrize("report", [None, "planned: nothing lost", "expected loss: unknown"])
def test_a_loss_that_nobody_announced_is_a_violation(report: str | None) -> None:
    assert rules(_failed_over(3, report)) == {"unreported": 3}


def test_a_loss_beyond_what_was_announced_is_a_violation() -> None:
    said = f"expected loss: 100000 bytes of WAL, and {_SINCE}"
    assert rules(_failed_over(8, said)) == {"unreported": 8}


def test_a_later_promotion_does_not_speak_for_this_loss() -> None:
    writes = _tenure(1_000_000)
    said = f"expected loss: {_SINCE}"
    history = facts(*writes, write("b", 2, 20, 20.1), lost=tuple(writes[-2:]))
    assert rules(check(replace(history, reports={3: said}), ASYNC)) == {"unreported": 2}


def test_a_loss_of_everything_is_measured_from_the_first_write() -> None:
    writes = _tenure(1_000_000)
    (loss,) = checker.losses(facts(*writes, lost=tuple(writes)), 5.0)
    assert loss.size_bytes == 900_000


def test_recovery_that_never_came_or_took_too_long_is_a_violation() -> None:
    assert rules(check(facts(A1, recovered_at=None), STRICT)) == {"recovery": 1}
    assert rules(check(facts(A1, recovered_at=161.0), STRICT)) == {"recovery": 1}
    assert check(facts(A1, recovered_at=159.0), STRICT) == []
