"""How an agent asks the REST servers of others: certificates on both sides, and who counts as alive."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from haagent.config import Environment, load
from haagent.ports import PeerFault
from haagent.system import HttpPeers
from tests.support.certificates import Certificates
from tests.support.rest import DEADLINE_S, serving

MakePeers = Callable[..., HttpPeers]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def peers(tmp_path: Path) -> MakePeers:
    """Peers as seen by an agent whose file has this section `ctl`."""

    def make(**ctl: Any) -> HttpPeers:
        role = {"username": "u", "password": "p"}
        file = tmp_path / "haagent.yml"
        file.write_text(
            yaml.safe_dump(
                {
                    "scope": "main",
                    "name": "n1",
                    "restapi": {"listen": "127.0.0.1:8008", "authentication": {**role, "password": "secret"}},
                    "ctl": ctl,
                    "etcd3": {"host": "127.0.0.1:2379"},
                    "postgresql": {
                        "listen": "127.0.0.1:5432",
                        "data_dir": str(tmp_path / "data"),
                        "authentication": {"superuser": role, "replication": role},
                    },
                }
            )
        )
        return HttpPeers(load(str(file), Environment()))

    return make


def test_without_a_client_certificate_the_server_is_not_verified(
    certificates: Certificates, peers: MakePeers
) -> None:
    certificate, key = certificates.stranger
    with serving(certfile=certificate, keyfile=key) as server:
        url = f"https://localhost:{server.port}/patroni"
        answer = peers().get(url, DEADLINE_S)
        assert isinstance(answer, dict)
        assert answer["patroni"]["name"] == "n0"


def test_with_a_client_certificate_the_authority_counts_and_the_host_name_does_not(
    certificates: Certificates, peers: MakePeers
) -> None:
    ours = {"certfile": certificates.client[0], "keyfile": certificates.client[1], "cacert": certificates.ca}
    with serving(**certificates.section(), verify_client="required") as server:
        url = f"https://localhost:{server.port}/patroni"
        assert isinstance(peers(**ours).get(url, DEADLINE_S), dict)
        with pytest.raises(PeerFault):
            peers().get(url, DEADLINE_S)
    certificate, key = certificates.stranger
    with serving(certfile=certificate, keyfile=key) as server, pytest.raises(PeerFault):
        peers(**ours).get(f"https://localhost:{server.port}/patroni", DEADLINE_S)


def test_a_server_that_wants_another_certificate_is_alive(
    certificates: Certificates, peers: MakePeers
) -> None:
    with serving(**certificates.section(), verify_client="required") as server:
        url = f"https://127.0.0.1:{server.port}/liveness"
        assert peers().is_alive(url)
        assert peers(certfile=certificates.client[0], keyfile=certificates.client[1]).is_alive(url)
    assert not peers().is_alive(url)


def test_agents_call_themselves_as_patroni_does_and_send_no_password(peers: MakePeers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(DEADLINE_S)
        asking = pool.submit(peers().get, f"http://127.0.0.1:{server.getsockname()[1]}/patroni", DEADLINE_S)
        connection, _ = server.accept()
        with connection:
            head = connection.recv(4096).decode()
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
        assert asking.result(DEADLINE_S) == {}
    assert re.search(r"\r\nUser-Agent: Patroni/4\.1\.\d+ Python/3\.\d+\.\d+ Linux haagent/", head)
    assert "secret" not in head
    assert "authorization" not in head.lower()
