"""HTTP/1.x heads as pure data: bytes in, `RequestHead` or `HttpError` out, and the way back.

Strict where a second reader (a proxy) could understand a request differently: repeated or odd
`Content-Length`, folded lines, control characters. Lenient where monitoring scripts are sloppy: bare
line feeds, no `Host`. Chunked bodies are not read: to such a request there is no body, and its
connection ends with the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

#: Longest head taken: request line and headers together.
MAX_HEAD_BYTES = 16 * 1024
MAX_REQUEST_LINE_BYTES = 8 * 1024
MAX_HEADERS = 100
#: Largest body any call needs is a dynamic configuration.
MAX_BODY_BYTES = 1024 * 1024

_TLS_HELLO = b"\x16\x03"
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_TOKEN = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_VERSION = re.compile(r"^HTTP/(\d)\.(\d)$")
_ABSOLUTE = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)


class HttpError(Exception):
    """The request cannot be understood: the answer's status; the connection ends with it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class RequestHead:
    method: str
    #: Percent-decoded, as WSGI wants it: each character one byte.
    path: str
    query: str
    #: (1, 0) or (1, 1)
    version: tuple[int, int]
    #: Names in lower case, in order.
    headers: tuple[tuple[str, str], ...]
    content_length: int | None
    #: A body is announced whose end we cannot tell.
    unframed_body: bool

    def get(self, name: str) -> str:
        """Value of a header (lower-case name), joined by commas when repeated, else ""."""
        return ",".join(value for key, value in self.headers if key == name)

    @property
    def keep_alive(self) -> bool:
        """The client wants to send another request on this connection."""
        tokens = {token.strip().lower() for token in self.get("connection").split(",")}
        if self.unframed_body or "close" in tokens:
            return False
        return self.version >= (1, 1) or "keep-alive" in tokens

    @property
    def expects_continue(self) -> bool:
        return self.version >= (1, 1) and self.get("expect").strip().lower() == "100-continue"


def split_head(buffer: bytes, scanned: int = 0) -> tuple[bytes, bytes] | None:
    """(head, rest) once the empty line is there, None before. Raises HttpError for too long heads.

    `scanned` bytes have been looked at before in vain.
    """
    if buffer.startswith(_TLS_HELLO):
        raise HttpError(400, "no TLS is spoken here")  # at once: the client waits for our part of it
    start = len(buffer) - len(buffer.lstrip(b"\r\n"))
    match = _END_OF_HEAD.search(buffer, max(start, scanned - 3))
    if match is None:
        if len(buffer) > MAX_HEAD_BYTES:
            raise HttpError(431, "request head too large")
        return None
    if match.end() > MAX_HEAD_BYTES:
        raise HttpError(431, "request head too large")
    return buffer[start : match.start()], buffer[match.end() :]


def parse_head(head: bytes) -> RequestHead:
    """Parse what `split_head` cut out. Raises HttpError."""
    lines = [line.removesuffix("\r") for line in head.decode("latin-1").split("\n")]
    method, target, version = _request_line(lines[0])
    headers = tuple(_header(line) for line in lines[1:])
    if len(headers) > MAX_HEADERS:
        raise HttpError(431, "too many headers")
    path, _, query = target.partition("?")
    unframed = any(name == "transfer-encoding" for name, _ in headers)
    return RequestHead(
        method=method,
        path="/" + unquote_to_bytes(path).decode("latin-1").lstrip("/"),
        query=query,
        version=version,
        headers=headers,
        content_length=None if unframed else _content_length(headers),
        unframed_body=unframed,
    )


def _request_line(line: str) -> tuple[str, str, tuple[int, int]]:
    if len(line) > MAX_REQUEST_LINE_BYTES:
        raise HttpError(414, "request line too long")
    words = line.split(" ")
    match = _VERSION.match(words[-1])
    if len(words) != 3 or match is None or not _TOKEN.match(words[0]) or _CONTROL.search(line):
        raise HttpError(400, "bad request line")
    if match[1] != "1":
        raise HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    target = _ABSOLUTE.sub("", words[1]).partition("#")[0] or "/"
    if not target.startswith(("/", "?")) and target != "*":
        raise HttpError(400, "bad request target")
    return words[0], target, (1, min(int(match[2]), 1))


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.match(name) or _CONTROL.search(value):
        raise HttpError(400, "bad header line")
    return name.lower(), value.strip(" \t")


def _content_length(headers: Iterable[tuple[str, str]]) -> int | None:
    values = {value for name, value in headers if name == "content-length"}
    if not values:
        return None
    text = values.pop()
    if values or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise HttpError(400, "bad Content-Length")
    return int(text)


def response_head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line and headers, ready to send. Line breaks inside values are dropped."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name}: {value}".replace("\r", "").replace("\n", "") for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
