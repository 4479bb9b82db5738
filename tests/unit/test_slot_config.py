"""`slots` and `ignore_slots`: what they mean, and what is said about a wrong one (contract 6.3)."""

from __future__ import annotations

from typing import Any

import pytest

from haagent.core.settings import parse_settings, validate_dynamic
from haagent.core.slot_config import PermanentSlot, SlotMatcher

LOGICAL = {"database": "app", "plugin": "pgoutput"}


def parsed(**data: Any) -> dict[str, PermanentSlot]:
    return dict(parse_settings(data, 3, False)[0].permanent_slots)


@pytest.mark.parametrize("value", [None, {}, "", {"type": "physical"}, {"database": "app"}])
def test_a_slot_is_physical(value: object) -> None:
    assert parsed(slots={"archive": value}) == {"archive": PermanentSlot("archive")}


@pytest.mark.parametrize("value", [LOGICAL, {**LOGICAL, "type": "logical"}])
def test_or_logical_with_database_and_plugin(value: object) -> None:
    assert parsed(slots={"cdc": value}) == {"cdc": PermanentSlot("cdc", "logical", "app", "pgoutput")}


def test_it_may_belong_to_one_type_of_cluster() -> None:
    assert parsed(slots={"a": {"cluster_type": "standby"}})["a"].cluster_type == "standby"


def test_old_names_win_as_they_do_in_patroni() -> None:
    data = {"slots": {"a": None}, "permanent_slots": {"b": None}, "permanent_replication_slots": {"c": None}}
    assert set(parsed(**data)) == {"c"}
    assert set(parsed(slots={"a": None}, permanent_slots={})) == {"a"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"slots": ["a"]}, "slots ['a'] must be a mapping of slot names"),
        (
            {"slots": {"Big": None}},
            "slots.Big is no name of a slot: lower case letters, digits and _, 63 at most",
        ),
        ({"slots": {"a" * 64: None}}, f"slots.'{'a' * 64}' is no name of a slot"),
        ({"slots": {"a\nb": None}}, r"slots.'a\nb' is no name of a slot"),
        ({"slots": {"a": 5}}, "slots.a 5 must be a mapping with type, database, plugin, cluster_type"),
        (
            {"permanent_slots": {"a": {"type": "magic"}}},
            "permanent_slots.a.type 'magic' must be physical or log",
        ),
        ({"slots": {"a": {"type": "logical", "plugin": "x"}}}, "slots.a.database None must be a name"),
        ({"slots": {"a": {**LOGICAL, "plugin": 7}}}, "slots.a.plugin 7 must be a name"),
        ({"slots": {"a": {"cluster_type": "big"}}}, "slots.a.cluster_type 'big' must be primary or standby"),
        ({"ignore_slots": {"name": "a"}}, "ignore_slots {'name': 'a'} must be a list of mappings with name"),
        ({"ignore_slots": ["a"]}, "ignore_slots[0] 'a' must be a mapping with any of name, type, database"),
        ({"ignore_slots": [{"nam": "a"}]}, "ignore_slots[0].nam 'a' is not known: a matcher has name, type"),
        ({"ignore_slots": [{"name": ["a"]}]}, "ignore_slots[0].name ['a'] must be a text"),
        ({"ignore_slots": [{"type": "fast"}]}, "ignore_slots[0].type 'fast' must be physical or logical"),
    ],
)
def test_a_wrong_one_is_refused_by_key_and_value(data: dict[str, Any], said: str) -> None:
    """From the store it is left out, and then nothing is called unknown."""
    problems, _ = validate_dynamic(data, 3)
    assert len(problems) == 1
    assert str(problems[0]).startswith(said)
    settings, warnings = parse_settings(data, 3, False)
    assert settings.slots_unclear
    assert not settings.permanent_slots
    assert not settings.ignore_slots
    assert any(w.startswith(said) for w in warnings)


def test_the_rest_is_used() -> None:
    settings, _ = parse_settings(
        {"slots": {"a": None, "B": None}, "ignore_slots": [{"name": "x"}, 7]}, 3, False
    )
    assert set(settings.permanent_slots) == {"a"}
    assert settings.slots_unclear
    assert settings.ignore_slots == (SlotMatcher(name="x"),)
