"""`load(path)`: the local configuration, complete and checked, or every reason why not.

Two steps: `check` types each value by the table; here the values are put together, with the checks that
need more than one of them or the machine (programs, directories). Problems are collected, never raised
one by one. Loading is repeatable: a reload calls it again with the same environment.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from types import MappingProxyType

from haagent.config import values as v
from haagent.config.check import Checked, check
from haagent.config.postgres import check_machine, postgres_config
from haagent.config.schema import KEYS
from haagent.config.sections import (
    bootstrap_config,
    ctl_config,
    dcs_section,
    log_config,
    member_tags,
    restapi_config,
    watchdog_config,
)
from haagent.config.shown import is_secret
from haagent.config.sources import Environment, Tree, problem, read_path, read_yaml, take_environment
from haagent.config.types import AgentConfig, ConfigErrors


@functools.cache
def process_environment() -> Environment:
    """The variables of this process, read and removed at the first call."""
    return take_environment(os.environ)


def load(path: str | None, environment: Environment | None = None) -> AgentConfig:
    """The configuration of the file or directory `path` under the environment variables.

    Without `path`, of the variables alone. Raises ConfigErrors.
    """
    config, checked = judge(read(path, environment or process_environment()), path)
    if config is None or checked.problems:
        raise ConfigErrors(tuple(checked.problems), tuple(checked.warnings))
    return config


def judge(tree: Tree, path: str | None) -> tuple[AgentConfig | None, Checked]:
    """What `tree` amounts to: the configuration (None when a part is missing), and all that was found."""
    checked = check(tree)
    return _build(checked, path), checked


def read(path: str | None, environment: Environment) -> Tree:
    """File and variables, one over the other. Raises ConfigErrors for what is no YAML mapping."""
    if path is not None:
        tree = read_path(path)
    elif environment.document is not None:
        return read_yaml(environment.document, "HAAGENT_CONFIGURATION")
    elif environment.values:
        tree = Tree()
    else:
        raise problem("configuration", "is missing: name a file, a directory, or set HAAGENT_* variables")
    environment.overlay(tree)
    return tree


def _build(checked: Checked, path: str | None) -> AgentConfig | None:
    """Everything put together; None when a part without a default is missing."""
    get = checked.get
    dcs = dcs_section(checked)
    restapi = restapi_config(checked)
    bootstrap = bootstrap_config(checked, dcs)
    tags = member_tags(checked)
    log = log_config(checked)
    postgresql = postgres_config(checked)
    check_machine(checked)
    if dcs is None or restapi is None or postgresql is None or not get("scope") or not get("name"):
        return None
    secrets = {str(value) for p, value in checked.values.items() if p in KEYS and KEYS[p].secret and value}
    secrets |= _secrets_of_methods(checked)
    secrets |= {v.url_password(dcs.section.get(name, "")) for name in ("url", "proxy")} - {""}
    return AgentConfig(
        scope=get("scope"),
        name=get("name"),
        namespace=get("namespace").strip("/") or "service",
        restapi=restapi,
        ctl=ctl_config(checked),
        dcs=dcs,
        bootstrap=bootstrap,
        postgresql=postgresql,
        tags=tags,
        log=log,
        watchdog=watchdog_config(checked),
        source=path,
        warnings=tuple(checked.warnings),
        values=MappingProxyType(dict(checked.values)),
        secrets=tuple(sorted(secrets)),
    )


def _secrets_of_methods(checked: Checked) -> set[str]:
    """In sections whose keys we do not know the name tells."""
    sections = [value for p, value in checked.values.items() if p not in KEYS]
    return {str(value) for section in sections for k, value in section.items() if value and is_secret(k)}


# --- reload --------------------------------------------------------------------------------


def reload(old: AgentConfig) -> tuple[AgentConfig, tuple[str, ...], tuple[str, ...]]:
    """The file of `old` read anew: (configuration, keys that changed, keys that change at the next start).

    The latter keep their old values: half a move (another data directory, another store) would be none of
    the two. Raises ConfigErrors, and then nothing has changed.
    """
    new = load(old.source)
    changed, later = changed_keys(old, new)
    if not later:
        return new, changed, later
    values = {p: value for p, value in new.values.items() if p not in later}
    values |= {p: old.values[p] for p in later if p in old.values}
    tops = frozenset(path.partition(".")[0] for path in values)
    checked = Checked(values, tops=tops)
    kept = _build(checked, old.source)
    if kept is None or checked.problems:
        raise ConfigErrors(tuple(checked.problems), new.warnings)
    return replace(kept, warnings=new.warnings), changed, later


def changed_keys(old: AgentConfig, new: AgentConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys that differ: (those a reload puts into effect, those that need a start of the agent)."""
    paths = sorted(p for p in {*old.values, *new.values} if old.values.get(p) != new.values.get(p))
    return tuple(p for p in paths if _reloads(p)), tuple(p for p in paths if not _reloads(p))


def _reloads(path: str) -> bool:
    return KEYS[path].reload if path in KEYS else path.startswith("postgresql.")
