"""Changing the dynamic configuration: patches as REST and ctl send them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with `patch` merged in: null removes a key, mappings merge, anything else replaces.

    Neither argument is changed; mappings in the result are new, other values are shared.
    """
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge_patch(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """A whole new configuration (PUT): nulls ask for nothing."""
    return merge_patch({}, data)
