"""Sections with names of people's own: ways to make a replica, and a new cluster (contract 5.6, 6.4).

What is not a switch of ours is passed to the program as `--key=value`, just as it stands in the file.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from haagent.config import values as v
from haagent.config.check import Checked
from haagent.config.schema import KEYS, SECTIONS
from haagent.config.types import BootstrapMethod, ReplicaMethod
from haagent.core.settings import is_scalar, parse_bool

BASEBACKUP = "basebackup"
INITDB = "initdb"
#: Not passed on, where the program wants none of the agent's arguments (contract 6.4).
_SWITCHES = ("no_params", "no_leader", "keep_data")


# --- replicas -------------------------------------------------------------------------------------


def replica_methods(checked: Checked) -> tuple[ReplicaMethod, ...]:
    """Those to try, in order."""
    path = "postgresql.create_replica_methods"
    old = checked.values.get("postgresql.create_replica_method")
    return methods_named(checked, checked.values.get(path) or old or checked.get(path), path)


def methods_named(checked: Checked, names: Iterable[str], listed_at: str) -> tuple[ReplicaMethod, ...]:
    """What the sections of these names say; `listed_at` is the key that names them."""
    return tuple(found for name in names if (found := _replica_method(checked, name, listed_at)) is not None)


def _replica_method(checked: Checked, name: str, listed_at: str) -> ReplicaMethod | None:
    if name == BASEBACKUP:
        return ReplicaMethod(BASEBACKUP)
    path = f"postgresql.{name}"
    if path in KEYS or path in SECTIONS:
        checked.refuse(listed_at, name, f"has the name of another key: {path}")
        return None
    section = dict(checked.values.get(path, {}))
    command = _command(checked, path, section.pop("command", name))
    switches = _switches(checked, path, section, _SWITCHES)
    if command is None or switches is None or not _are_scalars(checked, path, section):
        return None
    if switches["no_params"]:
        section = {key: value for key, value in section.items() if key not in _SWITCHES}
    return ReplicaMethod(name, command, MappingProxyType(section), **switches)


# --- a new cluster --------------------------------------------------------------------------------


def bootstrap_method(checked: Checked) -> BootstrapMethod | None:
    """None: initdb."""
    name = checked.get("bootstrap.method")
    if name in (None, INITDB):
        return None
    path = f"bootstrap.{name}"
    if path in KEYS or path in SECTIONS:
        checked.refuse("bootstrap.method", name, f"has the name of another key: {path}")
        return None
    section = dict(checked.values.get(path, {}))
    if section.get("command") is None:
        why = f"must name a section with a command: {path}.command is missing"
        checked.refuse("bootstrap.method", name, why)
        return None
    command = _command(checked, path, section.pop("command"))
    switches = _switches(checked, path, section, ("no_params", "keep_existing_recovery_conf"))
    recovery = _recovery_conf(checked, path, section.pop("recovery_conf", None))
    arguments = {k: value for k, value in section.items() if k not in (*(switches or ()), "scope", "datadir")}
    if command is None or switches is None or not _are_scalars(checked, path, arguments):
        return None
    return BootstrapMethod(name, command, MappingProxyType(arguments), recovery_conf=recovery, **switches)


def _recovery_conf(checked: Checked, path: str, value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(is_scalar(inner) for inner in value.values()):
        checked.refuse(f"{path}.recovery_conf", value, "must be a mapping of names to single values")
        return None
    return MappingProxyType({str(k): v.text(inner) for k, inner in value.items()})


# --- both -----------------------------------------------------------------------------------------


def _command(checked: Checked, path: str, value: object) -> str | None:
    try:
        if isinstance(value, str) and shlex.split(value):
            return value
    except ValueError:
        pass
    checked.refuse(f"{path}.command", value, "must be a command line, with its quotes in pairs")
    return None


def _switches(
    checked: Checked, path: str, section: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, bool] | None:
    found = {name: parse_bool(section.get(name, False)) for name in names}
    for name, value in found.items():
        if value is None:
            checked.refuse(f"{path}.{name}", section[name], "must be on or off")
    known = {name: value for name, value in found.items() if value is not None}
    return known if len(known) == len(found) else None


def _are_scalars(checked: Checked, path: str, section: Mapping[str, Any]) -> bool:
    wrong = [name for name, value in section.items() if not is_scalar(value) or "\0" in str(value)]
    for name in wrong:
        checked.refuse(f"{path}.{name}", section[name], "must be a single value")
    return not wrong
