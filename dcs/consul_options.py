"""What the `consul:` section of the configuration says, checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dcs.errors import DcsConfigError
from dcs.options import flag, text

DEFAULT_PORT = 8500
CONSISTENCIES = ("default", "consistent", "stale")


@dataclass(frozen=True)
class ConsulOptions:
    """What the `consul:` section says, checked. `base_path` is the cluster's, without a leading slash."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    scheme: str = "http"
    token: str | None = field(default=None, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    dc: str | None = None
    consistency: str = "default"
    checks: tuple[str, ...] = ()
    base_path: str = "service/test"
    session_name: str = "haagent"
    #: Cluster and member, for the service; no service without them.
    scope: str = ""
    register_service: bool = False
    service_tags: tuple[str, ...] = ()
    service_check_interval: str = "5s"
    service_check_tls_server_name: str | None = None


def options_from_section(section: Mapping[str, Any]) -> ConsulOptions:
    """The options of a `consul:` section. Raises DcsConfigError naming the key."""
    scheme = text(section, "consul", "scheme") or "http"
    address, url = text(section, "consul", "host") or "127.0.0.1", text(section, "consul", "url")
    if url is not None:
        scheme, address = url.partition("://")[0], url.partition("://")[2]
    if scheme not in ("http", "https"):
        raise DcsConfigError(f"consul.{'url' if url else 'scheme'}: {scheme!r} is neither http nor https")
    host, port = _host_port(address, section.get("port"))
    consistency = text(section, "consul", "consistency") or "default"
    if consistency not in CONSISTENCIES:
        raise DcsConfigError(f"consul.consistency: {consistency!r} is none of {', '.join(CONSISTENCIES)}")
    cert, key = text(section, "consul", "cert"), text(section, "consul", "key")
    if key and not cert:
        raise DcsConfigError("consul.key: needs consul.cert as well")
    return ConsulOptions(
        host=host,
        port=port,
        scheme=scheme,
        token=text(section, "consul", "token"),
        verify=flag(section, "consul", "verify", True) and (text(section, "consul", "cacert") or True),
        cert=(cert, key) if cert and key else cert,
        dc=text(section, "consul", "dc"),
        consistency=consistency,
        checks=_words(section, "checks"),
        register_service=flag(section, "consul", "register_service", False),
        service_tags=_words(section, "service_tags"),
        service_check_interval=text(section, "consul", "service_check_interval") or "5s",
        service_check_tls_server_name=text(section, "consul", "service_check_tls_server_name"),
    )


def _words(section: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list, or words with commas between, as a variable has them."""
    value = section.get(name) or ()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise DcsConfigError(f"consul.{name}: a list is needed, not {value!r}")
    return tuple(str(item).strip() for item in items if str(item).strip())


def _host_port(address: str, port: object) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        given = parts.port or (int(str(port)) if port else DEFAULT_PORT)
        if parts.hostname and 0 < given < 65536:
            return parts.hostname, given
    except ValueError:
        pass
    raise DcsConfigError(f"consul.host: {address.rpartition('@')[2]!r} is not host:port")
