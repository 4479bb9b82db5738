"""Which value of a key is in force, and why that one (contract 5.1). Pure: the sources are read already.

Rules. Of a local key: variable, file, default. Of a key of `postgresql` that may stand in the DCS: variable,
file, DCS, default; but `use_slots` and the protected parameters from the DCS only. Of a dynamic key: DCS,
default. A value that is set somewhere and loses is told with the reason. Secrets are masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from haagent.config.check import MASK
from haagent.config.schema import DYNAMIC, KEYS, OVERLAYS, SECTIONS, Key, Status
from haagent.config.shown import masked
from haagent.config.sources import PREFIXES, Tree
from haagent.core.settings import nearest, parse_settings
from postgres_ctl.gucs import AGENT_OWNED, PROTECTED

_PARAMETERS = "postgresql.parameters"
#: Where the dynamic configuration stands while there is no cluster.
BOOTSTRAP = "bootstrap.dcs"
#: Keys of the DCS that are no key of their own in the local file, but in `bootstrap.dcs`.
_ONLY_DYNAMIC = tuple(name for name in DYNAMIC if name != "postgresql")
_OWNED_BY = {"listen_addresses": "postgresql.listen", "port": "postgresql.listen", "cluster_name": "scope"}


@dataclass(frozen=True)
class Dynamic:
    """The dynamic configuration, and where it was found."""

    data: Mapping[str, Any]
    #: "the DCS", "/data/patroni.dynamic.json", "bootstrap.dcs".
    where: str
    minimum_ttl_s: float = 3.0


@dataclass(frozen=True)
class Explained:
    """One key. `source`: environment, file, dynamic, default or agent (set by the agent itself)."""

    key: str
    value: Any
    source: str
    #: Variable, file and line, or where the dynamic configuration was found; "" for a default.
    where: str
    #: "reload", "start" of the agent, or "at once" when the DCS changes.
    takes_effect: str
    meaning: str
    status: str
    #: What else is to be said: adjusted, set elsewhere without effect.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unknown:
    """No such key."""

    key: str
    did_you_mean: str | None


@dataclass(frozen=True)
class _Found:
    value: Any
    where: str
    source: str = field(default="")


def explain(name: str, local: Tree, dynamic: Dynamic) -> list[Explained] | Unknown:
    """`name`, or every key that is set in the section `name`."""
    name = name.strip(".")
    if name and name in SECTIONS and name not in KEYS:
        inside = (path for path in KEYS if path.startswith(f"{name}."))
        told = [_local(path, KEYS[path], local, dynamic) for path in inside]
        return [one for one in told if one.source != "default"]
    if name.removeprefix(f"{BOOTSTRAP}.") in _ONLY_DYNAMIC:
        return [_dynamic(name.removeprefix(f"{BOOTSTRAP}."), local, dynamic)]
    path = name.removeprefix(f"{BOOTSTRAP}.")
    key = _known(path)
    if key is None:
        return Unknown(name, nearest(path, [*KEYS, *_ONLY_DYNAMIC, *SECTIONS]) or _by_last_part(path))
    return [_local(path, key, local, dynamic)]


def _known(path: str) -> Key | None:
    """The key at `path`, or the mapping whose entry it is (`postgresql.parameters.work_mem`)."""
    if path in KEYS:
        return KEYS[path]
    parents = (path[:i] for i, c in enumerate(path) if c == ".")
    found = next((KEYS[parent] for parent in parents if parent in KEYS), None)
    holds_names = found is not None and (found.type.json.get("type") == "object" or not found.type.json)
    return found if holds_names else None


def _by_last_part(path: str) -> str | None:
    """`pg_hbaa` -> `postgresql.pg_hba`."""
    by_name = {known.rpartition(".")[2]: known for known in reversed(KEYS)}
    found = nearest(path.rpartition(".")[2], by_name)
    return by_name[found] if found else None


# --- a key of the local file --------------------------------------------------------------------


def _local(path: str, key: Key, local: Tree, dynamic: Dynamic) -> Explained:
    here, there, notes = _in_tree(path, local), _in_dynamic(path, key, local, dynamic), []
    parameter = path.removeprefix(f"{_PARAMETERS}.").lower() if path.startswith(f"{_PARAMETERS}.") else ""
    if parameter in AGENT_OWNED:
        return _told(path, key, _Found(None, _OWNED_BY[parameter], "agent"), _losers(here, there))
    if path == "postgresql.use_slots" or parameter in PROTECTED:
        notes += ["taken from the DCS only", *_losers(here)]
        here = None
    default = _Found(_default(path, key, parameter), "", "default")
    if here and there:
        notes.append(f"{there.where} has {_show(path, there.value)}: the local value wins")
    notes += _overlaid(parameter, local, dynamic) if parameter else []
    return _told(path, key, here or there or default, notes)


def _overlaid(parameter: str, local: Tree, dynamic: Dynamic) -> list[str]:
    """What the parameter is instead while the member has a role."""
    if parameter in PROTECTED:
        return []
    notes = []
    for role in OVERLAYS:
        path = f"{_PARAMETERS}_{role}.{parameter}"
        key = KEYS[f"{_PARAMETERS}_{role}"]
        found = _in_tree(path, local) or _in_dynamic(path, key, local, dynamic)
        if found:
            notes.append(f"{found.value} while {role.replace('_', ' ')} ({found.where})")
    return notes


def _losers(*found: _Found | None) -> list[str]:
    return [f"ignored: the value in {one.where}" for one in found if one]


def _default(path: str, key: Key, parameter: str) -> Any:
    if parameter in PROTECTED:
        return PROTECTED[parameter][0]
    return key.default if path == key.path else None


def _told(path: str, key: Key, found: _Found, notes: list[str]) -> Explained:
    takes_effect = "reload" if key.reload else "start"
    if found.source == "dynamic":
        takes_effect = "at once" if key.reload else "start"
    status = "" if key.status is Status.BUILT else str(key.status.value)
    value = MASK if key.secret and found.value not in (None, "") else masked(found.value, path)
    return Explained(path, value, found.source, found.where, takes_effect, key.meaning, status, tuple(notes))


def _show(path: str, value: Any) -> str:
    key = KEYS.get(path)
    return MASK if key is not None and key.secret else str(masked(value, path))


def _in_tree(path: str, local: Tree) -> _Found | None:
    value = _dig(local.data, path)
    if value is None:
        return None
    where = _origin(path, local.origins)
    return _Found(value, where, "environment" if where.startswith(PREFIXES) else "file")


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """A variable that holds a whole mapping hides the file's lines below it."""
    places = [path[:i] for i, c in enumerate(path) if c == "."] + [path]
    named = [origins[place] for place in places if place in origins]
    variables = [where for where in named if where.startswith(PREFIXES) and " line " not in where]
    return (variables or named[-1:] or ["the file"])[-1]


