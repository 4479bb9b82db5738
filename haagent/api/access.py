"""Who may change something (contract 3.2). Asked before a body is read.

In this order: the allowlist, the client certificate, the password. Calls that only read are open to
everybody who can connect; `verify_client: required` has shut others out in the handshake already.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from haagent.api.config import RestConfig
from haagent.api.view import Published

CHALLENGE = 'Basic realm="Patroni"'

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str], set[IpAddress]]


@dataclass(frozen=True)
class Caller:
    """What the connection and the head tell about who is calling."""

    address: str
    is_https: bool
    has_certificate: bool
    #: The Authorization header, None when absent.
    authorization: str | None


@dataclass(frozen=True)
class Refusal:
    status: int
    text: str


def refusal(
    config: RestConfig,
    published: Published,
    caller: Caller,
    members_count: bool,
    resolve: Resolver,
) -> Refusal | None:
    """Why this caller may not change anything, None when it may.

    `members_count`: addresses of members may stand in for the allowlist (not for `POST /failsafe`).
    Host names of the allowlist go through `resolve`, which can take as long as the resolver does.
    """
    if not _is_allowed_address(config, published, caller.address, members_count, resolve):
        return Refusal(403, "Access is denied")
    if caller.is_https and _asks_certificate(config) and not caller.has_certificate:
        return Refusal(403, "client certificate required")
    if config.username is None and config.password is None:
        return None
    if caller.authorization is None:
        return Refusal(401, "no auth header received")
    wanted = f"{config.username or ''}:{config.password or ''}".encode()
    if not hmac.compare_digest(_credentials(caller.authorization), wanted):
        return Refusal(401, "not authenticated")
    return None


def _asks_certificate(config: RestConfig) -> bool:
    return (config.verify_client or "none").lower() in ("optional", "required")


def _credentials(header: str) -> bytes:
    """user:password of a Basic header; b"" for anything else, which equals no credentials."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_allowed_address(
    config: RestConfig, published: Published, address: str, members_count: bool, resolve: Resolver
) -> bool:
    if not config.allowlist and not config.allowlist_include_members:
        return True
    try:
        client = ipaddress.ip_address(address)
    except ValueError:
        return False
    if _matches(client, config.allowlist, resolve):
        return True
    if not (config.allowlist_include_members and members_count) or published.cluster is None:
        return False
    return _matches(client, (_host(member.api_url) for member in published.cluster.members), resolve)


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def _matches(client: IpAddress, entries: Iterable[str], resolve: Resolver) -> bool:
    names = []
    for entry in entries:
        try:
            if client in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            names.append(entry)
    # Names last: addresses and networks are judged without asking a resolver.
    return any(client in resolve(name) for name in names if name)


def resolve(name: str) -> set[IpAddress]:
    """Addresses of a host, none when nobody knows it. As slow as the resolver."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found}
