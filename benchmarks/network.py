"""A network of our own for one run: a bridge, and a network namespace with an address for each node.

    with Network() as network:
        network.add("n0")                       # namespace, veth pair, network.address("n0")
        network.cut("n0"); network.join("n0")   # every frame to and from the node vanishes, and no more

Theory. A lost node must fall silent: nobody refuses its connections, nobody tells its peers. A bridge port in
state "disabled" does that to frames in both directions and leaves addresses, routes and carrier as they were,
so that the node itself does not notice either. It needs neither nft nor a netem module. Root only.

A namespace belongs to threads: `enter` takes the calling thread in for good, which is how a client gets to
write on a server that is cut off.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from types import TracebackType
from typing import Self

#: How a node is cut off, for the report.
HOW = "disabling its bridge port (every frame dropped, both ways, silently)"
_FORWARDING, _DISABLED = "3", "0"
_CLONE_NEWNET = 0x40000000


def possible() -> bool:
    return os.geteuid() == 0


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)


class Network:
    """Names carry our pid: runs beside each other do not meet, short of the one /24 out of 200."""

    def __init__(self) -> None:
        pid = os.getpid()
        self._tag = f"hb{pid % 100000}"
        self._subnet = f"10.231.{20 + pid % 200}"
        self._nodes: list[str] = []

    @property
    def host(self) -> str:
        """Our own address, which nodes reach etcd at."""
        return f"{self._subnet}.1"

    @property
    def subnet(self) -> str:
        return f"{self._subnet}.0/24"

    def address(self, node: str) -> str:
        return f"{self._subnet}.{10 + self._nodes.index(node)}"

    def path(self, node: str) -> str:
        return f"/run/netns/{self._namespace(node)}"

    def _namespace(self, node: str) -> str:
        return f"{self._tag}-{node}"

    def _port(self, node: str) -> str:
        return f"{self._tag}p{self._nodes.index(node)}"

    def add(self, node: str) -> None:
        """Make the node's namespace; one that is there stays."""
        if node in self._nodes:
            return
        self._nodes.append(node)
        namespace, port = self._namespace(node), self._port(node)
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "-n", namespace, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _run("ip", "link", "set", port, "master", self._tag, "up")

    def cut(self, node: str) -> None:
        _run("bridge", "link", "set", "dev", self._port(node), "state", _DISABLED)

    def join(self, node: str) -> None:
        _run("bridge", "link", "set", "dev", self._port(node), "state", _FORWARDING)

    def __enter__(self) -> Self:
        _run("ip", "link", "add", self._tag, "type", "bridge")
        _run("ip", "addr", "add", f"{self.host}/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self._nodes:
            with contextlib.suppress(subprocess.SubprocessError):
                _run("ip", "link", "del", self._port(node))
            with contextlib.suppress(subprocess.SubprocessError):
                _run("ip", "netns", "del", self._namespace(node))
        with contextlib.suppress(subprocess.SubprocessError):
            _run("ip", "link", "del", self._tag)


def enter(path: str) -> None:
    """The calling thread lives in that namespace from now on. OSError when it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(fd)
