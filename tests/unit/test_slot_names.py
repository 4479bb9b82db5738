"""Slot names (contract 6.2)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgres_ctl.facts import slot_name


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("pg0", "pg0"),
        ("PG-0.Example", "pg_0_example"),
        ("a$b c", "au0036bu0032c"),
        ("ünï", "u0252nu0239"),
        ("snow☃", "snowu9731"),
        ("𝄞", "u119070"),
        ("x" * 80, "x" * 63),
    ],
)
def test_slot_name_of_a_member(member: str, expected: str) -> None:
    assert slot_name(member) == expected


@given(st.text(min_size=1))
def test_slot_name_is_always_one_postgresql_takes(member: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]{1,63}", slot_name(member))
    assert slot_name(slot_name(member)) == slot_name(member)
