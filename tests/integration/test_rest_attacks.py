"""A real agent under attack by its REST clients: it answers others, leads on, and does not grow."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.certificates import Certificates
from tests.support.cluster import Cluster, Node
from tests.support.rest import ANSWER_S, DEADLINE_S, basic
from tests.support.wait import wait_for

LOGIN = {"username": "admin", "password": "secret"}
#: What an agent may need more while hundreds of bad clients are connected.
GROWTH_BYTES = 150 * 1024**2

Dial = Callable[[bytes], socket.socket]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Cluster(nodes=1, store="local", node_config={"restapi": {"authentication": LOGIN}}) as cluster:
        yield cluster.leader()


@pytest.fixture
def dial(node: Node) -> Iterator[Dial]:
    """Connects, and says that much; everything is closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(data: bytes) -> socket.socket:
            address = (node.address, node.api_port)
            sock = stack.enter_context(socket.create_connection(address, timeout=DEADLINE_S))
            sock.sendall(data)
            return sock

        yield connect


def keep_asking(node: Node, until: threading.Event) -> None:
    """A client that asks as fast as it can."""
    connection = http.client.HTTPConnection(node.address, node.api_port, timeout=DEADLINE_S)
    while not until.is_set():
        try:
            connection.request("GET", "/patroni")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
    connection.close()


@contextlib.contextmanager
def flood(node: Node, clients: int) -> Iterator[None]:
    until = threading.Event()
    threads = [threading.Thread(target=keep_asking, args=(node, until)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        until.set()
        for thread in threads:
            thread.join()


BAD_CLIENTS = (
    b"",
    b"GET /prim",
    b"GET /primary HTTP/1.1\r\nX-Slow: ",
    b"POST /mpp HTTP/1.1\r\nContent-Length: 9000\r\n\r\n{",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 100,
    b"GET /metrics HTTP/1.1\r\n\r\n" * 100,  # and never reads
    b"PATCH /config HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 10_000,
)


def test_slow_and_hostile_clients_of_a_real_agent(node: Node, dial: Dial) -> None:
    agent, postmaster = psutil.Process(node.agent_pid), node.postmaster_pid()
    threads, memory = agent.num_threads(), agent.memory_info().rss
    with flood(node, clients=8):
        for number in range(420):
            dial(BAD_CLIENTS[number % len(BAD_CLIENTS)])
            if number % 42 == 0:
                assert node.rest("/primary", timeout_s=ANSWER_S)[0] == 200
        assert agent.num_threads() <= threads + 420 + 8 + 20
        assert agent.memory_info().rss <= memory + GROWTH_BYTES
        assert node.rest("/primary", timeout_s=ANSWER_S)[0] == 200
    assert node.postmaster_pid() == postmaster
    assert "Traceback" not in node.log()


def test_all_is_as_before_when_they_are_gone(node: Node) -> None:
    agent = psutil.Process(node.agent_pid)
    wait_for(lambda: agent.num_threads() < 40, DEADLINE_S, "the threads of the bad clients end")
    assert node.is_primary()


def test_a_body_of_a_stranger_is_refused_unread(node: Node, dial: Dial) -> None:
    memory = psutil.Process(node.agent_pid).memory_info().rss
    head = b"PUT /config HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"
    for _ in range(10):
        client = dial(head)
        client.settimeout(DEADLINE_S)
        with contextlib.suppress(OSError):  # it closes on us at some point
            for _ in range(1000):
                client.sendall(b"x" * 1024)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100).startswith(b"HTTP/1.1 401 ")
    assert psutil.Process(node.agent_pid).memory_info().rss <= memory + GROWTH_BYTES / 10


def test_sighup_turns_tls_on_and_takes_a_changed_certificate(node: Node, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    files = {name: str(node.root / f"rest.{name}") for name in ("certfile", "keyfile")}
    changed = (certificates.other_server, certificates.other_server_key)

    def install(certificate: str, key: str) -> None:
        for source, target in ((certificate, files["certfile"]), (key, files["keyfile"])):
            Path(target).write_bytes(Path(source).read_bytes())
            Path(target).chmod(0o644)

    def serial() -> str | None:
        """Serial number of the certificate it shows; None while it does not speak TLS."""
        context = ssl.create_default_context(cafile=certificates.ca)
        connection = http.client.HTTPSConnection(
            node.address, node.api_port, timeout=DEADLINE_S, context=context
        )
        try:
            connection.request("POST", "/reload", headers={"Authorization": basic(**LOGIN)})
            assert isinstance(connection.sock, ssl.SSLSocket)
            peer = connection.sock.getpeercert()
            assert peer
            return str(peer["serialNumber"]) if connection.getresponse().status == 202 else None
        except OSError:
            return None
        finally:
            connection.close()

    install(certificates.server, certificates.server_key)
    node.write_config({"restapi": files})
    os.kill(node.agent_pid, signal.SIGHUP)
    first = wait_for(serial, DEADLINE_S, "TLS")
    install(*changed)
    wait_for(lambda: serial() not in (None, first), DEADLINE_S, "another certificate after POST /reload")
    node.write_config({"restapi": dict.fromkeys(files)})
    os.kill(node.agent_pid, signal.SIGHUP)
    wait_for(node.is_primary, DEADLINE_S, "no TLS any more")
