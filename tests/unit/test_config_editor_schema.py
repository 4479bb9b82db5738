"""The JSON Schema for editors: up to date, never narrower than the validator, and it sees misspelt names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from haagent.config.editor_schema import editor_schema
from haagent.config.generate import Host, sample
from haagent.config.schema import DYNAMIC, KEYS, Key

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA: dict[str, Any] = json.loads(editor_schema())

#: What YAML may give for a value.
VALUES: list[Any] = [
    None, "", "a", "on", "OFF", "True", "debug", "INFO", "json", "none", "0", "1", "7", "12kB", "30min", "/x",
    "h:1", "*:5432", "a,b:1", "http://h:1", "https://u:p@h", True, False, 0, 1, 3, 20, 5000, 0o644, 1.5,
    [], ["a"], ["a", 1, True], ["h:1"], [{"a": 1}, "b"], [{"a": None}], {}, {"a": 1}, {"a": None}, {"a": "b"},
    {"a": {"b": 1}},
]  # fmt: skip


def faults(file: object) -> list[str]:
    return [f"{e.json_path} {e.message}" for e in jsonschema.Draft7Validator(SCHEMA).iter_errors(file)]


def test_the_committed_schema_is_up_to_date() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    written = (CONFIGS / "haagent.schema.json").read_text()
    assert written == editor_schema(), "run: haagent config schema > configs/haagent.schema.json"


@pytest.mark.parametrize("key", [*KEYS.values(), *DYNAMIC.values()], ids=lambda key: key.path)
def test_what_the_validator_takes_the_schema_takes(key: Key) -> None:
    place = "bootstrap.dcs." if key.path in DYNAMIC and key.path not in KEYS else ""
    for value in VALUES:
        if value is not None:
            try:
                key.type.parse(value)
            except (ValueError, TypeError):
                continue
        if key.path in ("bootstrap.dcs", "postgresql"):
            continue  # keys of their own
        assert faults(nested(place + key.path, value)) == []


def nested(path: str, value: object) -> object:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", ["haagent.yml", "haagent-local.yml", "haagent-pgbackrest.yml"])
def test_the_examples_name_the_schema_and_fit_it(name: str) -> None:
    text = (CONFIGS / name).read_text()
    assert text.startswith("# yaml-language-server: $schema=haagent.schema.json\n")
    assert faults(yaml.safe_load(text)) == []


def test_a_generated_file_fits() -> None:
    assert faults(sample(Host("n0", "10.0.0.1", "/usr/bin", "/var/lib/postgresql"))) == []


def test_sections_of_other_programs_may_stand_in_it() -> None:
    pg = {"create_replica_methods": ["wal_e"], "wal_e": {"command": "x"}}
    assert faults({"postgresql": pg, "consul": {"host": "a"}}) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scop", "main"),
        ("postgresql.parameter", 1),
        ("postgresql.authentication.superuser.pasword", "x"),
        ("bootstrap.dcs.loop_wiat", 10),
        ("bootstrap.dcs.postgresql.use_pg_rewnd", True),
        ("bootstrap.dcs.ttl", 1),
        ("restapi.verify_client", "always"),
        ("postgresql.use_pg_rewind", "perhaps"),
        ("log.level", "LOUD"),
        ("postgresql.parameters", ["work_mem"]),
    ],
)
def test_mistakes_are_seen(path: str, value: object) -> None:
    assert len(faults(nested(path, value))) == 1
