"""Telling systemd how the agent does (contract 7.2): one datagram per message, if somebody listens.

Our own few lines, as the libraries for it either need a C compiler or do not know how a reload is told.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


class SystemdService:
    """The service manager that started us, if one did. Never blocks, never raises."""

    def __init__(self) -> None:
        #: Taken out of the environment: no program that we start may speak for us.
        path = os.environ.pop("NOTIFY_SOCKET", "")
        #: A leading @ means a name in the abstract namespace.
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self) -> None:
        """Signals are heard and REST answers; said again after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The configuration is read anew; `ready` follows."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