def _in_dynamic(path: str, key: Key, local: Tree, dynamic: Dynamic) -> _Found | None:
    value = _dig(dynamic.data, path) if key.dynamic else None
    return None if value is None else _Found(value, _place(path, local, dynamic), "dynamic")


def _place(path: str, local: Tree, dynamic: Dynamic) -> str:
    """Where `path` of the dynamic configuration stands."""
    if dynamic.where != BOOTSTRAP:
        return dynamic.where
    return f"{BOOTSTRAP}, {_origin(f'{BOOTSTRAP}.{path}', local.origins)}"


def _dig(data: Any, path: str) -> Any:
    """The value at `path`; names with dots in them (`pg_stat_statements.max`) are found, too."""
    if not isinstance(data, Mapping):
        return None
    if path in data:
        return data[path]
    for i in _dots(path):
        if path[:i] in data:
            return _dig(data[path[:i]], path[i + 1 :])
    return None


def _dots(path: str) -> Iterator[int]:
    return (i for i, c in enumerate(path) if c == ".")


# --- a key of the dynamic configuration ---------------------------------------------------------


def _dynamic(name: str, local: Tree, dynamic: Dynamic) -> Explained:
    """A key that only the DCS has; what the agent makes of it may be another value."""
    key, notes = DYNAMIC[name], []
    settings, warnings = parse_settings(dynamic.data, dynamic.minimum_ttl_s, patroni_in_cluster=False)
    given = dynamic.data.get(name)
    in_force = [getattr(settings, f"{name}{unit}", None) for unit in ("", "_s", "_bytes")]
    value = next((one for one in in_force if one is not None), given)
    notes += [warning for warning in warnings if warning.startswith(name) or f" {name} " in warning]
    if name in local.data:
        notes.append(f"ignored: the value in {_origin(name, local.origins)} (only from the DCS)")
    if dynamic.where != BOOTSTRAP and _dig(local.data, f"{BOOTSTRAP}.{name}") is not None:
        where = _origin(f"{BOOTSTRAP}.{name}", local.origins)
        notes.append(f"not used any more: {where}, the cluster exists")
    found = ("default", "") if given is None else ("dynamic", _place(name, local, dynamic))
    status = "" if key.status is Status.BUILT else str(key.status.value)
    return Explained(name, masked(value, name), *found, "at once", key.meaning, status, tuple(notes))
