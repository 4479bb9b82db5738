"""An authority and certificates for servers and clients on 127.0.0.1, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

#: For one call of openssl, seconds.
DEADLINE_S = 20.0


class Certificates:
    """An authority, certificates it signed, and one it did not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca = self._make("ca")[0]
        self.server, self.server_key = self._make("server", signed=True)
        self.other_server, self.other_server_key = self._make("other", signed=True)
        self.client = self._make("client", signed=True)
        self.stranger = self._make("stranger")
        self.locked_key = str(directory / "locked.key")
        self._openssl(
            "ec", "-in", self.server_key, "-aes256", "-passout", "pass:geheim", "-out", self.locked_key
        )

    def section(self) -> dict[str, Any]:
        """The keys of section `restapi` for our server."""
        return {"certfile": self.server, "keyfile": self.server_key, "cafile": self.ca}

    def _make(self, name: str, signed: bool = False) -> tuple[str, str]:
        certificate, key = str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key")
        by_ca = ("-CA", str(self._directory / "ca.pem"), "-CAkey", str(self._directory / "ca.key"))
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", key, "-out", certificate,
            *(by_ca if signed else ()),
        )  # fmt: skip
        return certificate, key

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE_S)
