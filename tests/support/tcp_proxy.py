"""A TCP proxy between a client and a server, for faults on the wire.

    with TcpProxy(server_port) as proxy:    # proxy.port on 127.0.0.1
        proxy.freeze(); proxy.thaw()        # bytes stay where they are, connections stay open
        proxy.drop()                        # close every connection now; new ones are accepted
        proxy.refuse(); proxy.accept()      # close every connection, and new ones at once
        proxy.cut_next_reply()              # forward the next request, then close instead of the answer
        proxy.cut.wait(10)                  # until that has happened
        proxy.trickle()                     # from now on one byte of an answer every 50 ms

One daemon thread per direction of a connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536
_TRICKLE_S = 0.05


class TcpProxy:
    """Forwards to 127.0.0.1:`target_port`; listens from the constructor on."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._trickling = False
        self._cut_wanted = False
        #: Set when a reply was cut: the server has answered, the client never sees it.
        self.cut = threading.Event()
        #: Set when bytes arrived from a client while frozen.
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="tcp-proxy", daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self.held.clear()
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def trickle(self) -> None:
        self._trickling = True

    def cut_next_reply(self) -> None:
        self.cut.clear()
        self._cut_wanted = True

    def refuse(self) -> None:
        self._refusing = True
        self.drop()

    def accept(self) -> None:
        self._refusing = False

    def drop(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._refusing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self._flowing.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, is_reply), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if not self._flowing.is_set():
                    self.held.set()
                    self._flowing.wait()
                if is_reply and self._cut_wanted:
                    self._cut_wanted = False
                    self.cut.set()
                    break
                self._forward(sink, data, is_reply)
        self._end(source, sink)

    def _forward(self, sink: socket.socket, data: bytes, is_reply: bool) -> None:
        if not (is_reply and self._trickling):
            sink.sendall(data)
            return
        for position in range(len(data)):
            sink.sendall(data[position : position + 1])
            threading.Event().wait(_TRICKLE_S)

    def _end(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= set(sockets)
        for sock in sockets:
            sock.close()
