"""A small threaded HTTP/1.1 server for one WSGI application.

Why our own: the servers at hand either shake hands inside their accept loop, so that one silent TLS
client stops everybody, or cannot speak TLS (docs/decisions/0002-http-server.md).

Theory. One thread accepts and does nothing that can wait. Each connection has a thread of its own that
shakes hands, reads, calls the application and writes; every wait in it has a deadline that small
sips of data do not move. So a client can hold only its own thread, and only so long. The number of
connections is capped; at the cap the one least worth keeping is shut down for the newcomer:

    receiving   has not sent a complete request      evicted first, the oldest connection first
    idle        keep-alive, between two requests     next
    sending     slow to read its answer              next
    working     it runs, or waits for its turn       never

Nobody is evicted in his first moment in a phase: a request may be on its way. A thread sees its eviction
as the end of the stream. If there is none to evict, the newcomer waits in the kernel's queue; so that his
time comes, connections end with their answer while there are many.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import ssl
import threading
import time

from haagent.api.connection import Connection, Limits, Phase, WsgiApp
from haagent.api.listen import open_listeners
from haagent.api.turn import Turns

log = logging.getLogger("haagent.api")

#: Longest wait for one to end; what is short may also be held by others in this process.
_EXHAUSTED_WAIT_S = 0.05
#: With more connections than this part of the cap, none is kept alive.
_CROWDED = 0.75
#: Nobody is evicted so soon: the request may be on its way, the answer half gone; seconds.
_GRACE_S = 0.25
_EVICTABLE = (Phase.RECEIVING, Phase.IDLE, Phase.SENDING)
#: `threading.stack_size` is one value for the process: set, start, put back, one at a time.
_stack_size_lock = threading.Lock()


class HttpServer:
    """Serves `app` on `host`:`port` from `start()` until `stop()`.

    `host` may be a name, an IPv4 or IPv6 address, `*` or empty (all addresses). Port 0 takes a free
    one, see `port`. `app` may be replaced at any time and holds from the next request on, `tls` from the
    next connection on.
    """

    def __init__(
        self,
        app: WsgiApp,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        server_header: str = "haagent",
        limits: Limits | None = None,
    ) -> None:
        self.app = app
        self.tls = tls
        self.server_header = server_header
        self.limits = limits or Limits()
        self.turns = Turns(self.limits.turn_s)
        self._host, self._asked_port = host, port
        self._listeners: list[socket.socket] = []
        self._connections: dict[Connection, None] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._wake_read = self._wake_write = -1
        self._thread: threading.Thread | None = None
        self._max_connections = _allowed_connections(self.limits.connections)

    @property
    def port(self) -> int:
        """The port in use; valid after `start()`."""
        port: int = self._listeners[0].getsockname()[1]
        return port

    @property
    def ends_connections(self) -> bool:
        return self._stopping or len(self._connections) > _CROWDED * self._max_connections

    def start(self) -> None:
        """Bind and begin to serve. Raises RestError when the address cannot be used."""
        self._listeners = open_listeners(self._host, self._asked_port, self.limits.backlog)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._thread = threading.Thread(target=self._accept_loop, name="rest-accept", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float = 0.5) -> None:
        """Stop listening at once; running calls get `grace_s` seconds to answer, then all is closed."""
        if self._thread is None:
            return
        self._stopping = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._thread = None
        for listener in self._listeners:
            listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with self._changed:
            for connection in [c for c in self._connections if c.phase < Phase.SENDING]:
                connection.give_way()
            self._changed.wait_for(lambda: not self._connections, grace_s)
            for connection in list(self._connections):
                connection.shut_down()

    def _accept_loop(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while not self._stopping:
            for fd, _ in poll.poll():
                if fd in by_fd:
                    self._accept(by_fd[fd])

    def _accept(self, listener: socket.socket) -> None:
        if not self._has_room():
            return  # the poll will say again that somebody waits
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
            return
        connection = Connection(self, sock, address)
        with self._changed:
            self._connections[connection] = None
        try:
            self._start_thread(connection)
        except RuntimeError:  # the system gives no more threads
            self._forget(connection)
            sock.close()
            self._make_room()

    def _start_thread(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="rest", daemon=True)
        with _stack_size_lock:
            before = threading.stack_size(self.limits.thread_stack_bytes)
            try:
                thread.start()
            finally:
                threading.stack_size(before)

    def _has_room(self) -> bool:
        """Whether one more connection fits; another may have to give way, and is waited for a moment."""
        with self._changed:
            if len(self._connections) < self._max_connections:
                return True
            self._evict_one()
            return self._changed.wait_for(
                lambda: len(self._connections) < self._max_connections, _EXHAUSTED_WAIT_S
            )

    def _evict_one(self) -> None:
        """Shut down the connection least worth keeping, unless all are at work or just came so far."""
        before = time.monotonic() - _GRACE_S
        here = [connection for connection in self._connections if not connection.is_shut_down]
        for phase in _EVICTABLE:
            found = [connection for connection in here if connection.phase is phase]
            if found:
                victim = next((connection for connection in found if connection.phase_since < before), None)
                return victim.give_way() if victim is not None else None
        return None

    def _make_room(self) -> None:
        """The process is out of descriptors or threads: let a connection end before the next is taken."""
        with self._changed:
            self._evict_one()
            self._changed.wait(_EXHAUSTED_WAIT_S)

    def _forget(self, connection: Connection) -> None:
        with self._changed:
            self._connections.pop(connection, None)
            self._changed.notify_all()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        except (OSError, ValueError):  # gone, too slow, or not TLS: nothing to tell anybody
            log.debug("connection of %s ended early", connection.peer)
        finally:
            connection.close()
            self._forget(connection)


def _allowed_connections(asked: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The other half is for the DCS, PostgreSQL, the guardian and log files.
    return asked if soft == resource.RLIM_INFINITY else min(asked, max(16, soft // 2))
