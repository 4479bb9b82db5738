"""The members' configurations: production's own loader on a YAML text, once per member and process."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haagent.config.load import load
from haagent.config.schema import CALLBACKS
from haagent.config.sources import Environment
from haagent.config.types import AgentConfig, BootstrapMethod

SCOPE = "sim"
REST_PORT = 8008
POSTGRES_PORT = 5432
#: Never touched: the data directories are simulated.
_ROOT = "/tmp/simulated"


def node_names(count: int) -> tuple[str, ...]:
    return tuple(f"pg{i}" for i in range(count))


def data_dir(name: str) -> str:
    return f"{_ROOT}/{name}"


@functools.lru_cache(maxsize=256)
def _config(name: str, tags: str, watchdog: str) -> AgentConfig:
    # A JSON document is YAML. bin_dir only has to hold a script; it is never run.
    document = {
        "scope": SCOPE,
        "name": name,
        "restapi": {"listen": f"{name}:{REST_PORT}", "connect_address": f"{name}:{REST_PORT}"},
        "local": {"path": f"{_ROOT}/dcs.sqlite"},
        "postgresql": {
            "listen": f"{name}:{POSTGRES_PORT}",
            "connect_address": f"{name}:{POSTGRES_PORT}",
            "data_dir": data_dir(name),
            "bin_dir": "/usr/bin",
            "bin_name": {"postgres": "ldd"},
            "callbacks": dict.fromkeys(CALLBACKS, "callback"),
            "authentication": {
                "superuser": {"username": "postgres"},
                "replication": {"username": "replicator"},
            },
        },
        "tags": json.loads(tags),
        "watchdog": {"mode": watchdog, "safety_margin": -1},
    }
    return load(None, Environment({}, json.dumps(document)))


def agent_config(
    name: str,
    tags: Mapping[str, Any],
    dynamic: Mapping[str, Any],
    watchdog: str = "off",
    restored: bool = False,
) -> AgentConfig:
    """The configuration of member `name`; `dynamic` is what a new cluster is bootstrapped with, which is made
    by initdb, or `restored` from the backup."""
    config = _config(name, json.dumps(tags, sort_keys=True), watchdog)
    # Put in afterwards: it differs in every schedule, and reading YAML would cost more than an election.
    dcs = json.loads(json.dumps(dynamic, sort_keys=True))
    method = BootstrapMethod("restore", "restore") if restored else None
    return replace(config, bootstrap=replace(config.bootstrap, dcs=dcs, method=method))
