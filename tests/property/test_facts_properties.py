"""LSNs, timeline histories, what a sample proves: arithmetic, and any text where PostgreSQL's belongs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgres_ctl.controldata import parse_history
from postgres_ctl.facts import SLOT_NAME_MAX, InstanceSample, Lsn, TimelineSwitch, slot_name
from tests.property.strategies import examples
from tests.unit.core_facts import sample

values = st.integers(0, 2**64 - 1)
lsns = values.map(Lsn)
maybe_lsn = st.none() | lsns
odd_text = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"[0-9A-Fa-f]{0,10}/[0-9A-Fa-f]{0,10}\n?", fullmatch=True),
    st.text("0123456789abcdefABCDEFx/ -+_\t\n", max_size=20),
)


@given(values)
@examples(150)
def test_an_lsn_is_read_as_it_is_printed_in_either_case(value: int) -> None:
    text = str(Lsn(value))
    assert Lsn.parse(text) == Lsn.parse(text.lower()) == Lsn(value)
    high, low = text.split("/")
    assert int(high, 16) * 2**32 + int(low, 16) == value


@given(odd_text)
@examples(300)
def test_any_text_is_an_lsn_of_64_bits_or_refused(text: str) -> None:
    try:
        found = Lsn.parse(text)
    except ValueError:
        return
    high, low = text.strip().split("/")
    assert found.value == int(high, 16) * 2**32 + int(low, 16)
    assert 0 <= found.value < 2**64
    assert text.strip().isascii()


@given(lsns, lsns, lsns)
@examples(150)
def test_order_and_distance_of_lsns_agree(a: Lsn, b: Lsn, c: Lsn) -> None:
    assert (a < b, a == b, a > b) == (a.minus(b) < 0, a.minus(b) == 0, a.minus(b) > 0)
    assert a.minus(b) == -b.minus(a)
    assert a.minus(b) + b.minus(c) == a.minus(c)
    assert max(a, b).minus(min(a, b)) >= 0


# --- histories ------------------------------------------------------------------------------------

reasons = st.text(st.characters(categories=["L", "N"], include_characters=" .-"), max_size=12).map(
    lambda text: " ".join(text.split())
)
switches = st.lists(st.builds(TimelineSwitch, st.integers(1, 2**32 - 1), lsns, reasons), max_size=5)


@given(switches, st.sampled_from(["\t", " ", "  "]), st.booleans())
@examples(150)
def test_a_history_file_is_read_as_it_is_written(
    rows: list[TimelineSwitch], gap: str, commented: bool
) -> None:
    lines = [f"{row.timeline}{gap}{row.switch_lsn}{gap}{row.reason}" for row in rows]
    filler = ["# made by hand", "", "   "] if commented else []
    text = "\n".join(line for row in [*lines, ""] for line in [*filler, row])
    assert parse_history(text) == tuple(rows)


@given(st.binary(max_size=60) | odd_text.map(lambda t: ("1 " + t).encode("utf-8", "replace")))
@examples(300)
def test_any_bytes_are_a_history_or_refused(content: bytes) -> None:
    """Never a line left out silently, never a timeline that is none."""
    text = content.decode("utf-8", "replace")
    told = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        found = parse_history(text)
    except ValueError:
        assert told
        return
    assert len(found) == len(told)
    for switch in found:
        assert 0 <= switch.switch_lsn.value < 2**64


@pytest.mark.parametrize("text", ["1", "x 0/1 a", "1 0 a", "1 0/123456789", "0/1 1"])
def test_half_a_line_is_no_history(text: str) -> None:
    with pytest.raises(ValueError):
        parse_history(text)


# --- samples --------------------------------------------------------------------------------------


@st.composite
def servers(draw: st.DrawFn) -> InstanceSample:
    base = sample(primary=draw(st.booleans()))
    return replace(
        base,
        flush_lsn=draw(maybe_lsn),
        receive_lsn=draw(maybe_lsn),
        replay_lsn=draw(maybe_lsn),
        walreceiver_status=draw(st.sampled_from([None, "streaming", "stopping", "starting"])),
        startup_waits_for_wal=draw(st.booleans()),
    )


@given(servers())
@examples(150)
def test_a_position_is_one_of_those_the_server_told(server: InstanceSample) -> None:
    told = (
        (server.receive_lsn, server.replay_lsn)
        if server.in_recovery
        else (server.flush_lsn, server.flush_lsn)
    )
    known = [lsn for lsn in told if lsn is not None]
    assert server.position == max(known, default=Lsn(0))
    assert server.position_is_proven or server.in_recovery
    if server.walreceiver_status != "streaming" and not server.startup_waits_for_wal:
        assert server.position_is_proven == (not server.in_recovery)


@given(st.text(max_size=80))
@examples(150)
def test_any_member_has_a_slot_name_that_postgresql_takes(member: str) -> None:
    name = slot_name(member)
    assert len(name) <= SLOT_NAME_MAX
    assert all(c.isascii() and (c.islower() or c.isdigit() or c == "_") for c in name)
    assert bool(name) == bool(member)
    assert slot_name(name) == name
