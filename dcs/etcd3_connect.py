"""Connections to etcd servers: addresses, TLS, idle ones kept for reuse.

Theory. A name is looked up once before the first connection and from then on in the background, so that a
name server in trouble delays nobody (hazard H7). Everything that fails here failed before a request left.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dcs.api import boottime
from dcs.errors import DcsConfigError
from dcs.etcd3_options import Etcd3Options, server_parts
from dcs.etcd3_srv import Discovery, NoRecords, look_up

#: Age at which a name is looked up again, in the background.
ADDRESS_AGE_S = 60.0
#: Detects a peer that vanished without a word on an otherwise silent watch: about 5 + 3 * 2 s.
_KEEPALIVE: list[tuple[int, int, int | bytes]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class NotSent(Exception):
    """The request never left: it had no effect."""


@dataclass(frozen=True)
class Server:
    """One endpoint."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Connections:
    """All connections of one client, by server. Thread safe. Raises DcsConfigError."""

    def __init__(self, options: Etcd3Options) -> None:
        if not options.endpoints and not options.srv:
            raise DcsConfigError("etcd3: no endpoints")
        self._fixed = tuple(Server(*server_parts(url)) for url in options.endpoints)
        self._discovery = (
            Discovery(partial(look_up, options.srv, options.srv_suffix)) if options.srv else None
        )
        encrypted = options.srv or any(s.scheme == "https" for s in self._fixed)
        self._tls = _tls_context(options) if encrypted else None
        self._addresses = _AddressBook()
        self._lock = threading.Lock()
        self._idle: defaultdict[Server, list[HTTPConnection]] = defaultdict(list)
        self._closed = False

    def servers(self, timeout_s: float) -> tuple[Server, ...]:
        """At least one. Raises NotSent while discovery by DNS has found none, within `timeout_s`."""
        if self._discovery is None:
            return self._fixed
        try:
            return tuple(Server(*parts) for parts in self._discovery.servers(timeout_s))
        except NoRecords as error:
            raise NotSent(str(error)) from None

    def borrow(self, server: Server, timeout_s: float) -> HTTPConnection:
        """An idle connection or a new one. Raises NotSent."""
        while True:
            with self._lock:
                connection = self._idle[server].pop() if self._idle[server] else None
            if connection is None:
                return self.connect(server, timeout_s)
            # A server that went away closed its end: noticed here, before a write is sent into the void.
            if connection.is_connected and connection.sock is not None:
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()

    def give_back(self, server: Server, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._closed and connection.sock is not None:
                self._idle[server].append(connection)
                return
        connection.close()

    def connect(self, server: Server, timeout_s: float) -> HTTPConnection:
        """A new connection to one of the server's addresses. Raises NotSent."""
        end = boottime() + timeout_s
        addresses = self._addresses.find(server)
        cause = "no address"
        for position, address in enumerate(addresses):
            share_s = max((end - boottime()) / (len(addresses) - position), 0.01)
            connection = self._connection(server, address, share_s)
            try:
                connection.connect()
                return connection
            except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
                connection.close()
                cause = short(error)
        self._addresses.refresh(server)
        raise NotSent(cause)

    def _connection(self, server: Server, address: str, timeout_s: float) -> HTTPConnection:
        if server.scheme == "http":
            return HTTPConnection(address, server.port, timeout=timeout_s, socket_options=_KEEPALIVE)
        return HTTPSConnection(
            address,
            server.port,
            timeout=timeout_s,
            socket_options=_KEEPALIVE,
            ssl_context=self._tls,
            server_hostname=server.host,
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle = [c for connections in self._idle.values() for c in connections]
            for connections in self._idle.values():
                connections.clear()
        for connection in idle:
            connection.close()


def shut(connection: HTTPConnection) -> None:
    """Both directions end at once, also under the feet of a thread that reads."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not the TLS object's own method, which would pull its state from under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def short(error: BaseException) -> str:
    """The cause in one line, without the object that urllib3 puts in front."""
    text = re.sub(r"^HTTPS?Connection\([^)]*\): ", "", str(error))
    return one_line(text) or type(error).__name__


class _AddressBook:
    """Addresses by server. Only the very first look-up of a name is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Server, tuple[float, list[str]]] = {}
        self._looking: set[Server] = set()

    def find(self, server: Server) -> list[str]:
        """Raises NotSent when the name has never been resolved and cannot be now."""
        with self._lock:
            found = self._known.get(server)
        if found is None:
            return self._look_up(server)
        if boottime() - found[0] > ADDRESS_AGE_S:
            self.refresh(server)
        return found[1]

    def refresh(self, server: Server) -> None:
        """Look the name up again, in the background, once at a time."""
        with self._lock:
            if server in self._looking:
                return
            self._looking.add(server)
        threading.Thread(target=self._refresh, args=(server,), name="etcd3-name", daemon=True).start()

    def _refresh(self, server: Server) -> None:
        with contextlib.suppress(NotSent):  # then the old addresses stay
            self._look_up(server)
        with self._lock:
            self._looking.discard(server)

    def _look_up(self, server: Server) -> list[str]:
        try:
            found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NotSent(f"name {server.host!r}: {error}") from None
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        with self._lock:
            self._known[server] = (boottime(), addresses)
        return addresses


def _tls_context(options: Etcd3Options) -> ssl.SSLContext:
    """Verifies against `cacert`, or the system's authorities. Raises DcsConfigError."""
    try:
        context = ssl.create_default_context(cafile=options.cacert)
    except (OSError, ValueError) as error:
        raise DcsConfigError(f"etcd3.cacert: {options.cacert}: {error}") from None
    if options.cert:
        try:
            # The password function keeps OpenSSL from asking at the terminal for an encrypted key.
            context.load_cert_chain(options.cert, options.key, password=lambda: "")
        except (OSError, ValueError) as error:
            names = f"{options.cert}, {options.key}" if options.key else options.cert
            raise DcsConfigError(f"etcd3.cert, etcd3.key: {names}: {error}") from None
    return context
