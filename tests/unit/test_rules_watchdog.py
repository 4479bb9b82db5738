"""The watchdog in the rules: required it comes before anything is written, automatic it stops nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haagent.core import watchdog
from haagent.core.actions import CloseWatchdog, Guard, OpenWatchdog, Promote, ReleaseLeader, StopInstance
from haagent.core.candidate import standing
from haagent.core.model import Memory, Observation, WatchdogFacts
from haagent.core.rules import common
from haagent.core.settings import Settings
from tests.unit.core_facts import (
    DOWN,
    EPOCH,
    NOW,
    SETTINGS,
    answer,
    cluster,
    crashed,
    empty,
    judge,
    kinds,
    leading,
    lease,
    lost_stream,
    obs,
    paused,
    primary,
    racing,
)

#: With ttl 30.
OPEN = OpenWatchdog(Guard(epoch=EPOCH), 25)
PEERS = (answer("pg1"), answer("pg2"))
OFF, AUTOMATIC, REQUIRED = (WatchdogFacts(mode) for mode in ("off", "automatic", "required"))
ON = replace(REQUIRED, on_s=25)
NO_DEVICE = {"device_problem": "/dev/watchdog: No such file or directory"}
BROKEN = {"failed": (NOW - 1, "/dev/watchdog: Input/output error")}


@pytest.mark.parametrize(
    ("ttl", "margin", "timeout"), [(30, 5, 25), (30, -1, 15), (21, -1, 10), (20, 0, 20), (6, 5, 1)]
)
def test_the_timeout(ttl: int, margin: int, timeout: int) -> None:
    assert watchdog.timeout_s(Settings(ttl_s=ttl), margin) == timeout


@pytest.mark.parametrize("facts", [AUTOMATIC, REQUIRED])
def test_it_is_opened_before_a_promotion_a_start_and_beside_a_primary(facts: WatchdogFacts) -> None:
    promoting = judge(leading(lost_stream(), peers=PEERS, watchdog=facts))
    assert (promoting.rule, promoting.actions) == ("promote.watchdog", (OPEN,))
    starting = judge(leading(crashed(), watchdog=facts))
    assert (starting.rule, starting.actions) == ("leader.watchdog", (OPEN,))
    first = judge(leading(crashed(last_exit=None), watchdog=facts), Memory(bootstrap="ready"))
    assert first.actions == (OPEN,)
    running = judge(leading(primary(), watchdog=facts))
    assert running.rule == "leader.steady"
    assert OPEN in running.actions


@pytest.mark.parametrize("facts", [OFF, ON, replace(AUTOMATIC, **NO_DEVICE), replace(AUTOMATIC, **BROKEN)])  # type: ignore[arg-type]
def test_otherwise_it_holds_nothing_up(facts: WatchdogFacts) -> None:
    assert judge(leading(lost_stream(), peers=PEERS, watchdog=facts)).rule == "promote.now"
    assert judge(leading(crashed(), watchdog=facts)).rule == "leader.restart-in-place"
    running = judge(leading(primary(), watchdog=facts))
    assert running.rule == "leader.steady"
    assert OpenWatchdog not in kinds(running)


@pytest.mark.parametrize("why", [NO_DEVICE, BROKEN])
def test_required_and_useless_means_no_lead(why: dict[str, object]) -> None:
    facts = replace(REQUIRED, **why)  # type: ignore[arg-type]
    text = str(why.get("device_problem") or BROKEN["failed"][1])
    racer = racing(lost_stream(), watchdog=facts)
    assert [r.rule for r in standing(racer, Memory()).refusals] == ["watchdog"]
    assert text in standing(racer, Memory()).refusals[0].detail
    holder = judge(leading(lost_stream(), peers=PEERS, watchdog=facts))
    assert (holder.rule, holder.actions) == ("promote.refused", (ReleaseLeader(EPOCH),))
    down = judge(leading(crashed(), watchdog=facts))
    assert (down.rule, kinds(down)) == ("leader.no-watchdog", (ReleaseLeader,))
    running = judge(leading(primary(), watchdog=facts))
    assert running.rule == "leader.watchdog-failed"
    assert running.actions == (StopInstance("fast", running.reason, common.SENDERS_GRACE_S),)
    nobody = obs(
        "pg0", empty(), cluster(leader=None, members=(), initialize=None, status=None), watchdog=facts
    )
    assert judge(nobody).rule == "bootstrap.wait"


def test_a_failure_is_forgotten_after_a_ttl() -> None:
    old = replace(REQUIRED, failed=(NOW - SETTINGS.ttl_s, "it was busy"))
    assert judge(leading(lost_stream(), peers=PEERS, watchdog=old)).actions == (OPEN,)


def test_a_device_that_is_on_is_kept_whatever_is_said_of_it() -> None:
    facts = replace(ON, **NO_DEVICE)  # type: ignore[arg-type]
    assert kinds(judge(leading(lost_stream(), peers=PEERS, watchdog=facts)))[-1] is Promote
    assert judge(leading(primary(), watchdog=facts)).rule == "leader.steady"


def test_another_ttl_is_another_timeout_and_off_is_off() -> None:
    longer = replace(SETTINGS, ttl_s=40)
    assert (
        OpenWatchdog(Guard(epoch=EPOCH), 35)
        in judge(leading(primary(), settings=longer, watchdog=ON)).actions
    )
    assert CloseWatchdog() in judge(leading(primary(), watchdog=replace(OFF, on_s=25))).actions


def test_a_pause_wants_none() -> None:
    disarmed = lease(disarmed=True)
    decision = judge(leading(primary(), settings=paused(), lease=disarmed, watchdog=REQUIRED))
    assert decision.rule == "pause.leader"
    assert OpenWatchdog not in kinds(decision)


def test_a_timeout_shorter_than_loop_wait_is_useless() -> None:
    short = replace(SETTINGS, ttl_s=12, loop_wait_s=8)
    seen: Observation = racing(lost_stream(), settings=short, watchdog=REQUIRED)
    [refusal] = standing(seen, Memory()).refusals
    assert "a timeout of 7 s (ttl 12, safety_margin 5) is shorter than loop_wait 8" in refusal.detail


def test_without_the_store_a_primary_comes_back_only_with_its_watchdog() -> None:
    assert judge(leading(crashed(), DOWN, watchdog=ON)).rule == "outage.restart-in-place"
    assert judge(leading(crashed(), DOWN, watchdog=REQUIRED)).rule == "outage.lease-holds"
