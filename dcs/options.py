"""Single values of a DCS section, checked. Pure. Raises DcsConfigError naming section and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcs.errors import DcsConfigError

_TRUE, _FALSE = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


def text(section: Mapping[str, Any], backend: str, name: str) -> str | None:
    """None when it is absent or empty."""
    value = section.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DcsConfigError(f"{backend}.{name}: a text is needed, not {value!r}")
    return value


def flag(section: Mapping[str, Any], backend: str, name: str, default: bool) -> bool:
    """On or off, as YAML or as the text of an environment variable."""
    value = section.get(name)
    if value is None:
        return default
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise DcsConfigError(f"{backend}.{name}: {value!r} is neither on nor off")
