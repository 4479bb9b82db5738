"""From a backend's name and its section of the configuration to a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dcs.api import Dcs
from dcs.errors import DcsConfigError
from dcs.table import cluster_path

#: Sections that can be used, in the order in which they are looked for.
BACKENDS = ("consul", "etcd3", "zookeeper", "local")


def make_dcs(backend: str, section: Mapping[str, Any], namespace: str, scope: str, member: str = "") -> Dcs:
    """A client of cluster `namespace`/`scope`, for `member` where it is an agent. Connects to nothing yet.
    Raises DcsConfigError."""
    if not isinstance(section, Mapping):
        raise DcsConfigError(f"{backend}: a section with keys is needed, not {type(section).__name__}")
    # Imported on demand: an agent loads the libraries of its own backend only.
    if backend == "etcd3":
        from dcs.etcd3 import Etcd3Dcs, options_from_section

        base_path = cluster_path(namespace, scope)
        return Etcd3Dcs(replace(options_from_section(section), base_path=base_path))
    if backend == "consul":
        from dcs.consul import ConsulDcs
        from dcs.consul import options_from_section as consul_options

        named = f"{scope}-{member}" if member else f"haagentctl-{scope}"
        path = cluster_path(namespace, scope).lstrip("/")
        return ConsulDcs(replace(consul_options(section), base_path=path, scope=scope, session_name=named))
    if backend == "zookeeper":
        from dcs.zookeeper import ZooKeeperDcs
        from dcs.zookeeper import options_from_section as zookeeper_options

        return ZooKeeperDcs(replace(zookeeper_options(section), base_path=cluster_path(namespace, scope)))
    if backend == "local":
        from dcs.local import LocalDcs, local_path

        return LocalDcs(local_path(section), namespace, scope)
    raise DcsConfigError(f"{backend}: not supported; one of {', '.join(BACKENDS)} is needed")
