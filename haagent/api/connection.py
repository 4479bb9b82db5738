"""One client of the HTTP server: its socket, its deadlines, and its turn to compute.

Each connection has a thread of its own. It computes only while it has the turn (`haagent.api.turn`), and
waits, for the client or for what the application waits for, only without it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from enum import IntEnum
from typing import Any, Protocol

from haagent.api.http1 import HttpError, RequestHead, parse_head, response_head, split_head
from haagent.api.turn import Turn, Turns

log = logging.getLogger("haagent.api")

WsgiApp = Callable[..., Iterable[bytes]]


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds and sizes; the defaults suit load balancers and people alike."""

    #: From accept to the end of the first request's head, TLS handshake included.
    head_s: float = 10.0
    #: Silence allowed between two requests; above the usual check interval of load balancers.
    idle_s: float = 30.0
    #: For a whole body.
    body_s: float = 10.0
    #: For a whole answer to be taken by the client.
    send_s: float = 10.0
    #: For what one request computes before others go on beside it; see `haagent.api.turn`.
    turn_s: float = 1.0
    #: Polite reading of what a refused client still sends, so that it gets to read the answer.
    linger_s: float = 1.0
    #: Further lowered to half of the process's file descriptors.
    connections: int = 1024
    #: Connections the kernel holds for us; a burst beyond it waits a second for the next SYN.
    backlog: int = 1024
    #: Virtual memory per thread; enough for Flask and the JSON parser.
    thread_stack_bytes: int = 512 * 1024


class Phase(IntEnum):
    """How far a connection has come, in the order of eviction."""

    RECEIVING = 0
    IDLE = 1
    SENDING = 2
    WORKING = 3


#: Headers that have their own place in the environment, or none.
_OWN_ENVIRON = ("content-length", "content-type", "host", "transfer-encoding")
_LINGER_BYTES = 64 * 1024 * 1024
_RECV_BYTES = 16 * 1024


class Host(Protocol):
    """What a connection needs of its server."""

    app: WsgiApp
    tls: ssl.SSLContext | None
    server_header: str
    limits: Limits
    turns: Turns

    @property
    def ends_connections(self) -> bool:
        """None is kept for another request."""


