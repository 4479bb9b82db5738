"""Which callback is due: one row per event, as contract 6.6 and a real Patroni beside it have them."""

from __future__ import annotations

import pytest

from haagent.core.callbacks import Call, Called, due
from haagent.core.model import Handover, JobFacts, LastExit, Memory, Observation
from tests.unit.core_facts import (
    NO_LEASE,
    NOW,
    SETTINGS,
    crashed,
    finished,
    following,
    leading,
    lease,
    paused,
    primary,
    silent,
    standby,
    stopped,
)

LEADS = Called("primary", up=True)
FOLLOWS = Called("replica", up=True)
LED_AND_WAS_STOPPED = Called("primary", stopped=True)
CRASHED = Called("primary")
FENCED = LastExit(fenced=True, watched=True)
PAUSED_PRIMARY = leading(primary(), lease=NO_LEASE, settings=paused())
HANDING_OVER = Memory(handover=Handover(9, "pg1", NOW - 1))


def job(kind: str) -> JobFacts:
    return JobFacts(kind, NOW - 1)


@pytest.mark.parametrize(
    ("called", "seen", "calls"),
    [
        pytest.param(Called(), leading(primary()), "on_start primary", id="a new agent finds a primary"),
        pytest.param(Called(), following(standby()), "on_start replica", id="a new agent finds a standby"),
        pytest.param(LEADS, leading(primary()), "", id="nothing new"),
        pytest.param(FOLLOWS, leading(primary()), "on_role_change primary", id="promoted"),
        pytest.param(
            LEADS, leading(stopped(), finished=finished("stop")), "on_stop primary", id="stopped on purpose"
        ),
        pytest.param(
            LEADS, leading(stopped(), finished=finished("stop", ok=False)), "", id="a stop that failed"
        ),
        pytest.param(
            LEADS, following(stopped(last_exit=FENCED)), "on_stop primary", id="fenced by the guardian"
        ),
        pytest.param(LED_AND_WAS_STOPPED, following(standby()), "on_role_change replica", id="demoted"),
        pytest.param(LED_AND_WAS_STOPPED, leading(primary()), "on_start primary", id="came back"),
        pytest.param(LED_AND_WAS_STOPPED, following(stopped()), "", id="demoted, still down"),
        pytest.param(LEADS, leading(crashed()), "", id="a crash calls nothing"),
        pytest.param(CRASHED, leading(primary()), "on_start primary", id="back in place"),
        pytest.param(CRASHED, following(crashed()), "on_role_change demoted", id="the key is gone, too"),
        pytest.param(Called("demoted"), following(standby()), "on_role_change replica", id="and back"),
        pytest.param(Called("demoted"), following(crashed()), "", id="told once"),
        pytest.param(FOLLOWS, following(stopped(), job=job("restart")), "", id="during a restart"),
        pytest.param(
            FOLLOWS, following(standby(), finished=finished("restart")), "on_restart replica", id="restarted"
        ),
        pytest.param(FOLLOWS, following(stopped(), job=job("clone")), "on_stop replica", id="reinitialised"),
        pytest.param(Called(), leading(primary(), job=job("initdb")), "", id="during bootstrap"),
        pytest.param(Called(), leading(silent(writable=True)), "", id="a primary that still starts"),
        pytest.param(FOLLOWS, leading(primary(), lease=NO_LEASE), "", id="writable without a lease"),
        pytest.param(FOLLOWS, leading(primary(), lease=lease(fence_at=NOW)), "", id="the lease ran out"),
        pytest.param(Called(), PAUSED_PRIMARY, "on_start primary", id="a primary without the key in a pause"),
    ],
)  # fmt: skip
def test_what_is_called(called: Called, seen: Observation, calls: str) -> None:
    found, after = due(called, seen, Memory(), 0)
    assert "; ".join(f"{c.action} {c.role}" for c in found) == calls
    assert due(after, seen, Memory(), 0)[0] == () or seen.finished, "called twice"


def test_a_hand_over_says_demoted() -> None:
    stop = leading(stopped(), finished=finished("stop"))
    assert due(LEADS, stop, HANDING_OVER, 0)[0] == (Call("on_stop", "demoted"),)


def test_a_stop_and_a_quick_start_are_both_told() -> None:
    seen = following(standby(), finished=finished("stop"))
    calls, _ = due(LEADS, seen, Memory(), 0)
    assert calls == (Call("on_stop", "primary"), Call("on_role_change", "replica"))


def test_a_reload_is_told_unless_the_role_changed_with_it() -> None:
    assert due(LEADS, leading(primary()), Memory(), 1)[0] == (Call("on_reload", "primary"),)
    assert due(FOLLOWS, leading(primary()), Memory(), 1)[0] == (Call("on_role_change", "primary"),)
    assert due(Called(), leading(primary(), settings=SETTINGS), Memory(), 1)[0] == (
        Call("on_start", "primary"),
    )
