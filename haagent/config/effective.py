"""The section `postgresql` in force: the dynamic configuration under the local file (contract 5.1).

Local values win, key by key, and parameter by parameter, with two exceptions that all members must agree
on: `use_slots` and the protected parameters come from the DCS only. A value in the DCS that cannot be used
is ignored with a warning: it must not stop a running agent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from haagent.config.check import Checked, check_section, method_paths
from haagent.config.methods import methods_named
from haagent.config.postgres import find_bin_dir, guc_texts, is_postgres, postgres_config
from haagent.config.schema import KEYS, OVERLAYS, POSTGRESQL_LOCAL_ONLY
from haagent.config.types import AgentConfig, PostgresConfig
from haagent.core.settings import Settings
from postgres_ctl.gucs import AGENT_OWNED, OBSOLETE, PROTECTED, protected_parameters

_PARAMETERS = "postgresql.parameters"
_METHODS = ("postgresql.create_replica_methods", "postgresql.create_replica_method")
_OVERLAYS = tuple(f"{_PARAMETERS}_{role}" for role in OVERLAYS)
_OURS = frozenset((*PROTECTED, *AGENT_OWNED, *OBSOLETE))


@dataclass(frozen=True)
class EffectivePostgres:
    """What PostgreSQL is to run with."""

    #: `parameters` without the protected ones and those the agent sets itself.
    config: PostgresConfig
    #: Protected parameters (contract 5.4), all of them, from the DCS or their defaults.
    protected: Mapping[str, str]
    #: Replication slots are used; only from the DCS.
    use_slots: bool
    warnings: tuple[str, ...] = ()


def effective_postgresql(config: AgentConfig, settings: Settings) -> EffectivePostgres:
    """`settings.postgresql` under the local section. Never raises on anything a DCS may hold."""
    merged = _dynamic_part(config, settings)
    dynamic_texts = guc_texts(merged.get(_PARAMETERS))
    overlays = {p: guc_texts(merged.get(p)) for p in _OVERLAYS}
    local = {p: value for p, value in config.values.items() if p.startswith("postgresql.")}
    user = {**dynamic_texts, **guc_texts(local.get(_PARAMETERS, {}))}
    merged.values |= local
    _check_program(merged)
    merged.values[_PARAMETERS] = {k: value for k, value in user.items() if not _is_ours(k)}
    for path, texts in overlays.items():
        both = {**texts, **guc_texts(local.get(path, {}))}
        merged.values[path] = {k: value for k, value in both.items() if not _is_ours(k)}
        merged.warnings += [
            f"{path}.{name}: may not depend on the role, ignored" for name in both if _is_ours(name)
        ]
    protected, warnings = protected_parameters(dynamic_texts)
    ignored = sorted(name for name in guc_texts(local.get(_PARAMETERS, {})) if _is_ours(name))
    merged.warnings += [
        f"{_PARAMETERS}.{name}: only from the DCS, ignored in the local file" for name in ignored
    ]
    postgresql = postgres_config(merged)
    assert postgresql is not None  # the local part alone was complete
    if settings.standby_cluster is not None and settings.standby_cluster.create_replica_methods:
        names, path = (
            settings.standby_cluster.create_replica_methods,
            "standby_cluster.create_replica_methods",
        )
        postgresql = replace(postgresql, remote_methods=methods_named(merged, names, path))
    said = (*merged.warnings, *(str(p) for p in merged.problems), *warnings)
    return EffectivePostgres(postgresql, MappingProxyType(protected), settings.use_slots, said)


def _check_program(merged: Checked) -> None:
    """The fence knows PostgreSQL by its program's name: another one cannot come from the DCS either."""
    path = "postgresql.bin_name.postgres"
    name = merged.get(path)
    if name == KEYS[path].default:
        return
    program = os.path.join(merged.get("postgresql.bin_dir") or find_bin_dir(), name)
    if not is_postgres(program):
        merged.warn(f"{path}: {name} is not the program postgres: ignored")
        del merged.values[path]


def _is_ours(parameter: str) -> bool:
    return parameter.lower() in _OURS


def _dynamic_part(config: AgentConfig, settings: Settings) -> Checked:
    """The dynamic section, typed; what may not or cannot be used is left out with a warning."""
    remote = settings.standby_cluster
    named = [config.values.get(p) for p in _METHODS] + [remote.create_replica_methods if remote else ()]
    checked = Checked(methods=method_paths("postgresql", *named))
    allowed = {str(k): value for k, value in settings.postgresql.items() if k not in POSTGRESQL_LOCAL_ONLY}
    allowed["parameters"] = dict(settings.parameters)
    for name in settings.postgresql:
        if name in POSTGRESQL_LOCAL_ONLY:
            checked.warn(f"postgresql.{name}: only from the local file, ignored in the DCS")
    check_section(allowed, "postgresql", checked)
    checked.warnings += [f"{problem}: ignored" for problem in checked.problems]
    checked.problems = []
    checked.values = {p: value for p, value in checked.values.items() if not p.endswith("use_slots")}
    return checked
