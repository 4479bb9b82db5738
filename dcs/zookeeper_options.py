"""What the `zookeeper:` section of the configuration says, checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcs.errors import DcsConfigError
from dcs.options import flag, text

DEFAULT_PORT = 2181
#: Letters of a permission, as ZooKeeper's tools write them, and ALL.
PERMISSIONS = ("CREATE", "READ", "WRITE", "DELETE", "ADMIN")


@dataclass(frozen=True)
class ZooKeeperOptions:
    """How to reach ZooKeeper. `base_path` is the cluster's path there, for example "/service/batman"."""

    hosts: str = f"127.0.0.1:{DEFAULT_PORT}"
    use_ssl: bool = False
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
    verify: bool = True
    #: (scheme, principal, permissions) of every key that is made; nothing: open to all.
    acls: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    #: (scheme, credential)
    auth_data: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    base_path: str = "/service/test"


def options_from_section(section: Mapping[str, Any]) -> ZooKeeperOptions:
    """The options of a `zookeeper:` section. Raises DcsConfigError naming the key."""
    return ZooKeeperOptions(
        hosts=_hosts(section.get("hosts")),
        use_ssl=flag(section, "zookeeper", "use_ssl", False),
        cacert=text(section, "zookeeper", "cacert"),
        cert=text(section, "zookeeper", "cert"),
        key=text(section, "zookeeper", "key"),
        key_password=text(section, "zookeeper", "key_password"),
        verify=flag(section, "zookeeper", "verify", True),
        acls=_acls(section.get("set_acls")),
        auth_data=tuple((str(k), str(v)) for k, v in _mapping(section, "auth_data").items()),
    )


def _hosts(value: object) -> str:
    """kazoo's form: host:port, comma between."""
    items = [part.strip().strip("'\"") for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(i, str) and i.strip() for i in items):
        raise DcsConfigError(f"zookeeper.hosts: host:port or a list of them is needed, not {value!r}")
    if not items:
        raise DcsConfigError("zookeeper.hosts: names no server")
    return ",".join(_with_port(item.strip()) for item in items)


def _with_port(item: str) -> str:
    bare = item.rpartition("]")[2] if item.startswith("[") else item
    if ":" not in bare:
        return f"{item}:{DEFAULT_PORT}"
    host, _, port = item.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or (":" in host and host[0] != "["):
        raise DcsConfigError(f"zookeeper.hosts: {item!r} is not host:port")
    return item


def _acls(value: object) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise DcsConfigError("zookeeper.set_acls: principals with their permissions are needed")
    return tuple(_acl(str(principal), permissions) for principal, permissions in value.items())


def _acl(principal: str, permissions: object) -> tuple[str, str, tuple[str, ...]]:
    given = permissions if isinstance(permissions, list | tuple) else [permissions]
    names = tuple(str(p).upper() for p in given)
    wrong = [name for name in names if name not in (*PERMISSIONS, "ALL")]
    if wrong or not names:
        allowed = ", ".join((*PERMISSIONS, "ALL"))
        raise DcsConfigError(f"zookeeper.set_acls.{principal}: {wrong or names} is none of {allowed}")
    scheme, colon, rest = principal.partition(":")
    # A certificate's subject, unless another scheme is named before a colon.
    named = colon and scheme.isalnum() and "=" not in scheme
    return (scheme, rest, names) if named else ("x509", principal, names)


def _mapping(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = section.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DcsConfigError(f"zookeeper.{name}: schemes with their credentials are needed")
    return value
