"""A configuration as people may see it: the tree as read, every secret masked. Pure.

Patroni prints passwords here. We do not: what is printed ends in terminals, tickets and CI logs, and the
question asked ("what came out of my files and variables?") needs to know only that a password is set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from haagent.config.check import FIXME, MASK, without_login
from haagent.config.schema import KEYS

#: Names that mean a secret wherever they stand: sections of other programs are in the file, too.
_SECRET_NAME = re.compile(r"(?i)(password|passwd|passphrase|secret|token|auth_data)$")
_IN_CONNINFO = re.compile(r"(?i)\b((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)")


def masked(value: Any, path: str = "") -> Any:
    """`value`, which stands at `path`, without secrets. Empty ones stay: they are none."""
    if path and is_secret(path):
        return value if value in (None, "", FIXME) else MASK
    if isinstance(value, Mapping):
        return {key: masked(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(inner, f"{path}.") for inner in value]
    if isinstance(value, str):
        return without_login(_IN_CONNINFO.sub(rf"\g<1>{MASK}", value))
    return value


def is_secret(path: str) -> bool:
    """The value at this path is one; of a name that is no key of ours, by what it means."""
    key = KEYS.get(path)
    return key.secret if key is not None else bool(_SECRET_NAME.search(path))


def as_yaml(data: Mapping[str, Any]) -> str:
    """YAML text in the order of `data`."""
    return str(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110))
