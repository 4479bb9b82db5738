"""Whatever a client sends is a request, a clear refusal or not complete: no exception, no second reading."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from haagent.api import Answer
from haagent.api.control import (
    BadBody,
    parse_object,
    reinitialize_request,
    restart_request,
    switchover_request,
)
from haagent.api.http1 import HttpError, RequestHead, parse_head, response_head, split_head

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: Bytes that look like HTTP often enough to get far.
PIECES = (
    b"GET ", b"POST ", b"/primary", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"Content-Length: 5",
    b"Content-Length: ", b"Transfer-Encoding: chunked", b"Connection: close", b": ", b"%00", b"?lag=1",
    b"http://host", b"\x00", b"\x16\x03",
)  # fmt: skip
stream = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=12).map(b"".join)


def heads(data: bytes) -> tuple[RequestHead | int | None, bytes]:
    """What the bytes are: a head, the status of a refusal, or None for "not complete"; and what follows."""
    try:
        parts = split_head(data)
        return (None, b"") if parts is None else (parse_head(parts[0]), parts[1])
    except HttpError as error:
        return error.status, b""


@given(stream)
@example(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n")
def test_any_bytes_are_a_request_a_refusal_or_not_complete(data: bytes) -> None:
    head, _ = heads(data)
    if isinstance(head, int):
        assert head in (400, 414, 431, 505)
    if isinstance(head, RequestHead):
        assert head.path.startswith("/")
        assert head.content_length is None or (head.content_length >= 0 and not head.unframed_body)


@given(stream, st.integers(0, 60))
def test_how_the_bytes_arrive_makes_no_difference(data: bytes, cut: int) -> None:
    whole = heads(data)
    with suppress(HttpError):
        first = split_head(data[:cut])
        if first is not None:
            assert (parse_head(first[0]), first[1] + data[cut:]) == whole
        elif isinstance(whole[0], RequestHead):
            later = split_head(data, scanned=min(cut, len(data)))
            assert later is not None
            assert (parse_head(later[0]), later[1]) == whole


@given(st.integers(100, 599), st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4))
def test_an_answer_has_no_more_lines_than_headers(status: int, headers: list[tuple[str, str]]) -> None:
    answer = response_head(status, headers)
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\n") == answer.count(b"\r") == len(headers) + 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
zones = st.sampled_from(("", "+00:00", "-12:00", "+99:99", " CET", " UTC", "Z", "+0530"))
times = st.builds("{}{}".format, st.datetimes() | st.sampled_from(("now", "", "10:00")), zones)
words = st.sampled_from(("leader", "candidate", "member", "role", "postgres_version", "restart_pending"))
bodies = st.dictionaries(words | st.sampled_from(("timeout", "force", "from_leader")), values, max_size=5)


@given(st.binary(max_size=60) | values.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_any_body_is_an_object_or_bad(raw: bytes) -> None:
    with suppress(BadBody):
        assert isinstance(parse_object(raw), dict)


@given(bodies, st.none() | times | values, st.booleans(), st.booleans())
def test_any_object_is_a_wish_or_a_refusal(
    body: dict[str, object], at: object, one: bool, other: bool
) -> None:
    asked = [
        switchover_request({**body, "scheduled_at": at}, one, other, NOW),
        restart_request({**body, "schedule": at}, one, NOW),
        reinitialize_request(body),
    ]
    for answer in asked:
        if isinstance(answer, Answer):
            assert answer.status in (400, 422, 500)
            assert isinstance(answer.body, str)
            assert "Traceback" not in answer.body
