"""The REST server over TLS: client certificates, changed files, silent clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from haagent.api import RestError, RestServer
from tests.support.certificates import Certificates
from tests.support.rest import (
    DEADLINE_S,
    Agent,
    dial,
    exchange,
    serving,
    settings,
)


def ask(
    certificates: Certificates, server: RestServer, method: str = "GET", client: tuple[str, str] | None = None
) -> tuple[int, int]:
    """(status, serial number of the server's certificate)."""
    context = ssl.create_default_context(cafile=certificates.ca)
    if client is not None:
        context.load_cert_chain(*client)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=DEADLINE_S, context=context)
    try:
        connection.request(method, "/reload" if method == "POST" else "/primary")
        assert isinstance(connection.sock, ssl.SSLSocket)
        peer = connection.sock.getpeercert()
        assert peer
        return connection.getresponse().status, int(str(peer["serialNumber"]), 16)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> dict[str, Any]:
    return certificates.section()


def test_https(certificates: Certificates, tls: dict[str, Any]) -> None:
    with serving(**tls, https_extra_headers={"X-S": "1"}) as server:
        assert ask(certificates, server)[0] == 200
        assert ask(certificates, server, "POST")[0] == 200
        assert exchange(server, b"GET /primary HTTP/1.0\r\n\r\n")[:5] != b"HTTP/"


def test_hundreds_of_silent_tls_clients_delay_nobody(certificates: Certificates, tls: dict[str, Any]) -> None:
    with serving(**tls) as server, contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(dial(server, b"\x16\x03\x01\x02\x00\x01"[: number % 6]))
        for _ in range(5):
            assert ask(certificates, server)[0] == 200


def test_optional_client_certificates_are_for_changes(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    with serving(**tls, verify_client="optional") as server:
        assert ask(certificates, server)[0] == 200
        assert ask(certificates, server, "POST")[0] == 403
        assert ask(certificates, server, "POST", certificates.client)[0] == 200
        with pytest.raises(OSError):
            ask(certificates, server, "GET", certificates.stranger)


def test_required_client_certificates_are_for_everything(
    certificates: Certificates, tls: dict[str, Any]
) -> None:
    with serving(**tls, verify_client="required") as server:
        for client in (None, certificates.stranger):
            with pytest.raises(OSError):
                ask(certificates, server, "GET", client)
        assert ask(certificates, server, "GET", certificates.client)[0] == 200
        assert ask(certificates, server, "POST", certificates.client)[0] == 200


def test_certificates_are_read_again_on_reload(
    certificates: Certificates, tls: dict[str, Any], tmp_path: Path
) -> None:
    paths: dict[str, Any] = {"certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "cert.key")}

    def install(certificate: str, key: str) -> None:
        for source, target in ((certificate, paths["certfile"]), (key, paths["keyfile"])):
            Path(target).write_bytes(Path(source).read_bytes())

    install(certificates.server, certificates.server_key)
    with serving(**paths) as server:
        first = ask(certificates, server)[1]
        install(certificates.other_server, certificates.other_server_key)
        assert ask(certificates, server)[1] == first
        server.reload(settings(**paths))
        second = ask(certificates, server)[1]
        assert second != first
        Path(paths["certfile"]).write_text("no certificate")
        with pytest.raises(RestError, match=r"restapi\.certfile: "):
            server.reload(settings(**paths))
        assert ask(certificates, server)[1] == second


def test_a_protected_key_needs_its_password(certificates: Certificates) -> None:
    locked: dict[str, Any] = {"certfile": certificates.server, "keyfile": certificates.locked_key}
    with serving(**locked, keyfile_password="geheim") as server:
        assert ask(certificates, server)[0] == 200
    for password in (None, "falsch"):
        with pytest.raises(RestError, match=r"restapi\.certfile: ") as caught:
            RestServer(Agent(), settings(**locked, keyfile_password=password))
        assert "falsch" not in str(caught.value)


def test_bad_tls_settings_are_clear_errors(tls: dict[str, Any], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    bad = [
        ({"certfile": missing}, f"restapi.certfile: cannot read {missing}: No such file"),
        ({"ciphers": "NONSENSE"}, "restapi.ciphers: 'NONSENSE' selects no cipher"),
        (
            {"cafile": missing, "verify_client": "required"},
            f"restapi.cafile: cannot use {missing}: No such file",
        ),
        (
            {"verify_client": "sometimes"},
            "restapi.verify_client: 'sometimes' is not none, optional or required",
        ),
    ]
    for changes, message in bad:
        with pytest.raises(RestError) as caught:
            RestServer(Agent(), settings(**{**tls, **changes}))
        assert str(caught.value).startswith(message)
        assert os.linesep not in str(caught.value)
