"""The hosts themselves: what is dropped is lost without a word, one way, and comes back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import netns, processes
from tests.support.netns import Host, Network
from tests.support.wait import DEADLINE_S, wait_for

_PORTS = (7001, 7002)
_ECHO = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in sys.argv[2:]:
    ready.register(socket.create_server((sys.argv[1], int(port))), selectors.EVENT_READ, "server")
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        if key.data == "server":
            ready.register(key.fileobj.accept()[0], selectors.EVENT_READ, "client")
        elif data := key.fileobj.recv(100):
            key.fileobj.sendall(data)
        else:
            ready.unregister(key.fileobj)
"""
#: Says "open" once connected, then per line of input what it heard within the time, "nothing" or an error.
_ASK = """
import socket, sys
wire = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
print("open", flush=True)
for line in sys.stdin:
    wire.settimeout(float(line))
    try:
        wire.sendall(b"x")
        print(wire.recv(100).decode()[:1], flush=True)
    except TimeoutError:
        print("nothing", flush=True)
    except OSError as error:
        print(repr(error), flush=True)
"""
#: Long enough to hear from a neighbour on a busy machine; the whole price of "nothing came".
_SILENCE_S = 1.0


@pytest.fixture
def network() -> Iterator[Network]:
    lacking = netns.missing()
    if lacking:
        pytest.skip(lacking)
    with Network() as made:
        yield made


def run_in(host: Host, code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python program on that host, after its first line of output; it ends with the network."""
    child = subprocess.Popen(
        [*host.launcher, sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() in ("ready\n", "open\n")
    return child


def hears(client: subprocess.Popen[str], within_s: float) -> str:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{within_s}\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


def _reap(*children: subprocess.Popen[str]) -> None:
    for child in children:
        child.kill()
        child.communicate()


def test_cut_hosts_lose_packets_of_open_connections_silently_and_get_them_after_healing(
    network: Network,
) -> None:
    a, b = network.add("a"), network.add("b")
    server = run_in(b, _ECHO, b.address, *_PORTS)
    clients = [run_in(a, _ASK, b.address, port) for port in _PORTS]
    outside = socket.create_connection((b.address, _PORTS[0]), timeout=DEADLINE_S)
    try:
        assert [hears(client, DEADLINE_S) for client in clients] == ["x", "x"]

        network.cut(a, b, ports=[_PORTS[0]])
        assert [hears(client, _SILENCE_S) for client in clients] == ["nothing", "x"]
        network.drop(b, a)
        assert [hears(client, _SILENCE_S) for client in clients] == ["nothing", "nothing"]
        outside.sendall(b"y")
        assert outside.recv(1) == b"y", "the test process reaches every host all the time"

        network.heal()
        assert [hears(client, DEADLINE_S) for client in clients] == ["x", "x"]
    finally:
        outside.close()
        _reap(server, *clients)


def test_one_way_loss_lets_the_other_way_through(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    listener = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], 7)); "
    listener += "print('ready', flush=True); print(s.recv(9).decode(), flush=True); sys.stdin.read()"
    at_a, at_b = run_in(a, listener, a.address), run_in(b, listener, b.address)
    send = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); "
    send += "print('ready', flush=True); s.sendto(sys.argv[2].encode(), (sys.argv[1], 7))"
    try:
        network.drop(a, b)
        for sender, target in ((a, b), (b, a)):
            _reap_when_done(run_in(sender, send, target.address, "first"))
        assert at_a.stdout is not None
        assert at_a.stdout.readline() == "first\n"
        network.heal()
        _reap_when_done(run_in(a, send, b.address, "second"))
        assert at_b.stdout is not None
        assert at_b.stdout.readline() == "second\n", "what was dropped did not arrive, and never will"
    finally:
        _reap(at_a, at_b)


def _reap_when_done(child: subprocess.Popen[str]) -> None:
    child.communicate(timeout=DEADLINE_S)


def test_what_a_killed_run_left_is_removed_with_its_processes(network: Network) -> None:
    code = """
import subprocess, sys
from tests.support.netns import Network
network = Network().__enter__()
host = network.add("x")
child = subprocess.Popen([*host.launcher, "sleep", "infinity"], start_new_session=True)
print(host.namespace, child.pid, flush=True)
sys.stdin.read()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    namespace, pid = run.stdout.readline().split()
    place = Path("/run/netns", namespace)
    try:
        netns.sweep_abandoned()
        assert place.exists(), "somebody uses it"
        assert processes.exists(int(pid))
        run.kill()
        run.wait()
        netns.sweep_abandoned()
        assert not place.exists()
        wait_for(lambda: not processes.exists(int(pid)), DEADLINE_S, "its process is ended")
    finally:
        _reap(run)
