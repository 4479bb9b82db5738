"""Hosts as network namespaces on one bridge, and packets between them that vanish as one says.

    with Network() as network:
        a, b = network.add("n0"), network.add("e0")
        subprocess.Popen([*a.launcher, "server", ...])    # listens on a.address
        network.drop(a, b)                                # one way: what a sends never reaches b
        network.cut(a, b, ports=(5432,))                  # both ways, only to and from that port
        network.heal()

Theory. The test process stays outside and has an address on the bridge, so its clients reach every host
whatever is cut: that is how they can write on both sides of a partition. A dropped packet is lost without a
word: no refusal, no reset, no unreachable; carrier, addresses and routes stay. Each host drops on arrival,
by a traffic-control filter that redirects the packet into a dead-end interface, which needs the least of the
kernel: no nft, no netem, no dummy device.

Names and the subnet hang on a number that a lock file reserves while this process lives. Whoever makes a
network first removes those whose lock nobody holds: what a killed run left behind. Root only, and `missing`
says what else lacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import processes

_LOCKS = Path("/run")
_LOCK_NAME = "haagent-test-net-{}.lock"
#: Reserved for measurements between networks (RFC 2544): nobody's real addresses.
_SUBNET = "198.18.{}.0/24"
_NUMBERS = range(256)
_FIRST_HOST = 10
_TIMEOUT_S = 20.0


def missing() -> str | None:
    """Why networks cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [program for program in ("ip", "tc", "nsenter", "unshare") if shutil.which(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    try:
        _run("unshare --net true")
    except RuntimeError as error:
        return f"network namespaces cannot be made: {error}"
    return None


@dataclass(frozen=True)
class Host:
    """One namespace with an address. `launcher` before a command runs it there; the pid stays the same."""

    name: str
    address: str
    namespace: str

    @property
    def launcher(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")


class Network:
    """A bridge and the hosts on it. RuntimeError when the kernel or the tools refuse."""

    def __init__(self) -> None:
        sweep_abandoned()
        self._number, self._lock_fd = _reserve()
        self._tag = _tag(self._number)
        self._hosts: dict[str, Host] = {}
        self._filters: dict[str, int] = {}

    # --- building ---------------------------------------------------------------------------------

    @property
    def subnet(self) -> str:
        return _SUBNET.format(self._number)

    def _address(self, last: int) -> str:
        return self.subnet.replace("0/24", str(last))

    def add(self, name: str) -> Host:
        """A new host; at most four letters of name, interface names are short."""
        host = Host(name, self._address(_FIRST_HOST + len(self._hosts)), f"{self._tag}-{name}")
        space, port = host.namespace, f"{self._tag}-{name}"
        _run(f"ip netns add {space}")
        _run(f"ip link add {port} type veth peer name eth0 netns {space}")
        inside = (
            f"addr add {host.address}/24 dev eth0\n"
            "link add void0 type veth peer name void1\n"
            "link set void0 up\nlink set void1 up\nlink set eth0 up\nlink set lo up\n"
        )
        _run(f"ip -n {space} -batch -", inside)
        _run(f"tc -n {space} qdisc add dev eth0 clsact")
        _run(f"ip link set {port} master {self._tag} up")
        self._hosts[name] = host
        return host

    # --- breaking ---------------------------------------------------------------------------------

    def drop(self, source: Host, target: Host, ports: Iterable[int] = ()) -> None:
        """Lose packets from source to target; with `ports` only TCP packets from or to one of these."""
        match = f"match ip src {source.address}/32"
        tcp = [f"{match} match ip protocol 6 0xff match ip {side} {port} 0xffff"
               for port in ports for side in ("sport", "dport")]  # fmt: skip
        self._filter(target, tcp or [match])

    def cut(self, one: Host, other: Host, ports: Iterable[int] = ()) -> None:
        """Lose packets between two hosts, both ways."""
        ports = tuple(ports)
        self.drop(one, other, ports)
        self.drop(other, one, ports)

    def _filter(self, host: Host, matches: list[str]) -> None:
        lines = []
        for match in matches:
            priority = self._filters[host.name] = self._filters.get(host.name, 0) + 1
            lines.append(
                f"filter add dev eth0 ingress protocol ip prio {priority} u32 {match} "
                "action mirred egress redirect dev void0\n"
            )
        _run(f"tc -n {host.namespace} -batch -", "".join(lines))

    def heal(self) -> None:
        """Every packet arrives again."""
        for name in self._filters:
            _run(f"tc -n {self._hosts[name].namespace} filter del dev eth0 ingress")
        self._filters.clear()

    # --- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            _run(f"ip link add {self._tag} type bridge")
            _run(f"ip addr add {self._address(1)}/24 dev {self._tag}")
            _run(f"ip link set {self._tag} up")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Remove bridge and hosts, and end what still runs in them."""
        _remove(self._number)
        _release(self._number, self._lock_fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- names, locks, leftovers ----------------------------------------------------------------------


def _tag(number: int) -> str:
    return f"hatn{number}"


def _lock_path(number: int) -> Path:
    return _LOCKS / _LOCK_NAME.format(number)


def _take(number: int) -> int | None:
    """The lock of a number as a file descriptor; None when somebody holds it."""
    path = _lock_path(number)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the file between our two calls.
        if os.path.samestat(path.stat(), os.fstat(fd)):
            return fd
    os.close(fd)
    return None


def _reserve() -> tuple[int, int]:
    start = os.getpid()
    for step in _NUMBERS:
        number = (start + step) % len(_NUMBERS)
        fd = _take(number)
        if fd is not None:
            _remove(number)
            return number, fd
    raise RuntimeError("no free network number")


def _release(number: int, fd: int) -> None:
    _lock_path(number).unlink(missing_ok=True)
    os.close(fd)


def sweep_abandoned() -> None:
    """Remove networks whose process is gone."""
    for path in _LOCKS.glob(_LOCK_NAME.format("*")):
        number = int(re.sub(r"\D", "", path.name))
        fd = _take(number)
        if fd is not None:
            _remove(number)
            _release(number, fd)


def _remove(number: int) -> None:
    """Bridge, ports and namespaces of a number, and the processes in them, as far as they are there."""
    names = [line.split()[0] for line in _run("ip netns list").splitlines()]
    for space in names:
        if space.startswith(f"{_tag(number)}-"):
            for pid in _run(f"ip netns pids {space}").split():
                processes.send(int(pid), signal.SIGKILL)
            _run(f"ip netns del {space}")
    # A namespace is taken down by the kernel in its own time, and its ports with it: ask again, ignore.
    links = re.findall(rf"^\d+: ({_tag(number)}(?:-\w+)?)[@:]", _run("ip -o link"), re.MULTILINE)
    for link in links:
        with contextlib.suppress(RuntimeError):
            _run(f"ip link del {link}")


def _run(command: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            command.split(), input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command}: {error.stderr.strip()}\n{text}") from error
    return done.stdout
