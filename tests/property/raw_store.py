"""Bytes as a store may hold them: what peers write, spoilt; JSON of any shape; anything at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from dcs import codec
from dcs.codec import RawKey, build_snapshot
from dcs.records import Status, TimelineClaim, Unfenced
from tests.unit.core_facts import NAMES, OPTIME, SYSTEM, history, member

#: A healthy cluster of three, pg0 leading, with every key that there is.
STORED: dict[str, bytes] = {
    key: text.encode()
    for key, text in {
        codec.INITIALIZE: SYSTEM,
        codec.CONFIG: '{"ttl":30}',
        codec.LEADER: "pg0",
        codec.STATUS: codec.encode_status(Status(OPTIME, dict.fromkeys(NAMES, OPTIME), NAMES)),
        codec.SYNC: codec.encode_sync(None, ()),
        codec.FAILOVER: "{}",
        codec.HISTORY: codec.encode_history(()),
        codec.CLAIMS: codec.encode_claims((TimelineClaim(1, "pg0", 5),)),
        codec.FAILSAFE: "{}",
        codec.OUTCOME: '{"version":3,"status":200,"text":"done"}',
        codec.UNFENCED: "{}",
        **{codec.MEMBERS + name: codec.encode_member(member(name)) for name in NAMES},
    }.items()
}
#: Values in which there is something to spoil.
FULL = (
    *STORED.values(),
    codec.encode_failover("pg0", "pg1", "2099-01-01T00:00:00+00:00").encode(),
    codec.encode_history(history(1, 2)).encode(),
    codec.encode_unfenced(Unfenced("pg0", 5)).encode(),
    b"pg0:pg1",
)

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**32, 2**32 - 1, 2**63, 2**64 - 1, 2**64, -(2**64), 10**400]),
    st.floats(),
    st.just(1e308),
)
texts = st.text(max_size=6) | st.sampled_from(["pg0", "running", "primary", "\ud800", "a\nb", "\x00", "5"])
FIELDS = sorted(
    {name for value in FULL if value.startswith(b"{") for name in json.loads(value)}
    | {"timeline", "name", "epoch", "note", "tags", "pause", "checkpoint_after_promote", "cannot_lead"}
)
names = st.sampled_from(FIELDS) | texts
any_json = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)


def written(value: Any) -> bytes:
    """As JSON, with what JSON should not have: NaN, infinities, halves of surrogate pairs as escapes."""
    return json.dumps(value).encode()


@st.composite
def objects_with_a_key_twice(draw: st.DrawFn) -> bytes:
    pairs = draw(st.lists(st.tuples(names, any_json), min_size=1, max_size=4))
    return b"{" + b",".join(written(k) + b":" + written(v) for k, v in [*pairs, pairs[0]]) + b"}"


@st.composite
def mutilated(draw: st.DrawFn) -> bytes:
    """What was written once, cut, doubled, or with bytes exchanged."""
    value = draw(st.sampled_from(FULL))
    at = draw(st.integers(0, len(value)))
    length = draw(st.integers(0, 5))
    return value[:at] + draw(st.binary(max_size=4)) + value[at + length :]


ODD = (
    b"",
    b" ",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    '{"leader":"pg0"}'.encode("utf-16"),
    b"[" * 100_000,
    b'{"a":' * 33 + b"1" + b"}" * 33,
    b"9" * 5000,
    b'{"optime":' + b"9" * 100_000 + b"}",
    b'{"optime":1e400}',
    b'{"optime":5.0}',
    b"-0",
    b"null",
    b"true",
    b'"\\ud800"',
    b'{"leader":"\\ud800"}',
)
any_bytes = st.one_of(
    mutilated(),
    any_json.map(written),
    st.dictionaries(names, any_json, max_size=8).map(written),
    objects_with_a_key_twice(),
    st.sampled_from(ODD),
    st.binary(max_size=40),
)

#: Of each key some values that cannot be understood, so that shrinking has something to end at.
GARBAGE: dict[str, tuple[bytes, ...]] = {
    codec.LEADER: (b"", b"\xff", b"pg0\n"),
    codec.INITIALIZE: (b"\xff", b"7277694203142172922\n"),
    codec.STATUS: (b"{}", b"null", b'{"optime":"5"}', b'{"optime":-1}'),
    codec.HISTORY: (b"{}", b"[[2,5]]", b'[[0,5,"x"]]', b"\xff"),
    codec.FAILOVER: (b"{", b"[]", b'{"leader":1}', b'"pg0:pg1"'),
    codec.UNFENCED: (b"[]", b'{"name":"pg0"}', b'{"name":1,"epoch":5}'),
    codec.CLAIMS: (b"{}", b'[{"timeline":1}]', b"null"),
    codec.CONFIG: (b"[]", b'{"ttl":NaN}'),
    "members/pg0": (b"null", b'{"state":1}', b'{"role":"primary","timeline":0}'),
    "members/pg2": (b"null", b'{"tags":5}'),
}


def is_broken(key: str, value: bytes) -> bool:
    return bool(build_snapshot({key: RawKey(value, 1, 1)}, 1).broken)


def garbage(key: str) -> st.SearchStrategy[bytes]:
    """Values of `key` that cannot be understood."""
    return st.sampled_from(GARBAGE[key]) | any_bytes.filter(lambda value: is_broken(key, value))