class Connection:
    """One client: its socket, its unread bytes, and how far it has come."""

    def __init__(self, server: Host, sock: socket.socket, address: Any) -> None:
        self._server = server
        self._limits = server.limits
        self._sock = sock
        #: Guards `_sock`, which its TLS twin replaces, and the step to WORKING, against eviction.
        self._lock = threading.RLock()
        self.is_shut_down = False
        self._buffer = b""
        self._local_port: int = 0
        self.peer: str = _plain_address(address[0])
        self._peer_port: int = address[1]
        self.turn = Turn(server.turns)
        self._is_tls = False
        self._has_client_certificate = False
        self.phase = Phase.RECEIVING
        self.phase_since = time.monotonic()

    def serve(self) -> None:
        """Serve requests until the client or a deadline ends it. Raises OSError, ValueError."""
        deadline = time.monotonic() + self._limits.head_s
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._local_port = self._sock.getsockname()[1]
        if self._server.tls is not None:
            self._shake_hands(self._server.tls, deadline)
        try:
            while (head := self._read_head(deadline)) and self._answer(head):
                self._enter(Phase.IDLE)
                deadline = time.monotonic() + self._limits.idle_s
        except HttpError as error:
            text = f"{error}\n".encode()
            self._send(self._rendered(error.status, [("Content-Type", "text/plain")], text, keep_alive=False))
            self._linger()

    def shut_down(self) -> None:
        """End both directions from any thread: whoever waits on the socket sees its end."""
        with self._lock, contextlib.suppress(OSError):
            self.is_shut_down = True
            # Past SSLSocket's own method, which would strip the TLS layer under the worker's feet.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def give_way(self) -> None:
        """Shut down unless the application is at work, or will be."""
        with self._lock:
            if self.phase is not Phase.WORKING:
                self.shut_down()

    def _begin_work(self) -> None:
        """From here on nobody evicts us; an evicted connection's last request is not carried out."""
        with self._lock:
            if self.is_shut_down:
                raise ConnectionAbortedError("evicted")
            self._enter(Phase.WORKING)

    def close(self) -> None:
        with self._lock:
            self._sock.close()

    def _enter(self, phase: Phase) -> None:
        self.phase, self.phase_since = phase, time.monotonic()

    def _shake_hands(self, context: ssl.SSLContext, deadline: float) -> None:
        with self._lock:
            self._sock.settimeout(_left(deadline))
            tls = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
            self._sock = tls
            if self.is_shut_down:
                raise ConnectionAbortedError("evicted")
        tls.do_handshake()
        self._is_tls = True
        self._has_client_certificate = bool(tls.getpeercert())

    def _read_head(self, deadline: float) -> bytes:
        """The next request's head, b"" when the client has finished. Raises HttpError."""
        scanned = 0
        while (parts := split_head(self._buffer, scanned)) is None:
            scanned = len(self._buffer)
            data = self._receive(deadline)
            if not data:
                return b""
            self._buffer += data
        head, self._buffer = parts
        return head

    def _receive(self, deadline: float, size: int = _RECV_BYTES) -> bytes:
        self._sock.settimeout(_left(deadline))
        return self._sock.recv(size)

    def read_body(self, size: int) -> bytes:
        """Up to `size` further bytes of the body, b"" at its end. Only for `_Body`."""
        if not self._buffer:
            return self._receive(self._body_deadline, min(size, 4 * _RECV_BYTES))
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def begin_body(self, expects_continue: bool) -> None:
        """The application wants the body: the clock for it starts."""
        self._enter(Phase.RECEIVING)
        self._body_deadline = time.monotonic() + self._limits.body_s
        if expects_continue and not self._buffer:
            self._send_all(b"HTTP/1.1 100 Continue\r\n\r\n", self._body_deadline)

    def end_body(self) -> None:
        self._begin_work()

    def _answer(self, raw_head: bytes) -> bool:
        """Call the application and send what it says; True when another request may follow."""
        self._begin_work()
        with self.turn.taken():
            head = parse_head(raw_head)
            body = _Body(self, head)
            status, headers, content = self._call(head, body)
            keep_alive = head.keep_alive and body.is_finished and not self._server.ends_connections
            if head.method == "HEAD":
                content = b""
            else:
                headers.append(("Content-Length", str(len(content))))
            answer = self._rendered(status, headers, content, keep_alive)
        self._send(answer)
        if not body.is_finished or head.unframed_body:
            self._linger()
        return keep_alive

    def _call(self, head: RequestHead, body: _Body) -> tuple[int, list[tuple[str, str]], bytes]:
        answer: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            answer[:] = [int(status.split(" ", 1)[0]), headers]

        try:
            chunks = self._server.app(self._environ(head, body), start_response)
            try:
                content = b"".join(chunks)
            finally:
                getattr(chunks, "close", lambda: None)()
            kept = [(k, v) for k, v in answer[1] if k.lower() not in ("content-length", "connection")]
            return answer[0], kept, content
        except Exception:
            log.exception("%s %s failed", head.method, head.path[:200])
            return 500, [("Content-Type", "text/plain")], b"internal error\n"

    def _environ(self, head: RequestHead, body: _Body) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": head.path,
            "QUERY_STRING": head.query,
            # Nothing here depends on the name a client used: its Host header is not passed on.
            "SERVER_NAME": "localhost",
            "SERVER_PORT": str(self._local_port),
            "SERVER_PROTOCOL": f"HTTP/{head.version[0]}.{head.version[1]}",
            "REMOTE_ADDR": self.peer,
            "REMOTE_PORT": str(self._peer_port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self._is_tls else "http",
            "wsgi.input": body,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "haagent.client_certificate": self._has_client_certificate,
            "haagent.unframed_body": head.unframed_body,
            "haagent.turn": self.turn,
        }
        if head.content_length is not None:
            environ["CONTENT_LENGTH"] = str(head.content_length)
        if content_type := head.get("content-type"):
            environ["CONTENT_TYPE"] = content_type
        for name, _ in head.headers:
            # A name with `_` could pose as one with `-`.
            if "_" not in name and name not in _OWN_ENVIRON:
                environ["HTTP_" + name.upper().replace("-", "_")] = head.get(name)
        return environ

    def _rendered(
        self, status: int, headers: list[tuple[str, str]], content: bytes, keep_alive: bool
    ) -> bytes:
        ours = [("Date", formatdate(usegmt=True)), ("Server", self._server.server_header)]
        ours.append(("Connection", "keep-alive" if keep_alive else "close"))
        return response_head(status, [*ours, *headers]) + content

    def _send(self, answer: bytes) -> None:
        self._enter(Phase.SENDING)
        self._send_all(answer, time.monotonic() + self._limits.send_s)

    def _send_all(self, data: bytes, deadline: float) -> None:
        # Not sendall: over TLS its timeout counts anew for each piece a slow reader takes.
        view = memoryview(data)
        while view:
            self._sock.settimeout(_left(deadline))
            view = view[self._sock.send(view[: 4 * _RECV_BYTES]) :]

    def _linger(self) -> None:
        """Take in what the client still sends: closing over unread bytes would destroy our answer."""
        deadline = time.monotonic() + self._limits.linger_s
        with self._lock:
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
        taken = 0
        while taken < _LINGER_BYTES:
            self._sock.settimeout(_left(deadline))
            # The raw bytes below TLS: they are thrown away anyway.
            data = socket.socket.recv(self._sock, 4 * _RECV_BYTES)
            if not data:
                return
            taken += len(data)


class _Body:
    """`wsgi.input`: reads from the client only when asked, never past the announced length."""

    def __init__(self, connection: Connection, head: RequestHead) -> None:
        self._connection = connection
        self._expects_continue = head.expects_continue
        self._left = head.content_length or 0
        self._begun = False

    @property
    def is_finished(self) -> bool:
        """Nothing of the body is left on the wire."""
        return self._left == 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left when negative. Raises OSError when the client fails."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        if wanted == 0:
            return b""
        with self._connection.turn.aside():
            return self._received(wanted)

    def _received(self, wanted: int) -> bytes:
        if not self._begun:
            self._begun = True
            self._connection.begin_body(self._expects_continue)
        parts: list[bytes] = []
        while wanted:
            data = self._connection.read_body(wanted)
            if not data:
                raise ConnectionResetError("the body ended early")
            parts.append(data)
            wanted -= len(data)
            self._left -= len(data)
        if self.is_finished:
            self._connection.end_body()
        return b"".join(parts)


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("deadline passed")
    return left_s


def _plain_address(address: str) -> str:
    """`::ffff:10.0.0.1` (IPv4 on a dual-stack socket) as `10.0.0.1`; no interface after `%`."""
    return address.removeprefix("::ffff:").partition("%")[0] if "." in address else address.partition("%")[0]
