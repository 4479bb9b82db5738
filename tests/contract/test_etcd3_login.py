"""TLS, passwords and tokens, against real servers; and what the `etcd3:` section may say."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcs.api import Ok, Renewed, Taken, Unknown
from dcs.errors import DcsConfigError, DcsLoginRefused, DcsUnavailable
from dcs.etcd3 import Etcd3Dcs, Etcd3Options, options_from_section
from dcs.etcd3_http import Gateway
from dcs.factory import make_dcs
from tests.contract.conftest import CALL_S, Events
from tests.support.etcd import EtcdServer, EtcdTls

SHORT_S = 0.5


# --- TLS ------------------------------------------------------------------------------------------


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def _authority(directory: Path, name: str) -> None:
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=keyCertSign"),
        *("-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")),
    )


def _certificate(directory: Path, name: str, authority: str) -> None:
    """For server and client use alike: etcd's gateway is a client of its own server."""
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/O=test"),
        *("-keyout", str(directory / f"{name}.key"), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-CAcreateserial"),
        *("-CA", str(directory / f"{authority}.pem"), "-CAkey", str(directory / f"{authority}.key")),
        *("-extfile", str(extensions), "-out", str(directory / f"{name}.pem")),
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    for authority in ("ours", "theirs"):
        _authority(directory, authority)
    _certificate(directory, "server", "ours")
    _certificate(directory, "client", "ours")
    return directory


@pytest.fixture(scope="module")
def tls_server(pki: Path) -> Iterator[EtcdServer]:
    cert, key, ca = (str(pki / name) for name in ("server.pem", "server.key", "ours.pem"))
    with EtcdServer(tls=EtcdTls(cert, key, ca, client_cert_auth=True)) as server:
        yield server


def _tls_options(server: EtcdServer, pki: Path) -> Etcd3Options:
    return options_from_section(
        {
            "url": server.url,
            "cacert": str(pki / "ours.pem"),
            "cert": str(pki / "client.pem"),
            "key": str(pki / "client.key"),
        }
    )


def test_calls_and_watches_work_over_tls(tls_server: EtcdServer, pki: Path) -> None:
    client = Etcd3Dcs(_tls_options(tls_server, pki))
    events = Events(client)
    taken = client.take_leader(client.open_session(30, CALL_S), "pg0", CALL_S)
    assert isinstance(taken, Taken)
    events.until_key("leader")
    assert isinstance(client.renew_leader(taken.handle, "pg0", CALL_S), Renewed)
    client.close()


def test_a_server_of_another_authority_is_not_believed(tls_server: EtcdServer, pki: Path) -> None:
    client = Etcd3Dcs(replace(_tls_options(tls_server, pki), cacert=str(pki / "theirs.pem")))
    with pytest.raises(DcsUnavailable, match="certificate"):
        client.snapshot(SHORT_S)
    client.close()


def test_a_client_without_certificate_is_not_let_in(tls_server: EtcdServer, pki: Path) -> None:
    client = Etcd3Dcs(replace(_tls_options(tls_server, pki), cert=None, key=None))
    with pytest.raises(DcsUnavailable):
        client.snapshot(SHORT_S)
    assert isinstance(client.put("status", "1", SHORT_S), Unknown)
    client.close()


@pytest.mark.parametrize("name", ["cacert", "cert"])
def test_an_unreadable_certificate_names_its_key(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    section = {"url": "https://127.0.0.1:1", name: str(tmp_path / "bad.pem")}
    with pytest.raises(DcsConfigError, match=rf"etcd3\.{name}"):
        make_dcs("etcd3", section, "service", "batman")


# --- passwords ------------------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[EtcdServer]:
    """A server that asks for user root, password secret."""
    with EtcdServer(extra_args=["--bcrypt-cost=4"]) as server:
        server.post("/v3/auth/user/add", {"name": "root", "password": "secret"})
        server.post("/v3/auth/user/grant", {"user": "root", "role": "root"})
        server.post("/v3/auth/enable", {})
        yield server


def _user(server: EtcdServer, password: str = "secret") -> Etcd3Dcs:
    return Etcd3Dcs(Etcd3Options((server.url,), username="root", password=password))


def test_a_lost_token_is_replaced_even_for_a_write(guarded: EtcdServer) -> None:
    client = _user(guarded)
    events = Events(client)
    session = client.open_session(30, CALL_S)
    guarded.kill()
    guarded.start()  # tokens live in the server's memory only
    events.until_gap()
    taken = client.take_leader(session, "pg0", CALL_S)
    assert isinstance(taken, Taken)
    events.until_key("leader")
    assert isinstance(client.renew_leader(taken.handle, "pg0", CALL_S), Renewed)
    client.close()


def test_a_token_of_an_old_revision_is_replaced(guarded: EtcdServer) -> None:
    client = _user(guarded)
    assert isinstance(client.put("status", "1", CALL_S), Ok)
    gateway = Gateway(Etcd3Options((guarded.url,), username="root", password="secret"))
    changed = gateway.ask("/v3/auth/user/add", {"name": "other", "password": "x"}, CALL_S, repeatable=False)
    assert "header" in changed
    assert isinstance(client.put("status", "2", CALL_S), Ok)
    client.close()
    gateway.close()


def test_a_wrong_password_is_refused_without_being_told(guarded: EtcdServer) -> None:
    client = _user(guarded, "topsecret")
    with pytest.raises(DcsLoginRefused) as refused:
        client.snapshot(CALL_S)
    assert "root" in str(refused.value)
    assert "topsecret" not in str(refused.value)
    assert isinstance(client.put("status", "1", CALL_S), Unknown)
    client.close()


def test_no_password_where_one_is_asked_for_is_refused(guarded: EtcdServer) -> None:
    client = Etcd3Dcs(Etcd3Options((guarded.url,)))
    with pytest.raises(DcsLoginRefused):
        client.snapshot(CALL_S)
    client.close()


def test_a_password_where_none_is_asked_for_does_no_harm(etcd: EtcdServer) -> None:
    client = _user(etcd)
    assert client.snapshot(CALL_S) is not None
    client.close()


# --- the section ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "endpoints"),
    [
        ({"host": "etcd1"}, ("http://etcd1:2379",)),
        ({"host": "etcd1:4001"}, ("http://etcd1:4001",)),
        ({"host": "etcd1", "port": 4001}, ("http://etcd1:4001",)),
        ({"host": "etcd1", "protocol": "https"}, ("https://etcd1:2379",)),
        ({"host": "[fd00::1]:4001"}, ("http://[fd00::1]:4001",)),
        ({"host": "[fd00::1]"}, ("http://[fd00::1]:2379",)),
        ({"hosts": ["a", "b:1"]}, ("http://a:2379", "http://b:1")),
        ({"hosts": "a, 'b:1',a"}, ("http://a:2379", "http://b:1")),
        ({"url": "https://a"}, ("https://a:2379",)),
        ({"url": "http://[::1]:7/"}, ("http://[::1]:7",)),
        ({"host": "a", "use_proxies": True}, ("http://a:2379",)),
        ({"proxy": "https://a:1"}, ("https://a:1",)),
    ],
)
def test_a_section_names_its_endpoints(section: dict[str, Any], endpoints: tuple[str, ...]) -> None:
    assert options_from_section(section).endpoints == endpoints


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({}, "host"),
        ({"host": ""}, "host"),
        ({"host": 7}, "host"),
        ({"host": "fd00::1"}, "host"),
        ({"host": "a:b"}, "host"),
        ({"host": "a:99999"}, "host"),
        ({"host": "user:secret@a"}, "host"),
        ({"hosts": [1]}, "hosts"),
        ({"host": "a", "port": "x"}, "port"),
        ({"host": "a", "protocol": "ftp"}, "protocol"),
        ({"url": "a:2379"}, "url"),
        ({"url": "http://user:secret@a/path"}, "url"),
        ({"host": "a", "username": "u"}, "password"),
        ({"host": "a", "username": ["u"], "password": "p"}, "username"),
        ({"host": "a", "key": "k"}, "key"),
        ({"proxy": "a:2379"}, "url"),
    ],
)
def test_a_bad_section_is_named_without_its_secrets(section: dict[str, Any], key: str) -> None:
    with pytest.raises(DcsConfigError, match=rf"etcd3\b.*{key}") as refused:
        options_from_section(section)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_user_and_password_may_stand_in_the_url() -> None:
    options = options_from_section({"url": "http://root:p%40ss@a:2379"})
    assert (options.endpoints, options.username, options.password) == (("http://a:2379",), "root", "p@ss")
    assert "p@ss" not in repr(options)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(DcsConfigError, match="zookeeperish"):
        make_dcs("zookeeperish", {}, "service", "batman")
