"""Any JSON in: valid settings out, and never an exception."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from haagent.config.dynamic import merge_patch
from haagent.config.schema import DYNAMIC
from haagent.core.lease import renew_attempt_s, renew_interval_s, stop_budget_s
from haagent.core.settings import Settings, parse_settings, validate_dynamic

NUMBERS = st.integers(-5, 60) | st.integers() | st.floats() | st.integers(-5, 60).map(str)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=12)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
KEYS = st.sampled_from(sorted(DYNAMIC)) | st.text(max_size=10)
CONFIGS = st.dictionaries(KEYS, JSON, max_size=8)
TIMINGS = st.fixed_dictionaries({}, optional={"ttl": NUMBERS, "loop_wait": NUMBERS, "retry_timeout": NUMBERS})


def check_timings(found: Settings, minimum_ttl_s: float, patroni: bool) -> None:
    """Contract 2.1, and hazard H7 for what the lease keeper derives."""
    ttl, loop_wait, retry = found.ttl_s, found.loop_wait_s, found.retry_timeout_s
    assert loop_wait + 2 * retry <= ttl
    assert ttl >= minimum_ttl_s
    assert loop_wait >= 1
    assert retry >= (3 if patroni else 1)
    assert not patroni or ttl >= 20
    interval_s, attempt_s = renew_interval_s(found), renew_attempt_s(found)
    assert interval_s > 0
    assert attempt_s > 0
    assert interval_s + 2 * attempt_s + stop_budget_s(found) <= ttl * (1 + 1e-9)


@given(CONFIGS, st.sampled_from([1.0, 3.0, 5.0, 10.0, 14.5]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_json_gives_settings_that_keep_the_timing_rules(
    data: dict[str, Any], minimum_ttl_s: float, patroni: bool
) -> None:
    found, warnings = parse_settings(data, minimum_ttl_s, patroni)
    check_timings(found, minimum_ttl_s, patroni)
    assert found.maximum_lag_on_failover_bytes >= 0
    assert all("\n" not in warning and len(warning) < 400 for warning in warnings)


@given(TIMINGS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_timings_are_made_to_fit(data: dict[str, Any], patroni: bool) -> None:
    found, _ = parse_settings(data, 3.0, patroni)
    check_timings(found, 3.0, patroni)


@given(TIMINGS)
@settings(max_examples=100, deadline=None)
def test_timings_a_local_file_may_have_are_taken_as_they_stand(data: dict[str, Any]) -> None:
    problems, _ = validate_dynamic(data, 3.0, timings_must_fit=True)
    found, warnings = parse_settings(data, 3.0, False)
    assert bool(problems) == bool(warnings)
    if not problems:
        for key, used in (("ttl", found.ttl_s), ("loop_wait", found.loop_wait_s)):
            assert key not in data or math.isclose(float(data[key]), used, abs_tol=0.5)


@given(CONFIGS)
@settings(max_examples=100, deadline=None)
def test_parsing_is_settled_by_what_it_gives(data: dict[str, Any]) -> None:
    """Every agent that writes back what it uses would read the same."""
    found, _ = parse_settings(data, 3.0, False)
    timed = {"ttl": found.ttl_s, "loop_wait": found.loop_wait_s, "retry_timeout": found.retry_timeout_s}
    again, warnings = parse_settings({**data, **timed}, 3.0, False)
    assert (again.ttl_s, again.loop_wait_s, again.retry_timeout_s) == tuple(timed.values())
    assert not any(w.startswith(("ttl", "loop_wait", "retry_timeout")) for w in warnings)


OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


def _without_nulls(value: Any) -> bool:
    if isinstance(value, dict):
        return all(v is not None and _without_nulls(v) for v in value.values())
    return True


@given(OBJECTS, OBJECTS)
@settings(max_examples=100, deadline=None)
def test_a_patch_does_what_it_says_and_only_that(old: dict[str, Any], patch: dict[str, Any]) -> None:
    before = repr((old, patch))
    merged = merge_patch(old, patch)
    assert repr((old, patch)) == before
    assert all(merged[key] is old[key] for key in old if key not in patch)
    assert all((key in merged) == (patch[key] is not None) for key in patch)
    # NaN is not equal to itself, hence repr; what is merged twice is merged once.
    assert repr(merge_patch(merged, patch)) == repr(merged)
