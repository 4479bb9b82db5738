"""The TLS context of the REST server, built from the files of section `restapi`."""

from __future__ import annotations

import ssl

from haagent.api.config import RestConfig, RestError

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def tls_context(config: RestConfig) -> ssl.SSLContext | None:
    """A fresh context that has read every file, None without `certfile`. Raises RestError."""
    if not config.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, config)
    if config.ciphers:
        try:
            context.set_ciphers(config.ciphers)
        except ssl.SSLError as error:
            raise RestError(f"restapi.ciphers: {config.ciphers!r} selects no cipher") from error
    _verify_clients(context, config)
    return context


def _load_certificate(context: ssl.SSLContext, config: RestConfig) -> None:
    # An empty password instead of none: OpenSSL would ask on the terminal for a protected key.
    password = config.keyfile_password or ""
    try:
        context.load_cert_chain(str(config.certfile), config.keyfile or None, password)
    except ssl.SSLError as error:
        key = config.keyfile or config.certfile
        why = error.reason or "not a certificate and its key, or the wrong keyfile_password"
        raise RestError(f"restapi.certfile: {config.certfile} with key {key}: {why}") from error
    except OSError as error:
        raise RestError(_unreadable(config) or f"restapi.certfile: {error.strerror}") from error


def _unreadable(config: RestConfig) -> str | None:
    """Which of the two files cannot be read: OpenSSL does not say."""
    for key, path in (("certfile", config.certfile), ("keyfile", config.keyfile)):
        try:
            open(path or "/dev/null", "rb").close()
        except OSError as error:
            return f"restapi.{key}: cannot read {path}: {error.strerror}"
    return None


def _verify_clients(context: ssl.SSLContext, config: RestConfig) -> None:
    mode = (config.verify_client or "none").lower()
    if mode not in _VERIFY:
        raise RestError(f"restapi.verify_client: {config.verify_client!r} is not none, optional or required")
    context.check_hostname = False
    context.verify_mode = _VERIFY[mode]
    if context.verify_mode is ssl.CERT_NONE:
        return
    if not config.cafile:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        return
    try:
        context.load_verify_locations(config.cafile)
    except OSError as error:  # ssl.SSLError is one
        raise RestError(f"restapi.cafile: cannot use {config.cafile}: {error.strerror or error}") from error
