"""Listening sockets for `restapi.listen`: names, IPv4, IPv6, `*` and the empty host."""

from __future__ import annotations

import errno
import socket

from haagent.api.config import RestError


def open_listeners(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets on every address `host` stands for. Raises RestError."""
    listeners: list[socket.socket] = []
    last_error: OSError | None = None
    for family, address in _addresses(host):
        try:
            listeners.append(_bound(family, address, port, backlog))
        except OSError as error:
            # A host without IPv6 still has a name with both kinds of address.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                last_error = error
                continue
            for listener in listeners:
                listener.close()
            raise _cannot_listen(host, port, error) from error
        port = listeners[0].getsockname()[1]
        if _is_wildcard(host):
            break
    if not listeners:
        raise _cannot_listen(host, port, last_error)
    return listeners


def _cannot_listen(host: str, port: int, error: OSError | None) -> RestError:
    if error is not None and error.errno == errno.EADDRINUSE:
        return RestError(f"restapi.listen: {host or '*'}:{port}: another process listens on this port")
    why = error.strerror if error is not None else "no such address"
    return RestError(f"restapi.listen: {host or '*'}:{port}: {why}")


def _is_wildcard(host: str) -> bool:
    return host in ("", "*")


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if _is_wildcard(host):
        # The IPv6 wildcard takes IPv4 as well; where there is no IPv6, IPv4 alone.
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]  # noqa: S104 - asked for by `*`
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RestError(f"restapi.listen: cannot resolve host {host!r}") from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bound(family: socket.AddressFamily, address: str, port: int, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
