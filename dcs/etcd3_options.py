"""What the `etcd3:` section of the configuration says, checked and resolved. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from dcs.errors import DcsConfigError

DEFAULT_PORT = 2379


@dataclass(frozen=True)
class Etcd3Options:
    """How to reach etcd. `base_path` is the cluster's path there, for example "/service/batman"."""

    endpoints: tuple[str, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    base_path: str = "/service/test"
    #: Domain whose SRV records name the servers, and a part of their names; `endpoints` is empty then.
    srv: str | None = None
    srv_suffix: str | None = None


def options_from_section(section: Mapping[str, Any]) -> Etcd3Options:
    """The options of an `etcd3:` section; `base_path` keeps its default. Raises DcsConfigError."""
    username, password = _text(section, "username"), _text(section, "password")
    url = _text(section, "url") or _text(section, "proxy")
    srv = None
    if url:
        endpoints, from_url = _from_url(url)
        username, password = username or from_url[0], password or from_url[1]
    elif section.get("hosts") or section.get("host"):
        endpoints = _from_hosts(section)
    else:
        endpoints, srv = (), _text(section, "srv")
        if srv is None:
            raise DcsConfigError("etcd3: one of host, hosts, url, proxy, srv is needed")
    if (username is None) != (password is None):
        raise DcsConfigError("etcd3.username, etcd3.password: both or none are needed")
    cert, key_file = _text(section, "cert"), _text(section, "key")
    if key_file and not cert:
        raise DcsConfigError("etcd3.key: needs etcd3.cert as well")
    return Etcd3Options(
        endpoints,
        username,
        password,
        _text(section, "cacert"),
        cert,
        key_file,
        srv=srv,
        srv_suffix=_text(section, "srv_suffix") if srv else None,
    )


def server_parts(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of an endpoint url. Raises DcsConfigError."""
    parts = _split("url", url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DcsConfigError(f"etcd3.url: {_without_secrets(url)!r} is not http(s)://host:port")
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORT


def _from_url(url: str) -> tuple[tuple[str, ...], tuple[str | None, str | None]]:
    scheme, host, port = server_parts(url)
    parts = urlsplit(url)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise DcsConfigError(f"etcd3.url: {_without_secrets(url)!r} may not have a path")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return (_endpoint(scheme, host, port),), (user, password)


def _from_hosts(section: Mapping[str, Any]) -> tuple[str, ...]:
    protocol = str(section.get("protocol") or "http").lower()
    if protocol not in ("http", "https"):
        raise DcsConfigError(f"etcd3.protocol: {protocol!r} is neither http nor https")
    default_port = _port("port", section.get("port") or DEFAULT_PORT)
    name = "hosts" if section.get("hosts") else "host"
    items = _items(name, section.get(name))
    if not items:
        raise DcsConfigError(f"etcd3.{name}: names no server")
    pairs = [_host_port(name, item, default_port) for item in items]
    # The same server twice would take its turn twice.
    return tuple(dict.fromkeys(_endpoint(protocol, host, port) for host, port in pairs))


def _items(name: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        # As environment variables carry it: a,b or 'a','b'.
        value = [part.strip().strip("'\"") for part in value.split(",")]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise DcsConfigError(f"etcd3.{name}: host:port or a list of them is needed, not {value!r}")
    return [item.strip() for item in value if item.strip()]


def _host_port(name: str, item: str, default_port: int) -> tuple[str, int]:
    if item.count(":") > 1 and not item.startswith("["):
        raise DcsConfigError(f"etcd3.{name}: {item!r}: write an IPv6 address in []")
    parts = _split(name, "//" + item)
    if not parts.hostname or parts.path or parts.username is not None or parts.query:
        raise DcsConfigError(f"etcd3.{name}: {_without_secrets(item)!r} is not host:port")
    return parts.hostname, parts.port or default_port


def _split(name: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed, and refused, only when looked at
    except ValueError as error:
        raise DcsConfigError(f"etcd3.{name}: {_without_secrets(url)!r}: {error}") from None
    return parts


def _without_secrets(url: str) -> str:
    return "…@" + url.rpartition("@")[2] if "@" in url else url


def _endpoint(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _port(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        raise DcsConfigError(f"etcd3.{name}: {value!r} is not a port")
    return number


def _text(section: Mapping[str, Any], name: str) -> str | None:
    value = section.get(name)
    if value is None or value == "":
        return None
    # YAML reads an unquoted password of digits as a number.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DcsConfigError(f"etcd3.{name}: a text is needed, not {type(value).__name__}")
    return str(value)
