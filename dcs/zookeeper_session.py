"""Sessions of ZooKeeper held by this process: one connection (kazoo) each.

Theory. kazoo pings by itself, so a session would outlive a hung agent. Here it pings only while somebody has
renewed lately: who stops renewing lets the session run out, without closing it, which would be a release
(hazard H4). A session that expired is never replaced by another one under the same handle: its connection is
given up. To continue a session after a restart needs its password (`sealed`), which the guardian keeps (H5).

A table for the whole process, because the loop and the lease keeper use one session over two clients.
Two methods of kazoo's connection are overridden, which is why its version is pinned; nothing public tells
the negotiated timeout or stops the pings.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from kazoo.client import KazooClient, KazooState
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.connection import ConnectionHandler

from dcs.api import boottime

#: ZooKeeper's own unit of time, as it is by default: what a follower heard reaches its leader within one
#: (hazard H2). No session is shorter than two of the server's ticks, whatever they are; seconds.
TICK_S = 2.0

MakeClient = Callable[[float, "tuple[int, bytes] | None"], KazooClient]


class _Connection(ConnectionHandler):  # type: ignore[misc]  # kazoo has no types
    """kazoo's connection that knows the negotiated timeout, and is silent unless it may ping."""

    negotiated_s = 0.0
    ping_until = float("inf")

    def _connect(self, host: str, hostip: str, port: int) -> tuple[float, float]:
        read_ms, connect_ms = super()._connect(host, hostip, port)
        self.negotiated_s = read_ms * 1.5 / 1000  # kazoo reads for two thirds of it
        return read_ms, connect_ms

    def _send_ping(self, connect_timeout: float) -> None:
        if boottime() < self.ping_until:
            super()._send_ping(connect_timeout)


def with_our_connection(client: KazooClient) -> KazooClient:
    """`client` before its start, its connection replaced by ours."""
    old = client._connection
    client._connection = _Connection(
        client, client._conn_retry.copy(), logger=client.logger, sasl_options=old.sasl_options
    )
    return client


class Session:
    """One session and its connection. Thread safe."""

    def __init__(self, client: KazooClient, text: str, ttl_s: float) -> None:
        self.client, self.text, self.ttl_s = client, text, ttl_s
        self.dead = False
        client.add_listener(self._changed)

    def _changed(self, state: str) -> None:
        if state == KazooState.LOST and not self.dead:
            # kazoo would open another session now; nobody may take that for this one.
            self.dead = True
            threading.Thread(target=self._give_up, name="zookeeper-lost", daemon=True).start()

    def _give_up(self) -> None:
        forget(self.text)
        with contextlib.suppress(Exception):
            self.client.stop()

    @property
    def life_s(self) -> float:
        """What a renewal promises: the negotiated timeout less what the news of it may need to the leader."""
        return life_s(float(self.client._connection.negotiated_s))

    def renewed(self) -> None:
        """Somebody wants it to live: it may ping for one more life."""
        connection = self.client._connection
        connection.ping_until = boottime() + connection.negotiated_s

    def end(self) -> bool:
        """Close it: its keys vanish at once. False when that cannot be known."""
        sure, self.dead = bool(self.client.connected), True
        forget(self.text)
        self.client.stop()
        return sure


def life_s(timeout_s: float) -> float:
    return timeout_s - min(TICK_S, timeout_s / 2)


class _Known(NamedTuple):
    """A session as another process of this member left it."""

    number: int
    password: bytes
    ttl_s: float


_lock = threading.Lock()
_table: dict[str, Session] = {}
_known: dict[str, _Known] = {}
#: One at a time continues a session: two connections would take it from each other.
_continuing = threading.Lock()


def find_or_continue(text: str, make: MakeClient, until: float) -> Session | None:
    """The session of that text; continued when another process of this member left it, None when it is gone.
    Raises KazooTimeoutError while it has no connection."""
    session, known = _found(text)
    if session is None and known is not None:
        if not _continuing.acquire(timeout=max(0.0, until - boottime())):
            raise KazooTimeoutError("another call continues the session")
        try:
            session, known = _found(text)
            if session is None and known is not None:
                session = open_session(make, known.ttl_s, until, (known.number, known.password))
                with _lock:
                    _known.pop(text, None)
        finally:
            _continuing.release()
    return None if session is None or session.dead else session


def _found(text: str) -> tuple[Session | None, _Known | None]:
    with _lock:
        return _table.get(text), _known.get(text)


def sealed(text: str) -> str:
    with _lock:
        session = _table.get(text)
    if session is None or session.client.client_id is None:
        return text
    return f"{text}:{session.client.client_id[1].hex()}:{session.ttl_s:g}"


def unsealed(sealed: str) -> str:
    """The session's text; how to continue it is remembered. What is no such text is nobody's session."""
    text, _, rest = sealed.partition(":")
    password, _, ttl = rest.partition(":")
    try:
        known = _Known(int(text), bytes.fromhex(password), float(ttl))
    except ValueError:
        return text
    with _lock:
        if text not in _table:
            _known[text] = known
    return text


def shown(owner: int) -> str | None:
    """The text of an ephemeral's owner; None of a key without one."""
    return str(owner) if owner else None


def forget(text: str) -> None:
    with _lock:
        _table.pop(text, None)


def open_session(
    make: MakeClient, ttl_s: float, until: float, known: tuple[int, bytes] | None = None
) -> Session | None:
    """A new session, or the one `known` by id and password; None when that one is gone. Raises
    KazooTimeoutError."""
    client = with_our_connection(make(ttl_s, known))
    connected = client.start_async()
    connected.wait(max(0.0, until - boottime()))
    identity: Any = client.client_id
    if not connected.is_set() or identity is None:
        stop_in_background(client)
        raise KazooTimeoutError("no session in time")
    if known is not None and identity[0] != known[0]:
        stop_in_background(client)  # it had expired; kazoo opened another, which carries nothing
        return None
    session = Session(client, str(identity[0]), ttl_s)
    session.renewed()
    with _lock:
        _table[session.text] = session
    return session


def stop_in_background(client: KazooClient) -> None:
    """kazoo's own stop waits for the server, up to ten seconds."""
    threading.Thread(target=client.stop, name="zookeeper-stop", daemon=True).start()
