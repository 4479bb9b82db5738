"""The table of keys as a JSON Schema, for editors: completion, meanings, misspelt names. Pure.

`haagent config schema` prints it; configs/haagent.schema.json is that text, held by a test. It is wider than
the validator, never narrower: a file may be one of several in a directory, so nothing is required, and what
one value means for another only `--validate-config` can tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from haagent.config.schema import BACKENDS_LATER, BACKENDS_REFUSED, DYNAMIC, KEYS, Key, Status

_STATUS = {
    Status.BUILT: "",
    Status.NO_EFFECT: " No effect.",
    Status.LATER: " Not built yet: ignored.",
    Status.REFUSED: " Not built yet: refused.",
}
#: Sections that hold sections of other programs, under names people choose.
_WITH_METHODS = ("postgresql", "bootstrap")


def editor_schema() -> str:
    """JSON text."""
    top = _tree((key.path, key) for key in KEYS.values())
    dynamic = _tree((key.path, key) for key in DYNAMIC.values())
    dynamic["postgresql"] = _tree(
        (key.path.removeprefix("postgresql."), key)
        for key in KEYS.values()
        if key.dynamic and key.path.startswith("postgresql.")
    )
    properties = _properties(top)
    properties["bootstrap"]["properties"]["dcs"] |= _object("bootstrap.dcs", dynamic)
    for name in BACKENDS_LATER:
        properties[name] = {"type": "object", "description": "Not built yet."}
    for name, hint in BACKENDS_REFUSED.items():
        properties[name] = {"description": f"Refused: {hint}"}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "haagent, the file of one member",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _tree(keys: Iterable[tuple[str, Key]]) -> dict[str, Any]:
    """`{"a": {"b": Key}}` of `("a.b", Key)`."""
    tree: dict[str, Any] = {}
    for path, key in keys:
        *parents, last = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = key
    return tree


def _properties(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    return {
        name: _key(inner) if isinstance(inner, Key) else _object(f"{path}{name}", inner)
        for name, inner in tree.items()
    }


def _object(path: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    others: object = {"type": "object"} if path.rpartition(".")[2] in _WITH_METHODS else False
    return {
        "type": ["object", "null"],
        "properties": _properties(tree, f"{path}."),
        "additionalProperties": others,
    }


def _key(key: Key) -> dict[str, Any]:
    described: dict[str, Any] = {"description": f"{key.meaning}.{_STATUS[key.status]}"}
    if key.default is not None and not key.required and key.default not in ((), {}):
        described["default"] = key.default
    return described | _or_null(key.type.json)


def _or_null(kind: Mapping[str, Any]) -> dict[str, Any]:
    """Null asks for nothing, anywhere."""
    widened = dict(kind)
    if "anyOf" in kind:
        widened["anyOf"] = [*kind["anyOf"], {"type": "null"}]
    elif "enum" in kind:
        widened["enum"] = [*kind["enum"], None]
    elif "type" in kind:
        found = kind["type"]
        widened["type"] = [*([found] if isinstance(found, str) else found), "null"]
    return widened
