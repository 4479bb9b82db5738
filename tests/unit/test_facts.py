"""Lsn arithmetic and what a sample proves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgres_ctl.facts import InstanceSample, Lsn

STANDBY = InstanceSample(
    sampled_at=1.0,
    postmaster_start_time="2030-01-01 10:00:00.000001+00:00",
    server_version=150018,
    system_identifier="7277694203142172922",
    in_recovery=True,
    timeline=1,
    flush_lsn=None,
    receive_lsn=None,
    replay_lsn=Lsn(50),
    replay_timestamp=None,
    replay_paused=False,
    walreceiver_status=None,
    walreceiver_latest_end_lsn=None,
    walreceiver_slot=None,
    walreceiver_conninfo=None,
    startup_waits_for_wal=False,
    senders=(),
    slots=(),
    pending_restart=(),
    primary_conninfo=None,
    primary_slot_name=None,
    restore_command=None,
    replication_state=None,
)


@given(st.integers(0, 2**64 - 1))
def test_lsn_survives_its_text(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == Lsn(value)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_lsn_distance_and_order_agree(a: int, b: int) -> None:
    assert (Lsn(a).minus(Lsn(b)) > 0) == (Lsn(a) > Lsn(b))


def test_lsn_prints_as_postgresql_does() -> None:
    assert str(Lsn.parse("16/B374D848")) == "16/B374D848"
    assert str(Lsn(0x5000270)) == "0/5000270"


@pytest.mark.parametrize("text", ["", "0", "0/", "/1", "0/123456789", "x/1", "0/1/2", "-1/0"])
def test_nonsense_is_no_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


def test_standby_is_as_far_as_the_greater_of_received_and_replayed() -> None:
    assert STANDBY.position == Lsn(50)
    assert replace(STANDBY, receive_lsn=Lsn(70)).position == Lsn(70)
    assert replace(STANDBY, receive_lsn=Lsn(16)).position == Lsn(50)
    assert replace(STANDBY, in_recovery=False, flush_lsn=Lsn(9)).position == Lsn(9)


def test_standby_position_is_proven_only_by_streaming_or_waiting() -> None:
    """H16"""
    assert not STANDBY.position_is_proven
    assert not replace(STANDBY, walreceiver_status="starting").position_is_proven
    assert replace(STANDBY, walreceiver_status="streaming").position_is_proven
    assert replace(STANDBY, startup_waits_for_wal=True).position_is_proven
    assert replace(STANDBY, in_recovery=False).position_is_proven
