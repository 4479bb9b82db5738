"""The guardian's messages from any bytes: one of the protocol, or `BadMessage`; nothing else gets through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haagent import guardian_wire as wire
from haagent.guardian_kernel import Message
from haagent.guardian_wire import BadMessage
from tests.property.raw_store import any_bytes, any_json, numbers, written
from tests.property.strategies import examples

KEYS = ("epoch", "fence_at", "argv", "env", "v", "id", "op")
messages = st.dictionaries(
    st.sampled_from(KEYS),
    any_json | numbers | st.lists(st.text(max_size=3)) | st.dictionaries(st.text(max_size=3), st.text()),
    max_size=5,
)


@given(any_bytes | messages.map(written) | messages.map(lambda m: written({**m, "v": 1})), st.booleans())
@examples(300)
def test_any_packet_is_a_request_or_refused(raw: bytes, truncated: bool) -> None:
    try:
        request = wire.parse(raw, truncated)
    except BadMessage:
        return
    assert not truncated
    assert isinstance(request, dict)
    assert request["v"] == wire.PROTOCOL
    assert repr(request) == repr(json.loads(raw))


def refused(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except BadMessage:
        return None


@given(messages)
@examples(300)
def test_what_is_taken_out_of_a_request_can_be_used(message: Message) -> None:
    epoch = refused(lambda: wire.epoch_in(message))
    assert epoch is None or (type(epoch) is int and epoch >= 1)
    fence_at = refused(lambda: wire.seconds_in(message, "fence_at"))
    assert fence_at is None or (type(fence_at) is float and 0 <= fence_at < 1e9)
    words = refused(lambda: wire.texts_in(message, "argv"))
    assert words is None or (words and all("\0" not in word for word in words))
    variables = refused(lambda: wire.environment_in(message))
    for name, text in (variables or {}).items():
        assert name
        assert "=" not in name
        assert "\0" not in name + text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
@examples(60)
def test_what_exec_can_take_is_taken(argv: list[str]) -> None:
    raw = written({"v": 1, "argv": argv, "epoch": 3, "fence_at": 5})
    message = wire.parse(raw, truncated=False)
    assert wire.texts_in(message, "argv") == argv
    assert [os.fsencode(word) for word in argv]
    assert (wire.epoch_in(message), wire.seconds_in(message, "fence_at")) == (3, 5.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e9, True, "5", None, 10**400])
def test_no_time_is_no_deadline(value: object) -> None:
    with pytest.raises(BadMessage):
        wire.seconds_in({"fence_at": value}, "fence_at")


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_no_tenure_is_no_epoch(value: object) -> None:
    with pytest.raises(BadMessage):
        wire.epoch_in({"epoch": value})
