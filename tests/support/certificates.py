"""An authority for tests, and certificates it signed. Files are readable by the agents' user."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPENSSL_S = 60.0


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    cert: Path
    key: Path


class Authority:
    """Everything lies in `directory`. Certificates are for servers and clients alike."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory, self._name = directory, name
        self.cert, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=keyCertSign,cRLSign"),
            *("-keyout", str(self._key), "-out", str(self.cert)),
        )
        self.cert.chmod(0o644)

    def issue(
        self, common_name: str, password: str | None = None, host: str = "localhost,IP:127.0.0.1"
    ) -> Certificate:
        """A certificate for `common_name` and `host`; its key is encrypted when there is a password."""
        stem = self._directory / f"{self._name}-{common_name}"
        cert, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={common_name}"),
            *("-addext", f"subjectAltName=DNS:{host}"),
            *("-CA", str(self.cert), "-CAkey", str(self._key), "-keyout", str(key), "-out", str(cert)),
        )
        if password is not None:
            _openssl("pkcs8", "-topk8", "-in", str(key), "-passout", f"pass:{password}", "-out", f"{key}.new")
            Path(f"{key}.new").replace(key)
        cert.chmod(0o644)
        key.chmod(0o600)
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(key, user.pw_uid, user.pw_gid)
        return Certificate(cert, key)

    def revocation_list(self) -> Path:
        """A list that revokes nothing."""
        index, path = self._directory / f"{self._name}.index", self._directory / f"{self._name}.crl"
        index.touch()
        settings = self._directory / f"{self._name}.cnf"
        settings.write_text(
            f"[ca]\ndefault_ca = own\n[own]\ndatabase = {index}\ndefault_md = sha256\ndefault_crl_days = 2\n"
        )
        _openssl(
            *("ca", "-gencrl", "-config", str(settings), "-cert", str(self.cert)),
            *("-keyfile", str(self._key), "-out", str(path)),
        )
        path.chmod(0o644)
        return path


class Certificates:
    """An authority, certificates it signed, and one it did not."""

    def __init__(self, directory: Path) -> None:
        ours = Authority(directory, "ours")
        self.ca = str(ours.cert)
        self.server, self.server_key = _names(ours.issue("server"))
        self.other_server, self.other_server_key = _names(ours.issue("other"))
        self.client = _names(ours.issue("client"))
        self.stranger = _names(Authority(directory, "theirs").issue("stranger"))
        self.locked_key = str(directory / "locked.key")
        _openssl("ec", "-in", self.server_key, "-aes256", "-passout", "pass:geheim", "-out", self.locked_key)

    def section(self) -> dict[str, Any]:
        """The keys of section `restapi` for our server."""
        return {"certfile": self.server, "keyfile": self.server_key, "cafile": self.ca}


def _names(issued: Certificate) -> tuple[str, str]:
    return str(issued.cert), str(issued.key)


def _openssl(*arguments: str) -> None:
    command = ["openssl", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, timeout=OPENSSL_S, text=True)
    assert done.returncode == 0, done.stderr
