"""Hazards of failsafe mode: H19."""

from __future__ import annotations

from tests.simulation.hazards.stage import Stage, scenario

KEPT_PROMISE, KEPT_PRIMARY = "failsafe.promise-kept", "failsafe.kept-primary"


def carried(stage: Stage) -> tuple[str, str, str]:
    """The leader alone has lost the store; its key has run out, and promises carry it."""
    a, b, c = stage.settle()
    stage.strike("isolate-from-dcs", a)
    stage.until("its key is gone", lambda: stage.holder() == "")
    stage.until("it goes on", lambda: stage.said("outage.failsafe", a) and stage.writable(a))
    return a, b, c


@scenario(
    "H19",
    {
        "failsafe-promise-forgotten-at-a-restart": KEPT_PROMISE,
        "failsafe-promise-not-stored": KEPT_PROMISE,
    },
    failsafe_mode=True,
    ttl=10,
    loop_wait=2,
    retry_timeout=4,
)
def agents_that_promised_are_started_again(stage: Stage) -> None:
    """They do not reach the leader any more: only what they have promised tells them that it goes on."""
    a, b, c = carried(stage)
    promised_at = stage.now
    for other in (b, c):
        stage.cut_off(a, other)
        stage.strike("kill-agent", other, duration=0.1)
    stage.until("they are back", lambda: stage.node(b).agent_is_up and stage.node(c).agent_is_up)
    stage.until("within their promise", lambda: stage.now < promised_at + stage.ttl_s / 2, 0.0)
    stage.expect(
        "it keeps them out", lambda: stage.said("race.refused", b, "failsafe mode", promised_at), 5.0
    )
    stage.until("somebody leads", lambda: stage.leads(b) or stage.leads(c))


@scenario(
    "H19",
    {"failsafe-asks-when-retries-ran-out": KEPT_PRIMARY, "failsafe-asks-once": KEPT_PRIMARY},
    failsafe_mode=True,
)
def store_is_silent_for_longer_than_a_lease(stage: Stage) -> None:
    """All members are there, and each renewal takes its whole deadline."""
    a, *_ = stage.settle()
    stage.strike("store-down")
    stage.stays(KEPT_PRIMARY, f"{a} is writable", lambda: stage.writable(a), 3 * stage.ttl_s)
    stage.expect("by promises", lambda: stage.said("outage.failsafe", a))


@scenario("H19", {"failsafe-membership-ignored": "rule1.one-writable"}, failsafe_mode=True)
def member_that_is_not_asked_comes_back(stage: Stage) -> None:
    """It was away for so long that the leader does not ask it any more, then the leader loses the store."""
    a, _, c = stage.settle()
    stage.strike("kill-agent", c, duration=3 * stage.ttl_s)
    stage.until(f"{c} is not named", lambda: c not in (stage.store.raw_get("failsafe") or c))
    stage.cut_off(a, c)
    stage.strike("isolate-from-dcs", a)
    stage.until("its key is gone", lambda: stage.holder() == "")
    stage.until(f"{c} is back", lambda: stage.node(c).agent_is_up)
    stage.until(f"{a} goes on", lambda: stage.writable(a), 0.0)
    stage.expect("it may not lead", lambda: stage.said("race.refused", c, "failsafe.member"), stage.ttl_s)
    stage.run(2 * stage.ttl_s)
