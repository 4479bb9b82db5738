"""How often a job looks at what cannot tell by itself."""

from __future__ import annotations

import pytest

from haagent.jobs import LOOK_AT_LEAST_EVERY_S, LOOK_EVERY_S, _until_next_look_s


def test_a_quick_start_is_seen_at_once_and_a_slow_one_is_not_bothered() -> None:
    assert _until_next_look_s(0.0) == LOOK_EVERY_S
    assert _until_next_look_s(0.1) == LOOK_EVERY_S
    assert _until_next_look_s(600.0) == LOOK_AT_LEAST_EVERY_S


@pytest.mark.parametrize("waited_s", [0.25, 0.5, 1.0, 3.0, 30.0, 3600.0])
def test_looking_adds_at_most_a_tenth(waited_s: float) -> None:
    assert _until_next_look_s(waited_s) <= waited_s / 9.99
