"""The guardian's messages: one JSON object per packet, checked at the edge.

`docs/guardian.md` lists them. What is not a message of the protocol raises `BadMessage` and is answered with
an error; what is one and cannot be granted raises `guardian_lease.Refused`.
"""

from __future__ import annotations

import json
from typing import Any

from haagent.guardian_kernel import Message

PROTOCOL = 1
SOCKET_NAME = "guardian.sock"
LOCK_NAME = "guardian.lock"
LOG_NAME = "guardian.log"
POSTGRES_LOG_NAME = "postgresql.log"
#: Longest message taken, bytes: a start order carries a whole environment.
MAX_MESSAGE_BYTES = 256 * 1024


class BadMessage(Exception):
    """The message is not one of the protocol; the text names the key."""


def parse(raw: bytes, truncated: bool) -> Message:
    """The request in one packet. Raises BadMessage."""
    if truncated:
        raise BadMessage(f"message: longer than {MAX_MESSAGE_BYTES} bytes")
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadMessage("message: not JSON") from None
    if not isinstance(request, dict):
        raise BadMessage("message: not a JSON object")
    if request.get("v") != PROTOCOL:
        raise BadMessage(f"v: this guardian speaks {PROTOCOL}")
    return request


def need(message: Message, key: str, kind: type) -> Any:
    """The value of `key`, which must be a `kind`. Raises BadMessage."""
    value = message.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadMessage(f"{key}: must be {kind.__name__}")
    return value


def epoch_in(message: Message) -> int:
    """The number of a tenure, from 1 on. Raises BadMessage."""
    epoch: int = need(message, "epoch", int)
    if epoch < 1:
        raise BadMessage("epoch: must be 1 or more")
    return epoch


def seconds_in(message: Message, key: str) -> float:
    """A time on CLOCK_BOOTTIME. Raises BadMessage."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadMessage(f"{key}: must be seconds on CLOCK_BOOTTIME")
    return float(value)


def texts_in(message: Message, key: str) -> list[str]:
    """A list with at least one text, none with a NUL. Raises BadMessage."""
    value: list[str] = need(message, key, list)
    if not value or not all(isinstance(text, str) and "\0" not in text for text in value):
        raise BadMessage(f"{key}: must be a list of texts")
    return value


def environment_in(message: Message) -> dict[str, str]:
    """An environment to give to exec. Raises BadMessage."""
    value: dict[str, str] = need(message, "env", dict)
    for name, text in value.items():
        if not name or "=" in name or not isinstance(text, str) or "\0" in name + text:
            raise BadMessage(f"env: {name[:40]!r} is not a variable")
    return value
