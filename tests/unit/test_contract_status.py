"""Every row of the contract has a test that observes it, and the page tells so."""

from __future__ import annotations

from tests import contract_status


def test_every_row_is_observed() -> None:
    assert contract_status.problems() == []


def test_the_page_is_up_to_date() -> None:
    assert contract_status.PAGE.read_text() == contract_status.page(), "run: python -m tests.contract_status"
