"""Reading the JSON object a call needs, within limits (contract 3.6).

Theory. A body is read only after its sender may make the call, and costs memory only while it is read and
parsed: small ones anybody may send at the same time, of large ones only a few. So the worst a crowd of
clients can make us hold is `MAX_LARGE_BODIES` large bodies, and one small one per connection.
"""

from __future__ import annotations

from typing import Any

from flask import request

from haagent.api import control
from haagent.api.gate import Gate, Refused
from haagent.api.http1 import MAX_BODY_BYTES

#: Every request but a dynamic configuration is far smaller.
SMALL_BODY_BYTES = 16 * 1024
#: Larger ones that may be read at the same time.
MAX_LARGE_BODIES = 4


class BodyReader:
    """Reads the body of the request that is being handled. Thread safe."""

    def __init__(self) -> None:
        self._large = Gate("large bodies", MAX_LARGE_BODIES)

    def needed(self, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
        """The object, which must have at least one key. Raises Refused."""
        length = request.content_length
        if length is None:
            raise Refused(411, "Length Required")
        body = self._read(length, max_bytes)
        if not body:
            raise Refused(400, "Bad Request: the body is an empty object")
        return body

    def optional(self) -> dict[str, Any]:
        """The object; {} when there is none. Raises Refused."""
        if request.environ["haagent.unframed_body"]:
            # Not read, it would count as none: a restart "only if …" would become a restart.
            raise Refused(411, "Length Required")
        length = request.content_length
        return self._read(length, MAX_BODY_BYTES) if length else {}

    def _read(self, length: int, max_bytes: int) -> dict[str, Any]:
        if length > max_bytes:
            raise Refused(413, f"the body is larger than {max_bytes} bytes")
        if length <= SMALL_BODY_BYTES:
            return _parsed(length)
        with self._large.passed():
            return _parsed(length)


def _parsed(length: int) -> dict[str, Any]:
    try:
        raw = request.environ["wsgi.input"].read(length)
    except TimeoutError as error:
        raise Refused(408, "the body did not arrive in time") from error
    except OSError as error:
        raise Refused(400, "the body ended early") from error
    try:
        return control.parse_object(raw)
    except control.BadBody as error:
        raise Refused(400, f"Bad Request: {error}") from error
